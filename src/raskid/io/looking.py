"""Waiting for descriptors: look a few times before sleeping while that has been worth it.

Going to sleep and being woken costs tens of microseconds on each side, as much as a whole short task. And whoever finds
that what it waits for shares its processor goes to another one, see `raskid.io.processors`.
"""

from __future__ import annotations

import os
import time

from raskid.io.counters import Counters
from raskid.io.poller import Poller
from raskid.io.processors import leave_processor

#: So many waits in a row that were longer than the look before them end the looking, until a short one comes again.
LUCK_MAX = 3
#: Between two looks somebody else had the processor when they are further apart than this; when that was so in as many
#: waits in a row, it is the one that we wait for, and one of us should go elsewhere.
SHARED_S = 0.000015
SHARED_MAX = 8

perf_counter = time.perf_counter
sched_yield = getattr(os, "sched_yield", lambda: None)


class Looking:
    """How one driver waits."""

    def __init__(self, poller: Poller, counters: Counters) -> None:
        self._poller = poller
        self._counters = counters
        #: How long to look for something before sleeping, in seconds; 0: sleep at once.
        self.seconds = 0.0
        #: Whether the thread that looks is ours to move to another processor.
        self.may_move = False
        self._luck = 0
        self._shared = 0

    def look(self, seconds: float, may_move: bool) -> None:
        """From here on look for so long before each sleep."""
        self.seconds = seconds
        self.may_move = may_move

    def wait(self, timeout: float | None) -> list[tuple[int, int]]:
        """The descriptors that are ready, within `timeout` seconds."""
        wait = self._poller.wait
        if timeout == 0 or not self.seconds:
            return wait(timeout)
        started = perf_counter()
        if self._luck > 0:
            end = started + self.seconds
            looked = started
            shared = False
            while True:
                ready = wait(0)
                self._counters.syscalls += 2
                now = perf_counter()
                if now - looked > SHARED_S:
                    shared = True
                looked = now
                if ready:
                    self._luck = LUCK_MAX
                    if self.may_move:
                        self._note_sharing(shared)
                    return ready
                if now >= end:
                    break
                sched_yield()
            self._luck -= 1
        ready = wait(timeout)
        if perf_counter() - started < 2 * self.seconds:
            self._luck = LUCK_MAX
        return ready

    def _note_sharing(self, shared: bool) -> None:
        self._shared = self._shared + 1 if shared else 0
        if self._shared >= SHARED_MAX:
            self._shared = 0
            self._counters.moves += leave_processor()
