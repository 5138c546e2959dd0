"""Ids, made by whoever creates the thing they name, without a round trip.

An id that must be unique in a system (a task, a request, a record) is one integer: the creator's *origin* in the
upper half and a counter in the lower. An origin is 31 random bits drawn once per incarnation of a peer; the head
refuses a peer whose origin another living peer uses already, so two creators never share one.
"""

from typing import NewType

PeerId = NewType("PeerId", str)
TaskId = NewType("TaskId", int)
RequestId = NewType("RequestId", int)
StreamId = NewType("StreamId", int)
CodeId = NewType("CodeId", str)

COUNTER_BITS = 32
ORIGIN_BITS = 31


class IdSource:
    """Makes the ids of one incarnation of one peer."""

    __slots__ = ("_next", "origin")

    def __init__(self, origin: int) -> None:
        if not 0 < origin < 1 << ORIGIN_BITS:
            raise ValueError(f"an origin is a positive integer of {ORIGIN_BITS} bits, got {origin}")
        self.origin = origin
        self._next = origin << COUNTER_BITS

    def take(self) -> int:
        """One new id."""
        self._next += 1
        return self._next

    def take_range(self, count: int) -> int:
        """The first of `count` consecutive new ids."""
        first = self._next + 1
        self._next += count
        return first


def counter_of(identifier: int) -> int:
    """The number of `identifier` among those of its creator, as people see it."""
    return identifier & ((1 << COUNTER_BITS) - 1)


def origin_of(identifier: int) -> int:
    """The origin of the peer that made `identifier`."""
    return identifier >> COUNTER_BITS
