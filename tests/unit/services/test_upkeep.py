"""The head's dealings with the processes of services, without processes."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from raskid.core.effects import EndService, ForkService, RunnerGivenUp, ServiceReported
from raskid.core.events import ServiceExited
from raskid.io.forkserver import Exited
from raskid.model.ids import CodeId, PeerId
from raskid.protocol.messages import Code
from raskid.services.output import Output
from raskid.services.settings import HeadSettings, ServiceSettings
from raskid.services.upkeep import TARGET, Upkeep


class FakeServer:
    """Stands for the fork server: keeps copies of what processes would get, and whom it was to kill."""

    def __init__(self) -> None:
        self.forked: list[tuple[str, int, ServiceSettings, str]] = []
        self.lives: list[int] = []
        self.errors: list[int] = []
        self.killed: list[str] = []

    def fork(self, process: str, incarnation: int, config: bytes, fds: tuple[int, ...], target: str) -> None:
        self.forked.append((process, incarnation, msgspec.msgpack.decode(config, type=ServiceSettings), target))
        self.lives.append(os.dup(fds[0]))
        self.errors.append(os.dup(fds[2]))

    def kill(self, process: str) -> None:
        self.killed.append(process)

    def is_let_go(self, number: int) -> bool:
        """Whether a process sees the end of its pipe."""
        return bool(select.select([self.lives[number]], [], [], 0)[0])


class Bench:
    def __init__(self) -> None:
        self.server = FakeServer()
        self.events: list[Any] = []
        self.output = Output(lambda name, data: None)
        settings = HeadSettings("token", "/directory", 1, path=("/path",), cwd="/cwd", name="sys", script="script.py")
        self.upkeep = Upkeep(settings, "unix:there", self.output, lambda: self.server, self.events.append)  # type: ignore[arg-type, return-value]

    def fork(self, incarnation: int = 1) -> None:
        assert self.upkeep.apply(ForkService("s", incarnation, Code(CodeId("c"), b"blob", "f"), b"settings"))


@pytest.fixture
def bench() -> Iterator[Bench]:
    found = Bench()
    yield found
    found.upkeep.close()
    for fd in (*found.server.lives, *found.server.errors):
        os.close(fd)
    found.output.close()


def test_a_process_gets_what_it_needs(bench: Bench) -> None:
    bench.fork()
    ((process, incarnation, settings, target),) = bench.server.forked
    assert (process, incarnation, target) == ("service s", 1, TARGET)
    assert settings == ServiceSettings(
        "token", "s", 1, "unix:there", "/directory", "local://sys", "f", "c", b"blob", b"settings", ("/path",), "/cwd",
        "script.py",
    )  # fmt: skip
    assert not bench.server.is_let_go(0)


def test_the_target_is_there() -> None:
    from raskid.services.entries import load_named

    assert callable(load_named(TARGET))


def test_asking_it_to_end_and_killing_it(bench: Bench) -> None:
    bench.fork()
    bench.upkeep.apply(EndService("s", 1, False))
    assert bench.server.is_let_go(0) and not bench.server.killed
    bench.upkeep.apply(EndService("s", 1, False))
    bench.upkeep.apply(EndService("s", 1, True))
    assert bench.server.killed == ["service s"]


def test_its_end_is_told_with_its_last_words(bench: Bench) -> None:
    bench.fork()
    os.write(bench.server.errors[0], b"last words\n")
    assert bench.upkeep.exited(Exited(PeerId("service s"), 1, 5, "killed by signal 9"))
    assert bench.events == [ServiceExited("s", 1, "killed by signal 9; the last it wrote:\nlast words", False)]
    bench.fork(2)
    os.write(bench.server.errors[1], b"goodbye\n")
    bench.upkeep.exited(Exited(PeerId("service s"), 2, 6, "exit code 0"))
    assert bench.events[1:] == [ServiceExited("s", 2, "exit code 0", True)]


def test_what_is_no_service_is_left_to_others(bench: Bench) -> None:
    assert not bench.upkeep.exited(Exited(PeerId("head/0"), 1, 5, "exit code 0"))
    assert not bench.upkeep.apply(RunnerGivenUp(PeerId("head/0"), "why"))


def test_reports_go_to_standard_error(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.upkeep.apply(ServiceReported("s", "ended: somehow"))
    assert capsys.readouterr().err == "raskid: the service 's' ended: somehow\n"


def test_at_the_end_all_are_let_go_and_waited_for(bench: Bench) -> None:
    bench.fork()

    def step(seconds: float) -> None:
        assert 0 < seconds <= 1 and bench.server.is_let_go(0)
        bench.upkeep.exited(Exited(PeerId("service s"), 1, 5, "exit code 0"))

    bench.upkeep.finish(step)
    assert bench.events == [ServiceExited("s", 1, "exit code 0", True)]
    bench.upkeep.finish(step)
