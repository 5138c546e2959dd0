"""What all commands have in common: which system is meant, how results are printed, how errors are.

Whatever goes wrong is one line on standard error: exit code 1, or 2 when the command itself was not understood. With
`--json`, standard output holds JSON only.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup

import raskid
from raskid.client.session import Session
from raskid.launch.connect import URL_VARIABLE, read_url
from raskid.launch.directories import check_name, read_session, url_of
from raskid.model.errors import RaskidError

ATTACH_S = 5.0
DEFAULT_NAME = "default"


class Failure(Exception):
    """What a command cannot do; the text is for the user."""


class Misuse(Failure):
    """A command that cannot be meant as it is given; exit code 2."""


class OneLineGroup(TyperGroup):
    """Commands whose usage errors are one line too."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command, and end the process with its exit code."""
        options["standalone_mode"] = False
        try:
            code = super().main(*args, **options)
        except Exception as error:
            # Typer brings its own copy of click's errors, which has no public name.
            text = getattr(error, "format_message", None)
            if text is None:
                raise
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "raskid"
            say(f"{' '.join(text().split()).removesuffix('.')}; see: {command} --help")
            sys.exit(getattr(error, "exit_code", 2))
        sys.exit(code if isinstance(code, int) else 0)


def say(text: str) -> None:
    """One line on standard error."""
    print(f"raskid: {' '.join(text.split())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Make one line of whatever goes wrong in a command."""
    try:
        yield
    except BrokenPipeError:
        # Whoever read the output has enough, as `head` does. What is left to flush at exit has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except (RaskidError, Failure, ValueError, TypeError, OSError) as error:
        say(str(error) or type(error).__name__)
        raise typer.Exit(2 if isinstance(error, Misuse) else 1) from error


class System(NamedTuple):
    """Which system a command is about; `url` holds what else its user said of it, such as a role."""

    name: str
    url: str


def which(option: str | None, argument: str | None = None) -> System:
    """The system meant: as option or as argument, else by `RASKID_URL`, else "default". A URL will do for a name.

    Raises:
        Failure: Option and argument name different ones, or a URL names none.
    """
    if option is not None and argument is not None and option != argument:
        raise Failure(f"two systems are named, {argument!r} and {option!r}; name one")
    given = option if option is not None else argument
    if given is None:
        url = os.environ.get(URL_VARIABLE)
        name = read_url(None).name if url else DEFAULT_NAME
        # One that starts a system for each script names none that could be meant here.
        return System(name, url or "") if url and name else System(DEFAULT_NAME, url_of(DEFAULT_NAME))
    if "://" in given:
        name = read_url(given).name
        if not name:
            raise Failure(f"{given!r} names no system; expected local://NAME")
        return System(name, given)
    return System(check_name(given), url_of(given))


def attach(system: System) -> Session:
    """A session in a system that runs; never starts one."""
    read_session(system.name)
    return raskid.connect(system.url, timeout=ATTACH_S)


def print_json(value: Any) -> None:
    """One line of JSON. It is flushed, so that a pipe sees each message as it comes."""
    print(to_json(value), flush=True)


def to_json(value: Any) -> str:
    """JSON, and never what only Python takes for JSON: numbers that are none become null."""
    return json.dumps(_strict(value), ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    """What JSON has: arrays and numpy scalars become lists and numbers, other things text."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_strict(item) for item in value]
    return _strict(value.tolist()) if hasattr(value, "tolist") else str(value)


def from_json(text: str) -> Any:
    """The value that JSON text stands for.

    Raises:
        Failure: It is not JSON; the text says what was probably meant.
    """

    def refuse(constant: str) -> Any:
        raise Failure(f"{constant} is not JSON; use null, or text such as '\"{constant}\"'")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise Failure(f"{text[:60]!r}... is nested too deeply") from None
    except json.JSONDecodeError as error:
        hint = ""
        if not text.strip():
            hint = "; an empty text is written '\"\"'"
        elif text.strip()[0] not in '{["':
            hint = f"; text needs quotes within: '{json.dumps(text[:60], ensure_ascii=False)}'"
        elif "'" in text:
            hint = "; text within it stands in double quotes"
        raise Failure(f"{text[:60]!r} is not JSON ({error}){hint}") from error


def print_table(titles: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """A table for people."""
    # Commands that print none start without it.
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    Console(markup=False, highlight=False).print(table)
