"""The guarantees of reactions, over many simulated systems with faults. ``RASKID_SEEDS=100`` runs 100 times as many."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from raskid.core import passage
from raskid.core.effects import Arrived
from raskid.model.ids import PeerId, RequestId
from raskid.model.operations import DELIVER, FILTER, FORWARD, GATHER, KEEP, SET, Operation
from raskid.protocol.messages import PutRecord, RecordSettled
from raskid.protocol.reactions import AT_HELPER, BLOCK, BY_METRIC, CHOICES, PULL
from raskid.protocol.values import decode_value, encode_value
from raskid.testing.reactions import ReactingNode, ReactingWorld, values_of
from raskid.testing.simulator import HEAD

FACTOR = int(os.environ.get("RASKID_SEEDS", "1"))
#: Longer than all faults of a test together: nobody is given up whose process lives.
LONG_LEASE_S = 600.0
TO_OWNER = Operation(DELIVER)
CELLS = "cells:x"
#: Gives the operations of the reactions that a class has, by their number.
Chain = Callable[[int], tuple[Operation, ...]]


def seeds(count: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("seed", range(count * FACTOR))


def system(seed: int, names: str, lease_s: float = LONG_LEASE_S) -> tuple[ReactingWorld, list[ReactingNode]]:
    world = ReactingWorld(seed, lease_s)
    world.add_head()
    nodes = [added(world, name) for name in names]
    world.run(1.0)
    return world, nodes


def added(world: ReactingWorld, name: str) -> ReactingNode:
    node = world.add_client(name)
    assert isinstance(node, ReactingNode)
    return node


def reacting(world: ReactingWorld, node: ReactingNode, topic: str, *operations: Operation, **fields: Any) -> RequestId:
    reaction, request = node.react(topic, *operations, settle_s=100.0, **fields)
    world.run_until(lambda: request in node.replies, what="the reaction settles")
    settled = node.replies[request]
    world.check(isinstance(settled, RecordSettled) and not settled.silent, f"the reaction was answered {settled}")
    return reaction


def announced(world: ReactingWorld, topic: str, *nodes: ReactingNode) -> None:
    for node in nodes:
        node.announce(topic)
    world.run_until(lambda: all(topic in node.messaging.plans for node in nodes), what="the plans are ready")


class Publishers:
    """Nodes that publish their names and rising numbers, as programs that wait do."""

    def __init__(self, topic: str, *nodes: ReactingNode) -> None:
        self.topic = topic
        self.nodes = nodes
        self.sent = Counter[str]()

    def publish(self) -> None:
        for node in self.nodes:
            if node.may_publish(self.topic):
                node.publish_values(self.topic, node.name, self.sent[node.name])
                self.sent[node.name] += 1

    @property
    def all(self) -> set[tuple[Any, ...]]:
        return {(name, number) for name, count in self.sent.items() for number in range(count)}


def check_order(world: ReactingWorld, what: object, messages: list[tuple[Any, ...]]) -> None:
    """Of each publisher once each, in order."""
    numbers = defaultdict(list)
    for name, number in messages:
        numbers[name].append(number)
    for name, found in numbers.items():
        world.check(found == sorted(set(found)), f"{what} has {found} of {name}")


def check_quiet(world: ReactingWorld) -> None:
    """Nobody refused a message, gave up a peer, or saw a reaction fail."""
    for node in world.nodes.values():
        assert isinstance(node, ReactingNode)
        world.check(not node.unhandled, f"{node} left out {node.unhandled}")
        world.check(not world.gone(node), f"{node} gave up {world.gone(node)}")
        world.check(not node.reported, f"{node} was told {node.reported}")


def pair(*values: Any) -> list[Any]:
    """What code gives here: its arguments as one value."""
    return list(values)


def flat(values: Any) -> list[tuple[Any, ...]]:
    """The messages of publishers that the values of a message are made of, after code and windows."""
    while len(values) == 1:
        (values,) = values
    return [tuple(it) for it in values] if isinstance(values[0], list) else [tuple(values)]


class Members:
    """The members of a class, each with its lives, of which some end and begin again."""

    def __init__(self, world: ReactingWorld, nodes: list[ReactingNode], chain: Chain, **fields: Any) -> None:
        self.world = world
        self.chain = chain
        self.fields = fields
        self.lives: list[tuple[ReactingNode, RequestId, RequestId]] = []
        #: Those that have left, and when they come back.
        self.away: dict[str, float] = {}
        for node in nodes:
            self.join(node)
        world.run_until(lambda: len(self.settled()) == len(nodes), what="all members have settled")

    def join(self, node: ReactingNode) -> None:
        operations = self.chain(len(self.lives))
        value = self.world.random.random()
        reaction, request = node.react("t", *operations, group="g", value=value, settle_s=100.0, **self.fields)
        self.lives.append((node, reaction, request))

    def settled(self) -> list[tuple[ReactingNode, RequestId]]:
        latest = {node.name: life for life in self.lives for node in life[:1]}
        return [
            (node, reaction)
            for node, reaction, request in latest.values()
            if node.alive and request in node.replies and node.name not in self.away
        ]

    def end_one(self, crash: bool, least: int = 1) -> None:
        """Let one crash or leave, if at least so many remain, and come back soon."""
        settled = self.settled()
        if len(settled) > least:
            node, reaction = self.world.random.choice(settled)
            if crash:
                self.world.crash(node.name)
            else:
                node.unsubscribe("t", reaction)
            self.away[node.name] = self.world.now + self.world.random.uniform(0, 5.0)

    def come_back(self, everybody: bool = False) -> None:
        for name, until in list(self.away.items()):
            if everybody or until <= self.world.now:
                del self.away[name]
                node = self.world.nodes[PeerId(name)]
                if not node.alive:
                    node = self.world.restart(name)
                assert isinstance(node, ReactingNode)
                self.join(node)

    def arrived(self) -> list[tuple[ReactingNode, list[Arrived]]]:
        return [(node, node.arrived[reaction]) for node, reaction, _ in self.lives]


def just_deliver(life: int) -> tuple[Operation, ...]:
    return (TO_OWNER,)


@seeds(10)
def test_one_of_a_class_gets_a_message(seed: int) -> None:
    """Of a class without acknowledgement at most one member gets a message, and exactly one while nobody crashes."""
    crashes = seed // len(CHOICES) % 2 == 1
    choice = CHOICES[seed % len(CHOICES)]
    world, nodes = system(seed, "abcde", 30.0)
    a, b, *others = nodes
    metric = world.add_code("metric", lambda value, name, number: (value * number) % 1.0)
    asked = metric if choice == BY_METRIC else None
    members = Members(world, others, just_deliver, capacity=4, choice=choice, metric=asked)
    announced(world, "t", a, b)
    # Until the metric has come, members are chosen in turn.
    world.run(2.0)
    publishers = Publishers("t", a, b)
    for _ in range(150):
        publishers.publish()
        world.run(world.random.uniform(0, 0.2))
        chance = world.random.random()
        if chance < 0.05:
            world.random_fault(["a", "b", "c", "d", "e"], 3.0)
        elif crashes and chance < 0.1:
            members.end_one(crash=True)
        members.come_back()
    world.heal()
    everything = publishers.all

    def got() -> Counter[tuple[Any, ...]]:
        return Counter(values_of(it) for _, arrived in members.arrived() for it in arrived)

    if not crashes:
        world.run_until(lambda: set(got()) == everything, 300.0, "every message has reached a member")
        check_quiet(world)
    world.run(60.0)
    world.check(set(got()) <= everything and max(got().values()) == 1, f"more than once: {got().most_common(3)}")
    world.check(len(everything) > 50, f"no more than {len(everything)} were published")
    for node, arrived in members.arrived():
        check_order(world, node, [values_of(it) for it in arrived])


@seeds(12)
def test_acknowledged_messages_outlive_members(seed: int) -> None:
    """With acknowledgement every message is handled by some member, under its number, also when members crash."""
    world, nodes = system(seed, "abcde", 30.0)
    a, b, *others = nodes

    def with_code(life: int) -> tuple[Operation, ...]:
        # Code of its own for each life: it is not there when the first message comes.
        return (world.add_code(f"pair {life}", pair), TO_OWNER)

    chain = just_deliver if seed % 3 else with_code
    members = Members(world, others, chain, capacity=4, choice=CHOICES[seed % 4], ack=True, seconds=3600.0)
    announced(world, "t", a, b)
    publishers = Publishers("t", a, b)
    for _ in range(150):
        if members.settled():
            publishers.publish()
        world.run(world.random.uniform(0, 0.2))
        chance = world.random.random()
        if chance < 0.05:
            world.random_fault(["a", "b", "c", "d", "e"], 3.0)
        elif chance < (0.12, 0.3)[seed % 2]:
            # Half of the time, so that sometimes all are away.
            members.end_one(crash=world.random.random() < 0.7, least=1 - seed % 2)
        members.come_back()
    world.heal()
    members.come_back(everybody=True)
    everything = publishers.all
    world.check(len(everything) > 10, f"no more than {len(everything)} were published")

    def handled() -> set[tuple[Any, ...]]:
        return {flat(values)[0] for node, _, _ in members.lives for _, _, values in node.handled}

    world.run_until(lambda: handled() == everything, 300.0, "every message was handled")
    world.run(10.0)
    names: dict[tuple[PeerId, int], tuple[Any, ...]] = {}
    fresh = Counter[tuple[Any, ...]]()
    for node, arrived in members.arrived():
        for it in arrived:
            (number,) = it.numbers
            values = flat(values_of(it))[0]
            world.check(names.setdefault((it.publisher, number), values) == values, f"two messages are number {number}")
            fresh[values] += not it.again
        check_order(world, node, [flat(values_of(it))[0] for it in arrived if not it.again])
    world.check(max(fresh.values()) == 1, f"as new more than once: {fresh.most_common(3)}")
    for publisher in ("a", "b"):
        ordered = [values for (peer, _), values in sorted(names.items()) if peer == publisher]
        world.check(ordered == sorted(ordered), f"numbers of {publisher} do not rise with its messages")
    for node in (a, b):
        groups = node.messaging._groups["t"]
        world.run_until(lambda groups=groups: not groups["g"].open, 60.0, "nothing is left open")  # type: ignore[misc]


@seeds(14)
def test_settled_reactions(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published after a reaction has settled goes through its chain, in order; and nothing of it happens when
    its end has settled, not even to what was still in its code."""
    # Code that does not come for so long makes its reaction fail.
    monkeypatch.setattr(passage, "STALLED_S", LONG_LEASE_S)
    world, (a, b, c) = system(seed, "abc")
    world.code_s = 0.3
    code = world.add_code("pair", pair)
    operations = [Operation(FILTER, ((1, ">=", 0),)), code]
    if seed % 2:
        operations.insert(1, Operation(GATHER, (), {"count": 3, "seconds": 0.5}))
    if seed % 4 >= 2:
        operations.append(code)
    forwards = seed % 3 == 0
    operations.append(Operation(FORWARD, ("u",)) if forwards else TO_OWNER)
    reader = reacting(world, c, "u", capacity=100_000) if forwards else RequestId(0)
    for node in (a, b):
        node.announce("t")
    number = 0

    def publish_from_both() -> None:
        nonlocal number
        for node in (a, b):
            if node.alive and not node.suspended:
                node.publish_in_callback("t", node.name, number)
                number += 1

    for _ in range(3):
        reaction, request = c.react("t", *operations, capacity=100_000, seconds=3600.0, settle_s=100.0)
        while request not in c.replies:
            if world.random.random() < 0.1:
                world.random_fault(["a", "b", "c"], 2.0)
            publish_from_both()
            world.run(0.05)
        settled = c.replies[request]
        world.check(isinstance(settled, RecordSettled) and not settled.silent, f"the reaction was answered {settled}")
        first = number
        for _ in range(10):
            publish_from_both()
            if world.random.random() < 0.1:
                world.random_fault(["a", "b", "c"], 2.0)
            world.run(world.random.uniform(0, 0.1))
        last = number
        arrived = c.arrived[reader if forwards else reaction]

        def got(arrived: list[Arrived] = arrived) -> list[tuple[Any, ...]]:
            return [message for one in arrived for message in flat(values_of(one))]

        wanted = set(range(first, last))
        world.run_until(
            lambda got=got, wanted=wanted: wanted <= {number for _, number in got()},  # type: ignore[misc]
            300.0,
            "all messages published after settling have come through",
        )
        ending = c.unsubscribe("t", reaction, settle_s=100.0)
        while ending not in c.replies:
            if world.random.random() < 0.1:
                world.random_fault(["a", "b", "c"], 2.0)
            publish_from_both()
            world.run(0.05)
        world.check(not c.replies[ending].silent, "somebody was silent")
        after = number
        inside = [args for node in (a, b) for job in node.jobs for args, _ in job.calls]
        arrived_before = len(arrived)
        for _ in range(5):
            publish_from_both()
            world.run(0.1)
        world.run(10.0)
        still = {one for values in inside for one in flat(values)}
        world.check(not still & set(got()[arrived_before:]), f"{still} were in code when the end settled")
        late = [it for it in got() if it[1] >= after]
        world.check(not late, f"{late} were published after the end of the reaction had settled")
        check_order(world, c, got())
        if not forwards:
            world.check([it.publisher for it in c.ended[reaction]].sort() == ["a", "b"].sort(), f"{c.ended[reaction]}")
        c.forget(reaction)
    check_quiet(world)


