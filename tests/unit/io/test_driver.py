"""Two processes' machines over every transport, in one thread: each driver takes a step in turn."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raskid.core.calls import Calls
from raskid.core.effects import Arrived, CallDone, Invoke, ListChanged, Replied, Send, Told
from raskid.core.events import (
    Announce,
    HandshakeRefused,
    PeerGone,
    PeerJoined,
    Publish,
    Reply,
    Request,
    Serve,
    Subscribed,
    Took,
)
from raskid.core.handshake import HANDSHAKE_S
from raskid.core.hub import Hub
from raskid.core.identity import Identity
from raskid.core.lists import Lists
from raskid.core.messaging import Messaging
from raskid.core.peer import Peer
from raskid.core.station import Station
from raskid.io import driver as driver_module
from raskid.io.driver import ROOM_BYTES, Driver
from raskid.io.transports import Transport, connect, listen
from raskid.model.ids import PeerId, RequestId
from raskid.protocol.codec import decode_batch, encode_batch
from raskid.protocol.framing import UNCOUNTED, FrameReader, frame
from raskid.protocol.messages import (
    KIND_CLIENT,
    KIND_HEAD,
    PROTOCOL_VERSION,
    ROLE_EXECUTE,
    Hello,
    PeerRef,
    PutRecord,
    Refused,
)
from raskid.protocol.reactions import JUST_DELIVER, Provider, Reaction
from tests.unit.io.ends import KINDS, bridge, descriptors, ends, session_contexts, until

HEAD = PeerId("head")
TOKEN = "token of these tests"


class Process:
    """A driver with its machines, and what they told the application."""

    def __init__(self, name: str, number: int, token: str = TOKEN, address: str = "", **more: Any) -> None:
        head = name == HEAD
        self.peer = Peer(
            Identity(PeerId(name), 1, number, KIND_HEAD if head else KIND_CLIENT, token), "" if head else HEAD
        )
        if not head:
            self.peer.introduce(PeerRef(HEAD, 0, (address,)), 0.0)
        lists = Lists(HEAD)
        self.messaging = Messaging(lists)
        machines: list[Any] = [lists, self.messaging, Calls(lists)]
        if head:
            machines.append(Hub())
        self.station = Station(self.peer, machines)
        self.told: list[Any] = []
        self.driver = Driver(self.station, self.told.append, **more)
        self.requests = itertools.count((number << 32) + 1)

    def step(self) -> None:
        self.driver.step(0)
        self.station.check_invariants()

    def request(self) -> RequestId:
        return RequestId(next(self.requests))

    def all(self, kind: type[Any]) -> list[Any]:
        return [effect for effect in self.told if type(effect) is kind]

    def heard(self, kind: type[Any]) -> list[Any]:
        return [told.event for told in self.all(Told) if type(told.event) is kind]

    def put(self, name: str, record: str, value: Any) -> None:
        message = PutRecord(self.request(), name, record, msgspec.msgpack.encode(value), settle_s=20.0)
        with self.driver.lock:
            self.driver.perform([Send(HEAD, message)])

    def subscribe(self, topic: str, capacity: int = 16) -> RequestId:
        subscription = self.request()
        self.driver.handle(Subscribed(subscription, capacity))
        self.put(f"reactions:{topic}", str(subscription), Reaction(self.peer.own_ref, JUST_DELIVER, capacity))
        return subscription

    def bodies(self) -> list[bytes]:
        return [body for arrived in self.all(Arrived) for body in arrived.bodies]


class World:
    """A head, and a way for others to get to it."""

    def __init__(self, kind: str, directory: Path, stack: contextlib.ExitStack, patch: pytest.MonkeyPatch) -> None:
        self.kind = kind
        self.stack = stack
        self.numbers = itertools.count(1)
        self.tls: ssl.SSLContext | None
        server, self.tls = session_contexts() if kind == "tls" else (None, None)
        self.head = Process(HEAD, next(self.numbers))
        self.processes = [self.head]
        stack.callback(self.close)
        if kind in ("memory", "stdio"):
            self.address = f"{kind}:head"
            patch.setattr(driver_module, "start", self.connect)
        else:
            listener = listen(f"unix:{directory}/s" if kind == "unix" else "tcp:127.0.0.1:0", server)
            self.address = listener.address
            self.head.driver.listen(listener)
            stack.callback(listener.close)

    def connect(self, address: str, context: object = None) -> Transport:
        """What a client's driver does to get to the head."""
        if address not in ("memory:head", "stdio:head"):
            return connect(address, self.tls)
        near, far = self.stack.enter_context(bridge() if self.kind == "stdio" else ends(self.kind))
        self.head.driver.adopt(far)
        return near

    def client(self, name: str, token: str = TOKEN) -> Process:
        made = Process(name, next(self.numbers), token, self.address, client_tls=self.tls)
        self.processes.append(made)
        return made

    def until(self, done: Callable[[], object], *turns: Callable[[], object]) -> None:
        until(done, *(process.step for process in self.processes), *turns)

    def close(self) -> None:
        for process in self.processes:
            process.driver.close()


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    before = descriptors()
    with contextlib.ExitStack() as stack:
        yield World(request.param, tmp_path, stack, monkeypatch)
    assert descriptors() == before


