"""What a basket holds: limits, order, hand-over, and what it says of what it does not have."""

from __future__ import annotations

import pytest

from raskid.core import basket as basket_module
from raskid.core.basket import BYTES_MAX, COUNT_MAX, Basket
from raskid.model.errors import BasketFull, NotKept, TopicNameError

T = "mesh/ready"


def basket(topic: str = T, **limits: float) -> Basket:
    kept = Basket()
    kept.keep(topic, 0.0, **limits)  # type: ignore[arg-type]
    return kept


def fill(kept: Basket, publisher: str, first: int, last: int, now: float = 0.0) -> None:
    for number in range(first, last + 1):
        assert kept.store(T, publisher, number, f"{publisher}{number}".encode(), now)
    kept.check_invariants()


def names(kept: Basket) -> list[str]:
    """All messages in order, as publisher and number; each has the body that it was given."""
    page = kept.read(T, 0, 10_000, 1 << 30)
    assert page.complete and page.latest == kept.latest(T)
    assert all(body == f"{publisher}{number}".encode() for publisher, number, body in page.messages)
    return [f"{publisher}{number}" for publisher, number, _ in page.messages]


def handed(publisher: str, first: int, last: int, age_s: float = 0.0) -> list[tuple[int, bytes, float]]:
    return [(number, f"{publisher}{number}".encode(), age_s) for number in range(first, last + 1)]


def test_messages_are_kept_once_and_in_the_order_in_which_they_came() -> None:
    kept = basket()
    fill(kept, "p", 1, 2)
    fill(kept, "q", 1, 1)
    fill(kept, "p", 3, 3)
    assert not kept.store(T, "p", 2, b"again", 1.0)
    assert not kept.store(T, "p", 3, b"again", 1.0)
    assert names(kept) == ["p1", "p2", "q1", "p3"]
    assert kept.latest(T) == {"p": 3, "q": 1}


def test_topics_are_apart() -> None:
    kept = basket()
    kept.keep("other", 0.0, count=1)
    fill(kept, "p", 1, 2)
    kept.store("other", "p", 7, b"p7", 0.0)
    assert names(kept) == ["p1", "p2"]
    assert kept.read("other", 0, 9, 99).messages == [("p", 7, b"p7")]
    assert kept.topics() == [T, "other"] and kept.keeps("other")
    assert kept.drop("other") == 1
    assert kept.topics() == [T] and not kept.keeps("other")
    kept.check_invariants()


def test_beyond_the_count_the_oldest_go_whoever_published_them() -> None:
    kept = basket(count=3)
    fill(kept, "p", 1, 2)
    fill(kept, "q", 1, 2)
    assert names(kept) == ["p2", "q1", "q2"]
    assert not kept.store(T, "p", 1, b"late", 0.0)
    facts = kept.facts(T)
    assert (facts.count, facts.body_bytes, facts.publishers, facts.dropped) == (3, 6, 2, 1)
    assert (facts.count_max, facts.bytes_max, facts.seconds_max) == (3, BYTES_MAX, None)


def test_beyond_the_bytes_the_oldest_go() -> None:
    kept = basket(size=6)
    fill(kept, "p", 1, 4)
    assert names(kept) == ["p2", "p3", "p4"]
    assert kept.facts(T).dropped == 1


def test_a_message_over_the_limit_empties_its_topic_and_goes_itself() -> None:
    """What is kept has no gaps, so nothing may stay that is older than what had to go."""
    kept = basket(size=6)
    fill(kept, "p", 1, 2)
    assert kept.store(T, "p", 3, b"too long", 0.0)
    kept.check_invariants()
    assert names(kept) == [] and kept.facts(T).dropped == 3
    fill(kept, "p", 4, 4)
    assert names(kept) == ["p4"] and kept.latest(T) == {"p": 4}


