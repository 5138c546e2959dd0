"""Commands that look at a system in which other processes work, and hold none of them up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

import raskid
from tests.processes.helpers import wait_for

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-W", "error", "-m", "raskid.cli.main"]
LIMIT_S = 20.0


def run(rk: Any, *args: str) -> str:
    """What a command prints in the system of a session."""
    done = subprocess.run(
        [*COMMAND, *args], check=False, capture_output=True, text=True, timeout=LIMIT_S, env=environment(rk)
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


def environment(rk: Any) -> dict[str, str]:
    return {**os.environ, "RASKID_URL": rk.url, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def test_a_task_publishes_while_a_person_looks(rk: Any) -> None:
    """1. A command follows a topic, and another program has a reaction on it that sets a cell. 2. `raskid reactions`
    shows both. 3. A task publishes more than the command can print: it ends nevertheless, with nobody held up. 4. The
    cell has the last value, which another command prints."""

    def publish(count: int) -> int:
        import raskid

        for number in range(count):
            raskid.publish("seen", number, text="x" * 1000)
        return count

    rk.react("seen").filter(0, ">=", 0).choose(positional=True).set("last")
    with subprocess.Popen(
        [*COMMAND, "get", "seen", "--follow"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(rk)
    ) as looker:
        try:
            wait_for(lambda: len(rk.reactions("seen")) == 2)
            shown = json.loads(run(rk, "reactions", "seen", "--json"))
            assert sorted(one["operations"] for one in shown) == sorted(
                one["operations"] for one in rk.reactions("seen")
            )
            assert rk.submit(publish, 3000).result(LIMIT_S) == 3000
            # Nobody has read what it prints.
            assert looker.poll() is None
            with rk.cell("last") as cell:
                assert cell.wait(lambda value: value == 2999, LIMIT_S) == 2999
            assert run(rk, "get", "--cell", "last") == "2999\n"
        finally:
            looker.kill()


def test_a_person_sees_who_sends_what_to_whom(rk: Any) -> None:
    """1. A command follows the traces. 2. A message goes from this process to another one, and one from a task to this
    one. 3. The command prints what the two sessions tell: what was published, and where it arrived."""

    def publish() -> None:
        import raskid

        raskid.publish("from a task", "x" * 100)

    with raskid.connect(rk.url) as other, other.subscribe("seen off") as messages, rk.subscribe("from a task") as back:
        for session in (rk, other):
            session.announce_nowait("raskid/transit").result(5)
        with subprocess.Popen(
            [*COMMAND, "get", "raskid/transit", "--follow", "--count", "3", "--timeout", "20", "--json"],
            stdout=subprocess.PIPE, text=True, env=environment(rk),
        ) as looker:  # fmt: skip
            wait_for(lambda: rk.reactions("raskid/transit"))
            wait_for(lambda: rk.plan_of("raskid/transit") and other.plan_of("raskid/transit"))
            rk.publish("seen off", [0] * 10)
            assert messages.get(5).value == [0] * 10
            rk.submit(publish).result(LIMIT_S)
            assert back.get(5).value == "x" * 100
            told = [json.loads(line)["fields"] for line in looker.communicate(timeout=LIMIT_S)[0].splitlines()]
    one, two = rk.peer.identity.peer, other.peer.identity.peer
    (published,) = (it for it in told if it["event"] == "published")
    assert (published["publisher"], published["readers"], published["topic"]) == (one, 1, "seen off")
    arrived = {it["topic"]: it for it in told if it["event"] == "arrived"}
    assert (arrived["seen off"]["publisher"], arrived["seen off"]["receiver"]) == (one, two)
    runners = [runner["runner"] for runner in rk.runners()]
    assert arrived["from a task"]["publisher"] in runners and arrived["from a task"]["receiver"] == one
    assert arrived["from a task"]["bytes"] > 100
