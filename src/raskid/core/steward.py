"""The steward: which services a system has, when their processes are started and ended, who waits for that.

A service is a feature with a process of its own. The steward, in the head, asks for the process (`ForkService`), hears
from it that it serves (`ServiceReady`), and from the fork server that it has ended (`ServiceExited`). A service that
served and whose process crashes is started again, with the same settings and the next incarnation; one that does so too
often is given up, and its state says why. One that never served is not started again: whoever asked hears why.

It starts the helper, which runs reactions for publishers, when the first publisher asks for it. What a service does is
none of the steward's business; the process itself is `raskid.services.upkeep`'s.
"""

from __future__ import annotations

from typing import Any

from raskid.core.effects import Effect, EndService, ForkService, Send, ServiceReported
from raskid.core.events import Event, PeerGone, PeerJoined, Received, ServiceExited, Tick
from raskid.model.errors import InvalidTransition, TopicNameError
from raskid.model.ids import CodeId, PeerId, RequestId
from raskid.model.topics import check_topic
from raskid.protocol.messages import (
    KIND_CLIENT,
    AskHelper,
    Code,
    HelperGiven,
    Message,
    PeerRef,
    RecordSettled,
    RequestRefused,
    ServiceReady,
    StartService,
    StopService,
)

STARTING, RUNNING, PAUSED, STOPPING = "starting", "running", "paused", "stopping"
#: No process: it was given up; it ended by itself.
FAILED, ENDED = "failed", "ended"
_OVER = (FAILED, ENDED)

#: From state to state. A service that is stopped, or started anew when it is over, is forgotten instead.
MOVES: dict[str, tuple[str, ...]] = {
    STARTING: (RUNNING, STOPPING, PAUSED, FAILED),
    RUNNING: (STOPPING, PAUSED, FAILED, ENDED),
    PAUSED: (STARTING,),
    STOPPING: (),
    FAILED: (),
    ENDED: (),
}

#: The service that runs reactions for publishers, and what it is unless somebody started another one of that name.
HELPER = "helper"
HELPER_FACTORY = "raskid.services.helper:Helper"

#: How long a service may take to begin. Who asks for it has a limit of its own, mostly shorter.
START_S = 600.0
#: How long a process may take to end when it was asked to.
END_S = 5.0
#: So many crashes within so long are followed by a new start, each after a pause.
RESTARTS_MAX = 3
RESTARTS_S = 60.0
RESTART_S = 0.1

SERVICES_MAX = 256
#: Names whose last incarnation is remembered.
_NAMES_MAX = 4096
#: What is kept of a service, to start it again.
SETTINGS_BYTES_MAX = 16 << 20


class _Service:
    """`waiting` holds who is told when it serves, or cannot: (peer, request, whether it wants the helper)."""

    __slots__ = (
        "code", "crashes", "due", "error", "incarnation", "pid", "ref", "served", "settings", "state", "stopping",
        "waiting", "why",
    )  # fmt: skip

    def __init__(self, code: Code, settings: bytes, incarnation: int, due: float) -> None:
        self.code = code
        self.settings = settings
        self.incarnation = incarnation
        self.state = STARTING
        self.waiting: list[tuple[PeerId, RequestId, bool]] = []
        #: Who asked that it ends.
        self.stopping: list[tuple[PeerId, RequestId]] = []
        #: When the process is killed, or started again.
        self.due: float | None = due
        self.ref: PeerRef | None = None
        self.pid = 0
        #: Any of its incarnations did.
        self.served = False
        self.crashes: list[float] = []
        #: What its process said when it could not begin.
        self.error = ""
        self.why = ""

    def move(self, name: str, state: str) -> None:
        if state not in MOVES[self.state]:
            raise InvalidTransition(
                f"service {name!r} cannot go from {self.state} to {state}; {self.why or 'no story'}"
            )
        self.state = state
        self.due = None


