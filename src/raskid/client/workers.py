"""The two background threads of a session: they drive its IO while nobody else does, and run the user's callbacks.

The thread that has read a message runs its callbacks itself, since handing them to another thread costs more than
most callbacks. It gives the baton back first, and the second thread stands by: when callbacks take long, that one
drives meanwhile. Callbacks run one at a time, in the order in which their messages came. (Known as leader and
followers: Schmidt et al., Pattern-Oriented Software Architecture, volume 2.)

A callback may wait for an answer that a handler of this very session gives. While one waits, handlers of requests do
not stand in line behind it: each runs at once, on a thread of its own.

While nothing happens one thread waits for descriptors and the other for a word; neither looks at a clock.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raskid.client.engine import Engine

#: These threads keep away from driving for so long after a call that drove: the next one often follows at once.
QUIET_S = 0.005
#: While somebody else drives for long there is nothing to do but to look now and then, at most so far apart.
PAUSE_S_MAX = 0.02
#: After the last callback the second thread stands by for so long, ready to drive should one take long.
STANDBY_S = 0.1
#: At most so many handlers run on threads of their own, because a callback waits; more stand in line.
APART_MAX = 64

_pc = time.perf_counter


class Workers:
    """The background threads of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: What to call, with which arguments, and whether it is the handler of a request.
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...], bool]] = deque()
        #: How many callbacks wait for something now, and how many handlers run on threads of their own.
        self._waiting = 0
        self._apart = 0
        #: The threads on which callbacks run, as `threading.get_ident` names them.
        self.idents: set[int] = set()
        #: Whether both threads were begun: the second one comes with the first callback.
        self._complete = False
        #: Held by the thread that runs callbacks.
        self._calling = threading.Lock()
        self._called_at = 0.0
        self._word = threading.Condition(threading.Lock())
        #: How many threads rest, and how many of them without a limit.
        self._resting = 0
        self._asleep = 0
        self._threads: list[threading.Thread] = []
        self._begin()

    def _begin(self) -> None:
        thread = threading.Thread(target=self._work, name=f"raskid-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], handler: bool = False) -> None:
        """Run a callback soon, after those before it; `handler`: it may answer a request that one of those made."""
        if handler:
            with self._word:
                if self._waiting and self._run_apart(function, args):
                    return
                self._calls.append((function, args, True))
        else:
            self._calls.append((function, args, False))
        if self._engine.closing and not any(thread.is_alive() for thread in self._threads):
            # A future that is done can still be given a callback when the session is over.
            while self._calls and self._run_calls():
                pass
            return
        if not self._complete:
            with self._word:
                if len(self._threads) < 2:
                    self._begin()
                self._complete = True
        # Whoever runs callbacks now looks again before it rests; a thread that is one of ours looks when its turn of
        # IO is over.
        if not self._calling.locked() and threading.get_ident() not in self.idents:
            self.rouse()

    @property
    def busy(self) -> bool:
        """Whether a callback runs here, or waits to."""
        return bool(self._calls) or self._calling.locked()

    def wait_begins(self) -> None:
        """The callback that runs on this thread waits: what it waits for may be a handler that stands behind it."""
        with self._word:
            self._waiting += 1
            while self._apart < APART_MAX and (call := self._take_handler()) is not None:
                self._run_apart(call[0], call[1])

    def _take_handler(self) -> tuple[Callable[..., Any], tuple[Any, ...], bool] | None:
        """The next handler of a request that stands in line, taken out of it."""
        for call in list(self._calls):
            if call[2]:
                # Whoever runs callbacks may take it at the same moment; only one of us gets it.
                with contextlib.suppress(ValueError, IndexError):
                    self._calls.remove(call)
                    return call
        return None

    def wait_ends(self) -> None:
        """It waits no longer."""
        with self._word:
            self._waiting -= 1

    def _run_apart(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        if self._apart >= APART_MAX:
            return False
        self._apart += 1
        threading.Thread(target=self._work_apart, args=(function, args), name="raskid-apart", daemon=True).start()
        return True

    def _work_apart(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        ident = threading.get_ident()
        self.idents.add(ident)
        while True:
            try:
                function(*args)
            except BaseException:
                traceback.print_exc()
            with self._word:
                # What came while there were as many of these threads as there may be still stands in line.
                call = self._take_handler() if self._waiting else None
                if call is None:
                    self._apart -= 1
                    break
            function, args = call[0], call[1]
        self.idents.discard(ident)

    def rouse(self) -> None:
        """Let a thread that waits look around."""
        with self._word:
            if self._resting:
                self._word.notify()
                return
        if self._engine.in_step:
            self._engine.driver.wake()

    def _work(self) -> None:
        engine = self._engine
        self.idents.add(threading.get_ident())
        pause = QUIET_S
        while not engine.closing or self._calls:
            if self._calls and self._run_calls():
                if self._calls and engine.loop is None and not engine.closing and engine.baton.acquire(blocking=False):
                    # More are waiting, and connections want to be served in between.
                    engine.take_turn(look=False, wait=False)
                continue
            now = _pc()
            if (
                engine.closing
                or engine.loop is not None
                or engine.waiters
                or now - engine.drove_at < QUIET_S
                # Two threads that both run Python are slower than one: the other takes over only from a callback that
                # takes long.
                or (self._calling.locked() and now - self._called_at < QUIET_S)
                or not engine.baton.acquire(blocking=False)
            ):
                if engine.nudged and engine.loop is None and not engine.closing:
                    engine.nudged = False
                    engine.flush()
                pause = self._rest(now, pause)
                continue
            pause = QUIET_S
            # A process that is asked again and again is worth a look before it sleeps.
            engine.take_turn(now - self._called_at < QUIET_S)

    def _rest(self, now: float, pause: float) -> float:
        """Wait until it may be worth looking again; returns how long to wait the next time."""
        engine = self._engine
        with self._word:
            if self._calls and not self._calling.locked():
                return pause
            limit: float | None = pause
            if engine.in_step or engine.loop is not None:
                # The other thread waits for descriptors, or an event loop does: nothing to do without a word.
                pause = QUIET_S
                limit = QUIET_S if now - self._called_at < STANDBY_S else None
            self._resting += 1
            self._asleep += limit is None
            try:
                self._word.wait(limit)
            finally:
                self._resting -= 1
                self._asleep -= limit is None
        return min(pause * 1.5, PAUSE_S_MAX)

    def _run_calls(self) -> bool:
        """Run the callbacks that wait; False when another thread is at it."""
        if not self._calling.acquire(blocking=False):
            return False
        try:
            started = self._called_at = _pc()
            with self._word:
                if self._asleep:
                    # From here on it looks every now and then whether these callbacks take long.
                    self._word.notify()
            calls = self._calls
            while calls:
                try:
                    function, args, _ = calls.popleft()
                except IndexError:
                    # A callback that waits took it for a thread of its own.
                    break
                try:
                    function(*args)
                except BaseException:
                    # As the standard library does for callbacks: say it, and go on. Not even SystemExit ends more
                    # than the callback: others wait behind it.
                    traceback.print_exc()
                # Waiting for the next call must not keep a future of the last one alive.
                del function, args
                self._called_at = _pc()
                if self._called_at - started > QUIET_S:
                    # Many short ones: `_work` serves the connections in between.
                    break
        finally:
            self._calling.release()
        return True

    def close(self, patience_s: float) -> None:
        """The engine is closing: wait until what is due has run, but not for ever, since a callback may never return.

        Called from a callback, it does not wait for that one, nor for those behind it, which follow.
        """
        with self._word:
            self._word.notify_all()
        me = threading.current_thread()
        if me in self._threads:
            return
        deadline = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def abandon(self) -> None:
        """In a process that was forked: the threads are not here."""
        self._threads = []
        self._calls.clear()
        self._calling = threading.Lock()
        self._word = threading.Condition(threading.Lock())
        self._resting = self._asleep = self._waiting = self._apart = 0
        self.idents.clear()
