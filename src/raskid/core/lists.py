"""Replicas of the hub's lists in this process, and the answers to requests made of the hub and the manager.

A replica holds a list's state and follows its changes in the hub's order. Machines in the same station observe the
kinds of lists that they act by (reactions, services); everything else is reported as `ListChanged`. Only the hub may
say what a list holds: the same messages from anybody else are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from raskid.core.effects import Effect, ListChanged, ListRefused, Replied, Send, Unhandled
from raskid.core.events import Event, Received, UnwatchList, WatchList
from raskid.model.ids import PeerId, RequestId
from raskid.model.topics import check_list_name
from raskid.protocol.messages import (
    AcknowledgeList,
    AnyMessage,
    HelperGiven,
    ListState,
    Message,
    PutRecord,
    Record,
    RecordDeleted,
    RecordPut,
    RecordSettled,
    RequestRefused,
    Status,
    TopicsListed,
    Unwatch,
    Watch,
)


class Replica:
    """A list as this process knows it. Until its state came it is not `ready`, and changes say nothing."""

    __slots__ = ("acks", "name", "ready", "records", "version", "watchers")

    def __init__(self, name: str, acks: bool) -> None:
        self.name = name
        self.acks = acks
        self.ready = False
        self.version = 0
        self.records: dict[str, Record] = {}
        self.watchers = 0


class Observer(Protocol):
    """A machine that acts by one kind of list."""

    def on_replica(
        self, topic: str, replica: Replica, change: RecordPut | RecordDeleted | None, now: float
    ) -> list[Effect]:
        """A replica got its first state (no `change`) or a change, which is already in it."""

    def on_refused(self, topic: str, code: str, text: str) -> list[Effect]:
        """The hub does not let the list of this topic be followed; there is no replica any more."""


class Asker(Protocol):
    """A machine that makes requests of its own, and has to know when one is refused."""

    def on_refused(self, request: RequestId, now: float) -> bool:
        """Whether that request was one of this machine's."""


