"""A link: messages to one incarnation of one peer, in order, none lost, over any number of connections.

Both ends count frames. Frames that the other end has not acknowledged are kept; when a connection breaks and another
(perhaps over another path) takes its place, the handshake tells each end how many frames the other has, and the rest
is sent again. So everything above may rely on order and delivery while both incarnations live.

There are two lanes: control messages go before bulk, which moves in fragments under a window of unacknowledged bytes.
The link does not know how connections are made; `raskid.core.peer` does.
"""

from __future__ import annotations

from collections import deque

from raskid.model.errors import LocalProtocolError, RemoteProtocolError
from raskid.model.ids import PeerId
from raskid.protocol.codec import decode_batch, encode_batch
from raskid.protocol.framing import BULK as BULK_FLAG
from raskid.protocol.framing import FRAGMENT_BYTES, MORE, frame
from raskid.protocol.messages import BULK, AnyMessage
from raskid.protocol.weights import weigh

#: Bulk waits while this much is unacknowledged; control does not.
WINDOW_BYTES = 4 << 20
#: An acknowledgement travels alone after this much without anything else to send.
ACK_FRAMES = 64
ACK_BYTES = 512 * 1024
#: A batch takes no more messages than this, so that the other end sees the first of them soon.
BATCH_MESSAGES = 512
#: A message may be this long; a batch of several is never much longer than `FRAGMENT_BYTES`.
MESSAGE_BYTES_MAX = 1 << 30


