"""The first steps of a head: import what it and its runners need, read the settings, and fork the fork server.

One interpreter's start and imports serve both, which is most of what starting a system costs. Here there is one thread
still, and nothing is open, so that the fork copies no locks and no sockets. The settings are read after the imports:
whoever starts a head need not have them ready before.
"""

from __future__ import annotations

import os
import signal
import sys

if "msgspec" not in sys.modules:
    # It takes three names from here or else from `typing`, which has them all. This module alone would take a tenth of
    # the time in which a system starts; whoever imports it later finds it.
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]
    import msgspec

    del sys.modules["typing_extensions"]
import msgspec

from raskid.io.forkserver import ForkServer
from raskid.io.packets import pack, take_packets
from raskid.services.settings import HeadReady, HeadSettings


def read_settings() -> HeadSettings:
    """The settings, from standard input."""
    received = bytearray()
    while not (bodies := take_packets(received)):
        piece = os.read(0, 65536)
        if not piece:
            raise EOFError("the settings on standard input are incomplete")
        received += piece
    return msgspec.msgpack.decode(bodies[0], type=HeadSettings)


def answer(ready: HeadReady) -> None:
    """Tell whoever started the head how that went."""
    os.write(1, pack(msgspec.msgpack.encode(ready)))


def main() -> None:
    """Run a head."""
    # Whoever started this may have ignored it, which is inherited, and then no child's end could be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    import raskid.services.runner  # noqa: F401 - for the runners
    from raskid.services.head import serve

    settings = read_settings()
    serve(settings, ForkServer.begin(preload=settings.preload))


if __name__ == "__main__":
    main()
