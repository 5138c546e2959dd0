"""The guarantees of messages, over many simulated systems with faults. ``RASKID_SEEDS=100`` runs 100 times as many."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from raskid.core import messaging, paths
from raskid.core import peer as peer_module
from raskid.core.events import WatchList
from raskid.core.link import Link
from raskid.model.ids import RequestId
from raskid.protocol.messages import PutRecord, RecordSettled
from raskid.protocol.reactions import BLOCK, DROP_NEWEST, DROP_OLDEST, LATEST
from raskid.testing.simulator import HEAD, Node, World

FACTOR = int(os.environ.get("RASKID_SEEDS", "1"))
#: Longer than all faults of a test together: nobody is given up whose process lives.
LONG_LEASE_S = 600.0


def seeds(count: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("seed", range(count * FACTOR))


def system(seed: int, names: str, lease_s: float = LONG_LEASE_S) -> tuple[World, list[Node]]:
    world = World(seed, lease_s)
    world.add_head()
    nodes = [world.add_client(name) for name in names]
    world.run(1.0)
    return world, nodes


def subscribed(world: World, node: Node, topic: str, capacity: int = 8, overflow: str = BLOCK) -> RequestId:
    subscription, request = node.subscribe(topic, capacity, overflow)
    world.run_until(lambda: request in node.replies, what="the subscription settles")
    return subscription


def announced(world: World, node: Node, topic: str) -> None:
    node.announce(topic)
    world.run_until(lambda: topic in node.messaging.plans, what="the plan is ready")


def check_quiet(world: World) -> None:
    """Nobody refused a message or gave up a peer."""
    for node in world.nodes.values():
        world.check(not node.unhandled, f"{node} left out {node.unhandled}")
        world.check(not world.gone(node), f"{node} gave up {world.gone(node)}")


@seeds(12)
def test_readers_agree(seed: int) -> None:
    """After healing, all readers of a list agree with the hub, and saw its changes in one order."""
    world, nodes = system(seed, "abcd")
    name = "shared:x"
    seen: dict[str, list[tuple[int, str | None]]] = {}
    for node in nodes:
        node.do(WatchList(name))
        changes = seen[node.name] = []
        original = node.on_effect

        def note(effect: object, changes: list[tuple[int, str | None]] = changes, original: object = original) -> None:
            if getattr(effect, "name", "") == name:
                changes.append((effect.version, effect.record))  # type: ignore[attr-defined]
            original(effect)  # type: ignore[operator]

        node.on_effect = note  # type: ignore[method-assign]
    for number in range(60):
        node = world.random.choice(nodes)
        key = f"{node.name}{world.random.randrange(4)}"
        node.send(PutRecord(RequestId(node.ids.take()), name, key, str(number).encode()))
        world.run(world.random.uniform(0, 0.3))
        if world.random.random() < 0.15:
            world.random_fault(["a", "b", "c", "d"], 3.0)
    world.heal()
    hub = world.nodes[HEAD].hub
    assert hub is not None
    replicas = [node.lists.replicas[name] for node in nodes]
    world.run_until(lambda: hub._lists[name].version == 60, what="all changes are made")
    world.run_until(lambda: all(it.version == 60 for it in replicas), what="all readers have the last version")
    for replica in replicas:
        world.check(list(replica.records.items()) == list(hub._lists[name].records.items()), "a reader disagrees")
    order: dict[int, str] = {}
    for changes in seen.values():
        versions = [version for version, _ in changes]
        world.check(versions == list(range(versions[0], 61)), f"versions {versions}")
        for version, record in changes:
            if record is not None:
                world.check(order.setdefault(version, record) == record, f"two changes are number {version}")
    check_quiet(world)


@seeds(14)
def test_block_loses_nothing(seed: int) -> None:
    """Per publisher and subscription, messages arrive in order, once each, none lost, whatever the connections do."""
    world, (a, b, c, d) = system(seed, "abcd")
    if seed % 2:
        world.apart.add(frozenset("ac"))
    subscriptions = [(c, subscribed(world, c, "t", 4)), (d, subscribed(world, d, "t", 100))]
    sent = Counter[str]()
    for publisher in (a, b):
        announced(world, publisher, "t")
    for _ in range(150):
        for publisher in (a, b):
            if publisher.may_publish("t"):
                size = world.random.choice((0, 0, 10, 200_000 if seed % 3 == 0 else 1000))
                publisher.publish("t", b"%d;" % sent[publisher.name] + bytes(size))
                sent[publisher.name] += 1
        world.run(world.random.uniform(0, 0.2))
        chance = world.random.random()
        if chance < 0.05:
            world.random_fault(["a", "b", "c", "d"], 3.0)
        elif chance < 0.1:
            # Another path: direct, relayed, direct again.
            pair = frozenset("ad")
            if pair in world.apart:
                world.apart.remove(pair)
            else:
                world.apart.add(pair)
            world.cut_between("a", "d")
            if world.random.random() < 0.5:
                world.cut_between("a", HEAD)
    world.heal()
    total = sum(sent.values())
    for node, subscription in subscriptions:
        got = node.arrived[subscription]
        world.run_until(lambda got=got: len(got) >= total, 300.0, f"{node} has all of {total}")  # type: ignore[misc]
        world.run(1.0)
        for publisher, count in sent.items():
            numbers = [int(it.bodies[0].split(b";")[0]) for it in got if it.publisher == publisher]
            world.check(numbers == list(range(count)), f"{node} has {numbers} of {publisher}")
        world.check(not any(it.dropped for it in got), "something was reported as dropped")
    check_quiet(world)


@seeds(12)
@pytest.mark.parametrize("overflow", [DROP_OLDEST, DROP_NEWEST, LATEST])
def test_drops_are_counted(seed: int, overflow: str) -> None:
    """With a policy that drops: in order, and what arrived and what was reported as dropped add up to what was sent."""
    world, (a, b) = system(seed, "ab")
    subscription = subscribed(world, b, "t", 3, overflow)
    announced(world, a, "t")
    b.take_s = 1.0
    for number in range(100):
        a.publish("t", str(number).encode())
        world.run(world.random.uniform(0, 0.1))
        if world.random.random() < 0.04:
            world.random_fault(["a", "b"], 2.0)
    world.heal()
    world.run(30.0)
    b.unsubscribe("t", subscription)
    world.run_until(lambda: subscription in b.ended, 300.0, "the publisher says that it has ended")
    got = [int(it.bodies[0]) for it in b.arrived[subscription]]
    dropped = sum(it.dropped for it in b.arrived[subscription]) + sum(it.dropped for it in b.ended[subscription])
    world.check(got == sorted(set(got)), f"out of order: {got}")
    world.check(len(got) + dropped == 100, f"{len(got)} arrived and {dropped} were dropped of 100")
    if overflow != DROP_NEWEST:
        world.check(got[-1] == 99, "the newest message did not arrive")
    check_quiet(world)


@seeds(14)
def test_settled_subscriptions(seed: int) -> None:
    """Every message published after a subscribe has settled arrives; none published after an unsubscribe settled."""
    world, (a, b, c) = system(seed, "abc")
    for node in (a, b):
        node.announce("t")
    number = 0

    def publish_from_both() -> None:
        nonlocal number
        for node in (a, b):
            if node.alive and not node.suspended:
                node.publish("t", str(number).encode())
                number += 1

    for _ in range(4):
        subscription, request = c.subscribe("t", 10_000, settle_s=100.0)
        while request not in c.replies:
            if world.random.random() < 0.1:
                world.random_fault(["a", "b", "c"], 2.0)
            publish_from_both()
            world.run(0.05)
        settled = c.replies[request]
        world.check(isinstance(settled, RecordSettled) and not settled.silent, f"the subscribe was answered {settled}")
        first = number
        for _ in range(10):
            publish_from_both()
            world.run(world.random.uniform(0, 0.1))
        last = number
        got = c.arrived[subscription]
        wanted = set(range(first, last))
        world.run_until(
            lambda got=got, wanted=wanted: wanted <= {int(it.bodies[0]) for it in got},  # type: ignore[misc]
            300.0,
            "all messages published after settling have arrived",
        )
        ending = c.unsubscribe("t", subscription, settle_s=100.0)
        world.run_until(lambda ending=ending: ending in c.replies, 300.0, "the unsubscribe settles")  # type: ignore[misc]
        after = number
        for _ in range(5):
            publish_from_both()
            world.run(0.1)
        world.run(10.0)
        late = [int(it.bodies[0]) for it in got if int(it.bodies[0]) >= after]
        world.check(not late, f"{late} were published after the unsubscribe had settled")
        c.forget(subscription)
    check_quiet(world)


@seeds(8)
def test_topics_that_are_given_up_and_come_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishers that follow one idle topic at most lose nothing that was published after a subscribe has settled."""
    monkeypatch.setattr(messaging, "IDLE_MAX", 1)
    world, (a, b, c) = system(seed, "abc")
    topics = ["t0", "t1", "t2", "t3"]
    number = 0
    for _ in range(5):
        topic = world.random.choice(topics)
        subscription, request = c.subscribe(topic, 10_000, settle_s=100.0)
        wanted: set[int] = set()
        for turn in range(40):
            publisher = world.random.choice((a, b))
            chosen = topic if world.random.random() < 0.4 else world.random.choice(topics)
            if publisher.alive and not publisher.suspended:
                if chosen == topic and request in c.replies:
                    wanted.add(number)
                publisher.publish(chosen, str(number).encode())
                number += 1
            if world.random.random() < 0.05:
                world.random_fault(["a", "b", "c"], 2.0)
            world.run(world.random.uniform(0, 0.2))
            if turn == 20:
                world.run_until(lambda request=request: request in c.replies, 300.0, "the subscribe settles")  # type: ignore[misc]
        got = c.arrived[subscription]
        world.run_until(
            lambda got=got, wanted=wanted: wanted <= {int(it.bodies[0]) for it in got},  # type: ignore[misc]
            300.0,
            "all messages published after settling have arrived",
        )
        for publisher in (a, b):
            mine = [int(it.bodies[0]) for it in got if it.publisher == publisher.name]
            world.check(mine == sorted(set(mine)), f"out of order or twice: {mine}")
        ending = c.unsubscribe(topic, subscription, settle_s=100.0)
        world.run_until(lambda ending=ending: ending in c.replies, 300.0, "the unsubscribe settles")  # type: ignore[misc]
        c.forget(subscription)
    for publisher in (a, b):
        world.check(len(publisher.messaging.plans) <= 1, f"{publisher} follows {publisher.messaging.plans}")
    check_quiet(world)