def test_messages_expire_each_by_its_age() -> None:
    kept = basket(seconds=10.0)
    assert kept.next_deadline() is None
    fill(kept, "p", 1, 1, now=1.0)
    fill(kept, "q", 1, 1, now=2.0)
    fill(kept, "p", 2, 2, now=3.0)
    assert kept.next_deadline() == 11.0
    kept.expire(10.9)
    assert names(kept) == ["p1", "q1", "p2"]
    kept.expire(11.0)
    assert names(kept) == ["q1", "p2"] and kept.next_deadline() == 12.0
    kept.expire(50.0)
    kept.check_invariants()
    assert names(kept) == [] and kept.next_deadline() is None
    assert kept.facts(T).dropped == 3 and kept.facts(T).publishers == 0


def test_a_message_that_comes_late_in_another_topic_expires_what_is_due() -> None:
    kept = basket(seconds=1.0)
    kept.keep("other", 0.0)
    fill(kept, "p", 1, 1, now=0.0)
    kept.store("other", "p", 1, b"", 5.0)
    assert names(kept) == []


def test_new_limits_hold_for_what_is_there() -> None:
    kept = basket()
    fill(kept, "p", 1, 5)
    fill(kept, "q", 1, 1, now=50.0)
    kept.keep(T, 50.0, count=4)
    assert names(kept) == ["p3", "p4", "p5", "q1"]
    kept.keep(T, 50.0, seconds=60.0)
    kept.check_invariants()
    assert kept.next_deadline() == 60.0
    kept.keep(T, 60.0, seconds=20.0)
    assert names(kept) == ["q1"]
    kept.keep(T, 60.0)
    kept.check_invariants()
    assert kept.next_deadline() is None and kept.facts(T).seconds_max is None


@pytest.mark.parametrize(
    "limits",
    [{"count": 0}, {"count": -1}, {"count": COUNT_MAX + 1}, {"seconds": 0.0}, {"seconds": -1.0},
     {"seconds": float("nan")}, {"seconds": float("inf")}, {"size": 0}, {"size": BYTES_MAX + 1}],
)  # fmt: skip
def test_limits_out_of_range_are_refused_and_nothing_changes(limits: dict[str, float]) -> None:
    kept = basket(count=2)
    with pytest.raises(ValueError, match=r"cannot keep .*expected"):
        kept.keep(T, 0.0, **limits)  # type: ignore[arg-type]
    assert kept.facts(T).count_max == 2
    with pytest.raises(ValueError):
        kept.keep("new", 0.0, **limits)  # type: ignore[arg-type]
    assert not kept.keeps("new")


def test_bad_topics() -> None:
    kept = basket()
    for bad in ("", "@site", "a\nb", "x" * 300):
        with pytest.raises(TopicNameError):
            kept.keep(bad, 0.0)
    for ask in (
        lambda: kept.read("unknown", 0, 1, 1),
        lambda: kept.read_publisher("unknown", "p", 1, 2, 1, 1),
        lambda: kept.latest("unknown"),
        lambda: kept.facts("unknown"),
        lambda: kept.drop("unknown"),
        lambda: kept.take_over("unknown", "p", [(1, b"", 0.0)], 0.0),
    ):
        with pytest.raises(NotKept, match=r"does not keep 'unknown'; basket\.keep\(topic\) has it keep"):
            ask()


def test_what_is_under_way_for_a_dropped_topic_is_left_out() -> None:
    kept = basket()
    fill(kept, "p", 1, 2)
    assert kept.drop(T) == 2
    assert not kept.store(T, "p", 3, b"p3", 0.0)
    kept.introduce(T, "p", 3)
    kept.end(T, "p")
    kept.check_invariants()
    kept.keep(T, 0.0)
    assert names(kept) == [] and kept.latest(T) == {}


def test_topics_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basket_module, "TOPICS_MAX", 2)
    kept = basket()
    kept.keep("b", 0.0)
    with pytest.raises(BasketFull, match="keeps 2 topics, and cannot keep 'c' as well"):
        kept.keep("c", 0.0)
    kept.keep("b", 0.0, count=7)
    kept.drop("b")
    kept.keep("c", 0.0)
    assert kept.topics() == [T, "c"]


