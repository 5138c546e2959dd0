"""Streams through the head: exact effects."""

import pytest

from raskid.core.effects import AcceptStream, Connect, Disconnect, Feed, Send, Unhandled
from raskid.core.events import BytesReceived, ConnectionClosed, ConnectionOpened, PeerGone, PeerJoined, Received
from raskid.core.relay import CREDIT_BYTES, PIECE_BYTES, RelayEnd, RelayHub
from raskid.model.ids import IdSource, PeerId, StreamId
from raskid.protocol.messages import CloseStream, Message, OpenStream, StreamCredit, StreamData, StreamOpened

HEAD, A, B, C = PeerId("head"), PeerId("a"), PeerId("b"), PeerId("c")
ONE = StreamId(1)


def hub() -> RelayHub:
    relay = RelayHub()
    for peer in (A, B, C):
        relay.handle(PeerJoined(peer, 1, "client", "execute"), 0.0)
    assert relay.handle(Received(A, OpenStream(ONE, B)), 0.0) == [Send(B, OpenStream(ONE, B, "a"))]
    relay.check_invariants()
    return relay


def test_the_head_passes_on_what_the_ends_say_and_nothing_of_others() -> None:
    relay = hub()
    for message in (StreamOpened(ONE, 9), StreamData(ONE, b"x"), StreamCredit(ONE, 1)):
        assert relay.handle(Received(B, message), 0.0) == [Send(A, message)]
        assert relay.handle(Received(A, message), 0.0) == [Send(B, message)]
        assert relay.handle(Received(C, message), 0.0) == []
    assert relay.bytes_relayed == 2
    assert relay.handle(Received(C, CloseStream(ONE)), 0.0) == []
    assert relay.handle(Received(A, CloseStream(ONE, "done")), 0.0) == [Send(B, CloseStream(ONE, "done"))]
    assert relay.handle(Received(B, StreamData(ONE, b"x")), 0.0) == []
    relay.check_invariants()


def test_a_stream_to_nobody_is_closed() -> None:
    (effect,) = RelayHub().handle(Received(A, OpenStream(ONE, B)), 0.0)
    assert isinstance(effect, Send) and effect.peer == A and isinstance(effect.message, CloseStream)


def test_streams_of_a_lost_peer_are_closed() -> None:
    relay = hub()
    (effect,) = relay.handle(PeerGone(B, 1, "crashed"), 0.0)
    assert effect == Send(A, CloseStream(ONE, "b is gone: crashed"))
    relay.check_invariants()


def opened() -> tuple[RelayEnd, StreamId]:
    end = RelayEnd(HEAD, IdSource(1))
    (effect,) = end.connect(Connect(4, "relay:b"))
    assert isinstance(effect, Send) and isinstance(effect.message, OpenStream) and effect.message.to == B
    stream = effect.message.stream
    assert end.room(4) == 0
    assert end.handle(Received(HEAD, StreamOpened(stream, 100_000)), 0.0) == [Feed(ConnectionOpened(4, outbound=True))]
    end.check_invariants()
    return end, stream


def test_an_opened_stream_is_a_connection_with_credit() -> None:
    end, stream = opened()
    assert end.room(4) == 100_000
    pieces = end.write(4, bytes(100_000))
    assert pieces == [
        Send(HEAD, StreamData(stream, bytes(PIECE_BYTES))),
        Send(HEAD, StreamData(stream, bytes(100_000 - PIECE_BYTES))),
    ]
    assert end.room(4) == 0
    end.handle(Received(HEAD, StreamCredit(stream, 10)), 0.0)
    assert end.room(4) == 10
    assert end.disconnect(Disconnect(4, "done")) == [Send(HEAD, CloseStream(stream, "done"))]
    assert end.handle(Received(HEAD, StreamData(stream, b"late")), 0.0) == []
    end.check_invariants()


def test_an_accepted_stream_reports_what_it_took() -> None:
    end = RelayEnd(HEAD, IdSource(2))
    assert end.handle(Received(HEAD, OpenStream(ONE, B, "a")), 0.0) == [AcceptStream(ONE)]
    assert end.accept(ONE, 7) == [
        Feed(ConnectionOpened(7, outbound=False)),
        Send(HEAD, StreamOpened(ONE, CREDIT_BYTES)),
    ]
    half = bytes(CREDIT_BYTES // 2)
    assert end.handle(Received(HEAD, StreamData(ONE, half)), 0.0) == [
        Feed(BytesReceived(7, half)),
        Send(HEAD, StreamCredit(ONE, len(half))),
    ]
    assert end.handle(Received(HEAD, CloseStream(ONE, "bye")), 0.0) == [Feed(ConnectionClosed(7, "bye"))]
    end.check_invariants()


def test_all_streams_end_with_the_head() -> None:
    end, _ = opened()
    (effect,) = end.handle(PeerGone(HEAD, 1, "crashed"), 0.0)
    assert effect == Feed(ConnectionClosed(4, "the relay is gone: crashed"))
    end.check_invariants()


@pytest.mark.parametrize("kind", [OpenStream, StreamOpened, StreamData, StreamCredit, CloseStream])
def test_only_the_head_may_say_anything_of_streams(kind: type[Message]) -> None:
    end, stream = opened()
    messages = {
        OpenStream: OpenStream(StreamId(9), B, "a"),
        StreamOpened: StreamOpened(stream, 1 << 30),
        StreamData: StreamData(stream, b"forged"),
        StreamCredit: StreamCredit(stream, 1 << 30),
        CloseStream: CloseStream(stream, "forged"),
    }
    assert end.handle(Received(C, messages[kind]), 0.0) == [Unhandled(C, kind.__name__, "only the head may send it")]
    assert end.room(4) == 100_000
    end.check_invariants()


def test_a_stream_that_is_open_stays_what_it_is() -> None:
    end, stream = opened()
    assert end.accept(stream, 8) == []
    assert end.connections == {4: stream}
    end.check_invariants()