@seeds(12)
def test_one_outcome_per_request(seed: int) -> None:
    """Each request gets exactly one outcome: an answer, an error, or the end of its time limit."""
    world, (a, b, c, _) = system(seed, "abcd", lease_s=8.0)
    b.serve("s")
    c.serve("s")
    world.run(1.0)
    requests = []
    for number in range(60):
        if a.alive and not a.suspended:
            service = "s" if world.random.random() < 0.9 else "nobody"
            requests.append((a.request(service, str(number).encode()), str(number).encode()))
        world.run(world.random.uniform(0, 0.3))
        if world.random.random() < 0.1:
            world.random_fault(["b", "c", "d"], 2.0)
        if number == 30 and seed % 2:
            world.crash("c")
        if number == 45 and seed % 2:
            c = world.restart("c")
            c.serve("s")
    world.heal()
    world.run(30.0)
    for request, body in requests:
        outcomes = a.outcomes[request]
        world.check(len(outcomes) == 1, f"request {request} has {len(outcomes)} outcomes: {outcomes}")
        world.check(not outcomes[0].ok or outcomes[0].body == body, f"{outcomes[0]} answers another request")
    world.check(any(a.outcomes[request][0].ok for request, _ in requests), "no request was answered")


@seeds(14)
def test_records_of_crashed_peers_vanish(seed: int) -> None:
    """Records of a crashed peer vanish with its lease; those of a peer that returns in time stay."""
    world, (a, b, c) = system(seed, "abc", lease_s=20.0)
    for node in (a, b, c):
        node.send(PutRecord(RequestId(node.ids.take()), "shared:x", node.name, b"1"))
        node.do(WatchList("shared:x"))
    world.run(3.0)
    world.check(set(c.lists.replicas["shared:x"].records) == {"a", "b", "c"}, "not all records are there")
    world.crash("a")
    world.isolate("b", world.random.uniform(0, 9.0))
    world.run(19.0)
    world.run(12.0)
    world.check(set(c.lists.replicas["shared:x"].records) == {"b", "c"}, "a stays, or b does not")
    again = world.restart("a")
    again.send(PutRecord(RequestId(again.ids.take()), "shared:x", "a", b"2"))
    world.run(3.0)
    world.check(c.lists.replicas["shared:x"].records["a"].value == b"2", "the new incarnation's record is not there")


