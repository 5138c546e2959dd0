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
import sys
from abc import ABC, abstractmethod
from collections import deque

RECEIVE_BYTES = 256 * 1024
CONNECT_S = 5.0
#: How long the path of a unix socket may be.
PATH_BYTES_MAX = 103 if sys.platform == "darwin" else 107
#: What `close` reads and throws away: a TCP socket closed with unread bytes would take back what it has just written.
DRAIN_BYTES = 1 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")


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

    @property
    def wants_write(self) -> bool:
        """Whether `flush` could do something once the descriptor is writable."""
        return self.pending > 0

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
        except ConnectionResetError:
            # It closed before it had read everything.
            return b""

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
        if self.sock.fileno() >= 0 and self.sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
                left = DRAIN_BYTES
                while left > 0 and (data := self.sock.recv(RECEIVE_BYTES)):
                    left -= len(data)
        self.sock.close()


class TlsTransport(SocketTransport):
    """TLS over a connected socket. The handshake runs along with the first reads and writes."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_side: bool) -> None:
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._ready = False
        #: What was sent before the handshake was over.
        self._plain = bytearray()
        self._shake()

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._push()
            return
        except ssl.SSLError as error:
            # The other end is to learn why, if it still listens.
            with contextlib.suppress(OSError):
                self._push()
            raise _tls_error(error) from error
        self._ready = True
        plain, self._plain = self._plain, bytearray()
        self._encrypt(plain)
        self._push()

    def _encrypt(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]

    def _push(self) -> None:
        if self._outgoing.pending:
            super().send(self._outgoing.read())

    def receive(self) -> bytes | None:
        data = super().receive()
        if not data:
            return data
        self._incoming.write(data)
        if not self._ready:
            self._shake()
            if not self._ready:
                return None
        parts: list[bytes] = []
        ended = False
        try:
            while part := self._tls.read(RECEIVE_BYTES):
                parts.append(part)
            ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            ended = True
        except ssl.SSLError as error:
            if not parts:
                raise _tls_error(error) from error
            # What came before the mistake counts; the next call meets the mistake again, or the end.
        self._push()
        return b"".join(parts) if parts or ended else None

    def send(self, data: bytes) -> None:
        if not self._ready:
            self._plain += data
            return
        self._encrypt(data)
        self._push()

    @property
    def pending(self) -> int:
        return len(self._kept) + len(self._plain)

    @property
    def wants_write(self) -> bool:
        # What waits for the handshake waits for the other end, not for room in the kernel.
        return len(self._kept) > 0

    def close(self) -> None:
        if self._ready and not self._kept and self.sock.fileno() >= 0:
            with contextlib.suppress(OSError):
                self._tls.unwrap()
            with contextlib.suppress(OSError):
                self._push()
        super().close()


def _tls_error(error: ssl.SSLError) -> TransportError:
    """What went wrong, for somebody who knows no TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TransportError(
            f"the other end's certificate is not this session's ({error.verify_message}); is this the right address, "
            "and the session file up to date?"
        )
    reason = error.reason or str(error)
    if "ALERT" in reason:
        return TransportError(f"the other end refused our certificate, or does not trust its own session's: {reason}")
    return TransportError(f"no TLS with the other end: {reason}")


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
        """The next connection, or None when there is none, or it came from another user, or cannot be taken now."""
        try:
            sock, _ = self.sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None
        except OSError:
            # For example no descriptor is left: that must not end the process; the caller waits in the queue.
            self.refused += 1
            return None
        if sock.family == socket.AF_UNIX:
            uid = peer_uid(sock)
            if uid is not None and uid not in (os.getuid(), 0):
                self.refused += 1
                sock.close()
                return None
            return SocketTransport(sock)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is None:
                return SocketTransport(sock)
            return TlsTransport(sock, self._context, server_side=True)
        except OSError:
            self.refused += 1
            sock.close()
            return None

    def close(self) -> None:
        """Stop listening; a unix socket's file goes as well."""
        if self.sock.fileno() < 0:
            return
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
    """Listen at ``unix:PATH`` or ``tcp:HOST:PORT`` (port 0 takes a free one; the listener's address tells which).

    Raises:
        TransportError: The address is none, is taken, or would be open to the network without TLS.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        _check_path(address, rest)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(rest)
            # Before `listen`: nobody can connect while the file is open to others.
            os.chmod(rest, 0o600)
            sock.listen(256)
        except OSError as error:
            sock.close()
            raise TransportError(f"cannot listen at {address}: {error}") from error
        return Listener(sock, address)
    host, port = _host_and_port(address, context, "listen at")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=256)
    except (OSError, UnicodeError) as error:
        raise TransportError(f"cannot listen at {address}: {error}") from error
    return Listener(sock, f"tcp:{host}:{sock.getsockname()[1]}", context)


def connect(address: str, context: ssl.SSLContext | None = None) -> Transport:
    """Connect to an address, within `CONNECT_S`.

    Raises:
        OSError: Nobody listens there.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        _check_path(address, rest)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(CONNECT_S)
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
    host, port = _host_and_port(address, context, "connect to")
    try:
        sock = socket.create_connection((host, port), timeout=CONNECT_S)
    except UnicodeError as error:
        raise TransportError(f"cannot connect to {address}: {error}") from error
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return SocketTransport(sock) if context is None else TlsTransport(sock, context, server_side=False)
    except OSError:
        sock.close()
        raise


def _check_path(address: str, path: str) -> None:
    size = len(os.fsencode(path))
    if size > PATH_BYTES_MAX:
        raise TransportError(
            f"{address} is too long for a unix socket: {size} bytes of path, at most {PATH_BYTES_MAX} are possible; "
            "use a shorter directory, for example by setting TMPDIR or XDG_RUNTIME_DIR"
        )
    if not path or "\0" in path:
        raise TransportError(f"{address!r} names no path; expected unix:PATH")


def _host_and_port(address: str, context: ssl.SSLContext | None, doing: str) -> tuple[str, int]:
    scheme, _, rest = address.partition(":")
    host, _, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    # Addresses come from other peers as well, so every mistake in one has to be an OSError.
    if scheme != "tcp" or not host or not (port.isascii() and port.isdigit()) or int(port[:6]) > 0xFFFF:
        raise TransportError(f"{address[:200]!r} is no address; expected unix:PATH or tcp:HOST:PORT")
    if context is None and host not in LOOPBACK:
        raise TransportError(f"will not {doing} {address} without TLS: others could listen on the way")
    return host, int(port)
