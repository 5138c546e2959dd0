"""`raskid pipe`: programs that know nothing of Raskid but JSON and lines take part in a system."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import raskid
from raskid.client.escapes import to_json
from tests.processes.helpers import wait_for

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-W", "error", "-m", "raskid.cli.main", "pipe"]
LIMIT_S = 20.0
EXAMPLES = json.loads((Path(__file__).resolve().parents[2] / "docs" / "operations.json").read_text(encoding="utf-8"))
ERRORS = {"wrong type": "TypeError", "wrong value": "ValueError"}


def environment(rk: Any) -> dict[str, str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "RASKID_URL": rk.url, "PYTHONPATH": path}


class Pipe:
    """A gateway, and the program at its other ends."""

    def __init__(self, rk: Any) -> None:
        self.process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(rk)
        )
        self.watchdog = threading.Timer(LIMIT_S, self.process.kill)
        self.watchdog.start()

    def say(self, **command: Any) -> None:
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        return json.loads(self.process.stdout.readline())

    def ask(self, **command: Any) -> Any:
        """Say something, and hear the answer, which has to be the next line."""
        self.say(**command, id="asked")
        answer = self.hear()
        assert answer["id"] == "asked" and answer["ok"], answer
        return answer

    def end(self) -> tuple[int, list[Any], str]:
        """End its input, and wait for its end: exit code, what it still says, and its errors."""
        output, errors = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, [json.loads(line) for line in output.splitlines()], errors.decode()

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.watchdog.cancel()


def run_shell(rk: Any, text: str) -> subprocess.CompletedProcess[str]:
    """Run a script of /bin/sh in which `raskid` is the command."""
    command = " ".join(f"'{part}'" for part in COMMAND[:-1])
    return subprocess.run(
        ["/bin/sh", "-c", f'raskid() {{ {command} "$@"; }}\n{text}'], check=False, capture_output=True, text=True,
        timeout=LIMIT_S, env=environment(rk),
    )  # fmt: skip


#: A program in Python without Raskid: it doubles what it is asked, and publishes what it was asked.
DOUBLER = """
import json, subprocess, sys
gateway = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
def say(**command):
    print(json.dumps(command), file=gateway.stdin, flush=True)
say(do="serve", service="double", id=1)
for line in gateway.stdout:
    event = json.loads(line)
    if event.get("id") == 1:
        print("ready", flush=True)
    elif event.get("event") == "request":
        say(do="publish", topic="doubled", args=event["args"])
        say(do="reply", request=event["request"], value=2 * event["args"][0])
        if event["args"][0] == "end":
            break
