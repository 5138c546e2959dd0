"""Reactions between real processes: where their code runs, and what becomes of it when somebody is killed."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import raskid
from raskid.model.errors import NotAllowed
from raskid.model.operations import CODE, FORWARD, Operation
from raskid.model.topics import REACTIONS, list_name
from raskid.protocol.messages import PutRecord
from raskid.protocol.reactions import Reaction, encode_reaction
from tests.processes.helpers import script, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def other(rk):
    with raskid.connect(rk.url) as session:
        yield session


@pytest.fixture
def topic(request):
    return request.node.name[:200]


def where(value):
    return {"pid": os.getpid(), "value": value}


def publish_all(topic, values):
    for value in values:
        raskid.publish(topic, value)
    return os.getpid()


def publish_again(value, topic):
    raskid.publish(topic, value)
    return value


def fail(value):
    raise ValueError(f"cannot do {value}")


def leave(value):
    sys.exit(3)


def for_ever(value):
    while True:
        try:
            while True:
                pass
        except Exception:
            continue


def block(value):
    time.sleep(value)
    return value


def note_and_block(value, path):
    note_end(path)
    time.sleep(value)
    return value


def note_end(path):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")


def fields(subscription, count, name="value"):
    return [subscription.get(10)[name] for _ in range(count)]


def start(text, directory, topic, url):
    """A script that says a line when it is ready, and goes on until it is killed."""
    process = script(PREAMBLE.format(url=url, topic=topic) + text, str(directory), stdin=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


PREAMBLE = """
import os, sys, time, raskid
from tests.processes import test_reactions as functions
rk = raskid.connect({url!r})
topic = {topic!r}
def ready():
    print("ready", flush=True)
"""


@pytest.fixture
def start_script(rk, tmp_path, topic, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    started = []

    def begin(text):
        directory = tmp_path / str(len(started))
        directory.mkdir()
        started.append(start(text, directory, topic, rk.url))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


# ── where code runs ──


def test_code_runs_in_the_runner_that_publishes(rk, topic):
    with rk.react(topic, where).deliver() as handle:
        pid = rk.submit(publish_all, topic, [1, 2, 3]).result(20)
        got = [handle.subscription.get(10) for _ in range(3)]
    assert [it["value"] for it in got] == [1, 2, 3] and {it["pid"] for it in got} == {pid}
    assert pid != os.getpid()


def test_code_in_a_runner_publishes_without_a_deadlock(rk, topic):
    with rk.subscribe(topic + "/2") as inner, rk.react(topic, rk.op(publish_again, topic + "/2")).deliver() as outer:
        rk.submit(publish_all, topic, [1, 2, 3]).result(20)
        assert [inner.get(10).value for _ in range(3)] == [1, 2, 3]
        assert [outer.subscription.get(10).value for _ in range(3)] == [1, 2, 3]


def test_code_that_fails_in_a_runner_is_told_to_its_owner_and_the_task_goes_on(rk, topic):
    told = []
    with rk.react(topic, seconds=0.3, on_error=told.append).map(for_ever).run():
        rk.submit(publish_all, topic, [1]).result(20)
        wait_for(lambda: told)
    with rk.react(topic, on_error=told.append).map(leave).run():
        pid = rk.submit(publish_all, topic, [1]).result(20)
        wait_for(lambda: len(told) == 2)
    assert [it.error for it in told] == ["TimeLimit", "SystemExit"]
    assert any(it["pid"] == pid for it in rk.runners())


@pytest.mark.parametrize(
    ("function", "error"), [(for_ever, "TimeLimit"), (block, "TimeLimit"), (fail, "ValueError"), (leave, "SystemExit")]
)
def test_whatever_code_does_the_publisher_goes_on(rk, other, topic, function, error):
    """1. Code loops, blocks, raises or leaves. 2. Others get answers meanwhile. 3. The publisher goes on in time."""
    told = []
    with rk.react(topic, seconds=0.3, on_error=told.append).map(function).run():
        thread = threading.Thread(target=other.publish, args=(topic, 1.0))
        started = time.monotonic()
        thread.start()
        other.status()
        rk.status()
        thread.join(5)
        assert time.monotonic() - started < 2
        wait_for(lambda: told)
        assert told[0].error == error and told[0].message.value == 1.0
        assert told[0].publisher.startswith(other.peer.identity.peer)


def test_a_publish_can_be_interrupted_and_the_session_goes_on(start_script, rk, topic, tmp_path):
    begun = tmp_path / "begun"
    with rk.react(topic, seconds=5).map(note_and_block, str(begun)).deliver() as handle:
        process = start_script(
            """
ready()
try:
    rk.publish(topic, 0.5)
