"""Looks at what users pass in, before any of it is sent.

The head ends the connection of whoever sends it a message with a wrong field, and with it the session. So everything
that becomes a field of a message is looked at where it comes in, and refused with the name of the argument, what was
given, and what was expected.
"""

from __future__ import annotations

import numbers
import operator
from typing import Any

from raskid.core.hub import RECORD_NAME_CHARS_MAX
from raskid.model.topics import TOPIC_BYTES_MAX, check_topic
from raskid.protocol.base import VALUE_BYTES_MAX
from raskid.protocol.values import encode_value

#: Eleven days. Longer limits are cut to it: the system's clocks of waiting take no more.
SECONDS_MAX = 1e6


def _shown(value: object) -> str:
    return f"{value!r:.60} of type {type(value).__name__}"


def check_seconds(name: str, value: Any) -> float:
    """A time limit in seconds, as a float.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative or not a number (NaN).
    """
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{name} is a number of seconds, got {_shown(value)}")
    seconds = float(value)
    if not seconds >= 0:
        raise ValueError(f"{name} is a number of seconds, 0 or more, got {value!r}")
    return min(seconds, SECONDS_MAX)


def check_limit(name: str, value: Any) -> float | None:
    """As `check_seconds`; None, and infinity, stand for no limit."""
    if value is None or (isinstance(value, float) and value == float("inf")):
        return None
    return check_seconds(name, value)


def check_count(name: str, value: Any, least: int, most: int) -> int:
    """A whole number in a range, as an int.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is not from `least` to `most`.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is a whole number from {least:,} to {most:,}, got {_shown(value)}")
    number = operator.index(value)
    if not least <= number <= most:
        raise ValueError(f"{name} is a whole number from {least:,} to {most:,}, got {number:,}")
    return number


def check_flag(name: str, value: Any) -> bool:
    """True or False; anything else raises TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, got {_shown(value)}")
    return value


def check_callable(name: str, value: Any) -> None:
    """Raise TypeError for what cannot be called."""
    if not callable(value):
        raise TypeError(f"{name} is something to call, such as a function, got {_shown(value)}")


def check_name(value: Any) -> str:
    """The name of a topic, shared list or service as plain text; raises `TopicNameError` otherwise."""
    return str.__str__(check_topic(value))


def check_text(name: str, value: Any, chars_max: int) -> str:
    """Text that can be written as UTF-8, as a plain str.

    Raises:
        TypeError: It is no text.
        ValueError: It is too long, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} is text, got {_shown(value)}")
    if len(value) > chars_max:
        raise ValueError(f"{name} has {len(value):,} characters, beginning {value[:40]!r}; the limit is {chars_max:,}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} {value[:60]!r} holds half of a surrogate pair at place {error.start}, which UTF-8 cannot write"
        ) from None
    return str.__str__(value)


def check_prefix(value: Any) -> str:
    """What the names of lists begin with."""
    return check_text("prefix", value, TOPIC_BYTES_MAX + 16)


def check_key(shared: str, value: Any) -> str:
    """The key of a record of the shared list `shared`."""
    return check_text(f"a key of shared list {shared!r}", value, RECORD_NAME_CHARS_MAX)


def encode_record(what: str, value: Any) -> bytes:
    """The bytes of a record's value; `what` says whose it is.

    Raises:
        ValueNotSendable: Messages do not carry it.
        ValueError: It is too large for a record.
    """
    data = encode_value(value)
    if len(data) > VALUE_BYTES_MAX:
        raise ValueError(
            f"the value for {what} takes {len(data):,} bytes; the limit is {VALUE_BYTES_MAX:,}. Publish large data as "
            "a message, or put the name of a file here"
        )
    return data
