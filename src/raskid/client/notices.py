"""What the gateway tells a program besides its answers, and how errors are told, as what a JSON encoder takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raskid.client.commands import BadLine
from raskid.client.escapes import to_json
from raskid.model.errors import RemoteError

if TYPE_CHECKING:
    from raskid.client.handles import Failure
    from raskid.client.messages import Message


def message_event(name: str, message: Message) -> dict[str, Any]:
    """A message of the subscription of that name."""
    number: dict[str, Any] = {"number": message.number, "again": message.again} if message.number else {}
    try:
        return {
            "event": "message", "subscription": name, "topic": message.topic, "publisher": message.publisher,
            "args": to_json(message.args), "fields": fields_to_json(message.fields), "dropped": message.dropped,
            **number,
        }  # fmt: skip
    except Exception as error:
        # One that cannot be read does not keep the others back; it may be acknowledged all the same.
        which = {"publisher": message.publisher, **number} if number else {}
        return {"event": "error", "subscription": name, "topic": message.topic, **which, **error_facts(error)}


def failure_event(name: str, failure: Failure) -> dict[str, Any]:
    """One time that the reaction of that name failed."""
    given = None
    if failure.message is not None:
        try:
            given = {"args": to_json(failure.message.args), "fields": fields_to_json(failure.message.fields)}
        except (TypeError, RecursionError):
            given = None
    return {
        "event": "failure", "reaction": name, "publisher": failure.publisher, "operation": failure.operation,
        "error": failure.error, "text": failure.text.encode(errors="replace").decode(), "message": given,
        "failures": failure.failures, "suspended": failure.suspends,
    }  # fmt: skip


def value_event(name: str, value: Any) -> dict[str, Any]:
    """A value of a cell."""
    try:
        return {"event": "value", "cell": name, "value": to_json(value)}
    except Exception as error:
        return {"event": "error", "cell": name, **error_facts(error)}


def change_event(name: str, records: Mapping[str, Any], changed: dict[str | None, None]) -> dict[str, Any]:
    """What became of the record of a shared list that changed first, which is taken off `changed`."""
    key = next(iter(changed))
    del changed[key]
    try:
        if key is None:
            return {"event": "records", "list": name, "records": fields_to_json(records)}
        if key not in records:
            return {"event": "change", "list": name, "key": key, "deleted": True}
        return {"event": "change", "list": name, "key": key, "value": to_json(records[key]), "deleted": False}
    except Exception as error:
        return {"event": "error", "list": name, "key": key, **error_facts(error)}


def fields_to_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, where the names are no escapes."""
    return {key: to_json(value) for key, value in fields.items()}


def error_facts(error: BaseException) -> dict[str, Any]:
    """An error as JSON: its type and its text; of one that was raised elsewhere, the type that it has there."""
    # A KeyError's own text is its argument as Python would write it.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    # It may hold what UTF-8 cannot write, such as a part of a file's name.
    facts = {"error": type(error).__name__, "text": text.encode(errors="replace").decode()}
    return {**facts, "kind": error.kind} if isinstance(error, RemoteError) else facts


def named_error(kind: str, text: str) -> Exception:
    """An error whose type has a name of the program's choice."""
    if not kind.isprintable() or not 0 < len(kind) <= 200:
        raise BadLine(f"'error' is the name of a kind of error, such as \"ValueError\", got {kind!r:.60}")
    error: Exception = type(kind, (Exception,), {})(text)
    return error
