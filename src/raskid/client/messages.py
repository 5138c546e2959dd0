"""What users hold of messages: the messages themselves, subscriptions, shared lists."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from raskid.core.lists import UnwatchList
from raskid.core.messaging import Unsubscribed
from raskid.model.errors import SessionClosed, WaitTimeout
from raskid.model.ids import PeerId, RequestId
from raskid.model.topics import REACTIONS, SHARED, list_name
from raskid.protocol.messages import DeleteRecord, PutRecord
from raskid.protocol.values import decode_body, decode_value, encode_value

if TYPE_CHECKING:
    from raskid.client.session import Session


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Message:
    """One published message.

    Attributes:
        topic: Where it was published.
        publisher: The id of the peer that published it.
        dropped: How many messages of that publisher the subscription's policy left out just before this one.
    """

    __slots__ = ("_args", "_body", "_fields", "dropped", "publisher", "topic")

    def __init__(self, topic: str, publisher: PeerId, body: bytes, dropped: int) -> None:
        self.topic = topic
        self.publisher = publisher
        self.dropped = dropped
        self._body: bytes | None = body
        self._args: tuple[Any, ...] = ()
        self._fields: dict[str, Any] = {}

    def _open(self) -> None:
        if self._body is not None:
            self._args, self._fields = decode_body(self._body)
            self._body = None

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional values."""
        self._open()
        return self._args

    @property
    def fields(self) -> dict[str, Any]:
        """The named values."""
        self._open()
        return self._fields

    @property
    def value(self) -> Any:
        """The first positional value, or None."""
        self._open()
        return self._args[0] if self._args else None

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def __repr__(self) -> str:
        return f"<raskid.Message {self.topic!r} args={self.args!r} fields={self.fields!r}>"


class Subscription:
    """Messages of a topic: iterate over it (``for`` or ``async for``), or give a callback.

    Attributes:
        silent: Publishers that did not acknowledge the subscription in time; they may still follow.
        dropped: How many messages were left out so far, by the policy.
    """

    def __init__(
        self,
        session: Session,
        identifier: RequestId,
        topic: str,
        capacity: int,
        callback: Callable[[Message], Any] | None,
    ) -> None:
        self._session = session
        self.id = identifier
        self.topic = topic
        self.capacity = capacity
        self.silent: tuple[str, ...] = ()
        self.dropped = 0
        self.closed = False
        self._callback = callback
        self._taken: dict[PeerId, int] = {}
        self._batch = max(1, capacity // 4)
        self._messages: deque[Message] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()

    # ── by the session, under its lock ──

    def arrived(self, message: Message) -> None:
        """A message came."""
        self.dropped += message.dropped
        if self._callback is not None:
            self._session.engine.call_soon(self._call, message)
            return
        self._messages.append(message)
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break

    def publisher_ended(self, dropped: int) -> None:
        """A publisher sends nothing more."""
        self.dropped += dropped

    def _call(self, message: Message) -> None:
        assert self._callback is not None
        try:
            self._callback(message)
        finally:
            self._took(message)

    def _took(self, message: Message) -> None:
        # The publisher hears of it in batches; until then its credit only looks smaller than it is.
        taken = self._taken.get(message.publisher, 0) + 1
        if taken >= self._batch:
            self._taken[message.publisher] = 0
            self._session.took(self, message.publisher, taken)
        else:
            self._taken[message.publisher] = taken

    # ── by the user ──

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        message = self.get()
        if message is None:
            raise StopIteration
        return message

    def get(self, timeout: float | None = None) -> Message | None:
        """The next message; None once the subscription is closed and empty.

        Raises:
            WaitTimeout: Nothing came within `timeout` seconds.
        """
        messages = self._messages
        if not messages:
            engine = self._session.engine
            try:
                if not engine.wait(lambda: bool(messages) or self.closed, timeout):
                    raise WaitTimeout(f"no message on {self.topic!r} within {timeout:g} s")
            except SessionClosed:
                if not messages:
                    return None
            if not messages:
                return None
        message = messages.popleft()
        self._took(message)
        return message

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        while not self._messages:
            if self.closed:
                raise StopAsyncIteration
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        message = self._messages.popleft()
        self._took(message)
        return message

    def close(self, timeout: float = 5.0) -> None:
        """Unsubscribe; when this returns, no publisher sends anything more."""
        if self.closed:
            return
        session = self._session
        request = session.request_id()
        name = list_name(REACTIONS, self.topic)
        try:
            session.ask(DeleteRecord(request, name, str(self.id), timeout)).result(timeout + 5)
        finally:
            self.ended()

    def ended(self) -> None:
        """Nothing more will come."""
        self.closed = True
        session = self._session
        session.subscriptions.pop(self.id, None)
        if not session.engine.closing:
            session.engine.driver.handle(Unsubscribed(self.id))
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class SharedDict(MutableMapping[str, Any]):
    """A shared dictionary: every process sees the same records, and their changes in the same order.

    Records die with the process that wrote them, or are permanent (`put(key, value, permanent=True)`). Reading is
    local; writing returns when the hub has the change.
    """

    def __init__(self, session: Session, topic: str) -> None:
        self._session = session
        self.name = topic
        self._list = list_name(SHARED, topic)
        session.follow(self._list)

    @property
    def _records(self) -> dict[str, Any]:
        return self._session.replica(self._list).records

    @property
    def version(self) -> int:
        """The number of the last change seen here."""
        return self._session.replica(self._list).version

    def __getitem__(self, key: str) -> Any:
        with self._session.engine.lock:
            return decode_value(self._records[key].value)

    def owner(self, key: str) -> str:
        """The peer that wrote a record; empty for a permanent one."""
        return str(self._records[key].owner)

    def put(self, key: str, value: Any, permanent: bool = False, timeout: float = 10.0) -> None:
        """Write a record.

        Raises:
            NotAllowed: It belongs to another process.
        """
        session = self._session
        request = session.request_id()
        reply = session.ask(PutRecord(request, self._list, key, encode_value(value), permanent)).result(timeout)
        session.engine.wait(lambda: self.version >= reply.version, timeout)

    def __setitem__(self, key: str, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: str) -> None:
        if key not in self._records:
            raise KeyError(key)
        session = self._session
        reply = session.ask(DeleteRecord(session.request_id(), self._list, key)).result(10.0)
        session.engine.wait(lambda: self.version >= reply.version, 10.0)

    def __iter__(self) -> Iterator[str]:
        with self._session.engine.lock:
            return iter(list(self._records))

    def __len__(self) -> int:
        return len(self._records)

    def wait(self, condition: Callable[[SharedDict], bool], timeout: float | None = None) -> None:
        """Wait until `condition(self)` holds.

        Raises:
            WaitTimeout: It does not within `timeout` seconds.
        """
        if not self._session.engine.wait(lambda: condition(self), timeout):
            raise WaitTimeout(f"the condition on shared list {self.name!r} did not hold within {timeout:g} s")

    def on_change(self, callback: Callable[[SharedDict, str | None], Any]) -> None:
        """Call `callback(self, key)` after every change, in order; key is None for the first state."""
        self._session.list_callbacks.setdefault(self._list, []).append(lambda key: callback(self, key))

    def close(self) -> None:
        """Follow it no longer."""
        self._session.list_callbacks.pop(self._list, None)
        self._session.engine.send(UnwatchList(self._list))

    def __repr__(self) -> str:
        return f"<raskid.SharedDict {self.name!r}: {dict(self)!r}>"
