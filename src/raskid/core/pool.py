"""The manager's table of runners: how busy each is, what it has been told, and what is to be sent to it.

Runners with room stand in indexes, so that choosing one touches few of them. What handlers want to send collects at
the runner's entry and goes out at the end of the event, one message per kind and runner. Which task goes where is
decided elsewhere (`raskid.core.dispatch`); states of tasks are changed elsewhere (`raskid.core.graph`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raskid.core.effects import Effect, Introduce, Send
from raskid.core.placement import WINDOW_START, window_for
from raskid.core.tasks import PLACED, RunnerEntry, TaskEntry
from raskid.model.ids import CodeId, PeerId, TaskId
from raskid.protocol.messages import (
    CancelTasks,
    Code,
    DropValues,
    PeerRef,
    Placement,
    RecallTasks,
    RunnerStarted,
    RunTasks,
    ValuesAt,
)

RELEASE_DELAY_S = 0.050

#: One message of placements carries about so much of arguments and inlined values.
RUN_BYTES = 16 << 20


class Pool:
    """The runners, and the peers and functions that they are told of."""

    def __init__(self) -> None:
        self.runners: dict[PeerId, RunnerEntry] = {}
        #: Runners of each node: the living ones, and ended ones of which the node keeps values.
        self.nodes: dict[PeerId, dict[RunnerEntry, None]] = {}
        self.peers: dict[PeerId, PeerRef] = {}
        self.codes: dict[CodeId, Code] = {}
        self._code_owners: dict[CodeId, set[PeerId]] = {}
        #: Runners with nothing outstanding, and those with at most half a window; a runner is in one or neither.
        self.idle: dict[PeerId, RunnerEntry] = {}
        self.roomy: dict[PeerId, RunnerEntry] = {}
        #: Runners where tasks may be waiting behind another one.
        self.crowded: dict[PeerId, RunnerEntry] = {}
        #: Runners with something to send at the end of the event.
        self.touched: dict[RunnerEntry, None] = {}
        #: Runners with collected releases; their number of ids; when these must go.
        self._releasing: dict[RunnerEntry, None] = {}
        self.releases = 0
        self.release_at: float | None = None
        #: The event under way: its time, and what it has led to so far.
        self.now = 0.0
        self.effects: list[Effect] = []

    # ── Runners ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, node: PeerId, message: RunnerStarted) -> None:
        """A runner is ready."""
        ref = message.runner
        self.forget_told(ref.peer)
        runner = RunnerEntry(ref, node, message.host, message.pid, WINDOW_START)
        self.runners[ref.peer] = runner
        self.nodes.setdefault(node, {})[runner] = None
        known = self.peers.get(ref.peer)
        if known is not None and known.incarnation > ref.incarnation:
            # The report is late: that one has ended, as the next report will say, and nothing sent would reach it.
            runner.gone = True
        # What is sent from here on is meant for this incarnation, and may be sent before it connected to us.
        self.effects.append(Introduce(ref))
        self.reindex(runner)

    def remove(self, runner: RunnerEntry) -> None:
        """Its process has ended; its entry stays while its node keeps values."""
        runner.alive = False
        runner.keeper = runner.node
        del self.runners[runner.peer]
        if runner.index is not None:
            del runner.index[runner.peer]
            runner.index = None
        if runner.crowded:
            runner.crowded = False
            del self.crowded[runner.peer]
        self.touched.pop(runner, None)

    def drop_if_empty(self, runner: RunnerEntry) -> None:
        """Forget an ended runner of which nothing is kept."""
        if not runner.alive and not runner.tasks:
            runners = self.nodes.get(runner.node)
            if runners is not None:
                runners.pop(runner, None)
                if not runners:
                    del self.nodes[runner.node]

    def reindex(self, runner: RunnerEntry) -> None:
        """Put a runner into the indexes where it belongs; call after every change of what is outstanding there."""
        if not runner.alive:
            return
        outstanding = runner.outstanding
        leases = len(runner.leases)
        placed = outstanding - leases
        index: dict[PeerId, RunnerEntry] | None
        crowded = placed > 1 or (leases > 0 and placed > 0)
        if runner.gone:
            index = None
            crowded = False
        elif not outstanding:
            index = self.idle
        elif placed <= (runner.window - leases) >> 1:
            index = self.roomy
        else:
            index = None
        old = runner.index
        if old is not index:
            if old is not None:
                del old[runner.peer]
            if index is not None:
                index[runner.peer] = runner
            runner.index = index
        if crowded is not runner.crowded:
            runner.crowded = crowded
            if crowded:
                self.crowded[runner.peer] = runner
            else:
                del self.crowded[runner.peer]

    def fit_window(self, runner: RunnerEntry) -> None:
        """After outcomes: its tasks' durations say how many it should have in hand."""
        if runner.alive:
            runner.window = window_for(runner.mean_s) + len(runner.leases)
            self.reindex(runner)

    def lend(self, runner: RunnerEntry, client: PeerId) -> None:
        """A client may dispatch there by itself."""
        runner.leases[client] = None
        runner.outstanding += 1
        runner.window += 1
        self.reindex(runner)

    def take_back(self, runner: RunnerEntry, client: PeerId) -> None:
        """And no longer; no error if it could not."""
        if client in runner.leases:
            del runner.leases[client]
            runner.outstanding -= 1
            runner.window -= 1
            self.reindex(runner)

    # ── What runners are told ────────────────────────────────────────────────────────────────────────────────────────

    def add_codes(self, client: PeerId, codes: list[Code]) -> None:
        """Functions that a client's tasks name."""
        for code in codes:
            self.codes.setdefault(code.code, code)
            self._code_owners.setdefault(code.code, set()).add(client)

    def drop_codes(self, client: PeerId, needed: set[CodeId]) -> None:
        """Forget the functions of a client that is gone, here and on runners, but for those `needed` or others'."""
        dropped: list[CodeId] = []
        for code, owners in self._code_owners.items():
            owners.discard(client)
            if not owners and code not in needed:
                dropped.append(code)
        for code in dropped:
            del self._code_owners[code], self.codes[code]
        for runner in self.runners.values():
            known = [code for code in dropped if code in runner.codes]
            if known:
                runner.codes.difference_update(known)
                runner.dropped_codes += known
                self.touched[runner] = None

    def tell_peer(self, runner: RunnerEntry, peer: PeerId) -> None:
        """Send along how to reach a peer."""
        other = self.runners.get(peer)
        ref = other.ref if other is not None else self.peers.get(peer)
        if ref is not None:
            runner.told.add(peer)
            runner.new_peers.append(ref)

    def tell_code(self, runner: RunnerEntry, code: CodeId) -> None:
        """Send along a function."""
        found = self.codes.get(code)
        if found is not None:
            runner.codes.add(code)
            runner.new_codes.append(found)

    def forget_told(self, peer: PeerId) -> None:
        """A peer has another address now, or is gone."""
        for runner in self.runners.values():
            runner.told.discard(peer)

    # ── Sending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, peer: PeerId, message: Any) -> None:
        """Send to a peer; nobody (an empty name) hears nothing."""
        if peer:
            self.effects.append(Send(peer, message))

    def cancel(self, entry: TaskEntry) -> None:
        """Tell a task's runner not to start it; a busy one hears of it later."""
        runner = entry.runner
        assert runner is not None
        if runner.alive:
            runner.cancels.append(entry.task)
            self.touched[runner] = None

    def recall(self, entry: TaskEntry) -> None:
        """Have a PLACED task taken back by its runner's node, which answers also when the runner is busy."""
        runner = entry.runner
        assert runner is not None
        runner.recalls.append((entry.task, entry.attempt))
        self.touched[runner] = None

    def tell_keepers(self, entries: list[TaskEntry]) -> None:
        """Tell clients where values and errors are."""
        found: dict[tuple[PeerId, PeerId], list[TaskId]] = {}
        for entry in entries:
            assert entry.runner is not None
            found.setdefault((entry.client, entry.runner.keeper), []).append(entry.task)
        for (client, keeper), tasks in found.items():
            runner = self.runners.get(keeper)
            ref = runner.ref if runner is not None else self.peers.get(keeper, PeerRef(keeper, 0))
            self.send(client, ValuesAt(ref, tasks))

    def collect_release(self, entry: TaskEntry) -> None:
        """Nobody wants a task's value: its keeper hears of that with the next batch."""
        runner = entry.runner
        assert runner is not None
        del runner.tasks[entry.task]
        entry.runner = None
        if not runner.releases:
            self._releasing[runner] = None
        runner.releases.append(entry.task)
        self.releases += 1
        if self.release_at is None:
            self.release_at = self.now + RELEASE_DELAY_S
        if not runner.alive:
            self.drop_if_empty(runner)

    def drop_releases(self, node: PeerId) -> None:
        """A node is gone, and with it whatever was to be released there."""
        for runner in [runner for runner in self._releasing if runner.node == node]:
            del self._releasing[runner]
            self.releases -= len(runner.releases)
            runner.releases = []
        if not self.releases:
            self.release_at = None

    def flush_runners(self) -> None:
        """Send what collected in this event."""
        effects = self.effects
        for runner in self.touched:
            if runner.recalls:
                # To the node, which is there also when our link to the runner is over.
                effects.append(Send(runner.node, RecallTasks(runner.peer, runner.ref.incarnation, runner.recalls)))
                runner.recalls = []
            if runner.gone:
                # What was placed there is placed again when its node reports its end.
                runner.cancels, runner.placements, runner.new_codes, runner.new_peers = [], [], [], []
                runner.dropped_codes = []
                continue
            if runner.cancels:
                effects.append(Send(runner.peer, CancelTasks(runner.cancels)))
                runner.cancels = []
            if runner.dropped_codes:
                # After tasks that named such a function, and before those that bring it again.
                effects.append(Send(runner.peer, DropValues([], runner.dropped_codes)))
                runner.dropped_codes = []
            if runner.placements:
                codes, peers = runner.new_codes, runner.new_peers
                for part in _parts(runner.placements):
                    effects.append(Send(runner.peer, RunTasks(part, codes, peers)))
                    codes, peers = [], []
                runner.placements = []
                runner.new_codes = []
                runner.new_peers = []
        self.touched.clear()

    def flush_releases(self) -> None:
        """Send the releases that collected."""
        if not self.releases:
            return
        nodes: dict[PeerId, list[TaskId]] = {}
        for runner in self._releasing:
            tasks = runner.releases
            if not tasks:
                continue
            nodes.setdefault(runner.node, []).extend(tasks)
            if runner.alive and not runner.gone:
                self.effects.append(Send(runner.peer, DropValues(tasks)))
            runner.releases = []
        for node, tasks in nodes.items():
            self.effects.append(Send(node, DropValues(tasks)))
        self._releasing.clear()
        self.releases = 0
        self.release_at = None

    # ── Checking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        assert not self.touched, "something was not sent"
        runners = [runner for node in self.nodes.values() for runner in node]
        for runner in runners:
            self._check_runner(runner)
        assert set(self.runners.values()) == {runner for runner in runners if runner.alive}
        assert self.releases == sum(len(runner.releases) for runner in self._releasing)
        assert (self.release_at is None) == (self.releases == 0)
        assert set(self._code_owners) == set(self.codes)

    def _check_runner(self, runner: RunnerEntry) -> None:
        placed = sum(entry.state is PLACED for entry in runner.tasks.values())
        counted = runner.outstanding - len(runner.leases)
        assert counted == placed, f"{runner.peer}: {counted} counted, {placed} placed"
        assert all(entry.runner is runner for entry in runner.tasks.values()), runner.peer
        assert runner.alive or (runner.tasks and not placed and not runner.leases), runner.peer
        assert not runner.alive or self.runners.get(runner.peer) is runner
        for index in (self.idle, self.roomy):
            assert (index.get(runner.peer) is runner) == (runner.index is index), runner.peer
        assert (self.crowded.get(runner.peer) is runner) == runner.crowded, runner.peer


def _parts(placements: list[Placement]) -> Iterator[list[Placement]]:
    """Placements in messages of moderate size: what is legal one by one must not be too long together."""
    part: list[Placement] = []
    weight = 0
    for placement in placements:
        spec = placement.spec
        added = len(spec.arguments)
        for _, value in spec.inline:
            added += len(value)
        if part and weight + added > RUN_BYTES:
            yield part
            part, weight = [], 0
        part.append(placement)
        weight += added
    yield part