except KeyboardInterrupt:
    print("interrupted", flush=True)
rk.publish(topic, 0.0)
rk.close()
print("closed", flush=True)
"""
        )
        wait_for(begun.exists)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert process.stdout.readline() == "closed\n"
        assert [handle.subscription.get(10).value for _ in range(2)] == [0.5, 0.0]


def test_code_is_sent_once(rk, other, topic):
    """Many reactions with one function; what they cost the head and their publisher does not grow with its size."""
    large = bytes(200_000)

    def function(value):
        return len(large) + value

    with contextlib.ExitStack() as stack:
        handles = [stack.enter_context(rk.react(topic, function).deliver()) for _ in range(5)]
        before = other.counters()["bytes_received"]
        other.publish(topic, 1)
        assert [handle.subscription.get(10).value for handle in handles] == [200_001] * 5
        assert other.counters()["bytes_received"] - before < 300_000
        sent = rk.counters()["bytes_sent"]
        stack.enter_context(rk.react(topic + "/2", function).deliver())
        assert rk.counters()["bytes_sent"] - sent < 10_000


# ── the helper ──


def test_a_helper_runs_code_in_another_process_and_may_be_killed(rk, other, topic):
    """1. Code runs in the helper. 2. The message's publisher is who published it. 3. The helper is killed. 4. Later
    messages go to a new one."""
    with rk.react(topic, where, place="helper").deliver() as handle:
        other.publish(topic, 1)
        first = handle.subscription.get(20)
        assert first["value"] == 1 and first.publisher == other.peer.identity.peer
        assert first["pid"] not in (os.getpid(), *(it["pid"] for it in rk.runners()))
        os.kill(first["pid"], signal.SIGKILL)

        def again():
            other.publish(topic, 2)
            with contextlib.suppress(raskid.WaitTimeout):
                return handle.subscription.get(0.3)

        second = wait_for(again, limit=15)
        assert second["pid"] != first["pid"] and second["value"] == 2


def test_code_in_a_helper_that_blocks_holds_nobody_up(rk, other, topic):
    told = []
    with rk.react(topic, place="helper", seconds=0.3, on_error=told.append).map(block).run():
        other.publish(topic, 0.0)
        started = time.monotonic()
        other.publish(topic, 5.0)
        assert time.monotonic() - started < 0.2
        wait_for(lambda: told)
        assert told[0].error == "TimeLimit" and "other" not in told[0].publisher


# ── ends ──


def test_a_publisher_is_killed_and_the_reaction_goes_on_with_others(start_script, rk, other, topic):
    with rk.react(topic, where).deliver() as handle:
        publisher = start_script("rk.publish(topic, 1)\nready()\nsys.stdin.read()\n")
        assert fields(handle.subscription, 1, "pid") == [publisher.pid]
        publisher.kill()
        publisher.wait()
        other.publish(topic, 2)
        assert fields(handle.subscription, 1) == [2]


def test_the_reactions_of_a_killed_owner_go_everywhere_and_clean_up(start_script, rk, other, topic, tmp_path):
    """1. An owner has a reaction with a clean-up, and is killed. 2. It is gone from the list, and from publishers."""
    ends = tmp_path / "ends"
    with rk.subscribe(topic + "/out") as out:
        owner = start_script(
            f"""
handle = rk.react(topic, functions.where, cleanup=rk.op(functions.note_end, {str(ends)!r})).forward(topic + "/out")
ready()
sys.stdin.read()
"""
        )
        other.publish(topic, 1)
        pid = rk.submit(publish_all, topic, [2]).result(20)
        assert sorted(fields(out, 2)) == [1, 2]
        owner.kill()
        owner.wait()
        wait_for(lambda: rk.reactions(topic) == [])
        wait_for(lambda: ends.exists() and len(ends.read_text().split()) == 2)
        assert {int(it) for it in ends.read_text().split()} == {os.getpid(), pid}
        other.publish(topic, 3)
        with pytest.raises(raskid.WaitTimeout):
            out.get(0.05)


def test_each_message_of_a_class_is_handled_although_members_are_killed(start_script, rk, other, topic):
    """1. Two members with acknowledgement; one handles slowly. 2. It is killed in the middle. 3. Each message is
    handled at least once, and what comes again says so."""
    done = {}
    slow = start_script(
        """
messages = rk.subscribe(topic, one_of="workers", ack=True)
ready()
for message in messages:
    rk.publish(topic + "/begun", message.value)
    time.sleep(60)
