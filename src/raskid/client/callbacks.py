"""Calling a user's callback for one thing after the other, be it a function or a coroutine function."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from raskid.client.loops import is_coroutine

if TYPE_CHECKING:
    import asyncio

    from raskid.client.engine import Engine


def _nothing() -> None:
    return


class Callback:
    """One callback of a session.

    It is called on the session's callback threads, or in its event loop. What it is called for next waits until it
    has returned, and until the coroutine that it returned has ended. What it raises is printed, and stops nothing.
    """

    def __init__(self, engine: Engine, function: Callable[..., Any]) -> None:
        self._engine = engine
        self._function = function
        #: In an event loop: the coroutine that runs, and what came meanwhile. Only the loop's thread touches them.
        self._task: asyncio.Task[None] | None = None
        self._later: deque[tuple[tuple[Any, ...], Callable[[], None]]] = deque()

    def call_soon(self, *args: Any, then: Callable[[], None] = _nothing) -> None:
        """Call it with these arguments when its turn comes, and `then()` when it is through with them."""
        self._engine.call_soon(self._call, args, then)

    def _call(self, args: tuple[Any, ...], then: Callable[[], None]) -> None:
        if self._task is not None:
            self._later.append((args, then))
            return
        coroutine = self._start(args, then)
        if coroutine is None:
            return
        loop = self._engine.loop
        if loop is None:
            # On a callback thread, which no loop uses.
            import asyncio

            asyncio.run(self._finish(coroutine, then))
        else:
            self._task = loop.create_task(self._go_on(coroutine, then))

    def _start(self, args: tuple[Any, ...], then: Callable[[], None]) -> Coroutine[Any, Any, Any] | None:
        """Call the function; a coroutine that it returns is still to be run."""
        value = None
        try:
            value = self._function(*args)
        except Exception:
            traceback.print_exc()
        except BaseException:
            then()
            raise
        if value is not None and is_coroutine(value):
            coroutine: Coroutine[Any, Any, Any] = value
            return coroutine
        then()
        return None

    async def _finish(self, coroutine: Coroutine[Any, Any, Any], then: Callable[[], None]) -> None:
        try:
            await coroutine
        except Exception:
            traceback.print_exc()
        finally:
            then()

    async def _go_on(self, coroutine: Coroutine[Any, Any, Any] | None, then: Callable[[], None]) -> None:
        try:
            while True:
                if coroutine is not None:
                    await self._finish(coroutine, then)
                if not self._later:
                    return
                args, then = self._later.popleft()
                coroutine = self._start(args, then)
        finally:
            self._task = None
