"""Plain counters of what a process did, for benchmarks and for `raskid status`.

`copies` counts bytes that this process copied from one of its buffers to another while it sent and received: each
byte received once, when frames are cut out of the stream, and each byte sent once, when its frame is made, and again
when several frames are put together or when the kernel has no room. What the kernel and the codec copy does not count.
`moves` counts how often a thread went to another processor (`raskid.io.processors`).

Hot paths add to the attributes directly (``counters.syscalls += 1``): a method call would cost more than most of what
is counted. Nothing here reads a clock or makes an average over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Counters:
    """Counts since the process began. `FIELDS` is also the order of `as_list`; new fields go last."""

    #: What is worth dividing by the number of tasks or messages.
    COSTS = ("wakeups", "syscalls", "copies", "bytes_sent", "bytes_received")
    FIELDS = (
        "wakeups",
        "syscalls",
        "bytes_sent",
        "bytes_received",
        "frames_sent",
        "frames_received",
        "messages_sent",
        "messages_received",
        "copies",
        "tasks",
        "connections",
        "moves",
    )
    __slots__ = FIELDS

    wakeups: int
    syscalls: int
    bytes_sent: int
    bytes_received: int
    frames_sent: int
    frames_received: int
    messages_sent: int
    messages_received: int
    copies: int
    tasks: int
    connections: int
    moves: int

    def __init__(self) -> None:
        for name in self.FIELDS:
            setattr(self, name, 0)

    def as_dict(self) -> dict[str, int]:
        """The counts by name, in the order of `FIELDS`."""
        return {name: getattr(self, name) for name in self.FIELDS}

    def as_rows(self) -> dict[str, Any]:
        """The counts by name, and the costs for each task and for each message, sent or received.

        `per_task` and `per_message` are empty while there were none.
        """
        rows: dict[str, Any] = dict(self.as_dict())
        for name, count in (("per_task", self.tasks), ("per_message", self.messages_sent + self.messages_received)):
            each = self.per(count) if count else {}
            rows[name] = {cost: each[cost] for cost in self.COSTS if cost in each}
        return rows

    def as_list(self) -> list[int]:
        """The counts in the order of `FIELDS`, as an outbox's counter words hold them."""
        return [getattr(self, name) for name in self.FIELDS]

    @classmethod
    def from_list(cls, values: Sequence[int]) -> Counters:
        """Counters from `as_list`'s form. Missing ones are 0 and further ones are ignored (an older or newer peer)."""
        counters = cls()
        for name, value in zip(cls.FIELDS, values, strict=False):
            setattr(counters, name, value)
        return counters

    def per(self, n: int) -> dict[str, float]:
        """Each count divided by `n`, for instance per task.

        Raises:
            ValueError: `n` is not positive.
        """
        if n <= 0:
            raise ValueError(f"counts can be divided by a positive number of things only, not by {n}")
        return {name: getattr(self, name) / n for name in self.FIELDS}

    def __repr__(self) -> str:
        counted = ", ".join(f"{name}={value}" for name, value in self.as_dict().items() if value)
        return f"Counters({counted})"
