"""`python -m benchmarks.tasks`: the task workloads of Raskid and its peers, side by side.

W1 independent no-op tasks, one by one and as a map; W2 submit → result, one at a time; W3 a chain of 1,000 dependent
tasks; W7 process start → first result → stopped. Two workers everywhere, a fresh process per measurement.
"""

from __future__ import annotations

import argparse
import importlib.util

from benchmarks.common import Metric, rounds, save, table
from benchmarks.tasks.adapters import ADAPTERS

WORKLOADS = ("W1", "W2", "W3", "W7")
METRICS = (
    Metric("W1", "us_task", "W1 µs/task"),
    Metric("W1", "submit_us", "W1 submit alone, µs/task"),
    Metric("W1", "map_per_s", "W1 map, tasks/s", higher_is_better=True),
    Metric("W2", "median_us", "W2 submit → result, µs"),
    Metric("W2", "p99_us", "W2 99th percentile, µs"),
    Metric("W3", "us_task", "W3 chain, µs/task"),
    Metric("W7", "first_result_s", "W7 process start → first result, s"),
    Metric("W7", "stop_s", "W7 stop, s"),
    Metric("W7", "process_s", "W7 whole process, s"),
)


def missing(peer: str) -> str | None:
    """Why `peer` cannot be measured here, or None."""
    module = ADAPTERS[peer].module
    return None if importlib.util.find_spec(module) else f"{module} is not installed"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", choices=tuple(ADAPTERS), default=list(ADAPTERS))
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of tasks")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one measurement")
    parser.add_argument("--json", metavar="OUT")
    options = parser.parse_args()
    plan = [(w, p) for w in options.workloads for p in options.peers if w != "W3" or ADAPTERS[p].dataflow]
    outcomes = rounds("benchmarks.tasks.child", plan, options.rounds, options.scale, options.timeout, missing)
    if options.json:
        save(options.json, outcomes)
    print(table(outcomes, METRICS, ["ppe"]))


if __name__ == "__main__":
    main()
