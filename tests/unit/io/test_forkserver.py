"""The fork server: runners start, their ends are told in words, and nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raskid.io import forkserver as module
from raskid.io.forking import describe_status
from raskid.io.forkserver import Exited, Forked, ForkServer, ServerLost
from raskid.io.outbox import Entry, Outbox
from raskid.model.errors import LocalProtocolError
from raskid.model.ids import PeerId

SOURCE = str(Path(module.__file__).parents[2])
LIMIT_S = 20.0

TARGETS = """
import json, os, signal, subprocess, sys, time

def code(config, outbox_fd):
    return int(config)

def leave(config, outbox_fd):
    sys.exit(json.loads(config))

def fail(config, outbox_fd):
    raise ValueError("no good")

def die(config, outbox_fd):
    os.kill(os.getpid(), int(config))

def outbox(config, outbox_fd):
    from raskid.io.outbox import Outbox
    Outbox.attach(outbox_fd).try_write(1, 1, True, 0.0, b"client", config)

def facts(config, outbox_fd):
    import random
    print(json.dumps({
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
        "outbox": outbox_fd, "sid": os.getsid(0), "pid": os.getpid(), "stdin": sys.stdin.read(),
        "omp": os.environ["OMP_NUM_THREADS"], "mkl": os.environ["MKL_NUM_THREADS"],
        "numpy": "numpy" in sys.modules, "messages": "raskid.protocol.messages" in sys.modules,
        "handlers": [signal.getsignal(n) == signal.SIG_DFL for n in (signal.SIGCHLD, signal.SIGTERM)],
        "random": random.random(), "argv": sys.argv, "agent": "raskid.io.forkserver" in sys.modules,
    }))

def speak(config, outbox_fd):
    print("to output")
    print("to errors", file=sys.stderr)

def family(config, outbox_fd):
    child = subprocess.Popen(["sleep", "600"])
    print(child.pid, flush=True)
    if config == b"leave":
        return 0
    time.sleep(600)
