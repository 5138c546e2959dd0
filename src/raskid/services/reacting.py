"""Runs the code of reactions, on a thread of its own and with a time limit.

Jobs stand in one line, and one thread takes them out. The clock of a job starts when it begins to run. Somebody else
looks at the clock (`check`): a job that has used up its time is answered for, its thread is left behind, and a new
thread goes on with the line. An exception is raised in the thread that is left behind, so that a loop written in
Python ends; a call that blocks in C code goes on for as long as it likes, and what it gives is dropped.

Each job has one answer, because each answer begins with taking the job out of `_jobs`, and only one thread can.

Nothing here takes a lock that `run` has to wait for: it may be called with the session's lock held, or by a finaliser
in the middle of anything. Choosing which code runs, and what comes of its values, is the business of the machines.
See docs/design/019-code-of-reactions.md.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from raskid.core.effects import RunCode
from raskid.core.events import CodeRan
from raskid.services.calling import format_trace
from raskid.services.codes import CodeLoader

#: So many threads that were left behind may be alive. While they are, no code runs.
ABANDONED_MAX = 16

_MESSAGE_CHARS_MAX = 1000
_TEXT_CHARS_MAX = 4000
#: Frames of a traceback that are shown, the innermost.
_FRAMES_MAX = 8


class _TimeIsUp(BaseException):
    """Raised in a thread that is left behind. Not an `Exception`: loops catch those, and go on."""


class _Here(threading.local):
    """What a thread knows of itself."""

    is_ours = False
    #: As in the `RunCode` that it is at.
    hops = 0


class _Worker:
    """One thread that runs jobs."""

    __slots__ = ("at", "ended", "guard", "struck", "thread")

    def __init__(self, target: Callable[[_Worker], None]) -> None:
        #: The job at work, and when its time is up.
        self.at: tuple[RunCode, float] | None = None
        #: Held by whoever raises an exception in the thread, and by the thread when it declares itself at its end:
        #: after `ended` nothing is raised in it.
        self.guard = threading.Lock()
        self.ended = False
        self.struck = False
        self.thread = threading.Thread(target=target, args=(self,), name="raskid-reactions", daemon=True)


class Reactor:
    """The line of jobs of one process, and the thread that runs them."""

    def __init__(
        self, tell: Callable[[CodeRan], None], clock: Callable[[], float] = time.monotonic, replaces: bool = True
    ) -> None:
        """
        Args:
            tell: Takes the answers. Called on a thread of the reactor, or on one that calls `check`.
            clock: Gives the time in seconds.
            replaces: As for `CodeLoader`.
        """
        self._tell = tell
        self._clock = clock
        self._loader = CodeLoader(replaces)
        #: Jobs that have no answer yet, in the order in which they came.
        self._jobs: dict[int, RunCode] = {}
        #: Those of them that are still to be called; whoever takes one out decides that.
        self._waiting: dict[int, RunCode] = {}
        #: Holds all of these, and jobs that were answered for while they stood in line. None ends the thread.
        self._line: queue.SimpleQueue[RunCode | None] = queue.SimpleQueue()
        #: Who takes from the line. It is replaced only while it is at work, so that one thread at most waits there.
        self._worker: _Worker | None = None
        self._starting = threading.Lock()
        #: Threads that were left behind, and perhaps some that have ended since.
        self._abandoned: list[_Worker] = []
        self._here = _Here()
        self._began = False
        self._closed = False

    def know(self, code: str, function: Callable[..., Any]) -> None:
        """A code object that was made here of this very function, which need not be loaded."""
        self._loader.functions.setdefault(code, function)

    def replace_modules(self) -> None:
        """From now on act as a runner does."""
        self._loader.replaces = True

    # ── What others call ─────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, effect: RunCode) -> None:
        """Put a job in line; its number was never used before. Never waits, and never answers by itself."""
        if self._closed:
            return
        self._jobs[effect.job] = self._waiting[effect.job] = effect
        self._line.put(effect)
        if self._worker is None:
            # When it fails, `check` tries again, and answers for the jobs if it fails there too.
            self._start()

    def check(self, job: int | None = None) -> float | None:
        """See whether the job at work has used up its time, and answer for it if so.

        Args:
            job: Whose answer the caller waits for; None: all of them.

        Returns:
            When to look again, in seconds: at the latest then the job at work has used up its time. None when `job` (or
            every job) has its answer.
        """
        worker = self._worker
        if worker is None and self._jobs and not self._closed:
            reason = self._start()
            if reason:
                self._refuse_all(reason)
        at = worker.at if worker is not None else None
        if worker is not None and at is not None and at[1] <= self._clock() and self._claim(at[0].job):
            self._abandon(worker, at[0])
            at = None
        left = list(self._jobs.values())
        if not left or (job is not None and job not in self._jobs):
            return None
        if at is None or at[0].job not in self._jobs:
            # The next one has not begun, and has all its time.
            return left[0].seconds
        return max(0.0, at[1] - self._clock())

    def on_thread(self) -> bool:
        """Whether the calling thread runs code of reactions here, or did so until it was left behind."""
        # Where no code has run so far, not even a look at the thread.
        return self._began and self._here.is_ours

    def hops(self) -> int | None:
        """Through how many topics that came for which the calling thread runs code; None where it runs none."""
        return self._here.hops if self._here.is_ours else None

    def drop(self, job: int) -> None:
        """Do not call a job's code, unless that has begun. It is answered when its turn comes. Never waits."""
        self._waiting.pop(job, None)

    def close(self) -> None:
        """Run nothing more. Jobs in line are forgotten, one at work is left behind; neither is answered."""
        self._closed = True
        worker = self._worker
        self._waiting.clear()
        self._jobs.clear()
        self._line.put(None)
        if worker is not None and worker.at is not None:
            _strike(worker)

    # ── The thread ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self) -> str:
        """Start a thread unless there is one; returns why it cannot be started, or nothing."""
        # Whoever holds this is about to start the thread that serves every job in line.
        if not self._starting.acquire(blocking=False):
            return ""
        try:
            if self._worker is None and not self._closed:
                worker = _Worker(self._work)
                self._began = True
                worker.thread.start()
                self._worker = worker
        except RuntimeError as error:
            return str(error)
        finally:
            self._starting.release()
        return ""

    def _work(self, worker: _Worker) -> None:
        self._here.is_ours = True
        try:
            while self._serve(worker):
                pass
            # Left behind, or closed. What is about to be raised here is raised now, where it does no harm, and not
            # in the last lines of the thread, which belong to the standard library.
            with worker.guard:
                worker.ended = True
            for _ in range(1000):
                pass
        except _TimeIsUp:
            worker.ended = True
        # It may stand among those that were left behind for long; its job's arguments need not.
        worker.at = None

    def _serve(self, worker: _Worker) -> bool:
        """Take one job from the line and run it; False when this thread is to end.

        A function of its own, so that nothing of the last job stays alive while the thread waits for the next.
        """
        effect = self._line.get()
        if effect is None:
            return False
        called = self._waiting.pop(effect.job, None) is not None
        if effect.job not in self._jobs:
            return True
        if not called:
            ran = CodeRan(effect.job, [], "Dropped", f"{_name(effect)} was not called: its reaction has ended")
        elif self._abandoned and self._count_abandoned() >= ABANDONED_MAX:
            ran = CodeRan(
                effect.job, [], "Overflow",
                f"{_name(effect)} was not called: {ABANDONED_MAX} threads run code of reactions here that took longer "
                "than its time and never ends. Let that code end, or give what it waits for a time limit of its own",
            )  # fmt: skip
        else:
            worker.at = (effect, self._clock() + effect.seconds)
            self._here.hops = effect.hops
            ran = self._call(effect)
        if not self._claim(effect.job):
            return False
        worker.at = None
        self._answer(ran)
        return True

    def _call(self, effect: RunCode) -> CodeRan:
        try:
            function = self._loader.function(effect.code.code, effect.code.blob)
            values = []
            for args, fields in effect.calls:
                # In this very frame: `_in_users_code` looks for it.
                values.append(function(*args, **fields))
            return CodeRan(effect.job, values)
        except BaseException as error:
            # Not even SystemExit ends more than the job: others wait behind it.
            return CodeRan(effect.job, [], str(type(error).__name__), _describe(error, _name(effect)))

    # ── Answers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _claim(self, job: int) -> bool:
        """Take the right, and the duty, to answer for a job."""
        return self._jobs.pop(job, None) is not None

    def _answer(self, ran: CodeRan) -> None:
        if self._closed:
            return
        try:
            self._tell(ran)
        except Exception:
            # A mistake of whoever listens; the next job is to have its answer all the same.
            import traceback

            traceback.print_exc()

    def _refuse_all(self, reason: str) -> None:
        for effect in list(self._jobs.values()):
            if self._claim(effect.job):
                text = f"{_name(effect)} was not called: no thread can be started for it ({reason})"
                self._answer(CodeRan(effect.job, [], "RuntimeError", text))

    # ── Threads that are left behind ─────────────────────────────────────────────────────────────────────────────────

    def _abandon(self, worker: _Worker, effect: RunCode) -> None:
        """Answer for a job whose time is up, leave its thread, and let another go on with the line."""
        self._abandoned.append(worker)
        _strike(worker)
        # The answer comes before those of the jobs behind it, so the next thread starts only now.
        count = f"{len(effect.calls)} calls" if len(effect.calls) != 1 else "one call"
        text = (
            f"{_name(effect)} took longer than {effect.seconds:g} s for {count}, and was left behind. Let it do less, "
            "or give the reaction more time"
        )
        self._answer(CodeRan(effect.job, [], "TimeLimit", text))
        self._worker = None
        if self._jobs:
            reason = self._start()
            if reason:
                self._refuse_all(reason)

    def _count_abandoned(self) -> int:
        """How many threads that were left behind are still alive."""
        self._abandoned = [worker for worker in self._abandoned if worker.thread.is_alive()]
        for worker in self._abandoned:
            _strike(worker)
        return len(self._abandoned)


