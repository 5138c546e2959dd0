"""Simulated systems with reactions: nodes that react, and that run the code of reactions in virtual time.

Code objects name functions of the world. A node runs those that its machines ask for one after the other, each after a
random time, as the reactor's thread does; a program there that publishes waits as `publish` of the client does. The
head keeps code objects, and names the helper.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Any

from raskid.core.chains import Passing
from raskid.core.codestore import CodeStore
from raskid.core.effects import (
    Arrived,
    CheckCode,
    DropCode,
    Effect,
    ListChanged,
    Passed,
    ReactionReported,
    RunCode,
    Send,
)
from raskid.core.events import CodeRan, Handled, PeerJoined, Publish, Received, Subscribed, Took, WatchList
from raskid.core.targets import Target
from raskid.model.ids import CodeId, PeerId, RequestId
from raskid.model.operations import CODE, LANGUAGE, LANGUAGE_VERSION, Operation
from raskid.model.topics import REACTIONS, list_name
from raskid.protocol.messages import AskHelper, Code, HelperGiven, Message, PeerRef, PutCode, PutRecord
from raskid.protocol.reactions import JUST_DELIVER, PULL, Reaction, encode_reaction
from raskid.protocol.values import decode_body, encode_body
from raskid.testing.simulator import HEAD, Node, World


class HelperDesk:
    """Tells publishers who the helper is, as soon as there is one; in a real head the steward does."""

    handles: frozenset[type[Message]] = frozenset({AskHelper})

    def __init__(self, world: ReactingWorld) -> None:
        self.world = world
        self.helper: PeerRef | None = None
        self.waiting: list[tuple[PeerId, RequestId]] = []

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in an event."""
        if type(event) is PeerJoined and event.peer == self.world.helper:
            self.helper = PeerRef(event.peer, event.incarnation, event.addresses)
        elif type(event) is Received and isinstance(event.message, AskHelper):
            self.waiting.append((event.peer, event.message.request))
        if self.helper is None:
            return []
        waiting, self.waiting = self.waiting, []
        return [Send(peer, HelperGiven(request, self.helper)) for peer, request in waiting]

    def next_deadline(self) -> float | None:
        """Never."""
        return None

    def check_invariants(self) -> None:
        """There are none."""


