"""The result of a map: a lazy sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from raskid.client.futures import check_timeout
from raskid.model.errors import TaskLost, WaitTimeout
from raskid.model.ids import TaskId
from raskid.services.calling import load_error, load_value

if TYPE_CHECKING:
    from raskid.client.engine import Engine


class _Chunk:
    __slots__ = ("count", "errors", "failure", "first", "raw", "raw_failure", "task", "values")

    def __init__(self, task: TaskId, first: int, count: int) -> None:
        self.task = task
        self.first = first
        self.count = count
        self.raw: bytes | None = None
        self.values: list[Any] | None = None
        self.errors: dict[int, bytes] = {}
        #: Why there are no values at all: as an exception, or pickled.
        self.failure: BaseException | None = None
        self.raw_failure: bytes | None = None

    @property
    def done(self) -> bool:
        return (
            self.raw is not None or self.values is not None or self.failure is not None or self.raw_failure is not None
        )

    def is_done(self) -> bool:
        """The same, as a condition to wait for."""
        return self.done

    def open(self) -> list[Any]:
        """The values of the run; those of items that failed are None."""
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        if self.raw_failure is not None:
            raise load_error(self.raw_failure)
        raw = self.raw
        if self.values is None and raw is not None:
            try:
                values, self.errors = load_value(raw)
            except Exception as error:
                error.add_note(f"(while the values of {self.items()} were unpickled in the script)")
                raise
            # In this order: another thread may look at the same moment.
            self.values = values
            self.raw = None
        assert self.values is not None
        return self.values

    def items(self) -> str:
        """Which items these are."""
        return f"items {self.first} to {self.first + self.count - 1}" if self.count > 1 else f"item {self.first}"


class MapResult(Sequence[Any]):
    """Values of a map, in the order of the items. Looking at one waits for it; an item that failed raises there."""

    def __init__(self, engine: Engine, count: int, name: str = "") -> None:
        self._engine = engine
        self._count = count
        self._name = name or "a function"
        self._chunks: list[_Chunk] = []
        self._by_task: dict[TaskId, _Chunk] = {}
        self._left = 0
        self._when_done: list[Callable[[], None]] = []

    # ── by the session ──

    def chunk_of(self, task: TaskId, first: int, count: int) -> None:
        """A run of items was submitted as `task`."""
        chunk = _Chunk(task, first, count)
        self._chunks.append(chunk)
        self._by_task[task] = chunk
        self._left += 1

    def chunk_done(self, task: TaskId, ok: bool, raw: bytes) -> None:
        """A run of items has its values, or could not be run at all."""
        chunk = self._by_task.pop(task)
        if ok:
            chunk.raw = raw
        else:
            # Unpickled by whoever looks at it: that is the user's code, and has no place under the session's lock.
            chunk.raw_failure = raw
        self._one_less()

    def chunk_failed(self, task: TaskId, error: BaseException) -> None:
        """A run of items has no values and will have none."""
        chunk = self._by_task.pop(task)
        if isinstance(error, TaskLost):
            together = ", which ran together: any of them may have ended the runner" if chunk.count > 1 else ""
            error.args = (f"{error} ({chunk.items()} of the map of {self._name}{together})", *error.args[1:])
        chunk.failure = error
        self._one_less()

    def fail_with(self, error: BaseException) -> None:
        """The session is over."""
        for task in list(self._by_task):
            self.chunk_failed(task, error)

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call this, under the session's lock, once all values are here; now, if they are."""
        with self._engine.lock:
            if self._left:
                self._when_done.append(callback)
                return
        callback()

    def _one_less(self) -> None:
        self._left -= 1
        if not self._left:
            callbacks, self._when_done = self._when_done, []
            for callback in callbacks:
                callback()

    # ── by the user ──

    def done(self) -> bool:
        """Whether all values are here."""
        return self._left == 0

    def values(self, timeout: float | None = None) -> list[Any]:
        """All values, in order.

        Raises:
            WaitTimeout: They are not here within `timeout` seconds.
            Exception: What the first failed item raised.
        """
        if timeout is not None:
            check_timeout(timeout)
        if not self._engine.wait(self.done, timeout):
            raise WaitTimeout(f"{self!r} is not done after {timeout:g} s")
        out: list[Any] = []
        for chunk in self._chunks:
            out += chunk.open()
            if chunk.errors:
                raise load_error(chunk.errors[min(chunk.errors)])
        return out

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(self._count))]
        if index < 0:
            index += self._count
        if not 0 <= index < self._count:
            raise IndexError(f"a map of {self._count} items has no item {index}")
        chunk = self._chunks[index // self._chunks[0].count]
        self._engine.wait(chunk.is_done)
        values = chunk.open()
        at = index - chunk.first
        if at in chunk.errors:
            raise load_error(chunk.errors[at])
        return values[at]

    def __iter__(self) -> Iterator[Any]:
        for chunk in self._chunks:
            if not chunk.done:
                self._engine.wait(chunk.is_done)
            values = chunk.open()
            if not chunk.errors:
                yield from values
                continue
            for at, value in enumerate(values):
                if at in chunk.errors:
                    raise load_error(chunk.errors[at])
                yield value

    def __repr__(self) -> str:
        return (
            f"<raskid.MapResult of {self._name}, {self._count} items: "
            f"{len(self._chunks) - self._left}/{len(self._chunks)} runs done>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("the result of a map is no argument of a task: give it the values, session.gather(result)")

    def __del__(self) -> None:
        for chunk in self._chunks:
            self._engine.release(chunk.task)
