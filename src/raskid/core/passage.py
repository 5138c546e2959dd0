"""The way of messages through chains: operations one after the other, code off this thread, failures to the owner.

A chain that comes to code asks for it with `RunCode` and goes on when `CodeRan` answers; meanwhile other reactions, and
other messages, go their way. Jobs run in the order in which they were asked for, so that messages of one publisher come
out of a chain in the order in which they went in.

An operation that raises ends its message's way through that chain. The owner is told, with the message; after
`FAILURES_MAX` in a row nothing goes through the chain here any more until the owner says so.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from raskid.core.chains import (
    FAILURES_MAX,
    HAND_ON,
    Chain,
    Item,
    Passing,
    Stage,
    describe,
    result_item,
    runs_here,
)
from raskid.core.effects import CheckCode, DropCode, Effect, ReactionReported, RunCode, Send
from raskid.core.events import CodeRan
from raskid.core.groups import Group
from raskid.core.lists import Lists
from raskid.core.targets import Waiting
from raskid.model.errors import Overflow, RemoteProtocolError, ValueNotSendable
from raskid.model.ids import CodeId, PeerId
from raskid.model.operations import CHECK, CODE, CONSUME, DELIVER, FORWARD, KEEP, SET
from raskid.model.topics import CELLS, REACTIONS, check_list_name, list_name
from raskid.protocol.base import VALUE_BYTES_MAX
from raskid.protocol.messages import (
    AnyMessage,
    AskCode,
    Code,
    ReactionFailed,
    ReactionStopped,
    RequestRefused,
)
from raskid.protocol.reactions import encode_reaction
from raskid.protocol.values import encode_value

if TYPE_CHECKING:
    from raskid.core.messaging import Messaging

#: Code objects that are kept although no reaction here names them.
CODES_MAX = 256
#: Messages of one chain that wait for its code, or for its host.
STALLED_MAX = 1000
#: Messages of one chain whose code is to run, and for which nobody waits.
JOBS_MAX = 1000
#: How long messages wait for code or a host that is not here, in seconds.
STALLED_S = 10.0
#: A message that failed is sent along when it is no longer than this.
BODY_BYTES_MAX = 64 * 1024
TEXT_CHARS_MAX = 4000


class Job:
    """Code that runs for a chain."""

    __slots__ = ("admitted", "at", "chain", "item", "members", "passing")

    def __init__(
        self, chain: Chain, at: int, item: Item, passing: Passing | None, members: list[Chain] | None, admitted: bool
    ) -> None:
        self.chain = chain
        #: The number of the stage; -1 for a clean-up, whose result nobody wants.
        self.at = at
        self.item = item
        self.passing = passing
        #: Whom a metric is asked about; None for an operation of the chain.
        self.members = members
        #: The message counts already among those that came through.
        self.admitted = admitted


class _Slot:
    """The last value for a cell, while the one before it is on its way to the hub."""

    __slots__ = ("chain", "value")

    def __init__(self) -> None:
        self.value: bytes | None = None
        self.chain: Chain | None = None


class Passage:
    """Takes messages through the chains of one process."""

    def __init__(self, lists: Lists, out: Messaging, where: str = "") -> None:
        self._lists = lists
        self._out = out
        #: How failures name this process.
        self.where = where
        self.codes: dict[CodeId, Code] = {}
        #: Code objects that were asked for, and for each the chains with messages that wait for it.
        self._asked: dict[CodeId, list[Chain]] = {}
        self._jobs: dict[int, Job] = {}
        self._job = 0
        self._check_at = 0.0
        #: Messages that wait for the metric of a class: (class, message, code object, how long).
        self._unmeasured: list[tuple[Group, Passing, CodeId, float]] = []
        #: Chains in which messages wait. What is hosted for several publishers has the same id for each.
        self._stalled: dict[Chain, None] = {}
        #: (list, record) → what is to be set there next.
        self._slots: dict[tuple[str, str], _Slot] = {}
        #: Values of cells that were replaced by a later one before the hub had them.
        self.skipped = 0

    # ── one message, one chain ──

    def walk(
        self, chain: Chain, at: int, item: Item, passing: Passing | None, now: float, effects: list[Effect],
        admitted: bool = False,
    ) -> None:  # fmt: skip
        """Take a message through the rest of a chain, until its end or until it has to wait.

        `admitted`: it was counted before, when it came this far.
        """
        stages = chain.stages
        count = len(stages)
        finished = True
        while at < count:
            if not chain.admits(admitted):
                finished = False
                break
            stage = stages[at]
            try:
                step = stage.step
                if step is not None:
                    args, fields = item.values()
                    took = step.take(args, fields, now)
                    if took is None:
                        break
                    if took[0] is not args or took[1] is not fields:
                        item = Item(took[0], took[1])
                elif stage.op == CODE or stage.op == HAND_ON:
                    if stage.op == HAND_ON:
                        # Its host counts what comes through.
                        admitted = True
                    if not self._leave(chain, at, item, passing, admitted, now, effects):
                        return
                    if stage.op == HAND_ON:
                        chain.failures = 0
                    break
                else:
                    if not admitted:
                        admitted = finished = self._admit(chain, effects)
                        if not admitted:
                            break
                    self._act(chain, stage, item, passing, now, effects)
            except Overflow as error:
                # The code may be in order: it is only asked too often.
                self.fail(chain, at, item, "Overflow", str(error), effects, suspends=False)
                break
            except Exception as error:
                # Values come from users, and have methods of their own: they may raise anything.
                if isinstance(error, ValueNotSendable) and self._is_publishers(item, passing, stages[at].op):
                    assert passing is not None
                    passing.unsendable = error
                    break
                # What is declared wrongly is the fault of those who publish it: others may be right.
                suspends = stages[at].op != CHECK
                self.fail(chain, at, item, type(error).__name__, _text_of(error), effects, suspends)
                break
            at += 1
        else:
            if chain.admits(admitted):
                if not admitted:
                    self._admit(chain, effects)
                chain.failures = 0
        self._out.ended(chain, passing, finished, now, effects)

    @staticmethod
    def _is_publishers(item: Item, passing: Passing | None, op: str) -> bool:
        """Whether it is its publisher who hears that a message cannot be sent: it is as it was published just now.

        A cell may take less than a message, and that is the affair of the reaction.
        """
        return passing is not None and passing.publishing and item is passing.item and op != SET

    def _admit(self, chain: Chain, effects: list[Effect]) -> bool:
        """Count a message that has come through; False when the reaction's limit is reached."""
        limit = chain.reaction.limit
        if limit and chain.passed >= limit:
            return False
        chain.passed += 1
        if chain.passed == limit:
            # What is under way in its code still comes this far, and no further.
            effects.append(Send(chain.reaction.target.peer, ReactionStopped(chain.id, chain.passed)))
        return True

    def _act(
        self, chain: Chain, stage: Stage, item: Item, passing: Passing | None, now: float, effects: list[Effect]
    ) -> None:
        op = stage.op
        if op == DELIVER:
            if chain.target is not None:
                self._out.deliver(chain, chain.target, item, passing, effects)
        elif op == CONSUME:
            if passing is not None:
                passing.consumed = True
        elif op == FORWARD:
            self._out.forward(stage.operation.args[0], item, passing, now, effects)
        elif op == SET:
            permanent = bool(stage.operation.fields.get("permanent", False))
            name = stage.operation.args[0]
            self._set(chain, name, stage.operation.args[1], permanent, item, effects)
            kind, topic = check_list_name(name)
            if kind == CELLS:
                # A cell is a channel too: whoever reacts to its values, such as a link from it, gets this one.
                self._out.forward(topic, item, passing, now, effects)
        elif op == KEEP and chain.keeper is not None:
            chain.keeper.store(passing.number if passing is not None else 0, item.encoded(), now)

    # ── code and hosts ──

    def _leave(
        self, chain: Chain, at: int, item: Item, passing: Passing | None, admitted: bool, now: float,
        effects: list[Effect],
    ) -> bool:  # fmt: skip
        """Let code, or another peer, have a message; True when it has left this process for good."""
        stage = chain.stages[at]
        if stage.op == HAND_ON:
            if not chain.stalled and self._out.hand_on(chain, item, passing, effects):
                return True
        else:
            code = self.codes.get(stage.code)
            if code is not None and not chain.stalled:
                if chain.jobs >= JOBS_MAX and (passing is None or not passing.awaited):
                    raise Overflow(
                        f"more than {JOBS_MAX:,} messages for which nobody waits are to go through "
                        f"{describe(stage.operation)}: this one was left out. Publish less from within reactions and "
                        "callbacks, or let the code be quicker"
                    )
                self._start(chain, at, item, passing, admitted, code, now, effects)
                return False
        if len(chain.stalled) >= STALLED_MAX:
            raise RemoteProtocolError(f"more than {STALLED_MAX:,} messages wait for {describe(stage.operation)}")
        if not chain.stalled:
            chain.stalled_until = now + STALLED_S
            self._stalled[chain] = None
        chain.stalled.append((at, item, passing, admitted))
        if passing is not None:
            passing.pending += 1
        if stage.op == CODE:
            self.ask(stage.code, chain, effects)
        return False

    def _start(
        self, chain: Chain, at: int, item: Item, passing: Passing | None, admitted: bool, code: Code, now: float,
        effects: list[Effect],
    ) -> None:  # fmt: skip
        stage = chain.stages[at]
        args, fields = item.values()
        call = ((*args, *stage.args), {**fields, **stage.fields} if stage.fields else fields)
        self._run(Job(chain, at, item, passing, None, admitted), code, [call], chain.reaction.seconds, now, effects)
        chain.jobs += 1
        if passing is not None:
            passing.pending += 1

    def _run(
        self, job: Job, code: Code, calls: list[tuple[tuple[Any, ...], dict[str, Any]]], seconds: float, now: float,
        effects: list[Effect],
    ) -> None:  # fmt: skip
        self._job += 1
        if not self._jobs:
            self._check_at = now + seconds
        self._jobs[self._job] = job
        hops = job.passing.hops if job.passing is not None else 0
        effects.append(RunCode(self._job, code, calls, seconds, hops))

    def measure(self, group: Group, passing: Passing, now: float, effects: list[Effect]) -> bool:
        """Ask a class's metric who is to have a message; False when that cannot be asked."""
        oldest = group.metric_of()
        if oldest is None or oldest.reaction.metric is None:
            return False
        metric = oldest.reaction.metric
        active = group.active
        if metric.op != CODE or not runs_here(metric) or not active:
            if active:
                text = f"{describe(metric)} cannot be run by the publisher, which has to choose"
                self.fail(oldest, -1, passing.item, "ValueError", text, effects)
            return False
        name = CodeId(metric.args[0])
        code = self.codes.get(name)
        if code is None:
            # Further messages of the topic wait behind this one.
            passing.pending += 1
            self._unmeasured.append((group, passing, name, now + STALLED_S))
            self.ask(name, oldest, effects)
            return True
        bound, named = tuple(metric.fields.get("args") or ()), dict(metric.fields.get("fields") or {})
        try:
            args, fields = passing.item.values()
        except RemoteProtocolError as error:
            self.fail(oldest, -1, passing.item, type(error).__name__, str(error), effects)
            return False
        calls = [((member.reaction.value, *args, *bound), {**fields, **named}) for member in active]
        passing.pending += 1
        job = Job(oldest, -1, passing.item, passing, active, False)
        self._run(job, code, calls, oldest.reaction.seconds, now, effects)
        return True

    def _measure_late(self, code: CodeId, error: str, text: str, now: float, effects: list[Effect]) -> None:
        """A metric is here for which messages wait, or will not come: then the next member in turn gets each."""
        for each in [each for each in self._unmeasured if each[2] == code]:
            self._unmeasured.remove(each)
            group, passing = each[0], each[1]
            passing.pending -= 1
            if not error and self.measure(group, passing, now, effects):
                continue
            active = group.active
            if error and active:
                self.fail(active[0], -1, passing.item, error, text, effects)
                active = group.active
            self._out.chosen(group, group.next_of(active) if active else None, passing, now, effects)

    def clean_up(self, chain: Chain, now: float, effects: list[Effect]) -> None:
        """Run what is to be run when a reaction is removed."""
        cleanup = chain.cleanup
        if cleanup is None or cleanup.op != CODE or not cleanup.args:
            return
        code = self.codes.get(CodeId(cleanup.args[0]))
        if code is not None:
            call = (tuple(cleanup.fields.get("args") or ()), dict(cleanup.fields.get("fields") or {}))
            job = Job(chain, -1, Item((), {}), None, None, False)
            self._run(job, code, [call], chain.reaction.seconds, now, effects)

    def on_code_ran(self, event: CodeRan, now: float, effects: list[Effect]) -> None:
        """Code is through: go on with its message."""
        job = self._jobs.pop(event.job, None)
        if job is None:
            return
        chain, passing = job.chain, job.passing
        if passing is not None:
            passing.pending -= 1
        if job.members is not None:
            assert passing is not None
            self._chosen(job.members, passing, event, now, effects)
            return
        if job.at < 0:
            if event.error:
                self.fail(chain, -1, job.item, event.error, event.text, effects)
            return
        chain.jobs -= 1
        finished = not chain.removed
        if event.error:
            if finished:
                self.fail(chain, job.at, job.item, event.error, event.text, effects)
        elif chain.admits(job.admitted):
            item = result_item(event.values[0])
            if item is not None:
                self.walk(chain, job.at + 1, item, passing, now, effects, job.admitted)
                return
            chain.failures = 0
        else:
            finished = False
        self._out.ended(chain, passing, finished, now, effects)

    def _chosen(self, asked: list[Chain], passing: Passing, event: CodeRan, now: float, effects: list[Effect]) -> None:
        """A metric has answered; where it failed, the next member in turn gets the message."""
        group: Group = passing.group
        member: Chain | None = None
        error, text = event.error, event.text
        if not error:
            try:
                member = group.choose_by(asked, event.values)
            except Exception as failure:
                error, text = type(failure).__name__, _text_of(failure)
        if error:
            if not asked[0].removed:
                self.fail(asked[0], -1, passing.item, error, text, effects)
            active = group.active
            member = group.next_of(active) if active else None
        self._out.chosen(group, member, passing, now, effects)

    # ── code objects ──

    def ask(self, code: CodeId, chain: Chain, effects: list[Effect]) -> None:
        """Have a code object sent here."""
        if code in self.codes:
            return
        waiting = self._asked.get(code)
        if waiting is None:
            waiting = self._asked[code] = []
            effects.append(Send(self._lists.hub, AskCode(code)))
        if chain not in waiting:
            waiting.append(chain)

    def add_code(self, code: Code) -> None:
        """A code object that this process made itself, or was sent."""
        self.codes[code.code] = code

    def on_code(self, code: Code, now: float, effects: list[Effect]) -> None:
        """A code object came, or nobody has it."""
        if code.blob:
            self.add_code(code)
        for chain in self._asked.pop(code.code, []):
            if not code.blob:
                text = f"nobody in this system has the code object {code.code}"
                self._fail_stalled(chain, "LookupError", text, now, effects)
            self.resume(chain, now, effects)
        missing = "" if code.blob else f"nobody in this system has the code object {code.code}"
        self._measure_late(code.code, "LookupError" if missing else "", missing, now, effects)
        if len(self.codes) > CODES_MAX:
            used = self._out.codes_in_use()
            for name in [name for name in self.codes if name not in used][: len(self.codes) - CODES_MAX]:
                del self.codes[name]

    def resume(self, chain: Chain, now: float, effects: list[Effect]) -> None:
        """Go on with messages that waited, as far as what they waited for is here."""
        self._resume(chain, now, effects)
        if not chain.stalled:
            self._stalled.pop(chain, None)

    def _resume(self, chain: Chain, now: float, effects: list[Effect]) -> None:
        stalled = chain.stalled
        while stalled:
            at, item, passing, admitted = stalled[0]
            goes_on = chain.admits(admitted)
            stage = chain.stages[at]
            if stage.op == CODE:
                code = self.codes.get(stage.code)
                if code is None:
                    self.ask(stage.code, chain, effects)
                    return
                stalled.popleft()
                if passing is not None:
                    passing.pending -= 1
                if goes_on:
                    self._start(chain, at, item, passing, admitted, code, now, effects)
                    continue
            else:
                if goes_on and not self._out.hand_on(chain, item, passing, effects):
                    return
                stalled.popleft()
                if passing is not None:
                    passing.pending -= 1
            self._out.ended(chain, passing, goes_on, now, effects)

    def hand_on_again(self, chain: Chain, waiting: list[Waiting], now: float, effects: list[Effect]) -> None:
        """The host of a chain is gone: what waited for room there waits for the next one, before all else."""
        if not waiting or not chain.active:
            return
        for _, body, _, number, again, _, hops in reversed(waiting):
            item = Item(None, None, body)
            passing = Passing(0, chain.topic, item, False)
            passing.number, passing.again, passing.hops, passing.pending = number, again, hops, 1
            chain.stalled.appendleft((len(chain.stages) - 1, item, passing, True))
        chain.stalled_until = now + STALLED_S
        self._stalled[chain] = None
        self.resume(chain, now, effects)

    def _fail_stalled(self, chain: Chain, error: str, text: str, now: float, effects: list[Effect]) -> None:
        stalled, chain.stalled = chain.stalled, deque()
        self._stalled.pop(chain, None)
        for at, item, passing, _ in stalled:
            if passing is not None:
                passing.pending -= 1
            if not chain.removed:
                self.fail(chain, at, item, error, text, effects)
            self._out.ended(chain, passing, not chain.removed, now, effects)

    def drop_all(self, chain: Chain, now: float, effects: list[Effect]) -> None:
        """A chain is removed: what waited in it goes no further, and of its code only the call at work still runs."""
        self._fail_stalled(chain, "", "", now, effects)
        first = next(iter(self._jobs), 0)
        # A clean-up is what runs in the end.
        dropped = [it for it in self._jobs.items() if it[1].chain is chain and (it[1].at >= 0 or it[1].members)]
        for number, job in dropped:
            effects.append(DropCode(number))
            # Jobs run in order. The first may be at work, and has the values as long as it is; a metric's answer
            # lets the message go to somebody else. Both are answered in any case.
            if number == first or job.members is not None:
                continue
            del self._jobs[number]
            chain.jobs -= 1
            if job.passing is not None:
                job.passing.pending -= 1
            self._out.ended(chain, job.passing, False, now, effects)

    # ── failures ──

    def fail(
        self, chain: Chain, at: int, item: Item, error: str, text: str, effects: list[Effect], suspends: bool = True
    ) -> None:  # fmt: skip
        """Tell a reaction's owner that it failed, with the message that did it.

        `suspends`: this is one of the failures after which, in a row, nothing goes through it any more.
        """
        chain.failures_all += 1
        if suspends:
            chain.failures += 1
            suspends = not chain.suspended and chain.failures >= FAILURES_MAX
        if suspends:
            chain.suspended = True
            self._out.changed(chain)
        total = chain.failures_all
        if total > FAILURES_MAX and not suspends and total & (total - 1):
            # Failures that come and go: the first ones, and then ever fewer.
            return
        body = b""
        try:
            body = item.encoded()
        except (ValueNotSendable, TypeError, ValueError):
            # It never left this process.
            body = b""
        message = ReactionFailed(
            chain.id, chain.topic, at + chain.begin if at >= 0 else at, _writable(error[:200]),
            _writable(text[:TEXT_CHARS_MAX]),
            body if len(body) <= BODY_BYTES_MAX else b"", total, self.where, suspends,
        )  # fmt: skip
        self.report(chain, message, effects)

    def report(self, chain: Chain, message: ReactionFailed, effects: list[Effect]) -> None:
        """Say a failure to whoever is there for it."""
        owner = chain.reaction.target.peer
        if chain.owned or self._out.is_present(owner):
            effects.append(Send(owner, message))
        elif chain.publisher:
            # Its publisher has people who look at what it prints; a host has none.
            effects.append(Send(chain.publisher, message))
        else:
            # Its owner has left it here for good: this process is the only one to say it.
            effects.append(ReactionReported(PeerId(""), message))
            if message.suspended and not chain.removed:
                self._suspend_everywhere(chain, message, effects)

    def _suspend_everywhere(self, chain: Chain, message: ReactionFailed, effects: list[Effect]) -> None:
        """Do what the owner of a reaction would do: a permanent record is anybody's, and all shall see what it says."""
        if chain.limited:
            # The record would become one of this process, and its code would be run.
            return
        where = message.where or "a publisher"
        reason = f"it failed {message.failures} times at {where}, last with {message.error}"
        record = encode_reaction(msgspec.structs.replace(chain.reaction, suspended=reason))

        def answered(message: AnyMessage, now: float) -> list[Effect]:
            # Refused or not: here it is suspended in any case.
            return []

        name = list_name(REACTIONS, chain.topic)
        effects.append(self._lists.put(name, str(chain.id), record, True, answered))

    # ── cells ──

    def _set(self, chain: Chain, name: str, record: str, permanent: bool, item: Item, effects: list[Effect]) -> None:
        """Have the hub set a cell; while it is at it, only the latest of further values is kept."""
        args, fields = item.values()
        value = encode_value(args[0] if args else fields)
        if len(value) > VALUE_BYTES_MAX:
            raise ValueNotSendable(
                f"the value for {name!r:.80} takes {len(value):,} bytes; a cell holds {VALUE_BYTES_MAX:,}. Reduce it "
                "first, or deliver it to a subscriber"
            )
        slot = self._slots.get((name, record))
        if slot is not None:
            if slot.value is not None:
                self.skipped += 1
            slot.value, slot.chain = value, chain
            return
        self._slots[(name, record)] = _Slot()
        self._put(chain, name, record, permanent, value, effects)

    def _put(self, chain: Chain, name: str, record: str, permanent: bool, value: bytes, effects: list[Effect]) -> None:
        def answered(message: AnyMessage, now: float) -> list[Effect]:
            more: list[Effect] = []
            slot = self._slots[(name, record)]
            if type(message) is RequestRefused:
                self.fail(chain, -1, Item((), {}), message.code, f"{name!r:.80} was not set: {message.text}", more)
            later, owner = slot.value, slot.chain
            if later is None or owner is None:
                del self._slots[(name, record)]
            else:
                slot.value = slot.chain = None
                self._put(owner, name, record, permanent, later, more)
            return more

        effects.append(self._lists.put(name, record, value, permanent, answered))

    # ── time ──

    def tick(self, timed: list[Chain], now: float, effects: list[Effect]) -> None:
        """Time has passed: end the windows of chains that have some, and the patience of what waits."""
        for chain in list(self._stalled):
            if now >= chain.stalled_until:
                stage = chain.stages[chain.stalled[0][0]]
                what = "a helper" if stage.op == HAND_ON else describe(stage.operation)
                text = f"{what} was not here within {STALLED_S:g} s"
                self._fail_stalled(chain, "WaitTimeout", text, now, effects)
        for late in {it[2] for it in self._unmeasured if now >= it[3]}:
            text = f"the metric of a class was not here within {STALLED_S:g} s"
            self._measure_late(late, "WaitTimeout", text, now, effects)
        for chain in timed:
            for at, stage in enumerate(chain.stages):
                step = stage.step
                if step is None or not chain.active:
                    continue
                deadline = step.next_deadline()
                if deadline is not None and now >= deadline:
                    try:
                        given = step.tick(now)
                    except Exception as error:
                        self.fail(chain, at, Item((), {}), type(error).__name__, _text_of(error), effects)
                        continue
                    if given is not None:
                        self.walk(chain, at + 1, Item(given[0], given[1]), None, now, effects)
        if self._jobs and now >= self._check_at:
            job = next(iter(self._jobs))
            self._check_at = now + max(0.01, min(it.chain.reaction.seconds for it in self._jobs.values()))
            effects.append(CheckCode(job))

    @property
    def busy(self) -> bool:
        """Whether code runs, or messages wait for it."""
        return bool(self._jobs or self._stalled or self._unmeasured)

    @property
    def sets(self) -> bool:
        """Whether a value waits to be set, while the hub is at the one before it."""
        return any(slot.value is not None for slot in self._slots.values())

    def next_deadline(self, timed: list[Chain]) -> float | None:
        """When a window ends, or a job or message that waits is to be looked at."""
        nearest = self._check_at if self._jobs else None
        for chain in self._stalled:
            if nearest is None or chain.stalled_until < nearest:
                nearest = chain.stalled_until
        for it in self._unmeasured:
            if nearest is None or it[3] < nearest:
                nearest = it[3]
        for chain in timed:
            deadline = chain.next_deadline()
            if deadline is not None and (nearest is None or deadline < nearest):
                nearest = deadline
        return nearest

    def flush(self, chain: Chain, now: float, effects: list[Effect]) -> None:
        """Let go what is still collected in a chain's windows."""
        for at, stage in enumerate(chain.stages):
            if stage.step is not None and chain.active:
                try:
                    given = stage.step.flush()
                except Exception as error:
                    self.fail(chain, at, Item((), {}), type(error).__name__, _text_of(error), effects)
                    continue
                if given is not None:
                    self.walk(chain, at + 1, Item(given[0], given[1]), None, now, effects)

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        assert all(job <= self._job for job in self._jobs)
        for chain in self._stalled:
            assert chain.stalled and not chain.removed


def _text_of(error: Exception) -> str:
    """The text of an error, which may be of a class of the user's."""
    try:
        return str(error)
    except Exception:
        return "its text cannot be had"


def _writable(text: str) -> str:
    """A text as messages carry it: without halves of surrogate pairs."""
    return text.encode("utf-8", "backslashreplace").decode()
