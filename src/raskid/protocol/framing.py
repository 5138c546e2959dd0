"""Frames on a byte stream.

A frame is a header of eight bytes, then its payload::

    u32 little endian   bits 0-23 payload length, bit 29 UNCOUNTED, bit 30 MORE, bit 31 BULK
    u32 little endian   how many counted frames of this link the sender has received (modulo 2**32)

Payloads are batches of messages (`raskid.protocol.codec`). A batch larger than `FRAGMENT_BYTES` is cut into frames
of which all but the last carry MORE; the two lanes, control and BULK, are put together apart, so that a control
message overtakes a large one in the middle. Frames of the handshake are UNCOUNTED. A frame without payload only
acknowledges, and is not counted either.
"""

import struct

from raskid.model.errors import RemoteProtocolError

HEADER = struct.Struct("<II")
HEADER_BYTES = HEADER.size

LENGTH_MASK = (1 << 24) - 1
UNCOUNTED = 1 << 29
MORE = 1 << 30
BULK = 1 << 31
_UNKNOWN_BITS = 0xFFFFFFFF ^ (LENGTH_MASK | UNCOUNTED | MORE | BULK)

FRAGMENT_BYTES = 64 * 1024
#: Nobody sends longer frames; a longer one is garbage or an attack.
FRAME_BYTES_MAX = 1 << 20
#: Until the handshake is over, a stranger may make us keep this much.
HANDSHAKE_BYTES_MAX = 16 * 1024

Frame = tuple[int, int, bytes]


class FrameReader:
    """Cuts a stream of bytes into frames."""

    __slots__ = ("_buffer", "payload_max")

    def __init__(self, payload_max: int = HANDSHAKE_BYTES_MAX) -> None:
        self.payload_max = payload_max
        self._buffer = b""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames completed by `data`, each as (header word, acknowledged count, payload).

        Raises:
            RemoteProtocolError: A header is not one of ours, or announces a payload over the limit.
        """
        if self._buffer:
            data = self._buffer + data
        frames: list[Frame] = []
        at, size = 0, len(data)
        unpack = HEADER.unpack_from
        while size - at >= HEADER_BYTES:
            word, acknowledged = unpack(data, at)
            length = word & LENGTH_MASK
            if word & _UNKNOWN_BITS or length > self.payload_max:
                raise RemoteProtocolError(
                    f"frame header {data[at : at + HEADER_BYTES]!r} announces {length:,} bytes with flags "
                    f"{word >> 24:#04x}; expected at most {self.payload_max:,} bytes. Is the other end raskid?"
                )
            end = at + HEADER_BYTES + length
            if end > size:
                break
            frames.append((word, acknowledged, data[at + HEADER_BYTES : end]))
            at = end
        self._buffer = data[at:] if at else data
        return frames

    @property
    def incomplete_bytes(self) -> int:
        """How much of an unfinished frame is held."""
        return len(self._buffer)


def frame_bytes(data: bytes) -> int:
    """The length, header included, of the frame at the beginning of `data`."""
    return HEADER_BYTES + (data[0] | data[1] << 8 | data[2] << 16)


def frame(word: int, acknowledged: int, payload: bytes) -> bytes:
    """One frame; `word` holds flags only, the length is filled in."""
    return HEADER.pack(word | len(payload), acknowledged & 0xFFFFFFFF) + payload
