"""Lines over descriptors, in an event loop, over real pipes and files."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from raskid.client import lines as lines_module
from raskid.client.lines import CHUNK_BYTES, UNWRITTEN_BYTES_MAX, LineReader, LineWriter


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(10):
            await body()

    asyncio.run(limited())


@pytest.fixture(params=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Two descriptors: what is written to the second is read from the first."""
    if request.param == "pipe":
        found = os.pipe()
    else:
        one, two = socket.socketpair()
        found = one.detach(), two.detach()
    yield found
    for fd in found:
        try:
            os.close(fd)
        except OSError:
            pass


class Taker:
    """Keeps what a reader hands out, and pauses it after `limit` lines."""

    def __init__(self, fd: int, limit: int = 1 << 60) -> None:
        self.got: list[tuple[int, bytes | None]] = []
        self.ended = asyncio.Event()
        self.limit = limit
        self.reader = LineReader(fd, self._take, self._end)

    def _take(self, number: int, line: bytes | None) -> None:
        assert not self.ended.is_set()
        self.got.append((number, line))
        if len(self.got) >= self.limit:
            self.reader.pause()

    def _end(self) -> None:
        assert not self.ended.is_set()
        self.ended.set()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_lines_are_numbered_and_the_last_needs_no_end(ends: tuple[int, int]) -> None:
    async def body() -> None:
        taker = Taker(ends[0])
        taker.reader.resume()
        os.write(ends[1], b"one\n\ntwo\r\nth")
        while len(taker.got) < 3:
            await asyncio.sleep(0)
        os.write(ends[1], b"ree")
        os.close(ends[1])
        await taker.ended.wait()
        assert taker.got == [(1, b"one"), (2, b""), (3, b"two\r"), (4, b"three")]

    run(body)


@pytest.mark.parametrize("content", [b"", b"one\ntwo\n", b"one\ntwo", b"x" * 200_000 + b"\ny\n"])
def test_files_are_read_too(tmp_path: Path, content: bytes) -> None:
    """An event loop cannot watch them."""
    path = tmp_path / "lines"
    path.write_bytes(content)

    async def body() -> None:
        with path.open("rb", buffering=0) as file:
            taker = Taker(file.fileno(), limit=1)
            taker.reader.resume()
            while not taker.ended.is_set():
                await asyncio.sleep(0)
                taker.reader.resume()
        assert [line for _, line in taker.got] == content.splitlines()

    run(body)


def test_no_descriptor_is_an_end(ends: tuple[int, int]) -> None:
    async def body() -> None:
        os.close(ends[0])
        taker = Taker(ends[0])
        taker.reader.resume()
        await taker.ended.wait()
        assert taker.got == []

    run(body)


def test_whoever_pauses_gets_no_more_until_it_resumes(ends: tuple[int, int]) -> None:
    """1. Ten lines come in one piece; the taker pauses after two. 2. It gets no more. 3. Nothing is read meanwhile.
    4. It resumes, and gets the rest, and the end."""

    async def body() -> None:
        taker = Taker(ends[0], limit=2)
        taker.reader.resume()
        os.write(ends[1], b"".join(b"%d\n" % n for n in range(10)))
        while not taker.got:
            await asyncio.sleep(0)
        os.write(ends[1], b"10\n")
        os.close(ends[1])
        await turns()
        assert len(taker.got) == 2
        assert select.select([ends[0]], [], [], 0)[0]
        taker.limit = 5
        taker.reader.resume()
        await turns()
        assert len(taker.got) == 5 and not taker.ended.is_set()
        taker.limit = 1000
        taker.reader.resume()
        await taker.ended.wait()
        assert [line for _, line in taker.got] == [b"%d" % n for n in range(11)]

    run(body)


def test_a_reader_that_was_closed_says_nothing(ends: tuple[int, int]) -> None:
    async def body() -> None:
        taker = Taker(ends[0], limit=1)
        taker.reader.resume()
        os.write(ends[1], b"1\n2\n3\n")
        while not taker.got:
            await asyncio.sleep(0)
        taker.reader.resume()
        taker.reader.close()
        os.close(ends[1])
        await turns()
        taker.reader.resume()
        await turns()
        assert taker.got == [(1, b"1")] and not taker.ended.is_set()

    run(body)


