"""What a session does for a program that speaks lines of JSON: holds its subscriptions, carries out its commands.

`COMMANDS` is the table of what such a program may ask for; `docs/pipe.md` describes each. A new command is a method
here and an entry there; those about subscriptions and reactions are in `raskid.client.receiving`. `raskid.client.pipe`
reads the lines and writes the answers.

Whatever comes from elsewhere is taken from the session only as fast as it can be told: messages wait in their
subscription, so that its policy holds their publishers up or leaves some out; of a record that changes several times
meanwhile the last value is told, and of a cell the last values; a request waits with its caller.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from raskid.client.commands import (
    Argument,
    BadLine,
    Command,
    closest,
    read_fields,
    read_flag,
    read_names,
    read_number,
    read_operations,
    read_plain,
    read_text,
    read_value,
    read_values,
)
from raskid.client.escapes import to_json
from raskid.client.notices import change_event, fields_to_json, named_error, value_event
from raskid.client.receiving import Receiving, Teller
from raskid.model.errors import Overflow, SessionClosed

if TYPE_CHECKING:
    from raskid.client.aio import AsyncSession, AsyncSharedDict
    from raskid.client.cells import AsyncCell, CellValues

#: So many requests of others may wait for an answer; further ones are refused at once.
REQUESTS_MAX = 10_000
#: So many lists and cells that are only written are kept at hand.
WRITTEN_MAX = 64


class _Watched(NamedTuple):
    cell: AsyncCell
    teller: asyncio.Task[None]


class _Followed:
    """A shared list whose changes are told."""

    def __init__(self, records: AsyncSharedDict) -> None:
        self.records = records
        #: What changed and was not told yet, the oldest first; None stands for the whole list.
        self.changed: dict[str | None, None] = {}
        self.word = asyncio.Event()
        self.ending = False
        self.teller: asyncio.Task[None] | None = None

    def on_change(self, _: object, key: str | None) -> None:
        """The list has changed."""
        if key is None:
            self.changed.clear()
        if None not in self.changed:
            self.changed[key] = None
        self.word.set()

    async def end(self) -> None:
        """Tell what is left, and follow it no longer."""
        self.ending = True
        self.word.set()
        if self.teller is not None:
            await self.teller
        self.records.close()


class Representative(Receiving):
    """Stands in a system for one program.

    Args:
        rk: The session; this runs in its event loop.
        teller: Where events for the program go.
    """

    def __init__(self, rk: AsyncSession, teller: Teller) -> None:
        super().__init__(rk, teller)
        self._lists: dict[str, _Followed] = {}
        self._cells: dict[str, _Watched] = {}
        #: Lists and cells that are only written, by kind and name, the one that was used last at the end.
        self._written: dict[tuple[str, str], Any] = {}
        self._services: set[str] = set()
        #: Requests of others that the program has not answered.
        self._requests: dict[int, asyncio.Future[Any]] = {}
        self._requests_count = 0
        self._ending = False

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What tells events, for whoever cannot wait until it has told them all."""
        tellers = [followed.teller for followed in self._lists.values() if followed.teller is not None]
        return [*super().tasks, *tellers, *(watched.teller for watched in self._cells.values())]

    # ── messages ──

    async def publish(self, given: dict[str, Any]) -> dict[str, Any]:
        """Publish a message."""
        await self._rk.publish(given["topic"], *given.get("args", ()), **given.get("fields", {}))
        return {}

    # ── requests ──

    async def request(self, given: dict[str, Any]) -> dict[str, Any]:
        """Ask whoever serves a name."""
        fields = given.get("fields", {})
        if "timeout" in fields:
            raise BadLine("a request has no field of the name 'timeout': its time limit is called so")
        options = {"timeout": given["timeout"]} if "timeout" in given else {}
        value = await self._rk.request(given["service"], *given.get("args", ()), **options, **fields)
        return {"value": to_json(value)}

    async def serve(self, given: dict[str, Any]) -> dict[str, Any]:
        """Tell the requests for a name from now on."""
        name = given["service"]
        if name in self._services:
            raise BadLine(f"{name!r} is served here already")
        await self._rk.serve(name, partial(self._ask_program, name))
        self._services.add(name)
        return {}

    async def unserve(self, given: dict[str, Any]) -> dict[str, Any]:
        """Take no more requests for it."""
        name = given["service"]
        if name not in self._services:
            raise BadLine(f"{name!r} is not served here{closest(name, self._services)}")
        self._services.discard(name)
        await self._rk.unserve(name)
        return {}

    async def _ask_program(self, service: str, /, *args: Any, **fields: Any) -> Any:
        """The handler of what the program serves."""
        if self._ending:
            raise SessionClosed(f"whoever serves {service!r} takes no more requests: its input has ended")
        if len(self._requests) >= REQUESTS_MAX:
            raise Overflow(f"whoever serves {service!r} has {REQUESTS_MAX:,} requests to answer, and takes no more")
        self._requests_count += 1
        number = self._requests_count
        answer = self._requests[number] = asyncio.get_running_loop().create_future()
        told = False

        def event() -> dict[str, Any]:
            nonlocal told
            told = True
            values = {"args": to_json(args), "fields": fields_to_json(fields)}
            return {"event": "request", "service": service, "request": number, **values}

        try:
            await self._tell_when_room(event)
            return await answer
        except asyncio.CancelledError:
            if told and number in self._requests:
                self._teller.tell({"event": "cancelled", "service": service, "request": number})
            raise
        finally:
            self._requests.pop(number, None)

    def reply(self, given: dict[str, Any]) -> dict[str, Any]:
        """Answer a request."""
        if ("value" in given) == ("error" in given) or ("text" in given and "error" not in given):
            raise BadLine("'reply' needs either 'value', or 'error' (a name such as \"ValueError\") and 'text'")
        number = given["request"]
        answer = self._requests.get(number) if type(number) is int else None
        if answer is None or answer.done():
            raise BadLine(
                f"request {number!r:.60} is not open: it was answered, or its caller gave up, or it never came"
            )
        if "value" in given:
            del self._requests[number]
            answer.set_result(given["value"])
        else:
            error = named_error(given["error"], given.get("text", ""))
            del self._requests[number]
            answer.set_exception(error)
        return {}

    # ── shared lists ──

    async def shared(self, given: dict[str, Any]) -> dict[str, Any]:
        """Give the records of a shared list, and tell its changes from now on."""
        name = given["name"]
        if name in self._lists:
            raise BadLine(f"the shared list {name!r} is followed already")
        records = await self._rk.shared(name)
        followed = self._lists[name] = _Followed(records)
        records.on_change(followed.on_change)
        followed.teller = asyncio.create_task(self._tell_changes(name, followed))
        return {"records": fields_to_json(records)}

    async def _tell_changes(self, name: str, followed: _Followed) -> None:
        while True:
            while followed.changed:
                await self._tell_when_room(partial(change_event, name, followed.records, followed.changed))
            if followed.ending:
                return
            followed.word.clear()
            await followed.word.wait()

    async def unshared(self, given: dict[str, Any]) -> dict[str, Any]:
        """Follow it no longer."""
        name = given["name"]
        followed = self._lists.pop(name, None)
        if followed is None:
            raise BadLine(f"the shared list {name!r} is not followed{closest(name, self._lists)}")
        await followed.end()
        return {}

    async def put(self, given: dict[str, Any]) -> dict[str, Any]:
        """Write a record."""
        records = await self._records(given["name"])
        await records.put(given["key"], given["value"], given.get("permanent", False))
        return {}

    async def delete(self, given: dict[str, Any]) -> dict[str, Any]:
        """Remove a record."""
        records = await self._records(given["name"])
        await records.delete(given["key"])
        return {}

    async def _records(self, name: str) -> AsyncSharedDict:
        followed = self._lists.get(name)
        if followed is not None:
            return followed.records
        records: AsyncSharedDict = await self._to_write("list", name, self._rk.shared)
        return records

    async def _to_write(self, kind: str, name: str, get: Callable[[str], Coroutine[Any, Any, Any]]) -> Any:
        """A handle that only writes, new or kept."""
        found = self._written.pop((kind, name), None)
        if found is None:
            found = await get(name)
            while len(self._written) >= WRITTEN_MAX:
                await _close(self._written.pop(next(iter(self._written))))
        self._written[kind, name] = found
        return found

    # ── cells ──

    async def cell(self, given: dict[str, Any]) -> dict[str, Any]:
        """Tell the value that a cell has, and those that it gets."""
        name = given["name"]
        if name in self._cells:
            raise BadLine(f"the cell {name!r} is followed already")
        cell = await self._rk.cell(name)
        self._cells[name] = _Watched(cell, asyncio.create_task(self._tell_values(name, cell.begin())))
        return {}

    async def _tell_values(self, name: str, values: CellValues) -> None:
        async for value in values:
            await self._tell_when_room(partial(value_event, name, value))

    async def uncell(self, given: dict[str, Any]) -> dict[str, Any]:
        """Follow it no longer."""
        name = given["name"]
        found = self._cells.pop(name, None)
        if found is None:
            raise BadLine(f"the cell {name!r} is not followed{closest(name, self._cells)}")
        await found.cell.close()
        await found.teller
        return {"dropped": found.cell.dropped}

    async def set(self, given: dict[str, Any]) -> dict[str, Any]:
        """Give a cell a value."""
        name = given["name"]
        watched = self._cells.get(name)
        cell = watched.cell if watched is not None else await self._to_write("cell", name, self._rk.cell)
        await cell.set(given["value"])
        return {}

    # ── the system ──

    async def topics(self, given: dict[str, Any]) -> dict[str, Any]:
        """The lists that the hub keeps."""
        return {"topics": await self._rk.topics(given.get("prefix", ""))}

    async def status(self, _: dict[str, Any]) -> dict[str, Any]:
        """How the system is, and who represents this program."""
        return {"peer": self._rk.session.peer.identity.peer, "status": to_json(await self._rk.status())}

    # ── the end ──

    def refuse_requests(self) -> None:
        """Nothing more comes from the program: what it has not answered it never will."""
        self._ending = True
        for answer in self._requests.values():
            if not answer.done():
                answer.set_exception(SessionClosed("whoever was to answer has ended its input"))

    async def end(self) -> list[BaseException]:
        """End all subscriptions, reactions, lists and cells, and tell what they hold; returns what went wrong."""
        ends: list[Coroutine[Any, Any, Any]] = self._ends()
        ends += [self.unshared({"name": name}) for name in self._lists]
        ends += [self.uncell({"name": name}) for name in self._cells]
        ends += [_close(handle) for handle in self._written.values()]
        outcomes = await asyncio.gather(*ends, return_exceptions=True)
        return [outcome for outcome in outcomes if isinstance(outcome, BaseException)]


