"""Counters: the same numbers as attributes, mapping and list."""

from __future__ import annotations

import pytest

from raskid.io.counters import Counters


def test_only_the_fields_can_be_counted() -> None:
    with pytest.raises(AttributeError):
        Counters().no_such_counter = 1  # type: ignore[attr-defined]


def test_counts_in_every_form() -> None:
    counters = Counters()
    counters.tasks += 4
    counters.syscalls += 10
    assert counters.as_dict() == {**dict.fromkeys(Counters.FIELDS, 0), "tasks": 4, "syscalls": 10}
    assert list(counters.as_dict().values()) == counters.as_list()
    assert counters.per(4)["tasks"] == 1.0
    assert counters.per(4)["syscalls"] == 2.5
    assert repr(counters) == "Counters(syscalls=10, tasks=4)"


def test_costs_per_task_and_per_message() -> None:
    counters = Counters()
    counters.syscalls, counters.copies, counters.messages_sent, counters.messages_received = 12, 600, 1, 2
    rows = counters.as_rows()
    assert {name: rows[name] for name in Counters.FIELDS} == counters.as_dict()
    assert rows["per_task"] == {}
    assert rows["per_message"] == {
        "wakeups": 0.0, "syscalls": 4.0, "copies": 200.0, "bytes_sent": 0.0, "bytes_received": 0.0
    }  # fmt: skip


def test_from_list_takes_shorter_and_longer_lists() -> None:
    values = list(range(len(Counters.FIELDS)))
    assert Counters.from_list(values).as_list() == values
    assert Counters.from_list([*values, 99]).as_list() == values
    assert Counters.from_list([7]).as_dict() == {**dict.fromkeys(Counters.FIELDS, 0), "wakeups": 7}


@pytest.mark.parametrize("n", [0, -1])
def test_per_needs_a_positive_number(n: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        Counters().per(n)
