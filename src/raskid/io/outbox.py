"""A ring in shared memory in which a runner leaves finished values for its node agent, and what else the two share.

One runner writes, one agent reads; nobody else does either. What the runner has written stays readable when the
runner is busy, stopped or dead, so a finished result is neither late nor lost. The outbox does not wake anybody: the
two processes have a doorbell of their own.

How it works: `tail` counts the bytes ever written and `head` the bytes ever read; each word has one writer, and lies
in a cache line of its own. Entries are aligned to 8 bytes and never wrap: what is left before the end of the ring is
skipped with a mark. The writer stores `tail` last, so an entry is either wholly visible or not at all, however the
writer dies. A value larger than a quarter of the ring is written in pieces, and handed on when the last one is there.

Order of stores: the words are stored through ``memoryview.cast("Q")``, which copies 8 aligned bytes at once
(``struct`` with a byte order would store single bytes). x86 keeps the order of stores and that of loads, and CPython
does not move them across bytecodes. Other processors (aarch64) may reorder both, so there a lock is released and
acquired in between: a release followed by an acquire is a full barrier there.

The other way, the agent takes tasks back: it writes what it recalls into a small second ring, and then looks at which
task the runner has started. The runner says which task it starts, and then looks for recalls. Each stores before it
loads, with a full barrier in between (on every processor: x86, too, lets a load pass an earlier store), so at least one
of them sees the other; `docs/design/009-recall.md` has the argument.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import struct
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from raskid.io.scratch import nameless_file
from raskid.model.errors import RemoteProtocolError

_MAGIC = 0x3158_4244_4B53_4152
_HEADER_BYTES = 4096
#: Indexes of 8-byte words in the header.
_W_MAGIC, _W_CAPACITY, _W_TAIL, _W_HEAD, _W_RECALLED, _W_COUNTERS, _W_RUNNING, _W_RECALLS_READ, _W_ANNOUNCED = (
    0, 1, 8, 16, 24, 32, 48, 56, 64,
)  # fmt: skip
COUNTER_WORDS = 16

#: How many recalls a runner may be behind; each is two words, the task and the attempt.
RECALLS_MAX = 4096
_RECALL_BYTES = RECALLS_MAX * 16
_NO_RECALLS: list[tuple[int, int]] = []

#: Size of the entry with its header, before alignment; attempt; task; seconds; value's length; client's length; flags.
_ENTRY = struct.Struct("=IIQdIHBx")
_ENTRY_BYTES = _ENTRY.size
_SKIP = struct.Struct("=I")
#: A mark of 4 bytes may stand 8 bytes before the end; the slack lets the reader unpack a whole header there.
_SLACK_BYTES = 64

_OK = 1
_MORE = 2
_CONTINUES = 4
_DIRECT = 8
_NOT_STARTED = 16

_MASK_64 = (1 << 64) - 1
_STRONG_ORDER = platform.machine().lower() in {"x86_64", "amd64", "i686", "i386"}


class Entry(NamedTuple):
    """One finished attempt. `value` is the pickled value, or the pickled error when not `ok`.

    `direct`: the client had sent the task to the runner itself. Not `started`: nothing ran, because it was recalled.
    """

    task: int
    attempt: int
    ok: bool
    seconds: float
    client: str
    value: bytes
    direct: bool = False
    started: bool = True


class Outbox:
    """One ring, seen from either side. Use only the writing or only the reading methods of an instance."""

    def __init__(self, memory: mmap.mmap, fd: int) -> None:
        """Use `create` or `attach`."""
        self._memory = memory
        self._fd = fd
        self._bytes = memoryview(memory)
        self._words = self._bytes[:_HEADER_BYTES].cast("Q")
        self._capacity = self._words[_W_CAPACITY]
        self._mask = self._capacity - 1
        self._entry_bytes_max = self._capacity // 4
        recalls_at = _HEADER_BYTES + self._capacity + _SLACK_BYTES
        self._recalls = self._bytes[recalls_at : recalls_at + _RECALL_BYTES].cast("Q")
        #: Writer: how many recalls it has read.
        self._recalls_read = self._words[_W_RECALLS_READ]
        #: Writer: may lag behind the head word, never run ahead. (The tail has no copy here: a signal handler that
        #: raises between two stores would leave the copy wrong, and the next entry would overwrite one not yet read.)
        self._head_seen = self._words[_W_HEAD]
        #: Reader: equals the head word. `_pieces` holds the value whose last piece is still to come.
        self._head = self._head_seen
        self._first: Entry | None = None
        self._pieces: list[bytes] = []
        self._barrier_lock = threading.Lock()
        self._barrier_lock.acquire()

    # ── Making ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def create(cls, capacity: int = 1 << 20) -> Outbox:
        """Makes an empty outbox; its file has no name, and ends with its last descriptor and mapping.

        Args:
            capacity: Bytes in the ring, a power of two and at least 1024.
        Raises:
            ValueError: The capacity cannot be used.
        """
        if capacity < 1024 or capacity & (capacity - 1) or capacity > 1 << 31:
            raise ValueError(f"an outbox holds a power of two of bytes, from 1024 to 2**31, not {capacity}")
        total = _HEADER_BYTES + capacity + _SLACK_BYTES + _RECALL_BYTES
        fd = _anonymous_file(total)
        try:
            memory = mmap.mmap(fd, total)
        except BaseException:
            os.close(fd)
            raise
        with memoryview(memory) as whole, whole[:_HEADER_BYTES].cast("Q") as words:
            words[_W_CAPACITY] = capacity
            words[_W_MAGIC] = _MAGIC
        return cls(memory, fd)

    @classmethod
    def attach(cls, fd: int) -> Outbox:
        """Maps an outbox that another process made. `fd` stays the caller's, who may close it at once.

        Raises:
            RemoteProtocolError: `fd` is not an outbox.
        """
        total = os.fstat(fd).st_size
        if total < _HEADER_BYTES:
            raise RemoteProtocolError(f"descriptor {fd} is no outbox: {total} bytes are less than its header")
        memory = mmap.mmap(fd, total)
        with memoryview(memory) as whole, whole[:_HEADER_BYTES].cast("Q") as words:
            magic, capacity = words[_W_MAGIC], words[_W_CAPACITY]
        if magic != _MAGIC or total != _HEADER_BYTES + capacity + _SLACK_BYTES + _RECALL_BYTES:
            memory.close()
            raise RemoteProtocolError(f"descriptor {fd} is no outbox: magic {magic:#x}, {total} bytes")
        return cls(memory, -1)

    @property
    def capacity(self) -> int:
        """Bytes in the ring."""
        return self._capacity

    def fileno(self) -> int:
        """The descriptor to pass to the other process; only `create` gives an outbox that has one.

        Raises:
            ValueError: This outbox was attached, or is closed.
        """
        if self._fd < 0:
            raise ValueError("this outbox has no descriptor of its own: it was attached, or is closed")
        return self._fd

    def close(self) -> None:
        """Unmaps the outbox here; the other side is not affected. Closing twice is no error."""
        self._words.release()
        self._recalls.release()
        self._bytes.release()
        self._memory.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # ── Writer ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def fits(self, client: bytes, value: bytes) -> bool:
        """Whether `try_write` takes this value; others need `write`, which writes pieces."""
        return _ENTRY_BYTES + len(client) + len(value) <= self._entry_bytes_max

    def try_write(self, task: int, attempt: int, ok: bool, seconds: float, client: bytes, value: bytes) -> bool:
        """Writes one entry.

        Returns:
            False when the reader has to make room first; nothing was written then.
        Raises:
            ValueError: The entry is larger than a quarter of the ring (see `fits`).
        """
        return self._put(task, attempt, 1 if ok else 0, seconds, client, value)

    def write(
        self,
        task: int,
        attempt: int,
        ok: bool,
        seconds: float,
        client: bytes,
        value: bytes,
        wait: Callable[[], None],
        direct: bool = False,
        started: bool = True,
    ) -> None:
        """Writes one entry of any size.

        Args:
            task: Id of the task.
            attempt: Number of the attempt.
            ok: Whether `value` is a value and not an error.
            seconds: How long the task ran.
            client: Id of the client that gets the value, in UTF-8.
            value: The pickle.
            wait: Called whenever there is no room; returns when it is worth another try. What it raises passes
                through; the reader then never sees this entry, and later entries are not affected.
            direct: Whether the client had sent the task here itself.
            started: False when nothing ran, because the task was recalled.
        Raises:
            ValueError: The client's id is longer than an eighth of the ring.
        """
        ok_flag = (_OK if ok else 0) | (_DIRECT if direct else 0) | (0 if started else _NOT_STARTED)
        if _ENTRY_BYTES + len(client) + len(value) <= self._entry_bytes_max:
            while not self._put(task, attempt, ok_flag, seconds, client, value):
                wait()
            return
        if _ENTRY_BYTES + len(client) > self._capacity // 8:
            raise ValueError(f"a client's id of {len(client)} bytes is too long for an outbox of {self._capacity}")
        end = len(value)
        start = 0
        continues = 0
        with memoryview(value) as whole:
            while start < end:
                stop = min(end, start + self._entry_bytes_max - _ENTRY_BYTES - len(client))
                flags = ok_flag | continues | (_MORE if stop < end else 0)
                while not self._put(task, attempt, flags, seconds, client, whole[start:stop]):
                    wait()
                start = stop
                continues = _CONTINUES
                client = b""

    def _put(
        self, task: int, attempt: int, flags: int, seconds: float, client: bytes, value: bytes | memoryview
    ) -> bool:
        # The hot path of a runner: locals and no helper calls.
        n_client = len(client)
        n_value = len(value)
        size = _ENTRY_BYTES + n_client + n_value
        if size > self._entry_bytes_max:
            raise ValueError(f"an entry of {size} bytes needs write(): try_write() takes {self._entry_bytes_max}")
        words = self._words
        tail = words[_W_TAIL]
        at = tail & self._mask
        begin = tail
        if at + size > self._capacity:
            begin = tail + self._capacity - at
        after = begin + ((size + 7) & -8)
        if after - self._head_seen > self._capacity:
            self._head_seen = words[_W_HEAD]
            if after - self._head_seen > self._capacity:
                return False
            if not _STRONG_ORDER:
                self._barrier()
        memory = self._memory
        if begin != tail:
            _SKIP.pack_into(memory, _HEADER_BYTES + at, 0)
            at = 0
        at += _HEADER_BYTES
        _ENTRY.pack_into(memory, at, size, attempt, task, seconds, n_value, n_client, flags)
        at += _ENTRY_BYTES
        if n_client:
            memory[at : at + n_client] = client
            at += n_client
        memory[at : at + n_value] = value
        if not _STRONG_ORDER:
            self._barrier()
        # Only now is the entry visible: a writer killed before this has written nothing.
        words[_W_TAIL] = after
        return True

    def set_counters(self, values: Sequence[int]) -> None:
        """Stores the first 16 of `values` as counter words; missing ones are left as they are.

        Each word is stored at once, all of them together are not.
        """
        words = self._words
        for index, value in enumerate(values[:COUNTER_WORDS], _W_COUNTERS):
            words[index] = value & _MASK_64

    # ── Reader ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self) -> list[Entry]:
        """Takes all whole entries out of the ring, in the order in which they were written.

        The room is given back before this returns, at the end, because a list that was not returned would be lost.

        Raises:
            RemoteProtocolError: The ring's contents make no sense (somebody wrote over the shared memory). The entries
                before the fault are still to be had: the next `read` returns them once; after that it raises again.
        """
        head = self._head
        tail = self._words[_W_TAIL]
        if head == tail:
            return []
        if not _STRONG_ORDER:
            self._barrier()
        if not 0 < tail - head <= self._capacity or tail & 7:
            raise RemoteProtocolError(f"outbox: tail {tail} does not go with head {head}")
        entries: list[Entry] = []
        try:
            while head != tail:
                head = self._take(head, tail, entries)
        except RemoteProtocolError:
            # Bytes before the fault are good: hand them on now, and meet the fault again the next time.
            if not entries:
                raise
        return entries

    def _take(self, head: int, tail: int, entries: list[Entry]) -> int:
        """Takes one entry, piece or mark at `head`; returns the new head, which is also in the header then."""
        memory = self._memory
        at = head & self._mask
        size, attempt, task, seconds, n_value, n_client, flags = _ENTRY.unpack_from(memory, _HEADER_BYTES + at)
        if size == 0:
            after = head + self._capacity - at
            if after > tail:
                raise RemoteProtocolError(f"outbox: a mark at {head} skips past the tail {tail}")
        else:
            after = head + ((size + 7) & -8)
            if size != _ENTRY_BYTES + n_client + n_value or after > tail or at + size > self._capacity:
                raise RemoteProtocolError(f"outbox: the entry at {head} of {size} bytes makes no sense (tail {tail})")
            start = _HEADER_BYTES + at + _ENTRY_BYTES
            try:
                client = memory[start : start + n_client].decode()
            except UnicodeDecodeError as error:
                raise RemoteProtocolError(
                    f"outbox: the client's id in the entry at {head} is no text: {error}"
                ) from error
            value = memory[start + n_client : start + n_client + n_value]
            ok = flags & _OK != 0
            entry = Entry(task, attempt, ok, seconds, client, value, flags & _DIRECT != 0, flags & _NOT_STARTED == 0)
            if flags & (_MORE | _CONTINUES):
                self._join(entry, flags, entries)
            else:
                # The writer gave up in the middle of a large value, if there are pieces: they are worthless now.
                self._first = None
                self._pieces.clear()
                entries.append(entry)
        if not _STRONG_ORDER:
            self._barrier()
        # The loads above are done before the writer may use the room again.
        self._words[_W_HEAD] = after
        self._head = after
        return after

    def _join(self, piece: Entry, flags: int, entries: list[Entry]) -> None:
        if not flags & _CONTINUES:
            self._pieces.clear()
            self._first = piece
        elif self._first is None or self._first[:2] != (piece.task, piece.attempt):
            raise RemoteProtocolError(f"outbox: a piece of task {piece.task} continues nothing")
        self._pieces.append(piece.value)
        if not flags & _MORE:
            assert self._first is not None
            entries.append(self._first._replace(value=b"".join(self._pieces)))
            self._first = None
            self._pieces.clear()

    def counters(self) -> list[int]:
        """The 16 counter words as the writer last set them."""
        return self._words[_W_COUNTERS : _W_COUNTERS + COUNTER_WORDS].tolist()

    # ── Starting and recalling ───────────────────────────────────────────────────────────────────────────────────────

    def start(self, task: int) -> list[tuple[int, int]]:
        """Runner: says that `task` starts now, and returns what was recalled since the last call.

        When `task` is among that, it must not run: the agent may have answered already that it never will.
        """
        words = self._words
        lock = self._barrier_lock
        if not _STRONG_ORDER:
            # What the last task left must be seen before it is seen that the next one runs.
            self._barrier()
        words[_W_RUNNING] = task
        # `_barrier`, without the call.
        lock.release()
        lock.acquire()
        recalled = words[_W_RECALLED]
        if recalled == self._recalls_read:
            return _NO_RECALLS
        return self._read_recalls(recalled)

    def recalls(self) -> list[tuple[int, int]]:
        """Runner: what was recalled since the last look, when nothing is to be started."""
        recalled = self._words[_W_RECALLED]
        return _NO_RECALLS if recalled == self._recalls_read else self._read_recalls(recalled)

    def _read_recalls(self, recalled: int) -> list[tuple[int, int]]:
        if not _STRONG_ORDER:
            self._barrier()
        words = self._recalls
        found = []
        for number in range(self._recalls_read, recalled):
            at = number % RECALLS_MAX * 2
            found.append((words[at], words[at + 1]))
        if not _STRONG_ORDER:
            self._barrier()
        self._recalls_read = recalled
        self._words[_W_RECALLS_READ] = recalled
        return found

    def recall(self, tasks: Sequence[tuple[int, int]]) -> tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]:
        """Agent: takes tasks back that the runner has not started.

        Args:
            tasks: Pairs of a task and the newest attempt of it that is not to start any more.
        Returns:
            Those that never start from here on, or are among the entries that `read` gives now or has given; and the
            others, which have perhaps started (or there was no room for so many).
        Raises:
            RemoteProtocolError: The words make no sense (somebody wrote over the shared memory).
        """
        words, recalls = self._words, self._recalls
        recalled = words[_W_RECALLED]
        behind = recalled - words[_W_RECALLS_READ]
        if not 0 <= behind <= RECALLS_MAX:
            raise RemoteProtocolError(f"outbox: the runner is {behind} recalls behind")
        taken = tasks[: RECALLS_MAX - behind]
        for number, (task, attempt) in enumerate(taken, recalled):
            at = number % RECALLS_MAX * 2
            recalls[at], recalls[at + 1] = task, attempt
        if not _STRONG_ORDER:
            self._barrier()
        words[_W_RECALLED] = recalled + len(taken)
        self._barrier()
        running = words[_W_RUNNING]
        if not _STRONG_ORDER:
            # The entries are looked at after this: what had run before `running` is among them then.
            self._barrier()
        never = [pair for pair in taken if pair[0] != running]
        return never, [*(pair for pair in taken if pair[0] == running), *tasks[len(taken) :]]

    # ── Changes of lists ─────────────────────────────────────────────────────────────────────────────────────────────

    def announce(self, count: int) -> None:
        """Agent: the runner has been sent `count` changes of lists, and is to take them in before it publishes."""
        words = self._words
        if count > words[_W_ANNOUNCED]:
            words[_W_ANNOUNCED] = count & _MASK_64
            # Whoever made the change hears that it counts after this.
            self._barrier()

    @property
    def announced(self) -> int:
        """Runner: how many changes of lists it has been sent."""
        return self._words[_W_ANNOUNCED]

    @property
    def running(self) -> int:
        """The task that the runner started last; 0 before the first."""
        return self._words[_W_RUNNING]

    def _barrier(self) -> None:
        """No load or store passes this."""
        self._barrier_lock.release()
        self._barrier_lock.acquire()


def _anonymous_file(total: int) -> int:
    fd = nameless_file("raskid-outbox")
    try:
        if hasattr(os, "memfd_create"):
            os.ftruncate(fd, total)
            # User code in the runner has the descriptor too; a truncated file would kill the agent with SIGBUS.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        else:
            # Written, not only truncated to size: on a full disk this fails now, and not with SIGBUS later.
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(bytes(total))
    except BaseException:
        os.close(fd)
        raise
    return fd
