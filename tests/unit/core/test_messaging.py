"""Publishing and subscribing: exact effects."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from raskid.core import messaging as messaging_module
from raskid.core.chains import HOPS_MAX
from raskid.core.effects import (
    Arrived,
    Effect,
    Introduce,
    ListRefused,
    PlanReady,
    PublisherEnded,
    ReactionReported,
    RoomMade,
    Send,
)
from raskid.core.events import Announce, PeerGone, Publish, Received, Subscribed, Took, Unsubscribed
from raskid.core.lists import Lists
from raskid.core.messaging import Messaging
from raskid.core.passage import STALLED_S
from raskid.core.targets import BODIES_BYTES_MAX, BODIES_MAX
from raskid.model.errors import LocalProtocolError
from raskid.model.ids import CodeId, PeerId, RequestId
from raskid.model.operations import Operation
from raskid.protocol.messages import (
    AnyMessage,
    AskCode,
    AskHelper,
    Consumed,
    Deliver,
    Delivered,
    HelperGiven,
    HostReaction,
    ListState,
    PeerRef,
    ReactionFailed,
    Record,
    RecordDeleted,
    RecordPut,
    RequestRefused,
    Unwatch,
    Watch,
)
from raskid.protocol.reactions import BLOCK, DROP_NEWEST, DROP_OLDEST, LATEST, Reaction, encode_reaction
from raskid.protocol.values import encode_body, encode_value
from tests.unit.core.publishers import DELIVER, OTHER, code, given, plain, react, sent
from tests.unit.core.publishers import Publisher as Fake

HUB = PeerId("head")
NAME = "reactions:t"
READER = PeerRef(PeerId("reader"), 1)
SUBSCRIPTION = RequestId(5)
HELPER = PeerRef(PeerId("helper"), 1)


def record(
    capacity: int = 2, overflow: str = BLOCK, ref: PeerRef = READER, name: str = "5", op: str = "deliver"
) -> Record:
    return Record(name, msgspec.msgpack.encode(Reaction(ref, (Operation(op),), capacity, overflow)))


class Publisher:
    def __init__(self, *records: Record) -> None:
        self.lists = Lists(HUB)
        self.messaging = Messaging(self.lists)
        assert self.messaging.handle(Announce("t"), 0.0) == [Send(HUB, Watch(NAME, True, RequestId(1)))]
        self.first = self.told(ListState(NAME, 1, list(records)))

    def told(self, message: AnyMessage) -> list[object]:
        machine = self.messaging if isinstance(message, Consumed | Deliver | Delivered) else self.lists
        sender = READER.peer if machine is self.messaging else HUB
        effects: list[object] = [*machine.handle(Received(sender, message), 0.0)]
        self.messaging.check_invariants()
        return effects

    def publish(self, *bodies: bytes) -> list[Deliver]:
        found = []
        for body in bodies:
            found += self.messaging.handle(Publish("t", body), 0.0)
            self.messaging.check_invariants()
        return messages(found)


def messages(effects: list[object]) -> list[Deliver]:
    return [it.message for it in effects if isinstance(it, Send) and isinstance(it.message, Deliver)]


def deliver(*bodies: bytes, dropped: int = 0) -> Deliver:
    return Deliver(SUBSCRIPTION, "t", list(bodies), dropped)


def test_messages_published_early_wait_for_the_plan() -> None:
    messaging = Messaging(lists := Lists(HUB))
    assert messaging.handle(Publish("t", b"1"), 0.0) == [Send(HUB, Watch(NAME, True, RequestId(1)))]
    effects = lists.handle(Received(HUB, ListState(NAME, 1, [record()])), 0.0)
    assert effects[:3] == [Introduce(READER), Send(READER.peer, deliver(b"1")), PlanReady("t")]


def test_without_credit_messages_wait() -> None:
    publisher = Publisher(record())
    assert publisher.publish(b"1", b"2", b"3") == [deliver(b"1"), deliver(b"2")]
    assert publisher.messaging.blocked("t")
    assert publisher.told(Consumed(SUBSCRIPTION, 1)) == [Send(READER.peer, deliver(b"3")), RoomMade(SUBSCRIPTION, 1)]
    assert not publisher.messaging.blocked("t")


@pytest.mark.parametrize(
    ("overflow", "rest"),
    [
        (DROP_OLDEST, [deliver(b"4", b"5", dropped=1)]),
        (DROP_NEWEST, [deliver(b"3", b"4", dropped=1)]),
        (LATEST, [deliver(b"5", dropped=2)]),
    ],
)
def test_what_the_policy_leaves_out_is_reported(overflow: str, rest: list[Deliver]) -> None:
    publisher = Publisher(record(2, overflow))
    assert publisher.publish(b"1", b"2", b"3", b"4", b"5") == [deliver(b"1"), deliver(b"2")]
    assert messages(publisher.told(Consumed(SUBSCRIPTION, 2))) == rest


def test_the_end_of_a_subscription_reports_the_rest_as_dropped() -> None:
    publisher = Publisher(record())
    publisher.publish(b"1", b"2", b"3")
    assert Send(READER.peer, Delivered(SUBSCRIPTION, 1)) in publisher.told(RecordDeleted(NAME, 2, "5"))
    assert publisher.publish(b"4") == []


def test_the_end_of_an_older_incarnation_leaves_the_newer_one_alone() -> None:
    publisher = Publisher(record())
    publisher.told(RecordPut(NAME, 2, record(ref=PeerRef(READER.peer, 2), name="6")))
    publisher.messaging.handle(PeerGone(READER.peer, 1), 0.0)
    publisher.messaging.check_invariants()
    assert publisher.publish(b"1") == [Deliver(RequestId(6), "t", [b"1"])]


@pytest.mark.parametrize("name", ["²", "-5", "x", "9" * 19, "1" * 1000, ""])
def test_a_record_whose_name_is_no_id_is_left_out(name: str) -> None:
    assert Publisher(record(name=name)).publish(b"1") == []


def test_an_operation_that_is_not_known_is_handed_on_to_the_owner() -> None:
    publisher = Publisher(one := record(op="explode"))
    effects = publisher.messaging.handle(Publish("t", b"1"), 0.0)
    assert effects == [
        Introduce(READER),
        Send(READER.peer, HostReaction(RequestId(-5), "t", one.value, 0, False)),
        Send(READER.peer, Deliver(RequestId(-5), "t", [b"1"])),
    ]


def test_a_list_that_is_only_looked_at_makes_no_plan() -> None:
    messaging = Messaging(lists := Lists(HUB))
    lists.follow(NAME)
    lists.handle(Received(HUB, ListState(NAME, 1, [record()])), 0.0)
    assert not messaging.plans
    assert messaging.handle(Announce("t"), 0.0) == [Send(HUB, Watch(NAME, True, RequestId(2)))]


def test_a_subscriber_gives_credit_as_it_takes() -> None:
    messaging = Messaging(Lists(HUB))
    messaging.handle(Subscribed(SUBSCRIPTION, 4), 0.0)
    publisher = PeerId("p")
    assert messaging.handle(Received(publisher, deliver(b"1", dropped=2)), 0.0) == [
        Arrived(SUBSCRIPTION, publisher, "t", [b"1"], 2)
    ]
    assert messaging.handle(Took(SUBSCRIPTION, publisher, 2), 0.0) == [Send(publisher, Consumed(SUBSCRIPTION, 2))]
    ended = messaging.handle(Received(publisher, Delivered(SUBSCRIPTION, 3)), 0.0)
    assert ended == [PublisherEnded(SUBSCRIPTION, publisher, 3)]
    messaging.handle(Unsubscribed(SUBSCRIPTION), 0.0)
    assert messaging.handle(Received(publisher, deliver(b"1")), 0.0) == []
    assert messaging.handle(Took(SUBSCRIPTION, publisher, 1), 0.0) == []


def wait(publisher: Publisher, *bodies: bytes) -> None:
    """Publish as threads do that wait until their message is sent."""
    for body in bodies:
        publisher.messaging.publish("t", body, waits=True)
        publisher.messaging.check_invariants()


def test_a_publisher_that_waits_keeps_its_place_in_the_queue() -> None:
    """1. The credit is used up. 2. Three threads wait with a message each, which are more than the capacity.
    3. A callback, which cannot wait, publishes three more: those of its own that are too many go, the oldest first."""
    publisher = Publisher(record(1))
    publisher.publish(b"0")
    wait(publisher, b"a", b"b", b"c")
    publisher.publish(b"1", b"2", b"3")
    assert messages(publisher.told(Consumed(SUBSCRIPTION, 1))) == [deliver(b"a", dropped=3)]
    for body in (b"b", b"c"):
        assert messages(publisher.told(Consumed(SUBSCRIPTION, 1))) == [deliver(body)]
    assert publisher.told(Consumed(SUBSCRIPTION, 1)) == []


def test_whoever_gives_up_waiting_withdraws_its_own_message() -> None:
    publisher = Publisher(record(1))
    publisher.publish(b"0")
    wait(publisher, b"a", b"b", b"c")
    (target,) = publisher.messaging.plans["t"]
    assert target.withdraw(2)
    assert not target.withdraw(2)
    publisher.messaging.check_invariants()
    assert publisher.told(Consumed(SUBSCRIPTION, 1)) == [
        Send(READER.peer, deliver(b"a", dropped=1)),
        RoomMade(SUBSCRIPTION, 1),
    ]
    assert publisher.told(Consumed(SUBSCRIPTION, 1)) == [Send(READER.peer, deliver(b"c")), RoomMade(SUBSCRIPTION, 3)]


@pytest.mark.parametrize("gone", [False, True])
def test_the_end_of_a_subscription_frees_who_waits_for_it(gone: bool) -> None:
    publisher = Publisher(record(1))
    publisher.publish(b"0")
    wait(publisher, b"a")
    if gone:
        assert publisher.messaging.handle(PeerGone(READER.peer, 1), 0.0) == [RoomMade(SUBSCRIPTION, 1)]
    else:
        assert RoomMade(SUBSCRIPTION, 1) in publisher.told(RecordDeleted(NAME, 2, "5"))
    publisher.messaging.check_invariants()


def announce(messaging: Messaging, lists: Lists, topic: str, *records: Record) -> list[object]:
    messaging.handle(Announce(topic), 0.0)
    effects: list[object] = [*lists.handle(Received(HUB, ListState(f"reactions:{topic}", 1, [*records])), 0.0)]
    messaging.check_invariants()
    lists.check_invariants()
    return effects


def test_of_topics_that_nobody_reads_only_so_many_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Two idle topics and one that is read. 2. A third idle one: the first is given up, the one that is read is not.
    3. Publishing on the first again follows it anew."""
    monkeypatch.setattr(messaging_module, "IDLE_MAX", 2)
    messaging = Messaging(lists := Lists(HUB))
    announce(messaging, lists, "read", record())
    announce(messaging, lists, "a")
    announce(messaging, lists, "b")
    assert Send(HUB, Unwatch("reactions:a")) in announce(messaging, lists, "c")
    assert set(messaging.plans) == {"read", "b", "c"}
    assert messaging.handle(Publish("a", b"1"), 0.0) == [Send(HUB, Watch("reactions:a", True, RequestId(5)))]
    effects = lists.handle(Received(HUB, RecordDeleted("reactions:read", 2, "5")), 0.0)
    assert Send(HUB, Unwatch("reactions:b")) in effects, "one that is read no longer counts as well"
    assert set(messaging.plans) == {"read", "c"}


