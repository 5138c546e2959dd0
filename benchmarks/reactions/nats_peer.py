"""NATS: queue groups, the key-value store of JetStream, and a Python client that comes, publishes once and goes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time

import nats
from nats.aio.msg import Msg

from benchmarks.messages.nats_peer import server
from benchmarks.reactions.shared import (
    MEMBERS,
    PROCESSES,
    Partner,
    Values,
    joined_at_once,
    tell,
    wait_for_end,
    wait_for_word,
)

TOPIC = "bench.values"
ONE = "import asyncio, nats, sys\nasync def main():\n    c = await nats.connect(sys.argv[1])\n"
ONE += "    await c.publish('bench.unheard', b'1')\n    await c.close()\nasyncio.run(main())\n"


async def _class(address: str, n: int) -> Values:
    client = await nats.connect(address)
    done = asyncio.Event()
    count = 0

    async def receive(message: Msg) -> None:
        nonlocal count
        if message.data != b"0":
            count += 1
            if count == n:
                done.set()

    for _ in range(MEMBERS):
        await client.subscribe(TOPIC, queue="members", cb=receive, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await client.flush()
    partner = Partner("nats_peer", "publish", address, n)
    await asyncio.to_thread(partner.answer)
    start = time.monotonic()
    partner.go()
    await asyncio.wait_for(done.wait(), 60)
    whole = time.monotonic() - start
    partner.end()
    await client.close()
    return {"per_s": n / whole}


def one_of_class(n: int) -> Values:
    """A queue group of 100 members in another process."""
    with server() as (address, _):
        return asyncio.run(_class(address, n))


async def _fill(address: str) -> None:
    client = await nats.connect(address)
    store = await client.jetstream().create_key_value(bucket="bench")
    await store.put("cell", b"42.0")
    await client.close()


def cell(n: int) -> Values:
    """Clients that ask the key-value store at once, each with a connection of its own."""
    with server("-js") as (address, _):
        asyncio.run(_fill(address))
        return joined_at_once([Partner("nats_peer", "join", address, n // PROCESSES) for _ in range(PROCESSES)])


async def _join(address: str, n: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        stores = []
        for _ in range(n):
            client = await nats.connect(address)
            stack.push_async_callback(client.close)
            stores.append(await client.jetstream().key_value("bench"))
        tell(ready=1)
        await asyncio.to_thread(wait_for_word)
        # A watch, as a cell's reader has: the present value, and every change after it.
        watchers = await asyncio.gather(*(store.watch("cell") for store in stores))
        entries = await asyncio.gather(*(watcher.updates(timeout=30) for watcher in watchers))
        tell(end=time.monotonic(), right=all(entry is not None and entry.value == b"42.0" for entry in entries))
        await asyncio.to_thread(wait_for_end)


def pipe(n: int) -> Values:
    """A Python program for each client; there is no gateway for lines."""
    with server() as (address, _):
        start = time.perf_counter()
        for _ in range(n):
            subprocess.run([sys.executable, "-c", ONE, address], check=True)
        return {"clients_per_s": n / (time.perf_counter() - start)}


async def _publish(address: str, n: int) -> None:
    client = await nats.connect(address)
    await client.publish(TOPIC, b"0")
    await client.flush()
    tell(ready=1)
    await asyncio.to_thread(wait_for_word)
    for i in range(1, n + 1):
        await client.publish(TOPIC, b"%d" % i)
        if i % 64 == 0:
            await asyncio.sleep(0)
    await client.flush()
    await asyncio.to_thread(wait_for_end)
    await client.close()


def main() -> None:
    """A partner."""
    role, address, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
    asyncio.run(_join(address, n) if role == "join" else _publish(address, n))


if __name__ == "__main__":
    main()
