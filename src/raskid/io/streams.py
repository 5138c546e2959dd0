"""Streams of bytes behind one interface: sockets, TLS over them, pipes of a child process, and memory for tests.

No transport blocks. `receive` gives what is there, `send` takes everything and keeps what the kernel does not want yet;
the driver asks `pending` before it hands over more, so what is kept stays small. How transports are opened is for
`raskid.io.transports`, which gives these names as well.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections import deque

#: How much one read takes at most, and at first. The interpreter allocates as much as it asks for; an allocation over
#: 128 KiB is mapped and unmapped by the kernel each time, which costs more than reading a short message.
RECEIVE_BYTES = 256 * 1024
RECEIVE_BYTES_FIRST = 32 * 1024
#: What `close` reads and throws away: a TCP socket closed with unread bytes would take back what it has just written.
DRAIN_BYTES = 1 << 20
#: Of the kernel's `struct tcp_info`: `tcpi_unacked` and `tcpi_last_ack_recv`.
_TCP_INFO = struct.Struct("=24xI28xI")


class TransportError(OSError):
    """A transport cannot be opened; the text names the address and what to do."""


class Transport(ABC):
    """One end of a two-way stream of bytes."""

    #: System calls made so far.
    syscalls = 0
    #: Whether the other end may vanish without the kernel's notice.
    over_network = False

    @abstractmethod
    def receive(self) -> bytes | None:
        """What has come; None when nothing is there now, b"" when the other end has closed."""

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Write, and keep what cannot be written now.

        Raises:
            OSError: The other end is gone.
        """

    @abstractmethod
    def flush(self) -> None:
        """Write more of what was kept."""

    @property
    @abstractmethod
    def pending(self) -> int:
        """Bytes kept."""

    @property
    def wants_write(self) -> bool:
        """Whether `flush` could do something once the descriptor is writable."""
        return self.pending > 0

    def silent_s(self) -> float | None:
        """For how long the other end's kernel has acknowledged nothing; None when it owes no acknowledgement, or when
        this system does not tell."""
        return None

    @abstractmethod
    def fileno(self) -> int:
        """What to poll for reading."""

    def write_fileno(self) -> int:
        """What to poll for writing."""
        return self.fileno()

    @abstractmethod
    def close(self) -> None:
        """Close; twice is no error."""

    def abandon(self) -> None:
        """In a process that was forked: close its copies of the descriptors, and say nothing to the other end."""
        self.close()


class _KeepingTransport(Transport):
    """Keeps what the kernel has no room for, and writes it in order later."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._room = RECEIVE_BYTES_FIRST

    def _sized(self, data: bytes) -> bytes:
        """What was read with `_room`; ask for more the next time where much comes."""
        if len(data) == self._room:
            self._room = RECEIVE_BYTES
        elif len(data) <= RECEIVE_BYTES_FIRST:
            self._room = RECEIVE_BYTES_FIRST
        return data

    @abstractmethod
    def _write_some(self, data: bytes | bytearray) -> int:
        """Write what the kernel takes now; how much that was."""

    def send(self, data: bytes) -> None:
        if self._kept:
            self._kept += data
            return
        self.syscalls += 1
        sent = self._write_some(data)
        if sent < len(data):
            self._kept += memoryview(data)[sent:]

    def flush(self) -> None:
        while self._kept:
            self.syscalls += 1
            sent = self._write_some(self._kept)
            if not sent:
                return
            del self._kept[:sent]

    @property
    def pending(self) -> int:
        return len(self._kept)


class FileTransport(_KeepingTransport):
    """Two file descriptors: the pipes of a child process, or standard input and output."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        super().__init__()
        self._read = read_fd
        self._write = write_fd
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._closed = False

    def receive(self) -> bytes | None:
        self.syscalls += 1
        try:
            return self._sized(os.read(self._read, self._room))
        except BlockingIOError:
            return None

    def _write_some(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self._write, data)
        except BlockingIOError:
            return 0

    def fileno(self) -> int:
        return self._read

    def write_fileno(self) -> int:
        return self._write

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for fd in {self._read, self._write}:
                with contextlib.suppress(OSError):
                    os.close(fd)


class SocketTransport(_KeepingTransport):
    """A connected stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        sock.setblocking(False)
        self.sock = sock
        self.over_network = sock.family != socket.AF_UNIX

    def receive(self) -> bytes | None:
        self.syscalls += 1
        try:
            return self._sized(self.sock.recv(self._room))
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionResetError:
            # It closed before it had read everything.
            return b""

    def _write_some(self, data: bytes | bytearray) -> int:
        try:
            return self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0

    def silent_s(self) -> float | None:
        if not self.over_network or not hasattr(socket, "TCP_INFO"):
            return None
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        # What is on its way without an acknowledgement, and when one came last, in milliseconds.
        unacknowledged, last = _TCP_INFO.unpack(info.ljust(_TCP_INFO.size, b"\0"))
        return last / 1000 if unacknowledged else None

    def fileno(self) -> int:
        return self.sock.fileno()

    def abandon(self) -> None:
        self.sock.close()

    def close(self) -> None:
        if self.sock.fileno() >= 0 and self.sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
                left = DRAIN_BYTES
                while left > 0 and (data := self.sock.recv(RECEIVE_BYTES)):
                    left -= len(data)
        self.sock.close()


class MemoryTransport(Transport):
    """One end of a pair in memory. Its file descriptor is one end of a socket pair that only carries wake-ups."""

    def __init__(self, inbox: deque[bytes], outbox: deque[bytes], bell: socket.socket) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._bell = bell
        bell.setblocking(False)

    @classmethod
    def pair(cls) -> tuple[MemoryTransport, MemoryTransport]:
        """Two connected ends."""
        one, two = socket.socketpair()
        there: deque[bytes] = deque()
        back: deque[bytes] = deque()
        return cls(back, there, one), cls(there, back, two)

    def receive(self) -> bytes | None:
        self.syscalls += 1
        ended = False
        try:
            ended = self._bell.recv(4096) == b""
        except BlockingIOError:
            pass
        except ConnectionResetError:
            ended = True
        if self._inbox:
            parts = []
            while self._inbox:
                parts.append(self._inbox.popleft())
            return b"".join(parts)
        return b"" if ended else None

    def send(self, data: bytes) -> None:
        self.syscalls += 1
        self._outbox.append(bytes(data))
        with contextlib.suppress(BlockingIOError):
            self._bell.send(b"!")

    def flush(self) -> None:
        return

    @property
    def pending(self) -> int:
        return 0

    def fileno(self) -> int:
        return self._bell.fileno()

    def close(self) -> None:
        self._bell.close()
