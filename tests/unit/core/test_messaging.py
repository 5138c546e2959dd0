"""Publishing and subscribing: exact effects."""

from __future__ import annotations

import msgspec
import pytest

from raskid.core.lists import Lists
from raskid.core.machine import PeerGone, Received, Send
from raskid.core.messaging import (
    Announce,
    Arrived,
    Introduce,
    Messaging,
    PlanReady,
    Publish,
    PublisherEnded,
    Subscribed,
    Took,
    Unsubscribed,
)
from raskid.model.ids import PeerId, RequestId
from raskid.protocol.messages import (
    AnyMessage,
    Consumed,
    Deliver,
    Delivered,
    ListState,
    PeerRef,
    Record,
    RecordDeleted,
    RecordPut,
    Watch,
)
from raskid.protocol.reactions import BLOCK, DROP_NEWEST, DROP_OLDEST, LATEST, Reaction

HUB = PeerId("head")
NAME = "reactions:t"
READER = PeerRef(PeerId("reader"), 1)
SUBSCRIPTION = RequestId(5)


def record(
    capacity: int = 2, overflow: str = BLOCK, ref: PeerRef = READER, name: str = "5", op: str = "deliver"
) -> Record:
    return Record(name, msgspec.msgpack.encode(Reaction(op, ref, capacity, overflow)))


class Publisher:
    def __init__(self, *records: Record) -> None:
        self.lists = Lists(HUB)
        self.messaging = Messaging(self.lists)
        assert self.messaging.handle(Announce("t"), 0.0) == [Send(HUB, Watch(NAME, True))]
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


def deliver(body: bytes, dropped: int = 0) -> Deliver:
    return Deliver(SUBSCRIPTION, "t", body, dropped)


def test_messages_published_early_wait_for_the_plan() -> None:
    messaging = Messaging(lists := Lists(HUB))
    assert messaging.handle(Publish("t", b"1"), 0.0) == [Send(HUB, Watch(NAME, True))]
    effects = lists.handle(Received(HUB, ListState(NAME, 1, [record()])), 0.0)
    assert effects[:3] == [Introduce(READER), Send(READER.peer, deliver(b"1")), PlanReady("t")]


def test_without_credit_messages_wait() -> None:
    publisher = Publisher(record())
    assert publisher.publish(b"1", b"2", b"3") == [deliver(b"1"), deliver(b"2")]
    assert publisher.messaging.blocked("t")
    assert publisher.told(Consumed(SUBSCRIPTION, 1)) == [Send(READER.peer, deliver(b"3"))]
    assert not publisher.messaging.blocked("t")


@pytest.mark.parametrize(
    ("overflow", "rest"),
    [
        (DROP_OLDEST, [deliver(b"4", 1), deliver(b"5")]),
        (DROP_NEWEST, [deliver(b"3", 1), deliver(b"4")]),
        (LATEST, [deliver(b"5", 2)]),
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
    assert publisher.publish(b"1") == [Deliver(RequestId(6), "t", b"1")]


@pytest.mark.parametrize("name", ["²", "-5", "x", "9" * 19, "1" * 1000, ""])
def test_a_record_whose_name_is_no_id_is_left_out(name: str) -> None:
    assert Publisher(record(name=name)).publish(b"1") == []


def test_an_operation_that_is_not_known_is_left_out() -> None:
    assert Publisher(record(op="explode")).publish(b"1") == []


def test_a_list_that_is_only_looked_at_makes_no_plan() -> None:
    messaging = Messaging(lists := Lists(HUB))
    lists.follow(NAME)
    lists.handle(Received(HUB, ListState(NAME, 1, [record()])), 0.0)
    assert not messaging.plans
    assert messaging.handle(Announce("t"), 0.0) == [Send(HUB, Watch(NAME, True))]


def test_a_subscriber_gives_credit_as_it_takes() -> None:
    messaging = Messaging(Lists(HUB))
    messaging.handle(Subscribed(SUBSCRIPTION, 4), 0.0)
    publisher = PeerId("p")
    assert messaging.handle(Received(publisher, deliver(b"1", 2)), 0.0) == [
        Arrived(SUBSCRIPTION, publisher, "t", b"1", 2)
    ]
    assert messaging.handle(Took(SUBSCRIPTION, publisher, 1), 0.0) == []
    assert messaging.handle(Took(SUBSCRIPTION, publisher, 1), 0.0) == [Send(publisher, Consumed(SUBSCRIPTION, 2))]
    ended = messaging.handle(Received(publisher, Delivered(SUBSCRIPTION, 3)), 0.0)
    assert ended == [PublisherEnded(SUBSCRIPTION, publisher, 3)]
    messaging.handle(Unsubscribed(SUBSCRIPTION), 0.0)
    assert messaging.handle(Received(publisher, deliver(b"1")), 0.0) == []
