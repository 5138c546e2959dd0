"""A publisher without a system: its machine, its lists, and a hub and readers that exist only as messages.

Every message, in and out, is encoded and decoded on the way, and invariants are checked after every event.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from raskid.core.effects import CheckCode, Effect, Passed, ReactionReported, RunCode, Send
from raskid.core.events import Announce, CodeRan, Event, PeerGone, Received, Tick
from raskid.core.lists import Lists
from raskid.core.messaging import Messaging
from raskid.model.ids import CodeId, PeerId, RequestId
from raskid.model.operations import LANGUAGE, LANGUAGE_VERSION, Operation
from raskid.protocol.codec import decode_batch, encode_batch
from raskid.protocol.messages import (
    Acknowledge,
    AnyMessage,
    Code,
    CodeGiven,
    Consumed,
    Deliver,
    ListState,
    PeerRef,
    Record,
    RecordDeleted,
    RecordPut,
)
from raskid.protocol.reactions import Reaction, encode_reaction
from raskid.protocol.values import decode_body, encode_body

HUB = PeerId("head")
READER = PeerRef(PeerId("reader"), 1)
OTHER = PeerRef(PeerId("other"), 1)
WHERE = "publisher"

DELIVER = Operation("deliver")
CONSUME = Operation("consume")


def first_drawn(count: int) -> int:
    return 0


def code(name: str = "f", *args: Any, **fields: Any) -> Operation:
    """An operation of code that this language can load."""
    given: dict[str, Any] = {}
    if args:
        given["args"] = list(args)
    if fields:
        given["fields"] = fields
    return Operation("code", (name, LANGUAGE, LANGUAGE_VERSION), given)


def given(name: str = "f", blob: bytes = b"code") -> CodeGiven:
    return CodeGiven(Code(CodeId(name), blob))


def react(*operations: Operation, target: PeerRef = READER, **more: Any) -> Reaction:
    return Reaction(target, operations or (DELIVER,), **more)


def over_the_wire(message: AnyMessage) -> AnyMessage:
    (read,) = decode_batch(encode_batch([message]))
    return read


def sent(effects: list[Effect], kind: type[Any]) -> list[Any]:
    """The messages of a kind among effects."""
    return [it.message for it in effects if isinstance(it, Send) and isinstance(it.message, kind)]


def texts(effects: list[Effect], *, subscription: int | None = None) -> list[Any]:
    """The values that were delivered: of messages of one value that value, of others (args, fields)."""
    found = []
    for message in sent(effects, Deliver):
        if subscription is None or message.subscription == subscription:
            found += [plain(body) for body in message.bodies]
    return found


def plain(body: bytes) -> Any:
    args, fields = decode_body(body)
    return args[0] if len(args) == 1 and not fields else (args, fields)


class Publisher:
    """One process that publishes.

    Args:
        topics: Those that it announces at once; a dict gives their reactions by id.
        draw: What stands for chance.
    """

    def __init__(self, topics: dict[str, dict[int, Reaction]] | None = None, draw: Any = first_drawn) -> None:
        self.lists = Lists(HUB)
        self.messaging = Messaging(self.lists, draw, WHERE)
        self.now = 0.0
        self.versions: dict[str, int] = {}
        self.jobs: deque[RunCode] = deque()
        #: All that was sent to readers, by subscription.
        self.got: dict[int, list[Any]] = {}
        self.passing: Any = None
        self.first: list[Effect] = []
        for topic, reactions in (topics or {}).items():
            self.first += self.announce(topic, reactions)

    # ── what happens ──

    def take(self, event: Event) -> list[Effect]:
        """An event; a message goes to the machine that handles it."""
        machine: Any = self.messaging
        if isinstance(event, Received):
            event = Received(event.peer, over_the_wire(event.message))
            if type(event.message) in self.lists.handles:
                machine = self.lists
        return self.note(machine.handle(event, self.now))

    def note(self, effects: list[Effect]) -> list[Effect]:
        """Check the state, and put what was sent over the wire."""
        self.messaging.check_invariants()
        self.lists.check_invariants()
        found: list[Effect] = []
        for it in effects:
            if isinstance(it, Send):
                message = over_the_wire(it.message)
                it = Send(it.peer, message)
                if isinstance(message, Deliver):
                    self.got.setdefault(message.subscription, []).extend(map(plain, message.bodies))
            elif isinstance(it, RunCode):
                self.jobs.append(it)
            found.append(it)
        return found

    def told(self, message: AnyMessage, peer: PeerId = READER.peer) -> list[Effect]:
        sender = HUB if type(message) in self.lists.handles or isinstance(message, CodeGiven) else peer
        return self.take(Received(sender, message))

    def gone(self, peer: PeerId = READER.peer, incarnation: int = 1) -> list[Effect]:
        return self.take(PeerGone(peer, incarnation))

    def wait(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.take(Tick())

    # ── reactions ──

    def announce(self, topic: str, reactions: dict[int, Reaction] | None = None) -> list[Effect]:
        effects = self.take(Announce(topic))
        return effects + self.state(topic, reactions)

    def state(self, topic: str, reactions: dict[int, Reaction] | None = None) -> list[Effect]:
        self.versions[topic] = self.versions.get(topic, 0) + 1
        records = [self.record(name, reaction) for name, reaction in (reactions or {}).items()]
        return self.told(ListState(f"reactions:{topic}", self.versions[topic], records))

    @staticmethod
    def record(identifier: int, reaction: Reaction, owned: bool = True) -> Record:
        return Record(str(identifier), encode_reaction(reaction), reaction.target.peer if owned else PeerId(""))

    def put(self, identifier: int, reaction: Reaction, topic: str = "t", owned: bool = True) -> list[Effect]:
        self.versions[topic] += 1
        record = self.record(identifier, reaction, owned)
        return self.told(RecordPut(f"reactions:{topic}", self.versions[topic], record))

    def delete(self, identifier: int, topic: str = "t") -> list[Effect]:
        self.versions[topic] += 1
        return self.told(RecordDeleted(f"reactions:{topic}", self.versions[topic], str(identifier)))

    # ── messages ──

    def publish(self, *args: Any, topic: str = "t", waits: bool = False, **fields: Any) -> list[Effect]:
        """As a session does; `passing` is what became of it, None when nobody wanted it."""
        return self.publish_content(args, fields, topic, waits)

    def publish_content(
        self, args: tuple[Any, ...], fields: dict[str, Any], topic: str = "t", waits: bool = False
    ) -> list[Effect]:
        """As `publish`, whatever the fields are named."""
        messaging = self.messaging
        self.passing = None
        if topic not in messaging.complex:
            effects = messaging.publish(topic, encode_body(args, fields), waits, self.now)
            return self.note([*effects, *messaging.collect()])
        passing = messaging.begin(topic, waits, self.now)
        if passing is None:
            return self.note([])
        passing.told = True
        self.passing = passing
        effects = messaging.go(passing, args, fields, self.now)
        return self.note([*effects, *messaging.collect()])

    def publish_unawaited(self, *args: Any, topic: str = "t", **fields: Any) -> list[Effect]:
        """As code of a reaction does: nobody waits until it is through."""
        passing = self.messaging.begin(topic, False, self.now)
        if passing is None:
            return self.note([])
        passing.awaited = False
        self.passing = passing
        effects = self.messaging.go(passing, args, fields, self.now)
        return self.note([*effects, *self.messaging.collect()])

    def ran(self, value: Any = None, error: str = "", text: str = "") -> list[Effect]:
        """The first job is through."""
        job = self.jobs.popleft()
        values = [] if error else value if isinstance(value, list) and len(job.calls) > 1 else [value]
        return self.take(CodeRan(job.job, values, error, text))

    def credit(self, identifier: int, count: int, peer: PeerId = READER.peer) -> list[Effect]:
        return self.told(Consumed(RequestId(identifier), count), peer)

    def acknowledge(self, identifier: int, *numbers: int, peer: PeerId = READER.peer) -> list[Effect]:
        return self.told(Acknowledge(RequestId(identifier), list(numbers)), peer)

    def heard(self, topic: str = "t") -> bool:
        """Whether publishing there is more than a look-up."""
        return bool(self.messaging.plans[topic])


__all__ = [
    "CONSUME", "DELIVER", "HUB", "OTHER", "READER", "WHERE", "CheckCode", "Passed", "Publisher", "ReactionReported",
    "code", "given", "over_the_wire", "plain", "react", "sent", "texts",
]  # fmt: skip
