"""Reactions, as a user puts them together: what is to be done with a topic's messages, where they are published.

`Session.react` gives a `Draft`. Its calls add operations of the table (`docs/operations.md`), and those that say where
messages go install the reaction and give a `ReactionHandle` (`raskid.client.handles`). Code travels as code objects,
like the functions of tasks, and is put to the head once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from raskid.client.checks import (
    check_callable,
    check_count,
    check_flag,
    check_name,
    check_seconds,
    check_text,
)
from raskid.client.declarations import check_of
from raskid.client.handles import CALLS, Failure, ReactionHandle, shown
from raskid.client.messages import ANSWER_S, Message
from raskid.client.waiting import Steps, take_steps, take_steps_in
from raskid.core.operations import check_operation
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
    REDUCE,
    SAMPLE,
    SET,
    Operation,
)
from raskid.model.topics import CELLS, REACTIONS, list_name
from raskid.protocol.messages import Code, PutRecord
from raskid.protocol.reactions import (
    AT_HELPER,
    AT_PUBLISHER,
    BLOCK,
    BY_METRIC,
    CAPACITY_MAX,
    CHOICES,
    OPERATIONS_MAX,
    OVERFLOWS,
    PRIORITY_MAX,
    ROUND_ROBIN,
    SECONDS_MAX,
    Reaction,
    encode_reaction,
)

if TYPE_CHECKING:
    from raskid.client.reacting import Reacting

GROUP_CHARS_MAX = 255
LIMIT_MAX = 1 << 53
FILTER_FORM = '.filter("a", ">", 3), .filter(("a", ">", 3), ("b", "<", 2)) or .filter(kind="mesh")'

#: What a method's argument of that name hides.
builtin_type = type


class Op:
    """A function with bound arguments, as an operation: what `Session.op` gives."""

    def __init__(self, session: Reacting, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> None:
        check_callable("function", function)
        code: Code = session.code_of(function)
        #: Kept alive: what is known of a function goes with it.
        self.function = function
        self.code = code
        self.operation = Operation(
            CODE,
            (code.code, LANGUAGE, LANGUAGE_VERSION),
            {"args": list(args), "fields": dict(kwargs), "name": code.name},
        )

    def __repr__(self) -> str:
        return f"<raskid.Op {self.code.name}>"


P = ParamSpec("P")
T = TypeVar("T")


def _forgets(call: Callable[Concatenate[Draft, P], T]) -> Callable[Concatenate[Draft, P], T]:
    """A call of a draft after whose error nobody need be warned that nothing was installed."""

    @wraps(call)
    def wrapper(draft: Draft, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(draft, *args, **kwargs)
        except BaseException:
            draft.forget()
            raise

    return wrapper


class Draft:
    """A reaction that is being put together; see `Session.react`. Nothing happens before it is installed."""

    def __init__(
        self, session: Reacting, topic: str, *, priority: int, value: Any, limit: int, one_of: str, choose_by: Any,
        ack: bool, place: str, seconds: float, cleanup: Any, permanent: bool,
        on_error: Callable[[Failure], Any] | None, timeout: float, in_loop: bool,
    ) -> None:  # fmt: skip
        self._session = session
        self._topic = check_name(topic)
        self._ops: list[Operation] = []
        self._functions: list[Op] = []
        self._priority = check_count("priority", priority, -PRIORITY_MAX, PRIORITY_MAX)
        self._value = value
        self._limit = check_count("limit", limit, 0, LIMIT_MAX)
        self._group = check_text("one_of", one_of, GROUP_CHARS_MAX)
        self._ack = check_flag("ack", ack)
        self._permanent = check_flag("permanent", permanent)
        self._seconds = check_seconds("seconds", seconds)
        self._timeout = check_seconds("timeout", timeout)
        self._in_loop = in_loop
        if not 0 < self._seconds <= SECONDS_MAX:
            raise ValueError(f"seconds is above 0 and up to {SECONDS_MAX:g}, got {seconds!r}")
        if place not in ("publisher", AT_HELPER):
            raise ValueError(f"place is 'publisher' or 'helper', got {place!r:.60}")
        self._place = AT_PUBLISHER if place == "publisher" else AT_HELPER
        if on_error is not None:
            check_callable("on_error", on_error)
        self._on_error = on_error
        self._cleanup = self._code("cleanup", cleanup).operation if cleanup is not None else None
        self._choice, self._metric = self._read_choice(choose_by)
        if (self._ack or choose_by is not None) and not self._group:
            raise ValueError("ack and choose_by are for a class of reactions; name it with one_of=")
        if self._ack and self._place == AT_HELPER:
            raise ValueError("a reaction with ack=True runs at the publisher: the helper cannot acknowledge for it")
        self._installed = False
        #: Only now: one whose arguments cannot be used is nobody's to install.
        self._missed = True

    def _read_choice(self, choose_by: Any) -> tuple[str, Operation | None]:
        if choose_by is None:
            return ROUND_ROBIN, None
        if isinstance(choose_by, str):
            if choose_by not in CHOICES or choose_by == BY_METRIC:
                known = ", ".join(repr(choice) for choice in CHOICES if choice != BY_METRIC)
                raise ValueError(f"choose_by is one of {known}, or a function, got {choose_by!r:.60}")
            return choose_by, None
        return BY_METRIC, self._code("choose_by", choose_by).operation

    def _code(self, name: str, function: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Op:
        if isinstance(function, Op):
            if args or kwargs:
                raise TypeError(f"{name}: rk.op(...) has its arguments already; give them there")
            op = function
        else:
            check_callable(name, function)
            op = Op(self._session, function, args, kwargs or {})
        self._functions.append(op)
        return op

    def _add(self, op: str, args: tuple[Any, ...] = (), fields: dict[str, Any] | None = None) -> Draft:
        return self.add(Operation(op, args, fields or {}))

    @_forgets
    def add(self, operation: Operation | Op) -> Draft:
        """Add an operation as data, or one of `Session.op`.

        Raises:
            TypeError, ValueError: An argument of it cannot be used; the text names it.
        """
        self._still_open()
        if isinstance(operation, Op):
            operation = self._code("operation", operation).operation
        if not isinstance(operation, Operation):
            raise TypeError(
                f"an operation is a function, or comes from rk.op(function, ...), got {operation!r:.60}. All others "
                f"are calls, as in rk.react({self._topic!r}).filter(...).forward(...): {', '.join(CALLS)}"
            )
        if len(self._ops) >= OPERATIONS_MAX - 1:
            raise ValueError(f"a reaction has at most {OPERATIONS_MAX} operations")
        check_operation(operation)
        if operation.op == KEEP and any(each.op == KEEP for each in self._ops):
            raise ValueError("a reaction keeps once at most; make a second one for another keep()")
        self._ops.append(operation)
        return self

    @_forgets
    def add_all(self, operations: Sequence[Any]) -> Draft:
        """Add what `Session.react` is given: functions, what `Session.op` gives, operations as data."""
        for operation in operations:
            if callable(operation) and not isinstance(operation, Op):
                self.map(operation)
            else:
                self.add(operation)
        return self

    def forget(self) -> None:
        """Nobody need be warned when it is not installed."""
        self._missed = False

    def _still_open(self) -> None:
        if self._installed:
            raise ValueError(f"the reaction on {self._topic!r} is installed already; begin another with rk.react(...)")

    # ── what becomes of a message ──

    @_forgets
    def filter(self, *conditions: Any, **equal: Any) -> Draft:
        """Let only messages pass for which all conditions hold.

        Args:
            conditions: One condition as three arguments, ``filter("step", ">", 100)``, or several as tuples. The
                operators are == != < <= > >= in, not in, has; a whole number stands for a positional value.
            equal: Fields with the values that they must have.
        """
        self._still_open()
        if len(conditions) == 3 and isinstance(conditions[1], str) and not isinstance(conditions[0], list | tuple):
            conditions = (conditions,)
        given = tuple(list(each) if isinstance(each, list | tuple) else each for each in conditions)
        operation = Operation(FILTER, given, equal)
        try:
            check_operation(operation)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{error}. The form is {FILTER_FORM}") from None
        return self.add(operation)

    @_forgets
    def choose(self, *names: str, positional: bool = False) -> Draft:
        """Go on with these fields only, in this order; with the positional values too if `positional`."""
        return self._add(CHOOSE, names, {"positional": True} if positional else {})

    @_forgets
    def check(self, type: Any = None, min: Any = None, max: Any = None, shape: Any = None, name: Any = None) -> Draft:
        """Fail for a message whose value (or field `name`) is not of this type, in this range, of this shape."""
        kind = type.__name__ if isinstance(type, builtin_type) else type
        fields = {"type": "array" if kind == "ndarray" else kind, "min": min, "max": max, "shape": shape, "name": name}
        return self._add(CHECK, (), {key: value for key, value in fields.items() if value is not None})

    @_forgets
    def map(self, function: Any, *args: Any, **kwargs: Any) -> Draft:
        """Call `function(*values, *args, **fields, **kwargs)` with each message, which its result takes the place of.

        A dict with text for all keys gives named fields, None ends the message's way, all else is the one value.
        Arguments bound here are what messages carry.
        """
        self._still_open()
        return self.add(self._code("function", function, args, kwargs).operation)

    @_forgets
    def sample(self, every: int | None = None, rate: float | None = None) -> Draft:
        """Let pass the first and then every so-manieth message, or at most `rate` in a second."""
        return self._add(SAMPLE, (), {k: v for k, v in (("every", every), ("rate", rate)) if v is not None})

    @_forgets
    def reduce(
        self, how: Any = "mean", name: Any = None, *, count: int | None = None, seconds: float | None = None
    ) -> Draft:
        """Reduce windows of `count` messages or of `seconds`: sum, mean, min, max, first, last, count, or a list of
        these, which gives a field for each. `name`: of which field; otherwise of the value."""
        given = (("how", how), ("name", name), ("count", count), ("seconds", seconds))
        return self._add(REDUCE, (), {key: value for key, value in given if value is not None})

    @_forgets
    def gather(self, count: int | None = None, seconds: float | None = None) -> Draft:
        """Collect messages into one that holds a list of theirs."""
        return self._add(GATHER, (), {k: v for k, v in (("count", count), ("seconds", seconds)) if v is not None})

    @_forgets
    def consume(self) -> Draft:
        """Keep the message from the reactions that come after this one."""
        return self._add(CONSUME)

    # ── where it goes: adds an operation, and installs ──

    @_forgets
    def forward(self, topic: Any) -> Any:
        """Publish what comes out on another topic, or into a channel. Installs the reaction.

        What a channel's handle declares is checked first. A name is taken as it is: what may be declared for a channel
        of that name is checked by its readers only, and a cell of that name is not set (see `set`).
        """
        name = check_name(getattr(topic, "topic", topic))
        return self._check_for(topic)._add(FORWARD, (name,)).install()

    def _check_for(self, end: Any) -> Draft:
        """Check what comes out by what is declared for the channel or cell that it is for, as far as that is known."""
        check = check_of(end)
        return self if check is None else self.add(check)

    @_forgets
    def set(self, cell: Any, permanent: bool | None = None) -> Any:
        """Set a cell (a handle, or the name of one) to what comes out. Installs the reaction.

        While the hub sets one value, only the latest of further ones is kept. A value goes with its publisher unless
        `permanent`; a handle says so itself. What a handle declares is checked first; for a name, and for what is
        declared later, only the cell's readers check.
        """
        if isinstance(cell, str):
            address: Any = (list_name(CELLS, check_name(cell)), "value")
            stays = True
        else:
            address, stays = getattr(cell, "address", None), getattr(cell, "permanent", True)
            if address is None:
                raise TypeError(f"set() takes a cell or the name of one, got {cell!r:.60}")
        stays = check_flag("permanent", permanent) if permanent is not None else stays
        return self._check_for(cell)._add(SET, tuple(address), {"permanent": stays}).install()

    @_forgets
    def keep(
        self, count: int | None = None, seconds: float | None = None, *, bytes: int | None = None, basket: str = ""
    ) -> Any:
        """Keep the last messages at their publisher, for those who subscribe later with ``history=``. Installs it.

        Args:
            count: How many.
            seconds: How long.
            bytes: How many bytes of them at most; default 64 MiB.
            basket: The name of a basket that gets them when their publisher leaves. If the whole topic is kept, with
                no other operation, `limit` or class, the basket keeps it itself from now on, with these limits for all
                publishers together, unless it does already. So it has also the messages of those who do not get to
                leave, such as the runners of tasks, and goes on when this reaction is removed.
        """
        given = (("count", count), ("seconds", seconds), ("bytes", bytes), ("basket", basket or None))
        whole = not self._ops and not self._limit and not self._group
        self._add(KEEP, (), {key: value for key, value in given if value is not None})
        if not basket or not whole:
            return self.install()
        steps = self._keeping_too(basket, count, seconds, bytes)
        return take_steps_in(steps) if self._in_loop else take_steps(steps)

    def _keeping_too(
        self, basket: str, count: int | None, seconds: float | None, size: int | None
    ) -> Steps[ReactionHandle]:  # fmt: skip
        """Have a basket keep the topic, and then install the reaction."""
        from raskid.client.baskets import keep_new

        session: Any = self._session
        try:
            # What is wrong with it is said before the basket is told.
            self._reaction(1024, BLOCK, False, 0)
            yield from keep_new(session, basket, self._topic, count, seconds, size, self._timeout)
        except BaseException:
            self.forget()
            raise
        return (yield from self.installing(None, 1024, BLOCK, False, 0))

    def run(self) -> Any:
        """Nothing more is to be done with what comes out. Installs the reaction."""
        return self.install()

    @_forgets
    def done(self, callback: Callable[[Message], Any], *, capacity: int = 1024, overflow: str = BLOCK) -> Any:
        """Have what comes out sent here, and `callback(message)` called with it. Installs the reaction."""
        check_callable("callback", callback)
        return self._deliver(callback, capacity, overflow)

    @_forgets
    def deliver(self, *, capacity: int = 1024, overflow: str = BLOCK) -> Any:
        """Have what comes out sent here; iterate over the handle's `subscription`. Installs the reaction."""
        return self._deliver(None, capacity, overflow)

    def _deliver(self, callback: Callable[[Message], Any] | None, capacity: int, overflow: str) -> Any:
        return self._add(DELIVER).install(callback, capacity, overflow)

    @_forgets
    def install(
        self, callback: Callable[[Message], Any] | None = None, capacity: int = 1024, overflow: str = BLOCK,
        numbered: bool = False, history: int = 0,
    ) -> Any:  # fmt: skip
        """Install the reaction as it is; gives a `ReactionHandle`, in asyncio to be awaited.

        Raises:
            ValueError: There is nothing to do, or an argument cannot be used.
            ValueNotSendable: A bound argument is of a kind that messages do not carry.
            NotAllowed: Code needs the role "execute".
            WaitTimeout: The hub did not answer.
        """
        steps = self.installing(callback, capacity, overflow, numbered, history)
        return take_steps_in(steps) if self._in_loop else take_steps(steps)

    def installing(
        self, callback: Callable[[Message], Any] | None, capacity: int, overflow: str, numbered: bool, history: int
    ) -> Steps[ReactionHandle]:  # fmt: skip
        """The steps of `install`."""
        self._still_open()
        self._installed = True
        self.forget()
        reaction = self._reaction(capacity, overflow, numbered, history)
        session = self._session
        handle = ReactionHandle(
            session, session.request_id(), self._topic, reaction, self._permanent, self._functions, self._on_error
        )
        record = encode_reaction(reaction)
        futures = [session.ask(request) for request in session.codes_to_put(self._functions)]
        session.add_reaction(handle, callback, capacity)
        what = f"the hub did not confirm a reaction on {self._topic!r}"
        try:
            put = session.ask(
                PutRecord(
                    session.request_id(), list_name(REACTIONS, self._topic), str(handle.id), record, self._permanent,
                    self._timeout,
                )
            )  # fmt: skip
            for future in futures:
                yield future, self._timeout + ANSWER_S, what
            reply = yield put, self._timeout + ANSWER_S, what
        except BaseException:
            session.give_up_reaction(handle)
            raise
        session.codes_were_put(self._functions)
        handle.silent = reply.silent
        if handle.subscription is not None:
            handle.subscription.silent = reply.silent
        return handle

    def _reaction(self, capacity: int, overflow: str, numbered: bool, history: int) -> Reaction:
        if not self._ops:
            raise ValueError(
                f"the reaction on {self._topic!r} does nothing: add operations, such as .map(function), and say where "
                "messages go, such as .forward(topic) or .done(callback)"
            )
        if self._place == AT_HELPER and (history or any(operation.op in (CONSUME, KEEP) for operation in self._ops)):
            raise ValueError(
                "consume(), keep() and history= are for reactions at the publisher; a helper gets messages only later"
            )
        if overflow not in OVERFLOWS:
            raise ValueError(f"overflow is one of {', '.join(OVERFLOWS)}, got {overflow!r:.60}")
        delivers = any(operation.op == DELIVER for operation in self._ops)
        if self._permanent and delivers:
            raise ValueError(
                "a permanent reaction outlives this process, so that it cannot deliver here; let it forward, set a "
                "cell or keep"
            )
        if self._ack and (not delivers or overflow != BLOCK):
            raise ValueError("ack=True is for a reaction that delivers here, with overflow 'block'")
        return Reaction(
            self._session.peer.own_ref, tuple(self._ops), check_count("capacity", capacity, 1, CAPACITY_MAX),
            str.__str__(overflow), self._priority, self._limit, self._group, self._choice, self._metric, self._ack,
            numbered or self._ack, check_count("history", history, -1, CAPACITY_MAX),
            self._place, self._seconds, self._cleanup, self._value,
        )  # fmt: skip

    def __del__(self) -> None:
        # It is missing where the constructor has raised.
        if getattr(self, "_missed", False):
            warnings.warn(
                f"the reaction on {self._topic!r} was never installed: end it with .forward(topic), .set(cell), "
                ".keep(...), .done(callback), .deliver() or .run()",
                RuntimeWarning,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        return f"<raskid.Draft of a reaction on {self._topic!r}: {shown(self._ops)}>"
