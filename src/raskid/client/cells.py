"""Cells, as a user holds them: the last value of something, and every change of it.

A cell's value is a record of the hub, so all readers see its changes in one order, and newcomers get it with the list's
state (see `docs/design/018-cells-are-records.md`). The blocking face and the one for asyncio share everything that does
not wait, and what waits is written once as steps.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from raskid.client.callbacks import Callback
from raskid.client.checks import check_callable, check_limit, check_seconds, encode_record
from raskid.client.declarations import Gate
from raskid.client.futures import Future
from raskid.client.reading import Source, Values
from raskid.client.shared import PUT_S
from raskid.client.waiting import Steps, take_steps, take_steps_in
from raskid.core.events import UnwatchList
from raskid.model.errors import SessionClosed, WaitTimeout
from raskid.model.topics import CELLS, check_list_name
from raskid.protocol.messages import DeleteRecord, PutRecord, Record
from raskid.protocol.values import decode_value

if TYPE_CHECKING:
    from raskid.client.topics import Topics

#: So many changes may wait for a loop or callback.
CAPACITY = 1024
#: Names of records in a cell's list: its value, and what it may hold.
VALUE = "value"
DECLARATION = "declaration"


class CellValues(Values):
    """The values of a cell, one after the other, the present one first.

    At most `capacity` wait here; beyond that the oldest are left out, and counted in the cell's `dropped`.
    """

    def __init__(self, cell: CellHandle, capacity: int) -> None:
        self._cell = cell
        self._capacity = capacity
        #: The session's lock guards what is added; taking one off is atomic by itself.
        self._waiting: deque[bytes] = deque()

    def arrived(self, data: bytes) -> bool:
        """Keep a value, under the session's lock; whether one more waits now."""
        self._waiting.append(data)
        if len(self._waiting) <= self._capacity:
            return True
        self._waiting.popleft()
        self._cell.dropped += 1
        return False

    def pop(self) -> bytes | None:
        """The next value, if one is here."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def _taking(self, timeout: float | None) -> Steps[tuple[Any] | None]:
        cell = self._cell
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with cell.lock:
                data = self.pop()
                if data is None:
                    if cell.closed:
                        return None
                    try:
                        future = cell.next_change()
                    except SessionClosed:
                        return None
            if data is not None:
                return (decode_value(data),)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                yield future, left, cell.what
            except SessionClosed:
                return None
            except WaitTimeout:
                raise self.too_late(timeout or 0.0) from None

    def take(self, timeout: float | None) -> tuple[Any] | None:
        """As `Values.take`."""
        data = self.pop()
        return (decode_value(data),) if data is not None else take_steps(self._taking(timeout))

    async def take_in(self) -> tuple[Any] | None:
        """As `Values.take_in`."""
        data = self.pop()
        return (decode_value(data),) if data is not None else await take_steps_in(self._taking(None))

    def at_end(self) -> NoReturn:
        """As `Values.at_end`."""
        self._cell.check_open()
        raise SessionClosed(f"no more values of {self._cell.what}: the session has ended")

    def too_late(self, timeout: float) -> WaitTimeout:
        """As `Values.too_late`."""
        return WaitTimeout(f"{self._cell.what} had no new value within {timeout:g} s")

    def get(self, timeout: float | None = None) -> Any:
        """The next value; raises `WaitTimeout` after `timeout` seconds, ValueError or `SessionClosed` at the end."""
        return self._get(timeout)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __aiter__(self) -> AsyncIterator[Any]:
        return self


class CellHandle(Source):
    """What the two faces of a cell have in common.

    Attributes:
        what: What it is called in texts.
        address: Where its value is: the name of a list and of a record in it.
        permanent: Whether what is set here stays when this process goes.
        dropped: How many changes were left out because a loop or callback of this handle was too slow.
        closed: Whether this handle was closed.
    """

    def __init__(
        self, session: Topics, address: tuple[str, str], gate: Gate, permanent: bool, capacity: int = CAPACITY
    ) -> None:  # fmt: skip
        self._session = session
        self.what = gate.what
        self.address = address
        self.permanent = permanent
        self.dropped = 0
        self.closed = False
        self._capacity = capacity
        self._gate = gate
        #: The record as the list has it, and as this handle gives it: the last one that fits.
        self._seen: Record | None = None
        self._present: Record | None = None
        #: Loops that are over are forgotten with their iterators.
        self._loops: weakref.WeakSet[CellValues] = weakref.WeakSet()
        self._calls: list[tuple[CellValues, Callback]] = []
        self._change: Future | None = None
        #: Values that are to be published once the hub has agreed, with its answers, in the order of the calls; and
        #: held by whoever publishes them, so that they keep that order.
        self._unpublished: deque[tuple[Future, bytes]] = deque()
        self._publishing = threading.Lock()

    @property
    def lock(self) -> Any:
        """The session's lock, which is another one in a process that was forked."""
        return self._session.engine.lock

    def enter(self) -> None:
        """Its list is followed and known: be told of its changes from now on."""
        with self.lock:
            self._session.cells.setdefault(self.address[0], weakref.WeakSet()).add(self)
            self.changed(None)

    # ── by the session, under its lock ──

    def changed(self, record: str | None, put: Record | None = None) -> None:
        """The list has changed in this record, which was put or deleted; None: it was read anew."""
        name, key = self.address
        if record is None:
            put = self._session.replica(name).records.get(key)
            if put == self._seen:
                return
        elif record != key:
            return
        self._seen = found = put
        if found is not None and not self._fits(found.value):
            return
        self._present = found
        if found is not None:
            for values in list(self._loops):
                values.arrived(found.value)
            for values, line in self._calls:
                if values.arrived(found.value):
                    line.call_soon(values)
        self.wake()

    def _fits(self, data: bytes) -> bool:
        return self._gate.admits_all() or self._gate.admit(lambda: decode_value(data)) is not None

    def wake(self) -> None:
        """Have those who wait for a change look again."""
        change, self._change = self._change, None
        if change is not None:
            change.resolve_with(None)

    def abandon(self) -> None:
        """In a process that was forked: those who wait are not here."""
        self._change = None
        self._unpublished.clear()
        self._publishing = threading.Lock()

    def failed(self, error: Exception) -> None:
        """The session has ended."""
        change, self._change = self._change, None
        if change is not None:
            change.fail_with(error)

    # ── reading ──

    def check_open(self) -> None:
        """Raise ValueError when this handle was closed."""
        if self.closed:
            raise ValueError(f"this handle on {self.what} was closed; open it again")

    def next_change(self) -> Future:
        """Under the lock: a future that is done when something changes, or the handle is closed."""
        self._session.still_alive()
        if self._change is None:
            self._change = Future(self._session.engine, name=f"a change of {self.what}")
        return self._change

    def _record(self) -> Record:
        self.check_open()
        present = self._present
        if present is None:
            self._check_seen()
            raise LookupError(
                f"{self.what} has no value: nobody has set it, or it was cleared, or its writer has gone. wait() waits "
                "for a value, and get(default) does without"
            )
        return present

    def _check_seen(self) -> None:
        """Raise ValueError when there is a value, and it is one that this handle does not give."""
        seen = self._seen
        if seen is None:
            return
        try:
            shown = f"{decode_value(seen.value)!r:.60}"
        except Exception:
            # Anybody may write records.
            shown = f"{len(seen.value):,} bytes that are no value"
        raise ValueError(
            f"{self.what} holds {shown}, which does not fit what is declared ({self._gate.standing}); somebody set it "
            "who did not look. Set another value. Until then wait() waits for one that fits, and get(default) does "
            "without"
        )

    @property
    def value(self) -> Any:
        """The present value, as far as it is known here, or the last one that fitted what is declared. It is a copy.

        Raises:
            LookupError: There is none.
            ValueError: There is one that does not fit, and none that did has been seen here.
        """
        return decode_value(self._record().value)

    def get(self, default: Any = None) -> Any:
        """The present value, or `default` while there is none that fits what is declared."""
        self.check_open()
        present = self._present
        return default if present is None else decode_value(present.value)

    @property
    def writer(self) -> str:
        """The peer that set the value, which goes with it; empty when it is permanent. Raises LookupError while there
        is none."""
        return str(self._record().owner)

    @property
    def version(self) -> int:
        """The number of the last change that was seen here: of the cell's list, or of the shared dictionary."""
        self.check_open()
        return self._session.replica(self.address[0]).version

    @property
    def rejected(self) -> int:
        """How many values came that did not fit what is declared, and were left out."""
        return self._gate.rejected

    def begin(self) -> CellValues:
        """Begin to read: the present value, if there is one, and then every change."""
        values = CellValues(self, self._capacity)
        with self.lock:
            self.check_open()
            if self._present is not None:
                values.arrived(self._present.value)
            self._loops.add(values)
        return values

    def __aiter__(self) -> AsyncIterator[Any]:
        return self.begin()

    def call_with_values(self, callback: Callable[[Any], Any]) -> None:
        """Call `callback(value)` with the present value, if there is one, and then with every change."""
        check_callable("callback", callback)
        values = CellValues(self, self._capacity)

        def call(values: CellValues) -> Any:
            data = None if self.closed else values.pop()
            return None if data is None else callback(decode_value(data))

        line = Callback(self._session.engine, call)
        with self.lock:
            self.check_open()
            if self._present is not None:
                values.arrived(self._present.value)
                line.call_soon(values)
            self._calls.append((values, line))
            self._session.called_cells.add(self)

    def _waiting(self, condition: Callable[[Any], Any] | None, timeout: float | None) -> Steps[Any]:
        if condition is not None:
            check_callable("condition", condition)
        limit = check_limit("timeout", timeout)
        deadline = None if limit is None else time.monotonic() + limit
        while True:
            with self.lock:
                self.check_open()
                present, future = self._present, None
                if present is None or condition is not None:
                    future = self.next_change()
            if present is not None:
                value = decode_value(present.value)
                if condition is None or condition(value):
                    return value
            assert future is not None
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                yield future, left, self.what
            except WaitTimeout:
                wish = "was not set" if condition is None else "did not satisfy the condition"
                raise WaitTimeout(f"{self.what} {wish} within {limit:g} s") from None

    # ── writing ──

    @property
    def topic(self) -> str | None:
        """The topic on which its values are published too; None for a key of a shared dictionary."""
        kind, name = check_list_name(self.address[0])
        return name if kind == CELLS else None

    def set_nowait(self, value: Any) -> Future:
        """As `set`, without waiting: the future is done when the change is seen here.

        Links and other reactions to the cell get the value after that, in the order of the calls of this handle, and
        not at all when the hub refuses it.
        """
        future = self._putting(value)
        self._publish_after(future)
        return future

    def _putting(self, value: Any) -> Future:
        """Ask the hub to set the value; what it answers decides whether it is published."""
        self.check_open()
        self._gate.check(value)
        session = self._session
        name, key = self.address
        data = encode_record(self.what, value)
        # The hub tells readers of a change before it answers whoever made it, so this answer comes behind the change.
        put = PutRecord(session.request_id(), name, key, data, self.permanent)
        topic = self.topic
        plan = session.plan_of(topic) if topic is not None else ()
        if topic is None or plan == ():
            return session.ask(put)
        # A cell is a channel too: reactions to it, such as links from it, get every value that is set.
        if plan is None:
            session.announce_nowait(topic)
        with self.lock:
            future = session.ask(put)
            self._unpublished.append((future, data))
            session.publishing_cells.add(self)
        return future

    def _publish_after(self, future: Future) -> None:
        """Publish what is due now, or when the hub has answered."""
        if not self._unpublished:
            return
        if future.done():
            self.publish_due()
        else:
            future.add_done_callback(self.publish_due)

    def publish_due(self, _: Any = None) -> None:
        """Publish the values that the hub has agreed to, in their order."""
        unpublished = self._unpublished
        # Looked at again after the lock was given back: somebody may have found it taken just then, and left.
        while unpublished and unpublished[0][0].done():
            if not self._publishing.acquire(blocking=False):
                return
            try:
                while unpublished and unpublished[0][0].done():
                    future, data = unpublished.popleft()
                    if future.exception(0) is None:
                        self._publish(data)
            finally:
                self._publishing.release()
        with self.lock:
            if not unpublished:
                self._session.publishing_cells.discard(self)

    def _publish(self, data: bytes) -> None:
        topic = self.topic
        if topic is not None and self._session.plan_of(topic) != ():
            with contextlib.suppress(SessionClosed):
                self._session.begin_publish(topic, (decode_value(data),), {}, waits=False)

    def clear_nowait(self) -> Future:
        """As `clear`, without waiting: the future is done when the value is gone here."""
        self.check_open()
        session = self._session
        return session.ask(DeleteRecord(session.request_id(), *self.address))

    def _setting(self, value: Any, timeout: float) -> Steps[None]:
        limit = check_seconds("timeout", timeout)
        future = self._putting(value)
        try:
            yield future, limit, f"the hub did not confirm the setting of {self.what}"
        finally:
            # Also where time was up: the answer may still come.
            self._publish_after(future)

    def _clearing(self, timeout: float) -> Steps[None]:
        limit = check_seconds("timeout", timeout)
        yield self.clear_nowait(), limit, f"the hub did not confirm the clearing of {self.what}"

    # ── the end ──

    def _close(self) -> None:
        session = self._session
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self._calls.clear()
            session.called_cells.discard(self)
            handles = session.cells[self.address[0]]
            handles.discard(self)
            if not handles:
                del session.cells[self.address[0]]
            self.wake()
        session.engine.tell(UnwatchList(self.address[0]))
        # Other threads may be waiting for a change.
        session.engine.rouse()

    def __repr__(self) -> str:
        if self.closed:
            state = "closed"
        elif self._present is not None:
            state = f"{self.get()!r:.60}"
        else:
            state = "no value" if self._seen is None else "a value that does not fit"
        return f"<raskid.{type(self).__name__}, {self.what}: {state}>"