"""
    )
    with rk.subscribe(topic + "/begun") as begun:
        for number in range(3):
            other.publish(topic, number)
        assert begun.get(10).value == 0
        with rk.subscribe(topic, lambda it: done.update({it.value: it.again}), one_of="workers", ack=True):
            for number in range(3, 10):
                other.publish(topic, number)
            wait_for(lambda: len(done) >= 3)
            slow.kill()
            slow.wait()
            wait_for(lambda: len(done) == 10)
    assert sorted(done) == list(range(10)) and done[0] is True and not all(done.values())


def test_permanent_reactions_outlive_their_owner(start_script, rk, other, topic, capfd):
    owner = start_script(
        """
rk.react(topic, functions.where, permanent=True).forward(topic + "/out")
rk.react(topic, permanent=True).set(topic + "/cell")
rk.react(topic, permanent=True).keep(5)
rk.react(topic + "/bad", functions.fail, permanent=True).run()
ready()
sys.stdin.readline()
rk.close()
print("closed", flush=True)
"""
    )
    owner.stdin.write("\n")
    owner.stdin.flush()
    assert owner.stdout.readline() == "closed\n"
    owner.wait()
    cell = rk.cell(topic + "/cell")
    with rk.subscribe(topic + "/out") as out:
        other.publish(topic, 1)
        assert (message := out.get(10))["value"] == 1 and message["pid"] == os.getpid()
        wait_for(lambda: cell.get(10) == 1)
        with rk.subscribe(topic, history=-1) as kept:
            assert kept.get(10).value == 1
    assert [it["permanent"] for it in rk.reactions(topic)] == [True] * 3
    other.publish(topic + "/bad", 1)
    wait_for(lambda: "cannot do 1" in capfd.readouterr().err)
    other.publish(topic, 2)
    wait_for(lambda: cell.get(10) == 2)


def test_a_session_delivers_what_it_has_before_it_leaves(start_script, rk, topic):
    """Code at work, and windows half full, in front of it and behind it."""
    with (
        rk.react(topic).gather(10).deliver() as gathered,
        rk.react(topic, block).gather(10).map(sum).deliver() as coded,
        rk.react(topic).set(topic + "/last"),
    ):
        process = start_script(
            """
import threading
ready()
threads = [threading.Thread(target=rk.publish, args=(topic, 0.2)) for _ in range(2)]
for thread in threads:
    thread.start()
time.sleep(0.1)
rk.close()
print("closed", flush=True)
"""
        )
        assert process.stdout.readline() == "closed\n"
        assert gathered.subscription.get(10).value == [0.2, 0.2]
        total = 0.0
        while total < 0.39:
            total += coded.subscription.get(10).value
        assert rk.cell(topic + "/last").get(10) == 0.2


# ── what cannot be done ──


@pytest.mark.parametrize(
    ("operation", "what"),
    [
        (Operation(CODE, ("c1", "python", "3.99"), {"name": "f"}), "the code f (python 3.99)"),
        (Operation("transmogrify", (1,)), "the operation 'transmogrify'"),
    ],
)
def test_what_no_publisher_can_run_comes_to_its_owner_who_says_so(rk, other, topic, operation, what):
    told = []
    from raskid.core.effects import ReactionReported

    applier = rk._appliers[ReactionReported]
    rk._appliers[ReactionReported] = lambda effect: told.append(effect.message)
    try:
        number = rk.request_id()
        record = encode_reaction(Reaction(rk.peer.own_ref, (operation, Operation(FORWARD, ("x",)))))
        rk.ask(PutRecord(number, list_name(REACTIONS, topic), str(number), record, False, 5.0)).result(10)
        other.publish(topic, 1)
        rk.submit(publish_all, topic, [1]).result(20)
        wait_for(lambda: told)
    finally:
        rk._appliers[ReactionReported] = applier
    assert told[0].text == f"{what} can be run neither by its publisher nor by its owner"


def test_a_session_for_messages_installs_no_code(rk, topic):
    with raskid.connect(f"{rk.url}{'&' if '?' in rk.url else '?'}role=message") as low:
        with pytest.raises(NotAllowed, match="execute"):
            low.react(topic, where)
        with low.react(topic).filter(0, ">", 1).deliver() as handle:
            rk.publish(topic, 1)
            rk.publish(topic, 2)
            assert handle.subscription.get(10).value == 2


# ── asyncio ──


def test_in_asyncio_the_loop_goes_on_while_code_runs(rk, topic):
    async def main():
        async with raskid.connect(rk.url) as session:
            ticks = 0

            async def tick():
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0.01)

            ticking = asyncio.create_task(tick())
            async with await session.react(topic).map(block).deliver() as handle:
                await session.publish(topic, 0.3)
                assert ticks >= 5
                assert (await anext(handle.subscription)).value == 0.3
            ticking.cancel()

    asyncio.run(main())
