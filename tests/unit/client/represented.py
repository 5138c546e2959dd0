"""A session without a system, for the gateway: what it is asked is kept, and the tests decide what comes and when."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from raskid.client.messages import Message
from raskid.core.operations import check_operation
from raskid.model.errors import NotAllowed, RemoteError, SessionClosed, WaitTimeout
from raskid.model.operations import Operation
from raskid.protocol.values import decode_body, decode_value, encode_body, encode_value


class FakeSubscription:
    """Messages that `give` puts in; at most `capacity` may wait, as a publisher would see to."""

    def __init__(self, topic: str, **options: Any) -> None:
        self.topic = topic
        self.options = options
        self.by_hand = False
        self.open: set[tuple[str, int]] = set()
        self.silent = ("client-asleep",) if topic == "silent" else ()
        self.dropped = 0
        self.closed = False
        self.waiting: asyncio.Queue[Message | None] = asyncio.Queue()

    def give(
        self,
        *args: Any,
        dropped: int = 0,
        body: bytes | None = None,
        number: int = 0,
        again: bool = False,
        **fields: Any,
    ) -> None:
        """A message comes."""
        self.dropped += dropped
        body = encode_body(args, fields) if body is None else body
        self.waiting.put_nowait(Message(self.topic, "client-1", dropped, body, number=number, again=again))

    def acknowledge(self, publisher: str, number: int) -> bool:
        """The reader is through with a message."""
        found = (publisher, number) in self.open
        self.open.discard((publisher, number))
        return found

    async def aclose(self) -> None:
        self.end()
        if self.topic == "unconfirmed":
            raise WaitTimeout("the hub did not confirm the end of a subscription")

    def end(self) -> None:
        """Nothing more comes."""
        if not self.closed:
            self.closed = True
            self.waiting.put_nowait(None)

    def __aiter__(self) -> FakeSubscription:
        return self

    async def __anext__(self) -> Message:
        message = await self.waiting.get()
        if message is None:
            raise StopAsyncIteration
        if self.by_hand:
            self.open.add((message.publisher, message.number))
        return message


class FakeReaction:
    """A reaction, from its draft to its end; `on_error` is to be called with what goes wrong."""

    def __init__(self, topic: str, options: dict[str, Any]) -> None:
        self.topic = topic
        self.on_error = options.pop("on_error")
        self.options = options
        self.operations: list[Operation] = []
        self.forgotten = False
        self.state: list[str] = []
        self.silent = ()
        self.subscription: FakeSubscription | None = None

    def add(self, operation: Operation) -> None:
        check_operation(operation)
        self.operations.append(operation)

    def forget(self) -> None:
        self.forgotten = True

    async def install(self, callback: None, **manner: Any) -> FakeReaction:
        self.options.update(manner)
        if any(operation.op == "deliver" for operation in self.operations):
            self.subscription = FakeSubscription(self.topic)
        return self

    async def asuspend(self, why: str = "by its owner") -> None:
        self.state.append(f"suspended {why}")

    async def aresume(self) -> None:
        self.state.append("resumed")

    async def aclose(self) -> None:
        self.state.append("closed")
        if self.subscription is not None:
            self.subscription.end()


class FakeShared(dict[str, Any]):
    """A handle on a shared list; `changed` does what another process would do."""

    def __init__(self, name: str, records: dict[str, Any]) -> None:
        super().__init__(records)
        self.name = name
        self.closed = False
        self.callbacks: list[Any] = []
        self.writes: list[Any] = []

    def on_change(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def changed(self, key: str | None, value: Any = None, deleted: bool = False) -> None:
        """A record changes."""
        if deleted:
            self.pop(key or "", None)
        elif key is not None:
            self[key] = value
        for callback in self.callbacks:
            callback(self, key)

    async def put(self, key: str, value: Any, permanent: bool = False) -> None:
        if key == "another's":
            raise NotAllowed("it belongs to another process")
        self.writes.append((key, value, permanent))
        self.changed(key, decode_value(encode_value(value)))

    async def delete(self, key: str) -> None:
        if key not in self:
            raise KeyError(f"shared list {self.name!r} has no record {key!r}")
        self.changed(key, deleted=True)

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class FakeCell:
    """A handle on a cell, which is its own iterator."""

    def __init__(self, value: Any) -> None:
        self.values: asyncio.Queue[Any] = asyncio.Queue()
        self.written: list[Any] = []
        self.dropped = 0
        self.closed = False
        if value is not None:
            self.values.put_nowait((value,))

    def begin(self) -> FakeCell:
        return self

    async def set(self, value: Any) -> None:
        self.written.append(value)
        self.values.put_nowait((value,))

    async def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.values.put_nowait(None)

    def __aiter__(self) -> FakeCell:
        return self

    async def __anext__(self) -> Any:
        found = await self.values.get()
        if found is None:
            raise StopAsyncIteration
        return found[0]


class FakeSession:
    """Stands for an `AsyncSession`."""

    def __init__(self) -> None:
        self.published: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.requested: list[tuple[str, tuple[Any, ...], float, dict[str, Any]]] = []
        #: Publishes of these topics wait for their event.
        self.full: dict[str, asyncio.Event] = {}
        self.subscriptions: dict[str, FakeSubscription] = {}
        self.lists: dict[str, FakeShared] = {}
        self.records: dict[str, dict[str, Any]] = {}
        self.cells: dict[str, FakeCell] = {}
        self.handlers: dict[str, Any] = {}
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        identity = SimpleNamespace(peer="client-7")
        self.reacted: list[FakeReaction] = []
        self.session = SimpleNamespace(
            peer=SimpleNamespace(identity=identity), next_change=lambda name: asyncio.shield(self.end),
            require=self._require,
        )  # fmt: skip
        self.role = "execute"

    def _require(self, role: str, what: str) -> None:
        if self.role != role:
            raise NotAllowed(f"{what} needs the role {role!r}")

    def lose(self, text: str = "the system's head is gone") -> None:
        """The system ends."""
        self.end.set_exception(SessionClosed(text))
        for subscription in self.subscriptions.values():
            subscription.end()

    async def publish(self, topic: str, /, *args: Any, **fields: Any) -> None:
        if topic in self.full:
            await self.full[topic].wait()
        self.published.append((topic, *decode_body(encode_body(args, fields))))

    async def subscribe(self, topic: str, **options: Any) -> FakeSubscription:
        await asyncio.sleep(0)
        found = self.subscriptions[topic] = FakeSubscription(topic, **options)
        return found

    def react(self, topic: str, /, *operations: Any, **options: Any) -> FakeReaction:
        self.reacted.append(FakeReaction(topic, options))
        return self.reacted[-1]

    async def reaction(self, topic: str, identifier: str) -> FakeReaction:
        if identifier != "17":
            raise LookupError(f"there is no reaction {identifier!r} on {topic!r}")
        self.reacted.append(FakeReaction(topic, {"on_error": None}))
        return self.reacted[-1]

    async def reactions(self, topic: str) -> list[dict[str, Any]]:
        return [{"id": topic, "value": b"hi"}]

    async def shared(self, name: str) -> FakeShared:
        await asyncio.sleep(0)
        found = self.lists[name] = FakeShared(name, self.records.get(name, {}))
        return found

    async def cell(self, name: str) -> FakeCell:
        found = self.cells[name] = FakeCell(name if name == "has a value" else None)
        return found

    async def serve(self, name: str, handler: Any) -> None:
        await asyncio.sleep(0)
        self.handlers[name] = handler

    async def unserve(self, name: str) -> None:
        del self.handlers[name]

    async def request(self, name: str, /, *args: Any, timeout: float = 10.0, **fields: Any) -> Any:
        self.requested.append((name, args, timeout, fields))
        if name == "fails":
            raise RemoteError("ValueError: no", "ValueError", "a traceback")
        if name in self.full:
            await self.full[name].wait()
        return {"args": list(args), **fields}

    async def topics(self, prefix: str = "") -> dict[str, Any]:
        return {prefix + "x": {"version": 1, "records": 2, "readers": 3}}

    async def status(self) -> dict[str, Any]:
        return {"tasks": {}, "large": 2**60}


class FakeTeller:
    """Keeps events; has room unless it is told otherwise."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.open = asyncio.Event()
        self.open.set()

    @property
    def has_room(self) -> bool:
        return self.open.is_set()

    async def room(self) -> None:
        await self.open.wait()

    def tell(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def take(self) -> list[dict[str, Any]]:
        """The events so far, once each."""
        events, self.events = self.events, []
        return events
