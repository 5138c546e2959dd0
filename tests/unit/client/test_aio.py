"""The asynchronous face, over a real head. What it does with tasks is tested with real runners."""

import asyncio
import inspect
import threading
from concurrent.futures import CancelledError

import pytest

from raskid.client.aio import AsyncSession, AsyncSharedDict
from raskid.client.futures import Future
from raskid.client.mapping import MapResult
from raskid.client.session import Session
from raskid.client.shared import SharedDict
from raskid.core import hub as hub_module
from raskid.model.errors import NoSuchService, Overflow, RemoteError, SessionClosed, TopicNameError, WaitTimeout
from raskid.protocol.messages import DeleteRecord, ListTopics, PutRecord, Watch
from raskid.services.calling import dump
from tests.unit.client.systems import TOKEN, system


@pytest.fixture(scope="module")
def head():
    with system() as head:
        yield head


@pytest.fixture
def mute(head):
    yield head.mute.update
    head.mute.clear()


def run(head, body, sessions=1, limit=10.0):
    """Run `body(session, …)` in a loop, with sessions that the loop drives."""

    async def main():
        async with asyncio.timeout(limit), Sessions(head, sessions) as found:
            await body(*found)

    asyncio.run(main())


class Sessions:
    def __init__(self, head, count):
        self.sessions = [head.session() for _ in range(count)]

    async def __aenter__(self):
        return [await session.__aenter__() for session in self.sessions]

    async def __aexit__(self, *error):
        for session in reversed(self.sessions):
            await session.__aexit__(*error)


def public(kind):
    return {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")}


def test_it_has_every_call_of_a_session():
    for_users = {
        "submit", "map", "gather", "cancel", "publish", "subscribe", "shared", "channel", "cell",
        "when_all", "topics", "serve", "unserve", "request",
        "status", "runners", "wait_runners", "counters", "end_system", "close",
        "start_service", "stop_service", "services", "op", "react", "link", "reaction", "reactions",
    }  # fmt: skip
    assert for_users <= public(Session)
    assert for_users == public(AsyncSession)
    assert {"put", "wait", "on_change", "owner", "cell", "close"} <= public(SharedDict) & public(AsyncSharedDict)


def test_messages(head):
    async def body(here, there):
        async with await there.subscribe("async") as messages:
            for value in range(100):
                await here.publish("async", value)
            assert [(await anext(messages)).value for _ in range(100)] == list(range(100))
            assert (await here.topics("reactions:async"))["reactions:async"]["records"] == 1
        await here.publish("unheard", lambda: 1 / 0)

    run(head, body, 2)


def test_a_full_subscription_makes_publishers_wait_up_to_the_limit(head, monkeypatch):
    """1. A message fills the reader. 2. A coroutine waits. 3. The limit of another is short: its message is left out.
    4. The first goes on when the reader takes one."""

    async def body(here, there):
        messages = await there.subscribe("full", capacity=1)
        await here.publish("full", "fills")
        patient = asyncio.create_task(here.publish("full", "patient"))
        while not here.session._rooms:
            await asyncio.sleep(0)
        monkeypatch.setattr("raskid.client.topics.BLOCK_S", 0.05)
        with pytest.raises(Overflow, match="'full' was not taken"):
            await here.publish("full", "impatient")
        assert not patient.done()
        assert [(await anext(messages)).value for _ in range(2)] == ["fills", "patient"]
        await patient
        assert not here.session._rooms

    run(head, body, 2)


def test_another_thread_may_block_while_the_loop_drives(head):
    async def body(here, there):
        messages = await there.subscribe("threads", capacity=1)
        publish = asyncio.create_task(
            asyncio.to_thread(lambda: [here.session.publish("threads", number) for number in range(20)])
        )
        assert [(await anext(messages)).value for _ in range(20)] == list(range(20))
        await publish

    run(head, body, 2)


def test_what_the_hub_leaves_unanswered_is_told(head, mute, monkeypatch):
    for place in ("topics.FOLLOW_S", "aio.FOLLOW_S", "aio.ANSWER_S", "aio.SERVE_S"):
        monkeypatch.setattr(f"raskid.client.{place}", 0.02)

    async def body(here):
        shared = await here.shared("there")
        await shared.put("k", 1)
        mute([Watch, PutRecord, DeleteRecord, ListTopics])
        for call, text in (
            (here.publish("t", 1), "who reads 't'"),
            (here.subscribe("t", timeout=0), "a subscription to 't'"),
            (here.shared("s"), "the shared list 's'"),
            (here.topics(), "which lists it keeps"),
            (here.serve("s", len), "service 's'"),
            (here.unserve("s"), "the end of service 's'"),
            (shared.put("k", 1, timeout=0.02), "the writing of record 'k'"),
        ):
            with pytest.raises(WaitTimeout, match=text):
                await call
        session = here.session
        assert not session._handlers and not session.subscriptions and not session._following.get("shared:s")

    run(head, body)


def test_what_the_hub_refuses_is_raised(head, monkeypatch):
    async def body(here):
        monkeypatch.setattr(hub_module, "LISTS_MAX", len(head.hub._lists))
        for call in (here.publish("one/more", 1), here.shared("one/more"), here.subscribe("one/more")):
            with pytest.raises(Overflow):
                await call
        with pytest.raises(TopicNameError):
            await here.publish(5)
        assert not here.session.subscriptions

    run(head, body)


def test_requests(head):
    async def body(here, there):
        async def triple(value):
            await asyncio.sleep(0)
            return 3 * value

        async def through(value):
            return await there.request("triple", value)

        await there.serve("triple", triple)
        await there.serve("through", through)
        assert await asyncio.gather(*(here.request("through", n) for n in range(20))) == [3 * n for n in range(20)]
        with pytest.raises(RemoteError):
            await here.request("triple")
        await there.unserve("triple")
        with pytest.raises(NoSuchService):
            await here.request("triple", 1, timeout=0.02)

    run(head, body, 2)


def test_cancelling_the_coroutine_that_asks_cancels_the_one_that_answers(head):
    async def body(here, there):
        started, ended = asyncio.Event(), asyncio.Event()

        async def handler():
            started.set()
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        await there.serve("long", handler)
        asking = asyncio.create_task(here.request("long", timeout=60))
        await started.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await ended.wait()
        assert not here.session._requests

    run(head, body, 2)


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError()])
def test_what_ends_a_handler_does_not_end_the_loop(head, error):
    async def body(here, there):
        async def coroutine():
            raise error

        def function():
            raise error

        for handler in (coroutine, function):
            await there.serve("ends", handler)
            with pytest.raises(RemoteError) as caught:
                await here.request("ends")
            assert caught.value.kind == type(error).__name__

    run(head, body, 2)