class ReactingNode(Node):
    """A process whose program reacts, publishes, and runs code."""

    world: ReactingWorld

    def __init__(self, world: ReactingWorld, name: PeerId, incarnation: int, origin: int, offset: float) -> None:
        self.desk = HelperDesk(world)
        super().__init__(world, name, incarnation, origin, offset)
        #: The reactions made here.
        self.reactions: dict[RequestId, Reaction] = {}
        #: For each reaction, who said from which number on its messages come.
        self.introduced: dict[RequestId, dict[PeerId, int]] = {}
        #: What was acknowledged here: the publisher, the message's number, its values.
        self.handled: list[tuple[PeerId, int, tuple[Any, ...]]] = []
        self.reported: list[ReactionReported] = []
        #: For each list that was watched: its versions from the first one on, and the values of its records then.
        self.changes: dict[str, list[tuple[int, dict[str, bytes]]]] = {}
        #: Code that was asked for, the first of which runs since `began`.
        self.jobs: deque[RunCode] = deque()
        self.began: float | None = None
        #: Those of them that are not to run.
        self.dropped: set[int] = set()
        #: Messages for which a program waits, and those of them of which it was not told yet that they are through.
        self.open: list[Passing] = []
        self.untold: set[int] = set()

    def more_machines(self) -> list[Any]:
        """At the head, what reactions need there."""
        machines = super().more_machines()
        return [*machines, CodeStore(), self.desk] if self.name == HEAD else machines

    # ── What an application does ──

    def react(
        self, topic: str, *operations: Operation, settle_s: float = 5.0, **fields: Any
    ) -> tuple[RequestId, RequestId]:
        """React to a topic with a chain; returns the ids of the reaction and of the request that settles it.

        Args:
            topic: The topic's name.
            operations: The chain; without one every message is delivered.
            settle_s: How long the hub waits for publishers, in seconds.
            fields: Further fields of `Reaction`.
        """
        reaction = Reaction(self.ref, operations or JUST_DELIVER, **fields)
        identifier, request = RequestId(self.ids.take()), RequestId(self.ids.take())
        self.reactions[identifier] = reaction
        self.arrived[identifier] = []
        self.introduced[identifier] = {}
        self.do(Subscribed(identifier, reaction.capacity))
        for operation in (*operations, reaction.metric):
            if operation is not None and operation.op == CODE:
                code = self.world.codes[CodeId(operation.args[0])]
                self.send(PutCode(RequestId(self.ids.take()), code))
        value = encode_reaction(reaction)
        self.send(PutRecord(request, list_name(REACTIONS, topic), str(identifier), value, settle_s=settle_s))
        return identifier, request

    def watch(self, name: str) -> None:
        """Follow a list, and note its changes."""
        self.changes[name] = []
        self.do(WatchList(name))

    def ask(self, reaction: RequestId, publisher: PeerId, count: int) -> None:
        """Ask a publisher for so many messages."""
        self.do(Took(reaction, publisher, count))

    def may_publish(self, topic: str) -> bool:
        """Whether a publishing call would not have to wait, and none is waiting."""
        self.open = [it for it in self.open if not it.done or any(_waits(*place) for place in it.waiting)]
        return super().may_publish(topic) and not self.open and not self.untold

    def publish_values(self, topic: str, *values: Any) -> None:
        """Publish as a thread of a program does; only when `may_publish` is true again has the call returned."""

        def act() -> None:
            messaging = self.messaging
            if topic not in messaging.complex:
                effects = messaging.publish(topic, encode_body(values, {}), True, self.clock)
            else:
                passing = messaging.begin(topic, True, self.clock)
                if passing is None:
                    return
                passing.told = True
                effects = messaging.go(passing, values, {}, self.clock)
                self.open.append(passing)
                if not passing.done:
                    self.untold.add(passing.id)
            effects += messaging.collect()
            self.world.perform(self, self.station.perform(effects, self.clock))

        self.world.deliver(self, f"publish {values} on {topic}", act)

    def publish_in_callback(self, topic: str, *values: Any) -> None:
        """Publish without ever waiting."""
        self.do(Publish(topic, encode_body(values, {})))

    # ── What the station asks for ──

    def take(self, one: Arrived) -> None:
        """Take one message; what has to be acknowledged is handled for a while first."""
        world = self.world
        reaction = self.reactions.get(one.subscription)
        if reaction is None or not (reaction.ack or reaction.overflow == PULL):
            super().take(one)
        elif reaction.ack:

            def handled() -> None:
                self.handled.append((one.publisher, one.numbers[0], values_of(one)))
                world.handle(self, Handled(one.subscription, one.publisher, one.numbers))

            world.later(world.random.uniform(0, self.take_s), self, "handle", handled)

    def on_effect(self, effect: Any) -> None:
        """Run code, and note what concerns reactions."""
        kind = type(effect)
        if kind is RunCode:
            self.jobs.append(effect)
            self._begin_job()
        elif kind is DropCode:
            if self.began is None or self.jobs[0].job != effect.job:
                self.dropped.add(effect.job)
        elif kind is CheckCode:
            self.world.later(0.0, self, "check code", lambda: self._check_job(effect.job))
        elif kind is Passed:
            self.untold.discard(effect.message)
        elif kind is ReactionReported:
            self.reported.append(effect)
        elif kind is ListChanged and effect.name in self.changes:
            self._note_change(effect)
        else:
            if kind is Arrived and effect.numbers and not effect.bodies:
                self.introduced[effect.subscription][effect.publisher] = effect.numbers[0]
            super().on_effect(effect)

    def _note_change(self, change: ListChanged) -> None:
        changes, replica = self.changes[change.name], self.lists.replicas[change.name]
        if change.record is None:
            # It may be further by now.
            changes.append((replica.version, {name: it.value for name, it in replica.records.items()}))
        elif changes and change.version > changes[-1][0]:
            records = dict(changes[-1][1])
            records.pop(change.record, None)
            if change.put is not None:
                records[change.record] = change.put.value
            changes.append((change.version, records))

    def _begin_job(self) -> None:
        if self.began is not None or not self.jobs:
            return
        self.began = self.clock
        job, world = self.jobs[0].job, self.world
        world.later(world.random.uniform(0, world.code_s), self, "code", lambda: self._end_job(job))

    def _end_job(self, job: int) -> None:
        if not self.jobs or self.jobs[0].job != job:
            # Its time was up.
            return
        effect = self.jobs[0]
        if job in self.dropped:
            self._answer(CodeRan(job, [], "Dropped", "its reaction has ended"))
            return
        function = self.world.functions[effect.code.code]
        try:
            ran = CodeRan(job, [function(*args, **fields) for args, fields in effect.calls])
        except ArithmeticError as error:
            ran = CodeRan(job, [], type(error).__name__, str(error))
        self._answer(ran)

    def _check_job(self, job: int) -> None:
        if not self.jobs or self.jobs[0].job != job or self.began is None:
            return
        seconds = self.jobs[0].seconds
        if self.clock - self.began >= seconds:
            self._answer(CodeRan(job, [], "TimeLimit", f"it ran longer than {seconds:g} s"))

    def _answer(self, ran: CodeRan) -> None:
        self.jobs.popleft()
        self.began = None
        self.world.handle(self, ran)
        self._begin_job()


class ReactingWorld(World):
    """A world of nodes that react."""

    def __init__(self, seed: int, lease_s: float = 20.0, delay_s: float = 0.02) -> None:
        super().__init__(seed, lease_s, delay_s)
        #: How long code runs, at most.
        self.code_s = 0.05
        self.functions: dict[CodeId, Callable[..., Any]] = {}
        self.codes: dict[CodeId, Code] = {}
        #: The client that runs reactions for publishers.
        self.helper = PeerId("")

    def new_node(self, name: PeerId, incarnation: int, origin: int, offset: float) -> Node:
        """Every node may react."""
        return ReactingNode(self, name, incarnation, origin, offset)

    def add_helper(self, name: str) -> ReactingNode:
        """A client that the head names as the helper."""
        self.helper = PeerId(name)
        node = self.add_client(name)
        assert isinstance(node, ReactingNode)
        return node

    def add_code(self, name: str, function: Callable[..., Any]) -> Operation:
        """A code object: the operation that calls `function`, which may raise an ArithmeticError."""
        blob = name.encode()
        code = CodeId(hashlib.blake2b(blob, digest_size=12).hexdigest())
        self.functions[code] = function
        self.codes[code] = Code(code, blob, name)
        return Operation(CODE, (code, LANGUAGE, LANGUAGE_VERSION), {"name": name})

    def crash(self, name: str) -> None:
        """A node ends; the head sees the end of the helper at once, because it started it."""
        super().crash(name)
        if name == self.helper:
            head = self.nodes[HEAD]
            assert isinstance(head, ReactingNode)
            head.desk.helper = None


def values_of(one: Arrived) -> tuple[Any, ...]:
    """The values of a message by position."""
    return decode_body(one.bodies[0])[0]


def _waits(target: Target, place: int) -> bool:
    """Whether a message still stands in a queue."""
    return any(it[0] == place for it in target.queue)
