"""The basket as a service: subscribes to topics, keeps what comes (`raskid.core.basket`), answers those who read.

It serves requests under ``basket/<name>``; the first argument says what is asked. Messages are stored under the
session's lock as they arrive, so that no queue stands before the basket, and their publishers get credit at once.

`raskid.client.baskets` is what users call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from raskid.core.basket import Basket
from raskid.core.effects import Arrived
from raskid.core.events import Subscribed, Took, Unsubscribed
from raskid.core.peer import Peer
from raskid.model.errors import RaskidError
from raskid.model.ids import PeerId, RequestId
from raskid.model.topics import REACTIONS, list_name
from raskid.protocol.messages import DeleteRecord, PutRecord
from raskid.protocol.reactions import BLOCK, JUST_DELIVER, Reaction, encode_reaction

FACTORY = "raskid.services.basket:BasketService"
#: Of each publisher so many messages may be under way to a basket.
CAPACITY = 65_536
#: An answer has no more messages and bytes of bodies than this, but one message at least.
PAGE_COUNT = 1024
PAGE_BYTES = 1 << 20
#: What a topic is kept to where nobody said otherwise.
BYTES = 64 << 20
#: How long a question waits for messages that are under way.
UNDER_WAY_S = 1.0
#: How often messages are dropped whose time is up.
SWEEP_S = 5.0
#: How much longer than it was asked to the hub may take to answer.
ANSWER_S = 5.0


def service_name(basket: str) -> str:
    """Under which name a basket answers requests."""
    return f"basket/{basket}"


def process_name(basket: str) -> str:
    """The name of a basket's process among the services of the system."""
    return f"basket:{basket}"


def publisher_name(peers: Peer, publisher: PeerId) -> str:
    """What names a publisher of numbered messages: its id, and with it the incarnation where that is not the first."""
    if publisher == peers.identity.peer:
        incarnation = peers.identity.incarnation
    else:
        ref = peers.ref(publisher)
        incarnation = ref.incarnation if ref is not None else 0
    return f"{publisher}#{incarnation}" if incarnation > 1 else publisher


def subscribe_numbered(session: Any, subscription: Any, capacity: int, settle_s: float) -> Any:
    """Have the messages of `subscription.topic` come to `subscription.arrived`, with their numbers, and before them
    what publishers keep; returns a future that is done when the publishers have acknowledged that."""
    with session.engine.lock:
        session.still_alive()
        session.subscriptions[subscription.id] = subscription
        session.driver.handle(Subscribed(subscription.id, capacity))
    reaction = Reaction(session.peer.own_ref, JUST_DELIVER, capacity, BLOCK, numbered=True, history=-1)
    return session.ask(
        PutRecord(
            session.request_id(), list_name(REACTIONS, subscription.topic), str(subscription.id),
            encode_reaction(reaction), False, settle_s,
        )
    )  # fmt: skip


class _Feed:
    """The subscription of one topic; stands among the session's."""

    #: The session goes on while there is one.
    has_callback = True

    def __init__(self, session: Any, basket: Basket, topic: str) -> None:
        self._session = session
        self._basket = basket
        self.id: RequestId = session.request_id()
        self.topic = topic
        #: The publishers that messages came from, by what names them in the basket.
        self._names: dict[PeerId, str] = {}
        self._uncredited: dict[PeerId, int] = {}

    # By the session, under its lock.

    def arrived(self, arrived: Arrived) -> None:
        """Messages came, or an introduction."""
        publisher = arrived.publisher
        name = self._names[publisher] = publisher_name(self._session.peer, publisher)
        if not arrived.bodies:
            for first in arrived.numbers:
                self._basket.introduce(self.topic, name, first)
            return
        now = self._session.driver.clock()
        for number, body in zip(arrived.numbers, arrived.bodies, strict=False):
            self._basket.store(self.topic, name, number, body, now)
        count = self._uncredited.pop(publisher, 0) + len(arrived.bodies)
        if count < CAPACITY // 4:
            self._uncredited[publisher] = count
        else:
            self._session.driver.handle(Took(self.id, publisher, count))

    def publisher_ended(self, publisher: PeerId, dropped: int = 0) -> None:
        """A publisher, or somebody who never was one, sends nothing more."""
        self._uncredited.pop(publisher, None)
        self._basket.end(self.topic, self._names.pop(publisher, publisher))

    def ended(self) -> None:
        """The session has ended."""

    # By the service.

    def close(self) -> Any:
        """End the subscription; returns a future that is done when no publisher sends anything more."""
        session = self._session
        with session.engine.lock:
            session.subscriptions.pop(self.id, None)
        session.engine.tell(Unsubscribed(self.id))
        return session.ask(DeleteRecord(session.request_id(), list_name(REACTIONS, self.topic), str(self.id), ANSWER_S))


