from collections import deque
from typing import Any

import pytest

from raskid.core import peer as peer_module
from raskid.core.effects import Connect, Effect, Forget, Introduce, Send, Told, Unhandled
from raskid.core.events import BytesReceived, ConnectionOpened, HandshakeRefused, Received, Tick
from raskid.core.identity import Identity
from raskid.core.peer import Peer
from raskid.core.relay import RelayEnd
from raskid.core.station import Station
from raskid.model.ids import IdSource, PeerId, RequestId, StreamId, TaskId
from raskid.protocol.messages import (
    KIND_CLIENT,
    KIND_HEAD,
    ROLE_EXECUTE,
    ROLE_MESSAGE,
    ROLE_VIEW,
    AskStatus,
    Consumed,
    Deliver,
    ListTopics,
    Message,
    OpenStream,
    PeerRef,
    ReleaseTasks,
    TaskValue,
    needed_role,
)
from raskid.protocol.tokens import derive

HEAD = PeerId("head")
CLIENT = PeerId("c")
RELEASE = ReleaseTasks([TaskId(1)])

replaces_a_method = pytest.mark.skipif(
    not (peer_module.__file__ or "").endswith(".py"), reason="compiled classes do not let their methods be replaced"
)


class Machine:
    """Notes what it meets, and answers with what it was given."""

    commands: frozenset[type] = frozenset()

    def __init__(self, *handles: type[Message]) -> None:
        self.handles = frozenset(handles)
        self.met: list[Any] = []
        self.answers: deque[list[Effect]] = deque()

    def handle(self, event: Any, now: float) -> list[Effect]:
        self.met.append(event)
        return self.answers.popleft() if self.answers else []

    def next_deadline(self) -> float | None:
        return 5.0

    def check_invariants(self) -> None:
        return


def head(*machines: Machine) -> Station:
    return Station(Peer(Identity(HEAD, 1, 1, KIND_HEAD, "token", addresses=("h",))), list(machines))


def client(role: str = ROLE_EXECUTE) -> Station:
    token = derive("token", ROLE_EXECUTE, role)
    peer = Peer(Identity(CLIENT, 1, 2, KIND_CLIENT, token, role), HEAD)
    peer.introduce(PeerRef(HEAD, 0, ("h",)))
    return Station(peer, [])


def connect(one: Station, other: Station, message: Message) -> list[Effect]:
    """Connect by a message; return what was left of the other's effects."""
    left = one.perform([Send(HEAD, message)], 0.0)
    assert [type(effect) for effect in left] == [Connect]
    out = other.handle(ConnectionOpened(other.peer.new_connection(), False), 0.0)
    one.handle(ConnectionOpened(1, True), 0.0)
    return out + exchange(one, other)


def exchange(one: Station, other: Station) -> list[Effect]:
    out: list[Effect] = []
    while True:
        there, back = one.peer.output(1, 1 << 20), other.peer.output(1, 1 << 20)
        if not there and not back:
            one.check_invariants()
            other.check_invariants()
            return out
        if there:
            out += other.handle(BytesReceived(1, there), 0.0)
        if back:
            one.handle(BytesReceived(1, back), 0.0)


@pytest.mark.parametrize(
    ("kind", "role"),
    [(AskStatus, ROLE_VIEW), (ListTopics, ROLE_VIEW), (Deliver, ROLE_MESSAGE), (ReleaseTasks, ROLE_EXECUTE)],
)
def test_needed_role(kind: type[Message], role: str) -> None:
    assert needed_role(kind) == role


def test_message_reaches_its_machine() -> None:
    one, two = Machine(ReleaseTasks), Machine(AskStatus)
    out = connect(client(), head(one, two), RELEASE)
    assert [type(effect) for effect in out] == [Told]
    assert one.met[-1] == Received(CLIENT, RELEASE)
    assert not any(isinstance(event, Received) for event in two.met)


def test_message_without_its_role_is_left_out() -> None:
    machine = Machine(ReleaseTasks)
    out = connect(client(ROLE_MESSAGE), head(machine), RELEASE)
    assert out[-1] == Unhandled(CLIENT, "ReleaseTasks", "it needs role execute")
    assert not any(isinstance(event, Received) for event in machine.met)


def test_message_for_nobody_is_left_out() -> None:
    out = connect(client(), head(), RELEASE)
    assert out[-1] == Unhandled(CLIENT, "ReleaseTasks", "nobody here handles it")


def test_message_to_oneself_is_handled_after_the_rest() -> None:
    one, two = Machine(ReleaseTasks), Machine(AskStatus)
    station = head(one, two)
    rest = Unhandled(CLIENT, "other", "effect")
    two.answers.append([Send(HEAD, RELEASE), rest])
    assert station.perform([Send(HEAD, AskStatus(RequestId(1)))], 0.0) == [rest]
    assert one.met == [Received(HEAD, RELEASE)]


def test_forgotten_peer_is_gone() -> None:
    machine = Machine(ReleaseTasks)
    station = head(machine)
    connect(client(), station, RELEASE)
    out = station.perform([Forget(CLIENT, 1, "ended")], 0.0)
    assert any(isinstance(effect, Told) for effect in out)
    assert list(station.peer.peers()) == []


