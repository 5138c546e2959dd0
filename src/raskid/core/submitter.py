"""A client's tasks: where each was sent, what came back, and the lease to dispatch straight to a runner.

A burst goes to the manager in batches. A client that submits, waits, and submits again asks for a lease: then a task
without inputs goes straight to the runner, which saves the way through the manager. Such a task belongs to the
client, which keeps its spec, until its value is here or the runner is lost; then it goes to the manager.
"""

from __future__ import annotations

from typing import Any

from raskid.core.effects import CancelledTooLate, Effect, Introduce, Send, TaskEnded, TaskResolved
from raskid.core.events import CancelValues, Event, PeerGone, Received, ReleaseValues, Tick
from raskid.core.lists import Lists
from raskid.model.ids import CodeId, IdSource, PeerId, RequestId, TaskId, counter_of
from raskid.protocol.messages import (
    AskValue,
    CancelTasks,
    Code,
    LeaseEnded,
    LeaseGranted,
    Message,
    PeerRef,
    Placement,
    ReleaseTasks,
    RequestLease,
    RunTasks,
    SubmitTasks,
    TaskFailed,
    TasksCancelled,
    TaskSpec,
    TaskValue,
    ValuesAt,
)

#: After so many tasks that were submitted while none was out, a lease is asked for.
SEQUENTIAL_MIN = 8
#: After a refusal no lease is asked for so long.
LEASE_RETRY_S = 5.0
#: A lease that was not used for so long is given back.
LEASE_IDLE_S = 2.0
RELEASE_BATCH = 256
RELEASE_S = 0.2


class _Lease:
    __slots__ = ("codes", "direct", "ref", "told", "used_at")

    def __init__(self, ref: PeerRef, now: float) -> None:
        self.ref = ref
        self.used_at = now
        self.direct: dict[TaskId, TaskSpec] = {}
        self.codes: set[CodeId] = set()
        self.told = False


