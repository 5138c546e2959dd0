"""Drives a session's IO, from whichever thread is best placed to do it.

A thread that waits drives: it runs the loop itself until its value is there, since handing a message from one thread
to another costs more than the message. While nobody waits, a background thread does, so that subscriptions, changes
of lists and acknowledgements go on. It keeps away for a moment after each call, because the next one often follows
at once. Inside asyncio the event loop drives instead.

Writes are collected while they come thick, and go out at the latest when the background thread gets its turn.

Who drives. At every moment the IO has one driver or none, and the driver holds `baton`:

- a caller that waits, inside `_drive`; `driving` then names its thread, and it gives the baton back when its value is
  there;
- a background thread, inside `take_turn`; `in_step` is true exactly while it may be waiting for descriptors or is
  handling what came, and `stepping` then names it;
- an event loop, from `attach` to `detach`; `loop` is set exactly then, and nobody else takes the baton.

From this follows who has to be told what:

1. Whoever wants something of the driver first sets what the driver looks at before it sleeps, and then looks whether
   it sleeps; the driver does it the other way round. So `nudged` (somebody wants a flush), `waiters` and `_releases`
   are set before `in_step` and `driving` are read, and the driver sets those before it reads the others. Neither can
   miss the other.
2. A thread that waits without driving counts itself in `waiters` before it looks whether its value is there; a driver
   looks at `waiters` after it has handled what came. So no value comes unnoticed.
3. A caller drives only until its own value is there. When it stops, it notifies the waiters, one of which takes over,
   and the background threads take over when there is none.
4. Everything that the loop touches, futures included, changes under `lock` only. Nobody waits for descriptors, runs
   a user's function, or takes `baton` while holding it.
5. When `failure` is set, under `lock`, everybody who waits is told; whoever registers something to wait for looks at
   `failure` under the same lock first.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from raskid.client.loops import running_loop
from raskid.client.workers import QUIET_S, Workers
from raskid.core.effects import Effect
from raskid.core.events import Event
from raskid.io.driver import Driver
from raskid.model.errors import SessionClosed, WrongThread
from raskid.model.ids import TaskId

if TYPE_CHECKING:
    import asyncio

    from raskid.client.futures import Future

#: Writes that come closer together than this are collected. Well under a round trip, so that calls and answers,
#: which follow one another, each go out at once.
BURST_S = 0.00004
COLLECT_MAX = 64
#: How long an event loop collects futures that are gone.
RELEASE_S = 0.1
#: How long a thread that waits looks for its answer before it sleeps.
SPIN_S = 0.0001 if (os.cpu_count() or 1) > 1 else 0.0
#: A thread that waits and does not drive is notified. Should it ever not be, it looks by itself.
LOOK_S = 0.05
#: How long to go on writing that we leave.
GOODBYE_S = 0.5
#: How long callbacks that are due may hold up the end of their session.
PATIENCE_S = 2.0


def fresh(error: Exception) -> Exception:
    """A copy to raise: every raise adds its frames to the object, and one that is kept would grow, and keep frames."""
    # The constructors of errors take other arguments than `args`.
    copy = error.__class__.__new__(error.__class__, *error.args)
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy


class Engine:
    """The loop of one session. `lock` guards everything that the loop touches."""

    def __init__(self, driver: Driver, collect: Callable[[], list[Effect]]) -> None:
        self.driver = driver
        self.lock = driver.lock
        #: Gives the effects that were collected for the next write (batches of tasks).
        self._collect = collect
        self.baton = threading.Lock()
        self._turn = threading.Condition(threading.Lock())
        self.waiters = 0
        self.drove_at = 0.0
        self._prompted_at = 0.0
        self._apart = 1.0
        self._unsent = 0
        self.nudged = False
        #: A background thread waits for descriptors, or handles what came; which one.
        self.in_step = False
        self.stepping: threading.Thread | None = None
        #: Which thread drives because it waits for something itself, as `threading.get_ident` names it; 0: none.
        self.driving = 0
        self._releases: deque[TaskId] = deque()
        self._releasing = False
        self.on_release: Callable[[list[TaskId]], None] = lambda tasks: None
        self.on_cancel: Callable[[list[TaskId]], None] = lambda tasks: None
        self.failure: Exception | None = None
        self.closing = False
        #: The session, while something may come that somebody waits for without holding the session itself. Otherwise
        #: the engine, which threads hold, must not keep it.
        self.owner: Any = None
        self.loop: asyncio.AbstractEventLoop | None = None
        #: The thread of the event loop, whose timers nobody else may set.
        self._loop_thread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        #: During a turn of IO in the event loop: what to call at its end.
        self._turn_calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] | None = None
        self._workers = Workers(self)
        #: The threads on which callbacks run, as `threading.get_ident` names them.
        self.callback_threads = self._workers.idents

    # ── sending ──

    def send(self, event: Event) -> None:
        """Give the machines a command and write what follows from it.

        Raises:
            SessionClosed: The session is over.
        """
        with self.lock:
            if self.failure is not None or self.closing:
                self.check_alive()
            self.pass_on()
            self.driver.handle(event)
        self.prompt()

    def pass_on(self) -> None:
        """Under the lock: hand what is collected to the machines, so that what comes next does not overtake it."""
        if self._unsent:
            effects = self._collect()
            if effects:
                self.driver.perform(effects)

    def tell(self, event: Event) -> None:
        """As `send`, for what nobody misses once the session is over."""
        if self.failure is None and not self.closing:
            with contextlib.suppress(SessionClosed):
                self.send(event)

    def tell_quietly(self, event: Event, woken: Callable[[], int]) -> None:
        """As `tell`; what follows from it is written by whoever it wakes, and only if it wakes nobody (`woken` counts
        those) seen to here: to wake a third thread for that costs as much again."""
        with self.lock:
            if self.failure is not None or self.closing:
                return
            before = woken()
            self.driver.handle(event)
            if woken() != before:
                return
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
        elif not self.nudged:
            self.nudge()

    def settle(self) -> None:
        """Somebody begins to wait, and need not wait for what is collected here."""
        if self._unsent and not self.nudged:
            self.nudge()

    def flush(self) -> None:
        """Write what is collected now."""
        with self.lock:
            if self.closing:
                return
            self._unsent = 0
            self._release_collected()
            effects = self._collect()
            if effects:
                self.driver.perform(effects)
            self.driver.flush()
            if self.loop is not None:
                self._arm_soon()
            elif self.in_step or self.driving:
                # Whoever drives waits, and knows nothing of a deadline that has just been set.
                deadline = self.driver.next_deadline()
                until = self.driver.waits_until
                if deadline is not None and (until is None or deadline < until):
                    self.driver.wake()

    def release(self, task: TaskId) -> None:
        """A future is gone. Called by the garbage collector, at any moment: it may not take the lock."""
        self._releases.append(task)
        driving = self.driving
        if self.in_step or (driving and driving != threading.get_ident()):
            # Nobody else would come by to tell the manager.
            self.driver.wake()
        elif self.loop is not None and not self._releasing:
            self._releasing = True
            # Only this may be called at any moment; a timer may not.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._release_later)

    def _arm_soon(self) -> None:
        """`_arm`, from whichever thread."""
        if self._loop_thread == threading.get_ident():
            self._arm()
            return
        deadline = self.driver.next_deadline()
        if deadline is not None and (self._timer is None or deadline < self._timer_at) and self.loop is not None:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._arm)

    def _release_later(self) -> None:
        if self.loop is not None:
            self.loop.call_later(RELEASE_S, self._release_now)

    def _release_now(self) -> None:
        self._releasing = False
        self._on_loop()

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
        self.nudged = True
        if self.loop is not None:
            if self._loop_thread == threading.get_ident():
                self.loop.call_soon(self._on_loop)
            else:
                self.loop.call_soon_threadsafe(self._on_loop)
        elif self.in_step or (self.driving and self.driving != threading.get_ident()):
            self.driver.wake()

    def rouse(self) -> None:
        """Something came about on this thread that others may wait for: have them look. Whoever drives notices by
        itself only what comes over connections."""
        if self.driving and self.driving != threading.get_ident():
            self.driver.wake()
        else:
            self._notify()

    def rouse_all(self) -> None:
        """Something that everybody has to see came about: the end."""
        self.driver.wake()
        self._notify()

    def _notify(self) -> None:
        if self.waiters:
            with self._turn:
                self._turn.notify_all()

    # ── waiting ──

    def wait_for(self, future: Future, timeout: float | None) -> bool:
        """Drive until a future is done; False when time is up."""
        return self.wait(future.done, timeout)

    def wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Drive, or let somebody drive, until `done()`; False when time is up."""
        if done():
            return True
        self.check_may_wait()
        self.check_alive()
        deadline = None if timeout is None else time.monotonic() + timeout
        self.flush()
        with self.waiting():
            return self._wait_until(done, deadline)

    def check_may_wait(self) -> None:
        """Raise WrongThread where a blocking call would wait for itself."""
        if self.stepping is threading.current_thread() or (self.loop is not None and running_loop() is self.loop):
            raise WrongThread(
                "a blocking call was made on the thread that serves this session's messages. Inside asyncio, await "
                "instead"
            )
        if self.lock._is_owned():  # type: ignore[attr-defined]
            # Nobody waits while holding it, but for the handler of a signal that came just then.
            raise WrongThread(
                "a blocking call was made in the handler of a signal, in the middle of another call of this session. "
                "Have the handler set a flag, and look at it in the program"
            )

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait: if this is a callback, handlers of requests do not stand in line behind it meanwhile."""
        if threading.get_ident() not in self.callback_threads:
            yield
            return
        self._workers.wait_begins()
        try:
            yield
        finally:
            self._workers.wait_ends()

    def _wait_until(self, done: Callable[[], bool], deadline: float | None) -> bool:
        while not done():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            if self.driving == threading.get_ident():
                # The handler of a signal waits, inside of a wait of its own thread, which drives.
                self._drive(done, deadline)
            elif self.loop is None and self.baton.acquire(blocking=False):
                try:
                    self._drive(done, deadline)
                finally:
                    self.drove_at = time.perf_counter()
                    self.baton.release()
                    self._notify()
            else:
                with self._turn:
                    self.waiters += 1
                    if self.in_step:
                        self.driver.wake()
                    try:
                        if not done():
                            self._turn.wait(LOOK_S if left is None else min(left, LOOK_S))
                    finally:
                        self.waiters -= 1
            if not done():
                self.check_alive()
        return True

    def drive_here(self, done: Callable[[], bool], timeout: float) -> None:
        """Drive until `done()` on the thread of the event loop, which stands still meanwhile."""
        until = time.monotonic() + timeout
        self.flush()
        while not done() and self.failure is None and (left := until - time.monotonic()) > 0:
            self.driver.step(min(left, LOOK_S))

    def _drive(self, done: Callable[[], bool], deadline: float | None) -> None:
        step = self.driver.step
        # This thread is the user's.
        self.driver.looking.look(SPIN_S, may_move=False)
        outer, self.driving = self.driving, threading.get_ident()
        try:
            self._drive_until(step, done, deadline)
        finally:
            self.driving = outer
            if not outer:
                self.driver.looking.look(0.0, may_move=False)

    def _drive_until(
        self, step: Callable[[float | None], bool], done: Callable[[], bool], deadline: float | None
    ) -> None:
        while not done():
            if self.failure is not None or self.closing or self.loop is not None:
                return
            left = None
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
            # From here on a nudge wakes us; what came before it is written now.
            self.nudged = False
            if self._unsent or self._releases:
                self.flush()
                # What this process said to itself is here now, and no connection will tell.
                self._notify()
                if done():
                    return
            step(left)
            self._notify()
        if self._unsent or self._releases:
            self.flush()

    def check_alive(self) -> None:
        """Raise what ended the session, if it has ended.

        Raises:
            SessionClosed: It was closed, its head is gone, or it belongs to the process that forked this one.
            ConnectionRefused: The head did not take it in.
        """
        if self.failure is not None:
            raise fresh(self.failure)
        if self.closing:
            raise SessionClosed("this session was closed")

    # ── background threads ──

    def take_turn(self, look: bool, wait: bool = True) -> None:
        """One turn of IO on a background thread that holds the baton, which it gives back.

        Args:
            look: Look for a moment before sleeping.
            wait: Sleep at all.
        """
        driver = self.driver
        try:
            self.nudged = False
            self.flush()
            if self.owner is not None:
                self._let_go()
            self.in_step = True
            self.stepping = threading.current_thread()
            if not self.nudged and not self.waiters:
                driver.looking.look(SPIN_S if look else 0.0, may_move=True)
                driver.step(None if wait and not self._releases else 0)
        except Exception:
            if not self.closing:
                traceback.print_exc()
                time.sleep(QUIET_S)
        finally:
            self.in_step = False
            self.stepping = None
            driver.looking.look(0.0, may_move=False)
            self.baton.release()
            self._notify()

    def _let_go(self) -> None:
        """Before a sleep: hold the session no longer when nothing is pending in it."""
        with self.lock:
            if self.owner is not None and not self.owner.is_used():
                self.owner = None

    def call_soon(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a user's function on one of the session's background threads, or in its event loop."""
        if self.loop is None or self._workers.busy:
            # Also behind callbacks that were due when an event loop took over.
            self._workers.call(function, args)
        elif self._turn_calls is not None and self._loop_thread == threading.get_ident():
            self._turn_calls.append((function, args))
        elif running_loop() is self.loop:
            self.loop.call_soon(function, *args)
        else:
            self.loop.call_soon_threadsafe(function, *args)

    def call_handler(self, function: Callable[..., Any], *args: Any) -> None:
        """As `call_soon`, for the handler of a request: a callback that waits does not hold it up."""
        if self.loop is None:
            self._workers.call(function, args, handler=True)
        else:
            self.call_soon(function, *args)

    def serves_this_thread(self) -> bool:
        """Whether an event loop drives, and runs on this thread."""
        return self.loop is not None and running_loop() is self.loop

    # ── asyncio ──

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let an event loop drive from now on. Called on its thread."""
        self.loop = loop
        self._loop_thread = threading.get_ident()
        self.driver.wake()
        while not self.baton.acquire(timeout=0.001):
            self.driver.wake()
        loop.add_reader(self.driver.poller.fileno(), self._on_loop)
        self._on_loop()

    def detach(self) -> None:
        """The event loop drives no longer."""
        loop = self.loop
        if loop is None:
            return
        if self._loop_thread == threading.get_ident() or not loop.is_running():
            self._detach(loop)
            return
        # What belongs to an event loop may be touched on its thread only.
        done = threading.Event()

        def detach() -> None:
            if self.loop is loop:
                self._detach(loop)
            done.set()

        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(detach)
        done.wait(PATIENCE_S)

    def _detach(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with contextlib.suppress(Exception):
            loop.remove_reader(self.driver.poller.fileno())
        self.baton.release()
        self._notify()
        self._workers.rouse()

    def _on_loop(self, tick: bool = False) -> None:
        if self.loop is None or self.closing:
            return
        self.nudged = False
        loop = self.loop
        calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._turn_calls = calls
        try:
            self.driver.turn(tick)
        finally:
            self._turn_calls = None
            try:
                # Here, and not by way of the loop, whose next turn would cost as much again.
                self._call_all(loop, calls)
            finally:
                if self._unsent or self._releases:
                    self.flush()
                else:
                    self._arm()
                self._notify()

    def _call_all(
        self, loop: asyncio.AbstractEventLoop, calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]]
    ) -> None:
        while calls:
            function, args = calls.popleft()
            try:
                function(*args)
            except Exception as error:
                loop.call_exception_handler({"message": f"exception in {function!r}", "exception": error})
            except BaseException:
                for each in calls:
                    loop.call_soon(each[0], *each[1])
                raise

    def _arm(self) -> None:
        """See to it that the loop comes by at the next deadline. A timer that is too early is kept: it costs less than
        a new one for every call."""
        deadline = self.driver.next_deadline()
        if deadline is None or self.loop is None or (self._timer is not None and self._timer_at <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self.loop.call_later(max(0.0, deadline - self.driver.clock()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._on_loop(tick=True)

    def close(self, reason: str = "closed", patience_s: float = PATIENCE_S) -> None:
        """End the threads and close the connections. Callbacks that are due still run, for `patience_s` at most."""
        self.detach()
        # Another thread may have published something meanwhile.
        self.flush()
        with self.lock:
            if self.closing:
                return
            self.closing = True
        self.driver.wake()
        self._workers.close(patience_s)
        # Where nobody took what was sent, nobody is there to take a goodbye either.
        self.driver.close(reason, linger_s=0.0 if self.driver.unwritten() else GOODBYE_S)
        self._notify()

    def abandon(self, error: Exception) -> None:
        """In a process that was forked: forget the threads, which are not here, and the locks that they may hold."""
        self.failure = error
        self.closing = True
        self.loop = self._timer = self.stepping = self.owner = None
        self.in_step = self.nudged = False
        self.driving = 0
        self.waiters = 0
        self.lock = self.driver.lock = threading.RLock()
        self.baton = threading.Lock()
        self._turn = threading.Condition(threading.Lock())
        self._releases.clear()
        self._workers.abandon()
