"""Places tasks on runners at the end of each event, and takes waiting ones back from busy runners for idle ones.

Tasks without inputs are handed out from the queue as windows have room; tasks with inputs are placed at once, where
these are. Which runner gets which is decided by the pure functions of `raskid.core.placement`.

A task can wait behind a long one although another runner is idle: its runner's earlier tasks were short, or it came to
where its inputs are. When that has lasted for a moment, some waiting tasks are recalled; the answer brings those that
had not started back here, for their next attempt (see `docs/design/009-recall.md`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

from raskid.core.graph import Graph
from raskid.core.placement import WINDOW_S, choose_near, recall_count, share_out
from raskid.core.pool import Pool
from raskid.core.tasks import FINISHED, PLACED, READY, RunnerEntry, TaskEntry, move
from raskid.model.ids import PeerId
from raskid.protocol.messages import Placement

#: Runners looked at for a dispatch of few tasks; idle ones come first, so that the choice is the best one or nearly.
CANDIDATES = 64
#: How long a runner is idle while tasks wait behind others before some of these are recalled; and the longest pause
#: between two attempts while there is nothing to recall.
BALANCE_S = 0.030
BALANCE_S_MAX = 1.0
#: Tasks of a busy runner looked at for one recall, the last placed ones first.
RECALL_SCAN = 4096

NOBODY = PeerId("")


class Dispatcher:
    """Applies the policy of placement to the graph's ready tasks and the pool's runners."""

    def __init__(self, graph: Graph, pool: Pool) -> None:
        self._graph = graph
        self._pool = pool
        #: When to look for tasks to recall; None while no runner is idle, or no task can be waiting behind another.
        self.balance_at: float | None = None
        self._balance_s = BALANCE_S
        self._turn: Iterator[RunnerEntry] = iter(())

    # ── Placing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def dispatch(self) -> None:
        """Place what can be placed."""
        graph, pool = self._graph, self._pool
        queue = graph.queue
        placing = graph.placing
        if graph.front:
            queue.extendleft(reversed(graph.front))
            graph.front.clear()
        if not pool.runners:
            queue.extend(placing)
            placing.clear()
            return
        idle = pool.idle
        while True:
            # Placing a task can make those that need it ready, which then come after it in `placing`.
            while placing:
                entry = placing.popleft()
                if entry.state is READY:
                    self._place_near(entry)
            if not queue or not (idle or pool.roomy):
                return
            wanted = len(queue)
            if wanted == 1 and idle:
                self._place_queued(next(iter(idle.values())), 1)
                continue
            most = wanted if wanted > CANDIDATES else CANDIDATES
            runners = list(islice(chain(idle.values(), pool.roomy.values()), most))
            for runner, count in zip(runners, share_out(wanted, runners), strict=True):
                if count:
                    self._place_queued(runner, count)

    def _place_queued(self, runner: RunnerEntry, count: int) -> None:
        """Place `count` tasks from the queue (fewer when it ends)."""
        graph, pool = self._graph, self._pool
        queue = graph.queue
        placements = runner.placements
        tasks = runner.tasks
        told = runner.told
        codes = runner.codes
        left = count
        while left and queue:
            entry = queue.popleft()
            if entry.state is not READY:
                continue
            if entry.inputs:
                graph.placing.append(entry)
                continue
            spec = entry.spec
            assert spec is not None
            entry.state = PLACED
            entry.runner = runner
            client = entry.client
            tasks[entry.task] = entry
            if entry.trouble is None:
                placements.append(Placement(spec, entry.attempt, client))
            else:
                entry.trouble.moved = False
                placements.append(Placement(spec, entry.attempt, client, (), entry.trouble.raised))
            if client not in told:
                pool.tell_peer(runner, client)
            if spec.code not in codes:
                pool.tell_code(runner, spec.code)
            left -= 1
            if entry.children:
                graph.placed(entry)
        runner.outstanding += count - left
        graph.ready -= count - left
        pool.touched[runner] = None
        pool.reindex(runner)

    def _place_near(self, entry: TaskEntry) -> None:
        """Place a task with inputs where these are."""
        pool = self._pool
        runner: RunnerEntry | None = None
        if entry.trouble is not None and entry.trouble.moved:
            # Not back to where it has waited.
            entry.trouble.moved = False
            runner = self._spare_runner()
        if runner is None:
            holders: dict[RunnerEntry, int] = {}
            wide = False
            for found in entry.inputs:
                holder = found.runner
                if holder is not None and holder.alive:
                    holders[holder] = holders.get(holder, 0) + 1
                wide = wide or (found.children is not None and len(found.children) > 1)
            if wide or not holders:
                spare = self._spare_runner()
                runner = choose_near(holders, spare, wide, self._next_runner() if spare is None else None)
            else:
                runner = choose_near(holders, None, False)
        if runner is None:
            runner = min(pool.runners.values(), key=lambda runner: runner.outstanding)
        move(entry, PLACED)
        entry.runner = runner
        runner.tasks[entry.task] = entry
        runner.outstanding += 1
        self._graph.ready -= 1
        pool.reindex(runner)
        self._add_placement(entry, runner)
        if entry.children:
            self._graph.placed(entry)

    def _spare_runner(self) -> RunnerEntry | None:
        idle = self._pool.idle
        if idle:
            return next(iter(idle.values()))
        roomy = islice(self._pool.roomy.values(), CANDIDATES)
        return min(roomy, key=lambda runner: runner.outstanding, default=None)

    def _next_runner(self) -> RunnerEntry | None:
        """Another runner each time, in turn."""
        for _ in range(2):
            try:
                runner = next(self._turn, None)
            except RuntimeError:
                # The table of runners has changed.
                runner = None
            if runner is not None and not runner.gone:
                return runner
            self._turn = iter(self._pool.runners.values())
        return None

    def place_again(self) -> None:
        """Send placements again whose inputs have other keepers now."""
        resend = self._graph.resend
        for entry in resend.values():
            # A cancelled one would begin anew on a runner that has left it out by then.
            if entry.state is PLACED and entry.runner is not None and not entry.cancelled:
                self._add_placement(entry, entry.runner)
        resend.clear()

    def _add_placement(self, entry: TaskEntry, runner: RunnerEntry) -> None:
        pool = self._pool
        spec = entry.spec
        assert spec is not None
        by_task = {found.task: found.runner for found in entry.inputs}
        keepers = []
        for task in spec.inputs:
            holder = by_task[task]
            keeper = NOBODY if holder is None else holder.keeper
            if keeper and keeper != runner.peer and keeper not in runner.told:
                pool.tell_peer(runner, keeper)
            keepers.append(keeper)
        if entry.client not in runner.told:
            pool.tell_peer(runner, entry.client)
        if spec.code not in runner.codes:
            pool.tell_code(runner, spec.code)
        raised = 0 if entry.trouble is None else entry.trouble.raised
        runner.placements.append(Placement(spec, entry.attempt, entry.client, tuple(keepers), raised))
        pool.touched[runner] = None

    # ── Balancing ────────────────────────────────────────────────────────────────────────────────────────────────────

    def plan_balance(self) -> None:
        """At the end of an event: note since when runners are idle while tasks may wait behind others."""
        pool = self._pool
        if pool.crowded and pool.idle and not self._graph.ready:
            if self.balance_at is None:
                self.balance_at = pool.now + self._balance_s
        elif self.balance_at is not None:
            self.balance_at, self._balance_s = None, BALANCE_S

    def balance(self) -> None:
        """Recall waiting tasks for idle runners, when that is due."""
        if self.balance_at is None or self._pool.now < self.balance_at:
            return
        pool = self._pool
        donors = sorted(islice(pool.crowded.values(), CANDIDATES), key=lambda runner: -runner.outstanding)
        found = any(self._recall_from(donor, len(pool.idle)) for donor in donors)
        # Nothing to recall now: tasks there wait for their inputs. Look less and less often until something changes.
        self._balance_s = BALANCE_S if found else min(2 * self._balance_s, BALANCE_S_MAX)
        self.balance_at = pool.now + self._balance_s

    def _recall_from(self, donor: RunnerEntry, idle: int) -> bool:
        placed = donor.outstanding - len(donor.leases)
        # One of them runs, unless a client with a lease has something running here.
        count = recall_count(placed if donor.leases else placed - 1, idle)
        found: list[TaskEntry] = []
        for entry in islice(reversed(donor.tasks.values()), RECALL_SCAN):
            if len(found) == count:
                break
            if (
                entry.state is PLACED
                and entry.task != donor.running
                and not entry.cancelled
                and all(needed.state is FINISHED for needed in entry.inputs)
            ):
                found.append(entry)
        for entry in reversed(found):
            # The node answers when the runner is busy. A runner that is not (any more) leaves it out by this message:
            # it looks for recalls only when it is about to start something.
            self._pool.recall(entry)
            self._pool.cancel(entry)
        if found:
            # Its mean is of tasks before the one that it is in, which is not short. Outcomes widen the window again.
            donor.mean_s = max(donor.mean_s, WINDOW_S)
            self._pool.fit_window(donor)
        return bool(found)

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        graph, pool = self._graph, self._pool
        assert not graph.ready or not (pool.idle or pool.roomy), "tasks are ready and runners have room"
        assert (self.balance_at is not None) == bool(pool.crowded and pool.idle and not graph.ready)
