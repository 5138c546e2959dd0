"""Arguments of operations: what they have to be, and the texts for those that are not.

They come from records, which anybody may write. None stands for an argument that is not given: not every language can
leave one out. `raskid.core.operations` says which operation takes which.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, Final

from raskid.core.steps import Place, fits, shown
from raskid.core.windows import MESSAGES_MAX
from raskid.model.operations import Operation
from raskid.model.topics import check_topic

#: Eleven days: windows, and messages that are kept, last no longer.
SECONDS_MAX: Final = 1e6


def check_form(operation: Operation) -> None:
    """An operation made by hand may hold anything."""
    # Compiled code takes attributes at their word, with errors of its own, unless their object is of any type.
    given: Any = operation
    if not isinstance(given.args, tuple):
        raise TypeError(wrong(operation.op, "what stands for its arguments by position", "a tuple", given.args))
    if not isinstance(given.fields, dict) or not all(isinstance(name, str) for name in given.fields):
        raise TypeError(wrong(operation.op, "what stands for its arguments by name", "a dict, keys text", given.fields))


def check_names(operation: Operation, names: tuple[str, ...]) -> None:
    """Refuse arguments by name that an operation has not."""
    for name in operation.fields:
        if name not in names:
            known = f"expected {', '.join(names)}" if names else "it takes none"
            raise ValueError(
                f"operation {operation.op!r} has no argument named {name!r:.80}; {known}" + closest(name, names)
            )


def check_no_args(operation: Operation) -> None:
    """Refuse arguments by position."""
    if operation.args:
        raise ValueError(f"operation {operation.op!r} takes no arguments by position; got {len(operation.args)}")


def check_texts(operation: Operation, names: tuple[str, ...]) -> None:
    """So many arguments by position, each of them text."""
    if len(operation.args) != len(names):
        expected = ", ".join(names)
        raise ValueError(f"operation {operation.op!r} takes {expected}, by position; got {len(operation.args)} values")
    for name, value in zip(names, operation.args, strict=True):
        if not isinstance(value, str):
            raise TypeError(wrong(operation.op, name, "text", value))
        if not value:
            raise ValueError(f"operation {operation.op!r}: {name} is empty")


def check_named_topic(op: str, what: str, name: str) -> None:
    """Refuse what cannot be the name of a topic, or of what else is named as topics are."""
    try:
        check_topic(name)
    except ValueError as error:
        raise ValueError(f"operation {op!r}: {what} cannot be used: {error}") from error


def window_given(operation: Operation) -> tuple[int, float | None]:
    """How many messages and how many seconds, at least one of which has to be said."""
    op, count, seconds = operation.op, operation.fields.get("count"), operation.fields.get("seconds")
    if count is None and seconds is None:
        raise ValueError(f"operation {op!r} takes count (messages), seconds, or both, got neither")
    return (
        MESSAGES_MAX if count is None else as_whole(op, "count", count, 1, MESSAGES_MAX),
        None if seconds is None else as_positive(op, "seconds", seconds, "seconds", SECONDS_MAX),
    )


def place_given(operation: Operation) -> Place:
    """The value that an operation looks at: by default the first positional one."""
    name = operation.fields.get("name")
    return 0 if name is None else as_place(operation.op, "name", name)


def as_place(op: str, what: str, place: Any) -> Place:
    """The name of a field, or the number of a positional value."""
    if isinstance(place, str):
        return place
    if isinstance(place, bool) or not hasattr(place, "__index__"):
        raise TypeError(wrong(op, what, "a field's name, or the number of a positional value", place))
    return as_whole(op, what, place, 0, 1 << 31)


def as_whole(op: str, what: str, value: Any, least: int, most: int) -> int:
    """A whole number in a range."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(wrong(op, what, f"a whole number from {least:,} to {most:,}", value))
    number = operator.index(value)
    if not least <= number <= most:
        raise ValueError(wrong(op, what, f"a whole number from {least:,} to {most:,}", number))
    return number


def as_positive(op: str, what: str, value: Any, unit: str, most: float) -> float:
    """A number above zero."""
    if not fits("float", value):
        raise TypeError(wrong(op, what, f"a number of {unit}", value))
    if not 0 < value <= most:
        raise ValueError(wrong(op, what, f"a number of {unit} above 0, and {most:,.0f} at most", value))
    return float(value)


def flag_given(operation: Operation, name: str) -> bool:
    """An argument that is true or false; false where it is not given."""
    value = operation.fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise TypeError(wrong(operation.op, name, "true or false", value))
    return value is True


def wrong(op: str, what: str, expected: str, given: Any) -> str:
    """The text for an argument that is not what it has to be."""
    return wrong_text(op, what, expected, shown(given))


def wrong_text(op: str, what: str, expected: str, given: str) -> str:
    """As `wrong`, with `given` in words."""
    return f"operation {op!r}: {what} has to be {expected}; got {given}"


def closest(given: Any, known: Iterable[str]) -> str:
    """The end of a text that refuses a name: which one may have been meant."""
    if not isinstance(given, str):
        return ""
    import difflib

    close = difflib.get_close_matches(given, list(known), 1)
    return f". Did you mean {close[0]!r}?" if close else ""
