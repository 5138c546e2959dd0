"""Simulated systems that run tasks: hosts with runners and their outboxes, and clients that submit.

A host is the head itself or a process of its own; its runners are processes that take virtual time for each task and
look at nothing meanwhile. What a runner recorded lies in its outbox, which outlives it. The functions are a tiny
language, `Work`, so that what a task must give is known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from raskid.core.effects import (
    ChangesAnnounced,
    Effect,
    Recall,
    Record,
    RunnerGivenUp,
    Send,
    StartRunner,
    TaskEnded,
    TaskResolved,
    Told,
)
from raskid.core.events import (
    AddRunner,
    Announce,
    CancelValues,
    OutcomesRead,
    PeerGone,
    PeerJoined,
    Publish,
    RecallDone,
    RecallsRead,
    Received,
    ReleaseValues,
    RunnerExited,
    TaskDone,
    WatchList,
)
from raskid.core.manager import Manager
from raskid.core.node import Node as NodeMachine
from raskid.core.runner import Runner, node_of
from raskid.core.submitter import Submitter
from raskid.model.ids import CodeId, PeerId, TaskId
from raskid.protocol.messages import (
    KIND_CLIENT,
    KIND_HEAD,
    KIND_NODE,
    KIND_RUNNER,
    Code,
    Message,
    PeerRef,
    Placement,
    TasksFinished,
    TaskSpec,
)
from raskid.services.publishing import WRITE_S
from raskid.testing.simulator import HEAD, PRESENCE, SCHEME, Node, World

CODE = Code(CodeId("work"), b"work")
OUTBOX_S = 0.02
#: Where tasks publish.
TOPIC = "tasks"


class Work(msgspec.Struct, frozen=True, array_like=True):
    """What a task does: give the sum of its inputs and `constant`, after `seconds`; raise the first `raises` times.

    Meanwhile it publishes `publishes` numbers on `TOPIC`, from the runner's counter.
    """

    constant: int
    inputs: tuple[int, ...] = ()
    seconds: float = 0.01
    raises: int = 0
    publishes: int = 0


class Box:
    """The memory that a runner shares with its host."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        #: The task that the runner started last, and what was recalled since it last looked.
        self.running = TaskId(0)
        self.recalled: list[tuple[int, int]] = []
        #: How many changes of lists the runner has been sent.
        self.announced = 0


class Bell:
    """Takes reports of nodes to the manager, and empty reports, the bells of outboxes, to the host."""

    handles: frozenset[type[Message]] = frozenset({TasksFinished})

    def __init__(self, host: Host, manager: Manager | None) -> None:
        self.host = host
        self.manager = manager

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in an event."""
        if type(event) is not Received:
            return []
        assert isinstance(event.message, TasksFinished)
        if event.message.outcomes:
            assert self.manager is not None
            return self.manager.handle(event, now)
        self.host.bells.append(event.peer)
        return []

    def next_deadline(self) -> float | None:
        """Never."""
        return None

    def check_invariants(self) -> None:
        """There are none."""


class Host(Node):
    """The head, or a node apart from it: starts runners and reads their outboxes."""

    world: TaskWorld
    manager: Manager | None
    machine: NodeMachine

    @property
    def kind(self) -> str:
        """The head, or a node."""
        return KIND_HEAD if self.name == HEAD else KIND_NODE

    def more_machines(self) -> list[Any]:
        """The manager on the head, and the node."""
        self.bells: list[PeerId] = []
        self.outboxes: dict[PeerId, tuple[int, Box]] = {}
        self.given_up: list[RunnerGivenUp] = []
        self.manager = Manager(self.name) if self.name == HEAD else None
        self.machine = NodeMachine(self.name, HEAD)
        return [*([self.manager] if self.manager is not None else []), self.machine, Bell(self, self.manager)]

    def on_effect(self, effect: Any) -> None:
        """Start runners."""
        if type(effect) is StartRunner:
            box = Box()
            self.outboxes[effect.runner] = (effect.incarnation, box)
            delay = self.world.random.uniform(0.05, 0.3)
            self.world.later(delay, self, f"start {effect.runner}", lambda: self.world.start_runner(self, effect, box))
        elif type(effect) is Recall:
            self.recall(effect)
        elif type(effect) is ChangesAnnounced:
            incarnation, box = self.outboxes.get(effect.runner, (0, Box()))
            if incarnation == effect.incarnation:
                box.announced = max(box.announced, effect.count)
        elif type(effect) is RunnerGivenUp:
            self.given_up.append(effect)
        else:
            super().on_effect(effect)
            if type(effect) is Told and isinstance(effect.event, PeerGone) and effect.event.peer == HEAD:
                self.world.later(0.0, None, f"{self} ends, for the head is gone", self.end)

    def end(self) -> None:
        """End without the head."""
        if self.alive:
            self.world.crash(self.name)

    def after_event(self) -> None:
        """Read the outboxes of those that rang."""
        while self.bells:
            self.read(self.bells.pop())

    def read(self, runner: PeerId) -> None:
        """Read an outbox."""
        incarnation, box = self.outboxes.get(runner, (0, Box()))
        if box.records:
            entries = [
                (int(r.task), r.attempt, r.ok, r.seconds, str(r.client), r.value, r.direct, r.started)
                for r in box.records
            ]
            box.records.clear()
            self.world.handle(self, OutcomesRead(runner, incarnation, entries))

    def recall(self, effect: Recall) -> None:
        """Take tasks back from a runner."""
        incarnation, box = self.outboxes.get(effect.runner, (0, Box()))
        if incarnation != effect.incarnation:
            return
        box.recalled += effect.tasks
        running = box.running
        self.read(effect.runner)
        never = [pair for pair in effect.tasks if pair[0] != running]
        started = [pair for pair in effect.tasks if pair[0] == running]
        self.world.handle(self, RecallDone(effect.runner, incarnation, never, started))

    def exited(self, runner: PeerId, incarnation: int) -> None:
        """A runner's process has ended."""
        if self.outboxes[runner][0] == incarnation:
            self.read(runner)
            self.world.handle(self, RunnerExited(runner, incarnation, "crashed", self.outboxes[runner][1].running))