def test_publishers_without_messages_are_forgotten_beyond_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basket_module, "EMPTY_MAX", 2)
    kept = basket(count=1)
    for name in "abcd":
        kept.store(T, name, 5, name.encode(), 0.0)
        kept.check_invariants()
    assert kept.latest(T) == {"b": 5, "c": 5, "d": 5}


@pytest.mark.parametrize("number", [0, -3])
def test_numbers_begin_with_one(number: int) -> None:
    kept = basket()
    with pytest.raises(ValueError, match="is no number of a message of p"):
        kept.store(T, "p", number, b"", 0.0)
    with pytest.raises(ValueError, match="is no number of a message of p"):
        kept.take_over(T, "p", [(1, b"", 0.0), (number, b"", 0.0)], 0.0)
    assert names(kept) == []


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pages_have_limits_and_go_on_where_the_last_one_ended() -> None:
    kept = basket()
    fill(kept, "p", 1, 5)
    page = kept.read(T, 0, 2, 99)
    assert [number for _, number, _ in page.messages] == [1, 2]
    assert not page.complete and page.latest == {}
    page = kept.read(T, page.position, 9, 4)
    assert [number for _, number, _ in page.messages] == [3, 4] and not page.complete
    page = kept.read(T, page.position, 1, 4)
    assert [number for _, number, _ in page.messages] == [5] and page.complete and page.latest == {"p": 5}
    last = kept.read(T, page.position, 1, 4)
    assert last.messages == [] and last.complete and last.position == page.position
    fill(kept, "q", 1, 1)
    assert kept.read(T, last.position, 1, 4).messages == [("q", 1, b"q1")]


def test_a_page_has_at_least_one_message() -> None:
    kept = basket()
    fill(kept, "p", 1, 2)
    page = kept.read(T, 0, 0, 0)
    assert [number for _, number, _ in page.messages] == [1] and not page.complete


def test_a_reader_goes_on_behind_what_was_dropped_meanwhile() -> None:
    kept = basket(count=3)
    fill(kept, "p", 1, 3)
    page = kept.read(T, 0, 1, 99)
    fill(kept, "p", 4, 6)
    assert [number for _, number, _ in kept.read(T, page.position, 9, 99).messages] == [4, 5, 6]


def test_positions_rise_over_the_end_of_a_topic() -> None:
    kept = basket()
    fill(kept, "p", 1, 3)
    page = kept.read(T, 0, 9, 99)
    kept.drop(T)
    kept.keep(T, 0.0)
    fill(kept, "q", 1, 2)
    assert [name for name, _, _ in kept.read(T, page.position, 9, 99).messages] == ["q", "q"]


def test_messages_of_one_publisher() -> None:
    kept = basket()
    fill(kept, "p", 1, 3)
    fill(kept, "q", 1, 1)
    fill(kept, "p", 4, 6)
    found = kept.read_publisher(T, "p", 2, 5, 9, 99)
    assert found.messages == [(n, b"p%d" % n) for n in (2, 3, 4, 5)] and found.until == 5
    found = kept.read_publisher(T, "p", 2, 5, 2, 99)
    assert [n for n, _ in found.messages] == [2, 3] and found.until == 3
    found = kept.read_publisher(T, "p", 1, 9, 9, 1)
    assert [n for n, _ in found.messages] == [1] and found.until == 1


def test_what_will_not_come_is_told_from_what_may_be_under_way() -> None:
    kept = basket(count=2)

    def until(first: int, last: int) -> int:
        found = kept.read_publisher(T, "p", first, last, 9, 99)
        assert found.messages == [
            (n, b"p%d" % n) for n in range(max(first, 4), min(last, 5) + 1) if kept.latest(T)["p"] > 3
        ]
        return found.until

    assert kept.read_publisher(T, "p", 1, 9, 9, 99).until == 0, "nothing is known of p"
    kept.introduce(T, "p", 3)
    assert until(1, 9) == 2, "p sends what it publishes from 3 on"
    assert until(1, 1) == 1
    fill(kept, "p", 3, 5)
    assert until(1, 9) == 5, "3 was dropped, 6 may be under way"
    assert until(6, 9) == 5 and until(8, 9) == 7
    kept.end(T, "p")
    assert until(1, 9) == 9, "p has ended"
    kept.introduce(T, "p", 1)
    assert until(1, 9) == 5, "p is there again, and gives what it keeps"
    kept.check_invariants()


