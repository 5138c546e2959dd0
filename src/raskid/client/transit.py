"""Transit traces: which messages went from whom to whom, and when, told on a topic of their own.

Every session tells of each message that it publishes and somebody hears, and of each batch of messages that arrives at
a subscription of its own. It does so only while somebody reacts to the topic `TRANSIT`; otherwise that costs one
look-up. Nothing waits for it: traces are noted where the messages pass, often under the session's lock, and published
a moment later, among the session's callbacks. A slow reader of traces misses some, and is told how many.

Traces are not traced. Nor is what reactions forward from `TRANSIT` to another topic, or set in a cell: it would be told
of without end. Further than that nothing here looks: whoever links such a topic on makes a ring.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from raskid.core.chains import Chain
from raskid.core.effects import Arrived
from raskid.core.groups import Group
from raskid.model.errors import RaskidError
from raskid.model.operations import FORWARD, SET
from raskid.model.topics import CELLS, list_name

if TYPE_CHECKING:
    from raskid.client.futures import Future
    from raskid.client.topics import Topics

TRANSIT = "raskid/transit"
ARRIVED, PUBLISHED = "arrived", "published"
#: So many traces wait to be published; beyond that the oldest are left out.
TRACES_MAX = 10_000


class Transit:
    """The traces of one session. Whoever calls this has looked whether the plan of `TRANSIT` is an empty tuple."""

    def __init__(self, session: Topics) -> None:
        self._session = session
        #: The session's lock guards these. `_due`: somebody is about to publish what waits.
        self._traces: deque[dict[str, Any]] = deque()
        self._left_out = 0
        self._due = False
        #: Done when it is known who reacts to traces.
        self._announced: Future | None = None

    def arrived(self, effect: Arrived) -> None:
        """Messages came to a subscription. Under the session's lock."""
        if effect.bodies and self._is_wanted(effect.topic):
            receiver = self._session.peer.identity.peer
            size = sum(map(len, effect.bodies))
            self._note(
                {
                    "event": ARRIVED, "topic": effect.topic, "publisher": effect.on_behalf or effect.publisher,
                    "receiver": receiver, "count": len(effect.bodies), "bytes": size, "time": time.time(),
                }
            )  # fmt: skip

    def published(self, topic: str, size: int | None) -> None:
        """A message was published, and somebody reacts to its topic; `size`: its bytes, where it was encoded."""
        session = self._session
        with session.engine.lock:
            readers = len(session.plan_of(topic) or ())
            if readers and self._is_wanted(topic):
                self._note(
                    {
                        "event": PUBLISHED, "topic": str.__str__(topic), "publisher": session.peer.identity.peer,
                        "readers": readers, "count": 1, "bytes": size, "time": time.time(),
                    }
                )  # fmt: skip

    def _is_wanted(self, topic: str) -> bool:
        """Whether what happens on a topic is to be told; asks who reacts to traces where that is not known."""
        if topic == TRANSIT:
            return False
        plan = self._session.plan_of(TRANSIT)
        if plan is None:
            self._announce()
            return False
        return bool(plan) and not any(_feeds(unit, topic) for unit in plan)

    def _announce(self) -> None:
        before = self._announced
        # Known once and given up since, like any topic without readers, it is asked for again; refused, it is not.
        if before is None or (before.done() and before.exception(0) is None):
            with contextlib.suppress(RaskidError):
                self._announced = self._session.begin_announce(TRANSIT)

    def _note(self, trace: dict[str, Any]) -> None:
        self._traces.append(trace)
        if len(self._traces) > TRACES_MAX:
            self._traces.popleft()
            self._left_out += 1
        if not self._due:
            self._due = True
            self._session.engine.call_soon(self._publish)

    def _publish(self) -> None:
        """Publish what was noted, by a callback thread or in the event loop: nothing is held, and nothing waits."""
        session = self._session
        with session.engine.lock:
            self._due = False
            traces, self._traces = self._traces, deque()
            left_out, self._left_out = self._left_out, 0
        if left_out:
            traces[0]["left_out"] = left_out
        with contextlib.suppress(RaskidError):
            for trace in traces:
                session.begin_publish(TRANSIT, (), trace, waits=False)


def _feeds(unit: Any, topic: str) -> bool:
    """Whether a reaction to traces publishes on this topic."""
    if isinstance(unit, Group):
        return any(_feeds(member, topic) for member in unit.members)
    if not isinstance(unit, Chain):
        return False
    for operation in unit.reaction.operations:
        if operation.op == FORWARD and operation.args[0] == topic:
            return True
        if operation.op == SET and operation.args[0] == list_name(CELLS, topic):
            return True
    return False