@seeds(12)
def test_cells_for_newcomers(seed: int) -> None:
    """All readers of a cell see its values in one order, from the one that the hub has when they come; a cell that
    reactions set ends with the last value of one of its writers."""
    world, (a, b, c, d) = system(seed, "abcd")
    writes = Operation(SET, (CELLS, "value"), {"permanent": True})
    operations = (world.add_code("pair", pair), writes) if seed % 2 else (writes,)
    reacting(world, c, "t", *operations)
    announced(world, "t", a, b)
    readers = [d]
    d.watch(CELLS)
    last: dict[str, list[Any]] = {}
    for number in range(120):
        for node in (a, b):
            if node.may_publish("t"):
                last[node.name] = [node.name, number]
                node.publish_values("t", last[node.name])
        if world.random.random() < 0.1:
            last["c"] = ["c", number]
            put = PutRecord(RequestId(c.ids.take()), CELLS, "value", encode_value(last["c"]), permanent=True)
            c.send(put)
        if number % 30 == 20:
            newcomer = added(world, f"n{number}")
            newcomer.watch(CELLS)
            readers.append(newcomer)
        world.run(world.random.uniform(0, 0.1))
        if world.random.random() < 0.06:
            world.random_fault([node.name for node in (a, b, c, d)], 2.0)
    world.heal()
    world.run(60.0)

    def value(records: dict[str, bytes]) -> list[Any] | None:
        found = decode_value(records["value"]) if "value" in records else None
        while found is not None and len(found) == 1:
            (found,) = found
        return found

    seen = {node: [(version, value(records)) for version, records in node.changes[CELLS]] for node in readers}
    order = dict(seen[d])
    for node, changes in seen.items():
        versions = [version for version, _ in changes]
        world.check(versions == list(range(versions[0], max(order) + 1)), f"{node} saw versions {versions}")
        world.check(all(order[version] == it for version, it in changes), f"{node} saw another order than {d}")
    values = [it for _, it in seen[d] if it is not None]
    for name, wanted in last.items():
        numbers = [number for writer, number in values if writer == name]
        world.check(numbers == sorted(set(numbers)), f"values of {name} came in the order {numbers}")
        world.check(numbers[-1] == wanted[1], f"the last value of {name} is {wanted}, and the cell had {numbers}")
    check_quiet(world)


