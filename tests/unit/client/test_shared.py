"""Shared dictionaries as a user holds them."""

import threading

import pytest

from raskid.core.hub import RECORD_NAME_CHARS_MAX
from raskid.model.errors import NotAllowed, ValueNotSendable, WaitTimeout
from raskid.protocol.base import VALUE_BYTES_MAX
from raskid.protocol.messages import DeleteRecord, PutRecord
from tests.unit.client.systems import until


def test_reading_and_writing(rk, other):
    mine, theirs = rk.shared("facts"), other.shared("facts")
    mine["a"] = {"n": 1}
    assert mine["a"] == {"n": 1}, "what was written is seen at once"
    theirs.wait(lambda facts: "a" in facts, 5)
    assert (theirs["a"], theirs.owner("a"), len(theirs)) == ({"n": 1}, rk.peer.identity.peer, 1)
    with pytest.raises(NotAllowed):
        theirs["a"] = 2
    mine.put("kept", 1, permanent=True)
    assert mine.owner("kept") == ""
    theirs.wait(lambda facts: len(facts) == 2, 5)
    del theirs["kept"]
    assert dict(theirs) == {"a": {"n": 1}}
    for call in (lambda: theirs["kept"], lambda: theirs.owner("kept"), lambda: theirs.__delitem__("kept")):
        with pytest.raises(KeyError, match="shared list 'facts' has no record 'kept'"):
            call()
    mine.wait(lambda facts: "kept" not in facts, 5)
    assert 5 not in theirs and theirs.version == mine.version == 3


WRONG = {
    "a number as key": (lambda d: d.__setitem__(1, 1), TypeError, "a key of shared list 'wrong' is text, got 1"),
    "None as key": (lambda d: d.__setitem__(None, 1), TypeError, "got None of type NoneType"),
    "a surrogate as key": (lambda d: d.put("\ud800", 1), ValueError, "surrogate pair at place 0"),
    "a key that is too long": (
        lambda d: d.put("k" * (RECORD_NAME_CHARS_MAX + 1), 1), ValueError, "1,025 characters.*limit is 1,024"
    ),
    "a value that is too large": (
        lambda d: d.put("k", bytes(VALUE_BYTES_MAX)), ValueError, "'k' of shared list 'wrong' takes.*limit is 262,144"
    ),
    "a value that cannot be sent": (lambda d: d.put("k", object()), ValueNotSendable, "object"),
    "text as permanent": (lambda d: d.put("k", 1, permanent="yes"), TypeError, "permanent is True or False"),
    "text as a limit": (lambda d: d.put("k", 1, timeout="3"), TypeError, "timeout is a number"),
    "a callback that is none": (lambda d: d.on_change(5), TypeError, "callback is something to call"),
    "a condition that is none": (lambda d: d.wait(5), TypeError, "condition is something to call"),
    "text as a limit of waiting": (lambda d: d.wait(len, "3"), TypeError, "timeout is a number"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named_and_harms_nothing(rk, name):
    call, error, text = WRONG[name]
    shared = rk.shared("wrong")
    with pytest.raises(error, match=text):
        call(shared)
    shared["k" * RECORD_NAME_CHARS_MAX] = bytes(VALUE_BYTES_MAX - 5)
    assert len(shared) == 1


def test_a_hub_that_is_silent_is_told_of(rk, head, monkeypatch):
    shared = rk.shared("silent")
    shared["there"] = 1
    monkeypatch.setattr("raskid.client.shared.PUT_S", 0.05)
    head.mute |= {PutRecord, DeleteRecord}
    try:
        with pytest.raises(WaitTimeout, match=r"the writing of record 'k' of shared list 'silent' within 0\.01 s"):
            shared.put("k", 1, timeout=0.01)
        with pytest.raises(WaitTimeout, match=r"the deletion of record 'there' of shared list 'silent' within 0\.05 s"):
            del shared["there"]
    finally:
        head.mute.clear()


def test_a_condition_that_does_not_come_about(rk):
    with pytest.raises(WaitTimeout, match=r"'never' did not hold within 0\.01 s"):
        rk.shared("never").wait(lambda it: False, 0.01)


def test_each_handle_has_its_own_callbacks_and_end(rk, other):
    """1. Two handles with a callback each. 2. One is closed: its callback is called no more, the other's is, and the
    list is still followed."""
    closed, kept = rk.shared("handles"), rk.shared("handles")
    calls = []
    came = threading.Event()
    closed.on_change(lambda shared, key: calls.append(("closed", key)))

    def callback(shared, key):
        assert shared is kept
        calls.append(("kept", key))
        came.set()

    kept.on_change(callback)
    closed.close()
    closed.close()
    theirs = other.shared("handles")
    theirs["a"] = 1
    assert came.wait(5) and calls == [("kept", "a")] and kept["a"] == 1
    for call in (
        lambda: closed["a"], lambda: closed.put("a", 1), lambda: len(closed), lambda: list(closed),
        lambda: "a" in closed,
        lambda: closed.version, lambda: closed.wait(len), lambda: closed.on_change(print), lambda: closed.owner("a"),
        lambda: closed.__delitem__("a"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"handle on shared list 'handles' was closed; get another: rk\.shared"):
            call()
    assert repr(closed) == "<raskid.SharedDict 'handles': closed>"
    assert repr(kept) == "<raskid.SharedDict 'handles': {'a': 1}>"
    with kept:
        pass
    assert "shared:handles" not in rk.list_callbacks
    theirs.close()
    until(lambda: rk.topics("shared:handles")["shared:handles"]["readers"] == 0)
    again = rk.shared("handles")
    assert again["a"] == 1
