"""What the gateway does in a system for a program: each command, on a session without a system."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from raskid.client import representative as representative_module
from raskid.client.aio import AsyncSession
from raskid.client.commands import BadLine, find_command
from raskid.client.notices import error_facts
from raskid.client.representative import COMMANDS, WRITTEN_MAX, Representative
from raskid.model.errors import NotAllowed, Overflow, RemoteError, SessionClosed, WaitTimeout
from tests.unit.client.represented import FakeSession, FakeTeller


class Stage:
    """A representative, its session, and what it tells."""

    def __init__(self) -> None:
        self.rk = FakeSession()
        self.teller = FakeTeller()
        self.representative = Representative(self.rk, self.teller)  # type: ignore[arg-type]

    async def do(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """Carry out a command, as a line would."""
        command, given = find_command(COMMANDS, {"do": name, **arguments})
        result = command.run(self.representative, given)
        return await result if inspect.iscoroutine(result) else result

    async def events(self) -> list[dict[str, Any]]:
        """What is told once everything has had its turns."""
        for _ in range(10):
            await asyncio.sleep(0)
        return self.teller.take()


def on_stage(body: Callable[[Stage], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that runs in an event loop, and leaves no task behind."""

    def test() -> None:
        async def main() -> None:
            async with asyncio.timeout(10):
                stage = Stage()
                await body(stage)
                for task in stage.representative.tasks:
                    task.cancel()
                await asyncio.gather(*stage.representative.tasks, return_exceptions=True)

        asyncio.run(main())

    test.__doc__ = body.__doc__
    return test


def test_the_fake_has_the_calls_that_the_real_one_has() -> None:
    for name in (
        "publish",
        "subscribe",
        "shared",
        "cell",
        "serve",
        "unserve",
        "request",
        "topics",
        "status",
        "react",
        "reactions",
    ):
        fake = inspect.signature(getattr(FakeSession, name)).parameters
        real = inspect.signature(getattr(AsyncSession, name)).parameters
        for parameter in fake.values():
            assert parameter.name in real or parameter.kind is inspect.Parameter.VAR_KEYWORD


@on_stage
async def test_publish(stage: Stage) -> None:
    assert await stage.do("publish", topic="x", args=[1, {"$bytes": "aGk="}], fields={"topic": 2, "self": 3}) == {}
    assert await stage.do("publish", topic="y") == {}
    assert stage.rk.published == [("x", (1, b"hi"), {"topic": 2, "self": 3}), ("y", (), {})]


@on_stage
async def test_messages(stage: Stage) -> None:
    """1. A topic is subscribed to twice. 2. Messages are told under each name. 3. One that cannot be read is told as an
    error, and the next one comes. 4. What had come before the end of one is told before the end is confirmed."""
    assert await stage.do("subscribe", topic="silent") == {"subscription": "silent", "silent": ["client-asleep"]}
    first = stage.rk.subscriptions["silent"]
    assert (await stage.do("subscribe", **{"topic": "silent", "as": "2", "capacity": 5, "overflow": "latest"}))[
        "subscription"
    ] == "2"
    second = stage.rk.subscriptions["silent"]
    assert (first.options, second.options) == ({}, {"capacity": 5, "overflow": "latest"})
    first.give(1, 2**60, dropped=3)
    told = await stage.events()
    second.give(**{"$int": b"hi"})
    head = {"event": "message", "topic": "silent", "publisher": "client-1"}
    assert told + await stage.events() == [
        {**head, "subscription": "silent", "args": [1, {"$int": str(2**60)}], "fields": {}, "dropped": 3},
        {**head, "subscription": "2", "args": [], "fields": {"$int": {"$bytes": "aGk="}}, "dropped": 0},
    ]
    first.give(body=b"\xc1")
    first.give("next")
    error, message = await stage.events()
    assert (error["event"], error["subscription"], error["error"]) == ("error", "silent", "RemoteProtocolError")
    assert message["args"] == ["next"]
    with pytest.raises(BadLine, match=r"there is a subscription '2' already.*\"as\""):
        await stage.do("subscribe", **{"topic": "other", "as": "2"})
    first.give("last")
    assert await stage.do("unsubscribe", **{"as": "silent"}) == {"dropped": 3}
    assert [event["args"] for event in stage.teller.take()] == [["last"]]
    with pytest.raises(BadLine, match="there is no subscription or reaction 'silent'; known are 2"):
        await stage.do("unsubscribe", **{"as": "silent"})
    # Its name is free again.
    await stage.do("subscribe", topic="silent")


@on_stage
async def test_messages_are_taken_only_as_fast_as_they_are_told(stage: Stage) -> None:
    """1. Nobody reads what is told. 2. Of ten messages one is taken, and the others wait where their policy counts
    them. 3. Somebody reads, and all are told, in order."""
    await stage.do("subscribe", topic="x")
    subscription = stage.rk.subscriptions["x"]
    stage.teller.open.clear()
    for number in range(10):
        subscription.give(number)
    assert await stage.events() == []
    assert subscription.waiting.qsize() == 9
    stage.teller.open.set()
    assert [event["args"] for event in await stage.events()] == [[number] for number in range(10)]


