"""The hub under random events: readers agree, requests are answered once, records of gone peers vanish."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raskid.core.effects import Send
from raskid.core.events import PeerGone, PeerJoined, Received, Tick
from raskid.core.hub import Hub
from raskid.model.ids import PeerId, RequestId
from raskid.protocol.messages import (
    AcknowledgeList,
    DeleteRecord,
    ListState,
    PutRecord,
    Record,
    RecordDeleted,
    RecordPut,
    RecordSettled,
    RequestRefused,
    Unwatch,
    Watch,
)

PEERS = st.sampled_from([PeerId(name) for name in "abc"])
NAMES = st.sampled_from(["reactions:x", "shared:y"])
RECORDS = st.sampled_from(["r", "s", "t"])
SETTLES = st.sampled_from([0.0, 0.0, 1.0, 3.0])


class HubRules(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.hub = Hub()
        self.now = 0.0
        self.requests = 0
        self.incarnations: dict[PeerId, int] = {}
        #: What each reader has been told: (peer, list) to [version, records].
        self.replicas: dict[tuple[PeerId, str], tuple[int, dict[str, Record]]] = {}
        self.versions: dict[str, int] = {}
        #: Requests without an answer: to (asker, latest time of the answer).
        self.open: dict[int, tuple[PeerId, float]] = {}

    def event(self, event: Any) -> None:
        for effect in self.hub.handle(event, self.now):
            assert isinstance(effect, Send)
            assert effect.peer in self.incarnations, "sent to a peer that is gone"
            self.take(effect.peer, effect.message)
        self.hub.check_invariants()

    def take(self, peer: PeerId, message: Any) -> None:
        if isinstance(message, ListState):
            self.replicas[peer, message.name] = (message.version, {it.record: it for it in message.records})
            assert message.version >= self.versions.get(message.name, 0)
            self.versions[message.name] = message.version
        elif isinstance(message, RecordPut | RecordDeleted):
            version, records = self.replicas[peer, message.name]
            assert message.version == version + 1
            if isinstance(message, RecordPut):
                records[message.record.record] = message.record
            else:
                del records[message.record]
            self.replicas[peer, message.name] = (message.version, records)
            self.versions[message.name] = message.version
        elif isinstance(message, RecordSettled | RequestRefused):
            asker, _ = self.open.pop(message.request)
            assert asker == peer
        else:
            raise AssertionError(message)

    def send(self, peer: PeerId, message: Any) -> None:
        if peer not in self.incarnations:
            self.incarnations[peer] = 1
            self.event(PeerJoined(peer, 1, "client", "message"))
        if isinstance(message, PutRecord | DeleteRecord):
            self.open[message.request] = (peer, self.now + message.settle_s)
        self.event(Received(peer, message))

    def request(self) -> RequestId:
        self.requests += 1
        return RequestId(self.requests)

    @rule(peer=PEERS, name=NAMES, acks=st.booleans())
    def watch(self, peer: PeerId, name: str, acks: bool) -> None:
        self.send(peer, Watch(name, acks))

    @rule(peer=PEERS, name=NAMES)
    def unwatch(self, peer: PeerId, name: str) -> None:
        self.send(peer, Unwatch(name))
        self.replicas.pop((peer, name), None)

    @rule(peer=PEERS, name=NAMES, record=RECORDS, permanent=st.booleans(), settle_s=SETTLES)
    def put(self, peer: PeerId, name: str, record: str, permanent: bool, settle_s: float) -> None:
        request = self.request()
        self.send(peer, PutRecord(request, name, record, b"%d" % request, permanent, settle_s))

    @rule(peer=PEERS, name=NAMES, record=RECORDS, settle_s=SETTLES)
    def delete(self, peer: PeerId, name: str, record: str, settle_s: float) -> None:
        self.send(peer, DeleteRecord(self.request(), name, record, settle_s))

    @rule(peer=PEERS, name=NAMES, behind=st.integers(-1, 2))
    def acknowledge(self, peer: PeerId, name: str, behind: int) -> None:
        version = self.replicas.get((peer, name), (0, {}))[0]
        self.send(peer, AcknowledgeList(name, version - behind))

    @rule(peer=PEERS, told_late=st.booleans())
    def lose(self, peer: PeerId, told_late: bool) -> None:
        incarnation = self.incarnations.pop(peer, None)
        if incarnation is None:
            return
        for key in [key for key in self.replicas if key[0] == peer]:
            del self.replicas[key]
        self.open = {request: it for request, it in self.open.items() if it[0] != peer}
        if told_late:
            self.incarnations[peer] = incarnation + 1
            self.event(PeerJoined(peer, incarnation + 1, "client", "message"))
        self.event(PeerGone(peer, incarnation))
        assert not any(record.owner == peer for lst in self.hub._lists.values() for record in lst.records.values())

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.event(Tick())

    @invariant()
    def readers_agree_with_the_hub(self) -> None:
        told = set()
        for name, lst in self.hub._lists.items():
            for peer in lst.readers:
                told.add((peer, name))
                version, records = self.replicas[peer, name]
                assert version == lst.version
                assert list(records.values()) == list(lst.records.values())
        assert told == set(self.replicas)

    @invariant()
    def no_answer_is_late(self) -> None:
        assert len(self.open) == len(self.hub._waits)
        deadline = self.hub.next_deadline()
        assert (deadline is None) == (not self.open)
        assert deadline is None or deadline == min(latest for _, latest in self.open.values()) > self.now

    def teardown(self) -> None:
        self.now += 10.0
        self.event(Tick())
        assert not self.open
        for peer in list(self.incarnations):
            self.event(PeerGone(peer, self.incarnations[peer]))
            del self.incarnations[peer]
            for key in [key for key in self.replicas if key[0] == peer]:
                del self.replicas[key]
        assert all(not it.owner for lst in self.hub._lists.values() for it in lst.records.values())


TestHubRules = HubRules.TestCase
TestHubRules.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
