"""Commands that look at a system in which other processes work, and hold none of them up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

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