class Worker(Node):
    """A runner's process."""

    world: TaskWorld
    machine: Runner
    outbox: Box

    @property
    def kind(self) -> str:
        """A runner."""
        return KIND_RUNNER

    @property
    def agent(self) -> PeerId:
        """Its node answers for it."""
        return self.host

    def more_machines(self) -> list[Any]:
        """The runner."""
        self.rung = 0
        self.stopping = False
        #: The task whose function runs now.
        self.inside: TaskId | None = None
        #: What the running task has still to publish, and the last number that was published.
        self.unpublished = 0
        self.number = 0
        #: It looks at its connections in the middle of the task; a publish has not returned.
        self.looking = False
        self.writing = False
        self.machine = Runner(PeerRef(self.name, self.incarnation, (SCHEME + self.name,)))
        return [self.machine]

    @property
    def host(self) -> PeerId:
        """The node that started it."""
        return node_of(self.name)

    def on_effect(self, effect: Any) -> None:
        """Write outcomes down; end when told to."""
        if type(effect) is Record:
            self.outbox.records.append(effect)
            if (told := self.world.recorded.pop(effect.task, None)) is not None:
                told(self)
            self.rung += not effect.direct
            host = self.world.nodes[self.host]
            self.world.later(OUTBOX_S, host, f"read {self.name}", lambda: host.read(self.name))  # type: ignore[attr-defined]
        else:
            super().on_effect(effect)
            if type(effect) is Told and isinstance(effect.event, PeerGone) and effect.event.peer == self.host:
                self.stopping = True

    def ring(self) -> None:
        """Tell the node that there is something in the outbox."""
        if self.rung:
            self.rung = 0
            effects = self.station.perform([Send(self.host, TasksFinished([]))], self.clock)
            self.world.perform(self, effects)

    def after_event(self) -> None:
        """Run the next task, if there is one."""
        if self.busy or self.looking or not self.alive:
            return
        if self.stopping:
            self.world.crash(self.name)
            return
        placement = self.machine.next_task()
        if placement is None:
            if self.outbox.recalled:
                recalled, self.outbox.recalled = self.outbox.recalled, []
                self.world.handle(self, RecallsRead(recalled))
                return
            self.ring()
            return
        if self.world.random.random() < 0.5:
            # Otherwise the next task starts before the look at the connections that writes the bell.
            self.busy = True
            self.ring()
        self.busy = True
        # It says what it starts, and only then looks for recalls: its host may look in between.
        self.outbox.running = placement.spec.task
        delay = self.world.random.choice((0.0, 0.0, 0.001))
        self.world.later(delay, None, f"{self} starts task {placement.spec.task}", lambda: self.begin(placement))

    def begin(self, placement: Placement) -> None:
        """Look for recalls, and run the task unless it is among them."""
        if not self.alive:
            return
        if self.suspended:
            self.world.later(0.01, None, f"{self} is suspended", lambda: self.begin(placement))
            return
        recalled = self.outbox.recalled
        if recalled:
            self.outbox.recalled = []
            self.world.handle(self, RecallsRead(recalled))
            if self.machine.running is None:
                self.busy = False
                self.world.release_held(self)
                self.after_event()
                return
        self.world.runs.append((self.name, self.incarnation, placement))
        self.inside = placement.spec.task
        work = msgspec.msgpack.decode(placement.spec.arguments, type=Work)
        self.unpublished = work.publishes
        for number in range(work.publishes):
            delay = (number + self.world.random.random()) * work.seconds / work.publishes
            self.world.later(delay, None, f"{self} publishes", self.publish_inside)
        self.world.later(work.seconds, None, f"{self} ends task {placement.spec.task}", lambda: self.finish(placement))

    def publish_inside(self) -> None:
        """The running task publishes, as `raskid.services.publishing` does: it looks at the connections only when there
        is something that it has to know, and goes on when it knows."""
        if not self.alive:
            return
        plan = self.messaging.plans.get(TOPIC)
        if plan is None or self.outbox.announced > self.lists.changes or any(it.credit <= 0 for it in plan):
            self.look()
            if TOPIC not in self.messaging.plans:
                self.world.handle(self, Announce(TOPIC))
            if TOPIC not in self.messaging.plans or self.outbox.announced > self.lists.changes:
                self.world.later(self.world.random.uniform(0, 0.005), None, f"{self} waits", self.publish_inside)
                return
        if self.suspended or self.writing:
            self.world.later(0.01, None, f"{self} is not through", self.publish_inside)
            return
        self.number += 1
        self.world.published.append((self.world.now, self.name, self.incarnation, self.number))
        self.world.handle(self, Publish(TOPIC, str(self.number).encode()))
        self.writing = True
        self.write_inside(self.world.now + WRITE_S)

    def write_inside(self, until: float) -> None:
        """The publish returns when there is room for it, and it is written."""
        if not self.alive:
            return
        self.look()
        unsent = self.world.now < until and self.station.peer.unsent()
        if unsent or self.messaging.blocked(TOPIC) or self.suspended:
            delay = self.world.random.uniform(0, 0.005)
            self.world.later(delay, None, f"{self} writes", lambda: self.write_inside(until))
            return
        self.writing = False
        self.unpublished -= 1

    def look(self) -> None:
        """In the middle of a task: take in what has come."""
        self.busy, self.looking = False, True
        self.world.release_held(self)
        self.busy, self.looking = True, False

    def finish(self, placement: Placement) -> None:
        """The task's time is over."""
        if not self.alive:
            return
        if self.suspended or self.unpublished:
            self.world.later(0.01, None, f"{self} is not through", lambda: self.finish(placement))
            return
        ok, value = self.execute(placement)
        self.inside = None
        seconds = msgspec.msgpack.decode(placement.spec.arguments, type=Work).seconds
        # Half the time look at the connections before the next task, as after one that took long.
        look = self.busy = self.world.random.random() < 0.5
        self.world.handle(self, TaskDone(ok, value, seconds))
        if look:
            self.ring()
            self.busy = False
        self.world.release_held(self)
        self.after_event()

    def execute(self, placement: Placement) -> tuple[bool, bytes]:
        """What the task gives."""
        spec = placement.spec
        failed = self.machine.failed_input(placement)
        if failed is not None:
            return False, failed.data
        work = msgspec.msgpack.decode(spec.arguments, type=Work)
        if placement.raised < work.raises:
            return False, b"raised"
        inline = dict(spec.inline)
        total = work.constant
        for name in work.inputs:
            data = inline.get(TaskId(name))
            total += msgspec.msgpack.decode(self.machine.value(TaskId(name)).data if data is None else data, type=int)
        return True, msgspec.msgpack.encode(total)


