"""Random lives of a small system around the manager: in the end every wanted task has an outcome and nothing leaks."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raskid.core.effects import Introduce, Send
from raskid.core.events import PeerGone, PeerJoined, Received, Tick
from raskid.core.manager import Manager
from raskid.model.ids import CodeId, PeerId, RequestId, TaskId
from raskid.protocol.messages import (
    CancelTasks,
    Code,
    DropValues,
    LeaseEnded,
    LeaseGranted,
    PeerRef,
    Placement,
    RecallTasks,
    ReleaseTasks,
    RequestLease,
    RunnerEnded,
    RunnerStarted,
    RunTasks,
    SubmitTasks,
    TaskFailed,
    TaskOutcome,
    TasksCancelled,
    TasksFinished,
    TaskSpec,
    TasksRecalled,
)

F = CodeId("f")
CLIENTS = ("c1", "c2")


@dataclass
class FakeNode:
    values: dict[int, bool] = field(default_factory=dict)


@dataclass
class FakeRunner:
    node: str
    placements: dict[int, Placement] = field(default_factory=dict)
    #: Whether each kept outcome is a value (or an error).
    values: dict[int, bool] = field(default_factory=dict)
    #: The newest attempt of each of these that was taken back.
    recalled: dict[int, int] = field(default_factory=dict)
    codes: set[str] = field(default_factory=set)


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.manager = Manager(PeerId("head"))
        self.now = 0.0
        self.count = 0
        self.nodes: dict[str, FakeNode] = {}
        self.runners: dict[str, FakeRunner] = {}
        self.homes: dict[str, str] = {}
        self.clients: dict[str, int] = {}
        self.wanted: dict[int, str] = {}
        self.resolved: set[int] = set()
        self.leases: dict[str, set[str]] = {}
        self.answers: list[tuple[str, TasksRecalled]] = []
        #: Tasks of which their client heard that it is too late to cancel them.
        self.uncancelled: set[int] = set()
        for client in CLIENTS:
            self.join(client)

    # What the fakes do.

    def event(self, event: Any) -> None:
        effects = self.manager.handle(event, self.now)
        self.manager.check_invariants()
        for effect in effects:
            if isinstance(effect, Introduce):
                continue
            assert isinstance(effect, Send)
            self.deliver(effect.peer, effect.message)

    def tell(self, peer: str, message: Any) -> None:
        self.event(Received(PeerId(peer), message))

    def deliver(self, peer: str, message: Any) -> None:
        if isinstance(message, RunTasks):
            runner = self.runners[peer]
            runner.codes |= {code.code for code in message.codes}
            for placement in message.placements:
                assert placement.spec.code in runner.codes
                if runner.recalled.get(placement.spec.task, 0) >= placement.attempt:
                    continue
                known = runner.placements.get(placement.spec.task)
                assert known is None or known.attempt <= placement.attempt
                runner.placements[placement.spec.task] = placement
        elif isinstance(message, DropValues):
            values = (self.runners[peer] if peer in self.runners else self.nodes[peer]).values
            for task in message.tasks:
                values.pop(task, None)
            if message.codes:
                assert not any(p.spec.code in message.codes for p in self.runners[peer].placements.values())
                self.runners[peer].codes -= set(message.codes)
        elif isinstance(message, RecallTasks):
            self.recall(message)
        elif isinstance(message, CancelTasks):
            runner = self.runners[peer]
            placements = [runner.placements.pop(task, None) for task in message.tasks]
            left = [(placement.spec.task, placement.attempt) for placement in placements if placement is not None]
            if left:
                self.answers.append((peer, TasksRecalled(PeerId(peer), 1, left)))
        elif isinstance(message, TaskFailed):
            assert self.wanted[message.task] == peer
            self.resolved.add(message.task)
        elif isinstance(message, TasksCancelled):
            self.resolved |= set(message.tasks)
            self.uncancelled |= set(message.started)
        elif isinstance(message, LeaseGranted):
            self.leases[peer].add(message.runner.peer)
        elif isinstance(message, LeaseEnded):
            self.leases[peer].discard(message.runner)

    def recall(self, message: RecallTasks) -> None:
        """Some have started, as far as the node can see; it answers later."""
        runner = self.runners.get(message.runner)
        if runner is None:
            return
        never, started = [], []
        for task, attempt in message.tasks:
            placement = runner.placements.get(task)
            if task % 3 == 0 and placement is not None:
                started.append((task, attempt))
                continue
            runner.recalled[task] = max(attempt, runner.recalled.get(task, 0))
            never.append((task, attempt))
            if placement is not None and placement.attempt <= attempt:
                del runner.placements[task]
        answer = TasksRecalled(message.runner, message.incarnation, never, started)
        self.answers.append((runner.node, answer))

    @precondition(lambda self: self.answers)
    @rule(newest=st.booleans())
    def answer(self, newest: bool) -> None:
        # Node and runner answer over links of their own, so in any order.
        node, message = self.answers.pop(-1 if newest else 0)
        if message.runner in self.runners:
            self.tell(node, message)

    def join(self, client: str) -> None:
        self.count += 1
        self.clients[client] = self.count
        self.leases[client] = set()
        self.event(PeerJoined(PeerId(client), self.count, "client", "execute"))

    def begin(self, node: str) -> str:
        if node not in self.nodes:
            self.nodes[node] = FakeNode()
            self.event(PeerJoined(PeerId(node), 1, "node", "execute"))
        self.count += 1
        runner = f"r{self.count}"
        self.runners[runner] = FakeRunner(node)
        self.homes[runner] = node
        self.tell(node, RunnerStarted(PeerRef(PeerId(runner), 1), 1, "host"))
        return runner

    def kept(self, keeper: str, task: int) -> bool | None:
        if keeper in self.runners:
            return self.runners[keeper].values.get(task)
        node = self.nodes.get(self.homes.get(keeper, keeper))
        return None if node is None else node.values.get(task)

    def execute(self, name: str, runner: FakeRunner, task: int, ok: bool) -> bool:
        placement = runner.placements[task]
        spec = placement.spec
        # Values that are here already need nobody; the rest comes from the keepers named.
        inputs = [self.kept(keeper, n) for keeper, n in zip(placement.keepers, spec.inputs, strict=True)]
        if None in inputs:
            return False
        ok = ok and all(inputs)
        del runner.placements[task]
        if ok or placement.raised >= spec.retries:
            runner.values[task] = ok
            if placement.client in self.clients:
                self.resolved.add(task)
        self.report(name, runner, task, placement.attempt, ok, placement.client)
        return True

    def report(
        self, name: str, runner: FakeRunner, task: int, attempt: int, ok: bool, client: str, direct: bool = False
    ) -> None:
        outcome = TaskOutcome(TaskId(task), attempt, ok, 1, 0.004, PeerId(name), PeerId(client), direct)
        self.tell(runner.node, TasksFinished([outcome]))

    # What may happen.

    @rule(
        client=st.sampled_from(CLIENTS),
        picks=st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=1, max_size=6),
        retries=st.integers(0, 1),
    )
    def submit(self, client: str, picks: list[list[int]], retries: int) -> None:
        specs = []
        for pick in picks:
            known = list(self.wanted)
            inputs = tuple(TaskId(known[-1 - n]) for n in pick if n < len(known))
            self.count += 1
            self.wanted[self.count] = client
            specs.append(TaskSpec(TaskId(self.count), F, b"", inputs, 0, retries))
        self.tell(client, SubmitTasks(specs, [Code(F, b"")]))

    @rule(node=st.sampled_from(("n1", "n2")))
    def start_runner(self, node: str) -> None:
        if len(self.runners) < 4:
            self.begin(node)

    @precondition(lambda self: self.runners)
    @rule(data=st.data(), ok=st.sampled_from((True, True, True, False)), count=st.integers(1, 4))
    def work(self, data: st.DataObject, ok: bool, count: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.runners)))
        runner = self.runners[name]
        for task in list(runner.placements)[:count]:
            if task in runner.placements:
                self.execute(name, runner, task, ok)

    @precondition(lambda self: self.runners)
    @rule(data=st.data())
    def crash_runner(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.runners)))
        runner = self.runners.pop(name)
        self.nodes[runner.node].values.update(runner.values)
        running = next(iter(runner.placements), 0)
        self.tell(runner.node, RunnerEnded(PeerId(name), 1, "crashed", TaskId(running)))

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def crash_node(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.nodes)))
        del self.nodes[name]
        self.runners = {peer: runner for peer, runner in self.runners.items() if runner.node != name}
        self.event(PeerGone(PeerId(name), 1, "crashed"))

    @precondition(lambda self: self.wanted)
    @rule(data=st.data(), count=st.integers(1, 4))
    def release(self, data: st.DataObject, count: int) -> None:
        first = data.draw(st.sampled_from(sorted(self.wanted)))
        for task in [task for task in self.wanted if task >= first][:count]:
            self.tell(self.wanted.pop(task), ReleaseTasks([TaskId(task)]))

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(sorted(self.wanted)))
        self.tell(self.wanted[task], CancelTasks([TaskId(task)]))

    @rule(client=st.sampled_from(CLIENTS))
    def crash_client(self, client: str) -> None:
        self.wanted = {task: owner for task, owner in self.wanted.items() if owner != client}
        self.event(PeerGone(PeerId(client), self.clients.pop(client), "crashed"))
        self.join(client)

    @rule(client=st.sampled_from(CLIENTS))
    def lease(self, client: str) -> None:
        self.tell(client, RequestLease(RequestId(1)))

    @rule(client=st.sampled_from(CLIENTS), early=st.booleans())
    def direct(self, client: str, early: bool) -> None:
        for name in sorted(self.leases[client]):
            self.count += 1
            self.runners[name].values[self.count] = True
            self.resolved.add(self.count)
            if early:
                self.tell(client, ReleaseTasks([TaskId(self.count)]))
            else:
                self.wanted[self.count] = client
            self.report(name, self.runners[name], self.count, 1, True, client, True)

    @rule()
    def tick(self) -> None:
        self.now += 0.06
        self.event(Tick())

    @invariant()
    def consistent(self) -> None:
        self.manager.check_invariants()

    def step(self) -> bool:
        if self.answers:
            self.answer(False)
            return True
        return any(
            task in runner.placements and self.execute(name, runner, task, True)
            for name, runner in list(self.runners.items())
            for task in list(runner.placements)
        )

    def teardown(self) -> None:
        self.begin("n1")
        while self.step():
            pass
        missing = set(self.wanted) - self.resolved
        assert not missing, [self.manager._tasks[TaskId(task)].story() for task in missing]
        for task, client in self.wanted.items():
            self.tell(client, ReleaseTasks([TaskId(task)]))
        self.tick()
        while self.step():
            pass
        assert not self.manager._tasks
        assert not self.manager._early
        assert not any(runner.values or runner.placements for runner in self.runners.values())
        assert not any(True in node.values.values() for node in self.nodes.values())


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
