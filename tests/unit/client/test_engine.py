"""Who drives a session's IO, as the top of `raskid.client.engine` says it.

No wake-up may be missed: the limits after which waiting threads look by themselves are so long here that a test which
needed one would fail.
"""

import asyncio
import threading
import time

import pytest

from raskid.client import engine as engine_module
from raskid.client import workers as workers_module
from raskid.client.engine import fresh
from raskid.model.errors import ConnectionRefused, NoSuchService, SessionClosed, WaitTimeout
from tests.unit.client.heads import Head

NEVER_S = 60.0
SOON_S = 10.0


@pytest.fixture(autouse=True)
def no_looking(monkeypatch):
    monkeypatch.setattr(engine_module, "LOOK_S", NEVER_S)


@pytest.fixture
def head():
    with Head() as head:
        yield head


@pytest.fixture
def session(head):
    with head.session() as session:
        yield session


@pytest.fixture
def other(head):
    """A session that answers: whatever it is sent comes back."""
    with head.session() as other:
        other.serve("echo", lambda value: value)
        yield other


def until(condition):
    """Wait for what no call waits for."""
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def run(*functions):
    """Run functions on threads of their own, to their end; their results."""
    results = [None] * len(functions)

    def call(at):
        try:
            results[at] = functions[at]()
        except BaseException as error:
            results[at] = error

    threads = [threading.Thread(target=call, args=(at,), daemon=True) for at in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * SOON_S)
        assert not thread.is_alive()
    return results


def test_a_caller_that_waits_drives(session, other):
    """1. A call waits. 2. Its own thread has the baton until the value is there, and no longer."""
    engine = session.engine
    seen = set()
    future = session.request_nowait("echo", 1)

    def done():
        if engine.driving:
            seen.add((engine.driving, engine.baton.locked(), engine.in_step))
        return future.done()

    # The background thread may have the baton at first; it gives it back.
    until(lambda: engine.in_step or not engine.baton.locked())
    assert engine.wait(done, SOON_S)
    assert seen <= {(threading.get_ident(), True, False)}
    assert engine.driving == 0 and future.result(0) == 1


def test_in_the_background_somebody_drives(session, other):
    """Messages come while nobody calls."""
    came = []
    session.subscribe("t", came.append)
    for number in range(100):
        other.publish("t", number)
    until(lambda: len(came) == 100)
    assert [message.value for message in came] == list(range(100))
    until(lambda: session.engine.in_step)
    assert session.engine.stepping is not None and session.engine.baton.locked()


def test_a_call_takes_the_baton_from_the_background(session, other):
    """1. The background thread sleeps. 2. A call wakes it, has the baton, and its value. 3. It goes on afterwards."""
    for number in range(5):
        until(lambda: session.engine.in_step)
        assert session.request("echo", number, timeout=SOON_S) == number


def test_two_callers(session, other):
    """One drives; when its value is there, the other takes over. All values come, without looking."""

    def ask(base):
        return [session.request("echo", base + number, timeout=SOON_S) for number in range(100)]

    for base, values in zip((0, 1000, 2000), run(*(lambda b=b: ask(b) for b in (0, 1000, 2000))), strict=True):
        assert values == list(range(base, base + 100))


def test_a_waiter_takes_over_from_a_driver_that_is_done(session, other):
    """1. One thread drives and waits for long, others ask. 2. The driver's value comes. 3. Somebody else drives on."""
    gate = threading.Event()
    other.serve("first", lambda: gate.wait(SOON_S))

    def drive():
        return session.request("first", timeout=SOON_S)

    def ask():
        until(lambda: session.engine.driving)
        future = session.request_nowait("echo", 2, timeout=SOON_S)
        gate.set()
        return future.result(SOON_S)

    assert run(drive, ask) == [True, 2]


def test_what_is_published_beside_a_driver_goes_out(session, other):
    """1. One thread drives, and waits for something that does not come. 2. Another publishes in bursts. 3. All of it
    is written, although nobody reads anything."""
    came = []
    other.subscribe("t", came.append, capacity=10_000)
    session.publish("t", -1)
    stop = threading.Event()

    def wait():
        with pytest.raises(WaitTimeout):
            session.request_nowait("nobody", timeout=SOON_S).result(1.0)
        stop.set()

    def publish():
        until(lambda: session.engine.driving)
        for number in range(500):
            session.publish("t", number)
        until(lambda: len(came) == 501)
        return stop.is_set()

    assert run(wait, publish) == [None, False]


def test_what_a_process_says_to_itself_ends_the_wait_of_its_driver(session, monkeypatch):
    """1. One thread waits for a message, and drives. 2. Another publishes it, and leaves it to the driver to send what
    is collected. 3. It is for this process itself: the driver has it without looking at a connection."""
    messages, seen = session.subscribe("to myself"), []
    session.publish("to myself", "so that the next one knows its reader")
    messages.get(SOON_S)
    reader = threading.Thread(target=lambda: seen.append(messages.get(SOON_S).value))
    reader.start()
    until(lambda: session.engine.driving)
    monkeypatch.setattr(engine_module, "BURST_S", NEVER_S)
    session.publish("to myself", 1)
    reader.join(SOON_S / 2)
    assert seen == [1]
    reader.join()


