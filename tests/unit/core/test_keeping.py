"""What "keep" keeps."""

from __future__ import annotations

from typing import Any

import pytest

from raskid.core.keeping import Keeper
from raskid.core.operations import KEEP_BYTES
from raskid.model.operations import Operation


def make(**fields: Any) -> Keeper:
    return Keeper(Operation("keep", (), fields))


def test_without_a_limit_of_bytes_it_is_the_one_of_the_table() -> None:
    assert make(count=1).bytes_max == KEEP_BYTES


@pytest.mark.parametrize(
    ("fields", "left", "left_out"),
    [
        ({"count": 2}, [3, 4], 0),
        ({"count": 9}, [1, 2, 3, 4], 0),
        ({"count": None, "seconds": 2.0}, [2, 3, 4], 0),
        ({"count": 9, "bytes": 5}, [3, 4], 2),
        ({"count": 3, "bytes": 5}, [3, 4], 2),
        ({"count": 9, "bytes": 1}, [], 4),
    ],
)
def test_the_oldest_go_first(fields: dict[str, Any], left: list[int], left_out: int) -> None:
    """Four messages of two bytes, one each second; the last one at 4 s."""
    keeper = make(**fields)
    for number in (1, 2, 3, 4):
        keeper.store(number, b"xx", float(number))
    assert [number for number, _ in keeper.last(-1, 4.0)] == left
    assert keeper.left_out == left_out and keeper.bytes == 2 * len(left)


def test_age_is_looked_at_when_asked() -> None:
    keeper = make(seconds=5)
    keeper.store(1, b"x", 0.0)
    assert keeper.last(-1, 5.0) == [(1, b"x")], "none older than this"
    assert keeper.last(-1, 5.1) == []


@pytest.mark.parametrize(("count", "numbers"), [(-1, [1, 2, 3]), (0, []), (2, [2, 3]), (9, [1, 2, 3])])
def test_the_last_so_many(count: int, numbers: list[int]) -> None:
    keeper = make(count=10, basket="b")
    assert keeper.basket == "b"
    for number in (1, 2, 3):
        keeper.store(number, b"", 0.0)
    assert [number for number, _ in keeper.last(count, 0.0)] == numbers
