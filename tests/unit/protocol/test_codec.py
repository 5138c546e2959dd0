"""Batches as bytes, and bytes that are none."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raskid.model.errors import LocalProtocolError, RemoteProtocolError
from raskid.model.ids import RequestId
from raskid.protocol.codec import decode_batch, encode_batch
from raskid.protocol.messages import Consumed, Deliver

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(st.lists(st.builds(Deliver, st.integers(0, 2**63 - 1), st.text(), st.lists(st.binary()), st.integers(0, 2**32))))
def test_what_goes_in_comes_out(batch: list[Deliver]) -> None:
    assert decode_batch(encode_batch([*batch])) == batch


@given(st.binary(max_size=100) | st.lists(st.lists(PLAIN) | PLAIN).map(msgspec.msgpack.encode))
def test_garbage_is_refused_or_is_a_batch(data: bytes) -> None:
    try:
        assert isinstance(decode_batch(data), list)
    except RemoteProtocolError as error:
        assert f"{len(data)} bytes" in str(error)


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read(place: int, value: int) -> None:
    data = bytearray(encode_batch([Deliver(RequestId(1), "topic", [bytes(100)]), Consumed(RequestId(2), 3)]))
    data[place % len(data)] = value
    try:
        decode_batch(data)
    except RemoteProtocolError:
        pass


def test_a_field_that_cannot_be_written_is_named_with_its_message() -> None:
    with pytest.raises(LocalProtocolError, match="Consumed"):
        encode_batch([Consumed(RequestId(1 << 70), 1)])
