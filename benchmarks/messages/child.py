"""One message measurement, in this process and a second: `python -m benchmarks.messages.child CASE PEER SCALE`."""

from __future__ import annotations

import importlib
import json
import sys

# case -> peer -> (module, function); the modules import only what their peer needs
CASES: dict[str, dict[str, tuple[str, str]]] = {
    "throughput": {
        "raskid": ("raskid_peer", "throughput"),
        "raskid-iterator": ("raskid_peer", "throughput_iterator"),
        "raskid-async": ("raskid_peer", "throughput_async"),
        "floor": ("floor", "throughput"),
        "nats": ("nats_peer", "throughput"),
        "zmq-push": ("zeromq", "throughput"),
        "zmq-pub": ("zeromq", "throughput"),
        "zmq-threads": ("zeromq", "throughput_threads"),
    },
    "request": {
        "raskid": ("raskid_peer", "request"),
        "raskid-async": ("raskid_peer", "request_async"),
        "floor": ("floor", "request"),
        "nats": ("nats_peer", "request"),
        "zmq-push": ("zeromq", "request"),
        "zmq-threads": ("zeromq", "request_threads"),
    },
    "unheard": {
        "raskid": ("raskid_peer", "unheard"),
        "floor": ("floor", "unheard"),
        "nats": ("nats_peer", "unheard"),
        "zmq-pub": ("zeromq", "unheard"),
    },
    "install": {
        "raskid": ("raskid_peer", "install"),
        "raskid-async": ("raskid_peer", "install_async"),
        "floor": ("floor", "install"),
        "nats": ("nats_peer", "install"),
    },
    "idle": {
        "raskid": ("raskid_peer", "idle"),
        "floor": ("floor", "idle"),
        "nats": ("nats_peer", "idle"),
    },
}
SIZES = {"throughput": 100_000, "request": 3_000, "unheard": 100_000, "install": 1, "idle": 1}


def main() -> None:
    """Run the case named on the command line."""
    case, peer, scale = sys.argv[1], sys.argv[2], float(sys.argv[3])
    module, function = CASES[case][peer]
    measure = getattr(importlib.import_module(f"benchmarks.messages.{module}"), function)
    n = max(1, int(SIZES[case] * scale))
    values = measure(n, "pub") if (case, peer) == ("throughput", "zmq-pub") else measure(n)
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
