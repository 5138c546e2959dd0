"""What the operation "keep" keeps: the last messages of a topic, at their publisher."""

from __future__ import annotations

from collections import deque

from raskid.core.operations import KEEP_BYTES
from raskid.model.operations import Operation


class Keeper:
    """The last messages that went through one "keep": up to a count, an age in seconds, and a size in bytes."""

    __slots__ = ("basket", "bytes", "bytes_max", "count_max", "left_out", "messages", "seconds_max")

    def __init__(self, operation: Operation) -> None:
        fields = operation.fields
        self.count_max = int(fields.get("count") or 1_000_000)
        self.seconds_max = float(fields.get("seconds") or 0.0)
        self.bytes_max = int(fields.get("bytes") or KEEP_BYTES)
        #: The basket that gets them when their publisher leaves; empty for none.
        self.basket = str(fields.get("basket") or "")
        #: (number, body, when it was kept), in order.
        self.messages: deque[tuple[int, bytes, float]] = deque()
        self.bytes = 0
        #: Messages that had to go for the sake of the size.
        self.left_out = 0

    def store(self, number: int, body: bytes, now: float) -> None:
        """Keep one more."""
        self.messages.append((number, body, now))
        self.bytes += len(body)
        self.expire(now)

    def expire(self, now: float) -> None:
        """Let go what is over the limits."""
        messages = self.messages
        while messages:
            if len(messages) > self.count_max or (self.seconds_max and now - messages[0][2] > self.seconds_max):
                pass
            elif self.bytes > self.bytes_max:
                self.left_out += 1
            else:
                return
            self.bytes -= len(messages.popleft()[1])

    def last(self, count: int, now: float) -> list[tuple[int, bytes]]:
        """The last so many; -1: all."""
        self.expire(now)
        kept = [(number, body) for number, body, _ in self.messages]
        return kept if count < 0 else kept[max(0, len(kept) - count) :]
