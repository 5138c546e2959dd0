"""Runs the machines of a process over real transports and a real clock.

One loop for every kind of process: wait for descriptors, read what came, let the station handle it, write what it
wants to say. What one turn of the loop produces for a peer goes out in one write. The driver is safe to use from
several threads: the machines are guarded by `lock`, and waiting happens outside of it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable

from raskid.core.machine import Effect, Event, Tick
from raskid.core.peer import (
    BytesReceived,
    Connect,
    ConnectionClosed,
    ConnectionOpened,
    Disconnect,
)
from raskid.core.station import Station
from raskid.io.counters import Counters
from raskid.io.poller import READ, WRITE, Poller
from raskid.io.transports import Listener, Transport, connect

#: What a connection may keep in this process beyond what the kernel took; control can overtake all but this.
ROOM_BYTES = 256 * 1024
#: How long a connection that is over may take to write its last words.
LINGER_S = 5.0

#: So many waits in a row that were longer than the look before them end the looking, until a short one comes again.
SPIN_LUCK = 3

perf_counter = time.perf_counter
sched_yield = getattr(os, "sched_yield", lambda: None)


class _Channel:
    __slots__ = ("id", "transport", "writing")

    def __init__(self, identifier: int, transport: Transport) -> None:
        self.id = identifier
        self.transport = transport
        self.writing = False


class Driver:
    """The loop of one process.

    Args:
        station: The machines.
        apply: Called under the lock with every effect that is the application's.
        client_tls: For outgoing TCP connections; None allows TCP on the loopback only.
    """

    def __init__(
        self, station: Station, apply: Callable[[Effect], None], client_tls: ssl.SSLContext | None = None
    ) -> None:
        self.station = station
        self.apply = apply
        self.client_tls = client_tls
        self.lock = threading.RLock()
        self.counters = Counters()
        self.clock = time.monotonic
        self.poller = Poller()
        #: How long to look for something to do before sleeping, in seconds; 0: sleep at once.
        self.spin_s = 0.0
        self._spin_luck = 0
        #: Until when the latest step waits at most; None: until something comes.
        self.waits_until: float | None = None
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._channels: dict[int, _Channel] = {}
        #: Connections that are over but for their last bytes, and until when those are worth waiting for.
        self._leaving: dict[_Channel, float] = {}
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
            return identifier

    def _add(self, identifier: int, transport: Transport) -> None:
        channel = _Channel(identifier, transport)
        self._channels[identifier] = channel
        self.counters.connections += 1

        def ready(events: int) -> None:
            self._on_ready(channel, events)

        self.watch(transport.fileno(), ready)

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
            transport = connect(effect.address, self.client_tls)
        except OSError as error:
            self._feed(ConnectionClosed(effect.connection, f"{effect.address}: {error}"))
            return
        self._add(effect.connection, transport)
        self._feed(ConnectionOpened(effect.connection, outbound=True))

    def _disconnect(self, effect: Disconnect) -> None:
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
            self.counters.bytes_sent += len(data)
            if transport.pending:
                break
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

    # ── the loop ──

    def step(self, timeout: float | None) -> bool:
        """Wait for something, at most `timeout` seconds, and handle it. Returns whether anything was ready."""
        with self.lock:
            if self.closed:
                return False
            self.flush()
            deadline = self.station.next_deadline()
            wait_until = min((*self._leaving.values(), *(() if deadline is None else (deadline,))), default=None)
            self.waits_until = wait_until
            self._steps += 1
        if wait_until is not None:
            left = max(0.0, wait_until - self.clock())
            timeout = left if timeout is None else min(timeout, left)
        ready: list[tuple[int, int]] = []
        try:
            ready = self._wait(timeout)
        finally:
            with self.lock:
                self._steps -= 1
                if self.closed and not self._steps:
                    self._give_back()
        with self.lock:
            self.counters.wakeups += 1
            self.counters.syscalls += 1
            handlers = self._handlers
            for fd, events in ready:
                if self.closed:
                    return False
                handler = handlers.get(fd)
                if handler is not None:
                    handler(events)
            if self.closed:
                return False
            now = self.clock()
            if deadline is not None and now >= deadline:
                self._feed(Tick())
            for channel in [channel for channel, until in self._leaving.items() if now >= until]:
                self._close(channel)
            self.flush()
        return bool(ready)

    def _wait(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait for descriptors; look a few times before sleeping while that has been worth it.

        Going to sleep and being woken costs tens of microseconds on each side, as much as a whole short task.
        """
        wait = self.poller.wait
        if timeout == 0 or not self.spin_s:
            return wait(timeout)
        started = perf_counter()
        if self._spin_luck > 0:
            end = started + self.spin_s
            while True:
                ready = wait(0)
                self.counters.syscalls += 2
                if ready:
                    self._spin_luck = SPIN_LUCK
                    return ready
                if perf_counter() >= end:
                    break
                sched_yield()
            self._spin_luck -= 1
        ready = wait(timeout)
        if perf_counter() - started < 2 * self.spin_s:
            self._spin_luck = SPIN_LUCK
        return ready

    def totals(self) -> Counters:
        """The counters so far, those of open connections included."""
        with self.lock:
            total = Counters.from_list(self.counters.as_list())
            total.syscalls += sum(channel.transport.syscalls for channel in (*self._channels.values(), *self._leaving))
            return total

    def close(self, reason: str = "its process ends") -> None:
        """Say goodbye, write what can be written at once, and close everything. A thread that waits comes back."""
        with self.lock:
            if self.closed:
                return
            self.station.peer.goodbye(reason)
            for channel in list(self._channels.values()):
                with contextlib.suppress(OSError):
                    self._write(channel)
                self._close(channel)
            for channel in list(self._leaving):
                self._close(channel)
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

    def _give_back(self) -> None:
        if self._wake_out.fileno() >= 0:
            self.unwatch(self._wake_out.fileno())
            for end in (self._wake_in, self._wake_out):
                end.close()
            self.poller.close()
