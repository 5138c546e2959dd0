"""Learns of the end of peers' processes on this machine at once, where the system can tell."""

from __future__ import annotations

import os
import socket

from raskid.core.events import PeerEnded, PeerGone, PeerJoined
from raskid.io.driver import Driver
from raskid.model.ids import PeerId

#: So many turns of the loop are given to what an ended process had written; a child of it may hold the socket open.
TURNS_MAX = 1000


class ProcessWatch:
    """Watches the processes of a driver's peers. Without process descriptors (Linux has them), leases have to end.

    Called under the driver's lock, but for `close` and `abandon`.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._host = socket.gethostname()
        self._watched: dict[PeerId, int] = {}

    def joined(self, event: PeerJoined) -> None:
        """A peer is here."""
        self._drop(event.peer)
        if event.host != self._host or event.pid <= 0 or event.pid == os.getpid() or not hasattr(os, "pidfd_open"):
            return
        try:
            fd = os.pidfd_open(event.pid)
        except OSError:
            # Not a process that can be seen from here.
            return
        turns = 0

        def ended(events: int) -> None:
            nonlocal turns
            turns += 1
            if self._driver.station.peer.is_connected(event.peer) and turns < TURNS_MAX:
                # What it wrote before its end is still being read.
                return
            self._drop(event.peer)
            self._driver.handle(PeerEnded(event.peer, event.incarnation, "its process ended"))

        self._watched[event.peer] = fd
        self._driver.watch(fd, ended)

    def gone(self, event: PeerGone) -> None:
        """A peer is gone."""
        self._drop(event.peer)

    def _drop(self, peer: PeerId) -> None:
        fd = self._watched.pop(peer, None)
        if fd is not None:
            self._driver.unwatch(fd)
            os.close(fd)

    def close(self) -> None:
        """Watch nobody any more."""
        # Whoever handles what came may be dropping one just now: closed twice, a number may be somebody else's.
        with self._driver.lock:
            for peer in list(self._watched):
                self._drop(peer)

    def abandon(self) -> None:
        """In a process that was forked: close its copies of the descriptors."""
        while self._watched:
            os.close(self._watched.popitem()[1])
