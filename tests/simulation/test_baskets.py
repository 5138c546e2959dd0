"""The guarantees of baskets, over many simulated systems with faults. ``RASKID_SEEDS=100`` runs 100 times as many."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from raskid.core.basket import Basket, Extract, Page
from raskid.core.effects import Arrived, CallDone, Invoke, PublisherEnded, Told
from raskid.core.events import PeerGone, Reply, Subscribed, Took
from raskid.core.history import History, Messages
from raskid.model.ids import PeerId, RequestId
from raskid.model.operations import KEEP, Operation
from raskid.model.topics import REACTIONS, list_name
from raskid.protocol.messages import PutRecord
from raskid.protocol.reactions import JUST_DELIVER, Reaction, encode_reaction
from raskid.protocol.values import decode_body, encode_body
from raskid.services.basket import publisher_name
from raskid.testing.simulator import Node, World

FACTOR = int(os.environ.get("RASKID_SEEDS", "1"))
LONG_LEASE_S = 600.0
TOPIC = "t"
SERVICE = "basket/main"
CAPACITY = 16
#: How long a reader waits for what may be under way to the basket, in virtual time.
UNDER_WAY_S = 60.0

pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode


def seeds(count: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("seed", range(count * FACTOR))


class NumberedNode(Node):
    """A node with one numbered subscription, whose messages it takes as they come."""

    def start(self) -> RequestId:
        """Subscribe; returns the request that settles it."""
        subscription, request = RequestId(self.ids.take()), RequestId(self.ids.take())
        self.do(Subscribed(subscription, CAPACITY))
        reaction = Reaction(self.ref, JUST_DELIVER, CAPACITY, numbered=True, history=-1)
        name = list_name(REACTIONS, TOPIC)
        self.send(PutRecord(request, name, str(subscription), encode_reaction(reaction), settle_s=30.0))
        return request

    def named(self, peer: PeerId) -> str:
        """What names a publisher, as long as it is there."""
        return self.names.setdefault(peer, publisher_name(self.station.peer, peer))

    @property
    def names(self) -> dict[PeerId, str]:
        """Publishers that something came from."""
        found: dict[PeerId, str] = self.__dict__.setdefault("_names", {})
        return found

    def on_effect(self, effect: Any) -> None:
        """Take messages at once."""
        if type(effect) is Arrived:
            name = self.named(effect.publisher)
            if not effect.bodies:
                self.on_introduced(name, effect.numbers[0])
            for number, body in zip(effect.numbers, effect.bodies, strict=False):
                self.on_message(name, number, body)
            if effect.bodies:
                took = Took(effect.subscription, effect.publisher, len(effect.bodies))
                self.world.later(
                    self.world.random.uniform(0, 0.05), self, "take", lambda: self.world.handle(self, took)
                )
        elif type(effect) is PublisherEnded:
            self.on_ended(self.names.pop(effect.publisher, effect.publisher))
        elif type(effect) is Told and isinstance(effect.event, PeerGone):
            self.on_ended(self.names.pop(effect.event.peer, effect.event.peer))
            super().on_effect(effect)
        else:
            super().on_effect(effect)

    def on_introduced(self, name: str, first: int) -> None:
        raise NotImplementedError

    def on_message(self, name: str, number: int, body: bytes) -> None:
        raise NotImplementedError

    def on_ended(self, name: str) -> None:
        raise NotImplementedError


class BasketNode(NumberedNode):
    """The service of a basket."""

    def __init__(self, *args: Any) -> None:
        self.basket = Basket()
        self.basket.keep(TOPIC, 0.0)
        super().__init__(*args)

    def on_introduced(self, name: str, first: int) -> None:
        self.basket.introduce(TOPIC, name, first)

    def on_message(self, name: str, number: int, body: bytes) -> None:
        self.basket.store(TOPIC, name, number, body, self.clock)

    def on_ended(self, name: str) -> None:
        self.basket.end(TOPIC, name)

    def on_effect(self, effect: Any) -> None:
        if type(effect) is not Invoke:
            super().on_effect(effect)
            return
        what, *args = unpack(effect.body)
        if what == "read":
            page = self.basket.read(TOPIC, args[0], self.world.random.randint(1, 10), 1 << 20)
            answer: Any = (page.messages, page.position, page.complete, page.latest)
        elif what == "read_publisher":
            extract = self.basket.read_publisher(TOPIC, *args, self.world.random.randint(1, 10), 1 << 20)
            answer = (extract.messages, extract.until)
        else:
            messages = [(number, body, age_s) for number, body, age_s in args[1]]
            answer = self.basket.take_over(TOPIC, args[0], messages, self.clock)
        reply = Reply(effect.request, True, pack(answer))
        self.world.later(self.world.random.uniform(0, 0.1), self, "reply", lambda: self.world.handle(self, reply))

    def after_event(self) -> None:
        self.basket.check_invariants()


class AskingNode(NumberedNode):
    """A node that asks the basket."""

    def ask(self, then: Callable[[Any], None], *what: Any) -> None:
        """Ask until there is an answer; `then` gets it."""
        request = self.request(SERVICE, pack(what), 120.0)
        self.__dict__.setdefault("_asked", {})[request] = then

    def on_effect(self, effect: Any) -> None:
        then = self.__dict__.get("_asked", {}).pop(effect.request, None) if type(effect) is CallDone else None
        if then is None:
            super().on_effect(effect)
            return
        self.world.check(effect.ok, f"{self} had no answer: {effect}")
        then(unpack(effect.body))


class ReaderNode(AskingNode):
    """A later subscriber."""

    def __init__(self, *args: Any) -> None:
        self.history = History()
        self.got: dict[str, list[int]] = {}
        self.settled = RequestId(0)
        self.reading = False
        #: What was in the basket when this reader began to read.
        self.owed: dict[str, list[int]] = {}
        self.limits: dict[str, float] = {}
        super().__init__(*args)

    def begin(self) -> None:
        self.settled = self.start()

    def after_event(self) -> None:
        if self.settled in self.replies and not self.reading:
            self.reading = True
            stored = self.world.nodes[PeerId("basket")].basket.read(TOPIC, 0, 1 << 20, 1 << 30)  # type: ignore[attr-defined]
            for name, number, _ in stored.messages:
                self.owed.setdefault(name, []).append(number)
            self.ask(self.on_page, "read", 0)
        self.history.check_invariants()

    def on_page(self, answer: Any) -> None:
        messages, position, complete, latest = answer
        self.take(self.history.stored(Page([tuple(it) for it in messages], position, complete, latest)))
        if not complete:
            self.ask(self.on_page, "read", position)

    def on_answer(self, name: str, last: int, answer: Any) -> None:
        messages, until = answer
        if self.world.now > self.limits.setdefault(name, self.world.now + UNDER_WAY_S):
            until = last
        if until >= last:
            del self.limits[name]
        self.take(self.history.answered(name, Extract([tuple(it) for it in messages], until)), 0.5)

    def on_introduced(self, name: str, first: int) -> None:
        self.take(self.history.introduced(name, first))

    def on_message(self, name: str, number: int, body: bytes) -> None:
        self.take(self.history.live(name, number, body))

    def on_ended(self, name: str) -> None:
        self.take(self.history.publisher_ended(name))

    def take(self, messages: Messages, pause_s: float = 0.0) -> None:
        for name, number, body in messages:
            publisher, sent = decode_body(body)[0]
            # A publisher begins to count when somebody asks for numbers.
            uncounted = self.world.uncounted.setdefault(name, sent - number)  # type: ignore[attr-defined]
            self.world.check(
                (publisher, sent - number) == (name, uncounted), f"{self} got {body!r} as {number} of {name}"
            )
            got = self.got.setdefault(name, [])
            self.world.check(not got or got[-1] < number, f"{self} got {number} of {name} after {got[-3:]}")
            got.append(number)
        for name, first, last in self.history.take_questions():

            def ask(name: str = name, first: int = first, last: int = last) -> None:
                self.ask(lambda answer: self.on_answer(name, last, answer), "read_publisher", name, first, last)

            # Not in the middle of what the machines say.
            self.world.later(pause_s, self, "ask the basket", ask)


class PublisherNode(AskingNode):
    """Publishes, and hands over what it keeps before it leaves."""

    def __init__(self, *args: Any) -> None:
        self.sent = 0
        self.leaving = self.handed_over = False
        self.hand_overs = 0
        super().__init__(*args)

    @property
    def last(self) -> int:
        """The number of the last message."""
        return self.messaging._publication.numbers.get(TOPIC, 0)

    @property
    def own(self) -> str:
        return publisher_name(self.station.peer, self.name)

    def publish_next(self) -> None:
        if self.may_publish(TOPIC) and not self.leaving:
            self.sent += 1
            self.publish(TOPIC, encode_body((self.own, self.sent), {}))

    def hand_over(self) -> None:
        self.leaving = True
        kept = self.messaging.kept(self.clock)
        self.hand_overs = len(kept)
        self.handed_over = not kept
        for _, _, messages in kept:
            self.ask(self._answered, "take_over", self.own, messages)

    def _answered(self, answer: Any) -> None:
        self.hand_overs -= 1
        self.handed_over = self.hand_overs == 0


class BasketWorld(World):
    """Nodes by their names: one basket, readers r…, and publishers."""

    def __init__(self, *args: Any) -> None:
        #: For each publisher how many messages it had sent before it began to count.
        self.uncounted: dict[str, int] = {}
        super().__init__(*args)

    def new_node(self, name: PeerId, incarnation: int, origin: int, offset: float) -> Node:
        kind = {"b": BasketNode, "r": ReaderNode, "p": PublisherNode, "h": Node}[name[0]]
        return kind(self, name, incarnation, origin, offset)


def make(seed: int, lease_s: float = LONG_LEASE_S) -> tuple[BasketWorld, BasketNode, list[PublisherNode]]:
    """A system with a basket that keeps the topic, and three publishers; if the seed is even, these keep it, too."""
    world = BasketWorld(seed, lease_s)
    world.add_head()
    basket = world.add_client("basket")
    publishers = [world.add_client(f"p{number}") for number in range(3)]
    assert isinstance(basket, BasketNode)
    world.run(1.0)
    basket.serve(SERVICE)
    if seed % 2 == 0:
        operation = Operation(KEEP, (), {"count": 10_000, "basket": "main"})
        value = encode_reaction(Reaction(basket.ref, (operation,)))
        basket.send(PutRecord(RequestId(basket.ids.take()), list_name(REACTIONS, TOPIC), "1", value, True))
    if seed % 4 < 2:
        # Otherwise the basket comes in the middle.
        basket.start()
    world.run(1.0)
    for publisher in publishers:
        publisher.announce(TOPIC)
    world.run_until(lambda: all(it.messaging.plans.get(TOPIC) is not None for it in publishers))
    return world, basket, publishers  # type: ignore[return-value]


def publish(world: BasketWorld, publishers: list[PublisherNode], rounds: int) -> None:
    """Publish now and then, with faults that no link dies of."""
    for _ in range(rounds):
        for publisher in publishers:
            for _ in range(world.random.choice((0, 1, 1, 3))):
                publisher.publish_next()
        world.run(world.random.uniform(0, 0.2))
        if world.random.random() < 0.1:
            world.random_fault([name for name, node in world.nodes.items() if node.alive and name != "head"], 3.0)


def check_owed(world: BasketWorld, reader: ReaderNode) -> None:
    """What the basket had when the reader came is there, and what follows it is without gaps."""
    world.run_until(lambda: reader.history.complete, what=f"{reader} has all pages")
    for name, owed in reader.owed.items():
        # Live messages that come before may still be on their way, and the basket's wait for them.
        world.run_until(
            lambda name=name, owed=owed: set(owed) <= set(reader.got.get(name, [])),  # type: ignore[misc]
            # Or its publisher has to be given up first.
            limit_s=2 * world.lease_s + 120.0,
            what=f"{reader} has {sorted(set(owed))} of {name}",
        )


def check_whole(world: BasketWorld, reader: ReaderNode, publisher: PublisherNode, first: int = 0) -> None:
    """A reader gets all that a publisher sent, from the first that was kept or came live."""
    name = publisher.own

    def has_last() -> bool:
        # Nothing at all, where all was sent before anybody kept it.
        return reader.history.done(name) == publisher.last

    world.run_until(has_last, what=f"{reader} has {publisher.last} of {name}")
    got = reader.got.get(name, [])
    if got:
        world.check(got == list(range(got[0], publisher.last + 1)), f"{reader} has gaps in {name}: {got}")
        world.check(not first or got[0] <= first, f"{reader} begins with {got[0]} of {name}, and not with {first}")


@seeds(16)
def test_later_subscribers_miss_nothing(seed: int) -> None:
    """1. A basket keeps, from the beginning or from the middle. 2. Readers come one after the other while messages are
    published and connections break. 3. Each gets what the basket had, and then everything, once and in order."""
    world, basket, publishers = make(seed)
    readers: list[ReaderNode] = []
    for number in range(4):
        publish(world, publishers, 15)
        if number == 1 and seed % 4 >= 2:
            basket.start()
        reader = world.add_client(f"r{number}")
        assert isinstance(reader, ReaderNode)
        if world.random.random() < 0.3:
            world.apart.add(frozenset((reader.name, world.random.choice(publishers).name)))
        reader.begin()
        readers.append(reader)
    publish(world, publishers, 15)
    world.heal()
    for reader in readers:
        check_owed(world, reader)
        for publisher in publishers:
            # The basket or the publisher has kept the first one.
            check_whole(world, reader, publisher, 1 if seed % 2 == 0 or seed % 4 < 2 else 0)
        world.check(reader.history.dropped == 0, f"{reader} counts {reader.history.dropped} as missing")


@seeds(16)
def test_what_is_handed_over_is_there(seed: int) -> None:
    """1. Publishers leave, one after the other, with a hand-over where they keep. 2. What the basket has acknowledged
    is there for readers that come during it and afterwards: each message once, in order."""
    world, basket, publishers = make(seed)
    readers: list[ReaderNode] = []
    left: list[PublisherNode] = []
    for number in range(3):
        publish(world, publishers, 15)
        if number == 1 and seed % 4 >= 2:
            basket.start()
        leaving = publishers.pop()
        left.append(leaving)
        reader = world.add_client(f"r{number}")
        assert isinstance(reader, ReaderNode)
        if world.random.random() < 0.5:
            reader.begin()
            world.run(world.random.uniform(0, 0.3))
            leaving.hand_over()
        else:
            leaving.hand_over()
            world.run(world.random.uniform(0, 0.3))
            reader.begin()
        readers.append(reader)
        publish(world, publishers, 3)
        world.run_until(lambda: leaving.handed_over, what=f"{leaving} has handed over")  # noqa: B023
        world.leave(leaving.name, "done")
    world.heal()
    world.run(5.0)
    last = world.add_client("r-last")
    assert isinstance(last, ReaderNode)
    last.begin()
    readers.append(last)
    for reader in readers:
        check_owed(world, reader)
        for name, got in reader.got.items():
            missing = got[-1] - got[0] + 1 - len(got)
            world.check(missing <= reader.history.dropped, f"{reader} has gaps in {name} that nobody counts: {got}")
    if seed % 2 == 0:
        for publisher in left:
            numbers = last.got.get(publisher.own, [])
            wanted = list(range(1, publisher.sent + 1))
            world.check(numbers == wanted, f"{publisher} handed over {publisher.sent}, and {last} has {numbers}")


@seeds(16)
def test_publishers_crash_and_come_back(seed: int) -> None:
    """1. Publishers crash, and come back as another incarnation that counts from 1. 2. What the basket had got is
    there. 3. Messages of both are kept apart, and what went with the crash is counted."""
    world, basket, publishers = make(seed, lease_s=5.0)
    if seed % 4 >= 2:
        basket.start()
    readers: list[ReaderNode] = []
    for number in range(3):
        for _ in range(10):
            for publisher in publishers:
                publisher.publish_next()
            world.run(world.random.uniform(0, 0.2))
        reader = world.add_client(f"r{number}")
        assert isinstance(reader, ReaderNode)
        reader.begin()
        readers.append(reader)
        world.run(world.random.uniform(0, 1.0))
        crashed = publishers[number]
        world.crash(crashed.name)
        world.run(world.random.choice((0.1, 1.0, 10.0)))
        publishers[number] = world.restart(crashed.name)  # type: ignore[assignment]
        publishers[number].announce(TOPIC)
        world.run(1.0)
    for publisher in publishers:
        publisher.publish_next()
    for reader in readers:
        check_owed(world, reader)
        for publisher in publishers:
            check_whole(world, reader, publisher)
        gaps = sum(got[-1] - got[0] + 1 - len(got) for got in reader.got.values())
        world.check(gaps <= reader.history.dropped, f"{reader} has {gaps} gaps and counts {reader.history.dropped}")
    latest = [(publisher.own, publisher.last) for publisher in publishers]
    world.run_until(
        lambda: all(basket.basket.latest(TOPIC).get(name) == number for name, number in latest),
        what="the basket has what both incarnations sent",
    )
