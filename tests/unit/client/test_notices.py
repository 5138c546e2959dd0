"""What the gateway tells: each kind of line, and what cannot be told."""

from __future__ import annotations

from typing import Any

import pytest

from raskid.client.commands import BadLine
from raskid.client.handles import Failure
from raskid.client.messages import Message
from raskid.client.notices import change_event, error_facts, failure_event, message_event, named_error, value_event
from raskid.model.errors import RemoteError
from raskid.model.ids import PeerId
from raskid.protocol.values import encode_body


def test_messages_and_values() -> None:
    message = Message("t", PeerId("client-1"), 3, encode_body((b"hi",), {"$int": 1}))
    assert message_event("s", message) == {
        "event": "message", "subscription": "s", "topic": "t", "publisher": "client-1", "args": [{"$bytes": "aGk="}],
        "fields": {"$int": 1}, "dropped": 3,
    }  # fmt: skip
    assert value_event("c", {1: 2}) == {"event": "value", "cell": "c", "value": {"$dict": [[1, 2]]}}


def test_a_message_that_cannot_be_read_is_an_error() -> None:
    event = message_event("s", Message("t", PeerId("client-1"), 0, b"\xc1"))
    assert (event["event"], event["subscription"], event["topic"]) == ("error", "s", "t")
    assert event["error"] == "RemoteProtocolError"


def test_messages_with_a_number_have_it_also_where_they_cannot_be_read() -> None:
    for body, kind in ((encode_body((1,), {}), "message"), (b"\xc1", "error")):
        event = message_event("s", Message("t", PeerId("client-1"), 0, body, number=7, again=True))
        assert (event["event"], event["publisher"], event["number"], event["again"]) == (kind, "client-1", 7, True)


def test_failures() -> None:
    """One with its message, one whose message was too long to come along, one with what JSON lines cannot write."""
    message = Message("t", PeerId("client-1"), 0, encode_body((b"hi",), {"$int": 1}))
    failure = Failure("client-1", 2, "TypeError", "no\udcff", message, 3)
    told = {
        "event": "failure", "reaction": "r", "publisher": "client-1", "operation": 2, "error": "TypeError",
        "text": "no?", "message": {"args": [{"$bytes": "aGk="}], "fields": {"$int": 1}}, "failures": 3,
        "suspended": False,
    }  # fmt: skip
    assert failure_event("r", failure) == told
    assert failure_event("r", failure._replace(message=None, suspends=True)) == {
        **told, "message": None, "suspended": True,
    }  # fmt: skip
    odd = Message("t", PeerId("client-1"), 0, None, 0, (object(),), {})
    assert failure_event("r", failure._replace(message=odd)) == {**told, "message": None}


def test_a_value_that_json_lines_cannot_write_is_an_error() -> None:
    event = value_event("c", object())
    assert (event["event"], event["cell"], event["error"]) == ("error", "c", "TypeError")


def test_changes_are_told_one_by_one_with_the_values_of_now() -> None:
    records: dict[str, Any] = {"a": 1, "b": object()}
    changed: dict[str | None, None] = {"a": None, "gone": None, "b": None, None: None}
    assert change_event("l", records, changed) == {
        "event": "change", "list": "l", "key": "a", "value": 1, "deleted": False,
    }  # fmt: skip
    assert change_event("l", records, changed) == {"event": "change", "list": "l", "key": "gone", "deleted": True}
    error = change_event("l", records, changed)
    assert (error["event"], error["list"], error["key"], error["error"]) == ("error", "l", "b", "TypeError")
    del records["b"]
    assert change_event("l", records, changed) == {"event": "records", "list": "l", "records": {"a": 1}}
    assert changed == {}


def test_errors_have_a_type_and_a_text_that_can_be_written() -> None:
    assert error_facts(OSError("caf\udce9")) == {"error": "OSError", "text": "caf?"}
    assert error_facts(KeyError("no such key")) == {"error": "KeyError", "text": "no such key"}
    assert error_facts(KeyError()) == {"error": "KeyError", "text": ""}
    assert error_facts(RemoteError("E: x", "E", "a traceback")) == {"error": "RemoteError", "text": "E: x", "kind": "E"}


def test_errors_with_names_of_the_program() -> None:
    error = named_error("not found!", "text")
    assert (type(error).__name__, str(error)) == ("not found!", "text")
    for kind in ("", "a\0b", "a\nb", "x" * 201):
        with pytest.raises(BadLine, match="the name of a kind of error"):
            named_error(kind, "")
