"""The gateway: lines in and lines out over real pipes, on a session without a system."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from raskid.client import lines as lines_module
from raskid.client import pipe as pipe_module
from raskid.client.pipe import Gateway
from raskid.model.errors import SessionClosed
from tests.unit.client.represented import FakeSession


class Program:
    """Stands for the program at the other ends of the pipes."""

    def __init__(self) -> None:
        self.rk = FakeSession()
        theirs, self.input = os.pipe()
        self.output, ours = os.pipe()
        os.set_blocking(self.output, False)
        self._theirs = [theirs, ours]
        self._unread = b""
        self.gateway = Gateway(self.rk, theirs, ours)  # type: ignore[arg-type]
        self.running = asyncio.create_task(self.gateway.run())

    def say(self, *commands: Any) -> None:
        """Write lines."""
        for command in commands:
            line = command if isinstance(command, bytes) else json.dumps(command).encode()
            assert os.write(self.input, line + b"\n") == len(line) + 1

    async def hear(self, count: int = 1) -> Any:
        """So many lines; a single one by itself."""
        while self._unread.count(b"\n") < count:
            await asyncio.sleep(0)
            try:
                data = os.read(self.output, 1 << 20)
            except BlockingIOError:
                continue
            assert data, f"the gateway has ended after {self._unread!r}"
            self._unread += data
        *lines, rest = self._unread.split(b"\n", count)
        self._unread = rest
        found = [json.loads(line) for line in lines]
        return found if count > 1 else found[0]

    def nothing_more(self) -> bool:
        """Whether nothing more was written."""
        try:
            self._unread += os.read(self.output, 1 << 20)
        except BlockingIOError:
            pass
        return not self._unread

    def hang_up(self, fd: int) -> None:
        """Close an end."""
        os.close(fd)
        if fd == self.input:
            self.input = -1
        else:
            self.output = -1

    def close(self) -> None:
        for fd in (*self._theirs, self.input, self.output):
            if fd >= 0:
                os.close(fd)


def with_program(body: Callable[[Program], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test with a program; when it ends, the gateway has ended and left no task."""

    def test() -> None:
        async def main() -> None:
            async with asyncio.timeout(10):
                program = Program()
                try:
                    await body(program)
                    if program.input >= 0:
                        program.hang_up(program.input)
                    await asyncio.wait([program.running])
                    if not program.running.cancelled() and program.running.exception() is None:
                        assert asyncio.all_tasks() == {asyncio.current_task()}
                finally:
                    program.running.cancel()
                    await asyncio.wait([program.running])
                    program.close()

        asyncio.run(main())

    test.__doc__ = body.__doc__
    return test


@with_program
async def test_answers_bear_the_id_of_their_line(program: Program) -> None:
    for identifier in (1, "x", None, [1, {"a": 2.5}], 2**70):
        program.say({"do": "publish", "topic": "t", "args": [1], "id": identifier})
        assert await program.hear() == {"id": identifier, "ok": True}
    program.say({"do": "topics", "id": 7})
    assert (await program.hear())["topics"]["x"]["records"] == 2


@with_program
async def test_without_an_id_only_errors_are_told(program: Program) -> None:
    program.say({"do": "publish", "topic": "t"}, {"do": "request", "service": "fails"})
    assert await program.hear() == {
        "event": "error", "error": "RemoteError", "text": "ValueError: no", "kind": "ValueError", "line": 2,
    }  # fmt: skip
    assert program.nothing_more()


@with_program
async def test_bad_lines_are_named_and_cost_no_other(program: Program) -> None:
    program.say(
        {"do": "publish", "topic": "t", "args": [1]}, b"{", b"", b"  ", b"[]", {"do": "pub", "id": "a"},
        {"do": "publish", "topic": "t", "args": [{"$x": 1}], "id": "b"}, {"do": "publish", "topic": "t", "args": [2]},
        {"id": "c"}, b"\xff", {"do": "publish", "topic": "t", "args": [3], "id": "d"},
    )  # fmt: skip
    lines = await program.hear(7)
    assert [(line["line"], line["error"]) for line in lines[:-1]] == [
        (number, "BadLine") for number in (2, 5, 6, 7, 9, 10)
    ]
    assert [line.get("id", line.get("event")) for line in lines] == ["error", "error", "a", "b", "c", "error", "d"]
    assert [line["ok"] for line in lines if "id" in line] == [False, False, False, True]
    assert [args for _, args, _ in program.rk.published] == [(1,), (2,), (3,)]