gateway.stdin.close()
assert "raskid" not in sys.modules
sys.exit(gateway.wait())
"""


def test_programs_in_other_languages_take_part(rk: Any) -> None:
    """1. A program serves requests through its gateway. 2. A shell's script asks it, through another. 3. So does this
    session, which hears what the program publishes. 4. Told so, the program ends its gateway, and no error is left."""
    program = subprocess.Popen(
        [sys.executable, "-c", DOUBLER, *COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(rk),
    )  # fmt: skip
    watchdog = threading.Timer(LIMIT_S, program.kill)
    watchdog.start()
    try:
        assert program.stdout.readline() == "ready\n", program.stderr.read()
        with rk.subscribe("doubled") as doubled:
            script = (
                """printf '%s\\n' '{"do": "request", "service": "double", "args": [21], "id": "q"}' | raskid pipe"""
            )
            done = run_shell(rk, script)
            assert (json.loads(done.stdout), done.stderr, done.returncode) == (
                {"id": "q", "ok": True, "value": 42}, "", 0,
            )  # fmt: skip
            assert rk.request("double", "x") == "xx"
            assert rk.request("double", "end") == "endend"
            assert [doubled.get(5).value for _ in range(3)] == [21, "x", "end"]
        output, errors = program.communicate(timeout=LIMIT_S)
        assert (output, errors, program.returncode) == ("", "", 0)
    finally:
        watchdog.cancel()
        program.kill()
        program.communicate()


def test_a_session_and_a_program(rk: Any) -> None:
    """Messages, requests and lists, both ways; arrays and other values that JSON does not have."""
    with Pipe(rk) as pipe, rk.subscribe("from/pipe") as messages:
        peer = pipe.ask(do="status")["peer"]
        pipe.ask(do="subscribe", topic="to/pipe", **{"as": "in"})
        rk.publish("to/pipe", np.arange(3, dtype="<i2"), n=2**70)
        event = pipe.hear()
        assert (event["event"], event["subscription"], event["publisher"]) == ("message", "in", rk.peer.identity.peer)
        assert event["args"] == [{"$array": {"dtype": "<i2", "shape": [3], "data": "AAABAAIA"}}]
        assert event["fields"] == {"n": {"$int": str(2**70)}}
        pipe.say(do="publish", topic="from/pipe", args=event["args"], fields=event["fields"])
        message = messages.get(5)
        assert message.value.tolist() == [0, 1, 2] and message["n"] == 2**70 and message.publisher == peer

        shared = rk.shared("of/pipe")
        shared["mine"] = 1
        assert pipe.ask(do="shared", name="of/pipe")["records"] == {"mine": 1}
        shared["mine"] = b"2"
        assert pipe.hear() == {
            "event": "change", "list": "of/pipe", "key": "mine", "value": {"$bytes": "Mg=="}, "deleted": False,
        }  # fmt: skip
        pipe.say(do="put", name="of/pipe", key="theirs", value={"a": []})
        shared.wait(lambda records: "theirs" in records, 5)
        assert shared["theirs"] == {"a": []}
        assert pipe.hear()["key"] == "theirs"
        pipe.say(do="put", name="of/pipe", key="mine", value=1)
        error = pipe.hear()
        assert (error["event"], error["error"], error["line"]) == ("error", "NotAllowed", 6)

        rk.serve("fails", lambda: 1 / 0)
        pipe.say(do="request", service="fails", id=5)
        answer = pipe.hear()
        assert (answer["id"], answer["ok"], answer["kind"]) == (5, False, "ZeroDivisionError")
        rk.unserve("fails")
        pipe.ask(do="serve", service="ask/pipe")
        future = rk.request_nowait("ask/pipe", 1, x=2)
        rk.engine.flush()
        request = pipe.hear()
        pipe.say(do="reply", request=request["request"], error="ValueError", text="not today")
        with pytest.raises(raskid.RemoteError, match="ValueError: not today") as caught:
            future.result(5)
        assert caught.value.kind == "ValueError"
        assert pipe.end() == (0, [], "")
        # What it put has gone with it.
        shared.wait(lambda records: "theirs" not in records, 5)
        shared.close()
        with pytest.raises(raskid.NoSuchService):
            rk.request("ask/pipe", timeout=0.1)


def test_cells(rk: Any) -> None:
    """1. The value that a cell has is told. 2. So are those that this session sets, and the program's own. 3. What the
    program set stays when it has gone."""
    cell = rk.cell("of/pipe")
    cell.set({"step": 1})
    with Pipe(rk) as pipe:
        assert pipe.ask(do="cell", name="of/pipe") == {"id": "asked", "ok": True}
        value = {"event": "value", "cell": "of/pipe"}
        assert pipe.hear() == {**value, "value": {"step": 1}}
        cell.set(b"2")
        assert pipe.hear() == {**value, "value": {"$bytes": "Mg=="}}
        pipe.say(do="set", name="of/pipe", value=3)
        assert pipe.hear() == {**value, "value": 3}
        pipe.ask(do="uncell", name="of/pipe")
        pipe.ask(do="set", name="of/pipe", value=4)
        assert pipe.end() == (0, [], "")
    assert cell.wait(lambda found: found == 4, 5) == 4
    cell.close()


def test_reactions(rk: Any) -> None:
    """1. A program reacts at this session: what its chain gives is told, and failures are. 2. It stops it for a while.
    3. A chain into a cell, too. 4. Nothing of them is left when it has gone."""
    with Pipe(rk) as pipe:
        chain = [["filter", [["x", ">", 1]]], {"op": "choose", "args": ["x"]}, ["deliver"]]
        answer = pipe.ask(do="react", topic="react/pipe", operations=chain, **{"as": "r"})
        assert answer == {"id": "asked", "ok": True, "reaction": "r", "silent": []}
        rk.publish("react/pipe", x=1)
        rk.publish("react/pipe", x=2, y=b"much")
        event = pipe.hear()
        assert (event["subscription"], event["args"], event["fields"]) == ("r", [], {"x": 2})
        rk.publish("react/pipe", x="text")
        event = pipe.hear()
        assert (event["event"], event["reaction"], event["operation"]) == ("failure", "r", 0)
        assert (event["error"], event["message"]) == ("TypeError", {"args": [], "fields": {"x": "text"}})
        pipe.ask(do="suspend", **{"as": "r"}, why="lunch")
        (one,) = pipe.ask(do="reactions", topic="react/pipe")["reactions"]
        assert one["suspended"] == "lunch" and one["owner"] == pipe.ask(do="status")["peer"]
        rk.publish("react/pipe", x=3)
        pipe.ask(do="resume", **{"as": "r"})
        rk.publish("react/pipe", x=4)
        assert pipe.hear()["fields"] == {"x": 4}
        pipe.ask(do="react", topic="react/pipe", operations=[["set", ["cells:by/pipe", "value"]]])
        with rk.cell("by/pipe") as cell:
            rk.publish("react/pipe", x=0)
            assert cell.wait(None, 5) == {"x": 0}
        assert pipe.end() == (0, [], "")
    assert rk.reactions("react/pipe") == []


def test_a_reaction_that_fails_again_and_again(rk: Any) -> None:
    """It is suspended, and the last failure that is told says so."""
    with Pipe(rk) as pipe:
        pipe.ask(do="react", topic="fails/pipe", operations=[["reduce", [], {"how": "mean", "count": 1}], ["deliver"]])
        for _ in range(10):
            rk.publish("fails/pipe", "text")
        event = pipe.hear()
        while not event["suspended"]:
            event = pipe.hear()
        assert event["failures"] == 10
        assert pipe.end() == (0, [], "")


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"operations": [["fitler", [["x", ">", 1]]]]}, "ValueError", "Did you mean 'filter'"),
        ({"operations": [["deliver"]], "permanent": True}, "ValueError", "cannot deliver here"),
        ({"operations": [["deliver"]], "history": "all"}, "TypeError", "history is a whole number"),
        ({"operations": [["deliver"]], "ack": True}, "ValueError", "a class"),
        ({"operations": [["deliver"]] * 70}, "ValueError", "at most 64"),
        ({"operations": [["deliver"]], "priority": 1.5}, "TypeError", "priority"),
    ],
)
def test_reactions_that_are_none(rk: Any, given: dict[str, Any], error: str, text: str) -> None:
    """Each is refused with its answer, leaves nothing in the system, and nothing on standard error at the end."""
    with Pipe(rk) as pipe:
        pipe.say(do="react", topic="none/pipe", id=1, **given)
        answer = pipe.hear()
        assert (answer["ok"], answer["error"]) == (False, error) and text in answer["text"]
        assert pipe.ask(do="reactions", topic="none/pipe")["reactions"] == []
        assert pipe.end() == (0, [], "")


def test_members_of_a_class(rk: Any) -> None:
    """1. A program takes three messages of a class, and is through with the second. 2. It goes, and the others are for
    this session, which has joined the class meanwhile."""
    with Pipe(rk) as pipe, raskid.connect(rk.url) as publisher:
        pipe.ask(do="subscribe", topic="class/pipe", one_of="c", ack=True)
        for number in range(3):
            publisher.publish("class/pipe", number)
        told = [pipe.hear() for _ in range(3)]
        assert [(event["args"], event["number"], event["again"]) for event in told] == [
            ([number], number + 1, False) for number in range(3)
        ]
        pipe.ask(do="done", **{"as": "class/pipe"}, publisher=told[1]["publisher"], number=told[1]["number"])
        with rk.subscribe("class/pipe", one_of="c", ack=True) as other:
            assert pipe.end() == (0, [], "")
            taken = [other.get(5) for _ in range(2)]
            assert sorted((message.value, message.again) for message in taken) == [(0, True), (2, True)]


def test_what_is_kept_and_what_is_asked_for(rk: Any) -> None:
    """1. A program has messages kept, and subscribes with those that were published before. 2. One that pulls gets
    what is published after it has asked."""
    with Pipe(rk) as pipe:
        pipe.ask(do="react", topic="kept/pipe", operations=[["keep", [], {"count": 2}]], **{"as": "keeps"})
        for number in range(3):
            rk.publish("kept/pipe", number, x=number)
        pipe.ask(do="subscribe", topic="kept/pipe", history=-1, fields=["x"])
        assert [pipe.hear()["fields"] for _ in range(2)] == [{"x": 1}, {"x": 2}]
        pipe.ask(do="subscribe", topic="asked/pipe", pull=True)
        asked = []
        rk.publish("asked/pipe", lambda: asked.append("too early"))
        pipe.ask(do="ask", **{"as": "asked/pipe"})
        wait_for(lambda: rk.publish("asked/pipe", lambda: asked.append("made") or "made") or asked)
        assert pipe.hear()["args"] == ["made"] and asked == ["made"]
        assert pipe.end() == (0, [], "")


def test_the_examples_of_the_table_of_operations(rk: Any) -> None:
    """1. One program installs the chains of all examples that do not depend on time. 2. Another publishes their
    messages. 3. The first is told what the examples say, and of each failure that they want."""
    examples = [example for example in EXAMPLES["chains"] if not depends_on_time(example)]
    assert len(examples) > 80
    wanted: dict[str, tuple[list[Any], list[str]]] = {}
    with Pipe(rk) as reader, Pipe(rk) as writer:
        publishes = []
        for number, example in enumerate(examples):
            operations = [[op, *map(escaped, rest)] for op, *rest in example["operations"]]
            reader.say(do="react", topic=f"example/{number}", operations=[*operations, ["deliver"]], id=number)
            steps = [step for step in example["steps"] if "message" in step]
            publishes += [{"do": "publish", "topic": f"example/{number}", **escaped(step["message"])} for step in steps]
            given = [escaped(message) for step in steps for message in step.get("gives", ())]
            wanted[f"example/{number}"] = given, [ERRORS[step["raises"]] for step in steps if "raises" in step]
        answers = [reader.hear() for _ in examples]
        assert all(answer["ok"] for answer in answers), answers
        for at, publish in enumerate(publishes):
            writer.say(**publish, id=at)
        assert all(writer.hear()["ok"] for _ in publishes)
        told: dict[str, tuple[list[Any], list[str]]] = {name: ([], []) for name in wanted}
        while any(len(told[name][kind]) < len(wanted[name][kind]) for name in wanted for kind in (0, 1)):
            event = reader.hear()
            if event["event"] == "message":
                told[event["subscription"]][0].append({"args": event["args"], "fields": event["fields"]})
            else:
                told[event["reaction"]][1].append(event["error"])
        for name, example in zip(wanted, examples, strict=True):
            assert told[name] == wanted[name], example["name"]
        assert writer.end() == (0, [], "")
        code, left, errors = reader.end()
        assert (code, errors) == (0, "")
        # What windows still hold may be told at the end; of everything else that was all.
        windows = {"reduce", "gather"}
        for event in left:
            chain = examples[int(event["subscription"].partition("/")[2])]
            assert windows & {operation[0] for operation in chain["operations"]}, (chain["name"], event)


def depends_on_time(example: dict[str, Any]) -> bool:
    """Whether an operation of its chain looks at a clock."""
    return any({"seconds", "rate"} & fields.keys() for _, _, fields in example["operations"])


def escaped(value: Any) -> Any:
    """What the examples say, as lines of JSON say it: they have a way of their own to write an array."""
    if isinstance(value, list):
        return [escaped(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$array" in value:
        return to_json(np.array(value["$array"], value["dtype"]))
    return {name: escaped(item) for name, item in value.items()}


def test_what_was_published_last_arrives(rk: Any) -> None:
    with rk.subscribe("last") as messages:
        lines = "".join(f'{{"do": "publish", "topic": "last", "args": [{n}]}}\\n' for n in range(50))
        done = run_shell(rk, f"printf '{lines}' | raskid pipe")
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
        assert [messages.get(5).value for _ in range(50)] == list(range(50))


def test_a_slow_program_holds_its_publisher_up(rk: Any) -> None:
    """1. The program subscribes, and reads nothing. 2. A publisher comes to a stop. 3. The program reads, and has every
    message, in order."""
    with Pipe(rk) as pipe:
        pipe.ask(do="subscribe", topic="much", capacity=10)
        sent = []

        def publish() -> None:
            for number in range(5000):
                rk.publish("much", number, "x" * 100)
                sent.append(number)

        publisher = threading.Thread(target=publish)
        publisher.start()
        count = -1
        while count != len(sent):
            count = len(sent)
            publisher.join(0.1)
        assert publisher.is_alive() and count < 4000
        assert [pipe.hear()["args"][0] for _ in range(5000)] == list(range(5000))
        publisher.join()
        assert pipe.end() == (0, [], "")


def test_the_other_ends_go_away(own: Any) -> None:
    """1. Nobody reads its output any more: it ends without a word. 2. Of one that is killed nothing is left in the
    system. 3. The system ends: it says so, and fails."""
    with Pipe(own) as pipe:
        pipe.ask(do="subscribe", topic="t")
        pipe.process.stdout.close()
        own.publish("t", 1)
        assert pipe.process.wait(LIMIT_S) == 0
        assert pipe.process.stderr.read() == b""
        pipe.process.stdout = None
    with Pipe(own) as pipe:
        pipe.ask(do="subscribe", topic="t")
        pipe.process.send_signal(signal.SIGKILL)
        wait_for(lambda: not own.topics("reactions:t").get("reactions:t", {"records": 0})["records"])
    with Pipe(own) as pipe:
        pipe.ask(do="subscribe", topic="t")
        psutil.Process(own.status()["head"]["pid"]).kill()
        end = pipe.hear()
        assert end["event"] == "end" and end["text"]
        code, said, errors = pipe.end()
        assert (code, said) == (1, []) and errors.startswith("raskid: ") and len(errors.splitlines()) == 1


@pytest.fixture
def with_command(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`raskid` is a command, also where it is not installed."""
    command = tmp_path / "raskid"
    command.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m raskid.cli.main \"$@\"\n")
    command.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("with_command")