class Submitter:
    """The tasks of one client."""

    handles: frozenset[type[Message]] = frozenset(
        {TaskValue, TaskFailed, TasksCancelled, ValuesAt, LeaseGranted, LeaseEnded}
    )
    commands: frozenset[type[Event]] = frozenset({ReleaseValues, CancelValues})

    def __init__(self, own: PeerRef, manager: PeerId, ids: IdSource, lists: Lists | None = None) -> None:
        self.own = own
        self.manager = manager
        self._ids = ids
        self.codes: dict[CodeId, Code] = {}
        self._manager_codes: set[CodeId] = set()
        #: Tasks without a value yet.
        self.out: set[TaskId] = set()
        self._batch: list[TaskSpec] = []
        self._batch_codes: list[Code] = []
        self._released: list[TaskId] = []
        self._release_at = 0.0
        #: Values of tasks that went straight to a runner: the manager may not know them when a dependant is submitted.
        self._direct_values: dict[TaskId, TaskResolved] = {}
        #: Dependants of tasks that are out with the lease, and whatever was submitted behind them with inputs.
        self._held: list[TaskSpec] = []
        #: Tasks that ended without the manager's ever knowing of them, until they are released.
        self._unknown: set[TaskId] = set()
        self._lease: _Lease | None = None
        #: The request for a lease that is not answered yet, and until when none is made.
        self._lease_asked: RequestId | None = None
        self._lease_again_at = 0.0
        self._sequential = 0
        if lists is not None:
            # All refusals come to that machine.
            lists.askers.append(self)

    # ── submitting ──

    def submit(self, spec: TaskSpec, now: float) -> list[Effect]:
        """Take a task in; through the manager it travels with the next `flush`."""
        out = self.out
        effects: list[Effect] = []
        if not out and not spec.inputs and not spec.count:
            self._sequential += 1
            if (
                self._sequential >= SEQUENTIAL_MIN
                and self._lease is None
                and self._lease_asked is None
                and now >= self._lease_again_at
            ):
                self._lease_asked = RequestId(self._ids.take())
                effects.append(Send(self.manager, RequestLease(self._lease_asked)))
        elif len(out) > 1:
            self._sequential = 0
        out.add(spec.task)
        lease = self._lease
        # Only while nothing else is out: behind a task that runs it would wait, although another runner may be idle.
        if lease is not None and not spec.inputs and not spec.count and len(out) == 1:
            return effects + self._dispatch(lease, spec, now)
        if spec.inputs and (self._held or self._direct_values or (lease is not None and lease.direct)):
            if self._held or (lease is not None and any(name in lease.direct for name in spec.inputs)):
                self._held.append(spec)
                return effects
            return effects + self._collect_inlined(spec)
        self._collect(spec)
        return effects

    def _collect(self, spec: TaskSpec) -> None:
        self._batch.append(spec)
        if spec.code not in self._manager_codes:
            self._manager_codes.add(spec.code)
            self._batch_codes.append(self.codes[spec.code])

    def _collect_inlined(self, spec: TaskSpec) -> list[Effect]:
        """Put values that only this client knows of into the spec."""
        known = self._direct_values
        inline = []
        for name in spec.inputs:
            value = known.get(name)
            if value is None:
                continue
            if not value.ok:
                # The error of an input is the error of the task, as it would be on a runner.
                self.out.discard(spec.task)
                resolved = TaskResolved(spec.task, False, value.value)
                known[spec.task] = resolved
                self._unknown.add(spec.task)
                return [resolved]
            inline.append((name, value.value))
        if inline:
            left = tuple(name for name in spec.inputs if name not in known)
            spec = TaskSpec(spec.task, spec.code, spec.arguments, left, spec.count, spec.retries, tuple(inline))
        self._collect(spec)
        return []

    def _release_held(self) -> list[Effect]:
        direct = self._lease.direct if self._lease is not None else {}
        if any(name in direct for spec in self._held for name in spec.inputs):
            return []
        held, self._held = self._held, []
        effects: list[Effect] = []
        for spec in held:
            effects += self._collect_inlined(spec)
        return effects

    def flush(self) -> list[Effect]:
        """What collected since the last flush."""
        effects: list[Effect] = []
        if self._batch:
            effects.append(Send(self.manager, SubmitTasks(self._batch, self._batch_codes)))
            self._batch, self._batch_codes = [], []
        return effects

    def forget_codes(self) -> None:
        """Forget code objects, but for those that a task may still have to take along: whoever submits brings them."""
        needed = {spec.code for spec in self._held}
        if self._lease is not None:
            needed.update(spec.code for spec in self._lease.direct.values())
        for code in [code for code in self.codes if code not in needed]:
            del self.codes[code]

    @property
    def collected(self) -> int:
        """How many tasks wait for `flush`."""
        return len(self._batch)

    def _dispatch(self, lease: _Lease, spec: TaskSpec, now: float) -> list[Effect]:
        lease.used_at = now
        lease.direct[spec.task] = spec
        codes: list[Code] = []
        if spec.code not in lease.codes:
            lease.codes.add(spec.code)
            codes.append(self.codes[spec.code])
        peers: list[PeerRef] = []
        if not lease.told:
            lease.told = True
            peers.append(self.own)
        return [Send(lease.ref.peer, RunTasks([Placement(spec, 1, self.own.peer)], codes, peers))]

    # ── events ──

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in an event."""
        kind = type(event)
        if kind is Received:
            return self._on_message(event.message, now)
        if kind is ReleaseValues:
            if not self._released:
                self._release_at = now + RELEASE_S
            self._released += event.tasks
            if len(self._released) < RELEASE_BATCH:
                return []
            return self._release(now)
        if kind is CancelValues:
            return self._on_cancel(event)
        if kind is PeerGone:
            lease = self._lease
            if lease is not None and event.peer == lease.ref.peer and event.incarnation >= lease.ref.incarnation:
                return self._end_lease(event.reason)
        elif kind is Tick:
            effects = self._release(now) if self._released and now >= self._release_at else []
            lease = self._lease
            if lease is not None and not lease.direct and now - lease.used_at >= LEASE_IDLE_S:
                self._lease, self._sequential = None, 0
                effects.append(Send(self.manager, LeaseEnded(lease.ref.peer, "not used")))
            return effects
        return []

    def _release(self, now: float) -> list[Effect]:
        tasks, self._released = self._released, []
        direct = self._lease.direct if self._lease is not None else {}
        if direct or self._held:
            # What is held back needs its inputs; what is out with the lease is not known to the manager yet.
            needed = {name for spec in self._held for name in spec.inputs}
            needed.update(spec.task for spec in self._held)
            self._released = [task for task in tasks if task in needed or task in direct]
            if self._released:
                tasks = [task for task in tasks if task not in needed and task not in direct]
                self._release_at = now + RELEASE_S
        if self._direct_values:
            for task in tasks:
                self._direct_values.pop(task, None)
        effects = self.flush()
        # Their values may be lost on the way here, and nobody would send them again.
        self.out.difference_update(tasks)
        if self._unknown:
            unknown = self._unknown.intersection(tasks)
            self._unknown -= unknown
            tasks = [task for task in tasks if task not in unknown]
        if tasks:
            effects.append(Send(self.manager, ReleaseTasks(tasks)))
        return effects

    def _on_cancel(self, event: CancelValues) -> list[Effect]:
        effects = self.flush()
        tasks = [task for task in event.tasks if task in self.out]
        if not tasks:
            return effects
        held = {spec.task for spec in self._held}.intersection(tasks)
        if held:
            self._held = [spec for spec in self._held if spec.task not in held]
            for task in held:
                self.out.discard(task)
                self._unknown.add(task)
                effects.append(
                    TaskEnded(task, "TaskCancelled", f"task #{counter_of(task)} was cancelled before it started")
                )
            # What needs them, held back as well, fails when the manager does not know them.
            effects += [*self._release_held(), *self.flush()]
        # The manager hears only of its own: it would wait for ever for what a runner left out for us.
        direct = [task for task in tasks if self._lease is not None and task in self._lease.direct]
        if direct and self._lease is not None:
            effects.append(Send(self._lease.ref.peer, CancelTasks(direct)))
        rest = [task for task in tasks if task not in held and task not in direct]
        return [*effects, Send(self.manager, CancelTasks(rest))] if rest else effects

    def _on_message(self, message: Message, now: float) -> list[Effect]:
        if type(message) is TaskValue:
            task = message.task
            if task not in self.out:
                return []
            self.out.discard(task)
            resolved = TaskResolved(task, message.ok, message.value)
            if self._lease is not None and self._lease.direct.pop(task, None) is not None:
                self._direct_values[task] = resolved
                if self._held:
                    return [resolved, *self._release_held(), *self.flush()]
            return [resolved]
        if type(message) is TaskFailed:
            if message.task not in self.out:
                return []
            self.out.discard(message.task)
            return [TaskEnded(message.task, message.code, message.text)]
        if type(message) is TasksCancelled:
            effects: list[Effect] = []
            for task in message.tasks:
                if task in self.out:
                    self.out.discard(task)
                    if self._lease is not None and self._lease.direct.pop(task, None) is not None:
                        self._unknown.add(task)
                    effects.append(
                        TaskEnded(task, "TaskCancelled", f"task #{counter_of(task)} was cancelled before it started")
                    )
            effects += [CancelledTooLate(task) for task in message.started if task in self.out]
            return [*effects, *self._release_held(), *self.flush()] if self._held else effects
        if type(message) is ValuesAt:
            asks: list[Effect] = [
                Send(message.keeper.peer, AskValue(task, self.own)) for task in message.tasks if task in self.out
            ]
            return [Introduce(message.keeper), *asks] if asks else []
        if type(message) is LeaseGranted:
            self._lease_asked = None
            self._lease = _Lease(message.runner, now)
            return [Introduce(message.runner)]
        if type(message) is LeaseEnded and self._lease is not None and message.runner == self._lease.ref.peer:
            return self._end_lease(message.reason)
        return []

    def on_refused(self, request: RequestId, now: float) -> bool:
        """The manager has no lease to give at present."""
        if request != self._lease_asked:
            return False
        self._lease_asked = None
        self._lease_again_at = now + LEASE_RETRY_S
        return True

    def _end_lease(self, reason: str) -> list[Effect]:
        """Tasks dispatched to a lost runner go to the manager, as their next attempt."""
        lease, self._lease = self._lease, None
        assert lease is not None
        self._sequential = 0
        specs = [spec for task, spec in lease.direct.items() if task in self.out]
        # Whatever goes first carries the codes that the rest relies on.
        before = self.flush()
        wanted = {spec.code for spec in specs} - self._manager_codes
        self._manager_codes |= wanted
        codes = [self.codes[code] for code in wanted]
        effects = self._release_held()
        if not specs:
            return [*before, *effects, *self.flush()]
        # Before what was held back for them: the manager has to know an input before its dependant.
        return [*before, Send(self.manager, SubmitTasks(specs, codes, 2)), *effects, *self.flush()]

    def next_deadline(self) -> float | None:
        """When values are to be released, or an unused lease given back."""
        times = [self._release_at] if self._released else []
        if self._lease is not None and not self._lease.direct:
            times.append(self._lease.used_at + LEASE_IDLE_S)
        return min(times, default=None)

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        assert {spec.task for spec in self._batch} <= self.out
        if self._lease is not None:
            assert set(self._lease.direct) <= self.out