@seeds(12)
def test_history_and_what_comes_live(seed: int) -> None:
    """Who subscribes with history gets what publishers keep, and then all that comes, with numbers without a gap."""
    world, (a, b, c, d, k) = system(seed, "abcdk")
    count = (1000, 10)[seed % 2]
    reacting(world, k, "t", Operation(KEEP, (), {"count": count}))
    announced(world, "t", a, b)
    publishers = Publishers("t", a, b)
    readers: list[tuple[ReactingNode, RequestId]] = []
    for step in range(120):
        publishers.publish()
        if step in (0, 30, 60, 90):
            node = world.random.choice((c, d))
            readers.append(
                (node, node.react("t", capacity=world.random.choice((2, 100)), numbered=True, history=-1)[0])
            )
        world.run(world.random.uniform(0, 0.15))
        if world.random.random() < 0.06:
            world.random_fault(["a", "b", "c", "d"], 2.0)
    world.heal()
    for node, reaction in readers:
        for publisher, total in publishers.sent.items():

            def got(
                node: ReactingNode = node, reaction: RequestId = reaction, publisher: str = publisher
            ) -> list[Arrived]:
                return [it for it in node.arrived[reaction] if it.publisher == publisher]

            world.run_until(lambda got=got, total=total: got() and got()[-1].numbers == [total], 300.0, "all came")  # type: ignore[misc]
            first = node.introduced[reaction][PeerId(publisher)]
            numbers = [it.numbers[0] for it in got()]
            world.check(numbers == list(range(first, total + 1)), f"{node} has {numbers} of {publisher}")
            world.check(count < 1000 or first == 1, f"{publisher} kept everything, and began with {first}")
            values = [values_of(it) for it in got()]
            world.check(values == [(publisher, number - 1) for number in numbers], f"{node} has {values}")
            world.check(not any(it.dropped for it in got()), "something was reported as dropped")
    check_quiet(world)


