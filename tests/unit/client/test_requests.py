"""Requests as a user calls them, over a real head."""

import asyncio
import signal
import threading
import time

import msgspec
import pytest

from raskid.core.effects import CallDone
from raskid.model.errors import (
    NoSuchService,
    RemoteError,
    RemoteProtocolError,
    TopicNameError,
    WaitTimeout,
    WrongThread,
)
from raskid.protocol.messages import PutRecord
from tests.unit.client.systems import until


def test_a_session_answers_its_own_requests_at_once(rk):
    rk.serve("add", lambda a, b: a + b)
    started = time.monotonic()
    assert [rk.request("add", number, 1) for number in range(20)] == list(range(1, 21))
    assert time.monotonic() - started < 5


def test_a_handler_may_ask_another_of_its_own_session(rk):
    """Down to the fifth level, which takes as many threads."""
    rk.serve("down", lambda n: 0 if n == 0 else 1 + rk.request("down", n - 1, timeout=5))
    assert rk.request("down", 5, timeout=5) == 5


def test_handlers_that_wait_for_one_another_beyond_a_number_of_threads(rk, monkeypatch):
    """The last one stands in line behind those that wait for it, until their time is up; then all goes on."""
    monkeypatch.setattr("raskid.client.workers.APART_MAX", 2)
    rk.serve("deep", lambda n, limit: 0 if n == 0 else 1 + rk.request("deep", n - 1, limit, timeout=limit))
    assert rk.request("deep", 2, 5, timeout=5) == 2
    with pytest.raises(RemoteError, match="WaitTimeout"):
        rk.request("deep", 4, 0.1, timeout=5)
    assert rk.request("deep", 2, 5, timeout=5) == 2


def test_a_limit_that_is_set_while_another_thread_drives_for_long(rk):
    with rk.subscribe("nothing") as messages:
        reader = threading.Thread(target=messages.get)
        reader.start()
        until(lambda: rk.engine.driving)
        started = time.monotonic()
        with pytest.raises(NoSuchService):
            rk.request("nobody", timeout=0.05)
        assert time.monotonic() - started < 2
    reader.join(5)
    assert not reader.is_alive()


def test_a_callback_may_ask_a_service_of_its_own_session(rk):
    answers = []
    done = threading.Event()

    def callback(message):
        answers.append(rk.request("double", message.value, timeout=5))
        if len(answers) == 3:
            done.set()

    rk.serve("double", lambda value: 2 * value)
    with rk.subscribe("numbers", callback):
        for number in range(3):
            rk.publish("numbers", number)
        assert done.wait(5)
    assert answers == [0, 2, 4]


def test_handlers_that_stand_in_line_behind_a_callback_that_waits_are_run(rk, other):
    """1. A callback runs. 2. Requests come in behind it. 3. Only then it waits, for something that one of them does."""
    running, go_on, answered = threading.Event(), threading.Event(), threading.Event()

    def callback(message):
        running.set()
        assert go_on.wait(5)
        assert rk.engine.wait(answered.is_set, 5)

    rk.serve("set", answered.set)
    with rk.subscribe("begin", callback):
        rk.publish("begin")
        assert running.wait(5)
        future = other.request_nowait("set")
        workers = rk.engine._workers
        until(lambda: bool(workers._calls))
        go_on.set()
        future.result(5)


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError("odd"), GeneratorExit()])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_whatever_a_handler_raises_is_an_answer(rk, other, error, asynchronous):
    def function():
        raise error

    async def coroutine():
        raise error

    other.serve("raises", coroutine if asynchronous else function)
    with pytest.raises(RemoteError) as caught:
        rk.request("raises", timeout=5)
    assert caught.value.kind == type(error).__name__


class Speechless(Exception):
    def __str__(self):
        raise ValueError("no words")


@pytest.mark.parametrize("error", [Speechless(), ValueError("\ud800")])
def test_an_error_that_cannot_be_written_is_an_answer(rk, other, error):
    def handler():
        raise error

    other.serve("odd", handler)
    with pytest.raises(RemoteError) as caught:
        rk.request("odd", timeout=5)
    assert caught.value.kind == type(error).__name__


def test_an_answer_that_cannot_be_read_is_an_outcome(rk):
    for ok, body in ((True, b"\xc1"), (False, b"\xc1"), (False, msgspec.msgpack.encode(5))):
        future = rk.request_nowait("nobody", timeout=5)
        with rk.engine.lock:
            rk._apply(CallDone(future.request, ok, body))
        with pytest.raises((RemoteProtocolError, TypeError)):
            future.result(0)
        future.cancel()


def test_cancelling_ends_a_coroutine(rk, other):
    started, ended = threading.Event(), threading.Event()

    async def handler():
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    other.serve("long", handler)
    future = rk.request_nowait("long", timeout=60)
    assert started.wait(5)
    assert future.cancel() and future.cancelled()
    assert ended.wait(5)
    assert not rk._requests
    until(lambda: not other._invoked)
    other.serve("quick", lambda: 1)
    assert rk.request("quick", timeout=5) == 1


def test_cancelling_drops_a_call_that_has_not_begun(rk, other):
    running, release = threading.Event(), threading.Event()
    begun = []

    def handler(name):
        begun.append(name)
        running.set()
        assert release.wait(5)

    other.serve("slow", handler)
    first = rk.request_nowait("slow", "first", timeout=60)
    assert running.wait(5)
    second = rk.request_nowait("slow", "second", timeout=60)
    until(lambda: len(other._invoked) == 2)
    assert second.cancel()
    until(lambda: len(other._invoked) == 1)
    third = rk.request_nowait("slow", "third", timeout=60)
    release.set()
    first.result(5)
    third.result(5)
    assert begun == ["first", "third"]