@seeds(14)
def test_a_returning_incarnation_gets_its_messages(seed: int) -> None:
    """A peer that crashed and came back gets what is published after its new subscription settled, in order."""
    world, (a, b) = system(seed, "ab", lease_s=30.0)
    if seed % 2:
        world.apart.add(frozenset("ab"))
    subscribed(world, b, "t", 100)
    announced(world, a, "t")
    for number in range(5):
        a.publish("t", str(number).encode())
        world.run(0.1)
    world.crash("b")
    if seed % 3:
        world.run(world.random.uniform(0, 10))
    b = world.restart("b")
    subscription = subscribed(world, b, "t", 100)
    for number in range(10):
        a.publish("t", str(number).encode())
        world.run(world.random.uniform(0, 0.2))
    got = b.arrived[subscription]
    world.run_until(lambda: len(got) == 10, 60.0, "all arrive")
    world.check([int(it.bodies[0]) for it in got] == list(range(10)), f"{got}")


@seeds(6)
def test_a_slow_reader_on_a_relay_blocks_nobody_else(seed: int) -> None:
    """A suspended reader behind the relay holds up its own stream only."""
    world, (a, b, c) = system(seed, "abc")
    world.apart |= {frozenset("ab"), frozenset("ac")}
    slow, fast = subscribed(world, b, "slow", 1000), subscribed(world, c, "fast", 1000)
    for topic in ("slow", "fast"):
        announced(world, a, topic)
    a.publish("slow", b"0")
    a.publish("fast", b"0")
    world.run(3.0)
    world.suspend("b", 60.0)
    for _ in range(40):
        a.publish("slow", bytes(200_000))
        a.publish("fast", b"x")
    world.run(20.0)
    world.check(len(c.arrived[fast]) == 41, f"{len(c.arrived[fast])} of 41 fast messages arrived")
    held = world.nodes[HEAD].station.peer.backlog(b.name)
    world.check(held <= 2 << 20, f"the head holds {held:,} bytes for the slow reader")
    world.run_until(lambda: len(b.arrived[slow]) == 41, 120.0, "the slow reader gets everything in the end")
    check_quiet(world)


