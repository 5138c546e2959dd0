"""Baskets, as a user calls them: ``rk.basket(name)`` keeps messages of topics for whoever subscribes later.

A basket is a service (`raskid.services.basket`) in a process of its own, which is started when it is first used. What a
subscriber gets is put together here from what the basket has and what comes live, by `raskid.core.history`.

In asyncio the calls that wait are awaited; what they give is the same.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from raskid.client.checks import check_callable, check_count, check_limit, check_name, check_seconds
from raskid.client.extensions import SERVICE_S, STOP_S
from raskid.client.messages import ANSWER_S, Message, Subscription
from raskid.client.requests import GRACE_S
from raskid.client.waiting import Steps, take_steps, take_steps_in
from raskid.core.basket import BYTES_MAX, COUNT_MAX, SECONDS_MAX, Extract, Page
from raskid.core.effects import Arrived
from raskid.core.events import Took
from raskid.core.history import History, Messages
from raskid.model import errors
from raskid.model.errors import NotRunning, RaskidError, RemoteError, StartFailed
from raskid.model.ids import PeerId, RequestId
from raskid.model.topics import TOPIC_BYTES_MAX
from raskid.protocol.messages import AskStatus
from raskid.protocol.reactions import CAPACITY_MAX
from raskid.services.basket import (
    BYTES,
    FACTORY,
    PAGE_BYTES,
    PAGE_COUNT,
    process_name,
    publisher_name,
    service_name,
    subscribe_numbered,
)
from raskid.services.extension import Extension

if TYPE_CHECKING:
    from raskid.client.session import Session

SETTLE_S = 5.0
#: How long a basket may take to answer.
REQUEST_S = 10.0
#: Messages that a basket has not got this long after it was asked for them are taken for lost.
UNDER_WAY_S = 10.0
#: A service in one of these states answers, or will.
_LIVES = ("starting", "running", "paused")


class BasketExtension(Extension):
    """What `rk.basket` gives: call it with a name."""

    def __call__(self, name: str = "main") -> Any:
        """The basket of that name, which is started if it does not run yet; gives a `BasketHandle`.

        Raises:
            TopicNameError: The name cannot be used.
            StartFailed: The basket could not be started.
            NotAllowed: It does not run, and starting it needs the role "execute".
        """
        session = getattr(self.session, "session", None)
        handle = BasketHandle(session or self.session, _check_basket(name), session is not None)
        return handle._take(handle._starting())


BasketExtension.asynchronous = BasketExtension


class BasketHandle:
    """One basket.

    Attributes:
        name: Its name.
    """

    def __init__(self, session: Session, name: str, in_loop: bool) -> None:
        self._session = session
        self.name = name
        self._in_loop = in_loop

    def keep(
        self, topic: str, count: int | None = None, seconds: float | None = None, bytes: int | None = BYTES, *,
        timeout: float = SETTLE_S,
    ) -> Any:  # fmt: skip
        """Keep the messages of a topic from now on, or change its limits; beyond them the oldest go, and are counted.

        Returns when every present publisher has acknowledged it; the result names those that did not in time. What
        publishers keep themselves (`Draft.keep`) comes into the basket as well. ``rk.react(topic).keep(basket=...)``
        does the same for a topic that the basket does not keep yet.

        Args:
            topic: The topic's name.
            count: So many messages at most, 1,000,000 in any case.
            seconds: Each for so long; None: as long as there is room.
            bytes: So many bytes at most; None: as many as there are. A message that is longer leaves nothing there.
            timeout: How long to wait for publishers, in seconds.

        Raises:
            TypeError, ValueError: An argument cannot be used; the text says which and why.
            BasketFull: The basket keeps as many topics as it can.
        """
        topic = check_name(topic)
        count = None if count is None else check_count("count", count, 1, COUNT_MAX)
        size = None if bytes is None else check_count("bytes", bytes, 1, BYTES_MAX)
        limit = check_limit("seconds", seconds)
        if limit is not None and not 0 < limit <= SECONDS_MAX:
            raise ValueError(f"seconds is above 0 and up to {SECONDS_MAX:g}, or None for no limit, got {seconds!r}")
        settle_s = check_seconds("timeout", timeout)
        return self._take(self._asking("keep", topic, count, limit, size, settle_s, timeout=settle_s + 2 * ANSWER_S))

    def messages(self, topic: str) -> Any:
        """The messages of a topic that are in the basket now, as a list, the oldest first.

        Raises:
            NotKept: The basket does not keep that topic.
        """
        return self._take(self._reading(check_name(topic)))

    def subscribe(
        self, topic: str, callback: Callable[[Message], Any] | None = None, *, capacity: int = 1024,
        timeout: float = SETTLE_S,
    ) -> Any:  # fmt: skip
        """Receive the messages of a topic that the basket has, and then those that are published, each once and in
        order for each publisher.

        Gives a `BasketSubscription`, which is used as every `Subscription`. Its publishers wait when its reader is
        slow (overflow "block").

        Args:
            topic: The topic's name, which the basket keeps.
            callback: As for `Session.subscribe`.
            capacity: How many messages of one publisher, and of the basket, may wait here.
            timeout: How long to wait for publishers, in seconds.

        Raises:
            NotKept: The basket does not keep that topic.
            TypeError, ValueError: An argument cannot be used; the text says which and why.
        """
        topic = check_name(topic)
        if callback is not None:
            check_callable("callback", callback)
        capacity = check_count("capacity", capacity, 1, CAPACITY_MAX)
        return self._take(self._subscribing(topic, callback, capacity, check_seconds("timeout", timeout)))

    def info(self) -> Any:
        """What the basket keeps: for each topic "messages", "bytes", "publishers", how many messages were "dropped"
        because of its limits, and these: "count_max", "seconds_max", "bytes_max"."""
        return self._take(self._asking("info"))

    def drop(self, topic: str) -> Any:
        """Keep a topic no longer; the result is how many messages are gone with it.

        Raises:
            NotKept: The basket does not keep that topic.
        """
        return self._take(self._asking("drop", check_name(topic), timeout=REQUEST_S + ANSWER_S))

    def close(self) -> Any:
        """End the basket for everybody: its process ends, and what it keeps is gone."""
        return self._take(self._closing())

    # ── steps ──

    def _take(self, steps: Steps[Any]) -> Any:
        return take_steps_in(steps) if self._in_loop else take_steps(steps)

    def _lives(self) -> Steps[bool]:
        session = self._session
        reply = yield session.ask(AskStatus(session.request_id())), REQUEST_S, "the manager did not say what runs"
        name = process_name(self.name)
        return any(it["name"] == name and it["state"] in _LIVES for it in reply.facts["services"])

    def _starting(self) -> Steps[BasketHandle]:
        session = self._session
        name = process_name(self.name)
        if not (yield from self._lives()):
            future = session.start_service_nowait(name, FACTORY, {"name": self.name})
            try:
                yield future, SERVICE_S, f"the basket {self.name!r} did not start"
            except StartFailed:
                # Somebody else may have been faster.
                if not (yield from self._lives()):
                    raise
            except BaseException:
                session.give_up_service(name, future)
                raise
        return self

    def _asking(self, what: str, *args: Any, timeout: float = REQUEST_S) -> Steps[Any]:
        future = self._session.request_nowait(service_name(self.name), what, *args, timeout=timeout)
        try:
            return (yield future, timeout + GRACE_S, f"the basket {self.name!r} did not answer")
        except RemoteError as error:
            raise _plain(error) from None

    def _reading(self, topic: str) -> Steps[list[Message]]:
        found: list[Message] = []
        position, complete = 0, False
        while not complete:
            messages, position, complete, _ = yield from self._asking("read", topic, position)
            for publisher, number, body in messages:
                found.append(_message(topic, publisher, number, body, 0))
        return found

    def _subscribing(
        self, topic: str, callback: Callable[[Message], Any] | None, capacity: int, settle_s: float
    ) -> Steps[BasketSubscription]:
        session = self._session
        subscription = BasketSubscription(session, session.request_id(), topic, capacity, callback, self.name)
        try:
            future = subscribe_numbered(session, subscription, capacity, settle_s)
            reply = yield future, settle_s + ANSWER_S, f"the hub did not confirm a subscription to {topic!r}"
            subscription.silent = reply.silent
            # Only now: whoever has published before this went into the basket, and whoever does later sends it here.
            subscription.take_page((yield from self._asking("read", topic, 0, subscription.page_count)))
        except BaseException:
            session.give_up(subscription)
            raise
        return subscription

    def _closing(self) -> Steps[None]:
        name = process_name(self.name)
        try:
            yield self._session.stop_service_nowait(name), STOP_S, f"the basket {self.name!r} did not end"
        except NotRunning:
            return

    def __repr__(self) -> str:
        return f"<raskid.BasketHandle {self.name!r}>"


class BasketSubscription(Subscription):
    """What a basket has of a topic, and then what is published.

    Attributes:
        complete: Whether all that the basket had is here.
    """

    _session: Session

    def __init__(
        self, session: Session, identifier: RequestId, topic: str, capacity: int,
        callback: Callable[[Message], Any] | None, basket: str,
    ) -> None:  # fmt: skip
        super().__init__(session, identifier, topic, capacity, callback)
        self._service = service_name(basket)
        self._history = History()
        self._position = 0
        #: The last message of a page: when it is taken, the next page is asked for.
        self._page_end: Message | None = None
        #: What names the publishers in the history; a peer is forgotten here when it has ended.
        self._names: dict[PeerId, str] = {}
        #: Numbers of live messages for which their publisher has no credit yet, rising.
        self._live: dict[str, deque[int]] = {}
        #: The last number that was handed out, by publisher.
        self._last: dict[str, int] = {}
        #: Until when answers about a publisher are waited for.
        self._limits: dict[str, float] = {}

    @property
    def complete(self) -> bool:
        """Whether all that the basket had is here."""
        return self._history.complete

    @property
    def page_count(self) -> int:
        """So many messages are asked for at once."""
        return min(self.capacity, PAGE_COUNT)

    # ── by the session, under its lock ──

    def arrived(self, arrived: Arrived) -> None:
        """Live messages came, or an introduction."""
        peer = arrived.publisher
        name = self._names.get(peer)
        if name is None:
            name = self._names[peer] = publisher_name(self._session.peer, peer)
        history = self._history
        out: Messages = []
        if not arrived.bodies:
            for first in arrived.numbers:
                out += history.introduced(name, first)
        doubled = 0
        live = self._live.setdefault(name, deque())
        for number, body in zip(arrived.numbers, arrived.bodies, strict=False):
            if number <= history.done(name):
                doubled += 1
            else:
                live.append(number)
                out += history.live(name, number, body)
        if doubled:
            self._session.driver.handle(Took(self.id, peer, doubled))
        self._hand_out(out)

    def publisher_ended(self, publisher: PeerId, dropped: int = 0) -> None:
        """A publisher sends nothing more."""
        name = self._names.pop(publisher, None)
        if name is not None:
            self._hand_out(self._history.publisher_ended(name))
            if not self._live.get(name):
                self._live.pop(name, None)

    def _hand_out(self, messages: Messages, ends_page: bool = False) -> None:
        """Let readers have them, and ask what is to be asked."""
        found = []
        for name, number, body in messages:
            last = self._last.get(name, number - 1)
            self._last[name] = number
            message = _message(self.topic, name, number, body, number - last - 1)
            live = self._live.get(name)
            while live and live[0] <= number:
                # What came live and is not handed out any more was had already, or left out; it has gone, too.
                live.popleft()
                message._credit += 1
            found.append(message)
        self.dropped = self._history.dropped
        self._gather_credit(found)
        if ends_page and found:
            # Before anybody can take it.
            self._page_end = found[-1]
            self._page_end._credit = self._page_end._credit or -1
        if self._callback is not None:
            self._callback.call_each([(message,) for message in found], self._through)
        else:
            self._messages.extend(found)
            for _ in range(min(len(found), len(self._waiters))):
                self._wake_one()
        questions = self._history.take_questions()
        if questions:
            # Not here: this may be in the middle of what the machines say.
            self._session.engine.call_soon(self._ask_basket, questions)

    def _gather_credit(self, messages: list[Message]) -> None:
        """Let publishers hear of many messages at once."""
        for message in messages:
            if message._credit:
                peer = message.publisher
                count = self._uncredited.pop(peer, 0) + message._credit
                message._credit = count if count >= self._batch else 0
                if not message._credit:
                    self._uncredited[peer] = count

    # ── what the basket says ──

    def take_page(self, answer: Any) -> None:
        """A page came."""
        messages, position, complete, latest = answer
        with self._session.engine.lock:
            if self.closed:
                return
            self._position = position
            page = Page([tuple(it) for it in messages], position, complete, latest)
            out = self._history.stored(page)
            # The next one when these are taken; so no more than a page waits here.
            self._hand_out(out, ends_page=not complete)
        if not out and not complete:
            self._read_on()
        self._session.engine.rouse()

    def _read_on(self) -> None:
        self._request(self._page_came, "read", self.topic, self._position, self.page_count)

    def _page_came(self, future: Any) -> None:
        try:
            self.take_page(future.result(0))
        except RaskidError as error:
            self._lost_basket(error)

    def _ask_basket(self, questions: list[tuple[str, int, int]]) -> None:
        for name, first, last in questions:
            self._limits.setdefault(name, self._session.driver.clock() + UNDER_WAY_S)
            self._request(partial(self._answer_came, name, last), "read_publisher", self.topic, name, first, last)

    def _answer_came(self, name: str, last: int, future: Any) -> None:
        try:
            messages, until = future.result(0)
        except RaskidError as error:
            self._lost_basket(error)
            return
        with self._session.engine.lock:
            if self.closed:
                return
            if self._session.driver.clock() > self._limits[name]:
                until = last
            if until >= last:
                del self._limits[name]
            self._hand_out(self._history.answered(name, Extract([tuple(it) for it in messages], until)))
        self._session.engine.rouse()

    def _lost_basket(self, error: RaskidError) -> None:
        """The basket does not answer any more: go on with what is live."""
        with self._session.engine.lock:
            if not self.closed and self._session.engine.failure is None:
                print(f"raskid: a subscription to {self.topic!r} goes on without its basket: {error}", file=sys.stderr)
                self._hand_out(self._history.basket_ended())
        self._session.engine.rouse()

    def _request(self, then: Callable[[Any], None], what: str, *args: Any) -> None:
        if self.closed:
            return
        try:
            self._session.request_nowait(self._service, what, *args, timeout=REQUEST_S).add_done_callback(then)
        except RaskidError:
            # The session has ended.
            return

    # ── taking messages ──

    def _through(self, message: Message) -> None:
        if message is self._page_end:
            self._page_end = None
            self._session.engine.call_soon(self._read_on)
        if message._credit > 0:
            super()._through(message)


def keep_new(
    session: Session, name: str, topic: str, count: int | None, seconds: float | None, size: int | None, settle_s: float
) -> Steps[None]:
    """Have a basket keep a topic from now on, unless it does already: what somebody has asked of it stays."""
    handle = yield from BasketHandle(session, _check_basket(name), False)._starting()
    limit_s = settle_s + 2 * ANSWER_S
    yield from handle._asking("keep", topic, count, seconds, size or BYTES, settle_s, True, timeout=limit_s)


def handing_over(session: Session, kept: Sequence[tuple[str, str, list[tuple[int, bytes, float]]]]) -> Steps[None]:
    """What a session does before it leaves: give what it keeps (`Messaging.kept`) to the baskets that are to have it.

    What cannot be handed over is told on the standard error.
    """
    own = publisher_name(session.peer, session.peer.identity.peer)
    for topic, name, messages in kept:
        try:
            handle = yield from BasketHandle(session, name, False)._starting()
            for part in _parts(messages):
                yield from handle._asking("take_over", topic, own, part)
        except RaskidError as error:
            print(
                f"raskid: the basket {name!r} did not get all {len(messages)} messages on {topic!r} that were kept for "
                f"it: {error}",
                file=sys.stderr,
            )


def _parts(messages: list[tuple[int, bytes, float]]) -> Iterator[list[tuple[int, bytes, float]]]:
    """Messages in portions of about the size of a page, in order."""
    part: list[tuple[int, bytes, float]] = []
    size = 0
    for message in messages:
        if part and (len(part) >= PAGE_COUNT or size + len(message[1]) > PAGE_BYTES):
            yield part
            part, size = [], 0
        part.append(message)
        size += len(message[1])
    if part:
        yield part


def _check_basket(given: Any) -> str:
    name: str = check_name(given)
    # The longest name that is made of it is to be one, too.
    if len(service_name(name).encode()) > TOPIC_BYTES_MAX:
        raise errors.TopicNameError(f"the name of a basket has at most {TOPIC_BYTES_MAX - 7} bytes, got {name[:40]!r}…")
    return name


def _plain(error: RemoteError) -> Exception:
    """The error that the basket raised, if it is one of those that it is known for."""
    if error.kind in ("NotKept", "BasketFull", "Overflow"):
        kind: type[RaskidError] = getattr(errors, error.kind)
        return kind(str(error).removeprefix(f"{error.kind}: "))
    return error


def _message(topic: str, publisher: str, number: int, body: bytes, dropped: int) -> Message:
    message = Message(topic, PeerId(publisher.partition("#")[0]), dropped, body)
    message.number = number
    return message
