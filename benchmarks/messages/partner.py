"""The second process of a message measurement: `python -m benchmarks.messages.partner PEER ROLE ADDRESS N`."""

from __future__ import annotations

import sys


def main() -> None:
    """Only the peer's own libraries are imported."""
    peer, role, address, n = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    if peer == "floor":
        from benchmarks.messages import floor

        floor.partner(role, address, n)
    elif peer == "nats":
        from benchmarks.messages import nats_peer

        nats_peer.partner(role, address, n)
    elif peer.startswith("zmq"):
        from benchmarks.messages import zeromq

        zeromq.partner(role, address, n, peer.removeprefix("zmq-"))
    else:
        from benchmarks.messages import raskid_peer

        raskid_peer.partner(role, address, n, "async" if peer == "raskid-async" else "blocking")


if __name__ == "__main__":
    main()