def link_of(node: Node, other: Node) -> Link:
    """A node's end of its link to another."""
    link = node.station.peer._remotes[other.name].link
    assert link is not None
    return link


def is_direct(one: Node, other: Node) -> bool:
    """Whether the link between two nodes goes over a connection from one to the other."""
    ends = (one.station.peer._remotes[other.name].connection, other.station.peer._remotes[one.name].connection)
    return any(end is not None and end.outbound and not end.relayed for end in ends)


@seeds(12)
def test_a_link_moves_from_the_relay_to_a_direct_path(seed: int) -> None:
    """Messages stay in order, once each, while their link moves; frames under way then come twice and count once."""
    world, (a, b) = system(seed, "ab")
    world.apart.add(frozenset("ab"))
    readers = {"of a": b, "of b": a}
    subscriptions = {topic: subscribed(world, reader, topic, 1000) for topic, reader in readers.items()}
    sent = dict.fromkeys(readers, 0)
    for node in (a, b):
        announced(world, node, f"of {node.name}")

    def publish_from_both(largest: int) -> None:
        for node in (a, b):
            topic = f"of {node.name}"
            node.publish(topic, b"%d;" % sent[topic] + bytes(world.random.choice((0, 100, largest))))
            sent[topic] += 1

    for _ in range(20):
        publish_from_both(100_000)
        world.run(0.1)
    world.check(not is_direct(a, b), "they reach one another directly, although they cannot")
    world.apart.clear()
    # So that the old path brings something between the Hello and the Welcome on the new one.
    world.slow[frozenset("ab")] = 0.2
    end = world.now + 60.0
    while world.now < end and not is_direct(a, b):
        # All the time, so that something is on its way when the link moves.
        publish_from_both(1000)
        world.run(0.02)
    world.check(is_direct(a, b), "the link stays on the relay although there is a direct path")
    for _ in range(20):
        publish_from_both(100_000)
        world.run(0.02)
    for topic, reader in readers.items():
        got = reader.arrived[subscriptions[topic]]
        world.run_until(lambda got=got, topic=topic: len(got) >= sent[topic], 60.0, "all arrive")  # type: ignore[misc]
        world.run(1.0)
        numbers = [int(it.bodies[0].split(b";")[0]) for it in got]
        world.check(numbers == list(range(sent[topic])), f"{reader} has {numbers}")
    check_quiet(world)
    world.check(link_of(a, b).doubled + link_of(b, a).doubled > 0, "no frame came twice: this test tests nothing")


