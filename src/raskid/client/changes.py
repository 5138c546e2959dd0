"""The changes of a shared dictionary, one after the other: what ``for`` and ``async for`` read."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from raskid.client.reading import Values
from raskid.client.waiting import Steps, take_steps, take_steps_in
from raskid.core.effects import ListChanged
from raskid.model.errors import SessionClosed, WaitTimeout
from raskid.protocol.values import decode_value

if TYPE_CHECKING:
    from raskid.client.topics import Topics


class Change(NamedTuple):
    """One change of a shared dictionary.

    Attributes:
        key: Which record was put or deleted; None when the whole list was read anew, and anything may be different.
        value: What it was put to; None for one that was deleted.
        deleted: Whether it was.
    """

    key: str | None
    value: Any
    deleted: bool


class Changes(Values):
    """Reads the changes of a shared dictionary from its making on; made by `SharedDict.changes`.

    At most `capacity` wait here; beyond that the oldest are left out, and counted in `dropped`. Each change goes to one
    of those who read it.
    """

    def __init__(self, session: Topics, wire_name: str, what: str, capacity: int) -> None:
        self._session = session
        self._list = wire_name
        self._what = what
        self._capacity = capacity
        #: The session's lock guards what is added; taking one off is atomic by itself.
        self._waiting: deque[ListChanged] = deque()
        self.dropped = 0
        self.closed = False
        with session.engine.lock:
            session.still_alive()
            session.changes.setdefault(wire_name, []).append(self)

    def changed(self, effect: ListChanged) -> None:
        """The list changed; under the session's lock."""
        self._waiting.append(effect)
        if len(self._waiting) > self._capacity:
            self._waiting.popleft()
            self.dropped += 1

    def close(self) -> None:
        """Read no more; what is here can still be taken."""
        session = self._session
        with session.engine.lock:
            if self.closed:
                return
            self.closed = True
            readers = session.changes.get(self._list, [])
            if self in readers:
                readers.remove(self)
            if not readers:
                session.changes.pop(self._list, None)
            # Whoever waits looks again.
            session.wake_followers(self._list)
        session.engine.rouse()

    def _pop(self) -> Change | None:
        try:
            effect = self._waiting.popleft()
        except IndexError:
            return None
        value = decode_value(effect.put.value) if effect.put is not None else None
        return Change(effect.record, value, effect.record is not None and effect.put is None)

    def _taking(self, timeout: float | None) -> Steps[tuple[Any] | None]:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._session.engine.lock:
                change = self._pop()
                if change is None:
                    if self.closed:
                        return None
                    try:
                        future = self._session.next_change(self._list)
                    except SessionClosed:
                        return None
            if change is not None:
                return (change,)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                yield future, left, self._what
            except SessionClosed:
                return None
            except WaitTimeout:
                raise self.too_late(timeout or 0.0) from None

    def take(self, timeout: float | None) -> tuple[Any] | None:
        """As `Values.take`."""
        change = self._pop()
        return (change,) if change is not None else take_steps(self._taking(timeout))

    async def take_in(self) -> tuple[Any] | None:
        """As `Values.take_in`."""
        change = self._pop()
        return (change,) if change is not None else await take_steps_in(self._taking(None))

    def at_end(self) -> NoReturn:
        """As `Values.at_end`."""
        if self.closed:
            raise ValueError(f"the changes of {self._what} are read no more: this was closed")
        raise SessionClosed(f"no more changes of {self._what}: the session has ended")

    def too_late(self, timeout: float) -> WaitTimeout:
        """As `Values.too_late`."""
        return WaitTimeout(f"{self._what} did not change within {timeout:g} s")

    def get(self, timeout: float | None = None) -> Change:
        """The next change; raises `WaitTimeout` after `timeout` seconds, ValueError or `SessionClosed` at the end."""
        change: Change = self._get(timeout)
        return change

    def __iter__(self) -> Iterator[Change]:
        return self

    def __aiter__(self) -> AsyncIterator[Change]:
        return self

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Changes:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()
