"""Messages and shared lists, as a user calls them: publish, subscribe, shared.

What ends in `_nowait`, or begins with `begin_`, waits for nothing and gives futures. The blocking calls here, and the
asynchronous ones in `raskid.client.aio`, are these and a wait.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from raskid.client.callbacks import say
from raskid.client.checks import (
    check_callable,
    check_count,
    check_flag,
    check_name,
    check_prefix,
    check_seconds,
    check_text,
)
from raskid.client.connection import Connection, error_of
from raskid.client.engine import fresh
from raskid.client.futures import Future
from raskid.client.loops import running_loop
from raskid.client.messages import ANSWER_S, Message, Subscription
from raskid.client.shared import SharedDict
from raskid.client.transit import TRANSIT, Transit
from raskid.client.waiting import result_of
from raskid.core.effects import (
    Arrived,
    Effect,
    ListChanged,
    ListRefused,
    PlanReady,
    PublisherEnded,
    RoomMade,
    Told,
)
from raskid.core.events import (
    Announce,
    Handled,
    PeerGone,
    Subscribed,
    Took,
    UnwatchList,
    WatchList,
)
from raskid.core.operations import check_operation
from raskid.core.targets import Target
from raskid.model.errors import RaskidError
from raskid.model.ids import PeerId
from raskid.model.operations import CHOOSE, Operation
from raskid.model.topics import REACTIONS, SHARED, check_list_name, list_name
from raskid.protocol.messages import (
    ROLE_MESSAGE,
    ListTopics,
    PutRecord,
    TopicsListed,
)
from raskid.protocol.reactions import (
    BLOCK,
    BY_METRIC,
    CAPACITY_MAX,
    CHOICES,
    JUST_DELIVER,
    LEAST_LOADED,
    OVERFLOWS,
    PULL,
    ROUND_ROBIN,
    Reaction,
    encode_reaction,
)
from raskid.protocol.values import encode_message
from raskid.services.outgoing import Waiter
from raskid.services.publishing import BLOCK_S as BLOCK_S  # noqa: PLC0414 - for `raskid.client.aio`, too
from raskid.services.publishing import not_taken

SETTLE_S = 5.0
#: The first publish on a topic, and a new handle on a shared list, wait for the hub no longer than this.
FOLLOW_S = 10.0


#: What `begin_publish` gives in most cases.
NOTHING_TO_WAIT_FOR: tuple[Sequence[Room], None] = ((), None)


class Room(Future):
    """Done when a message has left the queue of a full subscription with policy "block"."""

    def __init__(self, session: Topics, target: Target, number: int) -> None:
        super().__init__(session.engine)
        self.target = target
        self.number = number


class Topics(Connection):
    """The part of a session that publishes and subscribes."""

    def _effects(self) -> dict[type[Effect], Callable[[Any], None]]:
        self._transit = Transit(self)
        return {
            **super()._effects(),
            Arrived: self._on_arrived,
            PublisherEnded: self._on_publisher_ended,
            ListChanged: self._on_list_changed,
            ListRefused: self._on_list_refused,
            PlanReady: self._on_plan_ready,
            RoomMade: self._on_room_made,
        }

    def _on_arrived(self, effect: Arrived) -> None:
        subscription = self.subscriptions.get(effect.subscription)
        if subscription is not None:
            subscription.arrived(effect)
            if self._plans.get(TRANSIT) != ():
                self._transit.arrived(effect)

    def _on_publisher_ended(self, effect: PublisherEnded) -> None:
        subscription = self.subscriptions.get(effect.subscription)
        if subscription is not None:
            subscription.publisher_ended(effect.publisher, effect.dropped)

    def _on_told(self, effect: Told) -> None:
        super()._on_told(effect)
        if isinstance(effect.event, PeerGone):
            for subscription in self.subscriptions.values():
                subscription.publisher_ended(effect.event.peer)

    def _on_list_changed(self, effect: ListChanged) -> None:
        for future in self._following.pop(effect.name, ()) if self._following else ():
            future.resolve_with(None)
        for changes in self.changes.get(effect.name, ()) if self.changes else ():
            changes.changed(effect)
        for callback in self.list_callbacks.get(effect.name, ()):
            callback(effect.record)

    def wake_followers(self, name: str) -> None:
        """Under the lock: have those look again who wait for a change of a list."""
        for future in self._following.pop(name, ()):
            future.resolve_with(None)

    def _on_list_refused(self, effect: ListRefused) -> None:
        error = error_of(effect.code, effect.text)
        for future in self._following.pop(effect.name, ()):
            future.fail_with(error)
        kind, topic = check_list_name(effect.name)
        if kind == REACTIONS:
            announced = self._announced.pop(topic, None)
            if announced is not None:
                announced.fail_with(error)
            else:
                # Callbacks published on it, which could not wait for this.
                self.engine.call_soon(say, f"raskid: messages on {topic!r} were left out: {effect.text}")

    def _on_plan_ready(self, effect: PlanReady) -> None:
        announced = self._announced.pop(effect.topic, None)
        if announced is not None:
            announced.resolve_with(None)

    def _on_room_made(self, effect: RoomMade) -> None:
        rooms = self._rooms.get(effect.subscription)
        while rooms and rooms[0].number <= effect.number:
            rooms.popleft().resolve_with(None)
        if rooms is not None and not rooms:
            del self._rooms[effect.subscription]

    def _fail(self, error: RaskidError) -> None:
        super()._fail(error)
        with self.engine.lock:
            waiting: list[Future] = [*self._announced.values()]
            for futures in (*self._following.values(), *self._rooms.values()):
                waiting += futures
            self._announced.clear()
            self._following.clear()
            self._rooms.clear()
            for future in waiting:
                future.fail_with(fresh(error))

    # ── publishing ──

    def publish(self, topic: str, /, *args: Any, **fields: Any) -> None:
        """Send a message to whoever reacts to `topic`; costs one look-up when nobody does.

        A single value that is a function, a lambda, a bound method or a `functools.partial` is called only if somebody
        reacts, and its result is the message: a plain dict with text for all keys gives the message's named fields, any
        other result is the one value. (A class, or another object that can be called, is not: it is a value
        that messages do not carry.) Values are plain data and numpy arrays; other objects raise `ValueNotSendable`.

        While a subscription with policy "block" is full, this waits for it. A callback never waits: what it publishes
        then is queued up to the subscription's capacity, and beyond that the oldest such message is left out and
        counted in the `dropped` of the next.

        Reactions with code run before this returns, so that what was published may be changed afterwards; each has a
        limit of time. Only code of a reaction that publishes does not wait for other code.

        Raises:
            TopicNameError: The topic's name cannot be used.
            Overflow: A subscription with policy "block" stayed full for its limit of 30 s, and this message was left
                out there; or the hub keeps as many lists as it can.
            WaitTimeout: The hub did not say who reads this topic.
        """
        plan: Sequence[Target] | None
        try:
            # What `plan_of` does, for the sake of publishes that nobody hears.
            plan = self._plans.get(topic)
        except TypeError:
            plan = None
        if plan is None:
            topic = check_name(topic)
            self.require(ROLE_MESSAGE, "publishing")
            if self._may_block():
                result_of(self.announce_nowait(topic), FOLLOW_S, not_announced(topic))
                plan = self.plan_of(topic)
        if plan or plan is None:
            found = self.begin_publish(topic, args, fields, self._may_block(), True)
            if found is not NOTHING_TO_WAIT_FOR:
                rooms, waiter = found
                if waiter is not None:
                    self._wait_passed(waiter)
                if rooms:
                    self._wait_rooms(topic, rooms)

    def plan_of(self, topic: Any) -> Sequence[Target] | None:
        """Who reads a topic; None when it has not been announced."""
        try:
            return self._plans.get(topic)
        except TypeError:
            # Not hashable, so no text; whoever looks at the name says so.
            return None

    def announce_nowait(self, topic: str) -> Future:
        """Ask who reads a topic; the future is done when it is known."""
        self.require(ROLE_MESSAGE, "publishing")
        with self.engine.lock:
            future = self.begin_announce(topic)
            if future.done():
                return future
        self.engine.prompt()
        return future

    def begin_announce(self, topic: str) -> Future:
        """As `announce_nowait`, under the lock, and by somebody who writes soon in any case."""
        self.still_alive()
        future = self._announced.get(topic)
        if future is None:
            future = Future(self.engine, name=f"the readers of {topic!r}")
            if topic in self._plans:
                future.resolve_with(None)
                return future
            self._announced[topic] = future
            self.driver.handle(Announce(topic))
        return future

    def _may_block(self) -> bool:
        engine = self.engine
        if self._outgoing.reactor.on_thread():
            # Code of a reaction has its own limit of time, and others wait behind it.
            return False
        if engine.loop is not None:
            return engine.loop is not running_loop()
        return threading.get_ident() not in engine.callback_threads

    def begin_publish(
        self, topic: str, args: tuple[Any, ...], fields: dict[str, Any], waits: bool, through: bool = False
    ) -> tuple[Sequence[Room], Waiter | None]:
        """Send or queue a message, and take it through reactions.

        Returns:
            If the publisher `waits`, the full queues that it has to wait for; and, if it waits until code of reactions
            is `through`, and some runs, whom for.
        """
        messaging = self._messaging
        if topic in messaging.complex:
            return self._react(topic, args, fields, waits, through)
        body = encode_message(args, fields)
        engine = self.engine
        rooms: Sequence[Room] = ()
        with engine.lock:
            if engine.failure is not None or engine.closing:
                engine.check_alive()
            plain = topic not in messaging.complex
            if plain:
                effects = messaging.publish(topic, body, waits)
                if effects:
                    self.driver.perform(effects)
            if waits and plain:
                for target in self._plans.get(topic, ()):
                    if type(target) is Target and target.queue and target.overflow == BLOCK:
                        rooms = [*rooms, self._room(target, target.number)]
        if not plain:
            # Since a moment ago.
            return self._react(topic, args, fields, waits, through)
        if self._plans.get(TRANSIT) != ():
            self._transit.published(topic, len(body))
        engine.prompt()
        return (rooms, None) if rooms else NOTHING_TO_WAIT_FOR

    def _react(
        self, topic: str, args: tuple[Any, ...], fields: dict[str, Any], waits: bool, through: bool
    ) -> tuple[Sequence[Room], Waiter | None]:
        engine = self.engine
        rooms: Sequence[Room] = ()
        engine.check_alive()
        if through and not waits and engine.serves_this_thread():
            # A call in the event loop that is not awaited.
            through = False
        # Held on to what is in the queues: they may be empty a moment later.
        found = self._outgoing.publish(topic, args, fields, waits, through)
        if found is None:
            # The last reaction that was more than a subscription has gone just now.
            return self.begin_publish(topic, args, fields, waits, through)
        full, waiter = found
        if full:
            with engine.lock:
                rooms = [self._room(target, place) for target, place in full if _waits_there(target, place)]
        if self._plans.get(TRANSIT) != ():
            self._transit.published(topic, None)
        if waiter is None:
            engine.prompt()
        return rooms, waiter

    def _room(self, target: Target, place: int) -> Room:
        room = Room(self, target, place)
        self._rooms.setdefault(target.subscription, deque()).append(room)
        return room

    def _wait_passed(self, waiter: Waiter) -> None:
        """Wait until code of reactions is through with what was published."""
        self.engine.check_may_wait()
        self.engine.flush()
        with self.engine.waiting():
            self._outgoing.wait(waiter, self.engine.check_alive)
        # What has come out of the code.
        self.engine.prompt()

    async def wait_passed_async(self, waiter: Waiter) -> None:
        """As `_wait_passed`, in the event loop that drives this session."""
        import asyncio

        loop = asyncio.get_running_loop()
        through = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(through.set)

        with self.engine.lock:
            waiter.callback = wake
            if waiter.done:
                return
        self.engine.flush()
        while not through.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._outgoing.patience()):
                    await through.wait()
            self.engine.check_alive()
        self.engine.prompt()

    def _wait_rooms(self, topic: str, rooms: Sequence[Room]) -> None:
        deadline = time.monotonic() + BLOCK_S
        for room in rooms:
            self.engine.wait_for(room, max(0.0, deadline - time.monotonic()))
        self.end_publish(topic, rooms)

    def end_publish(self, topic: str, rooms: Sequence[Room]) -> None:
        """Leave the message out where it still waits, since time is up, and say so."""
        full: list[Target] = []
        with self.engine.lock:
            for room in rooms:
                if not room.done():
                    self._rooms[room.target.subscription].remove(room)
                    if not self._rooms[room.target.subscription]:
                        del self._rooms[room.target.subscription]
                    room.resolve_with(None)
                    if room.target.withdraw(room.number):
                        full.append(room.target)
        for room in rooms:
            # Raises when the session has ended.
            room.result(0)
        if full:
            raise not_taken(topic, full, BLOCK_S)

    # ── subscribing ──

    def subscribe(
        self, topic: str, callback: Callable[[Message], Any] | None = None, *, capacity: int = 1024,
        overflow: str = BLOCK, timeout: float = SETTLE_S, pull: bool = False, history: int = 0,
        fields: Iterable[str] | None = None, numbered: bool = False, one_of: str = "",
        choose_by: str = ROUND_ROBIN, ack: bool = False, value: Any = None,
    ) -> Subscription:  # fmt: skip
        """Receive the messages of a topic. Returns when every present publisher has acknowledged it.

        Args:
            topic: The topic's name.
            callback: Called with each `Message`, one after the other, on the session's callback threads or in its
                event loop; may be a coroutine function. Without it, iterate.
            capacity: How many messages of one publisher may wait here.
            overflow: What a publisher does beyond that: "block", "drop_oldest", "drop_newest" or "latest".
            timeout: How long to wait for publishers, in seconds; those that were silent stand in `.silent`.
            pull: Nothing is sent, nor made where it is a function, before the reader asks for a message; it gets the
                next one that is published then.
            history: So many messages that publishers keep (`Draft.keep`) come first; -1: all.
            fields: Only these fields of messages, and no positional values.
            numbered: Messages have their `number`.
            one_of: A class of subscriptions; one of them gets each message,
            choose_by: chosen "round_robin", by "random", "least_loaded", or the least "by_value".
            ack: With `one_of`: a message that its reader is not through with when that goes is for another. A reader
                is through with a message when its callback has returned, when it wants the next one, or when it calls
                the message's `done`; see `Subscription`.
            value: What this subscription says of itself, a number where the choice goes by it; `set_value` changes it.

        Raises:
            TypeError, ValueError: An argument cannot be used; the text says which and why.
            Overflow: The hub keeps as many lists as it can.
            WaitTimeout: The hub did not answer.
        """
        subscription, future = self.subscribe_nowait(
            topic, callback, capacity=capacity, overflow=overflow, timeout=timeout, pull=pull, history=history,
            fields=fields, numbered=numbered, one_of=one_of, choose_by=choose_by, ack=ack, value=value,
        )  # fmt: skip
        try:
            reply = result_of(future, timeout + ANSWER_S, not_subscribed(topic))
        except BaseException:
            self.give_up(subscription)
            raise
        subscription.silent = reply.silent
        return subscription

    def subscribe_nowait(
        self, topic: str, callback: Callable[[Message], Any] | None = None, *, capacity: int = 1024,
        overflow: str = BLOCK, timeout: float = SETTLE_S, pull: bool = False, history: int = 0,
        fields: Iterable[str] | None = None, numbered: bool = False, one_of: str = "",
        choose_by: str = ROUND_ROBIN, ack: bool = False, value: Any = None,
    ) -> tuple[Subscription, Future]:  # fmt: skip
        """As `subscribe`, without waiting: the future is done when the publishers have acknowledged."""
        topic = check_name(topic)
        if callback is not None:
            check_callable("callback", callback)
        if overflow not in OVERFLOWS:
            raise ValueError(f"overflow is one of {', '.join(OVERFLOWS)}, got {overflow!r:.60}")
        capacity = check_count("capacity", capacity, 1, CAPACITY_MAX)
        timeout = check_seconds("timeout", timeout)
        _check_manner(callback, overflow, pull, one_of, choose_by, ack)
        engine = self.engine
        identifier = self.request_id()
        operations: tuple[Operation, ...] = JUST_DELIVER
        if fields is not None:
            choose = Operation(CHOOSE, tuple([fields] if isinstance(fields, str) else fields))
            check_operation(choose)
            operations = (choose, *JUST_DELIVER)
        reaction = Reaction(
            self.peer.own_ref, operations, capacity, PULL if pull else str.__str__(overflow), group=one_of,
            choice=choose_by, ack=ack, numbered=check_flag("numbered", numbered) or ack,
            history=check_count("history", history, -1, CAPACITY_MAX), value=value,
        )  # fmt: skip
        record = encode_reaction(reaction)
        subscription = Subscription(
            self, identifier, topic, capacity, callback, pull, ack, bool(one_of) and choose_by == LEAST_LOADED
        )
        subscription.reaction = reaction
        with engine.lock:
            self.still_alive()
            self.subscriptions[identifier] = subscription
            self.driver.handle(Subscribed(identifier, capacity))
        request = PutRecord(identifier, list_name(REACTIONS, topic), str(identifier), record, False, timeout)
        return subscription, self.ask(request)

    def give_up(self, subscription: Subscription) -> None:
        """End a subscription that did not come about, without waiting."""
        if not subscription.closed:
            with contextlib.suppress(RaskidError):
                subscription.close_nowait(0.0)
            subscription.ended()

    def took(self, subscription: Subscription, publisher: PeerId, count: int) -> None:
        """A reader took messages: give the publisher credit."""
        self.engine.tell(Took(subscription.id, publisher, count))

    def handled(self, subscription: Subscription, publisher: PeerId, number: int) -> None:
        """A reader is through with a message that is to be acknowledged."""
        self.engine.tell(Handled(subscription.id, publisher, [number]))

    # ── lists ──

    def shared(self, name: str) -> SharedDict:
        """The shared dictionary of that name: every process sees the same records, in the same order of changes.

        Raises:
            TopicNameError: The name cannot be used.
            Overflow: The hub keeps as many lists as it can.
            WaitTimeout: The hub did not send the list.
        """
        name = check_name(name)
        future = self.follow_nowait(list_name(SHARED, name))
        try:
            result_of(future, FOLLOW_S, not_shared(name))
        except BaseException:
            self.unfollow(list_name(SHARED, name), future)
            raise
        return SharedDict(self, name)

    def follow_nowait(self, name: str) -> Future:
        """Follow a list; the future is done when its first state is here."""
        engine = self.engine
        with engine.lock:
            self.still_alive()
            future = Future(engine, name=f"the list {name!r}")
            self.driver.handle(WatchList(name))
            if self._lists.replicas[name].ready:
                future.resolve_with(None)
            else:
                self._following.setdefault(name, []).append(future)
        engine.prompt()
        return future

    def next_change(self, name: str) -> Future:
        """A future that is done when a list that is followed changes next."""
        with self.engine.lock:
            self.still_alive()
            # Whoever waits no longer leaves the future here until then, so one serves all.
            waiting = self._following.setdefault(name, [])
            if not waiting:
                waiting.append(Future(self.engine, name=f"a change of the list {name!r}"))
            return waiting[0]

    def unfollow(self, name: str, future: Future) -> None:
        """Give up what `follow_nowait` began, unless it was refused."""
        with self.engine.lock:
            waiting = self._following.get(name, [])
            refused = future.done() and future.exception(0) is not None
            if future in waiting:
                waiting.remove(future)
        if not refused:
            self.engine.tell(UnwatchList(name))

    def topics(self, prefix: str = "") -> dict[str, dict[str, int]]:
        """The lists that the hub keeps, as {name: {"version", "records", "readers"}}.

        Args:
            prefix: Only those whose names begin with it; a name is a kind (reactions, shared, services), a colon, and
                the topic's name.
        """
        return topics_of(result_of(self.topics_nowait(prefix), FOLLOW_S, "the hub did not say which lists it keeps"))

    def topics_nowait(self, prefix: str = "") -> Future:
        """As `topics`, as a future of the hub's answer."""
        return self.ask(ListTopics(self.request_id(), check_prefix(prefix)))

    def counters(self) -> dict[str, int]:
        """Wake-ups, system calls, bytes and messages of this process so far. `messages_early_dropped` counts messages
        that callbacks published, and that were left out, before it was known who reads their topic."""
        return {**super().counters(), "messages_early_dropped": self._messaging.dropped_early}


