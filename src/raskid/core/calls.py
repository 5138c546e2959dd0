"""Requests and replies between peers: one call, one answer, errors included, with time limits and cancellation.

Who serves a name is a list in the hub; the caller follows it and sends straight to one of the providers, in turn. It
follows the list of a service that nobody serves only as long as requests wait for one.
"""

from __future__ import annotations

import heapq
from typing import Any

from raskid.core.effects import CallDone, Effect, Introduce, Invoke, InvokeCancelled, Send
from raskid.core.events import CancelRequest, Event, PeerGone, Received, Reply, Request, Serve, Unserve
from raskid.core.lists import Lists, Replica
from raskid.model.errors import RemoteProtocolError
from raskid.model.ids import PeerId, RequestId
from raskid.model.topics import SERVICES, list_name
from raskid.protocol.messages import Answer, Call, CancelCall, Message, PeerRef, RecordDeleted, RecordPut
from raskid.protocol.reactions import decode_provider
from raskid.protocol.values import encode_value

SERVING_MAX = 100_000


class _Pending:
    __slots__ = ("body", "deadline", "incarnation", "provider", "request", "service")

    def __init__(self, event: Request) -> None:
        self.request = event.request
        self.service = event.service
        self.body: bytes | None = event.body
        self.deadline = event.deadline
        self.provider: PeerId | None = None
        self.incarnation = 0


