"""A client's stay in a system: everything that a user calls."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import platform
import socket
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from raskid.client import futures as futures_module
from raskid.client.code import CodeBook
from raskid.client.engine import Engine
from raskid.client.futures import Future
from raskid.client.mapping import MapResult
from raskid.client.messages import Message, SharedDict, Subscription
from raskid.core.calls import CallDone, Calls, CancelRequest, Invoke, Reply, Request, Serve, Unserve
from raskid.core.lists import ListChanged, Lists, Replica, Replied, WatchList
from raskid.core.machine import Effect, PeerGone, PeerJoined
from raskid.core.messaging import Announce, Arrived, Messaging, PublisherEnded, Subscribed, Took
from raskid.core.peer import HandshakeRefused, Identity, Peer
from raskid.core.relay import RelayEnd
from raskid.core.station import Station, Told
from raskid.core.submitter import CancelValues, ReleaseValues, Submitter, TaskEnded, TaskResolved
from raskid.io.driver import Driver
from raskid.io.processes import ProcessWatch
from raskid.io.transports import listen
from raskid.model import errors
from raskid.model.errors import (
    ConnectionRefused,
    Overflow,
    RaskidError,
    RemoteError,
    SessionClosed,
    WaitTimeout,
)
from raskid.model.ids import IdSource, PeerId, RequestId, TaskId
from raskid.model.topics import REACTIONS, SERVICES, check_topic, list_name
from raskid.model.version import VERSION
from raskid.protocol.messages import (
    KIND_CLIENT,
    ROLE_EXECUTE,
    AskStatus,
    DeleteRecord,
    EndSystem,
    ListTopics,
    PeerRef,
    PutRecord,
    RequestRefused,
    Status,
    TaskSpec,
    TopicsListed,
)
from raskid.protocol.reactions import BLOCK, CAPACITY_MAX, OVERFLOWS, Provider, Reaction
from raskid.protocol.values import decode_body, decode_value, encode_body, encode_value
from raskid.services.calling import dump
from raskid.services.settings import new_origin

SETTLE_S = 5.0
#: A blocking publish waits for room no longer than this.
BLOCK_S = 30.0
#: A map is cut into at most so many runs of items: few enough to be cheap, enough to share them out evenly.
MAP_RUNS = 128
#: A message from a callback cannot block its publisher; an argument over this size is refused by name.
ARGUMENT_BYTES_MAX = 1 << 30

_collecting = futures_module.collecting
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """A connection to a system. Made by `raskid.connect`; use it with ``with``, or ``async with``.

    Attributes:
        url: What another process gives to `raskid.connect` to reach the same system.
    """

    def __init__(
        self, head_address: str, token: str, role: str = ROLE_EXECUTE, directory: str = "", url: str = "",
        timeout: float = 20.0, on_close: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self.url = url
        self._on_close = on_close
        self._ids = IdSource(new_origin())
        self._directory = directory
        head = PeerId("head")
        addresses: tuple[str, ...] = (f"unix:{directory}/c{self._ids.origin:08x}",) if directory else ()
        peer_id = PeerId(f"client-{self._ids.origin:08x}")
        identity = Identity(
            peer_id, 1, self._ids.origin, KIND_CLIENT, token, role, addresses, socket.gethostname(), os.getpid(),
            platform.python_version(), VERSION,
        )  # fmt: skip
        self.peer = Peer(identity, head=head)
        self.peer.introduce(PeerRef(head, 0, (head_address,)))
        self._lists = Lists(head)
        self._messaging = Messaging(self._lists)
        self._calls = Calls(self._lists)
        self._submitter = Submitter(PeerRef(peer_id, 1, addresses), head, self._ids)
        relay = RelayEnd(head, self._ids)
        self._relay = relay
        station = Station(self.peer, [self._lists, self._messaging, self._calls, self._submitter], relay)
        self.driver = Driver(station, self._apply)
        self._processes = ProcessWatch(self.driver)
        self._listener = listen(addresses[0]) if addresses else None
        if self._listener is not None:
            self.driver.listen(self._listener)
        self._plans = self._messaging.plans
        self._book = CodeBook()
        #: Futures without a value yet: kept alive, so that their value finds them.
        self._futures: dict[TaskId, Future] = {}
        self._maps: dict[TaskId, MapResult] = {}
        self._requests: dict[int, Future] = {}
        self._handlers: dict[str, Callable[..., Any]] = {}
        self._invoked: dict[int, Any] = {}
        self.subscriptions: dict[RequestId, Subscription] = {}
        self.list_callbacks: dict[str, list[Callable[[str | None], Any]]] = {}
        self._head_joined = False
        self.head: PeerId | None = None
        self._known_codes = self._submitter.codes
        self.engine = Engine(self.driver, self._submitter.flush)
        self.engine.on_release = self._release
        self.engine.on_cancel = lambda tasks: self.driver.handle(CancelValues(tasks))
        _sessions.add(self)
        try:
            self._join(head, timeout)
        except BaseException:
            self.close()
            raise

    def _join(self, head: PeerId, timeout: float) -> None:
        """Shake hands with the head, whose id is not known before."""
        self.driver.perform(self.peer.send(head, AskStatus(self.request_id()), self.driver.clock()))
        if not self.engine.wait(lambda: self._head_joined or self.engine.failure is not None, timeout):
            raise errors.StartFailed(f"the head did not answer within {timeout:g} s")
        if self.engine.failure is not None:
            raise self.engine.failure

    # ── what the machines tell, under the lock ──

    def _apply(self, effect: Effect) -> None:
        handler = _EFFECTS.get(type(effect))
        if handler is not None:
            handler(self, effect)

    def _on_resolved(self, effect: TaskResolved) -> None:
        future = self._futures.pop(effect.task, None)
        if future is not None:
            future.resolve(effect.ok, effect.value)
        elif effect.task in self._maps:
            self._maps.pop(effect.task).chunk_done(effect.task, effect.ok, effect.value)

    def _on_ended(self, effect: TaskEnded) -> None:
        error: BaseException
        if effect.code == "TaskCancelled":
            error = concurrent.futures.CancelledError(effect.text)
        else:
            error = _error_of(effect.code, effect.text)
        future = self._futures.pop(effect.task, None)
        if future is not None:
            future.fail_with(error)
        elif effect.task in self._maps:
            self._maps.pop(effect.task).chunk_failed(effect.task, error)

    def _on_arrived(self, effect: Arrived) -> None:
        subscription = self.subscriptions.get(effect.subscription)
        if subscription is not None:
            subscription.arrived(Message(effect.topic, effect.publisher, effect.body, effect.dropped))

    def _on_publisher_ended(self, effect: PublisherEnded) -> None:
        subscription = self.subscriptions.get(effect.subscription)
        if subscription is not None:
            subscription.publisher_ended(effect.dropped)

    def _on_replied(self, effect: Replied) -> None:
        future = self._requests.pop(effect.request, None)
        if future is None:
            return
        message = effect.message
        if isinstance(message, RequestRefused):
            future.fail_with(_error_of(message.code, message.text))
        else:
            future.resolve_with(message)

    def _on_call_done(self, effect: CallDone) -> None:
        future = self._requests.pop(effect.request, None)
        if future is None:
            return
        if effect.ok:
            future.resolve_with(decode_value(effect.body))
        elif effect.error:
            future.fail_with(_error_of(effect.error, effect.text))
        else:
            kind, text, remote = decode_value(effect.body)
            if kind == "NoSuchService" and not remote:
                future.fail_with(errors.NoSuchService(text))
            else:
                future.fail_with(RemoteError(f"{kind}: {text}", kind, remote))

    def _on_list_changed(self, effect: ListChanged) -> None:
        for callback in self.list_callbacks.get(effect.name, ()):
            self.engine.call_soon(callback, effect.record)

    def _on_invoke(self, effect: Invoke) -> None:
        handler = self._handlers.get(effect.service)
        if handler is None:
            self._reply_error(effect.request, LookupError(f"{effect.service!r} is no longer served here"))
        else:
            self.engine.call_soon(self._run_handler, effect, handler)

    def _run_handler(self, effect: Invoke, handler: Callable[..., Any]) -> None:
        try:
            args, fields = decode_body(effect.body)
            value = handler(*args, **fields)
            if asyncio.iscoroutine(value):
                if self.engine.loop is None:
                    value = asyncio.run(value)
                else:
                    task = self.engine.loop.create_task(self._finish_handler(effect.request, value))
                    self._invoked[effect.request] = task
                    return
            body = encode_value(value)
        except Exception as error:
            self._reply_error(effect.request, error)
            return
        self.engine.send(Reply(effect.request, True, body))

    async def _finish_handler(self, request: RequestId, coroutine: Any) -> None:
        try:
            body = encode_value(await coroutine)
        except Exception as error:
            self._reply_error(request, error)
        else:
            self.engine.send(Reply(request, True, body))
        finally:
            self._invoked.pop(request, None)

    def _reply_error(self, request: RequestId, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        self.engine.send(Reply(request, False, encode_value((type(error).__name__, str(error), text))))

    def _on_told(self, effect: Told) -> None:
        event = effect.event
        if isinstance(event, PeerJoined):
            self._processes.joined(event)
        elif isinstance(event, PeerGone):
            self._processes.gone(event)
        if isinstance(event, PeerJoined) and event.kind == "head" and not self._head_joined:
            self._head_joined = True
            self.head = event.peer
            # The machines addressed the head by a provisional name until now.
            self._lists.hub = self._submitter.manager = self._relay.head = event.peer
        elif isinstance(event, HandshakeRefused) and event.peer in (self.head, "head"):
            self._fail(ConnectionRefused(event.code, event.text))
        elif isinstance(event, PeerGone) and event.peer in (self.head, "head"):
            self._fail(SessionClosed(f"the system's head is gone: {event.reason}"))

    def _fail(self, error: RaskidError) -> None:
        """The session cannot go on: everybody who waits is told."""
        if self.engine.failure is None:
            self.engine.failure = error
        waiting: list[Any] = [*self._futures.values(), *self._requests.values(), *self._maps.values()]
        for future in waiting:
            future.fail_with(error)
        for subscription in list(self.subscriptions.values()):
            subscription.ended()

    def _release(self, tasks: list[TaskId]) -> None:
        self.driver.handle(ReleaseValues(tasks))

    # ── requests to the hub and the manager ──

    def request_id(self) -> RequestId:
        """A new id for a request."""
        return RequestId(self._ids.take())

    def ask(self, message: Any) -> Future:
        """Send a request to the head; the future gives the answering message."""
        engine = self.engine
        engine._check_alive()
        future = Future(engine)
        with engine.lock:
            self._requests[message.request] = future
            self.driver.perform(self.peer.send(self._lists.hub, message, self.driver.clock()))
        engine.flush()
        return future

    def follow(self, name: str) -> None:
        """Follow a list, and wait for its first state."""
        self.engine.send(WatchList(name))
        if not self.engine.wait(lambda: self._lists.replicas[name].ready, 10.0):
            raise WaitTimeout(f"the hub did not send the list {name!r} within 10 s")

    def replica(self, name: str) -> Replica:
        """The replica of a list that is followed."""
        return self._lists.replicas[name]

    # ── messages ──

    def publish(self, topic: str, /, *args: Any, **fields: Any) -> None:
        """Send a message to whoever reacts to `topic`; costs one look-up when nobody does.

        A single value that is a callable is called only if somebody reacts, and its result is the message. Values are
        plain data and numpy arrays; other objects raise `ValueNotSendable`.

        Raises:
            TopicNameError: The topic's name cannot be used.
            Overflow: A subscription with policy "block" stayed full for its limit.
        """
        plan = self._plans.get(topic)
        if plan:
            self._publish(topic, plan, args, fields)
        elif plan is None:
            self._announce(topic)
            plan = self._plans.get(topic)
            if plan or plan is None:
                self._publish(topic, plan or (), args, fields)

    def _announce(self, topic: str) -> None:
        check_topic(topic)
        self.engine.send(Announce(topic))
        if self._may_block():
            self.engine.wait(lambda: topic in self._plans, 10.0)

    def _may_block(self) -> bool:
        engine = self.engine
        import threading

        me = threading.current_thread()
        return me is not engine._thread and me is not engine._caller and engine.loop is None

    def _publish(self, topic: str, plan: Sequence[Any], args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        if len(args) == 1 and callable(args[0]):
            args = (args[0](),)
        body = encode_body(args, fields)
        engine = self.engine
        with engine.lock:
            self.driver.perform(self._messaging.publish(topic, body))
        engine.prompt()
        for target in plan:
            if target.queue and target.overflow == BLOCK and self._may_block():
                self._wait_room(topic, target)

    def _wait_room(self, topic: str, target: Any) -> None:
        timeout = BLOCK_S
        if not self.engine.wait(lambda: not target.queue, timeout):
            with self.engine.lock:
                if target.queue:
                    target.queue.pop()
                    target.leave_out()
            raise Overflow(
                f"{target.peer} did not take a message on {topic!r} within {timeout:g} s; its queue of "
                f"{target.capacity} is full. Let it subscribe with overflow='drop_oldest' or 'latest', or read faster"
            )

    def subscribe(
        self, topic: str, callback: Callable[[Message], Any] | None = None, *, capacity: int = 1024,
        overflow: str = BLOCK, timeout: float = SETTLE_S,
    ) -> Subscription:  # fmt: skip
        """Receive the messages of a topic. Returns when every present publisher has acknowledged it.

        Args:
            topic: The topic's name.
            callback: Called with each `Message` on the session's callback thread; without it, iterate.
            capacity: How many messages of one publisher may wait here.
            overflow: What a publisher does beyond that: "block", "drop_oldest", "drop_newest" or "latest".
            timeout: How long to wait for publishers, in seconds; those that were silent stand in `.silent`.
        """
        subscription, future = self.subscribe_nowait(
            topic, callback, capacity=capacity, overflow=overflow, timeout=timeout
        )
        subscription.silent = future.result(timeout + 10).silent
        return subscription

    def subscribe_nowait(
        self, topic: str, callback: Callable[[Message], Any] | None = None, *, capacity: int = 1024,
        overflow: str = BLOCK, timeout: float = SETTLE_S,
    ) -> tuple[Subscription, Future]:  # fmt: skip
        """As `subscribe`, without waiting: the future is done when the publishers have acknowledged."""
        if overflow not in OVERFLOWS:
            raise ValueError(f"overflow is one of {', '.join(OVERFLOWS)}, got {overflow!r}")
        if not 0 < capacity <= CAPACITY_MAX:
            raise ValueError(f"capacity is 1 to {CAPACITY_MAX}, got {capacity}")
        name = list_name(REACTIONS, topic)
        identifier = self.request_id()
        subscription = Subscription(self, identifier, topic, capacity, callback)
        with self.engine.lock:
            self.subscriptions[identifier] = subscription
            self.driver.handle(Subscribed(identifier, capacity))
        reaction = Reaction("deliver", self.peer.own_ref, capacity, overflow)
        request = PutRecord(identifier, name, str(identifier), msgspec.msgpack.encode(reaction), False, timeout)
        return subscription, self.ask(request)

    def took(self, subscription: Subscription, publisher: PeerId, count: int) -> None:
        """A reader took messages: give the publisher credit."""
        if not self.engine.closing:
            self.engine.send(Took(subscription.id, publisher, count))

    def shared(self, name: str) -> SharedDict:
        """The shared dictionary of that name: every process sees the same records, in the same order of changes."""
        return SharedDict(self, check_topic(name))

    def topics(self, prefix: str = "") -> dict[str, dict[str, int]]:
        """The lists that the hub keeps, as {name: {"version", "records", "readers"}}."""
        reply: TopicsListed = self.ask(ListTopics(self.request_id(), prefix)).result(10)
        return {t.name: {"version": t.version, "records": t.records, "readers": t.readers} for t in reply.topics}

    # ── requests ──

    def serve(self, name: str, handler: Callable[..., Any]) -> None:
        """Answer requests of that name: `handler(*args, **fields)` gives the answer, or raises. May be a coroutine."""
        self._begin_serving(name, handler).result(10.0)

    def _begin_serving(self, name: str, handler: Callable[..., Any]) -> Future:
        list_of = list_name(SERVICES, name)
        self._handlers[name] = handler
        self.engine.send(Serve(name))
        value = msgspec.msgpack.encode(Provider(self.peer.own_ref))
        return self.ask(PutRecord(self.request_id(), list_of, self.peer.identity.peer, value))

    def unserve(self, name: str) -> None:
        """Answer them no longer."""
        self._handlers.pop(name, None)
        self.ask(DeleteRecord(self.request_id(), list_name(SERVICES, name), self.peer.identity.peer)).result(10.0)
        self.engine.send(Unserve(name))

    def request(self, name: str, /, *args: Any, timeout: float = 10.0, **fields: Any) -> Any:
        """Ask whoever serves `name`, and return the answer.

        Raises:
            RemoteError: The handler raised; `.remote` holds its traceback.
            NoSuchService: Nobody served the name within `timeout` seconds.
            WaitTimeout: The answer did not come in time.
            PeerLost: The peer that was to answer is gone.
        """
        return self.request_nowait(name, *args, timeout=timeout, **fields).result(timeout + 10)

    def request_nowait(self, name: str, /, *args: Any, timeout: float = 10.0, **fields: Any) -> Future:
        """As `request`, as a future; cancelling it tells the other side."""
        check_topic(name)
        engine = self.engine
        engine._check_alive()
        body = encode_body(args, fields)
        future = _RequestFuture(engine)
        with engine.lock:
            identifier = future.request = self.request_id()
            self._requests[identifier] = future
            self.driver.handle(Request(identifier, name, body, self.driver.clock() + timeout))
        engine.prompt()
        return future

    # ── tasks ──

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Run `function(*args, **kwargs)` on a runner. A future in the arguments, at any depth, stands for its value.

        Raises:
            TypeError: The function or an argument cannot be pickled.
        """
        engine = self.engine
        if engine.failure is not None or engine.closing:
            engine._check_alive()
        code = self._book.code_of(function)
        inputs = _collecting.futures = []
        try:
            arguments = dump((args, kwargs))
        except Exception as error:
            raise TypeError(_which_argument(args, kwargs, error)) from error
        finally:
            _collecting.futures = None
        if len(arguments) > ARGUMENT_BYTES_MAX:
            raise ValueError(f"the arguments of {function!r} take {len(arguments):,} bytes; pass a file's name instead")
        if code.code not in self._known_codes:
            self._known_codes[code.code] = code
        task = TaskId(self._ids.take())
        future = Future(engine, task)
        spec = TaskSpec(task, code.code, arguments, tuple(dict.fromkeys(inputs)) if inputs else ())
        with engine.lock:
            self._futures[task] = future
            effects = self._submitter.submit(spec, self.driver.clock())
            if effects:
                self.driver.perform(effects)
        engine.prompt()
        return future

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> MapResult:
        """`function` over the items, as one message: a lazy sequence whose elements are values when looked at.

        Use `gather` on it for a list, or iterate, which gives values in order as they are ready.
        """
        self.engine._check_alive()
        code = self._book.code_of(function)
        self._known_codes.setdefault(code.code, code)
        # One iterable is by far the most frequent case: its items need no tuples around them.
        single = len(iterables) == 1
        items = list(iterables[0]) if single else list(zip(*iterables, strict=False))
        result = MapResult(self.engine, len(items))
        if not items:
            return result
        size = -(-len(items) // MAP_RUNS)
        first = TaskId(self._ids.take_range(len(items)))
        for at in range(0, len(items), size):
            part = items[at : at + size]
            inputs = _collecting.futures = []
            try:
                arguments = dump((single, part))
            finally:
                _collecting.futures = None
            task = TaskId(first + at)
            spec = TaskSpec(task, code.code, arguments, tuple(dict.fromkeys(inputs)), len(part))
            with self.engine.lock:
                result.chunk_of(task, at, len(part))
                self._maps[task] = result
                self.driver.perform(self._submitter.submit(spec, self.driver.clock()))
            if at % (16 * size) == 0:
                # The runners begin while the rest is being pickled.
                self.engine.flush()
        self.engine.flush()
        return result

    def gather(self, futures: Iterable[Any], timeout: float | None = None) -> list[Any]:
        """The values of futures, in order; of a map, all its values. Raises the first error met."""
        if isinstance(futures, MapResult):
            return futures.values(timeout)
        waiting = list(futures)
        deadline = None if timeout is None else time.monotonic() + timeout
        # Waiting for the last first saves looking at each as it comes.
        for future in reversed(waiting):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if isinstance(future, Future) and not future.done() and not self.engine.wait_for(future, left):
                raise WaitTimeout(f"{future!r} is not done after {timeout:g} s")
        return [future.result(0) if isinstance(future, Future) else future for future in waiting]

    def status(self, timeout: float = 10.0) -> dict[str, Any]:
        """How things stand: head, runners, tasks by state, counters."""
        reply: Status = self.ask(AskStatus(self.request_id())).result(timeout)
        return reply.facts

    def runners(self) -> list[dict[str, Any]]:
        """The runners: id, host, process id, how many tasks they have and had."""
        return list(self.status()["runners"])

    def wait_runners(self, count: int, timeout: float = 30.0) -> None:
        """Wait until `count` runners are ready.

        Raises:
            WaitTimeout: There are fewer within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while (have := len(self.runners())) < count:
            if time.monotonic() > deadline:
                raise WaitTimeout(f"{have} of {count} runners are ready after {timeout:g} s")
            self.engine.wait(lambda: False, 0.02)

    def counters(self) -> dict[str, int]:
        """Wake-ups, system calls, bytes and messages of this process so far."""
        totals = self.driver.totals()
        links = [remote.link for remote in self.peer._remotes.values() if remote.link is not None]
        totals.messages_sent = sum(link.messages_sent for link in links)
        totals.messages_received = sum(link.messages_received for link in links)
        totals.frames_sent = sum(link.sent for link in links)
        totals.frames_received = sum(link.received for link in links)
        return totals.as_dict()

    # ── the end ──

    def end_system(self) -> None:
        """End the whole system: runners, head, and with it this session."""
        with self.engine.lock:
            self.driver.perform(self.peer.send(self._lists.hub, EndSystem("asked to"), self.driver.clock()))
        self.engine.flush()

    def close(self) -> None:
        """Leave the system; one that this session started ends as well."""
        engine = self.engine
        if engine.closing:
            return
        if engine.failure is None:
            self._drain(2.0)
            with engine.lock:
                self.peer.goodbye("closed")
            engine.flush()
        self._fail(SessionClosed("this session was closed"))
        self._processes.close()
        engine.close()
        if self._listener is not None:
            self._listener.close()
        if self._on_close is not None:
            self._on_close()

    def _drain(self, timeout: float) -> None:
        """Write what was published and not sent yet, while the other ends take it."""

        def written() -> bool:
            return not self.peer.unsent()

        if self.engine.loop is None:
            self.engine.wait(written, timeout)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Any:
        from raskid.client.aio import AsyncSession

        self.engine.attach(asyncio.get_running_loop())
        return AsyncSession(self)

    async def __aexit__(self, *error: object) -> None:
        self.engine.detach()
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.engine.closing else "open"
        return f"<raskid.Session {self.peer.identity.peer} at {self.url or self.head}: {state}>"


class _RequestFuture(Future):
    request: RequestId = RequestId(0)

    def cancel(self) -> bool:
        """No longer wait for the answer, and tell the other side so."""
        if not self.done():
            with self._engine.lock:
                self.fail_with(concurrent.futures.CancelledError())
            self._engine.send(CancelRequest(self.request))
        return self.cancelled()


def _error_of(code: str, text: str) -> Exception:
    kind = getattr(errors, code, RaskidError)
    return kind(text) if isinstance(kind, type) and issubclass(kind, RaskidError) else RaskidError(f"{code}: {text}")


def _which_argument(args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> str:
    named = [*((f"argument {index}", value) for index, value in enumerate(args)), *kwargs.items()]
    for name, value in named:
        if isinstance(value, Future):
            continue
        try:
            dump(value)
        except Exception as reason:
            return f"{name} is a {type(value).__name__}, which cannot be pickled: {reason}"
    return f"the arguments cannot be pickled: {error}"


_EFFECTS: dict[type[Effect], Callable[[Session, Any], None]] = {
    TaskResolved: Session._on_resolved,
    TaskEnded: Session._on_ended,
    Arrived: Session._on_arrived,
    PublisherEnded: Session._on_publisher_ended,
    Replied: Session._on_replied,
    CallDone: Session._on_call_done,
    ListChanged: Session._on_list_changed,
    Invoke: Session._on_invoke,
    Told: Session._on_told,
}


def _after_fork() -> None:
    for session in list(_sessions):
        session.engine.failure = SessionClosed(
            "this session belongs to the process that forked this one; connect again here"
        )
        session._plans = {}


os.register_at_fork(after_in_child=_after_fork)
