"""Streams of bytes between two peers through the head, for peers that cannot reach one another.

To the peers a stream is a connection like any other: the handshake, frames and lanes of their link run through it,
and the head passes on pieces without looking inside. Each direction has credit, so a slow reader holds up its own
stream and nothing else; pieces are bulk, so control on the shared connection goes first.
"""

from __future__ import annotations

from typing import Any

from raskid.core.effects import AcceptStream, Connect, Disconnect, Effect, Feed, Send, Unhandled
from raskid.core.events import BytesReceived, ConnectionClosed, ConnectionOpened, Event, PeerGone, Received
from raskid.core.handshake import RELAY
from raskid.model.ids import IdSource, PeerId, StreamId
from raskid.protocol.messages import (
    AnyMessage,
    CloseStream,
    Message,
    OpenStream,
    StreamCredit,
    StreamData,
    StreamOpened,
)

PIECE_BYTES = 64 * 1024
CREDIT_BYTES = 1 << 20
STREAMS_MAX = 10_000

_STREAM_MESSAGES: frozenset[type[Message]] = frozenset(
    {OpenStream, StreamOpened, StreamData, StreamCredit, CloseStream}
)


class RelayHub:
    """The head's part: pass on what the two ends of a stream say."""

    handles = _STREAM_MESSAGES
    commands: frozenset[type[Event]] = frozenset()

    def __init__(self) -> None:
        self._ends: dict[StreamId, tuple[PeerId, PeerId]] = {}
        self._streams: dict[PeerId, set[StreamId]] = {}
        self.known: set[PeerId] = set()
        self.bytes_relayed = 0

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in an event."""
        if type(event) is Received:
            return self._on_message(event.peer, event.message)
        if type(event) is PeerGone:
            effects: list[Effect] = []
            for stream in list(self._streams.pop(event.peer, ())):
                effects += self._close(stream, event.peer, f"{event.peer} is gone: {event.reason}")
            self.known.discard(event.peer)
            return effects
        if hasattr(event, "kind") and hasattr(event, "peer"):
            self.known.add(event.peer)
        return []

    def _on_message(self, peer: PeerId, message: AnyMessage) -> list[Effect]:
        if type(message) is OpenStream:
            if message.to not in self.known or message.to == peer:
                return [Send(peer, CloseStream(message.stream, f"no peer {message.to!r} is connected to the head"))]
            if len(self._ends) >= STREAMS_MAX or message.stream in self._ends:
                return [Send(peer, CloseStream(message.stream, f"the head relays {len(self._ends)} streams already"))]
            self._ends[message.stream] = (peer, message.to)
            for end in (peer, message.to):
                self._streams.setdefault(end, set()).add(message.stream)
            return [Send(message.to, OpenStream(message.stream, message.to, peer))]
        if not isinstance(message, StreamOpened | StreamData | StreamCredit | CloseStream):
            return []
        ends = self._ends.get(message.stream)
        if ends is None or peer not in ends:
            return []
        other = ends[1] if peer == ends[0] else ends[0]
        if type(message) is CloseStream:
            return self._close(message.stream, peer, message.reason)
        if type(message) is StreamData:
            self.bytes_relayed += len(message.data)
        return [Send(other, message)]

    def _close(self, stream: StreamId, by: PeerId, reason: str) -> list[Effect]:
        ends = self._ends.pop(stream, None)
        if ends is None:
            return []
        for end in ends:
            streams = self._streams.get(end)
            if streams is not None:
                streams.discard(stream)
                if not streams:
                    del self._streams[end]
        return [Send(end, CloseStream(stream, reason)) for end in ends if end != by]

    def next_deadline(self) -> float | None:
        """Never."""
        return None

    def check_invariants(self) -> None:
        """Raise AssertionError when the index disagrees with the streams."""
        index = {(end, stream) for stream, ends in self._ends.items() for end in ends}
        assert index == {(end, stream) for end, streams in self._streams.items() for stream in streams}


class _Stream:
    __slots__ = ("connection", "credit", "opened", "unreported")

    def __init__(self, connection: int, credit: int) -> None:
        self.connection = connection
        self.credit = credit
        self.unreported = 0
        self.opened = credit > 0


class RelayEnd:
    """A peer's part: streams as connections. Only the head may say anything of streams."""

    handles = _STREAM_MESSAGES
    commands: frozenset[type[Event]] = frozenset()

    def __init__(self, head: PeerId, ids: IdSource) -> None:
        #: The station keeps it up to date: the head's id is not known before the first handshake.
        self.head = head
        self._ids = ids
        self._streams: dict[StreamId, _Stream] = {}
        #: Connection → stream; the inverse of `_streams`.
        self.connections: dict[int, StreamId] = {}

    def connect(self, effect: Connect) -> list[Effect]:
        """Open a stream where the peer asked for a connection to ``relay:PEER``."""
        stream = StreamId(self._ids.take())
        self._streams[stream] = _Stream(effect.connection, 0)
        self.connections[effect.connection] = stream
        return [Send(self.head, OpenStream(stream, PeerId(effect.address.removeprefix(RELAY))))]

    def accept(self, stream: StreamId, connection: int) -> list[Effect]:
        """A stream opened by another peer has this number as a connection; one that is open stays what it is."""
        if stream in self._streams:
            return []
        self._streams[stream] = _Stream(connection, CREDIT_BYTES)
        self.connections[connection] = stream
        return [
            Feed(ConnectionOpened(connection, outbound=False)),
            Send(self.head, StreamOpened(stream, CREDIT_BYTES)),
        ]

    def disconnect(self, effect: Disconnect) -> list[Effect]:
        """Close the stream of a connection that the peer gave up."""
        stream = self.connections.pop(effect.connection, None)
        if stream is None:
            return []
        del self._streams[stream]
        return [Send(self.head, CloseStream(stream, effect.reason))]

    def room(self, connection: int) -> int:
        """How many bytes may be written to a stream now."""
        stream = self._streams[self.connections[connection]]
        return stream.credit if stream.opened else 0

    def write(self, connection: int, data: bytes) -> list[Effect]:
        """Send bytes of a stream. A frame may go over the credit by its own length, never more."""
        identifier = self.connections[connection]
        self._streams[identifier].credit -= len(data)
        pieces = range(0, len(data), PIECE_BYTES)
        return [Send(self.head, StreamData(identifier, data[at : at + PIECE_BYTES])) for at in pieces]

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in an event."""
        if type(event) is Received:
            if event.peer != self.head:
                return [Unhandled(event.peer, type(event.message).__name__, "only the head may send it")]
            return self._on_message(event.message)
        if type(event) is PeerGone and event.peer == self.head:
            closed = list(self.connections)
            self._streams.clear()
            self.connections.clear()
            return [Feed(ConnectionClosed(connection, f"the relay is gone: {event.reason}")) for connection in closed]
        return []

    def _on_message(self, message: AnyMessage) -> list[Effect]:
        if type(message) is OpenStream:
            return [AcceptStream(message.stream)]
        if not isinstance(message, StreamOpened | StreamData | StreamCredit | CloseStream):
            return []
        stream = self._streams.get(message.stream)
        if stream is None:
            return []
        if type(message) is StreamData:
            effects: list[Effect] = [Feed(BytesReceived(stream.connection, message.data))]
            stream.unreported += len(message.data)
            if stream.unreported * 2 >= CREDIT_BYTES:
                effects.append(Send(self.head, StreamCredit(message.stream, stream.unreported)))
                stream.unreported = 0
            return effects
        if type(message) is StreamCredit:
            stream.credit += message.count
        elif type(message) is StreamOpened:
            stream.credit, stream.opened = message.credit, True
            return [Feed(ConnectionOpened(stream.connection, outbound=True))]
        elif type(message) is CloseStream:
            del self._streams[message.stream]
            del self.connections[stream.connection]
            return [Feed(ConnectionClosed(stream.connection, message.reason))]
        return []

    def next_deadline(self) -> float | None:
        """Never."""
        return None

    def check_invariants(self) -> None:
        """Raise AssertionError when streams and connections disagree."""
        assert {stream.connection: identifier for identifier, stream in self._streams.items()} == self.connections
