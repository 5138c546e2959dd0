import asyncio
import os
import signal
import threading
import time

import psutil
import pytest

import raskid
from raskid.model.errors import (
    NoSuchService,
    NotAllowed,
    Overflow,
    PeerLost,
    RemoteError,
    ValueNotSendable,
    WaitTimeout,
)
from tests.processes.helpers import script, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def other(rk):
    """A second session in the same system."""
    with raskid.connect(rk.url) as session:
        yield session


def helper_process(rk, directory, body):
    """A process with a session `rk` in the system; it has written a line when this returns."""
    text = f"import raskid, time, sys\nwith raskid.connect({rk.url!r}) as rk:\n"
    text += "".join(f"    {line}\n" for line in body.strip().splitlines())
    process = script(text, str(directory))
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def finish(process):
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, ""), errors
    return output


def test_messages_travel_between_processes(rk, tmp_path):
    with rk.subscribe("from/afar") as messages:
        process = helper_process(
            rk, tmp_path, "print('ready', flush=True)\nrk.publish('from/afar', 1, name='x', n=None)"
        )
        message = messages.get(10)
        assert (message.args, message.fields, message.value) == ((1,), {"name": "x", "n": None}, 1)
        assert message["name"] == "x" and message.topic == "from/afar" and message.publisher.startswith("client-")
        finish(process)


def test_twenty_thousand_messages_stay_in_order(rk, tmp_path):
    with rk.subscribe("counted") as messages:
        body = "print('ready', flush=True)\nfor n in range(20_000):\n    rk.publish('counted', n)"
        process = helper_process(rk, tmp_path, body)
        assert [messages.get(10).value for _ in range(20_000)] == list(range(20_000))
        finish(process)
        assert messages.dropped == 0


def test_a_topic_nobody_reads_costs_nothing_and_raises_nothing(rk):
    rk.publish("unheard", 1)
    before = rk.counters()["bytes_sent"]
    for value in range(1000):
        rk.publish("unheard", value)
        rk.publish("unheard", lambda: 1 / 0)
    assert rk.counters()["bytes_sent"] - before < 500


def test_a_publisher_hears_itself(rk):
    with rk.subscribe("self") as messages:
        rk.publish("self", 1)
        assert messages.get(5).value == 1


def test_callbacks(rk, other):
    seen, threads = [], set()

    def callback(message):
        threads.add(threading.current_thread().name)
        seen.append(message.value)

    with other.subscribe("called", callback):
        for value in range(100):
            rk.publish("called", value)
        wait_for(lambda: len(seen) == 100)
    assert seen == list(range(100))
    assert threads <= {"raskid-0", "raskid-1"}


def test_an_error_in_a_callback_stops_nothing(rk, other, capsys):
    seen = []

    def callback(message):
        seen.append(message.value)
        raise ValueError("in the callback")

    with other.subscribe("called", callback):
        for value in range(3):
            rk.publish("called", value)
        wait_for(lambda: len(seen) == 3)
    assert "in the callback" in capsys.readouterr().err


@pytest.mark.parametrize("overflow", ["drop_oldest", "latest", "drop_newest"])
def test_a_slow_reader_gets_what_its_policy_says_and_drops_are_counted(rk, other, overflow):
    topic = f"fast/{overflow}"
    with other.subscribe(topic, capacity=10, overflow=overflow) as messages:
        started = time.monotonic()
        for value in range(1000):
            rk.publish(topic, value)
        assert time.monotonic() - started < 5
        got = []
        while not got or sum(m.dropped for m in got) + len(got) < 1000:
            try:
                got.append(messages.get(0.5))
            except WaitTimeout:
                break
        values = [message.value for message in got]
        assert values == sorted(values)
        dropped = sum(message.dropped for message in got)
        assert dropped == messages.dropped > 0
        assert dropped + len(got) <= 1000
        if overflow != "drop_newest":
            assert values[-1] == 999 and dropped + len(got) == 1000
        else:
            assert values[:10] == list(range(10))


def test_a_full_blocking_subscription_raises_at_the_limit(rk, other, monkeypatch):
    monkeypatch.setattr("raskid.client.topics.BLOCK_S", 0.1)
    with other.subscribe("full", capacity=5) as messages:
        with pytest.raises(Overflow, match="full"):
            for value in range(100):
                rk.publish("full", value)
        got = [messages.get(5).value for _ in range(5)]
        assert got == list(range(5))
        rk.publish("full", "after")
        while messages.get(5).value != "after":
            pass
        assert messages.dropped >= 1


def test_a_blocking_publisher_waits_for_its_reader(rk, other):
    with other.subscribe("blocking", capacity=4) as messages:
        publisher = threading.Thread(target=lambda: [rk.publish("blocking", value) for value in range(200)])
        publisher.start()
        assert [messages.get(10).value for _ in range(200)] == list(range(200))
        publisher.join(10)
        assert not publisher.is_alive() and messages.dropped == 0


def test_after_unsubscribing_nothing_comes(rk, other):
    messages = other.subscribe("ended")
    rk.publish("ended", 1)
    assert messages.get(5).value == 1
    messages.close()
    rk.publish("ended", 2)
    assert messages.get(1) is None
    assert list(messages) == []
    messages.close()


