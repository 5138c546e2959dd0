"""One contract for all transports, and what is particular to some."""

from __future__ import annotations

import os
import random
import select
import shutil
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from raskid.io import certificates, transports
from raskid.io.certificates import client_context, make_certificate, server_context
from raskid.io.transports import (
    PATH_BYTES_MAX,
    MemoryTransport,
    SocketTransport,
    Transport,
    TransportError,
    connect,
    listen,
    start,
)
from tests.unit.io.ends import KINDS, LIMIT_S, descriptors, ends, session_contexts, until

SOME = random.Random(7).randbytes(5_000_000)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(kind: str) -> Iterator[tuple[Transport, Transport]]:
    with ends(kind) as both:
        yield both


def wait(*all_ends: Transport) -> None:
    """Until one of them has something to do."""
    writing = [end.write_fileno() for end in all_ends if end.wants_write]
    select.select([end.fileno() for end in all_ends], writing, [], LIMIT_S)


def carry(source: Transport, sink: Transport, data: bytes) -> None:
    """Send `data` and see it arrive."""
    source.send(data)
    came = bytearray()
    until(lambda: len(came) >= len(data), lambda: _turn(source, sink, came))
    assert came == data
    assert source.pending == 0


def _turn(source: Transport, sink: Transport, came: bytearray) -> None:
    wait(source, sink)
    assert source.receive() is None
    source.flush()
    came += sink.receive() or b""
    sink.flush()


def ended(end: Transport) -> bytes:
    """Everything up to the end of the stream."""
    came: list[bytes | None] = []
    until(lambda: b"" in came, lambda: wait(end), lambda: came.append(end.receive()))
    return b"".join(part for part in came if part)


def test_bytes_arrive_whole_and_in_order(kind: str) -> None:
    with ends(kind) as (near, far):

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @example([1], 0)
        @example([5_000_000], 0)
        @given(st.lists(st.integers(1, 300_000), min_size=1, max_size=8), st.integers(0, 1000))
        def run(sizes: list[int], at: int) -> None:
            for size in sizes:
                carry(near, far, SOME[at : at + size])
                carry(far, near, SOME[at : at + size])

        run()
        assert near.syscalls > 0


def test_nothing_there_is_none(pair: tuple[Transport, Transport]) -> None:
    near, far = pair
    assert near.receive() is None
    carry(near, far, b"x")
    assert far.receive() is None
    assert near.receive() is None


@pytest.mark.parametrize("turned", [False, True])
def test_the_end_comes_after_the_data(pair: tuple[Transport, Transport], turned: bool) -> None:
    closing, staying = reversed(pair) if turned else pair
    carry(closing, staying, b"first")
    carry(staying, closing, b"second")
    closing.send(b"last words")
    closing.close()
    closing.close()
    assert ended(staying) == b"last words"
    assert staying.receive() == b""


def test_the_end_comes_although_not_all_was_read(kind: str) -> None:
    if kind == "tls":
        pytest.skip("its bytes are read when they come")
    with ends(kind) as (near, far):
        carry(near, far, b"x")
        near.send(b"never read")
        far.send(b"last words")
        until(lambda: select.select([far.fileno()], [], [], 0)[0])
        far.close()
        assert ended(near) == b"last words"


def test_what_the_kernel_does_not_take_is_kept(pair: tuple[Transport, Transport]) -> None:
    near, far = pair
    carry(near, far, b"x")
    for _ in range(4):
        near.send(SOME)
    if isinstance(near, MemoryTransport):
        assert near.pending == 0 and not near.wants_write
    else:
        before = near.pending
        assert 0 < before <= 4 * len(SOME) and near.wants_write
        near.flush()
        assert 0 < near.pending <= before
    came = bytearray()
    until(lambda: len(came) == 4 * len(SOME), lambda: _turn(near, far, came))
    assert came == SOME * 4
    assert near.pending == 0 and not near.wants_write


def test_sending_to_nobody_is_an_error(pair: tuple[Transport, Transport]) -> None:
    near, far = pair
    carry(near, far, b"x")
    far.close()
    ended(near)
    with pytest.raises(OSError):
        for _ in range(50):
            near.send(SOME)
            near.flush()


def test_no_descriptor_stays_open(kind: str) -> None:
    with ends(kind):
        pass
    before = descriptors()
    for _ in range(3):
        with ends(kind) as (near, far):
            carry(near, far, SOME[:1000])
    assert descriptors() == before


# ── unix sockets ──


def test_a_unix_socket_is_for_its_user_only(tmp_path: Path) -> None:
    listener = listen(f"unix:{tmp_path}/s")
    assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) == 0o600
    assert listener.accept() is None
    listener.close()
    listener.close()
    assert not (tmp_path / "s").exists()


