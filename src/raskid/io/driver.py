"""Runs the machines of a process over real transports and a real clock.

One loop for every kind of process: wait for descriptors, read what came, let the station handle it, write what it
wants to say. What one turn of the loop produces for a peer goes out in one write. The driver is safe to use from
several threads: the machines are guarded by `lock`, and waiting happens outside of it.
"""

from __future__ import annotations

import contextlib
import heapq
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from raskid.core.effects import Connect, Disconnect, Effect
from raskid.core.events import BytesReceived, ConnectionClosed, ConnectionOpened, Event, Tick
from raskid.io.counters import Counters
from raskid.io.looking import Looking
from raskid.io.poller import READ, WRITE, Poller
from raskid.io.transports import Connecting, Listener, Transport, start
from raskid.protocol.framing import frame_bytes

if TYPE_CHECKING:
    import ssl

#: What a connection may keep in this process beyond what the kernel took; control can overtake all but this.
ROOM_BYTES = 256 * 1024
#: How long a connection that is over may take to write its last words.
LINGER_S = 5.0
#: How often somebody who lingers looks whether another thread has written the rest.
LINGER_LOOK_S = 0.05
#: A listener that cannot accept (no descriptor is left) rests for so long; whoever wants in waits in its queue.
ACCEPT_PAUSE_S = 0.5
#: While the kernel at the other end of a network owes an acknowledgement, it is looked at so often; a connection over
#: which none has come for `SILENT_S` is given up, and its link looks for another.
HEARTBEAT_S = 5.0
SILENT_S = 20.0


class _Channel:
    __slots__ = ("id", "owed_since", "transport", "watching", "writing")

    def __init__(self, identifier: int, transport: Transport) -> None:
        self.id = identifier
        self.transport = transport
        self.writing = False
        #: Somebody looks every `HEARTBEAT_S` whether what was written is acknowledged; True where nobody needs to.
        self.watching = not transport.over_network
        #: Since when the other end's kernel is known to owe an acknowledgement.
        self.owed_since: float | None = None


class Machines(Protocol):
    """What a driver needs of a station."""

    peer: Any

    def handle(self, event: Any, now: float) -> list[Any]:
        """Take in an event."""

    def perform(self, effects: list[Any], now: float) -> list[Any]:
        """Perform effects of a machine that was asked directly."""

    def next_deadline(self) -> float | None:
        """When a Tick is due."""

    def goodbye(self, reason: str, now: float, relayed_only: bool = False) -> list[Any]:
        """Tell everybody that this process ends on purpose."""