def test_early_messages_that_are_too_many_are_reported_to_the_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messaging_module, "EARLY_MAX", 1)
    messaging = Messaging(lists := Lists(HUB))
    for body in (b"1", b"2", b"3"):
        messaging.handle(Publish("t", body), 0.0)
    assert messaging.dropped_early == 2
    assert messages(announce(messaging, lists, "t", record())) == [deliver(b"1")]
    assert messages([*messaging.handle(Publish("t", b"4"), 0.0)]) == [deliver(b"4", dropped=2)]


def test_a_topic_that_cannot_be_followed_leaves_out_what_was_early_and_counts_it() -> None:
    messaging = Messaging(lists := Lists(HUB))
    messaging.handle(Publish("t", b"1"), 0.0)
    effects = lists.handle(Received(HUB, RequestRefused(RequestId(1), "Overflow", "too many")), 0.0)
    assert effects == [ListRefused(NAME, "Overflow", "too many")]
    assert messaging.dropped_early == 1 and not messaging.plans
    assert messaging.handle(Publish("t", b"2"), 0.0) == [Send(HUB, Watch(NAME, True, RequestId(2)))]


def test_what_comes_in_quick_succession_travels_together() -> None:
    """1. Published directly, messages are collected. 2. `collect` sends them as one, in order with what waited."""
    publisher = Publisher(record(3))
    messaging = publisher.messaging
    for body in (b"1", b"2", b"3", b"4"):
        assert messaging.publish("t", body) == []
        messaging.check_invariants()
    assert messages(publisher.told(Consumed(SUBSCRIPTION, 1))) == [deliver(b"1", b"2", b"3", b"4")]
    assert messages(messaging.collect()) == []
    assert messages(publisher.told(Consumed(SUBSCRIPTION, 3))) == []
    messaging.publish("t", b"5")
    messaging.publish("t", b"6")
    assert messages(messaging.collect()) == [deliver(b"5", b"6")]