class Steward:
    """The services of a system."""

    handles: frozenset[type[Message]] = frozenset({StartService, StopService, ServiceReady, AskHelper})
    commands: frozenset[type[Event]] = frozenset({ServiceExited})

    def __init__(self) -> None:
        self.services: dict[str, _Service] = {}
        #: The clients that are here: a service is one of them. (reference, process id)
        self._clients: dict[PeerId, tuple[PeerRef, int]] = {}
        #: Incarnations count on when a service is started anew: what its last process sent may still be on its way.
        self._last: dict[str, int] = {}

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in an event."""
        kind = type(event)
        if kind is Received:
            return self._on_message(event.peer, event.message, now)
        if kind is ServiceExited:
            return self._on_exited(event, now)
        if kind is PeerJoined and event.kind == KIND_CLIENT:
            self._clients[event.peer] = PeerRef(event.peer, event.incarnation, event.addresses), event.pid
        elif kind is PeerGone:
            self._on_gone(event, now)
        elif kind is Tick:
            return self._on_tick(now)
        return []

    def _on_message(self, peer: PeerId, message: Any, now: float) -> list[Effect]:
        kind = type(message)
        if kind is StartService:
            return self._on_start(peer, message, now)
        if kind is StopService:
            return self._on_stop(peer, message, now)
        if kind is ServiceReady:
            return self._on_ready(peer, message, now)
        return self._on_ask_helper(peer, message, now)

    # ── begin ──

    def _on_start(self, peer: PeerId, message: StartService, now: float) -> list[Effect]:
        name = message.name
        try:
            check_topic(name)
        except TopicNameError as error:
            return [_refuse(peer, message.request, "TopicNameError", str(error))]
        there = self.services.get(name)
        if there is not None and there.state not in _OVER:
            text = (
                f"the service {name!r} is there already ({there.state}, incarnation {there.incarnation}). Stop it "
                f"first (stop_service({name!r})), or take another name"
            )
            return [_refuse(peer, message.request, "StartFailed", text)]
        size = len(message.service.blob) + len(message.settings)
        if size > SETTINGS_BYTES_MAX:
            text = f"code and settings of service {name!r} take {size:,} bytes; the limit is {SETTINGS_BYTES_MAX:,}"
            return [_refuse(peer, message.request, "StartFailed", text)]
        if there is None and not self._has_room():
            text = f"there are {SERVICES_MAX} services, as many as a system can have; {name!r} was not started"
            return [_refuse(peer, message.request, "StartFailed", text)]
        service = self._add(name, message.service, message.settings, now)
        service.waiting.append((peer, message.request, False))
        return [_fork(name, service)]

    def _has_room(self) -> bool:
        if len(self.services) >= SERVICES_MAX:
            for name in [name for name, service in self.services.items() if service.state in _OVER]:
                del self.services[name]
        return len(self.services) < SERVICES_MAX

    def _add(self, name: str, code: Code, settings: bytes, now: float) -> _Service:
        service = _Service(code, settings, self._next(name), now + START_S)
        # One that is over stands at the end again.
        self.services.pop(name, None)
        self.services[name] = service
        return service

    def _next(self, name: str) -> int:
        """The next incarnation of a service."""
        number = self._last.pop(name, 0) + 1
        self._last[name] = number
        if len(self._last) > _NAMES_MAX:
            for old in [old for old in self._last if old not in self.services][: _NAMES_MAX // 2]:
                del self._last[old]
        return number

    def _on_ready(self, peer: PeerId, message: ServiceReady, now: float) -> list[Effect]:
        service = self.services.get(message.name)
        if service is None or service.incarnation != message.incarnation or service.state != STARTING:
            return []
        if message.error:
            # Its process is about to end, and then those who wait are told.
            service.error = message.error
            service.due = now + END_S
            return []
        service.move(message.name, RUNNING)
        service.ref, service.pid = self._clients.get(peer, (PeerRef(peer, 0, ()), 0))
        service.served = True
        service.why = ""
        effects: list[Effect] = []
        for asker, request, helper in service.waiting:
            reply: Any = HelperGiven(request, service.ref) if helper else RecordSettled(request, 0)
            effects.append(Send(asker, reply))
        service.waiting = []
        return effects

    # ── the helper ──

    def _on_ask_helper(self, peer: PeerId, message: AskHelper, now: float) -> list[Effect]:
        service = self.services.get(HELPER)
        if service is not None and service.ref is not None:
            return [Send(peer, HelperGiven(message.request, service.ref))]
        if service is not None and service.state not in _OVER:
            service.waiting.append((peer, message.request, True))
            return []
        if service is not None and service.crashes and now - service.crashes[-1] < RESTARTS_S:
            # Publishers ask again and again; what does not begin must not be started as often.
            return [_refuse(peer, message.request, "StartFailed", f"the service {HELPER!r} {service.why}")]
        if service is None and not self._has_room():
            return [_refuse(peer, message.request, "StartFailed", f"there are {SERVICES_MAX} services already")]
        service = self._add(HELPER, Code(CodeId(""), b"", HELPER_FACTORY), b"", now)
        service.waiting.append((peer, message.request, True))
        return [_fork(HELPER, service)]

    # ── the end ──

    def _on_stop(self, peer: PeerId, message: StopService, now: float) -> list[Effect]:
        name = message.name
        service = self.services.get(name)
        if service is None or service.state in _OVER:
            text = f"no service {name[:80]!r} runs"
            if service is not None:
                text += f": it {service.why}"
            elif self.services:
                text += f"; there are {', '.join(map(repr, list(self.services)[:20]))}"
            return [_refuse(peer, message.request, "NotRunning", text)]
        if service.state == PAUSED:
            del self.services[name]
            return [*self._refuse_waiting(name, service, "was stopped"), _settle(peer, message.request)]
        service.stopping.append((peer, message.request))
        if service.state == STOPPING:
            return []
        # One that has not begun cannot be asked.
        kill = service.state == STARTING
        service.move(name, STOPPING)
        service.ref = None
        service.due = None if kill else now + END_S
        return [EndService(name, service.incarnation, kill)]

    def _on_exited(self, event: ServiceExited, now: float) -> list[Effect]:
        name = event.name
        service = self.services.get(name)
        if service is None or service.incarnation != event.incarnation or service.state not in (
            STARTING, RUNNING, STOPPING,
        ):  # fmt: skip
            return []
        service.ref, service.pid = None, 0
        if service.state == STOPPING:
            del self.services[name]
            why = f"was stopped before it served ({event.reason})"
            answers = [_settle(peer, request) for peer, request in service.stopping]
            return [*self._refuse_waiting(name, service, why), *answers]
        if service.state == RUNNING and event.orderly:
            service.move(name, ENDED)
            service.why = "ended by itself"
            return []
        if service.error:
            service.why = f"could not begin:\n{service.error}"
        else:
            service.why = f"ended{'' if service.state == RUNNING else ' before it served'}: {event.reason}"
        service.error = ""
        return self._on_crash(name, service, now)

    def _on_crash(self, name: str, service: _Service, now: float) -> list[Effect]:
        service.crashes = [at for at in service.crashes if now - at < RESTARTS_S]
        service.crashes.append(now)
        number = service.incarnation
        if service.served and len(service.crashes) <= RESTARTS_MAX:
            service.move(name, PAUSED)
            service.due = now + RESTART_S
            return [ServiceReported(name, f"{service.why}; it is started again (incarnation {number} was lost)")]
        if service.served:
            service.why = f"was given up after {len(service.crashes)} crashes; it {service.why}"
        service.move(name, FAILED)
        return [*self._refuse_waiting(name, service, service.why), ServiceReported(name, service.why)]

    def _refuse_waiting(self, name: str, service: _Service, why: str) -> list[Effect]:
        waiting, service.waiting = service.waiting, []
        text = f"the service {name!r} {why}"
        return [_refuse(peer, request, "StartFailed", text) for peer, request, _ in waiting]

    def _on_gone(self, event: PeerGone, now: float) -> None:
        gone = event.peer
        known = self._clients.get(gone)
        if known is not None and known[0].incarnation <= event.incarnation:
            del self._clients[gone]
        for service in self.services.values():
            if service.waiting or service.stopping:
                service.waiting = [one for one in service.waiting if one[0] != gone]
                service.stopping = [one for one in service.stopping if one[0] != gone]
            if service.state == RUNNING and service.ref is not None and service.ref.peer == gone:
                # Its process ends by itself, or is stuck.
                service.due = now + END_S

    def _on_tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for name, service in self.services.items():
            if service.due is None or service.due > now:
                continue
            service.due = None
            if service.state == PAUSED:
                service.move(name, STARTING)
                service.incarnation = self._next(name)
                service.due = now + START_S
                effects.append(_fork(name, service))
                continue
            if service.state == STARTING and not service.error:
                service.error = f"it did not begin within {START_S:g} s"
            effects.append(EndService(name, service.incarnation, True))
        return effects

    # ── how things stand ──

    def facts(self) -> list[dict[str, Any]]:
        """The services, in the order in which they were started."""
        return [
            {
                "name": name,
                "state": service.state,
                "pid": service.pid,
                "peer": service.ref.peer if service.ref is not None else "",
                "incarnation": service.incarnation,
                "why": service.why,
            }
            for name, service in self.services.items()
        ]

    def next_deadline(self) -> float | None:
        """When a process is to be killed or started again."""
        return min((service.due for service in self.services.values() if service.due is not None), default=None)

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        assert len(self.services) <= SERVICES_MAX
        for name, service in self.services.items():
            assert service.state in MOVES and service.incarnation == self._last[name]
            assert (service.ref is not None) == (service.state == RUNNING)
            assert not service.waiting or service.state in (STARTING, PAUSED, STOPPING)
            assert not service.stopping or service.state == STOPPING
            assert service.state != PAUSED or service.due is not None
            assert service.state not in _OVER or (service.due is None and service.why)
            assert len(service.crashes) <= RESTARTS_MAX + 1


def _fork(name: str, service: _Service) -> Effect:
    return ForkService(name, service.incarnation, service.code, service.settings)


def _settle(peer: PeerId, request: RequestId) -> Effect:
    return Send(peer, RecordSettled(request, 0))


def _refuse(peer: PeerId, request: RequestId, code: str, text: str) -> Effect:
    return Send(peer, RequestRefused(request, code, text))
