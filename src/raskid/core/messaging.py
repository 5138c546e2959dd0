"""Publishing and subscribing: the publisher holds a replica of its topic's reactions and sends straight to each target.

For every topic that this process publishes, `plans` holds its targets: an empty tuple costs a publisher one look-up.
Each target has credit: how many messages may be on their way to the subscriber's reader. Without credit, messages
wait here under the subscription's overflow policy, and what the policy leaves out is counted and reported with the
next message. The order per publisher and subscription is that of publishing.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from raskid.core.lists import Lists, Replica
from raskid.core.machine import Effect, Event, PeerGone, Received, Send
from raskid.model.errors import RemoteProtocolError
from raskid.model.ids import PeerId, RequestId
from raskid.model.topics import REACTIONS, list_name
from raskid.protocol.messages import (
    Consumed,
    Deliver,
    Delivered,
    Message,
    PeerRef,
    RecordDeleted,
    RecordPut,
)
from raskid.protocol.reactions import BLOCK, DELIVER, DROP_NEWEST, LATEST, decode_reaction

#: Messages published by a callback before the topic's replica is here; more are dropped, and counted.
EARLY_MAX = 10_000


class Announce(Event, frozen=True):
    """Command: this process will publish on a topic."""

    topic: str


class Publish(Event, frozen=True):
    """Command: send a message to whoever reacts."""

    topic: str
    body: bytes


class Subscribed(Event, frozen=True):
    """Command: messages of a subscription made here are expected."""

    subscription: RequestId
    capacity: int


class Unsubscribed(Event, frozen=True):
    """Command: messages of this subscription are no longer wanted."""

    subscription: RequestId


class Took(Event, frozen=True):
    """Command: the reader took messages of a subscription that came from `publisher`."""

    subscription: RequestId
    publisher: PeerId
    count: int


class Introduce(Effect, frozen=True):
    """Remember how to reach a peer."""

    ref: PeerRef


class Arrived(Effect, frozen=True, gc=False):
    """A message of a subscription made here."""

    subscription: RequestId
    publisher: PeerId
    topic: str
    body: bytes
    dropped: int


class PublisherEnded(Effect, frozen=True):
    """A publisher sends nothing more for a subscription."""

    subscription: RequestId
    publisher: PeerId
    dropped: int


class PlanReady(Effect, frozen=True):
    """The replica of a topic's reactions is here."""

    topic: str


class Target:
    """One subscriber of a topic published here."""

    __slots__ = (
        "capacity", "credit", "dropped", "dropped_all", "incarnation", "overflow", "peer", "queue", "subscription",
        "topic",
    )  # fmt: skip

    def __init__(self, topic: str, subscription: RequestId, ref: PeerRef, capacity: int, overflow: str) -> None:
        self.topic = topic
        self.subscription = subscription
        self.peer = ref.peer
        self.incarnation = ref.incarnation
        self.capacity = capacity
        self.overflow = overflow
        #: Messages that may still be sent. `credit` and those on their way add up to `capacity`.
        self.credit = capacity
        #: Bodies that wait for credit; empty while there is credit.
        self.queue: deque[bytes] = deque()
        self.dropped = 0
        self.dropped_all = 0

    def leave_out(self, count: int = 1) -> None:
        """Count what the policy drops."""
        self.dropped += count
        self.dropped_all += count

    def make_room(self) -> None:
        """Apply the overflow policy to a message that was just queued."""
        if self.overflow == LATEST:
            while len(self.queue) > 1:
                self.queue.popleft()
                self.leave_out()
        elif self.overflow == DROP_NEWEST:
            while len(self.queue) > self.capacity:
                self.queue.pop()
                self.leave_out()
        else:
            while len(self.queue) > self.capacity:
                self.queue.popleft()
                self.leave_out()


class _Subscription:
    __slots__ = ("capacity", "taken")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.taken: dict[PeerId, int] = {}


