"""Raskid's reactions, classes, cells and pipes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import raskid
from benchmarks.reactions.shared import (
    LENGTHS,
    MEMBERS,
    PROCESSES,
    Partner,
    Values,
    joined_at_once,
    per_call_us,
    tell,
    wait_for_end,
    wait_for_word,
)

URL = "local://?runners=1"
TOPIC = "bench/values"
CELL = "bench/cell"


def _unchanged(step: int, value: float) -> dict[str, Any]:
    return {"step": step, "value": value}


def _chains(n: int, code: bool) -> Values:
    values: Values = {}
    with raskid.connect(URL) as rk:
        for length in LENGTHS:
            draft = rk.react(f"{TOPIC}/{length}")
            for _ in range(length):
                draft = draft.map(_unchanged) if code else draft.filter("step", ">=", 0)
            # The last one lets nothing pass, so that this is the cost of the operations alone.
            with draft.filter("step", "<", 0).run():
                topic = f"{TOPIC}/{length}"
                values[f"k{length}_us"] = per_call_us(lambda topic=topic: rk.publish(topic, step=3, value=1.5), n)  # type: ignore[misc]
    return values


def chain(n: int) -> Values:
    """Operations of the table, none of which is code; one more ends the message's way."""
    return _chains(n, code=False)


def code(n: int) -> Values:
    """Functions of the user's, each on the thread of reactions; one operation of the table ends the message's way."""
    return _chains(n, code=True)


def _class(n: int, ack: bool) -> Values:
    count = 0
    done = threading.Event()

    def receive(message: raskid.Message) -> None:
        nonlocal count
        if message.args[0]:
            count += 1
            if count == n:
                done.set()

    with raskid.connect(URL) as rk:
        for _ in range(MEMBERS):
            rk.subscribe(TOPIC, receive, one_of="members", ack=ack)
        partner = Partner("raskid_peer", "publish", rk.url, n)
        partner.answer()
        start = time.monotonic()
        partner.go()
        if not done.wait(60):
            raise RuntimeError(f"{count} of {n} messages arrived")
        whole = time.monotonic() - start
        partner.end()
        return {"per_s": n / whole}


def one_of_class(n: int) -> Values:
    """Each message goes to one of 100 members in another process."""
    return _class(n, ack=False)


def one_of_class_acknowledged(n: int) -> Values:
    """The same, and each is acknowledged."""
    return _class(n, ack=True)


def cell(n: int) -> Values:
    """Sessions that join at once, each with a connection of its own."""
    with raskid.connect(URL) as rk, rk.cell(CELL) as cell:
        cell.set(42.0)
        return joined_at_once([Partner("raskid_peer", "join", rk.url, n // PROCESSES) for _ in range(PROCESSES)])


async def _join(url: str, n: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(raskid.connect(url)) for _ in range(n)]
        tell(ready=1)
        await asyncio.to_thread(wait_for_word)
        cells = await asyncio.gather(*(session.cell(CELL) for session in sessions))
        right = all(cell.value == 42.0 for cell in cells)
        tell(end=time.monotonic(), right=right)
        await asyncio.to_thread(wait_for_end)


def pipe(n: int) -> Values:
    """Processes that take part by lines: how many may come, publish once and go, and how many lines one writes."""
    line = '{"do": "publish", "topic": "bench/unheard", "args": [1]}\n'
    with raskid.connect(URL) as rk:
        command = [str(Path(sys.executable).with_name("raskid")), "pipe", "--system", rk.url]
        start = time.perf_counter()
        for _ in range(n):
            subprocess.run(command, input=line, text=True, check=True, capture_output=True)
        clients_per_s = n / (time.perf_counter() - start)
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin and process.stdout
        process.stdin.write('{"do": "status", "id": 0}\n')
        process.stdin.flush()
        process.stdout.readline()
        lines = 5_000
        start = time.perf_counter()
        process.stdin.write(line * lines + '{"do": "status", "id": 1}\n')
        process.stdin.close()
        process.stdout.readline()
        lines_per_s = lines / (time.perf_counter() - start)
        process.stdout.close()
        process.wait()
        return {"clients_per_s": clients_per_s, "lines_per_s": lines_per_s}


def main() -> None:
    """A partner."""
    role, url, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if role == "join":
        asyncio.run(_join(url, n))
        return
    with raskid.connect(url) as rk:
        rk.publish(TOPIC, 0)
        tell(ready=1)
        wait_for_word()
        for i in range(1, n + 1):
            rk.publish(TOPIC, i)
        wait_for_end()


if __name__ == "__main__":
    main()
