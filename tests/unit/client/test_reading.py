"""Values taken one after the other, and of several channels and cells together."""

import asyncio
import threading

import pytest

import raskid
from raskid.client.reading import when_all
from raskid.model.errors import SessionClosed, WaitTimeout
from tests.unit.client.systems import until


def test_a_tuple_is_complete_when_each_has_a_new_value(rk, other):
    """1. Three values on one channel: nothing. 2. One on the other, and a cell that has one: a tuple. 3. And so on: in
    order, and none is skipped."""
    a, b, cell = rk.channel("join a").listen(), other.channel("join b").listen(), rk.cell("join c")
    cell.set(10)
    joined = rk.when_all(a, b, cell)
    for number in range(3):
        other.channel("join a").put(number)
    until(lambda: len(a._reading._messages) == 3)
    with pytest.raises(WaitTimeout, match=r"no value on channel 'join b' within 0\.01 s"):
        joined.get(0.01)
    rk.channel("join b").put("x")
    assert joined.get(5) == (0, "x", 10)
    rk.channel("join b").put("y")
    until(lambda: b._reading._messages)
    with pytest.raises(WaitTimeout, match="cell 'join c' had no new value"):
        joined.get(0.05)
    cell.set(11)
    cell.set(12)
    assert joined.get(5) == (1, "y", 11)
    rk.channel("join b").put("z")
    assert next(joined) == (2, "z", 12)


def test_a_list_of_them_and_the_public_name(rk):
    channels = [rk.channel(f"listed {number}") for number in range(3)]
    joined = raskid.when_all(channels)
    assert raskid.when_all is when_all
    for number, channel in enumerate(channels):
        channel.put(number)
    for values in joined:
        assert values == (0, 1, 2)
        break


def test_the_end_of_one_ends_all(rk):
    a, b = rk.channel("ending a"), rk.channel("ending b")
    joined, seen = when_all(a, b), []
    reader = threading.Thread(target=lambda: seen.extend(joined))
    reader.start()
    until(lambda: b._begun is not None and a._reading is not None)
    for channel in (a, b, a):
        channel.put(1)
    b.close()
    reader.join(5)
    assert not reader.is_alive() and seen in ([(1, 1)], [])
    with pytest.raises(ValueError, match="handle on channel 'ending b' was closed"):
        joined.get(0)


def test_the_end_of_the_session_ends_all(head):
    session = head.session()
    joined = when_all(session.cell("over"), session.channel("over"))
    session.close()
    assert list(joined) == []
    with pytest.raises(SessionClosed):
        joined.get(1)


def test_one_reader_at_a_time(rk):
    joined, errors = when_all(rk.channel("busy")), []

    def read():
        try:
            joined.get(5)
        except Exception as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    until(joined._busy.locked)
    with pytest.raises(RuntimeError, match="are being read already"):
        joined.get(0)
    rk.channel("busy").put(1)
    reader.join(5)
    assert not errors


def test_coroutines(head):
    async def main():
        async with asyncio.timeout(10), head.session() as here, head.session() as there:
            channel, cell = await here.channel("async join"), await there.cell("async cell")
            joined = here.when_all(channel, cell)
            waiting = asyncio.create_task(joined.next())
            await asyncio.sleep(0)
            await channel.listen()
            await channel.put(1)
            with pytest.raises(RuntimeError, match="are being read already"):
                await joined.next()
            while not joined._taken:
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(WaitTimeout, match=r"cell 'async cell' had no new value within 0\.01 s"):
                await joined.next(0.01)
            await cell.set("a")
            assert await joined.next(5) == (1, "a"), "what was taken before is not lost"
            await channel.put(2)
            await cell.set("b")
            async for values in joined:
                assert values == (2, "b")
                break
            await channel.close()
            with pytest.raises(ValueError, match="was closed"):
                await joined.next()

    asyncio.run(main())


def test_what_cannot_be_joined_is_named(rk):
    channel = rk.channel("joined")
    for given, error, text in (
        ((), ValueError, "was given none"),
        (([],), ValueError, "was given none"),
        ((channel, 5), TypeError, "got 5 of type int"),
        (("ab",), TypeError, "got 'a' of type str"),
        ((rk.submit,), TypeError, "of type method"),
        ((channel, channel), ValueError, "twice"),
    ):
        with pytest.raises(error, match=text):
            when_all(*given)
    closed = rk.cell("joined")
    closed.close()
    with pytest.raises(ValueError, match="this handle on cell 'joined' was closed"):
        when_all(channel, closed)
    for limit in ("3", -1):
        with pytest.raises((TypeError, ValueError), match="timeout is a number of seconds"):
            when_all(channel).get(limit)
