"""A node: the runners of one machine, and the values they finished.

The node, not the runner, answers for a runner's life: it learns of its end from the fork server, reads what the
runner had left in its outbox, and only then reports the end. Values are kept here as bytes until the manager drops
them, so that a busy or dead runner neither delays nor loses what it finished.
"""

from __future__ import annotations

from typing import Any

from raskid.core.askers import Askers
from raskid.core.effects import ChangesAnnounced, Effect, Forget, Introduce, Recall, RunnerGivenUp, Send, StartRunner
from raskid.core.events import AddRunner, Event, OutcomesRead, PeerJoined, RecallDone, Received, RunnerExited, Tick
from raskid.core.runner import Value
from raskid.model.ids import PeerId, TaskId
from raskid.protocol.messages import (
    KIND_RUNNER,
    AcknowledgeList,
    AskValue,
    ChangesSent,
    DropValues,
    Message,
    PeerRef,
    RecallTasks,
    RunnerEnded,
    RunnerStarted,
    TaskOutcome,
    TasksFinished,
    TasksRecalled,
    TaskValue,
)

#: A runner that ends this soon after its start twice in a row is started again after a pause only.
QUICK_END_S = 2.0
#: A runner that ends before it has joined, this often in a row, is not started again: it cannot start. One that joins
#: and then ends is the victim of its tasks, which have a limit of their own.
FAILED_STARTS_MAX = 5
RESTART_S = 0.1


class _RunnerState:
    __slots__ = ("failed_starts", "incarnation", "quick_ends", "ref", "restart_at", "started_at")

    def __init__(self, now: float) -> None:
        self.incarnation = 1
        self.started_at = now
        self.ref: PeerRef | None = None
        self.quick_ends = 0
        self.failed_starts = 0
        self.restart_at: float | None = None


class Node:
    """The runners of one machine."""

    handles: frozenset[type[Message]] = frozenset({AskValue, DropValues, RecallTasks, ChangesSent})
    commands: frozenset[type[Event]] = frozenset({AddRunner, OutcomesRead, RecallDone, RunnerExited})

    def __init__(self, own: PeerId, manager: PeerId) -> None:
        self.own = own
        self.manager = manager
        self.runners: dict[PeerId, _RunnerState] = {}
        self.values: dict[TaskId, Value] = {}
        self._askers = Askers()
        self._added = 0

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in an event."""
        kind = type(event)
        if kind is OutcomesRead:
            return self._on_outcomes(event)
        if kind is Received:
            return self._on_message(event.peer, event.message, now)
        if kind is AddRunner:
            runner = PeerId(f"{self.own}/{self._added}")
            self._added += 1
            self.runners[runner] = _RunnerState(now)
            return [StartRunner(runner, 1)]
        if kind is PeerJoined:
            return self._on_joined(event)
        if kind is RunnerExited:
            return self._on_exited(event, now)
        if kind is RecallDone:
            # A runner that has ended since: its end says what became of its tasks.
            return [Send(self.manager, TasksRecalled(event.runner, event.incarnation, event.tasks, event.started))]
        if kind is Tick:
            return self._on_tick(now)
        return []

    def _on_joined(self, event: PeerJoined) -> list[Effect]:
        state = self.runners.get(event.peer)
        if event.kind != KIND_RUNNER or state is None or state.incarnation != event.incarnation:
            return []
        state.ref = PeerRef(event.peer, event.incarnation, event.addresses)
        return [Send(self.manager, RunnerStarted(state.ref, event.pid, event.host))]

    def _on_outcomes(self, event: OutcomesRead) -> list[Effect]:
        outcomes: list[TaskOutcome] = []
        recalled: list[tuple[TaskId, int]] = []
        effects: list[Effect] = []
        values = self.values
        askers = self._askers
        runner = event.runner
        for task, attempt, ok, seconds, client, value, direct, started in event.entries:
            name = TaskId(task)
            if not started:
                recalled.append((name, attempt))
                continue
            outcomes.append(TaskOutcome(name, attempt, ok, len(value), seconds, runner, PeerId(client), direct))
            if not ok and not value:
                # Tried again elsewhere: there is no error to keep.
                continue
            values[name] = Value(ok, value, attempt)
            if askers.by_task and name in askers.by_task:
                for asker in askers.pop(name):
                    effects.append(Send(asker, TaskValue(name, attempt, ok, value)))
        if outcomes:
            effects.append(Send(self.manager, TasksFinished(outcomes)))
        if recalled:
            effects.append(Send(self.manager, TasksRecalled(runner, event.incarnation, recalled)))
        return effects

    def _on_message(self, peer: PeerId, message: Message, now: float) -> list[Effect]:
        if type(message) is DropValues:
            for task in message.tasks:
                self.values.pop(task, None)
                self._askers.pop(task)
        elif type(message) is RecallTasks:
            state = self.runners.get(message.runner)
            if state is not None and state.incarnation == message.incarnation:
                return [Recall(message.runner, message.incarnation, message.tasks)]
        elif type(message) is ChangesSent:
            state = self.runners.get(message.reader)
            # The hub is where the manager is. Anybody else could have a runner wait for changes that never come.
            if peer == self.manager and state is not None and state.incarnation == message.incarnation:
                return [
                    ChangesAnnounced(message.reader, message.incarnation, message.count),
                    Send(peer, AcknowledgeList(message.name, message.version, message.reader)),
                ]
        elif type(message) is AskValue:
            value = self.values.get(message.task)
            if value is not None:
                return [
                    Introduce(message.asker),
                    Send(message.asker.peer, TaskValue(message.task, 0, value.ok, value.data)),
                ]
            self._askers.add(message.task, message.asker.peer, now)
            return [Introduce(message.asker)]
        return []

    def _on_exited(self, event: RunnerExited, now: float) -> list[Effect]:
        state = self.runners.get(event.runner)
        if state is None or state.incarnation != event.incarnation:
            return []
        quick = now - state.started_at < QUICK_END_S
        state.quick_ends = state.quick_ends + 1 if quick else 0
        state.failed_starts = 0 if state.ref is not None else state.failed_starts + 1
        effects: list[Effect] = [
            Forget(event.runner, event.incarnation, event.reason),
            Send(self.manager, RunnerEnded(event.runner, event.incarnation, event.reason, event.running)),
        ]
        state.ref = None
        if state.failed_starts >= FAILED_STARTS_MAX:
            del self.runners[event.runner]
            return [*effects, RunnerGivenUp(event.runner, event.reason)]
        state.incarnation += 1
        if state.quick_ends > 1:
            state.restart_at = now + RESTART_S
            return effects
        state.started_at = now
        return [*effects, StartRunner(event.runner, state.incarnation)]

    def _on_tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for runner, state in self.runners.items():
            if state.restart_at is not None and state.restart_at <= now:
                state.restart_at, state.started_at = None, now
                effects.append(StartRunner(runner, state.incarnation))
        self._askers.sweep(now)
        return effects

    def next_deadline(self) -> float | None:
        """When a runner is to be started again, or old askers are dropped."""
        times = [state.restart_at for state in self.runners.values() if state.restart_at is not None]
        if self._askers.sweep_at is not None:
            times.append(self._askers.sweep_at)
        return min(times, default=None)

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        for runner, state in self.runners.items():
            assert runner.startswith(self.own) and state.incarnation >= 1
        assert not set(self._askers.by_task) & set(self.values)
        self._askers.check_invariants()