class Client(Node):
    """A client that submits tasks; knows what each must give."""

    world: TaskWorld
    submitter: Submitter

    @property
    def kind(self) -> str:
        """A client."""
        return KIND_CLIENT

    def more_machines(self) -> list[Any]:
        """The submitter."""
        own = PeerRef(self.name, self.incarnation, (SCHEME + self.name,))
        self.submitter = Submitter(own, HEAD, self.ids, self.lists)
        self.submitter.codes[CODE.code] = CODE
        #: For each task the right value, None where it must fail.
        self.right: dict[TaskId, int | None] = {}
        self.results: dict[TaskId, list[TaskResolved | TaskEnded]] = {}
        return [self.submitter]

    def submit(
        self, constant: int, inputs: Iterable[TaskId] = (), seconds: float = 0.01, raises: int = 0, retries: int = 0,
        publishes: int = 0,
    ) -> TaskId:  # fmt: skip
        """Submit a task; it is sent soon."""
        names = tuple(inputs)
        task = TaskId(self.ids.take())
        parts = [self.right[name] for name in names]
        bad = raises > retries or any(part is None for part in parts)
        self.right[task] = None if bad else constant + sum(part for part in parts if part is not None)
        self.results[task] = []
        work = msgspec.msgpack.encode(Work(constant, names, seconds, raises, publishes))
        spec = TaskSpec(task, CODE.code, work, tuple(dict.fromkeys(names)), 0, retries)
        effects = self.submitter.submit(spec, self.clock)
        self.world.perform(self, self.station.perform(effects, self.clock))
        if self.world.random.random() < 0.3:
            self.flush()
        else:
            self.world.later(self.world.random.uniform(0, 0.005), self, "flush", self.flush)
        return task

    def flush(self) -> None:
        """Send what collected."""
        self.world.perform(self, self.station.perform(self.submitter.flush(), self.clock))

    def release(self, tasks: Iterable[TaskId]) -> None:
        """Nobody wants these any more."""
        self.do(ReleaseValues(list(tasks)))

    def cancel(self, tasks: Iterable[TaskId]) -> None:
        """Do not start these."""
        self.do(CancelValues(list(tasks)))

    def on_effect(self, effect: Any) -> None:
        """Note outcomes."""
        if type(effect) is TaskResolved or type(effect) is TaskEnded:
            self.results[effect.task].append(effect)
            if isinstance(effect, TaskEnded) and effect.code == "TaskCancelled":
                self.world.cancelled[effect.task] = len(self.world.runs)
                inside = [worker for worker in self.world.workers() if worker.inside == effect.task]
                self.world.check(not inside, f"task {effect.task} is said to be cancelled, and runs on {inside}")
            self.world.check(len(self.results[effect.task]) == 1, f"{self}: {self.results[effect.task]}")
        else:
            super().on_effect(effect)

    def done(self, tasks: Iterable[TaskId] | None = None) -> bool:
        """Whether all tasks (or these) have an outcome."""
        return all(self.results[task] for task in (self.results if tasks is None else tasks))

    def check_right(self, tasks: Iterable[TaskId] | None = None) -> None:
        """Every task (or these) has its right value, or its error."""
        for task in self.results if tasks is None else tasks:
            (result,) = self.results[task]
            right = self.right[task]
            if right is None:
                failed = result.code == "InputFailed" if isinstance(result, TaskEnded) else not result.ok
                self.world.check(failed, f"task {task} must fail: {result}")
            else:
                good = isinstance(result, TaskResolved) and result.ok and result.value == msgspec.msgpack.encode(right)
                self.world.check(good, f"task {task} must give {right}: {result}")


