"""Raskid: the blocking face and the async face; the second process attaches to the first one's system by its URL."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import threading
import time

import psutil

import raskid
from benchmarks.common import MARK, marked
from benchmarks.messages import shared
from benchmarks.messages.shared import BODY, Counter, Partner, Values

URL = "local://?runners=2"
TOPIC = "bench/values"
ECHO = "bench/echo"


def throughput(n: int) -> Values:
    """Blocking publisher, subscriber with a callback."""
    done = threading.Event()
    with raskid.connect(URL) as rk:
        partner: Partner
        counter = Counter(n, lambda: partner.go(), done.set)  # noqa: PLW0108 - the partner comes later
        rk.subscribe(TOPIC, callback=lambda message: counter(message.args[0]))
        with Partner("raskid", "publish", rk.url, n) as partner:
            if not done.wait(60):
                raise RuntimeError(f"{counter.count} of {n} messages arrived")
            return counter.values(partner.answer())


def throughput_iterator(n: int) -> Values:
    """Blocking publisher, subscriber as an iterator."""
    with raskid.connect(URL) as rk:
        messages = rk.subscribe(TOPIC)
        with Partner("raskid", "publish", rk.url, n) as partner:
            counter = Counter(n, partner.go, lambda: None)
            for message in messages:
                counter(message.args[0])
                if counter.end:
                    break
            return counter.values(partner.answer())


async def _subscribe(n: int) -> Values:
    async with raskid.connect(URL) as ark:
        messages = await ark.subscribe(TOPIC)
        with Partner("raskid-async", "publish", ark.url, n) as partner:
            counter = Counter(n, partner.go, lambda: None)
            async for message in messages:
                counter(message.args[0])
                if counter.end:
                    break
            return counter.values(await asyncio.to_thread(partner.answer))


async def _publish(address: str, n: int) -> None:
    async with raskid.connect(address) as ark:
        awaits = False
        while not shared.told():
            sent = ark.publish(TOPIC, shared.WARM)
            if inspect.isawaitable(sent):
                awaits = True
                await sent
            await asyncio.sleep(0.01)
        sys.stdin.readline()
        start = time.monotonic()
        for i in range(n):
            if awaits:
                await ark.publish(TOPIC, BODY)
            else:
                ark.publish(TOPIC, BODY)
            if i % shared.BURST == 0:
                await asyncio.sleep(0)
        shared.tell(start=start, sent=time.monotonic())
        await asyncio.get_running_loop().run_in_executor(None, shared.wait_for_end)


def throughput_async(n: int) -> Values:
    """Async publisher, async subscriber."""
    values: Values = shared.run(_subscribe(n))
    return values


def request(n: int) -> Values:
    """Blocking round trips, one at a time."""
    with raskid.connect(URL) as rk, Partner("raskid", "serve", rk.url) as partner:
        partner.answer()
        times = []
        for i in range(n + 200):
            start = time.perf_counter()
            rk.request(ECHO, BODY, timeout=10)
            if i >= 200:
                times.append(time.perf_counter() - start)
        return shared.round_trips(times)


async def _request(n: int) -> Values:
    async with raskid.connect(URL) as ark:
        with Partner("raskid-async", "serve", ark.url) as partner:
            await asyncio.to_thread(partner.answer)
            times = []
            for i in range(n + 200):
                start = time.perf_counter()
                await ark.request(ECHO, BODY, timeout=10)
                if i >= 200:
                    times.append(time.perf_counter() - start)
            return shared.round_trips(times)


async def _serve(address: str) -> None:
    async with raskid.connect(address) as ark:
        await ark.serve(ECHO, lambda body: body)
        shared.tell(ready=1)
        await asyncio.get_running_loop().run_in_executor(None, shared.wait_for_end)


def request_async(n: int) -> Values:
    """Async round trips, one at a time; both sides are event loops."""
    values: Values = shared.run(_request(n))
    return values


def unheard(n: int) -> Values:
    """Publish with nobody listening."""
    with raskid.connect(URL) as rk:
        publish = rk.publish
        return {"ns": shared.per_call_ns(publish, n), "fields_ns": shared.per_call_ns(publish, n, step=3)}


def install(_n: int) -> Values:
    """Blocking subscriptions, one after the other."""
    with raskid.connect(URL) as rk:
        start = time.perf_counter()
        for i in range(shared.SUBSCRIPTIONS):
            rk.subscribe(f"bench/{i % shared.TOPICS}", callback=_ignore)
        return {"one_by_one_s": time.perf_counter() - start}


def _ignore(_message: object) -> None:
    """Nobody publishes."""


async def _install() -> Values:
    async with raskid.connect(URL) as ark:
        start = time.perf_counter()
        await asyncio.gather(*(ark.subscribe(f"bench/{i % shared.TOPICS}") for i in range(shared.SUBSCRIPTIONS)))
        return {"gather_s": time.perf_counter() - start}


def install_async(_n: int) -> Values:
    """Async subscriptions, all at once."""
    values: Values = shared.run(_install())
    return values


def idle(_n: int) -> Values:
    """The head with one silent client; `all_ms_per_s` adds its runners, `client_ms_per_s` is this process."""
    with raskid.connect(URL) as rk:
        rk.submit(abs, -1).result()
        time.sleep(1)
        everyone = {process.pid: process for process in psutil.Process().children(recursive=True)}
        everyone |= {process.pid: process for process in marked(os.environ.get(MARK, ""))}
        # the head is the oldest process that this one's connect started; runners and helpers come after it
        head = min(everyone.values(), key=lambda process: (process.create_time(), process.pid))
        pids = [*everyone, os.getpid()]
        before, start = {pid: shared.cpu_s(pid) for pid in pids}, time.monotonic()
        time.sleep(shared.IDLE_S)
        span = time.monotonic() - start
        used = {pid: (shared.cpu_s(pid) - before[pid]) / span * 1e3 for pid in pids}
        client = used.pop(os.getpid())
        values = {"ms_per_s": used[head.pid], "all_ms_per_s": sum(used.values()), "client_ms_per_s": client}
        return {**values, "processes": len(used)}


def partner(role: str, address: str, n: int, face: str = "blocking") -> None:
    """The second process."""
    if face == "async":
        shared.run(_publish(address, n) if role == "publish" else _serve(address))
        return
    with raskid.connect(address) as rk:
        if role == "serve":
            rk.serve(ECHO, lambda body: body)
            shared.tell(ready=1)
        else:
            shared.warm_up(lambda body: rk.publish(TOPIC, body))
            start = time.monotonic()
            for _ in range(n):
                rk.publish(TOPIC, BODY)
            shared.tell(start=start, sent=time.monotonic())
        shared.wait_for_end()
