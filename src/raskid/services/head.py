"""The head of a system on one machine: hub, relay, manager and node in one process, on one loop.

Started with its settings on standard input; answers on standard output when it listens. It has no numpy, and does
nothing while nothing happens.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any

import msgspec

from raskid.core.hub import Hub
from raskid.core.machine import Effect, PeerGone, PeerJoined, Received
from raskid.core.manager import Manager
from raskid.core.node import AddRunner, Node, OutcomesRead, RunnerExited, RunnerGivenUp, StartRunner
from raskid.core.peer import Identity, Peer
from raskid.core.relay import RelayHub
from raskid.core.station import Station, Told
from raskid.io.driver import Driver
from raskid.io.forkserver import Exited, ForkServer, ServerLost
from raskid.io.outbox import Outbox
from raskid.io.processes import ProcessWatch
from raskid.io.transports import listen
from raskid.model.ids import IdSource, PeerId
from raskid.model.version import VERSION
from raskid.protocol.messages import (
    KIND_CLIENT,
    KIND_HEAD,
    KIND_NODE,
    AskStatus,
    EndSystem,
    Message,
    Status,
    TasksFinished,
)
from raskid.services.boot import answer
from raskid.services.settings import HeadReady, HeadSettings, RunnerSettings, new_origin

if TYPE_CHECKING:
    from raskid.services.recording import Recorder

#: How often outboxes are read although nobody rang, while tasks are out: a runner rings late only when a long task
#: follows a short one.
OUTBOX_S = 0.02
SERVER_RESTARTS_MAX = 3
#: The environment variable that names a file into which the head records what its machines do.
RECORD_VARIABLE = "RASKID_RECORD"


class _Front:
    """Messages that concern the process itself: the bell of an outbox, the system's end, its status."""

    handles: frozenset[type[Message]] = frozenset({EndSystem, TasksFinished, AskStatus})

    def __init__(self, head: HeadProcess, manager: Manager) -> None:
        self.head = head
        self.manager = manager

    def handle(self, event: Any, now: float) -> list[Effect]:
        if type(event) is not Received:
            return []
        message = event.message
        if type(message) is EndSystem:
            self.head.ending = message.reason or "asked to"
        elif type(message) is TasksFinished:
            if event.peer == self.head.peer and message.outcomes:
                return self.manager.handle(event, now)
            self.head.bells.add(event.peer)
        elif type(message) is AskStatus:
            effects = self.manager.handle(event, now)
            return [self.head.add_facts(effect) for effect in effects]
        return []

    def next_deadline(self) -> float | None:
        return None

    def check_invariants(self) -> None:
        return


def assemble(identity: Identity, lease_s: float, process: Any) -> tuple[Station, Manager, Node]:
    """The machines of a head. Of `process` they use what `_Front` does."""
    node, manager = Node(identity.peer, identity.peer), Manager(identity.peer)
    machines = [Hub(), RelayHub(), manager, node, _Front(process, manager)]
    return Station(Peer(identity, lease_s=lease_s), machines), manager, node


