"""The first steps of a head: read the settings, start the fork server, and only then import the rest.

The fork server's imports take as long as the head's own; begun here, they run beside them.
"""

from __future__ import annotations

import os

import msgspec

from raskid.io.forkserver import ForkServer
from raskid.services.settings import HeadReady, HeadSettings


def read_settings() -> HeadSettings:
    """The settings, from standard input."""
    length = int.from_bytes(os.read(0, 4), "little")
    data = b""
    while len(data) < length:
        piece = os.read(0, length - len(data))
        if not piece:
            raise EOFError("the settings on standard input are incomplete")
        data += piece
    return msgspec.msgpack.decode(data, type=HeadSettings)


def answer(ready: HeadReady) -> None:
    """Tell whoever started the head how that went."""
    data = msgspec.msgpack.encode(ready)
    os.write(1, len(data).to_bytes(4, "little") + data)


def main() -> None:
    """Run a head."""
    settings = read_settings()
    server = ForkServer.start(preload=settings.preload)
    from raskid.services.head import serve

    serve(settings, server)


if __name__ == "__main__":
    main()
