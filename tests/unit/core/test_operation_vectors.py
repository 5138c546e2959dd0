"""The examples of `docs/operations.json`, which every implementation has to satisfy, and the specification itself.

Section numbers are those of `docs/operations.md`.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from raskid.core.operations import check_operation, make_step
from raskid.core.steps import KINDS, OPERATORS, Content, Step
from raskid.core.windows import REDUCTIONS
from raskid.model.operations import OPERATIONS, Operation

DOCS = Path(__file__).resolve().parents[3] / "docs"
EXAMPLES = json.loads((DOCS / "operations.json").read_text(encoding="utf-8"))
STEPS = {"filter", "choose", "check", "sample", "reduce", "gather"}
ERRORS = {"wrong type": TypeError, "wrong value": ValueError}


def read(value: Any) -> Any:
    """A value as JSON writes it in the examples."""
    if isinstance(value, list):
        return [read(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "$array" in value:
        return np.array(value["$array"], value["dtype"])
    if "$bytes" in value:
        return base64.b64decode(value["$bytes"])
    if "$float" in value:
        return float(value["$float"])
    return {name: read(each) for name, each in value.items()}


def read_content(message: dict[str, Any]) -> Content:
    return tuple(read(message["args"])), read(message["fields"])


def read_operation(given: list[Any]) -> Operation:
    """By way of the wire, as a publisher gets it."""
    operation = Operation(given[0], tuple(read(given[1])), read(given[2]))
    return msgspec.msgpack.decode(msgspec.msgpack.encode(operation), type=Operation)


def same(one: Any, other: Any) -> bool:
    """Equal in all parts; numbers by value, and NaN equals itself."""
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and list(one) == list(other) and all(same(one[name], other[name]) for name in one)
        )
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other) or (one != one and other != other)


class Chain:
    """Steps one after the other, as the specification's section 2 says."""

    def __init__(self, operations: list[Operation]) -> None:
        self.steps = [make_step(operation) for operation in operations]

    def take(self, content: Content, now: float, begin: int = 0) -> list[Content]:
        for step in self.steps[begin:]:
            passed = step.take(*content, now)
            if passed is None:
                return []
            content = passed
        return [content]

    def tick(self, now: float) -> list[Content]:
        return [each for at, step in enumerate(self.steps) for each in self._go_on(step.tick(now), at, now)]

    def flush(self, now: float) -> list[Content]:
        return [each for at, step in enumerate(self.steps) for each in self._go_on(step.flush(), at, now)]

    def _go_on(self, given: Content | None, at: int, now: float) -> list[Content]:
        return [] if given is None else self.take(given, now, at + 1)


@pytest.mark.parametrize("example", EXAMPLES["chains"], ids=lambda example: example["name"])
def test_a_chain_gives_what_the_example_says(example: dict[str, Any]) -> None:
    chain = Chain([read_operation(each) for each in example["operations"]])
    for number, step in enumerate(example["steps"]):
        now = float(step["at"])
        if "raises" in step:
            with pytest.raises((TypeError, ValueError)) as raised:
                chain.take(read_content(step["message"]), now)
            assert isinstance(raised.value, ERRORS[step["raises"]]), f"step {number}: {raised.value}"
            continue
        if "message" in step:
            given = chain.take(read_content(step["message"]), now)
        else:
            given = chain.tick(now) if "tick" in step else chain.flush(now)
        assert same(given, [read_content(each) for each in step["gives"]]), f"step {number} gave {given}"


@pytest.mark.parametrize("example", EXAMPLES["refused"], ids=lambda example: example["name"])
def test_wrong_arguments_are_refused(example: dict[str, Any]) -> None:
    operation = read_operation(example["operation"])
    with pytest.raises((TypeError, ValueError)) as refused:
        check_operation(operation)
    assert isinstance(refused.value, ERRORS[example["raises"]]), refused.value
    assert repr(operation.op) in str(refused.value)
    if operation.op in STEPS:
        with pytest.raises(ERRORS[example["raises"]]):
            make_step(operation)


@pytest.mark.parametrize("given", EXAMPLES["accepted"], ids=str)
def test_right_arguments_are_accepted(given: list[Any]) -> None:
    operation = read_operation(given)
    check_operation(operation)
    if operation.op in STEPS:
        assert isinstance(make_step(operation), Step)
    else:
        with pytest.raises(ValueError, match="has no step"):
            make_step(operation)


def test_the_examples_cover_the_table() -> None:
    used = [operation for example in EXAMPLES["chains"] for operation in example["operations"]]
    assert {op for op, _, _ in used} == STEPS
    assert {op for op, _, _ in EXAMPLES["accepted"]} == set(OPERATIONS)
    assert {operation[0] for operation in (each["operation"] for each in EXAMPLES["refused"])} >= set(OPERATIONS)
    assert {condition[1] for op, args, _ in used if op == "filter" for condition in args} == set(OPERATORS)
    assert {fields["type"] for op, _, fields in used if op == "check" and fields.get("type")} == set(KINDS)
    hows = [fields["how"] for op, _, fields in used if op == "reduce"]
    assert {how for each in hows for how in ([each] if isinstance(each, str) else each)} == set(REDUCTIONS)
    names = [example["name"] for example in (*EXAMPLES["chains"], *EXAMPLES["refused"])]
    assert len(names) == len(set(names))


def test_the_specification_has_a_section_for_each_operation() -> None:
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### `(\w+)`$", text, re.MULTILINE)) == set(OPERATIONS)


def test_examples_in_the_specification_are_right() -> None:
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    found = re.findall(r"^Example: `(\[.*\])`", text, re.MULTILINE)
    assert {json.loads(each)[0] for each in found} == set(OPERATIONS)
    for each in found:
        check_operation(read_operation(json.loads(each)))
