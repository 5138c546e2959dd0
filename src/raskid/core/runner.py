"""A runner's tasks: which can start, which inputs are missing, who wants which value.

The machine asks the keepers of missing inputs at once, long before they are ready, so a finished task's value comes
by itself. A keeper that is busy with a task cannot answer; when nothing came after a moment, the keeper's node is
asked, which reads the keeper's outbox. Values made here are kept as bytes until they are dropped by the manager.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from raskid.core.askers import Askers
from raskid.core.deadlines import Deadlines
from raskid.core.effects import DropCodes, Effect, Introduce, Record, Send
from raskid.core.events import Event, PeerGone, RecallsRead, Received, TaskDone
from raskid.model.ids import CodeId, PeerId, TaskId
from raskid.protocol.messages import (
    AskValue,
    CancelTasks,
    DropValues,
    Message,
    PeerRef,
    Placement,
    RunTasks,
    TasksCancelled,
    TasksRecalled,
    TaskValue,
)

#: A keeper that has not answered by then may be busy: its node is asked instead, at growing intervals.
ASK_NODE_S = 0.005
ASK_AGAIN_S_MAX = 2.0
#: Recalls remembered, so that a placement that is still on its way here is not taken in. The oldest are forgotten:
#: whatever could name them was sent before them, and has come long since.
RECALLED_MAX = 1 << 16


class Value:
    """A pickled value, or a pickled error, and the attempt that gave it (0: not known)."""

    __slots__ = ("attempt", "data", "ok")

    def __init__(self, ok: bool, data: bytes, attempt: int = 0) -> None:
        self.ok = ok
        self.data = data
        self.attempt = attempt


class _Task:
    __slots__ = ("direct", "missing", "placement")

    def __init__(self, placement: Placement, direct: bool) -> None:
        self.placement = placement
        self.direct = direct
        self.missing: set[TaskId] = set()


class _Ask:
    """An input asked for. `at` is when to ask again, `delay` how long after that."""

    __slots__ = ("at", "delay", "keeper", "waiting")

    def __init__(self, keeper: PeerId, at: float) -> None:
        self.keeper = keeper
        self.at = at
        self.delay = ASK_NODE_S
        self.waiting: set[TaskId] = set()


def node_of(runner: PeerId) -> PeerId:
    """The node that keeps a runner's outbox: runners are named NODE/NUMBER; a node stands for itself."""
    return PeerId(runner.rpartition("/")[0] or runner)