"""


class World:
    """A fork server, and what it has said so far."""

    def __init__(self, folder: Path) -> None:
        (folder / "runner_targets.py").write_text(TARGETS)
        env = {**os.environ, "PYTHONPATH": f"{SOURCE}:{folder}", "MKL_NUM_THREADS": "3"}
        env.pop("OMP_NUM_THREADS", None)
        self.server = ForkServer.start(env=env)
        self.events: list[Forked | Exited | ServerLost] = []
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the world

    def fork(
        self,
        name: str,
        target: str,
        config: bytes = b"",
        outbox_fd: int = -1,
        incarnation: int = 1,
        output: bool = True,
    ) -> None:
        fds = [outbox_fd, self.log.fileno() if output else -1, self.log.fileno()]
        self.server.fork(PeerId(name), incarnation, config, fds, f"runner_targets:{target}")

    def receive_until(self, enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not enough():
            assert time.monotonic() < deadline, self.events
            select.select([self.server], [], [], 0.05)
            self.events += self.server.receive()

    def exited(self, count: int = 1) -> list[Exited]:
        self.receive_until(lambda: len(self._exited()) >= count)
        return self._exited()

    def _exited(self) -> list[Exited]:
        return [event for event in self.events if isinstance(event, Exited)]

    def pid_of(self, name: str) -> int:
        self.receive_until(lambda: any(isinstance(event, Forked) and event.runner == name for event in self.events))
        return next(event.pid for event in self.events if isinstance(event, Forked) and event.runner == name)

    def text(self) -> str:
        return os.pread(self.log.fileno(), 100_000, 0).decode()

    def subprocess_pid(self) -> int:
        self.receive_until(lambda: self.text().endswith("\n"))
        return int(self.text())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.server.close()
    world.log.close()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_ended(*pids: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.005)


def test_ends_are_told_in_words(world: World) -> None:
    """1. Runners end in every way. 2. Each is reported as forked, then as ended, with the reason in words."""
    segmentation = str(int(signal.SIGSEGV)).encode()
    cases = [
        ("code", b"0", "exit code 0"),
        ("code", b"3", "exit code 3"),
        ("leave", b"null", "exit code 0"),
        ("leave", b"4", "exit code 4"),
        ("leave", b'"a text"', "exit code 1"),
        ("fail", b"", "exit code 1"),
        ("die", segmentation, "killed by signal SIGSEGV (11)"),
        ("no_such_function", b"", "exit code 1"),
    ]
    for number, (target, config, _reason) in enumerate(cases):
        world.fork(f"r{number}", target, config)
    reasons = {event.runner: event.reason for event in world.exited(len(cases))}
    assert reasons == {f"r{number}": reason for number, (_target, _config, reason) in enumerate(cases)}
    for number in range(len(cases)):
        mine = [event for event in world.events if not isinstance(event, ServerLost) and event.runner == f"r{number}"]
        assert [type(event) for event in mine] == [Forked, Exited]
        assert mine[0].pid == mine[1].pid > 0
    assert "ValueError: no good" in world.text()
    assert "a text" in world.text()
    assert "no_such_function" in world.text()


def test_status_in_words() -> None:
    assert describe_status(3 << 8) == "exit code 3"
    assert describe_status(9) == "killed by signal SIGKILL (9)"
    assert describe_status(33) == "killed by signal unknown (33)"


def test_what_a_runner_is_given(world: World) -> None:
    """1. Two runners report on themselves. 2. They have nothing but what was passed, and differ in random numbers."""
    import json

    with contextlib.closing(Outbox.create(1024)) as outbox:
        world.fork("r", "facts", outbox_fd=outbox.fileno())
        world.exited(1)
        world.fork("r", "facts", outbox_fd=outbox.fileno(), incarnation=2)
        world.exited(2)
    first, second = (json.loads(line) for line in world.text().splitlines())
    assert first["fds"] == sorted({0, 1, 2, first["outbox"]})
    assert first["pid"] == first["sid"] == world.pid_of("r")
    assert first["stdin"] == ""
    assert (first["omp"], first["mkl"]) == ("1", "3")
    assert not first["numpy"]
    assert first["messages"]
    assert first["handlers"] == [True, True]
    assert first["random"] != second["random"]
    assert first["argv"] == [""]
    assert not first["agent"]


def test_output_without_a_descriptor_goes_where_errors_go(world: World) -> None:
    world.fork("r", "speak", output=False)
    world.exited(1)
    assert sorted(world.text().splitlines()) == ["to errors", "to output"]


def test_what_runners_write_never_reaches_the_servers_own_file(world: World) -> None:
    """1. A runner without descriptors writes and fails. 2. The server's file, which nobody cuts, stays empty."""
    world.server.fork(PeerId("r"), 1, b"", [-1, -1, -1], "runner_targets:speak")
    world.server.fork(PeerId("s"), 1, b"", [-1, -1, -1], "runner_targets:fail")
    world.exited(2)
    assert os.fstat(world.server._stderr).st_size == 0


def test_runner_writes_to_its_outbox(world: World) -> None:
    with contextlib.closing(Outbox.create(1024)) as outbox:
        world.fork("r", "outbox", b"value", outbox.fileno())
        assert world.exited()[0].reason == "exit code 0"
        assert outbox.read() == [Entry(1, 1, True, 0.0, "client", b"value")]


def test_large_configurations(world: World) -> None:
    """1. Many forks with large configurations are sent at once. 2. Each runner gets its own, with its own outbox."""
    with contextlib.ExitStack() as stack:
        outboxes = [stack.enter_context(contextlib.closing(Outbox.create(1 << 20))) for _ in range(8)]
        configs = [bytes([number]) * 200_000 for number in range(8)]
        for number, (outbox, config) in enumerate(zip(outboxes, configs, strict=True)):
            world.fork(f"r{number}", "outbox", config, outbox.fileno())
        assert {event.reason for event in world.exited(8)} == {"exit code 0"}
        assert [outbox.read()[0].value for outbox in outboxes] == configs


