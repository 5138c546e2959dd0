"""A publisher under random events: what each reaction got, against what was published.

Each reaction has an owner of its own, so that owners can be lost one by one. Values are published as 1, 2, 3, …
"""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raskid.model.ids import PeerId, RequestId
from raskid.model.operations import Operation
from raskid.protocol.messages import CodeGiven, Consumed, Deliver, PeerRef
from raskid.protocol.reactions import PULL, Reaction
from tests.unit.core.publishers import CONSUME, DELIVER, Publisher, code, given, plain, react, sent

EVEN = Operation("filter", ([0, "in", list(range(0, 1000, 2))],))
CHAINS = {
    "plain": (DELIVER,),
    "filter": (EVEN, DELIVER),
    "sample": (Operation("sample", (), {"every": 2}), DELIVER),
    "gather": (Operation("gather", (), {"count": 2, "seconds": 3}), DELIVER),
    "code": (code(), DELIVER),
    "codes": (code(), code("g"), DELIVER),
    "consume": (EVEN, DELIVER, CONSUME),
    "code and consume": (code(), DELIVER, CONSUME),
    "keep": (Operation("keep", (), {"count": 3}),),
}
CONSUMING = ("consume", "code and consume")


class Model:
    """One reaction, as its owner knows it."""

    def __init__(self, kind: str, reaction: Reaction, since: int) -> None:
        self.kind = kind
        self.reaction = reaction
        self.since = since
        self.alive = True
        self.suspended = False
        #: Values that it is to get for sure, if it gets them at all in order: nobody could take them away.
        self.due: list[int] = []
        self.got: list[Any] = []
        self.live: list[Any] = []
        self.numbers: list[int] = []
        #: Messages without credit given back, and numbers without an acknowledgement.
        self.outstanding = 0
        self.unacknowledged: dict[int, int] = {}


