"""What users hold of messages: the messages themselves, and subscriptions."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from raskid.client.callbacks import Callback
from raskid.client.checks import check_limit, check_seconds
from raskid.client.futures import Future
from raskid.client.loops import running_loop
from raskid.client.waiting import Steps, result_in, result_of, take_steps, take_steps_in
from raskid.core.effects import Arrived
from raskid.core.events import Unsubscribed
from raskid.model.errors import SessionClosed, WaitTimeout, WrongThread
from raskid.model.ids import PeerId, RequestId
from raskid.model.topics import REACTIONS, list_name
from raskid.protocol.messages import DeleteRecord, PutRecord
from raskid.protocol.reactions import Reaction, encode_reaction
from raskid.protocol.values import decode_body

if TYPE_CHECKING:
    import asyncio

    from raskid.client.topics import Topics

#: How much longer than it was asked to the hub may take to answer.
ANSWER_S = 5.0
#: How long a change waits for publishers to acknowledge it.
SETTLE_S = 5.0


class Message(msgspec.Struct, eq=False):
    """One published message.

    Attributes:
        topic: Where it was published.
        publisher: The id of the peer that published it.
        dropped: How many messages of that publisher the subscription's policy left out just before this one.
        number: Its number among those of its publisher and topic, from 1; 0 where numbers were not asked for.
        again: Whether another member of the class has had it already, and may have done what it asks for.

    One that is to be acknowledged (see `Subscription`) can be used with ``with``: it is done at the end of the block.
    Where the block raises it is not, even if its reader goes on; it is another member's when this one goes.
    """

    topic: str
    publisher: PeerId
    dropped: int
    _body: bytes | None
    #: How many messages the publisher gets credit for when this one has been taken.
    _credit: int = 0
    _args: tuple[Any, ...] = ()
    _fields: dict[str, Any] | None = None
    number: int = 0
    again: bool = False
    #: Who sent it, where that is not its publisher.
    _sender: PeerId | None = None
    #: Where it is to be acknowledged: the subscription, and whether only `done` does that.
    _subscription: Any = None
    _by_hand: bool = False

    def _open(self) -> None:
        if self._body is not None:
            self._args, self._fields = decode_body(self._body)
            self._body = None

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional values."""
        if self._body is not None:
            self._open()
        return self._args

    @property
    def fields(self) -> dict[str, Any]:
        """The named values."""
        self._open()
        if self._fields is None:
            self._fields = {}
        return self._fields

    @property
    def value(self) -> Any:
        """The first positional value, or None."""
        self._open()
        return self._args[0] if self._args else None

    def __getitem__(self, name: str) -> Any:
        """The named value `name`.

        Raises:
            KeyError: The message has none of that name.
            TypeError: It is looked up by something else than a name.
        """
        fields = self.fields
        if not isinstance(name, str):
            raise TypeError(
                f"the values of a message are looked up by name, got {name!r:.60}; this one on {self.topic!r} has "
                f"{len(self.args)} without a name, in .args"
            )
        try:
            return fields[name]
        except KeyError:
            known = f"its fields are {', '.join(map(repr, fields))}" if fields else "it has no fields"
            raise KeyError(f"a message on {self.topic!r} has no field {name!r:.60}; {known}") from None

    def done(self) -> None:
        """Where messages are acknowledged: its reader is through with it. Otherwise, and a second time, nothing."""
        if self._subscription is not None:
            self._subscription.acknowledge(self.publisher, self.number)

    def __enter__(self) -> Message:
        self._by_hand = True
        return self

    def __exit__(self, *error: object) -> None:
        if not error or error[0] is None:
            self.done()

    def __repr__(self) -> str:
        return f"<raskid.Message {self.topic!r} args={self.args!r} fields={self.fields!r}>"


class Reader:
    """One reader of a subscription whose messages are acknowledged: a loop, or the calls on the subscription itself."""

    __slots__ = ("_subscription", "before")

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        #: What it took last, with which it is through when it wants the next.
        self.before: Message | None = None

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        message = self._subscription.take(None, self)
        if message is None:
            raise StopIteration
        return message

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        return await self._subscription.take_in(self)


