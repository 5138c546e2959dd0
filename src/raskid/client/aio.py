"""The asynchronous face: the same session, whose calls are awaited and whose IO the event loop drives.

It has every call of `Session`. Those that wait there are coroutines here; those that do not are the same. Both faces
are made of the same `_nowait` calls, whose futures can be waited for and awaited.

``async with raskid.connect(url) as rk`` connects before the loop is involved, which blocks it for as long as the
system takes to start. Where that matters, connect on another thread first:
``async with await asyncio.to_thread(raskid.connect, url) as rk``. Leaving does not block the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from raskid.client import topics as topics_module
from raskid.client.cells import CAPACITY, AsyncCell
from raskid.client.changes import Changes
from raskid.client.channels import AsyncChannel
from raskid.client.checks import check_callable, check_count, check_limit, check_name, check_seconds
from raskid.client.declarations import declare
from raskid.client.extensions import SERVICE_S, STOP_S, check_start_s, not_ended, too_slow
from raskid.client.futures import Future
from raskid.client.handles import ReactionHandle
from raskid.client.mapping import MapResult
from raskid.client.messages import ANSWER_S, Message, Subscription
from raskid.client.reactions import Op
from raskid.client.reading import Joined, when_all
from raskid.client.requests import SERVE_S, not_served
from raskid.client.shared import PUT_S, SharedDict
from raskid.client.tasks import futures_of
from raskid.client.topics import FOLLOW_S, SETTLE_S
from raskid.client.waiting import result_in, take_steps_in
from raskid.model.errors import RaskidError, WaitTimeout
from raskid.model.topics import SHARED, list_name
from raskid.protocol.messages import AskStatus
from raskid.protocol.reactions import BLOCK

if TYPE_CHECKING:
    from raskid.client.session import Session

#: How often `wait_runners` asks.
RUNNERS_S = 0.02
RUNNERS_MAX = 1_000_000


class AsyncSession:
    """What ``async with raskid.connect(url)`` gives. Futures, subscriptions and maps are those of `Session`.

    Attributes:
        session: The session itself. Its blocking calls can be made on other threads (`asyncio.to_thread`).
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def url(self) -> str:
        """What another process gives to `raskid.connect`."""
        return self.session.url

    # ── tasks ──

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """As `Session.submit`; await the future."""
        return self.session.submit(function, *args, **kwargs)

    async def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """All values of `Session.map`."""
        return await self._values(self.session.map(function, *iterables))

    async def gather(self, futures: Iterable[Any], timeout: float | None = None) -> list[Any]:
        """As `Session.gather`: the values of futures, in order; of a map, all its values.

        Raises:
            WaitTimeout: They are not here within `timeout` seconds.
            Exception: The first error met.
        """
        limit = check_limit("timeout", timeout)
        try:
            async with asyncio.timeout(limit) as scope:
                if isinstance(futures, MapResult):
                    return await self._values(futures)
                return [await it if isinstance(it, Future) else it for it in futures_of("gather", futures)]
        except TimeoutError:
            if not scope.expired():
                raise
            raise WaitTimeout(f"not all values were here within {limit:g} s") from None

    async def _values(self, result: MapResult) -> list[Any]:
        if not result.done():
            loop = asyncio.get_running_loop()
            waiter = loop.create_future()

            def wake() -> None:
                if not waiter.done():
                    waiter.set_result(None)

            def done() -> None:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(wake)

            result.when_done(done)
            await waiter
        return result.values(0)

    def cancel(self, futures: Iterable[Future]) -> int:
        """As `Session.cancel`. It does not wait: it asks, and what can still be cancelled is so soon."""
        return self.session.cancel(futures)

    # ── messages ──

    async def publish(self, topic: str, /, *args: Any, **fields: Any) -> None:
        """As `Session.publish`; while a subscription with policy "block" is full, this coroutine waits, up to the same
        limit. One that is cancelled meanwhile has published all the same."""
        session = self.session
        plan = session.plan_of(topic)
        if plan is None:
            topic = check_name(topic)
            await result_in(session.announce_nowait(topic), FOLLOW_S, topics_module.not_announced(topic))
            plan = session.plan_of(topic)
        if not plan and plan is not None:
            return
        rooms, waiter = session.begin_publish(topic, args, fields, waits=True, through=True)
        if waiter is not None:
            await session.wait_passed_async(waiter)
        if not rooms:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(topics_module.BLOCK_S):
                for room in rooms:
                    await room
        session.end_publish(topic, rooms)

    async def subscribe(
        self, topic: str, callback: Callable[[Message], Any] | None = None, *, timeout: float = SETTLE_S, **options: Any
    ) -> Subscription:  # fmt: skip
        """As `Session.subscribe`, with its options; leave it with ``await subscription.aclose()`` or ``async with``."""
        subscription, future = self.session.subscribe_nowait(topic, callback, timeout=timeout, **options)
        try:
            reply = await result_in(future, timeout + ANSWER_S, topics_module.not_subscribed(topic))
        except BaseException:
            self.session.give_up(subscription)
            raise
        subscription.silent = reply.silent
        return subscription

    # ── reactions ──

    def op(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Op:
        """As `Session.op`; nothing has to be awaited."""
        return self.session.op(function, *args, **kwargs)

    def react(self, topic: str, /, *operations: Any, **options: Any) -> Any:
        """As `Session.react`; what installs the reaction is awaited: ``await rk.react(topic).map(f).forward("x")``."""
        return self.session.react(topic, *operations, **options)

    async def link(self, source: Any, target: Any = None, *operations: Any, **options: Any) -> ReactionHandle:
        """As `Session.link`."""
        handle: ReactionHandle = await self.session.link(source, target, *operations, **options)
        return handle

    async def reactions(self, topic: str) -> list[dict[str, Any]]:
        """As `Session.reactions`."""
        return await take_steps_in(self.session.listing_reactions(topic))

    async def reaction(self, topic: str, identifier: int | str) -> ReactionHandle:
        """As `Session.reaction`; its calls are `asuspend`, `aresume` and `aclose`."""
        return await take_steps_in(self.session.finding_reaction(topic, identifier))

    async def shared(self, name: str) -> AsyncSharedDict:
        """As `Session.shared`."""
        name = check_name(name)
        wire_name = list_name(SHARED, name)
        future = self.session.follow_nowait(wire_name)
        try:
            await result_in(future, FOLLOW_S, topics_module.not_shared(name))
        except BaseException:
            self.session.unfollow(wire_name, future)
            raise
        return AsyncSharedDict(SharedDict(self.session, name))

    async def channel(
        self, name: str, type: Any = None, min: Any = None, max: Any = None, shape: Any = None, *,
        capacity: int = CAPACITY, overflow: str = BLOCK,
    ) -> AsyncChannel:  # fmt: skip
        """As `Session.channel`."""
        own = declare(type, min, max, shape)
        return await take_steps_in(self.session.opening_channel(AsyncChannel, name, own, capacity, overflow))

    async def cell(
        self, name: str, type: Any = None, min: Any = None, max: Any = None, shape: Any = None, *,
        permanent: bool = True, capacity: int = CAPACITY,
    ) -> AsyncCell:  # fmt: skip
        """As `Session.cell`."""
        own = declare(type, min, max, shape)
        return await take_steps_in(self.session.opening_cell(AsyncCell, name, own, permanent, capacity))

    def when_all(self, *sources: Any) -> Joined:
        """As `raskid.when_all`."""
        return when_all(*sources)

    async def topics(self, prefix: str = "") -> dict[str, dict[str, int]]:
        """As `Session.topics`."""
        what = "the hub did not say which lists it keeps"
        return topics_module.topics_of(await result_in(self.session.topics_nowait(prefix), FOLLOW_S, what))

    # ── requests ──

    async def serve(self, name: str, handler: Callable[..., Any]) -> None:
        """As `Session.serve`; the handler may be a coroutine function, and runs in this event loop."""
        future = self.session.serve_nowait(name, handler)
        try:
            await result_in(future, SERVE_S, not_served(name))
        except BaseException:
            self.session.give_up_serving(name, handler)
            raise

    async def unserve(self, name: str) -> None:
        """As `Session.unserve`."""
        future = self.session.unserve_nowait(name)
        await result_in(future, SERVE_S, f"the hub did not confirm the end of service {name!r}")

    async def request(self, name: str, /, *args: Any, timeout: float = 10.0, **fields: Any) -> Any:
        """As `Session.request`. Cancelling this coroutine cancels the request."""
        future = self.session.request_nowait(name, *args, timeout=timeout, **fields)
        try:
            return await future
        finally:
            if not future.done():
                future.cancel()

    # ── services ──

    async def start_service(
        self, name: str, factory: Callable[..., Any] | str, /, *, timeout: float = SERVICE_S, **settings: Any
    ) -> None:
        """As `Session.start_service`. Cancelling this coroutine ends the service."""
        seconds = check_start_s(timeout)
        future = self.session.start_service_nowait(name, factory, settings)
        try:
            async with asyncio.timeout(seconds) as scope:
                await future
        except TimeoutError:
            if not scope.expired():
                raise
            stopping = self.session.stop_service_nowait(name)
            with contextlib.suppress(TimeoutError, RaskidError):
                async with asyncio.timeout(STOP_S):
                    await stopping
            raise too_slow(name, seconds, future) from None
        finally:
            self.session.give_up_service(name, future)

    async def stop_service(self, name: str) -> None:
        """As `Session.stop_service`."""
        future = self.session.stop_service_nowait(name)
        try:
            async with asyncio.timeout(STOP_S) as scope:
                await future
        except TimeoutError:
            if not scope.expired():
                raise
            raise not_ended(name) from None

    async def services(self) -> list[dict[str, Any]]:
        """As `Session.services`."""
        return list((await self.status())["services"])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "session" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.session.extension(name, self)

    # ── the system ──

    async def status(self, timeout: float = 10.0) -> dict[str, Any]:
        """As `Session.status`."""
        seconds = check_seconds("timeout", timeout)
        reply = await result_in(
            self.session.ask(AskStatus(self.session.request_id())), seconds, "the head did not say how things stand"
        )
        return dict(reply.facts)

    async def runners(self) -> list[dict[str, Any]]:
        """As `Session.runners`."""
        return list((await self.status())["runners"])

    async def wait_runners(self, count: int, timeout: float = 30.0) -> None:
        """As `Session.wait_runners`."""
        count = check_count("count", count, 0, RUNNERS_MAX)
        seconds = check_seconds("timeout", timeout)
        have = 0
        try:
            async with asyncio.timeout(seconds) as scope:
                while (have := len(await self.runners())) < count:
                    # Runners that join are told to the head only, so it has to be asked.
                    await asyncio.sleep(RUNNERS_S)
        except TimeoutError:
            if not scope.expired():
                raise
            raise WaitTimeout(f"{have} of {count} runners are ready after {seconds:g} s") from None

    def counters(self) -> dict[str, Any]:
        """As `Session.counters`."""
        return self.session.counters()

    # ── the end ──

    async def end_system(self) -> None:
        """As `Session.end_system`."""
        self.session.end_system()

    async def close(self) -> None:
        """As `Session.close`; the event loop goes on meanwhile. Leaving ``async with`` does this."""
        await self.session.close_async()

    def __repr__(self) -> str:
        return f"<raskid.AsyncSession of {self.session!r}>"


class AsyncSharedDict(Mapping[str, Any]):
    """What ``await rk.shared(name)`` gives: a `SharedDict` that is read as a mapping, and written with ``await``."""

    def __init__(self, shared: SharedDict) -> None:
        self._shared = shared

    @property
    def name(self) -> str:
        """Its name."""
        return self._shared.name

    @property
    def version(self) -> int:
        """The number of the last change seen here."""
        return self._shared.version

    def __getitem__(self, key: str) -> Any:
        return self._shared[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shared)

    def __len__(self) -> int:
        return len(self._shared)

    def owner(self, key: str) -> str:
        """As `SharedDict.owner`."""
        return self._shared.owner(key)

    async def put(self, key: str, value: Any, permanent: bool = False, timeout: float = PUT_S) -> None:
        """As `SharedDict.put`."""
        shared = self._shared
        seconds = check_seconds("timeout", timeout)
        await result_in(shared.put_nowait(key, value, permanent), seconds, shared.unconfirmed("write", key))

    async def delete(self, key: str) -> None:
        """As ``del shared[key]``."""
        shared = self._shared
        await result_in(shared.delete_nowait(key), PUT_S, shared.unconfirmed("delete", key))

    async def wait(self, condition: Callable[[AsyncSharedDict], bool], timeout: float | None = None) -> None:
        """As `SharedDict.wait`."""
        check_callable("condition", condition)
        limit = check_limit("timeout", timeout)
        try:
            async with asyncio.timeout(limit) as scope:
                while not condition(self):
                    # Nothing can change in between: the loop that runs this drives the session.
                    await self._shared.change_nowait()
        except TimeoutError:
            if not scope.expired():
                raise
            raise WaitTimeout(f"the condition on shared list {self.name!r} did not hold within {limit:g} s") from None

    def cell(self, key: str, permanent: bool = False) -> AsyncCell:
        """As `SharedDict.cell`; nothing has to be awaited to open one."""
        return self._shared.cell_of(AsyncCell, key, permanent)

    def changes(self, capacity: int = 1024) -> Changes:
        """As `SharedDict.changes`: ``async for change in shared.changes()``; nothing has to be awaited to begin."""
        return self._shared.changes(capacity)

    def on_change(self, callback: Callable[[AsyncSharedDict, str | None], Any]) -> None:
        """As `SharedDict.on_change`; it may be a coroutine function."""
        check_callable("callback", callback)
        self._shared.on_change(lambda _, key: callback(self, key))

    def close(self) -> None:
        """As `SharedDict.close`."""
        self._shared.close()

    async def __aenter__(self) -> AsyncSharedDict:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._shared).replace("SharedDict", "AsyncSharedDict", 1)
