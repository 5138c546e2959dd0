"""Shared dictionaries, as a user holds them. The asynchronous twin of `SharedDict` is in `raskid.client.aio`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, TypeVar

from raskid.client.callbacks import Callback
from raskid.client.changes import Changes
from raskid.client.checks import (
    check_callable,
    check_count,
    check_flag,
    check_key,
    check_limit,
    check_seconds,
    encode_record,
)
from raskid.client.futures import Future
from raskid.client.waiting import result_of
from raskid.core.events import UnwatchList
from raskid.model.errors import WaitTimeout
from raskid.model.topics import SHARED, list_name
from raskid.protocol.messages import DeleteRecord, PutRecord, Record
from raskid.protocol.reactions import CAPACITY_MAX
from raskid.protocol.values import decode_value

if TYPE_CHECKING:
    from raskid.client.cells import Cell, CellHandle
    from raskid.client.topics import Topics

    C = TypeVar("C", bound=CellHandle)

PUT_S = 10.0


class SharedDict(MutableMapping[str, Any]):
    """A shared dictionary: every process sees the same records, and their changes in the same order.

    Records die with the process that wrote them, or are permanent (`put(key, value, permanent=True)`). Reading is
    local; writing returns when the change is seen here. Keys are text of at most 1,024 characters, values what
    messages carry, up to 256 kB each. Each `rk.shared(name)` gives a handle of its own; a closed one can no longer be
    used, and leaves the others alone.
    """

    def __init__(self, session: Topics, topic: str) -> None:
        self._session = session
        self.name = topic
        self._list = list_name(SHARED, topic)
        self._callbacks: list[Callable[[str | None], None]] = []
        self._readers: list[Changes] = []
        self._closed = False

    @property
    def _records(self) -> dict[str, Record]:
        self._check_open()
        return self._session.replica(self._list).records

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"this handle on shared list {self.name!r} was closed; get another: rk.shared(...)")

    # ── reading: what is known here ──

    @property
    def version(self) -> int:
        """The number of the last change seen here."""
        self._check_open()
        return self._session.replica(self._list).version

    def __getitem__(self, key: str) -> Any:
        with self._session.engine.lock:
            value = self._record(key).value
        return decode_value(value)

    def _record(self, key: str) -> Record:
        try:
            return self._records[key]
        except KeyError:
            raise KeyError(f"shared list {self.name!r} has no record {key!r:.60}") from None

    def owner(self, key: str) -> str:
        """The peer that wrote a record; empty for a permanent one. Raises KeyError when there is none."""
        return str(self._record(key).owner)

    def __iter__(self) -> Iterator[str]:
        with self._session.engine.lock:
            return iter(list(self._records))

    def __len__(self) -> int:
        return len(self._records)

    # ── writing ──

    def put_nowait(self, key: str, value: Any, permanent: bool = False) -> Future:
        """As `put`, without waiting: the future is done when the change is seen here."""
        self._check_open()
        session = self._session
        key = check_key(self.name, key)
        data = encode_record(f"{key[:60]!r} of shared list {self.name!r}", value)
        # The hub tells readers of a change before it answers whoever made it, so this answer comes behind the change.
        return session.ask(PutRecord(session.request_id(), self._list, key, data, check_flag("permanent", permanent)))

    def put(self, key: str, value: Any, permanent: bool = False, timeout: float = PUT_S) -> None:
        """Write a record.

        Args:
            key: Its name, text of at most 1,024 characters.
            value: What messages carry, up to 256 kB.
            permanent: It outlives this process, and anybody may change it.
            timeout: How long to wait for the hub, in seconds.

        Raises:
            NotAllowed: It belongs to another process.
            TypeError, ValueError: An argument cannot be used; the text says which and why.
            WaitTimeout: The hub did not confirm it in time; it may still come.
        """
        timeout = check_seconds("timeout", timeout)
        result_of(self.put_nowait(key, value, permanent), timeout, self.unconfirmed("write", key))

    def delete_nowait(self, key: str) -> Future:
        """As ``del``, without waiting: the future is done when the record is gone here."""
        self._record(key)
        session = self._session
        return session.ask(DeleteRecord(session.request_id(), self._list, str.__str__(key)))

    def unconfirmed(self, what: str, key: str) -> str:
        """What to say when the hub does not answer."""
        verb = {"write": "the writing", "delete": "the deletion"}[what]
        return f"the hub did not confirm {verb} of record {key[:60]!r} of shared list {self.name!r}"

    def __setitem__(self, key: str, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: str) -> None:
        result_of(self.delete_nowait(key), PUT_S, self.unconfirmed("delete", key))

    # ── changes ──

    def wait(self, condition: Callable[[SharedDict], bool], timeout: float | None = None) -> None:
        """Wait until `condition(self)` holds; it is looked at after each change.

        Raises:
            WaitTimeout: It does not within `timeout` seconds.
        """
        self._check_open()
        check_callable("condition", condition)
        timeout = check_limit("timeout", timeout)
        if not self._session.engine.wait(lambda: condition(self), timeout):
            raise WaitTimeout(f"the condition on shared list {self.name!r} did not hold within {timeout:g} s")

    def change_nowait(self) -> Future:
        """A future that is done when the list changes next, or the session ends."""
        self._check_open()
        return self._session.next_change(self._list)

    def on_change(self, callback: Callable[[SharedDict, str | None], Any]) -> None:
        """Call `callback(self, key)` after every change from now on, in order; it may be a coroutine function.

        `key` names the record that was put or deleted. It is None in the rare case that the whole list was read anew,
        when anything may have changed. What is in the list already is not reported: look at it after this call.
        """
        self._check_open()
        check_callable("callback", callback)
        # What was due when the handle was closed is not called any more either.
        line = Callback(self._session.engine, lambda key: None if self._closed else callback(self, key))

        def changed(key: str | None) -> None:
            line.call_soon(key)

        with self._session.engine.lock:
            self._callbacks.append(changed)
            self._session.list_callbacks.setdefault(self._list, []).append(changed)

    # ── single records ──

    def cell(self, key: str, permanent: bool = False) -> Cell:
        """Open one key as a cell, whose handle lives on when this one is closed.

        Args:
            key: The name of the record, which need not be there yet.
            permanent: A value that is set through it outlives this process, and anybody may change it.
        """
        from raskid.client.cells import Cell

        return self.cell_of(Cell, key, permanent)

    def cell_of(self, kind: type[C], key: str, permanent: bool) -> C:
        """As `cell`, for a handle of this kind."""
        from raskid.client.declarations import Gate

        self._check_open()
        key, permanent = check_key(self.name, key), check_flag("permanent", permanent)
        session = self._session
        cell = kind(
            session, (self._list, key), Gate(session, f"cell {key[:60]!r} of shared list {self.name!r}"), permanent
        )
        # The state is here already: this handle follows the list.
        session.follow_nowait(self._list)
        cell.enter()
        return cell

    def changes(self, capacity: int = 1024) -> Changes:
        """Read the changes from now on, one after the other: with ``for``, ``async for`` or `get`; each is a `Change`.

        Args:
            capacity: So many may wait; beyond that the oldest are left out, and counted in `dropped`.
        """
        self._check_open()
        capacity = check_count("capacity", capacity, 1, CAPACITY_MAX)
        changes = Changes(self._session, self._list, f"shared list {self.name!r}", capacity)
        self._readers.append(changes)
        return changes

    # ── the end ──

    def close(self) -> None:
        """Follow it no longer with this handle; its callbacks are not called any more. Records stay."""
        session = self._session
        with session.engine.lock:
            if self._closed:
                return
            self._closed = True
            all_of = session.list_callbacks.get(self._list, [])
            left = [callback for callback in all_of if callback not in self._callbacks]
            if left:
                session.list_callbacks[self._list] = left
            else:
                session.list_callbacks.pop(self._list, None)
        for changes in self._readers:
            changes.close()
        session.engine.tell(UnwatchList(self._list))

    def __enter__(self) -> SharedDict:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<raskid.SharedDict {self.name!r}: {'closed' if self._closed else repr(dict(self))}>"