class Runner:
    """The tasks of one runner."""

    handles: frozenset[type[Message]] = frozenset({RunTasks, TaskValue, AskValue, DropValues, CancelTasks})
    commands: frozenset[type[Event]] = frozenset({TaskDone, RecallsRead})

    def __init__(self, own: PeerRef) -> None:
        self.own = own
        self.codes: dict[CodeId, bytes] = {}
        #: Who has sent each of `codes` and counts on its being here: the manager, clients with a lease.
        self._code_owners: dict[CodeId, set[PeerId]] = {}
        #: Tasks that have not ended here; those with nothing missing are in `ready`, or are `running`.
        self._tasks: dict[TaskId, _Task] = {}
        self.ready: deque[TaskId] = deque()
        self.running: Placement | None = None
        #: Values made here, until dropped.
        self.values: dict[TaskId, Value] = {}
        #: Values made elsewhere, while tasks here still need them.
        self.inputs: dict[TaskId, Value] = {}
        self._users: dict[TaskId, int] = {}
        self._asks: dict[TaskId, _Ask] = {}
        #: When those of `_asks` whose keeper is another process are asked for again, of its node.
        self._again: Deadlines[TaskId] = Deadlines()
        self._askers = Askers()
        #: The newest attempt of each of these tasks that the node took back.
        self._recalled: dict[TaskId, int] = {}

    def next_task(self) -> Placement | None:
        """The task to run now; it is running from here on, until `TaskDone`."""
        assert self.running is None
        while self.ready:
            task = self._tasks.get(self.ready.popleft())
            if task is not None and not task.missing:
                self.running = task.placement
                return self.running
        return None

    def value(self, task: TaskId) -> Value:
        """The value of an input of the running task."""
        found = self.values.get(task)
        return found if found is not None else self.inputs[task]

    def failed_input(self, placement: Placement) -> Value | None:
        """The error of an input that failed, which becomes the error of the task."""
        for task in placement.spec.inputs:
            value = self.value(task)
            if not value.ok:
                return value
        return None

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in an event."""
        kind = type(event)
        if kind is TaskDone:
            return self._on_done(event)
        if kind is Received:
            return self._on_message(event.peer, event.message, now)
        if kind is RecallsRead:
            return self._on_recalls(event)
        if kind is PeerGone:
            return self._on_peer_gone(event)
        return self._ask_again(now)

    def _on_message(self, peer: PeerId, message: Message, now: float) -> list[Effect]:
        if type(message) is RunTasks:
            return self._on_run(peer, message, now)
        if type(message) is TaskValue:
            return self._on_value(message)
        if type(message) is AskValue:
            return self._on_ask(message, now)
        if type(message) is DropValues:
            for task in message.tasks:
                self.values.pop(task, None)
                self._askers.pop(task)
                self._recalled.pop(task, None)
            return self._drop_codes(peer, message.codes) if message.codes else []
        elif type(message) is CancelTasks:
            return self._on_cancel(peer, message)
        return []

    def _drop_codes(self, owner: PeerId, codes: list[CodeId]) -> list[Effect]:
        dropped = []
        for code in codes:
            owners = self._code_owners.get(code, set())
            owners.discard(owner)
            if not owners and self.codes.pop(code, None) is not None:
                del self._code_owners[code]
                dropped.append(code)
        return [DropCodes(dropped)] if dropped else []

    def _on_peer_gone(self, event: PeerGone) -> list[Effect]:
        """A client that is gone takes along what it had sent here itself, unless it runs already."""
        peer = event.peer
        for task in [task for task in self._tasks.values() if task.direct and task.placement.client == peer]:
            if task.placement is not self.running:
                self._leave(task)
        return self._drop_codes(peer, [code for code, owners in self._code_owners.items() if peer in owners])

    def _on_run(self, peer: PeerId, message: RunTasks, now: float) -> list[Effect]:
        for code in message.codes:
            self.codes[code.code] = code.blob
            self._code_owners.setdefault(code.code, set()).add(peer)
        effects: list[Effect] = [Introduce(ref) for ref in message.peers]
        values, recalled = self.values, self._recalled
        for placement in message.placements:
            spec = placement.spec
            if recalled and recalled.get(spec.task, 0) >= placement.attempt:
                continue
            value = values.get(spec.task)
            if value is not None and value.attempt >= placement.attempt:
                # Sent again, with other keepers, before it was known that it is finished.
                continue
            known = self._tasks.get(spec.task)
            if known is not None and known.placement.attempt >= placement.attempt:
                if known.placement.attempt == placement.attempt and placement.keepers:
                    effects += self._need_inputs(known, placement, now)
                continue
            if known is not None:
                self._leave(known)
            task = self._tasks[spec.task] = _Task(placement, placement.client == peer)
            if spec.inputs:
                for name in spec.inputs:
                    self._users[name] = self._users.get(name, 0) + 1
                effects += self._need_inputs(task, placement, now)
            if not task.missing:
                self.ready.append(spec.task)
        return effects

    def _need_inputs(self, task: _Task, placement: Placement, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for name, keeper in zip(placement.spec.inputs, placement.keepers, strict=False):
            if name in self.values or name in self.inputs:
                continue
            task.missing.add(name)
            ask = self._asks.get(name)
            if ask is None:
                ask = self._asks[name] = _Ask(keeper, now + ASK_NODE_S)
                ask.keeper = PeerId("")
            ask.waiting.add(placement.spec.task)
            if keeper and keeper != ask.keeper:
                ask.keeper = keeper
                ask.at, ask.delay = now + ASK_NODE_S, ASK_NODE_S
                if keeper != self.own.peer:
                    self._again.set(name, ask.at)
                    effects.append(Send(keeper, AskValue(name, self.own)))
                else:
                    self._again.cancel(name)
        return effects

    def _forget_ask(self, name: TaskId) -> _Ask | None:
        ask = self._asks.pop(name, None)
        if ask is not None:
            self._again.cancel(name)
        return ask

    def _on_value(self, message: TaskValue) -> list[Effect]:
        ask = self._forget_ask(message.task)
        if ask is None:
            return []
        self.inputs[message.task] = Value(message.ok, message.value)
        self._arrived(message.task, ask)
        return []

    def _arrived(self, name: TaskId, ask: _Ask) -> None:
        for waiting in ask.waiting:
            task = self._tasks.get(waiting)
            if task is not None and name in task.missing:
                task.missing.discard(name)
                if not task.missing:
                    self.ready.append(waiting)

    def _on_ask(self, message: AskValue, now: float) -> list[Effect]:
        value = self.values.get(message.task)
        effects: list[Effect] = [Introduce(message.asker)]
        if value is not None:
            effects.append(Send(message.asker.peer, TaskValue(message.task, 0, value.ok, value.data)))
        else:
            self._askers.add(message.task, message.asker.peer, now)
        return effects

    def _on_done(self, event: TaskDone) -> list[Effect]:
        placement = self.running
        assert placement is not None
        self.running = None
        spec = placement.spec
        identifier = spec.task
        task = self._tasks.get(identifier)
        if task is None or task.placement is not placement:
            # Placed here again meanwhile, as a later attempt: this one's outcome is stale.
            return []
        if not event.ok and placement.raised < spec.retries:
            # It will be tried again: nobody is to see this error, so none is kept.
            if task.direct:
                # The manager, which would see to that, has not heard of this one.
                client, raised = placement.client, placement.raised + 1
                task.placement = Placement(spec, placement.attempt, client, placement.keepers, raised)
                self.ready.append(identifier)
                return []
            self._leave(task)
            return [Record(identifier, placement.attempt, False, event.seconds, placement.client, b"")]
        self._leave(task)
        effects: list[Effect] = [
            Record(identifier, placement.attempt, event.ok, event.seconds, placement.client, event.value, task.direct)
        ]
        self.values[identifier] = Value(event.ok, event.value, placement.attempt)
        if placement.client:
            effects.append(Send(placement.client, TaskValue(identifier, placement.attempt, event.ok, event.value)))
        for asker in self._askers.pop(identifier):
            effects.append(Send(asker, TaskValue(identifier, placement.attempt, event.ok, event.value)))
        ask = self._forget_ask(identifier)
        if ask is not None:
            self._arrived(identifier, ask)
        return effects

    def _leave(self, task: _Task) -> None:
        """A task is no longer here: inputs that only it needed go."""
        spec = task.placement.spec
        del self._tasks[spec.task]
        for name in spec.inputs:
            left = self._users[name] - 1
            if left:
                self._users[name] = left
                continue
            del self._users[name]
            self.inputs.pop(name, None)
            self._forget_ask(name)

    def _on_cancel(self, peer: PeerId, message: CancelTasks) -> list[Effect]:
        direct: list[TaskId] = []
        placed: list[tuple[TaskId, int]] = []
        for name in message.tasks:
            task = self._tasks.get(name)
            if task is not None and task.placement is not self.running:
                self._leave(task)
                if task.direct:
                    direct.append(name)
                else:
                    # With the attempt: the manager may have placed the task again before it hears of this.
                    placed.append((name, task.placement.attempt))
        effects: list[Effect] = []
        if direct:
            effects.append(Send(peer, TasksCancelled(direct)))
        if placed:
            effects.append(Send(peer, TasksRecalled(self.own.peer, self.own.incarnation, placed)))
        return effects

    def _on_recalls(self, event: RecallsRead) -> list[Effect]:
        effects: list[Effect] = []
        for number, attempt in event.tasks:
            name = TaskId(number)
            if self._recalled.get(name, 0) < attempt:
                self._recalled[name] = attempt
                if len(self._recalled) > RECALLED_MAX:
                    del self._recalled[next(iter(self._recalled))]
            running = self.running
            if running is not None and running.spec.task == name and running.attempt <= attempt:
                self.running = None
            # Whatever the node has seen of it (the start of an earlier attempt, or of this one, which stops before its
            # first step), this attempt never runs from here on, be it still on its way. Where the node has said so
            # already, or an outcome came before, this is no news to the manager.
            effects.append(Record(name, attempt, False, 0.0, PeerId(""), b"", started=False))
            task = self._tasks.get(name)
            if task is None or task.placement.attempt > attempt:
                continue
            self._leave(task)
        return effects

    def _ask_again(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        # What is still to run here gets its value here.
        self._askers.sweep(now, self._tasks)
        for name in self._again.take_due(now):
            ask = self._asks[name]
            ask.delay = min(ask.delay * 4, ASK_AGAIN_S_MAX)
            ask.at = now + ask.delay
            self._again.set(name, ask.at)
            if ask.keeper:
                effects.append(Send(node_of(ask.keeper), AskValue(name, self.own)))
        return effects

    def next_deadline(self) -> float | None:
        """When a keeper's node is to be asked, or old askers are dropped."""
        sweep_at, at = self._askers.sweep_at, self._again.first()
        return at if sweep_at is None else sweep_at if at is None else min(at, sweep_at)

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        users: dict[TaskId, int] = {}
        for name, task in self._tasks.items():
            assert task.placement.spec.task == name
            for needed in task.placement.spec.inputs:
                users[needed] = users.get(needed, 0) + 1
            for missing in task.missing:
                assert name in self._asks[missing].waiting
            assert task.missing or task.placement is self.running or name in self.ready
        assert users == self._users
        assert set(self._code_owners) == set(self.codes)
        self._askers.check_invariants()
        assert set(self.inputs) <= set(users)