class Messaging:
    """Publisher and subscriber sides of one process."""

    handles: frozenset[type[Message]] = frozenset({Deliver, Consumed, Delivered})
    commands: frozenset[type[Event]] = frozenset({Announce, Publish, Subscribed, Unsubscribed, Took})

    def __init__(self, lists: Lists) -> None:
        self._lists = lists
        lists.observers[REACTIONS] = self
        #: Topic → its targets. A topic that is missing has not been announced, or its replica is not here yet.
        self.plans: dict[str, tuple[Target, ...]] = {}
        self._early: dict[str, list[bytes]] = {}
        self._targets: dict[RequestId, Target] = {}
        self._subscriptions: dict[RequestId, _Subscription] = {}
        self.dropped_early = 0

    # ── commands ──

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in an event."""
        kind = type(event)
        if kind is Received:
            return self._on_message(event.peer, event.message)
        if kind is Publish:
            return self.publish(event.topic, event.body)
        if kind is Took:
            return self._on_took(event)
        if kind is Announce:
            return self._announce(event.topic)
        if kind is Subscribed:
            self._subscriptions[event.subscription] = _Subscription(event.capacity)
        elif kind is Unsubscribed:
            self._subscriptions.pop(event.subscription, None)
        elif kind is PeerGone:
            return self._on_gone(event.peer, event.incarnation)
        return []

    def _announce(self, topic: str) -> list[Effect]:
        if topic in self.plans or topic in self._early:
            return []
        self._early[topic] = []
        return self._lists.follow(list_name(REACTIONS, topic), acks=True)

    def publish(self, topic: str, body: bytes) -> list[Effect]:
        """Send or queue one message; before the replica is here, it waits for it."""
        plan = self.plans.get(topic)
        if plan is None:
            effects = self._announce(topic)
            early = self._early[topic]
            if len(early) < EARLY_MAX:
                early.append(body)
            else:
                self.dropped_early += 1
            return effects
        effects = []
        for target in plan:
            if target.credit > 0 and not target.queue:
                target.credit -= 1
                effects.append(Send(target.peer, Deliver(target.subscription, topic, body, target.dropped)))
                target.dropped = 0
            else:
                target.queue.append(body)
                if target.overflow != BLOCK or len(target.queue) > target.capacity:
                    target.make_room()
        return effects

    def blocked(self, topic: str) -> list[Target]:
        """Targets whose policy is to block the publisher, and for which messages wait."""
        return [t for t in self.plans.get(topic, ()) if t.overflow == BLOCK and t.queue]

    def _drain(self, target: Target) -> list[Effect]:
        effects: list[Effect] = []
        while target.queue and target.credit > 0:
            target.credit -= 1
            body = target.queue.popleft()
            effects.append(Send(target.peer, Deliver(target.subscription, target.topic, body, target.dropped)))
            target.dropped = 0
        return effects

    # ── the publisher's side ──

    def on_replica(self, topic: str, replica: Replica, change: RecordPut | RecordDeleted | None) -> list[Effect]:
        """The reactions of a topic published here changed."""
        effects: list[Effect] = []
        present = self.plans.get(topic)
        if present is None and topic not in self._early:
            # Somebody here looks at this list, and nobody publishes.
            return []
        old = {target.subscription: target for target in present or ()}
        if isinstance(change, RecordDeleted):
            target = old.pop(_subscription_of(change.record), None)
            if target is not None:
                effects += self._finish(target)
        elif isinstance(change, RecordPut):
            effects += self._adopt(topic, change.record.record, change.record.value, old)
        else:
            for identifier in set(old) - {_subscription_of(name) for name in replica.records}:
                effects += self._finish(old.pop(identifier))
            for name, record in replica.records.items():
                effects += self._adopt(topic, name, record.value, old)
        self.plans[topic] = tuple(old.values())
        if present is None:
            for body in self._early.pop(topic, ()):
                effects += self.publish(topic, body)
            effects.append(PlanReady(topic))
        return effects

    def _adopt(self, topic: str, name: str, value: bytes, into: dict[RequestId, Target]) -> list[Effect]:
        identifier = _subscription_of(name)
        if identifier < 0 or identifier in self._targets:
            return []
        try:
            reaction = decode_reaction(value)
        except RemoteProtocolError:
            # A reaction that nobody here understands is the business of its owner, not of the publisher.
            return []
        if reaction.op != DELIVER:
            return []
        target = Target(topic, identifier, reaction.target, reaction.capacity, reaction.overflow)
        into[identifier] = self._targets[identifier] = target
        return [Introduce(reaction.target)]

    def _finish(self, target: Target) -> list[Effect]:
        self._targets.pop(target.subscription, None)
        target.leave_out(len(target.queue))
        target.queue.clear()
        return [Send(target.peer, Delivered(target.subscription, target.dropped))]

    def _on_gone(self, peer: PeerId, incarnation: int) -> list[Effect]:
        for topic, plan in self.plans.items():
            # A newer incarnation may have subscribed before the end of this one was noticed.
            ended = [target for target in plan if target.peer == peer and target.incarnation <= incarnation]
            if ended:
                # The hub removes the record as well; until then nothing is to pile up for nobody.
                for target in ended:
                    self._targets.pop(target.subscription, None)
                    target.queue.clear()
                self.plans[topic] = tuple(target for target in plan if target not in ended)
        for subscription in self._subscriptions.values():
            subscription.taken.pop(peer, None)
        return []

    # ── messages ──

    def _on_message(self, peer: PeerId, message: Message) -> list[Effect]:
        if type(message) is Deliver:
            if message.subscription not in self._subscriptions:
                return []
            return [Arrived(message.subscription, peer, message.topic, message.body, message.dropped)]
        if type(message) is Consumed:
            target = self._targets.get(message.subscription)
            if target is None or target.peer != peer:
                return []
            target.credit = min(target.capacity, target.credit + max(0, message.count))
            return self._drain(target)
        if type(message) is Delivered:
            return [PublisherEnded(message.subscription, peer, message.dropped)]
        return []

    def _on_took(self, event: Took) -> list[Effect]:
        subscription = self._subscriptions.get(event.subscription)
        if subscription is None:
            return []
        taken = subscription.taken.get(event.publisher, 0) + event.count
        if taken * 2 >= subscription.capacity:
            subscription.taken[event.publisher] = 0
            return [Send(event.publisher, Consumed(event.subscription, taken))]
        subscription.taken[event.publisher] = taken
        return []

    def next_deadline(self) -> float | None:
        """Never: only events change anything here."""
        return None

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        for topic, plan in self.plans.items():
            for target in plan:
                assert target.topic == topic
                assert self._targets[target.subscription] is target
                assert 0 <= target.credit <= target.capacity
                assert not target.queue or target.credit == 0
                assert len(target.queue) <= max(target.capacity, 1)


def _subscription_of(record: str) -> RequestId:
    """The id that a record's name is, or -1. Names come from other peers and may be anything."""
    if not record.isascii() or not record.isdigit() or len(record) > 19 or int(record) >= 1 << 63:
        return RequestId(-1)
    return RequestId(int(record))