def test_the_examples_of_the_document(rk: Any) -> None:
    """1. A shell publishes, asks, takes five messages, and reacts. 2. A program serves."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "pipe.md").read_text(encoding="utf-8")
    shell, program = (re.findall(rf"^```{kind}\n(.*?)^```$", text, re.M | re.S)[-1] for kind in ("sh", "python"))
    publish, ask, take, react = shell.split("\n\n")
    with rk.subscribe("mesh/ready") as messages:
        run_shell(rk, publish)
        assert messages.get(5)["step"] == 3
    rk.serve("add", lambda a, b: a + b)
    assert f"# {run_shell(rk, ask).stdout}" == ask.split("\n", 1)[1] + "\n"
    rk.unserve("add")

    def reacted() -> bool:
        found = rk.topics("reactions:mesh/ready").get("reactions:mesh/ready")
        return bool(found and found["records"])

    with in_group(rk, ["/bin/sh", "-c", take]) as taker:
        wait_for(reacted)
        for step in range(6):
            rk.publish("mesh/ready", step=step)
        assert taker.communicate(timeout=LIMIT_S)[0] == "0\n1\n2\n3\n4\n"
    wait_for(lambda: not reacted())
    with in_group(rk, ["/bin/sh", "-c", react]) as taker:
        wait_for(reacted)
        for step in range(5):
            rk.publish("mesh/ready", step=step, mesh=[step])
        lines = [json.loads(taker.stdout.readline()) for _ in range(2)]
        assert [line["fields"] for line in lines] == [{"step": 0}, {"step": 3}]
    with in_group(rk, [sys.executable, "-c", program]):
        assert rk.request("double", 21, timeout=LIMIT_S) == 42


@contextlib.contextmanager
def in_group(rk: Any, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with all that it started."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env=environment(rk), text=True, start_new_session=True
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_files_and_no_system(rk: Any, tmp_path: Any) -> None:
    (tmp_path / "in").write_text('{"do": "topics", "id": 1}\nnonsense\n{"do": "status", "id": 2}')
    done = run_shell(rk, f"raskid pipe < {tmp_path}/in > {tmp_path}/out")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert sorted(line["line"] if "line" in line else line["id"] for line in lines) == [1, 2, 2]
    done = run_shell(rk, "raskid pipe < /dev/null; raskid pipe --system nowhere")
    assert (done.stdout, done.returncode) == ("", 1) and "no system named 'nowhere'" in done.stderr
