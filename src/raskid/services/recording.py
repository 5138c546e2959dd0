"""Recordings of real stations: every event, all output and every effect, to be replayed through new machines.

A recording is a sequence of pickles: first a description of the station, then its entries in order. `RASKID_RECORD`
names the file into which a head records itself. Recordings hold whatever the system was told, its token included.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raskid.core.station import Station

EVENT, PERFORM, OUTPUT, NUMBER, FACTS = "event", "perform", "output", "number", "facts"


class Recorder:
    """Writes what a station does to a file."""

    def __init__(self, path: str | Path, station: Station, about: dict[str, Any]) -> None:
        self._file = Path(path).open("wb")  # noqa: SIM115 - `close` closes it
        self._write(about)
        peer, handle, perform = station.peer, station.handle, station.perform
        output, number = peer.output, peer.new_connection

        def recorded_handle(event: Any, now: float) -> list[Any]:
            # The event is kept before it is handled: facts that are asked for meanwhile come between.
            self._write((EVENT, now, event))
            effects = handle(event, now)
            self._write(effects)
            return effects

        def recorded_perform(effects: list[Any], now: float) -> list[Any]:
            self._write((PERFORM, now, effects))
            left = perform(effects, now)
            self._write(left)
            return left

        def recorded_output(connection: int, room: int) -> bytes:
            self._write((OUTPUT, connection, room))
            data = output(connection, room)
            self._write(data)
            return data

        def recorded_number() -> int:
            self._write((NUMBER,))
            given = number()
            self._write(given)
            return given

        station.handle = recorded_handle  # type: ignore[method-assign]
        station.perform = recorded_perform  # type: ignore[method-assign]
        peer.output = recorded_output  # type: ignore[method-assign]
        peer.new_connection = recorded_number  # type: ignore[method-assign]

    def facts(self, facts: Any) -> None:
        """Something that came from the process, not from an event."""
        self._write((FACTS, facts))

    def _write(self, entry: Any) -> None:
        if not self._file.closed:
            pickle.dump(entry, self._file)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def read(path: str | Path) -> list[Any]:
    """The entries of a recording, its description first."""
    entries = []
    with Path(path).open("rb") as file:
        while True:
            try:
                entries.append(pickle.load(file))
            except EOFError:
                return entries


class ReplayDiffers(AssertionError):
    """The machines did something else than in the recording; the text says where."""


def replay(entries: list[Any], build: Callable[[dict[str, Any], Callable[[], Any]], Station]) -> int:
    """Give a recording to new machines and compare what they do; returns the number of entries compared.

    `build(about, next_facts)` makes the station; `next_facts()` gives what the process told at that point.
    """
    position = 0

    def take() -> Any:
        nonlocal position
        position += 1
        return entries[position - 1]

    def next_facts() -> Any:
        kind, facts = take()
        if kind != FACTS:
            raise ReplayDiffers(f"entry {position}: facts were asked for where the recording has {kind!r}")
        return facts

    station = build(take(), next_facts)
    compared = 0
    while position < len(entries):
        entry = take()
        if entry[0] == EVENT:
            found: Any = station.handle(entry[2], entry[1])
        elif entry[0] == PERFORM:
            found = station.perform(entry[2], entry[1])
        elif entry[0] == NUMBER:
            found = station.peer.new_connection()
        else:
            found = station.peer.output(entry[1], entry[2])
        if position == len(entries):
            # The process ended in the middle of this one.
            break
        expected = take()
        if found != expected:
            raise ReplayDiffers(f"entry {position}: {entry!r} gave\n{found!r}\nand not\n{expected!r}")
        compared += 1
    station.check_invariants()
    return compared