def test_connections_of_other_users_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listen(f"unix:{tmp_path}/s")
    one = connect(listener.address)
    accepted = listener.accept()
    assert accepted is not None
    accepted.close()
    monkeypatch.setattr(transports, "peer_uid", lambda sock: os.getuid() + 1)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(tmp_path / "s"))
        assert listener.accept() is None
        assert listener.refused == 1
        assert stranger.recv(1) == b""
    with pytest.raises(TransportError, match=f"belongs to user {os.getuid() + 1}, not to {os.getuid()}"):
        connect(listener.address)
    one.close()
    listener.close()


def test_root_and_systems_that_do_not_say_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listen(f"unix:{tmp_path}/s")
    for uid in (0, None):
        monkeypatch.setattr(transports, "peer_uid", lambda sock, uid=uid: uid)
        one = connect(listener.address)
        other = listener.accept()
        assert other is not None
        one.close()
        other.close()
    listener.close()


def test_the_peer_is_this_user() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert transports.peer_uid(one) in (os.getuid(), None)


@pytest.mark.parametrize("path", ["/tmp/" + "x" * 200, "/tmp/" + "é" * 60])
def test_a_path_that_is_too_long(path: str) -> None:
    for doing in (listen, connect):
        with pytest.raises(
            TransportError, match=rf"too long for a unix socket: .* at most {PATH_BYTES_MAX} are possible"
        ):
            doing(f"unix:{path}")


def test_the_longest_path_is_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listen("unix:" + "x" * PATH_BYTES_MAX).close()


def test_a_path_that_is_taken(tmp_path: Path) -> None:
    first = listen(f"unix:{tmp_path}/s")
    before = descriptors()
    with pytest.raises(TransportError, match=r"cannot listen at unix:.*in use"):
        listen(first.address)
    assert descriptors() == before
    first.close()
    with pytest.raises(OSError):
        connect(first.address)
    assert len(descriptors()) == len(before) - 1


# ── TCP and TLS ──


@pytest.mark.parametrize("address", ["tcp:0.0.0.0:0", "tcp:example.org:80", "tcp::::0", "tcp:192.0.2.1:1"])
def test_tcp_beyond_the_loopback_needs_tls(address: str) -> None:
    with pytest.raises(TransportError, match=r"will not listen at .* without TLS"):
        listen(address)
    with pytest.raises(TransportError, match=r"will not connect to .* without TLS"):
        connect(address)


@pytest.mark.parametrize(
    "address",
    ["", "x", "tcp:", "tcp:127.0.0.1", "tcp:127.0.0.1:", "tcp:127.0.0.1:x", "tcp:127.0.0.1:65536", "udp:127.0.0.1:1",
     "tcp:127.0.0.1:" + "9" * 5000, "tcp::1", "tcp:127.0.0.1:-1", "tcp:127.0.0.1:²", "unix:", "unix:\0a"],
)  # fmt: skip
def test_what_is_no_address(address: str) -> None:
    for doing in (listen, connect):
        with pytest.raises(TransportError, match="expected unix:PATH"):
            doing(address)


def test_a_name_that_cannot_be_one_is_an_oserror() -> None:
    _, client = session_contexts()
    with pytest.raises(OSError):
        connect("tcp:" + "x" * 300 + ":1", client)


def test_a_port_that_is_taken() -> None:
    listener = listen("tcp:127.0.0.1:0")
    with pytest.raises(TransportError, match=r"cannot listen at tcp:127.0.0.1:.*in use"):
        listen(listener.address)
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        connect(listener.address)


def test_a_port_of_ipv6() -> None:
    try:
        listener = listen("tcp:[::1]:0")
    except TransportError:
        pytest.skip("no IPv6 here")
    connect(listener.address).close()
    listener.close()


