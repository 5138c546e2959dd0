"""What every message peer uses: the second process, the counting subscriber, timing."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil

BODY = bytes(100)
WARM = b""
BURST = 64
SUBSCRIPTIONS = 10_000
TOPICS = 1_000
IDLE_S = 5.0
Values = dict[str, float]


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """asyncio.run on uvloop where it is installed."""
    if importlib.util.find_spec("uvloop"):
        import uvloop

        return uvloop.run(main)
    return asyncio.run(main)


class Partner:
    """The second process; it speaks JSON lines on stdout and ends when its stdin closes."""

    def __init__(self, peer: str, role: str, address: str, n: int = 0) -> None:
        command = [sys.executable, "-m", "benchmarks.messages.partner", peer, role, address, str(n)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Partner:
        return self

    def __exit__(self, *_exception: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def go(self) -> None:
        """Let it begin."""
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, float]:
        """Its next line."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the second process ended with status {self.process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer


def tell(**values: float) -> None:
    """One line from the second process to the first."""
    print(json.dumps(values), flush=True)


def told() -> bool:
    """In the second process: has the first written (or closed)?"""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def wait_for_end() -> None:
    """In the second process: until the first closes our stdin."""
    while sys.stdin.readline():
        pass


def warm_up(send: Callable[[bytes], object]) -> None:
    """In a blocking publisher: send empty messages until the subscriber has seen one."""
    while not told():
        send(WARM)
        time.sleep(0.01)
    sys.stdin.readline()


class Counter:
    """Called with every body; empty ones are the warm-up. Times on the machine-wide monotonic clock."""

    def __init__(self, n: int, on_warm: Callable[[], object], on_done: Callable[[], object]) -> None:
        self.n, self.on_warm, self.on_done = n, on_warm, on_done
        self.count = 0
        self.warm = False
        self.end = 0.0

    def __call__(self, body: bytes) -> None:
        if body:
            self.count += 1
            if self.count == self.n:
                self.end = time.monotonic()
                self.on_done()
        elif not self.warm:
            self.warm = True
            self.on_warm()

    def values(self, sent: dict[str, float]) -> Values:
        """Rates from what the publisher stamped."""
        whole = self.end - sent["start"]
        return {"n": self.n, "per_s": self.n / whole, "publish_per_s": self.n / (sent["sent"] - sent["start"])}


def round_trips(times: list[float]) -> Values:
    """Median and 99th percentile in µs of seconds."""
    times.sort()
    return {"rtt_us": statistics.median(times) * 1e6, "rtt_p99_us": times[int(len(times) * 0.99)] * 1e6}


class Bare:
    """The floor of an unheard publish: one method call and one look-up."""

    def __init__(self) -> None:
        self.d: dict[str, object] = {}

    def publish(self, topic: str, *_args: object, **_fields: object) -> None:
        """Nobody listens."""
        self.d.get(topic)


def per_call_ns(publish: Callable[..., object], n: int, **fields: object) -> float:
    """The best of seven repeats, loop included."""
    best = float("inf")
    body = BODY
    for _ in range(7):
        start = time.perf_counter_ns()
        for _ in range(n):
            publish("bench/unheard", body, **fields)
        best = min(best, (time.perf_counter_ns() - start) / n)
    return best


def cpu_s(pid: int) -> float:
    """User and system time of one process; in ns from Linux' scheduler, else in clock ticks."""
    try:
        threads = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    except (OSError, ValueError, IndexError):
        pass
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def idle_ms_per_s(pid: int) -> float:
    """CPU time of an idle process, in ms per second."""
    time.sleep(1)
    before, start = cpu_s(pid), time.monotonic()
    time.sleep(IDLE_S)
    return (cpu_s(pid) - before) / (time.monotonic() - start) * 1e3


def socket_path(folder: str) -> str:
    """A unix socket in a temporary folder."""
    return str(Path(folder) / "s")