async def _close(handle: Any) -> None:
    closing = handle.close()
    if inspect.isawaitable(closing):
        await closing


# ── The table ────────────────────────────────────────────────────────────────────────────────────────────────────────

_TEXT = Argument(read_text)
_PLAIN = Argument(read_plain, required=False)
_FLAG = Argument(read_flag, required=False)
_MESSAGE = {"args": Argument(read_values, required=False), "fields": Argument(read_fields, required=False)}

#: Of what delivers messages: a subscription, or a reaction.
_RECEIVED = {
    "topic": _TEXT, "as": Argument(read_text, required=False), "capacity": _PLAIN, "overflow": _PLAIN,
    "timeout": _PLAIN, "history": _PLAIN, "numbered": _FLAG, "one_of": _PLAIN, "choose_by": _PLAIN, "ack": _FLAG,
    "value": Argument(read_value, required=False),
}  # fmt: skip


def _lane(kind: str, argument: str) -> Callable[[dict[str, Any]], tuple[str, str]]:
    return lambda given: (kind, given[argument])


_in_topic = _lane("topic", "topic")
_in_list = _lane("list", "name")
_in_cell = _lane("cell", "name")
_in_service = _lane("service", "service")
_in_subscription = _lane("subscription", "as")


def _in_new_subscription(given: dict[str, Any]) -> tuple[str, str]:
    return "subscription", given.get("as", given["topic"])