def test_the_first_message_of_a_new_publisher_arrives(rk):
    with rk.subscribe("newcomers") as messages:
        for value in range(5):
            with raskid.connect(rk.url) as session:
                session.publish("newcomers", value)
            assert messages.get(5).value == value


def test_several_readers_of_one_topic(rk, other):
    with rk.subscribe("both") as first, other.subscribe("both") as second:
        for value in range(10):
            rk.publish("both", value)
        assert [first.get(5).value for _ in range(10)] == list(range(10))
        assert [second.get(5).value for _ in range(10)] == list(range(10))


def test_big_messages(rk, other):
    data = os.urandom(1000) * 10_000
    with other.subscribe("big") as messages:
        for _ in range(3):
            rk.publish("big", data)
        assert all(messages.get(10).value == data for _ in range(3))


def test_what_messages_do_not_carry(rk, other):
    with other.subscribe("odd"), pytest.raises(ValueNotSendable, match="object"):
        rk.publish("odd", {"a": [object()]})


def test_a_limit_on_get(rk):
    with rk.subscribe("silent") as messages, pytest.raises(WaitTimeout, match="silent"):
        messages.get(0.01)


def test_requests(rk, other):
    other.serve("divide", lambda a, b=1: a / b)
    assert rk.request("divide", 6, b=3) == 2
    with pytest.raises(RemoteError, match="division by zero") as caught:
        rk.request("divide", 1, b=0)
    assert caught.value.kind == "ZeroDivisionError" and "in <lambda>" in caught.value.remote
    with pytest.raises(RemoteError) as caught:
        rk.request("divide", wrong=1)
    assert caught.value.kind == "TypeError"
    other.unserve("divide")
    with pytest.raises(NoSuchService):
        rk.request("divide", 1, timeout=0.1)


def test_requests_have_a_limit_and_can_be_cancelled(rk, other):
    release = threading.Event()
    other.serve("slow", lambda: release.wait(5))
    started = time.monotonic()
    with pytest.raises(WaitTimeout):
        rk.request("slow", timeout=0.1)
    assert time.monotonic() - started < 2
    future = rk.request_nowait("slow", timeout=20)
    assert future.cancel() and future.cancelled()
    release.set()
    other.serve("quick", lambda: 1)
    assert rk.request("quick") == 1
    with pytest.raises(NoSuchService):
        rk.request("nobody", timeout=0.1)


def test_a_coroutine_may_serve(rk, other):
    async def double(value):
        await asyncio.sleep(0)
        return 2 * value

    other.serve("double", double)
    assert rk.request("double", 4) == 8


def test_a_killed_provider_is_told_to_who_waits(rk, tmp_path):
    body = "rk.serve('doomed', lambda: time.sleep(60))\nprint('ready', flush=True)\ntime.sleep(60)"
    process = helper_process(rk, tmp_path, body)
    try:
        future = rk.request_nowait("doomed", timeout=50)
        wait_for(lambda: psutil.Process(process.pid).num_threads() > 2)
        process.kill()
        started = time.monotonic()
        with pytest.raises(PeerLost):
            future.result(10)
        assert time.monotonic() - started < 5
    finally:
        process.kill()
        process.communicate()


def test_shared_records(rk, other):
    mine, theirs = rk.shared("facts"), other.shared("facts")
    mine["a"] = {"n": 1}
    theirs.wait(lambda facts: "a" in facts, 5)
    assert theirs["a"] == {"n": 1} and theirs.owner("a") == rk.peer.identity.peer
    with pytest.raises(NotAllowed):
        theirs["a"] = 2
    theirs["b"] = 2
    mine.wait(lambda facts: len(facts) == 2, 5)
    assert sorted(mine.items()) == [("a", {"n": 1}), ("b", 2)]
    changes = []
    theirs.on_change(lambda facts, key: changes.append(key))
    for value in range(20):
        mine["a"] = value
    wait_for(lambda: changes == ["a"] * 20)
    del mine["a"]
    theirs.wait(lambda facts: "a" not in facts, 5)
    with pytest.raises(KeyError):
        del mine["a"]
    with pytest.raises(KeyError):
        mine["a"]


def test_the_records_of_a_killed_process_vanish(rk, tmp_path):
    shared = rk.shared("presence")
    body = """
s = rk.shared('presence')
s['mine'] = 1
s.put('kept', 2, permanent=True)
print('ready', flush=True)
time.sleep(60)
"""
    process = helper_process(rk, tmp_path, body)
    try:
        shared.wait(lambda records: len(records) == 2, 5)
        process.send_signal(signal.SIGKILL)
        shared.wait(lambda records: "mine" not in records, 5)
        assert dict(shared) == {"kept": 2}
    finally:
        process.kill()
        process.communicate()