def test_a_line_that_is_too_long_is_left_out_and_no_other(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_module, "LINE_BYTES_MAX", 100)

    async def body() -> None:
        taker = Taker(ends[0])
        taker.reader.resume()
        os.write(ends[1], b"a" * 100 + b"\n" + b"b" * 101 + b"\n" + b"c\n" + b"d" * 90)
        while len(taker.got) < 3:
            await asyncio.sleep(0)
        for _ in range(5):
            os.write(ends[1], b"d" * 50)
            await turns()
        assert sum(map(len, taker.reader._begun)) <= 100
        os.write(ends[1], b"\ne\n" + b"f" * 101)
        os.close(ends[1])
        await taker.ended.wait()
        assert taker.got == [(1, b"a" * 100), (2, None), (3, b"c"), (4, None), (5, b"e"), (6, None)]

    run(body)


# ── Writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_all(fd: int) -> bytes:
    """What is there to read."""
    found = b""
    while select.select([fd], [], [], 0)[0] and (data := os.read(fd, 1 << 20)):
        found += data
    return found


def test_lines_of_one_turn_are_written_at_once(ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: written.append(write(fd, data)) or written[-1])

    async def body() -> None:
        writer = LineWriter(ends[1], pytest.fail)
        for _ in range(10):
            writer.write(b"line")
        await writer.written()
        assert read_all(ends[0]) == b"line\n" * 10
        assert written == [50]

    run(body)


def test_a_slow_reader_holds_up_who_waits_for_room_and_not_the_loop(ends: tuple[int, int]) -> None:
    """1. So much is written that the pipe is full. 2. The loop goes on, and there is no room. 3. The reader reads, and
    everything comes, in order. 4. The descriptor's own mode is as it was."""

    async def body() -> None:
        writer = LineWriter(ends[1], pytest.fail)
        count = 0
        while writer.has_room:
            writer.write(b"%09d" % count)
            count += 1
            await asyncio.sleep(0)
        waiting = asyncio.create_task(writer.room())
        await turns()
        assert not waiting.done()
        large = b"x" * 1_000_000
        writer.write(large)
        found = bytearray()
        while len(found) < count * 10 + len(large) + 1:
            await asyncio.sleep(0)
            found += read_all(ends[0])
        await waiting
        await writer.written()
        assert found == b"".join(b"%09d\n" % n for n in range(count)) + large + b"\n"
        assert os.get_blocking(ends[1])

    run(body)


def test_files_are_written_too(tmp_path: Path) -> None:
    async def body() -> None:
        with (tmp_path / "lines").open("wb", buffering=0) as file:
            writer = LineWriter(file.fileno(), pytest.fail)
            large = b"x" * (10 * UNWRITTEN_BYTES_MAX)
            writer.write(large)
            writer.write(b"y")
            assert not writer.has_room
            await writer.room()
            await writer.written()
        assert (tmp_path / "lines").read_bytes() == large + b"\ny\n"

    run(body)


@pytest.mark.parametrize("how", ["when it writes", "while it waits"])
def test_nobody_reads_any_more(ends: tuple[int, int], how: str) -> None:
    async def body() -> None:
        told: list[int] = []
        writer = LineWriter(ends[1], lambda: told.append(1))
        if how == "while it waits":
            writer.write(b"x" * 4_000_000)
            await turns()
            assert not writer.has_room
        os.close(ends[0])
        writer.write(b"y")
        await writer.written()
        await writer.room()
        assert told == [1] and writer.broken
        writer.write(b"z")
        await writer.written()
        assert told == [1]

    run(body)


def test_a_pipe_that_nobody_reads_says_so_by_itself() -> None:
    async def body() -> None:
        read, write = os.pipe()
        broken = asyncio.Event()
        writer = LineWriter(write, broken.set)
        writer.write(b"x")
        await writer.written()
        await turns()
        assert not broken.is_set()
        os.close(read)
        await broken.wait()
        assert writer.broken
        os.close(write)

    run(body)


def test_a_chunk_is_less_than_a_line_may_have() -> None:
    assert CHUNK_BYTES < lines_module.LINE_BYTES_MAX