def test_a_collection_has_a_bound() -> None:
    messaging = Publisher(record(1000)).messaging
    found = []
    for _ in range(BODIES_MAX + 1):
        found += messages(messaging.publish("t", b"x"))
    assert [len(it.bodies) for it in found] == [BODIES_MAX]
    found = messages(messaging.publish("t", bytes(BODIES_BYTES_MAX)))
    assert [len(it.bodies) for it in found] == [1]
    found = messages(messaging.collect())
    assert [len(it.bodies) for it in found] == [1]


def test_a_message_that_is_too_long_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raskid.core.messaging.BODY_BYTES_MAX", 10)
    messaging = Publisher(record(2)).messaging
    messaging.publish("t", b"1")
    with pytest.raises(LocalProtocolError, match="a message of 11 bytes on 't' is too long"):
        messaging.publish("t", bytes(11))
    messaging.publish("t", b"2")
    assert messages(messaging.collect()) == [deliver(b"1", b"2")]


def test_the_end_of_a_reader_comes_behind_what_was_collected() -> None:
    publisher = Publisher(record(2))
    publisher.messaging.publish("t", b"1")
    effects = publisher.told(RecordDeleted(NAME, 2, str(SUBSCRIPTION)))
    assert [it.message for it in effects if isinstance(it, Send)][:2] == [deliver(b"1"), Delivered(SUBSCRIPTION, 0)]


