"""Ids carry their maker's origin and never repeat."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raskid.model.ids import COUNTER_BITS, ORIGIN_BITS, IdSource, origin_of

origins = st.integers(min_value=1, max_value=(1 << ORIGIN_BITS) - 1)


@pytest.mark.parametrize("origin", [0, -1, 1 << ORIGIN_BITS])
def test_an_origin_out_of_range_is_refused(origin: int) -> None:
    with pytest.raises(ValueError, match=f"31 bits, got {origin}"):
        IdSource(origin)


def test_ids_count_up_from_one() -> None:
    source = IdSource(7)
    assert source.origin == 7
    assert [source.take() - (7 << COUNTER_BITS) for _ in range(3)] == [1, 2, 3]


def test_a_range_is_consecutive_and_not_given_again() -> None:
    source = IdSource(7)
    before = source.take()
    first = source.take_range(10)
    after = source.take()
    assert first == before + 1
    assert after == first + 10


def test_an_empty_range_takes_nothing() -> None:
    source = IdSource(7)
    assert source.take_range(0) == source.take()


@given(origin=origins, takes=st.lists(st.integers(min_value=0, max_value=1000), max_size=30))
def test_ids_are_distinct_and_know_their_origin(origin: int, takes: list[int]) -> None:
    """Single ids (0) and ranges (n) taken in any order never overlap, and all name the origin."""
    source = IdSource(origin)
    seen: set[int] = set()
    for count in takes:
        first = source.take_range(count) if count else source.take()
        taken = set(range(first, first + max(count, 1)))
        assert not taken & seen
        seen |= taken
    assert all(origin_of(identifier) == origin for identifier in seen)


@given(origin=origins)
def test_ids_fit_into_a_signed_64_bit_integer(origin: int) -> None:
    assert 0 < IdSource(origin).take_range(1 << 16) < 1 << 63


@given(one=origins, other=origins)
def test_two_origins_never_share_an_id(one: int, other: int) -> None:
    assert (IdSource(one).take() == IdSource(other).take()) == (one == other)
