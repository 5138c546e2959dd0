"""Publishing through reactions that are more than plain subscribers: the part outside of the machines.

Code of reactions runs on the reactor's thread. Whoever publishes waits for it, because what was published is his to
change as soon as `publish` returns. Only what is published by code of a reaction itself waits for nothing: it stands in
the same line, behind the code that publishes it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from raskid.core.chains import Passing, check_hops
from raskid.core.effects import CheckCode, DropCode, Effect, Passed, RunCode
from raskid.core.events import CodeRan
from raskid.core.messaging import Messaging
from raskid.core.targets import Target
from raskid.io.driver import Driver
from raskid.protocol.messages import ReactionFailed
from raskid.protocol.values import LAZY, evaluate_message
from raskid.services.reacting import Reactor

#: How long to wait before looking whether the code at work has used up its time, where it is not known.
LOOK_S = 1.0


def say_failure(message: Any) -> None:
    """Print what failed here in a reaction whose owner has gone: nobody else would say it.

    Args:
        message: A `ReactionFailed`, or what else is told of reactions, of which there is nothing to say.
    """
    if isinstance(message, ReactionFailed):
        where = f"operation {message.step}" if message.step >= 0 else "its clean-up or metric"
        stops = ". It is suspended here" if message.suspended else ""
        print(
            f"raskid: a reaction on {message.topic!r}, whose owner has gone, failed here in {where} "
            f"({message.failures} times so far): {message.error}: {message.text}{stops}",
            file=sys.stderr,
        )


#: What is to be waited for, when nobody wants a message.
_NOTHING: tuple[list[tuple[Target, int]], None] = ([], None)


class Waiter:
    """Somebody who waits until a message is through."""

    __slots__ = ("callback", "lock", "passing")

    def __init__(self, passing: Passing) -> None:
        self.passing = passing
        self.lock = threading.Lock()
        self.lock.acquire()
        #: Called once it is through, on whichever thread.
        self.callback: Callable[[], None] | None = None

    @property
    def done(self) -> bool:
        """Whether the message is through."""
        return self.passing.done


class Outgoing:
    """What one process publishes through reactions.

    Args:
        driver: Performs effects; its lock guards everything here.
        messaging: The machine.
        tell: Gives an event to the machines, from whichever thread, and has its effects written.
        replaces: As for `raskid.services.codes.CodeLoader`: this process is a runner.
    """

    def __init__(
        self,
        driver: Driver,
        messaging: Messaging,
        tell: Callable[[CodeRan], None],
        replaces: bool,
    ) -> None:
        self._driver = driver
        self._messaging = messaging
        self.reactor = Reactor(tell, replaces=replaces)
        self._waiters: dict[int, Waiter] = {}
        self._woken = 0

    def on_effect(self, effect: Effect) -> None:
        """Perform what the machines ask for; under the lock."""
        kind = type(effect)
        if kind is RunCode:
            self.reactor.run(effect)  # type: ignore[arg-type]
        elif kind is Passed:
            waiter = self._waiters.pop(effect.message, None)  # type: ignore[attr-defined]
            if waiter is not None:
                self._woken += 1
                waiter.lock.release()
                if waiter.callback is not None:
                    waiter.callback()
        elif kind is DropCode:
            self.reactor.drop(effect.job)  # type: ignore[attr-defined]
        elif kind is CheckCode:
            # It answers by giving an event to the machines, which are at work just now.
            job = effect.job  # type: ignore[attr-defined]
            threading.Thread(target=self.reactor.check, args=(job,), name="raskid-watch", daemon=True).start()

    def publish(
        self, topic: str, args: tuple[Any, ...], fields: dict[str, Any], waits: bool, through: bool
    ) -> tuple[list[tuple[Target, int]], Waiter | None] | None:
        """Publish on a topic whose reactions are more than plain subscribers.

        Returns:
            The full queues with policy "block" in which the message stands, each with its place there, if `waits`; and
            whom to wait for, if somebody waits until code of reactions is `through`, and some runs. None at all: its
            reactions have become plain subscribers meanwhile, and nothing was published.

        Raises:
            RemoteProtocolError: Code publishes what it was called for, again and again.
            ValueNotSendable: Messages do not carry it, and some reaction wants it as it is, or nobody waits.
        """
        hops = self.reactor.hops()
        if hops is None:
            hops = 0
        else:
            # Code that publishes passes a message on, as a forward does, and is waited for by nobody.
            through = False
            hops += 1
            check_hops(topic, hops)
        driver, messaging = self._driver, self._messaging
        with driver.lock:
            now = driver.clock()
            if topic not in messaging.complex:
                return None
            passing = messaging.begin(topic, waits, now)
            if passing is None:
                return _NOTHING
            passing.hops = hops
            passing.awaited = through
            if not args or not isinstance(args[0], LAZY):
                return self._go(passing, args, fields, now, through)
        # A user's function, which is called outside of the lock.
        args, fields = evaluate_message(args, fields)
        with driver.lock:
            return self._go(passing, args, fields, driver.clock(), through)

    def _go(
        self, passing: Passing, args: tuple[Any, ...], fields: dict[str, Any], now: float, through: bool
    ) -> tuple[list[tuple[Target, int]], Waiter | None]:
        effects = self._messaging.go(passing, args, fields, now)
        waiter = None
        if through and not passing.done:
            # Before anything is performed: code may be through at once.
            passing.told = True
            waiter = self._waiters[passing.id] = Waiter(passing)
        if effects:
            self._driver.perform(effects)
        if passing.unsendable is not None:
            self._waiters.pop(passing.id, None)
            raise passing.unsendable
        return passing.waiting, waiter

    def wait(self, waiter: Waiter, check_alive: Callable[[], None], step: Callable[[float], Any] | None = None) -> None:
        """Wait until a message is through; raises what `check_alive` does.

        Args:
            waiter: Whom `publish` gave.
            check_alive: Raises when it never will be.
            step: Serves the connections for so many seconds, where nobody else does; otherwise this thread sleeps.
        """
        acquire = waiter.lock.acquire
        left = self.patience()
        while not (acquire(timeout=left) if step is None else acquire(blocking=False)):
            if step is not None:
                step(left)
            check_alive()
            left = self.patience()
        if not waiter.done:
            check_alive()

    def patience(self) -> float:
        """How long to sleep before the clock of the code at work is to be looked at again, in seconds."""
        left = self.reactor.check()
        return LOOK_S if left is None else min(max(left, 0.001), LOOK_S)

    def close(self) -> None:
        """Run nothing more, and let those go who wait."""
        self.reactor.close()
        self.let_go()

    def count_woken(self) -> int:
        """How many of those who waited were woken so far, each of whom writes what is to be sent."""
        return self._woken

    def let_go(self) -> None:
        """What those wait for who wait here will never be."""
        with self._driver.lock:
            waiters, self._waiters = list(self._waiters.values()), {}
        for waiter in waiters:
            waiter.lock.release()
            if waiter.callback is not None:
                waiter.callback()