class Calls:
    """Both sides of requests in one process."""

    handles: frozenset[type[Message]] = frozenset({Call, Answer, CancelCall})
    commands: frozenset[type[Event]] = frozenset({Request, CancelRequest, Serve, Unserve, Reply})

    def __init__(self, lists: Lists) -> None:
        self._lists = lists
        lists.observers[SERVICES] = self
        #: Service → who serves it; holds exactly the services that were called here, whose lists are followed.
        self.providers: dict[str, list[PeerRef]] = {}
        self._turn: dict[str, int] = {}
        self._pending: dict[RequestId, _Pending] = {}
        #: Holds (deadline, request) of every pending request, and of some that are over.
        self._deadlines: list[tuple[float, RequestId]] = []
        #: Requests that wait for somebody who serves, by service; for each of these services nobody is known.
        self._unsent: dict[str, dict[RequestId, _Pending]] = {}
        self._serving: set[str] = set()
        self._running: dict[RequestId, PeerId] = {}

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in an event."""
        kind = type(event)
        if kind is Received:
            return self._on_message(event.peer, event.message)
        if kind is Request:
            return self._on_request(event)
        if kind is Reply:
            caller = self._running.pop(event.request, None)
            return [] if caller is None else [Send(caller, Answer(event.request, event.ok, event.body))]
        if kind is CancelRequest:
            effects: list[Effect] = []
            pending = self._forget(event.request, effects)
            if pending is not None and pending.provider is not None:
                effects.append(Send(pending.provider, CancelCall(event.request)))
            return effects
        if kind is Serve:
            self._serving.add(event.service)
        elif kind is Unserve:
            self._serving.discard(event.service)
        elif kind is PeerGone:
            return self._on_gone(event)
        else:
            return self._on_tick(now)
        return []

    def _on_request(self, event: Request) -> list[Effect]:
        pending = self._pending[event.request] = _Pending(event)
        heapq.heappush(self._deadlines, (event.deadline, event.request))
        effects: list[Effect] = []
        if event.service not in self.providers:
            self.providers[event.service] = []
            name = list_name(SERVICES, event.service)
            effects = self._lists.follow(name)
            replica = self._lists.replicas[name]
            if replica.ready:
                effects += self._read(event.service, replica)
        return effects + self._dispatch(pending)

    def _dispatch(self, pending: _Pending) -> list[Effect]:
        providers = self.providers[pending.service]
        if not providers:
            self._unsent.setdefault(pending.service, {})[pending.request] = pending
            return []
        turn = self._turn.get(pending.service, 0)
        self._turn[pending.service] = turn + 1
        chosen = providers[turn % len(providers)]
        pending.provider, pending.incarnation = chosen.peer, chosen.incarnation
        body, pending.body = pending.body, None
        assert body is not None
        return [Send(pending.provider, Call(pending.request, pending.service, body))]

    def on_replica(
        self, topic: str, replica: Replica, change: RecordPut | RecordDeleted | None, now: float
    ) -> list[Effect]:
        """The providers of a service that was called here changed."""
        if topic not in self.providers:
            # Somebody here looks at this list, and nobody calls.
            return []
        effects = self._read(topic, replica)
        if self.providers[topic]:
            for pending in self._unsent.pop(topic, {}).values():
                effects += self._dispatch(pending)
        elif topic not in self._unsent:
            effects += self._give_up(topic)
        return effects

    def _read(self, topic: str, replica: Replica) -> list[Effect]:
        """Take over who serves a topic."""
        effects: list[Effect] = []
        providers: list[PeerRef] = []
        for record in replica.records.values():
            try:
                provider = decode_provider(record.value)
            except RemoteProtocolError:
                continue
            providers.append(provider.target)
            effects.append(Introduce(provider.target))
        self.providers[topic] = providers
        return effects

    def _give_up(self, service: str) -> list[Effect]:
        """Names that nobody serves could be any number, and the hub keeps a list for each that is followed."""
        del self.providers[service]
        self._turn.pop(service, None)
        return self._lists.unfollow(list_name(SERVICES, service))

    def _on_message(self, peer: PeerId, message: Message) -> list[Effect]:
        if type(message) is Answer:
            pending = self._pending.get(message.request)
            if pending is None or pending.provider != peer:
                return []
            effects: list[Effect] = [CallDone(message.request, message.ok, message.body)]
            self._forget(message.request, effects)
            return effects
        if type(message) is Call:
            text = ""
            if message.service not in self._serving:
                text = f"{message.service!r} is not served here (any more)"
            elif len(self._running) >= SERVING_MAX:
                text = f"{SERVING_MAX:,} requests are being served here already"
            elif message.request in self._running:
                text = f"a request with the id {message.request} is being served here already"
            if text:
                return [Send(peer, Answer(message.request, False, encode_value(("NoSuchService", text, ""))))]
            self._running[message.request] = peer
            return [Invoke(message.request, peer, message.service, message.body)]
        if type(message) is CancelCall and self._running.get(message.request) == peer:
            del self._running[message.request]
            return [InvokeCancelled(message.request)]
        return []

    def on_refused(self, topic: str, code: str, text: str) -> list[Effect]:
        """The hub does not let us follow who serves this: no request for it can be sent."""
        effects: list[Effect] = []
        for request in self._unsent.pop(topic, {}):
            del self._pending[request]
            effects.append(CallDone(request, False, b"", code, text))
        self.providers.pop(topic, None)
        self._turn.pop(topic, None)
        return effects

    def _forget(self, request: RequestId, effects: list[Effect]) -> _Pending | None:
        pending = self._pending.pop(request, None)
        if pending is not None and pending.provider is None:
            waiting = self._unsent[pending.service]
            del waiting[request]
            if not waiting:
                del self._unsent[pending.service]
                effects += self._give_up(pending.service)
        # Most requests are answered long before their deadline, whose entry stays; this keeps those in proportion.
        if len(self._deadlines) > 64 + 2 * len(self._pending):
            self._deadlines = [(it.deadline, it.request) for it in self._pending.values()]
            heapq.heapify(self._deadlines)
        return pending

    def _on_gone(self, event: PeerGone) -> list[Effect]:
        effects: list[Effect] = []
        lost = [p for p in self._pending.values() if p.provider == event.peer and p.incarnation <= event.incarnation]
        for pending in lost:
            self._forget(pending.request, effects)
            text = f"{event.peer} was to answer a request for {pending.service!r} and is gone: {event.reason}"
            effects.append(CallDone(pending.request, False, b"", "PeerLost", text))
        for service, providers in self.providers.items():
            # A newer incarnation may serve already.
            self.providers[service] = [
                ref for ref in providers if ref.peer != event.peer or ref.incarnation > event.incarnation
            ]
        for request in [request for request, caller in self._running.items() if caller == event.peer]:
            del self._running[request]
            effects.append(InvokeCancelled(request))
        return effects

    def _on_tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            pending = self._pending[self._deadlines[0][1]]
            self._forget(pending.request, effects)
            if pending.provider is None:
                text = f"nobody serves {pending.service!r}; start a process that calls serve({pending.service!r}, ...)"
                effects.append(CallDone(pending.request, False, b"", "NoSuchService", text))
            else:
                text = f"{pending.provider} did not answer a request for {pending.service!r} within the time limit"
                effects.append(CallDone(pending.request, False, b"", "WaitTimeout", text))
                effects.append(Send(pending.provider, CancelCall(pending.request)))
        return effects

    def next_deadline(self) -> float | None:
        """The nearest time limit of a request."""
        heap = self._deadlines
        while heap and heap[0][1] not in self._pending:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        assert {(it.deadline, it.request) for it in self._pending.values()} <= set(self._deadlines)
        assert all(self._unsent.values()) and self._unsent.keys() <= self.providers.keys()
        for pending in self._pending.values():
            unsent = pending.request in self._unsent.get(pending.service, {})
            assert unsent == (pending.provider is None) == (pending.body is not None)