def _strike(worker: _Worker) -> None:
    """Raise an exception, once, in a thread that is left behind, if it is in the user's code.

    When that has called something of this package, such as `publish`, the thread is left alone for now: locks and
    machines must not be left half way.
    """
    if worker.struck or not worker.guard.acquire(blocking=False):
        # It is at its end, or somebody else is here.
        return
    try:
        thread = worker.thread.ident
        if thread is None or worker.struck or worker.ended or not _in_users_code(thread):
            return
        import ctypes

        worker.struck = True
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TimeIsUp))
    finally:
        worker.guard.release()


def _in_users_code(thread: int) -> bool:
    """Whether everything that a thread has called since it called the user's function is not of this package."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code in _CALLERS:
            return True
        if str(frame.f_globals.get("__name__", "")).startswith("raskid."):
            return False
        frame = frame.f_back
    return False


#: These call the user's function, and import the modules that it needs.
_CALLERS = (Reactor._call.__code__, CodeLoader.function.__code__)


# ── Texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _name(effect: RunCode) -> str:
    return effect.code.name or f"code object {effect.code.code}"


def _describe(error: BaseException, what: str) -> str:
    """The message of an error, and the end of its traceback; never fails, and always can be sent."""
    try:
        if isinstance(error, SystemExit):
            message = f"{what} called sys.exit({error.code!r}); a reaction returns, or raises an exception"
        else:
            message = str(error)
        message = _cut(message, _MESSAGE_CHARS_MAX)
        text = f"{message}\n{_cut(format_trace(error, _FRAMES_MAX), _TEXT_CHARS_MAX - len(message))}"
        # Half a character of a broken text could not be sent.
        return text.encode(errors="backslashreplace").decode()
    except _TimeIsUp:
        raise
    except BaseException as second:
        return f"{what} raised an error that cannot be shown: that raised {type(second).__name__}"


def _cut(text: str, chars_max: int) -> str:
    if len(text) <= chars_max:
        return text
    half = chars_max // 2 - 2
    return f"{text[:half]} … {text[-half:]}"