def test_shared_dictionaries(head):
    async def body(here, there):
        mine, theirs = await here.shared("async"), await there.shared("async")
        keys = []

        async def changed(shared, key):
            await asyncio.sleep(0)
            assert shared is theirs
            keys.append(key)

        theirs.on_change(changed)
        await mine.put("a", {"n": 1})
        assert mine["a"] == {"n": 1} and mine.owner("a") == here.session.peer.identity.peer
        await theirs.wait(lambda shared: "a" in shared, 5)
        assert dict(theirs) == {"a": {"n": 1}} and len(theirs) == 1 and theirs.version == mine.version
        assert repr(theirs) == "<raskid.AsyncSharedDict 'async': {'a': {'n': 1}}>" and theirs.name == "async"
        waiting = asyncio.create_task(theirs.wait(lambda shared: "a" not in shared))
        await asyncio.sleep(0)
        await mine.delete("a")
        await waiting
        while len(keys) < 2:
            await asyncio.sleep(0)
        assert keys == ["a", "a"]
        with pytest.raises(KeyError):
            await mine.delete("a")
        with pytest.raises(TypeError):
            await mine.put(1, 1)
        with pytest.raises(WaitTimeout, match="'async' did not hold"):
            await mine.wait(lambda shared: False, 0.01)
        async with mine:
            pass
        with pytest.raises(ValueError, match="was closed"):
            await mine.put("a", 1)

    run(head, body, 2)


def test_the_end_of_the_session_frees_who_waits(head):
    async def body(here):
        shared = await here.shared("ending")
        messages = await here.subscribe("ending")
        waiting = asyncio.create_task(shared.wait(lambda it: False))
        reading = asyncio.create_task(anext(messages, "the end"))
        await asyncio.sleep(0)
        await here.close()
        with pytest.raises(SessionClosed):
            await waiting
        assert await reading == "the end"
        with pytest.raises(SessionClosed):
            await here.publish("ending", 1)
        assert "closed" in repr(here)
        await here.close()

    run(head, body)


def test_leaving_does_not_stop_the_loop(head):
    """1. A session ends, and what it does at its end takes until the loop says so. 2. The loop goes on and says so."""

    async def main():
        ended = threading.Event()
        session = Session(head.address, TOKEN, on_close=lambda: ended.wait(5))
        async with asyncio.timeout(5):
            await session.__aenter__()
            asyncio.get_running_loop().call_later(0.01, ended.set)
            await session.__aexit__(None, None, None)
        assert ended.is_set()

    asyncio.run(main())


def test_the_system(head):
    async def body(here):
        assert here.url == here.session.url
        assert (await here.status())["runners"] == [] == await here.runners()
        await here.wait_runners(0)
        with pytest.raises(WaitTimeout, match=r"0 of 1 runners are ready after 0\.05 s"):
            await here.wait_runners(1, 0.05)
        with pytest.raises(TypeError, match="count is a whole number"):
            await here.wait_runners("1")
        assert here.counters()["messages_sent"] > 0
        assert repr(here).startswith("<raskid.AsyncSession of <raskid.Session client-")

    run(head, body)


def test_futures_and_maps_are_awaited_without_looking_again_and_again(head):
    async def body(here):
        engine = here.session.engine
        future, failed, result = Future(engine), Future(engine), MapResult(engine, 2)
        for at in range(2):
            result.chunk_of(at, at, 1)
        gathering = asyncio.create_task(here.gather([future, 5]))
        mapping = asyncio.create_task(here.gather(result))

        def finish():
            with engine.lock:
                future.resolve_with(1)
                failed.fail_with(ValueError("no"))
                for at in range(2):
                    result.chunk_done(at, True, dump(([at * at], {})))

        await asyncio.sleep(0)
        with pytest.raises(WaitTimeout, match=r"within 0\.01 s"):
            await here.gather([future], 0.01)
        await asyncio.to_thread(finish)
        assert await gathering == [1, 5]
        assert await mapping == [0, 1]
        assert await here.gather(result) == [0, 1]
        with pytest.raises(ValueError, match="no"):
            await here.gather([future, failed])
        cancelled = Future(engine)
        cancelled.fail_with(CancelledError())
        with pytest.raises(CancelledError):
            await here.gather([cancelled])
        # Their tasks are not the manager's.
        here.session.engine.on_release = lambda tasks: None

    run(head, body)
