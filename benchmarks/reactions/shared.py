"""What the peers of reactions' benchmarks share."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

Values = dict[str, float]
LENGTHS = (0, 1, 2, 4, 8)
MEMBERS = 100
#: Readers that join at once stand in so many processes.
PROCESSES = 4


def per_call_us(call: Callable[[], object], n: int) -> float:
    """The best of five repeats, loop included, in µs."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(n):
            call()
        best = min(best, (time.perf_counter() - start) / n)
    return best * 1e6


class Partner:
    """Another process of a measurement; it speaks JSON lines on stdout, and ends when its stdin closes."""

    def __init__(self, module: str, *args: object) -> None:
        command = [sys.executable, "-m", f"benchmarks.reactions.{module}", *map(str, args)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def go(self) -> None:
        """Let it begin."""
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def answer(self) -> Values:
        """Its next line."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a partner ended with status {self.process.wait()}")
        answer: Values = json.loads(line)
        return answer

    def end(self) -> None:
        """Let it end."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def tell(**values: float) -> None:
    """One line from a partner."""
    print(json.dumps(values), flush=True)


def wait_for_word() -> None:
    """In a partner: until the first process writes, or closes."""
    sys.stdin.readline()


def wait_for_end() -> None:
    """In a partner: until the first process closes our stdin."""
    while sys.stdin.readline():
        pass


def joined_at_once(partners: list[Partner]) -> Values:
    """Let readers in several processes join at once; the time until the last has its value."""
    for partner in partners:
        partner.answer()
    start = time.monotonic()
    for partner in partners:
        partner.go()
    answers = [partner.answer() for partner in partners]
    for partner in partners:
        partner.end()
    if not all(answer["right"] for answer in answers):
        raise RuntimeError("a reader has another value")
    return {"join_s": max(answer["end"] for answer in answers) - start}