@on_stage
async def test_request(stage: Stage) -> None:
    assert await stage.do("request", service="s", args=[1], fields={"x": 2}, timeout=0.5) == {
        "value": {"args": [1], "x": 2}
    }
    assert stage.rk.requested == [("s", (1,), 0.5, {"x": 2})]
    assert await stage.do("request", service="s", fields={"$int": {"$int": str(2**60)}}) == {
        "value": {"args": [], "$int": {"$int": str(2**60)}}
    }
    with pytest.raises(BadLine, match="'timeout'"):
        await stage.do("request", service="s", fields={"timeout": 1})
    with pytest.raises(RemoteError) as caught:
        await stage.do("request", service="fails")
    assert error_facts(caught.value) == {"error": "RemoteError", "text": "ValueError: no", "kind": "ValueError"}


@on_stage
async def test_serving(stage: Stage) -> None:
    """1. A service is announced. 2. A request is told, and waits. 3. The program answers it. 4. It answers the next
    one with an error of its own. 5. One that was answered is open no longer."""
    await stage.do("serve", service="add")
    with pytest.raises(BadLine, match="'add' is served here already"):
        await stage.do("serve", service="add")
    handler = stage.rk.handlers["add"]
    one = asyncio.create_task(handler(1, 2, self=b"", service=3))
    two = asyncio.create_task(handler())
    assert await stage.events() == [
        {"event": "request", "service": "add", "request": 1, "args": [1, 2],
         "fields": {"self": {"$bytes": ""}, "service": 3}},
        {"event": "request", "service": "add", "request": 2, "args": [], "fields": {}},
    ]  # fmt: skip
    assert await stage.do("reply", request=1, value={"$complex": [1, 2]}) == {}
    with pytest.raises(BadLine, match="request 1 is not open"):
        await stage.do("reply", request=1, value=None)
    assert await one == 1 + 2j
    await stage.do("reply", request=2, error="OutOfInk", text="no paper either")
    with pytest.raises(Exception, match="no paper either") as caught:
        await two
    assert type(caught.value).__name__ == "OutOfInk"
    await stage.do("unserve", service="add")
    assert stage.rk.handlers == {}
    with pytest.raises(BadLine, match="'add' is not served here"):
        await stage.do("unserve", service="add")


@pytest.mark.parametrize(
    "reply",
    [
        {"request": 1}, {"request": 1, "value": 1, "error": "E"}, {"request": 1, "value": 1, "text": "x"},
        {"request": 2, "value": 1}, {"request": "1", "value": 1}, {"request": True, "value": 1},
        {"request": [1], "value": 1}, {"request": 1, "error": ""}, {"request": 1, "error": "a\0b"},
        {"request": 1, "error": "E" * 201},
    ],
)  # fmt: skip
def test_replies_that_are_none_leave_the_request_open(reply: dict[str, Any]) -> None:
    @on_stage
    async def body(stage: Stage) -> None:
        await stage.do("serve", service="s")
        asked = asyncio.create_task(stage.rk.handlers["s"]())
        await stage.events()
        with pytest.raises(BadLine):
            await stage.do("reply", **reply)
        await stage.do("reply", request=1, value="right")
        assert await asked == "right"

    body()


@on_stage
async def test_a_request_that_its_caller_gives_up(stage: Stage) -> None:
    """The program is told, if it knows of the request at all."""
    await stage.do("serve", service="s")
    asked = asyncio.create_task(stage.rk.handlers["s"]())
    await stage.events()
    asked.cancel()
    assert await stage.events() == [{"event": "cancelled", "service": "s", "request": 1}]
    with pytest.raises(BadLine, match="its caller gave up"):
        await stage.do("reply", request=1, value=1)
    stage.teller.open.clear()
    asked = asyncio.create_task(stage.rk.handlers["s"]())
    await stage.events()
    asked.cancel()
    await asyncio.wait([asked])
    stage.teller.open.set()
    assert await stage.events() == []


