"""Holding back Ctrl-C where it would do harm."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Let a Ctrl-C take effect only afterwards.

    Around the first import of what defines messages: msgspec (0.22) ends the process with a segmentation fault when an
    exception is raised while it makes a type, and then nobody tidies up what was begun.
    """
    held: list[FrameType | None] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return
    try:
        signal.signal(signal.SIGINT, lambda _number, frame: held.append(frame))
    except ValueError:
        # Only the main thread may do that, and only there is a Ctrl-C raised.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(signal.SIGINT, held[0])
