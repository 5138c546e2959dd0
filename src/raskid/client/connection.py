"""A client's connection to a system: the machines and who drives them, joining, asking the head, and leaving.

`Session` is made of this and of what users call: `topics`, `requests`, `tasks`.
"""

from __future__ import annotations

import atexit
import os
import platform
import random
import socket
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raskid.client.code import CodeBook
from raskid.client.engine import Engine, fresh
from raskid.client.futures import Future
from raskid.client.interrupts import guard, unguard
from raskid.client.mapping import MapResult
from raskid.client.messages import Subscription
from raskid.core.calls import Calls
from raskid.core.effects import (
    CheckCode,
    DropCode,
    Effect,
    Passed,
    Replied,
    RunCode,
    Told,
)
from raskid.core.events import (
    CancelValues,
    HandshakeRefused,
    PeerGone,
    PeerJoined,
    ReleaseValues,
)
from raskid.core.identity import Identity
from raskid.core.lists import Lists, Replica
from raskid.core.messaging import Messaging
from raskid.core.peer import Peer
from raskid.core.relay import RelayEnd
from raskid.core.station import Station
from raskid.core.submitter import Submitter
from raskid.io.driver import Driver
from raskid.io.processes import ProcessWatch
from raskid.io.transports import Listener, listen
from raskid.model import errors
from raskid.model.errors import (
    ConnectionRefused,
    NotAllowed,
    RaskidError,
    SessionClosed,
)
from raskid.model.ids import IdSource, PeerId, RequestId, TaskId
from raskid.model.version import VERSION
from raskid.protocol.messages import (
    KIND_CLIENT,
    KIND_HEAD,
    ROLE_EXECUTE,
    ROLES,
    AskStatus,
    EndSystem,
    PeerRef,
    RequestRefused,
    needed_role,
)
from raskid.services.outgoing import Outgoing
from raskid.services.settings import new_origin

if TYPE_CHECKING:
    from raskid.client.cells import CellHandle
    from raskid.client.changes import Changes

#: How long the end of a session waits for others to take what was sent to them.
DRAIN_S = 2.0
LOOK_S = 0.002

_sessions: weakref.WeakSet[Connection] = weakref.WeakSet()


