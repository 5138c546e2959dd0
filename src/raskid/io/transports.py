"""Streams of bytes behind one interface: unix sockets, TCP with TLS, pipes of a child process, and memory for tests.

No transport blocks. `receive` gives what is there, `send` takes everything and keeps what the kernel does not want
yet; the driver asks `pending` before it hands over more, so what is kept stays small.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from collections import deque

RECEIVE_BYTES = 256 * 1024
CONNECT_S = 5.0


class TransportError(OSError):
    """A transport cannot be opened; the text names the address and what to do."""


class Transport(ABC):
    """One end of a two-way stream of bytes."""

    #: System calls made so far.
    syscalls = 0

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

    @abstractmethod
    def fileno(self) -> int:
        """What to poll for reading."""

    def write_fileno(self) -> int:
        """What to poll for writing."""
        return self.fileno()

    @abstractmethod
    def close(self) -> None:
        """Close; twice is no error."""


class FileTransport(Transport):
    """Two file descriptors: the pipes of a child process, or standard input and output."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read = read_fd
        self._write = write_fd
        self._kept = bytearray()
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._closed = False

    def receive(self) -> bytes | None:
        self.syscalls += 1
        try:
            return os.read(self._read, RECEIVE_BYTES)
        except BlockingIOError:
            return None

    def send(self, data: bytes) -> None:
        if self._kept:
            self._kept += data
            return
        self.syscalls += 1
        try:
            sent = os.write(self._write, data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._kept += memoryview(data)[sent:]

    def flush(self) -> None:
        while self._kept:
            self.syscalls += 1
            try:
                sent = os.write(self._write, self._kept)
            except BlockingIOError:
                return
            del self._kept[:sent]

    @property
    def pending(self) -> int:
        return len(self._kept)

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


class SocketTransport(Transport):
    """A connected stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._kept = bytearray()

    def receive(self) -> bytes | None:
        self.syscalls += 1
        try:
            return self.sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return None

    def send(self, data: bytes) -> None:
        if self._kept:
            self._kept += data
            return
        self.syscalls += 1
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent < len(data):
            self._kept += memoryview(data)[sent:]

    def flush(self) -> None:
        while self._kept:
            self.syscalls += 1
            try:
                sent = self.sock.send(self._kept)
            except (BlockingIOError, InterruptedError):
                return
            del self._kept[:sent]

    @property
    def pending(self) -> int:
        return len(self._kept)

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()


class TlsTransport(SocketTransport):
    """TLS over a connected socket. The handshake runs along with the first reads and writes."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_side: bool) -> None:
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._ready = False
        self._plain = bytearray()
        self._shake()

    def _shake(self) -> None:
        if not self._ready:
            try:
                self._tls.do_handshake()
                self._ready = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                self._push()
                raise
        if self._ready and self._plain:
            self._tls.write(self._plain)
            self._plain.clear()
        self._push()

    def _push(self) -> None:
        if self._outgoing.pending:
            super().send(self._outgoing.read())

    def receive(self) -> bytes | None:
        data = super().receive()
        if data is None:
            return None
        if data == b"":
            self._incoming.write_eof()
            return b""
        self._incoming.write(data)
        if not self._ready:
            self._shake()
            if not self._ready:
                return None
        parts: list[bytes] = []
        try:
            while part := self._tls.read(RECEIVE_BYTES):
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            return b"".join(parts)
        self._push()
        return b"".join(parts) or None

    def send(self, data: bytes) -> None:
        if not self._ready:
            self._plain += data
            return
        self._tls.write(data)
        self._push()

    @property
    def pending(self) -> int:
        return len(self._kept) + len(self._plain)


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
        ended = False
        try:
            ended = self._bell.recv(4096) == b""
        except BlockingIOError:
            pass
        if self._inbox:
            parts = []
            while self._inbox:
                parts.append(self._inbox.popleft())
            return b"".join(parts)
        return b"" if ended else None

    def send(self, data: bytes) -> None:
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


class Listener:
    """Accepts connections at an address."""

    def __init__(self, sock: socket.socket, address: str, context: ssl.SSLContext | None = None) -> None:
        self.sock = sock
        self.address = address
        self._context = context
        self.refused = 0
        sock.setblocking(False)

    def fileno(self) -> int:
        """What to poll."""
        return self.sock.fileno()

    def accept(self) -> Transport | None:
        """The next connection, or None when there is none (or it came from another user)."""
        try:
            sock, _ = self.sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None
        if sock.family == socket.AF_UNIX:
            uid = peer_uid(sock)
            if uid is not None and uid not in (os.getuid(), 0):
                self.refused += 1
                sock.close()
                return None
            return SocketTransport(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is None:
            return SocketTransport(sock)
        try:
            return TlsTransport(sock, self._context, server_side=True)
        except OSError:
            self.refused += 1
            sock.close()
            return None

    def close(self) -> None:
        """Stop listening; a unix socket's file goes as well."""
        self.sock.close()
        if self.address.startswith("unix:"):
            with contextlib.suppress(OSError):
                os.unlink(self.address.removeprefix("unix:"))


def peer_uid(sock: socket.socket) -> int | None:
    """The user at the other end of a unix socket; None where the system does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def listen(address: str, context: ssl.SSLContext | None = None) -> Listener:
    """Listen at ``unix:PATH`` or ``tcp:HOST:PORT`` (port 0 takes a free one; the listener's address tells which)."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(rest)
        except OSError as error:
            sock.close()
            raise TransportError(f"cannot listen at {address}: {error}; the path may hold 107 bytes") from error
        os.chmod(rest, 0o600)
    elif scheme == "tcp":
        host, _, port = rest.rpartition(":")
        if context is None and host not in ("127.0.0.1", "::1", "localhost"):
            raise TransportError(f"will not listen at {address} without TLS")
        sock = socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        address = f"tcp:{host}:{sock.getsockname()[1]}"
        return Listener(sock, address, context)
    else:
        raise TransportError(f"{address!r} is no address; expected unix:PATH or tcp:HOST:PORT")
    sock.listen(256)
    return Listener(sock, address)


def connect(address: str, context: ssl.SSLContext | None = None) -> Transport:
    """Connect to an address, within `CONNECT_S`.

    Raises:
        OSError: Nobody listens there.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(rest)
        except OSError:
            sock.close()
            raise
        uid = peer_uid(sock)
        if uid is not None and uid not in (os.getuid(), 0):
            sock.close()
            raise TransportError(f"{address} belongs to user {uid}, not to {os.getuid()}")
        return SocketTransport(sock)
    if scheme == "tcp":
        host, _, port = rest.rpartition(":")
        if context is None and host not in ("127.0.0.1", "::1", "localhost"):
            raise TransportError(f"will not connect to {address} without TLS")
        sock = socket.create_connection((host, int(port)), timeout=CONNECT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is None:
            return SocketTransport(sock)
        try:
            return TlsTransport(sock, context, server_side=False)
        except OSError:
            sock.close()
            raise
    raise TransportError(f"{address!r} is no address; expected unix:PATH or tcp:HOST:PORT")