class Cell(CellHandle):
    """The last value of something: everybody who opens it gets it at once, and every change of it in the same order.

    Reading is local; setting returns when the change is seen here. Values are what messages carry, up to 256 kB. A loop
    over a cell (``for``, ``async for``) gives the present value first and then every change; each loop has its own.
    Leave it with `close`, or ``with``; the value stays as `permanent` says.
    """

    def set(self, value: Any, timeout: float = PUT_S) -> None:
        """Set the value.

        Args:
            value: What messages carry, up to 256 kB.
            timeout: How long to wait for the hub, in seconds.

        Raises:
            TypeError, ValueError: It does not fit what is declared, or is too large, or the handle was closed.
            NotAllowed: The value belongs to another process, which set it as not permanent.
            WaitTimeout: The hub did not confirm it in time; it may still come.
        """
        take_steps(self._setting(value, timeout))

    def clear(self, timeout: float = PUT_S) -> None:
        """Take the value away. Clearing a cell without a value is no error."""
        take_steps(self._clearing(timeout))

    def wait(self, condition: Callable[[Any], Any] | None = None, timeout: float | None = None) -> Any:
        """Wait until there is a value, and `condition(value)` holds; returns the value. Values that were replaced
        before this could look at them are skipped; a loop skips none.

        Raises:
            WaitTimeout: It does not come about within `timeout` seconds.
        """
        return take_steps(self._waiting(condition, timeout))

    def on_value(self, callback: Callable[[Any], Any]) -> None:
        """Call `callback(value)` with the present value, if there is one, and then with every change, one after the
        other, on the session's callback threads or in its event loop; it may be a coroutine function."""
        self.call_with_values(callback)

    def close(self) -> None:
        """Follow it no longer with this handle; its loops end, and its callbacks are not called any more."""
        self._close()

    def __iter__(self) -> Iterator[Any]:
        return self.begin()

    def __enter__(self) -> Cell:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()


class AsyncCell(CellHandle):
    """What ``await rk.cell(name)`` gives: a `Cell` that is read as one, and whose other calls are awaited."""

    async def set(self, value: Any, timeout: float = PUT_S) -> None:
        """As `Cell.set`."""
        await take_steps_in(self._setting(value, timeout))

    async def clear(self, timeout: float = PUT_S) -> None:
        """As `Cell.clear`."""
        await take_steps_in(self._clearing(timeout))

    async def wait(self, condition: Callable[[Any], Any] | None = None, timeout: float | None = None) -> Any:
        """As `Cell.wait`."""
        return await take_steps_in(self._waiting(condition, timeout))

    async def on_value(self, callback: Callable[[Any], Any]) -> None:
        """As `Cell.on_value`."""
        self.call_with_values(callback)

    async def close(self) -> None:
        """As `Cell.close`."""
        self._close()

    async def __aenter__(self) -> AsyncCell:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._close()
