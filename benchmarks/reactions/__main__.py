"""`python -m benchmarks.reactions`: reactions, classes, cells and pipes, side by side with NATS and a floor.

A message that passes k operations of the table, and k functions, at its publisher, where nothing is sent: the floor is
as many plain calls on the publisher's own thread. One of a class of 100 members in another process. 1,000 readers of a
cell that join at once, in four processes, each with a connection of its own; NATS's are watchers of a key of its
key-value store. Clients that come by `raskid pipe`, publish once and go; NATS has no such gateway, and its figure is
that of a Python program.
"""

from __future__ import annotations

import argparse

from benchmarks.common import Metric, rounds, save, table
from benchmarks.messages.__main__ import missing
from benchmarks.reactions.child import CASES
from benchmarks.reactions.shared import LENGTHS

METRICS = (
    *(Metric("chain", f"k{length}_us", f"publish through {length} operations, µs") for length in LENGTHS),
    *(Metric("code", f"k{length}_us", f"publish through {length} functions, µs") for length in LENGTHS),
    Metric("class", "per_s", "one of 100 members, messages/s", higher_is_better=True),
    Metric("cell", "join_s", "1,000 readers of a cell at once, s"),
    Metric("pipe", "clients_per_s", "clients by pipe, per s", higher_is_better=True),
    Metric("pipe", "lines_per_s", "lines of one pipe, per s", higher_is_better=True),
)
PEERS = tuple(dict.fromkeys(peer for peers in CASES.values() for peer in peers))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reactions", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of messages and readers")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one measurement")
    parser.add_argument("--json", metavar="OUT")
    options = parser.parse_args()
    plan = [(case, peer) for case in options.cases for peer in CASES[case] if peer in options.peers]
    outcomes = rounds("benchmarks.reactions.child", plan, options.rounds, options.scale, options.timeout, missing)
    if options.json:
        save(options.json, outcomes)
    print(table(outcomes, METRICS, ["floor", "nats"]))


if __name__ == "__main__":
    main()
