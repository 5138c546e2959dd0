"""docs/protocol.md has one row for each message, and says of it what the code says."""

import re
import typing
from pathlib import Path

import msgspec
import pytest

from raskid.protocol.messages import BULK, AnyMessage, Message

DOCUMENT = Path(__file__).parents[3] / "docs" / "protocol.md"
MESSAGES: tuple[type[Message], ...] = typing.get_args(AnyMessage)
COLUMNS = 6


def rows() -> list[list[str]]:
    """The cells of every row that describes a message."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in lines
        if re.match(r"\| `\w+` \|", line)
    ]


def tag_of(message: type[Message]) -> object:
    return msgspec.inspect.type_info(message).tag  # type: ignore[attr-defined]


def test_every_message_has_exactly_one_row() -> None:
    names = [row[0].strip("`") for row in rows()]
    assert sorted(names) == sorted(message.__name__ for message in MESSAGES)


def test_every_message_class_of_the_module_is_in_the_union() -> None:
    assert set(Message.__subclasses__()) == set(MESSAGES)


def test_tags_are_unique() -> None:
    tags = [tag_of(message) for message in MESSAGES]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.__name__)
def test_row_agrees_with_the_struct(message: type[Message]) -> None:
    (row,) = [row for row in rows() if row[0] == f"`{message.__name__}`"]
    assert len(row) == COLUMNS, f"expected name, tag, from, to, when, fields; got {row}"
    _, tag, sender, receiver, when, fields = row
    assert tag == str(tag_of(message))
    assert fields == ", ".join(message.__struct_fields__)
    assert sender and receiver and when, "say from whom, to whom and when"


def test_rows_are_in_order_of_tags() -> None:
    tags = [int(row[1]) for row in rows()]
    assert tags == sorted(tags)


def test_messages_of_the_bulk_lane_are_named() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    (sentence,) = re.findall(r"fixed by its type: (.*?) travel in", text, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", sentence)) == {message.__name__ for message in BULK}
