"""Tasks, as a user calls them: submit, map, gather; and how the system stands."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Iterable
from typing import Any

from raskid.client import futures as futures_module
from raskid.client.code import CODES_BYTES_MAX, CODES_MAX
from raskid.client.connection import Connection, error_of
from raskid.client.futures import Future
from raskid.client.mapping import MapResult
from raskid.client.pickling import why_not
from raskid.core.effects import (
    CancelledTooLate,
    Effect,
    TaskEnded,
    TaskResolved,
)
from raskid.model.errors import (
    WaitTimeout,
)
from raskid.model.ids import TaskId
from raskid.protocol.messages import (
    ROLE_EXECUTE,
    AskStatus,
    Code,
    Status,
    TaskSpec,
)
from raskid.services.calling import VALUE_BYTES_MAX, dump

#: A map is cut into at most so many runs of items: few enough to be cheap, enough to share them out evenly.
MAP_RUNS = 128
#: The arguments of a task, or a run of items, travel in one message.
ARGUMENT_BYTES_MAX = VALUE_BYTES_MAX

_collecting = futures_module.collecting


class Tasks(Connection):
    """The part of a session that has functions run elsewhere."""

    #: What the blobs of `_known_codes` take.
    _codes_bytes = 0

    def _effects(self) -> dict[type[Effect], Callable[[Any], None]]:
        return {
            **super()._effects(),
            TaskResolved: self._on_resolved,
            TaskEnded: self._on_ended,
            CancelledTooLate: self._on_too_late,
        }

    def _on_resolved(self, effect: TaskResolved) -> None:
        self.driver.counters.tasks += 1
        future = self._futures.pop(effect.task, None)
        if future is not None:
            future.resolve(effect.ok, effect.value)
        elif effect.task in self._maps:
            self._maps.pop(effect.task).chunk_done(effect.task, effect.ok, effect.value)

    def _on_ended(self, effect: TaskEnded) -> None:
        error: BaseException
        if effect.code == "TaskCancelled":
            error = concurrent.futures.CancelledError(effect.text)
        else:
            error = error_of(effect.code, effect.text)
        future = self._futures.pop(effect.task, None)
        if future is not None:
            future.fail_with(error)
        elif effect.task in self._maps:
            self._maps.pop(effect.task).chunk_failed(effect.task, error)

    def _on_too_late(self, effect: CancelledTooLate) -> None:
        future = self._futures.get(effect.task)
        if future is not None:
            future.cancelled_too_late()

    # ── tasks ──

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Run `function(*args, **kwargs)` on a runner. A future in the arguments, at any depth, stands for its value.

        Raises:
            TypeError: The function or an argument cannot be pickled; the text names the part. Or the function is a
                coroutine function, or a future belongs to another session.
            ValueError: The arguments take more than 1 GiB.
        """
        engine = self.engine
        if engine.failure is not None or self.role != ROLE_EXECUTE:
            self.require(ROLE_EXECUTE, "submitting tasks")
        code = self._book.code_of(function)
        inputs = _collecting.futures = []
        _collecting.engine = engine
        try:
            arguments = dump((args, kwargs))
        except Exception as error:
            raise TypeError(_which_argument(args, kwargs, error)) from error
        finally:
            _collecting.futures = None
        if len(arguments) > ARGUMENT_BYTES_MAX:
            raise ValueError(f"the arguments of {code.name} {_too_large(arguments)}")
        task = TaskId(self._ids.take())
        future = Future(engine, task, code.name)
        spec = TaskSpec(task, code.code, arguments, tuple(dict.fromkeys(inputs)) if inputs else ())
        with engine.lock:
            self.still_alive()
            self._futures[task] = future
            if code.code not in self._known_codes:
                self._keep_code(code)
            effects = self._submitter.submit(spec, self.driver.clock())
            if effects:
                self.driver.perform(effects)
        engine.prompt()
        return future

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> MapResult:
        """`function` over the items, as one message: a lazy sequence whose elements are values when looked at.

        Each item is given to the function once. What it raises for an item is raised where that item is looked at.
        Use `gather` on the result for a list, or iterate, which gives values in order as they are ready. Items travel
        in runs; when a runner is lost with a run, all its items are run again.

        Raises:
            TypeError: As `submit`; the text names the item. Runs of items before it may have begun; those that have
                not are cancelled.
            ValueError: A run of items takes more than 1 GiB.
        """
        if not iterables:
            raise TypeError("map() takes a function and at least one iterable")
        self.require(ROLE_EXECUTE, "submitting tasks")
        code = self._book.code_of(function)
        # One iterable is by far the most frequent case: its items need no tuples around them.
        single = len(iterables) == 1
        for number, iterable in enumerate(iterables, 1):
            if not hasattr(iterable, "__iter__") and not hasattr(iterable, "__getitem__"):
                raise TypeError(
                    f"map() takes things to iterate over, and number {number} is {iterable!r:.60} of type "
                    f"{type(iterable).__name__}. Bind what is the same for all items: functools.partial(function, ...)"
                )
        items = list(iterables[0]) if single else list(zip(*iterables, strict=False))
        result = MapResult(self.engine, len(items), code.name)
        if not items:
            return result
        size = -(-len(items) // MAP_RUNS)
        first = TaskId(self._ids.take_range(len(items)))
        submitted: list[TaskId] = []
        for at in range(0, len(items), size):
            part = items[at : at + size]
            try:
                arguments, inputs = self._dump_items(single, part, at, code.name)
            except BaseException:
                if submitted:
                    self.engine.cancel(submitted)
                raise
            task = TaskId(first + at)
            spec = TaskSpec(task, code.code, arguments, inputs, len(part))
            with self.engine.lock:
                self.still_alive()
                result.chunk_of(task, at, len(part))
                self._maps[task] = result
                if code.code not in self._known_codes:
                    self._keep_code(code)
                self.driver.perform(self._submitter.submit(spec, self.driver.clock()))
            submitted.append(task)
            if at % (16 * size) == 0:
                # The runners begin while the rest is being pickled.
                self.engine.flush()
        self.engine.flush()
        return result

    def _keep_code(self, code: Code) -> None:
        """Have a code object at hand for the submitter, under the lock."""
        known = self._known_codes
        if self._codes_bytes + len(code.blob) > CODES_BYTES_MAX or len(known) >= CODES_MAX:
            self._submitter.forget_codes()
            self._codes_bytes = sum(len(kept.blob) for kept in known.values())
        known[code.code] = code
        self._codes_bytes += len(code.blob)

    def _dump_items(self, single: bool, part: list[Any], at: int, name: str) -> tuple[bytes, tuple[TaskId, ...]]:
        inputs: list[TaskId] = []
        _collecting.futures, _collecting.engine = inputs, self.engine
        try:
            arguments = dump((single, part))
        except Exception as error:
            raise TypeError(_which_item(part, at, error)) from error
        finally:
            _collecting.futures = None
        if len(arguments) > ARGUMENT_BYTES_MAX:
            raise ValueError(f"items {at} to {at + len(part) - 1} of the map of {name} {_too_large(arguments)}")
        return arguments, tuple(dict.fromkeys(inputs))

    def cancel(self, futures: Iterable[Future]) -> int:
        """Ask that tasks be not started, all in one message; returns how many of them will not run.

        For each future it is as with `Future.cancel`: the system answers at once, and what it has not answered within
        a second counts as running.
        """
        if isinstance(futures, MapResult):
            raise TypeError(
                "cancel() takes futures, and the elements of a map are values: submit what is to be cancelled"
            )
        wanted = [future for future in futures_of("cancel", futures) if future.task and not future.done()]
        if wanted:
            self.engine.cancel([future.task for future in wanted])
            if futures_module.may_wait(self.engine):
                self.engine.wait(lambda: all(future.cancel_answered() for future in wanted), futures_module.CANCEL_S)
        return sum(future.cancelled() for future in wanted)

    def gather(self, futures: Iterable[Any], timeout: float | None = None) -> list[Any]:
        """The values of futures, in order; of a map, all its values. Raises the first error met."""
        if isinstance(futures, MapResult):
            return futures.values(timeout)
        waiting = futures_of("gather", futures)
        if timeout is not None:
            futures_module.check_timeout(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        # Waiting for the last first saves looking at each as it comes.
        for future in reversed(waiting):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if isinstance(future, Future) and not future.done() and not self.engine.wait_for(future, left):
                raise WaitTimeout(f"{future!r} is not done after {timeout:g} s")
        return [future.result(0) if isinstance(future, Future) else future for future in waiting]

    def status(self, timeout: float = 10.0) -> dict[str, Any]:
        """How things stand: head, runners, tasks by state, counters."""
        reply: Status = self.ask(AskStatus(self.request_id())).result(timeout)
        return reply.facts

    def runners(self) -> list[dict[str, Any]]:
        """The runners: id, host, process id, how many tasks they have and had."""
        return list(self.status()["runners"])

    def wait_runners(self, count: int, timeout: float = 30.0) -> None:
        """Wait until `count` runners are ready.

        Raises:
            WaitTimeout: There are fewer within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while (have := len(self.runners())) < count:
            if time.monotonic() > deadline:
                raise WaitTimeout(f"{have} of {count} runners are ready after {timeout:g} s")
            self.engine.wait(lambda: False, 0.02)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(f"a session stays in its process; inside a task, connect with raskid.connect({self.url!r})")


def _too_large(arguments: bytes) -> str:
    return f"take {len(arguments):,} bytes, more than {ARGUMENT_BYTES_MAX:,}; pass the name of a file instead"


def _which_argument(args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> str:
    named = [*((f"argument {index}", value) for index, value in enumerate(args)), *kwargs.items()]
    return _which(named) or f"the arguments cannot be pickled: {error}"


def _which_item(part: list[Any], at: int, error: Exception) -> str:
    named = [(f"item {at + index}", value) for index, value in enumerate(part)]
    return _which(named) or f"items {at} to {at + len(part) - 1} cannot be pickled: {error}"


def _which(named: list[tuple[str, Any]]) -> str:
    """Which of these cannot be pickled; empty when each can."""
    _collecting.futures = []
    try:
        for name, value in named:
            try:
                dump(value)
            except Exception as reason:
                return why_not(name, value, reason)
    finally:
        _collecting.futures = None
    return ""


def futures_of(call: str, given: Iterable[Any]) -> list[Any]:
    """What `gather` or `cancel` was given, as a list."""
    if isinstance(given, Future):
        raise TypeError(f"{call}() takes a list of futures, got one; write {call}([future])")
    return list(given)
