"""Waiting for file descriptors: epoll on Linux, whatever the standard library has elsewhere.

One kind of loop serves the runner and the blocking client (a few descriptors) and the head (many): epoll costs the
same for both, and its own descriptor can be watched by a foreign event loop, which is how the asyncio face works.
"""

from __future__ import annotations

import select
import selectors
from typing import Any

READ = 1
WRITE = 4


class Poller:
    """A set of descriptors to wait for."""

    def __init__(self) -> None:
        self._epoll: Any = select.epoll() if hasattr(select, "epoll") else None
        self._selector = selectors.DefaultSelector() if self._epoll is None else None

    def fileno(self) -> int:
        """A descriptor that is readable when any of the set is ready."""
        if self._epoll is not None:
            return int(self._epoll.fileno())
        return int(self._selector.fileno())  # type: ignore[union-attr]

    def set(self, fd: int, events: int, known: bool) -> None:
        """Wait for `events` on `fd`; `known` says whether the set has it already."""
        if self._epoll is not None:
            (self._epoll.modify if known else self._epoll.register)(fd, events)
        elif self._selector is not None:
            mask = (selectors.EVENT_READ if events & READ else 0) | (selectors.EVENT_WRITE if events & WRITE else 0)
            (self._selector.modify if known else self._selector.register)(fd, mask)

    def remove(self, fd: int) -> None:
        """Wait for `fd` no longer."""
        try:
            if self._epoll is not None:
                self._epoll.unregister(fd)
            elif self._selector is not None:
                self._selector.unregister(fd)
        except (KeyError, OSError, ValueError):
            pass

    def wait(self, timeout: float | None) -> list[tuple[int, int]]:
        """Ready descriptors with their events; errors count as both. Waits at most `timeout` seconds, or for ever."""
        if self._epoll is not None:
            ready: list[tuple[int, int]] = self._epoll.poll(-1 if timeout is None else timeout)
            return ready
        found = []
        for key, mask in self._selector.select(timeout):  # type: ignore[union-attr]
            events = (READ if mask & selectors.EVENT_READ else 0) | (WRITE if mask & selectors.EVENT_WRITE else 0)
            found.append((key.fd, events))
        return found

    def close(self) -> None:
        """Give the descriptor back."""
        (self._epoll or self._selector).close()  # type: ignore[union-attr]
