"""Packets between a process and its children."""

import pytest

from raskid.io.packets import pack, take_packets
from raskid.model.errors import RemoteProtocolError


def test_packets_come_out_whole_and_in_order_however_they_are_cut():
    stream = pack(b"one") + pack(b"") + pack(b"three")
    received = bytearray()
    bodies = []
    for byte in stream:
        received.append(byte)
        bodies += take_packets(received)
    assert bodies == [b"one", b"", b"three"]
    assert not received
    assert take_packets(bytearray(stream + b"\x05")) == [b"one", b"", b"three"]


def test_a_length_beyond_reason_is_refused():
    with pytest.raises(RemoteProtocolError, match="a packet of"):
        take_packets(bytearray(b"\xff\xff\xff\xff"))
