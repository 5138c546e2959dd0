"""The basket as a service, with a session that is none: what it stores, answers and gives credit for."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from raskid.core.effects import Arrived
from raskid.core.events import Subscribed, Took, Unsubscribed
from raskid.core.identity import Identity
from raskid.core.peer import Peer
from raskid.model.errors import NotKept, Overflow
from raskid.model.ids import PeerId, RequestId
from raskid.protocol.messages import KIND_CLIENT, DeleteRecord, PeerRef, PutRecord
from raskid.protocol.reactions import BLOCK, decode_reaction
from raskid.services import basket as basket_module
from raskid.services.basket import CAPACITY, BasketService, publisher_name

P, Q = PeerId("p"), PeerId("runner/1")


class FakeFuture:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.silent = ("sleepy",)

    def result(self, timeout: float) -> FakeFuture:
        if self.error is not None:
            raise self.error
        return self


class FakeSession:
    """Engine, driver and session in one: keeps what it was told and asked."""

    def __init__(self) -> None:
        self.engine = self.driver = self
        self.lock = threading.RLock()
        self.peer = Peer(Identity(PeerId("own"), 1, 5, KIND_CLIENT, "token"))
        self.peer.introduce(PeerRef(Q, 3, ()))
        self.subscriptions: dict[RequestId, Any] = {}
        self.told: list[Any] = []
        self.asked: list[Any] = []
        self.served: dict[str, Any] = {}
        self.refuses: Exception | None = None
        self.now = 100.0
        self.waited: list[float] = []
        self._ids = 0

    def clock(self) -> float:
        return self.now

    def still_alive(self) -> None:
        return

    def request_id(self) -> RequestId:
        self._ids += 1
        return RequestId(self._ids)

    def handle(self, event: Any) -> None:
        self.told.append(event)

    tell = handle

    def ask(self, message: Any) -> FakeFuture:
        self.asked.append(message)
        return FakeFuture(self.refuses)

    def serve(self, name: str, handler: Any) -> None:
        self.served[name] = handler

    def wait(self, done: Any, timeout: float) -> bool:
        self.waited.append(timeout)
        return bool(done())


class Asked:
    """A basket, asked as its users do."""

    def __init__(self) -> None:
        self.session = FakeSession()
        self.service = BasketService(self.session, "main")

    def __call__(self, *args: Any, **fields: Any) -> Any:
        return self.session.served["basket/main"](*args, **fields)

    def arrive(self, topic: str, publisher: PeerId, numbers: list[int], bodies: list[bytes] | None = None) -> None:
        (feed,) = (it for it in self.session.subscriptions.values() if it.topic == topic)
        bodies = [b"%d" % number for number in numbers] if bodies is None else bodies
        feed.arrived(Arrived(feed.id, publisher, topic, bodies, 0, numbers))

    def names(self, topic: str) -> list[str]:
        messages, _, complete, _ = self("read", topic)
        assert complete
        return [f"{publisher}:{number}" for publisher, number, _ in messages]


@pytest.fixture
def basket() -> Any:
    asked = Asked()
    yield asked
    asked.service.close()


def test_a_kept_topic_is_subscribed_to_once_with_numbers_and_what_publishers_keep(basket: Asked) -> None:
    assert basket("keep", "t", 10, None, None) == ["sleepy"]
    assert basket("keep", "t", 20) == ["sleepy"], "other limits, the same subscription"
    (put,) = basket.session.asked
    assert isinstance(put, PutRecord) and put.name == "reactions:t"
    reaction = decode_reaction(put.value)
    assert (reaction.numbered, reaction.history, reaction.overflow) == (True, -1, BLOCK)
    assert basket.session.told == [Subscribed(RequestId(int(put.record)), CAPACITY)]
    facts = basket("info")["t"]
    assert (facts["count_max"], facts["bytes_max"], facts["seconds_max"]) == (20, 64 << 20, None)


def test_messages_are_stored_as_they_come(basket: Asked) -> None:
    basket("keep", "t")
    basket.arrive("t", P, [3], [])
    basket.arrive("t", P, [3, 4])
    basket.arrive("t", Q, [1])
    assert basket.names("t") == ["p:3", "p:4", "runner/1#3:1"]
    assert basket("latest", "t") == {"p": 4, "runner/1#3": 1}
    assert basket("read", "t", 0, 2)[0] == [("p", 3, b"3"), ("p", 4, b"4")]


def test_credit_is_given_for_many_messages_at_once(basket: Asked) -> None:
    basket("keep", "t")
    basket.session.told.clear()
    for first in range(1, CAPACITY // 4, 1024):
        assert basket.session.told == []
        basket.arrive("t", P, list(range(first, first + 1024)))
    (took,) = basket.session.told
    assert isinstance(took, Took) and (took.publisher, took.count) == (P, CAPACITY // 4)


def test_a_question_waits_for_what_is_under_way_and_not_for_what_never_comes(basket: Asked) -> None:
    basket("keep", "t")
    assert basket("read_publisher", "t", "p", 1, 3) == ([], 0)
    basket.arrive("t", P, [1, 2])
    assert basket("read_publisher", "t", "p", 1, 3) == ([(1, b"1"), (2, b"2")], 2)
    (feed,) = basket.session.subscriptions.values()
    feed.publisher_ended(P)
    assert basket("read_publisher", "t", "p", 3, 9) == ([], 9)
    feed.publisher_ended(PeerId("stranger"))
    assert basket("read_publisher", "t", "stranger", 1, 4) == ([], 4)
    assert set(basket.session.waited) == {basket_module.UNDER_WAY_S}
    with pytest.raises(NotKept):
        basket("read_publisher", "unknown", "p", 1, 3)


def test_a_publisher_that_comes_back_is_another_one(basket: Asked) -> None:
    basket("keep", "t")
    basket.arrive("t", Q, [1, 2])
    (feed,) = basket.session.subscriptions.values()
    feed.publisher_ended(Q)
    basket.session.peer.introduce(PeerRef(Q, 4, ()))
    basket.arrive("t", Q, [1])
    assert basket.names("t") == ["runner/1#3:1", "runner/1#3:2", "runner/1#4:1"]


def test_names_of_publishers() -> None:
    session = FakeSession()
    assert publisher_name(session.peer, P) == "p"
    assert publisher_name(session.peer, Q) == "runner/1#3"
    assert publisher_name(session.peer, PeerId("own")) == "own"
    restarted = Peer(Identity(PeerId("own"), 7, 5, KIND_CLIENT, "token"))
    assert publisher_name(restarted, PeerId("own")) == "own#7"


def test_a_hand_over_keeps_a_topic_that_was_not_kept(basket: Asked) -> None:
    assert basket("take_over", "new", "p", [[1, b"1", 5.0], [2, b"2", 4]]) == 2
    assert basket.names("new") == ["p:1", "p:2"]
    assert len(basket.session.asked) == 1, "and others' messages come, too"
    basket.arrive("new", P, [3])
    assert basket("take_over", "new", "p", [[2, b"2", 4], [3, b"3", 1]]) == 0
    assert basket.names("new") == ["p:1", "p:2", "p:3"]


def test_a_hand_over_of_nonsense_changes_nothing(basket: Asked) -> None:
    for nonsense in ([[0, b"", 0.0]], [[1, b"", -1.0]], [["x", b"", 0.0]], [[1]], [[1, "text", 0.0]]):
        with pytest.raises((ValueError, TypeError)):
            basket("take_over", "t", "p", nonsense)
        assert basket("info") == {} or basket.names("t") == []


def test_old_messages_are_not_given_out(basket: Asked) -> None:
    basket("keep", "t", None, 10.0)
    basket.arrive("t", P, [1])
    basket.session.now += 9.0
    basket.arrive("t", P, [2])
    assert basket.names("t") == ["p:1", "p:2"]
    basket.session.now += 1.0
    assert basket.names("t") == ["p:2"]
    assert basket("info")["t"]["dropped"] == 1


def test_a_topic_that_cannot_be_subscribed_to_is_not_kept(basket: Asked) -> None:
    basket.session.refuses = Overflow("the hub is full")
    with pytest.raises(Overflow):
        basket("keep", "t")
    assert basket("info") == {} and basket.session.subscriptions == {}
    basket.session.refuses = None
    basket("keep", "t")
    assert list(basket("info")) == ["t"]


def test_limits_that_are_none_leave_nothing_behind(basket: Asked) -> None:
    with pytest.raises(ValueError, match="cannot keep 0 messages"):
        basket("keep", "t", 0)
    assert basket("info") == {} and basket.session.asked == []


def test_a_dropped_topic_is_subscribed_to_no_longer(basket: Asked) -> None:
    basket("keep", "t")
    basket.arrive("t", P, [1, 2])
    (identifier,) = basket.session.subscriptions
    assert basket("drop", "t") == 2
    assert basket.session.subscriptions == {}
    assert basket.session.told[-1] == Unsubscribed(identifier)
    assert isinstance(basket.session.asked[-1], DeleteRecord) and basket.session.asked[-1].record == str(identifier)
    for what in ("drop", "read", "latest"):
        with pytest.raises(NotKept):
            basket(what, "t")


def test_what_a_basket_is_not_asked(basket: Asked) -> None:
    with pytest.raises(ValueError, match="is not asked to 'close'; it knows keep, drop"):
        basket("close")
