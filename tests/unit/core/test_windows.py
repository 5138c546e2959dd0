"""Operations that make one message of several. What each gives stands in `docs/operations.json`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raskid.core.operations import make_step
from raskid.core.steps import Content, Step
from raskid.model.operations import Operation

WINDOWS = st.fixed_dictionaries(
    {}, optional={"count": st.integers(1, 5), "seconds": st.sampled_from([0.5, 1.0, 3.0])}
).filter(bool)
#: (what, seconds later, value)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "bad", "tick"]), st.sampled_from([0.0, 0.25, 1.0, 4.0]), st.integers(-9, 9)
    ),
    max_size=40,
)


def window(op: str, **fields: Any) -> Step:
    return make_step(Operation(op, (), fields))


def run(step: Step, events: list[tuple[str, float, int]]) -> tuple[list[Any], list[int]]:
    """All that a window gives, its end included, and the values that it took in."""
    now, results, taken = 0.0, [], []
    for what, later, value in events:
        now += later
        due = step.next_deadline()
        if what == "bad":
            with pytest.raises(TypeError):
                step.take(("text",), {}, now)
            assert step.next_deadline() == due
            continue
        result = step.take((value,), {}, now) if what == "take" else step.tick(now)
        if what == "take":
            taken.append(value)
        else:
            assert (result is not None) == (due is not None and now >= due)
        if result is not None:
            results.append(result[0][0])
        deadline = step.next_deadline()
        assert deadline is None or deadline > now, "what is due has been given"
    last = step.flush()
    assert step.flush() is None and step.next_deadline() is None and step.tick(1e9) is None
    return results + ([last[0][0]] if last is not None else []), taken


@given(WINDOWS, EVENTS)
def test_reduce_loses_and_doubles_nothing(limits: dict[str, Any], events: list[tuple[str, float, int]]) -> None:
    sums, taken = run(window("reduce", how="sum", **limits), events)
    assert sum(sums) == sum(taken)


@given(WINDOWS, EVENTS)
def test_gather_loses_and_doubles_nothing(limits: dict[str, Any], events: list[tuple[str, float, int]]) -> None:
    batches, taken = run(window("gather", **limits), [event for event in events if event[0] != "bad"])
    assert [value for batch in batches for value in batch] == taken
    assert all(1 <= len(batch) <= limits.get("count", 40) for batch in batches)


@given(WINDOWS, EVENTS)
def test_both_end_their_windows_alike(limits: dict[str, Any], events: list[tuple[str, float, int]]) -> None:
    events = [event for event in events if event[0] != "bad"]
    batches, _ = run(window("gather", **limits), events)
    for how, of in (("sum", sum), ("min", min), ("max", max), ("count", len), ("first", lambda it: it[0])):
        assert run(window("reduce", how=how, **limits), events)[0] == [of(batch) for batch in batches]


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2), min_size=1, max_size=6))
def test_arrays_are_reduced_as_numpy_does(rows: list[list[float]]) -> None:
    step = window("reduce", how=["sum", "mean", "min", "max", "first", "last", "count"], count=len(rows))
    for row in rows:
        result = step.take((np.array(row),), {}, 0.0)
    assert result is not None
    stack = np.array(rows)
    expected = {
        "sum": stack.sum(0), "mean": stack.mean(0), "min": stack.min(0), "max": stack.max(0),
        "first": stack[0], "last": stack[-1], "count": len(rows),
    }  # fmt: skip
    for name, value in expected.items():
        assert np.allclose(result[1][name], value)


@pytest.mark.parametrize("how", ["sum", "mean", "min", "max", "first", "last"])
def test_a_publisher_may_use_its_array_again(how: str) -> None:
    """1. A publisher publishes one array three times, and fills it anew each time. 2. Each value counts as it was."""
    expected = {"sum": 6, "mean": 2, "min": 1, "max": 3, "first": 1, "last": 3}[how]
    step, array = window("reduce", how=how, seconds=10), np.zeros(2)
    for number in (1, 2, 3):
        array[:] = number
        step.take((array,), {}, 0.0)
    array[:] = -100
    result = step.flush()
    assert result is not None and result[0][0].tolist() == [expected, expected]


def test_a_batch_holds_values_as_they_were() -> None:
    step = window("gather", seconds=10)
    array, lists, fields, raw = np.ones(2), {"a": [1]}, {"x": [1]}, bytearray(b"ab")
    for content in (
        ((array,), {}),
        ((lists,), {}),
        ((), fields),
        ((memoryview(raw),), {}),
        ((array, lists), {"f": raw}),
    ):
        step.take(*content, 0.0)
    array[:], raw[:] = 7, b"zz"
    lists["a"].append(2)
    fields["x"].append(2)
    result = step.flush()
    assert result is not None
    ones, plain, named, data, both = result[0][0]
    assert ones.tolist() == [1, 1] and plain == {"a": [1]} and named == {"x": [1]} and data == b"ab"
    assert both["args"][0].tolist() == [1, 1] and both["args"][1] == {"a": [1]} and both["fields"] == {"f": b"ab"}


def test_what_cannot_be_kept_changes_nothing() -> None:
    step = window("gather", count=2)
    step.take((1,), {}, 0.0)
    with pytest.raises(TypeError, match="gather cannot keep 1 values of type list"):
        step.take(([memoryview(b"a")],), {}, 0.0)
    assert step.take((2,), {}, 0.0) == (([1, 2],), {})


def test_results_are_the_windows_no_longer() -> None:
    step = window("gather", count=1)
    first = step.take((1,), {}, 0.0)
    assert first is not None
    first[0][0].append("mine")
    assert step.take((2,), {}, 0.0) == (([2],), {})


def test_narrow_numbers_are_added_in_wide_ones() -> None:
    def total(*values: Any) -> Any:
        step = window("reduce", how=["sum", "mean"], count=len(values))
        for value in values:
            result = step.take((value,), {}, 0.0)
        assert result is not None
        return result[1]["sum"], result[1]["mean"]

    added, mean = total(*[np.full(2, 120, np.int8)] * 3)
    assert added.dtype == np.int64 and added.tolist() == [360, 360] and mean.tolist() == [120, 120]
    added, mean = total(*[np.full(2, 60000, np.float16)] * 2)
    assert added.dtype == np.float32 and added.tolist() == [120000, 120000] and mean.tolist() == [60000, 60000]
    assert total(np.int8(120), np.int8(120)) == (240, 120) and type(total(np.int8(1))[0]) is int
    assert total(np.array(3, np.uint8), np.array(253, np.uint8)) == (256, 128), "arrays without axes"


def test_whole_numbers_beyond_all_floats() -> None:
    step = window("reduce", how=["sum", "mean"], count=2)
    step.take((10**400,), {}, 0.0)
    assert step.take((10**400,), {}, 0.0) == ((), {"sum": 2 * 10**400, "mean": float("inf")})
    with pytest.raises(OverflowError):
        step.take((10**400,), {}, 0.0)
        step.take((1.5,), {}, 0.0)
    assert step.take((-(10**400),), {}, 0.0) == ((), {"sum": 0, "mean": 0})


@pytest.mark.parametrize("how", ["min", "max"])
def test_complex_numbers_have_a_sum_and_no_order(how: str) -> None:
    for value in (1j, np.complex64(1j), np.array([1j])):
        with pytest.raises(TypeError, match="complex numbers have no least or most"):
            window("reduce", how=["sum", how], count=1).take((value,), {}, 0.0)
    assert window("reduce", how="mean", count=1).take((1j,), {}, 0.0) == ((1j,), {})


@pytest.mark.parametrize(
    "value", ["a", None, True, [1], np.True_, np.array(["a"]), np.array([True]), np.datetime64(0, "s")]
)
def test_what_is_no_number_is_not_added(value: Any) -> None:
    with pytest.raises(TypeError, match="positional value 0 has to be a number or an array of numbers for sum, got"):
        window("reduce", how="sum", count=1).take((value,), {}, 0.0)
    assert window("reduce", how="last", count=1).take((value,), {}, 0.0) is not None


def test_a_window_of_another_shape_begins_afresh() -> None:
    step = window("reduce", how="sum", seconds=1)
    step.take((np.zeros(3),), {}, 0.0)
    with pytest.raises(ValueError, match=r"began with an array of shape \(3,\), and positional value 0 is 1 of type"):
        step.take((1,), {}, 0.5)
    finished = step.take((1,), {}, 1.0)
    assert finished is not None and finished[0][0].shape == (3,) and step.flush() == ((1,), {})


def test_a_result_that_cannot_be_made_costs_its_window_alone() -> None:
    """Otherwise the window would stay due, and fail at every tick."""

    class Broken(int):
        def __add__(self, other: object) -> Any:
            return self

        def __truediv__(self, other: object) -> Any:
            raise RuntimeError("no")

    step = window("reduce", how="mean", seconds=1)
    step.take((Broken(1),), {}, 0.0)
    with pytest.raises(RuntimeError):
        step.tick(1.0)
    assert step.next_deadline() is None and step.tick(2.0) is None
    result: Content | None = step.take((3,), {}, 2.0)
    assert result is None and step.flush() == ((3,), {})
