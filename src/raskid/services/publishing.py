"""Publishing from inside a task: `raskid.publish`.

A runner is one thread, which the task has. So a publish drives the runner's connections itself: it takes in what has
come for the topic it is about, and does not return before the kernel has what is to be sent, because nothing is written
any more while the task computes.

In the middle of a task a runner acknowledges no change of a topic's readers. Its node does: it notes in the memory that
it shares with the runner how many changes were sent, and answers the hub. Here, before anything is published, those are
taken in that have not been. So whoever has subscribed gets what a task publishes afterwards, however long the task has
not looked, and a publish that nobody reads costs two look-ups (see `docs/design/016-busy-publishers.md`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from raskid.core.effects import Effect, ListRefused, ReactionReported
from raskid.core.events import Announce, CodeRan
from raskid.core.lists import Lists
from raskid.core.messaging import Messaging
from raskid.core.targets import Target
from raskid.io.driver import Driver
from raskid.io.outbox import Outbox
from raskid.model.errors import Overflow, RaskidError, WaitTimeout
from raskid.model.topics import REACTIONS, check_list_name, check_topic
from raskid.protocol.values import encode_message
from raskid.services.outgoing import Outgoing, say_failure

#: The first publish on a topic, and one after a change of its readers, wait for the hub no longer than this.
FOLLOW_S = 10.0
#: A publish waits for room at a reader with policy "block" no longer than this.
BLOCK_S = 30.0
#: And for the kernel to take what is sent; after a reader that needs longer there is no such wait for a while.
WRITE_S = 1.0
WRITE_AGAIN_S = 5.0


def not_taken(topic: str, targets: list[Target], limit_s: float) -> Overflow:
    """What to raise for a message that these subscriptions had no room for in time."""
    who = ", ".join(f"{target.peer} (its queue of {target.capacity} is full)" for target in targets)
    return Overflow(
        f"a message on {topic!r} was not taken within {limit_s:g} s by {who}, and was left out there. Let them "
        "read faster, or subscribe with overflow='drop_oldest' or 'latest'"
    )


class Publisher:
    """Publishes for the tasks of one runner."""

    def __init__(self, driver: Driver, lists: Lists, messaging: Messaging, outbox: Outbox) -> None:
        self._driver = driver
        self._lists = lists
        self._messaging = messaging
        self._outbox = outbox
        self._plans = messaging.plans
        #: A task may publish on several threads; one at a time drives.
        self._lock = threading.RLock()
        self._refused: dict[str, ListRefused] = {}
        self._write_at = 0.0
        self._outgoing = Outgoing(driver, messaging, self._tell, replaces=True)

    def on_effect(self, effect: Effect) -> None:
        """Take note of what the machines tell, and do what they ask for."""
        if type(effect) is ListRefused:
            kind, topic = check_list_name(effect.name)
            if kind == REACTIONS:
                self._refused[topic] = effect
        elif type(effect) is ReactionReported:
            if not effect.peer:
                say_failure(effect.message)
        else:
            self._outgoing.on_effect(effect)

    def publish(self, topic: str, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        """As `raskid.publish`."""
        if self._outgoing.reactor.on_thread():
            self._publish_from_code(topic, args, fields)
            return
        try:
            plan = self._plans.get(topic)
        except TypeError:
            plan = None
        if plan is None or self._outbox.announced != self._lists.changes:
            topic = str.__str__(check_topic(topic))
            with self._lock:
                self._catch_up(topic)
                plan = self._plans.get(topic) or self._follow(topic)
        if not plan:
            return
        with self._lock:
            if topic in self._messaging.complex:
                self._react(topic, args, fields)
            else:
                self._send(topic, encode_message(args, fields))

    def _catch_up(self, topic: str) -> None:
        """Take in the changes that the node has answered for."""
        self._drive(lambda: self._lists.changes >= self._outbox.announced, FOLLOW_S, topic)

    def _follow(self, topic: str) -> tuple[Target, ...]:
        if topic not in self._plans:
            self._refused.pop(topic, None)
            self._driver.handle(Announce(topic))
            self._drive(lambda: topic in self._plans or topic in self._refused, FOLLOW_S, topic)
        refused = self._refused.pop(topic, None)
        if refused is not None:
            raise RaskidError(f"nothing can be published on {topic!r}: {refused.text}")
        return self._plans[topic]

    def _send(self, topic: str, body: bytes) -> None:
        driver, messaging = self._driver, self._messaging
        if any(target.credit <= 0 for target in self._plans.get(topic, ())):
            # There may be credit that has not been looked at.
            driver.step(0)
        with driver.lock:
            driver.perform(messaging.publish(topic, body, True, driver.clock()))
            driver.perform(messaging.collect())
            waiting = [(target, target.number) for target in messaging.blocked(topic)]
        driver.flush()
        full = [target for target, number in waiting if not self._has_room(target, number)]
        self._write()
        if full:
            raise not_taken(topic, full, BLOCK_S)

    def _publish_from_code(self, topic: str, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        """Code of a reaction publishes: it waits for nothing, since the task may be waiting for it, and drives."""
        driver, messaging = self._driver, self._messaging
        found = None
        if topic in messaging.complex:
            found = self._outgoing.publish(topic, args, fields, waits=False, through=False)
        if found is None and self._plans.get(topic) != ():
            body = encode_message(args, fields)
            with driver.lock:
                driver.perform(messaging.publish(str.__str__(check_topic(topic)), body, False, driver.clock()))
        with driver.lock:
            driver.perform(messaging.collect())
        driver.wake()

    def _react(self, topic: str, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        """Take a message through reactions that are more than plain subscribers."""
        driver = self._driver
        if any(target.credit <= 0 for target in self._messaging.targets_of(topic)):
            driver.step(0)
        found = self._outgoing.publish(topic, args, fields, waits=True, through=True)
        if found is None:
            # The last reaction that was more than a subscription has gone just now.
            self._send(topic, encode_message(args, fields))
            return
        full, waiter = found
        with driver.lock:
            driver.perform(self._messaging.collect())
        driver.flush()
        if waiter is not None:
            self._outgoing.wait(waiter, _nothing, driver.step)
            with driver.lock:
                driver.perform(self._messaging.collect())
            driver.flush()
        left_out = [target for target, number in full if not self._has_room(target, number)]
        self._write()
        if left_out:
            raise not_taken(topic, left_out, BLOCK_S)

    def _tell(self, event: CodeRan) -> None:
        """Code of a reaction is through; called on its thread."""
        driver = self._driver
        with driver.lock:
            driver.handle(event)
            # Nobody comes by to write it when the task that published goes on computing meanwhile.
            driver.flush()
        driver.wake()

    def _has_room(self, target: Target, number: int) -> bool:
        """Wait until a message has left a full queue; it is left out there when time is up."""
        until = time.monotonic() + BLOCK_S
        while target.queue and target.queue[0][0] <= number:
            left = until - time.monotonic()
            if left <= 0:
                with self._driver.lock:
                    return not target.withdraw(number)
            self._driver.step(left)
        return True

    def _write(self) -> None:
        """Wait until the kernel has what is to be sent."""
        driver = self._driver
        now = time.monotonic()
        if now < self._write_at:
            return
        while driver.unwritten():
            left = now + WRITE_S - time.monotonic()
            if left <= 0:
                self._write_at = time.monotonic() + WRITE_AGAIN_S
                return
            driver.step(left)

    def _drive(self, done: Callable[[], bool], limit_s: float, topic: str) -> None:
        until = time.monotonic() + limit_s
        while not done():
            left = until - time.monotonic()
            if left <= 0:
                raise WaitTimeout(f"the hub did not say within {limit_s:g} s who reads {topic!r}: nothing was sent")
            self._driver.step(left)


def _nothing() -> None:
    return


#: The publisher of this process, if it is a runner.
_publisher: Publisher | None = None


def in_task() -> bool:
    """Whether this process is a runner, so that what calls this is a task."""
    return _publisher is not None


def serve_tasks(publisher: Publisher) -> None:
    """Let the tasks that run in this process publish."""
    global _publisher
    _publisher = publisher
    os.register_at_fork(after_in_child=_leave_to_the_task)


def _leave_to_the_task() -> None:
    # The connections are the task's, not those of a process that it has forked.
    global _publisher
    _publisher = None


def publish(topic: str, /, *args: Any, **fields: Any) -> None:
    """Send a message, from inside a task, to whoever reacts to `topic`; as `Session.publish` does in a script.

    It costs two look-ups when nobody reacts, so that a simulation can publish its state at every step. While a
    subscription with policy "block" is full this waits for it.

    Raises:
        RuntimeError: This process is no runner. In a script, use the session's `publish`.
        TopicNameError: The topic's name cannot be used.
        ValueNotSendable: A value is of a kind that messages do not carry.
        Overflow: A subscription with policy "block" stayed full for its limit of 30 s.
        WaitTimeout: The hub did not say who reads this topic.
    """
    if _publisher is None:
        raise RuntimeError(
            "raskid.publish() is for tasks, and this process is no runner (one that a task has forked is none). In a "
            "script, publish with its session: rk.publish(topic, ...)"
        )
    _publisher.publish(topic, args, fields)
