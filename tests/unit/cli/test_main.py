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


def the_error(*args: str, code: int = 1, output: str = "") -> str:
    """The one line that a failing command writes."""
    done = run(*args, code=code)
    assert done.stdout == output
    (line,) = done.stderr.splitlines()
    assert line.startswith("raskid: ")
    return line


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # pytest's tmp_path is too long for unix sockets.
    with tempfile.TemporaryDirectory(prefix="rk") as directory:
        monkeypatch.setenv("RASKID_RUNTIME", directory)
        monkeypatch.delenv("RASKID_URL", raising=False)
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
    head, *rows = json.loads(run("ps", "t", "--json").stdout)
    assert len(rows) == 2 and {"kind", "id", "host", "pid", "now", "finished", "state"} == set(rows[0])
    assert (head["kind"], head["pid"]) == ("head", listed["pid"]) and {row["kind"] for row in rows} == {"runner"}
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
        assert "nothing in the shared list 'nothing'" in the_error("get", "nothing", "-s", "t")
        the_error("get", "nothing", "--system", "t", "--json", output="{}\n")
        run("send", "news", "-5", "-s", "t")
        third = news.get(10)
        assert third is not None and third.value == -5
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


def test_cells(system: str) -> None:
    """1. A cell without a value. 2. It is set, and stays when the command has gone. 3. Its values are followed: the
    present one first."""
    assert "the cell 'speed' has no value" in the_error("get", "--cell", "speed", "-s", "t")
    the_error("get", "--cell", "speed", "-s", "t", "--json", output='{"cell": "speed"}\n')
    assert json.loads(run("send", "--cell", "speed", "-5", "-s", "t", "--json").stdout) == {
        "cell": "speed", "set": True,
    }  # fmt: skip
    assert run("get", "--cell", "speed", "-s", "t").stdout == "-5\n"
    run("send", "--cell", "speed", '{"x": 1}', "-s", "t")
    follower = subprocess.Popen(
        [*COMMAND, "get", "--cell", "speed", "--follow", "--count", "2", "--timeout", "20", "--json", "-s", "t"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert json.loads(follower.stdout.readline()) == {"cell": "speed", "value": {"x": 1}}
    with raskid.connect("local://t") as session, session.cell("speed") as cell:
        cell.set([2])
    output, _ = follower.communicate(timeout=20)
    assert json.loads(output) == {"cell": "speed", "value": [2]}
    error = the_error("get", "--cell", "speed", "--follow", "--timeout", "0.1", "-s", "t", output="[2]\n")
    assert "no value of the cell 'speed' for 0.1 s (1 came)" in error


def test_reactions_and_services(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Wide enough for a row in one line.
    monkeypatch.setenv("COLUMNS", "200")
    assert run("reactions", "news", "-s", "t").stdout == "nobody reacts to 'news'\n"
    assert run("reactions", "news", "-s", "t", "--json").stdout == "[]\n"
    assert "there is no service" in run("services", "-s", "t").stdout
    assert run("services", "-s", "t", "--json").stdout == "[]\n"
    with raskid.connect("local://t") as session:
        session.react("news", priority=3, value=0).filter("step", ">", 9).forward("late")
        (one,) = json.loads(run("reactions", "news", "-s", "t", "--json").stdout)
        assert (one["owner"], one["priority"], one["value"]) == (session.peer.identity.peer, 3, 0)
        titles, row = run("reactions", "news", "-s", "t").stdout.splitlines()
        assert titles.split() == ["id", "owner", "operations", "priority", "class", "value", "permanent", "suspended"]
        assert "forward('late')" in row and row.split()[-5:] == ["3", "-", "0", "-", "-"]
        session.start_service("boxes", lambda session: None)
        (one,) = json.loads(run("services", "-s", "t", "--json").stdout)
        assert (one["name"], one["state"]) == ("boxes", "running")
        assert "boxes" in run("services", "-s", "t").stdout
        session.stop_service("boxes")


def test_a_permanent_reaction_is_resumed_and_removed(system: str) -> None:
    with raskid.connect("local://t") as session:
        handle = session.react("news", permanent=True).filter("step", ">", 9).forward("late")
        handle.suspend("lunch")
        mine = session.react("news").forward("early")
        assert "is not permanent" in the_error("reactions", "news", "--remove", str(mine.id), "-s", "t")
        mine.close()
    given = ("reactions", "news", "-s", "t", "--json")
    (one,) = json.loads(run(*given).stdout)
    assert one["suspended"] == "lunch"
    assert json.loads(run(*given, "--resume", str(one["id"])).stdout) == [{**one, "suspended": ""}]
    assert "either --remove or --resume" in the_error(*given, "--resume", "1", "--remove", "1")
    assert "there is no reaction '1'" in the_error(*given, "--remove", "1")
    assert run(*given, "--remove", str(one["id"])).stdout == "[]\n"


def test_who_looks_holds_nobody_up(system: str) -> None:
    """1. The output of a follower is not read. 2. Much is published, and nothing waits for it. 3. It is read: the last
    message is there, and standard error says how many others were left out."""
    with (
        raskid.connect("local://t") as session,
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [*COMMAND, "get", "much", "--follow", "-s", "t"], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as follower,
    ):
        while not session.reactions("much"):
            session.engine.wait(lambda: False, 0.02)
        text = "x" * 1000
        for number in range(5000):
            session.publish("much", number, text)
        taken = 0
        for line in follower.stdout:
            taken += 1
            if line.startswith("4999 "):
                break
        follower.terminate()
        errors.seek(0)
        lines = errors.read().splitlines()
        left_out = [int(line.split()[1]) for line in lines if "left out before this message on 'much'" in line]
        assert taken + sum(left_out) == 5000 and left_out


def test_what_was_kept_comes_first(system: str) -> None:
    with raskid.connect("local://t") as session:
        session.react("kept").keep(count=10)
        for number in range(3):
            session.publish("kept", number)
        assert run("get", "kept", "--follow", "--history", "2", "--count", "2", "-s", "t").stdout == "1\n2\n"
        assert run("get", "kept", "--follow", "--history", "-1", "--count", "3", "-s", "t").stdout == "0\n1\n2\n"
    assert "overflow is one of block, drop_oldest" in the_error("get", "x", "--follow", "--overflow", "no", "-s", "t")


def test_errors_are_one_line(runtime: Path) -> None:
    for command in (["down", "no"], ["ps", "no"], ["send", "x", "1", "--system", "no"], ["topics", "--system", "no"]):
        assert "no system named 'no' runs on this machine" in the_error(*command)
    assert "cannot name a system" in the_error("up", "--name", "a/b")
    assert "no system runs" in run("ps").stdout


def test_errors_in_a_system(system: str) -> None:
    assert "exists already" in the_error("up", "--name", "t")
    assert "attach to it with raskid.connect('local://t'), or end it with: raskid down t" in the_error("up", "t")
    assert "begins with '@'" in the_error("send", "@x", "1", "--system", "t")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("words", "text needs quotes within: '\"words\"'"),
        ("", "an empty text is written '\"\"'"),
        ('{"a":1', "is not JSON (Expecting ',' delimiter: line 1 column 7 (char 6))"),
        ("{'a': 1}", "text within it stands in double quotes"),
        ("NaN", "NaN is not JSON; use null"),
        ("[-Infinity]", "-Infinity is not JSON"),
    ],
)
def test_values_that_are_not_json(runtime: Path, value: str, text: str) -> None:
    """Nothing is needed to find that out: not even a system."""
    assert text in the_error("send", "x", value)


def test_usage_errors_are_one_line(runtime: Path) -> None:
    assert "see: python -m raskid.cli.main get --help" in the_error("get", code=2)
    assert "No such option" in the_error("ps", "--jsn", "--json", code=2)
    assert "No such command 'nope'" in the_error("nope", code=2)
    assert "runners is a whole number from 1 to 1024, got 0" in the_error("up", "--runners", "0", "--json")
    assert "there is no script 'nope.py'" in the_error("run-test", "nope.py", code=2)
    assert "--count and --timeout go with --follow" in the_error("get", "x", "--count", "2")
    for options in (["--history", "2"], ["--overflow", "latest"], ["--follow", "--cell", "--history", "2"]):
        assert "--overflow and --history are for messages" in the_error("get", "x", *options)


def test_help_and_version() -> None:
    assert run("--version").stdout == f"raskid {raskid.__version__}\n"
    assert run("-h").stdout == run("--help").stdout == run().stdout
    for command in ("up", "down", "ps", "send", "get", "topics", "reactions", "services"):
        text = " ".join(run(command, "-h").stdout.split())
        assert "-s, --system" in text and "Default: the one in RASKID_URL, else 'default'" in text


def test_which_system_is_meant(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By option or argument, as name or as URL; else by the environment; a name with spaces is quoted in advice."""
    for command in (["ps", "a b"], ["ps", "-s", "a b"], ["down", "--name", "a b"], ["ps", "local://a b"]):
        error = the_error(*command)
        assert "no system named 'a b'" in error and error.endswith("raskid up --name 'a b'")
    assert "two systems are named, 'a' and 'b'" in the_error("ps", "a", "-s", "b")
    assert "no system named 'default'" in the_error("topics")
    monkeypatch.setenv("RASKID_URL", "local://other")
    assert "no system named 'other'" in the_error("topics")
    assert "no system named 'other'" in the_error("down")
    assert "no system named 'this'" in the_error("down", "this")
    monkeypatch.setenv("RASKID_URL", "local://?runners=2")
    assert "no system named 'default'" in the_error("topics")
    monkeypatch.setenv("RASKID_URL", "other")
    assert "environment variable RASKID_URL" in the_error("topics")


def test_a_system_is_found_by_the_environment(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. `up`, `send` and `down` name nothing. 2. All mean the system in the environment."""
    monkeypatch.setenv("RASKID_URL", "local://two words")
    lines = run("up", "--runners", "1").stdout.splitlines()
    assert "export RASKID_URL='local://two words'" in lines[1] and lines[2].endswith("raskid down 'two words'")
    run("send", "x", "1")
    assert "two words" in run("ps").stdout
    assert run("down").stdout == "local://two words has ended\n"


def test_what_a_killed_system_left_is_removed(system: str, runtime: Path) -> None:
    pid = json.loads((runtime / "t" / "session").read_bytes())["pid"]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (runtime / "t").exists():
        assert run("ps", "--json").stdout == "[]\n"
        assert time.monotonic() < deadline