def topics_of(reply: TopicsListed) -> dict[str, dict[str, int]]:
    """The hub's answer as users get it."""
    return {it.name: {"version": it.version, "records": it.records, "readers": it.readers} for it in reply.topics}


def _check_manner(callback: Any, overflow: str, pull: bool, one_of: str, choose_by: str, ack: bool) -> None:
    """Whether what was asked of a subscription goes together."""
    check_flag("pull", pull)
    check_flag("ack", ack)
    check_text("one_of", one_of, 255)
    if pull and (callback is not None or overflow != BLOCK or one_of):
        raise ValueError("a subscription that pulls is iterated over: without callback, overflow and one_of")
    if choose_by not in CHOICES or choose_by == BY_METRIC:
        known = ", ".join(repr(choice) for choice in CHOICES if choice != BY_METRIC)
        raise ValueError(f"choose_by is one of {known}, got {choose_by!r:.60}; a function goes with rk.react(...)")
    if ack and not one_of:
        raise ValueError("ack=True is for a class of subscriptions; name it with one_of=")
    if ack and overflow != BLOCK:
        raise ValueError(f"ack=True goes with overflow='block', since nothing may be left out; got {overflow!r:.60}")


def _waits_there(target: Target, place: int) -> bool:
    """Whether a message still stands in a queue."""
    return any(it[0] == place for it in target.queue)


def not_announced(topic: str) -> str:
    """What to say when the hub is silent."""
    return f"the hub did not say who reads {topic!r}, so that nothing was published on it"


def not_subscribed(topic: str) -> str:
    """What to say when the hub is silent."""
    return f"the hub did not confirm a subscription to {topic!r}"


def not_shared(name: str) -> str:
    """What to say when the hub is silent."""
    return f"the hub did not send the shared list {name!r}"