@seeds(14)
def test_links_lose_nothing(seed: int) -> None:
    """What is published at one end of a chain of links arrives at the other, in order per publisher, none lost."""
    world, (a, b, c, d, k) = system(seed, "abcdk")
    readers = [(c, reacting(world, c, "t3", capacity=3)), (d, reacting(world, d, "t3", capacity=100))]
    between = (world.add_code("pair", lambda *values: {"it": list(values)}),) if seed % 2 else ()
    reacting(world, k, "t1", Operation(FORWARD, ("t2",)))
    reacting(world, k, "t2", *between, Operation(FORWARD, ("t3",)), seconds=3600.0)
    announced(world, "t1", a, b)
    if seed % 3 == 0:
        # What a publisher sends on before it knows who reads there.
        world.part("a", HEAD, 2.0)
    publishers = Publishers("t1", a, b)
    for _ in range(150):
        publishers.publish()
        world.run(world.random.uniform(0, 0.1))
        if world.random.random() < 0.06:
            world.random_fault(["a", "b", "c", "d"], 3.0)
    world.heal()

    def message(one: Arrived) -> tuple[Any, ...]:
        if not between:
            return values_of(one)
        decoded: Any = msgspec.msgpack.decode(one.bodies[0])
        return tuple(decoded[1]["it"])

    for node, reader in readers:
        arrived = node.arrived[reader]
        total = len(publishers.all)
        world.run_until(lambda arrived=arrived, total=total: len(arrived) >= total, 300.0, "all arrive")  # type: ignore[misc]
        world.run(1.0)
        found = [message(it) for it in arrived]
        check_order(world, node, found)
        world.check(set(found) == publishers.all, f"{node} has {len(found)} of {total}")
        world.check(not any(it.dropped for it in arrived), "something was reported as dropped")
    check_quiet(world)