class Link:
    """One end of a link. Not thread-safe; owned by a `raskid.core.peer.Peer`."""

    __slots__ = (
        "_ack_bytes", "_ack_frames", "_expected", "_fragments", "_partial", "_pieces", "_resend", "_unacked", "acked",
        "bulk", "bulk_bytes", "control", "control_bytes", "doubled", "incarnation", "messages_received",
        "messages_sent", "peer", "received", "sent", "unacked_bytes",
    )  # fmt: skip

    def __init__(self, peer: PeerId, incarnation: int) -> None:
        self.peer = peer
        self.incarnation = incarnation
        self.control: deque[AnyMessage] = deque()
        #: What is left of a control batch that is being cut into frames; it goes before `control`.
        self._pieces: deque[bytes] = deque()
        #: Bytes waiting in `control` (by weight) and `_pieces`.
        self.control_bytes = 0
        self.bulk: deque[AnyMessage] = deque()
        self._fragments: deque[bytes] = deque()
        #: Bytes waiting in `bulk` (by weight) and `_fragments`.
        self.bulk_bytes = 0
        #: Counted frames given out, and how many of them the other end has; `_unacked` holds exactly those between.
        self.sent = 0
        self.acked = 0
        self._unacked: deque[tuple[int, bytes]] = deque()
        self.unacked_bytes = 0
        self._resend: deque[tuple[int, bytes]] = deque()
        self.received = 0
        self._expected = 0
        #: Frames that came again over another connection, and were left out.
        self.doubled = 0
        self._ack_frames = 0
        self._ack_bytes = 0
        self._partial: dict[int, bytearray] = {}
        self.messages_sent = 0
        self.messages_received = 0

    # ── sending ──

    def send(self, message: AnyMessage) -> None:
        """Queue a message.

        Raises:
            LocalProtocolError: It is longer than `MESSAGE_BYTES_MAX`; nothing is queued.
        """
        weight = weigh(message)
        if weight > MESSAGE_BYTES_MAX:
            raise LocalProtocolError(
                f"a {type(message).__name__} of {weight:,} bytes for peer {self.peer} is too long: a message may have "
                f"{MESSAGE_BYTES_MAX:,} bytes. Send less at a time"
            )
        if type(message) in BULK:
            self.bulk.append(message)
            self.bulk_bytes += weight
        else:
            self.control.append(message)
            self.control_bytes += weight

    def take(self, room: int) -> bytes:
        """Frames to write now, about `room` bytes: repetitions, control, bulk within the window, or a bare ack.

        At most one frame goes over the room, by its own length.
        """
        out: list[bytes] = []
        size = 0
        while self._resend and size < room:
            word, payload = self._resend.popleft()
            out.append(frame(word, self.received, payload))
            size += len(payload)
        if self._resend:
            # Order across a reconnection: nothing new may pass what has to be repeated.
            return b"".join(out)
        while size < room and (self._pieces or self.control):
            if self._pieces:
                payload = self._pieces.popleft()
                self.control_bytes -= len(payload)
                size += self._count(MORE if self._pieces else 0, payload, out)
            else:
                payload = self._control_batch()
                if len(payload) <= FRAGMENT_BYTES:
                    size += self._count(0, payload, out)
                else:
                    _cut(payload, self._pieces)
                    self.control_bytes += len(payload)
        while size < room and self.unacked_bytes < WINDOW_BYTES:
            if self._fragments:
                payload = self._fragments.popleft()
                size += self._count(BULK_FLAG | MORE if self._fragments else BULK_FLAG, payload, out)
                self.bulk_bytes -= len(payload)
            elif self.bulk:
                payload = self._bulk_batch()
                if len(payload) <= FRAGMENT_BYTES:
                    size += self._count(BULK_FLAG, payload, out)
                else:
                    _cut(payload, self._fragments)
                    self.bulk_bytes += len(payload)
            else:
                break
        if not out and (self._ack_frames >= ACK_FRAMES or self._ack_bytes >= ACK_BYTES):
            out.append(frame(0, self.received, b""))
        if out:
            self._ack_frames = self._ack_bytes = 0
        return out[0] if len(out) == 1 else b"".join(out)

    def _control_batch(self) -> bytes:
        if self.control_bytes <= FRAGMENT_BYTES and len(self.control) <= BATCH_MESSAGES:
            # The usual case: everything at once, and nothing is weighed a second time.
            messages = list(self.control)
            self.control.clear()
            self.control_bytes = 0
        else:
            messages, weight = _take_batch(self.control)
            self.control_bytes -= weight
        self.messages_sent += len(messages)
        return encode_batch(messages)

    def _bulk_batch(self) -> bytes:
        if self.bulk_bytes <= FRAGMENT_BYTES and len(self.bulk) <= BATCH_MESSAGES and not self._fragments:
            # As with control, the usual case.
            messages = list(self.bulk)
            self.bulk.clear()
            self.bulk_bytes = 0
        else:
            messages, weight = _take_batch(self.bulk)
            self.bulk_bytes -= weight
        self.messages_sent += len(messages)
        return encode_batch(messages)

    def _count(self, word: int, payload: bytes, out: list[bytes]) -> int:
        self.sent += 1
        self._unacked.append((word, payload))
        self.unacked_bytes += len(payload)
        out.append(frame(word, self.received, payload))
        return len(payload)

    @property
    def has_unsent(self) -> bool:
        """Whether something waits that no connection has taken yet (though perhaps an earlier one)."""
        return bool(self.control or self._pieces or self.bulk or self._fragments or self._resend)

    @property
    def has_unacknowledged(self) -> bool:
        """Whether the other end may lack something that was sent or waits."""
        return bool(self._unacked) or self.has_unsent

    @property
    def has_output(self) -> bool:
        """Whether `take` would give something."""
        return bool(
            self.control
            or self._pieces
            or self._resend
            or ((self.bulk or self._fragments) and self.unacked_bytes < WINDOW_BYTES)
            or self._ack_frames >= ACK_FRAMES
            or self._ack_bytes >= ACK_BYTES
        )

    # ── connections ──

    def is_outdated(self, other_received: int) -> bool:
        """Whether the other end acknowledged more than this count since it declared it."""
        return 0 < (self.acked - other_received) & 0xFFFFFFFF < 1 << 31

    def attach(self, other_received: int, declared: int) -> None:
        """Go on over a new connection. `other_received` frames are there; `declared` is what we said we have.

        Raises:
            RemoteProtocolError: The other end claims frames never sent, or has forgotten some that are no longer here.
        """
        self.acknowledge(other_received)
        self._resend = deque(self._unacked)
        # Frames may have come over the old connection after the count was declared: those come twice.
        self._expected = declared

    def acknowledge(self, count: int) -> None:
        """The other end has `count` frames (modulo 2**32)."""
        fresh = (count - self.acked) & 0xFFFFFFFF
        if fresh > self.sent - self.acked:
            raise RemoteProtocolError(
                f"peer {self.peer} acknowledges frame {count}; {self.acked} to {self.sent} were expected"
            )
        unacked = self._unacked
        for _ in range(fresh):
            self.unacked_bytes -= len(unacked.popleft()[1])
        self.acked += fresh

    # ── receiving ──

    def receive(self, word: int, acknowledged: int, payload: bytes) -> list[AnyMessage]:
        """The messages completed by a counted frame (or by none: an acknowledgement)."""
        if acknowledged != self.acked & 0xFFFFFFFF:
            self.acknowledge(acknowledged)
        if not payload:
            return []
        self._expected += 1
        if self._expected <= self.received:
            self.doubled += 1
            return []
        self.received = self._expected
        self._ack_frames += 1
        self._ack_bytes += len(payload)
        lane = word & BULK_FLAG
        if word & MORE:
            partial = self._partial.setdefault(lane, bytearray())
            partial += payload
            # A sender weighs a message before it is in a batch, which adds a little.
            if len(partial) > MESSAGE_BYTES_MAX + FRAGMENT_BYTES:
                raise RemoteProtocolError(f"peer {self.peer} sends a message of more than {MESSAGE_BYTES_MAX:,} bytes")
            return []
        if self._partial and lane in self._partial:
            whole = self._partial.pop(lane)
            whole += payload
            messages = decode_batch(whole)
        else:
            messages = decode_batch(payload)
        self.messages_received += len(messages)
        return messages

    def check_invariants(self) -> None:
        """Raise AssertionError when the counts disagree."""
        assert len(self._unacked) == self.sent - self.acked, (len(self._unacked), self.sent, self.acked)
        assert self.unacked_bytes == sum(len(payload) for _, payload in self._unacked)
        assert self.bulk_bytes == sum(map(weigh, self.bulk)) + sum(map(len, self._fragments))
        assert self.control_bytes == sum(map(weigh, self.control)) + sum(map(len, self._pieces))
        assert self._expected <= self.received


def _take_batch(queue: deque[AnyMessage]) -> tuple[list[AnyMessage], int]:
    """The first messages of a queue that make about one frame, and their weight; one message at least."""
    messages: list[AnyMessage] = []
    weight = 0
    while queue and len(messages) < BATCH_MESSAGES:
        added = weigh(queue[0])
        if messages and weight + added > FRAGMENT_BYTES:
            break
        weight += added
        messages.append(queue.popleft())
    return messages, weight


def _cut(payload: bytes, into: deque[bytes]) -> None:
    view = memoryview(payload)
    into.extend(bytes(view[at : at + FRAGMENT_BYTES]) for at in range(0, len(payload), FRAGMENT_BYTES))
