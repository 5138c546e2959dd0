"""A reaction at one publisher: the chain of its operations, how far it has come, and how often it has failed.

A chain is data; `raskid.core.passage` takes messages through it. What a publisher cannot run (an operation that it does
not know, code of another language or version) is handed on, from that operation on, to a peer that can: the owner, or
the helper where the reaction asks for one.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from raskid.core.keeping import Keeper
from raskid.core.operations import check_operation, make_step
from raskid.core.steps import Step
from raskid.core.targets import OURS, Target
from raskid.model.errors import RemoteProtocolError, ValueNotSendable
from raskid.model.ids import CodeId, RequestId
from raskid.model.operations import (
    CHECK,
    CHOOSE,
    CODE,
    CONSUME,
    DELIVER,
    FILTER,
    FORWARD,
    GATHER,
    KEEP,
    LANGUAGE,
    LANGUAGE_VERSION,
    OPERATIONS,
    REDUCE,
    SAMPLE,
    SET,
    Operation,
)
from raskid.protocol.reactions import AT_HELPER, Reaction
from raskid.protocol.values import decode_body, encode_body

#: A reaction that has failed so often in a row is suspended.
FAILURES_MAX = 10
#: A message passes through so many forwards at most: links may form rings.
HOPS_MAX = 16

_STEPS = frozenset({FILTER, CHOOSE, CHECK, SAMPLE, REDUCE, GATHER})
#: Operations behind which every message goes on as it is, unless it is refused.
_PASSING_ALL = frozenset({CHECK, CONSUME, FORWARD, SET})
#: Operations that a host, which gets messages only later, cannot do for a publisher.
_AT_PUBLISHER_ONLY = (CONSUME, KEEP)
#: An operation that stands for all that another peer is to run.
HAND_ON = "hand on"


class Item:
    """A message somewhere in a chain, as values or as bytes, whichever it has been needed as so far."""

    __slots__ = ("_args", "_body", "_fields")

    def __init__(self, args: tuple[Any, ...] | None, fields: dict[str, Any] | None, body: bytes | None = None) -> None:
        self._args = args
        self._fields = fields
        self._body = body

    def values(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Its values. Raises RemoteProtocolError when its bytes are no message."""
        args, fields = self._args, self._fields
        if args is None or fields is None:
            assert self._body is not None
            args, fields = decode_body(self._body)
            self._args, self._fields = args, fields
        return args, fields

    def apart(self) -> Item:
        """The same message with values of its own, which nobody else can change. Raises as `encoded` does."""
        return Item(None, None, self.encoded())

    def encoded(self) -> bytes:
        """Its bytes, written once. Raises ValueNotSendable when messages do not carry it."""
        body = self._body
        if body is None:
            assert self._args is not None and self._fields is not None
            body = self._body = encode_body(self._args, self._fields)
        return body


class Passing:
    """One message on its way through the reactions of a topic."""

    __slots__ = (
        "again", "at", "awaited", "begun", "consumed", "done", "group", "guest", "holder", "hops", "id", "item",
        "number", "parent", "pending", "publisher", "publishing", "running", "told", "topic", "units",
        "unsendable", "waiting", "waits",
    )  # fmt: skip

    def __init__(self, identifier: int, topic: str, item: Item, waits: bool) -> None:
        self.id = identifier
        self.topic = topic
        self.item = item
        #: Its publisher waits until nobody needs what was published any more.
        self.waits = waits
        #: The reactions that it meets, with the stage where it begins in each, and the first that it has not met.
        self.units: list[tuple[Any, int]] = []
        self.at = 0
        self.number = 0
        self.hops = 0
        self.publisher = OURS
        #: Another member of its class had it before.
        self.again = False
        self.consumed = False
        #: The class whose member is being chosen.
        self.group: Any = None
        #: Code and other topics that it is still on its way in.
        self.pending = 0
        #: The chain that decides whether further reactions get it, while that runs.
        self.holder: Chain | None = None
        self.running = False
        #: It has met its first reaction, or is about to: nothing stands before it in its topic's line.
        self.begun = False
        self.done = False
        #: Somebody waits until it is through: there are no more of these than there are who wait, and until then
        #: nobody changes its values.
        self.awaited = True
        #: Its publisher's call has not returned yet, and what has shown meanwhile that it cannot be sent as it is:
        #: that is the publisher's error, and not one of the reaction.
        self.publishing = False
        self.unsendable: ValueNotSendable | None = None
        #: Whether the application hears that it is through.
        self.told = False
        self.parent: Passing | None = None
        #: The chain that this process hosts for its publisher.
        self.guest: Chain | None = None
        #: Full targets that it waits for, and its places in their queues.
        self.waiting: list[tuple[Target, int]] = []