def test_deadlines_set_beside_a_driver_are_met(session):
    """1. The background thread sleeps without a limit. 2. A request gets one. 3. It fails in time."""
    until(lambda: session.engine.in_step)
    future = session.request_nowait("nobody", timeout=0.05)
    until(future.done)
    assert isinstance(future.exception(0), NoSuchService)


# ── event loops ──


def test_an_event_loop_drives_from_attach_to_detach(head, other):
    session = head.session()
    engine = session.engine

    async def main():
        async with session as rk:
            assert engine.loop is asyncio.get_running_loop() and engine.baton.locked() and not engine.in_step
            assert [await rk.request("echo", number) for number in range(10)] == list(range(10))
            engine.detach()
            assert engine.loop is None
            until(lambda: engine.in_step)
            assert session.request("echo", 1, timeout=SOON_S) == 1
            engine.attach(asyncio.get_running_loop())
            assert await rk.request("echo", 2) == 2

    asyncio.run(main(), debug=True)
    assert engine.closing and not engine.baton.locked()


def test_results_in_other_threads_while_an_event_loop_drives(head, other):
    """They are told when their value is there; limits of theirs are timers of the loop, set on its thread."""
    session = head.session()

    def ask():
        values = [session.request("echo", number, timeout=SOON_S) for number in range(50)]
        with pytest.raises(NoSuchService):
            session.request("nobody", timeout=0.05)
        return values

    async def main():
        async with session:
            return await asyncio.gather(asyncio.to_thread(ask), asyncio.to_thread(ask))

    # In its debug mode a loop refuses what comes from another thread.
    assert asyncio.run(main(), debug=True) == [list(range(50))] * 2


def test_attaching_while_another_thread_waits(head, other):
    """1. A thread drives and waits. 2. A loop takes over. 3. The thread has its value all the same."""
    session = head.session()
    gate = threading.Event()
    other.serve("slow", lambda: gate.wait(SOON_S))
    results = []
    thread = threading.Thread(target=lambda: results.append(session.request("slow", timeout=SOON_S)))
    thread.start()
    until(lambda: session.engine.driving)

    async def main():
        async with session as rk:
            gate.set()
            # The server runs one handler after the other, so this comes second.
            assert await rk.request("echo", 1) == 1
            await asyncio.to_thread(thread.join, SOON_S)

    asyncio.run(main(), debug=True)
    assert results == [True]


def test_closing_from_another_thread_inside_asyncio(head, other):
    """What belongs to the loop is undone on the loop's thread, and coroutines that wait are told."""
    session = head.session()

    async def main():
        await session.__aenter__()
        waiting = asyncio.ensure_future(_value(session.request_nowait("nobody", timeout=SOON_S)))
        await asyncio.sleep(0)
        await asyncio.to_thread(session.close)
        with pytest.raises(SessionClosed):
            await asyncio.wait_for(waiting, SOON_S)

    asyncio.run(main(), debug=True)
    assert session.engine.closing


async def _value(future):
    return await future


def test_closing_without_await_inside_asyncio(head, other):
    """It blocks the loop for a moment, loses nothing, and coroutines that wait are told."""
    came = []
    other.subscribe("t", came.append, capacity=5000)
    session = head.session()

    async def main():
        rk = await session.__aenter__()
        waiting = asyncio.ensure_future(_value(session.request_nowait("nobody", timeout=SOON_S)))
        for _ in range(1000):
            await rk.publish("t", b"x" * 2000)
        session.close()
        with pytest.raises(SessionClosed):
            await asyncio.wait_for(waiting, SOON_S)

    asyncio.run(main(), debug=True)
    until(lambda: len(came) == 1000)


# ── callbacks ──


def test_a_callback_that_takes_long_does_not_stop_the_io(session, other):
    """1. A callback blocks. 2. Messages, answers and values go on coming. 3. The callbacks behind it follow, in
    order."""
    gate, order = threading.Event(), []

    def slow(message):
        if message.value == 0:
            gate.wait(SOON_S)
        order.append(message.value)

    session.subscribe("slow", slow)
    quick = session.subscribe("quick")
    for number in range(20):
        other.publish("slow", number)
    until(session.engine._workers._calling.locked)
    for number in range(50):
        other.publish("quick", number)
        # Nobody calls here: the other background thread drives.
        until(lambda n=number: len(quick._messages) == n + 1)
    assert session.request("echo", 1, timeout=SOON_S) == 1 and order == []
    gate.set()
    until(lambda: len(order) == 20)
    assert order == list(range(20))