class Subscription:
    """Messages of a topic: iterate over it (``for`` or ``async for``), or give a callback.

    Several threads, or several coroutines, may read one subscription: each message goes to one of them. Leave it with
    `close`, or ``with``; in asyncio with ``await subscription.aclose()``, or ``async with``.

    Where messages are acknowledged (``ack=True``), one of them is done when `Message.done` says so, or its ``with``
    block ends, or its callback has returned, or its reader wants the next one. Each ``for`` and ``async for`` is a
    reader of its own; calls on the subscription itself (`get`, ``next``, ``anext``) are one reader all together,
    whichever thread or task makes them. So several readers have a loop each. What is not done when the subscription
    is closed, the last message of each reader too, is for another member of the class.

    Attributes:
        topic: The topic's name.
        capacity: How many messages of one publisher may wait here.
        silent: Publishers that did not acknowledge the subscription in time; they may still follow.
        dropped: How many messages were left out so far, by the policy.
        closed: Whether nothing more will come.
        by_hand: Set before reading: only `Message.done` and `acknowledge` say that a message is done.
    """

    def __init__(
        self,
        session: Topics,
        identifier: RequestId,
        topic: str,
        capacity: int,
        callback: Callable[[Message], Any] | None,
        pulls: bool = False,
        acks: bool = False,
        shares: bool = False,
    ) -> None:
        self._session = session
        self.id = identifier
        self.topic = topic
        self.capacity = capacity
        self.silent: tuple[str, ...] = ()
        self.dropped = 0
        self.closed = False
        #: The reaction that it comes from, where its owner has a handle on that.
        self.handle: Any = None
        #: What the topic's list has of it, where there is no handle.
        self.reaction: Reaction | None = None
        #: Messages come only when somebody asks for them: from these publishers, and of them these were asked.
        self._pulls = pulls
        self._publishers: dict[PeerId, None] = {}
        self._asked: set[PeerId] = set()
        self._wanted = False
        #: Messages are to be acknowledged: those that readers and the callback have, by publisher and number. The
        #: session's lock guards it.
        self._acks = acks
        self._held: dict[tuple[str, int], Message] = {}
        #: Whoever reads by calls on this object.
        self._reader = Reader(self)
        self.by_hand = False
        #: Told of introductions, if somebody wants to know from which number on messages come.
        self.on_introduced: Callable[[PeerId, int], None] | None = None
        #: The session ended before the subscription did.
        self._orphaned = False
        self._callback = Callback(session.engine, callback) if callback is not None else None
        #: How many messages of each publisher came since the last one that carries credit. A publisher hears of what
        #: was taken in batches; until then its credit only looks smaller than it is. Of one that shares messages with
        #: others it hears at once: it may go by how many each has before it.
        self._uncredited: dict[PeerId, int] = {}
        self._batch = 1 if shares else max(1, capacity // 2)
        #: The session's lock guards what is added; taking one message off is atomic by itself.
        self._messages: deque[Message] = deque()
        #: The session's lock guards it.
        self._waiters: deque[asyncio.Future[None]] = deque()

    # ── by the session, under its lock ──

    def arrived(self, arrived: Arrived) -> None:
        """Messages came."""
        topic, publisher, dropped = arrived.topic, arrived.publisher, arrived.dropped
        messages = [Message(topic, publisher, 0, body) for body in arrived.bodies]
        if not messages:
            self._introduced(arrived)
            return
        if arrived.numbers or arrived.on_behalf or arrived.again or self._pulls:
            self._add_facts(messages, arrived)
        if dropped:
            self.dropped += dropped
            messages[0].dropped = dropped
        if not (self._acks or self._pulls):
            self._count_credit(messages, publisher)
        if self._callback is not None:
            if self._acks:
                self._held.update(((message.publisher, message.number), message) for message in messages)
            self._callback.call_each([(message,) for message in messages], self._through)
            return
        self._messages.extend(messages)
        for _ in range(min(len(messages), len(self._waiters))):
            self._wake_one()

    def _count_credit(self, messages: list[Message], publisher: PeerId) -> None:
        """Note with which of these messages their publisher is to be given credit."""
        uncredited = self._uncredited.pop(publisher, 0)
        for at in range(self._batch - uncredited - 1, len(messages), self._batch):
            messages[at]._credit = self._batch
        if left := (uncredited + len(messages)) % self._batch:
            self._uncredited[publisher] = left

    def _add_facts(self, messages: list[Message], arrived: Arrived) -> None:
        """Note what is known of messages besides what is in them."""
        sender, numbers = arrived.publisher, arrived.numbers
        for at, message in enumerate(messages):
            if at < len(numbers):
                message.number = numbers[at]
            message.again = arrived.again
            if self._acks:
                message._subscription = self
            if arrived.on_behalf:
                message.publisher, message._sender = arrived.on_behalf, sender
        self._asked.discard(sender)
        self._wanted = False

    def _introduced(self, arrived: Arrived) -> None:
        """A publisher says that messages come from it, and from which number on."""
        publisher = arrived.publisher
        if self._pulls:
            self._publishers[publisher] = None
            if self._asked or self._waiters or self._wanted:
                self._ask(publisher)
        if self.on_introduced is not None and arrived.numbers:
            self.on_introduced(publisher, arrived.numbers[0])

    def _ask(self, publisher: PeerId) -> None:
        if publisher not in self._asked:
            self._asked.add(publisher)
            self._session.took(self, publisher, 1)

    def _ask_all(self) -> None:
        """Somebody wants a message: ask every publisher for one, unless that was done."""
        with self._session.engine.lock:
            if not self._messages and not self.closed:
                self._wanted = True
                for publisher in list(self._publishers):
                    self._ask(publisher)

    @property
    def has_callback(self) -> bool:
        """Whether messages go to a callback."""
        return self._callback is not None

    def publisher_ended(self, publisher: PeerId, dropped: int = 0) -> None:
        """A publisher sends nothing more."""
        self.dropped += dropped
        self._uncredited.pop(publisher, None)
        self._publishers.pop(publisher, None)
        self._asked.discard(publisher)

    def ended(self) -> None:
        """Nothing more will come: the subscription was closed, or the session has ended."""
        session = self._session
        with session.engine.lock:
            if self.closed:
                return
            self._orphaned = session.engine.failure is not None
            self.closed = True
            session.subscriptions.pop(self.id, None)
            if self._acks:
                # What is not done is for other members of the class.
                self._messages.clear()
                self._held.clear()
            while self._waiters:
                self._wake_one()
        if self.handle is not None:
            self.handle.ended()
        session.engine.tell(Unsubscribed(self.id))
        # Other threads may be waiting for a message of it.
        session.engine.rouse()

    def _wake_one(self) -> None:
        """Have one of the coroutines that wait look again."""
        while self._waiters:
            waiter = self._waiters.popleft()
            loop = waiter.get_loop()
            if loop is running_loop():
                if not waiter.done():
                    waiter.set_result(None)
                    return
            else:
                # A loop that was closed meanwhile has nobody left who waits.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._wake, waiter)
                    return

    def _wake(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)
            return
        with self._session.engine.lock:
            # It was cancelled on the way; the message is for another.
            if self._messages or self.closed:
                self._wake_one()

    # ── taking messages ──

    def _through(self, message: Message) -> None:
        """A reader has taken a message, or a callback is through with it."""
        if self._acks:
            if not message._by_hand:
                self.acknowledge(message.publisher, message.number)
        elif message._credit:
            self._session.took(self, message._sender or message.publisher, message._credit)

    def acknowledge(self, publisher: str, number: int) -> bool:
        """Where messages are acknowledged: whoever has this one is through with it. False: nobody has it."""
        with self._session.engine.lock:
            message = self._held.pop((publisher, number), None)
        if message is None:
            return False
        self._session.handled(self, message._sender or message.publisher, message.number)
        return True

    def _finish(self, reader: Reader) -> None:
        """A reader wants the next message: it is through with the one before."""
        before, reader.before = reader.before, None
        if before is not None:
            self._through(before)

    def _pop_for(self, reader: Reader) -> Message:
        """The next message that is to be acknowledged."""
        # Under the lock no other call of the same reader comes in between.
        with self._session.engine.lock:
            self._finish(reader)
            message = self._messages.popleft()
            self._held[message.publisher, message.number] = message
            if not self.by_hand:
                reader.before = message
        return message

    def _pop(self, reader: Reader) -> Message | None:
        """The next message, if one is here."""
        messages = self._messages
        try:
            if self._acks:
                return self._pop_for(reader)
            if messages[0]._credit:
                return self._pop_credited()
            message = messages.popleft()
        except IndexError:
            return None
        if message._credit:
            # Another reader was faster.
            self._through(message)
        return message

    def _pop_credited(self) -> Message:
        # Under the lock no Ctrl-C comes in between, which would cost the publisher its credit.
        with self._session.engine.lock:
            message = self._messages.popleft()
            self._through(message)
        return message

    def _look(self) -> bool:
        return bool(self._messages) or self.closed

    # ── by the user ──

    def __iter__(self) -> Iterator[Message]:
        return Reader(self) if self._acks else self

    def __next__(self) -> Message:
        message = self._pop(self._reader) if self._callback is None else None
        if message is None:
            message = self.take(None, self._reader)
        if message is None:
            raise StopIteration
        return message

    def get(self, timeout: float | None = None) -> Message | None:
        """The next message; None once the subscription was closed and all its messages are taken.

        Args:
            timeout: How long to wait, in seconds; None: without limit.

        Raises:
            WaitTimeout: Nothing came within `timeout` seconds.
            SessionClosed: The session has ended, and with it the subscription. (A loop over the subscription ends.)
        """
        message = self.take(check_limit("timeout", timeout), self._reader)
        if message is None and self._orphaned:
            raise SessionClosed(f"no more messages on {self.topic!r}: {self._session.engine.failure}")
        return message

    def take(self, timeout: float | None, reader: Reader) -> Message | None:
        """As `get`, for one of several readers; None at the end of the session, too."""
        if self._callback is not None:
            raise TypeError(f"the messages on {self.topic!r} go to a callback; subscribe without one to read them")
        deadline = None if timeout is None else time.monotonic() + timeout
        while (message := self._pop(reader)) is None:
            if self._pulls:
                self._ask_all()
            if self.closed:
                # One that came just before the end is still to be taken.
                return self._pop(reader)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                if not self._session.engine.wait(self._look, left):
                    raise WaitTimeout(f"no message on {self.topic!r} within {timeout:g} s")
            except SessionClosed:
                if not self.closed:
                    raise
        return message

    def __aiter__(self) -> AsyncIterator[Message]:
        return Reader(self) if self._acks else self

    async def __anext__(self) -> Message:
        message = self._pop(self._reader) if self._callback is None else None
        return message if message is not None else await self.take_in(self._reader)

    async def take_in(self, reader: Reader) -> Message:
        """The next message for one of several readers, in asyncio; StopAsyncIteration at the end."""
        import asyncio

        if self._callback is not None:
            raise TypeError(f"the messages on {self.topic!r} go to a callback; subscribe without one to read them")
        lock = self._session.engine.lock
        while (message := self._pop(reader)) is None:
            if self._pulls:
                self._ask_all()
            with lock:
                if self._messages:
                    continue
                if self.closed:
                    raise StopAsyncIteration
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                with lock:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)
                    elif self._messages or self.closed:
                        # The message that woke this one is for another now.
                        self._wake_one()
                raise
        return message

    # ── what it says of itself ──

    def _valuing(self, value: Any) -> Steps[None]:
        if self.handle is not None:
            yield from self.handle.setting_value(value)
            return
        if self.reaction is None or self.closed:
            why = "was closed" if self.closed else "says nothing of itself"
            raise ValueError(f"the subscription to {self.topic!r} {why}, so that it has no value to set")
        session = self._session
        reaction = msgspec.structs.replace(self.reaction, value=value)
        record = encode_reaction(reaction)
        with session.engine.lock:
            self.reaction = reaction
            put = session.ask(
                PutRecord(session.request_id(), list_name(REACTIONS, self.topic), str(self.id), record, False, SETTLE_S)
            )
        yield put, SETTLE_S + ANSWER_S, f"the hub did not confirm the value of a subscription to {self.topic!r}"

    def set_value(self, value: Any) -> None:
        """Say something else of itself: what `value` of `subscribe` said. In a class whose choice is "by_value", or a
        function's, messages published after this returns go by it.

        Raises:
            ValueNotSendable: It is of a kind that messages do not carry.
            ValueError: The subscription was closed.
            WaitTimeout: The hub did not answer.
        """
        take_steps(self._valuing(value))

    async def aset_value(self, value: Any) -> None:
        """As `set_value`, for asyncio."""
        await take_steps_in(self._valuing(value))

    # ── the end ──

    def close_nowait(self, timeout: float = 5.0) -> Future:
        """As `close`, without waiting: the future is done when no publisher sends anything more. Messages are taken
        until `ended` is called."""
        session = self._session
        request = DeleteRecord(
            session.request_id(), list_name(REACTIONS, self.topic), str(self.id), check_seconds("timeout", timeout)
        )
        with session.engine.lock:
            if self.handle is not None:
                # Its reaction goes with it, and is not to be put again.
                self.handle.closing = True
            return session.ask(request)

    def _what(self) -> str:
        return f"the hub did not confirm the end of a subscription to {self.topic!r}"

    def close(self, timeout: float = 5.0) -> None:
        """Unsubscribe; when this returns, no publisher sends anything more. What has come can still be read.

        Args:
            timeout: How long to wait for publishers, in seconds.

        Raises:
            WrongThread: Called in the session's event loop; use ``await subscription.aclose()`` there.
            WaitTimeout: The hub did not answer.
        """
        timeout = check_seconds("timeout", timeout)
        if self.closed:
            return
        loop = self._session.engine.loop
        if loop is not None and loop is running_loop():
            raise WrongThread(
                f"close() of a subscription to {self.topic!r} would block the event loop that serves it; use "
                "`await subscription.aclose()`, or `async with`"
            )
        try:
            result_of(self.close_nowait(timeout), timeout + ANSWER_S, self._what())
        finally:
            self.ended()

    async def aclose(self, timeout: float = 5.0) -> None:
        """As `close`, for asyncio."""
        timeout = check_seconds("timeout", timeout)
        if self.closed:
            return
        try:
            await result_in(self.close_nowait(timeout), timeout + ANSWER_S, self._what())
        finally:
            self.ended()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        waiting = "called back" if self._callback is not None else f"{len(self._messages)} waiting"
        return f"<raskid.Subscription to {self.topic!r}: {state}, {waiting}, {self.dropped} dropped>"