class Driver:
    """The loop of one process.

    Args:
        station: The machines, a `raskid.core.station.Station` or what stands before one.
        apply: Called under the lock with every effect that is the application's.
        client_tls: For outgoing TCP connections; None allows TCP on the loopback only.
    """

    def __init__(
        self, station: Machines, apply: Callable[[Effect], None], client_tls: ssl.SSLContext | None = None
    ) -> None:
        self.station = station
        self.apply = apply
        self.client_tls = client_tls
        self.lock = threading.RLock()
        self.counters = Counters()
        self.clock = time.monotonic
        self.poller = Poller()
        self.looking = Looking(self.poller, self.counters)
        #: Until when the latest step waits at most; None: until something comes.
        self.waits_until: float | None = None
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._channels: dict[int, _Channel] = {}
        #: Connections that are over but for their last bytes, and until when those are worth waiting for.
        self._leaving: dict[_Channel, float] = {}
        #: Connections that are being opened.
        self._opening: dict[int, Connecting] = {}
        #: What the driver itself has to do later: (time, number, what).
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_number = 0
        self._steps = 0
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)
        self._woken = False
        self.watch(self._wake_out.fileno(), self._on_wake)
        self.closed = False

    # ── descriptors ──

    def watch(self, fd: int, handler: Callable[[int], None], events: int = READ) -> None:
        """Call `handler(events)` under the lock whenever `fd` is ready."""
        self.poller.set(fd, events, fd in self._handlers)
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor; call before closing it."""
        if self._handlers.pop(fd, None) is not None:
            self.poller.remove(fd)

    def listen(self, listener: Listener) -> None:
        """Take connections from a listener."""

        def ready(events: int) -> None:
            while (transport := listener.accept()) is not None:
                self.adopt(transport)
            if listener.exhausted:
                self.unwatch(listener.fileno())
                self._later(ACCEPT_PAUSE_S, again)

        def again() -> None:
            if listener.fileno() >= 0 and not self.closed:
                self.watch(listener.fileno(), ready)

        self.watch(listener.fileno(), ready)

    def unlisten(self, listener: Listener) -> None:
        """Take no more connections from it, and close it."""
        self.unwatch(listener.fileno())
        listener.close()

    def adopt(self, transport: Transport) -> int:
        """Take in a connection that somebody opened to us."""
        with self.lock:
            identifier = self.station.peer.new_connection()
            self._add(identifier, transport)
            self._feed(ConnectionOpened(identifier, outbound=False))
            return int(identifier)

    def _add(self, identifier: int, transport: Transport) -> None:
        channel = _Channel(identifier, transport)
        self._channels[identifier] = channel
        self.counters.connections += 1

        def ready(events: int) -> None:
            self._on_ready(channel, events)

        self.watch(transport.fileno(), ready)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self._timer_number += 1
        heapq.heappush(self._timers, (self.clock() + seconds, self._timer_number, act))

    def wake(self) -> None:
        """Make a thread that waits in `step` come back."""
        if not self._woken:
            self._woken = True
            with contextlib.suppress(BlockingIOError, OSError):
                self._wake_in.send(b"!")

    def _on_wake(self, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_out.recv(64)
        # Only now: a byte sent in between would be read here, and no further one would ever be sent.
        self._woken = False

    # ── events and effects ──

    def handle(self, event: Event) -> None:
        """Give the station an event or a command; what it says goes out at the next flush."""
        with self.lock:
            self._feed(event)

    def _feed(self, event: Event) -> None:
        self._apply_all(self.station.handle(event, self.clock()))

    def _apply_all(self, effects: list[Effect]) -> None:
        for effect in effects:
            if type(effect) is Connect:
                self._connect(effect)
            elif type(effect) is Disconnect:
                self._disconnect(effect)
            else:
                self.apply(effect)

    def perform(self, effects: list[Effect]) -> None:
        """Perform effects of a machine that was asked directly (the hot path of publishing)."""
        self._apply_all(self.station.perform(effects, self.clock()))

    def _connect(self, effect: Connect) -> None:
        try:
            made = start(effect.address, self.client_tls)
        except OSError as error:
            self._feed(ConnectionClosed(effect.connection, f"{effect.address}: {error}"))
            return
        if isinstance(made, Connecting):
            self._opening[effect.connection] = made
            self._watch_opening(effect.connection, made)
        else:
            self._opened(effect.connection, made)

    def _watch_opening(self, identifier: int, opening: Connecting) -> None:
        """Wait until a connection is there or not; the peer limits how long."""

        def ready(events: int) -> None:
            self.unwatch(opening.fileno())
            try:
                transport = opening.finish()
            except OSError as error:
                del self._opening[identifier]
                self._feed(ConnectionClosed(identifier, f"{opening.address}: {error}"))
                return
            if transport is None:
                self._watch_opening(identifier, opening)
                return
            del self._opening[identifier]
            self._opened(identifier, transport)

        self.watch(opening.fileno(), ready, WRITE)

    def _opened(self, identifier: int, transport: Transport) -> None:
        self._add(identifier, transport)
        self._feed(ConnectionOpened(identifier, outbound=True))

    def _disconnect(self, effect: Disconnect) -> None:
        opening = self._opening.pop(effect.connection, None)
        if opening is not None:
            self.unwatch(opening.fileno())
            opening.close()
            return
        channel = self._channels.get(effect.connection)
        if channel is None:
            return
        try:
            # Last words, such as why we refuse, go out even where no room is left.
            if data := self.station.peer.output(channel.id, ROOM_BYTES):
                channel.transport.send(data)
                self.counters.bytes_sent += len(data)
            self._write(channel)
        except OSError:
            self._lost(channel, effect.reason)
            return
        if channel.transport.wants_write:
            del self._channels[channel.id]
            self._leaving[channel] = self.clock() + LINGER_S
            self._feed(ConnectionClosed(channel.id, effect.reason))
        else:
            self._lost(channel, effect.reason)

    def _close(self, channel: _Channel) -> None:
        self._channels.pop(channel.id, None)
        self._leaving.pop(channel, None)
        self.unwatch(channel.transport.fileno())
        if channel.writing and channel.transport.write_fileno() != channel.transport.fileno():
            self.unwatch(channel.transport.write_fileno())
        self.counters.syscalls += channel.transport.syscalls
        channel.transport.close()

    def _on_ready(self, channel: _Channel, events: int) -> None:
        if channel in self._leaving:
            self._on_leaving(channel)
            return
        if self._channels.get(channel.id) is not channel:
            return
        transport = channel.transport
        if events & WRITE:
            try:
                transport.flush()
                self._write(channel)
            except OSError as error:
                self._write_failed(channel, error)
                return
        if events & ~WRITE:
            try:
                if not self._read(channel):
                    return
                if channel.id in self._channels and transport.wants_write != channel.writing:
                    # A handshake below gave bytes to write, or took the last obstacle.
                    self._write(channel)
            except OSError as error:
                self._lost(channel, f"{type(error).__name__}: {error}")

    def _read(self, channel: _Channel) -> bool:
        """Take in what has come; returns whether there may be more."""
        data = channel.transport.receive()
        if data == b"":
            self._lost(channel, "the other end closed the connection")
            return False
        if data is None:
            return True
        self.counters.bytes_received += len(data)
        # The payloads are cut out of it.
        self.counters.copies += len(data)
        self._feed(BytesReceived(channel.id, data))
        return True

    def _on_leaving(self, channel: _Channel) -> None:
        try:
            channel.transport.flush()
            gone = channel.transport.receive() == b""
        except OSError:
            gone = True
        if gone or not channel.transport.wants_write:
            self._close(channel)

    def _write_failed(self, channel: _Channel, error: OSError) -> None:
        """The other end reads no more, but it may have said why: hear it out."""
        reason = f"{type(error).__name__}: {error}"
        try:
            while channel.id in self._channels:
                before = self.counters.bytes_received
                if not self._read(channel) or self.counters.bytes_received == before:
                    break
        except OSError:
            pass
        self._lost(channel, reason)

    def _lost(self, channel: _Channel, reason: str) -> None:
        if channel.id in self._channels:
            self._close(channel)
            self._feed(ConnectionClosed(channel.id, reason))

    def flush(self) -> None:
        """Write what the station has to say."""
        with self.lock:
            for identifier in self.station.peer.dirty_connections():
                channel = self._channels.get(identifier)
                if channel is not None and not channel.writing:
                    try:
                        self._write(channel)
                    except OSError as error:
                        self._write_failed(channel, error)

    def _write(self, channel: _Channel) -> None:
        transport = channel.transport
        peer = self.station.peer
        while transport.pending < ROOM_BYTES:
            data = peer.output(channel.id, ROOM_BYTES)
            if not data:
                break
            transport.send(data)
            size = len(data)
            self.counters.bytes_sent += size
            # Made of header and payload, perhaps joined from several frames, and kept where the kernel has no room.
            frames = 1 if frame_bytes(data) == size else 2
            pending = transport.pending
            self.counters.copies += frames * size + pending
            if pending or size < ROOM_BYTES:
                # Less than there was room for: that was all.
                break
        if not channel.watching:
            channel.watching = True
            self._later(HEARTBEAT_S, lambda: self._look_for_life(channel))
        wanted = transport.wants_write
        if wanted != channel.writing:
            channel.writing = wanted
            fd, write_fd = transport.fileno(), transport.write_fileno()
            if fd == write_fd:
                self.poller.set(fd, READ | WRITE if wanted else READ, known=True)
            elif wanted:
                self.watch(write_fd, lambda events: self._on_ready(channel, WRITE), WRITE)
            else:
                self.unwatch(write_fd)

    def _look_for_life(self, channel: _Channel) -> None:
        """Give up a connection whose other end, kernel included, has fallen silent.

        The kernel answers for a process that is busy, so nobody is taken for lost who only computes. Without anything
        on its way there is nothing to look at, and an idle connection costs nothing.
        """
        if self._channels.get(channel.id) is not channel:
            return
        try:
            silent_s = channel.transport.silent_s()
        except OSError as error:
            self._lost(channel, f"{type(error).__name__}: {error}")
            return
        if silent_s is None:
            channel.watching, channel.owed_since = False, None
            return
        now = self.clock()
        if channel.owed_since is None or now - silent_s > channel.owed_since:
            channel.owed_since = now
        if now - channel.owed_since >= SILENT_S:
            self._lost(channel, f"its machine has acknowledged nothing for {now - channel.owed_since:.0f} s")
            return
        self._later(HEARTBEAT_S, lambda: self._look_for_life(channel))

    # ── the loop ──

    def next_deadline(self) -> float | None:
        """When `step` has something to do although nothing comes: for the machines, or for connections."""
        deadline: float | None = self.station.next_deadline()
        if not self._leaving and not self._timers:
            return deadline
        own = [*self._leaving.values(), *(at for at, _, _ in self._timers[:1])]
        return min(own if deadline is None else [*own, deadline])

    def step(self, timeout: float | None) -> bool:
        """Wait for something, at most `timeout` seconds, and handle it. Returns whether anything was ready."""
        with self.lock:
            if self.closed:
                return False
            self.flush()
            deadline = self.station.next_deadline()
            self.waits_until = wait_until = self.next_deadline()
            self._steps += 1
        if wait_until is not None:
            left = max(0.0, wait_until - self.clock())
            timeout = left if timeout is None else min(timeout, left)
        ready: list[tuple[int, int]] = []
        try:
            ready = self.looking.wait(timeout)
        finally:
            with self.lock:
                self._steps -= 1
                if self.closed and not self._steps:
                    self._give_back()
        with self.lock:
            self._serve(ready, deadline)
        return bool(ready)

    def turn(self, tick: bool) -> None:
        """Handle what is there, without waiting: `step(0)`, for an event loop; `tick`: something of ours may be due."""
        with self.lock:
            if not self.closed:
                self._serve(self.poller.wait(0), self.station.next_deadline() if tick else None)

    def _serve(self, ready: list[tuple[int, int]], deadline: float | None) -> None:
        """Handle what is ready, and what is due; `deadline` is the machines'."""
        self.counters.wakeups += 1
        self.counters.syscalls += 1
        handlers = self._handlers
        for fd, events in ready:
            if self.closed:
                return
            handler = handlers.get(fd)
            if handler is not None:
                handler(events)
        if self.closed:
            return
        if deadline is not None or self._leaving or self._timers:
            now = self.clock()
            if deadline is not None and now >= deadline:
                self._feed(Tick())
            if self._leaving:
                for channel in [channel for channel, until in self._leaving.items() if now >= until]:
                    self._close(channel)
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
        self.flush()

    def totals(self) -> Counters:
        """The counters so far, those of open connections included."""
        with self.lock:
            total = Counters.from_list(self.counters.as_list())
            counts = self.station.peer.counts()
            total.frames_sent, total.frames_received, total.messages_sent, total.messages_received = counts
            total.syscalls += sum(channel.transport.syscalls for channel in (*self._channels.values(), *self._leaving))
            return total

    def close(self, reason: str = "its process ends", linger_s: float = 0.0) -> None:
        """Say goodbye, write what can be written at once, and close everything. A thread that waits comes back.

        Args:
            reason: What the peers are told.
            linger_s: How long to go on writing, in seconds; what is not written by then is lost.
        """
        until = self.clock() + linger_s
        self._linger(until)
        with self.lock:
            if self.closed:
                return
            self._apply_all(self.station.goodbye(reason, self.clock(), relayed_only=True))
        self._linger(until)
        with self.lock:
            if self.closed:
                return
            self._apply_all(self.station.goodbye(reason, self.clock()))
        self._linger(until)
        self._linger(until, self._is_heard_out)
        with self.lock:
            if not self.closed:
                self._close_all()

    def _linger(self, until: float, done: Callable[[], bool] | None = None) -> None:
        while not self.closed and (left := until - self.clock()) > 0:
            if done() if done is not None else not self.unwritten():
                break
            self.step(min(left, LINGER_LOOK_S))

    def _is_heard_out(self) -> bool:
        """Whether nobody across a network may still read: they close when they have read the goodbye.

        A TCP socket that is closed while the other end writes takes back what is still in the kernel.
        """
        with self.lock:
            return not any(channel.transport.over_network for channel in self._channels.values())

    def _close_all(self) -> None:
        for channel in list(self._channels.values()):
            with contextlib.suppress(OSError):
                self._write(channel)
            self._close(channel)
        for channel in list(self._leaving):
            self._close(channel)
        for identifier in list(self._opening):
            self._disconnect(Disconnect(identifier, ""))
        self.closed = True
        for fd in list(self._handlers):
            if fd != self._wake_out.fileno():
                self.unwatch(fd)
        if self._steps:
            # Whoever waits gives the descriptors back: they must not vanish below a wait.
            self._woken = False
            self.wake()
        else:
            self._give_back()

    def unwritten(self) -> bool:
        """Whether something waits to be written: for a peer that is not away, or for room in a connection."""
        with self.lock:
            peer = self.station.peer
            return any(not peer.is_away(other) for other in peer.unsent()) or any(
                channel.transport.pending for channel in (*self._channels.values(), *self._leaving)
            )

    def abandon(self) -> None:
        """In a process that was forked: close its copies of the descriptors, and touch nothing that both share.

        The sockets and the set of watched descriptors are the other process's as well: a word on the former, or a
        removal from the latter, would be that one's doing.
        """
        self.closed = True
        for channel in (*self._channels.values(), *self._leaving):
            channel.transport.abandon()
        for opening in self._opening.values():
            opening.close()
        self._opening.clear()
        self._channels.clear()
        self._leaving.clear()
        self._handlers.clear()
        with contextlib.suppress(OSError):
            self.poller.close()
        self._wake_in.close()
        self._wake_out.close()

    def _give_back(self) -> None:
        if self._wake_out.fileno() >= 0:
            self.unwatch(self._wake_out.fileno())
            for end in (self._wake_in, self._wake_out):
                end.close()
            self.poller.close()
