"""Publishing and subscribing: the publisher holds a replica of its topic's reactions and sends straight to each target.

For every topic that this process publishes, `plans` holds its targets: an empty tuple costs a publisher one look-up.
Each target has credit: how many messages may be on their way to the subscriber's reader. Without credit, messages
wait here under the subscription's overflow policy, and what the policy leaves out is counted and reported with the
next message. The order per publisher and subscription is that of publishing.

What is published in quick succession is collected for each target, and travels as one `Deliver`, so that most of what a
message costs is paid once for many. Whoever asks this machine directly, with `publish`, calls `collect` before it
writes; everything else here sends what was collected before it says anything more to the same target.

Topics that nobody reacts to are followed too, up to `IDLE_MAX` of them, so that their publishes cost no more than the
look-up; beyond that the one that became idle first is given up, and asked for again when it is published next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from raskid.core.effects import Arrived, Effect, Introduce, PlanReady, PublisherEnded, RoomMade, Send
from raskid.core.events import Announce, Event, PeerGone, Publish, Received, Subscribed, Took, Unsubscribed
from raskid.core.link import MESSAGE_BYTES_MAX
from raskid.core.lists import Lists, Replica
from raskid.model.errors import LocalProtocolError, RemoteProtocolError
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
from raskid.protocol.reactions import BLOCK, DROP_NEWEST, JUST_DELIVER, LATEST, decode_reaction

#: Messages published by a callback before the topic's replica is here; more are dropped, and counted.
EARLY_MAX = 10_000
#: Topics that are followed although nobody reacts to them.
IDLE_MAX = 10_000
#: One `Deliver` has no more messages than this, so that their reader gives credit in between,
BODIES_MAX = 128
#: nor more bytes, unless it holds one message only.
BODIES_BYTES_MAX = 64 * 1024
#: A message may be this long: as long as a link takes it, with what stands around it.
BODY_BYTES_MAX = MESSAGE_BYTES_MAX - 64 * 1024


class Target:
    """One subscriber of a topic published here."""

    __slots__ = (
        "bodies", "bodies_bytes", "bodies_dropped", "capacity", "credit", "dropped", "dropped_all", "incarnation",
        "number", "overflow", "peer", "queue", "subscription", "topic",
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
        #: Messages that wait for credit, as (number, body, whether its publisher waits as well); empty while there
        #: is credit. Their numbers rise, and `number` is the last one given.
        self.queue: deque[tuple[int, bytes, bool]] = deque()
        self.number = 0
        #: Messages that have had their credit and are to be sent together, and what was left out before the first.
        self.bodies: list[bytes] = []
        self.bodies_bytes = 0
        self.bodies_dropped = 0
        self.dropped = 0
        self.dropped_all = 0

    def add(self, body: bytes, effects: list[Effect]) -> bool:
        """Collect a message, for which there is credit; returns whether it is the first of its collection."""
        bodies, size = self.bodies, len(body)
        if bodies and (self.dropped or len(bodies) >= BODIES_MAX or self.bodies_bytes + size > BODIES_BYTES_MAX):
            effects.append(self.take())
            bodies = self.bodies
        begins = not bodies
        if begins:
            self.bodies_dropped, self.dropped = self.dropped, 0
        bodies.append(body)
        self.bodies_bytes += size
        self.credit -= 1
        return begins

    def take(self) -> Send:
        """What was collected (there is something), as one message."""
        # The replica's name of the topic is plain text; the publisher's may be of a subclass.
        message = Deliver(self.subscription, self.topic, self.bodies, self.bodies_dropped)
        self.bodies = []
        self.bodies_bytes = 0
        return Send(self.peer, message)

    def leave_out(self, count: int = 1) -> None:
        """Count what the policy drops."""
        self.dropped += count
        self.dropped_all += count

    def enqueue(self, body: bytes, waited: bool) -> None:
        """Let a message wait, and apply the overflow policy; `waited`: its publisher waits until it is sent."""
        queue = self.queue
        self.number += 1
        queue.append((self.number, body, waited))
        if self.overflow == LATEST:
            while len(queue) > 1:
                queue.popleft()
                self.leave_out()
        elif len(queue) > self.capacity:
            if self.overflow == DROP_NEWEST:
                queue.pop()
            elif self.overflow != BLOCK:
                queue.popleft()
            elif not waited:
                # A publisher that waits keeps its place: the oldest of those that could not wait goes.
                del queue[next(at for at, it in enumerate(queue) if not it[2])]
            else:
                # There are as many of these as there are threads that wait.
                return
            self.leave_out()

    def withdraw(self, number: int) -> bool:
        """Leave out one message that waits, for whose publisher time is up; False when it waits no longer."""
        for at, it in enumerate(self.queue):
            if it[0] == number:
                del self.queue[at]
                self.leave_out()
                return True
        return False


class Messaging:
    """Publisher and subscriber sides of one process."""

    handles: frozenset[type[Message]] = frozenset({Deliver, Consumed, Delivered})
    commands: frozenset[type[Event]] = frozenset({Announce, Publish, Subscribed, Unsubscribed, Took})

    def __init__(self, lists: Lists) -> None:
        self._lists = lists
        lists.observers[REACTIONS] = self
        #: Topic → its targets. A topic that is missing has not been announced, or its replica is not here yet.
        self.plans: dict[str, tuple[Target, ...]] = {}
        #: Topics in `plans` without a target, in the order in which they became so.
        self._idle: dict[str, None] = {}
        #: Topics whose replica is on its way: what callbacks published meanwhile, and how many were too many.
        self._early: dict[str, list[bytes]] = {}
        self._early_dropped: dict[str, int] = {}
        self._targets: dict[RequestId, Target] = {}
        #: Targets with something collected, in the order in which that began; also some without.
        self._collected: list[Target] = []
        self._subscriptions: set[RequestId] = set()
        #: Messages that were left out before it was known who reacts to their topic.
        self.dropped_early = 0

    # ── commands ──

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in an event."""
        kind = type(event)
        if kind is Received:
            return self._on_message(event.peer, event.message)
        if kind is Publish:
            return [*self.publish(event.topic, event.body), *self.collect()]
        if kind is Took:
            return self._on_took(event)
        if kind is Announce:
            return self._announce(event.topic)
        if kind is Subscribed:
            self._subscriptions.add(event.subscription)
        elif kind is Unsubscribed:
            self._subscriptions.discard(event.subscription)
        elif kind is PeerGone:
            return self._on_gone(event.peer, event.incarnation)
        return []

    def _announce(self, topic: str) -> list[Effect]:
        if topic in self.plans or topic in self._early:
            return []
        self._early[topic] = []
        return self._lists.follow(list_name(REACTIONS, topic), acks=True)

    def publish(self, topic: str, body: bytes, waits: bool = False) -> list[Effect]:
        """Send or queue one message; before the replica is here, it waits for it.

        Args:
            topic: The topic's name.
            body: The encoded message.
            waits: The publisher goes on only when no subscription with policy "block" has the message in its queue.
        Raises:
            LocalProtocolError: The message is too long; nothing has changed.
        """
        if len(body) > BODY_BYTES_MAX:
            raise LocalProtocolError(
                f"a message of {len(body):,} bytes on {topic!r:.80} is too long: a message may have "
                f"{BODY_BYTES_MAX:,} bytes. Send less at a time"
            )
        plan = self.plans.get(topic)
        if plan is None:
            effects = self._announce(topic)
            early = self._early[topic]
            if len(early) < EARLY_MAX:
                early.append(body)
            else:
                self.dropped_early += 1
                self._early_dropped[topic] = self._early_dropped.get(topic, 0) + 1
            return effects
        effects = []
        for target in plan:
            if target.credit <= 0 or target.queue:
                target.enqueue(body, waits and target.overflow == BLOCK)
                continue
            if target.add(body, effects):
                self._collected.append(target)
        return effects

    def collect(self) -> list[Effect]:
        """What was published since the last call, and is to be sent now."""
        if not self._collected:
            return []
        collected, self._collected = self._collected, []
        return [target.take() for target in collected if target.bodies]

    def blocked(self, topic: str) -> list[Target]:
        """Targets whose policy is to block the publisher, and for which messages wait."""
        return [t for t in self.plans.get(topic, ()) if t.overflow == BLOCK and t.queue]

    def waits(self, present: Callable[[PeerId], bool]) -> bool:
        """Whether messages wait here: for the replica of their topic, or for room at a subscriber that is present."""
        return any(self._early.values()) or any(
            (t.queue or t.bodies) and present(t.peer) for t in self._targets.values()
        )

    def _drain(self, target: Target) -> list[Effect]:
        """Send what waits for credit, as far as there is some."""
        if not target.queue or target.credit <= 0:
            return []
        effects: list[Effect] = []
        number = 0
        # What was collected had its credit before, and comes first.
        while target.queue and target.credit > 0:
            number, body, _ = target.queue.popleft()
            target.add(body, effects)
        effects.append(target.take())
        if target.overflow == BLOCK:
            effects.append(RoomMade(target.subscription, number))
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
        effects += self._set_plan(topic, tuple(old.values()))
        if present is None:
            for body in self._early.pop(topic, ()):
                effects += self.publish(topic, body)
            effects += self.collect()
            left_out = self._early_dropped.pop(topic, 0)
            for target in old.values():
                target.leave_out(left_out)
            effects.append(PlanReady(topic))
        return effects

    def on_refused(self, topic: str, code: str, text: str) -> list[Effect]:
        """The hub does not let us follow this topic's reactions: nothing can be published on it."""
        self.dropped_early += len(self._early.pop(topic, ()))
        self._early_dropped.pop(topic, None)
        return []

    def _set_plan(self, topic: str, plan: tuple[Target, ...]) -> list[Effect]:
        self.plans[topic] = plan
        if plan:
            self._idle.pop(topic, None)
            return []
        self._idle.setdefault(topic)
        if len(self._idle) <= IDLE_MAX:
            return []
        first = next(iter(self._idle))
        del self._idle[first], self.plans[first]
        return self._lists.unfollow(list_name(REACTIONS, first))

    def _adopt(self, topic: str, name: str, value: bytes, into: dict[RequestId, Target]) -> list[Effect]:
        identifier = _subscription_of(name)
        if identifier < 0 or identifier in self._targets:
            return []
        try:
            reaction = decode_reaction(value)
        except RemoteProtocolError:
            # A reaction that nobody here understands is the business of its owner, not of the publisher.
            return []
        if reaction.operations != JUST_DELIVER:
            return []
        target = Target(topic, identifier, reaction.target, reaction.capacity, reaction.overflow)
        into[identifier] = self._targets[identifier] = target
        return [Introduce(reaction.target)]

    def _finish(self, target: Target) -> list[Effect]:
        effects: list[Effect] = [target.take()] if target.bodies else []
        target.leave_out(len(target.queue))
        return [*effects, Send(target.peer, Delivered(target.subscription, target.dropped)), *self._drop(target)]

    def _drop(self, target: Target) -> list[Effect]:
        """Forget a target; whoever waits for room there waits no longer."""
        self._targets.pop(target.subscription, None)
        waited = bool(target.queue)
        target.queue.clear()
        target.bodies = []
        target.bodies_bytes = 0
        return [RoomMade(target.subscription, target.number)] if waited and target.overflow == BLOCK else []

    def _on_gone(self, peer: PeerId, incarnation: int) -> list[Effect]:
        effects: list[Effect] = []
        for topic, plan in list(self.plans.items()):
            # A newer incarnation may have subscribed before the end of this one was noticed.
            ended = [target for target in plan if target.peer == peer and target.incarnation <= incarnation]
            if ended:
                # The hub removes the record as well; until then nothing is to pile up for nobody.
                for target in ended:
                    effects += self._drop(target)
                effects += self._set_plan(topic, tuple(target for target in plan if target not in ended))
        return effects

    # ── messages ──

    def _on_message(self, peer: PeerId, message: Message) -> list[Effect]:
        if type(message) is Deliver:
            if message.subscription not in self._subscriptions:
                return []
            return [Arrived(message.subscription, peer, message.topic, message.bodies, message.dropped)]
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
        # Whoever reads tells of many at once: a message each would cost more than reading.
        if event.subscription not in self._subscriptions:
            return []
        return [Send(event.publisher, Consumed(event.subscription, event.count))]

    def next_deadline(self) -> float | None:
        """Never: only events change anything here."""
        return None

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        assert list(self._idle) == [topic for topic in self._idle if self.plans.get(topic) == ()]
        assert len(self._idle) <= IDLE_MAX
        for topic, plan in self.plans.items():
            assert plan or topic in self._idle
            assert topic not in self._early
            for target in plan:
                assert target.topic == topic
                assert self._targets[target.subscription] is target
                assert 0 <= target.credit <= target.capacity
                assert not target.queue or target.credit == 0
                assert not target.bodies or target in self._collected
                assert target.bodies_bytes == sum(map(len, target.bodies))
                assert sum(not waited for _, _, waited in target.queue) <= max(target.capacity, 1)
                numbers = [number for number, _, _ in target.queue]
                assert numbers == sorted(numbers) and all(number <= target.number for number in numbers)


def _subscription_of(record: str) -> RequestId:
    """The id that a record's name is, or -1. Names come from other peers and may be anything."""
    if not record.isascii() or not record.isdigit() or len(record) > 19 or int(record) >= 1 << 63:
        return RequestId(-1)
    return RequestId(int(record))
