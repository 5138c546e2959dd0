"""Pairs of connected transports of every kind, for the tests of this directory."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from raskid.io.certificates import client_context, make_certificate, server_context
from raskid.io.transports import FileTransport, MemoryTransport, SocketTransport, Transport, connect, listen

KINDS = ("memory", "unix", "tls", "tcp", "stdio")
LIMIT_S = 15.0

# Copies its standard input to a socket and back, as `ssh` does between two hosts.
BRIDGE = """
import os, sys, threading
fd = int(sys.argv[1])
def copy(source, sink):
    while data := os.read(source, 65536):
        while data:
            data = data[os.write(sink, data):]
def back():
    try:
        copy(fd, 1)
    finally:
        os._exit(0)
answers = threading.Thread(target=back, daemon=True)
answers.start()
try:
    copy(0, fd)
except OSError:
    # Nobody reads any more; what was said before that is still copied.
    answers.join()
finally:
    os._exit(0)
"""


@functools.cache
def session_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS for a server and a client of one session."""
    certificate, key = make_certificate(["127.0.0.1"])
    return server_context(certificate, key, mutual=True), client_context(certificate, key)


@contextlib.contextmanager
def bridge() -> Iterator[tuple[Transport, Transport]]:
    """The pipes of a child process, and what is at its other side."""
    ours, its = socket.socketpair()
    child = subprocess.Popen(
        [sys.executable, "-c", BRIDGE, str(its.fileno())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        pass_fds=[its.fileno()],
    )
    its.close()
    assert child.stdin is not None and child.stdout is not None
    near = FileTransport(os.dup(child.stdout.fileno()), os.dup(child.stdin.fileno()))
    child.stdin.close()
    child.stdout.close()
    far = SocketTransport(ours)
    try:
        yield near, far
    finally:
        near.close()
        far.close()
        child.wait(LIMIT_S)


@contextlib.contextmanager
def ends(kind: str) -> Iterator[tuple[Transport, Transport]]:
    """Two connected ends; both are closed afterwards."""
    if kind == "stdio":
        with bridge() as pair:
            yield pair
        return
    if kind == "memory":
        near: Transport
        far: Transport | None
        near, far = MemoryTransport.pair()
    else:
        with tempfile.TemporaryDirectory() as directory:
            server, client = session_contexts() if kind == "tls" else (None, None)
            listener = listen(f"unix:{directory}/s" if kind == "unix" else "tcp:127.0.0.1:0", server)
            near = connect(listener.address, client)
            select.select([listener], [], [], LIMIT_S)
            far = listener.accept()
            listener.close()
    assert far is not None
    try:
        yield near, far
    finally:
        near.close()
        far.close()


def until(done: Callable[[], object], *turns: Callable[[], object]) -> None:
    """Take turns until `done`."""
    limit = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < limit, "it did not happen"
        for turn in turns:
            turn()


def descriptors() -> set[str]:
    """What this process has open."""
    found = set()
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            found.add(name)
    return found
