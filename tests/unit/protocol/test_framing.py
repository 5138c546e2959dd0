"""Frames, cut anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raskid.model.errors import RemoteProtocolError
from raskid.protocol.framing import BULK, HEADER, HEADER_BYTES, MORE, UNCOUNTED, FrameReader, frame

FRAMES = st.lists(
    st.tuples(st.sampled_from([0, BULK, MORE, BULK | MORE, UNCOUNTED]), st.integers(0, 2**40), st.binary(max_size=200))
)


@given(FRAMES, st.data())
def test_frames_come_out_as_they_went_in(frames: list[tuple[int, int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(frame(*it) for it in frames)
    reader = FrameReader(200)
    found = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += reader.feed(stream[:size])
        stream = stream[size:]
    assert found == [(word | len(body), count & 0xFFFFFFFF, body) for word, count, body in frames]
    assert reader.incomplete_bytes == 0


@given(st.lists(st.binary(max_size=50)))
def test_garbage_is_refused_or_waits(pieces: list[bytes]) -> None:
    reader = FrameReader(1000)
    try:
        for piece in pieces:
            reader.feed(piece)
            assert reader.incomplete_bytes < HEADER_BYTES + 1000
    except RemoteProtocolError:
        pass


@pytest.mark.parametrize("word", [1001, 1 << 24, 1 << 28])
def test_a_header_that_is_not_ours_is_refused_before_its_payload_comes(word: int) -> None:
    with pytest.raises(RemoteProtocolError, match="at most 1,000 bytes"):
        FrameReader(1000).feed(HEADER.pack(word, 0))