class Connection:
    """A client's place in a system: its machines, its engine, its requests to the head, its end.

    Args:
        head_address: Where the head listens.
        token: The token of `role`.
        role: What this session may do; the head grants no more than the token proves.
        directory: Where its own socket goes; without, others reach it through the head only.
        url: What another process gives to `raskid.connect` to reach the same system.
        timeout: How long the head may take to answer, in seconds.
        on_close: Called once at the end.
        on_fork: Called in a process that was forked from this one, to close its copies of descriptors.
        head_text: Gives the end of what the head wrote to its standard error.
    """

    def __init__(
        self, head_address: str, token: str, role: str = ROLE_EXECUTE, directory: str = "", url: str = "",
        timeout: float = 20.0, on_close: Callable[[], None] | None = None, on_fork: Callable[[], None] | None = None,
        head_text: Callable[[], str] = str,
    ) -> None:  # fmt: skip
        self.url = url
        #: What this session may do: as asked for, and then as the head grants it.
        self.role = role
        self._on_fork = on_fork
        self._head_text = head_text
        self._closing = False
        self._ids = IdSource(new_origin())
        head = PeerId("head")
        addresses: tuple[str, ...] = (f"unix:{directory}/c{self._ids.origin:08x}",) if directory else ()
        peer_id = PeerId(f"client-{self._ids.origin:08x}")
        identity = Identity(
            peer_id, 1, self._ids.origin, KIND_CLIENT, token, role, addresses, socket.gethostname(), os.getpid(),
            platform.python_version(), VERSION,
        )  # fmt: skip
        self.peer = Peer(identity, head=head)
        self.peer.introduce(PeerRef(head, 0, (head_address,)))
        self.driver = Driver(self._assemble(head), _weak_apply(weakref.ref(self)))
        self._processes = ProcessWatch(self.driver)
        self._listener = listen(addresses[0]) if addresses else None
        if self._listener is not None:
            self.driver.listen(self._listener)
        #: Empty once nothing can be published any more, so that a publish looks no further than here while it can.
        self._plans = self._messaging.plans
        self._book = CodeBook()
        #: Futures without a value yet: kept alive, so that their value finds them.
        self._futures: dict[TaskId, Future] = {}
        self._maps: dict[TaskId, MapResult] = {}
        self._requests: dict[int, Future] = {}
        self._appliers = self._effects()
        self._handlers: dict[str, Callable[..., Any]] = {}
        self._invoked: dict[int, Any] = {}
        self.subscriptions: dict[RequestId, Subscription] = {}
        self.list_callbacks: dict[str, list[Callable[[str | None], Any]]] = {}
        #: Who reads the changes of lists, one after the other.
        self.changes: dict[str, list[Changes]] = {}
        #: Handles on cells by the lists that their values are in, and those of them that have callbacks.
        self.cells: dict[str, weakref.WeakSet[CellHandle]] = {}
        self.called_cells: set[CellHandle] = set()
        #: Those with values that are to be published once the hub has agreed.
        self.publishing_cells: set[CellHandle] = set()
        #: Who waits for the readers of a topic, for the first state of a list, and for room in a full subscription.
        self._announced: dict[str, Future] = {}
        self._following: dict[str, list[Future]] = {}
        self._rooms: dict[RequestId, deque[Any]] = {}
        self._head_joined = False
        self.head: PeerId | None = None
        self._known_codes = self._submitter.codes
        submitter, messaging = self._submitter, self._messaging
        guard(self.driver.lock)
        self.engine = Engine(self.driver, lambda: [*submitter.flush(), *messaging.collect()])
        # The threads hold the engine, so it must not hold the session: one that nobody has any more is to end.
        driver = self.driver
        engine = self.engine
        self._outgoing = outgoing = Outgoing(
            driver, messaging, lambda ran: engine.tell_quietly(ran, outgoing.count_woken), replaces=False
        )
        self.engine.on_release = lambda tasks: driver.handle(ReleaseValues(tasks))
        self.engine.on_cancel = lambda tasks: driver.handle(CancelValues(tasks))
        self._finalizer = weakref.finalize(
            self, _dropped, f"{peer_id} at {url or head_address}", self.engine, self._processes, self._listener,
            self._outgoing, on_close,
        )  # fmt: skip
        self._finalizer.atexit = False
        self._on_close = on_close
        _sessions.add(self)
        try:
            self._join(head, timeout)
        except BaseException:
            self.close()
            raise

    def _assemble(self, head: PeerId) -> Station:
        """The machines of a session."""
        self._lists = Lists(head)
        where = f"{self.peer.identity.peer} on {self.peer.identity.host}"
        self._messaging = Messaging(self._lists, random.Random(self._ids.origin).randrange, where)
        self._calls = Calls(self._lists)
        self._submitter = Submitter(self.peer.own_ref, head, self._ids, self._lists)
        self._relay = RelayEnd(head, self._ids)
        return Station(self.peer, [self._lists, self._messaging, self._calls, self._submitter], self._relay)

    def _join(self, head: PeerId, timeout: float) -> None:
        """Shake hands with the head, whose id is not known before."""
        self.driver.perform(self.peer.send(head, AskStatus(self.request_id()), self.driver.clock()))
        if not self.engine.wait(lambda: self._head_joined or self.engine.failure is not None, timeout):
            raise errors.StartFailed(f"the head did not answer within {timeout:g} s")
        self.engine.check_alive()

    # ── what the machines tell, under the lock ──

    def _effects(self) -> dict[type[Effect], Callable[[Any], None]]:
        """Who takes which effect; parts of a session add theirs."""
        outgoing = self._to_outgoing
        return {
            Replied: self._on_replied, Told: self._on_told,
            RunCode: outgoing, CheckCode: outgoing, DropCode: outgoing, Passed: outgoing,
        }  # fmt: skip

    def _to_outgoing(self, effect: Effect) -> None:
        self._outgoing.on_effect(effect)

    def _apply(self, effect: Effect) -> None:
        handler = self._appliers.get(type(effect))
        if handler is not None:
            handler(effect)
            driving = self.engine.driving
            if driving and driving != threading.get_ident():
                # This process said it to itself, and no connection tells the thread that waits.
                self.engine.rouse()

    def _on_replied(self, effect: Replied) -> None:
        future = self._requests.pop(effect.request, None)
        if future is None:
            return
        message = effect.message
        if isinstance(message, RequestRefused):
            future.fail_with(error_of(message.code, message.text))
        else:
            future.resolve_with(message)

    def _on_told(self, effect: Told) -> None:
        event = effect.event
        if isinstance(event, PeerJoined):
            self._processes.joined(event)
        elif isinstance(event, PeerGone):
            self._processes.gone(event)
        if isinstance(event, PeerJoined) and event.kind == KIND_HEAD and not self._head_joined:
            self._head_joined = True
            self.role = event.role
            self.head = event.peer
            # The machines addressed the head by a provisional name until now.
            self._lists.hub = self._submitter.manager = self._relay.head = event.peer
        elif isinstance(event, HandshakeRefused) and event.peer in (self.head, "head"):
            self._fail(ConnectionRefused(event.code, event.text))
        elif isinstance(event, PeerGone) and event.peer in (self.head, "head"):
            text = self._head_text()
            wrote = f"; the end of what it wrote:\n{text}" if text else ""
            self._fail(SessionClosed(f"the system's head is gone: {event.reason}{wrote}"))

    def _fail(self, error: RaskidError) -> None:
        """The session cannot go on: everybody who waits is told. Under the lock, see `Engine`, rule 5."""
        if self.engine.failure is None:
            self.engine.failure = error
        self._plans = {}
        waiting: list[Any] = [*self._futures.values(), *self._requests.values(), *self._maps.values()]
        for pending in (self._futures, self._requests, self._maps):
            pending.clear()
        for future in waiting:
            future.fail_with(fresh(error))
        for subscription in list(self.subscriptions.values()):
            subscription.ended()
        self._outgoing.let_go()

    # ── what the session may do ──

    def require(self, role: str, what: str) -> None:
        """Look whether the session may do `what`, which needs `role`.

        Raises:
            SessionClosed: The session is over.
            NotAllowed: Its role is lower.
        """
        self.engine.check_alive()
        if ROLES.index(self.role) < ROLES.index(role):
            raise NotAllowed(
                f"{what} needs the role {role!r}; this session has {self.role!r}. Connect with role={role}, or "
                f"without a role, for example {self.url.partition('?')[0] or 'local://NAME'}?role={role}"
            )

    def still_alive(self) -> None:
        """Under the lock, before something is registered to be waited for: what comes later, `_fail` will tell it.

        From here on the session is kept alive for what is pending, even when its user has only futures left.

        Raises:
            SessionClosed: The session is over.
        """
        engine = self.engine
        if engine.failure is not None or engine.closing:
            engine.check_alive()
        engine.owner = self

    def is_used(self) -> bool:
        """Whether something may still come that a user waits for without holding the session itself."""
        return bool(
            self._futures or self._requests or self._maps or self._handlers or self.list_callbacks
            or any(subscription.has_callback for subscription in list(self.subscriptions.values()))
        )  # fmt: skip

    # ── requests to the hub and the manager ──

    def request_id(self) -> RequestId:
        """A new id for a request."""
        return RequestId(self._ids.take())

    def ask(self, message: Any) -> Future:
        """Send a request to the head; the future gives the answering message.

        Raises:
            SessionClosed: The session is over.
            NotAllowed: Its role is too low for such a request.
        """
        engine = self.engine
        self.require(needed_role(type(message)), f"a {type(message).__name__} request")
        future = Future(engine)
        with engine.lock:
            self.still_alive()
            self._requests[message.request] = future
            self.driver.perform(self.peer.send(self._lists.hub, message, self.driver.clock()))
        engine.flush()
        return future

    def replica(self, name: str) -> Replica:
        """The replica of a list that is followed."""
        return self._lists.replicas[name]

    def counters(self) -> dict[str, Any]:
        """Wake-ups, system calls, copied bytes, bytes and messages of this process so far; per task and message too."""
        return self.driver.totals().as_rows()

    # ── the end ──

    def end_system(self) -> None:
        """End the whole system: runners, head, and with it this session."""
        self.require(needed_role(EndSystem), "ending the system")
        with self.engine.lock:
            self.driver.perform(self.peer.send(self._lists.hub, EndSystem("asked to"), self.driver.clock()))
        self.engine.flush()

    def close(self) -> None:
        """Leave the system; one that this session started ends as well.

        What was sent is written first, for 2 s at most, to those who are there to take it, and messages of classes are
        acknowledged meanwhile. Callbacks that are due still run, for 2 s at most.
        """
        engine = self.engine
        with engine.lock:
            if self._closing:
                return
            self._closing = True
        try:
            if engine.failure is None:
                self._drain(DRAIN_S)
                self._say_unacknowledged()
        finally:
            # Also after a Ctrl-C: nobody could end it a second time.
            self._end()

    async def close_async(self) -> None:
        """As `close`, in the event loop that drives this session, which goes on meanwhile."""
        import asyncio

        engine = self.engine
        with engine.lock:
            if self._closing:
                return
            self._closing = True
        try:
            until = time.monotonic() + DRAIN_S
            while engine.failure is None and self._unsettled() and time.monotonic() < until:
                await asyncio.sleep(LOOK_S)
        finally:
            self._say_unacknowledged()
            with engine.lock:
                # While the loop still drives: coroutines that wait for futures are woken by it.
                self._fail(SessionClosed("this session was closed"))
            engine.detach()
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self._end))

    def _say_unacknowledged(self) -> None:
        """Say which messages of classes nobody looks after any more."""
        with self.engine.lock:
            left = self._messaging.unacknowledged() if self.engine.failure is None else []
        for topic, name, count in left:
            messages = "one message" if count == 1 else f"{count:,} messages"
            print(
                f"raskid: this session leaves {messages} on {topic!r} that nobody of class {name!r} has acknowledged; "
                "should their reader end, no other gets them. Let a publisher stay until its messages are done",
                file=sys.stderr,
            )

    def _end(self) -> None:
        with self.engine.lock:
            self._fail(SessionClosed("this session was closed"))
            self.engine.owner = None
        self.engine.rouse_all()
        self._finalizer.detach()
        _shut(self.engine, self._processes, self._listener, self._outgoing, self._on_close)

    def _drain(self, timeout: float) -> None:
        """Write what was sent and is still here, while the other ends take it."""
        engine = self.engine

        def written() -> bool:
            return not self._unsettled()

        try:
            if engine.serves_this_thread():
                engine.drive_here(written, timeout)
                return
            until = time.monotonic() + timeout
            # Code of reactions that is through, and writes what it gave, tells nobody who waits here.
            while not engine.wait(written, LOOK_S) and time.monotonic() < until:
                pass
        except RaskidError:
            # The head went meanwhile, or this is called where waiting is impossible: nothing more can be done.
            return

    def _unsettled(self) -> bool:
        """Let go what reactions still collect, and see whether something is still here; at the end of a session.

        Each time anew: code that is through meanwhile may have put more into a window behind it.
        """
        with self.engine.lock:
            self.driver.perform(self._messaging.flush_windows(self.driver.clock()))
        # What is only collected so far is nobody's yet.
        self.engine.flush()
        return self._unwritten()

    def _unwritten(self) -> bool:
        """Whether something that was sent is still here, for somebody who is there to take it."""
        with self.engine.lock:
            return self.driver.unwritten() or self._messaging.waits(self.peer.is_connected)

    def abandon(self) -> None:
        """In a process that was forked: this session is the other process's. See `Driver.abandon`."""
        error = SessionClosed("this session belongs to the process that forked this one; connect again here")
        self._closing = True
        self._finalizer.detach()
        self._on_close = None
        # The engine takes another one.
        unguard(self.driver.lock)
        self.engine.abandon(error)
        self._processes.abandon()
        self.driver.abandon()
        if self._listener is not None:
            self._listener.abandon()
        if self._on_fork is not None:
            self._on_fork()
        waiting = [*self._futures.values(), *self._requests.values(), *self._announced.values()]
        for futures in (*self._following.values(), *self._rooms.values()):
            waiting += futures
        for future in waiting:
            # Locks and waiters were those of threads that are not here.
            future._lazy_condition = future._lazy_waiters = future._callbacks = None
        self._fail(error)


