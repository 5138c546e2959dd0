"""Links: order and delivery per lane over connections that break anywhere."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from raskid.core.link import ACK_FRAMES, WINDOW_BYTES, Link
from raskid.model.ids import PeerId, RequestId
from raskid.protocol.framing import FRAGMENT_BYTES, FRAME_BYTES_MAX, FrameReader
from raskid.protocol.messages import AnyMessage, Consumed, Deliver, Delivered, PutRecord

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("bulk"), st.integers(0, 1), st.sampled_from([0, 10, 70_000, 200_000])),
        st.tuples(st.just("control"), st.integers(0, 1), st.sampled_from([0, 70_000])),
        st.tuples(st.just("move"), st.integers(0, 1), st.sampled_from([1, 1000, 1 << 20])),
        st.tuples(st.just("lose"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("reconnect"), st.integers(0, 1), st.just(0)),
    ),
    max_size=60,
)


class Pair:
    """Two links and the connection between them."""

    def __init__(self) -> None:
        self.links = (Link(PeerId("b"), 1), Link(PeerId("a"), 1))
        self.sent: tuple[list[AnyMessage], list[AnyMessage]] = ([], [])
        self.got: tuple[list[AnyMessage], list[AnyMessage]] = ([], [])
        self.connect()

    def connect(self) -> None:
        one, other = self.links
        declared = one.received, other.received
        one.attach(declared[1], declared[0])
        other.attach(declared[0], declared[1])
        self.readers = (FrameReader(FRAME_BYTES_MAX), FrameReader(FRAME_BYTES_MAX))

    def send(self, side: int, message: AnyMessage) -> None:
        self.sent[side].append(message)
        self.links[side].send(message)

    def move(self, side: int, room: int) -> None:
        for frame in self.readers[1 - side].feed(self.links[side].take(room)):
            self.got[1 - side].extend(self.links[1 - side].receive(*frame))
        self.check()

    def check(self) -> None:
        for link in self.links:
            link.check_invariants()

    def drain(self) -> None:
        while any(link.has_output for link in self.links):
            self.move(0, 1 << 16)
            self.move(1, 1 << 16)


def lanes(messages: list[AnyMessage]) -> tuple[list[AnyMessage], list[AnyMessage]]:
    bulk = [it for it in messages if isinstance(it, Deliver)]
    return bulk, [it for it in messages if not isinstance(it, Deliver)]


@settings(max_examples=60, deadline=None)
@given(ACTIONS)
def test_all_messages_arrive_in_order_per_lane(actions: list[tuple[str, int, int]]) -> None:
    pair = Pair()
    for number, (action, side, size) in enumerate(actions):
        if action == "bulk":
            pair.send(side, Deliver(RequestId(number), "t", bytes(size)))
        elif action == "control":
            pair.send(side, PutRecord(RequestId(number), "shared:x", "r", bytes(size)))
        elif action == "move":
            pair.move(side, size)
        else:
            if action == "lose":
                pair.links[side].take(1 << 20)
            pair.connect()
            pair.check()
    # What was taken last may have been lost.
    pair.connect()
    pair.drain()
    for side in (0, 1):
        assert lanes(pair.got[1 - side]) == lanes(pair.sent[side])


def test_control_overtakes_a_large_message() -> None:
    pair = Pair()
    pair.send(0, Deliver(RequestId(1), "t", bytes(10 * FRAGMENT_BYTES)))
    pair.move(0, 1)
    pair.send(0, Consumed(RequestId(2), 1))
    pair.drain()
    assert [type(it) for it in pair.got[1]] == [Consumed, Deliver]


def test_what_closes_bulk_stays_behind_it() -> None:
    pair = Pair()
    pair.send(0, Deliver(RequestId(1), "t", bytes(3 * FRAGMENT_BYTES)))
    pair.send(0, Delivered(RequestId(1)))
    pair.drain()
    assert [type(it) for it in pair.got[1]] == [Deliver, Delivered]


def test_bulk_waits_at_the_window_and_acknowledgements_free_memory() -> None:
    pair = Pair()
    for number in range(200):
        pair.send(0, Deliver(RequestId(number), "t", bytes(FRAGMENT_BYTES)))
    link = pair.links[0]
    lost = link.take(1 << 30)
    assert WINDOW_BYTES <= link.unacked_bytes < WINDOW_BYTES + 2 * FRAGMENT_BYTES
    assert not link.has_output and len(lost) < WINDOW_BYTES * 2
    pair.connect()
    for _ in range(400):
        pair.move(0, 1 << 16)
        pair.move(1, 1 << 16)
    assert len(pair.got[1]) == 200
    assert link.unacked_bytes < WINDOW_BYTES and link.sent - link.acked <= ACK_FRAMES


def test_an_acknowledgement_of_what_was_never_sent_is_refused() -> None:
    link = Link(PeerId("b"), 1)
    try:
        link.attach(1, 0)
    except Exception as error:
        assert "acknowledges frame 1" in str(error)
    else:
        raise AssertionError("it was taken")


def test_an_outdated_count_is_recognised() -> None:
    pair = Pair()
    for number in range(ACK_FRAMES):
        pair.send(0, Consumed(RequestId(number), 1))
        pair.move(0, 1)
    pair.drain()
    assert pair.links[0].acked == ACK_FRAMES
    assert pair.links[0].is_outdated(0)
    assert not pair.links[0].is_outdated(ACK_FRAMES)
