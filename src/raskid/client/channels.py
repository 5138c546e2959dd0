"""Channels, as a user holds them: a topic whose messages have one value each.

A handle that is only written to costs what publishing costs. One that is read subscribes when reading begins. The
blocking face and the one for asyncio share everything that does not wait, and what waits is written once as steps.
"""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, cast

from raskid.client.checks import check_callable, check_limit
from raskid.client.declarations import Gate
from raskid.client.futures import Future
from raskid.client.messages import ANSWER_S, Message, Subscription
from raskid.client.reading import Source, Values
from raskid.client.waiting import Steps, take_steps, take_steps_in
from raskid.core.events import UnwatchList
from raskid.model.errors import SessionClosed, WaitTimeout, WrongThread
from raskid.model.topics import CHANNELS, list_name
from raskid.protocol.values import LAZY

if TYPE_CHECKING:
    from raskid.client.session import Session
    from raskid.client.topics import Topics

#: How long to wait for publishers when reading begins, and when it ends.
SETTLE_S = 5.0


class Whole(dict[Any, Any]):
    """A dict that is itself the value: a plain one that `publish` gets from a function is taken as named fields."""


class ChannelHandle(Values, Source):
    """What the two faces of a channel have in common.

    Attributes:
        name: The channel's name.
        topic: The topic on which its values are published: the same name.
        closed: Whether this handle was closed.
    """

    def __init__(self, session: Topics, name: str, gate: Gate, capacity: int, overflow: str) -> None:
        self._session = session
        self.name = self.topic = name
        self._gate = gate
        self._capacity = capacity
        self._overflow = overflow
        self.closed = False
        #: What is read here and when its publishers have acknowledged it; None until reading begins.
        self._begun: tuple[Subscription, Future] | None = None
        #: The same subscription, once they have.
        self._reading: Subscription | None = None
        self._called: list[Subscription] = []

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"this handle on {self._gate.what} was closed; get another: rk.channel(...)")

    # ── writing ──

    def _heard(self) -> bool:
        """Whether a value has to be made: somebody reads, or it is not known yet who does."""
        plan = self._session.plan_of(self.topic)
        if self.closed:
            self._check_open()
        return plan is None or len(plan) > 0

    def _make(self, value: Any) -> Any:
        """The value to send, looked at only when somebody reads."""
        if callable(value) and isinstance(value, LAZY):
            value = value()
        self._gate.check(value)
        return Whole(value) if type(value) is dict else value

    def _maker(self, value: Any) -> Callable[[], Any]:
        return functools.partial(self._make, value)

    # ── reading ──

    @property
    def rejected(self) -> int:
        """How many values came that did not fit what is declared, and were left out."""
        return self._gate.rejected

    @property
    def dropped(self) -> int:
        """How many values were left out because this handle was not read fast enough, by its overflow policy."""
        found = [self._begun[0]] if self._begun is not None else []
        return sum(subscription.dropped for subscription in (*found, *self._called))

    def begin(self) -> Values:
        """Begin to read, without waiting: values from now on wait here."""
        with self._session.engine.lock:
            self._check_open()
            if self._begun is None:
                self._begun = self._session.subscribe_nowait(
                    self.topic, capacity=self._capacity, overflow=self._overflow, timeout=SETTLE_S
                )
        return self

    def _listening(self) -> Steps[Subscription]:
        """Begin to read, and wait for the publishers."""
        self.begin()
        begun = self._begun
        assert begun is not None
        subscription, future = begun
        try:
            reply = yield future, SETTLE_S + ANSWER_S, f"the hub did not confirm that {self._gate.what} is read here"
        except Exception:
            # Not for a coroutine that is cancelled: others may be waiting for the same.
            with self._session.engine.lock:
                if self._begun is begun:
                    self._begun = None
            self._session.give_up(subscription)
            raise
        subscription.silent = reply.silent
        self._reading = subscription
        return subscription

    def _open(self, message: Message) -> tuple[Any] | None:
        """The value of a message, or None for one that is left out."""
        return self._gate.admit(lambda: only_value(message))

    def take(self, timeout: float | None) -> tuple[Any] | None:
        """As `Values.take`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        subscription = self._reading or take_steps(self._listening())
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                message = subscription.get(left)
            except SessionClosed:
                return None
            except WaitTimeout:
                raise self.too_late(timeout or 0.0) from None
            if message is None:
                return None
            taken = self._open(message)
            if taken is not None:
                return taken

    async def take_in(self) -> tuple[Any] | None:
        """As `Values.take_in`."""
        subscription = self._reading
        if subscription is None:
            subscription = await take_steps_in(self._listening())
        async for message in subscription:
            taken = self._open(message)
            if taken is not None:
                return taken
        return None

    def at_end(self) -> NoReturn:
        """As `Values.at_end`."""
        self._check_open()
        self._session.engine.check_alive()
        raise SessionClosed(f"no more values on {self._gate.what}")

    def too_late(self, timeout: float) -> WaitTimeout:
        """As `Values.too_late`."""
        return WaitTimeout(f"no value on {self._gate.what} within {timeout:g} s")

    def _calling(self, callback: Callable[[Any], Any]) -> Steps[None]:
        """Have a callback called with each value from now on."""
        check_callable("callback", callback)
        self._check_open()

        def call(message: Message) -> Any:
            taken = self._open(message)
            return None if taken is None or self.closed else callback(taken[0])

        subscription, future = self._session.subscribe_nowait(
            self.topic, call, capacity=self._capacity, overflow=self._overflow, timeout=SETTLE_S
        )
        self._called.append(subscription)
        try:
            yield future, SETTLE_S + ANSWER_S, f"the hub did not confirm that {self._gate.what} is read here"
        except BaseException:
            self._called.remove(subscription)
            self._session.give_up(subscription)
            raise

    # ── the end ──

    def _closing(self) -> Steps[None]:
        session = self._session
        with session.engine.lock:
            if self.closed:
                return
            self.closed = True
            begun = [] if self._begun is None else [self._begun[0]]
        open_still = [subscription for subscription in (*begun, *self._called) if not subscription.closed]
        session.engine.tell(UnwatchList(list_name(CHANNELS, self.name)))
        try:
            for future in [subscription.close_nowait(SETTLE_S) for subscription in open_still]:
                yield future, SETTLE_S + ANSWER_S, f"the hub did not confirm the end of reading {self._gate.what}"
        finally:
            for subscription in open_still:
                subscription.ended()

    async def aclose(self) -> None:
        """Use this handle no longer, in asyncio; ``async with`` does this."""
        await take_steps_in(self._closing())

    def __aiter__(self) -> AsyncIterator[Any]:
        # What is published from here on waits until it is read.
        self.begin()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "written only" if self._begun is None and not self._called else "read"
        return f"<raskid.{type(self).__name__} {self.name!r}: {state}>"


class Channel(ChannelHandle):
    """A stream of values: what anybody puts into it, every reader gets, in the order of each writer.

    A handle is read from the moment that reading begins: with the first ``for``, ``async for``, `get`, `next` or
    `on_value`, or with `listen`. Several threads or coroutines that read one handle share its values; each
    `rk.channel(name)` gives a handle of its own. Leave it with `close`, or ``with``.
    """

    def put(self, value: Any) -> None:
        """Send a value to whoever reads the channel; costs one look-up when nobody does.

        A function, a lambda or a `functools.partial` is called only if somebody reads, and gives the value. It is
        checked then, too. While a reader with policy "block" is full, this waits for it, as `Session.publish` does.

        Raises:
            TypeError, ValueError: The value does not fit what is declared, or the handle was closed.
            ValueNotSendable: Messages do not carry it.
            Overflow: A reader stayed full for the limit of 30 s.
        """
        if self._heard():
            self._session.publish(self.topic, self._maker(value))

    def listen(self) -> Channel:
        """Begin to read now: values from here on wait until they are read. Returns the channel."""
        take_steps(self._listening())
        return self

    def get(self, timeout: float | None = None) -> Any:
        """The next value.

        Raises:
            WaitTimeout: Nothing came within `timeout` seconds.
            SessionClosed: The session has ended.
            ValueError: The handle was closed.
        """
        limit = check_limit("timeout", timeout)
        self._check_open()
        return self._get(limit)

    def on_value(self, callback: Callable[[Any], Any]) -> None:
        """Call `callback(value)` with each value from now on, one after the other, on the session's callback threads
        or in its event loop; it may be a coroutine function."""
        take_steps(self._calling(callback))

    def close(self) -> None:
        """Use this handle no longer; when this returns, nobody sends anything to it any more."""
        if self._session.engine.serves_this_thread():
            raise WrongThread(
                f"close() of {self._gate.what} would block the event loop that serves it; use `await "
                "channel.aclose()`, or `async with`"
            )
        take_steps(self._closing())

    def __iter__(self) -> Iterator[Any]:
        return self.listen()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Channel:
        return self


class AsyncChannel(ChannelHandle):
    """What ``await rk.channel(name)`` gives: a `Channel` whose calls are awaited."""

    async def put(self, value: Any) -> None:
        """As `Channel.put`."""
        if self._heard():
            from raskid.client.aio import AsyncSession

            await AsyncSession(cast("Session", self._session)).publish(self.topic, self._maker(value))

    async def listen(self) -> AsyncChannel:
        """As `Channel.listen`."""
        await take_steps_in(self._listening())
        return self

    async def get(self, timeout: float | None = None) -> Any:
        """As `Channel.get`; the same as `next`."""
        return await self.next(timeout)

    async def on_value(self, callback: Callable[[Any], Any]) -> None:
        """As `Channel.on_value`."""
        await take_steps_in(self._calling(callback))

    async def close(self) -> None:
        """As `Channel.close`."""
        await self.aclose()

    async def __aenter__(self) -> AsyncChannel:
        return self


def only_value(message: Message) -> Any:
    """The value of a message on a channel; raises ValueError for a message that has not exactly one."""
    args, fields = message.args, message.fields
    if len(args) != 1 or fields:
        raise ValueError(
            f"a message with {len(args)} values and {len(fields)} named ones is no value of a channel: it has "
            "exactly one"
        )
    return args[0]
