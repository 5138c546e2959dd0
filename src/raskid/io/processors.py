"""Where the kernel runs this thread.

Two threads that wake one another over a socket are often put on one processor, because the kernel expects whoever
writes to sleep next; there they take turns, although another processor is idle, and each exchange takes several times
as long. A thread that looks for a moment before it sleeps is no such case, but the kernel cannot know.
"""

from __future__ import annotations

import os

#: Of /proc/PID/stat, counted from behind the name: the processor that the thread ran on last (proc(5), field 39).
_PROCESSOR_FIELD = 36


def current_processor() -> int | None:
    """The number of the processor that this thread runs on; None where the system does not tell."""
    try:
        # Not with `pathlib`, which takes longer to import than the rest of what a runner needs of `io`.
        with open("/proc/thread-self/stat", "rb") as file:
            text = file.read()
        return int(text.rpartition(b")")[2].split()[_PROCESSOR_FIELD])
    except (OSError, IndexError, ValueError):
        return None


def leave_processor() -> bool:
    """Go on on another processor, if this thread may use more than one; returns whether it went.

    Which ones it may use does not change.
    """
    if not hasattr(os, "sched_getaffinity"):
        return False
    allowed = os.sched_getaffinity(0)
    here = current_processor()
    others = allowed - {here}
    if here is None or not others:
        return False
    try:
        os.sched_setaffinity(0, others)
        os.sched_setaffinity(0, allowed)
    except OSError:
        # It is not for us to say, as in some containers; the first call has changed nothing then.
        return False
    return True
