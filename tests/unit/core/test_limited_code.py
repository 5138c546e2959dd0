"""Who has no execute role has nothing executed: neither by a record of a reaction, nor by asking a host."""

from __future__ import annotations

import pytest

from raskid.core.effects import RunCode, Send
from raskid.core.events import Announce, PeerJoined, Publish, Received
from raskid.core.lists import Lists
from raskid.core.messaging import Messaging
from raskid.model.ids import CodeId, PeerId, RequestId
from raskid.model.operations import CODE, DELIVER, FORWARD, LANGUAGE, LANGUAGE_VERSION, Operation
from raskid.protocol.messages import (
    Code,
    Deliver,
    HostReaction,
    ListState,
    PeerRef,
    ReactionFailed,
    Record,
)
from raskid.protocol.reactions import AT_HELPER, Reaction, encode_reaction
from raskid.protocol.values import encode_body

HUB = PeerId("head")
OWNER = PeerRef(PeerId("owner"), 1)
OTHER_VERSION = "0.1"


def code(version: str = LANGUAGE_VERSION) -> Operation:
    return Operation(CODE, ("abc", LANGUAGE, version), {})


RECORDS = {
    "an operation": Reaction(OWNER, (code(), Operation(DELIVER))),
    "in a helper": Reaction(OWNER, (code(), Operation(DELIVER)), place=AT_HELPER),
    "of another version": Reaction(OWNER, (code(OTHER_VERSION), Operation(DELIVER))),
    "a clean-up": Reaction(OWNER, (Operation(FORWARD, ("x",)),), cleanup=code()),
}


def published(reaction: Reaction, limited: bool) -> list[object]:
    messaging = Messaging(lists := Lists(HUB))
    messaging.add_code(Code(CodeId("abc"), b"blob"))
    effects: list[object] = [*messaging.handle(Announce("t"), 0.0)]
    state = ListState("reactions:t", 1, [Record("5", encode_reaction(reaction), OWNER.peer, limited)])
    effects += lists.handle(Received(HUB, state), 0.0)
    effects += messaging.handle(Publish("t", encode_body((1,), {})), 0.0)
    messaging.check_invariants()
    return effects


def sent(effects: list[object], kind: type) -> list[object]:
    return [it.message for it in effects if isinstance(it, Send) and isinstance(it.message, kind)]


@pytest.mark.parametrize("reaction", RECORDS.values(), ids=RECORDS)
def test_code_in_a_record_of_a_lower_role_is_refused(reaction: Reaction) -> None:
    effects = published(reaction, limited=True)
    assert not any(isinstance(effect, RunCode) for effect in effects)
    assert not sent(effects, HostReaction) and not sent(effects, Deliver)
    (failed,) = sent(effects, ReactionFailed)
    assert "execute" in failed.text  # type: ignore[attr-defined]


def test_the_same_record_of_an_execute_role_runs() -> None:
    effects = published(RECORDS["an operation"], limited=False)
    assert any(isinstance(effect, RunCode) for effect in effects)


@pytest.mark.parametrize(("role", "runs"), [("message", False), ("execute", True)])
def test_a_host_runs_no_code_for_a_publisher_of_a_lower_role(role: str, runs: bool) -> None:
    publisher = PeerId("publisher")
    messaging = Messaging(Lists(HUB))
    messaging.add_code(Code(CodeId("abc"), b"blob"))
    messaging.handle(PeerJoined(publisher, 1, "client", role), 0.0)
    record = encode_reaction(RECORDS["in a helper"])
    effects: list[object] = [
        *messaging.handle(Received(publisher, HostReaction(RequestId(-5), "t", record)), 0.0),
        *messaging.handle(Received(publisher, Deliver(RequestId(-5), "t", [encode_body((1,), {})])), 0.0),
    ]
    assert any(isinstance(effect, RunCode) for effect in effects) == runs
    assert bool(sent(effects, ReactionFailed)) != runs