@seeds(6)
def test_who_says_goodbye_through_the_relay_is_gone_at_once(seed: int) -> None:
    """A peer that leaves is gone for those behind the relay, and not only when its lease has ended."""
    world, (a, b) = system(seed, "ab")
    world.apart.add(frozenset("ab"))
    subscription = subscribed(world, b, "t", 100)
    announced(world, a, "t")
    for number in range(20):
        a.publish("t", str(number).encode())
    world.run_until(lambda: b.arrived[subscription], 30.0, "they are linked")
    for number in range(20, 40):
        a.publish("t", str(number).encode())
    world.leave("a", "enough")
    world.run_until(lambda: world.gone(b), 5.0, "b hears of the end")
    (gone,) = world.gone(b)
    world.check(gone.peer == "a" and gone.reason == "enough", f"{gone}")
    world.check(len(b.arrived[subscription]) == 40, "what a had published has arrived")
    world.check([it.peer for it in world.gone(world.nodes[HEAD])] == ["a"], "the head has heard of it, too")


@seeds(4)
def test_a_viewer_that_does_not_read_is_given_up(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head keeps a bounded amount for a reader of a busy list that has stopped; others are served."""
    for module in (paths, peer_module):
        monkeypatch.setattr(module, "UNREAD_BYTES_MAX", 1 << 20)
    world, (a, viewer, reader) = system(seed, "avr")
    for node in (viewer, reader):
        node.do(WatchList("shared:x"))
    world.run(1.0)
    world.suspend("v", 100.0)
    hub = world.nodes[HEAD].station.peer
    most = 0
    for _ in range(700):
        a.send(PutRecord(RequestId(a.ids.take()), "shared:x", "r", bytes(20_000), permanent=True))
        world.run(0.1)
        if hub.is_connected(viewer.name):
            most = max(most, link_of(world.nodes[HEAD], viewer).control_bytes)
    (gone,) = world.gone(world.nodes[HEAD])
    world.check(gone.peer == "v" and "does not read" in gone.reason, f"{gone}")
    # What comes within the time that it is given, on top of the bound.
    world.check(most < (1 << 20) + 1.1 * paths.UNREAD_S / 0.1 * 20_000, f"{most:,} bytes were kept")
    replica = reader.lists.replicas["shared:x"]
    world.run_until(lambda: replica.version == 700, 5.0, "another reader has all changes")
    world.run(60.0)
    told = [*world.refusals(viewer), *world.gone(viewer)]
    world.check(any(getattr(it, "peer", "") == HEAD for it in told), "the viewer is not told that it was given up")


@pytest.mark.slow
def test_fifty_peers() -> None:
    """Fifty peers that all publish and subscribe."""
    world = World(50, LONG_LEASE_S)
    world.add_head()
    nodes = [world.add_client(f"p{number}") for number in range(50)]
    world.run(2.0)
    subscriptions = [node.subscribe("t", 100) for node in nodes]
    world.run_until(lambda: all(r in n.replies for n, (_, r) in zip(nodes, subscriptions, strict=True)))
    for node in nodes[:5]:
        announced(world, node, "t")
    for _ in range(3):
        for node in nodes[:5]:
            node.publish("t", b"x")
        world.random_fault([node.name for node in nodes], 1.0)
        world.run(0.3)
    world.heal()
    world.run_until(
        lambda: all(len(n.arrived[s]) == 15 for n, (s, _) in zip(nodes, subscriptions, strict=True)), what="all arrive"
    )
    check_quiet(world)
