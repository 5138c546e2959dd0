"""What all core machines have in common: the events every one of them can meet, the effects every one may ask for.

A machine is a plain object. It never reads a clock, draws a random number, logs, waits or opens anything: whoever
owns it passes in what happened and the time, and performs the effects that come back. Events and effects are structs
of plain values, so a stream of them can be recorded from a real run and replayed.

Machines live together in a `raskid.core.station.Station`, which gives each the messages of the types that it handles.
A message sent to the own peer id comes back as `Received` in the same station.
"""

from __future__ import annotations

from typing import Any, Protocol

from raskid.protocol.messages import Message


class Machine(Protocol):
    """The shape of a core machine."""

    #: Types of messages that this machine handles.
    handles: frozenset[type[Message]]

    def handle(self, event: Any, now: float) -> list[Any]:
        """Take in one event at time `now` (seconds, monotonic); return what is to be done, in order."""

    def next_deadline(self) -> float | None:
        """When the machine next needs a `Tick`, or None while only events can change it."""

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
