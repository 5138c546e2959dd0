"""The gateway: a process that takes part in a system for another one, which speaks lines of JSON on a pipe.

`docs/pipe.md` is the specification. Here lines become commands, and answers lines; what the commands do is in
`raskid.client.representative`.

Everything runs in one event loop, which serves the session too. Commands run at the same time, so that one that waits
(a publish whose reader is full, a request) holds up no other. Those that must keep their order stand in *lanes*: the
publishes of one topic run one after the other, as do the commands about one shared list, one service and one
subscription. Answers come as commands finish. Whoever wants anything else done in order waits for the answer.

Nothing grows without limit: when nobody reads the output, or too many commands are under way, no more input is read,
and nothing is taken from the subscriptions. The price is that a program that writes without ever reading may find
that neither goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import msgspec

from raskid.client.commands import ID, BadLine, Command, find_command, read_line
from raskid.client.lines import LINE_BYTES_MAX, LineReader, LineWriter
from raskid.client.notices import error_facts
from raskid.client.representative import CLOSE, COMMANDS, Representative
from raskid.model.errors import RaskidError

if TYPE_CHECKING:
    from raskid.client.aio import AsyncSession
    from raskid.client.session import Session

#: No more is read while so many commands are under way, or lines of so many bytes.
UNDER_WAY_MAX = 1000
UNDER_WAY_BYTES_MAX = 64 << 20


class Asked(msgspec.Struct, frozen=True):
    """One line: its number, its "id" as JSON (None: it has none), and its size in bytes."""

    number: int
    id: msgspec.Raw | None = None
    size: int = 0


class Gateway:
    """Between two descriptors and a session.

    Args:
        rk: The session; this runs in its event loop.
        input_fd: Where commands come from.
        output_fd: Where answers and events go.
    """

    def __init__(self, rk: AsyncSession, input_fd: int, output_fd: int) -> None:
        self._rk = rk
        loop = asyncio.get_running_loop()
        self._input_ended: asyncio.Future[None] = loop.create_future()
        self._output_broken: asyncio.Future[None] = loop.create_future()
        self._reader = LineReader(input_fd, self._on_line, self._on_input_end)
        self._writer = LineWriter(output_fd, lambda: self._output_broken.set_result(None))
        self._representative = Representative(rk, self)
        #: Commands that have not finished, and the bytes of their lines.
        self._under_way: set[asyncio.Task[None]] = set()
        self._under_way_bytes = 0
        #: The last command of each lane.
        self._lanes: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._closed_by: Asked | None = None
        self._waits_for_room: asyncio.Task[None] | None = None

    # ── out ──

    @property
    def has_room(self) -> bool:
        """Whether little that was told waits to be read."""
        return self._writer.has_room

    async def room(self) -> None:
        """Wait until that is so."""
        await self._writer.room()

    def tell(self, event: dict[str, Any]) -> None:
        """Write a line."""
        self._writer.write(msgspec.json.encode(event))

    def _answer(self, asked: Asked, result: dict[str, Any]) -> None:
        if asked.id is not None:
            self.tell({"id": asked.id, "ok": True, **result})

    def _answer_error(self, asked: Asked, error: Exception) -> None:
        facts = {**error_facts(error), "line": asked.number}
        self.tell({"event": "error", **facts} if asked.id is None else {"id": asked.id, "ok": False, **facts})

    # ── in ──

    def _on_line(self, number: int, line: bytes | None) -> None:
        asked = Asked(number)
        try:
            if line is None:
                raise BadLine(f"this line has more than {LINE_BYTES_MAX:,} bytes, and was left out")
            if not line.strip():
                return
            found = read_line(line)
            asked = Asked(number, _raw_id(found), len(line))
            command, given = find_command(COMMANDS, found)
        except BadLine as error:
            self._answer_error(asked, error)
        else:
            if command is CLOSE:
                self._closed_by = asked
                self._reader.close()
                self._on_input_end()
                return
            self._start(asked, command, given)
        self._regulate()

    def _start(self, asked: Asked, command: Command, given: dict[str, Any]) -> None:
        lane = command.lane(given) if command.lane is not None else None
        before = self._lanes.get(lane) if lane is not None else None
        task = asyncio.create_task(self._carry_out(asked, command, given, before))
        if lane is not None:
            self._lanes[lane] = task
        self._under_way.add(task)
        self._under_way_bytes += asked.size
        task.add_done_callback(lambda task: self._on_finished(task, asked, lane))

    async def _carry_out(
        self, asked: Asked, command: Command, given: dict[str, Any], before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait((before,))
        try:
            result = command.run(self._representative, given)
            if inspect.iscoroutine(result):
                result = await result
        except Exception as error:
            self._answer_error(asked, error)
        else:
            self._answer(asked, result)

    def _on_finished(self, task: asyncio.Task[None], asked: Asked, lane: tuple[str, str] | None) -> None:
        self._under_way.discard(task)
        self._under_way_bytes -= asked.size
        if lane is not None and self._lanes.get(lane) is task:
            del self._lanes[lane]
        self._regulate()

    def _regulate(self) -> None:
        """Read on, or not."""
        if self._input_ended.done():
            return
        if not self.has_room and self._waits_for_room is None:
            self._waits_for_room = asyncio.create_task(self._wait_room())
        if self.has_room and len(self._under_way) < UNDER_WAY_MAX and self._under_way_bytes < UNDER_WAY_BYTES_MAX:
            self._reader.resume()
        else:
            self._reader.pause()

    async def _wait_room(self) -> None:
        await self.room()
        self._waits_for_room = None
        self._regulate()

    def _on_input_end(self) -> None:
        if not self._input_ended.done():
            self._input_ended.set_result(None)

    # ── from the beginning to the end ──

    async def run(self) -> None:
        """Go on until the input ends, or nobody reads the output.

        Raises:
            SessionClosed: The system has ended, or is out of reach.
        """
        ends = asyncio.create_task(self._run())
        try:
            self._regulate()
            await asyncio.wait((ends, self._output_broken), return_when=asyncio.FIRST_COMPLETED)
            if ends.done():
                ends.result()
        finally:
            self._reader.close()
            left = [ends, *self._under_way, *self._representative.tasks]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            self._writer.close()

    async def _run(self) -> None:
        session_end = asyncio.create_task(_end_of(self._rk.session))
        try:
            await asyncio.wait((session_end, self._input_ended), return_when=asyncio.FIRST_COMPLETED)
            self._reader.close()
            self._representative.refuse_requests()
            while self._under_way:
                await asyncio.wait(self._under_way)
            errors = await self._representative.end()
            if session_end.done():
                ended = session_end.result()
                self.tell({"event": "end", "text": error_facts(ended)["text"]})
                await self._writer.written()
                raise ended
            for error in errors:
                self.tell({"event": "error", **error_facts(error)})
            if self._closed_by is not None:
                self._answer(self._closed_by, {})
            await self._writer.written()
        finally:
            session_end.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await session_end


def _raw_id(line: dict[str, Any]) -> msgspec.Raw | None:
    if ID not in line:
        return None
    try:
        return msgspec.Raw(msgspec.json.encode(line[ID]))
    except (OverflowError, ValueError, TypeError, RecursionError) as error:
        raise BadLine(f'"id" cannot be given back: {error}') from error


async def _end_of(session: Session) -> RaskidError:
    """Wait for the end of a session, and give the reason."""
    try:
        # Of a list that nobody follows nothing changes: only the end of the session ends this.
        await session.next_change("")
    except RaskidError as error:
        return error
    raise AssertionError("a list without a name has changed")


def run_pipe(session: Session, input_fd: int = 0, output_fd: int = 1) -> None:
    """Be the gateway of a program at the other ends of two descriptors, until it ends its input; ends the session.

    Raises:
        SessionClosed: The system has ended, or is out of reach.
    """

    async def main() -> None:
        async with session as rk:
            await Gateway(rk, input_fd, output_fd).run()

    asyncio.run(main())
