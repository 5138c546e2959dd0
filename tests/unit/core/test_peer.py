"""Whoever breaks the rules at the door is told why, and everybody else goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from raskid.core.effects import Connect, Disconnect, Forget
from raskid.core.events import (
    BytesReceived,
    ConnectionClosed,
    ConnectionOpened,
    HandshakeRefused,
    PeerGone,
    PeerJoined,
    Received,
    Tick,
)
from raskid.core.handshake import HANDSHAKE_S, make_welcome
from raskid.core.identity import Identity
from raskid.core.paths import UNREAD_BYTES_MAX, UNREAD_S, UPGRADE_S_FIRST
from raskid.core.peer import Peer
from raskid.model.ids import PeerId, RequestId, TaskId
from raskid.protocol.codec import decode_batch, encode_batch
from raskid.protocol.framing import FRAME_BYTES_MAX, HEADER, UNCOUNTED, FrameReader, frame
from raskid.protocol.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Consumed,
    Goodbye,
    Hello,
    PeerRef,
    Record,
    RecordDeleted,
    RecordPut,
    Refused,
    TaskValue,
    Welcome,
)
from raskid.protocol.tokens import derive, hello_text, make_proofs


def hello(
    peer: str = "guest", incarnation: int = 1, origin: int = 7, token: str = "secret", proofs: str = "", **changes: Any
) -> Hello:
    proofs = proofs or make_proofs(token, "execute", hello_text(peer, incarnation, origin, "door"))
    made = Hello(PROTOCOL_VERSION, PeerId(peer), incarnation, origin, "client", "execute", proofs, target="door")
    return msgspec.structs.replace(made, **changes)


def hello_at(address: str) -> Hello:
    proofs = make_proofs("secret", "execute", hello_text("guest", 1, 7, "door", address))
    return hello(address=address, proofs=proofs)


class Door:
    """A peer that others connect to, and one that is well behaved."""

    def __init__(self) -> None:
        self.peer = Peer(Identity(PeerId("door"), 1, 1, "node", "secret"), lease_s=30.0)
        self.now = 0.0
        self.events: list[Any] = []
        self.effects: list[Any] = []
        self.readers: dict[int, FrameReader] = {}
        self.good = self.open()
        assert isinstance(self.greet(self.good, hello("good", origin=5)), Welcome)
        self.events.clear()

    def open(self) -> int:
        number = self.peer.new_connection()
        self.readers[number] = FrameReader(FRAME_BYTES_MAX)
        self.event(ConnectionOpened(number, outbound=False))
        return number

    def event(self, event: Any) -> None:
        events, effects = self.peer.handle(event, self.now)
        self.events += events
        self.effects += effects
        self.peer.check_invariants()

    def feed(self, number: int, data: bytes) -> list[AnyMessage]:
        self.event(BytesReceived(number, data))
        frames = self.readers[number].feed(self.peer.output(number, 1 << 16))
        return [message for _, _, payload in frames if payload for message in decode_batch(payload)]

    def greet(self, number: int, message: AnyMessage) -> AnyMessage:
        (answer,) = self.feed(number, frame(UNCOUNTED, 0, encode_batch([message])))
        return answer

    def check_refused(self, number: int, answer: AnyMessage, code: str, text: str) -> None:
        assert isinstance(answer, Refused) and answer.code == code and text in answer.text, answer
        assert any(isinstance(it, Disconnect) and it.connection == number for it in self.effects)
        assert not self.feed(number, frame(UNCOUNTED, 0, encode_batch([hello()]))), (
            "a refused connection is listened to"
        )
        self.check_good()

    def check_good(self) -> None:
        self.events.clear()
        self.feed(self.good, frame(0, 0, encode_batch([Consumed(RequestId(1), 1)])))
        assert self.events == [Received(PeerId("good"), Consumed(RequestId(1), 1))]


REFUSED = [
    (hello(token="wrong"), "bad-token", "guest"),
    (hello(protocol=99), "bad-version", "protocol 99"),
    (hello(role="king"), "bad-role", "king"),
    (hello(kind="toaster"), "bad-role", "toaster"),
    (hello(target="other"), "bad-peer", "other"),
    (hello(target=""), "bad-peer", "the head"),
    (hello(peer=""), "bad-peer", "''"),
    (hello(peer="door"), "bad-peer", "door"),
    (hello(incarnation=0), "bad-peer", "incarnation 0"),
    (hello(origin=5), "origin-taken", "good"),
    (hello(origin=1), "origin-taken", "door"),
    (hello(address="unix:elsewhere"), "bad-token", "guest"),
    (hello_at("unix:elsewhere"), "bad-peer", "meant to reach door at unix:elsewhere"),
    (hello(received=3), "link-forgotten", "has no link"),
]


@pytest.mark.parametrize(("message", "code", "text"), REFUSED)
def test_a_hello_that_does_not_fit_is_refused(message: Hello, code: str, text: str) -> None:
    door = Door()
    number = door.open()
    door.check_refused(number, door.greet(number, message), code, text)
    fine = door.open()
    assert isinstance(door.greet(fine, hello()), Welcome), "the name is not burnt by the refusal"


GARBAGE = [
    (b"GET / HTTP/1.1\r\n\r\n", "Is the other end raskid?"),
    (HEADER.pack(UNCOUNTED | 17 * 1024, 0), "17,408 bytes"),
    (frame(UNCOUNTED, 0, b"\xc1garbage"), "not MessagePack"),
    (frame(UNCOUNTED, 0, msgspec.msgpack.encode([[999, 1]])), "999"),
    (frame(UNCOUNTED, 0, msgspec.msgpack.encode([[1, "one"]])), "$[0]"),
    (frame(UNCOUNTED, 0, encode_batch([Goodbye()])), "Goodbye is not expected"),
    (frame(0, 0, encode_batch([hello()])), "must be a Hello"),
]


@pytest.mark.parametrize(("data", "text"), GARBAGE)
def test_garbage_from_a_stranger_is_refused(data: bytes, text: str) -> None:
    door = Door()
    number = door.open()
    (answer,) = door.feed(number, data)
    door.check_refused(number, answer, "protocol", text)


AFTERWARDS = [
    (HEADER.pack(FRAME_BYTES_MAX + 1, 0), "1,048,577 bytes"),
    (frame(0, 0, msgspec.msgpack.encode([[999, 1]])), "999"),
    (frame(0, 0, msgspec.msgpack.encode([[31, "one", 1]])), "$[0]"),
    (frame(0, 77, b""), "acknowledges frame 77"),
    (frame(UNCOUNTED, 0, encode_batch([hello()])), "Hello is not expected"),
]


@pytest.mark.parametrize(("data", "text"), AFTERWARDS)
def test_garbage_on_a_link_ends_that_link(data: bytes, text: str) -> None:
    door = Door()
    number = door.open()
    door.greet(number, hello())
    (answer,) = door.feed(number, data)
    assert [type(it) for it in door.events] == [PeerJoined, PeerGone]
    door.check_refused(number, answer, "protocol", text)


def test_a_second_connection_takes_the_place_of_the_first() -> None:
    door = Door()
    first, second = door.open(), door.open()
    door.greet(first, hello())
    door.effects.clear()
    assert isinstance(door.greet(second, hello()), Welcome)
    assert [it.connection for it in door.effects] == [first]
    assert [type(it) for it in door.events] == [PeerJoined]


def test_a_newer_incarnation_ends_the_older_one_which_is_refused_afterwards() -> None:
    door = Door()
    door.greet(door.open(), hello())
    door.greet(door.open(), hello(incarnation=2, origin=8))
    assert [type(it) for it in door.events] == [PeerJoined, PeerGone, PeerJoined]
    number = door.open()
    door.check_refused(number, door.greet(number, hello()), "link-forgotten", "incarnation 1")


def test_messages_before_a_goodbye_are_from_somebody_with_a_role() -> None:
    door = Door()
    number = door.open()
    door.greet(number, hello())
    door.feed(number, frame(0, 0, encode_batch([Consumed(RequestId(1), 1), Goodbye("bye")])))
    assert [type(it) for it in door.events] == [PeerJoined, Received, PeerGone]
    assert door.peer.role_of(PeerId("guest")) == "execute"


def test_an_announced_incarnation_ends_the_older_link() -> None:
    door = Door()
    door.greet(door.open(), hello())
    events, _ = door.peer.introduce(PeerRef(PeerId("guest"), 2, ("x",)), 0.0)
    assert [type(it) for it in events] == [PeerGone]
    assert door.peer.ref(PeerId("guest")) == PeerRef(PeerId("guest"), 2, ("x",))


def test_silence_at_the_door_ends() -> None:
    door = Door()
    number = door.open()
    door.now = HANDSHAKE_S
    door.event(Tick())
    assert door.effects == [Disconnect(number, "no handshake within 10 s")]
    assert door.peer.next_deadline() is None


def test_who_is_called_the_head_is_known() -> None:
    peer = Peer(Identity(PeerId("door"), 1, 1, "client", "secret"), "head")
    number = peer.new_connection()
    peer.handle(ConnectionOpened(number, outbound=False), 0.0)
    peer.handle(BytesReceived(number, frame(UNCOUNTED, 0, encode_batch([hello(kind="head")]))), 0.0)
    ((_, _, payload),) = FrameReader().feed(peer.output(number, 1 << 16))
    (refused,) = decode_batch(payload)
    assert isinstance(refused, Refused) and refused.code == "bad-peer" and "knows head as that" in refused.text


def test_a_role_is_forgotten_with_the_next_event() -> None:
    door = Door()
    number = door.open()
    door.greet(number, hello())
    door.feed(number, frame(0, 0, encode_batch([Goodbye("bye")])))
    assert door.peer.role_of(PeerId("guest")) == "execute"
    door.check_good()
    assert door.peer.role_of(PeerId("guest")) == ""


def test_an_origin_is_free_again_when_its_user_has_ended() -> None:
    door = Door()
    number = door.open()
    door.greet(number, hello())
    door.feed(number, frame(0, 0, encode_batch([Goodbye("bye")])))
    assert isinstance(door.greet(door.open(), hello("other")), Welcome)


# ── whoever answers has to prove who it is ──


class Caller:
    """A peer with the execute token that connects to somebody at an address."""

    def __init__(self, **options: Any) -> None:
        self.peer = Peer(Identity(PeerId("caller"), 1, 1, "client", "secret"), **options)
        self.now = 0.0
        self.readers: dict[int, FrameReader] = {}
        self.connects: list[Connect] = []
        self.events: list[Any] = []
        self.effects: list[Any] = []

    def take(self, made: tuple[list[Any], list[Any]]) -> None:
        self.events += made[0]
        self.effects += [it for it in made[1] if not isinstance(it, Connect)]
        self.connects += [it for it in made[1] if isinstance(it, Connect)]
        self.peer.check_invariants()

    def call(self, name: str, *addresses: str, incarnation: int = 1) -> Hello:
        self.take(self.peer.introduce(PeerRef(PeerId(name), incarnation, addresses), self.now))
        self.take(([], self.peer.send(PeerId(name), Consumed(RequestId(1), 1), self.now)))
        return self.opened()

    def opened(self) -> Hello:
        number = self.connects[-1].connection
        self.event(ConnectionOpened(number, outbound=True))
        (greeting,) = self.said(number)
        assert isinstance(greeting, Hello)
        return greeting

    def event(self, event: Any) -> None:
        self.take(self.peer.handle(event, self.now))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.event(Tick())

    def said(self, number: int) -> list[AnyMessage]:
        frames = self.readers.setdefault(number, FrameReader(FRAME_BYTES_MAX)).feed(self.peer.output(number, 1 << 20))
        return [message for _, _, payload in frames if payload for message in decode_batch(payload)]

    def hear(self, message: AnyMessage, number: int = 0, word: int = UNCOUNTED, acknowledged: int = 0) -> None:
        number = number or self.connects[-1].connection
        self.event(BytesReceived(number, frame(word, acknowledged, encode_batch([message]))))


def welcome(
    greeting: Hello, name: str = "callee", role: str = "execute", token: str = "secret", **changes: Any
) -> Welcome:
    me = Identity(PeerId(name), 1, 2, "client", derive(token, "execute", role), role)
    return msgspec.structs.replace(make_welcome(me, greeting, "execute", 0, 60.0), **changes)


FORGED = [
    # Whoever has no token only says that it grants the role, as anybody could.
    lambda greeting: welcome(greeting, token="guessed"),
    lambda greeting: welcome(greeting, token="guessed", role="message"),
    lambda greeting: welcome(greeting, origin=3),
    lambda greeting: welcome(greeting, incarnation=2),
    # A proof made by somebody else, or for somebody else.
    lambda greeting: msgspec.structs.replace(welcome(greeting), token=welcome(greeting, "other").token),
    lambda greeting: msgspec.structs.replace(
        welcome(greeting), token=welcome(msgspec.structs.replace(greeting, peer=PeerId("x"))).token
    ),
    lambda greeting: msgspec.structs.replace(welcome(greeting), token=greeting.token),
    lambda greeting: msgspec.structs.replace(welcome(greeting), token=""),
]


@pytest.mark.parametrize("forge", FORGED)
def test_a_welcome_without_proof_is_refused(forge: Callable[[Hello], Welcome]) -> None:
    """1. We connect to the address that a record names. 2. Whoever listens there welcomes us, without the token."""
    caller = Caller()
    greeting = caller.call("callee", "unix:x")
    number = caller.connects[-1].connection
    caller.hear(forge(greeting))
    (refused, gone) = caller.events
    assert isinstance(refused, HandshakeRefused) and refused.code == "bad-token" and "unix:x" in refused.text
    assert isinstance(gone, PeerGone) and "bad-token" in gone.reason
    (answer,) = caller.said(number)
    assert isinstance(answer, Refused) and answer.code == "bad-token"
    assert caller.peer.role_of(PeerId("callee")) == ""
    caller.hear(TaskValue(TaskId(1), 1, True, b"pickle"), number, word=0)
    assert len(caller.events) == 2, "nothing that it says is heard"


@pytest.mark.parametrize("role", ["view", "message", "execute"])
def test_who_welcomes_has_the_role_that_it_proves(role: str) -> None:
    caller = Caller()
    caller.hear(welcome(caller.call("callee", "unix:x"), role=role))
    (joined,) = caller.events
    assert isinstance(joined, PeerJoined) and joined.role == role
    assert caller.peer.role_of(PeerId("callee")) == role


def test_a_known_peer_is_not_given_up_for_a_stranger_at_its_address() -> None:
    caller = Caller()
    caller.hear(welcome(caller.call("callee", "unix:x")))
    caller.event(ConnectionClosed(caller.connects[-1].connection, "cut"))
    caller.tick(0)
    caller.hear(welcome(caller.opened(), token="guessed"))
    assert [type(it) for it in caller.events] == [PeerJoined]
    caller.tick(1)
    caller.hear(welcome(caller.opened()))
    assert caller.peer.is_connected(PeerId("callee"))


def test_a_hello_says_where_it_is_for() -> None:
    greeting = Caller().call("callee", "unix:x")
    assert (greeting.target, greeting.address) == ("callee", "unix:x")


def test_nobody_else_says_where_the_head_is() -> None:
    caller = Caller(head="head")
    caller.hear(welcome(caller.call("head", "unix:head", incarnation=0), "the-head", kind="head"))
    caller.take(caller.peer.introduce(PeerRef(PeerId("the-head"), 9, ("unix:evil",)), 0.0))
    ref = caller.peer.ref(PeerId("the-head"))
    assert ref is not None and ref.incarnation == 1 and "unix:evil" not in ref.addresses
    assert [type(it) for it in caller.events] == [PeerJoined] and caller.peer.is_connected(PeerId("the-head"))


# ── connections that cross, break and move ──


@pytest.mark.parametrize("incarnation", [0, 1])
@pytest.mark.parametrize("first", [0, 1])
def test_two_that_connect_to_one_another_keep_one_connection(incarnation: int, first: int) -> None:
    """1. a knows of b (perhaps by name only), b of a; both connect. 2. Each Hello arrives before any answer."""
    ends = [Caller(), Caller()]
    for end, name, origin in zip(ends, "ab", (1, 2), strict=True):
        identity = Identity(PeerId(name), 1, origin, "client", "secret", addresses=(f"unix:{name}",))
        end.peer = Peer(identity)
    a, b = ends
    out = [(0, a.call("b", "unix:b", incarnation=incarnation)), (1, b.call("a", "unix:a"))]
    accepted = [end.peer.new_connection() for end in ends]
    for end, number in zip(ends, accepted, strict=True):
        end.event(ConnectionOpened(number, outbound=False))
    #: The connection that each end opened is `accepted` at the other.
    for side, greeting in out if not first else reversed(out):
        ends[1 - side].hear(greeting, accepted[1 - side])
    for _ in range(4):
        for side, end in enumerate(ends):
            other = ends[1 - side]
            for here, there in (
                (end.connects[0].connection, accepted[1 - side]),
                (accepted[side], other.connects[0].connection),
            ):
                data = end.peer.output(here, 1 << 20)
                if data:
                    other.event(BytesReceived(there, data))
    assert a.peer.is_connected(PeerId("b")) and b.peer.is_connected(PeerId("a"))
    for end in ends:
        assert [type(it) for it in end.events] == [PeerJoined, Received]


def test_what_is_not_acknowledged_is_reason_enough_to_connect_again() -> None:
    door = Door()
    number = door.open()
    door.greet(number, hello(addresses=("unix:guest",)))
    door.peer.send(PeerId("guest"), Consumed(RequestId(1), 1), 0.0)
    assert door.peer.output(number, 1 << 16)
    door.effects.clear()
    door.event(ConnectionClosed(number, "cut"))
    door.event(Tick())
    assert [it.address for it in door.effects if isinstance(it, Connect)] == ["unix:guest"]


def test_who_can_be_reached_by_no_path_is_away() -> None:
    """1. Somebody is called who has ended. 2. Until each path was tried it may be on its way. 3. Then it is away."""
    caller = Caller(head="head")
    caller.call("callee", "unix:x")
    callee = PeerId("callee")
    caller.event(ConnectionClosed(caller.connects[-1].connection, "unreachable"))
    assert not caller.peer.is_away(callee)
    caller.tick(0.1)
    assert caller.connects[-1].address == "relay:callee" and not caller.peer.is_away(callee)
    caller.event(ConnectionClosed(caller.connects[-1].connection, "unknown"))
    assert caller.peer.is_away(callee) and caller.peer.unsent() == [callee]
    caller.tick(1.0)
    assert caller.connects[-1].address == "unix:x" and caller.peer.is_away(callee)
    caller.hear(welcome(caller.opened(), addresses=("unix:x",)))
    assert not caller.peer.is_away(callee)


def relayed() -> Caller:
    """A link through the head although the other end has an address."""
    caller = Caller(head="head")
    caller.call("callee", "unix:x")
    caller.event(ConnectionClosed(caller.connects[-1].connection, "unreachable"))
    caller.tick(0.1)
    assert caller.connects[-1].address == "relay:callee"
    caller.hear(welcome(caller.opened(), addresses=("unix:x",)))
    assert caller.peer.is_connected(PeerId("callee"))
    caller.said(caller.connects[-1].connection)
    caller.effects.clear()
    return caller


def test_a_relayed_link_moves_to_a_direct_connection() -> None:
    """1. A direct path is tried. 2. Behind its Hello, the old one is silent. 3. The Welcome moves the link."""
    caller = relayed()
    old = caller.connects[-1].connection
    caller.tick(UPGRADE_S_FIRST)
    assert caller.connects[-1].address == "unix:x"
    caller.peer.send(PeerId("callee"), Consumed(RequestId(2), 1), caller.now)
    assert caller.said(old) == [Consumed(RequestId(2), 1)]
    greeting = caller.opened()
    caller.peer.send(PeerId("callee"), Consumed(RequestId(3), 1), caller.now)
    assert caller.said(old) == [] and old not in caller.peer.dirty_connections()
    # What still comes over the old connection comes again over the new one, which begins where the Hello said.
    for number in (1, 2):
        caller.hear(Consumed(RequestId(number), 9), old, word=0, acknowledged=2)
    new = caller.connects[-1].connection
    caller.hear(welcome(greeting, addresses=("unix:x",), received=2))
    assert [it for it in caller.effects if isinstance(it, Disconnect)] == [
        Disconnect(old, "another connection took its place")
    ]
    for number in (1, 2, 3):
        caller.hear(Consumed(RequestId(number), 9), new, word=0, acknowledged=2)
    assert [it.message.subscription for it in caller.events if isinstance(it, Received)] == [1, 2, 3]
    assert caller.said(new) == [Consumed(RequestId(3), 1)]


def test_a_direct_path_that_is_not_there_is_tried_ever_more_rarely() -> None:
    caller = relayed()
    old = caller.connects[-1].connection
    gaps = []
    for _ in range(8):
        deadline = caller.peer.next_deadline()
        assert deadline is not None
        gaps.append(deadline - caller.now)
        caller.tick(deadline - caller.now)
        caller.event(ConnectionClosed(caller.connects[-1].connection, "unreachable"))
        caller.peer.send(PeerId("callee"), Consumed(RequestId(2), 1), caller.now)
        assert caller.said(old) == [Consumed(RequestId(2), 1)]
    assert gaps == pytest.approx([5, 10, 20, 40, 80, 160, 300, 300])


def test_a_move_that_is_not_answered_does_not_hold_up_the_link_for_ever() -> None:
    caller = relayed()
    old = caller.connects[-1].connection
    caller.tick(UPGRADE_S_FIRST)
    caller.opened()
    caller.peer.send(PeerId("callee"), Consumed(RequestId(2), 1), caller.now)
    assert caller.said(old) == []
    caller.tick(HANDSHAKE_S)
    assert old in caller.peer.dirty_connections() and caller.said(old) == [Consumed(RequestId(2), 1)]


# ── readers that do not read ──


def flooded(kind: str) -> tuple[Door, int, list[Any]]:
    """A peer for which more waits than it may."""
    door = Door()
    number = door.open()
    door.greet(number, hello(kind=kind))
    effects: list[Any] = []
    for _ in range(UNREAD_BYTES_MAX // (1 << 20) + 1):
        effects += door.peer.send(PeerId("guest"), RecordPut("shared:x", 1, Record("r", bytes(1 << 20))), door.now)
    assert effects == []
    return door, number, effects


def put(door: Door) -> list[Any]:
    return door.peer.send(PeerId("guest"), RecordDeleted("shared:x", 2, "r"), door.now)


def test_who_does_not_read_is_given_up() -> None:
    door, number, _ = flooded("client")
    assert put(door) == []
    door.now += UNREAD_S
    (effect,) = put(door)
    assert isinstance(effect, Forget) and effect.peer == "guest" and effect.incarnation == 1
    assert re.fullmatch(
        r"does not read: [67]\d,\d{3},\d{3} bytes wait for it, and it took none for 30 s", effect.reason
    )
    (gone,), (disconnect,) = door.peer.forget(effect.peer, effect.incarnation, effect.reason)
    assert isinstance(gone, PeerGone) and isinstance(disconnect, Disconnect) and disconnect.connection == number
    door.check_good()


def test_a_runner_may_be_busy_for_longer() -> None:
    door, _, _ = flooded("runner")
    door.now += 10 * UNREAD_S
    assert put(door) == []


def test_who_reads_slowly_is_not_given_up() -> None:
    door, number, _ = flooded("client")
    taken = 0
    for _ in range(20):
        put(door)
        for _ in FrameReader(FRAME_BYTES_MAX).feed(door.peer.output(number, 1 << 17)):
            taken += 1
        door.event(BytesReceived(number, frame(0, taken, b"")))
        door.now += UNREAD_S * 0.9
        assert put(door) == []
