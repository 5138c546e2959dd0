"""The asynchronous face: the same session, whose calls are awaited and whose IO the event loop drives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from raskid.client.futures import Future
from raskid.client.mapping import MapResult
from raskid.client.messages import Message, Subscription
from raskid.core.messaging import Announce
from raskid.model.topics import check_topic
from raskid.protocol.messages import AskStatus
from raskid.protocol.reactions import BLOCK

if TYPE_CHECKING:
    from raskid.client.session import SETTLE_S, Session
else:
    SETTLE_S = 5.0


class AsyncSession:
    """What ``async with raskid.connect(url)`` gives. Futures, subscriptions and maps are those of `Session`."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def url(self) -> str:
        """What another process gives to `raskid.connect`."""
        return self.session.url

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """As `Session.submit`; await the future."""
        return self.session.submit(function, *args, **kwargs)

    async def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """All values of `Session.map`."""
        import asyncio

        result: MapResult = self.session.map(function, *iterables)
        while not result.done():
            await asyncio.sleep(0.0005)
        return result.values(0)

    async def gather(self, futures: Iterable[Future]) -> list[Any]:
        """The values of futures, in order."""
        return [await future for future in futures]

    async def publish(self, topic: str, /, *args: Any, **fields: Any) -> None:
        """As `Session.publish`; while a blocking subscription is full, this coroutine waits."""
        import asyncio

        session = self.session
        if topic not in session._plans:
            check_topic(topic)
            session.engine.send(Announce(topic))
            while topic not in session._plans:
                await asyncio.sleep(0.0005)
        session.publish(topic, *args, **fields)
        while session._messaging.blocked(topic):
            await asyncio.sleep(0.0005)

    async def subscribe(
        self, topic: str, callback: Callable[[Message], Any] | None = None, *, capacity: int = 1024,
        overflow: str = BLOCK, timeout: float = SETTLE_S,
    ) -> Subscription:  # fmt: skip
        """As `Session.subscribe`."""
        subscription, future = self.session.subscribe_nowait(
            topic, callback, capacity=capacity, overflow=overflow, timeout=timeout
        )
        subscription.silent = (await future).silent
        return subscription

    async def serve(self, name: str, handler: Callable[..., Any]) -> None:
        """As `Session.serve`; the handler may be a coroutine, and runs in this event loop."""
        await self.session._begin_serving(name, handler)

    async def request(self, name: str, /, *args: Any, timeout: float = 10.0, **fields: Any) -> Any:
        """As `Session.request`."""
        return await self.session.request_nowait(name, *args, timeout=timeout, **fields)

    async def status(self) -> dict[str, Any]:
        """As `Session.status`."""
        reply = await self.session.ask(AskStatus(self.session.request_id()))
        return dict(reply.facts)

    def counters(self) -> dict[str, int]:
        """As `Session.counters`."""
        return self.session.counters()
