"""One workload on one peer, in this process: `python -m benchmarks.tasks.child WORKLOAD PEER SCALE` prints JSON."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time

from benchmarks.common import START
from benchmarks.tasks import work
from benchmarks.tasks.adapters import ADAPTERS, Adapter

clock = time.perf_counter


def independent(peer: Adapter, scale: float) -> dict[str, float]:
    """W1: no-op tasks submitted one by one, then the same number as one map."""
    n = max(100, int(peer.tasks * scale))
    start = clock()
    handles = [peer.submit(work.noop, i) for i in range(n)]
    submitted = clock() - start
    if len(peer.gather(handles)) != n:
        raise RuntimeError("gather lost values")
    whole = clock() - start
    del handles
    values = {"n": n, "us_task": whole / n * 1e6, "submit_us": submitted / n * 1e6}
    if peer.maps:
        peer.map(work.noop, 100)
        start = clock()
        if peer.map(work.noop, n) != n:
            raise RuntimeError("map lost values")
        values["map_per_s"] = n / (clock() - start)
    return values


def one_at_a_time(peer: Adapter, scale: float) -> dict[str, float]:
    """W2: submit, wait, repeat."""
    n = max(50, int((1000 if peer.tasks >= 20_000 else 300) * scale))
    for _ in range(50):
        peer.result(peer.submit(work.noop))
    times = []
    for _ in range(n):
        start = clock()
        peer.result(peer.submit(work.noop))
        times.append((clock() - start) * 1e6)
    times.sort()
    return {"n": n, "median_us": statistics.median(times), "p99_us": times[int(n * 0.99)], "min_us": times[0]}


def chain(peer: Adapter, scale: float) -> dict[str, float]:
    """W3: every task takes the future of the one before it; the client waits only for the last."""
    n = max(50, int((1000 if peer.tasks >= 10_000 else 250) * scale))

    def once() -> float:
        start = clock()
        handle = peer.submit(work.inc, 0)
        for _ in range(n - 1):
            handle = peer.submit(work.inc, handle)
        if peer.result(handle) != n:
            raise RuntimeError("the chain lost a link")
        return clock() - start

    once()
    return {"n": n, "us_task": min(once(), once()) / n * 1e6}


def main() -> None:
    """Run the workload named on the command line."""
    workload, name, scale = sys.argv[1], sys.argv[2], float(sys.argv[3])
    peer = ADAPTERS[name]()
    peer.start()
    try:
        if workload == "W7":
            peer.result(peer.submit(work.noop))
            values = {"first_result_s": time.time() - float(os.environ[START])}
        else:
            peer.gather([peer.submit(work.noop) for _ in range(200)])
            values = {"W1": independent, "W2": one_at_a_time, "W3": chain}[workload](peer, scale)
    finally:
        start = clock()
        peer.stop()
    values["stop_s"] = clock() - start
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
