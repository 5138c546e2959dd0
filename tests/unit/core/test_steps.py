"""Operations that look at one message. What each gives stands in `docs/operations.json`; here is what always holds."""

from __future__ import annotations

import copy
import itertools
import operator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raskid.core.operations import make_step
from raskid.core.steps import Content
from raskid.model.operations import Operation

VALUES = st.one_of(st.integers(-3, 3), st.sampled_from(["", "a", "b"]), st.none(), st.booleans())
NUMBERS = st.integers(-3, 3)
NAMES = st.sampled_from(["x", "y", "z"])
CONTENTS = st.tuples(st.lists(VALUES, max_size=3).map(tuple), st.dictionaries(NAMES, VALUES))
OPERATIONS = st.sampled_from(
    [
        Operation("filter", (["x", "!=", 1], [0, "in", [1, "a", None]])),
        Operation("choose", ("y", "x"), {"positional": True}),
        Operation("check", (), {"type": "any"}),
        Operation("sample", (), {"every": 2}),
        Operation("sample", (), {"rate": 2}),
        Operation("reduce", (), {"how": ["first", "last"], "count": 2}),
        Operation("gather", (), {"count": 2, "seconds": 3}),
    ]
)
MODEL = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def take(operation: Operation, *args: Any, **fields: Any) -> Content | None:
    return make_step(operation).take(args, fields, 0.0)


def passes(condition: list[Any], **fields: Any) -> bool:
    return take(Operation("filter", (condition,)), **fields) is not None


@given(OPERATIONS, st.lists(st.tuples(CONTENTS, st.integers(0, 5)), max_size=8))
def test_no_operation_changes_what_it_was_given(operation: Operation, messages: list[tuple[Content, int]]) -> None:
    step, now = make_step(operation), 0.0
    for (args, fields), later in messages:
        now += later
        before = copy.deepcopy((args, fields))
        try:
            step.take(args, fields, now)
        except ValueError:
            pass
        assert (args, fields) == before


def test_what_passes_unchanged_is_the_same_message() -> None:
    """Who runs a chain sees by this that a message need not be encoded anew."""
    args, fields = (1,), {"x": 2}
    for operation in (
        Operation("filter", (["x", "==", 2],)),
        Operation("check", (), {"type": "int"}),
        Operation("sample", (), {"every": 1}),
        Operation("sample", (), {"rate": 1}),
    ):
        passed = make_step(operation).take(args, fields, 0.0)
        assert passed is not None and passed[0] is args and passed[1] is fields


@given(
    CONTENTS,
    st.lists(st.tuples(st.sampled_from([0, 1, "x", "y"]), st.sampled_from(sorted(MODEL)), NUMBERS), min_size=1),
)
def test_filter_is_what_it_says(content: Content, conditions: list[tuple[str | int, str, int]]) -> None:
    def expected() -> bool:
        for place, relation, value in conditions:
            there = place in content[1] if isinstance(place, str) else place < len(content[0])
            if not there:
                return False
            found = content[1][place] if isinstance(place, str) else content[0][place]
            if not MODEL[relation](found, value):
                return False
        return True

    step = make_step(Operation("filter", tuple(map(list, conditions))))
    try:
        wanted = expected()
    except TypeError:
        with pytest.raises(TypeError, match="filter cannot compare"):
            step.take(*content, 0.0)
    else:
        assert (step.take(*content, 0.0) is not None) == wanted


@given(VALUES, st.lists(VALUES, max_size=5))
def test_in_finds_what_comparing_finds(value: Any, members: list[Any]) -> None:
    assert passes(["x", "in", members], x=value) == (value in members)
    assert passes(["x", "not in", members], x=value) == (value not in members)


def test_members_of_many_kinds() -> None:
    nan = float("nan")
    assert not passes(["x", "in", [nan]], x=nan), "NaN equals nothing, itself included"
    assert passes(["x", "in", ["a", 2]], x=2.0) and passes(["x", "in", (1, [2])], x=[2])
    assert not passes(["x", "in", ["a"]], x=["a"]), "what has no hash is compared"
    assert passes(["x", "in", [3, 5]], x=np.int64(5)) and passes(["x", "not in", [3, 5]], x=np.float64(5.5))


