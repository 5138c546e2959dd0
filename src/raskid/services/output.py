"""What runners write: read from their pipes, passed on, and the end of it kept for the story of a runner that died.

A runner's standard error, and its standard output where the script's is not at hand, is a pipe. One thread of the
head reads all these pipes and passes on what came: to the script's standard error, or to the log of a system that
stays. When whoever reads those is slow, the thread waits, the pipes fill up, and a runner that prints waits in turn;
the head itself goes on. Of each runner the last `TAIL_BYTES` are kept; a log is cut when it is longer than
`LOG_BYTES_MAX`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable

TAIL_BYTES = 64 << 10
#: So much of it goes into the text of an error.
TOLD_BYTES = 4000
LOG_BYTES_MAX = 10 << 20
#: What stays of a log that is cut.
LOG_BYTES_KEPT = 1 << 20
_READ_BYTES = 64 << 10
#: While nobody reads, runners that end can leave so much; what the next ones leave is not passed on.
PENDING_BYTES_MAX = 8 << 20
#: At the end: how long to wait until what came has been passed on, if somebody reads it at all.
_CLOSE_S_MAX = 1.0


class _Source:
    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.tail = bytearray()
        #: Nobody can write to it any more; its tail stays for `ended`.
        self.over = False


class Output:
    """The pipes of all runners of a head.

    Args:
        write: Passes on what a runner wrote; called on the thread of this object, or in `close`. Gets the name and the
            bytes. May block.
    """

    def __init__(self, write: Callable[[str, bytes], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._sources: dict[str, _Source] = {}
        #: What was read and not passed on yet; the thread reads no more before this is empty.
        self._pending: list[tuple[str, bytes]] = []
        self._pending_bytes = 0
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        self._closing = False
        self._thread: threading.Thread | None = None

    def pipe(self, name: str) -> int:
        """A new pipe for the runner of that name; returns the end to write to, which is the caller's to close."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        self.ended(name)
        with self._lock:
            self._sources[name] = _Source(name, read)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="raskid-output", daemon=True)
                self._thread.start()
        self._wake()
        return write

    def ended(self, name: str) -> str:
        """The runner's process has ended: read what is left in its pipe; returns the last of what it wrote."""
        with self._lock:
            source = self._sources.pop(name, None)
            if source is None:
                return ""
            # At most what the pipe holds: a process that it left behind may write on.
            for _ in range(16):
                if not self._read(source):
                    break
            os.close(source.fd)
            tail = bytes(source.tail[-TOLD_BYTES:])
        self._wake()
        return tail.decode(errors="replace").strip()

    def _read(self, source: _Source) -> bool:
        """Read once, under the lock; False when nothing was there, or nothing will be."""
        try:
            data = os.read(source.fd, _READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            source.over = True
            return False
        source.tail += data
        del source.tail[:-TAIL_BYTES]
        if self._pending_bytes < PENDING_BYTES_MAX:
            self._pending_bytes += len(data)
            self._pending.append((source.name, data))
        return True

    def _wake(self) -> None:
        # A full pipe wakes as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_in, b"x")

    def _run(self) -> None:
        # Signals are the main thread's.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            self._pass_on()
            poll = select.poll()
            poll.register(self._wake_out, select.POLLIN)
            with self._lock:
                if self._closing:
                    return
                for source in self._sources.values():
                    if not source.over:
                        poll.register(source.fd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll()}
            if self._wake_out in ready:
                os.read(self._wake_out, 4096)
            with self._lock:
                for source in self._sources.values():
                    if source.fd in ready and not source.over:
                        self._read(source)

    def _pass_on(self) -> None:
        with self._lock:
            pending, self._pending, self._pending_bytes = self._pending, [], 0
        for name, data in pending:
            self._write(name, data)

    def close(self) -> None:
        """All runners have ended: pass on what they left, within a second, and close the pipes."""
        for name in list(self._sources):
            self.ended(name)
        with self._lock:
            self._closing = True
        self._wake()
        if self._thread is not None:
            self._thread.join(_CLOSE_S_MAX)
            if self._thread.is_alive():
                # It waits for somebody who does not read. The process ends with it, and so do its descriptors.
                return
        self._pass_on()
        os.close(self._wake_out)
        os.close(self._wake_in)


# ── Where it goes ────────────────────────────────────────────────────────────────────────────────────────────────────


class ToStream:
    """Passes on to a descriptor as it comes, until nobody reads there any more."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, name: str, data: bytes) -> None:
        while data and self._fd >= 0:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                # Whoever shares it made it so.
                select.select([], [self._fd], [])
            except OSError:
                self._fd = -1


class ToLog:
    """Appends to a log, each line with the runner's name; a log that grows too long loses its beginning."""

    def __init__(self, fd: int, bytes_max: int = LOG_BYTES_MAX, bytes_kept: int = LOG_BYTES_KEPT) -> None:
        self._fd = fd
        self._bytes_max = bytes_max
        self._bytes_kept = bytes_kept

    def __call__(self, name: str, data: bytes) -> None:
        prefix = f"{name}: ".encode()
        # A full disk must not end the thread: the pipes would fill up, and the runners wait.
        with contextlib.suppress(OSError):
            os.write(self._fd, b"".join(prefix + line + b"\n" for line in data.splitlines()))
            size = os.fstat(self._fd).st_size
            if size > self._bytes_max:
                self._cut(size)

    def _cut(self, size: int) -> None:
        kept = os.pread(self._fd, self._bytes_kept, size - self._bytes_kept)
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.write(self._fd, b"(the beginning of this log was left out)\n" + kept.partition(b"\n")[2])
