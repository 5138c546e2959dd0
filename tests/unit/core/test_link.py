"""Links: order and delivery per lane over connections that break anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raskid.core import link as link_module
from raskid.core.link import ACK_FRAMES, BATCH_MESSAGES, WINDOW_BYTES, Link
from raskid.model.errors import LocalProtocolError, RemoteProtocolError
from raskid.model.ids import CodeId, PeerId, RequestId, TaskId
from raskid.protocol.codec import decode_batch
from raskid.protocol.framing import BULK, FRAGMENT_BYTES, FRAME_BYTES_MAX, HEADER_BYTES, MORE, FrameReader
from raskid.protocol.messages import (
    AnyMessage,
    Consumed,
    Deliver,
    Delivered,
    ListState,
    PutRecord,
    Record,
    SubmitTasks,
    TaskSpec,
)

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
            pair.send(side, Deliver(RequestId(number), "t", [bytes(size)]))
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
    pair.send(0, Deliver(RequestId(1), "t", [bytes(10 * FRAGMENT_BYTES)]))
    pair.move(0, 1)
    pair.send(0, Consumed(RequestId(2), 1))
    pair.drain()
    assert [type(it) for it in pair.got[1]] == [Consumed, Deliver]


def test_what_closes_bulk_stays_behind_it() -> None:
    pair = Pair()
    pair.send(0, Deliver(RequestId(1), "t", [bytes(3 * FRAGMENT_BYTES)]))
    pair.send(0, Delivered(RequestId(1)))
    pair.drain()
    assert [type(it) for it in pair.got[1]] == [Deliver, Delivered]


def test_bulk_waits_at_the_window_and_acknowledgements_free_memory() -> None:
    pair = Pair()
    for number in range(200):
        pair.send(0, Deliver(RequestId(number), "t", [bytes(FRAGMENT_BYTES)]))
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


def submit(number: int, size: int) -> SubmitTasks:
    return SubmitTasks([TaskSpec(TaskId(number), CodeId("c"), bytes(size))])


def batches(data: bytes) -> list[list[AnyMessage]]:
    """The batches of control that these frames hold."""
    found, partial = [], b""
    for word, _, payload in FrameReader(FRAME_BYTES_MAX).feed(data):
        assert not word & BULK and len(payload) <= FRAGMENT_BYTES
        partial += payload
        if not word & MORE:
            found.append(decode_batch(partial))
            partial = b""
    assert not partial
    return found


def test_a_burst_of_small_messages_is_one_batch() -> None:
    link = Link(PeerId("b"), 1)
    sent: list[AnyMessage] = [Consumed(RequestId(number), 1) for number in range(BATCH_MESSAGES)]
    for message in sent:
        link.send(message)
    assert batches(link.take(1 << 20)) == [sent]


def test_large_control_messages_travel_in_batches_of_their_own() -> None:
    """1. Twelve submissions of 3 MB wait at once. 2. No batch holds two of them, however much room there is."""
    link = Link(PeerId("b"), 1)
    sent = [submit(number, 3_000_000) for number in range(12)]
    for message in sent:
        link.send(message)
    assert batches(link.take(1 << 30)) == [[message] for message in sent]
    link.check_invariants()


def test_many_control_messages_are_cut_by_number_and_by_size() -> None:
    link = Link(PeerId("b"), 1)
    small: list[AnyMessage] = [Consumed(RequestId(number), 1) for number in range(BATCH_MESSAGES + 10)]
    for message in small:
        link.send(message)
    assert [len(batch) for batch in batches(link.take(1 << 30))] == [BATCH_MESSAGES, 10]
    states = [ListState("shared:x", number, [Record("r", bytes(20_000))] * 2) for number in range(10)]
    for state in states:
        link.send(state)
    made = batches(link.take(1 << 30))
    assert [message for batch in made for message in batch] == states and {len(batch) for batch in made} == {1}


@pytest.mark.parametrize("room", [1, 1000, 100_000, 1_000_000])
def test_control_goes_over_its_room_by_one_frame_at_most(room: int) -> None:
    pair = Pair()
    sent = [submit(number, size) for number, size in enumerate([10, 3_000_000, 10, 70_000, 70_000, 500_000])]
    for message in sent:
        pair.send(0, message)
    while pair.links[0].has_output:
        data = pair.links[0].take(room)
        payload = sum(len(it[2]) for it in FrameReader(FRAME_BYTES_MAX).feed(data))
        assert 0 < payload < room + FRAGMENT_BYTES
        for frame in pair.readers[1].feed(data):
            pair.got[1].extend(pair.links[1].receive(*frame))
        pair.check()
    assert pair.got[1] == sent
    assert pair.links[0].control_bytes == 0 and not pair.links[0].has_unsent


def test_a_message_that_is_too_long_is_the_senders_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MESSAGE_BYTES_MAX", 1_000_000)
    pair = Pair()
    for message, kind in (
        (submit(1, 1_000_000), "SubmitTasks"),
        (Deliver(RequestId(1), "t", [bytes(1_000_000)]), "Deliver"),
    ):
        with pytest.raises(LocalProtocolError, match=rf"a {kind} of 1,000,\d\d\d bytes for peer b .* 1,000,000 bytes"):
            pair.links[0].send(message)
        assert not pair.links[0].has_output
    pair.send(0, submit(1, 999_000))
    for number in range(5):
        pair.send(0, submit(number, 990_000))
        pair.send(0, Deliver(RequestId(1), "t", [bytes(990_000)]))
    pair.drain()
    assert len(pair.got[1]) == 11, "what the sender lets through, the receiver takes"


def test_a_message_longer_than_any_may_be_is_refused_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MESSAGE_BYTES_MAX", 1_000_000)
    link = Link(PeerId("b"), 1)
    for _ in range(1000):
        link.receive(MORE, 0, b"x")
    with pytest.raises(RemoteProtocolError, match="more than 1,000,000 bytes"):
        for _ in range(17):
            link.receive(MORE, 0, bytes(FRAGMENT_BYTES))


def test_frames_that_come_twice_count_once() -> None:
    """1. We say that we have nothing. 2. Two frames come over the old connection. 3. They come again over the new."""
    pair = Pair()
    one, other = pair.links
    pair.send(0, Consumed(RequestId(1), 1))
    pair.send(0, Deliver(RequestId(2), "t", [b"x"]))
    declared = other.received
    pair.move(0, 1 << 16)
    one.attach(declared, one.received)
    other.attach(one.received, declared)
    pair.move(0, 1 << 16)
    assert pair.got[1] == pair.sent[0] and other.doubled == 2


def test_what_is_sent_and_what_waits_is_told_apart() -> None:
    pair = Pair()
    link = pair.links[0]
    assert not link.has_unsent and not link.has_unacknowledged
    pair.send(0, Consumed(RequestId(1), 1))
    assert link.has_unsent and link.has_unacknowledged
    assert len(link.take(1 << 16)) > HEADER_BYTES
    assert not link.has_unsent and link.has_unacknowledged
    pair.connect()
    assert link.has_unsent
    pair.drain()
    assert not link.has_unsent
