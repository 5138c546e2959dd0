"""Whoever breaks the rules at the door is told why, and everybody else goes on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from raskid.core.machine import PeerGone, PeerJoined, Received, Tick
from raskid.core.peer import (
    HANDSHAKE_S,
    BytesReceived,
    ConnectionOpened,
    Disconnect,
    Identity,
    Peer,
    _proof_text,
)
from raskid.model.ids import PeerId, RequestId
from raskid.protocol.codec import decode_batch, encode_batch
from raskid.protocol.framing import FRAME_BYTES_MAX, HEADER, UNCOUNTED, FrameReader, frame
from raskid.protocol.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Consumed,
    Goodbye,
    Hello,
    PeerRef,
    Refused,
    Welcome,
)
from raskid.protocol.tokens import make_proofs


def hello(peer: str = "guest", incarnation: int = 1, origin: int = 7, token: str = "secret", **changes: Any) -> Hello:
    proofs = make_proofs(token, "execute", _proof_text(peer, incarnation, origin, "door"))
    made = Hello(PROTOCOL_VERSION, PeerId(peer), incarnation, origin, "client", "execute", proofs, target="door")
    return msgspec.structs.replace(made, **changes)


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
