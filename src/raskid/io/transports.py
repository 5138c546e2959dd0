"""How transports are opened: listening and connecting at ``unix:PATH`` and ``tcp:HOST:PORT``, with TLS on TCP.

Beginning to connect waits for no network: `start` gives what is to be polled until the connection is there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from raskid.io.streams import (
    FileTransport,
    MemoryTransport,
    SocketTransport,
    Transport,
    TransportError,
)

if TYPE_CHECKING:
    import ssl

__all__ = [
    "Connecting",
    "FileTransport",
    "Listener",
    "MemoryTransport",
    "SocketTransport",
    "Transport",
    "TransportError",
    "connect",
    "listen",
    "peer_uid",
    "start",
]

CONNECT_S = 5.0
#: How long the path of a unix socket may be.
PATH_BYTES_MAX = 103 if sys.platform == "darwin" else 107
LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: A TCP connection over which nothing has come for so long is asked for a sign of life, again and again; the other
#: end's kernel gives it, however busy its process is. After so many without an answer the connection is lost.
KEEPALIVE_IDLE_S = 10
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_COUNT = 4


class Listener:
    """Accepts connections at an address."""

    def __init__(self, sock: socket.socket, address: str, context: ssl.SSLContext | None = None) -> None:
        self.sock = sock
        self.address = address
        self._context = context
        self.refused = 0
        #: The last `accept` failed although somebody waits: trying again at once is of no use.
        self.exhausted = False
        sock.setblocking(False)

    def fileno(self) -> int:
        """What to poll."""
        return self.sock.fileno()

    def accept(self) -> Transport | None:
        """The next connection, or None when there is none, or it came from another user, or cannot be taken now."""
        self.exhausted = False
        try:
            sock, _ = self.sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None
        except OSError:
            # For example no descriptor is left: that must not end the process; the caller waits in the queue.
            self.refused += 1
            self.exhausted = True
            return None
        if sock.family == socket.AF_UNIX:
            uid = peer_uid(sock)
            if uid is not None and uid not in (os.getuid(), 0):
                self.refused += 1
                sock.close()
                return None
            return SocketTransport(sock)
        try:
            return _tcp_transport(sock, self._context, server_side=True)
        except OSError:
            self.refused += 1
            sock.close()
            return None

    def abandon(self) -> None:
        """In a process that was forked: close its copy of the descriptor. The file is the other process's."""
        self.sock.close()

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


class Connecting:
    """A TCP connection that is being opened. Poll `fileno` for writing, then call `finish`.

    Raises:
        OSError: Nothing of that name can be reached from here.
    """

    def __init__(self, address: str, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self.address = address
        self._context = context
        try:
            # Asks a name server where `host` is a name; addresses that peers publish should be numbers.
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise TransportError(f"cannot connect to {address}: {error}") from error
        self._candidates = deque((family, name) for family, _, _, _, name in found)
        self._sock: socket.socket | None = None
        self._next(OSError(f"{host} has no address"))

    def _next(self, error: OSError) -> None:
        """Begin with the next of the host's addresses."""
        while self._candidates:
            family, name = self._candidates.popleft()
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            number = sock.connect_ex(name)
            if number in (0, errno.EINPROGRESS, errno.EAGAIN, errno.EINTR):
                self._sock = sock
                return
            sock.close()
            error = OSError(number, os.strerror(number))
        raise error

    def fileno(self) -> int:
        """What to poll; another one after a `finish` that gave None."""
        return -1 if self._sock is None else self._sock.fileno()

    def finish(self) -> Transport | None:
        """The transport; or None: that address of the host does not answer, and the next one is tried.

        Raises:
            OSError: Nobody listens there, at any of the host's addresses.
        """
        sock = self._sock
        assert sock is not None
        self._sock = None
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            sock.close()
            self._next(OSError(number, os.strerror(number)))
            return None
        try:
            return _tcp_transport(sock, self._context, server_side=False)
        except OSError:
            sock.close()
            raise

    def close(self) -> None:
        """Give it up."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def start(address: str, context: ssl.SSLContext | None = None) -> Transport | Connecting:
    """Connect to an address, or begin to, without waiting for the network.

    Raises:
        OSError: Nobody listens there.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        return _connect_unix(address, rest)
    host, port = _host_and_port(address, context, "connect to")
    return Connecting(address, host, port, context)


def connect(address: str, context: ssl.SSLContext | None = None) -> Transport:
    """Connect to an address, and wait for that, `CONNECT_S` at most.

    Raises:
        OSError: Nobody listens there, or nobody answers.
    """
    made = start(address, context)
    until = time.monotonic() + CONNECT_S
    while isinstance(made, Connecting):
        if not select.select([], [made], [], max(0.0, until - time.monotonic()))[1]:
            made.close()
            raise TransportError(f"{address} did not answer within {CONNECT_S:g} s")
        made = made.finish() or made
    return made


def _connect_unix(address: str, path: str) -> Transport:
    _check_path(address, path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Waits only while the other end's queue of those who want to connect is full.
    sock.settimeout(CONNECT_S)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    uid = peer_uid(sock)
    if uid is not None and uid not in (os.getuid(), 0):
        sock.close()
        raise TransportError(f"{address} belongs to user {uid}, not to {os.getuid()}")
    return SocketTransport(sock)


def _tcp_transport(sock: socket.socket, context: ssl.SSLContext | None, server_side: bool) -> Transport:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPALIVE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_COUNT),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if context is None:
        return SocketTransport(sock)
    from raskid.io.tls import TlsTransport

    return TlsTransport(sock, context, server_side)


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