class BasketService:
    """The service.

    Args:
        session: The session of the process.
        name: The basket's name.
    """

    def __init__(self, session: Any, name: str) -> None:
        self._session = session
        self._lock = session.engine.lock
        #: The session's lock guards it, and what comes next.
        self._basket = Basket()
        #: Topic → its subscription, and when that is acknowledged.
        self._feeds: dict[str, tuple[_Feed, Any]] = {}
        #: Set when there is something that expires, or at the end.
        self._wake = threading.Event()
        self._closed = False
        threading.Thread(target=self._sweep, name="raskid-basket", daemon=True).start()
        self._does: dict[str, Callable[..., Any]] = {
            "keep": self.keep, "drop": self.drop, "read": self.read, "read_publisher": self.read_publisher,
            "latest": self.latest, "take_over": self.take_over, "info": self.info,
        }  # fmt: skip
        session.serve(service_name(name), self._answer)

    def _answer(self, what: str, *args: Any, **fields: Any) -> Any:
        do = self._does.get(what)
        if do is None:
            raise ValueError(f"a basket is not asked to {what!r:.60}; it knows {', '.join(self._does)}")
        return do(*args, **fields)

    def _now(self) -> float:
        now: float = self._session.driver.clock()
        return now

    # ── what is asked ──

    def keep(
        self, topic: str, count: int | None = None, seconds: float | None = None, size: int | None = BYTES,
        settle_s: float = ANSWER_S, only_new: bool = False,
    ) -> list[str]:  # fmt: skip
        """Keep a topic, or change its limits unless `only_new`; answers when its publishers have acknowledged, with
        those that have not."""
        with self._lock:
            if not (only_new and self._basket.keeps(topic)):
                self._basket.keep(topic, self._now(), count=count, seconds=seconds, size=size)
            settled = self._follow(topic, settle_s)
        if seconds is not None:
            self._wake.set()
        try:
            return list(settled.result(settle_s + ANSWER_S).silent)
        except RaskidError:
            # What cannot be subscribed to is not kept either.
            with self._lock:
                feed = self._feeds.get(topic)
                if feed is not None and feed[1] is settled:
                    del self._feeds[topic]
                    self._basket.drop(topic)
                    self._session.subscriptions.pop(feed[0].id, None)
            raise

    def _follow(self, topic: str, settle_s: float) -> Any:
        known = self._feeds.get(topic)
        if known is None:
            feed = _Feed(self._session, self._basket, topic)
            known = self._feeds[topic] = (feed, subscribe_numbered(self._session, feed, CAPACITY, settle_s))
        return known[1]

    def drop(self, topic: str) -> int:
        """Keep a topic no longer; answers how many messages that were."""
        with self._lock:
            count = self._basket.drop(topic)
            feed, _ = self._feeds.pop(topic)
        feed.close().result(2 * ANSWER_S)
        return count

    def read(
        self, topic: str, after: int = 0, count: int = PAGE_COUNT
    ) -> tuple[list[tuple[str, int, bytes]], int, bool, dict[str, int]]:
        """A page: messages as (publisher, number, body), where the next one begins, whether there is none, and the
        highest numbers if so."""
        with self._lock:
            self._basket.expire(self._now())
            page = self._basket.read(topic, after, min(count, PAGE_COUNT), PAGE_BYTES)
        return page.messages, page.position, page.complete, page.latest

    def read_publisher(self, topic: str, publisher: str, first: int, last: int) -> tuple[list[tuple[int, bytes]], int]:
        """Messages of one publisher as (number, body), and up to which number nothing else will come here.

        Waits for a moment if they are under way.
        """

        def is_there() -> bool:
            with self._lock:
                return (
                    not self._basket.keeps(topic)
                    or self._basket.read_publisher(topic, publisher, first, last, 1, 0).until >= first
                )

        self._session.engine.wait(is_there, UNDER_WAY_S)
        with self._lock:
            self._basket.expire(self._now())
            extract = self._basket.read_publisher(topic, publisher, first, last, PAGE_COUNT, PAGE_BYTES)
        return extract.messages, extract.until

    def latest(self, topic: str) -> dict[str, int]:
        """The highest number of each publisher."""
        with self._lock:
            return self._basket.latest(topic)

    def take_over(self, topic: str, publisher: str, messages: list[tuple[int, bytes, float]]) -> int:
        """Keep what a publisher that leaves has kept, as (number, body, age in seconds); answers how many were new
        here. The topic is kept from now on if it was not."""
        given = [(int(number), bytes(body), float(age_s)) for number, body, age_s in messages]
        with self._lock:
            if not self._basket.keeps(topic):
                self._basket.keep(topic, self._now(), size=BYTES)
                self._follow(topic, ANSWER_S)
            return self._basket.take_over(topic, publisher, given, self._now())

    def info(self) -> dict[str, dict[str, Any]]:
        """What is kept, by topic."""
        with self._lock:
            self._basket.expire(self._now())
            facts = [self._basket.facts(topic) for topic in self._basket.topics()]
        return {
            it.topic: {
                "messages": it.count, "bytes": it.body_bytes, "publishers": it.publishers, "dropped": it.dropped,
                "count_max": it.count_max, "seconds_max": it.seconds_max, "bytes_max": it.bytes_max,
            }
            for it in facts
        }  # fmt: skip

    # ── time ──

    def _sweep(self) -> None:
        """Free the memory of what has expired while nobody asks."""
        while not self._closed:
            with self._lock:
                self._basket.expire(self._now())
                timed = any(self._basket.facts(topic).seconds_max for topic in self._basket.topics())
            self._wake.wait(SWEEP_S if timed else None)
            self._wake.clear()

    def close(self) -> None:
        """The process ends, and what it keeps is gone."""
        self._closed = True
        self._wake.set()
