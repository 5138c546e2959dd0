"""Channels as a user holds them, over a real head."""

import asyncio
import threading

import numpy
import pytest

from raskid.client.channels import AsyncChannel
from raskid.client.session import Session
from raskid.model.errors import (
    NotAllowed,
    Overflow,
    SessionClosed,
    TopicNameError,
    ValueNotSendable,
    WaitTimeout,
    WrongThread,
)
from raskid.protocol.messages import DeleteRecord, PutRecord, Watch
from raskid.protocol.tokens import derive
from raskid.protocol.values import encode_value
from tests.unit.client.systems import TOKEN, until


@pytest.fixture
def mute(head):
    yield head.mute.update
    head.mute.clear()


def run(head, body, limit=10.0):
    """Run `body(here, there)` in a loop that drives both sessions."""

    async def main():
        here, there = head.session(), head.session()
        async with asyncio.timeout(limit), here as first, there as second:
            await body(first, second)

    asyncio.run(main())


def readers(rk, name):
    """How many reactions there are to a topic."""
    return rk.topics(f"reactions:{name}").get(f"reactions:{name}", {"records": 0})["records"]


def test_values_go_to_every_reader_in_order(rk, other):
    with (
        rk.channel("plain") as mine,
        other.channel("plain").listen() as theirs,
        other.channel("plain").listen() as more,
    ):
        for value in (1, "two", [3], None, {"a": 4}, {"b": {}}, lambda: {"c": 5}):
            mine.put(value)
        want = [1, "two", [3], None, {"a": 4}, {"b": {}}, {"c": 5}]
        assert [theirs.get(5) for _ in want] == want
        assert [next(more) for _ in want] == want
        mine.put(numpy.arange(3.0))
        assert theirs.get(5).tolist() == [0, 1, 2]
        assert mine.topic == mine.name == "plain"


def test_a_handle_that_is_not_read_is_no_reader_and_what_nobody_reads_is_not_made(rk):
    with rk.channel("unheard", type=int) as channel:
        for _ in range(3):
            channel.put(lambda: 1 / 0)
            channel.put("is not looked at either")
        assert readers(rk, "unheard") == 0 and rk.counters()["messages_early_dropped"] == 0
        assert repr(channel) == "<raskid.Channel 'unheard': written only>"
        channel.listen()
        assert readers(rk, "unheard") == 1 and "read" in repr(channel)
        with pytest.raises(ZeroDivisionError):
            channel.put(lambda: 1 / 0)
    assert readers(rk, "unheard") == 0 and repr(channel) == "<raskid.Channel 'unheard': closed>"
    until(lambda: rk.topics("channels:unheard")["channels:unheard"]["readers"] == 0)


def test_reading_begins_with_a_loop_and_ends_with_close(rk, other):
    channel = rk.channel("loops")
    seen = []

    def read():
        for value in channel:
            seen.append(value)

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: readers(other, "loops"))
    writer = other.channel("loops")
    for number in range(3):
        writer.put(number)
    until(lambda: len(seen) == 3)
    channel.close()
    reader.join(5)
    assert not reader.is_alive() and seen == [0, 1, 2]


def test_callbacks(rk, other):
    seen = []
    channel = rk.channel("called", type=int)

    async def later(value):
        await asyncio.sleep(0)
        seen.append(("later", value))

    channel.on_value(lambda value: seen.append(("now", value)))
    channel.on_value(later)
    for value in (1, "wrong", 2):
        other.publish("called", value)
    until(lambda: len(seen) == 4)
    assert [value for kind, value in seen if kind == "now"] == [1, 2]
    assert [value for kind, value in seen if kind == "later"] == [1, 2]
    assert channel.rejected == 2, "each of the two looked at it"
    channel.close()
    other.publish("called", 3)
    assert readers(rk, "called") == 0 and len(seen) == 4


# ── declarations ──


def test_type_and_range_are_checked_before_a_value_is_sent(rk, other):
    with rk.channel("checked", type=float, min=0, max=1).listen() as channel, other.channel("checked") as undeclared:
        for writer in (channel, undeclared):
            writer.put(0.5)
            for value, error in (("x", TypeError), (True, TypeError), (1.5, ValueError), (float("nan"), ValueError)):
                with pytest.raises(error, match="channel 'checked' takes no such value: the value is declared"):
                    writer.put(value)
                with pytest.raises(error):
                    writer.put(lambda value=value: value)
        assert [channel.get(5), channel.get(5)] == [0.5, 0.5]
        with pytest.raises(WaitTimeout, match=r"no value on channel 'checked' within 0\.01 s"):
            channel.get(0.01)


