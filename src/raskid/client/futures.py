"""Futures: `concurrent.futures.Future` for everybody who tests for one, awaitable, and made for being many.

A standard future makes a lock when it is made, which costs more than the rest of a task. Here the lock comes when
somebody needs one (`concurrent.futures.wait` and `as_completed`, callbacks from other threads).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from functools import partial
from typing import TYPE_CHECKING, Any

from raskid.client.loops import running_loop
from raskid.model.errors import WaitTimeout
from raskid.model.ids import TaskId, counter_of
from raskid.services.calling import load_error, load_value, resolve_input

if TYPE_CHECKING:
    import asyncio

    from raskid.client.engine import Engine

PENDING = "PENDING"
CANCELLED = "CANCELLED_AND_NOTIFIED"
FINISHED = "FINISHED"

#: How long `cancel` waits for the system's answer, at most.
CANCEL_S = 1.0

_making_lock = threading.Lock()

#: `.futures`: those met while arguments are pickled on this thread, for a task of `.engine`; set by whoever pickles.
collecting = threading.local()


def check_timeout(timeout: Any) -> None:
    """Raise TypeError when it is no number of seconds."""
    if isinstance(timeout, str | bytes) or not hasattr(timeout, "__float__"):
        raise TypeError(f"timeout is a number of seconds, or None to wait without limit; got {timeout!r}")
    if timeout != timeout:
        raise ValueError("timeout is a number of seconds, or None to wait without limit; got NaN, which is no number")


def may_wait(engine: Engine) -> bool:
    """Whether a short wait on this thread holds up neither an asyncio loop nor the session itself."""
    if engine.stepping is threading.current_thread():
        return False
    return running_loop() is None


def _wake(waiter: asyncio.Future[None], _: Future) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _wake_from_elsewhere(waiter: asyncio.Future[None], future: Future) -> None:
    # Whoever waited may have given up, and its loop may be closed.
    with contextlib.suppress(RuntimeError):
        waiter.get_loop().call_soon_threadsafe(_wake, waiter, future)


def _only_passes_on(callback: Callable[[Any], Any]) -> bool:
    """Whether a callback does no more than wake another event loop: ours, or that of `asyncio.wrap_future`."""
    if type(callback) is partial:
        return callback.func is _wake_from_elsewhere
    return getattr(callback, "__module__", "") == "asyncio.futures"


class Future(concurrent.futures.Future):  # type: ignore[type-arg]
    """A handle on a value that is being made elsewhere.

    As an argument of another task it stands for its value, which then travels from runner to runner.
    """

    # Defaults stand here, not in __init__: most futures never set most of them, and many are made.
    _state: str = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    #: A pickled value or error that nobody has looked at yet, and whether it is a value.
    _raw: bytes | None = None
    _raw_ok = True
    _callbacks: list[Callable[[Any], Any]] | None = None
    _lazy_condition: threading.Condition | None = None
    _lazy_waiters: list[Any] | None = None
    #: The system said that it is too late to cancel.
    _started = False
    _name = ""

    def __init__(self, engine: Engine, task: TaskId = TaskId(0), name: str = "") -> None:  # noqa: B008 - an int
        # The standard __init__ is left out on purpose: it makes a Condition.
        self._engine = engine
        self.task = task
        if name:
            self._name = name

    # What the standard library's wait() and as_completed() reach for.

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        found = self._lazy_condition
        if found is None:
            with _making_lock:
                if self._lazy_condition is None:
                    # The engine's lock guards all futures of a session, so it can guard this one's waiters too.
                    self._lazy_condition = threading.Condition(self._engine.lock)
                found = self._lazy_condition
        return found

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        if self._lazy_waiters is None:
            self._lazy_waiters = []
        # Somebody waits without driving: the background thread has to.
        self._engine.nudge()
        return self._lazy_waiters

    # ── completion, by the engine, under its lock ──

    def resolve(self, ok: bool, raw: bytes) -> None:
        """The pickled value, or the pickled error, is here."""
        if self._state == PENDING:
            self._raw, self._raw_ok = raw, ok
            self._finish(FINISHED)

    def resolve_with(self, value: Any) -> None:
        """The value itself is here."""
        if self._state == PENDING:
            self._result = value
            self._finish(FINISHED)

    def fail_with(self, error: BaseException) -> None:
        """There will be no value."""
        if self._state == PENDING:
            if isinstance(error, CancelledError):
                self._finish(CANCELLED)
            else:
                self._exception = error
                self._finish(FINISHED)

    def cancelled_too_late(self) -> None:
        """The task had started when it was to be cancelled."""
        self._started = True

    def _finish(self, state: str) -> None:
        self._state = state
        if self._lazy_waiters:
            for waiter in self._lazy_waiters:
                if state == CANCELLED:
                    waiter.add_cancelled(self)
                elif not self._raw_ok or self._exception is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
        if self._lazy_condition is not None:
            with self._lazy_condition:
                self._lazy_condition.notify_all()
        if self._callbacks:
            callbacks, self._callbacks = self._callbacks, None
            for callback in callbacks:
                if _only_passes_on(callback):
                    # At once: whoever waits for it may be a callback itself, behind which this would stand in line.
                    callback(self)
                else:
                    self._engine.call_soon(callback, self)

    def _open(self) -> None:
        """Unpickle what came, at the first look."""
        raw = self._raw
        if raw is not None:
            if self._raw_ok:
                try:
                    self._result = load_value(raw)
                except Exception as error:
                    error.add_note(f"(while the value of {self._what()} was unpickled in the script)")
                    self._exception = error
            else:
                self._exception = load_error(raw)
            self._raw = None

    # ── the standard face ──

    def done(self) -> bool:
        """Whether there is a value or an error."""
        return self._state != PENDING

    def running(self) -> bool:
        """Whether it runs: not known here, so False until it is done."""
        return False

    def cancelled(self) -> bool:
        """Whether it was cancelled before it started."""
        return self._state == CANCELLED

    def cancel(self) -> bool:
        """Ask that the task be not started; a task that runs is never stopped.

        Returns True when it does not run and will not (an attempt that ended with its runner may have run before that).
        False when it runs or has run, and its value comes as if nobody had asked. The system answers at once, also for
        tasks that wait behind long ones; if there is no answer within a second (`CANCEL_S`) that is False too, and
        should the task turn out not to have been started, the future is cancelled later.

        Where an asyncio loop runs, this does not wait: it asks, and returns False; the future is cancelled soon if
        that is still possible.
        """
        if self._state == PENDING and self.task:
            self._engine.cancel([self.task])
            if may_wait(self._engine):
                self._engine.wait(self.cancel_answered, CANCEL_S)
        return self._state == CANCELLED

    def cancel_answered(self) -> bool:
        """Whether it is known what became of `cancel`."""
        return self._started or self._state != PENDING

    def result(self, timeout: float | None = None) -> Any:
        """The value; waits for it, at most `timeout` seconds.

        Raises:
            WaitTimeout: It is not there in time (also a `TimeoutError`).
            CancelledError: The task was cancelled.
            RemoteError: What the task raised cannot be raised here: it cannot be pickled, or would end the script
                (`sys.exit()`, `KeyboardInterrupt`).
            Exception: What the task raised, with the remote traceback as its cause.
        """
        self._await(timeout)
        if self._raw is not None:
            self._open()
        if self._exception is not None:
            # Else each look would add its own frames to those of the looks before.
            raise self._exception.with_traceback(None)
        return self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, or None; waits as `result` does."""
        self._await(timeout)
        self._open()
        return self._exception

    def _await(self, timeout: float | None) -> None:
        if timeout is not None:
            check_timeout(timeout)
        if self._state == PENDING and not self._engine.wait_for(self, timeout):
            raise WaitTimeout(f"{self!r} is not done after {timeout:g} s")
        if self._state == CANCELLED:
            raise CancelledError(f"{self!r} was cancelled")

    def add_done_callback(self, fn: Callable[[Any], Any]) -> None:
        """Call `fn(future)` once it is done, on the session's callback thread."""
        with self._engine.lock:
            if self._state == PENDING:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(fn)
                self._engine.nudge()
                return
        self._engine.call_soon(fn, self)

    def __await__(self) -> Generator[Any, None, Any]:
        if self._state == PENDING:
            engine = self._engine
            loop = running_loop()
            if loop is None:
                raise RuntimeError(f"{self!r} is awaited where no event loop runs; use result() there")
            waiter = loop.create_future()
            wake = partial(_wake if engine.loop is loop else _wake_from_elsewhere, waiter)
            with engine.lock:
                if self._state == PENDING:
                    if self._callbacks is None:
                        self._callbacks = []
                    self._callbacks.append(wake)
                    engine.settle()
                else:
                    _wake(waiter, self)
            yield from waiter
        if self._raw is None and self._exception is None and self._state == FINISHED:
            return self._result
        return self.result(0)

    def __reduce__(self) -> tuple[Any, ...]:
        met = getattr(collecting, "futures", None)
        if not self.task:
            raise TypeError(f"{self!r} is not a task's: take its result() first")
        if met is None:
            raise TypeError("a future can be an argument of a task; it cannot be pickled otherwise")
        if self._engine is not collecting.engine:
            raise TypeError(f"{self!r} belongs to another session; take its result() first")
        met.append(self.task)
        return resolve_input, (self.task,)

    def __repr__(self) -> str:
        failed = self._exception is not None or (self._raw is not None and not self._raw_ok)
        state = "failed" if failed else self._state.split("_")[0].lower()
        return f"<raskid.Future of {self._what()}: {state}>"

    def _what(self) -> str:
        number = counter_of(self.task)
        return f"{self._name or 'task'} #{number}" if self.task else self._name or "a request"

    def __del__(self) -> None:
        if self.task:
            self._engine.release(self.task)