# ── reactions that are more than plain subscribers: changes of records, and running elsewhere ──


def hosting(*operations: Operation, **more: object) -> Fake:
    """A publisher with one reaction that a helper is to run, and the helper's answer on its way."""
    return Fake({"t": {5: react(*operations, place="helper", **more)}})


def give_helper(fake: Fake, effects: list[Effect], helper: PeerRef = HELPER) -> list[Effect]:
    (asked,) = sent(effects, AskHelper)
    return fake.told(HelperGiven(asked.request, helper))


def test_a_helper_is_asked_for_and_gets_what_waited() -> None:
    """1. The first message asks for the helper, the second does not. 2. It is known: the record, and both messages.
    3. It gives credit as it is through with them, until which further ones wait. 4. The end of the reaction."""
    fake = hosting(DELIVER, capacity=2)
    first = fake.publish(1)
    assert fake.publish(2) == []
    effects = give_helper(fake, first)
    record = fake.record(5, react(DELIVER, place="helper", capacity=2)).value
    assert effects[0] == Introduce(HELPER)
    assert sent(effects, HostReaction) == [HostReaction(RequestId(-5), "t", record, 0)]
    assert fake.publish(3) != [] and fake.got == {-5: [1, 2]}
    assert fake.credit(-5, 2, HELPER.peer) and fake.got == {-5: [1, 2, 3]}
    assert fake.credit(-5, 2, READER.peer) == [], "only the helper gives credit for itself"
    assert Send(HELPER.peer, Delivered(RequestId(-5), 0)) in fake.delete(5)


def test_a_helper_that_has_gone_is_asked_for_again() -> None:
    fake = hosting(DELIVER)
    give_helper(fake, fake.publish(1))
    fake.gone(HELPER.peer)
    newer = PeerRef(PeerId("helper-2"), 1)
    effects = give_helper(fake, fake.publish(2), newer)
    assert [it.peer for it in effects if isinstance(it, Send)] == [newer.peer, newer.peer]
    assert fake.got == {-5: [1, 2]}