class HeadProcess:
    """The head's station, its runners' processes and outboxes."""

    def __init__(self, settings: HeadSettings, server: ForkServer) -> None:
        self.settings = settings
        self.ids = IdSource(new_origin())
        self.peer = PeerId(f"head-{self.ids.origin:08x}")
        self.address = f"unix:{settings.directory}/head"
        self.ending = ""
        self.bells: set[PeerId] = set()
        identity = Identity(
            self.peer, 1, self.ids.origin, KIND_HEAD, settings.token, addresses=(self.address,),
            host=socket.gethostname(), pid=os.getpid(), python=platform.python_version(), raskid=VERSION,
        )  # fmt: skip
        self.station, self.manager, self.node = assemble(identity, settings.lease_s, self)
        self.recorder: Recorder | None = None
        if os.environ.get(RECORD_VARIABLE):
            from raskid.services.recording import Recorder

            about = {"identity": identity, "lease_s": settings.lease_s}
            self.recorder = Recorder(os.environ[RECORD_VARIABLE], self.station, about)
        self.driver = Driver(self.station, self._apply)
        self.listener = listen(self.address)
        self.driver.listen(self.listener)
        self._outboxes: dict[PeerId, tuple[int, Outbox]] = {}
        self._server: ForkServer | None = server
        self._restarts = 0
        #: Runners are the fork server's; of clients the system tells.
        self._processes = ProcessWatch(self.driver)

    # ── runners ──

    def start(self) -> None:
        """Start the fork server and the runners."""
        # The node is this very process; the manager hears of it as of any other.
        me = self.station.peer.identity
        self.driver.handle(PeerJoined(me.peer, 1, KIND_NODE, me.role, me.addresses, me.host, me.pid))
        self._watch_server()
        for _ in range(self.settings.runners):
            self.driver.handle(AddRunner())

    def _start_server(self) -> None:
        self._server = ForkServer.start(preload=self.settings.preload)
        self._watch_server()

    def _watch_server(self) -> None:
        assert self._server is not None
        self.driver.watch(self._server.fileno(), self._on_server)

    def _apply(self, effect: Effect) -> None:
        if isinstance(effect, StartRunner):
            self._start_runner(effect)
        elif isinstance(effect, RunnerGivenUp):
            print(f"raskid: {effect.runner} ends again and again ({effect.reason}); given up", file=sys.stderr)
            if not self.node.runners:
                self.ending = f"no runner can be started: {effect.reason}"
        elif isinstance(effect, Told):
            event = effect.event
            if isinstance(event, PeerJoined) and event.kind == KIND_CLIENT:
                self._processes.joined(event)
            elif isinstance(event, PeerGone):
                self._processes.gone(event)

    def _start_runner(self, effect: StartRunner) -> None:
        assert self._server is not None
        settings = self.settings
        number = effect.runner.rpartition("/")[2]
        config = RunnerSettings(
            settings.token, effect.runner, effect.incarnation, self.peer, self.address,
            f"unix:{settings.directory}/{number}.{effect.incarnation}", settings.path, settings.cwd,
        )  # fmt: skip
        old = self._outboxes.pop(effect.runner, None)
        if old is not None:
            old[1].close()
        outbox = Outbox.create()
        self._outboxes[effect.runner] = (effect.incarnation, outbox)
        self._server.fork(effect.runner, effect.incarnation, msgspec.msgpack.encode(config), (outbox.fileno(), -1))

    def _on_server(self, events: int) -> None:
        server = self._server
        if server is None:
            return
        happened = server.receive()
        for event in happened:
            # First of all: runners that ended with their server are started again by the next one.
            if isinstance(event, ServerLost):
                self.driver.unwatch(server.fileno())
                server.close()
                self._restarts += 1
                if self._restarts > SERVER_RESTARTS_MAX or self.ending:
                    self.ending = self.ending or f"the fork server ended again and again: {event.text}"
                    return
                self._start_server()
        for event in happened:
            if isinstance(event, Exited):
                self._read(event.runner)
                with contextlib.suppress(OSError):
                    os.unlink(f"{self.settings.directory}/{event.runner.rpartition('/')[2]}.{event.incarnation}")
                if not self.ending:
                    self.driver.handle(RunnerExited(event.runner, event.incarnation, event.reason))

    def _read(self, runner: PeerId) -> None:
        found = self._outboxes.get(runner)
        if found is not None:
            entries = found[1].read()
            if entries:
                self.driver.handle(OutcomesRead(runner, [tuple(entry) for entry in entries]))  # type: ignore[misc]

    def read_outboxes(self) -> None:
        """Read the outboxes of the runners that rang."""
        while self.bells:
            self._read(self.bells.pop())

    def add_facts(self, effect: Effect) -> Effect:
        """Add what the process knows to a status that the manager gives."""
        message = getattr(effect, "message", None)
        if not isinstance(message, Status):
            return effect
        from raskid.io.counters import Counters

        facts = dict(message.facts)
        facts["head"] = {
            "peer": self.peer, "pid": os.getpid(), "host": socket.gethostname(), "name": self.settings.name,
            "counters": self.driver.totals().as_dict(),
        }  # fmt: skip
        facts["runner_counters"] = {
            runner: Counters.from_list(outbox.counters()).as_dict() for runner, (_, outbox) in self._outboxes.items()
        }
        if self.recorder is not None:
            self.recorder.facts(facts)
        return msgspec.structs.replace(effect, message=Status(message.request, facts))

    # ── life ──

    def run(self) -> None:
        """Serve until the end."""
        driver = self.driver
        while not self.ending:
            busy = self.manager.watching
            driver.step(OUTBOX_S if busy else None)
            if self.bells:
                self.read_outboxes()
                driver.flush()
            elif busy:
                for runner in self._outboxes:
                    self._read(runner)

    def close(self) -> None:
        """End everything: runners first, then the connections, then the files."""
        self.ending = self.ending or "closed"
        if self._server is not None:
            self.driver.unwatch(self._server.fileno())
            self._server.close()
        if self.recorder is not None:
            self.recorder.close()
        self.station.peer.goodbye(self.ending)
        self._processes.close()
        self.driver.close()
        self.listener.close()
        shutil.rmtree(self.settings.directory, ignore_errors=True)


def serve(settings: HeadSettings, server: ForkServer) -> None:
    """Run the head of a system; see the module."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    head: HeadProcess | None = None
    try:
        head = HeadProcess(settings, server)
        running = head

        def end(number: int, frame: object) -> None:
            running.ending = f"signal {signal.Signals(number).name}"
            running.driver.wake()

        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, end)
        if settings.watch_input:

            def input_closed(events: int) -> None:
                if not os.read(0, 64):
                    running.ending = "the script that started it is gone"

            head.driver.watch(0, input_closed)
        head.start()
    except Exception as error:
        answer(HeadReady(error="".join(traceback.format_exception(error))))
        if head is not None:
            head.close()
        raise SystemExit(1) from error
    answer(HeadReady(head.peer, head.address))
    try:
        head.run()
    finally:
        head.close()