@seeds(12)
def test_a_helper_that_crashes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a helper runs comes in order, once each; what is lost was in it, or on its way, when it crashed."""
    monkeypatch.setattr(passage, "STALLED_S", LONG_LEASE_S)
    capacity = 4
    world, (a, b, c) = system(seed, "abc", 30.0)
    helper = world.add_helper("h")
    code = world.add_code("pair", pair)
    reaction = reacting(world, c, "t", code, TO_OWNER, capacity=capacity, place=AT_HELPER, seconds=3600.0)
    c.take_s = world.random.choice((0.05, 0.5))
    announced(world, "t", a, b)
    publishers = Publishers("t", a, b)
    crashes, back = 0, 0.0
    for step in range(150):
        publishers.publish()
        world.run(world.random.uniform(0, 0.3))
        if world.random.random() < 0.05:
            world.random_fault(["a", "b", "c", "h"], 2.0)
        if seed % 3 and helper.alive and step % 40 == 30:
            crashes += 1
            world.crash("h")
            back = world.now + world.random.uniform(0, 3.0)
        elif not helper.alive and world.now >= back:
            again = world.restart("h")
            assert isinstance(again, ReactingNode)
            helper = again
    world.heal()
    if not helper.alive:
        world.restart("h")
    world.run(120.0)
    found = [flat(values_of(it))[0] for it in c.arrived[reaction]]
    world.check({it.on_behalf for it in c.arrived[reaction]} == {"a", "b"}, "it is not said whose messages these are")
    check_order(world, c, found)
    for name, count in publishers.sent.items():
        lost = set(range(count)) - {number for publisher, number in found if publisher == name}
        # So many may be on their way to it and in it, and as many from there.
        world.check(len(lost) <= crashes * 2 * capacity, f"{name} lost {sorted(lost)} in {crashes} crashes")
        world.check(count - 1 not in lost, f"the last message of {name} is lost")
    world.check(not any(it.dropped for it in c.arrived[reaction]), "something was reported as dropped")
    if not crashes:
        check_quiet(world)


@seeds(6)
def test_what_a_helper_is_not_given_is_counted(seed: int) -> None:
    """What callbacks publish faster than a helper takes it: what arrives and what is reported as dropped add up."""
    world, (a, b, c) = system(seed, "abc")
    world.add_helper("h")
    code = world.add_code("pair", pair)
    reaction = reacting(world, c, "t", code, TO_OWNER, capacity=3, place=AT_HELPER, seconds=3600.0)
    announced(world, "t", a, b)
    for number in range(60):
        for node in (a, b):
            node.publish_in_callback("t", node.name, number)
        world.run(world.random.uniform(0, 0.1))
        if world.random.random() < 0.05:
            world.random_fault(["a", "b", "c", "h"], 2.0)
    world.heal()
    world.run(30.0)
    ending = c.unsubscribe("t", reaction, settle_s=100.0)
    world.run_until(lambda: ending in c.replies and reaction in c.ended, 300.0, "the reaction has ended")
    found = [flat(values_of(it))[0] for it in c.arrived[reaction]]
    dropped = sum(it.dropped for it in c.arrived[reaction]) + sum(it.dropped for it in c.ended[reaction])
    check_order(world, c, found)
    world.check(dropped, "nothing was dropped: this test tests nothing")
    world.check(len(found) + dropped == 120, f"{len(found)} arrived and {dropped} were dropped of 120")
    check_quiet(world)


@seeds(10)
def test_pull(seed: int) -> None:
    """A reader that asks gets no more than it has asked for, in order, also when others read as they like."""
    world, (a, b, c, d) = system(seed, "abcd")
    code = world.add_code("pair", pair)
    operations = (code, TO_OWNER) if seed % 2 else (TO_OWNER,)
    pulled = reacting(world, c, "t", *operations, overflow=PULL)
    everything = reacting(world, d, "t", capacity=4, overflow=BLOCK)
    announced(world, "t", a, b)
    publishers = Publishers("t", a, b)
    asked = Counter[PeerId]()

    def check_asked() -> None:
        got = Counter(it.publisher for it in c.arrived[pulled])
        world.check(got <= asked, f"{got} came, and {asked} were asked for")

    for _ in range(150):
        publishers.publish()
        world.run(world.random.uniform(0, 0.1))
        chance = world.random.random()
        if chance < 0.05:
            world.random_fault(["a", "b", "c", "d"], 2.0)
        elif chance < 0.3 and c.introduced[pulled]:
            publisher = world.random.choice(list(c.introduced[pulled]))
            count = world.random.randrange(1, 4)
            asked[publisher] += count
            c.ask(pulled, publisher, count)
        check_asked()
    world.heal()
    world.run_until(lambda: len(d.arrived[everything]) == len(publishers.all), 300.0, "all arrive")
    world.run(30.0)
    for node in (a, b):
        c.ask(pulled, node.name, 3)
        asked[node.name] += 3
    world.run(1.0)
    for _ in range(100):
        publishers.publish()
        world.run(0.1)
    check_asked()
    world.run(30.0)
    got = Counter(it.publisher for it in c.arrived[pulled])
    world.check(got == asked, f"{got} came, and {asked} were asked for and published")
    check_order(world, c, [flat(values_of(it))[0] for it in c.arrived[pulled]])
    check_quiet(world)