def test_under_asyncio(rk):
    async def main():
        async with raskid.connect(rk.url) as here, raskid.connect(rk.url) as there:
            messages = await there.subscribe("async")
            for value in range(100):
                await here.publish("async", value)
            assert [(await anext(messages)).value for _ in range(100)] == list(range(100))

            async def triple(value):
                await asyncio.sleep(0)
                return 3 * value

            await there.serve("triple", triple)
            assert await here.request("triple", 3) == 9
            assert await asyncio.gather(*(here.request("triple", n) for n in range(20))) == [3 * n for n in range(20)]
            with pytest.raises(RemoteError):
                await here.request("triple")
            with pytest.raises(NoSuchService):
                await here.request("nobody", timeout=0.05)
            reader = asyncio.create_task(anext(messages))
            await asyncio.sleep(0)
            reader.cancel()
            await here.publish("async", "last")
            async with asyncio.timeout(5):
                assert (await anext(messages)).value == "last"

    asyncio.run(main())


def test_a_blocked_publisher_under_asyncio_waits_for_its_reader(rk):
    async def main():
        async with raskid.connect(rk.url) as here, raskid.connect(rk.url) as there:
            messages = await there.subscribe("async/full", capacity=3)

            async def publish():
                for value in range(50):
                    await here.publish("async/full", value)

            task = asyncio.create_task(publish())
            async with asyncio.timeout(10):
                assert [(await anext(messages)).value for _ in range(50)] == list(range(50))
                await task

    asyncio.run(main())


def slowly(value):
    time.sleep(0.01)
    return value * value


def test_tasks_under_asyncio(rk):
    async def main():
        async with raskid.connect(rk.url) as here:
            await here.wait_runners(2, 10)
            assert len(await here.runners()) == 2
            assert await here.submit(pow, 2, 10) == 1024
            assert await here.map(slowly, range(50)) == [n * n for n in range(50)]
            assert await here.gather([here.submit(slowly, n) for n in range(20)]) == [n * n for n in range(20)]
            with pytest.raises(WaitTimeout):
                await here.gather([here.submit(time.sleep, 1)], timeout=0.05)
            with pytest.raises(ZeroDivisionError):
                await here.map(lambda n: 1 / n, [1, 0])
            # The loop goes on while a map runs.
            ticks = 0
            mapping = asyncio.create_task(here.map(slowly, range(50)))
            while not mapping.done():
                await asyncio.sleep(0)
                ticks += 1
            assert ticks > 10

    asyncio.run(main())


def test_a_wrong_argument_does_not_end_the_session(rk, other):
    """What the head would refuse does not reach it; nothing that the session holds is lost."""
    with other.subscribe("goes/on") as messages:
        shared = rk.shared("goes/on")
        for wrong in (
            lambda: shared.__setitem__(1, 1), lambda: shared.put("k", 1, permanent="yes"), lambda: rk.topics(5),
            lambda: rk.subscribe("t", timeout="3"), lambda: rk.subscribe("t", capacity="8"), lambda: rk.publish(5, 1),
            lambda: rk.request(5), lambda: rk.serve("s", 5), lambda: messages.close("3"),
        ):  # fmt: skip
            with pytest.raises((TypeError, ValueError)):
                wrong()
        rk.publish("goes/on", 1)
        assert messages.get(5).value == 1
        assert rk.submit(pow, 2, 3).result(10) == 8


def test_two_processes_ask_one_another_from_their_handlers(rk, tmp_path):
    """A handler of ours asks a service of theirs, whose handler asks a second service of ours."""
    rk.serve("ours/inner", lambda n: n + 1)
    body = "rk.serve('theirs', lambda n: rk.request('ours/inner', 10 * n))\nprint('ready', flush=True)\ntime.sleep(60)"
    process = helper_process(rk, tmp_path, body)
    rk.serve("ours/outer", lambda n: rk.request("theirs", n))
    try:
        started = time.monotonic()
        assert rk.request("ours/outer", 4) == 41
        assert time.monotonic() - started < 5
    finally:
        process.kill()
        process.communicate()
        rk.unserve("ours/inner")
        rk.unserve("ours/outer")


def test_interrupts_of_a_reader_lose_nothing(rk, tmp_path):
    """Somebody in a notebook interrupts a loop over messages again and again, and goes on each time."""
    text = f"""
import random, signal, threading, time
import raskid

signal.signal(signal.SIGINT, signal.default_int_handler)
main = threading.main_thread().ident


def shoot():
    time.sleep(random.uniform(0.001, 0.004))
    signal.pthread_kill(main, signal.SIGINT)


with raskid.connect({rk.url!r}) as rk:
    messages = rk.subscribe("numbers", capacity=64)
    print("ready", flush=True)
    expected = hits = 0
    while hits < 60:
        shooter = threading.Thread(target=shoot)
        try:
            shooter.start()
            while True:
                value = messages.get(timeout=5).value
                assert expected <= value <= expected + 1, (expected, value)
                expected = value + 1
        except KeyboardInterrupt:
            hits += 1
        shooter.join()
    print(expected > 100)
"""
    reader = script(text, str(tmp_path))
    assert reader.stdout.readline() == "ready\n", reader.stderr.read()
    number = 0
    while reader.poll() is None:
        rk.publish("numbers", number)
        number += 1
    output, errors = reader.communicate(timeout=20)
    assert (output, errors) == ("True\n", "")