def test_callbacks_may_do_what_anybody_may(session, other):
    """They ask, wait for answers, publish, subscribe."""
    results = []
    back = other.subscribe("back")

    def callback(message):
        results.append(session.request("echo", message.value, timeout=SOON_S))
        results.append(session.request_nowait("echo", "later", timeout=SOON_S).result(SOON_S))
        session.publish("back", message.value)
        session.subscribe(f"new/{message.value}").close()

    session.subscribe("t", callback)
    for number in range(3):
        other.publish("t", number)
    assert [back.get(SOON_S).value for _ in range(3)] == [0, 1, 2]
    assert results == [0, "later", 1, "later", 2, "later"]


def test_not_even_the_end_of_a_callback_ends_the_others(session, other, capsys):
    order = []

    def callback(message):
        order.append(message.value)
        raise SystemExit(3) if message.value == 0 else ValueError("a mistake")

    session.subscribe("t", callback)
    for number in range(3):
        other.publish("t", number)
    until(lambda: len(order) == 3)
    assert session.request("echo", 1, timeout=SOON_S) == 1
    session.close()
    written = capsys.readouterr().err
    assert "SystemExit: 3" in written and written.count("ValueError: a mistake") == 2


def test_a_callback_may_close_the_session(head, other):
    """1. Callbacks wait behind the one that closes. 2. The session is closed; those follow, and the threads end."""
    session = head.session()
    order = []

    def callback(message):
        if message.value == 0:
            session.close()
        order.append(message.value)

    gate = threading.Event()
    session.engine.call_soon(gate.wait)
    session.subscribe("t", callback)
    for number in range(5):
        other.publish("t", number)
    until(lambda: sum(len(args[0]) for _, args, _ in session.engine._workers._calls if args) == 5)
    gate.set()
    until(lambda: not any(thread.is_alive() for thread in session.engine._workers._threads))
    assert order == [0, 1, 2, 3, 4] and session.engine.closing and session.driver.closed
    assert len(head.driver.station.peer.peers()) == 1


def test_a_callback_that_does_not_return_does_not_hold_up_the_end_for_ever(head, monkeypatch):
    monkeypatch.setattr(engine_module, "PATIENCE_S", 0.05)
    session = head.session()
    gate = threading.Event()
    session.engine.call_soon(gate.wait)
    until(session.engine._workers._calling.locked)
    session.engine.close(patience_s=0.05)
    assert session.driver.closed
    gate.set()
    session.close()


def test_callbacks_of_finished_futures_run_after_the_end_too(session, other):
    future = session.request_nowait("echo", 1)
    future.result(SOON_S)
    session.close()
    called = []
    future.add_done_callback(called.append)
    until(lambda: called == [future])


# ── the end ──


def test_closing_wakes_everybody(head, other):
    """1. Threads wait, one of which drives. 2. Another closes the session. 3. All are told at once."""
    session = head.session()
    subscription = session.subscribe("t")

    def close():
        until(lambda: session.engine.driving and session.engine.waiters == 2)
        session.close()

    waits = (
        lambda: session.request_nowait("nobody", timeout=SOON_S).result(SOON_S),
        lambda: session.engine.wait(lambda: False, SOON_S),
        lambda: subscription.get(SOON_S),
        close,
    )
    started = time.monotonic()
    results = run(*waits)
    assert time.monotonic() - started < SOON_S / 2
    assert [type(result) for result in results] == [SessionClosed, SessionClosed, SessionClosed, type(None)]


def test_every_error_that_is_raised_is_a_new_one(head):
    """What is kept is never raised itself: it would grow with each raise, and keep alive what its frames hold."""
    session = head.session()
    head.close()
    until(lambda: session.engine.failure is not None)
    assert "it was told to" in str(session.engine.failure)
    for _ in range(3):
        with pytest.raises(SessionClosed, match="it was told to") as caught:
            session.engine.check_alive()
        assert len(caught.traceback) == 2 and caught.value is not session.engine.failure
    assert session.engine.failure.__traceback__ is None
    session.close()


def test_a_fresh_error_says_the_same():
    error = ConnectionRefused("bad-token", "it is not the token")
    error.add_note("a note")
    copy = fresh(error)
    assert type(copy) is ConnectionRefused and copy is not error
    assert (str(copy), copy.code, copy.__notes__) == (str(error), "bad-token", ["a note"])


def test_nothing_is_sent_after_the_end(session):
    session.close()
    from raskid.core.events import Announce

    with pytest.raises(SessionClosed, match="this session was closed"):
        session.engine.send(Announce("t"))
    session.engine.tell(Announce("t"))
    session.engine.flush()
    assert "t" not in session._messaging._early


def test_idle_threads_look_at_no_clock(session, other):
    """1. Callbacks have run, so that both threads are there. 2. Nothing happens: neither takes a turn."""
    came = []
    session.subscribe("t", came.append)
    other.publish("t", 1)
    until(lambda: came)
    until(lambda: session.engine.in_step and session.engine._workers._asleep == 1)
    before = session.driver.counters.wakeups
    time.sleep(workers_module.STANDBY_S)
    assert session.driver.counters.wakeups == before
