"""Commands as lines of JSON: what a line may hold, and what it is read into.

A command is an object whose "do" names it; its other names are the command's arguments, and "id", which may be any
value. A table gives each command its arguments (`raskid.client.representative` has the table). What a line lacks, or
holds beyond them, is refused with the nearest word that is known. Arguments that the session looks at itself, such as
numbers and names of policies, are passed on as they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from raskid.client.escapes import EscapeError, from_json
from raskid.model.errors import RaskidError
from raskid.model.operations import Operation

#: What every line may hold.
DO = "do"
ID = "id"
#: What an operation consists of.
_PARTS = ("op", "args", "fields")


class BadLine(RaskidError, ValueError):
    """A line cannot be understood, or a command cannot be carried out as it stands; the text says why."""


class Argument(NamedTuple):
    """One argument of a command: `read` gives its value from its name and what the line has, or raises `BadLine`."""

    read: Callable[[str, Any], Any]
    required: bool = True


class Command(NamedTuple):
    """One command.

    Attributes:
        run: Called with the representative and the arguments that the line has; gives what to answer, as an object,
            or a coroutine that does.
        arguments: By name.
        lane: Gives the name of the line in which it stands, from its arguments: commands of one lane run one after the
            other, in the order of their lines. None: it does not stand in any.
    """

    run: Callable[[Any, dict[str, Any]], Any]
    arguments: Mapping[str, Argument] = {}
    lane: Callable[[dict[str, Any]], tuple[str, str]] | None = None


# ── Arguments ────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_text(name: str, value: Any) -> str:
    """Text."""
    if type(value) is not str:
        raise BadLine(f"{name!r} is text, got {_shown(value)}")
    return value


def read_plain(name: str, value: Any) -> Any:
    """What the session looks at itself."""
    return value


def read_value(name: str, value: Any) -> Any:
    """A value, with escapes."""
    try:
        return from_json(value)
    except EscapeError as error:
        raise BadLine(f"{name!r} cannot be read: {error}") from error
    except RecursionError:
        raise BadLine(f"{name!r} nests too deeply") from None


def read_values(name: str, value: Any) -> list[Any]:
    """A list of values."""
    if type(value) is not list:
        raise BadLine(f"{name!r} is a list of values, got {_shown(value)}")
    found: list[Any] = read_value(name, value)
    return found


def read_fields(name: str, value: Any) -> dict[str, Any]:
    """An object of values, whose own names are no escapes."""
    if type(value) is not dict:
        raise BadLine(f"{name!r} is an object of named values, got {_shown(value)}")
    return {key: read_value(f"{name}.{key}", item) for key, item in value.items()}


def read_names(name: str, value: Any) -> list[str]:
    """A list of names."""
    if type(value) is not list or any(type(item) is not str for item in value):
        raise BadLine(f"{name!r} is a list of names, got {_shown(value)}")
    return value


def read_flag(name: str, value: Any) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise BadLine(f"{name!r} is true or false, got {_shown(value)}")
    return value


def read_number(name: str, value: Any) -> int:
    """A whole number from 1 on."""
    if type(value) is not int or value < 1:
        raise BadLine(f"{name!r} is a whole number from 1 on, got {_shown(value)}")
    return value


def read_operations(name: str, value: Any) -> list[Operation]:
    """Operations of the table, each as the list [op, args, fields] or as an object with these names."""
    if type(value) is not list or not value:
        raise BadLine(
            f'{name!r} is a list of operations, such as [["filter", [["step", ">", 9]]]], got {_shown(value)}'
        )
    return [_read_operation(f"{name}[{number}]", item) for number, item in enumerate(value)]


def _read_operation(name: str, value: Any) -> Operation:
    parts = dict(zip(_PARTS, value, strict=False)) if type(value) is list else value
    known = type(parts) is dict and parts.keys() <= set(_PARTS) and type(parts.get("op")) is str
    if not known or (type(value) is list and len(value) > len(_PARTS)):
        raise BadLine(
            f'{name!r} is an operation, [op, args, fields] or {{"op", "args", "fields"}}, got {_shown(value)}'
        )
    args = read_values(f"{name}.args", parts.get("args", []))
    return Operation(parts["op"], tuple(args), read_fields(f"{name}.fields", parts.get("fields", {})))


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:60]}…"


# ── Lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_line(line: bytes) -> dict[str, Any]:
    """The object that a line holds.

    Raises:
        BadLine: It holds none.
    """
    try:
        found = msgspec.json.decode(line)
    except RecursionError:
        raise BadLine("this line nests too deeply") from None
    except (ValueError, msgspec.DecodeError) as error:
        text = line[:60].decode(errors="replace")
        raise BadLine(f"this line is no JSON: {error}; it begins {text!r}") from error
    if type(found) is not dict:
        raise BadLine(f'a line is one object, such as {{"do": "status", "id": 1}}; got {_shown(found)}')
    return found


def find_command(commands: Mapping[str, Command], line: dict[str, Any]) -> tuple[Command, dict[str, Any]]:
    """The command that a line names, and its arguments.

    Raises:
        BadLine: There is no such command, or its arguments are not those that it takes.
    """
    if DO not in line:
        hint = "".join(f"; {name!r} is there" for name in ("cmd", "command", "op", "type") if name in line)
        raise BadLine(f'this line does not say what to do: "do" is missing{hint}. Known are {", ".join(commands)}')
    name = line[DO]
    command = commands.get(name) if type(name) is str else None
    if command is None:
        raise BadLine(f"there is no command {_shown(name)}{closest(name, commands)}")
    given = {}
    for key, value in line.items():
        argument = command.arguments.get(key)
        if argument is not None:
            given[key] = argument.read(key, value)
        elif key not in (DO, ID):
            raise BadLine(f"{name!r} takes no {key[:60]!r}{closest(key, [*command.arguments, ID])}")
    for key, argument in command.arguments.items():
        if argument.required and key not in given:
            raise BadLine(f"{name!r} needs {key!r}")
    return command, given


def closest(given: Any, known: Iterable[str]) -> str:
    """What was probably meant, or what there is, as the end of a text."""
    known = list(known)
    close = difflib.get_close_matches(given, known, 1) if type(given) is str else []
    return (
        f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}" if known else "; there is none"
    )
