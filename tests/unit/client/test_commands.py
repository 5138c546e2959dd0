"""What a line may hold: commands and their arguments."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raskid.client.commands import (
    Argument,
    BadLine,
    Command,
    closest,
    find_command,
    read_fields,
    read_flag,
    read_line,
    read_names,
    read_number,
    read_operations,
    read_plain,
    read_text,
    read_value,
    read_values,
)
from raskid.model.operations import Operation

COMMANDS = {
    "publish": Command(
        lambda one, given: {},
        {"topic": Argument(read_text), "args": Argument(read_values, False), "fields": Argument(read_fields, False)},
    ),
    "reply": Command(lambda one, given: {}, {"value": Argument(read_value), "n": Argument(read_plain, False)}),
}


def test_a_line_is_an_object() -> None:
    assert read_line(b' {"do": "x", "id": [1, null]}\r') == {"do": "x", "id": [1, None]}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"hello", "no JSON: .*; it begins 'hello'"),
        (b'{"do": "x"', "no JSON"),
        (b'{"do": "x"} {"do": "y"}', "trailing characters"),
        (b"{'do': 'x'}", "no JSON"),
        (b'{"a": NaN}', "no JSON"),
        (b'{"a": 1e999}', "no JSON: Number out of range"),
        (b'{"a": "\xff"}', "no JSON: .*utf-8"),
        (b'{"a": "\\ud800"}', "no JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no JSON"),
        (b"[" * 100_000, "nests too deeply"),
        (b"[1, 2]", r'a line is one object, such as .*; got \[1,2\]'),
        (b"null", "a line is one object"),
        (b'"' + b"x" * 100 + b'"', "got \"x{59}…"),
    ],
)  # fmt: skip
def test_what_is_no_object_is_refused(line: bytes, text: str) -> None:
    with pytest.raises(BadLine, match=text):
        read_line(line)


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_an_object_or_are_refused(line: bytes) -> None:
    try:
        assert type(read_line(line)) is dict
    except BadLine as error:
        str(error).encode()


def test_arguments_are_read() -> None:
    line = {"do": "publish", "id": 1, "topic": "x", "args": [{"$int": "5"}], "fields": {"$int": {"$float": "inf"}}}
    command, given = find_command(COMMANDS, line)
    assert command is COMMANDS["publish"]
    # The names of fields are no escapes.
    assert given == {"topic": "x", "args": [5], "fields": {"$int": float("inf")}}
    assert find_command(COMMANDS, {"do": "reply", "value": None, "n": {"$x": 1}})[1] == {"value": None, "n": {"$x": 1}}
    assert find_command(COMMANDS, {"do": "publish", "topic": "x"})[1] == {"topic": "x"}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ({}, '"do" is missing. Known are publish, reply'),
        ({"cmd": "publish"}, "\"do\" is missing; 'cmd' is there"),
        ({"do": "pubish"}, "no command \"pubish\"; did you mean 'publish'?"),
        ({"do": "zzz"}, 'no command "zzz"; known are publish, reply'),
        ({"do": ["publish"]}, 'no command ["publish"]; known are'),
        ({"do": None}, "no command null"),
        ({"do": "publish"}, "'publish' needs 'topic'"),
        ({"do": "publish", "topic": "x", "arg": []}, "'publish' takes no 'arg'; did you mean 'args'?"),
        ({"do": "publish", "topic": "x", "zzzz": []}, "'publish' takes no 'zzzz'; known are topic, args, fields, id"),
        ({"do": "publish", "topic": 5}, "'topic' is text, got 5"),
        ({"do": "publish", "topic": "x", "args": {"a": 1}}, "'args' is a list of values, got {\"a\":1}"),
        ({"do": "publish", "topic": "x", "args": "abc"}, "'args' is a list of values"),
        ({"do": "publish", "topic": "x", "args": None}, "'args' is a list of values, got null"),
        ({"do": "publish", "topic": "x", "fields": [1]}, "'fields' is an object of named values"),
        ({"do": "publish", "topic": "x", "fields": {"a": {"$x": 1}}}, "'fields.a' cannot be read: '$x' is no known"),
        ({"do": "reply", "value": {"$int": 1}}, "'value' cannot be read: $int: expected a whole number"),
    ],
)
def test_what_is_no_command_is_refused(line: dict[str, Any], text: str) -> None:
    with pytest.raises(BadLine) as caught:
        find_command(COMMANDS, line)
    assert text in str(caught.value)


def test_values_that_nest_too_deeply_are_refused() -> None:
    deep: Any = []
    for _ in range(sys.getrecursionlimit()):
        deep = [deep]
    with pytest.raises(BadLine, match="'value' nests too deeply"):
        find_command(COMMANDS, {"do": "reply", "value": deep})


def test_closest() -> None:
    assert closest("subscribed", ["subscribe", "serve"]) == "; did you mean 'subscribe'?"
    assert closest(None, ["a", "b"]) == "; known are a, b"


def test_ids_of_every_kind_are_given_back() -> None:
    """What JSON has comes back as it was, which answers rely on."""
    for value in (None, 0, 2**70, 1.5, "x", [1, {"a": None}], {"$int": "1"}):
        assert read_line(msgspec.json.encode({"id": value}))["id"] == value


def test_where_nothing_is_known() -> None:
    assert closest("x", []) == "; there is none"


def test_operations() -> None:
    given = [
        ["deliver"], ["choose", ["x"]], ["filter", [[0, "==", {"$bytes": "aGk="}]], {"$int": {"$int": "5"}}],
        {"op": "sample", "fields": {"every": 2}},
    ]  # fmt: skip
    assert read_operations("operations", given) == [
        Operation("deliver"), Operation("choose", ("x",)), Operation("filter", ([0, "==", b"hi"],), {"$int": 5}),
        Operation("sample", (), {"every": 2}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "'operations' is a list of operations, such as"),
        ([], "'operations' is a list of operations"),
        ("deliver", "'operations' is a list of operations"),
        (["deliver"], r"'operations\[0\]' is an operation, .*, got \"deliver\""),
        ([["deliver"], []], r"'operations\[1\]' is an operation"),
        ([[5]], "is an operation"),
        ([["choose", ["x"], {}, 1]], "is an operation"),
        ([{"do": "deliver"}], "is an operation"),
        ([{"op": "deliver", "arg": []}], "is an operation"),
        ([{}], "is an operation"),
        ([["choose", "x"]], r"'operations\[0\].args' is a list of values"),
        ([["choose", ["x"], []]], r"'operations\[0\].fields' is an object of named values"),
        ([["choose", [{"$byte": ""}]]], r"'operations\[0\].args' cannot be read: .* did you mean '\$bytes'"),
    ],
)
def test_what_is_no_operation_is_refused(value: Any, text: str) -> None:
    with pytest.raises(BadLine, match=text):
        read_operations("operations", value)


def test_names_flags_and_numbers() -> None:
    assert (read_names("n", ["a"]), read_flag("f", False), read_number("c", 1)) == (["a"], False, 1)
    for read, wrong in (
        (read_names, ("a", [1], None)), (read_flag, (0, "true", None)), (read_number, (0, True, 1.0, "1")),
    ):  # fmt: skip
        for value in wrong:
            with pytest.raises(BadLine, match="'x' is "):
                read("x", value)