def joined(world: World, name: str) -> Process:
    """A client whose handshake is over."""
    client = world.client(name)
    client.driver.handle(Announce(f"of {name}"))
    world.until(lambda: client.heard(PeerJoined) and client.all(ListChanged))
    return client


def publish_both_ways(world: World, client: Process) -> None:
    """Messages from the head to the client and back."""
    topic = f"news for {client.peer.identity.peer}"
    client.subscribe(topic)
    world.head.subscribe(f"of {client.peer.identity.peer}")
    world.until(lambda: client.all(Replied) and world.head.all(Replied))
    client.told.clear()
    world.head.told.clear()
    world.until(lambda: client.messaging.plans.get(f"of {client.peer.identity.peer}"))
    for number in range(10):
        world.head.driver.handle(Publish(topic, b"to client %d" % number))
        client.driver.handle(Publish(f"of {client.peer.identity.peer}", b"to head %d" % number))
    world.until(lambda: len(client.bodies()) == 10 and len(world.head.bodies()) == 10)
    assert client.bodies() == [b"to client %d" % number for number in range(10)]
    assert world.head.bodies() == [b"to head %d" % number for number in range(10)]


def test_handshake_and_messages_both_ways(world: World) -> None:
    client = joined(world, "client")
    (head,) = client.heard(PeerJoined)
    assert (head.peer, head.kind, head.role) == (HEAD, KIND_HEAD, ROLE_EXECUTE)
    (guest,) = world.head.heard(PeerJoined)
    assert (guest.peer, guest.kind, guest.role) == ("client", KIND_CLIENT, ROLE_EXECUTE)
    publish_both_ways(world, client)
    totals = client.driver.totals()
    assert totals.bytes_sent > 0 and totals.bytes_received > 0 and totals.connections == 1 and totals.syscalls > 0


def test_calls(world: World) -> None:
    client = joined(world, "client")
    world.head.driver.handle(Serve("double"))
    world.head.put("services:double", "head", Provider(world.head.peer.own_ref))
    number = client.request()
    client.driver.handle(Request(number, "double", b"ab", client.driver.clock() + 20))
    world.until(lambda: world.head.all(Invoke))
    (invoke,) = world.head.all(Invoke)
    world.head.driver.handle(Reply(invoke.request, True, invoke.body * 2))
    world.until(lambda: client.all(CallDone))
    assert client.all(CallDone) == [CallDone(number, True, b"abab")]


