"""The way of one message through all reactions of its topic, where they are more than plain subscribers.

Reactions run one after the other. Code runs elsewhere, and the next reaction does not wait for it, unless the code
decides whether there is a next one: whether its chain consumes the message, or which member of a class gets it. Then
the message waits, and further messages of the topic wait behind it, so that each reaction gets them in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raskid.core.chains import Chain, Item, Passing, check_hops
from raskid.core.effects import Effect, Passed, Send
from raskid.core.groups import Group
from raskid.core.passage import Passage
from raskid.core.plans import Plan
from raskid.core.targets import Target
from raskid.model.errors import Overflow
from raskid.protocol.messages import Consumed
from raskid.protocol.reactions import PULL

if TYPE_CHECKING:
    from raskid.core.messaging import Messaging


#: Messages of one topic that wait for one another.
LINE_MAX = 10_000


class Publication:
    """Takes the messages of one process through the reactions of their topics."""

    def __init__(self, out: Messaging, passage: Passage, draw: Callable[[int], int]) -> None:
        self._out = out
        self._passage = passage
        self._draw = draw
        self._message = 0
        #: Topics whose messages go one after the other, and those that have not met all reactions; the first is on its
        #: way.
        self._lines: dict[str, deque[Passing]] = {}
        #: Topics of which a message is being taken to its reactions just now. What these publish on the same topic
        #: comes behind it, so that numbers rise.
        self._at_work: set[str] = set()
        #: Lines in which the next message is being looked for: one after the other, and not one inside of the other.
        self._advancing: set[str] = set()
        #: Chains hosted for publishers that are to be given credit.
        self._owed: dict[Chain, None] = {}
        #: Topic → the number of its last message, once somebody asked for numbers.
        self.numbers: dict[str, int] = {}

    def begin(self, topic: str, plan: Plan, waits: bool, now: float) -> Passing | None:
        """Begin with a message that nobody has looked at; None when nobody wants it."""
        wanting = plan.wanting(now)
        if plan.passes_on and not plan.consumes:
            wanting = [pair for pair in wanting if self._wants(pair, {topic: True})]
        if not wanting:
            return None
        self._message += 1
        passing = Passing(self._message, topic, _NOTHING, waits)
        passing.units = wanting
        return passing

    def _wants(self, pair: tuple[Any, int], seen: dict[str, bool]) -> bool:
        """Whether a unit does more than passing the message on to where nobody wants it at present.

        Args:
            seen: Topics that were looked at already, since links branch, and whether they lead here. One that does is a
                ring, which is to show itself.
        """
        unit, begin = pair
        if not isinstance(unit, Chain) or begin or not unit.passes_on:
            return True
        topic = unit.stages[0].operation.args[0]
        leads_here = seen.get(topic)
        if leads_here is not None:
            return leads_here
        if self._out.plans.get(topic) is None:
            return True
        plan = self._out.complex.get(topic)
        if plan is None:
            return bool(self._out.plans[topic])
        seen[topic] = True
        wants = plan.consumes or any(self._wants((each, 0), seen) for each in plan.units if not _asks(each))
        seen[topic] = False
        return wants

    def go(self, passing: Passing, item: Item, plan: Plan | None, now: float, effects: list[Effect]) -> None:
        """Take a message to its reactions.

        Raises:
            ValueNotSendable: It is to be sent as it is, or nobody waits until it is through, and it cannot be written;
                nothing has happened.
            Overflow: Too many messages of the topic wait for one another; nothing has happened.
        """
        if plan is not None and plan.encodes:
            item.encoded()
        topic = passing.topic
        line = self._lines.get(topic)
        at_work = topic in self._at_work
        if not passing.awaited and (line is not None or at_work or (plan is not None and plan.lingers)):
            # Whoever published it may change its values while it is on its way.
            item = item.apart()
        passing.item = item
        if plan is not None and plan.numbered:
            passing.number = self.numbers[topic] = self.numbers.get(topic, 0) + 1
        if line is not None or at_work or (plan is not None and plan.holds):
            if line is None:
                line = self._lines[topic] = deque()
            elif len(line) >= LINE_MAX:
                # Only those come to this who wait for nothing: code of reactions that publishes.
                raise Overflow(
                    f"more than {LINE_MAX:,} messages on {topic!r:.80} wait for code of a reaction that decides who "
                    "gets them. Publish less from within reactions, or let the code be quicker"
                )
            line.append(passing)
            if at_work or len(line) > 1:
                return
        passing.begun = True
        self._run(passing, now, effects)

    def _run(self, passing: Passing, now: float, effects: list[Effect]) -> None:
        topic = passing.topic
        self._at_work.add(topic)
        passing.running = True
        try:
            self._meet(passing, now, effects)
        finally:
            passing.running = False
            self._at_work.discard(topic)
        if passing.holder is None:
            passing.at = len(passing.units)
            self._leave_line(passing, now, effects)
            self._look(passing, now, effects)

    def _meet(self, passing: Passing, now: float, effects: list[Effect]) -> None:
        """Take a message to its reactions, up to the last one or to one that has to decide first."""
        units = passing.units
        while passing.at < len(units) and not passing.consumed:
            unit, begin = units[passing.at]
            passing.at += 1
            if isinstance(unit, Target):
                # While the message waited, its reader may have gone.
                if unit.users > 0:
                    self._out.send(unit, passing.item.encoded(), passing, effects)
            elif isinstance(unit, Group):
                self._to_group(unit, passing, now, effects)
            else:
                chain: Chain = unit
                if chain.active:
                    if chain.holds:
                        passing.holder = chain
                    self._passage.walk(chain, begin, passing.item, passing, now, effects)
            if passing.holder is not None:
                return

    def _leave_line(self, passing: Passing, now: float, effects: list[Effect]) -> None:
        """A message has met all its reactions: the next one's turn.

        Not only when all that it set off is through: it may wait for a message behind it that it set off itself.
        """
        topic = passing.topic
        line = self._lines.get(topic)
        if not line:
            return
        if line[0] is passing:
            line.popleft()
        if not line:
            del self._lines[topic]
        elif not line[0].begun and topic not in self._advancing:
            self._advance(topic, now, effects)

    def _advance(self, topic: str, now: float, effects: list[Effect]) -> None:
        self._advancing.add(topic)
        try:
            # Each that has met all leaves the line, and leaves the next one to this loop: lines may be long.
            while topic in self._lines and not self._lines[topic][0].begun:
                first = self._lines[topic][0]
                first.begun = True
                self._run(first, now, effects)
        finally:
            self._advancing.discard(topic)

    # ── classes ──

    def _to_group(self, group: Group, passing: Passing, now: float, effects: list[Effect]) -> None:
        if not group.is_active:
            return
        passing.group = group
        oldest = group.metric_of()
        if oldest is not None and self._passage.measure(group, passing, now, effects):
            passing.holder = oldest
            return
        self._to_member(group, group.choose(self._draw), passing, now, effects)

    def _to_member(
        self, group: Group, member: Chain | None, passing: Passing, now: float, effects: list[Effect]
    ) -> None:
        if member is None:
            if group.ack and passing.number:
                group.wait(passing.number, passing.item.encoded())
            return
        if member.reaction.ack and passing.number:
            group.hold(member, passing.number, passing.item.encoded())
        if member.holds:
            passing.holder = member
        self._passage.walk(member, 0, passing.item, passing, now, effects)

    def chosen(self, group: Group, member: Chain | None, passing: Passing, now: float, effects: list[Effect]) -> None:
        """A metric has chosen who gets a message."""
        passing.holder = None
        passing.running = True
        self._to_member(group, member, passing, now, effects)
        passing.running = False
        if passing.holder is None:
            self._run(passing, now, effects)

    def again(self, group: Group, number: int, body: bytes, now: float, effects: list[Effect]) -> None:
        """A message of a class goes to another member, if there is one."""
        member = group.choose(self._draw)
        if member is None:
            group.wait(number, body)
            return
        self._message += 1
        passing = Passing(self._message, group.topic, Item(None, None, body), False)
        passing.number = number
        passing.again = True
        passing.awaited = False
        if member.reaction.ack:
            group.hold(member, number, body)
        passing.running = True
        self._passage.walk(member, 0, passing.item, passing, now, effects)
        passing.running = False
        self._look(passing, now, effects)

    # ── other topics, other processes ──

    def forward(self, topic: str, item: Item, passing: Passing | None, now: float, effects: list[Effect]) -> None:
        """Publish a message on another topic as well."""
        hops = 1 if passing is None else passing.hops + 1
        check_hops(topic, hops)
        waits = passing is not None and passing.waits
        targets = self._out.plans.get(topic)
        if targets is None:
            self._out.publish_early(topic, item.encoded(), hops, effects)
            return
        if not targets:
            return
        plan = self._out.complex.get(topic)
        if plan is None:
            body = item.encoded()
            for target in targets:
                self._out.send(target, body, passing, effects)
            return
        child = self.begin(topic, plan, waits, now)
        if child is None:
            return
        child.hops = hops
        if passing is not None:
            child.parent = passing
            child.awaited = passing.awaited
            passing.pending += 1
        else:
            child.awaited = False
        try:
            self.go(child, item, plan, now, effects)
        except BaseException:
            if passing is not None and child.parent is not None and not child.done:
                passing.pending -= 1
                child.parent = None
            raise

    def early(self, topic: str, body: bytes, hops: int, plan: Plan, now: float, effects: list[Effect]) -> None:
        """Take a message that was published before its topic's reactions were known."""
        # Whoever published what was forwarded here has gone on; it takes no room from those that come.
        passing = self.begin(topic, plan, hops > 0, now)
        if passing is not None:
            passing.hops = hops
            passing.awaited = False
            self.go(passing, Item(None, None, body), plan, now, effects)

    def host(
        self, chain: Chain, number: int, body: bytes, again: bool, hops: int, now: float, effects: list[Effect]
    ) -> None:  # fmt: skip
        """Take a message of another publisher through a chain that runs here for it."""
        self._message += 1
        # Its publisher waits at the other end, for the credit that this message takes.
        passing = Passing(self._message, chain.topic, Item(None, None, body), True)
        passing.number = number
        passing.again = again
        passing.hops = hops
        passing.publisher = chain.publisher
        passing.guest = chain
        passing.running = True
        if chain.active:
            self._passage.walk(chain, 0, passing.item, passing, now, effects)
        passing.running = False
        self._look(passing, now, effects)

    # ── the end of a message's way ──

    def ended(
        self, chain: Chain, passing: Passing | None, finished: bool, now: float, effects: list[Effect]
    ) -> None:  # fmt: skip
        """A message has come to its end in one chain; not `finished`: because nothing goes through that any more."""
        limit = chain.reaction.limit
        if limit and chain.passed >= limit and not chain.over:
            chain.over = True
            self._out.changed(chain)
        if passing is None:
            return
        if chain.reaction.ack and passing.number and not chain.publisher:
            self._settle(chain, passing.number, finished, now, effects)
        if passing.holder is chain:
            passing.holder = None
            if not passing.running:
                self._run(passing, now, effects)
        elif not passing.running:
            self._look(passing, now, effects)

    def _settle(self, chain: Chain, number: int, finished: bool, now: float, effects: list[Effect]) -> None:
        """See whose a message is that has to be acknowledged, and was perhaps not even sent."""
        group = self._out.group_of(chain)
        if group is None:
            return
        if finished:
            # Its member's operations have kept it back, or failed, which its owner knows.
            group.kept_back(chain.id, number)
            return
        body = group.take_back(chain.id, number)
        if body is not None:
            self.again(group, number, body, now, effects)

    def _look(self, passing: Passing, now: float, effects: list[Effect]) -> None:
        """See whether a message is through."""
        if passing.done or passing.pending or passing.holder is not None or passing.running:
            return
        if passing.at < len(passing.units):
            return
        passing.done = True
        if passing.told:
            effects.append(Passed(passing.id))
        guest = passing.guest
        if guest is not None and not guest.removed:
            self._owed[guest] = None
            if passing.waiting:
                guest.late.append(passing)
            else:
                guest.due += 1
        parent = passing.parent
        if parent is not None:
            parent.pending -= 1
            self._look(parent, now, effects)

    def credit(self, effects: list[Effect]) -> None:
        """Give publishers credit for what was hosted for them, and waits for no reader any more."""
        for chain in list(self._owed):
            late = chain.late
            while late and not any(target.has_waiting(place) for target, place in late[0].waiting):
                late.popleft()
                chain.due += 1
            if chain.due:
                # Under the name that hosting has, see `Messaging.hand_on`.
                effects.append(Send(chain.publisher, Consumed(_hosting(chain.id), chain.due)))
                chain.due = 0
            if not late:
                del self._owed[chain]

    def forget_guest(self, chain: Chain) -> None:
        """Its publisher needs no credit any more."""
        self._owed.pop(chain, None)


def _asks(unit: Any) -> bool:
    """Whether a reader has to ask for each message, and has not."""
    target = unit if isinstance(unit, Target) else unit.target if isinstance(unit, Chain) else None
    return target is not None and target.overflow == PULL and target.credit <= 0


def _hosting(identifier: int) -> Any:
    return -identifier


_NOTHING = Item((), {})