def test_without_a_helper_messages_fail_when_their_time_is_up() -> None:
    fake = hosting(DELIVER)
    (asked,) = sent(fake.publish(1), AskHelper)
    assert fake.told(RequestRefused(asked.request, "StartFailed", "no")) == []
    (failure,) = sent(fake.wait(STALLED_S), ReactionFailed)
    assert "a helper was not here" in failure.text
    assert sent(fake.publish(2), AskHelper), "and is asked for again"


def test_a_limit_is_the_hosts_affair_who_knows_what_comes_through() -> None:
    fake = hosting(DELIVER, limit=1)
    first = fake.publish(1)
    fake.publish(2)
    give_helper(fake, first)
    assert fake.got == {-5: [1, 2]} and fake.heard()


def test_a_clean_up_runs_where_the_reaction_ran() -> None:
    fake = hosting(DELIVER, cleanup=code("c"))
    fake.told(given("c"))
    give_helper(fake, fake.publish(1))
    fake.delete(5)
    assert not fake.jobs


@pytest.mark.parametrize("operation", [Operation("explode"), Operation("code", ("f", "python", "2.7"))])
def test_what_a_publisher_cannot_run_goes_to_the_owner_from_there_on(operation: Operation) -> None:
    choose = Operation("choose", ("x",))
    fake = Fake({"t": {5: react(choose, operation, DELIVER)}})
    (asked,) = sent(fake.publish(x=1, y=2), HostReaction)
    assert (asked.subscription, asked.step) == (-5, 1)
    assert fake.got == {-5: [((), {"x": 1})]}


def test_hops_go_to_a_host_with_each_message() -> None:
    """1. Messages that were forwarded and others, together: one `Deliver` for each number of hops. 2. What waits for
    credit, or for another host, keeps its own."""
    forward = Operation("forward", ("t",))
    fake = Fake({"t": {5: react(code(), place="helper", capacity=3)}, "s": {6: react(forward, DELIVER)}})
    first = fake.publish(1)
    fake.publish(2, topic="s")
    fake.publish(3, topic="s")
    effects = give_helper(fake, first)
    to_host = [it for it in sent(effects, Deliver) if it.subscription == -5]
    assert [(it.hops, list(map(plain, it.bodies))) for it in to_host] == [(0, [1]), (1, [2, 3])]
    effects = fake.publish(4, topic="s")
    assert [it.hops for it in sent(effects, Deliver)] == [0], "readers get no hops"
    asked = fake.gone(HELPER.peer)
    assert fake.publish(5) == []
    effects = give_helper(fake, asked, PeerRef(PeerId("helper-2"), 1))
    to_host = [it for it in sent(effects, Deliver) if it.subscription == -5]
    assert [(it.hops, list(map(plain, it.bodies))) for it in to_host] == [(1, [4]), (0, [5])]


class Host(Fake):
    """The other end of it."""

    def ask(self, reaction: Reaction, step: int = 0, owned: bool = True) -> list[Effect]:
        return self.told(HostReaction(RequestId(-5), "t", encode_reaction(reaction), step, owned), PUBLISHER)

    def hand(self, *values: object, numbers: Sequence[int] = ()) -> list[Effect]:
        bodies = [encode_body((value,), {}) for value in values]
        return self.told(Deliver(RequestId(-5), "t", bodies, 0, list(numbers)), PUBLISHER)


PUBLISHER = PeerId("another-publisher")


def test_a_host_delivers_on_behalf_and_gives_credit_when_it_is_through() -> None:
    host = Host()
    assert host.ask(react(DELIVER, numbered=True))[0] == Introduce(READER)
    effects = host.hand("a", "b", numbers=[7, 8])
    bodies = [encode_body((value,), {}) for value in "ab"]
    assert effects == [
        Send(PUBLISHER, Consumed(RequestId(-5), 2)),
        Send(READER.peer, Deliver(RequestId(5), "t", bodies, 0, [7, 8], False, PUBLISHER)),
    ]


def test_a_host_gives_credit_for_code_when_that_has_run() -> None:
    """Also for what fails, and for what the operations keep back."""
    host = Host()
    assert sent(host.ask(react(Operation("explode"), code(), DELIVER), 1), AskCode) == [AskCode(CodeId("f"))]
    assert host.hand("a", "b", "c") == []
    host.told(given())
    assert sent(host.ran("A"), Consumed) == [Consumed(RequestId(-5), 1)]
    effects = host.ran(error="E")
    assert sent(effects, Consumed) == [Consumed(RequestId(-5), 1)]
    assert [(it.subscription, it.step) for it in sent(effects, ReactionFailed)] == [(5, 1)], "as the owner counts them"
    assert sent(host.ran(None), Consumed) == [Consumed(RequestId(-5), 1)]
    assert host.got == {5: ["A"]}


