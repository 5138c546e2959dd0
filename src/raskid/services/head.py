"""The head of a system on one machine: hub, relay, manager and node in one process, on one loop.

Started with its settings on standard input; answers on standard output when it listens. It has no numpy, and does
nothing while nothing happens.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from raskid.core.codestore import CodeStore
from raskid.core.effects import ChangesAnnounced, Effect, Recall, RunnerGivenUp, Send, StartRunner, Told, Unhandled
from raskid.core.events import AddRunner, OutcomesRead, PeerGone, PeerJoined, RecallDone, Received, RunnerExited
from raskid.core.hub import Hub
from raskid.core.identity import Identity
from raskid.core.manager import Manager
from raskid.core.node import Node
from raskid.core.peer import Peer
from raskid.core.relay import RelayHub
from raskid.core.station import Station
from raskid.core.steward import Steward
from raskid.io.driver import Driver
from raskid.io.forkserver import Exited, ForkServer, ServerLost
from raskid.io.outbox import Outbox
from raskid.io.processes import ProcessWatch
from raskid.io.scratch import remove_tree
from raskid.io.transports import listen
from raskid.model.errors import RemoteProtocolError, StartFailed
from raskid.model.ids import IdSource, PeerId, TaskId
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
from raskid.services.output import Output, ToLog, ToStream
from raskid.services.settings import HeadReady, HeadSettings, RunnerSettings, new_origin
from raskid.services.upkeep import Upkeep

if TYPE_CHECKING:
    from raskid.services.recording import Recorder

#: How often outboxes are read although nobody rang, while tasks are out: a runner rings late only when a long task
#: follows a short one.
OUTBOX_S = 0.02
SERVER_RESTARTS_MAX = 3
#: The environment variable that names a file into which the head records what its machines do.
RECORD_VARIABLE = "RASKID_RECORD"


def _pairs(pairs: Sequence[tuple[int, int]]) -> list[tuple[TaskId, int]]:
    return [(TaskId(task), attempt) for task, attempt in pairs]


class _Front:
    """Messages that concern the process itself: the bell of an outbox, the system's end, its status."""

    handles: frozenset[type[Message]] = frozenset({EndSystem, TasksFinished, AskStatus})

    def __init__(self, head: HeadProcess, manager: Manager, steward: Steward) -> None:
        self.head = head
        self.manager = manager
        self.steward = steward

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
            for effect in effects:
                if isinstance(effect, Send) and isinstance(effect.message, Status):
                    effect.message.facts["services"] = self.steward.facts()
            return [self.head.add_facts(effect) for effect in effects]
        return []

    def next_deadline(self) -> float | None:
        return None

    def check_invariants(self) -> None:
        return


def assemble(
    identity: Identity, lease_s: float, process: Any, kind: Callable[[PeerId], Manager] = Manager
) -> tuple[Station, Manager, Node]:
    """The machines of a head. Of `process` they use what `_Front` does; `kind` makes the manager."""
    node, manager, steward = Node(identity.peer, identity.peer), kind(identity.peer), Steward()
    machines = [Hub(), CodeStore(), RelayHub(), manager, node, steward, _Front(process, manager, steward)]
    return Station(Peer(identity, lease_s=lease_s), machines), manager, node