class Stage:
    """One operation of a chain."""

    __slots__ = ("args", "code", "fields", "op", "operation", "step")

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.op = operation.op
        self.step: Step | None = None
        self.code = CodeId("")
        #: What is bound to a code object.
        self.args: tuple[Any, ...] = ()
        self.fields: dict[str, Any] = {}
        if self.op == CODE:
            self.code = CodeId(operation.args[0])
            self.args = tuple(operation.fields.get("args") or ())
            self.fields = dict(operation.fields.get("fields") or {})
        elif self.op in _STEPS:
            self.step = make_step(operation)


class Chain:
    """One reaction at one publisher, or at a host for one publisher."""

    __slots__ = (
        "begin", "due", "failures", "failures_all", "hand_on", "holds", "host", "id", "jobs", "keeper", "late",
        "limited", "over", "owned", "passed", "publisher", "reaction", "record", "refused", "removed", "stages",
        "stalled", "stalled_until", "suspended", "target", "timed", "topic",
    )  # fmt: skip

    def __init__(
        self, identifier: RequestId, topic: str, reaction: Reaction, record: bytes, owned: bool, begin: int = -1
    ) -> None:
        """`begin`: the first operation to run here, where this process hosts the reaction for its publisher."""
        self.id = identifier
        self.topic = topic
        self.reaction = reaction
        #: The same, as it stands in the list.
        self.record = record
        self.begin = max(0, begin)
        #: The record goes with its owner.
        self.owned = owned
        #: Whoever made it, or has it run here, must not have anything executed.
        self.limited = False
        #: Whose messages these are, where this process is their host, how many of them are to be credited, and which
        #: are to be when a full reader has taken them.
        self.publisher = OURS
        self.due = 0
        self.late: deque[Passing] = deque()
        self.target: Target | None = None
        #: Where that goes which is handed on; `host` is known from the first message on.
        self.host: Target | None = None
        self.hand_on = -1
        self.stages: list[Stage] = []
        #: Why it cannot be run at all.
        self.refused = ""
        self._build(hosted=begin >= 0)
        #: Failures in a row, and all of them.
        self.failures = 0
        self.failures_all = 0
        self.suspended = bool(reaction.suspended)
        self.removed = False
        self.passed = 0
        self.over = False
        self.jobs = 0
        #: Messages that wait for code or a host to be there: (number of the stage, message, where it comes from,
        #: whether it counts already).
        self.stalled: deque[tuple[int, Item, Passing | None, bool]] = deque()
        self.stalled_until = 0.0
        self.keeper: Keeper | None = None
        codes = [at for at, stage in enumerate(self.stages) if stage.op == CODE]
        consumes = [at for at, stage in enumerate(self.stages) if stage.op == CONSUME]
        #: Whether messages go to a lower priority is only known when code has run.
        self.holds = bool(codes and consumes and codes[0] < consumes[-1])
        for stage in self.stages:
            if stage.op == KEEP:
                self.keeper = Keeper(stage.operation)
        #: Whether some of it ends by time.
        self.timed = any(stage.op in (REDUCE, GATHER) for stage in self.stages)

    def _build(self, hosted: bool) -> None:
        """Make the stages; what this process cannot run becomes one that hands on."""
        if self.reaction.place == AT_HELPER and not hosted:
            self._hand_on(0)
            return
        for at, operation in enumerate(self.reaction.operations):
            if at < self.begin:
                continue
            if not runs_here(operation):
                if hosted:
                    self.refused = f"{describe(operation)} can be run neither by its publisher nor by its owner"
                    return
                self._hand_on(at)
                return
            try:
                check_operation(operation)
                self.stages.append(Stage(operation))
            except (TypeError, ValueError) as error:
                self.refused = str(error)
                return
        if sum(stage.op == KEEP for stage in self.stages) > 1:
            self.refused = "a chain has one 'keep' at most; make a second reaction for another"
        for extra in (self.reaction.metric, self.reaction.cleanup):
            if extra is not None and not self.refused:
                try:
                    check_operation(extra)
                except (TypeError, ValueError) as error:
                    self.refused = str(error)

    def _hand_on(self, at: int) -> None:
        """All from one operation on is for a host, unless only a publisher can do it."""
        operations = self.reaction.operations
        lost = [repr(it.op) for it in operations[at:] if it.op in _AT_PUBLISHER_ONLY]
        if self.reaction.ack:
            lost.append("acknowledgement")
        if lost:
            why = "it is for a helper"
            if self.reaction.place != AT_HELPER:
                why = f"{describe(operations[at])} cannot be run by this publisher"
            self.refused = (
                f"{why}, so that the rest of the chain would be handed on, and {', '.join(lost)} can be done by a "
                "publisher alone. Put it before what is handed on, or into a reaction of its own"
            )
            return
        self.hand_on = at
        self.stages.append(Stage(Operation(HAND_ON)))

    @property
    def has_code(self) -> bool:
        """Whether it runs code anywhere, here or where it is handed on to."""
        reaction = self.reaction
        every = (*reaction.operations, reaction.metric, reaction.cleanup)
        return any(operation is not None and operation.op == CODE for operation in every)

    @property
    def active(self) -> bool:
        """Whether messages go through it."""
        return not (self.removed or self.suspended or self.over or self.refused)

    def admits(self, admitted: bool) -> bool:
        """Whether a message goes on in it; at the limit only those do that were counted before."""
        return not (self.removed or self.suspended) if admitted else self.active

    @property
    def delivers(self) -> bool:
        """Whether messages go to its owner from here."""
        return any(stage.op == DELIVER for stage in self.stages)

    @property
    def lingers(self) -> bool:
        """Whether a message may stay in it for a while as values: in code, or where that or a host is not here yet."""
        return any(stage.op in (CODE, HAND_ON) for stage in self.stages)

    @property
    def encodes(self) -> bool:
        """Whether each message is needed as bytes, just as it was published, by something that surely gets it."""
        for stage in self.stages:
            if stage.op in (DELIVER, KEEP, HAND_ON):
                return True
            if stage.op not in _PASSING_ALL:
                # What is left out, or looks otherwise from here on, need not be written.
                return False
        return False

    @property
    def passes_on(self) -> bool:
        """Whether it does nothing but publish messages on another topic, as a link does."""
        return len(self.stages) == 1 and self.stages[0].op == FORWARD and not self.reaction.limit

    @property
    def samples(self) -> bool:
        """Whether it looks at the number or time of a message first, and not at what is in it."""
        return bool(self.stages) and self.stages[0].op == SAMPLE

    @property
    def consumes(self) -> bool:
        """Whether it may keep messages from reactions of lower priority."""
        return any(stage.op == CONSUME for stage in self.stages)

    @property
    def numbered(self) -> bool:
        """Whether it needs the numbers of messages."""
        return self.reaction.numbered or self.reaction.ack or self.keeper is not None

    @property
    def cleanup(self) -> Operation | None:
        """What is to be run here in the end: where all is handed on, nothing ran here."""
        return None if self.hand_on == 0 else self.reaction.cleanup

    @property
    def load(self) -> int:
        """Messages under way in it."""
        return self.jobs + len(self.stalled) + (self.target.load if self.target is not None else 0)

    def next_deadline(self) -> float | None:
        """When one of its windows ends; one that is suspended has no end."""
        nearest: float | None = None
        if not self.active:
            return None
        for stage in self.stages:
            if stage.step is not None:
                deadline = stage.step.next_deadline()
                if deadline is not None and (nearest is None or deadline < nearest):
                    nearest = deadline
        return nearest

    def codes(self) -> list[CodeId]:
        """The code objects that it runs here."""
        found = [stage.code for stage in self.stages if stage.op == CODE]
        for operation in (self.reaction.metric, self.cleanup):
            if operation is not None and operation.op == CODE and runs_here(operation):
                found.append(CodeId(operation.args[0]))
        return found


def runs_here(operation: Operation) -> bool:
    """Whether this process knows the operation, and can load its code."""
    if operation.op != CODE:
        return operation.op in OPERATIONS
    return tuple(operation.args[1:3]) == (LANGUAGE, LANGUAGE_VERSION)


def check_hops(topic: str, hops: int) -> None:
    """Refuse a message that has come through too many topics.

    Raises:
        RemoteProtocolError: It has.
    """
    if hops > HOPS_MAX:
        raise RemoteProtocolError(
            f"a message was passed on to {topic!r:.80} after {HOPS_MAX} other topics: links or forwards form a ring, "
            "or code publishes again what it is called for. Take one of them away, or let a filter end it"
        )


def describe(operation: Operation) -> str:
    """An operation, as texts name it."""
    if operation.op == CODE:
        name = operation.fields.get("name") or operation.args[:1]
        return f"the code {name!s:.80} ({' '.join(map(str, operation.args[1:3]))})"
    return f"the operation {operation.op!r:.60}"


def result_item(value: Any) -> Item | None:
    """The message that a function's result is: None ends it, a dict gives fields, all else is the one value."""
    if value is None:
        return None
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return Item((), value)
    return Item((value,), {})