def test_a_host_counts_what_comes_through() -> None:
    host = Host()
    host.ask(react(Operation("filter", ([0, "!=", "a"],)), DELIVER, limit=2))
    effects = host.hand("a", "b", "c", "d")
    assert host.got == {5: ["b", "c"]} and sent(effects, Consumed) == [Consumed(RequestId(-5), 4)]


@pytest.mark.parametrize("gone", [False, True])
def test_a_host_ends_with_its_publisher(gone: bool) -> None:
    """What windows hold is let go, the owner hears of the end, and what is to be cleaned up is."""
    host = Host()
    host.ask(react(Operation("gather", (), {"seconds": 5}), DELIVER, cleanup=code("c")))
    host.told(given("c"))
    host.hand("a", "b")
    effects = host.gone(PUBLISHER) if gone else host.told(Delivered(RequestId(-5), 0), PUBLISHER)
    assert host.got == {5: [["a", "b"]]} and sent(effects, Delivered) == [Delivered(RequestId(5), 0)]
    assert [job.code.code for job in host.jobs] == ["c"]
    assert host.hand("late") == [] and host.messaging.next_deadline() is not None
    host.ran(None)
    assert host.messaging.next_deadline() is None and not host.messaging._guests


def test_a_host_sends_nothing_to_an_owner_that_has_gone() -> None:
    host = Host()
    host.ask(react(DELIVER))
    host.gone()
    assert host.hand("a") == [Send(PUBLISHER, Consumed(RequestId(-5), 1))] and host.got == {}


def test_a_host_refuses_what_it_cannot_run_either_and_runs_no_part_of_it() -> None:
    host = Host()
    (failure,) = sent(host.ask(react(DELIVER, Operation("explode"))), ReactionFailed)
    assert "neither by its publisher nor by its owner" in failure.text
    assert host.hand("a") == [Send(PUBLISHER, Consumed(RequestId(-5), 1))] and host.got == {}


def test_a_ring_through_a_host_ends() -> None:
    """A host counts on from where its publisher was: in what it forwards, and in what its code publishes."""
    host = Host()
    host.ask(react(code(), Operation("forward", ("u",))))
    host.told(given())
    host.announce("u", {6: react(code(), DELIVER)})
    for hops in (HOPS_MAX - 1, HOPS_MAX):
        host.told(Deliver(RequestId(-5), "t", [encode_body((1,), {})], hops=hops), PUBLISHER)
        assert host.jobs[0].hops == hops
        effects = host.ran(1)
        if hops < HOPS_MAX:
            assert host.jobs[0].hops == HOPS_MAX
            host.ran(1)
    (failure,) = sent(effects, ReactionFailed)
    assert "form a ring" in failure.text and host.got == {6: [1]}


def test_what_waits_at_a_host_waits_for_each_publisher_by_itself() -> None:
    """1. The same reaction is hosted for two publishers, and messages of both wait for its code. 2. One publisher goes.
    3. The patience of the other's message ends all the same."""
    host = Host()
    host.ask(react(code()))
    host.told(HostReaction(RequestId(-5), "t", encode_reaction(react(code()))), OTHER.peer)
    host.hand("a")
    host.told(Deliver(RequestId(-5), "t", [encode_body(("b",), {})]), OTHER.peer)
    host.gone(OTHER.peer)
    assert host.messaging.next_deadline() == STALLED_S
    (failure,) = sent(host.wait(STALLED_S), ReactionFailed)
    assert plain(failure.body) == "a" and host.messaging.next_deadline() is None


@pytest.mark.parametrize("owned", [False, True])
def test_a_host_tells_failures_of_a_reaction_that_was_left_behind_to_its_publisher(owned: bool) -> None:
    host = Host()
    host.ask(react(code()), owned=owned)
    host.told(given())
    host.hand("a")
    (failed,) = [it for it in host.ran(error="E") if isinstance(it, Send) and isinstance(it.message, ReactionFailed)]
    assert failed.peer == (READER.peer if owned else PUBLISHER)