def _manager_kind(settings: HeadSettings) -> Callable[[PeerId], Manager]:
    """The class of the manager.

    Raises:
        StartFailed: It cannot be loaded.
    """
    if not settings.manager:
        return Manager
    from raskid.services.entries import load_manager

    sys.path[:0] = [entry for entry in settings.path if entry not in sys.path]
    # On the standard output this process answers whoever started it.
    sys.stdout = sys.stderr
    try:
        kind: Callable[[PeerId], Manager] = load_manager(settings.manager)
    except Exception as error:
        raise StartFailed(f"the manager {settings.manager!r} cannot be used: {error}") from error
    return kind


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
        kind = _manager_kind(settings)
        self.station, self.manager, self.node = assemble(identity, settings.lease_s, self, kind)
        self.recorder: Recorder | None = None
        if os.environ.get(RECORD_VARIABLE):
            from raskid.services.recording import Recorder

            about = {"identity": identity, "lease_s": settings.lease_s, "manager": settings.manager}
            self.recorder = Recorder(os.environ[RECORD_VARIABLE], self.station, about)
        self.driver = Driver(self.recorder or self.station, self._apply)
        self.listener = listen(self.address)
        self.driver.listen(self.listener)
        self._outboxes: dict[PeerId, tuple[int, Outbox]] = {}
        #: Runners whose outbox makes no sense any more: they are killed, and what they still write is not read.
        self._corrupt: set[PeerId] = set()
        self._output = Output(_destination(settings))
        self._server: ForkServer | None = server
        self._upkeep = Upkeep(settings, self.address, self._output, lambda: self._server, self.driver.handle)
        self._restarts = 0
        #: Kinds of messages of which it was said that they are left out.
        self._unhandled: set[str] = set()
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
        elif isinstance(effect, Recall):
            self._recall(effect)
        elif isinstance(effect, ChangesAnnounced):
            found = self._outboxes.get(effect.runner)
            if found is not None and found[0] == effect.incarnation:
                found[1].announce(effect.count)
        elif isinstance(effect, RunnerGivenUp):
            given_up = self._outboxes.pop(effect.runner, None)
            if given_up is not None:
                given_up[1].close()
            print(f"raskid: {effect.runner} ends again and again ({effect.reason}); given up", file=sys.stderr)
            if not self.node.runners:
                self.ending = f"no runner can be started: {effect.reason}"
        elif isinstance(effect, Unhandled):
            if effect.name not in self._unhandled:
                self._unhandled.add(effect.name)
                print(
                    f"raskid: a {effect.name} of {effect.peer} was left out: {effect.reason}; further ones are not "
                    "mentioned", file=sys.stderr,
                )  # fmt: skip
        elif isinstance(effect, Told):
            event = effect.event
            if isinstance(event, PeerJoined) and event.kind == KIND_CLIENT:
                self._processes.joined(event)
            elif isinstance(event, PeerGone):
                self._processes.gone(event)
        else:
            self._upkeep.apply(effect)

    def _start_runner(self, effect: StartRunner) -> None:
        assert self._server is not None
        settings = self.settings
        number = effect.runner.rpartition("/")[2]
        config = RunnerSettings(
            settings.token, effect.runner, effect.incarnation, self.peer, self.address,
            f"unix:{settings.directory}/{number}.{effect.incarnation}", settings.path, settings.cwd, settings.script,
            hub=self.peer,
        )  # fmt: skip
        old = self._outboxes.pop(effect.runner, None)
        if old is not None:
            old[1].close()
        outbox = Outbox.create()
        self._outboxes[effect.runner] = (effect.incarnation, outbox)
        self._corrupt.discard(effect.runner)
        errors = self._output.pipe(effect.runner)
        # What tasks print goes to the script by itself, so that it comes as if the script had printed it.
        fds = (outbox.fileno(), settings.output[0], errors)
        self._server.fork(effect.runner, effect.incarnation, msgspec.msgpack.encode(config), fds)
        os.close(errors)

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
            if isinstance(event, Exited) and not self._upkeep.exited(event):
                self._read(event.runner)
                with contextlib.suppress(OSError):
                    os.unlink(f"{self.settings.directory}/{event.runner.rpartition('/')[2]}.{event.incarnation}")
                wrote = self._output.ended(event.runner)
                if not self.ending:
                    found = self._outboxes.get(event.runner)
                    running = TaskId(found[1].running if found is not None and found[0] == event.incarnation else 0)
                    reason = f"{event.reason}; the last it wrote:\n{wrote}" if wrote else event.reason
                    self.driver.handle(RunnerExited(event.runner, event.incarnation, reason, running))

    def _read(self, runner: PeerId) -> None:
        found = self._outboxes.get(runner)
        if found is None or runner in self._corrupt:
            return
        try:
            entries = found[1].read()
        except RemoteProtocolError as error:
            self._give_up_outbox(runner, error)
            return
        if entries:
            self.driver.handle(OutcomesRead(runner, found[0], [tuple(entry) for entry in entries]))  # type: ignore[misc]

    def _give_up_outbox(self, runner: PeerId, error: RemoteProtocolError) -> None:
        """Something in the runner wrote over the shared memory: end it, so that its tasks run elsewhere."""
        print(f"raskid: killing {runner}: something in it wrote over its {error}", file=sys.stderr)
        self._corrupt.add(runner)
        if self._server is not None:
            self._server.kill(runner)

    def _recall(self, effect: Recall) -> None:
        found = self._outboxes.get(effect.runner)
        if found is None or found[0] != effect.incarnation or effect.runner in self._corrupt:
            # Its end is reported, or will be.
            return
        try:
            never, started = found[1].recall(effect.tasks)
        except RemoteProtocolError as error:
            self._give_up_outbox(effect.runner, error)
            return
        # Outcomes go before the answer: what has run meanwhile is not to be taken for never started.
        self._read(effect.runner)
        self.driver.handle(RecallDone(effect.runner, effect.incarnation, _pairs(never), _pairs(started)))

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
            "counters": self.driver.totals().as_rows(),
        }  # fmt: skip
        facts["runner_counters"] = {
            runner: Counters.from_list(outbox.counters()).as_rows() for runner, (_, outbox) in self._outboxes.items()
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
                for runner in list(self._outboxes):
                    self._read(runner)
        self._upkeep.finish(driver.step)

    def close(self) -> None:
        """End everything: runners first, then the connections, then the files."""
        self.ending = self.ending or "closed"
        try:
            if self._server is not None:
                self.driver.unwatch(self._server.fileno())
                self._server.close()
            self._upkeep.close()
            self._output.close()
            if self.recorder is not None:
                self.recorder.close()
            self._processes.close()
            self.driver.close(self.ending)
            self.listener.close()
        finally:
            # Whatever failed above: nobody else is left who would do it.
            remove_tree(self.settings.directory)


def _destination(settings: HeadSettings) -> Callable[[str, bytes], None]:
    """Where that goes what runners write to their standard error."""
    if settings.output[1] >= 0:
        return ToStream(settings.output[1])
    if not settings.watch_input:
        # A system that stays: its standard error is its log.
        return ToLog(2)
    return lambda name, data: None


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
        import traceback

        answer(HeadReady(error="".join(traceback.format_exception(error))))
        if head is not None:
            head.close()
        raise SystemExit(1) from error
    answer(HeadReady(head.peer, head.address))
    try:
        head.run()
    except Exception as error:
        # Written before anybody is told, so that those who are told can show it.
        import traceback

        traceback.print_exc()
        head.ending = f"an error in it: {type(error).__name__}: {error}"
        raise SystemExit(1) from error
    finally:
        head.close()
