from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from raskid.core.placement import choose_near, recall_count, share_out, window_for


@dataclass(eq=False)
class FakeLoad:
    outstanding: int
    window: int = 8


def test_window_holds_ten_milliseconds_of_work() -> None:
    assert [window_for(s) for s in (0.0, 1e-5, 1e-4, 0.002, 0.004)] == [512, 512, 100, 5, 2]


def test_nothing_waits_behind_a_task_that_is_long_or_not_known() -> None:
    assert [window_for(s) for s in (-1.0, 0.006, 0.5, 1e6)] == [1, 1, 1, 1]


@given(st.integers(1, 500), st.integers(1, 64))
def test_recalled_shares_are_even(waiting: int, idle: int) -> None:
    taken = recall_count(waiting, idle)
    assert 1 <= taken <= waiting
    kept = waiting - taken
    assert kept <= taken / idle < kept + 2


def test_one_task_goes_to_the_least_busy() -> None:
    assert share_out(1, [FakeLoad(3), FakeLoad(1), FakeLoad(1)]) == [0, 1, 0]


def test_tasks_level_the_runners() -> None:
    assert share_out(5, [FakeLoad(0), FakeLoad(2), FakeLoad(7)]) == [4, 1, 0]


def test_windows_bound_the_shares() -> None:
    assert share_out(100, [FakeLoad(0), FakeLoad(7), FakeLoad(1, 2)]) == [8, 1, 1]
    assert share_out(3, []) == []


@given(st.integers(1, 200), st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=8))
def test_shares_fill_the_lowest_first(count: int, pairs: list[tuple[int, int]]) -> None:
    loads = [FakeLoad(taken, taken + room) for taken, room in pairs]
    shares = share_out(count, loads)
    assert sum(shares) == min(count, sum(room for _, room in pairs))
    assert all(0 <= share <= room for share, (_, room) in zip(shares, pairs, strict=True))
    top = max((load.outstanding + share for load, share in zip(loads, shares, strict=True) if share), default=0)
    for load, share in zip(loads, shares, strict=True):
        assert load.outstanding + share >= min(top - 1, load.window)


def test_most_inputs_win_then_the_less_busy() -> None:
    few, many, busy = FakeLoad(0), FakeLoad(2), FakeLoad(5)
    assert choose_near({few: 1, many: 2, busy: 2}, FakeLoad(0), False) is many


def test_only_shared_inputs_leave_a_full_holder() -> None:
    full, spare = FakeLoad(8), FakeLoad(0)
    assert choose_near({full: 1}, spare, False) is full
    assert choose_near({full: 1}, spare, True) is spare
    assert choose_near({full: 1}, None, True) is full
    assert choose_near({FakeLoad(7): 1}, spare, True) is not spare
    other, fuller = FakeLoad(7), FakeLoad(9)
    assert choose_near({full: 1}, None, True, other) is other
    assert choose_near({full: 1}, None, True, fuller) is full
    assert choose_near({full: 1}, None, False, other) is full
    assert choose_near({}, spare, False) is spare
    assert choose_near({}, None, False) is None
