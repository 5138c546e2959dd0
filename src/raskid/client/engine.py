"""Drives a session's IO, from whichever thread is best placed to do it.

A thread that waits drives: it runs the loop itself until its value is there, since handing a message from one thread
to another costs more than the message. While nobody waits, a background thread does, so that subscriptions, changes
of lists and acknowledgements go on. It keeps away for a moment after each call, because the next one often follows
at once. Inside asyncio the event loop drives instead.

Writes are collected while they come thick, and go out at the latest when the background thread gets its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raskid.core.machine import Effect, Event
from raskid.io.driver import Driver
from raskid.model.errors import SessionClosed, WrongThread
from raskid.model.ids import TaskId

if TYPE_CHECKING:
    from raskid.client.futures import Future

#: The background thread keeps away for so long after a call that drove.
QUIET_S = 0.005
#: Writes that come closer together than this are collected. Well under a round trip, so that calls and answers,
#: which follow one another, each go out at once.
BURST_S = 0.00004
COLLECT_MAX = 64
#: How long a thread that waits looks for its answer before it sleeps.
SPIN_S = 0.0001 if (os.cpu_count() or 1) > 1 else 0.0


class Engine:
    """The loop of one session. `lock` guards everything that the loop touches."""

    def __init__(self, driver: Driver, collect: Callable[[], list[Effect]]) -> None:
        self.driver = driver
        self.lock = driver.lock
        #: Gives the effects that were collected for the next write (batches of tasks).
        self._collect = collect
        self._baton = threading.Lock()
        self._turn = threading.Condition(threading.Lock())
        self._waiters = 0
        self._drove_at = 0.0
        self._prompted_at = 0.0
        self._apart = 1.0
        self._unsent = 0
        self._nudged = False
        self._io_in_step = False
        self._releases: deque[TaskId] = deque()
        self.on_release: Callable[[list[TaskId]], None] = lambda tasks: None
        self.on_cancel: Callable[[list[TaskId]], None] = lambda tasks: None
        self.failure: Exception | None = None
        self.closing = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._caller: threading.Thread | None = None
        self._thread = threading.Thread(target=self._background, name="raskid-io", daemon=True)
        self._thread.start()
        self.pid = os.getpid()

    # ── sending ──

    def send(self, event: Event) -> None:
        """Give the machines a command and write what follows from it."""
        self.driver.handle(event)
        self.prompt()

    def prompt(self) -> None:
        """Write what is collected: at once, or soon when writes come thick."""
        now = time.perf_counter()
        self._unsent += 1
        apart, before = now - self._prompted_at, self._apart
        self._prompted_at, self._apart = now, apart
        # One long gap can be a pause inside a burst (another process had the processor); two in a row are none.
        if (apart > BURST_S and before > BURST_S) or self._unsent >= COLLECT_MAX:
            self.flush()
        elif not self._nudged:
            self.nudge()

    def flush(self) -> None:
        """Write what is collected now."""
        with self.lock:
            self._unsent = 0
            self._release_collected()
            effects = self._collect()
            if effects:
                self.driver.perform(effects)
            self.driver.flush()
            if self.loop is not None:
                self._arm()
            elif self._io_in_step:
                # The background thread waits, and knows nothing of a deadline that has just been set.
                deadline = self.driver.station.next_deadline()
                until = self.driver.waits_until
                if deadline is not None and (until is None or deadline < until):
                    self.driver.wake()

    def release(self, task: TaskId) -> None:
        """A future is gone. Called by the garbage collector, at any moment: it may not take the lock."""
        self._releases.append(task)
        if self._io_in_step and len(self._releases) == 1:
            # Nobody else would come by to tell the manager.
            self.driver.wake()

    def _release_collected(self) -> None:
        if self._releases:
            released = []
            while self._releases:
                released.append(self._releases.popleft())
            self.on_release(released)

    def cancel(self, tasks: list[TaskId]) -> None:
        """Ask that tasks be not started."""
        with self.lock:
            self.on_cancel(tasks)
        self.flush()

    def nudge(self) -> None:
        """See to it that the background thread takes a turn soon."""
        self._nudged = True
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._on_loop)
        elif self._io_in_step:
            self.driver.wake()

    # ── waiting ──

    def wait_for(self, future: Future, timeout: float | None) -> bool:
        """Drive until a future is done; False when time is up."""
        return self.wait(future.done, timeout)

    def wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Drive, or let somebody drive, until `done()`; False when time is up."""
        if done():
            return True
        me = threading.current_thread()
        if me is self._thread or (self.loop is not None and _running_loop() is self.loop):
            raise WrongThread(
                "a blocking call was made on the thread that serves this session's messages. Inside asyncio, await "
                "instead; inside a callback, use another thread"
            )
        self._check_alive()
        deadline = None if timeout is None else time.monotonic() + timeout
        self.flush()
        while not done():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            if self._baton.acquire(blocking=False):
                try:
                    self._drive(done, deadline)
                finally:
                    self._drove_at = time.perf_counter()
                    self._baton.release()
                    if self._waiters:
                        with self._turn:
                            self._turn.notify_all()
            else:
                with self._turn:
                    self._waiters += 1
                    if self._io_in_step:
                        self.driver.wake()
                    try:
                        if not done():
                            self._turn.wait(0.05 if left is None else min(left, 0.05))
                    finally:
                        self._waiters -= 1
            self._check_alive(done)
        return True

    def _drive(self, done: Callable[[], bool], deadline: float | None) -> None:
        step = self.driver.step
        self.driver.spin_s = SPIN_S
        try:
            self._drive_until(step, done, deadline)
        finally:
            self.driver.spin_s = 0.0

    def _drive_until(
        self, step: Callable[[float | None], bool], done: Callable[[], bool], deadline: float | None
    ) -> None:
        while not done():
            if self.failure is not None or self.closing:
                return
            left = None
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
            step(left)
            if self._waiters:
                with self._turn:
                    self._turn.notify_all()
            if self._unsent or self._releases:
                self.flush()

    def _check_alive(self, done: Callable[[], bool] | None = None) -> None:
        if done is not None and done():
            return
        if self.failure is not None:
            raise self.failure
        if self.closing:
            raise SessionClosed("this session was closed")
        if self.pid != os.getpid():
            raise SessionClosed("this session belongs to the process that forked this one; connect again here")

    # ── the background thread ──

    def _background(self) -> None:
        driver = self.driver
        pause = QUIET_S
        while not self.closing:
            recent = time.perf_counter() - self._drove_at < QUIET_S
            if self.loop is not None or recent or self._waiters or not self._baton.acquire(blocking=False):
                if self._nudged and self.loop is None:
                    self._nudged = False
                    self.flush()
                time.sleep(pause)
                # While somebody drives for long there is nothing to do here but to look now and then.
                pause = min(pause * 1.5, 0.02)
                continue
            pause = QUIET_S
            try:
                self._nudged = False
                self.flush()
                self._io_in_step = True
                if not self._nudged:
                    driver.step(0 if self._releases else None)
            except Exception:
                if not self.closing:
                    traceback.print_exc()
                    time.sleep(QUIET_S)
            finally:
                self._io_in_step = False
                self._baton.release()
                if self._waiters:
                    with self._turn:
                        self._turn.notify_all()

    # ── callbacks ──

    def call_soon(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a user's function on the session's callback thread, or in its event loop."""
        if self.loop is not None:
            if _running_loop() is self.loop:
                self.loop.call_soon(function, *args)
            else:
                self.loop.call_soon_threadsafe(function, *args)
            return
        if self._caller is None:
            self._caller = threading.Thread(target=self._call, name="raskid-callbacks", daemon=True)
            self._caller.start()
        self._calls.put((function, args))

    def _call(self) -> None:
        while (item := self._calls.get()) is not None:
            function, args = item
            try:
                function(*args)
            except Exception:
                # As the standard library does for callbacks: say it, and go on.
                traceback.print_exc()
            # Waiting for the next call must not keep a future of the last one alive.
            del item, function, args

    # ── asyncio ──

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let an event loop drive from now on. Called on its thread."""
        self.loop = loop
        self.driver.wake()
        while not self._baton.acquire(timeout=0.001):
            self.driver.wake()
        loop.add_reader(self.driver.poller.fileno(), self._on_loop)
        self._on_loop()

    def detach(self) -> None:
        """The event loop drives no longer."""
        if self.loop is not None:
            loop, self.loop = self.loop, None
            if self._timer is not None:
                self._timer.cancel()
            with contextlib.suppress(Exception):
                loop.remove_reader(self.driver.poller.fileno())
            self._baton.release()

    def _on_loop(self) -> None:
        if self.loop is None or self.closing:
            return
        self._nudged = False
        self.driver.step(0)
        if self._unsent or self._releases:
            self.flush()
        self._arm()

    def _arm(self) -> None:
        deadline = self.driver.station.next_deadline()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None and self.loop is not None:
            delay = max(0.0, deadline - self.driver.clock())
            self._timer = self.loop.call_later(delay, self._on_loop)

    def close(self) -> None:
        """End the threads and close the connections."""
        if self.closing:
            return
        self.detach()
        self.closing = True
        self.driver.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(2.0)
        self._calls.put(None)
        if self._caller is not None and self._caller is not threading.current_thread():
            self._caller.join(0.5)
        self.driver.close()
        with self._turn:
            self._turn.notify_all()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
