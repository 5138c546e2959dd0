"""The floor: bare uvloop and msgspec over a unix socket, frames with a 4-byte length."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec

from benchmarks.messages import shared
from benchmarks.messages.shared import BODY, Bare, Counter, Partner, Values

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode
TOPIC = "bench/values"


class Frames(asyncio.Protocol):
    """Splits and decodes frames; knows when writing should pause."""

    transport: asyncio.Transport

    def __init__(self, on_frame: Callable[[Any], None]) -> None:
        self.on_frame = on_frame
        self.rest = b""
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class does not derive from it

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def send(self, value: object) -> None:
        """One frame."""
        data = encode(value)
        self.transport.write(len(data).to_bytes(4, "big") + data)

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        view, at, size = memoryview(data), 0, len(data)
        while at + 4 <= size:
            end = at + 4 + int.from_bytes(view[at : at + 4], "big")
            if end > size:
                break
            self.on_frame(decode(view[at + 4 : end]))
            at = end
        self.rest = data[at:]


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Requests:
    """A future per request."""

    def __init__(self) -> None:
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.last = 0
        self.loop = asyncio.get_running_loop()
        self.frames = Frames(self.reply)

    def reply(self, frame: Any) -> None:
        """An answer came."""
        self.waiting.pop(frame[0]).set_result(frame[1])

    def request(self, topic: str, body: bytes) -> asyncio.Future[Any]:
        """Send and hand out the future of the answer."""
        self.last += 1
        future = self.waiting[self.last] = self.loop.create_future()
        self.frames.send((self.last, body, topic))
        return future


async def _subscribe(path: str, n: int) -> Values:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    partner: Partner
    counter = Counter(n, lambda: partner.go(), done.set)  # noqa: PLW0108 - the partner comes later
    server = await loop.create_unix_server(lambda: Frames(lambda frame: counter(frame[1])), path)
    with Partner("floor", "publish", path, n) as partner:
        await done.wait()
        values = counter.values(partner.answer())
    server.close()
    return values


async def _publish(path: str, n: int) -> None:
    loop = asyncio.get_running_loop()
    _, frames = await loop.create_unix_connection(lambda: Frames(lambda _frame: None), path)
    while not shared.told():
        frames.send((TOPIC, shared.WARM))
        await asyncio.sleep(0.01)
    sys.stdin.readline()
    start = time.monotonic()
    for i in range(n):
        frames.send((TOPIC, BODY))
        if i % shared.BURST == 0:
            await asyncio.sleep(0)
            await frames.writable.wait()
    shared.tell(start=start, sent=time.monotonic())
    await loop.run_in_executor(None, shared.wait_for_end)
    frames.transport.close()


async def _serve(path: str) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(Echo, path)
    shared.tell(ready=1)
    await loop.run_in_executor(None, shared.wait_for_end)
    server.close()


async def _connected(path: str) -> Requests:
    requests = Requests()
    await requests.loop.create_unix_connection(lambda: requests.frames, path)
    return requests


async def _request(path: str, n: int) -> Values:
    requests = await _connected(path)
    times = []
    for i in range(n + 200):
        start = time.perf_counter()
        await requests.request(TOPIC, BODY)
        if i >= 200:
            times.append(time.perf_counter() - start)
    return shared.round_trips(times)


async def _install(path: str) -> Values:
    requests = await _connected(path)
    names = [f"bench/{i % shared.TOPICS}" for i in range(shared.SUBSCRIPTIONS)]
    await requests.request(TOPIC, b"")
    start = time.perf_counter()
    for name in names:
        await requests.request(name, b"")
    single = time.perf_counter() - start
    start = time.perf_counter()
    await asyncio.gather(*(requests.request(name, b"") for name in names))
    return {"one_by_one_s": single, "gather_s": time.perf_counter() - start}


def throughput(n: int) -> Values:
    """Publisher to subscriber."""
    with tempfile.TemporaryDirectory() as folder:
        values: Values = shared.run(_subscribe(shared.socket_path(folder), n))
        return values


def request(n: int) -> Values:
    """Round trips, one at a time."""
    with tempfile.TemporaryDirectory() as folder, Partner("floor", "serve", shared.socket_path(folder)) as partner:
        partner.answer()
        values: Values = shared.run(_request(shared.socket_path(folder), n))
        return values


def unheard(n: int) -> Values:
    """A bare method that looks its topic up."""
    publish = Bare().publish
    return {"ns": shared.per_call_ns(publish, n), "fields_ns": shared.per_call_ns(publish, n, step=3)}


def install(_n: int) -> Values:
    """As many acknowledged frames as there are subscriptions."""
    with tempfile.TemporaryDirectory() as folder, Partner("floor", "serve", shared.socket_path(folder)) as partner:
        partner.answer()
        values: Values = shared.run(_install(shared.socket_path(folder)))
        return values


def idle(_n: int) -> Values:
    """A uvloop server nobody talks to."""
    with tempfile.TemporaryDirectory() as folder, Partner("floor", "serve", shared.socket_path(folder)) as partner:
        partner.answer()
        return {"ms_per_s": shared.idle_ms_per_s(partner.process.pid)}


def partner(role: str, address: str, n: int) -> None:
    """The second process."""
    shared.run(_publish(address, n) if role == "publish" else _serve(address))
