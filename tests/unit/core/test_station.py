from collections import deque
from typing import Any

import pytest

from raskid.core.machine import Effect, Received, Send, Tick
from raskid.core.peer import BytesReceived, Connect, ConnectionOpened, Identity, Peer
from raskid.core.station import Forget, Station, Told, Unhandled, needed_role
from raskid.model.ids import PeerId, RequestId, TaskId
from raskid.protocol.messages import (
    KIND_CLIENT,
    KIND_HEAD,
    ROLE_EXECUTE,
    ROLE_MESSAGE,
    ROLE_VIEW,
    AskStatus,
    Deliver,
    ListTopics,
    Message,
    PeerRef,
    ReleaseTasks,
)
from raskid.protocol.tokens import derive

HEAD = PeerId("head")
CLIENT = PeerId("c")
RELEASE = ReleaseTasks([TaskId(1)])


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
