"""Reactions that are installed, as a user holds them, and what is told of them.

`raskid.client.reactions` puts them together; `ReactionHandle` suspends, resumes and removes one, and keeps what its
publishers report.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from raskid.client.callbacks import Callback, say
from raskid.client.checks import check_seconds, check_text
from raskid.client.futures import Future
from raskid.client.messages import ANSWER_S, Message, Subscription
from raskid.client.waiting import Steps, take_steps, take_steps_in
from raskid.model.errors import RemoteProtocolError
from raskid.model.ids import RequestId
from raskid.model.operations import CODE, Operation
from raskid.model.topics import REACTIONS, list_name
from raskid.protocol.messages import ROLE_EXECUTE, DeleteRecord, PutRecord, ReactionFailed, ReactionStopped
from raskid.protocol.reactions import LEAST_LOADED, Reaction, decode_reaction, encode_reaction
from raskid.protocol.values import decode_body

if TYPE_CHECKING:
    from raskid.client.reacting import Reacting
    from raskid.client.reactions import Op

SETTLE_S = 5.0
#: So many failures of a reaction are kept at its handle.
FAILURES_KEPT = 10
#: The calls of a draft.
CALLS = (
    "filter", "choose", "check", "map", "sample", "reduce", "gather", "consume", "forward", "set", "keep", "run",
    "done", "deliver",
)  # fmt: skip


class Failure(NamedTuple):
    """One time that a reaction failed.

    Attributes:
        publisher: The process in which it did.
        operation: The number of the operation that failed, from 0; -1 for the clean-up, or the class's metric.
        error: The name of the error's type.
        text: Its text, with the end of the traceback where code raised it.
        message: The message that the operation was given; None when that was too long to be sent along.
        failures: How often the reaction has failed in that process so far.
        suspends: Whether the reaction is suspended now because of it.
    """

    publisher: str
    operation: int
    error: str
    text: str
    message: Message | None
    failures: int
    suspends: bool = False


class ReactionHandle:
    """A reaction that is installed. Leave it with `close`, or ``with``; in asyncio with `aclose`, or ``async with``.

    Attributes:
        topic: The topic's name.
        id: Its name in the list of the topic's reactions.
        operations: What it does, as the table's operations.
        silent: Publishers that did not acknowledge it in time; they may still follow.
        failures: How often it has failed, as far as its publishers have told.
        last_failures: The last ten of these, the newest last.
        suspended: Why nothing happens at present; empty while it is at work.
        stopped: Publishers at which its limit is reached, with how many messages each let through.
        subscription: What it delivers here, if it does.
        closing: Whether it is being removed, or was: nothing puts it into the topic's list again.
        closed: Whether it was removed.
    """

    def __init__(
        self, session: Reacting, identifier: RequestId, topic: str, reaction: Reaction, permanent: bool,
        functions: Sequence[Op], on_error: Callable[[Failure], Any] | None, *, found: bool = False,
    ) -> None:  # fmt: skip
        self._session = session
        self.id = identifier
        self.topic = topic
        self.operations = reaction.operations
        self._reaction = reaction
        self._permanent = permanent
        self._functions = functions
        self._on_error = Callback(session.engine, on_error) if on_error is not None else None
        self._printed = ("", "")
        self.silent: tuple[str, ...] = ()
        self.failures = 0
        self.last_failures: deque[Failure] = deque(maxlen=FAILURES_KEPT)
        self.suspended = reaction.suspended
        #: It was installed by somebody else, or by a session that is over.
        self._found = found
        self.stopped: dict[str, int] = {}
        self.subscription: Subscription | None = None
        self.closing = False
        self.closed = False

    @property
    def delivers(self) -> bool:
        """Whether messages come here from it."""
        return self._reaction.delivers

    @property
    def acks(self) -> bool:
        """Whether these have to be acknowledged."""
        return self._reaction.ack

    @property
    def shares(self) -> bool:
        """Whether members of its class are chosen by how busy they are."""
        return bool(self._reaction.group) and self._reaction.choice == LEAST_LOADED

    @property
    def has_callback(self) -> bool:
        """Whether somebody is to be told of failures."""
        return self._on_error is not None

    # ── by the session, under its lock ──

    def on_failed(self, publisher: str, report: ReactionFailed) -> None:
        """A publisher says that it failed."""
        message = None
        if report.body:
            try:
                args, fields = decode_body(report.body)
            except RemoteProtocolError:
                message = None
            else:
                message = Message(self.topic, publisher, 0, None, 0, args, fields)  # type: ignore[arg-type]
        suspends = report.suspended and not self.suspended and not self.closing
        failure = Failure(
            report.where or publisher, report.step, report.error, report.text, message, report.failures, suspends
        )  # fmt: skip
        self.failures += 1
        self.last_failures.append(failure)
        if self._on_error is not None:
            self._on_error.call_soon(failure)
        elif (report.error, report.text) != self._printed:
            # Further ones of the same kind would only fill the screen; the count is in `failures`.
            self._printed = (report.error, report.text)
            self._session.engine.call_soon(say, describe_failure(self.topic, self.operations, failure))
        if suspends:
            self.suspended = f"it failed {report.failures} times at {failure.publisher}, last with {failure.error}"
            if self._on_error is None:
                self._session.engine.call_soon(
                    say,
                    f"raskid: the reaction on {self.topic!r} is suspended: {self.suspended}. Mend what failed and call "
                    "its resume(), or close it",
                )
            self._put_state()

    def on_stopped(self, publisher: str, report: ReactionStopped) -> None:
        """A publisher says that its limit is reached."""
        self.stopped[publisher] = report.passed

    def _put_state(self) -> Future:
        """Under the lock: write it into the topic's list again, suspended or not."""
        session = self._session
        reaction = msgspec.structs.replace(self._reaction, suspended=self.suspended)
        return session.ask_quietly(
            PutRecord(
                session.request_id(), list_name(REACTIONS, self.topic), str(self.id), encode_reaction(reaction),
                self._permanent, SETTLE_S,
            )
        )  # fmt: skip

    # ── by the user ──

    def _check_open(self) -> None:
        if self.closing or self.closed:
            raise ValueError(f"the reaction on {self.topic!r} was closed")

    def _state(self, suspended: str) -> Steps[None]:
        session = self._session
        if self._found and (self._reaction.cleanup or self._reaction.metric or _has_code(self.operations)):
            # Publishers run no code of a record that somebody of a lower role has put.
            session.require(ROLE_EXECUTE, "a change of a reaction with code")
        with session.engine.lock:
            self._check_open()
            self.suspended = suspended
            put = self._put_state()
        yield put, SETTLE_S + ANSWER_S, f"the hub did not confirm a change of the reaction on {self.topic!r}"

    def _resuming(self) -> Steps[None]:
        if self._found and not self.suspended:
            # With its owner gone, each publisher at which it failed has suspended it by itself: the list says nothing
            # of that, and what is put as it is changes nothing.
            yield from self._state("to be resumed")
        yield from self._state("")

    def setting_value(self, value: Any) -> Steps[None]:
        """The steps of `set_value`."""
        reaction = msgspec.structs.replace(self._reaction, value=value)
        encode_reaction(reaction)
        with self._session.engine.lock:
            self._check_open()
            self._reaction = reaction
        yield from self._state(self.suspended)

    def suspend(self, why: str = "by its owner") -> None:
        """Let nothing of it happen until `resume`; returns when every present publisher has acknowledged that."""
        take_steps(self._state(check_text("why", why, 1000) or "by its owner"))

    def resume(self) -> None:
        """Let it happen again."""
        take_steps(self._resuming())

    def set_value(self, value: Any) -> None:
        """Say something else of itself: what `value` of `react` said. In a class whose choice goes by it, messages
        published after this returns do. What is under way goes on.

        Raises:
            ValueNotSendable: It is of a kind that messages do not carry.
            ValueError: The reaction was closed.
            WaitTimeout: The hub did not answer.
        """
        take_steps(self.setting_value(value))

    async def asuspend(self, why: str = "by its owner") -> None:
        """As `suspend`, for asyncio."""
        await take_steps_in(self._state(check_text("why", why, 1000) or "by its owner"))

    async def aresume(self) -> None:
        """As `resume`, for asyncio."""
        await take_steps_in(self._resuming())

    async def aset_value(self, value: Any) -> None:
        """As `set_value`, for asyncio."""
        await take_steps_in(self.setting_value(value))

    def _closing(self, timeout: float) -> Steps[None]:
        seconds = check_seconds("timeout", timeout)
        if self.closed:
            return
        session = self._session
        request = DeleteRecord(session.request_id(), list_name(REACTIONS, self.topic), str(self.id), seconds)
        try:
            with session.engine.lock:
                # Together: nothing is put behind the end.
                self.closing = True
                deleted = session.ask(request)
            yield deleted, seconds + ANSWER_S, f"the hub did not confirm the end of a reaction on {self.topic!r}"
        finally:
            self.ended()

    def ended(self) -> None:
        """It was removed, or did not come about."""
        with self._session.engine.lock:
            self.closing = self.closed = True
            self._session.reaction_handles.pop(self.id, None)
        if self.subscription is not None:
            self.subscription.ended()

    def close(self, timeout: float = SETTLE_S) -> None:
        """Remove it; when this returns, no publisher does anything for it any more, and its clean-up has begun."""
        take_steps(self._closing(timeout))

    async def aclose(self, timeout: float = SETTLE_S) -> None:
        """As `close`, for asyncio."""
        await take_steps_in(self._closing(timeout))

    def __enter__(self) -> ReactionHandle:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> ReactionHandle:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __getattr__(self, name: str) -> Any:
        if name in CALLS:
            raise AttributeError(
                f"the reaction on {self.topic!r} is installed: {shown(self.operations)}; so .{name}() cannot follow. "
                "The calls .forward(), .set(), .keep(), .run(), .done() and .deliver() install a reaction, and stand "
                f"last. For both, install a second one with rk.react({self.topic!r})"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"suspended ({self.suspended})" if self.suspended else "at work"
        return f"<raskid.ReactionHandle on {self.topic!r}: {shown(self.operations)}, {state}>"


def shown(operations: Sequence[Operation]) -> str:
    """A chain, as people read it."""
    return " | ".join(_shown(operation) for operation in operations)


def _has_code(operations: Sequence[Operation]) -> bool:
    return any(operation.op == CODE for operation in operations)


def _shown(operation: Operation) -> str:
    if operation.op == CODE:
        return f"map({operation.fields.get('name') or operation.args[0]})"
    parts = [f"{value!r:.60}" for value in operation.args]
    parts += [f"{name}={value!r:.60}" for name, value in operation.fields.items()]
    return f"{operation.op}({', '.join(parts)})" if parts else operation.op


def describe_failure(topic: str, operations: Sequence[Operation], failure: Failure) -> str:
    """What to print when nobody has asked to be told."""
    where = "its clean-up or metric"
    if 0 <= failure.operation < len(operations):
        where = f"operation {failure.operation}, {_shown(operations[failure.operation])}"
    message = "" if failure.message is None else f"; the message was {failure.message!r:.200}"
    hint = ""
    if failure.error == "TypeError" and "unexpected keyword argument" in failure.text:
        hint = ". A function gets all of a message's values: put .choose('u') before it, or take **fields"
    return (
        f"raskid: the reaction on {topic!r} failed at {failure.publisher} in {where}: {failure.error}: "
        f"{failure.text}{message}{hint}"
    )


def reaction_facts(record: str, owner: str, value: bytes) -> dict[str, Any]:
    """What a list says of one reaction, for people."""
    reaction = decode_reaction(value)
    return {
        "id": record,
        "owner": reaction.target.peer,
        "operations": shown(reaction.operations),
        "priority": reaction.priority,
        "class": reaction.group,
        "value": reaction.value,
        "permanent": not owner,
        "suspended": reaction.suspended,
    }