@on_stage
async def test_too_many_requests_are_refused(stage: Stage) -> None:
    await stage.do("serve", service="s")
    handler = stage.rk.handlers["s"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(representative_module, "REQUESTS_MAX", 2)
        asked = [asyncio.create_task(handler()) for _ in range(2)]
        await stage.events()
        with pytest.raises(Overflow, match="takes no more"):
            await handler()
    stage.representative.refuse_requests()
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(outcome, SessionClosed)
    with pytest.raises(SessionClosed, match="its input has ended"):
        await handler()


@on_stage
async def test_shared_lists(stage: Stage) -> None:
    """1. The records come with the answer, and later changes as events. 2. A record is written and removed. 3. The
    whole list may be read anew. 4. Nothing is told once it is followed no longer."""
    stage.rk.records["s"] = {"$int": b"hi", "b": 2}
    assert await stage.do("shared", name="s") == {"records": {"$int": {"$bytes": "aGk="}, "b": 2}}
    records = stage.rk.lists["s"]
    with pytest.raises(BadLine, match="followed already"):
        await stage.do("shared", name="s")
    records.changed("c", [3])
    records.changed("b", deleted=True)
    change = {"event": "change", "list": "s"}
    assert await stage.events() == [
        {**change, "key": "c", "value": [3], "deleted": False},
        {**change, "key": "b", "deleted": True},
    ]
    assert await stage.do("put", name="s", key="d", value={"$int": "9"}, permanent=True) == {}
    assert await stage.do("delete", name="s", key="c") == {}
    assert stage.rk.lists["s"] is records and records.writes == [("d", 9, True)]
    assert [(event["key"], event["deleted"]) for event in await stage.events()] == [("d", False), ("c", True)]
    with pytest.raises(KeyError) as caught:
        await stage.do("delete", name="s", key="c")
    assert error_facts(caught.value)["text"] == "shared list 's' has no record 'c'"
    with pytest.raises(NotAllowed):
        await stage.do("put", name="s", key="another's", value=1)
    records.changed("d", 10)
    records.changed(None)
    records.changed("d", 11)
    assert await stage.events() == [{"event": "records", "list": "s", "records": {"$int": {"$bytes": "aGk="}, "d": 11}}]
    records.changed("e", 1)
    await stage.do("unshared", name="s")
    assert [event["key"] for event in stage.teller.take()] == ["e"]
    assert records.closed
    with pytest.raises(BadLine, match="'s' is not followed"):
        await stage.do("unshared", name="s")


@on_stage
async def test_changes_that_nobody_reads_do_not_pile_up(stage: Stage) -> None:
    """1. Nobody reads. 2. Two records change a thousand times. 3. Somebody reads: the last value of each is told."""
    await stage.do("shared", name="s")
    records = stage.rk.lists["s"]
    stage.teller.open.clear()
    await stage.events()
    for number in range(1000):
        records.changed("a" if number % 2 else "b", number)
    assert await stage.events() == []
    stage.teller.open.set()
    assert [(event["key"], event["value"]) for event in await stage.events()] == [("b", 998), ("a", 999)]


@on_stage
async def test_lists_that_are_only_written_are_followed_for_a_while(stage: Stage) -> None:
    await stage.do("put", name="0", key="k", value=0)
    await stage.do("put", name="1", key="k", value=0)
    first, second = stage.rk.lists["0"], stage.rk.lists["1"]
    await stage.do("put", name="0", key="k", value=1)
    assert stage.rk.lists["0"] is first
    for number in range(2, WRITTEN_MAX + 1):
        await stage.do("put", name=str(number), key="k", value=0)
    # Of those at hand it was used longest ago.
    assert second.closed and not first.closed
    assert await stage.representative.end() == []
    assert all(records.closed for records in stage.rk.lists.values())
    assert await stage.events() == []


@on_stage
async def test_cells(stage: Stage) -> None:
    """1. The value that a cell has is told, and those that come. 2. Nothing is told of one that is only written."""
    assert await stage.do("cell", name="has a value") == {}
    assert await stage.events() == [{"event": "value", "cell": "has a value", "value": "has a value"}]
    with pytest.raises(BadLine, match="followed already"):
        await stage.do("cell", name="has a value")
    await stage.do("set", name="has a value", value={"$int": "5"})
    assert await stage.events() == [{"event": "value", "cell": "has a value", "value": 5}]
    await stage.do("set", name="written", value=None)
    await stage.do("set", name="written", value=1)
    assert stage.rk.cells["written"].written == [None, 1]
    await stage.do("set", name="has a value", value="last")
    assert await stage.do("uncell", name="has a value") == {"dropped": 0}
    assert [event["value"] for event in stage.teller.take()] == ["last"]
    with pytest.raises(BadLine, match="the cell 'has a value' is not followed"):
        await stage.do("uncell", name="has a value")
    await stage.do("cell", name="has a value")
    assert await stage.representative.end() == []
    assert all(cell.closed for cell in stage.rk.cells.values())


@on_stage
async def test_the_system(stage: Stage) -> None:
    assert await stage.do("topics", prefix="shared:") == {
        "topics": {"shared:x": {"version": 1, "records": 2, "readers": 3}}
    }
    assert await stage.do("topics") == {"topics": {"x": {"version": 1, "records": 2, "readers": 3}}}
    assert await stage.do("status") == {"peer": "client-7", "status": {"tasks": {}, "large": {"$int": str(2**60)}}}


@on_stage
async def test_the_end_tells_what_is_left(stage: Stage) -> None:
    await stage.do("subscribe", topic="x")
    await stage.do("subscribe", topic="unconfirmed")
    await stage.do("shared", name="s")
    for topic in ("x", "unconfirmed"):
        stage.rk.subscriptions[topic].give(topic)
    stage.rk.lists["s"].changed("k", 1)
    (error,) = await stage.representative.end()
    assert isinstance(error, WaitTimeout)
    told = [event.get("key") or event["topic"] for event in stage.teller.take()]
    assert sorted(told) == ["k", "unconfirmed", "x"]
    assert stage.rk.lists["s"].closed and stage.representative.tasks == []
