"""The background threads by themselves: callbacks run one at a time and in order, and the threads end."""

import threading
import time

import pytest

from raskid.client import workers as workers_module
from raskid.client.workers import Workers

SOON_S = 10.0


class IdleEngine:
    """An engine that somebody else drives all the time."""

    def __init__(self):
        self.baton = threading.Lock()
        self.baton.acquire()
        self.loop = None
        self.closing = False
        self.nudged = False
        self.in_step = False
        self.waiters = 0
        self.drove_at = 0.0
        self.flushed = threading.Event()

    def flush(self):
        self.flushed.set()


@pytest.fixture
def engine():
    return IdleEngine()


@pytest.fixture
def workers(engine):
    workers = Workers(engine)
    yield workers
    engine.closing = True
    workers.close(SOON_S)
    assert not any(thread.is_alive() for thread in workers._threads)


def until(condition):
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_callbacks_run_one_at_a_time_in_order(workers):
    running, order, most = 0, [], 0

    def callback(number):
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(number)
        running -= 1

    for number in range(1000):
        workers.call(callback, (number,))
    until(lambda: len(order) == 1000)
    assert order == list(range(1000)) and most == 1


def test_callbacks_from_several_threads(workers):
    """None is lost, and those of one thread keep their order."""
    order = []

    def call(name):
        for number in range(300):
            workers.call(order.append, ((name, number),))

    threads = [threading.Thread(target=call, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    until(lambda: len(order) == 600)
    for name in "ab":
        assert [number for who, number in order if who == name] == list(range(300))


def test_a_mistake_is_told_and_the_next_one_runs(workers, capsys):
    ran = threading.Event()

    def mistake():
        raise SystemExit("not the end")

    workers.call(mistake, ())
    workers.call(ran.set, ())
    assert ran.wait(SOON_S)
    assert "SystemExit: not the end" in capsys.readouterr().err


def test_what_somebody_wants_written_is_written_while_another_drives(engine, workers):
    engine.nudged = True
    workers.rouse()
    assert engine.flushed.wait(SOON_S) and not engine.nudged


def test_the_end_waits_for_what_is_due_but_not_for_ever(engine):
    """1. A callback blocks, others are due. 2. The end waits for a moment only. 3. Once it can, the rest runs."""
    workers = Workers(engine)
    gate, order = threading.Event(), []
    workers.call(gate.wait, ())
    for number in range(3):
        workers.call(order.append, (number,))
    until(workers._calling.locked)
    engine.closing = True
    workers.close(0.05)
    assert order == []
    gate.set()
    workers.close(SOON_S)
    assert order == [0, 1, 2] and not any(thread.is_alive() for thread in workers._threads)


def test_the_end_comes_after_what_is_due(engine):
    workers = Workers(engine)
    order = []

    def slow(number):
        time.sleep(0.01)
        order.append(number)

    for number in range(5):
        workers.call(slow, (number,))
    engine.closing = True
    workers.close(SOON_S)
    assert order == [0, 1, 2, 3, 4]


def test_after_the_end_callbacks_run_where_they_are_given(engine, workers):
    engine.closing = True
    workers.close(SOON_S)
    threads = []
    workers.call(lambda: threads.append(threading.current_thread()), ())
    assert threads == [threading.current_thread()]


def test_in_a_forked_process_there_are_no_threads(engine, workers):
    """1. A lock is held that nobody here will give back. 2. Abandoned workers begin anew."""
    threads = list(workers._threads)
    workers._calling.acquire()
    old, workers._calling = workers._calling, threading.Lock()
    workers._calling.acquire()
    engine.closing = True
    workers.abandon()
    ran = []
    workers.call(ran.append, (1,))
    assert ran == [1] and workers._threads == []
    old.release()
    for thread in threads:
        thread.join(SOON_S)


def test_resting_threads_look_less_and_less_often():
    assert workers_module.QUIET_S < workers_module.PAUSE_S_MAX < workers_module.STANDBY_S
