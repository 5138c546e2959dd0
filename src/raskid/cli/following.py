"""What `raskid get --follow` does: messages and values, printed as they come.

Whoever looks holds no program up: readers here leave out what is too much for them, and say on standard error how much
that was.
"""

from __future__ import annotations

from typing import Any

from raskid.cli.shell import Failure, print_json, say, to_json
from raskid.client.messages import Message
from raskid.client.session import Session
from raskid.model.errors import SessionClosed, WaitTimeout


class Ending:
    """When to stop.

    Args:
        what: What comes, for texts, such as "message on 'news'".
        count: After so many; None: never.
        timeout: When nothing came for so many seconds; None: never.
    """

    def __init__(self, what: str, count: int | None, timeout: float | None) -> None:
        self._what = what
        self._count = count
        self.timeout = timeout
        self._taken = 0
        self._dropped = 0

    @property
    def reached(self) -> bool:
        """Whether so many came."""
        return self._count is not None and self._taken >= self._count

    def took(self, dropped: int) -> None:
        """One came; `dropped` were left out so far, all in all."""
        self._taken += 1
        if dropped > self._dropped:
            say(
                f"{dropped - self._dropped} left out before this {self._what}, since they came too fast for this reader"
            )
            self._dropped = dropped

    def too_late(self) -> WaitTimeout:
        """Nothing came in time."""
        wanted = f", of {self._count} wanted" if self._count else ""
        return WaitTimeout(f"no {self._what} for {self.timeout:g} s ({self._taken} came{wanted})")


def follow_topic(session: Session, topic: str, ending: Ending, overflow: str, history: int, as_json: bool) -> None:
    """Print messages of a topic."""
    subscription = session.subscribe(topic, overflow=overflow, history=history)
    dropped = 0
    while not ending.reached:
        try:
            message = subscription.get(ending.timeout)
        except WaitTimeout:
            raise ending.too_late() from None
        if message is None:
            raise SessionClosed("the system has ended")
        dropped += message.dropped
        ending.took(dropped)
        _print_message(message, as_json)


def _print_message(message: Message, as_json: bool) -> None:
    if as_json:
        print_json(
            {"topic": message.topic, "publisher": message.publisher, "args": message.args, "fields": message.fields}
        )
        return
    parts = [to_json(value) for value in message.args]
    parts += [f"{key}={to_json(value)}" for key, value in message.fields.items()]
    print(" ".join(parts), flush=True)


def print_cell(session: Session, name: str, as_json: bool) -> None:
    """Print the value of a cell."""
    nothing = object()
    with session.cell(name) as cell:
        value = cell.get(nothing)
    if value is nothing:
        if as_json:
            print_json({"cell": name})
        raise Failure(f"the cell {name!r} has no value; those that it gets are seen with --follow")
    _print_value(name, value, as_json)


def follow_cell(session: Session, name: str, ending: Ending, as_json: bool) -> None:
    """Print the value of a cell, if it has one, and then those that it gets."""
    with session.cell(name) as cell:
        values = cell.begin()
        while not ending.reached:
            try:
                value = values.get(ending.timeout)
            except WaitTimeout:
                raise ending.too_late() from None
            ending.took(cell.dropped)
            _print_value(name, value, as_json)


def _print_value(name: str, value: Any, as_json: bool) -> None:
    if as_json:
        print_json({"cell": name, "value": value})
    else:
        print(to_json(value), flush=True)
