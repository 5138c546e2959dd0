"""The table: texts of refusals, arguments as Python has them, and operations made by hand.

Which arguments are right and wrong stands in `docs/operations.json` (`test_operation_vectors.py`).
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raskid.core.operations import check_operation, make_step
from raskid.model.operations import OPERATIONS, Operation

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.sampled_from(
    ["name", "count", "seconds", "how", "type", "min", "max", "shape", "every", "rate", "positional", "bytes", "basket",
     "permanent", "args", "fields"]
)  # fmt: skip


def refusal(op: str, *args: Any, **fields: Any) -> str:
    with pytest.raises((TypeError, ValueError)) as refused:
        check_operation(Operation(op, args, fields))
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "operation"),
    [
        ("there is no operation 'forwad'; expected one of filter, choose, check, sample, reduce, gather, code, "
         "consume, forward, set, keep, deliver. Did you mean 'forward'?", Operation("forwad")),
        ("operation 'sample' has no argument named 'evry'; expected every, rate. Did you mean 'every'?",
         Operation("sample", (), {"evry": 2})),
        ("operation 'sample' takes either every or rate (messages per second), got both",
         Operation("sample", (), {"every": 2, "rate": 1})),
        ("operation 'deliver' takes no arguments by position; got 1", Operation("deliver", ("mesh",))),
        ("operation 'deliver' has no argument named 'to'; it takes none", Operation("deliver", (), {"to": "me"})),
        ("operation 'forward' takes the topic, by position; got 0 values", Operation("forward")),
        ("operation 'filter': the operator of condition 1 has to be one of ==, !=, <, <=, >, >=, in, not in, has; "
         "got '=' of type str", Operation("filter", (["x", ">", 1], ["y", "=", 1]))),
        ("operation 'check': type has to be one of int, float, str, bool, bytes, list, dict, array, any; got 'integer' "
         "of type str. Did you mean 'int'?", Operation("check", (), {"type": "integer"})),
        ("operation 'reduce': count has to be a whole number from 1 to 1,000,000; got 2.0 of type float",
         Operation("reduce", (), {"how": "sum", "count": 2.0})),
        ("operation 'keep' takes count (messages), seconds, or both, got neither", Operation("keep")),
        ("operation 'set': the name of a list has to be one that begins with cells: or shared:; got 'reactions:x' of "
         "type str", Operation("set", ("reactions:x", "value"))),
    ],
)  # fmt: skip
def test_refusals_say_what_is_wrong(text: str, operation: Operation) -> None:
    with pytest.raises((TypeError, ValueError)) as refused:
        check_operation(operation)
    assert str(refused.value) == text


def test_a_topic_that_cannot_be_used_is_refused_with_the_reason() -> None:
    assert "'forward': the topic cannot be used: topic '@a' begins with '@'" in refusal("forward", "@a")
    assert "'keep': basket cannot be used: a topic's name has 300 characters" in refusal(
        "keep", count=1, basket="b" * 300
    )
    assert "'set': 'x' names no list" in refusal("set", "x", "value")
    assert "1,024 characters long at most; got '1,025'" not in refusal("set", "cells:x", "r" * 1025)


@given(
    st.one_of(st.sampled_from(OPERATIONS), st.text(max_size=8)),
    st.lists(ANYTHING, max_size=3).map(tuple),
    st.dictionaries(st.one_of(ARGUMENTS, st.text(max_size=5)), ANYTHING, max_size=4),
)
def test_whatever_a_record_holds_is_accepted_or_refused(op: str, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
    try:
        check_operation(Operation(op, args, fields))
    except (TypeError, ValueError) as error:
        assert repr(op) in str(error) and len(str(error)) < 1000


@pytest.mark.parametrize("op", OPERATIONS)
def test_operations_made_by_hand_may_hold_anything(op: str) -> None:
    nonsense: Any
    for nonsense in (None, 3, "text", [1, 2]):
        with pytest.raises(TypeError, match=f"operation '{op}': what stands for its arguments by position"):
            check_operation(Operation(op, nonsense))
        with pytest.raises(TypeError, match=f"operation '{op}': what stands for its arguments by name"):
            check_operation(Operation(op, (), nonsense))
    with pytest.raises(TypeError, match="a dict, keys text"):
        check_operation(Operation(op, (), {1: 2}))  # type: ignore[dict-item]


def test_numbers_of_numpy_are_numbers() -> None:
    for operation in (
        Operation("sample", (), {"every": np.int32(2)}),
        Operation("sample", (), {"rate": np.float32(2)}),
        Operation("reduce", (), {"how": "sum", "count": np.uint8(2), "seconds": np.int64(3)}),
        Operation("check", (), {"min": np.float32(0), "max": np.int16(3), "shape": (np.int64(2), None)}),
        Operation("filter", ([np.int64(0), "==", np.float64(1)],)),
    ):
        check_operation(operation)
    assert "whole number" in refusal("sample", every=np.float64(2))
    assert "whole number" in refusal("sample", every=np.bool_(True))
    assert "number of messages per second" in refusal("sample", rate=np.array([1.0]))


def test_tuples_stand_for_lists() -> None:
    check_operation(Operation("filter", (("x", "in", ("a", "b")), ["y", "in", {1, 2}])))
    check_operation(Operation("reduce", (), {"how": ("sum", "mean"), "count": 2}))
    check_operation(Operation("code", ("id", "python", "3.11"), {"args": (1, 2)}))


@pytest.mark.parametrize("op", ["code", "consume", "forward", "set", "keep", "deliver"])
def test_there_is_no_step_for_what_needs_more_than_the_message(op: str) -> None:
    right = {"code": ("id", "python", "3"), "forward": ("t",), "set": ("cells:x", "value")}.get(op, ())
    fields = {"count": 1} if op == "keep" else {}
    with pytest.raises(ValueError, match=f"operation '{op}' has no step of its own"):
        make_step(Operation(op, right, fields))
    with pytest.raises(ValueError, match="there is no operation 'nothing'"):
        make_step(Operation("nothing"))


def test_steps_of_one_operation_know_nothing_of_each_other() -> None:
    operation = Operation("reduce", (), {"how": "count", "count": 2})
    one, other = make_step(operation), make_step(operation)
    assert one.take((), {}, 0.0) is None and other.take((), {}, 0.0) is None
    assert one.take((), {}, 0.0) == ((2,), {}) == other.take((), {}, 0.0)


def test_the_table_is_light() -> None:
    """Heads and runners hold it: numpy, and what only refusals need, are not imported with it."""
    code = (
        "import sys; before = set(sys.modules); import raskid.core.operations; "
        "print([it for it in ('numpy', 'difflib', 'dataclasses', 'json') if it in sys.modules and it not in before])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"