class MessagingRules(RuleBasedStateMachine):
    """Reactions come, go, are suspended and go on; messages, answers of code, credit and time come in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.publisher = Publisher({"t": {}}, draw=lambda count: self.published % count)
        self.models: dict[int, Model] = {}
        self.next = 1
        self.published = 0
        self.passings: list[Any] = []
        #: Values for classes with acknowledgement: published while a member was at work, and not done since.
        self.owed: set[int] = set()
        #: Values that code has kept back, or failed with.
        self.kept_back: set[int] = set()

    # ── what happens ──

    def look(self, effects: list[Any]) -> None:
        for message in sent(effects, Deliver):
            model = self.models[message.subscription]
            assert model.alive, "nothing is sent to one that has ended"
            for at, body in enumerate(message.bodies):
                value = plain(body)
                model.got.append(value)
                model.outstanding += 1
                assert model.outstanding <= model.reaction.capacity
                if message.numbers and model.reaction.ack:
                    model.unacknowledged[message.numbers[at]] = value
                if not message.again:
                    model.live.append(value)
                    if message.numbers:
                        model.numbers.append(message.numbers[at])

    @rule(kind=st.sampled_from(sorted(CHAINS)), priority=st.integers(-1, 1), capacity=st.integers(1, 3),
          more=st.sampled_from([{}, {}, {"limit": 2}, {"numbered": True, "history": -1}]))  # fmt: skip
    def add(self, kind: str, priority: int, capacity: int, more: dict[str, Any]) -> None:
        self.put(kind, CHAINS[kind], priority=priority, capacity=capacity, **more)

    @rule(ack=st.booleans(), kind=st.sampled_from(["plain", "code"]), choice=st.sampled_from(["round_robin", "random"]))
    def add_member(self, ack: bool, kind: str, choice: str) -> None:
        self.put(kind, CHAINS[kind], group="acks" if ack else "free", ack=ack, numbered=ack, choice=choice, capacity=2)

    @rule()
    def add_reader_that_pulls(self) -> None:
        self.put("pull", CHAINS["plain"], overflow=PULL, capacity=2)

    def put(self, kind: str, operations: tuple[Operation, ...], **more: Any) -> None:
        identifier, self.next = self.next, self.next + 1
        reaction = react(*operations, target=PeerRef(PeerId(f"r{identifier}"), 1), **more)
        self.models[identifier] = Model(kind, reaction, self.published)
        self.look(self.publisher.put(identifier, reaction))

    def pick(self, number: int) -> tuple[int, Model] | None:
        living = [(identifier, model) for identifier, model in self.models.items() if model.alive]
        return living[number % len(living)] if living else None

    @rule(number=st.integers(0, 9), lost=st.booleans())
    def end(self, number: int, lost: bool) -> None:
        picked = self.pick(number)
        if picked is None:
            return
        identifier, model = picked
        if not lost:
            # What its windows hold still comes.
            self.look(self.publisher.delete(identifier))
            model.alive = False
            return
        model.alive = False
        self.look(self.publisher.gone(model.reaction.target.peer))
        self.look(self.publisher.delete(identifier))

    @rule(number=st.integers(0, 9))
    def suspend_or_resume(self, number: int) -> None:
        picked = self.pick(number)
        if picked is None:
            return
        identifier, model = picked
        model.suspended = not model.suspended
        self.look(self.publisher.put(identifier, self.reaction_of(model)))

    @staticmethod
    def reaction_of(model: Model) -> Reaction:
        return msgspec.structs.replace(model.reaction, suspended="by its owner" if model.suspended else "")

    def at_work(self, identifier: int) -> bool:
        """As the publisher sees it: it may have suspended one itself."""
        member = self.publisher.messaging._members["t"].get(RequestId(identifier))
        return member is not None and bool(getattr(member, "active", True))

    @rule(count=st.integers(1, 4))
    def publish(self, count: int) -> None:
        for _ in range(count):
            self.published += 1
            working = [model for identifier, model in self.models.items() if self.at_work(identifier)]
            if not any(model.kind in CONSUMING for model in working):
                for model in working:
                    if model.kind == "plain" and not model.reaction.group and not model.reaction.limit:
                        model.due.append(self.published)
                if any(model.reaction.ack for model in working):
                    self.owed.add(self.published)
            # As a thread that waits while a reader is full: nothing is left out.
            self.look(self.publisher.publish(self.published, waits=True))
            if self.publisher.passing is not None:
                self.passings.append(self.publisher.passing)

    @rule(how=st.sampled_from(["ok", "ok", "ok", "none", "error"]))
    def answer(self, how: str) -> None:
        if not self.publisher.jobs:
            return
        value = self.publisher.jobs[0].calls[0][0][0]
        if how != "ok":
            self.kept_back.add(value)
        self.look(self.publisher.ran(value if how == "ok" else None, "E" if how == "error" else ""))

    @rule(name=st.sampled_from("fg"), found=st.sampled_from([True, True, False]))
    def give_code(self, name: str, found: bool) -> None:
        message: CodeGiven = given(name) if found else given(name, b"")
        if not found:
            self.fail_stalled()
        self.look(self.publisher.told(message))

    def fail_stalled(self) -> None:
        """Time is up, or will be, for what waits for code."""
        for chain in self.publisher.messaging._passage._stalled.values():
            self.kept_back.update(item.values()[0][0] for _, item, _, _ in chain.stalled)
        # What stands in line behind it may have to wait for the same code.
        self.kept_back.update(range(max(1, self.published - 40), self.published + 1))

    @rule(number=st.integers(0, 9), count=st.integers(1, 3))
    def give_credit(self, number: int, count: int) -> None:
        picked = self.pick(number)
        if picked is None:
            return
        identifier, model = picked
        peer = model.reaction.target.peer
        if model.reaction.ack:
            numbers = list(model.unacknowledged)[:count]
            for it in numbers:
                self.owed.discard(model.unacknowledged.pop(it))
            model.outstanding -= len(numbers)
            self.look(self.publisher.acknowledge(identifier, *numbers, peer=peer))
            return
        if model.reaction.overflow != PULL:
            count = min(count, model.outstanding)
        model.outstanding = max(model.outstanding - count, 0)
        self.look(self.publisher.told(Consumed(RequestId(identifier), count), peer))

    @rule(seconds=st.sampled_from([0.5, 3.0, 11.0]))
    def wait(self, seconds: float) -> None:
        if seconds > 10:
            self.fail_stalled()
        self.look(self.publisher.wait(seconds))
        deadline = self.publisher.messaging.next_deadline()
        assert deadline is None or deadline > self.publisher.now or self.publisher.jobs

    # ── what has to hold ──

    @invariant()
    def order_is_kept(self) -> None:
        for model in self.models.values():
            values = [each for value in model.live for each in (value if isinstance(value, list) else [value])]
            if not model.reaction.history:
                assert values == sorted(set(values)), model.kind
            assert model.numbers == sorted(set(model.numbers)), model.kind
            if model.reaction.limit and not model.reaction.history:
                assert len(model.got) <= model.reaction.limit

    @invariant()
    def one_of_a_class_gets_each(self) -> None:
        for group in ("acks", "free"):
            live = [value for model in self.models.values() if model.reaction.group == group for value in model.live]
            assert len(live) == len(set(live))

    @invariant()
    def what_has_nothing_to_wait_for_is_through(self) -> None:
        passage = self.publisher.messaging._passage
        if not passage._jobs and not passage._stalled:
            assert all(passing.done for passing in self.passings)
            assert self.publisher.messaging._publication._lines == {}

    def teardown(self) -> None:
        """All code answers, everybody takes what comes: then nobody has lost anything."""
        for name in "fg":
            self.look(self.publisher.told(given(name)))
        for _ in range(1000):
            while self.publisher.jobs:
                self.look(self.publisher.ran(self.publisher.jobs[0].calls[0][0][0]))
            before = sum(len(model.got) for model in self.models.values())
            for at in range(sum(model.alive for model in self.models.values())):
                self.give_credit(at, 3)
            if not self.publisher.jobs and sum(len(model.got) for model in self.models.values()) == before:
                break
        self.what_has_nothing_to_wait_for_is_through()
        self.order_is_kept()
        for identifier, model in self.models.items():
            if model.due and model.alive and self.at_work(identifier):
                assert set(model.due) <= set(model.got), (model.kind, model.due, model.got)
        if any(model.reaction.ack and self.at_work(identifier) for identifier, model in self.models.items()):
            left = self.owed - self.kept_back
            for model in self.models.values():
                if model.alive:
                    left -= set(model.unacknowledged.values())
            assert not left, f"lost {sorted(left)}"


TestMessagingRules = MessagingRules.TestCase
TestMessagingRules.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