def test_more_than_any_buffer_holds(world: World) -> None:
    client = joined(world, "client")
    bodies = [bytes([number]) * (40 * ROOM_BYTES // 10) for number in range(10)]
    subscription = client.subscribe("large", capacity=4)
    world.until(lambda: client.all(Replied))
    for body in bodies:
        world.head.driver.handle(Publish("large", body))

    def take() -> None:
        while client.told:
            effect = client.told.pop(0)
            if type(effect) is Arrived:
                got.extend(effect.bodies)
                client.driver.handle(Took(subscription, HEAD, len(effect.bodies)))

    got: list[bytes] = []
    world.until(lambda: len(got) >= 8, take)
    # Four were on their way and four waited for credit; the plan's policy keeps no more than that here.
    assert got == [*bodies[:4], *bodies[-4:]]


def test_a_goodbye_ends_the_link_at_once(world: World) -> None:
    client = joined(world, "client")
    client.driver.close("enough")
    world.processes.remove(client)
    world.until(lambda: world.head.heard(PeerGone))
    (gone,) = world.head.heard(PeerGone)
    assert gone.peer == "client" and "enough" in gone.reason
    assert not client.driver.step(0)
    client.driver.close()


def test_a_broken_connection_comes_again(world: World) -> None:
    client = joined(world, "client")
    (channel,) = client.driver._channels.values()
    client.driver._lost(channel, "cut")
    publish_both_ways(world, client)
    assert client.driver.counters.connections == 2
    assert not client.heard(PeerGone) and not world.head.heard(PeerGone)


def test_a_wrong_token(world: World) -> None:
    good = joined(world, "good")
    bad = world.client("bad", token="guessed")
    bad.driver.handle(Announce("x"))
    world.until(lambda: bad.heard(HandshakeRefused))
    (refused,) = bad.heard(HandshakeRefused)
    assert refused.peer == HEAD and refused.code == "bad-token" and "'s" in refused.text
    assert [gone.peer for gone in bad.heard(PeerGone)] == [HEAD]
    assert not [peer for peer in world.head.heard(PeerJoined) if peer.peer == "bad"]
    publish_both_ways(world, good)


def hello(protocol: int) -> bytes:
    greeting = Hello(protocol, PeerId("old"), 1, 77, KIND_CLIENT, ROLE_EXECUTE, "", raskid="9.9")
    return frame(UNCOUNTED, 0, encode_batch([greeting]))


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (hello(PROTOCOL_VERSION + 1), "bad-version", "Install the same raskid at both ends"),
        (hello(PROTOCOL_VERSION), "bad-token", "not one of this system's"),
        (b"GET / HTTP/1.1\r\n\r\n", "protocol", "Is the other end raskid?"),
        (b"\xff" * 100_000, "protocol", "Is the other end raskid?"),
        (frame(UNCOUNTED, 0, b"\xc1" * 20), "protocol", ""),
        (frame(UNCOUNTED, 0, bytes(20_000)), "protocol", "20,000 bytes"),
        (frame(0, 0, b"abc"), "protocol", "must be a Hello"),
    ],
    ids=["version", "token", "http", "garbage", "undecodable", "oversize", "counted"],
)
def test_strangers_are_told_why_they_are_refused(world: World, data: bytes, code: str, text: str) -> None:
    good = joined(world, "good")
    stranger = world.connect(world.address)
    reader = FrameReader()
    frames: list[Any] = []
    over: list[bool] = []

    def turn() -> None:
        stranger.flush()
        came = stranger.receive()
        if came == b"":
            over.append(True)
        elif came is not None:
            frames.extend(reader.feed(came))

    stranger.send(data)
    world.until(lambda: over, turn)
    ((word, _, payload),) = frames
    assert word & UNCOUNTED
    (refused,) = decode_batch(payload)
    assert isinstance(refused, Refused)
    assert refused.code == code and text in refused.text
    stranger.close()
    assert len(world.head.driver._channels) == 1
    publish_both_ways(world, good)


def test_garbage_in_the_middle_of_a_link(world: World) -> None:
    good, bad = joined(world, "good"), joined(world, "bad")
    (channel,) = bad.driver._channels.values()
    channel.transport.send(b"\xff" * 64)
    world.until(lambda: world.head.heard(PeerGone))
    (gone,) = world.head.heard(PeerGone)
    assert gone.peer == "bad" and "broke the protocol" in gone.reason
    world.until(lambda: bad.heard(PeerGone) or bad.heard(HandshakeRefused))
    publish_both_ways(world, good)


