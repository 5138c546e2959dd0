"""Calling a user's callback for one thing after the other, be it a function or a coroutine function."""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from raskid.client.loops import is_coroutine, running_loop

if TYPE_CHECKING:
    import asyncio

    from raskid.client.engine import Engine

#: The arguments of one call, and what to call with the same when the callback is through with them.
_Call = tuple[tuple[Any, ...], Callable[..., None]]


def _nothing(*args: Any) -> None:
    return


def say(text: str) -> None:
    """Print what a user has to know of. From under the session's lock this is called by `Engine.call_soon`: whoever
    reads the standard error may be slow."""
    print(text, file=sys.stderr)


class Callback:
    """One callback of a session.

    It is called on the session's callback threads, or in its event loop. What it is called for next waits until it
    has returned, and until the coroutine that it returned has ended. What it raises is printed, and stops nothing.
    """

    def __init__(self, engine: Engine, function: Callable[..., Any]) -> None:
        self._engine = engine
        self._function = function
        #: In an event loop: the coroutine that runs.
        self._task: asyncio.Task[None] | None = None
        #: What waits behind a call that has not ended. Only whoever calls callbacks touches it: one thread at a time.
        self._later: deque[_Call] = deque()

    def call_soon(self, *args: Any, then: Callable[..., None] = _nothing) -> None:
        """Call it with these arguments when its turn comes, and `then(*args)` when it is through with them."""
        self._engine.call_soon(self._call_each, (args,), then)

    def call_each(self, calls: Iterable[tuple[Any, ...]], then: Callable[..., None] = _nothing) -> None:
        """As `call_soon`, for one tuple of arguments after the other."""
        self._engine.call_soon(self._call_each, calls, then)

    def _call_each(self, calls: Iterable[tuple[Any, ...]], then: Callable[..., None]) -> None:
        if self._task is not None or self._later:
            self._later.extend((args, then) for args in calls)
            self._go_on()
            return
        left = iter(calls)
        try:
            for args in left:
                coroutine = self._start(args, then)
                if coroutine is not None:
                    self._later.extend((args, then) for args in left)
                    self._run(coroutine, args, then)
                    self._go_on()
        except BaseException:
            # Not even SystemExit ends more than this call: the rest follows, ahead of what came later.
            self._later.extend((args, then) for args in left)
            if self._later:
                self._engine.call_soon(self._go_on)
            raise

    def _go_on(self) -> None:
        """Make the calls that wait, unless a coroutine runs, which sees to that."""
        later = self._later
        try:
            while later and self._task is None:
                args, then = later.popleft()
                coroutine = self._start(args, then)
                if coroutine is not None:
                    self._run(coroutine, args, then)
        except BaseException:
            if later:
                self._engine.call_soon(self._go_on)
            raise

    def _run(self, coroutine: Coroutine[Any, Any, Any], args: tuple[Any, ...], then: Callable[..., None]) -> None:
        """Run a coroutine to its end, or let the event loop do so."""
        loop = self._engine.loop
        if loop is None or running_loop() is not loop:
            # On a callback thread, which no loop uses; also where an event loop took over while callbacks were due.
            import asyncio

            try:
                with self._engine.waiting():
                    asyncio.run(_finish(coroutine))
            finally:
                then(*args)
        else:
            self._task = loop.create_task(_finish(coroutine))
            self._task.add_done_callback(partial(self._ended, coroutine, args, then))

    def _ended(
        self, coroutine: Coroutine[Any, Any, Any], args: tuple[Any, ...], then: Callable[..., None],
        task: asyncio.Task[None],
    ) -> None:  # fmt: skip
        """A coroutine has ended in the event loop, perhaps before its first step: go on with what waits behind it."""
        self._task = None
        coroutine.close()
        then(*args)
        self._go_on()

    def _start(self, args: tuple[Any, ...], then: Callable[..., None]) -> Coroutine[Any, Any, Any] | None:
        """Call the function; a coroutine that it returns is still to be run."""
        value = None
        try:
            value = self._function(*args)
        except Exception:
            traceback.print_exc()
        except BaseException:
            then(*args)
            raise
        if value is not None and is_coroutine(value):
            coroutine: Coroutine[Any, Any, Any] = value
            return coroutine
        then(*args)
        return None


async def _finish(coroutine: Coroutine[Any, Any, Any]) -> None:
    try:
        await coroutine
    except Exception:
        traceback.print_exc()
