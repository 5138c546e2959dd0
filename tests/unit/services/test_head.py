"""The head's dealings with outboxes, without runners' processes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from raskid.core.effects import Recall, RunnerGivenUp, StartRunner
from raskid.core.events import OutcomesRead, RecallDone
from raskid.io.outbox import Outbox
from raskid.model.ids import PeerId, TaskId
from raskid.services.head import HeadProcess
from raskid.services.settings import HeadSettings


class FakeServer:
    """Stands for the fork server: keeps the descriptors that runners would get, and whom it was to kill."""

    def __init__(self) -> None:
        self.outboxes: dict[str, Outbox] = {}
        self.killed: list[str] = []

    def fork(self, runner: str, incarnation: int, config: bytes, fds: tuple[int, ...]) -> None:
        self.outboxes[runner] = Outbox.attach(fds[0])

    def kill(self, runner: str) -> None:
        self.killed.append(runner)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


class Caught:
    """Stands before a station and keeps what it would be told."""

    def __init__(self, station: Any, events: list[Any]) -> None:
        self._station = station
        self._events = events
        self.peer = station.peer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._station, name)

    def handle(self, event: Any, now: float) -> list[Any]:
        self._events.append(event)
        return []


class Bench:
    def __init__(self, directory: str) -> None:
        self.server = FakeServer()
        self.head = HeadProcess(HeadSettings("token", directory, 1), self.server)  # type: ignore[arg-type]
        self.runner = PeerId(f"{self.head.peer}/0")
        self.events: list[Any] = []
        # What the head tells its machines is caught before them; a compiled driver's methods cannot be replaced.
        self.head.driver.station = Caught(self.head.station, self.events)
        self.head._apply(StartRunner(self.runner, 1))

    @property
    def shared(self) -> Outbox:
        """The runner's view of its outbox."""
        return self.server.outboxes[self.runner]


@pytest.fixture
def bench() -> Iterator[Bench]:
    directory = tempfile.mkdtemp(prefix="rk", dir="/tmp")
    found = Bench(directory)
    yield found
    found.head.close()
    shutil.rmtree(directory, ignore_errors=True)


def test_a_corrupt_outbox_ends_its_runner_only(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """1. Something writes over the outbox. 2. The runner is killed, once; its outbox is not read again. 3. The next
    incarnation has a new one."""
    bench.shared.try_write(1, 1, True, 0.0, b"\xff", b"value")
    for _ in range(3):
        bench.head._read(bench.runner)
        bench.head._apply(Recall(bench.runner, 1, [(TaskId(1), 1)]))
    assert bench.server.killed == [bench.runner]
    assert bench.events == []
    assert f"killing {bench.runner}" in capsys.readouterr().err
    bench.head._apply(StartRunner(bench.runner, 2))
    bench.shared.try_write(1, 2, True, 0.0, b"c", b"value")
    bench.head._read(bench.runner)
    assert bench.events == [OutcomesRead(bench.runner, 2, [(1, 2, True, 0.0, "c", b"value", False, True)])]


def test_a_recall_is_answered_after_the_outcomes(bench: Bench) -> None:
    """1. Task 1 has run, task 2 runs, task 3 waits. 2. All are recalled: only 3 never starts, or 1, whose outcome goes
    before the answer."""
    bench.shared.start(1)
    bench.shared.try_write(1, 1, True, 0.5, b"c", b"value")
    bench.shared.start(2)
    one, two, three = ((TaskId(task), 1) for task in (1, 2, 3))
    bench.head._apply(Recall(bench.runner, 1, [one, two, three]))
    assert bench.events == [
        OutcomesRead(bench.runner, 1, [(1, 1, True, 0.5, "c", b"value", False, True)]),
        RecallDone(bench.runner, 1, [one, three], [two]),
    ]
    bench.events.clear()
    bench.head._apply(Recall(bench.runner, 2, [three]))
    assert bench.events == []


def test_a_runner_that_is_given_up_leaves_no_outbox(bench: Bench) -> None:
    _, outbox = bench.head._outboxes[bench.runner]
    bench.head._apply(RunnerGivenUp(bench.runner, "exit code 1"))
    assert not bench.head._outboxes
    with pytest.raises(ValueError, match="closed"):
        outbox.fileno()