# ── the loop itself ──


@pytest.fixture
def alone() -> Iterator[Process]:
    before = descriptors()
    process = Process(HEAD, 1)
    yield process
    process.driver.close()
    assert descriptors() == before


def test_nothing_to_do(alone: Process) -> None:
    assert alone.driver.step(0) is False
    assert alone.driver.counters.wakeups == 1


def test_waking_up(alone: Process) -> None:
    for _ in range(3):
        alone.driver.wake()
        alone.driver.wake()
        assert alone.driver.step(None) is True
        assert alone.driver.step(0) is False


def test_a_wake_up_during_another_is_not_lost(alone: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = alone.driver
    taken = driver._wake_out

    class Slow:
        def recv(self, size: int) -> bytes:
            driver.wake()
            return taken.recv(size)

        def fileno(self) -> int:
            return taken.fileno()

        def close(self) -> None:
            taken.close()

    driver._wake_out = Slow()  # type: ignore[assignment]
    driver.wake()
    driver.step(None)
    driver._wake_out = taken
    driver.step(0)
    driver.wake()
    assert driver.step(0) is True


def test_closing_lets_a_waiting_thread_go() -> None:
    before = descriptors()
    process = Process(HEAD, 1)
    waiting = threading.Thread(target=process.driver.step, args=(None,), daemon=True)
    waiting.start()
    until(lambda: process.driver._steps)
    process.driver.close()
    waiting.join(20)
    assert not waiting.is_alive()
    assert descriptors() == before


def test_foreign_descriptors(alone: Process) -> None:
    reader, writer = os.pipe()
    seen: list[bytes] = []
    alone.driver.watch(reader, lambda events: seen.append(os.read(reader, 10)))
    os.write(writer, b"x")
    assert alone.driver.step(10)
    assert seen == [b"x"]
    alone.driver.unwatch(reader)
    alone.driver.unwatch(reader)
    os.write(writer, b"y")
    assert not alone.driver.step(0)
    os.close(reader)
    os.close(writer)


def test_a_listener_comes_and_goes(alone: Process, tmp_path: Path) -> None:
    listener = listen(f"unix:{tmp_path}/s")
    alone.driver.listen(listener)
    alone.driver.unlisten(listener)
    with pytest.raises(OSError):
        connect(listener.address)


def test_an_address_where_nobody_listens(tmp_path: Path) -> None:
    for address in (f"unix:{tmp_path}/nobody", "tcp:127.0.0.1:1", "tcp:x:y", "nonsense"):
        client = Process("client", 2, address=address)
        client.driver.handle(Announce("x"))
        client.step()
        assert client.driver._channels == {} and client.driver.counters.connections == 0
        deadline = client.station.next_deadline()
        assert deadline is not None
        client.driver.close()


def test_a_handshake_of_tls_does_not_keep_the_loop_busy(alone: Process) -> None:
    _, tls = session_contexts()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Process("client", 2, address=f"tcp:127.0.0.1:{silent.getsockname()[1]}", client_tls=tls)
        client.driver.handle(Announce("x"))
        until(lambda: client.driver._channels, lambda: client.driver.step(0))
        (channel,) = client.driver._channels.values()
        assert channel.transport.pending > 0
        assert not client.driver.step(0)
        client.driver.close()


def test_the_last_words_go_out_although_the_kernel_is_full() -> None:
    head = Process(HEAD, 1)
    with ends("unix") as (near, far):
        far.send(bytes(4_000_000))
        assert far.wants_write
        kept = far.pending
        head.driver.adopt(far)
        near.send(b"\xff" * 64)
        head.driver.step(0)
        assert head.driver._channels == {} and len(head.driver._leaving) == 1
        came = bytearray()
        ended: list[bool] = []

        def turn() -> None:
            data = near.receive()
            came.extend(data or b"")
            if data == b"":
                ended.append(True)

        until(lambda: ended, lambda: head.driver.step(0), turn)
        assert kept > 0 and len(came) > 4_000_000
        ((_, _, payload),) = FrameReader().feed(bytes(came[4_000_000:]))
        (refused,) = decode_batch(payload)
        assert isinstance(refused, Refused)
        assert head.driver._leaving == {}
    head.driver.close()


def test_last_words_that_nobody_reads_do_not_wait_for_ever() -> None:
    head = Process(HEAD, 1)
    now = [1000.0]
    head.driver.clock = lambda: now[0]
    with ends("unix") as (near, far):
        far.send(bytes(4_000_000))
        head.driver.adopt(far)
        near.send(b"\xff" * 64)
        head.driver.step(0)
        assert len(head.driver._leaving) == 1
        now[0] += driver_module.LINGER_S
        head.driver.step(0)
        assert head.driver._leaving == {}
    head.driver.close()


# ── the end ──


def test_closing_lingers_until_everything_is_written(world: World) -> None:
    """1. More waits than any buffer holds. 2. Whoever closes and may linger writes all of it, the goodbye last."""
    client = joined(world, "client")
    assert not client.driver.unwritten()
    client.driver.handle(Announce("large"))
    world.head.subscribe("large", capacity=4000)
    world.until(lambda: world.head.all(Replied) and client.messaging.plans.get("large"))
    for number in range(3000):
        client.driver.handle(Publish("large", b"%d;" % number + bytes(5000)))
    client.driver.flush()
    assert client.driver.unwritten()
    closing = threading.Thread(target=client.driver.close, args=("all said", 60.0), daemon=True)
    closing.start()
    world.processes.remove(client)
    # Sleeping in between: a thread that only looks takes the interpreter from the other one, 5 ms at a time.
    until(lambda: world.head.heard(PeerGone), lambda: world.head.driver.step(0.05))
    closing.join(20)
    assert not closing.is_alive()
    assert [int(body.split(b";")[0]) for body in world.head.bodies()] == list(range(3000))
    assert "all said" in world.head.heard(PeerGone)[0].reason


def test_who_lingers_lets_others_read_to_the_end(lossy: Lossy) -> None:
    """1. All is written to the kernel. 2. The socket stays open until the other end has read the goodbye, because one
    that is closed while the other end writes takes back what was not read."""
    closing = threading.Thread(target=lossy.client.driver.close, args=("all said", 60.0), daemon=True)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive() and not lossy.client.driver.unwritten()
    until(lambda: not closing.is_alive(), lossy.head.step)
    assert "all said" in lossy.head.heard(PeerGone)[0].reason


def test_closing_without_lingering_does_not_wait(world: World) -> None:
    client = joined(world, "client")
    world.head.subscribe("large", capacity=4000)
    client.driver.handle(Announce("large"))
    world.until(lambda: world.head.all(Replied) and client.messaging.plans.get("large"))
    for _ in range(100):
        client.driver.handle(Publish("large", bytes(100_000)))
    client.driver.close()
    assert client.driver.closed
    world.processes.remove(client)


# ── connections that are being opened ──


@contextlib.contextmanager
def unresponsive() -> Iterator[str]:
    """The address of a port that answers nobody: its queue is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield f"tcp:127.0.0.1:{server.getsockname()[1]}"


def test_opening_a_connection_blocks_nobody() -> None:
    before = descriptors()
    with unresponsive() as address:
        client = Process("client", 2, address=address)
        now = [1000.0]
        client.driver.clock = lambda: now[0]
        client.driver.handle(Announce("x"))
        assert len(client.driver._opening) == 1
        client.driver.wake()
        assert client.driver.step(None), "the loop goes on meanwhile"
        (first,) = client.driver._opening
        now[0] += HANDSHAKE_S
        client.driver.step(0)
        assert first not in client.driver._opening, "it is given up after a while"
        client.driver.close()
    assert descriptors() == before


def test_every_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Process(HEAD, 1)
    listener = listen("tcp:127.0.0.1:0")
    head.driver.listen(listener)
    port = int(listener.address.rpartition(":")[2])
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", number)) for number in (1, 1, port)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: found)
    client = Process("client", 2, address=listener.address)
    client.driver.handle(Announce("x"))
    until(lambda: client.heard(PeerJoined), client.step, head.step)
    client.driver.close()
    head.driver.close()
    listener.close()


def test_a_listener_that_cannot_accept_rests(alone: Process, tmp_path: Path) -> None:
    """1. No descriptor is left. 2. The loop sleeps meanwhile. 3. Whoever waited in the queue is let in later."""
    now = [1000.0]
    alone.driver.clock = lambda: now[0]
    listener = listen(f"unix:{tmp_path}/s")
    alone.driver.listen(listener)
    sock = listener.sock

    class Full:
        def accept(self) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        def fileno(self) -> int:
            return sock.fileno()

    listener.sock = Full()  # type: ignore[assignment]
    with contextlib.closing(connect(listener.address)):
        assert alone.driver.step(10)
        assert listener.refused == 1
        assert not alone.driver.step(0) and listener.refused == 1
        listener.sock = sock
        now[0] += driver_module.ACCEPT_PAUSE_S
        until(lambda: alone.driver._channels, alone.step)
    listener.close()


# ── machines that vanish ──


class Lossy:
    """A pair of processes over TCP, and what the client's kernel says of the head's."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.head = Process(HEAD, 1)
        listener = listen("tcp:127.0.0.1:0")
        self.head.driver.listen(listener)
        self.client = Process("client", 2, address=listener.address)
        for end in (self.client, self.head):
            stack.callback(end.driver.close)
        stack.callback(listener.close)
        self.now = 1000.0
        self.client.driver.clock = lambda: self.now
        self.client.driver.handle(Announce("x"))
        until(lambda: self.client.all(ListChanged), self.client.step, self.head.step)
        (self.channel,) = self.client.driver._channels.values()
        self.silent_s: float | None = None
        self.channel.transport.silent_s = lambda: self.silent_s  # type: ignore[method-assign]

    def look(self) -> None:
        self.now += driver_module.HEARTBEAT_S
        if self.silent_s is not None:
            self.silent_s += driver_module.HEARTBEAT_S
        self.client.step()


@pytest.fixture
def lossy() -> Iterator[Lossy]:
    with contextlib.ExitStack() as stack:
        yield Lossy(stack)


def test_a_machine_that_acknowledges_nothing_is_left(lossy: Lossy) -> None:
    """The connection goes, the link stays: it looks for another connection."""
    lossy.silent_s = 3600.0
    looks = 0
    while lossy.channel.id in lossy.client.driver._channels:
        lossy.look()
        looks += 1
    assert looks == 1 + driver_module.SILENT_S / driver_module.HEARTBEAT_S
    assert not lossy.client.heard(PeerGone)
    lossy.channel.transport.silent_s = lambda: None  # type: ignore[method-assign]
    until(lambda: lossy.client.peer.is_connected(HEAD), lossy.client.step, lossy.head.step)


def test_a_slow_machine_is_not_left(lossy: Lossy) -> None:
    for _ in range(40):
        lossy.silent_s = 1.0
        lossy.look()
        lossy.look()
    assert lossy.channel.id in lossy.client.driver._channels


def test_an_idle_connection_costs_nothing(lossy: Lossy) -> None:
    for _ in range(3):
        lossy.look()
    assert not lossy.client.driver._timers and lossy.client.station.next_deadline() is None
    assert lossy.client.driver.waits_until is None


def test_no_look_is_taken_at_unix_sockets(tmp_path: Path) -> None:
    head = Process(HEAD, 1)
    listener = listen(f"unix:{tmp_path}/s")
    head.driver.listen(listener)
    client = Process("client", 2, address=listener.address)
    client.driver.handle(Announce("x"))
    until(lambda: client.all(ListChanged), client.step, head.step)
    for end in (client, head):
        assert not end.driver._timers
        end.driver.close()
    listener.close()