def test_tick_reaches_all_and_the_first_deadline_counts() -> None:
    one, two = Machine(), Machine()
    station = head(one, two)
    station.handle(Tick(), 1.0)
    assert one.met == two.met == [Tick()]
    assert station.next_deadline() == 5.0


# ── roles of those who welcome us ──


def impostor(token: str, role: str) -> Station:
    """Somebody who has the message token at most, and says that it is more."""
    name = PeerId("impostor")
    peer = Peer(Identity(name, 1, 9, KIND_CLIENT, token, role, ("unix:impostor",)))
    return Station(peer, [])


def lured(other: Station) -> tuple[Station, Machine, list[Effect]]:
    """A peer with the execute role sends to whoever listens at an address; that one answers with a pickle."""
    machine = Machine(TaskValue, Consumed)
    one = Station(Peer(Identity(CLIENT, 1, 2, KIND_CLIENT, "token")), [machine])
    name = other.peer.identity.peer
    left = one.perform([Introduce(other.peer.own_ref), Send(name, Consumed(RequestId(1), 1))], 0.0)
    assert [type(effect) for effect in left] == [Connect]
    number = other.peer.new_connection()
    other.handle(ConnectionOpened(number, False), 0.0)
    one.handle(ConnectionOpened(1, True), 0.0)
    other.handle(BytesReceived(number, one.peer.output(1, 1 << 16)), 0.0)
    other.perform(
        [Send(CLIENT, TaskValue(TaskId(1), 1, True, b"pickle")), Send(CLIENT, Consumed(RequestId(2), 1))], 0.0
    )
    left = one.handle(BytesReceived(1, other.peer.output(number, 1 << 16)), 0.0)
    one.check_invariants()
    return one, machine, left


def test_a_pickle_of_one_who_has_only_the_message_token_is_left_out() -> None:
    other = impostor(derive("token", ROLE_EXECUTE, ROLE_MESSAGE), ROLE_MESSAGE)
    _, machine, left = lured(other)
    assert Unhandled(PeerId("impostor"), "TaskValue", "it needs role execute") in left
    assert [event.message for event in machine.met if isinstance(event, Received)] == [Consumed(RequestId(2), 1)]


@replaces_a_method
def test_a_pickle_of_one_who_claims_a_role_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. It has the message token. 2. It calls that the execute token, and its Welcome says role execute."""
    token = derive("token", ROLE_EXECUTE, ROLE_MESSAGE)
    monkeypatch.setattr(peer_module, "check_hello", lambda me, head, hello: ROLE_EXECUTE)
    _, machine, left = lured(impostor(token, ROLE_EXECUTE))
    assert not any(isinstance(event, Received) for event in machine.met)
    (refused,) = [each.event for each in left if isinstance(each, Told) and isinstance(each.event, HandshakeRefused)]
    assert refused.code == "bad-token" and "proves no role of this system" in refused.text


# ── ends ──


@replaces_a_method
def test_an_end_found_while_sending_comes_after_what_is_being_sent() -> None:
    """1. A machine tells two peers of a change. 2. The first does not read, and ends. 3. What the machine says of that
    end goes to the second peer behind the change."""
    machine = Machine(AskStatus)
    station = head(machine)
    connect(client(), station, RELEASE)
    two = PeerId("two")
    station.peer.introduce(PeerRef(two, 1, ("unix:two",)))
    sent: list[tuple[PeerId, Message]] = []

    def send(peer: PeerId, message: Any, now: float) -> list[Effect]:
        sent.append((peer, message))
        return [Forget(CLIENT, 1, "does not read")] if peer == CLIENT else []

    station.peer.send = send  # type: ignore[method-assign]
    machine.answers.append([Send(two, AskStatus(RequestId(2)))])
    station.perform([Send(CLIENT, AskStatus(RequestId(1))), Send(two, AskStatus(RequestId(1)))], 0.0)
    assert sent == [(CLIENT, AskStatus(RequestId(1))), (two, AskStatus(RequestId(1))), (two, AskStatus(RequestId(2)))]


def test_the_relay_listens_to_the_head_by_its_true_name() -> None:
    """A client knows its head by a provisional name until the handshake; what the head says right behind it counts."""
    relay = RelayEnd(PeerId("provisional"), IdSource(2))
    peer = Peer(Identity(CLIENT, 1, 2, KIND_CLIENT, "token"), "provisional")
    peer.introduce(PeerRef(PeerId("provisional"), 0, ("h",)))
    one, other = Station(peer, [], relay), head()
    left = one.perform([Send(PeerId("provisional"), AskStatus(RequestId(1)))], 0.0)
    assert [type(effect) for effect in left] == [Connect]
    number = other.peer.new_connection()
    other.handle(ConnectionOpened(number, False), 0.0)
    one.handle(ConnectionOpened(1, True), 0.0)
    other.handle(BytesReceived(number, one.peer.output(1, 1 << 16)), 0.0)
    other.perform([Send(CLIENT, OpenStream(StreamId(7), CLIENT, "x"))], 0.0)
    one.handle(BytesReceived(1, other.peer.output(number, 1 << 16)), 0.0)
    assert list(relay.connections.values()) == [StreamId(7)]
