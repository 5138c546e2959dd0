"""Tasks that publish, on real runners."""

import os
import signal
import subprocess
import time

import pytest

import raskid
from tests.processes.helpers import script

pytestmark = pytest.mark.slow


def publish_after(pause_s, numbers):
    """Publishes, computes without a look at anything, publishes again."""
    raskid.publish("task", -1)
    end = time.perf_counter() + pause_s
    while time.perf_counter() < end:
        pass
    for number in numbers:
        raskid.publish("task", number)
    return os.getpid()


def large(count):
    for number in range(count):
        raskid.publish("large", number, bytes(1_000_000))


def from_a_child():
    pid = os.fork()
    if pid == 0:
        try:
            raskid.publish("task", 1)
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_busy_runner_holds_up_no_subscription(rk):
    """1. A task computes. 2. A subscription is settled meanwhile. 3. It gets what the task publishes afterwards."""
    first = rk.subscribe("task")
    future = rk.submit(publish_after, 0.8, list(range(20)))
    assert first.get(10).value == -1
    started = time.monotonic()
    with rk.subscribe("task") as messages:
        assert time.monotonic() - started < 0.5
        assert messages.silent == ()
        assert not future.done()
        assert [messages.get(10).value for _ in range(20)] == list(range(20))
    future.result(10)


def test_large_messages_are_written_while_the_task_goes_on(rk):
    with rk.subscribe("large", capacity=2) as messages:
        future = rk.submit(large, 10)
        got = [messages.get(10) for _ in range(10)]
    assert [(it.args[0], len(it.args[1])) for it in got] == [(n, 1_000_000) for n in range(10)]
    future.result(10)


def test_a_subscriber_that_is_killed_does_not_stop_the_task(rk, tmp_path):
    text = f"""
import raskid, sys
with raskid.connect({rk.url!r}) as rk:
    messages = rk.subscribe("task", capacity=1)
    print("ready", flush=True)
    messages.get(20)
    print("took one", flush=True)
    sys.stdin.read()
"""
    reader = script(text, str(tmp_path), stdin=subprocess.PIPE)
    assert reader.stdout.readline() == "ready\n", reader.stderr.read()
    future = rk.submit(publish_after, 0.0, list(range(50)))
    assert reader.stdout.readline() == "took one\n", reader.stderr.read()
    # It takes no more, and the task cannot be through: it has room for one.
    assert not future.done()
    reader.send_signal(signal.SIGKILL)
    reader.communicate()
    assert future.result(10) > 0


def test_a_runner_that_is_killed_publishes_again_from_the_beginning(rk):
    with rk.subscribe("task") as messages:
        future = rk.submit(publish_after, 0.5, [1, 2])
        message = messages.get(10)
        assert message.value == -1
        (pid,) = [it["pid"] for it in rk.runners() if it["runner"] == message.publisher]
        os.kill(pid, signal.SIGKILL)
        assert [messages.get(10).value for _ in range(3)] == [-1, 1, 2]
        assert future.result(10) != pid


def test_a_process_that_a_task_forked_does_not_publish(rk):
    assert rk.submit(from_a_child).result(10) == 7
