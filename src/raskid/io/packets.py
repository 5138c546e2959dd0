"""Bodies with their length before them: how a process and its children talk over pipes and sockets.

A packet is 4 bytes of length, little endian, and the body. (Connections between peers have `raskid.protocol.framing`.)
"""

from __future__ import annotations

from raskid.model.errors import RemoteProtocolError

LENGTH_BYTES = 4
#: Settings and configurations are far smaller; more means that the two ends are out of step.
BODY_BYTES_MAX = 64 << 20


def pack(body: bytes) -> bytes:
    """A packet."""
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def take_packets(received: bytearray) -> list[bytes]:
    """Take the bodies of all whole packets out of `received`.

    Raises:
        RemoteProtocolError: A length is beyond reason.
    """
    bodies = []
    at = 0
    while len(received) - at >= LENGTH_BYTES:
        begin = at + LENGTH_BYTES
        size = int.from_bytes(received[at:begin], "little")
        if size > BODY_BYTES_MAX:
            raise RemoteProtocolError(f"a packet of {size:,} bytes between a process and its child")
        if len(received) - begin < size:
            break
        bodies.append(bytes(received[begin : begin + size]))
        at = begin + size
    del received[:at]
    return bodies