class TaskWorld(World):
    """A world with hosts, runners and clients that submit."""

    def __init__(self, seed: int, lease_s: float = 600.0, delay_s: float = 0.02) -> None:
        super().__init__(seed, lease_s, delay_s)
        #: Every start of a task: the runner, its incarnation, the placement.
        self.runs: list[tuple[PeerId, int, Placement]] = []
        #: What tasks published: when, the runner, its incarnation, the number.
        self.published: list[tuple[float, PeerId, int, int]] = []
        #: For each task that ended as cancelled, how many starts there had been by then.
        self.cancelled: dict[TaskId, int] = {}
        #: Whom to tell when a runner has written an outcome of this task into its outbox.
        self.recorded: dict[TaskId, Callable[[Worker], None]] = {}
        self._hosts: set[PeerId] = {HEAD}

    def new_node(self, name: PeerId, incarnation: int, origin: int, offset: float) -> Node:
        """A host, a runner or a client, by its name."""
        kind = Host if name in self._hosts else Worker if "/" in name else Client
        return kind(self, name, incarnation, origin, offset)

    def add_system(self, runners: int = 2, nodes: int = 0, clients: str = "a") -> list[Client]:
        """A head with runners, nodes with as many, and clients; they know one another when this returns."""
        head = self.add_host(HEAD, runners)
        identity = head.station.peer.identity
        # The node on the head is the head; the manager hears of it as of any other.
        head.do(PeerJoined(HEAD, 1, KIND_NODE, identity.role, identity.addresses))
        for number in range(nodes):
            self.add_host(f"n{number}", runners)
        found = [self.add_submitter(name) for name in clients]
        manager = self.manager
        self.run_until(lambda: len(manager._pool.runners) == runners * (nodes + 1), what="all runners are there")
        return found

    def add_host(self, name: str, runners: int = 2) -> Host:
        """A node with runners; the one on the head is named like it."""
        self._hosts.add(PeerId(name))
        host = self._add(PeerId(name), 1)
        assert isinstance(host, Host)
        for _ in range(runners):
            host.do(AddRunner())
        return host

    def add_submitter(self, name: str) -> Client:
        """A client."""
        client = self._add(PeerId(name), 1)
        assert isinstance(client, Client)
        client.do(WatchList(PRESENCE))
        return client

    @property
    def manager(self) -> Manager:
        """The head's manager."""
        head = self.nodes[HEAD]
        assert isinstance(head, Host) and head.manager is not None
        return head.manager

    def hosts(self) -> list[Host]:
        """Living hosts."""
        return [node for node in self.nodes.values() if isinstance(node, Host) and node.alive]

    def workers(self) -> list[Worker]:
        """Living runners."""
        return [node for node in self.nodes.values() if isinstance(node, Worker) and node.alive]

    def run_until_recorded(self, task: TaskId, limit_s: float = 60.0) -> Worker:
        """Let time pass until a runner has written an outcome of `task` into its outbox, and to nobody yet."""
        seen: list[Worker] = []
        self.recorded[task] = seen.append
        end = self.now + limit_s
        while not seen:
            self.check(self.now < end, f"no runner has an outcome of task {task}")
            self.run(self._heap[0][0] - self.now)
        return seen[0]

    def start_runner(self, host: Host, effect: StartRunner, outbox: Box) -> None:
        """A runner's process begins."""
        self._origin += 1
        old = self.nodes.get(effect.runner)
        assert old is None or not old.alive, f"{effect.runner} runs already"
        worker = Worker(self, effect.runner, effect.incarnation, self._origin, self.random.uniform(0, 1000))
        self.nodes[effect.runner] = worker
        worker.outbox = outbox
        worker.station.peer.introduce(PeerRef(host.name, 0, (SCHEME + host.name,)), worker.clock)
        worker.rung = 1
        worker.ring()

    def crash(self, name: str) -> None:
        """A process ends; a runner's node hears of it, and a host's runners end with it, at once or later."""
        node = self.nodes[PeerId(name)]
        if not node.alive:
            return
        super().crash(name)
        if isinstance(node, Worker):
            host = self.nodes[node.host]
            delay = self.random.uniform(0, 0.05)
            self.later(delay, host, f"{node} has ended", lambda: host.exited(node.name, node.incarnation))  # type: ignore[attr-defined]
        elif isinstance(node, Host):
            for worker in self.workers():
                if worker.host == node.name:
                    delay = self.random.choice((0.0, 0.5, self.lease_s))
                    self.later(delay, None, f"{worker} ends with its node", lambda w=worker: self._end_with(w))  # type: ignore[misc]

    def _end_with(self, worker: Worker) -> None:
        if worker.alive:
            self.crash(worker.name)

    def check_empty(self, limit_s: float = 100.0) -> None:
        """Nothing is left of any task: the property after everything was released."""
        end = self.now + limit_s
        while self.left() and self.now < end:
            self.run(0.1)
        self.check(not self.left(), f"left over: {self.left()}")

    def left(self) -> list[str]:
        """What is left of tasks, in words."""
        manager = self.manager
        found = [entry.story() for entry in manager._tasks.values()]
        found += [f"early {task}" for task in manager._early]
        for host in self.hosts():
            found += [f"{host} keeps task {task}" for task in host.machine.values]
            askers = host.machine._askers.by_task
            found += [f"{host} has {len(askers[task])} askers of {task}" for task in askers]
        for worker in self.workers():
            machine = worker.machine
            for what in ("_tasks", "values", "inputs", "_users", "_asks"):
                found += [f"{worker} has {task} in {what}" for task in getattr(machine, what)]
            found += [f"{worker} has askers of {task}" for task in machine._askers.by_task]
        for node in self.nodes.values():
            if isinstance(node, Client) and node.alive:
                submitter = node.submitter
                found += [f"{node} waits for {task}" for task in submitter.out]
                found += [f"{node} has direct value {task}" for task in submitter._direct_values]
                found += [f"{node} holds {spec.task}" for spec in submitter._held]
        return found