def test_a_publisher_that_ended_before_anything_came_has_nothing_under_way() -> None:
    kept = basket()
    kept.end(T, "p")
    assert kept.read_publisher(T, "p", 1, 9, 9, 99).until == 9


# ── Hand-over ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_leaving_publisher_kept_is_added_to_what_is_there() -> None:
    kept = basket()
    kept.introduce(T, "p", 4)
    fill(kept, "p", 4, 5)
    fill(kept, "q", 1, 1)
    assert kept.take_over(T, "p", handed("p", 1, 7), 0.0) == 5
    kept.check_invariants()
    assert names(kept) == ["q1", *(f"p{n}" for n in range(1, 8))]
    assert not kept.store(T, "p", 6, b"under way", 0.0)
    assert kept.take_over(T, "p", handed("p", 1, 7), 0.0) == 0
    assert kept.take_over(T, "p", [], 0.0) == 0


def test_a_reader_that_is_past_them_meets_messages_that_moved_again_and_misses_none_behind() -> None:
    kept = basket()
    kept.introduce(T, "p", 3)
    fill(kept, "p", 3, 4)
    page = kept.read(T, 0, 1, 99)
    assert [number for _, number, _ in page.messages] == [3]
    kept.take_over(T, "p", handed("p", 1, 2), 0.0)
    assert [number for _, number, _ in kept.read(T, page.position, 9, 99).messages] == [1, 2, 3, 4]


def test_a_hand_over_fills_gaps_in_any_order() -> None:
    kept = basket()
    for number in (1, 2, 5, 8):
        kept.store(T, "p", number, b"p%d" % number, 0.0)
    assert kept.take_over(T, "p", handed("p", 1, 9)[::-1], 0.0) == 5
    kept.check_invariants()
    assert names(kept) == [f"p{n}" for n in range(1, 10)]


def test_what_was_dropped_does_not_come_back_with_a_hand_over() -> None:
    kept = basket(count=3)
    fill(kept, "p", 1, 3)
    fill(kept, "q", 1, 2)
    assert kept.take_over(T, "p", handed("p", 1, 3), 0.0) == 0
    assert names(kept) == ["p3", "q1", "q2"]


def test_a_hand_over_is_cut_by_the_limits() -> None:
    kept = basket(count=2)
    assert kept.take_over(T, "p", handed("p", 1, 5), 0.0) == 5
    assert names(kept) == ["p4", "p5"] and kept.facts(T).dropped == 3


def test_messages_handed_over_keep_their_age() -> None:
    kept = basket(seconds=10.0)
    messages = [(1, b"p1", 11.0), (2, b"p2", 9.0), (3, b"p3", 1.0)]
    kept.take_over(T, "p", messages, 100.0)
    kept.check_invariants()
    assert names(kept) == ["p2", "p3"] and kept.next_deadline() == 101.0


@pytest.mark.parametrize("age_s", [-1.0, float("nan"), float("inf")])
def test_ages_that_are_none(age_s: float) -> None:
    kept = basket()
    with pytest.raises(ValueError, match="expected 0 or more"):
        kept.take_over(T, "p", [(1, b"", age_s)], 0.0)


# ── Long lives ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_has_gone_fills_no_memory() -> None:
    """One slow publisher's message stays in front of very many that expire behind it."""
    kept = basket(seconds=10.0)
    kept.take_over(T, "slow", [(1, b"slow1", 0.0)], 1000.0)
    for number in range(1, 5001):
        kept.store(T, "p", number, b"p%d" % number, 900.0 + number / 100)
    kept.check_invariants()
    shelf = kept._shelves[T]
    assert shelf.count <= 1002 and len(shelf.order) <= 2 * shelf.count + 64
    assert len(shelf.runs["p"].kept) <= 2 * shelf.count + 64
