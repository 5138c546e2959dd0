"""A whole head without runners, on a thread of the tests, whose hub can be made to leave messages unanswered."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raskid.client.session import Session
from raskid.core.effects import Effect
from raskid.core.events import Received
from raskid.core.identity import Identity
from raskid.io.driver import Driver
from raskid.io.transports import listen
from raskid.model.ids import PeerId
from raskid.protocol.messages import KIND_HEAD
from raskid.services.head import assemble

TOKEN = "a token of the tests"


class _Muted:
    """Stands before a machine and swallows some messages, as a head does that is overloaded."""

    def __init__(self, machine: Any, mute: set[type]) -> None:
        self.machine = machine
        self.mute = mute
        self.handles = machine.handles

    def handle(self, event: Any, now: float) -> list[Effect]:
        if isinstance(event, Received) and type(event.message) in self.mute:
            return []
        effects: list[Effect] = self.machine.handle(event, now)
        return effects

    def __getattr__(self, name: str) -> Any:
        return getattr(self.machine, name)


class Head:
    """The head; `mute` holds the kinds of messages that its hub leaves unanswered."""

    def __init__(self) -> None:
        self.ending = ""
        self.bells: set[PeerId] = set()
        self.mute: set[type] = set()
        self.directory = tempfile.mkdtemp(prefix="rk", dir="/tmp")
        self.address = f"unix:{self.directory}/head"
        self.peer = PeerId("head-of-the-tests")
        identity = Identity(self.peer, 1, 77, KIND_HEAD, TOKEN, addresses=(self.address,))
        station, _, _ = assemble(identity, 60.0, self)
        self.hub = station.machines[0]
        muted = _Muted(self.hub, self.mute)
        station.machines[0] = muted
        for kind in self.hub.handles:
            station._routes[kind] = muted
        self.driver = Driver(station, lambda effect: None)
        self.listener = listen(self.address)
        self.driver.listen(self.listener)
        self.thread = threading.Thread(target=self._run, name="head")
        self.thread.start()

    def add_facts(self, effect: Effect) -> Effect:
        """A status is what the manager says."""
        return effect

    def _run(self) -> None:
        while not self.ending:
            self.driver.step(None)

    def session(self, **more: Any) -> Session:
        """A new session."""
        return Session(self.address, TOKEN, directory=self.directory, **more)

    def close(self) -> None:
        """End the head, and wait for its end."""
        if self.ending:
            return
        self.ending = "closed"
        self.driver.wake()
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.driver.close("closed by the test")
        self.listener.close()
        shutil.rmtree(self.directory, ignore_errors=True)


@contextmanager
def system() -> Iterator[Head]:
    """A head for one test, or for one file of tests."""
    head = Head()
    try:
        yield head
    finally:
        head.close()


def until(condition: Callable[[], object], limit_s: float = 5.0) -> None:
    """Look again and again until `condition()` holds, for what another session or thread does."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"did not come about within {limit_s:g} s"
        time.sleep(0.001)
