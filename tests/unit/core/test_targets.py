"""One reader: credit, queue, policy, collection."""

from __future__ import annotations

import pytest

from raskid.core.effects import Effect, Send
from raskid.core.targets import BODIES_BYTES_MAX, BODIES_MAX, Target
from raskid.model.ids import PeerId, RequestId
from raskid.protocol.messages import Deliver
from raskid.protocol.reactions import BLOCK, DROP_NEWEST, DROP_OLDEST, LATEST, PULL
from tests.unit.core.publishers import READER


def make(capacity: int = 2, overflow: str = BLOCK) -> Target:
    return Target("t", RequestId(5), READER, capacity, overflow)


def deliver(*bodies: bytes, dropped: int = 0, numbers: list[int] | None = None, again: bool = False) -> Send:
    return Send(READER.peer, Deliver(RequestId(5), "t", list(bodies), dropped, numbers or [], again))


def queued(target: Target) -> list[bytes]:
    return [it[1] for it in target.queue]


def test_what_is_collected_travels_as_one() -> None:
    target = make()
    effects: list[Effect] = []
    assert target.add(b"1", effects)
    assert not target.add(b"2", effects)
    assert effects == [] and target.credit == 0
    assert target.take() == deliver(b"1", b"2")
    target.check_invariants()
    assert target.bodies == [] and target.bodies_bytes == 0


def test_numbers_again_and_publisher_are_the_same_in_one_deliver() -> None:
    target = make(10)
    effects: list[Effect] = []
    target.add(b"1", effects, 1)
    target.add(b"2", effects, 2)
    target.add(b"3", effects)
    target.add(b"4", effects, 4)
    target.add(b"5", effects, 2, True)
    target.add(b"6", effects, 6, True, PeerId("p"))
    effects.append(target.take())
    assert effects == [
        deliver(b"1", b"2", numbers=[1, 2]),
        deliver(b"3"),
        deliver(b"4", numbers=[4]),
        deliver(b"5", numbers=[2], again=True),
        Send(READER.peer, Deliver(RequestId(5), "t", [b"6"], 0, [6], True, PeerId("p"))),
    ]


def test_a_collection_has_a_bound() -> None:
    target = make(1000)
    effects: list[Effect] = []
    for _ in range(BODIES_MAX + 1):
        target.add(b"x", effects)
    assert len(effects) == 1 and len(target.bodies) == 1
    target.add(bytes(BODIES_BYTES_MAX), effects)
    assert len(effects) == 2
    target.check_invariants()


@pytest.mark.parametrize(
    ("overflow", "left", "lost"),
    [
        (BLOCK, [b"2", b"3"], [1]),
        (DROP_OLDEST, [b"2", b"3"], [1]),
        (DROP_NEWEST, [b"1", b"2"], [3]),
        (LATEST, [b"3"], [1, 2]),
        (PULL, [], []),
    ],
)
def test_each_policy_leaves_out_what_it_says_and_names_it(overflow: str, left: list[bytes], lost: list[int]) -> None:
    target = make(2, overflow)
    target.credit = 0
    target.lost = []
    for number in (1, 2, 3):
        target.enqueue(b"%d" % number, False, number)
        target.check_invariants()
    assert queued(target) == left and target.lost == lost
    assert target.dropped == target.dropped_all == len(lost)


def test_numbers_that_nobody_wants_to_know_are_not_collected() -> None:
    target = make(1, LATEST)
    target.credit = 0
    target.enqueue(b"1", False, 1)
    target.enqueue(b"2", False, 2)
    assert target.lost is None and target.dropped == 1


def test_one_that_waits_keeps_its_place() -> None:
    target = make(1)
    target.credit = 0
    target.enqueue(b"a", True)
    target.enqueue(b"b", True)
    target.enqueue(b"c", False)
    assert queued(target) == [b"a", b"b"]
    target.check_invariants()


def test_what_waits_is_collected_with_its_count_of_those_left_out() -> None:
    target = make(1, DROP_OLDEST)
    target.credit = 0
    for body in (b"1", b"2", b"3"):
        target.enqueue(body, False)
    target.give(5)
    assert target.credit == 1, "no more than the capacity"
    effects: list[Effect] = []
    assert target.next_waiting(effects) == 3
    assert target.take() == deliver(b"3", dropped=2)
    assert target.dropped == 0 and target.dropped_all == 2


def test_credit_is_never_taken_away_by_a_reader() -> None:
    target = make(2)
    target.give(-1)
    assert target.credit == 2


def test_withdrawing_names_the_message() -> None:
    target = make(5)
    target.credit = 0
    target.lost = []
    target.enqueue(b"a", True, 7)
    target.enqueue(b"b", True, 8)
    assert target.withdraw(1) and not target.withdraw(1)
    assert target.lost == [7] and queued(target) == [b"b"]
    target.check_invariants()


def test_a_reader_that_pulls_begins_without_credit() -> None:
    target = make(3, PULL)
    assert target.credit == 0
    target.give(1)
    target.add(b"1", [])
    assert target.credit == 0 and target.load == 3


def test_load_counts_what_the_reader_has_not_taken() -> None:
    target = make(2)
    target.add(b"1", [])
    target.add(b"2", [])
    target.enqueue(b"3", False)
    assert target.load == 3
    target.clear()
    assert target.load == 2 and not target.bodies
