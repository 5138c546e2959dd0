"""The command line, on real systems in a directory of the test's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import raskid

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-W", "error", "-m", "raskid.cli.main"]


def run(*args: str, code: int = 0, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *args], check=False, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == code, f"{args} ended with {done.returncode}: {done.stdout}\n{done.stderr}"
    return done


def the_error(*args: str) -> str:
    """The one line that a failing command writes."""
    done = run(*args, code=1)
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("raskid: ")
    return line


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # pytest's tmp_path is too long for unix sockets.
    with tempfile.TemporaryDirectory(prefix="rk") as directory:
        monkeypatch.setenv("RASKID_RUNTIME", directory)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
        yield Path(directory)


@pytest.fixture
def system(runtime: Path) -> Iterator[str]:
    up = json.loads(run("up", "--runners", "2", "--name", "t", "--json").stdout)
    assert up["url"] == "local://t" and up["runners"] == 2
    yield "t"
    if (runtime / "t").exists():
        run("down", "t")
    assert not list(runtime.iterdir())


def test_a_system_stays_until_it_is_brought_down(system: str, runtime: Path) -> None:
    """1. The process that ran `up` is gone. 2. Tasks run. 3. `ps` shows them. 4. `down`, and nothing is left."""
    with raskid.connect("local://t") as session:
        assert session.gather([session.submit(pow, 2, n) for n in range(10)], 20) == [2**n for n in range(10)]
    (listed,) = json.loads(run("ps", "--json").stdout)
    assert (listed["name"], listed["runners"]) == ("t", 2)
    rows = json.loads(run("ps", "t", "--json").stdout)
    assert len(rows) == 2 and {"id", "host", "pid", "now", "finished"} == set(rows[0])
    assert sum(row["finished"] for row in rows) == 10
    assert str(rows[0]["pid"]) in run("ps", "t").stdout
    assert "local://t" in run("ps").stdout
    assert (runtime / "t" / "log").stat().st_mode & 0o777 == 0o600
    assert "has ended" in run("down", "t").stdout
    for pid in (listed["pid"], *(row["pid"] for row in rows)):
        assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()
    assert json.loads(run("ps", "--json").stdout) == []


def test_messages_and_records(system: str) -> None:
    with raskid.connect("local://t") as session, session.subscribe("news") as news:
        run("send", "news", '{"step": 3, "name": "x"}', "--system", "t")
        run("send", "news", "[1, 2]", "--system", "t", "--json")
        first, second = news.get(10), news.get(10)
        assert first is not None and first.fields == {"step": 3, "name": "x"} and first.args == ()
        assert second is not None and second.value == [1, 2]
        session.shared("settings")["colour"] = "blue"
        assert json.loads(run("get", "settings", "--system", "t", "--json").stdout) == {"colour": "blue"}
        assert run("get", "settings", "--system", "t").stdout == 'colour\t"blue"\n'
        assert json.loads(run("get", "nothing", "--system", "t", "--json").stdout) == {}
        names = json.loads(run("topics", "--system", "t", "--json").stdout)
        assert names["shared:settings"]["records"] == 1 and names["reactions:news"]["records"] == 1
        assert "shared:settings" in run("topics", "shared:", "--system", "t").stdout


def test_following_messages(system: str) -> None:
    follower = subprocess.Popen(
        [*COMMAND, "get", "news", "--follow", "--count", "2", "--timeout", "20", "--json", "--system", "t"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with raskid.connect("local://t") as session:
        while session.topics("reactions:news").get("reactions:news", {"records": 0})["records"] == 0:
            session.engine.wait(lambda: False, 0.02)
        for number in range(2):
            session.publish("news", number, twice=2 * number)
        output, _ = follower.communicate(timeout=20)
    lines = [json.loads(line) for line in output.splitlines()]
    assert [(line["args"], line["fields"]) for line in lines] == [([0], {"twice": 0}), ([1], {"twice": 2})]
    assert "no message on 'news' for 0.1 s" in the_error("get", "news", "--follow", "--timeout", "0.1", "--system", "t")


def test_errors_are_one_line(runtime: Path) -> None:
    for command in (["down", "no"], ["ps", "no"], ["send", "x", "1", "--system", "no"], ["topics", "--system", "no"]):
        assert "no system named 'no' runs on this machine" in the_error(*command)
    assert "cannot name a system" in the_error("up", "--name", "a/b")
    assert "no system runs" in run("ps").stdout


def test_errors_in_a_system(system: str) -> None:
    assert "exists already" in the_error("up", "--name", "t")
    assert "is not JSON" in the_error("send", "x", "{", "--system", "t")
    assert "begins with '@'" in the_error("send", "@x", "1", "--system", "t")


def test_what_a_killed_system_left_is_removed(system: str, runtime: Path) -> None:
    pid = json.loads((runtime / "t" / "session").read_bytes())["pid"]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (runtime / "t").exists():
        assert run("ps", "--json").stdout == "[]\n"
        assert time.monotonic() < deadline