def test_what_comes_from_those_who_know_no_declaration_is_left_out(rk, other, capsys):
    with rk.channel("foreign", type=int).listen() as channel:
        for args, fields in ((("x",), {}), ((), {}), ((1, 2), {}), ((1,), {"named": 2}), ((7,), {})):
            other.publish("foreign", *args, **fields)
        assert channel.get(5) == 7 and channel.rejected == 4
        with pytest.raises(WaitTimeout):
            channel.get(0.01)
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and "a value on channel 'foreign' does not fit" in errors


def test_declarations_must_agree(rk, other):
    first = rk.channel("agreed", int, 0, 9)
    with pytest.raises(
        ValueError, match=r"'agreed' was declared with type='int', min=0, max=9, and this .* type='str'"
    ):
        other.channel("agreed", type="str")
    for same in (other.channel("agreed", "int", 0.0, 9), other.channel("agreed"), rk.channel("agreed", int, 0, 9)):
        same.close()
    first.close()
    assert rk.topics("channels:agreed")["channels:agreed"]["records"] == 1, "it outlives who declared it"
    with pytest.raises(ValueError, match="was declared with"):
        other.channel("agreed", type=float)


def test_of_two_that_declare_at_once_one_hears_of_it_when_it_writes(rk, other):
    """1. A declares. 2. B, which had looked before, declares something else. 3. A's next value is refused."""
    a = rk.channel("at once", type=int).listen()
    text = encode_value({"type": "str"})
    other.ask(PutRecord(other.request_id(), "channels:at once", "value", text, True)).result(5)
    until(lambda: str(a._gate.standing) == "type='str'")
    with pytest.raises(ValueError, match="'at once' was declared with type='str', and this handle declares type='int'"):
        a.put(1)


def test_a_declaration_made_later_holds_for_all(rk, other):
    early = rk.channel("later").listen()
    early.put("anything")
    other.channel("later", type=int)
    until(lambda: early._gate.standing is not None)
    with pytest.raises(TypeError):
        early.put("anything")


# ── what a user may do wrong ──

