"""The hub, one event after the other: exactly these effects."""

from __future__ import annotations

from typing import Any

import pytest

from raskid.core import hub as hub_module
from raskid.core.effects import Effect, Send
from raskid.core.events import PeerGone, PeerJoined, Received, Tick
from raskid.core.hub import Hub
from raskid.model.ids import PeerId, RequestId
from raskid.protocol.messages import (
    AcknowledgeList,
    ChangesSent,
    DeleteRecord,
    ListState,
    ListTopics,
    PutRecord,
    Record,
    RecordDeleted,
    RecordPut,
    RecordSettled,
    RequestRefused,
    TopicInfo,
    TopicsListed,
    Unwatch,
    Watch,
)

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
L = "reactions:mesh"


class Rig:
    """A hub whose invariants are checked after every event."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.now = 100.0

    def event(self, event: Any) -> list[Effect]:
        effects = self.hub.handle(event, self.now)
        self.hub.check_invariants()
        return effects

    def receive(self, peer: PeerId, message: Any) -> list[Effect]:
        return self.event(Received(peer, message))

    def tick(self, now: float) -> list[Effect]:
        self.now = now
        return self.event(Tick())


def put(request: int, record: str = "r", value: bytes = b"v", settle_s: float = 0.0, **more: Any) -> PutRecord:
    return PutRecord(RequestId(request), more.pop("name", L), record, value, settle_s=settle_s, **more)


def delete(request: int, record: str = "r", settle_s: float = 0.0, name: str = L) -> DeleteRecord:
    return DeleteRecord(RequestId(request), name, record, settle_s)


def settled(peer: PeerId, request: int, version: int, *silent: str) -> Send:
    return Send(peer, RecordSettled(RequestId(request), version, silent))


def refusal(effects: list[Effect]) -> tuple[PeerId, int, str]:
    (effect,) = effects
    assert isinstance(effect, Send) and isinstance(effect.message, RequestRefused)
    return effect.peer, effect.message.request, effect.message.code


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_reader_gets_the_state_and_then_every_change(rig: Rig) -> None:
    """1. a puts. 2. b watches. 3. a replaces and adds. 4. a deletes. 5. b watches again."""
    assert rig.receive(A, put(1)) == [settled(A, 1, 1)]
    assert rig.receive(B, Watch(L)) == [Send(B, ListState(L, 1, [Record("r", b"v", A)]))]
    assert rig.receive(A, put(2, "s")) == [Send(B, RecordPut(L, 2, Record("s", b"v", A))), settled(A, 2, 2)]
    assert rig.receive(A, put(3, "r", b"w")) == [Send(B, RecordPut(L, 3, Record("r", b"w", A))), settled(A, 3, 3)]
    assert rig.receive(B, Watch(L)) == [Send(B, ListState(L, 3, [Record("r", b"w", A), Record("s", b"v", A)]))]
    assert rig.receive(A, delete(4)) == [Send(B, RecordDeleted(L, 4, "r")), settled(A, 4, 4)]
    assert rig.receive(A, delete(5)) == [settled(A, 5, 4)]
    assert rig.receive(B, Unwatch(L)) == []
    assert rig.receive(A, put(6)) == [settled(A, 6, 5)]


def test_records_of_a_gone_peer_go_and_permanent_ones_stay(rig: Rig) -> None:
    rig.event(PeerJoined(A, 1, "client", "message"))
    rig.receive(A, put(1, "mine"))
    rig.receive(A, put(2, "all", permanent=True))
    rig.receive(A, Watch(L))
    rig.receive(B, Watch(L))
    assert rig.event(PeerGone(A, 1)) == [Send(B, RecordDeleted(L, 3, "mine"))]
    assert rig.receive(C, Watch(L)) == [Send(C, ListState(L, 3, [Record("all", b"v", limited=True)]))]


def test_a_record_says_whether_its_writer_may_have_something_executed(rig: Rig) -> None:
    rig.event(PeerJoined(A, 1, "client", "message"))
    rig.event(PeerJoined(B, 1, "client", "execute"))
    rig.receive(A, put(1, "a"))
    rig.receive(B, put(2, "b"))
    assert rig.receive(C, Watch(L)) == [
        Send(C, ListState(L, 2, [Record("a", b"v", A, limited=True), Record("b", b"v", B)]))
    ]
    rig.event(PeerJoined(A, 2, "client", "execute"))
    rig.receive(A, put(3, "a"))
    assert rig.receive(C, Watch(L)) == [Send(C, ListState(L, 4, [Record("b", b"v", B), Record("a", b"v", A)]))]


def test_a_newer_incarnation_clears_the_older_ones_records(rig: Rig) -> None:
    """1. a:1 puts. 2. a:2 comes before the end of a:1 is told. 3. That end touches nothing of a:2."""
    rig.event(PeerJoined(A, 1, "client", "message"))
    rig.receive(A, put(1))
    rig.receive(B, Watch(L))
    assert rig.event(PeerJoined(A, 2, "client", "message")) == [Send(B, RecordDeleted(L, 2, "r"))]
    rig.receive(A, put(2))
    assert rig.event(PeerGone(A, 1)) == []
    assert rig.event(PeerJoined(A, 2, "client", "message")) == []
    assert rig.event(PeerGone(A, 2)) == [Send(B, RecordDeleted(L, 4, "r"))]


def test_only_the_owner_changes_its_record_and_anybody_a_permanent_one(rig: Rig) -> None:
    rig.receive(A, put(1))
    assert refusal(rig.receive(B, put(2))) == (B, 2, "NotAllowed")
    assert refusal(rig.receive(B, delete(3))) == (B, 3, "NotAllowed")
    assert rig.receive(A, put(4, permanent=True)) == [settled(A, 4, 2)]
    assert rig.event(PeerGone(A, 1)) == []
    assert rig.receive(B, put(5)) == [settled(B, 5, 3)]
    assert refusal(rig.receive(A, delete(6))) == (A, 6, "NotAllowed")
    assert rig.receive(B, delete(7)) == [settled(B, 7, 4)]


def test_a_settling_change_is_answered_when_all_readers_act_by_it(rig: Rig) -> None:
    """1. b and c watch with acks, a without. 2. a puts. 3. b and c acknowledge."""
    for peer in (B, C):
        rig.receive(peer, Watch(L, acks=True))
    rig.receive(A, Watch(L))
    change = RecordPut(L, 1, Record("r", b"v", A))
    assert rig.receive(A, put(1, settle_s=5.0)) == [Send(B, change), Send(C, change), Send(A, change)]
    assert rig.hub.next_deadline() == 105.0
    assert rig.receive(A, AcknowledgeList(L, 1)) == []
    assert rig.receive(B, AcknowledgeList(L, 0)) == []
    assert rig.receive(B, AcknowledgeList(L, 1)) == []
    assert rig.receive(C, AcknowledgeList(L, 1)) == [settled(A, 1, 1)]
    assert rig.hub.next_deadline() is None
    assert rig.tick(200.0) == []


def test_silent_readers_are_named_at_the_time_limit(rig: Rig) -> None:
    for peer in (B, C):
        rig.receive(peer, Watch(L, acks=True))
    rig.receive(A, put(1, settle_s=5.0))
    rig.receive(B, AcknowledgeList(L, 1))
    assert rig.tick(104.9) == []
    assert rig.tick(105.0) == [settled(A, 1, 1, "c")]
    assert rig.receive(C, AcknowledgeList(L, 1)) == []


@pytest.mark.parametrize(
    "event", [Received(B, Unwatch(L)), PeerGone(B, 1), Received(B, Watch(L)), Received(B, Watch(L, acks=True))]
)
def test_a_reader_that_stops_reading_or_starts_anew_does_not_count(rig: Rig, event: Any) -> None:
    rig.receive(B, Watch(L, acks=True))
    rig.receive(A, put(1, settle_s=5.0))
    assert rig.event(event)[-1] == settled(A, 1, 1)


def test_a_later_reader_does_not_count(rig: Rig) -> None:
    rig.receive(B, Watch(L, acks=True))
    rig.receive(A, put(1, settle_s=5.0))
    rig.receive(C, Watch(L, acks=True))
    assert rig.receive(B, AcknowledgeList(L, 1)) == [settled(A, 1, 1)]


def test_one_acknowledgement_settles_all_versions_before_it(rig: Rig) -> None:
    """Also: nobody acknowledges the future, and deleting what was deleted waits for the deletion before."""
    rig.receive(B, Watch(L, acks=True))
    rig.receive(A, put(1, settle_s=5.0))
    rig.receive(A, delete(2, settle_s=5.0))
    assert rig.receive(A, delete(3, settle_s=5.0)) == []
    assert rig.receive(B, AcknowledgeList(L, 99)) == [settled(A, 1, 1), settled(A, 2, 2), settled(A, 3, 2)]
    assert rig.receive(A, put(4, settle_s=5.0)) == [Send(B, RecordPut(L, 3, Record("r", b"v", A)))]


def test_a_gone_asker_is_not_answered(rig: Rig) -> None:
    rig.receive(B, Watch(L, acks=True))
    rig.receive(A, put(1, settle_s=5.0))
    assert rig.event(PeerGone(A, 1)) == [Send(B, RecordDeleted(L, 2, "r"))]
    assert rig.receive(B, AcknowledgeList(L, 2)) == []
    assert rig.hub.next_deadline() is None


def test_a_reader_may_wait_for_itself(rig: Rig) -> None:
    rig.receive(A, Watch(L, acks=True))
    rig.receive(A, put(1, settle_s=5.0))
    assert rig.receive(A, AcknowledgeList(L, 1)) == [settled(A, 1, 1)]
    rig.receive(A, put(2, settle_s=5.0))
    assert rig.event(PeerGone(A, 1)) == []


def test_bad_names_are_refused(rig: Rig) -> None:
    assert refusal(rig.receive(A, put(1, name="mesh"))) == (A, 1, "TopicNameError")
    assert refusal(rig.receive(A, delete(2, name="shared:@x"))) == (A, 2, "TopicNameError")
    assert rig.receive(A, Watch("mesh")) == []
    assert rig.hub.refused == 1
    assert rig.receive(A, Unwatch("mesh")) == []
    assert rig.receive(A, AcknowledgeList("mesh", 1)) == []


def test_versions_never_go_back_when_a_list_is_forgotten(rig: Rig) -> None:
    assert rig.receive(A, delete(1)) == [settled(A, 1, 0)]
    rig.receive(A, put(2))
    assert rig.receive(A, delete(3)) == [settled(A, 3, 2)]
    assert rig.receive(A, ListTopics(RequestId(4))) == [Send(A, TopicsListed(RequestId(4), []))]
    assert rig.receive(A, delete(5, settle_s=1.0)) == [settled(A, 5, 2)]
    assert rig.receive(B, Watch(L)) == [Send(B, ListState(L, 2, []))]


def test_lists_are_listed_by_prefix(rig: Rig) -> None:
    rig.receive(A, put(1, name="shared:x"))
    rig.receive(B, Watch("shared:a"))
    rig.receive(B, Watch(L))
    expected = [TopicInfo("shared:a", 0, 0, 1), TopicInfo("shared:x", 1, 1, 0)]
    assert rig.receive(C, ListTopics(RequestId(2), "shared:")) == [Send(C, TopicsListed(RequestId(2), expected))]


def test_everything_has_a_bound(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rig.receive(A, put(1, value=bytes(256 * 1024))) == [settled(A, 1, 1)]
    assert refusal(rig.receive(A, put(2, value=bytes(256 * 1024 + 1)))) == (A, 2, "Overflow")
    assert refusal(rig.receive(A, put(3, "r" * 1025))) == (A, 3, "Overflow")
    monkeypatch.setattr(hub_module, "RECORDS_MAX", 1)
    assert refusal(rig.receive(A, put(4, "s"))) == (A, 4, "Overflow")
    assert rig.receive(A, put(5, "r")) == [settled(A, 5, 2)]
    monkeypatch.setattr(hub_module, "LISTS_MAX", 1)
    assert refusal(rig.receive(A, put(6, name="shared:x"))) == (A, 6, "Overflow")
    assert rig.receive(A, Watch("shared:x")) == []
    assert rig.hub.refused == 1
    monkeypatch.setattr(hub_module, "WAITS_MAX", 1)
    rig.receive(B, Watch(L, acks=True))
    rig.receive(A, put(7, settle_s=float("inf")))
    assert rig.hub.next_deadline() == 100.0 + hub_module.SETTLE_S_MAX
    assert refusal(rig.receive(A, put(8, settle_s=1.0))) == (A, 8, "Overflow")
    assert refusal(rig.receive(A, delete(9, settle_s=1.0))) == (A, 9, "Overflow")
    assert rig.receive(A, put(10))[-1] == settled(A, 10, 4)


def test_deadlines_of_waits_that_are_over_do_not_pile_up(rig: Rig) -> None:
    rig.receive(B, Watch(L, acks=True))
    for number in range(1, 301):
        rig.receive(A, put(number, settle_s=60.0))
        assert rig.receive(B, AcknowledgeList(L, number)) == [settled(A, number, number)]
    assert len(rig.hub._deadlines) <= 65


def test_a_watch_that_is_refused_is_answered_by_its_request(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "LISTS_MAX", 1)
    rig.receive(A, Watch("shared:one", False, RequestId(1)))
    assert refusal(rig.receive(A, Watch("shared:two", False, RequestId(2)))) == (A, 2, "Overflow")
    assert refusal(rig.receive(A, Watch("no list", False, RequestId(3)))) == (A, 3, "TopicNameError")
    assert rig.receive(A, Watch("shared:two")) == []
    assert rig.hub.refused == 3
    rig.receive(A, Unwatch("shared:one"))
    assert rig.receive(A, Watch("shared:two", False, RequestId(4))) == [Send(A, ListState("shared:two", 0, []))]


def test_an_agent_answers_for_a_busy_reader() -> None:
    """1. b's agent c hears of each change, with the count of those that b was sent. 2. It acknowledges for b."""
    rig = Rig()
    rig.event(PeerJoined(B, 7, "runner", "execute"))
    rig.receive(B, Watch(L, True, RequestId(1), agent=C))
    record = Record("r", b"v", A)
    assert rig.receive(A, put(1, settle_s=5.0)) == [
        Send(B, RecordPut(L, 1, record)),
        Send(C, ChangesSent(B, 7, 1, L, 1)),
    ]
    assert rig.receive(C, AcknowledgeList(L, 1, reader=B)) == [settled(A, 1, 1)]
    assert rig.receive(A, delete(2)) == [
        Send(B, RecordDeleted(L, 2, "r")),
        Send(C, ChangesSent(B, 7, 2, L, 2)),
        settled(A, 2, 2),
    ]
    rig.event(PeerGone(B, 7))
    assert not rig.hub._sent


def test_nobody_but_its_agent_answers_for_a_reader() -> None:
    rig = Rig()
    rig.receive(B, Watch(L, True, RequestId(1), agent=C))
    rig.receive(A, put(1, settle_s=5.0))
    assert rig.receive(A, AcknowledgeList(L, 1, reader=B)) == []
    assert rig.receive(C, AcknowledgeList(L, 1, reader=A)) == []
    assert rig.receive(B, AcknowledgeList(L, 1)) == [settled(A, 1, 1)]
