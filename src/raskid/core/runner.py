"""A runner's tasks: which can start, which inputs are missing, who wants which value.

The machine asks the keepers of missing inputs at once, long before they are ready, so a finished task's value comes
by itself. A keeper that is busy with a task cannot answer; when nothing came after a moment, the keeper's node is
asked, which reads the keeper's outbox. Values made here are kept as bytes until they are dropped by the manager.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from raskid.core.machine import Effect, Event, PeerGone, Received, Send
from raskid.core.messaging import Introduce
from raskid.model.ids import CodeId, PeerId, TaskId
from raskid.protocol.messages import (
    AskValue,
    CancelTasks,
    DropValues,
    Message,
    PeerRef,
    Placement,
    RunTasks,
    StopRunner,
    TasksCancelled,
    TaskValue,
)

#: A keeper that has not answered by then may be busy: its node is asked instead, at growing intervals.
ASK_NODE_S = 0.005
ASK_AGAIN_S_MAX = 2.0
#: Who asked for a task that is not here (any more, or yet) is remembered for about so long; its node is asked as well.
ASKERS_S = 10.0


class TaskDone(Event, frozen=True):
    """Command: the task given out by `next_task` has ended. `value` is its pickled value, or error when not `ok`."""

    ok: bool
    value: bytes
    seconds: float


class Record(Effect, frozen=True, gc=False):
    """Write an outcome into the outbox, before anything else happens."""

    task: TaskId
    attempt: int
    ok: bool
    seconds: float
    client: PeerId
    value: bytes
    #: Whether the manager waits for it; a task that its client sent here itself can be reported with the next.
    urgent: bool = True


class Stop(Effect, frozen=True):
    """End the process after the present task."""

    reason: str


class Value(msgspec.Struct, frozen=True, gc=False):
    """A pickled value, or a pickled error."""

    ok: bool
    data: bytes


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

    handles: frozenset[type[Message]] = frozenset({RunTasks, TaskValue, AskValue, DropValues, CancelTasks, StopRunner})
    commands: frozenset[type[Event]] = frozenset({TaskDone})

    def __init__(self, own: PeerRef) -> None:
        self.own = own
        self.codes: dict[CodeId, bytes] = {}
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
        #: Those of `_asks` whose keeper is another process, so that their answer may have to be asked for again.
        self._remote: dict[TaskId, _Ask] = {}
        self._askers: dict[TaskId, list[PeerId]] = {}
        #: Those that were asked for and not here at the last look; when to look again.
        self._astray: set[TaskId] = set()
        self._sweep_at: float | None = None

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
        if kind is PeerGone:
            return []
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
                self._askers.pop(task, None)
        elif type(message) is CancelTasks:
            return self._on_cancel(peer, message)
        elif type(message) is StopRunner:
            return [Stop(message.reason)]
        return []

    def _on_run(self, peer: PeerId, message: RunTasks, now: float) -> list[Effect]:
        for code in message.codes:
            self.codes[code.code] = code.blob
        effects: list[Effect] = [Introduce(ref) for ref in message.peers]
        for placement in message.placements:
            spec = placement.spec
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
                    self._remote[name] = ask
                    effects.append(Send(keeper, AskValue(name, self.own)))
                else:
                    self._remote.pop(name, None)
        return effects

    def _forget_ask(self, name: TaskId) -> _Ask | None:
        ask = self._asks.pop(name, None)
        if ask is not None and self._remote:
            self._remote.pop(name, None)
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
            askers = self._askers.setdefault(message.task, [])
            if message.asker.peer not in askers:
                askers.append(message.asker.peer)
            if self._sweep_at is None:
                self._sweep_at = now + ASKERS_S
        return effects

    def _sweep(self, now: float) -> None:
        """Drop askers of tasks that were not here at the last look either: they run elsewhere, or not at all."""
        absent = {task for task in self._askers if task not in self._tasks}
        for task in absent & self._astray:
            del self._askers[task]
        self._astray = absent - self._astray
        self._sweep_at = now + ASKERS_S if self._askers else None

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
        self._leave(task)
        if not event.ok and placement.attempt <= spec.retries:
            # It will be tried again: nobody is to see this error, so none is kept.
            return [Record(identifier, placement.attempt, False, event.seconds, placement.client, b"")]
        effects: list[Effect] = [
            Record(
                identifier, placement.attempt, event.ok, event.seconds, placement.client, event.value, not task.direct
            )
        ]
        self.values[identifier] = Value(event.ok, event.value)
        if placement.client:
            effects.append(Send(placement.client, TaskValue(identifier, placement.attempt, event.ok, event.value)))
        for asker in self._askers.pop(identifier, ()):
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
        cancelled = []
        for name in message.tasks:
            task = self._tasks.get(name)
            if task is not None and task.placement is not self.running:
                self._leave(task)
                cancelled.append(name)
        return [Send(peer, TasksCancelled(cancelled))] if cancelled else []

    def _ask_again(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._sweep_at is not None and now >= self._sweep_at:
            self._sweep(now)
        for name, ask in self._remote.items():
            if ask.at > now:
                continue
            ask.delay = min(ask.delay * 4, ASK_AGAIN_S_MAX)
            ask.at = now + ask.delay
            if ask.keeper:
                effects.append(Send(node_of(ask.keeper), AskValue(name, self.own)))
        return effects

    def next_deadline(self) -> float | None:
        """When a keeper's node is to be asked, or old askers are dropped."""
        if not self._remote:
            return self._sweep_at
        at = min(ask.at for ask in self._remote.values())
        return at if self._sweep_at is None else min(at, self._sweep_at)

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
        assert set(self.inputs) <= set(users)
