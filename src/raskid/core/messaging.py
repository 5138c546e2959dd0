"""Publishing and subscribing: the publisher holds a replica of its topic's reactions and runs them.

For every topic that this process publishes, `plans` holds what is to be done: an empty tuple costs a publisher one
look-up, and a tuple of targets says that all who react are plain subscribers: the body is encoded once, and goes to
each (`publish`). Where reactions are more than that, the topic is in `complex` as well, and messages go through
operations as values (`begin` and `go`; see `raskid.core.publication`, `raskid.core.passage`).

What is published in quick succession is collected for each target, and travels as one `Deliver`, so that most of what a
message costs is paid once for many. Whoever asks this machine directly, with `publish`, calls `collect` before it
writes; everything else here sends what was collected before it says anything more to the same target.

Topics that nobody reacts to are followed too, up to `IDLE_MAX` of them, so that their publishes cost no more than the
look-up; beyond that the one that became idle first is given up, and asked for again when it is published next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from raskid.core.chains import Chain, Item, Passing
from raskid.core.effects import (
    Arrived,
    Effect,
    Introduce,
    PlanReady,
    PublisherEnded,
    ReactionReported,
    RoomMade,
    Send,
)
from raskid.core.events import (
    Announce,
    CodeRan,
    Event,
    Handled,
    PeerGone,
    PeerJoined,
    Publish,
    Received,
    Subscribed,
    Tick,
    Took,
    Unsubscribed,
)
from raskid.core.groups import Group
from raskid.core.link import MESSAGE_BYTES_MAX
from raskid.core.lists import Lists, Replica
from raskid.core.passage import Passage
from raskid.core.plans import Plan, arrange
from raskid.core.publication import Publication
from raskid.core.targets import OURS, Target
from raskid.model.errors import LocalProtocolError, RemoteProtocolError
from raskid.model.ids import CodeId, PeerId, RequestId
from raskid.model.roles import ROLE_EXECUTE
from raskid.model.topics import REACTIONS, list_name
from raskid.protocol.messages import (
    Acknowledge,
    AnyMessage,
    AskHelper,
    CodeGiven,
    Consumed,
    Deliver,
    Delivered,
    HelperGiven,
    HostReaction,
    Message,
    PeerRef,
    ReactionFailed,
    ReactionStopped,
    Record,
    RecordDeleted,
    RecordPut,
)
from raskid.protocol.reactions import (
    AT_HELPER,
    AT_PUBLISHER,
    BLOCK,
    JUST_DELIVER,
    PULL,
    Reaction,
    decode_reaction,
)

#: Messages published by a callback before the topic's replica is here; more are dropped, and counted.
EARLY_MAX = 10_000
#: Topics that are followed although nobody reacts to them.
IDLE_MAX = 10_000
#: A message may be this long: as long as a link takes it, with what stands around it.
BODY_BYTES_MAX = MESSAGE_BYTES_MAX - 64 * 1024
#: Reactions that this process runs for other publishers.
GUESTS_MAX = 10_000


def first_of(count: int) -> int:
    """No chance at all; whoever makes a `Messaging` gives a better one."""
    return 0


class Messaging:
    """Publisher and subscriber sides of one process.

    Args:
        lists: The replicas of this process.
        draw: Gives a number from 0 to below its argument, by chance.
        where: How this process is named in reports of failures.
    """

    handles: frozenset[type[Message]] = frozenset(
        {Deliver, Consumed, Delivered, Acknowledge, HostReaction, ReactionFailed, ReactionStopped, CodeGiven}
    )
    commands: frozenset[type[Event]] = frozenset({Announce, Publish, Subscribed, Unsubscribed, Took, Handled, CodeRan})

    def __init__(self, lists: Lists, draw: Callable[[int], int] = first_of, where: str = "") -> None:
        self._lists = lists
        lists.observers[REACTIONS] = self
        #: Topic → its targets, chains and classes. A topic that is missing has not been announced, or its replica is
        #: not here yet.
        self.plans: dict[str, tuple[Any, ...]] = {}
        #: The topics among them that have more than plain subscribers.
        self.complex: dict[str, Plan] = {}
        #: Topic → its reactions here, in the order of the list: exactly the topics of `plans`.
        self._members: dict[str, dict[RequestId, Any]] = {}
        self._groups: dict[str, dict[str, Group]] = {}
        #: Topics in `plans` without a target, in the order in which they became so.
        self._idle: dict[str, None] = {}
        #: Topics whose replica is on its way: what callbacks published meanwhile, with the topics it came through, and
        #: how many were too many.
        self._early: dict[str, list[tuple[bytes, int]]] = {}
        self._early_dropped: dict[str, int] = {}
        self._targets: dict[RequestId, Target] = {}
        #: Targets with something collected, in the order in which that began; also some without.
        self._collected: list[Target] = []
        self._subscriptions: set[RequestId] = set()
        #: Chains with windows.
        self._timed: list[Chain] = []
        #: What runs here for others, by publisher and by the subscription under which it comes.
        self._guests: dict[tuple[PeerId, RequestId], Chain] = {}
        #: Peers that must not have anything executed here.
        self._limited: set[PeerId] = set()
        #: Who runs slow reactions for the publishers of this node; None while nobody knows.
        self._helper: PeerRef | None = None
        self._helper_asked = False
        #: Messages that were left out before it was known who reacts to their topic.
        self.dropped_early = 0
        self._passage = Passage(lists, self, where)
        self._publication = Publication(self, self._passage, draw)

    # ── commands ──

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in an event."""
        kind = type(event)
        if kind is Received:
            return self._on_message(event.peer, event.message, now)
        if kind is Publish:
            return [*self.publish(event.topic, event.body, False, now), *self.collect()]
        if kind is Took:
            return self._on_took(event)
        if kind is Handled:
            if event.subscription not in self._subscriptions:
                return []
            return [Send(event.publisher, Acknowledge(event.subscription, event.numbers))]
        if kind is Announce:
            return self._announce(event.topic)
        if kind is Subscribed:
            self._subscriptions.add(event.subscription)
        elif kind is Unsubscribed:
            self._subscriptions.discard(event.subscription)
        elif kind is PeerJoined:
            if event.role == ROLE_EXECUTE:
                self._limited.discard(event.peer)
            else:
                self._limited.add(event.peer)
        elif kind is PeerGone:
            self._limited.discard(event.peer)
            return self._on_gone(event.peer, event.incarnation, now)
        elif kind is CodeRan:
            effects: list[Effect] = []
            self._passage.on_code_ran(event, now, effects)
            return self._finish_turn(effects)
        elif kind is Tick and (self._timed or self._passage.busy):
            effects = []
            self._passage.tick(list(self._timed), now, effects)
            return self._finish_turn(effects)
        return []

    def _announce(self, topic: str) -> list[Effect]:
        if topic in self.plans or topic in self._early:
            return []
        self._early[topic] = []
        return self._lists.follow(list_name(REACTIONS, topic), acks=True)

    def publish(self, topic: str, body: bytes, waits: bool = False, now: float = 0.0) -> list[Effect]:
        """Send or queue one message; before the replica is here, it waits for it.

        Args:
            topic: The topic's name.
            body: The encoded message.
            waits: The publisher goes on only when no subscription with policy "block" has the message in its queue.
            now: The time, for reactions that go by it.
        Raises:
            LocalProtocolError: The message is too long; nothing has changed.
        """
        if len(body) > BODY_BYTES_MAX:
            raise LocalProtocolError(
                f"a message of {len(body):,} bytes on {topic!r:.80} is too long: a message may have "
                f"{BODY_BYTES_MAX:,} bytes. Send less at a time"
            )
        plan = self.plans.get(topic)
        effects: list[Effect] = []
        if plan is None:
            self.publish_early(topic, body, 0, effects)
            return effects
        if topic in self.complex:
            self._publication.early(topic, body, 0, self.complex[topic], now, effects)
            return effects
        for target in plan:
            if target.credit <= 0 or target.queue:
                target.enqueue(body, waits and target.overflow == BLOCK)
                continue
            if target.add(body, effects):
                self._collected.append(target)
        return effects

    def publish_early(self, topic: str, body: bytes, hops: int, effects: list[Effect]) -> None:
        """Keep a message until it is known who reacts to its topic."""
        effects += self._announce(topic)
        early = self._early[topic]
        if len(early) < EARLY_MAX:
            early.append((body, hops))
        else:
            self.dropped_early += 1
            self._early_dropped[topic] = self._early_dropped.get(topic, 0) + 1

    def begin(self, topic: str, waits: bool, now: float) -> Passing | None:
        """Begin to publish on a topic that is in `complex`; None when nobody wants the message, which need not even be
        made then."""
        return self._publication.begin(topic, self.complex[topic], waits, now)

    def go(self, passing: Passing, args: tuple[Any, ...], fields: dict[str, Any], now: float) -> list[Effect]:
        """Publish the message that `begin` has begun with.

        Afterwards `passing.done` says whether all that it set off here is through. If not, `passing.told` may be set,
        and `Passed` will say so; until then the values must not be changed. `passing.waiting` names full subscriptions
        with policy "block" in whose queues it stands. Call `collect` before writing. `passing.unsendable` is the
        publisher's error, if only some reaction behind a filter wanted it as bytes: all others have it.

        Raises:
            ValueNotSendable: Some reader wants it as it is, or nobody waits (`passing.awaited`), and messages do not
                carry it; nothing has happened.
        """
        effects: list[Effect] = []
        passing.publishing = True
        self._publication.go(passing, Item(args, fields), self.complex.get(passing.topic), now, effects)
        passing.publishing = False
        return effects

    def collect(self) -> list[Effect]:
        """What was published since the last call, and is to be sent now."""
        if not self._collected:
            return []
        collected, self._collected = self._collected, []
        return [target.take() for target in collected if target.bodies]

    def _finish_turn(self, effects: list[Effect]) -> list[Effect]:
        """Outside of `publish`: send what was collected, and give credit for what was hosted."""
        self._publication.credit(effects)
        effects += self.collect()
        return effects

    def targets_of(self, topic: str) -> list[Target]:
        """The readers of a topic, of whatever kind their reactions are."""
        found: list[Target] = []
        for member in self._members.get(topic, {}).values():
            target = member if isinstance(member, Target) else member.target
            if target is not None:
                found.append(target)
        return found

    def blocked(self, topic: str) -> list[Target]:
        """Targets whose policy is to block the publisher, and for which messages wait."""
        if topic in self.complex:
            return [t for t in self.targets_of(topic) if t.overflow == BLOCK and t.queue]
        return [t for t in self.plans.get(topic, ()) if t.overflow == BLOCK and t.queue]

    def waits(self, present: Callable[[PeerId], bool]) -> bool:
        """Whether messages wait here: for the replica of their topic, for code, for their turn in a cell, or for room
        at a subscriber that is present."""
        return (
            any(self._early.values())
            or self._passage.busy
            or self._passage.sets
            or any((t.queue or t.bodies) and present(t.peer) for t in self._targets.values())
            or any(group.open and group.is_active for groups in self._groups.values() for group in groups.values())
        )

    def unacknowledged(self) -> list[tuple[str, str, int]]:
        """Messages that nobody has acknowledged yet, and that no other member gets once this process has left,
        as (topic, class, how many)."""
        return [
            (topic, group.name, len(group.open) + len(group.waiting))
            for topic, groups in self._groups.items()
            for group in groups.values()
            if group.open or group.waiting
        ]

    def flush_windows(self, now: float) -> list[Effect]:
        """This process is about to leave: let go what its reactions still collect."""
        effects: list[Effect] = []
        for chain in list(self._timed):
            self._passage.flush(chain, now, effects)
        return self._finish_turn(effects)

    def kept(self, now: float) -> list[tuple[str, str, list[tuple[int, bytes, float]]]]:
        """What this process keeps for baskets: (topic, basket, messages as (number, body, age in seconds))."""
        found: list[tuple[str, str, list[tuple[int, bytes, float]]]] = []
        for topic, members in self._members.items():
            for member in members.values():
                if isinstance(member, Chain) and member.keeper is not None and member.keeper.basket:
                    member.keeper.expire(now)
                    messages = [(number, body, now - at) for number, body, at in member.keeper.messages]
                    found.append((topic, member.keeper.basket, messages))
        return found

    # ── what reactions do ──

    def send(
        self, target: Target, body: bytes, passing: Passing | None, effects: list[Effect], number: int = 0
    ) -> None:
        """Send a message to a reader, or let it wait there."""
        again, publisher, waits, hops = False, OURS, False, 0
        if passing is not None:
            if target.subscription < 0:
                # A host, which may pass it on to other topics. Readers do not, and get more at a time.
                hops = passing.hops
            again, publisher, waits = passing.again, passing.publisher, passing.waits and target.overflow == BLOCK
        if target.credit <= 0 or target.queue:
            target.enqueue(body, waits or (number > 0 and again), number, again, publisher, hops)
            if waits and passing is not None and target.queue:
                root = passing
                while root.parent is not None:
                    root = root.parent
                root.waiting.append((target, target.number))
        elif target.add(body, effects, number, again, publisher, hops):
            self._collected.append(target)

    def deliver(self, chain: Chain, target: Target, item: Item, passing: Passing | None, effects: list[Effect]) -> None:
        """Send a message to the owner of its reaction."""
        number = passing.number if passing is not None and chain.numbered else 0
        body = item.encoded()
        group = self.group_of(chain) if chain.reaction.ack else None
        if group is not None and number:
            group.mark_sent(chain.id, number)
        self.send(target, body, passing, effects, number)
        if target.lost:
            if group is not None:
                for lost in target.lost:
                    group.close(chain.id, lost)
            target.lost.clear()

    def forward(self, topic: str, item: Item, passing: Passing | None, now: float, effects: list[Effect]) -> None:
        """Publish a message on another topic as well."""
        self._publication.forward(topic, item, passing, now, effects)

    def hand_on(self, chain: Chain, item: Item, passing: Passing | None, effects: list[Effect]) -> bool:
        """Send a message to whoever runs the rest of its chain; False while that is not known."""
        host = chain.host
        if host is None:
            ref: PeerRef | None = chain.reaction.target
            if chain.reaction.place == AT_HELPER:
                ref = self._helper
                if ref is None:
                    self._ask_helper(effects)
                    return False
            assert ref is not None
            # Its own name: the owner gets messages under the reaction's as well.
            identifier = RequestId(-chain.id)
            host = chain.host = Target(chain.topic, identifier, ref, chain.reaction.capacity, BLOCK)
            self._targets[identifier] = host
            effects.append(Introduce(ref))
            asked = HostReaction(identifier, chain.topic, chain.record, chain.hand_on, chain.owned)
            effects.append(Send(ref.peer, asked))
        number = passing.number if passing is not None and chain.reaction.numbered else 0
        self.send(host, item.encoded(), passing, effects, number)
        return True

    def _ask_helper(self, effects: list[Effect]) -> None:
        if self._helper_asked:
            return
        self._helper_asked = True
        request = self._lists.next_request(self._on_helper)
        effects.append(Send(self._lists.hub, AskHelper(request)))

    def _on_helper(self, message: AnyMessage, now: float) -> list[Effect]:
        self._helper_asked = False
        if type(message) is not HelperGiven:
            # What waits for one fails when its time is up.
            return []
        self._helper = message.helper
        effects: list[Effect] = []
        for members in list(self._members.values()):
            for member in list(members.values()):
                if isinstance(member, Chain) and member.stalled:
                    self._passage.resume(member, now, effects)
        return self._finish_turn(effects)

    def ended(
        self, chain: Chain, passing: Passing | None, finished: bool, now: float, effects: list[Effect]
    ) -> None:  # fmt: skip
        """A message has come to its end in one chain."""
        self._publication.ended(chain, passing, finished, now, effects)

    def group_of(self, chain: Chain) -> Group | None:
        """The class of a reaction to what is published here, if it is of one."""
        groups = self._groups.get(chain.topic)
        return groups.get(chain.reaction.group) if groups is not None and not chain.publisher else None

    def chosen(self, group: Group, member: Chain | None, passing: Passing, now: float, effects: list[Effect]) -> None:
        """A metric has chosen which member of a class gets a message."""
        self._publication.chosen(group, member, passing, now, effects)

    def changed(self, chain: Chain) -> None:
        """A chain is suspended or over: its topic may have nobody left who reacts."""
        if chain.topic in self._members and not chain.removed and not chain.publisher:
            self._arrange(chain.topic)

    def codes_in_use(self) -> set[CodeId]:
        """The code objects that reactions here name."""
        found: set[CodeId] = set()
        for members in self._members.values():
            for member in members.values():
                if isinstance(member, Chain):
                    found.update(member.codes())
        for chain in self._guests.values():
            found.update(chain.codes())
        return found

    def add_code(self, code: Any) -> None:
        """A code object that this process made: it need not be asked for."""
        self._passage.add_code(code)

    def is_present(self, peer: PeerId) -> bool:
        """Whether a peer that reacts to something here has not gone."""
        return any(target.peer == peer for target in self._targets.values())

    # ── the publisher's side: who reacts ──

    def on_replica(
        self, topic: str, replica: Replica, change: RecordPut | RecordDeleted | None, now: float
    ) -> list[Effect]:
        """The reactions of a topic published here changed."""
        effects: list[Effect] = []
        first = topic not in self.plans
        if first and topic not in self._early:
            # Somebody here looks at this list, and nobody publishes.
            return []
        members = self._members.setdefault(topic, {})
        if isinstance(change, RecordDeleted):
            self._remove(topic, _subscription_of(change.record), now, effects)
        elif isinstance(change, RecordPut):
            self._adopt(topic, change.record, now, effects)
        else:
            for identifier in set(members) - {_subscription_of(name) for name in replica.records}:
                self._remove(topic, identifier, now, effects)
            for record in replica.records.values():
                self._adopt(topic, record, now, effects)
        self._arrange(topic)
        self._fill_groups(topic, now, effects)
        effects += self._note_idle(topic)
        if first:
            plan = self.complex.get(topic)
            for body, hops in self._early.pop(topic, ()):
                if plan is None:
                    effects += self.publish(topic, body, hops > 0)
                else:
                    self._publication.early(topic, body, hops, plan, now, effects)
            left_out = self._early_dropped.pop(topic, 0)
            for target in self.targets_of(topic):
                target.leave_out(left_out)
            effects.append(PlanReady(topic))
        return self._collected_first(effects)

    def _collected_first(self, effects: list[Effect]) -> list[Effect]:
        """Send what was collected before it is said that the plan is there."""
        self._publication.credit(collected := self.collect())
        if collected and effects and type(effects[-1]) is PlanReady:
            return [*effects[:-1], *collected, effects[-1]]
        return [*effects, *collected]

    def on_refused(self, topic: str, code: str, text: str) -> list[Effect]:
        """The hub does not let us follow this topic's reactions: nothing can be published on it."""
        self.dropped_early += len(self._early.pop(topic, ()))
        self._early_dropped.pop(topic, None)
        return []

    def _arrange(self, topic: str) -> None:
        """Put the reactions of a topic in order."""
        members = list(self._members[topic].values())
        plan = arrange(members, self._groups.get(topic, {}))
        if plan is None:
            self.complex.pop(topic, None)
            self.plans[topic] = tuple(members)
        else:
            self.plans[topic] = tuple(plan.units)
            if plan.units:
                self.complex[topic] = plan
            else:
                self.complex.pop(topic, None)

    def _note_idle(self, topic: str) -> list[Effect]:
        """Of topics that nobody reacts to only so many are followed."""
        if self._members[topic] or self._groups.get(topic):
            self._idle.pop(topic, None)
            return []
        self._idle.setdefault(topic)
        if len(self._idle) <= IDLE_MAX:
            return []
        first = next(iter(self._idle))
        del self._idle[first], self.plans[first], self._members[first]
        self._groups.pop(first, None)
        return self._lists.unfollow(list_name(REACTIONS, first))

    def _adopt(self, topic: str, record: Record, now: float, effects: list[Effect]) -> None:
        identifier = _subscription_of(record.record)
        members = self._members[topic]
        known = members.get(identifier)
        if identifier < 0 or (isinstance(known, Chain) and known.record == record.value):
            return
        try:
            reaction = decode_reaction(record.value)
        except RemoteProtocolError:
            # A reaction that nobody here understands is the business of its owner, not of the publisher.
            return
        there = self._targets.get(identifier) if known is None else None
        if there is not None and (there.topic != topic or there.peer != reaction.target.peer):
            # Somebody else's reaction runs here under that name.
            return
        if _is_plain(reaction):
            if isinstance(known, Target):
                return
            if isinstance(known, Chain):
                self._retire(known, now, effects)
                self._leave_group(known, now, effects)
                there = known.target
            target = there if there is not None else self._new_target(topic, identifier, reaction)
            if there is not None and known is None:
                target.users += 1
            members[identifier] = target
            effects.append(Introduce(reaction.target))
            if there is None and (reaction.overflow == PULL or reaction.history):
                self._introduce(topic, target, reaction, now, effects)
            return
        if (
            isinstance(known, Chain)
            and not known.suspended
            and known.limited == record.limited
            and msgspec.structs.replace(known.reaction, value=reaction.value) == reaction
        ):
            # Only what its owner says of itself is new: what is under way goes on.
            known.reaction, known.record = reaction, record.value
            return
        chain = Chain(identifier, topic, reaction, record.value, bool(record.owner))
        chain.limited = record.limited
        if isinstance(known, Target):
            # A plain subscriber, until now.
            chain.target = known
        elif known is not None:
            self._succeed(known, chain, now, effects)
        elif there is not None and chain.delivers:
            there.users += 1
            chain.target = there
        members[identifier] = chain
        effects.append(Introduce(reaction.target))
        self._equip(chain, effects)
        if chain.target is None and chain.delivers:
            chain.target = self._new_target(topic, identifier, reaction)
            if reaction.ack:
                chain.target.lost = []
            if reaction.overflow == PULL or reaction.numbered or reaction.history:
                self._introduce(topic, chain.target, reaction, now, effects)
        if reaction.group:
            groups = self._groups.setdefault(topic, {})
            if reaction.group not in groups:
                groups[reaction.group] = Group(topic, reaction.group)

    def _succeed(self, known: Chain, chain: Chain, now: float, effects: list[Effect]) -> None:
        """The record of a reaction was replaced: what its owner has of it stays, what is under way goes no further."""
        self._retire(known, now, effects)
        chain.target = known.target
        if known.reaction.limit == chain.reaction.limit:
            chain.passed = known.passed
            chain.over = known.over
        if known.reaction.operations == chain.reaction.operations:
            chain.keeper = known.keeper
        if known.reaction.group != chain.reaction.group:
            self._leave_group(known, now, effects)

    def _equip(self, chain: Chain, effects: list[Effect]) -> None:
        """See to what a new chain needs, or say why it cannot be run."""
        if chain.timed:
            self._timed.append(chain)
        if chain.limited and not chain.refused and chain.has_code:
            chain.refused = "it runs code, which needs the role execute; whoever wants that has a lower one"
        if chain.refused:
            self._passage.fail(chain, -1, Item((), {}), "ValueError", chain.refused, effects)
            return
        for code in chain.codes():
            self._passage.ask(code, chain, effects)

    def _new_target(self, topic: str, identifier: RequestId, reaction: Reaction) -> Target:
        target = Target(topic, identifier, reaction.target, reaction.capacity, reaction.overflow)
        target.users = 1
        self._targets[identifier] = target
        return target

    def _introduce(self, topic: str, target: Target, reaction: Reaction, now: float, effects: list[Effect]) -> None:
        """Say that messages come from here, from which number on, and send what is kept for newcomers."""
        numbers = self._publication.numbers
        kept = self._kept_for(topic, reaction.history, now)
        first = next((number for number, _ in kept if number), numbers.get(topic, 0) + 1)
        effects.append(Send(target.peer, Deliver(target.subscription, topic, [], 0, [first])))
        for number, body in kept:
            # They take no room from those that come: as if each had a publisher that waits.
            if target.credit <= 0 or target.queue:
                target.enqueue(body, True, number if reaction.numbered else 0)
            elif target.add(body, effects, number if reaction.numbered else 0):
                self._collected.append(target)

    def _kept_for(self, topic: str, count: int, now: float) -> list[tuple[int, bytes]]:
        """The last messages that reactions of a topic keep; what several of them keep comes once."""
        keepers = [it.keeper for it in self._members[topic].values() if isinstance(it, Chain) and it.keeper is not None]
        if not count or not keepers:
            return []
        if len(keepers) == 1:
            return keepers[0].last(count, now)
        kept: dict[int, bytes] = {}
        others: list[tuple[int, bytes]] = []
        for keeper in keepers:
            for number, body in keeper.last(count, now):
                if number:
                    kept.setdefault(number, body)
                else:
                    # Made of several messages, and of no place among them.
                    others.append((0, body))
        merged = others + sorted(kept.items())
        return merged if count < 0 else merged[max(0, len(merged) - count) :]

    def _fill_groups(self, topic: str, now: float, effects: list[Effect]) -> None:
        """Messages of a class that wait for a member get one, if there is one now; classes without anything go."""
        groups = self._groups.get(topic)
        if not groups:
            return
        for name, group in list(groups.items()):
            while group.waiting and group.is_active:
                number, body = group.waiting.popleft()
                self._publication.again(group, number, body, now, effects)
            if not group.members and not group.waiting and not group.open:
                del groups[name]
        if not groups:
            del self._groups[topic]

    # ── ends ──

    def _remove(self, topic: str, identifier: RequestId, now: float, effects: list[Effect]) -> None:
        """A reaction's record is gone: from here on nothing of it happens."""
        member = self._members[topic].pop(identifier, None)
        if member is None:
            return
        if isinstance(member, Target):
            self._finish(member, effects)
            return
        chain: Chain = member
        self._passage.flush(chain, now, effects)
        self._retire(chain, now, effects)
        if chain.target is not None:
            self._finish(chain.target, effects)
        self._passage.clean_up(chain, now, effects)
        self._leave_group(chain, now, effects)

    def _retire(self, chain: Chain, now: float, effects: list[Effect]) -> None:
        """A chain is at its end, or is replaced: what is under way in it goes no further."""
        chain.removed = True
        self._passage.drop_all(chain, now, effects)
        if chain in self._timed:
            self._timed.remove(chain)
        if chain.host is not None:
            self._finish(chain.host, effects)
            chain.host = None

    def _leave_group(self, chain: Chain, now: float, effects: list[Effect]) -> None:
        group = self.group_of(chain)
        if group is None:
            return
        left = group.left_by(chain.id)
        if chain in group.members:
            group.members.remove(chain)
        for number, body in left:
            self._publication.again(group, number, body, now, effects)

    def _finish(self, target: Target, effects: list[Effect]) -> None:
        """No more messages for a target."""
        target.users -= 1
        if target.users > 0:
            return
        if target.bodies:
            effects.append(target.take())
        target.leave_out(len(target.queue))
        effects.append(Send(target.peer, Delivered(target.subscription, target.dropped)))
        self._drop(target, effects)

    def _drop(self, target: Target, effects: list[Effect]) -> None:
        """Forget a target; whoever waits for room there waits no longer."""
        self._targets.pop(target.subscription, None)
        waited = bool(target.queue)
        target.clear()
        if waited and target.overflow == BLOCK:
            effects.append(RoomMade(target.subscription, target.number))

    def _on_gone(self, peer: PeerId, incarnation: int, now: float) -> list[Effect]:
        effects: list[Effect] = []
        ended: list[Chain] = []
        topics: list[str] = []
        for topic, members in self._members.items():
            # A newer incarnation may have subscribed before the end of this one was noticed.
            of_peer = [identifier for identifier, it in members.items() if _belongs(it, peer, incarnation)]
            for identifier in of_peer:
                # The hub removes the record as well; until then nothing is to pile up for nobody.
                member = members.pop(identifier)
                target = member if isinstance(member, Target) else member.target
                if target is not None:
                    target.users = 0
                    self._drop(target, effects)
                if isinstance(member, Chain):
                    member.target = None
                    ended.append(member)
            if of_peer:
                topics.append(topic)
                self._arrange(topic)
        for guest in self._guests.values():
            owner = guest.reaction.target
            if guest.target is not None and owner.peer == peer and owner.incarnation <= incarnation:
                self._drop(guest.target, effects)
                guest.target = None
        # Only now: what these still do must not meet others of the same peer.
        for chain in ended:
            self._passage.flush(chain, now, effects)
            self._retire(chain, now, effects)
            self._passage.clean_up(chain, now, effects)
        for topic in topics:
            self._left_groups(topic, now, effects)
            self._fill_groups(topic, now, effects)
            effects += self._note_idle(topic)
        self._hosts_gone(peer, now, effects)
        return self._finish_turn(effects)

    def _left_groups(self, topic: str, now: float, effects: list[Effect]) -> None:
        """Members of classes are gone: what they left unfinished goes to others."""
        for group in list(self._groups.get(topic, {}).values()):
            ids = {member.id for member in group.members}
            for identifier in {it[0] for it in group.open.values()} - ids:
                for number, body in group.left_by(identifier):
                    self._publication.again(group, number, body, now, effects)

    def _hosts_gone(self, peer: PeerId, now: float, effects: list[Effect]) -> None:
        """A peer that ran reactions for us is gone, or one for which we did."""
        if self._helper is not None and self._helper.peer == peer:
            self._helper = None
        for members in self._members.values():
            for member in members.values():
                if isinstance(member, Chain) and member.host is not None and member.host.peer == peer:
                    host, member.host = member.host, None
                    # What it had no credit for never left this process, and goes to the next one.
                    waiting = list(host.queue)
                    self._drop(host, effects)
                    self._passage.hand_on_again(member, waiting, now, effects)
        for key in [key for key in self._guests if key[0] == peer]:
            self._end_guest(key, now, effects)

    # ── hosting ──

    def _on_host(self, peer: PeerId, message: HostReaction, now: float) -> list[Effect]:
        """A publisher has this process run a reaction's operations."""
        key = (peer, message.subscription)
        identifier = RequestId(-message.subscription)
        if identifier <= 0 or key in self._guests or len(self._guests) >= GUESTS_MAX:
            return []
        try:
            reaction = decode_reaction(message.reaction)
        except RemoteProtocolError:
            return []
        effects: list[Effect] = [Introduce(reaction.target)]
        chain = Chain(identifier, message.topic, reaction, message.reaction, message.owned, max(0, message.step))
        chain.publisher = peer
        chain.limited = peer in self._limited
        self._guests[key] = chain
        if chain.delivers:
            target = self._targets.get(identifier)
            if target is None:
                target = self._new_target(message.topic, identifier, reaction)
            else:
                target.users += 1
            chain.target = target
        self._equip(chain, effects)
        return effects

    def _on_hosted(self, chain: Chain, message: Deliver, now: float) -> list[Effect]:
        effects: list[Effect] = []
        numbers = message.numbers
        self._left_out(chain, message.dropped)
        for at, body in enumerate(message.bodies):
            number = numbers[at] if at < len(numbers) else 0
            self._publication.host(chain, number, body, message.again, message.hops, now, effects)
        return self._finish_turn(effects)

    def _left_out(self, chain: Chain, count: int) -> None:
        """Its publisher had to leave messages out: whoever gets the others is told with the next one."""
        if chain.target is not None:
            chain.target.leave_out(count)

    def _end_guest(self, key: tuple[PeerId, RequestId], now: float, effects: list[Effect]) -> None:
        chain = self._guests.pop(key)
        self._passage.flush(chain, now, effects)
        self._retire(chain, now, effects)
        if chain.target is not None:
            self._finish(chain.target, effects)
        self._passage.clean_up(chain, now, effects)
        self._publication.forget_guest(chain)

    # ── messages ──

    def _on_message(self, peer: PeerId, message: Message, now: float) -> list[Effect]:
        if type(message) is Deliver:
            if message.subscription in self._subscriptions:
                return [
                    Arrived(
                        message.subscription, peer, message.topic, message.bodies, message.dropped, message.numbers,
                        message.again, message.publisher,
                    )
                ]  # fmt: skip
            chain = self._guests.get((peer, message.subscription)) if self._guests else None
            return self._on_hosted(chain, message, now) if chain is not None else []
        if type(message) is Consumed:
            target = self._targets.get(message.subscription)
            if target is None or target.peer != peer:
                return []
            target.give(message.count)
            return self._drain(target)
        if type(message) is Acknowledge:
            return self._on_acknowledged(peer, message)
        if type(message) is Delivered:
            key = (peer, message.subscription)
            if key in self._guests:
                effects: list[Effect] = []
                self._left_out(self._guests[key], message.dropped)
                self._end_guest(key, now, effects)
                return self._finish_turn(effects)
            return [PublisherEnded(message.subscription, peer, message.dropped)]
        if type(message) is HostReaction:
            return self._on_host(peer, message, now)
        if type(message) is CodeGiven:
            if peer != self._lists.hub:
                return []
            effects = []
            self._passage.on_code(message.code, now, effects)
            return self._finish_turn(effects)
        if type(message) is ReactionFailed:
            return self._on_failed(peer, message)
        if type(message) is ReactionStopped:
            return [ReactionReported(peer, message)]
        return []

    def _on_failed(self, peer: PeerId, message: ReactionFailed) -> list[Effect]:
        """A reaction made here failed elsewhere, or one whose owner has gone failed at its host."""
        chain = self._members.get(message.topic, {}).get(message.subscription)
        if isinstance(chain, Chain) and not chain.owned and chain.host is not None and chain.host.peer == peer:
            effects: list[Effect] = []
            self._passage.report(chain, message, effects)
            return effects
        return [ReactionReported(peer, message)]

    def _on_acknowledged(self, peer: PeerId, message: Acknowledge) -> list[Effect]:
        target = self._targets.get(message.subscription)
        if target is None or target.peer != peer:
            return []
        chain = self._members.get(target.topic, {}).get(target.subscription)
        if isinstance(chain, Chain):
            group = self.group_of(chain)
            if group is not None:
                for number in message.numbers:
                    group.close(chain.id, number)
        target.give(len(message.numbers))
        return self._drain(target)

    def _drain(self, target: Target) -> list[Effect]:
        """Send what waits for credit, as far as there is some."""
        if not target.queue or target.credit <= 0:
            return []
        effects: list[Effect] = []
        number = 0
        # What was collected had its credit before, and comes first.
        while target.queue and target.credit > 0:
            number = target.next_waiting(effects)
        effects.append(target.take())
        if target.overflow == BLOCK:
            effects.append(RoomMade(target.subscription, number))
        self._publication.credit(effects)
        return effects

    def _on_took(self, event: Took) -> list[Effect]:
        # Whoever reads tells of many at once: a message each would cost more than reading.
        if event.subscription not in self._subscriptions:
            return []
        return [Send(event.publisher, Consumed(event.subscription, event.count))]

    def next_deadline(self) -> float | None:
        """When a window ends, or code is to be looked at."""
        if not self._timed and not self._passage.busy:
            return None
        return self._passage.next_deadline(self._timed)

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        assert list(self._idle) == [topic for topic in self._idle if self.plans.get(topic) == ()]
        assert len(self._idle) <= IDLE_MAX
        assert set(self.plans) == set(self._members)
        assert set(self.complex) <= set(self.plans)
        for topic, members in self._members.items():
            assert members or topic in self._idle or topic in self._groups
            assert topic not in self._early
            for identifier, member in members.items():
                target = member if isinstance(member, Target) else member.target
                if target is not None:
                    assert target.topic == topic
                    assert self._targets[identifier] is target
        for target in self._targets.values():
            target.check_invariants()
            assert not target.bodies or target in self._collected
        for groups in self._groups.values():
            for group in groups.values():
                group.check_invariants()
        self._passage.check_invariants()


def _is_plain(reaction: Reaction) -> bool:
    """Whether it does nothing but deliver every message as it is."""
    return (
        reaction.operations == JUST_DELIVER
        and not reaction.numbered
        and not reaction.priority
        and not reaction.limit
        and not reaction.group
        and not reaction.suspended
        and reaction.cleanup is None
        and reaction.place == AT_PUBLISHER
    )


def _belongs(member: Any, peer: PeerId, incarnation: int) -> bool:
    """Whether a reaction ends with this incarnation of a peer."""
    if isinstance(member, Target):
        return member.peer == peer and member.incarnation <= incarnation
    owner = member.reaction.target
    return bool(owner.peer == peer and owner.incarnation <= incarnation and (member.owned or member.target is not None))


def _subscription_of(record: str) -> RequestId:
    """The id that a record's name is, or -1. Names come from other peers and may be anything."""
    if not record.isascii() or not record.isdigit() or len(record) > 19 or int(record) >= 1 << 63:
        return RequestId(-1)
    return RequestId(int(record))
