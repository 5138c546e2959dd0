"""Times at which something is due: the first one is always at hand, however many there are."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """At most one time for each key.

    A time that is changed or cancelled stays in the heap until it comes up, and is recognised there by the dictionary,
    which alone tells the truth. So every operation takes logarithmic time, spread over the changes.
    """

    def __init__(self) -> None:
        self._times: dict[K, float] = {}
        #: Holds at least every (time, number, key) of `_times`; numbers keep keys from being compared.
        self._heap: list[tuple[float, int, K]] = []
        self._number = 0

    def set(self, key: K, at: float) -> None:
        """`key` is due at `at`, and at no other time."""
        if self._times.get(key) == at:
            return
        self._times[key] = at
        self._number += 1
        heapq.heappush(self._heap, (at, self._number, key))
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._times):
            # Times that are set and cancelled over and over must not fill the memory before they come up.
            self._heap = [(at, number, key) for number, (key, at) in enumerate(self._times.items())]
            heapq.heapify(self._heap)

    def cancel(self, key: K) -> None:
        """`key` is not due any more."""
        self._times.pop(key, None)

    def get(self, key: K) -> float | None:
        """When `key` is due."""
        return self._times.get(key)

    def first(self) -> float | None:
        """The nearest time."""
        heap = self._heap
        while heap and self._times.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take_due(self, now: float) -> list[K]:
        """The keys that are due, in the order of their times; they are not due any more."""
        due: list[K] = []
        while (at := self.first()) is not None and at <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._times[key]
            due.append(key)
        return due

    def __len__(self) -> int:
        return len(self._times)