def test_kill_takes_subprocesses_along(world: World) -> None:
    world.fork("r", "family")
    child = world.subprocess_pid()
    world.server.kill(PeerId("nobody"))
    world.server.kill(PeerId("r"))
    assert world.exited()[0].reason == "killed by signal SIGKILL (9)"
    wait_ended(child, world.pid_of("r"))


def test_kill_right_after_fork(world: World) -> None:
    """The runner may not have made its process group yet; it is killed all the same."""
    for number in range(20):
        world.fork(f"r{number}", "family")
        world.server.kill(PeerId(f"r{number}"))
    assert {event.reason for event in world.exited(20)} == {"killed by signal SIGKILL (9)"}


def test_subprocesses_do_not_outlive_their_runner(world: World) -> None:
    world.fork("r", "family", b"leave")
    child = world.subprocess_pid()
    assert world.exited()[0].reason == "exit code 0"
    wait_ended(child)


def test_close_ends_everything(world: World) -> None:
    world.fork("r", "family")
    child, runner = world.subprocess_pid(), world.pid_of("r")
    world.server.close()
    assert not is_running(runner)
    wait_ended(child, world.server.pid)
    world.server.close()
    assert world.server.receive() == []
    with pytest.raises(LocalProtocolError, match="closed"):
        world.server.kill(PeerId("r"))


def test_close_kills_a_server_that_is_stopped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The server is stopped and cannot end by itself. 2. Closing kills it, the runner and the subprocess."""
    monkeypatch.setattr(module, "_CLOSE_S_MAX", 0.05)
    world.fork("r", "family")
    child, runner = world.subprocess_pid(), world.pid_of("r")
    os.kill(world.server.pid, signal.SIGSTOP)
    world.server.close()
    wait_ended(child, runner, world.server.pid)


def test_server_is_killed(world: World) -> None:
    """1. The server is killed. 2. Its runner and the subprocess die. 3. Both losses are told once, runners first."""
    world.fork("r", "family")
    child, runner = world.subprocess_pid(), world.pid_of("r")
    world.events.clear()
    os.kill(world.server.pid, signal.SIGKILL)
    world.receive_until(lambda: len(world.events) == 2)
    exited, lost = world.events
    assert exited == Exited(PeerId("r"), 1, runner, "its fork server was lost (killed by signal 9)")
    assert isinstance(lost, ServerLost)
    assert "killed by signal 9" in lost.text
    wait_ended(child, runner)
    assert world.server.receive() == []
    world.server.kill(PeerId("r"))


def test_sigterm_ends_the_server_with_its_runners(world: World) -> None:
    world.fork("r", "family")
    child, runner = world.subprocess_pid(), world.pid_of("r")
    os.kill(world.server.pid, signal.SIGINT)
    os.kill(world.server.pid, signal.SIGTERM)
    world.receive_until(lambda: any(isinstance(event, ServerLost) for event in world.events))
    wait_ended(child, runner)


def test_server_that_cannot_start() -> None:
    """1. The interpreter does not find raskid. 2. The loss is told with what it wrote to its standard error."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    here = os.getcwd()
    os.chdir("/")
    try:
        server = ForkServer.start(python=getattr(sys, "_base_executable", sys.executable), env=env)
    finally:
        os.chdir(here)
    server.fork(PeerId("r"), 1, b"", [-1, -1, -1])
    events: list[Forked | Exited | ServerLost] = []
    deadline = time.monotonic() + LIMIT_S
    while not events:
        assert time.monotonic() < deadline
        select.select([server], [], [], 0.05)
        events += server.receive()
    server.close()
    exited, lost = events
    assert isinstance(exited, Exited)
    assert exited.pid == 0
    assert isinstance(lost, ServerLost)
    assert "Error" in lost.text
    assert "exit code 1" in lost.text


def test_no_such_interpreter() -> None:
    with pytest.raises(FileNotFoundError):
        ForkServer.start(python="/no/such/python")


def test_wrong_use(world: World) -> None:
    with pytest.raises(LocalProtocolError, match="three descriptors"):
        world.server.fork(PeerId("r"), 1, b"", [])
    world.fork("r", "code", b"0")
    with pytest.raises(LocalProtocolError, match="already"):
        world.fork("r", "code", b"0")