@with_program
async def test_a_line_that_is_too_long(program: Program) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "LINE_BYTES_MAX", 1000)
        program.say({"do": "publish", "topic": "t", "args": ["x" * 1000], "id": 1}, {"do": "topics", "id": 2})
        error, answer = await program.hear(2)
    assert (error["event"], error["error"], error["line"]) == ("error", "BadLine", 1)
    assert answer["id"] == 2


@with_program
async def test_a_publish_that_waits_holds_up_only_its_topic(program: Program) -> None:
    """1. A topic is full. 2. What is published on it waits; other topics and commands go on. 3. There is room, and all
    of it comes in order."""
    program.rk.full["full"] = asyncio.Event()
    full = {"do": "publish", "topic": "full"}
    program.say({**full, "args": [0], "id": 0}, {**full, "args": [1], "id": 1})
    program.say({"do": "publish", "topic": "free", "id": "free"}, {"do": "status", "id": "s"}, {**full, "args": [2]})
    assert [(await program.hear())["id"] for _ in range(2)] == ["free", "s"]
    assert program.nothing_more()
    program.rk.full.pop("full").set()
    assert [line["id"] for line in await program.hear(2)] == [0, 1]
    program.say({**full, "args": [3], "id": 3})
    await program.hear()
    assert [args for topic, args, _ in program.rk.published if topic == "full"] == [(0,), (1,), (2,), (3,)]
    assert program.gateway._lanes == {}


@with_program
async def test_commands_about_one_thing_keep_their_order(program: Program) -> None:
    """A list is written before it is read, although reading began at once; a name is free when it was given up."""
    program.say(
        {"do": "shared", "name": "s", "id": 1}, {"do": "put", "name": "s", "key": "k", "value": 1, "id": 2},
        {"do": "delete", "name": "s", "key": "k", "id": 3}, {"do": "unshared", "name": "s", "id": 4},
        {"do": "subscribe", "topic": "t", "id": 5}, {"do": "unsubscribe", "as": "t", "id": 6},
        {"do": "subscribe", "topic": "t", "id": 7},
    )  # fmt: skip
    lines = []
    while sum("id" in line for line in lines) < 7:
        lines.append(await program.hear())
    assert all(line["ok"] for line in lines if "id" in line)
    order = [line["id"] for line in lines if "id" in line]
    assert [it for it in order if it < 5] == [1, 2, 3, 4] and [it for it in order if it > 4] == [5, 6, 7]


@with_program
async def test_events_come_behind_the_answer_that_announces_them(program: Program) -> None:
    program.rk.records["s"] = {"k": 1}
    program.say({"do": "subscribe", "topic": "t", "id": 1}, {"do": "shared", "name": "s", "id": 2})
    answers = await program.hear(2)
    assert [answer["id"] for answer in answers] == [1, 2] and answers[1]["records"] == {"k": 1}
    program.rk.subscriptions["t"].give("é")
    program.rk.lists["s"].changed("k", 2)
    events = await program.hear(2)
    assert sorted(event["event"] for event in events) == ["change", "message"]


@with_program
async def test_requests_to_the_program(program: Program) -> None:
    program.say({"do": "serve", "service": "s", "id": 1})
    await program.hear()
    asked = asyncio.create_task(program.rk.handlers["s"](5))
    request = await program.hear()
    assert request == {"event": "request", "service": "s", "request": 1, "args": [5], "fields": {}}
    program.say({"do": "reply", "request": 1, "value": {"a": 1}})
    assert await asked == {"a": 1}


@with_program
async def test_the_end_of_the_input_finishes_what_is_under_way(program: Program) -> None:
    """1. A request of the program's waits, and so does one to it. 2. Its input ends. 3. What it can never answer is
    refused; its own is answered, and what its subscription holds is told. 4. The gateway ends."""
    program.rk.full["slow"] = asyncio.Event()
    program.say({"do": "subscribe", "topic": "t", "id": 1}, {"do": "serve", "service": "s", "id": 2})
    await program.hear(2)
    asked = asyncio.create_task(program.rk.handlers["s"]())
    assert (await program.hear())["event"] == "request"
    program.say({"do": "request", "service": "slow", "id": 3})
    while not program.rk.requested:
        await asyncio.sleep(0)
    os.write(program.input, b'{"do": "publish", "topic": "last", "id": 4}')
    program.hang_up(program.input)
    with pytest.raises(SessionClosed):
        await asked
    assert (await program.hear())["id"] == 4
    program.rk.subscriptions["t"].give("waits")
    program.rk.full["slow"].set()
    message, answer = await program.hear(2)
    assert message["args"] == ["waits"] and answer["id"] == 3
    await program.running
    assert program.nothing_more() and program.rk.subscriptions["t"].closed