WRONG = {
    "no text as name": (lambda rk: rk.channel(5), TopicNameError, "a topic's name is text"),
    "a reserved name": (lambda rk: rk.channel("@here"), TopicNameError, "reserved"),
    "an unknown type": (lambda rk: rk.channel("w", type="flaot"), ValueError, "this declares nothing"),
    "no number as range": (lambda rk: rk.channel("w", type=int, min="0"), TypeError, "min"),
    "no capacity": (lambda rk: rk.channel("w", capacity=0), ValueError, "capacity is a whole number from 1"),
    "an unknown policy": (lambda rk: rk.channel("w", overflow="wait"), ValueError, "overflow is one of block"),
    "no unhashable policy": (lambda rk: rk.channel("w", overflow=[]), ValueError, "overflow is one of block"),
    "text as a limit": (lambda rk: rk.channel("w").get("3"), TypeError, "timeout is a number"),
    "a callback that is none": (lambda rk: rk.channel("w").on_value(5), TypeError, "callback is something to call"),
    "what cannot be sent": (lambda rk: rk.channel("w").listen().put(object()), ValueNotSendable, "object"),
    "a function of a function": (lambda rk: rk.channel("w").listen().put(lambda: abs), ValueNotSendable, "function"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named_and_harms_nothing(rk, name):
    call, error, text = WRONG[name]
    with pytest.raises(error, match=text):
        call(rk)
    with rk.channel("right").listen() as channel:
        channel.put(1)
        assert channel.get(5) == 1


def test_a_closed_handle_says_so_and_leaves_others_alone(rk):
    closed, kept = rk.channel("twice").listen(), rk.channel("twice").listen()
    closed.close()
    closed.close()
    for call in (
        lambda: closed.put(1), lambda: closed.get(0), lambda: iter(closed), closed.listen,
        lambda: closed.on_value(print), lambda: asyncio.run(closed.next()),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"handle on channel 'twice' was closed; get another: rk\.channel"):
            call()
    kept.put(1)
    assert kept.get(5) == 1


def test_a_full_reader_holds_its_writer_up_or_leaves_values_out(rk, other, monkeypatch):
    monkeypatch.setattr("raskid.client.topics.BLOCK_S", 0.02)
    with rk.channel("full", capacity=1).listen(), other.channel("full") as writer:
        writer.put(1)
        with pytest.raises(Overflow, match="'full' was not taken"):
            writer.put(2)
    with rk.channel("fresh", capacity=1, overflow="latest").listen() as reader, other.channel("fresh") as writer:
        for number in range(20):
            writer.put(number)
        got = [reader.get(5)]
        while got[-1] != 19:
            got.append(reader.get(5))
        assert len(got) + reader.dropped == 20


def test_a_viewer_may_not_open_what_it_would_change(head):
    token = derive(TOKEN, "execute", "view")
    with Session(head.address, token, "view", head.directory, timeout=10.0) as viewer:
        for call in (lambda: viewer.channel("seen", type=int), lambda: viewer.channel("seen").get(0)):
            with pytest.raises(NotAllowed):
                call()


def test_a_hub_that_is_silent_is_told_of(rk, mute, monkeypatch):
    for place in ("flows.FOLLOW_S", "declarations.PUT_S", "channels.ANSWER_S", "channels.SETTLE_S"):
        monkeypatch.setattr(f"raskid.client.{place}", 0.02)
    channel, read = rk.channel("silent"), rk.channel("silent").listen()
    mute({PutRecord})
    for call in (channel.listen, lambda: channel.get(5), lambda: channel.on_value(print)):
        with pytest.raises(WaitTimeout, match="the hub did not confirm that channel 'silent' is read here"):
            call()
    with pytest.raises(WaitTimeout, match="did not confirm the declaration of channel 'silent'"):
        rk.channel("silent", type=int)
    mute({DeleteRecord})
    with pytest.raises(WaitTimeout, match="the end of reading channel 'silent'"):
        read.close()
    assert not rk.subscriptions
    mute({Watch})
    with pytest.raises(WaitTimeout, match="the hub did not say what channel 'unseen' holds"):
        rk.channel("unseen")


def test_the_end_of_the_session_ends_reading(head):
    session = head.session()
    channel, again = session.channel("ending").listen(), session.channel("ending")
    session.close()
    with pytest.raises(SessionClosed):
        channel.get(5)
    assert list(channel) == []
    with pytest.raises(SessionClosed):
        channel.put(1)
    with pytest.raises(SessionClosed):
        again.listen()
    channel.close()
    again.close()


# ── asyncio ──


def test_under_asyncio_calls_are_awaited(head):
    async def body(here, there):
        async with await here.channel("async", type=int) as mine, await there.channel("async") as theirs:
            assert isinstance(mine, AsyncChannel)
            await theirs.listen()
            for number in range(5):
                await mine.put(number)
            with pytest.raises(TypeError):
                await theirs.put("x")
            assert [await theirs.next(), await theirs.get(5)] == [0, 1]
            async for value in theirs:
                assert value == 2
                break
            assert [await theirs.next() for _ in range(2)] == [3, 4]
            with pytest.raises(WaitTimeout, match=r"no value on channel 'async' within 0\.01 s"):
                await theirs.next(0.01)
            waiting = asyncio.create_task(theirs.next())
            seen = []
            await theirs.on_value(seen.append)
            await mine.put(6)
            assert await waiting == 6 and seen == [6]
        with pytest.raises(ValueError, match="was closed"):
            await theirs.next()
        with pytest.raises(ValueError, match="was closed"):
            await mine.put(1)

    run(head, body)


def test_coroutines_read_the_channel_of_a_blocking_session(rk, other):
    async def main():
        async with asyncio.timeout(5), other.channel("foreign loop") as channel:
            reader = asyncio.create_task(channel.next())
            while not readers_now(channel):
                await asyncio.sleep(0.001)
            await asyncio.to_thread(rk.publish, "foreign loop", 5)
            assert await reader == 5

    def readers_now(channel):
        return channel._reading

    asyncio.run(main())


def test_closing_a_blocking_handle_in_the_loop_that_serves_it_is_refused(head):
    async def body(here, there):
        channel = await here.channel("thread")
        await channel.listen()
        blocking = await asyncio.to_thread(here.session.channel, "thread")
        with pytest.raises(WrongThread, match=r"channel\.aclose"):
            blocking.close()
        assert not blocking.closed
        await blocking.aclose()

    run(head, body)


def test_a_cancelled_reader_leaves_the_channel_to_others(head):
    """1. Two coroutines begin to read one handle. 2. One is cancelled before the hub answers. 3. The other reads."""

    async def body(here, there):
        channel = await here.channel("cancelled")
        first, second = asyncio.create_task(channel.next()), asyncio.create_task(channel.next())
        await asyncio.sleep(0)
        first.cancel()
        await channel.listen()
        await there.publish("cancelled", 1)
        assert await second == 1
        with pytest.raises(asyncio.CancelledError):
            await first

    run(head, body)
