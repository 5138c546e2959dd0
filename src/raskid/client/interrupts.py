"""Holding back Ctrl-C where it would do harm.

Python raises `KeyboardInterrupt` between any two steps of the main thread. Where that is in the middle of taking in
what came over a connection, bytes would be lost, and the session with them; somebody in a notebook, who interrupts a
loop and goes on, would have a session that is silent for ever. So while the main thread holds a session's lock, a
Ctrl-C comes a moment later.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

#: How long a Ctrl-C is put off at a time.
AGAIN_S = 0.002

#: The locks of the sessions of this process.
_guarded: dict[int, Any] = {}


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


def guard(lock: Any) -> None:
    """Let no Ctrl-C be raised on the main thread while it holds `lock`, a `threading.RLock`.

    This takes the place of Python's own handler. A handler of the user's is left alone.
    """
    _guarded[id(lock)] = lock
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Only the main thread may do that. Another one's session is guarded as soon as the main thread has one.
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, _on_interrupt)


def unguard(lock: Any) -> None:
    """The lock is of no use any more."""
    _guarded.pop(id(lock), None)
    if not _guarded and signal.getsignal(signal.SIGINT) is _on_interrupt:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    if any(lock._is_owned() for lock in list(_guarded.values())):
        # Not `threading.Timer`: the main thread may be anywhere, and hold the locks of that module.
        _thread.start_new_thread(_again, ())
    else:
        signal.default_int_handler(number, frame)


def _again() -> None:
    time.sleep(AGAIN_S)
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)