def test_a_publisher_reports_failures_at_its_host_of_a_reaction_that_was_left_behind() -> None:
    """1. Its owner has gone: the publisher says what its host tells. 2. Somebody else tells it, or its owner is here:
    it is a report like any other."""
    fake = Fake({"t": {}})
    reaction = react(code(), place="helper")
    fake.put(5, reaction, owned=False)
    effects = give_helper(fake, fake.publish(1))
    assert sent(effects, HostReaction) == [HostReaction(RequestId(-5), "t", encode_reaction(reaction), 0, False)]
    failure = ReactionFailed(RequestId(5), "t", 0, "E", "why", b"", 1, "helper")
    assert fake.told(failure, HELPER.peer) == [ReactionReported(PeerId(""), failure)]
    assert fake.told(failure, OTHER.peer) == [ReactionReported(OTHER.peer, failure)]
    fake.put(5, react(code(), place="helper", priority=1))
    fake.publish(2)
    assert fake.told(failure, HELPER.peer) == [ReactionReported(HELPER.peer, failure)]


def test_what_is_no_reaction_is_not_hosted() -> None:
    host = Host()
    for message in (
        HostReaction(RequestId(-5), "t", b"x", 0),
        HostReaction(RequestId(5), "t", encode_reaction(react()), 0),
    ):
        assert host.told(message, PUBLISHER) == []
    assert host.hand("a") == []


def test_a_host_that_publishes_on_the_same_topic_runs_its_own_as_well() -> None:
    """1. It hosts the reaction for another publisher. 2. It announces itself the topic. 3. Each ends by itself."""
    host = Host()
    host.ask(react(DELIVER, place="helper"))
    host.announce("t", {5: react(DELIVER, priority=1)})
    host.publish("own")
    host.hand("other's")
    assert host.got == {5: ["own", "other's"]}
    assert sent(host.told(Delivered(RequestId(-5), 0), PUBLISHER), Delivered) == []
    host.publish("more")
    assert sent(host.delete(5), Delivered) == [Delivered(RequestId(5), 0)] and host.got[5][-1] == "more"


def test_a_reaction_that_begins_suspended_is_plain_when_it_goes_on() -> None:
    fake = Fake({"t": {5: react(suspended="why")}})
    fake.publish(1)
    fake.put(5, react())
    assert "t" not in fake.messaging.complex
    fake.publish(2)
    assert fake.got == {5: [2]}


def test_a_plain_subscription_can_be_suspended() -> None:
    fake = Fake({"t": {5: react(capacity=1)}})
    fake.publish(1)
    fake.put(5, react(capacity=1, suspended="why"))
    assert not fake.heard()
    fake.publish(2)
    fake.put(5, react(capacity=1))
    fake.publish(3)
    assert fake.got == {5: [1]}, "the credit is what it was"
    fake.credit(5, 1)
    assert fake.got == {5: [1, 3]}


@pytest.mark.parametrize("value", [b"", b"x", encode_value([1, 2]), encode_value(react(capacity=-1))])
def test_what_is_no_reaction_is_left_out(value: bytes) -> None:
    fake = Fake({"t": {6: react()}})
    assert fake.told(RecordPut("reactions:t", 2, Record("5", value, READER.peer)))
    fake.publish(1)
    assert fake.got == {6: [1]}


def test_a_state_that_comes_again_changes_nothing() -> None:
    reactions = {5: react(code(), DELIVER, numbered=True), 6: react()}
    fake = Fake({"t": reactions})
    fake.told(given())
    fake.publish(1)
    fake.state("t", reactions)
    fake.ran(2)
    assert fake.got == {5: [2], 6: [1]}
    fake.state("t", {6: react()})
    fake.publish(3)
    assert fake.got == {5: [2], 6: [1, 3]} and not fake.jobs


def test_what_is_kept_for_a_basket() -> None:
    fake = Fake({"t": {5: react(Operation("keep", (), {"count": 2, "basket": "b"}))}})
    for value in (1, 2, 3):
        fake.publish(value)
        fake.now += 1.0
    ((topic, basket, kept),) = fake.messaging.kept(fake.now)
    assert (topic, basket) == ("t", "b")
    assert [(number, plain(body), age) for number, body, age in kept] == [(2, 2, 2.0), (3, 3, 1.0)]
