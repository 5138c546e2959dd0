"""What the gateway does for a program that subscribes and reacts, on a session without a system."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from raskid.client.commands import BadLine
from raskid.client.handles import FAILURES_KEPT, Failure
from raskid.client.messages import Message
from raskid.model.errors import NotAllowed
from raskid.model.ids import PeerId
from raskid.model.operations import Operation
from raskid.protocol.values import encode_body
from tests.unit.client.test_representative import Stage, on_stage


def failure(number: int = 1, suspends: bool = False) -> Failure:
    message = Message("t", PeerId("client-1"), 0, encode_body((number,), {}))
    return Failure("client-1", 0, "TypeError", "wrong", message, number, suspends)


@on_stage
async def test_options_of_subscriptions(stage: Stage) -> None:
    """They reach the session as they are; what it does not look at itself is looked at before."""
    options: dict[str, Any] = {
        "capacity": 5, "overflow": "latest", "timeout": 1.5, "pull": True, "history": -1, "fields": ["a"],
        "numbered": True, "one_of": "c", "choose_by": "by_value", "ack": True, "value": {"$int": "7"},
    }  # fmt: skip
    await stage.do("subscribe", topic="x", **options)
    assert stage.rk.subscriptions["x"].options == {**options, "value": 7}
    for wrong in ({"pull": 1}, {"ack": "yes"}, {"numbered": None}, {"fields": "a"}, {"fields": [1]}):
        with pytest.raises(BadLine, match=next(iter(wrong))):
            await stage.do("subscribe", topic="y", **wrong)


@on_stage
async def test_messages_are_acknowledged_when_the_program_says_so(stage: Stage) -> None:
    """1. Three messages are told, although none was acknowledged. 2. The program is through with one. 3. It cannot be
    so twice, nor with what never came, nor in a subscription without this. 4. It unsubscribes: of what had come
    meanwhile nothing is told, since that is for others."""
    await stage.do("subscribe", topic="x", one_of="c", ack=True)
    subscription = stage.rk.subscriptions["x"]
    for number in (1, 2, 3):
        subscription.give(number, number=number, again=number == 3)
    told = await stage.events()
    assert [(event["number"], event["again"]) for event in told] == [(1, False), (2, False), (3, True)]
    assert await stage.do("done", **{"as": "x", "publisher": "client-1", "number": 2}) == {}
    assert subscription.open == {("client-1", 1), ("client-1", 3)}
    for number in (2, 4):
        with pytest.raises(BadLine, match=f"message {number} of 'client-1' is not open in 'x'"):
            await stage.do("done", **{"as": "x", "publisher": "client-1", "number": number})
    await stage.do("subscribe", topic="y")
    with pytest.raises(BadLine, match="'y' are not acknowledged"):
        await stage.do("done", **{"as": "y", "publisher": "client-1", "number": 1})
    subscription.give(4, number=4)
    await stage.do("unsubscribe", **{"as": "x"})
    assert await stage.events() == []
    with pytest.raises(BadLine, match="no subscription or reaction 'x'; known are y"):
        await stage.do("done", **{"as": "x", "publisher": "client-1", "number": 1})


@on_stage
async def test_a_message_for_each_time_that_one_is_asked_for(stage: Stage) -> None:
    """1. Nothing is taken before the program asks. 2. It asks for one, and for two. 3. It unsubscribes while it waits
    for more: what had come is told, and that was all."""
    await stage.do("subscribe", topic="x", pull=True)
    subscription = stage.rk.subscriptions["x"]
    for number in range(3):
        subscription.give(number)
    assert await stage.events() == [] and subscription.waiting.qsize() == 3
    assert await stage.do("ask", **{"as": "x"}) == {}
    assert [event["args"] for event in await stage.events()] == [[0]]
    await stage.do("ask", **{"as": "x", "count": 4})
    assert [event["args"] for event in await stage.events()] == [[1], [2]]
    subscription.give(3)
    await stage.do("unsubscribe", **{"as": "x"})
    assert [event["args"] for event in stage.teller.take()] == [[3]]
    await stage.do("subscribe", topic="y", pull=True)
    assert await stage.do("unsubscribe", **{"as": "y"}) == {"dropped": 0}
    await stage.do("subscribe", topic="z")
    with pytest.raises(BadLine, match="'z' come unasked"):
        await stage.do("ask", **{"as": "z"})
    with pytest.raises(BadLine, match="'count' is a whole number"):
        await stage.do("ask", **{"as": "z", "count": 0})


@on_stage
async def test_reactions(stage: Stage) -> None:
    """1. A reaction is installed with its operations and options. 2. What it delivers is told under its name. 3. Names
    are those of subscriptions, too. 4. What had come before its end is told before the end is confirmed."""
    given = {"operations": [["filter", [["n", ">", 1]]], ["deliver"]], "as": "r", "priority": 3, "value": {"$int": "1"}}
    assert await stage.do("react", topic="x", capacity=9, seconds=1, **given) == {"reaction": "r", "silent": []}
    (handle,) = stage.rk.reacted
    assert handle.operations == [Operation("filter", (["n", ">", 1],)), Operation("deliver")]
    assert handle.options == {"priority": 3, "value": 1, "seconds": 1, "capacity": 9}
    assert handle.subscription is not None
    handle.subscription.give(n=2)
    (event,) = await stage.events()
    assert (event["event"], event["subscription"], event["fields"]) == ("message", "r", {"n": 2})
    with pytest.raises(BadLine, match="there is a reaction 'r' already"):
        await stage.do("subscribe", **{"topic": "y", "as": "r"})
    await stage.do("subscribe", topic="y")
    with pytest.raises(BadLine, match="there is a subscription 'y' already"):
        await stage.do("react", topic="y", operations=[["deliver"]])
    for command in ("suspend", "resume"):
        with pytest.raises(BadLine, match="'y' is a subscription and no reaction"):
            await stage.do(command, **{"as": "y"})
    await stage.do("suspend", **{"as": "r"})
    await stage.do("suspend", **{"as": "r", "why": "lunch"})
    await stage.do("resume", **{"as": "r"})
    handle.subscription.give(n=3)
    assert await stage.do("unsubscribe", **{"as": "r"}) == {"dropped": 0}
    assert [event["fields"] for event in stage.teller.take()] == [{"n": 3}]
    assert handle.state == ["suspended by its owner", "suspended lunch", "resumed", "closed"]
    assert await stage.do("reactions", topic="x") == {"reactions": [{"id": "x", "value": {"$bytes": "aGk="}}]}


@on_stage
async def test_failures_are_told(stage: Stage) -> None:
    """1. A reaction that delivers nothing fails. 2. Nobody reads, and it fails often: the last times are told, which
    say how often it was. 3. One comes just before its end, and is told before that is confirmed."""
    await stage.do("react", topic="x", operations=[["check", [], {"type": "int"}], ["forward", ["y"]]])
    (handle,) = stage.rk.reacted
    handle.on_error(failure())
    assert [(event["event"], event["reaction"], event["message"]) for event in await stage.events()] == [
        ("failure", "x", {"args": [1], "fields": {}})
    ]
    stage.teller.open.clear()
    for number in range(2, 100):
        handle.on_error(failure(number, number == 99))
    assert await stage.events() == []
    stage.teller.open.set()
    told = await stage.events()
    assert [event["failures"] for event in told] == list(range(100 - FAILURES_KEPT, 100))
    assert [event["suspended"] for event in told[-2:]] == [False, True]
    handle.on_error(failure(100))
    assert await stage.do("unsubscribe", **{"as": "x"}) == {"dropped": 0}
    assert [event["failures"] for event in stage.teller.take()] == [100]


@on_stage
async def test_what_cannot_be_installed_is_forgotten(stage: Stage) -> None:
    """Its name is free, and nobody is warned of a draft that was never installed."""
    with pytest.raises(ValueError, match="operation"):
        await stage.do("react", topic="x", operations=[["deliver"], ["fitler", []]])
    assert stage.rk.reacted[0].forgotten
    with pytest.raises(BadLine, match="'overflow' of a reaction is one of block, "):
        await stage.do("react", topic="x", operations=[["deliver"]], overflow="pull")
    with pytest.raises(BadLine, match="'react' needs 'operations'"):
        await stage.do("react", topic="x")
    await stage.do("react", topic="x", operations=[["deliver"]])


@on_stage
async def test_code_is_for_those_who_may_execute(stage: Stage) -> None:
    code = [["code", ["0" * 32, "python", "3.11"], {"args": [], "fields": {}, "name": "f"}]]
    stage.rk.role = "message"
    with pytest.raises(NotAllowed, match="a reaction with code"):
        await stage.do("react", topic="x", operations=code)
    assert stage.rk.reacted == []
    stage.rk.role = "execute"
    await stage.do("react", topic="x", operations=code)


@on_stage
async def test_the_end_of_reactions(stage: Stage) -> None:
    """The program has gone: its reactions end, and permanent ones stay."""
    await stage.do("react", topic="x", operations=[["forward", ["y"]]])
    await stage.do("react", topic="z", operations=[["forward", ["y"]]], permanent=True)
    await stage.do("subscribe", topic="pulled", pull=True)
    assert await stage.representative.end() == []
    assert [handle.state for handle in stage.rk.reacted] == [["closed"], []]
    assert stage.representative.tasks == []


@on_stage
async def test_an_end_that_is_cut_short_leaves_nothing_behind(stage: Stage) -> None:
    """1. Nobody reads. 2. A subscription with a message is to end, which waits. 3. That is cancelled."""
    await stage.do("subscribe", topic="x")
    tasks = stage.representative.tasks
    stage.rk.subscriptions["x"].give(1)
    stage.teller.open.clear()
    end = asyncio.create_task(stage.representative.end())
    assert await stage.events() == []
    end.cancel()
    await asyncio.wait([end, *tasks], timeout=5)
    assert all(task.done() for task in tasks)


@on_stage
async def test_permanent_reactions_are_everybodys(stage: Stage) -> None:
    """They are resumed and removed by their topic and id, whoever has installed them."""
    assert await stage.do("resume_reaction", topic="x", reaction="17") == {}
    assert await stage.do("remove_reaction", topic="x", reaction="17") == {}
    assert [(handle.topic, handle.state) for handle in stage.rk.reacted] == [("x", ["resumed"]), ("x", ["closed"])]
    with pytest.raises(LookupError, match="no reaction '18'"):
        await stage.do("remove_reaction", topic="x", reaction="18")
    with pytest.raises(BadLine, match="'reaction' is text"):
        await stage.do("remove_reaction", topic="x", reaction=17)
