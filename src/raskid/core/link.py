"""A link: messages to one incarnation of one peer, in order, none lost, over any number of connections.

Both ends count frames. Frames that the other end has not acknowledged are kept; when a connection breaks and another
(perhaps over another path) takes its place, the handshake tells each end how many frames the other has, and the rest
is sent again. So everything above may rely on order and delivery while both incarnations live.

There are two lanes: control messages go before bulk, which moves in fragments under a window of unacknowledged bytes.
The link does not know how connections are made; `raskid.core.peer` does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from raskid.model.errors import RemoteProtocolError
from raskid.model.ids import PeerId
from raskid.protocol.codec import decode_batch, encode_batch
from raskid.protocol.framing import BULK as BULK_FLAG
from raskid.protocol.framing import FRAGMENT_BYTES, MORE, frame
from raskid.protocol.messages import BULK, AnyMessage

#: Bulk waits while this much is unacknowledged; control does not.
WINDOW_BYTES = 4 << 20
#: An acknowledgement travels alone after this much without anything else to send.
ACK_FRAMES = 64
ACK_BYTES = 512 * 1024
#: A batch takes no more messages than this, so that the other end sees the first of them soon.
BATCH_MESSAGES = 512
#: A message put together from fragments may be this long.
MESSAGE_BYTES_MAX = 1 << 30

_OVERHEAD = 24


#: How to find the bytes that a kind of bulk message carries; None for one that carries none.
_CARRIED: dict[type, Callable[[Any], bytes] | None] = {
    kind: next((attrgetter(name) for name in ("body", "value", "data") if name in kind.__struct_fields__), None)
    for kind in BULK
}


def _weight(message: AnyMessage) -> int:
    """About how many bytes a bulk message takes on the wire."""
    carried = _CARRIED[type(message)]
    return _OVERHEAD if carried is None else len(carried(message)) + _OVERHEAD


class Link:
    """One end of a link. Not thread-safe; owned by a `raskid.core.peer.Peer`."""

    __slots__ = (
        "_ack_bytes", "_ack_frames", "_expected", "_fragments", "_partial", "_resend", "_unacked", "acked", "bulk",
        "bulk_bytes", "control", "incarnation", "messages_received", "messages_sent", "peer", "received", "sent",
        "unacked_bytes",
    )  # fmt: skip

    def __init__(self, peer: PeerId, incarnation: int) -> None:
        self.peer = peer
        self.incarnation = incarnation
        self.control: list[AnyMessage] = []
        self.bulk: deque[AnyMessage] = deque()
        #: Bytes waiting in `bulk` and `_fragments`.
        self.bulk_bytes = 0
        self._fragments: deque[bytes] = deque()
        #: Counted frames given out, and how many of them the other end has; `_unacked` holds exactly those between.
        self.sent = 0
        self.acked = 0
        self._unacked: deque[tuple[int, bytes]] = deque()
        self.unacked_bytes = 0
        self._resend: deque[tuple[int, bytes]] = deque()
        self.received = 0
        self._expected = 0
        self._ack_frames = 0
        self._ack_bytes = 0
        self._partial: dict[int, list[bytes]] = {}
        self.messages_sent = 0
        self.messages_received = 0

    # ── sending ──

    def send(self, message: AnyMessage) -> None:
        """Queue a message."""
        if type(message) in _CARRIED:
            self.bulk.append(message)
            self.bulk_bytes += _weight(message)
        else:
            self.control.append(message)

    def take(self, room: int) -> bytes:
        """Frames to write now, about `room` bytes: repetitions, control, bulk within the window, or a bare ack."""
        out: list[bytes] = []
        size = 0
        while self._resend and size < room:
            word, payload = self._resend.popleft()
            out.append(frame(word, self.received, payload))
            size += len(payload)
        if self._resend:
            # Order across a reconnection: nothing new may pass what has to be repeated.
            return b"".join(out)
        if self.control:
            messages, self.control = self.control, []
            self.messages_sent += len(messages)
            payload = encode_batch(messages)
            last = (len(payload) - 1) // FRAGMENT_BYTES * FRAGMENT_BYTES
            for at in range(0, last, FRAGMENT_BYTES):
                size += self._count(MORE, payload[at : at + FRAGMENT_BYTES], out)
            size += self._count(0, payload[last:] if last else payload, out)
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
                    view = memoryview(payload)
                    cuts = range(0, len(payload), FRAGMENT_BYTES)
                    self._fragments.extend(bytes(view[at : at + FRAGMENT_BYTES]) for at in cuts)
                    self.bulk_bytes += len(payload)
            else:
                break
        if not out and (self._ack_frames >= ACK_FRAMES or self._ack_bytes >= ACK_BYTES):
            out.append(frame(0, self.received, b""))
        if out:
            self._ack_frames = self._ack_bytes = 0
        return out[0] if len(out) == 1 else b"".join(out)

    def _bulk_batch(self) -> bytes:
        bulk = self.bulk
        messages: list[AnyMessage] = []
        weight = 0
        while bulk and weight < FRAGMENT_BYTES and len(messages) < BATCH_MESSAGES:
            added = _weight(bulk[0])
            if messages and weight + added > FRAGMENT_BYTES:
                break
            weight += added
            messages.append(bulk.popleft())
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
    def has_output(self) -> bool:
        """Whether `take` would give something."""
        return bool(
            self.control
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
            return []
        self.received = self._expected
        self._ack_frames += 1
        self._ack_bytes += len(payload)
        lane = word & BULK_FLAG
        if word & MORE:
            pieces = self._partial.setdefault(lane, [])
            pieces.append(payload)
            if len(pieces) * FRAGMENT_BYTES > MESSAGE_BYTES_MAX:
                raise RemoteProtocolError(f"peer {self.peer} sends a message of more than {MESSAGE_BYTES_MAX:,} bytes")
            return []
        if self._partial and lane in self._partial:
            payload = b"".join([*self._partial.pop(lane), payload])
        messages = decode_batch(payload)
        self.messages_received += len(messages)
        return messages

    def check_invariants(self) -> None:
        """Raise AssertionError when the counts disagree."""
        assert len(self._unacked) == self.sent - self.acked, (len(self._unacked), self.sent, self.acked)
        assert self.unacked_bytes == sum(len(payload) for _, payload in self._unacked)
        assert self.bulk_bytes == sum(map(_weight, self.bulk)) + sum(map(len, self._fragments))
        assert self._expected <= self.received
