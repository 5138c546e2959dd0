"""Services with real processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

import raskid
from raskid.core.steward import HELPER_FACTORY
from raskid.services.recorder import read
from tests.processes.helpers import alive, family, head_pid, nothing_left, run_script, wait_for

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "service.py"


class Adder:
    """Serves requests under its name; its end leaves a file when it is given one."""

    def __init__(self, session, name, base=0, left=""):
        self.base = base
        self.left = left
        self.session = session
        session.serve(name, self.add)

    def add(self, value):
        return self.base + value

    def close(self):
        if self.left:
            Path(self.left).write_text("closed")


def named(rk, name):
    """What `services` says of one."""
    return next((one for one in rk.services() if one["name"] == name), None)


def running(rk, name, incarnation):
    """A condition: this incarnation serves."""

    def condition():
        one = named(rk, name)
        return one is not None and (one["state"], one["incarnation"]) == ("running", incarnation)

    return condition


def test_a_service_lives_between_start_and_stop(rk, tmp_path):
    left = tmp_path / "left"
    rk.start_service("adder", Adder, name="add", base=10, left=str(left))
    assert rk.request("add", 5) == 15
    one = named(rk, "adder")
    assert one["state"] == "running" and one["peer"].startswith("client-") and one["incarnation"] == 1
    process = psutil.Process(one["pid"])
    assert process in family(head_pid(rk)) and one["pid"] != os.getpid()
    rk.stop_service("adder")
    assert not alive(process) and left.read_text() == "closed" and named(rk, "adder") is None
    with pytest.raises(raskid.NotRunning, match="no service 'adder' runs"):
        rk.stop_service("adder")


def test_factories_of_all_kinds(rk, tmp_path, monkeypatch):
    """A function by value, with what it captured; the name of one in a module that only this script can import."""
    (tmp_path / "module_of_the_test.py").write_text("def make(session, name): session.serve(name, lambda: 'by name')")
    monkeypatch.syspath_prepend(str(tmp_path))
    captured = {"a": [1, 2]}

    def make(session):
        session.serve("captured", lambda: captured)

    rk.start_service("by-value", make)
    rk.start_service("by-name", "module_of_the_test:make", name="named")
    assert rk.request("captured") == captured and rk.request("named") == "by name"
    for name in ("by-value", "by-name"):
        rk.stop_service(name)


def fail(session):
    raise ValueError("no luck")


def leave(session):
    raise SystemExit(3)


def crash(session):
    print("the last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (fail, r"in fail\n(.*\n)*ValueError: no luck"),
        (leave, "SystemExit: 3"),
        (crash, r"SIGKILL \(9\); the last it wrote:\nthe last words"),
        ("nowhere:x", "No module named 'nowhere'"),
        ("os:nope", r"has no 'nope'"),
        ("os:sep", "not callable"),
        (Adder, "missing 1 required positional argument: 'name'"),
    ],
    ids=str,
)
def test_one_that_cannot_begin_says_why(rk, capfd, factory, text):
    with pytest.raises(raskid.StartFailed, match=text):
        rk.start_service("broken", factory)
    assert named(rk, "broken")["state"] == "failed"


def test_what_cannot_be_sent_is_named(rk):
    lock = threading.Lock()

    def captures(session):
        return lock

    async def coroutine(session):
        pass

    for error, text, factory, settings in [
        (TypeError, "'lock', which .*captures uses, is a lock", captures, {}),
        (TypeError, r"setting 'x' of service 's'\[1\] is a lock", fail, {"x": [1, lock]}),
        (TypeError, "coroutine function", coroutine, {}),
        (TypeError, "factory is something to call", 7, {}),
        (ValueError, "module:attribute", "no name", {}),
        (ValueError, "the limit is", fail, {"x": bytes(17 << 20)}),
        (ValueError, "600 s to begin", fail, {"timeout": 601}),
        (TypeError, "timeout is a number", fail, {"timeout": "long"}),
    ]:
        with pytest.raises(error, match=text):
            rk.start_service("s", factory, **settings)
    with pytest.raises(raskid.TopicNameError):
        rk.start_service("@s", fail)
    assert named(rk, "s") is None


def test_one_that_hangs_is_ended_at_the_limit(rk):
    def hang(session):
        threading.Event().wait()

    before = set(family(head_pid(rk)))
    with pytest.raises(raskid.StartFailed, match=r"'slow' did not begin within 0.2 s, and was ended"):
        rk.start_service("slow", hang, timeout=0.2)
    assert named(rk, "slow") is None and set(family(head_pid(rk))) <= before


def test_a_name_is_taken_once(rk):
    rk.start_service("once", Adder, name="once")
    with pytest.raises(raskid.StartFailed, match=r"is there already \(running.*Stop it first"):
        rk.start_service("once", Adder, name="once")
    assert rk.request("once", 1) == 1
    rk.stop_service("once")


def test_one_that_is_killed_is_started_again(rk):
    rk.start_service("tough", Adder, name="tough", base=1)
    os.kill(named(rk, "tough")["pid"], signal.SIGKILL)
    wait_for(running(rk, "tough", 2), what="its second incarnation")
    assert rk.request("tough", 1) == 2
    rk.stop_service("tough")


def test_one_that_is_killed_again_and_again_is_given_up(rk):
    rk.start_service("doomed", Adder, name="doomed")
    for number in range(1, 5):
        wait_for(running(rk, "doomed", number))
        os.kill(named(rk, "doomed")["pid"], signal.SIGKILL)
    one = wait_for(lambda: named(rk, "doomed")["state"] == "failed" and named(rk, "doomed"))
    assert "given up after 4 crashes" in one["why"] and "SIGKILL" in one["why"] and one["pid"] == 0
    rk.start_service("doomed", Adder, name="doomed")
    rk.stop_service("doomed")


def test_one_that_ends_its_session_has_ended(rk):
    def brief(session):
        session.subscribe("leave", lambda message: threading.Thread(target=session.close).start())

    rk.start_service("brief", brief)
    rk.publish("leave")
    one = wait_for(lambda: named(rk, "brief")["state"] == "ended" and named(rk, "brief"))
    assert one["why"] == "ended by itself"
    rk.start_service("brief", brief)
    rk.stop_service("brief")


def test_all_end_with_the_system_in_order(runtime, tmp_path):
    left = tmp_path / "left"
    with raskid.connect("local://?runners=1") as rk:
        rk.start_service("adder", Adder, name="add", left=str(left))
        processes = family(head_pid(rk))
    nothing_left(processes, os.path.join(runtime, rk.url.removeprefix("local://")))
    assert left.read_text() == "closed"


def test_none_outlives_a_head_that_is_killed(runtime):
    with raskid.connect("local://?runners=1") as rk:
        rk.start_service("adder", Adder, name="add")
        processes = family(head_pid(rk))
        os.kill(head_pid(rk), signal.SIGKILL)
    nothing_left(processes, os.path.join(runtime, rk.url.removeprefix("local://")))


def test_it_needs_the_role(rk):
    with raskid.connect(f"{rk.url}?role=message") as limited:
        with pytest.raises(raskid.NotAllowed, match="execute"):
            limited.start_service("s", fail)
        with pytest.raises(raskid.NotAllowed, match="execute"):
            limited.stop_service("s")
        assert limited.services() == rk.services()


def test_in_asyncio(rk):
    async def main():
        async with raskid.connect(rk.url) as ark:
            await ark.start_service("async", Adder, name="async", base=3)
            assert await ark.request("async", 4) == 7
            assert "async" in [one["name"] for one in await ark.services()]
            await ark.stop_service("async")
            with pytest.raises(raskid.NotRunning):
                await ark.stop_service("async")
            with pytest.raises(raskid.StartFailed, match=r"within 0\.2 s"):
                await ark.start_service("slow", lambda session: threading.Event().wait(), timeout=0.2)
            waiting = asyncio.create_task(ark.start_service("slow", lambda session: threading.Event().wait()))
            while named(rk, "slow") is None:
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            while named(rk, "slow") is not None:
                await asyncio.sleep(0.01)
            with pytest.raises(AttributeError, match="did you mean 'publish'"):
                ark.publsh  # noqa: B018

    asyncio.run(main())


def test_ps_shows_services(rk):
    with pytest.raises(raskid.StartFailed):
        rk.start_service("broken", fail)
    rk.start_service("helper", HELPER_FACTORY)
    command = [sys.executable, "-m", "raskid.cli.main", "ps", rk.url, "--json"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=env)
    rows = {row["id"]: row for row in json.loads(done.stdout) if row["kind"] == "service"}
    assert rows["broken"]["state"] == "failed ValueError: no luck" and rows["broken"]["pid"] is None
    assert (rows["helper"]["state"], rows["helper"]["pid"]) == ("running", named(rk, "helper")["pid"])
    rk.stop_service("helper")


# ── Extensions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_that_is_nothing(rk):
    with pytest.raises(AttributeError, match=r"'recoder'; did you mean 'recorder'\?.*extensions here: "):
        rk.recoder  # noqa: B018
    assert not hasattr(rk, "_nothing") and rk.recorder is rk.recorder


def test_the_recorder_writes_what_was_published(rk, tmp_path):
    """Everything that was published before `stop`, in order; also in asyncio; never over a file that is there."""
    path = tmp_path / "file"
    rk.recorder.start("run", ["a", "b"], path)
    for number in range(200):
        rk.publish("a", number, square=number * number)
    rk.publish("b", [1, 2])
    rk.recorder.stop("run")
    found = list(read(path))
    assert [one.args[0] for one in found if one.topic == "a"] == list(range(200))
    assert found[5].fields == {"square": 25} and found[5].publisher == rk.peer.identity.peer
    assert [one.args for one in found if one.topic == "b"] == [([1, 2],)]
    with pytest.raises(raskid.StartFailed, match="File exists"):
        rk.recorder.start("run", ["a"], path)

    async def main():
        async with raskid.connect(rk.url) as ark:
            await ark.recorder.start("second", ["a"], tmp_path / "second")
            await ark.publish("a", "hello")
            await ark.recorder.stop("second")

    asyncio.run(main())
    assert [one.args for one in read(tmp_path / "second")] == [("hello",)]


def test_the_example():
    """A service and an extension of a user's, and another recorder in the place of the built-in one."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE)], check=False, capture_output=True, text=True, timeout=60, env=env
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "services: board, run1\n"
        'recorded: ["board/points", "Ann", 3] ["board/points", "Bob", 5] ["board/points", "Ann", 7] '
        '["board/points", "Eve", 1]\n'
        "best: [['Ann', 7], ['Bob', 5]]\n"
    )


