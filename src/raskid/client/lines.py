"""Lines in and out over descriptors that an event loop serves: those of a process that is a part of a shell's pipe.

Both ends never block the loop, and leave the descriptors' own mode alone, since others may share them: one reads when
there is something to read, and writes no more than a pipe takes at once. Files, which are always ready, and which an
event loop cannot watch, are read and written in turns.

Neither end grows without limit. Whoever takes lines stops them with `pause`; whoever writes waits for `room`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import stat
from collections import deque
from collections.abc import Callable

#: No line that comes in may be longer.
LINE_BYTES_MAX = 16 << 20
CHUNK_BYTES = 64 * 1024
#: Writers wait while more than this is unwritten.
UNWRITTEN_BYTES_MAX = 64 * 1024
#: So many writes in a row, and then others have a turn.
WRITES_MAX = 256


class LineReader:
    """Reads lines from a descriptor.

    Args:
        fd: The descriptor.
        on_line: Called with each line's number, from 1 on, and the line without its end; None for a line that is too
            long, whose bytes are left out.
        on_end: Called once, when there is nothing more to read.
    """

    def __init__(self, fd: int, on_line: Callable[[int, bytes | None], None], on_end: Callable[[], None]) -> None:
        self._fd = fd
        self._on_line = on_line
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._lines: deque[bytes | None] = deque()
        #: The beginning of a line whose end has not come; `_begun_bytes` counts on when it is too long to be kept.
        self._begun: list[bytes] = []
        self._begun_bytes = 0
        self._paused = True
        #: Nothing more can be read; and the end was told.
        self._exhausted = False
        self._ended = False
        self._watched = False
        self._scheduled = False
        #: It cannot be watched: a file, which is always ready.
        self._is_file = False

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self._go_on()

    def pause(self) -> None:
        """Call `on_line` no more until `resume`."""
        self._paused = True
        self._unwatch()

    def close(self) -> None:
        """Read nothing more; what was read and not taken is dropped."""
        self.pause()
        self._lines.clear()
        self._ended = True

    def _go_on(self) -> None:
        if self._paused or self._ended:
            return
        if self._lines or self._is_file or self._exhausted:
            # Not at once, so that others have a turn.
            self._soon()
            return
        try:
            self._loop.add_reader(self._fd, self._read)
            self._watched = True
        except PermissionError:
            self._is_file = True
            self._soon()
        except (OSError, ValueError):
            # There is no such descriptor.
            self._exhaust()

    def _soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._paused or self._ended:
            return
        if self._lines:
            self._hand_out()
            self._go_on()
        elif self._exhausted:
            self._ended = True
            self._on_end()
        else:
            self._read()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._fd)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # A terminal that is gone, for example.
            data = b""
        if not data:
            self._exhaust()
            return
        self._split(data)
        self._hand_out()
        if not self._watched:
            self._go_on()
        elif self._lines:
            # There are lines that nobody takes now.
            self._unwatch()

    def _split(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._begin(part)
            self._finish()
        if rest:
            self._begin(rest)

    def _begin(self, part: bytes) -> None:
        self._begun_bytes += len(part)
        if self._begun_bytes > LINE_BYTES_MAX:
            self._begun.clear()
        else:
            self._begun.append(part)

    def _finish(self) -> None:
        self._lines.append(b"".join(self._begun) if self._begun_bytes <= LINE_BYTES_MAX else None)
        self._begun.clear()
        self._begun_bytes = 0

    def _hand_out(self) -> None:
        while self._lines and not self._paused:
            self._number += 1
            self._on_line(self._number, self._lines.popleft())

    def _exhaust(self) -> None:
        self._unwatch()
        self._exhausted = True
        if self._begun_bytes:
            # The last line need not have an end of its own.
            self._finish()
        self._go_on()


class LineWriter:
    """Writes lines to a descriptor.

    Args:
        fd: The descriptor.
        on_broken: Called once, when nobody reads any more. What is written then goes nowhere.
    """

    def __init__(self, fd: int, on_broken: Callable[[], None]) -> None:
        self._fd = fd
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._unwritten = bytearray()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._scheduled = False
        self._watched = False
        self.broken = False
        #: Set while there is room.
        self._room = asyncio.Event()
        self._room.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._listens = False
        with contextlib.suppress(OSError):
            # A pipe that nobody reads any more says so, even when there is nothing to write.
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                self._loop.add_reader(fd, self._look)
                self._listens = True

    @property
    def has_room(self) -> bool:
        """Whether there is little that nobody has read."""
        return len(self._unwritten) <= UNWRITTEN_BYTES_MAX

    def write(self, line: bytes) -> None:
        """Write a line soon, with those of the same turn of the loop; its end is added."""
        if self.broken:
            return
        self._unwritten += line
        self._unwritten += b"\n"
        self._empty.clear()
        if not self.has_room:
            self._room.clear()
        if not self._scheduled and not self._watched:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    async def room(self) -> None:
        """Wait until others have read most of what was written."""
        await self._room.wait()

    async def written(self) -> None:
        """Wait until everything is written, or nobody reads any more."""
        await self._empty.wait()

    def _flush(self) -> None:
        self._scheduled = False
        self._unwatch()
        if self.broken:
            return
        try:
            self._write_some()
        except (BlockingIOError, InterruptedError):
            self._watch()
        except OSError:
            self._break()
            return
        if not self._unwritten:
            self._empty.set()
        if self.has_room:
            self._room.set()

    def _write_some(self) -> None:
        for _ in range(WRITES_MAX):
            if not self._unwritten:
                return
            if not self._poll.poll(0):
                self._watch()
                return
            # A descriptor that is ready takes so much without blocking.
            with memoryview(self._unwritten) as view, view[: select.PIPE_BUF] as part:
                count = os.write(self._fd, part)
            del self._unwritten[:count]
        self._scheduled = True
        self._loop.call_soon(self._flush)

    def _look(self) -> None:
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in self._poll.poll(0)):
            self._break()
        else:
            self._listen_no_longer()

    def _listen_no_longer(self) -> None:
        if self._listens:
            self._listens = False
            self._loop.remove_reader(self._fd)

    def _break(self) -> None:
        if not self.broken:
            self.close()
            self._on_broken()

    def _watch(self) -> None:
        self._watched = True
        self._loop.add_writer(self._fd, self._flush)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove_writer(self._fd)

    def close(self) -> None:
        """Write nothing more."""
        self._unwatch()
        self._listen_no_longer()
        self.broken = True
        self._unwritten.clear()
        self._room.set()
        self._empty.set()
