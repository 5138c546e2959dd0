"""Futures: `concurrent.futures.Future` for everybody who tests for one, awaitable, and made for being many.

A standard future makes a lock when it is made, which costs more than the rest of a task. Here the lock comes when
somebody needs one (`concurrent.futures.wait` and `as_completed`, callbacks from other threads).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from raskid.model.errors import WaitTimeout
from raskid.model.ids import TaskId
from raskid.services.calling import load_error, resolve_input

if TYPE_CHECKING:
    from raskid.client.engine import Engine

PENDING = "PENDING"
CANCELLED = "CANCELLED_AND_NOTIFIED"
FINISHED = "FINISHED"

_making_lock = threading.Lock()

#: `.futures`: those met while arguments are pickled on this thread; set by whoever pickles.
collecting = threading.local()


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

    def __init__(self, engine: Engine, task: TaskId = TaskId(0)) -> None:  # noqa: B008 - an int
        # The standard __init__ is left out on purpose: it makes a Condition.
        self._engine = engine
        self.task = task

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
                self._engine.call_soon(callback, self)

    def _open(self) -> None:
        """Unpickle what came, at the first look."""
        raw = self._raw
        if raw is not None:
            import pickle

            if self._raw_ok:
                try:
                    self._result = pickle.loads(raw)
                except Exception as error:
                    error.add_note(f"(while unpickling the value of task {self.task} in the script)")
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
        """Ask that the task be not started. Returns True when it was cancelled; waits for the runner's word."""
        if self._state == PENDING and self.task:
            self._engine.cancel([self.task])
            self._engine.wait(self.done, 5.0)
        return self._state == CANCELLED

    def result(self, timeout: float | None = None) -> Any:
        """The value; waits for it, at most `timeout` seconds.

        Raises:
            WaitTimeout: It is not there in time (also a `TimeoutError`).
            CancelledError: The task was cancelled.
            Exception: What the task raised, with the remote traceback as its cause.
        """
        self._await(timeout)
        if self._raw is not None:
            self._open()
        if self._exception is not None:
            raise self._exception
        return self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, or None; waits as `result` does."""
        self._await(timeout)
        self._open()
        return self._exception

    def _await(self, timeout: float | None) -> None:
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
            loop = asyncio.get_running_loop()
            waiter = loop.create_future()

            def wake(_: Any) -> None:
                if not waiter.done():
                    waiter.set_result(None)

            def done(_: Any) -> None:
                loop.call_soon_threadsafe(wake, None)

            with self._engine.lock:
                if self._state == PENDING:
                    if self._callbacks is None:
                        self._callbacks = []
                    self._callbacks.append(wake if self._engine.loop is loop else done)
                    self._engine.prompt()
                else:
                    wake(None)
            yield from waiter
        return self.result(0)

    def __reduce__(self) -> tuple[Any, ...]:
        met = getattr(collecting, "futures", None)
        if met is None or not self.task:
            raise TypeError("a future can be an argument of a task; it cannot be pickled otherwise")
        met.append(self.task)
        return resolve_input, (self.task,)

    def __repr__(self) -> str:
        what = f"task {self.task}" if self.task else "request"
        return f"<raskid.Future of {what}: {self._state.split('_')[0].lower()}>"

    def __del__(self) -> None:
        if self.task:
            self._engine.release(self.task)