# ── The manager ──────────────────────────────────────────────────────────────────────────────────────────────────────

COUNTING = """
from raskid.core.events import Received
from raskid.core.manager import Manager
from raskid.protocol.messages import Status, SubmitTasks

print("on standard output, where the head answers whoever started it")


class Counting(Manager):
    def __init__(self, own):
        super().__init__(own)
        self.submitted = 0

    def handle(self, event, now):
        if isinstance(event, Received) and isinstance(event.message, SubmitTasks):
            self.submitted += sum(task.count or 1 for task in event.message.tasks)
        effects = super().handle(event, now)
        for effect in effects:
            if isinstance(getattr(effect, "message", None), Status):
                effect.message.facts["submitted"] = self.submitted
        return effects
"""


def test_another_manager(tmp_path):
    """It is imported from where the script imports."""
    (tmp_path / "counting.py").write_text(COUNTING)
    text = """
import raskid
with raskid.connect("local://?runners=1&manager=counting:Counting") as rk:
    print(rk.gather(rk.map(abs, range(-3, 0))), rk.status()["submitted"])
"""
    assert run_script(text, tmp_path) == (0, "[3, 2, 1] 3\n", "")


@pytest.mark.parametrize(
    ("manager", "text"),
    [
        ("nowhere:x", "the manager 'nowhere:x' cannot be used: No module named 'nowhere'"),
        ("os:nope", "has no 'nope'"),
        ("nobody", "no package brings a manager named 'nobody'"),
        ("os:getpid", "cannot be a manager"),
    ],
)
def test_a_manager_that_cannot_be_used(manager, text):
    with pytest.raises(raskid.StartFailed, match=text):
        raskid.connect("local://?runners=1", manager=manager)