#: The program has nothing more to say; `raskid.client.pipe` sees to it.
CLOSE = Command(lambda representative, given: {})

COMMANDS = {
    "publish": Command(Representative.publish, {"topic": _TEXT, **_MESSAGE}, _in_topic),
    "subscribe": Command(
        Representative.subscribe,
        {**_RECEIVED, "pull": _FLAG, "fields": Argument(read_names, required=False)}, _in_new_subscription,
    ),
    "ask": Command(
        Representative.ask, {"as": _TEXT, "count": Argument(read_number, required=False)}, _in_subscription
    ),
    "done": Command(
        Representative.done, {"as": _TEXT, "publisher": _TEXT, "number": Argument(read_number)}, _in_subscription
    ),
    "react": Command(
        Representative.react,
        {**_RECEIVED, "operations": Argument(read_operations), "priority": _PLAIN, "limit": _PLAIN, "place": _PLAIN,
         "seconds": _PLAIN, "permanent": _FLAG},
        _in_new_subscription,
    ),
    "suspend": Command(
        Representative.suspend, {"as": _TEXT, "why": Argument(read_text, required=False)}, _in_subscription
    ),
    "resume": Command(Representative.resume, {"as": _TEXT}, _in_subscription),
    "reactions": Command(Representative.reactions, {"topic": _TEXT}),
    "remove_reaction": Command(Representative.remove_reaction, {"topic": _TEXT, "reaction": _TEXT}),
    "resume_reaction": Command(Representative.resume_reaction, {"topic": _TEXT, "reaction": _TEXT}),
    "unsubscribe": Command(Representative.unsubscribe, {"as": _TEXT}, _in_subscription),
    "request": Command(Representative.request, {"service": _TEXT, **_MESSAGE, "timeout": _PLAIN}),
    "serve": Command(Representative.serve, {"service": _TEXT}, _in_service),
    "unserve": Command(Representative.unserve, {"service": _TEXT}, _in_service),
    "reply": Command(
        Representative.reply,
        {"request": Argument(read_plain), "value": Argument(read_value, required=False),
         "error": Argument(read_text, required=False), "text": Argument(read_text, required=False)},
    ),
    "shared": Command(Representative.shared, {"name": _TEXT}, _in_list),
    "unshared": Command(Representative.unshared, {"name": _TEXT}, _in_list),
    "put": Command(
        Representative.put, {"name": _TEXT, "key": _TEXT, "value": Argument(read_value), "permanent": _PLAIN}, _in_list
    ),
    "delete": Command(Representative.delete, {"name": _TEXT, "key": _TEXT}, _in_list),
    "cell": Command(Representative.cell, {"name": _TEXT}, _in_cell),
    "uncell": Command(Representative.uncell, {"name": _TEXT}, _in_cell),
    "set": Command(Representative.set, {"name": _TEXT, "value": Argument(read_value)}, _in_cell),
    "topics": Command(Representative.topics, {"prefix": _PLAIN}),
    "status": Command(Representative.status),
    "close": CLOSE,
}  # fmt: skip