def test_no_descriptor_left_to_accept_with(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def accept(self) -> None:
            raise OSError(24, "Too many open files")

    listener = listen("tcp:127.0.0.1:0")
    sock, listener.sock = listener.sock, Full()  # type: ignore[assignment]
    assert listener.accept() is None and listener.refused == 1 and listener.exhausted
    sock.close()


def talk(near: Transport, far: Transport) -> tuple[list[str], list[str]]:
    """Let both ends read until both have failed; returns how."""
    failures: tuple[list[str], list[str]] = ([], [])

    def turn(end: Transport, into: list[str]) -> None:
        if not into:
            try:
                if end.receive() == b"":
                    into.append("closed")
            except OSError as error:
                into.append(str(error))
                end.close()

    until(lambda: all(failures), lambda: turn(near, failures[0]), lambda: turn(far, failures[1]))
    return failures


def failing(server: object, client: object) -> tuple[str, str]:
    """How a client and a server part that do not fit."""
    listener = listen("tcp:127.0.0.1:0", server)  # type: ignore[arg-type]
    near = connect(listener.address, client)  # type: ignore[arg-type]
    near.send(b"GET / HTTP/1.1\r\n\r\n")
    select.select([listener], [], [], LIMIT_S)
    far = listener.accept()
    assert far is not None
    (client_says,), (server_says,) = talk(near, far)
    near.close()
    far.close()
    listener.close()
    return client_says, server_says


def test_another_certificate_is_refused_by_the_client() -> None:
    server, _ = session_contexts()
    other, _ = make_certificate(["127.0.0.1"])
    client_says, server_says = failing(server, client_context(other))
    assert "certificate is not this session's" in client_says and "right address" in client_says
    assert "refused our certificate" in server_says


def test_another_certificate_is_refused_by_the_server() -> None:
    session, key = make_certificate(["127.0.0.1"])
    other, other_key = make_certificate(["127.0.0.1"])
    client = client_context(session)
    certificates._load(client, other, other_key)
    client_says, server_says = failing(server_context(session, key, mutual=True), client)
    assert "certificate is not this session's" in server_says
    assert "refused our certificate" in client_says


def test_a_client_without_a_certificate_is_refused_by_a_mutual_server() -> None:
    session, key = make_certificate(["127.0.0.1"])
    client_says, server_says = failing(server_context(session, key, mutual=True), client_context(session))
    assert "no TLS with the other end" in server_says or "certificate" in server_says
    assert "refused our certificate" in client_says


def test_plain_text_to_a_tls_port() -> None:
    server, _ = session_contexts()
    _, server_says = failing(server, None)
    assert "no TLS with the other end" in server_says


def test_bytes_wait_for_the_handshake_without_asking_to_be_written() -> None:
    with ends("tls") as (near, far):
        near.send(b"early")
        assert near.pending == 5
        assert not near.wants_write
        came = bytearray()
        until(lambda: came, lambda: _turn(near, far, came))
        assert came == b"early" and near.pending == 0


def test_the_kernel_tells_who_owes_an_acknowledgement(kind: str) -> None:
    with ends(kind) as (near, far):
        assert near.over_network == (kind in ("tcp", "tls"))
        carry(near, far, b"x")
        carry(far, near, b"x")
        if hasattr(socket, "TCP_INFO"):
            until(lambda: near.silent_s() is None)
        else:
            assert near.silent_s() is None


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system does not tell")
def test_what_is_on_its_way_is_owed() -> None:
    """1. Three segments are on their way, and the last acknowledgement came 1.5 s ago. 2. None is."""
    with ends("tcp") as (near, far):
        assert isinstance(near, SocketTransport) and isinstance(far, SocketTransport)
        info = struct.pack("=24xI28xI", 3, 1500)
        near.sock = Told(near.sock, info)  # type: ignore[assignment]
        assert near.silent_s() == 1.5
        near.sock = Told(near.sock, struct.pack("=24xI28xI", 0, 1500))  # type: ignore[assignment]
        assert near.silent_s() is None


class Told:
    """A socket of which the kernel tells this."""

    def __init__(self, sock: socket.socket, info: bytes) -> None:
        self._sock = sock
        self._info = info

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return self._info[:size]

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


def test_both_ends_of_tcp_ask_for_signs_of_life() -> None:
    with ends("tcp") as pair:
        for end in pair:
            assert isinstance(end, SocketTransport)
            assert end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_KEEPINTVL"):
                assert end.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == transports.KEEPALIVE_INTERVAL_S


def test_a_machine_that_does_not_answer_is_waited_for_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "CONNECT_S", 0.05)
    before = descriptors()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = [start(f"tcp:127.0.0.1:{server.getsockname()[1]}") for _ in range(4)]
        with pytest.raises(TransportError, match=r"did not answer within 0.05 s"):
            connect(f"tcp:127.0.0.1:{server.getsockname()[1]}")
        for each in waiting:
            each.close()
    assert descriptors() == before


# In a network of its own, which it takes away.
VANISHING = """
import select, subprocess, sys, time
from raskid.io.transports import connect, listen
if subprocess.run(["ip", "link", "set", "lo", "up"]).returncode:
    sys.exit(77)
listener = listen("tcp:127.0.0.1:0")
near = connect(listener.address)
select.select([listener], [], [])
far = listener.accept()
near.send(b"x")
select.select([far], [], [])
assert far.receive() == b"x"
limit = time.monotonic() + 10
while near.silent_s() is not None:
    assert time.monotonic() < limit, "what arrived is not acknowledged"
assert subprocess.run(["ip", "link", "set", "lo", "down"]).returncode == 0
near.send(b"y")
while (near.silent_s() or 0) < 0.2:
    assert time.monotonic() < limit, "the silence is not noticed"
"""


def test_the_kernel_notices_that_a_network_has_vanished() -> None:
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("no networks can be made here")
    probe = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no networks can be made here")
    made = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", VANISHING], capture_output=True, text=True, timeout=60, check=False
    )
    if made.returncode == 77:
        pytest.skip("networks of one's own have no loopback here")
    assert made.returncode == 0, made.stderr
