"""Baskets with real processes."""

import asyncio
import os
import signal
import threading

import pytest

import raskid
from tests.processes.helpers import run_script, script, wait_for

pytestmark = pytest.mark.slow

PUBLISHER = """
import sys
import raskid

with raskid.connect({url!r}) as rk:
    {first}
    for number in range({count}):
        rk.publish("series", number)
    {last}
"""


@pytest.fixture
def basket(rk):
    """A basket for one test."""
    basket = rk.basket()
    yield basket
    basket.close()


def take(subscription, count):
    return [subscription.get(10).value for _ in range(count)]


def has(basket, count, topic="series"):
    """A condition: so many messages are in the basket."""
    return lambda: len(basket.messages(topic)) == count


def pids(rk):
    return [one["pid"] for one in rk.services() if one["name"].startswith("basket:") and one["state"] == "running"]


def test_clients_that_start_a_basket_at_once_have_one(rk):
    handles = []
    with raskid.connect(rk.url) as other, raskid.connect(rk.url) as third:
        threads = [
            threading.Thread(target=lambda session=session: handles.append(session.basket("race")))
            for session in (rk, other, third)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(handles) == 3 and len(pids(rk)) == 1
        handles[0].keep("t")
        assert all(list(handle.info()) == ["t"] for handle in handles)
    another = rk.basket("another")
    another.keep("u")
    assert len(pids(rk)) == 2
    assert list(rk.basket("race").info()) == ["t"]
    another.close()
    rk.basket("race").close()
    assert pids(rk) == []


def test_what_a_process_published_outlives_it(rk, basket, tmp_path):
    basket.keep("series")
    code, _, errors = run_script(PUBLISHER.format(url=rk.url, first="", count=500, last=""), tmp_path)
    assert code == 0, errors
    with basket.subscribe("series", capacity=50) as subscription:
        assert take(subscription, 500) == list(range(500))
        rk.publish("series", "live")
        assert take(subscription, 1) == ["live"]


def test_a_process_that_keeps_its_own_messages_hands_them_over(rk, tmp_path):
    """1. Nobody reads and there is no basket. 2. A process keeps its last 300 messages, and leaves. 3. That starts the
    basket, which has them. 4. A later subscriber gets them, and then what is live."""
    first = 'rk.react("series").keep(count=300, basket="late")'
    code, _, errors = run_script(PUBLISHER.format(url=rk.url, first=first, count=500, last=""), tmp_path)
    assert code == 0 and errors == "", errors
    basket = rk.basket("late")
    assert basket.info()["series"]["messages"] == 300
    with basket.subscribe("series") as subscription:
        rk.publish("series", "live")
        assert take(subscription, 301) == [*range(200, 500), "live"]
    basket.close()


def test_a_later_subscriber_and_a_hand_over_at_the_same_time(rk, basket, tmp_path):
    """The publisher keeps its messages, and they go to the basket as well: each is there once, whoever gave it."""
    basket.keep("series")
    first = 'rk.react("series").keep(count=1000, basket="main")'
    publisher = script(
        PUBLISHER.format(url=rk.url, first=first, count=400, last='print("go", flush=True); sys.stdin.readline()'),
        tmp_path, stdin=-1,
    )  # fmt: skip
    try:
        assert publisher.stdout.readline() == "go\n"
        early = basket.subscribe("series")
        publisher.stdin.write("leave\n")
        publisher.stdin.flush()
        late = basket.subscribe("series")
        assert publisher.wait(20) == 0
        assert take(early, 400) == list(range(400))
        assert take(late, 400) == list(range(400))
        assert [message.value for message in basket.messages("series")] == list(range(400))
    finally:
        publisher.communicate()


def test_a_publisher_that_is_killed_leaves_a_beginning(rk, basket, tmp_path):
    basket.keep("series")
    publisher = script(
        PUBLISHER.format(url=rk.url, first="", count=100, last='print("go", flush=True); sys.stdin.readline()'),
        tmp_path, stdin=-1,
    )  # fmt: skip
    assert publisher.stdout.readline() == "go\n"
    publisher.send_signal(signal.SIGKILL)
    publisher.communicate()
    with basket.subscribe("series") as subscription:
        rk.publish("series", "live")
        got = []
        while not got or got[-1] != "live":
            got.append(subscription.get(10).value)
    assert got[:-1] == list(range(len(got) - 1))


def publish_some(first, count):
    for number in range(first, first + count):
        raskid.publish("tasks", number)
    return os.getpid()


def test_what_tasks_publish_is_kept_over_the_ends_of_their_runners(rk, basket):
    basket.keep("tasks")
    pid = rk.submit(publish_some, 0, 20).result(10)
    wait_for(has(basket, 20, "tasks"))
    os.kill(pid, signal.SIGKILL)
    seen = {pid}
    while len(seen) < 2:
        # Until the one that took its place has run it.
        seen.add(rk.submit(publish_some, 20, 5).result(20))
    wait_for(lambda: len(basket.messages("tasks")) >= 25)
    found = basket.messages("tasks")
    assert [message.value for message in found[:20]] == list(range(20))
    with basket.subscribe("tasks") as subscription:
        assert take(subscription, len(found)) == [message.value for message in found]


def test_what_tasks_publish_for_a_basket_outlives_their_runner(rk, basket):
    """The runner keeps it, and ends without handing over: the basket has it already."""
    assert rk.started_system
    with rk.react("tasks").keep(count=100, basket="main"):
        os.kill(rk.submit(publish_some, 0, 20).result(10), signal.SIGKILL)
        wait_for(has(basket, 20, "tasks"))


def test_a_basket_that_crashes_is_there_again_and_empty(rk, basket):
    basket.keep("series")
    rk.publish("series", 1)
    wait_for(has(basket, 1))
    (pid,) = pids(rk)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pids(rk) not in ([], [pid]), 10)
    with pytest.raises(raskid.NotKept):
        basket.messages("series")
    basket.keep("series")
    rk.publish("series", 2)
    wait_for(has(basket, 1))


def test_a_closed_basket_is_gone_and_can_be_had_anew(rk, basket):
    basket.keep("series")
    rk.publish("series", 1)
    wait_for(has(basket, 1))
    basket.close()
    basket.close()
    assert pids(rk) == []
    rk.publish("series", 2)
    assert rk.basket().info() == {}


def test_a_basket_in_asyncio(rk):
    async def main():
        async with raskid.connect(rk.url) as session:
            basket = await session.basket("loop")
            await basket.keep("series", count=5)
            for number in range(20):
                await session.publish("series", number)
            while (await basket.info())["series"]["dropped"] < 15:
                await asyncio.sleep(0.01)
            got = []
            async with await basket.subscribe("series", capacity=2) as subscription:
                async for message in subscription:
                    got.append(message.value)
                    if len(got) == 5:
                        break
            await basket.close()
            return got

    assert asyncio.run(asyncio.wait_for(main(), 30)) == list(range(15, 20))


def test_who_may_only_send_messages_uses_baskets_and_starts_none(rk):
    with raskid.connect(f"{rk.url}?role=message") as other:
        with pytest.raises(raskid.NotAllowed):
            other.basket("mine")
        rk.basket("ours")
        basket = other.basket("ours")
        basket.keep("series")
        other.publish("series", 1)
        with basket.subscribe("series") as subscription:
            assert take(subscription, 1) == [1]
    rk.basket("ours").close()
