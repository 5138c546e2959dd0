"""Reading values one after the other, with ``for``, ``async for`` and calls: channels, cells, and several together.

Whoever gives values knows two ways to take the next one, blocking and awaiting; the rest is here.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, NoReturn

from raskid.client.checks import check_limit
from raskid.model.errors import WaitTimeout


class Values(ABC):
    """A stream of values of which each goes to one reader."""

    @abstractmethod
    def take(self, timeout: float | None) -> tuple[Any] | None:
        """The next value, in a tuple of its own, or None at the end; raises `WaitTimeout` after `timeout` seconds."""

    @abstractmethod
    async def take_in(self) -> tuple[Any] | None:
        """As `take`, for coroutines. One that is cancelled has taken nothing."""

    @abstractmethod
    def at_end(self) -> NoReturn:
        """Raise what says why no more values come."""

    @abstractmethod
    def too_late(self, timeout: float) -> WaitTimeout:
        """What to raise when nothing came in time."""

    def _get(self, timeout: float | None) -> Any:
        taken = self.take(check_limit("timeout", timeout))
        if taken is None:
            self.at_end()
        return taken[0]

    async def next(self, timeout: float | None = None) -> Any:
        """The next value, in asyncio.

        Raises:
            WaitTimeout: Nothing came within `timeout` seconds.
            SessionClosed: The session has ended.
            ValueError: It was closed.
        """
        import asyncio

        limit = check_limit("timeout", timeout)
        try:
            async with asyncio.timeout(limit) as scope:
                taken = await self.take_in()
        except TimeoutError:
            if limit is None or not scope.expired():
                raise
            raise self.too_late(limit) from None
        if taken is None:
            self.at_end()
        return taken[0]

    def __next__(self) -> Any:
        taken = self.take(None)
        if taken is None:
            raise StopIteration
        return taken[0]

    async def __anext__(self) -> Any:
        taken = await self.take_in()
        if taken is None:
            raise StopAsyncIteration
        return taken[0]


class Source(ABC):
    """What `when_all` joins."""

    @abstractmethod
    def begin(self) -> Values:
        """Begin to read, without waiting for anything: values from now on are kept for whoever takes them."""


class Joined(Values):
    """Channels and cells read together: one value of each at a time. Made by `when_all`.

    One thread or coroutine reads it at a time. What it has taken of some, while another has none yet, it keeps.
    """

    def __init__(self, readers: list[Values]) -> None:
        self._readers = readers
        #: The values of the first of them, for the next tuple.
        self._taken: list[Any] = []
        self._busy = threading.Lock()

    def _begin_taking(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("these joined values are being read already; each reader calls when_all for itself")

    def _complete(self) -> tuple[Any]:
        taken, self._taken = tuple(self._taken), []
        return (taken,)

    def take(self, timeout: float | None) -> tuple[Any] | None:
        """As `Values.take`: one value of each."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._begin_taking()
        try:
            while len(self._taken) < len(self._readers):
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                value = self._readers[len(self._taken)].take(left)
                if value is None:
                    return None
                self._taken += value
            return self._complete()
        except WaitTimeout:
            if timeout is None:
                raise
            raise self.too_late(timeout) from None
        finally:
            self._busy.release()

    async def take_in(self) -> tuple[Any] | None:
        """As `Values.take_in`: one value of each."""
        self._begin_taking()
        try:
            while len(self._taken) < len(self._readers):
                value = await self._readers[len(self._taken)].take_in()
                if value is None:
                    return None
                self._taken += value
            return self._complete()
        finally:
            self._busy.release()

    def at_end(self) -> NoReturn:
        """The end of one is the end of all."""
        self._readers[len(self._taken)].at_end()

    def too_late(self, timeout: float) -> WaitTimeout:
        """Names the one that has no value."""
        return self._readers[len(self._taken)].too_late(timeout)

    def get(self, timeout: float | None = None) -> tuple[Any, ...]:
        """The next tuple.

        Raises:
            WaitTimeout: One of them had no new value within `timeout` seconds; what the others had comes later.
            SessionClosed: The session has ended.
            ValueError: One of them was closed.
        """
        found: tuple[Any, ...] = self._get(timeout)
        return found

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self

    def __aiter__(self) -> AsyncIterator[tuple[Any, ...]]:
        return self


def when_all(*sources: Any) -> Joined:
    """Join channels and cells: each step gives a tuple with one value of each of them.

    A step is complete when each has a new value since the last one; values are taken in order and none is skipped. A
    cell's present value is its first. Channels and cells may be mixed, also those of different sessions. Reading
    begins with this call; read a channel that is joined by the join only. Use ``for``, ``async for``, `get` or `next`.

    Args:
        sources: Channels and cells, or one list of them.
    """
    given: tuple[Any, ...] = sources
    if len(sources) == 1 and not isinstance(sources[0], Source) and isinstance(sources[0], Iterable):
        given = tuple(sources[0])
    if not given:
        raise ValueError("when_all joins channels and cells, and was given none")
    for source in given:
        if not isinstance(source, Source):
            raise TypeError(
                f"when_all joins channels and cells, got {source!r:.60} of type {type(source).__name__}. Futures are "
                "gathered with rk.gather"
            )
        if sum(source is other for other in given) > 1:
            raise ValueError(f"when_all was given {source!r} twice; open it twice, and each handle gets every value")
    return Joined([source.begin() for source in given])
