"""The manager: takes tasks from clients, places them on runners, and places them again when runners are lost.

It carries neither values nor errors of users' functions: runners send these to clients and to one another. It knows
where each value is, and keeps the specs that wanted values descend from, so that a lost value can be made again.

How it fits together: handlers change states and put tasks that may be placed into the queue (tasks without inputs,
dispatched as windows have room) or into `_placing` (tasks with inputs, placed at once). The end of each event places
what it can and sends one `RunTasks` per runner. Chains of tasks can be as long as memory allows, so that nothing here
recurses along them.

A task that raised is tried again while its attempt is not above `TaskSpec.retries`; a runner, which knows both, tells
nobody of such an error. A keeper of a `Placement` is empty while that input is to be placed again: the same placement,
of the same attempt, follows with the new keeper.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Any

from raskid.core.machine import Effect, Event, PeerGone, PeerJoined, Received, Send, Tick
from raskid.core.messaging import Introduce
from raskid.core.placement import MEAN_WEIGHT, WINDOW_START, choose_near, share_out, window_for
from raskid.core.tasks import (
    CANCELLED,
    FAILED,
    FINISHED,
    PLACED,
    READY,
    RELEASED,
    UNFINISHED,
    WAITING,
    RunnerEntry,
    TaskEntry,
    TaskState,
    move,
)
from raskid.model.ids import CodeId, PeerId, TaskId
from raskid.protocol.messages import (
    AskStatus,
    CancelTasks,
    Code,
    DropValues,
    LeaseEnded,
    LeaseGranted,
    Message,
    PeerRef,
    Placement,
    ReleaseTasks,
    RequestLease,
    RequestRefused,
    RunnerEnded,
    RunnerStarted,
    RunTasks,
    Status,
    SubmitTasks,
    TaskFailed,
    TaskOutcome,
    TasksCancelled,
    TasksFinished,
    TaskSpec,
    ValuesAt,
)

ATTEMPTS_MAX = 10
RELEASES_MAX = 256
RELEASE_DELAY_S = 0.050
LEASE_SLOTS = 2
#: Runners looked at for a dispatch of few tasks; idle ones come first, so that the choice is the best one or nearly.
CANDIDATES = 64
#: Releases remembered that came before the outcome; the oldest are forgotten beyond it.
EARLY_MAX = 1 << 20

NOBODY = PeerId("")


class Manager:
    """The core machine of the manager."""

    handles: frozenset[type[Message]] = frozenset(
        {
            SubmitTasks,
            TasksFinished,
            ReleaseTasks,
            CancelTasks,
            TasksCancelled,
            RunnerStarted,
            RunnerEnded,
            RequestLease,
            LeaseEnded,
            AskStatus,
        }
    )

    def __init__(self, own: PeerId) -> None:
        self.own = own
        self._tasks: dict[TaskId, TaskEntry] = {}
        self._runners: dict[PeerId, RunnerEntry] = {}
        #: Runners of each node: the living ones, and ended ones of which the node keeps values.
        self._nodes: dict[PeerId, dict[RunnerEntry, None]] = {}
        self._peers: dict[PeerId, PeerRef] = {}
        self._codes: dict[CodeId, Code] = {}
        self._code_owners: dict[CodeId, set[PeerId]] = {}
        #: Holds every READY task that is not in `_placing` or `_front`; entries in other states are skipped.
        self._queue: deque[TaskEntry] = deque()
        #: READY tasks with inputs, to be placed at the end of the event.
        self._placing: deque[TaskEntry] = deque()
        #: READY tasks that go before the queue at the end of the event.
        self._front: list[TaskEntry] = []
        #: How many tasks are READY.
        self._ready = 0
        #: Runners with nothing outstanding, and those with at most half a window; a runner is in one or neither.
        self._idle: dict[PeerId, RunnerEntry] = {}
        self._roomy: dict[PeerId, RunnerEntry] = {}
        #: Runners with something to send at the end of the event.
        self._touched: dict[RunnerEntry, None] = {}
        #: Tasks that are PLACED and whose inputs' keepers changed in this event.
        self._resend: dict[TaskId, TaskEntry] = {}
        #: Runners with collected releases; their number of ids; when these must go.
        self._releasing: dict[RunnerEntry, None] = {}
        self._releases = 0
        self._release_at: float | None = None
        #: Clients that have had a lease, and their releases that came before the outcome.
        self._direct: set[PeerId] = set()
        self._early: dict[TaskId, PeerId] = {}
        self._now = 0.0
        self._effects: list[Effect] = []
        self._handlers: dict[type[Any], Callable[[PeerId, Any], None]] = {
            SubmitTasks: self._on_submit,
            TasksFinished: self._on_finished,
            ReleaseTasks: self._on_release,
            CancelTasks: self._on_cancel,
            TasksCancelled: self._on_cancelled,
            RunnerStarted: self._on_runner_started,
            RunnerEnded: self._on_runner_ended,
            RequestLease: self._on_request_lease,
            LeaseEnded: self._on_lease_ended,
            AskStatus: self._on_ask_status,
        }

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; return the messages to send, in order."""
        self._now = now
        effects: list[Effect] = []
        self._effects = effects
        if isinstance(event, Received):
            self._handlers[type(event.message)](event.peer, event.message)
        elif isinstance(event, PeerJoined):
            self._on_peer_joined(event)
        elif isinstance(event, PeerGone):
            self._on_peer_gone(event)
        elif isinstance(event, Tick) and self._release_at is not None and now >= self._release_at:
            self._flush_releases()
        if self._ready or self._placing or self._front:
            self._dispatch()
        if self._resend:
            self._place_again()
        if self._touched:
            self._flush_runners()
        if self._releases >= RELEASES_MAX:
            self._flush_releases()
        return effects

    @property
    def watching(self) -> bool:
        """Whether a runner may finish something: tasks are placed, or a client dispatches by itself."""
        return any(runner.outstanding or runner.leases for runner in self._runners.values())

    def next_deadline(self) -> float | None:
        """When collected releases must go."""
        return self._release_at

    # ── Clients ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_submit(self, client: PeerId, message: SubmitTasks) -> None:
        for code in message.codes:
            self._codes.setdefault(code.code, code)
            self._code_owners.setdefault(code.code, set()).add(client)
        tasks = self._tasks
        queue = self._queue
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
                self._submit_with_inputs(spec, client, attempt)
            else:
                tasks[task] = entry = TaskEntry(task, spec, client, attempt, READY)
                queue.append(entry)
                ready += 1
        self._ready += ready
        if known:
            self._tell_keepers(
                [entry for entry in known if entry.runner is not None and entry.state in (FINISHED, FAILED)]
            )

    def _submit_with_inputs(self, spec: TaskSpec, client: PeerId, attempt: int) -> None:
        # Looked up before the task itself is put into the table, so that a task cannot be its own input.
        inputs = {task: self._tasks.get(task) for task in spec.inputs}
        entry = TaskEntry(spec.task, spec, client, attempt, WAITING)
        self._tasks[spec.task] = entry
        unknown = [task for task, found in inputs.items() if found is None]
        if unknown:
            self._fail(
                entry, "InputFailed", f"task {spec.task} needs the value of task {unknown[0]}, which is not known"
            )
            return
        entry.inputs = tuple(found for found in inputs.values() if found is not None)
        for found in entry.inputs:
            found.unfinished += 1
            if found.children is None:
                found.children = {}
            found.children[spec.task] = entry
        self._await_inputs(entry)

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
                    self._reap(entry)
                else:
                    # The usual case of `_reap`, without its stack.
                    self._collect_release(entry)
                    del tasks[task]

    def _remember_early(self, task: TaskId, client: PeerId) -> None:
        # A direct task's value reaches its client before the outcome reaches the manager, and so may the release.
        self._early[task] = client
        if len(self._early) > EARLY_MAX:
            del self._early[next(iter(self._early))]

    def _on_cancel(self, client: PeerId, message: CancelTasks) -> None:
        cancelled: list[TaskEntry] = []
        for task in message.tasks:
            entry = self._tasks.get(task)
            if entry is None or entry.client != client or entry.state not in UNFINISHED:
                continue
            if entry.state is PLACED:
                entry.cancelled = True
                self._send_cancel(entry)
            else:
                cancelled.append(entry)
        self._cancel(cancelled)

    def _cancel(self, entries: list[TaskEntry]) -> None:
        """Cancel tasks that are on no runner (any more), tell their clients, and fail what needs them."""
        told: dict[PeerId, list[TaskId]] = {}
        # All become CANCELLED before dependants fail: one of them may be another's input.
        for entry in entries:
            self._leave(entry, CANCELLED)
            told.setdefault(entry.client, []).append(entry.task)
        for client, tasks in told.items():
            self._send(client, TasksCancelled(tasks))
        for entry in entries:
            self._fail_children(entry, f"its input, task {entry.task}, was cancelled", placed=True)
            self._reap(entry)

    # ── Nodes and runners ────────────────────────────────────────────────────────────────────────────────────────────

    def _on_finished(self, node: PeerId, message: TasksFinished) -> None:
        tasks = self._tasks
        runner: RunnerEntry | None = None
        for outcome in message.outcomes:
            entry = tasks.get(outcome.task)
            if entry is None:
                self._on_direct_outcome(outcome)
                continue
            if entry.state is not PLACED or entry.attempt != outcome.attempt:
                continue
            if entry.runner is not runner:
                if runner is not None:
                    self._after_outcomes(runner)
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
                self._give_back_inputs(entry)
            if entry.released:
                self._reap(entry)
        if runner is not None:
            self._after_outcomes(runner)

    def _after_outcomes(self, runner: RunnerEntry) -> None:
        if runner.alive:
            runner.window = window_for(runner.mean_s)
            self._reindex(runner)

    def _on_raised(self, entry: TaskEntry) -> None:
        spec = entry.spec
        if spec is not None and entry.attempt <= spec.retries:
            self._unplace(entry)
            self._start_again([entry], "it raised")
            return
        self._leave(entry, FAILED)
        # Dependants on runners learn of it from the keeper of the error.
        self._fail_children(entry, f"its input, task {entry.task}, failed", placed=False)
        self._reap(entry)

    def _on_direct_outcome(self, outcome: TaskOutcome) -> None:
        """Record the value of a task that a client sent straight to a runner."""
        runner = self._runners.get(outcome.runner)
        if runner is None:
            return
        task = outcome.task
        entry = TaskEntry(task, None, outcome.client, outcome.attempt, FINISHED if outcome.ok else FAILED)
        entry.runner = runner
        runner.finished += outcome.ok
        runner.tasks[task] = entry
        self._tasks[task] = entry
        # Nobody knows a task of a client without leases: it was given up, and the runner may forget it as well.
        if self._early.pop(task, None) is not None or outcome.client not in self._direct:
            entry.released = True
            self._reap(entry)

    def _on_cancelled(self, peer: PeerId, message: TasksCancelled) -> None:
        cancelled = []
        for task in message.tasks:
            entry = self._tasks.get(task)
            if entry is not None and entry.state is PLACED and entry.runner is not None and entry.runner.peer == peer:
                self._unplace(entry)
                cancelled.append(entry)
        self._cancel(cancelled)

    def _on_runner_started(self, node: PeerId, message: RunnerStarted) -> None:
        ref = message.runner
        old = self._runners.get(ref.peer)
        if old is not None:
            if old.ref.incarnation >= ref.incarnation:
                return
            self._end_runners([old], "a newer incarnation of it started")
        self._forget_told(ref.peer)
        runner = RunnerEntry(ref, node, message.host, message.pid, WINDOW_START)
        self._runners[ref.peer] = runner
        self._nodes.setdefault(node, {})[runner] = None
        # What is sent from here on is meant for this incarnation, and may be sent before it connected to us.
        self._effects.append(Introduce(ref))
        self._reindex(runner)

    def _on_runner_ended(self, node: PeerId, message: RunnerEnded) -> None:
        runner = self._runners.get(message.runner)
        if runner is not None and runner.ref.incarnation == message.incarnation:
            self._end_runners([runner], message.reason)

    def _end_runners(self, runners: list[RunnerEntry], reason: str, node_gone: bool = False) -> None:
        lost: list[TaskEntry] = []
        for runner in runners:
            if runner.alive:
                self._remove_runner(runner)
            entries = list(runner.tasks.values())
            placed = [entry for entry in entries if entry.state is PLACED]
            if node_gone:
                lost += self._lose_values(runner, entries)
            else:
                # Clients learn where the values are before they learn that the lease is over: what they then still
                # lack is what they have to submit again.
                self._tell_keepers([entry for entry in entries if entry.state is FINISHED and not entry.released])
            for entry in placed:
                self._unplace(entry)
            lost += placed
            for client in runner.leases:
                self._send(client, LeaseEnded(runner.peer, reason))
            runner.leases.clear()
            self._drop_if_empty(runner)
        if len(runners) > 1:
            lost.sort(key=lambda entry: entry.task)
        self._start_again(lost, f"its last runner was {', '.join(runner.peer for runner in runners)}: {reason}")

    def _remove_runner(self, runner: RunnerEntry) -> None:
        runner.alive = False
        runner.keeper = runner.node
        del self._runners[runner.peer]
        if runner.index is not None:
            del runner.index[runner.peer]
            runner.index = None
        self._touched.pop(runner, None)

    def _lose_values(self, runner: RunnerEntry, entries: list[TaskEntry]) -> list[TaskEntry]:
        """The node is gone, and with it the values; return the tasks whose values somebody wants."""
        wanted = []
        for entry in entries:
            if entry.state is FINISHED:
                self._unplace(entry)
                if not entry.released or entry.unfinished:
                    wanted.append(entry)
            elif entry.state is not PLACED:
                entry.runner = None
                del runner.tasks[entry.task]
        return wanted

    def _drop_releases(self, node: PeerId) -> None:
        for runner in [runner for runner in self._releasing if runner.node == node]:
            del self._releasing[runner]
            self._releases -= len(runner.releases)
            runner.releases = []
        if not self._releases:
            self._release_at = None

    def _drop_if_empty(self, runner: RunnerEntry) -> None:
        if not runner.alive and not runner.tasks:
            runners = self._nodes.get(runner.node)
            if runners is not None:
                runners.pop(runner, None)
                if not runners:
                    del self._nodes[runner.node]

    # ── Peers ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_peer_joined(self, event: PeerJoined) -> None:
        known = self._peers.get(event.peer)
        if known is not None and known.incarnation < event.incarnation:
            self._on_peer_gone(PeerGone(event.peer, known.incarnation, "a newer incarnation of it came"))
        self._forget_told(event.peer)
        self._peers[event.peer] = PeerRef(event.peer, event.incarnation, event.addresses)

    def _on_peer_gone(self, event: PeerGone) -> None:
        peer = event.peer
        known = self._peers.get(peer)
        if known is not None:
            if known.incarnation != event.incarnation:
                return
            del self._peers[peer]
        # A runner that is gone as a peer is not ended yet: its node reports its last outcomes first. But nothing may
        # be sent any more, for it would reach the next incarnation.
        runner = self._runners.get(peer)
        if runner is not None and runner.ref.incarnation == event.incarnation:
            runner.gone = True
            self._reindex(runner)
        runners = self._nodes.pop(peer, None)
        self._drop_releases(peer)
        if runners:
            self._end_runners(list(runners), f"node {peer} is gone: {event.reason}", node_gone=True)
        if peer not in self._runners:
            self._forget_client(peer)

    def _forget_client(self, client: PeerId) -> None:
        for runner in self._runners.values():
            runner.leases.pop(client, None)
        self._direct.discard(client)
        self._early = {task: peer for task, peer in self._early.items() if peer != client}
        entries = [entry for entry in self._tasks.values() if entry.client == client]
        for entry in entries:
            entry.client = NOBODY
            entry.released = True
        # Dependants come after their inputs in the table, and have to go before them.
        for entry in reversed(entries):
            if entry.state in UNFINISHED and not entry.unfinished:
                self._abandon(entry)
            self._reap(entry)
        # Tasks of lost clients that others still need may have to run again; their code goes when the next client does.
        needed = {entry.spec.code for entry in self._tasks.values() if not entry.client and entry.spec is not None}
        for code, owners in list(self._code_owners.items()):
            owners.discard(client)
            if not owners and code not in needed:
                del self._code_owners[code], self._codes[code]

    def _abandon(self, entry: TaskEntry) -> None:
        if entry.state is PLACED:
            # The runner stays noted, so that the release reaches it in case that the task runs nevertheless.
            self._send_cancel(entry)
        self._leave(entry, CANCELLED)

    def _forget_told(self, peer: PeerId) -> None:
        for runner in self._runners.values():
            runner.told.discard(peer)

    # ── Leases and status ────────────────────────────────────────────────────────────────────────────────────────────

    def _on_request_lease(self, client: PeerId, message: RequestLease) -> None:
        free = [runner for runner in self._runners.values() if client not in runner.leases and not runner.gone]
        if not free:
            count = len(self._runners)
            text = f"{client} has a lease on each of {count} runners" if count else "there is no runner to lease"
            self._send(client, RequestRefused(message.request, "Full", text))
            return
        runner = min(free, key=lambda runner: runner.outstanding + LEASE_SLOTS * len(runner.leases))
        runner.leases[client] = None
        self._direct.add(client)
        self._send(client, LeaseGranted(message.request, runner.ref, LEASE_SLOTS))

    def _on_lease_ended(self, client: PeerId, message: LeaseEnded) -> None:
        runner = self._runners.get(message.runner)
        if runner is not None:
            runner.leases.pop(client, None)

    def _on_ask_status(self, peer: PeerId, message: AskStatus) -> None:
        counts = Counter(entry.state for entry in self._tasks.values())
        runners = [
            {
                "runner": runner.peer,
                "host": runner.host,
                "pid": runner.pid,
                "outstanding": runner.outstanding,
                "finished": runner.finished,
                "window": runner.window,
            }
            for runner in self._runners.values()
        ]
        facts = {
            "runners": runners,
            "tasks": {state.name.lower(): counts[state] for state in TaskState if counts[state]},
            "queued": self._ready,
        }
        self._send(peer, Status(message.request, facts))

    # ── States of tasks ──────────────────────────────────────────────────────────────────────────────────────────────

    def _await_inputs(self, first: TaskEntry) -> None:
        """Make a WAITING task ready, or wait for its inputs, or fail it; inputs without a value are run again."""
        pending = [first]
        while pending:
            entry = pending.pop()
            missing = 0
            for found in entry.inputs:
                state = found.state
                if state is PLACED or state is FINISHED:
                    continue
                missing += 1
                if state is RELEASED:
                    pending += self._revive([found], "its value was lost")
                    state = found.state
                if state is FAILED or state is CANCELLED:
                    if entry.state is WAITING:
                        self._fail_all(entry, "InputFailed", f"its input, task {found.task}, failed")
                    break
            if entry.state is WAITING:
                entry.missing = missing
                if not missing:
                    self._make_ready(entry)

    def _make_ready(self, entry: TaskEntry) -> None:
        move(entry, READY)
        entry.missing = 0
        self._ready += 1
        # What runs again for others goes even to a runner without room: tasks that wait for it may fill all of them.
        (self._placing if entry.inputs or entry.unfinished else self._front).append(entry)

    def _unplace(self, entry: TaskEntry) -> None:
        """Take a task from the runner that computes or keeps it: WAITING if it was PLACED, RELEASED if FINISHED."""
        runner = entry.runner
        assert runner is not None
        if entry.state is PLACED:
            runner.outstanding -= 1
            self._reindex(runner)
            move(entry, WAITING)
        else:
            move(entry, RELEASED)
        del runner.tasks[entry.task]
        entry.runner = None
        if entry.children:
            for child in entry.children.values():
                if child.state is READY:
                    self._ready -= 1
                    move(child, WAITING)
                    child.missing = 1
                elif child.state is WAITING:
                    child.missing += 1

    def _start_again(self, entries: list[TaskEntry], why: str) -> None:
        """The next attempt of tasks that were taken from their runners."""
        for entry in self._revive(entries, why):
            if entry.state is WAITING:
                self._await_inputs(entry)

    def _revive(self, entries: Iterable[TaskEntry], why: str) -> list[TaskEntry]:
        """Bring WAITING and RELEASED tasks to the start of the next attempt; return those that may have one."""
        revived = []
        # A value that was given up just now may still be among the collected releases, which name no attempt: they
        # must not reach a runner after the new attempt.
        self._flush_releases()
        for entry in entries:
            if entry.state is RELEASED:
                if entry.spec is None:
                    self._fail_all(entry, "TaskLost", f"task {entry.task} was sent to a runner directly; {why}")
                    continue
                move(entry, WAITING)
                for found in entry.inputs:
                    found.unfinished += 1
            elif entry.state is not WAITING:
                continue
            if entry.cancelled:
                self._cancel([entry])
            elif entry.attempt >= ATTEMPTS_MAX:
                self._fail_all(entry, "TaskLost", f"task {entry.task} was attempted {entry.attempt} times; {why}")
            else:
                entry.attempt += 1
                # All its inputs count as missing until `_await_inputs` has looked at them.
                entry.missing = len(entry.inputs)
                revived.append(entry)
        return revived

    def _leave(self, entry: TaskEntry, state: TaskState) -> None:
        """End a task without a value: nothing descends from its inputs through it any more."""
        old = entry.state
        move(entry, state)
        if old is READY:
            self._ready -= 1
            if len(self._queue) > 2 * self._ready + 1024:
                kept = [queued for queued in self._queue if queued.state is READY]
                self._queue.clear()
                self._queue.extend(kept)
        elif old is PLACED:
            assert entry.runner is not None
            entry.runner.outstanding -= 1
            self._reindex(entry.runner)
        inputs = entry.inputs
        entry.inputs = ()
        for found in inputs:
            assert found.children is not None
            del found.children[entry.task]
            if old is not RELEASED:
                found.unfinished -= 1
            if found.released:
                self._reap(found)

    def _fail(self, entry: TaskEntry, code: str, text: str) -> None:
        if entry.state is PLACED:
            self._send_cancel(entry)
        self._leave(entry, FAILED)
        if not entry.released:
            self._send(entry.client, TaskFailed(entry.task, code, text))

    def _fail_all(self, entry: TaskEntry, code: str, text: str) -> None:
        """Fail a task and everything unfinished that needs it."""
        self._fail(entry, code, text)
        self._fail_children(entry, f"its input, task {entry.task}, failed: {text}", placed=True)
        self._reap(entry)

    def _fail_children(self, root: TaskEntry, text: str, placed: bool) -> None:
        """Fail what needs `root`. `placed`: also those on runners, because no runner will tell them."""
        failed = [root]
        while failed:
            entry = failed.pop()
            for child in list(entry.children.values()) if entry.children else ():
                if child.state in UNFINISHED and (child.state is not PLACED or placed or entry is not root):
                    self._fail(child, "InputFailed", text)
                    failed.append(child)
            if entry is not root:
                self._reap(entry)

    def _give_back_inputs(self, entry: TaskEntry) -> None:
        for found in entry.inputs:
            found.unfinished -= 1
            if found.released and not found.unfinished:
                self._reap(found)

    def _reap(self, first: TaskEntry) -> None:
        """Give up a released task's value when no unfinished task needs it, and the task when nothing descends."""
        pending = [first]
        while pending:
            entry = pending.pop()
            if not entry.released or entry.unfinished or entry.state in UNFINISHED:
                continue
            if entry.runner is not None:
                self._collect_release(entry)
            if entry.state is FINISHED:
                move(entry, RELEASED)
            if entry.children:
                continue
            if self._tasks.get(entry.task) is entry:
                del self._tasks[entry.task]
            for found in entry.inputs:
                assert found.children is not None
                del found.children[entry.task]
                pending.append(found)
            entry.inputs = ()

    def _collect_release(self, entry: TaskEntry) -> None:
        runner = entry.runner
        assert runner is not None
        del runner.tasks[entry.task]
        entry.runner = None
        if not runner.releases:
            self._releasing[runner] = None
        runner.releases.append(entry.task)
        self._releases += 1
        if self._release_at is None:
            self._release_at = self._now + RELEASE_DELAY_S
        if not runner.alive:
            self._drop_if_empty(runner)

    # ── Placing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _dispatch(self) -> None:
        queue = self._queue
        placing = self._placing
        if self._front:
            queue.extendleft(reversed(self._front))
            self._front.clear()
        if not self._runners:
            queue.extend(placing)
            placing.clear()
            return
        while True:
            # Placing a task can make those that need it ready, which then come after it in `placing`.
            while placing:
                entry = placing.popleft()
                if entry.state is READY:
                    self._place_near(entry)
            if not queue or not (self._idle or self._roomy):
                return
            wanted = len(queue)
            most = wanted if wanted > CANDIDATES else CANDIDATES
            runners = list(islice(chain(self._idle.values(), self._roomy.values()), most))
            for runner, count in zip(runners, share_out(wanted, runners), strict=True):
                if count:
                    self._place_queued(runner, count)

    def _place_queued(self, runner: RunnerEntry, count: int) -> None:
        """Place `count` tasks from the queue (fewer when it ends)."""
        queue = self._queue
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
                self._placing.append(entry)
                continue
            spec = entry.spec
            assert spec is not None
            entry.state = PLACED
            entry.runner = runner
            client = entry.client
            tasks[entry.task] = entry
            placements.append(Placement(spec, entry.attempt, client))
            if client not in told:
                self._tell_peer(runner, client)
            if spec.code not in codes:
                self._tell_code(runner, spec.code)
            left -= 1
            if entry.children:
                self._on_placed(entry)
        runner.outstanding += count - left
        self._ready -= count - left
        self._touched[runner] = None
        self._reindex(runner)

    def _place_near(self, entry: TaskEntry) -> None:
        """Place a task with inputs where these are."""
        holders: dict[RunnerEntry, int] = {}
        wide = False
        for found in entry.inputs:
            holder = found.runner
            if holder is not None and holder.alive:
                holders[holder] = holders.get(holder, 0) + 1
            wide = wide or (found.children is not None and len(found.children) > 1)
        runner = choose_near(holders, self._spare_runner() if wide or not holders else None, wide)
        if runner is None:
            runner = min(self._runners.values(), key=lambda runner: runner.outstanding)
        move(entry, PLACED)
        entry.runner = runner
        runner.tasks[entry.task] = entry
        runner.outstanding += 1
        self._ready -= 1
        self._reindex(runner)
        self._add_placement(entry, runner)
        if entry.children:
            self._on_placed(entry)

    def _spare_runner(self) -> RunnerEntry | None:
        if self._idle:
            return next(iter(self._idle.values()))
        return min(islice(self._roomy.values(), CANDIDATES), key=lambda runner: runner.outstanding, default=None)

    def _on_placed(self, entry: TaskEntry) -> None:
        assert entry.children is not None
        for child in entry.children.values():
            if child.state is WAITING:
                child.missing -= 1
                if not child.missing:
                    self._make_ready(child)
            elif child.state is PLACED:
                # It was placed with another keeper for this input.
                self._resend[child.task] = child

    def _place_again(self) -> None:
        for entry in self._resend.values():
            # A cancelled one would begin anew on a runner that has left it out by then.
            if entry.state is PLACED and entry.runner is not None and not entry.cancelled:
                self._add_placement(entry, entry.runner)
        self._resend.clear()

    def _add_placement(self, entry: TaskEntry, runner: RunnerEntry) -> None:
        spec = entry.spec
        assert spec is not None
        by_task = {found.task: found.runner for found in entry.inputs}
        keepers = []
        for task in spec.inputs:
            holder = by_task[task]
            keeper = NOBODY if holder is None else holder.keeper
            if keeper and keeper != runner.peer and keeper not in runner.told:
                self._tell_peer(runner, keeper)
            keepers.append(keeper)
        if entry.client not in runner.told:
            self._tell_peer(runner, entry.client)
        if spec.code not in runner.codes:
            self._tell_code(runner, spec.code)
        runner.placements.append(Placement(spec, entry.attempt, entry.client, tuple(keepers)))
        self._touched[runner] = None

    def _tell_peer(self, runner: RunnerEntry, peer: PeerId) -> None:
        other = self._runners.get(peer)
        ref = other.ref if other is not None else self._peers.get(peer)
        if ref is not None:
            runner.told.add(peer)
            runner.new_peers.append(ref)

    def _tell_code(self, runner: RunnerEntry, code: CodeId) -> None:
        found = self._codes.get(code)
        if found is not None:
            runner.codes.add(code)
            runner.new_codes.append(found)

    def _reindex(self, runner: RunnerEntry) -> None:
        if not runner.alive:
            return
        outstanding = runner.outstanding
        index: dict[PeerId, RunnerEntry] | None
        if runner.gone:
            index = None
        elif not outstanding:
            index = self._idle
        elif outstanding <= runner.window >> 1:
            index = self._roomy
        else:
            index = None
        old = runner.index
        if old is not index:
            if old is not None:
                del old[runner.peer]
            if index is not None:
                index[runner.peer] = runner
            runner.index = index

    # ── Sending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, peer: PeerId, message: Any) -> None:
        if peer:
            self._effects.append(Send(peer, message))

    def _send_cancel(self, entry: TaskEntry) -> None:
        runner = entry.runner
        assert runner is not None
        if runner.alive:
            runner.cancels.append(entry.task)
            self._touched[runner] = None

    def _tell_keepers(self, entries: list[TaskEntry]) -> None:
        """Tell clients where values are."""
        found: dict[tuple[PeerId, PeerId], list[TaskId]] = {}
        for entry in entries:
            assert entry.runner is not None
            found.setdefault((entry.client, entry.runner.keeper), []).append(entry.task)
        for (client, keeper), tasks in found.items():
            runner = self._runners.get(keeper)
            ref = runner.ref if runner is not None else self._peers.get(keeper, PeerRef(keeper, 0))
            self._send(client, ValuesAt(ref, tasks))

    def _flush_runners(self) -> None:
        effects = self._effects
        for runner in self._touched:
            if runner.gone:
                # What was placed there is placed again when its node reports its end.
                runner.cancels, runner.placements, runner.new_codes, runner.new_peers = [], [], [], []
                continue
            if runner.cancels:
                effects.append(Send(runner.peer, CancelTasks(runner.cancels)))
                runner.cancels = []
            if runner.placements:
                effects.append(Send(runner.peer, RunTasks(runner.placements, runner.new_codes, runner.new_peers)))
                runner.placements = []
                runner.new_codes = []
                runner.new_peers = []
        self._touched.clear()

    def _flush_releases(self) -> None:
        if not self._releases:
            return
        nodes: dict[PeerId, list[TaskId]] = {}
        for runner in self._releasing:
            tasks = runner.releases
            if not tasks:
                continue
            nodes.setdefault(runner.node, []).extend(tasks)
            if runner.alive and not runner.gone:
                self._effects.append(Send(runner.peer, DropValues(tasks)))
            runner.releases = []
        for node, tasks in nodes.items():
            self._effects.append(Send(node, DropValues(tasks)))
        self._releasing.clear()
        self._releases = 0
        self._release_at = None

    # ── Checking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        assert not (self._placing or self._front or self._touched or self._resend), "work left after an event"
        queued = {entry.task for entry in self._queue if entry.state is READY}
        ready = {task for task, entry in self._tasks.items() if entry.state is READY}
        assert ready == queued, f"queue and states differ: {ready ^ queued}"
        assert self._ready == len(ready), f"{self._ready} counted as ready, {len(ready)} are"
        assert not self._ready or not (self._idle or self._roomy), "tasks are ready and runners have room"
        for task, entry in self._tasks.items():
            self._check_task(task, entry)
        runners = [runner for node in self._nodes.values() for runner in node]
        for runner in runners:
            self._check_runner(runner)
        assert set(self._runners.values()) == {runner for runner in runners if runner.alive}
        assert self._releases == sum(len(runner.releases) for runner in self._releasing)
        assert (self._release_at is None) == (self._releases == 0)

    def _check_task(self, task: TaskId, entry: TaskEntry) -> None:
        assert entry.task == task
        assert (entry.state not in (PLACED, FINISHED)) or entry.runner is not None, entry.story()
        assert entry.runner is None or entry.runner.tasks.get(task) is entry, entry.story()
        assert entry.runner is None or entry.state in (PLACED, FINISHED, FAILED, CANCELLED), entry.story()
        assert entry.state is not PLACED or (entry.runner is not None and entry.runner.alive), entry.story()
        if entry.state is WAITING:
            missing = sum(found.state not in (PLACED, FINISHED) for found in entry.inputs)
            assert entry.missing == missing > 0, f"{entry.story()}: {entry.missing} counted as missing, {missing} are"
            assert all(found.state in UNFINISHED or found.state is FINISHED for found in entry.inputs), entry.story()
        children = entry.children or {}
        assert entry.unfinished == sum(child.state in UNFINISHED for child in children.values()), entry.story()
        for found in entry.inputs:
            assert found.children is not None and found.children.get(task) is entry, entry.story()
            assert self._tasks.get(found.task) is found, f"{entry.story()}: its input {found.story()} was forgotten"
        if entry.released and entry.state not in UNFINISHED:
            assert entry.unfinished or entry.runner is None, f"{entry.story()}: value kept for nobody"
            assert children, f"{entry.story()}: kept for nobody"

    def _check_runner(self, runner: RunnerEntry) -> None:
        placed = sum(entry.state is PLACED for entry in runner.tasks.values())
        assert runner.outstanding == placed, f"{runner.peer}: {runner.outstanding} counted, {placed} placed"
        assert all(entry.runner is runner for entry in runner.tasks.values()), runner.peer
        assert all(self._tasks.get(task) is entry for task, entry in runner.tasks.items()), runner.peer
        assert runner.alive or (runner.tasks and not placed), runner.peer
        assert not runner.alive or self._runners.get(runner.peer) is runner
        for index in (self._idle, self._roomy):
            assert (index.get(runner.peer) is runner) == (runner.index is index), runner.peer
