"""One measurement of reactions: `python -m benchmarks.reactions.child CASE PEER SCALE`."""

from __future__ import annotations

import importlib
import json
import sys

# case -> peer -> (module, function); the modules import only what their peer needs
CASES: dict[str, dict[str, tuple[str, str]]] = {
    "chain": {"raskid": ("raskid_peer", "chain"), "floor": ("floor", "chain")},
    "code": {"raskid": ("raskid_peer", "code"), "floor": ("floor", "chain")},
    "class": {
        "raskid": ("raskid_peer", "one_of_class"),
        "raskid-ack": ("raskid_peer", "one_of_class_acknowledged"),
        "nats": ("nats_peer", "one_of_class"),
    },
    "cell": {"raskid": ("raskid_peer", "cell"), "nats": ("nats_peer", "cell")},
    "pipe": {"raskid": ("raskid_peer", "pipe"), "nats": ("nats_peer", "pipe")},
}
SIZES = {"chain": 20_000, "code": 2_000, "class": 30_000, "cell": 1_000, "pipe": 10}


def main() -> None:
    """Run the case named on the command line."""
    case, peer, scale = sys.argv[1], sys.argv[2], float(sys.argv[3])
    module, function = CASES[case][peer]
    measure = getattr(importlib.import_module(f"benchmarks.reactions.{module}"), function)
    print(json.dumps(measure(max(1, int(SIZES[case] * scale)))), flush=True)


if __name__ == "__main__":
    main()
