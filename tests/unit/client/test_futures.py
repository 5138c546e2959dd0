"""Futures: what they say of themselves, what they raise, and how they are cancelled."""

from __future__ import annotations

import asyncio
import concurrent.futures
import pickle
import threading
import traceback

import pytest

from raskid.client import futures as module
from raskid.client.futures import Future, collecting
from raskid.model.errors import SessionClosed, WaitTimeout
from raskid.model.ids import TaskId
from raskid.services.calling import dump_error, resolve_input
from tests.unit.client.ends import FakeEngine


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def future(engine):
    return Future(engine, TaskId((5 << 32) + 123), "pow")


def test_it_says_whose_and_how(engine, future):
    assert repr(future) == "<raskid.Future of pow #123: pending>"
    future.resolve(True, pickle.dumps(4))
    assert repr(future) == "<raskid.Future of pow #123: finished>"
    assert future.result(0) == 4
    assert repr(Future(engine)) == "<raskid.Future of a request: pending>"
    failed = Future(engine, TaskId(7), "f")
    failed.resolve(False, dump_error(ValueError("x"), "runner"))
    assert repr(failed) == "<raskid.Future of f #7: failed>"
    assert isinstance(failed.exception(0), ValueError)
    assert repr(failed) == "<raskid.Future of f #7: failed>"
    closed = Future(engine, TaskId(8), "f")
    closed.fail_with(SessionClosed("over"))
    assert repr(closed) == "<raskid.Future of f #8: failed>"
    left_out = Future(engine, TaskId(9), "f")
    left_out.fail_with(concurrent.futures.CancelledError())
    assert repr(left_out) == "<raskid.Future of f #9: cancelled>"
    with pytest.raises(concurrent.futures.CancelledError, match="f #9"):
        left_out.result(0)


def test_a_wait_without_result_names_the_function(future):
    with pytest.raises(WaitTimeout, match=r"pow #123: pending> is not done after 0\.5 s"):
        future.result(0.5)


@pytest.mark.parametrize("timeout", ["1", b"1", [1], object()])
def test_a_timeout_is_a_number(future, timeout):
    with pytest.raises(TypeError, match="timeout is a number of seconds"):
        future.result(timeout)
    future.resolve(True, pickle.dumps(1))
    with pytest.raises(TypeError, match="timeout is a number of seconds"):
        future.exception(timeout)


def test_looking_again_does_not_lengthen_the_traceback(future):
    future.resolve(False, dump_error(ValueError("x"), "runner"))
    lengths = []
    for _ in range(5):
        with pytest.raises(ValueError) as caught:
            future.result(0)
        lengths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(set(lengths)) == 1


def test_a_value_that_cannot_be_unpickled_names_the_task(future):
    future.resolve(True, b"\x80\x04cno_such_module\nf\n.")
    with pytest.raises(ModuleNotFoundError) as caught:
        future.result(0)
    assert caught.value.__notes__ == ["(while the value of pow #123 was unpickled in the script)"]


class TestCancel:
    def test_true_when_the_system_says_that_it_will_not_run(self, engine, future):
        engine.on_wait = lambda: future.fail_with(concurrent.futures.CancelledError())
        assert future.cancel() and future.cancelled()
        assert engine.cancelled == [[future.task]] and engine.waits == [module.CANCEL_S]
        assert future.cancel()
        assert len(engine.cancelled) == 1

    def test_false_when_it_runs_and_its_value_comes(self, engine, future):
        """1. The system says that it has started. 2. cancel waits no longer. 3. The value comes as ever."""
        engine.on_wait = future.cancelled_too_late
        assert not future.cancel() and not future.done()
        future.resolve(True, pickle.dumps(4))
        assert future.result(0) == 4 and not future.cancelled()
        assert not future.cancel()

    def test_without_an_answer_it_may_be_cancelled_later(self, future):
        assert not future.cancel() and not future.cancelled()
        future.fail_with(concurrent.futures.CancelledError())
        assert future.cancelled()

    def test_where_a_loop_runs_it_only_asks(self, engine, future):
        async def main():
            return future.cancel()

        assert asyncio.run(main()) is False
        assert engine.cancelled == [[future.task]] and engine.waits == []

    def test_on_the_thread_that_serves_the_session_it_only_asks(self, engine, future):
        engine.stepping = threading.current_thread()
        assert not future.cancel()
        assert engine.waits == []


def test_as_an_argument_it_stands_for_its_value(engine, future):
    collecting.futures, collecting.engine = [], engine
    try:
        data = pickle.dumps([future])
        assert collecting.futures == [future.task]
        assert b"resolve_input" in data and resolve_input.__name__ == "resolve_input"
        with pytest.raises(TypeError, match="f #1: pending> belongs to another session"):
            pickle.dumps(Future(FakeEngine(), TaskId(1), "f"))
        with pytest.raises(TypeError, match=r"is not a task's: take its result\(\) first"):
            pickle.dumps(Future(engine))
    finally:
        collecting.futures = None
    with pytest.raises(TypeError, match="can be an argument of a task"):
        pickle.dumps(future)


def test_a_limit_that_is_no_number(head):
    with head.session() as rk:
        future = rk.request_nowait("nobody", timeout=0.01)
        with pytest.raises(ValueError, match="NaN"):
            future.result(float("nan"))