def _weak_apply(session: weakref.ref[Connection]) -> Callable[[Effect], None]:
    def apply(effect: Effect) -> None:
        there = session()
        if there is not None:
            there._apply(effect)

    return apply


def _shut(
    engine: Engine, processes: ProcessWatch, listener: Listener | None, outgoing: Outgoing,
    on_close: Callable[[], None] | None,
) -> None:  # fmt: skip
    """Give everything back; on a thread that may wait."""
    processes.close()
    outgoing.close()
    engine.close()
    unguard(engine.lock)
    if listener is not None:
        listener.close()
    if on_close is not None:
        on_close()


def _dropped(name: str, engine: Engine, *rest: Any) -> None:
    """Nobody has a session any more, and it was not closed. Called by the garbage collector, on any thread."""

    def end() -> None:
        with engine.lock:
            if engine.failure is None:
                engine.failure = SessionClosed("this session was dropped without being closed")
        _shut(engine, *rest)

    try:
        warnings.warn(
            f"the session {name} was dropped without being closed; use it with `with`, or call its close()",
            ResourceWarning,
            stacklevel=2,
        )
    finally:
        # This thread may be anywhere, and hold any lock. When the interpreter ends, so does everything else.
        try:
            threading.Thread(target=end, name="raskid-end", daemon=True).start()
        except RuntimeError:
            pass


def error_of(code: str, text: str) -> Exception:
    """The error that another process named by its class."""
    kind = getattr(errors, code, RaskidError)
    return kind(text) if isinstance(kind, type) and issubclass(kind, RaskidError) else RaskidError(f"{code}: {text}")


def _after_fork() -> None:
    for session in list(_sessions):
        session.abandon()


def _at_exit() -> None:
    for session in list(_sessions):
        session.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
