"""Channels and cells, as a user opens them.

Opening either follows one list of the hub, which holds what was declared, and for a cell its value too. The calls of
the handles are in `raskid.client.channels` and `raskid.client.cells`.
"""

from __future__ import annotations

from typing import Any, TypeVar

from raskid.client.cells import CAPACITY, DECLARATION, VALUE, Cell, CellHandle
from raskid.client.channels import Channel, ChannelHandle
from raskid.client.checks import check_count, check_flag, check_name
from raskid.client.declarations import Declaration, Gate, declare, follow_steps
from raskid.client.engine import fresh
from raskid.client.reading import Joined, when_all
from raskid.client.topics import FOLLOW_S, Topics
from raskid.client.waiting import Steps, take_steps
from raskid.core.effects import ListChanged
from raskid.model.errors import RaskidError
from raskid.model.topics import CELLS, CHANNELS, list_name
from raskid.protocol.reactions import BLOCK, CAPACITY_MAX, OVERFLOWS

H = TypeVar("H", bound=ChannelHandle)
C = TypeVar("C", bound=CellHandle)


class Flows(Topics):
    """The part of a session that opens channels and cells."""

    # ── what the machines tell, under the lock ──

    def _on_list_changed(self, effect: ListChanged) -> None:
        for cell in list(self.cells.get(effect.name, ())):
            cell.changed(effect.record, effect.put)
        super()._on_list_changed(effect)

    def _fail(self, error: RaskidError) -> None:
        super()._fail(error)
        with self.engine.lock:
            for cells in list(self.cells.values()):
                for cell in list(cells):
                    cell.failed(fresh(error))

    def abandon(self) -> None:
        """As `Connection.abandon`."""
        for cells in list(self.cells.values()):
            for cell in list(cells):
                cell.abandon()
        self.publishing_cells.clear()
        super().abandon()

    def _unwritten(self) -> bool:
        """As `Connection._unwritten`; what cells are still to publish counts as well, and is published here if it can
        be."""
        for cell in list(self.publishing_cells):
            cell.publish_due()
        return bool(self.publishing_cells) or super()._unwritten()

    def is_used(self) -> bool:
        """As `Connection.is_used`; callbacks of cells count as well."""
        return bool(self.called_cells) or super().is_used()

    # ── channels ──

    def channel(
        self, name: str, type: Any = None, min: Any = None, max: Any = None, shape: Any = None, *,
        capacity: int = CAPACITY, overflow: str = BLOCK,
    ) -> Channel:  # fmt: skip
        """Open a channel: a stream of values, one to each message of the topic `name`.

        Type and range are checked before a value is sent, and when one has come. The first who declares any of them
        declares them for all; a handle that declares nothing takes over what was declared.

        Args:
            name: The channel's name.
            type: int, float (takes int too), str, bool, bytes, list, dict, numpy.ndarray, or one of these as text, an
                array being "array"; None: not checked.
            min: The least value, of an array's elements too.
            max: The greatest.
            shape: An array's lengths, with None for one that may be any.
            capacity: How many values of one writer may wait at this handle when it is read.
            overflow: What a writer does beyond that: "block", "drop_oldest", "drop_newest" or "latest".

        Raises:
            TopicNameError: The name cannot be used.
            TypeError, ValueError: An argument cannot be used, or something else was declared already.
            WaitTimeout: The hub did not answer.
        """
        return take_steps(self.opening_channel(Channel, name, declare(type, min, max, shape), capacity, overflow))

    def opening_channel(
        self, kind: type[H], name: str, own: Declaration | None, capacity: int, overflow: str
    ) -> Steps[H]:  # fmt: skip
        """The steps of `channel`, for a handle of this kind."""
        name = check_name(name)
        capacity = check_count("capacity", capacity, 1, CAPACITY_MAX)
        if overflow not in OVERFLOWS:
            raise ValueError(f"overflow is one of {', '.join(OVERFLOWS)}, got {overflow!r:.60}")
        wire_name = list_name(CHANNELS, name)
        gate = Gate(self, f"channel {name!r}", own, (wire_name, VALUE))
        yield from follow_steps(self, wire_name, self.follow_nowait(wire_name), gate, FOLLOW_S)
        return kind(self, name, gate, capacity, overflow)

    # ── cells ──

    def cell(
        self, name: str, type: Any = None, min: Any = None, max: Any = None, shape: Any = None, *,
        permanent: bool = True, capacity: int = CAPACITY,
    ) -> Cell:  # fmt: skip
        """Open a cell: a value that everybody sees, and its changes.

        Args:
            name: The cell's name.
            type: As for `channel`, and so are
            min: the least value,
            max: the greatest, and
            shape: an array's lengths.
            permanent: A value that is set here stays when this process goes, and anybody may set another. Otherwise it
                goes with this process, and nobody else may set it until then.
            capacity: How many changes may wait for a loop or callback of this handle; beyond that the oldest are left
                out, and counted in `dropped`.

        Raises:
            TopicNameError: The name cannot be used.
            TypeError, ValueError: An argument cannot be used, or something else was declared already.
            WaitTimeout: The hub did not answer.
        """
        return take_steps(self.opening_cell(Cell, name, declare(type, min, max, shape), permanent, capacity))

    def opening_cell(
        self, kind: type[C], name: str, own: Declaration | None, permanent: bool, capacity: int
    ) -> Steps[C]:  # fmt: skip
        """The steps of `cell`, for a handle of this kind."""
        name = check_name(name)
        wire_name = list_name(CELLS, name)
        gate = Gate(self, f"cell {name!r}", own, (wire_name, DECLARATION))
        cell = kind(
            self, (wire_name, VALUE), gate, check_flag("permanent", permanent),
            check_count("capacity", capacity, 1, CAPACITY_MAX),
        )  # fmt: skip
        yield from follow_steps(self, wire_name, self.follow_nowait(wire_name), gate, FOLLOW_S)
        cell.enter()
        return cell

    # ── several ──

    def when_all(self, *sources: Any) -> Joined:
        """As `raskid.when_all`."""
        return when_all(*sources)