def test_comparing_arrays() -> None:
    array = np.array([1, 2, 3])
    assert passes(["x", ">", 0], x=array) and not passes(["x", ">", 1], x=array)
    assert passes(["x", "==", array], x=array.copy()) and not passes(["x", "==", array], x=array[::-1])
    with pytest.raises(ValueError, match=r"filter cannot compare field 'x', an array of int64 of shape \(3,\)"):
        passes(["x", "<", np.array([1, 2])], x=array)
    with pytest.raises(TypeError, match="filter cannot compare field 'x'"):
        passes(["x", "<", "a"], x=array)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("int", [np.int8(1), np.uint64(2)], [np.float32(1), np.bool_(True), np.array(1), 1 + 0j]),
        ("float", [np.float32(1), np.float64(1), np.int8(1), float("inf")], [np.bool_(True), np.array([1.0]), 1j]),
        ("bool", [np.bool_(False)], [np.int8(0), np.array([True])]),
        ("str", [np.str_("a")], [b"a", np.array("a")]),
        ("bytes", [np.bytes_(b"a"), bytearray(b"a"), memoryview(b"a")], ["a"]),
        ("list", [(1, 2), {1}, frozenset()], ["ab", {"a": 1}, np.array([1])]),
        ("dict", [{1: 2}], [[("a", 1)]]),
        ("array", [np.array(1), np.zeros((2, 0)), np.array(["a"])], [np.float64(1), [1], 1.0]),
        ("any", [object(), None, np.array([1])], []),
    ],
)
def test_kinds_of_values(kind: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert take(Operation("check", (), {"type": kind}), value) is not None
    for value in bad:
        with pytest.raises(TypeError, match=f"positional value 0 is declared as {kind}, got "):
            take(Operation("check", (), {"type": kind}), value)


def test_check_says_what_is_wrong() -> None:
    array = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"field 'mesh' is declared to have shape \[any, 4\], got an array of float32"):
        take(Operation("check", (), {"name": "mesh", "shape": [None, 4]}), mesh=array)
    with pytest.raises(ValueError, match=r"at least 1 in all its elements, got an array of float32 of shape \(2, 3\)"):
        take(Operation("check", (), {"min": 1}), array)
    with pytest.raises(ValueError, match=r"no field 'mash'; it has 1 positional values and 'mesh'"):
        take(Operation("check", (), {"name": "mash"}), 1, mesh=array)
    with pytest.raises(TypeError, match="at most 3, got 'a' of type str"):
        take(Operation("check", (), {"max": 3}), "a")


def test_texts_of_failures_are_short() -> None:
    for value in ("x" * 10**6, list(range(10**5)), 10**10_000, np.zeros(10**5), b"x" * 10**6):
        with pytest.raises(TypeError) as raised:
            take(Operation("check", (), {"type": "dict"}), value)
        assert len(str(raised.value)) < 200


@given(st.floats(0.01, 1000), st.lists(st.floats(0, 5), max_size=50))
def test_sample_never_lets_two_through_too_soon(rate: float, gaps: list[float]) -> None:
    step, now, passed = make_step(Operation("sample", (), {"rate": rate})), 0.0, []
    for gap in gaps:
        now += gap
        if step.take((), {}, now) is not None:
            passed.append(now)
        else:
            assert now < passed[-1] + 1 / rate, "what is held back came too soon"
    assert all(later >= earlier + 1 / rate for earlier, later in itertools.pairwise(passed))
    assert bool(passed) == bool(gaps)


@given(st.integers(1, 7), st.integers(0, 40))
def test_sample_by_count(every: int, count: int) -> None:
    step = make_step(Operation("sample", (), {"every": every}))
    passed = [number for number in range(count) if step.take((number,), {}, 0.0) is not None]
    assert passed == list(range(0, count, every))


def test_a_rate_of_next_to_nothing_lets_one_through() -> None:
    step = make_step(Operation("sample", (), {"rate": 5e-324}))
    assert step.take((), {}, 0.0) is not None and step.take((), {}, 1e300) is None


def test_steps_without_windows_have_nothing_to_tell() -> None:
    step = make_step(Operation("sample", (), {"every": 2}))
    step.take((), {}, 0.0)
    assert step.next_deadline() is None and step.tick(1e9) is None and step.flush() is None