class Lists:
    """The replicas of one process."""

    handles: frozenset[type[Message]] = frozenset(
        {ListState, RecordPut, RecordDeleted, RecordSettled, RequestRefused, TopicsListed, Status, HelperGiven}
    )
    commands: frozenset[type[Event]] = frozenset({WatchList, UnwatchList})

    def __init__(self, hub: PeerId, agent: PeerId = PeerId("")) -> None:  # noqa: B008 - a str
        """`agent` answers the hub for this process while it is busy."""
        self.hub = hub
        self.agent = agent
        #: Changes that the hub has sent here so far, also those of lists that are followed no longer.
        self.changes = 0
        self.replicas: dict[str, Replica] = {}
        self.observers: dict[str, Observer] = {}
        self.askers: list[Asker] = []
        #: What machines of this process do with the answers to requests of their own.
        self._answers: dict[RequestId, Callable[[AnyMessage, float], list[Effect]]] = {}
        #: Watches so far: their ids, below those of any `IdSource`, since only refusals to this machine name them.
        self._watches = 0
        #: For each list the watches that the hub has not answered yet, in order. It answers each with a state or a
        #: refusal, so the last answer is the one to the last watch: what comes before it belongs to a watch that ended.
        self._unanswered: dict[str, list[RequestId]] = {}

    def follow(self, name: str, acks: bool = False) -> list[Effect]:
        """Begin to follow a list, or count one more who does."""
        replica = self.replicas.get(name)
        if replica is None:
            replica = self.replicas[name] = Replica(name, acks)
            replica.watchers = 1
            return [self._watch(name, acks)]
        replica.watchers += 1
        if acks and not replica.acks:
            # The hub waits for this reader from the state that it sends now, and no promise holds before that.
            replica.acks = True
            replica.ready = False
            return [self._watch(name, True)]
        return []

    def _watch(self, name: str, acks: bool) -> Effect:
        self._watches += 1
        request = RequestId(self._watches)
        self._unanswered.setdefault(name, []).append(request)
        return Send(self.hub, Watch(name, acks, request, self.agent))

    def put(
        self,
        name: str,
        record: str,
        value: bytes,
        permanent: bool,
        answered: Callable[[AnyMessage, float], list[Effect]],
    ) -> Effect:
        """Put a record for a machine of this process, which is told the hub's answer."""
        request = self.next_request(answered)
        return Send(self.hub, PutRecord(request, name, record, value, permanent))

    def next_request(self, answered: Callable[[AnyMessage, float], list[Effect]]) -> RequestId:
        """An id for a request that a machine of this process makes of the head."""
        # Counted together with the watches, so that neither is taken for the other.
        self._watches += 1
        request = RequestId(self._watches)
        self._answers[request] = answered
        return request

    def unfollow(self, name: str) -> list[Effect]:
        """One less who follows a list."""
        replica = self.replicas.get(name)
        if replica is None:
            return []
        replica.watchers -= 1
        if replica.watchers > 0:
            return []
        del self.replicas[name]
        return [Send(self.hub, Unwatch(name))]

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in an event."""
        if type(event) is Received:
            if event.peer != self.hub:
                return [Unhandled(event.peer, type(event.message).__name__, "only the hub may send it")]
            return self._on_message(event.message, now)
        if type(event) is WatchList:
            return self.follow(event.name)
        if type(event) is UnwatchList:
            return self.unfollow(event.name)
        return []

    def _on_message(self, message: AnyMessage, now: float) -> list[Effect]:
        if isinstance(message, ListState | RecordPut | RecordDeleted):
            return self._on_change(message, now)
        if isinstance(message, RecordSettled | RequestRefused | HelperGiven):
            answered = self._answers.pop(message.request, None)
            if answered is not None:
                return answered(message, now)
        if isinstance(message, RequestRefused):
            for name, requests in self._unanswered.items():
                if message.request in requests:
                    return self._on_watch_refused(name, message)
            if any(asker.on_refused(message.request, now) for asker in self.askers):
                return []
        if isinstance(message, RecordSettled | RequestRefused | TopicsListed | Status):
            return [Replied(message.request, message)]
        return []

    def _answered(self, name: str, request: RequestId | None = None) -> bool:
        """Note that the hub answered a watch, the first one unless named; whether it was the last that was made."""
        waiting = self._unanswered.get(name)
        if not waiting:
            return True
        waiting.remove(waiting[0] if request is None else request)
        if not waiting:
            del self._unanswered[name]
        return not waiting

    def _on_watch_refused(self, name: str, message: RequestRefused) -> list[Effect]:
        if not self._answered(name, message.request) or self.replicas.pop(name, None) is None:
            return []
        kind, topic = check_list_name(name)
        observer = self.observers.get(kind)
        effects = observer.on_refused(topic, message.code, message.text) if observer is not None else []
        return [*effects, ListRefused(name, message.code, message.text)]

    def _on_change(self, message: ListState | RecordPut | RecordDeleted, now: float) -> list[Effect]:
        if type(message) is not ListState:
            self.changes += 1
        elif not self._answered(message.name):
            return []
        replica = self.replicas.get(message.name)
        if replica is None or message.version < replica.version:
            return []
        if type(message) is ListState:
            replica.ready = True
        elif not replica.ready:
            # Sent for a watch that has ended since.
            return []
        replica.version = message.version
        change: RecordPut | RecordDeleted | None = None
        if type(message) is ListState:
            replica.records = {record.record: record for record in message.records}
        elif type(message) is RecordPut:
            replica.records[message.record.record] = message.record
            change = message
        elif type(message) is RecordDeleted:
            replica.records.pop(message.record, None)
            change = message
        kind, topic = check_list_name(message.name)
        observer = self.observers.get(kind)
        effects: list[Effect] = []
        if observer is not None:
            effects = observer.on_replica(topic, replica, change, now)
        changed, put = None, None
        if type(message) is RecordPut:
            put = message.record
            changed = put.record
        elif type(message) is RecordDeleted:
            changed = message.record
        effects.append(ListChanged(message.name, message.version, changed, put))
        if replica.acks:
            # Only now: the observer acts by this version from here on.
            effects.append(Send(self.hub, AcknowledgeList(message.name, message.version)))
        return effects

    def next_deadline(self) -> float | None:
        """Never: only events change a replica."""
        return None

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        for name, replica in self.replicas.items():
            assert replica.name == name and replica.watchers > 0