def test_a_cancelled_request_frees_another_thread_that_waits_for_it(rk, other):
    running, release = threading.Event(), threading.Event()

    def handler():
        running.set()
        release.wait(5)

    other.serve("waits", handler)
    future = rk.request_nowait("waits", timeout=60)
    seen = []

    def wait():
        try:
            future.result(30)
        except BaseException as error:
            seen.append(type(error).__name__)

    thread = threading.Thread(target=wait)
    thread.start()
    assert running.wait(5)
    future.cancel()
    thread.join(5)
    release.set()
    assert not thread.is_alive() and seen == ["CancelledError"]


WRONG = {
    "request a number": (lambda rk: rk.request(5), TopicNameError, "got int"),
    "request with text as a limit": (lambda rk: rk.request("s", timeout="3"), TypeError, "timeout is a number"),
    "request with NaN as a limit": (lambda rk: rk.request("s", timeout=float("nan")), ValueError, "0 or more"),
    "serve a number": (lambda rk: rk.serve(5, len), TopicNameError, "got int"),
    "serve with what cannot be called": (lambda rk: rk.serve("s", 5), TypeError, "handler is something to call"),
    "unserve a number": (lambda rk: rk.unserve(5), TopicNameError, "got int"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named_and_harms_nothing(rk, name):
    call, error, text = WRONG[name]
    with pytest.raises(error, match=text):
        call(rk)
    assert rk.topics("nothing") == {}, "the session goes on"


def test_requests_without_a_limit_that_can_be_written_are_cut(rk):
    rk.serve("one", lambda: 1)
    assert rk.request("one", timeout=float("inf")) == 1


def test_a_service_that_is_not_confirmed_is_not_served(rk, head, monkeypatch):
    monkeypatch.setattr("raskid.client.requests.SERVE_S", 0.05)
    head.mute.add(PutRecord)
    try:
        with pytest.raises(WaitTimeout, match=r"did not confirm service 'shy' within 0\.05 s"):
            rk.serve("shy", len)
    finally:
        head.mute.clear()
    assert "shy" not in rk._handlers


def test_what_is_no_longer_served(rk, other):
    other.serve("gone", lambda: 1)
    assert rk.request("gone") == 1
    other.unserve("gone")
    with pytest.raises(NoSuchService):
        rk.request("gone", timeout=0.05)
    assert "services:gone" not in rk.topics("services:"), "its list is not followed for ever"


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_coroutine_callback_of_a_blocking_session_may_await_its_futures(rk, other, wrapped):
    answers = []
    done = threading.Event()
    other.serve("double", lambda value: 2 * value)

    async def callback(message):
        future = rk.request_nowait("double", message.value)
        answers.append(await (asyncio.wrap_future(future) if wrapped else future))
        if len(answers) == 3:
            done.set()

    with rk.subscribe("t", callback):
        for number in range(3):
            other.publish("t", number)
        assert done.wait(5)
    assert answers == [0, 2, 4]


def test_a_coroutine_handler_may_ask_another_service_of_its_session(rk):
    async def outer(value):
        return 1 + await rk.request_nowait("inner", value)

    rk.serve("outer", outer)
    rk.serve("inner", lambda value: 10 * value)
    assert rk.request("outer", 4) == 41


def test_a_signal_handler_may_wait_while_its_thread_waits(rk, other):
    """1. The main thread waits for an answer that comes late. 2. A signal's handler asks something, and gets it."""
    asked = threading.Event()
    go_on = threading.Event()
    got = []

    def slow():
        asked.set()
        go_on.wait(5)
        return "late"

    def shoot():
        asked.wait(5)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    def handler(number, frame):
        got.append(rk.request("own", timeout=5))
        go_on.set()

    other.serve("slow", slow)
    rk.serve("own", lambda: "quick")
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        shooter = threading.Thread(target=shoot)
        shooter.start()
        assert rk.request("slow", timeout=5) == "late"
        shooter.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert got == ["quick"]


def test_a_wait_in_a_signal_handler_amid_a_call_is_refused(rk):
    future = rk.request_nowait("nobody", timeout=5)
    with rk.engine.lock, pytest.raises(WrongThread, match="handler of a signal"):
        future.result(1)
    future.cancel()


def test_handlers_in_line_are_run_by_those_threads_that_become_free(rk, monkeypatch):
    """1. One thread may run handlers apart, and has one. 2. Another handler that is waited for stands in line. 3. When
    the thread is free it takes that."""
    monkeypatch.setattr("raskid.client.workers.APART_MAX", 1)
    go_on = threading.Event()
    begun = threading.Event()

    def outer():
        first = rk.request_nowait("first", timeout=10)
        second = rk.request_nowait("second", timeout=10)
        return second.result(10), first.result(10)

    def first():
        begun.set()
        go_on.wait(5)
        return 1

    rk.serve("outer", outer)
    rk.serve("first", first)
    rk.serve("second", lambda: 2)
    future = rk.request_nowait("outer", timeout=10)
    assert begun.wait(5)
    go_on.set()
    assert future.result(5) == [2, 1]
