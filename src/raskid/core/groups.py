"""Classes of reactions: of their members, one gets each message.

With acknowledgement a message belongs to the member that got it until that says it is done; when the member goes
before, the message goes to another one under the same number. While there is no other it waits here, up to
`WAITING_MAX` messages, and goes to the next member that comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from raskid.core.chains import Chain
from raskid.model.ids import RequestId
from raskid.protocol.reactions import BY_METRIC, BY_VALUE, LEAST_LOADED, RANDOM, ROUND_ROBIN

#: Messages of one class that wait for a member, at one publisher.
WAITING_MAX = 10_000


class Group:
    """The members of one class of a topic's reactions, at one publisher."""

    __slots__ = ("ack", "dropped", "members", "name", "open", "sent", "topic", "turn", "waiting")

    def __init__(self, topic: str, name: str) -> None:
        self.topic = topic
        self.name = name
        #: Also those that are suspended or at their limit: they keep what they have not acknowledged.
        self.members: list[Chain] = []
        self.turn = 0
        self.ack = False
        #: Number of a message that is not acknowledged yet → who has it, and what it is.
        self.open: dict[int, tuple[RequestId, bytes]] = {}
        #: Those of them that were sent to their member, and are its to acknowledge; all others are still on their way
        #: through its operations.
        self.sent: set[int] = set()
        #: Messages that their member left unfinished while there was no other.
        self.waiting: deque[tuple[int, bytes]] = deque()
        self.dropped = 0

    @property
    def priority(self) -> int:
        """The highest of its members'; of those that are at work, where there are some."""
        return max(member.reaction.priority for member in self.active or self.members)

    @property
    def choice(self) -> str:
        """How members are chosen: as the oldest at work says."""
        return (self.active or self.members)[0].reaction.choice

    @property
    def active(self) -> list[Chain]:
        """Members that messages can go to."""
        return [member for member in self.members if member.active]

    @property
    def is_active(self) -> bool:
        """Whether messages can go to some member."""
        return any(member.active for member in self.members)

    def metric_of(self) -> Chain | None:
        """The member whose metric decides; None where the choice needs no code."""
        for oldest in self.members:
            if oldest.active:
                reaction = oldest.reaction
                return oldest if reaction.choice == BY_METRIC and reaction.metric is not None else None
        return None

    def choose(self, draw: Callable[[int], int]) -> Chain | None:
        """The member that gets the next message.

        Args:
            draw: Gives a number from 0 to below its argument, by chance.
        Source:
            "Least loaded" takes the better of two drawn by chance; Mitzenmacher 2001, "The Power of Two Choices".
        """
        found = self._choose_quickly(draw)
        if found is not None:
            return found
        active = self.active
        if not active:
            return None
        choice = self.choice
        if choice == RANDOM:
            return active[draw(len(active))]
        if choice == LEAST_LOADED and len(active) > 1:
            first = draw(len(active))
            second = (first + 1 + draw(len(active) - 1)) % len(active)
            one, other = active[first], active[second]
            return other if other.load < one.load else one
        if choice == BY_VALUE:
            values = [member.reaction.value for member in active]
            # NaN is no number, here either.
            if all(isinstance(it, int | float) and not isinstance(it, bool) and it == it for it in values):
                return self._lowest(active, values)
        return self.next_of(active)

    def _choose_quickly(self, draw: Callable[[int], int]) -> Chain | None:
        """As `choose`, where that needs no look at all members: of a large class nobody could look at each for each
        message. None where it does."""
        members = self.members
        count = len(members)
        if not count or not members[0].active:
            return None
        choice = members[0].reaction.choice
        if choice == RANDOM:
            one = members[draw(count)]
        elif choice == LEAST_LOADED and count > 1:
            first = draw(count)
            one, other = members[first], members[(first + 1 + draw(count - 1)) % count]
            if not other.active:
                return None
            if one.active and other.load < one.load:
                return other
        elif choice == ROUND_ROBIN:
            one = members[self.turn % count]
            if one.active:
                self.turn += 1
        else:
            return None
        return one if one.active else None

    def next_of(self, active: list[Chain]) -> Chain:
        """The next in turn."""
        self.turn += 1
        return active[(self.turn - 1) % len(active)]

    def _lowest(self, active: list[Chain], values: list[Any]) -> Chain:
        """The one of the lowest value; in turn where several have it."""
        least = min(values)
        return self.next_of([member for member, value in zip(active, values, strict=True) if value == least])

    def choose_by(self, asked: list[Chain], values: list[Any]) -> Chain | None:
        """The member for which a metric gave the least, of those that are still here.

        Raises:
            TypeError: The metric gave something that cannot be compared.
        """
        left = [(member, value) for member, value in zip(asked, values, strict=True) if member.active]
        for _, value in left:
            # NaN compares with nothing.
            if isinstance(value, bool) or not value <= value:
                raise TypeError(f"the metric of class {self.name!r} gave {value!r:.60}; expected a number")
        if not left:
            active = self.active
            return self.next_of(active) if active else None
        return self._lowest([member for member, _ in left], [value for _, value in left])

    # ── acknowledgement ──

    def hold(self, member: Chain, number: int, body: bytes) -> None:
        """A member gets a message that it has to acknowledge."""
        self.open[number] = (member.id, body)

    def mark_sent(self, member: RequestId, number: int) -> None:
        """A message was sent to the member that has it."""
        held = self.open.get(number)
        if held is not None and held[0] == member:
            self.sent.add(number)

    def close(self, member: RequestId, number: int) -> None:
        """A message is done, for the member that has it; an earlier one is not asked any more."""
        held = self.open.get(number)
        if held is not None and held[0] == member:
            del self.open[number]
            self.sent.discard(number)

    def kept_back(self, member: RequestId, number: int) -> None:
        """A message has come to its end in a member's operations; unless it was sent on, it is done."""
        if number not in self.sent:
            self.close(member, number)

    def take_back(self, member: RequestId, number: int) -> bytes | None:
        """A message will not come to an end in a member's operations: what it is, if it is to go to another one."""
        held = self.open.get(number)
        if held is None or held[0] != member or number in self.sent:
            return None
        del self.open[number]
        return held[1]

    def left_by(self, member: RequestId) -> list[tuple[int, bytes]]:
        """What a member that has gone left unfinished, in order; from now on it is nobody's."""
        left = sorted((number, it[1]) for number, it in self.open.items() if it[0] == member)
        for number, _ in left:
            del self.open[number]
            self.sent.discard(number)
        return left

    def wait(self, number: int, body: bytes) -> None:
        """There is no member for a message."""
        self.waiting.append((number, body))
        if len(self.waiting) > WAITING_MAX:
            self.waiting.popleft()
            self.dropped += 1

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        ids = [member.id for member in self.members]
        assert len(set(ids)) == len(ids)
        assert all(it[0] in ids for it in self.open.values()), (self.open, ids)
        assert self.sent <= set(self.open)
        assert not self.waiting or not self.active
        assert len(self.waiting) <= WAITING_MAX
