"""Tasks that come off their runners without an outcome: the runner ended, its node is gone, or it gave them back.

Each of them is placed again as its next attempt, is cancelled if somebody had asked for that, or is given up when too
many runners ended while they ran it.
"""

from __future__ import annotations

from raskid.core.graph import Graph
from raskid.core.pool import Pool
from raskid.core.tasks import FAILED, FINISHED, PLACED, RunnerEntry, TaskEntry
from raskid.model.ids import PeerId, TaskId
from raskid.protocol.messages import LeaseEnded, TasksCancelled, TasksRecalled

NO_TASK = TaskId(0)


class Losses:
    """Takes tasks off runners."""

    def __init__(self, graph: Graph, pool: Pool) -> None:
        self._graph = graph
        self._pool = pool
        self._tasks = graph.tasks

    def on_recalled(self, peer: PeerId, message: TasksRecalled) -> None:
        """A node has taken tasks back from a runner, or the runner has left them out."""
        runner = self._pool.runners.get(message.runner)
        if runner is None or runner.ref.incarnation != message.incarnation or peer not in (runner.peer, runner.node):
            return
        for task, _ in message.tasks:
            if runner.running == task:
                # It was not, after all.
                runner.running = NO_TASK
        self._take_off([entry for pair in message.tasks if (entry := self._placed_at(runner, *pair)) is not None])
        for task, attempt in message.started:
            found = self._placed_at(runner, task, attempt)
            if found is None:
                continue
            runner.running = task
            if found.cancelled:
                # From here on it counts as not cancelled: if it should come back after all, it is placed again.
                found.cancelled = False
                self._pool.send(found.client, TasksCancelled([], [task]))

    def _placed_at(self, runner: RunnerEntry, task: TaskId, attempt: int) -> TaskEntry | None:
        entry = self._tasks.get(task)
        if entry is None or entry.state is not PLACED or entry.attempt != attempt or entry.runner is not runner:
            return None
        return entry

    def _take_off(self, entries: list[TaskEntry]) -> None:
        """These never start where they are: cancel those that are to be, and place the others elsewhere."""
        cancelled, moved = [], []
        for entry in entries:
            if entry.state is not PLACED:
                # It was named twice.
                continue
            self._graph.unplace(entry)
            if entry.cancelled:
                cancelled.append(entry)
            else:
                entry.troubled().moved = True
                moved.append(entry)
        self._graph.cancel(cancelled)
        if moved:
            self._graph.start_again(moved, "it was taken back")

    def end_runners(
        self, runners: list[RunnerEntry], reason: str, running: TaskId = NO_TASK, node_gone: bool = False
    ) -> None:
        """Place again what was placed on runners that have ended; `running` is what one of them was running."""
        pool, graph = self._pool, self._graph
        lost: list[TaskEntry] = []
        for runner in runners:
            if runner.alive:
                pool.remove(runner)
            entries = list(runner.tasks.values())
            placed = [entry for entry in entries if entry.state is PLACED]
            if node_gone:
                lost += self._lose_values(runner, entries, reason)
            else:
                # Clients learn where values and errors are before they learn that the lease is over: what they then
                # still lack is what they have to submit again.
                pool.tell_keepers(
                    [entry for entry in entries if entry.state in (FINISHED, FAILED) and not entry.released]
                )
            for entry in placed:
                graph.unplace(entry)
                if entry.task == running:
                    ends = entry.troubled().ends
                    ends[reason] = ends.get(reason, 0) + 1
            lost += placed
            for client in runner.leases:
                pool.send(client, LeaseEnded(runner.peer, reason))
            runner.outstanding -= len(runner.leases)
            runner.leases.clear()
            pool.drop_if_empty(runner)
        if node_gone:
            # Nobody can tell what ran there, so each of them may have been what brought the node down.
            for entry in lost:
                ends = entry.troubled().ends
                ends[reason] = ends.get(reason, 0) + 1
        if len(runners) > 1:
            lost.sort(key=lambda entry: entry.task)
        graph.start_again(lost, f"its last runner was {', '.join(runner.peer for runner in runners)}: {reason}")

    def _lose_values(self, runner: RunnerEntry, entries: list[TaskEntry], reason: str) -> list[TaskEntry]:
        """The node is gone, and with it values and errors; return the tasks whose values somebody wants."""
        wanted = []
        for entry in entries:
            if entry.state is FINISHED:
                self._graph.unplace(entry)
                if not entry.released or entry.unfinished:
                    wanted.append(entry)
            elif entry.state is not PLACED:
                entry.runner = None
                del runner.tasks[entry.task]
                if entry.state is FAILED:
                    self._graph.lose_error(entry, reason)
        return wanted