@with_program
async def test_close(program: Program) -> None:
    """Everything before it is answered before it; what follows it is not read."""
    program.rk.full["slow"] = asyncio.Event()
    program.say({"do": "close", "when": 1, "id": 0})
    assert "'close' takes no 'when'" in (await program.hear())["text"]
    program.say({"do": "request", "service": "slow", "id": 1}, {"do": "close", "id": 2}, {"do": "status", "id": 3})
    while not program.rk.requested:
        await asyncio.sleep(0)
    assert program.nothing_more()
    program.rk.full["slow"].set()
    assert [line["id"] for line in await program.hear(2)] == [1, 2]
    await program.running
    assert program.nothing_more()


@with_program
async def test_the_end_of_the_system(program: Program) -> None:
    """1. The system goes. 2. What had come is told; then the end, last. 3. The gateway fails with the reason."""
    program.say({"do": "subscribe", "topic": "t", "id": 1})
    await program.hear()
    program.rk.subscriptions["t"].give("last words")
    program.rk.lose("the system's head is gone: killed")
    message, end = await program.hear(2)
    assert message["args"] == ["last words"]
    assert end == {"event": "end", "text": "the system's head is gone: killed"}
    with pytest.raises(SessionClosed, match="killed"):
        await program.running


@with_program
async def test_nobody_reads_the_output(program: Program) -> None:
    """The gateway ends without an error, and without waiting for what never comes."""
    program.rk.full["never"] = asyncio.Event()
    program.say({"do": "subscribe", "topic": "t", "id": 1}, {"do": "request", "service": "never"})
    await program.hear()
    program.hang_up(program.output)
    program.rk.subscriptions["t"].give(1)
    await program.running


@with_program
async def test_a_slow_reader_stops_everything_and_loses_nothing(program: Program) -> None:
    """1. Nobody reads. 2. Of thousands of messages only so many are taken as the pipe and a buffer hold, and of
    thousands of lines only so many are read. 3. Somebody reads, and everything is there, in order."""
    os.set_blocking(program.input, False)
    program.say({"do": "subscribe", "topic": "t", "id": "s"})
    await program.hear()
    subscription = program.rk.subscriptions["t"]
    for number in range(3000):
        subscription.give(number)
    said = 0
    for _ in range(200_000):
        await asyncio.sleep(0)
        try:
            program.say({"do": "topics", "id": said})
            said += 1
        except BlockingIOError:
            break
    else:
        pytest.fail("all lines were read")
    assert 500 < subscription.waiting.qsize() < 3000
    heard = [await program.hear() for _ in range(3000 + said)]
    assert [line["args"][0] for line in heard if "event" in line] == list(range(3000))
    assert sorted(line["id"] for line in heard if "id" in line) == list(range(said))


@with_program
async def test_so_many_commands_are_under_way_and_no_more(program: Program) -> None:
    program.rk.full["slow"] = asyncio.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe_module, "UNDER_WAY_MAX", 3)
        program.say(*({"do": "request", "service": "slow", "id": number} for number in range(10)))
        while len(program.rk.requested) < 3:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(program.rk.requested) == 3
        program.rk.full["slow"].set()
        assert sorted(line["id"] for line in await program.hear(10)) == list(range(10))


@with_program
async def test_bytes_under_way_are_counted_too(program: Program) -> None:
    program.rk.full["slow"] = asyncio.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe_module, "UNDER_WAY_BYTES_MAX", 100)
        line = {"do": "request", "service": "slow", "args": ["x" * 200]}
        program.say({**line, "id": 1}, {**line, "id": 2})
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(program.rk.requested) == 1
        program.rk.full["slow"].set()
        assert [answer["id"] for answer in await program.hear(2)] == [1, 2]
    assert program.gateway._under_way_bytes == 0
