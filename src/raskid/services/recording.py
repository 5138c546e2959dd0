"""Recordings of real stations: every event, all output and every effect, to be replayed through new machines.

A recording is a sequence of pickles: first a description of the station, then its entries in order. `RASKID_RECORD`
names the file into which a head records itself.

A recording holds whatever the system was told, its token included: without it, a replay could not check the proofs
in what came. So the file is new, and readable for its owner only; the token is worth nothing once the system has ended.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raskid.core.peer import Peer
from raskid.core.station import Station

EVENT, PERFORM, OUTPUT, NUMBER, FACTS = "event", "perform", "output", "number", "facts"


class Recorder:
    """Stands before a station, as a driver sees it, and writes what goes in and out to a new file.

    Raises:
        FileExistsError: There is a file of that name; it may be open to others, or a link.
    """

    def __init__(self, path: str | Path, station: Station, about: dict[str, Any]) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(fd, "wb")
        self._station = station
        self.peer = _RecordedPeer(station.peer, self._write)
        self._write(about)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._station, name)

    def handle(self, event: Any, now: float) -> list[Any]:
        """As the station's."""
        # The event is kept before it is handled: facts that are asked for meanwhile come between.
        self._write((EVENT, now, event))
        effects = self._station.handle(event, now)
        self._write(effects)
        return effects

    def perform(self, effects: list[Any], now: float) -> list[Any]:
        """As the station's."""
        self._write((PERFORM, now, effects))
        left = self._station.perform(effects, now)
        self._write(left)
        return left

    def facts(self, facts: Any) -> None:
        """Something that came from the process, not from an event."""
        self._write((FACTS, facts))

    def _write(self, entry: Any) -> None:
        if not self._file.closed:
            try:
                pickle.dump(entry, self._file)
            except OSError as error:
                # The process ends by this, and what it says at its end is not to fail again. An OSError would look
                # like one of the connection that is being served.
                self.close()
                raise RuntimeError(f"the recording cannot be written: {error}") from error

    def close(self) -> None:
        """Finish the file. What cannot be written any more is missing from it; whoever wrote last was told."""
        with contextlib.suppress(OSError):
            self._file.close()


class _RecordedPeer:
    """A station's peer, of which a driver asks what changes it: output, and numbers of connections."""

    def __init__(self, peer: Peer, write: Callable[[Any], None]) -> None:
        self._peer = peer
        self._write = write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peer, name)

    def output(self, connection: int, room: int) -> bytes:
        self._write((OUTPUT, connection, room))
        data = self._peer.output(connection, room)
        self._write(data)
        return data

    def new_connection(self) -> int:
        self._write((NUMBER,))
        given = self._peer.new_connection()
        self._write(given)
        return given


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
