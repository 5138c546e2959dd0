"""The manager: takes tasks from clients, places them on runners, and places them again when runners are lost.

It carries neither values nor errors of users' functions: runners send these to clients and to one another. It knows
where each value is, and keeps the specs that wanted values descend from, so that a lost value can be made again.

How it fits together: this module meets the messages of clients, nodes and runners. `raskid.core.graph` knows the tasks
and what becomes of those that need one another, `raskid.core.pool` the runners and what is to be sent to them;
`raskid.core.losses` takes tasks off runners that ended or gave them back, and `raskid.core.dispatch` puts them onto
runners at the end of each event.

A task that raised is tried again while it has raised no more often than `TaskSpec.retries`; a runner, which knows both,
tells nobody of such an error. A keeper of a `Placement` is empty while that input is to be placed again: the same
placement, of the same attempt, follows with the new keeper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from raskid.core import mypyc_attr
from raskid.core.dispatch import NOBODY, Dispatcher
from raskid.core.effects import Effect
from raskid.core.events import Event, PeerGone, PeerJoined, Received, Tick
from raskid.core.graph import Graph
from raskid.core.losses import Losses
from raskid.core.placement import MEAN_WEIGHT
from raskid.core.pool import Pool
from raskid.core.tasks import FAILED, FINISHED, PLACED, READY, UNFINISHED, RunnerEntry, TaskEntry, TaskState
from raskid.model.ids import PeerId, TaskId
from raskid.protocol.messages import (
    AskStatus,
    CancelTasks,
    DropValues,
    LeaseEnded,
    LeaseGranted,
    Message,
    PeerRef,
    ReleaseTasks,
    RequestLease,
    RequestRefused,
    RunnerEnded,
    RunnerStarted,
    Status,
    SubmitTasks,
    TaskOutcome,
    TasksCancelled,
    TasksFinished,
    TasksRecalled,
)

RELEASES_MAX = 256
#: One: a second task must not wait behind the first of the same client, which nobody but that client knows of.
LEASE_SLOTS = 1
#: Releases remembered that came before the outcome; the oldest are forgotten beyond it.
EARLY_MAX = 1 << 20


@mypyc_attr(allow_interpreted_subclasses=True)
class Manager:
    """The core machine of the manager. A class derived from it can take its place (`raskid.connect(manager=)`)."""

    handles: frozenset[type[Message]] = frozenset(
        {
            SubmitTasks,
            TasksFinished,
            ReleaseTasks,
            CancelTasks,
            TasksRecalled,
            RunnerStarted,
            RunnerEnded,
            RequestLease,
            LeaseEnded,
            AskStatus,
        }
    )

    def __init__(self, own: PeerId) -> None:
        self.own = own
        self._pool = Pool()
        self._graph = Graph(self._pool)
        self._dispatcher = Dispatcher(self._graph, self._pool)
        self._losses = Losses(self._graph, self._pool)
        self._tasks = self._graph.tasks
        #: Clients that have had a lease, and their releases that came before the outcome.
        self._direct: set[PeerId] = set()
        self._early: dict[TaskId, PeerId] = {}
        self._handlers: dict[type[Any], Callable[[PeerId, Any], None]] = {
            SubmitTasks: self._on_submit,
            TasksFinished: self._on_finished,
            ReleaseTasks: self._on_release,
            CancelTasks: self._on_cancel,
            TasksRecalled: self._losses.on_recalled,
            RunnerStarted: self._on_runner_started,
            RunnerEnded: self._on_runner_ended,
            RequestLease: self._on_request_lease,
            LeaseEnded: self._on_lease_ended,
            AskStatus: self._on_ask_status,
        }

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; return the messages to send, in order."""
        pool, graph, dispatcher = self._pool, self._graph, self._dispatcher
        pool.now = now
        effects: list[Effect] = []
        pool.effects = effects
        if isinstance(event, Received):
            self._handlers[type(event.message)](event.peer, event.message)
        elif isinstance(event, PeerJoined):
            self._on_peer_joined(event)
        elif isinstance(event, PeerGone):
            self._on_peer_gone(event)
        elif isinstance(event, Tick):
            if pool.release_at is not None and now >= pool.release_at:
                pool.flush_releases()
            dispatcher.balance()
        if graph.ready or graph.placing or graph.front:
            dispatcher.dispatch()
        if graph.resend:
            dispatcher.place_again()
        if pool.touched:
            pool.flush_runners()
        if pool.releases >= RELEASES_MAX:
            pool.flush_releases()
        dispatcher.plan_balance()
        return effects

    @property
    def watching(self) -> bool:
        """Whether a runner may finish something: tasks are placed, or a client dispatches by itself."""
        return any(runner.outstanding for runner in self._pool.runners.values())

    def next_deadline(self) -> float | None:
        """When collected releases must go, or waiting tasks be recalled for an idle runner."""
        release_at, balance_at = self._pool.release_at, self._dispatcher.balance_at
        if release_at is None or balance_at is None:
            return balance_at if release_at is None else release_at
        return min(release_at, balance_at)

    # ── Clients ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_submit(self, client: PeerId, message: SubmitTasks) -> None:
        graph = self._graph
        if message.codes:
            self._pool.add_codes(client, message.codes)
        tasks = self._tasks
        queue = graph.queue
        attempt = message.attempt
        known: list[TaskEntry] = []
        ready = 0
        for spec in message.tasks:
            task = spec.task
            if task in tasks:
                entry = tasks[task]
                if entry.spec is not None or entry.runner is not None or entry.children:
                    known.append(entry)
                    continue
                # A direct task whose value was lost with its node: now there is a spec to make it again.
            if spec.inputs:
                graph.add_with_inputs(spec, client, attempt)
            else:
                tasks[task] = entry = TaskEntry(task, spec, client, attempt, READY)
                queue.append(entry)
                ready += 1
        graph.ready += ready
        if known:
            self._pool.tell_keepers(
                [entry for entry in known if entry.runner is not None and entry.state in (FINISHED, FAILED)]
            )

    def _on_release(self, client: PeerId, message: ReleaseTasks) -> None:
        tasks = self._tasks
        for task in message.tasks:
            entry = tasks.get(task)
            if entry is None:
                if client in self._direct:
                    self._remember_early(task, client)
            elif entry.client == client:
                entry.released = True
                if entry.inputs or entry.children or entry.state is not FINISHED:
                    self._graph.reap(entry)
                else:
                    # The usual case of `reap`, without its stack.
                    self._pool.collect_release(entry)
                    del tasks[task]

    def _remember_early(self, task: TaskId, client: PeerId) -> None:
        # A direct task's value reaches its client before the outcome reaches the manager, and so may the release.
        self._early[task] = client
        if len(self._early) > EARLY_MAX:
            del self._early[next(iter(self._early))]

    def _on_cancel(self, client: PeerId, message: CancelTasks) -> None:
        cancelled: list[TaskEntry] = []
        started: list[TaskId] = []
        # A task may be named twice, but has one end.
        for task in dict.fromkeys(message.tasks):
            entry = self._tasks.get(task)
            if entry is None or entry.client != client or entry.state not in UNFINISHED:
                started.append(task)
            elif entry.state is PLACED:
                entry.cancelled = True
                # The runner leaves it out as soon as it looks; its node can say before that whether it has started.
                self._pool.cancel(entry)
                self._pool.recall(entry)
            else:
                cancelled.append(entry)
        self._graph.cancel(cancelled)
        if started:
            self._pool.send(client, TasksCancelled([], started))

    def _forget_client(self, client: PeerId) -> None:
        pool, graph = self._pool, self._graph
        for runner in pool.runners.values():
            pool.take_back(runner, client)
        self._direct.discard(client)
        self._early = {task: peer for task, peer in self._early.items() if peer != client}
        entries = [entry for entry in self._tasks.values() if entry.client == client]
        for entry in entries:
            entry.client = NOBODY
            entry.released = True
        # Dependants come after their inputs in the table, and have to go before them.
        for entry in reversed(entries):
            if entry.state in UNFINISHED and not entry.unfinished:
                graph.abandon(entry)
            graph.reap(entry)
        # Tasks of lost clients that others still need may have to run again; their code goes when the next client does.
        needed = {entry.spec.code for entry in self._tasks.values() if not entry.client and entry.spec is not None}
        pool.drop_codes(client, needed)

    # ── Outcomes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_finished(self, node: PeerId, message: TasksFinished) -> None:
        graph, pool = self._graph, self._pool
        tasks = self._tasks
        runner: RunnerEntry | None = None
        for outcome in message.outcomes:
            entry = tasks.get(outcome.task)
            if entry is None:
                self._on_unknown_outcome(outcome)
                continue
            if entry.state is not PLACED or entry.attempt != outcome.attempt:
                self._on_stale_outcome(entry, outcome)
                continue
            if entry.runner is not runner:
                if runner is not None:
                    pool.fit_window(runner)
                runner = entry.runner
            assert runner is not None
            seconds = outcome.seconds
            mean = runner.mean_s
            runner.mean_s = seconds if mean < 0.0 else mean + MEAN_WEIGHT * (seconds - mean)
            if not outcome.ok:
                self._on_raised(entry)
                continue
            runner.outstanding -= 1
            runner.finished += 1
            entry.state = FINISHED
            if entry.inputs:
                graph.give_back_inputs(entry)
            if entry.released:
                graph.reap(entry)
        if runner is not None:
            pool.fit_window(runner)

    def _on_stale_outcome(self, entry: TaskEntry, outcome: TaskOutcome) -> None:
        """A placement that is not valid any more has run after all: have its value forgotten where nobody will ask."""
        runner = self._pool.runners.get(outcome.runner)
        if runner is None or entry.runner is runner:
            return
        drop = DropValues([outcome.task])
        if not runner.gone:
            self._pool.send(runner.peer, drop)
        if entry.runner is None or entry.runner.node != runner.node:
            self._pool.send(runner.node, drop)

    def _on_raised(self, entry: TaskEntry) -> None:
        graph = self._graph
        spec = entry.spec
        raised = 0 if entry.trouble is None else entry.trouble.raised
        if spec is not None and raised < spec.retries:
            entry.troubled().raised = raised + 1
            graph.unplace(entry)
            graph.start_again([entry], "it raised")
            return
        graph.leave(entry, FAILED)
        # Dependants on runners learn of it from the keeper of the error.
        graph.fail_children(entry, f"its input, {graph.describe(entry)}, failed", placed=False)
        graph.reap(entry)

    def _on_unknown_outcome(self, outcome: TaskOutcome) -> None:
        """Record the value of a task that a client sent straight to a runner; have others forgotten."""
        runner = self._pool.runners.get(outcome.runner)
        if runner is None:
            return
        task = outcome.task
        entry = TaskEntry(task, None, outcome.client, outcome.attempt, FINISHED if outcome.ok else FAILED)
        entry.runner = runner
        runner.finished += outcome.ok
        runner.tasks[task] = entry
        self._tasks[task] = entry
        # A task that was placed from here, and is not known any more, was given up; so was every task of a client that
        # is gone. Its runner and node may forget it as well.
        given_up = not outcome.direct or outcome.client not in self._direct
        if self._early.pop(task, None) is not None or given_up:
            entry.released = True
            self._graph.reap(entry)

    # ── Nodes and runners ────────────────────────────────────────────────────────────────────────────────────────────

    def _on_runner_started(self, node: PeerId, message: RunnerStarted) -> None:
        old = self._pool.runners.get(message.runner.peer)
        if old is not None:
            if old.ref.incarnation >= message.runner.incarnation:
                return
            self._losses.end_runners([old], "a newer incarnation of it started")
        self._pool.add(node, message)

    def _on_runner_ended(self, node: PeerId, message: RunnerEnded) -> None:
        runner = self._pool.runners.get(message.runner)
        if runner is not None and runner.ref.incarnation == message.incarnation:
            self._losses.end_runners([runner], message.reason, message.running)

    # ── Peers ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_peer_joined(self, event: PeerJoined) -> None:
        peers = self._pool.peers
        known = peers.get(event.peer)
        if known is not None and known.incarnation < event.incarnation:
            self._on_peer_gone(PeerGone(event.peer, known.incarnation, "a newer incarnation of it came"))
        self._pool.forget_told(event.peer)
        peers[event.peer] = PeerRef(event.peer, event.incarnation, event.addresses)

    def _on_peer_gone(self, event: PeerGone) -> None:
        pool = self._pool
        peer = event.peer
        known = pool.peers.get(peer)
        if known is not None:
            if known.incarnation != event.incarnation:
                return
            del pool.peers[peer]
        # A runner that is gone as a peer is not ended yet: its node reports its last outcomes first. But nothing may
        # be sent any more, for it would reach the next incarnation.
        runner = pool.runners.get(peer)
        if runner is not None and runner.ref.incarnation == event.incarnation:
            runner.gone = True
            pool.reindex(runner)
        runners = pool.nodes.pop(peer, None)
        pool.drop_releases(peer)
        if runners:
            self._losses.end_runners(list(runners), f"node {peer} is gone: {event.reason}", node_gone=True)
        if peer not in pool.runners:
            self._forget_client(peer)

    # ── Leases and status ────────────────────────────────────────────────────────────────────────────────────────────

    def _on_request_lease(self, client: PeerId, message: RequestLease) -> None:
        pool = self._pool
        free = [runner for runner in pool.runners.values() if client not in runner.leases and not runner.gone]
        if not free:
            count = len(pool.runners)
            text = f"{client} has a lease on each of {count} runners" if count else "there is no runner to lease"
            pool.send(client, RequestRefused(message.request, "Full", text))
            return
        runner = min(free, key=lambda runner: runner.outstanding)
        pool.lend(runner, client)
        self._direct.add(client)
        pool.send(client, LeaseGranted(message.request, runner.ref, LEASE_SLOTS))

    def _on_lease_ended(self, client: PeerId, message: LeaseEnded) -> None:
        runner = self._pool.runners.get(message.runner)
        if runner is not None:
            self._pool.take_back(runner, client)

    def _on_ask_status(self, peer: PeerId, message: AskStatus) -> None:
        counts = Counter(entry.state for entry in self._tasks.values())
        runners = [
            {
                "runner": runner.peer,
                "host": runner.host,
                "pid": runner.pid,
                "outstanding": runner.outstanding - len(runner.leases),
                "leases": len(runner.leases),
                "finished": runner.finished,
                "window": runner.window - len(runner.leases),
            }
            for runner in self._pool.runners.values()
        ]
        facts = {
            "runners": runners,
            "tasks": {state.name.lower(): counts[state] for state in TaskState if counts[state]},
            "queued": self._graph.ready,
        }
        self._pool.send(peer, Status(message.request, facts))

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        self._graph.check_invariants()
        self._pool.check_invariants()
        self._dispatcher.check_invariants()
