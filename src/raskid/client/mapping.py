"""The result of a map: a lazy sequence."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from raskid.model.errors import WaitTimeout
from raskid.model.ids import TaskId
from raskid.services.calling import load_error

if TYPE_CHECKING:
    from raskid.client.engine import Engine


class _Chunk:
    __slots__ = ("count", "errors", "failure", "first", "raw", "task", "values")

    def __init__(self, task: TaskId, first: int, count: int) -> None:
        self.task = task
        self.first = first
        self.count = count
        self.raw: bytes | None = None
        self.values: list[Any] | None = None
        self.errors: dict[int, bytes] = {}
        self.failure: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.raw is not None or self.values is not None or self.failure is not None

    def is_done(self) -> bool:
        """The same, as a condition to wait for."""
        return self.done

    def open(self) -> list[Any]:
        """The values of the run; those of items that failed are None."""
        if self.failure is not None:
            raise self.failure
        if self.values is None:
            assert self.raw is not None
            self.values, self.errors = pickle.loads(self.raw)
            self.raw = None
        return self.values


class MapResult(Sequence[Any]):
    """Values of a map, in the order of the items. Looking at one waits for it; an item that failed raises there."""

    def __init__(self, engine: Engine, count: int) -> None:
        self._engine = engine
        self._count = count
        self._chunks: list[_Chunk] = []
        self._by_task: dict[TaskId, _Chunk] = {}
        self._left = 0

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
            chunk.failure = load_error(raw)
        self._left -= 1

    def chunk_failed(self, task: TaskId, error: BaseException) -> None:
        """A run of items has no values and will have none."""
        self._by_task.pop(task).failure = error
        self._left -= 1

    def fail_with(self, error: BaseException) -> None:
        """The session is over."""
        for task in list(self._by_task):
            self.chunk_failed(task, error)

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
            f"<raskid.MapResult of {self._count} items, {len(self._chunks) - self._left}/{len(self._chunks)} runs done>"
        )

    def __del__(self) -> None:
        for chunk in self._chunks:
            self._engine.release(chunk.task)
