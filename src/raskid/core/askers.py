"""Who asked for a value that is not here (yet). Askers ask again, so that old questions may be forgotten."""

from __future__ import annotations

from collections.abc import Container

from raskid.model.ids import PeerId, TaskId

#: A question is remembered for about so long.
ASKERS_S = 10.0


class Askers:
    """The peers that wait for values, by task."""

    def __init__(self) -> None:
        self.by_task: dict[TaskId, list[PeerId]] = {}
        #: When each of these was last asked for.
        self._asked_at: dict[TaskId, float] = {}
        #: When old questions are dropped; None exactly when there are none.
        self.sweep_at: float | None = None

    def add(self, task: TaskId, peer: PeerId, now: float) -> None:
        """`peer` waits for the value of `task`."""
        peers = self.by_task.setdefault(task, [])
        if peer not in peers:
            peers.append(peer)
        self._asked_at[task] = now
        if self.sweep_at is None:
            self.sweep_at = now + ASKERS_S

    def pop(self, task: TaskId) -> list[PeerId]:
        """Who waits for `task`; nobody does from here on."""
        peers = self.by_task.pop(task, None)
        if peers is None:
            return []
        del self._asked_at[task]
        if not self.by_task:
            self.sweep_at = None
        return peers

    def sweep(self, now: float, expected: Container[TaskId] = ()) -> None:
        """Drop questions that are old, unless the task is among those `expected` here."""
        if self.sweep_at is None or now < self.sweep_at:
            return
        for task in [task for task, at in self._asked_at.items() if at + ASKERS_S <= now and task not in expected]:
            del self.by_task[task], self._asked_at[task]
        self.sweep_at = now + ASKERS_S if self.by_task else None

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        assert set(self.by_task) == set(self._asked_at)
        assert (self.sweep_at is None) == (not self.by_task)
