"""Where messages go: one reader of what is published here, with its credit and its queue.

Credit says how many messages may be on their way to the reader. Without credit they wait here under the reader's
overflow policy; what the policy leaves out is counted, and reported with the next message. What has had its credit is
collected, and travels as one `Deliver`.
"""

from __future__ import annotations

from collections import deque

from raskid.core.effects import Effect, Send
from raskid.model.ids import PeerId, RequestId
from raskid.protocol.messages import Deliver, PeerRef
from raskid.protocol.reactions import BLOCK, DROP_NEWEST, LATEST, PULL

#: One `Deliver` has no more messages than this, so that their reader gives credit in between,
BODIES_MAX = 128
#: nor more bytes, unless it holds one message only.
BODIES_BYTES_MAX = 64 * 1024

#: A message that waits: its place in the queue, its body, whether its publisher waits as well, its number among those
#: of the topic (0: not numbered), whether another reader had it before, whose it is if not this process's, and through
#: how many other topics it came.
Waiting = tuple[int, bytes, bool, int, bool, PeerId, int]

OURS = PeerId("")


class Target:
    """One reader of a topic published here."""

    __slots__ = (
        "again", "bodies", "bodies_bytes", "bodies_dropped", "capacity", "credit", "dropped", "dropped_all",
        "hops", "incarnation", "lost", "number", "numbers", "overflow", "peer", "publisher", "queue", "subscription",
        "topic", "users",
    )  # fmt: skip

    def __init__(self, topic: str, subscription: RequestId, ref: PeerRef, capacity: int, overflow: str) -> None:
        self.topic = topic
        self.subscription = subscription
        self.peer = ref.peer
        self.incarnation = ref.incarnation
        self.capacity = capacity
        self.overflow = overflow
        #: Messages that may still be sent. `credit` and those on their way add up to `capacity`; a reader that asks
        #: for each message has given none.
        self.credit = 0 if overflow == PULL else capacity
        #: Messages that wait for credit; empty while there is credit. Their places rise, and `number` is the last one
        #: given.
        self.queue: deque[Waiting] = deque()
        self.number = 0
        #: Messages that have had their credit and are to be sent together, and what was left out before the first.
        #: Either all of them have numbers or none; all are one publisher's, new to the reader or not, and
        #: came through as many topics.
        self.bodies: list[bytes] = []
        self.bodies_bytes = 0
        self.bodies_dropped = 0
        self.numbers: list[int] = []
        self.again = False
        self.publisher = OURS
        self.hops = 0
        self.dropped = 0
        self.dropped_all = 0
        #: Numbers of messages that were left out; None where nobody wants to know.
        self.lost: list[int] | None = None
        #: Reactions here that send to it: one, or those that run here for several publishers.
        self.users = 0

    def add(
        self, body: bytes, effects: list[Effect], number: int = 0, again: bool = False, publisher: PeerId = OURS,
        hops: int = 0,
    ) -> bool:  # fmt: skip
        """Collect a message, for which there is credit; returns whether it is the first of its collection."""
        bodies, size = self.bodies, len(body)
        if bodies and (
            self.dropped
            or len(bodies) >= BODIES_MAX
            or self.bodies_bytes + size > BODIES_BYTES_MAX
            or again is not self.again
            or publisher != self.publisher
            or hops != self.hops
            or (number > 0) is not (len(self.numbers) > 0)
        ):
            effects.append(self.take())
            bodies = self.bodies
        begins = not bodies
        if begins:
            self.bodies_dropped, self.dropped = self.dropped, 0
            self.again = again
            self.publisher = publisher
            self.hops = hops
        bodies.append(body)
        if number:
            self.numbers.append(number)
        self.bodies_bytes += size
        self.credit -= 1
        return begins

    def take(self) -> Send:
        """What was collected (there is something), as one message."""
        # The replica's name of the topic is plain text; the publisher's may be of a subclass.
        message = Deliver(
            self.subscription, self.topic, self.bodies, self.bodies_dropped, self.numbers, self.again, self.publisher,
            self.hops,
        )  # fmt: skip
        self.bodies = []
        self.numbers = []
        self.bodies_bytes = 0
        return Send(self.peer, message)

    def leave_out(self, count: int = 1) -> None:
        """Count what the policy drops."""
        self.dropped += count
        self.dropped_all += count

    def enqueue(
        self, body: bytes, waited: bool, number: int = 0, again: bool = False, publisher: PeerId = OURS, hops: int = 0
    ) -> None:
        """Let a message wait, and apply the overflow policy; `waited`: its publisher waits until it is sent."""
        if self.overflow == PULL and not waited:
            # Nobody has asked. What is kept for it waits until somebody does.
            return
        queue = self.queue
        self.number += 1
        queue.append((self.number, body, waited, number, again, publisher, hops))
        if self.overflow == LATEST:
            while len(queue) > 1:
                self._left_out(queue.popleft())
        elif len(queue) > self.capacity and self.overflow != PULL:
            if self.overflow == DROP_NEWEST:
                self._left_out(queue.pop())
            elif self.overflow != BLOCK:
                self._left_out(queue.popleft())
            elif not waited:
                # A publisher that waits keeps its place: the oldest of those that could not wait goes.
                at = next(at for at, it in enumerate(queue) if not it[2])
                self._left_out(queue[at])
                del queue[at]
            # Otherwise there are as many of these as there are threads that wait.

    def _left_out(self, waiting: Waiting) -> None:
        self.leave_out()
        if self.lost is not None and waiting[3]:
            self.lost.append(waiting[3])

    def next_waiting(self, effects: list[Effect]) -> int:
        """Collect the first message that waits, for which there is credit; returns its place."""
        place, body, _, number, again, publisher, hops = self.queue.popleft()
        self.add(body, effects, number, again, publisher, hops)
        return place

    def has_waiting(self, place: int) -> bool:
        """Whether what stood at this place in the queue, or something before it, still waits there."""
        return bool(self.queue) and self.queue[0][0] <= place

    def withdraw(self, place: int) -> bool:
        """Leave out one message that waits, for whose publisher time is up; False when it waits no longer."""
        for at, it in enumerate(self.queue):
            if it[0] == place:
                self._left_out(it)
                del self.queue[at]
                return True
        return False

    def give(self, count: int) -> None:
        """The reader gives credit."""
        self.credit = min(self.capacity, self.credit + max(0, count))

    def clear(self) -> None:
        """Forget what waits and what was collected."""
        self.queue.clear()
        self.bodies = []
        self.numbers = []
        self.bodies_bytes = 0

    @property
    def load(self) -> int:
        """Messages that its reader has not taken."""
        return self.capacity - self.credit + len(self.queue)

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        assert 0 <= self.credit <= self.capacity
        assert not self.queue or self.credit == 0
        assert self.bodies_bytes == sum(map(len, self.bodies))
        assert not self.numbers or len(self.numbers) == len(self.bodies)
        assert sum(not it[2] for it in self.queue) <= max(self.capacity, 1)
        places = [it[0] for it in self.queue]
        assert places == sorted(places) and all(place <= self.number for place in places)
