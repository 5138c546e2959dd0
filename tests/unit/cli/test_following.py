"""Printing what comes, in a system of the test's own: what is printed, when it ends, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from raskid.cli.following import Ending, follow_cell, follow_topic, print_cell
from raskid.cli.shell import Failure
from raskid.client.session import Session
from raskid.model.errors import SessionClosed, WaitTimeout
from tests.unit.client.systems import system


@pytest.fixture
def rk() -> Iterator[Session]:
    with system() as head, head.session() as session:
        yield session


def test_the_end_comes_by_count(capfd: Any) -> None:
    """1. One came, and another behind three that were left out. 2. The sum has not grown since: nothing is said."""
    ending = Ending("message on 'x'", 3, 2.0)
    for dropped in (0, 3, 3):
        assert not ending.reached
        ending.took(dropped)
    assert ending.reached
    assert capfd.readouterr().err == (
        "raskid: 3 left out before this message on 'x', since they came too fast for this reader\n"
    )
    assert str(ending.too_late()) == "no message on 'x' for 2 s (3 came, of 3 wanted)"
    assert "(0 came)" in str(Ending("value", None, 1.0).too_late())


def test_messages(rk: Session, capfd: Any) -> None:
    """1. What was kept comes first. 2. It is printed for people, or as JSON. 3. Nothing more comes."""
    keeping = rk.react("x").keep(count=2)
    for number in range(3):
        rk.publish("x", number, name="n")
    follow_topic(rk, "x", Ending("message", 2, 5), "drop_oldest", -1, False)
    assert capfd.readouterr().out == '1 name="n"\n2 name="n"\n'
    follow_topic(rk, "x", Ending("message", 1, 5), "block", 1, True)
    peer = rk.peer.identity.peer
    assert (
        capfd.readouterr().out == f'{{"topic": "x", "publisher": "{peer}", "args": [2], "fields": {{"name": "n"}}}}\n'
    )
    with pytest.raises(WaitTimeout, match=r"no message on 'x' for 0 s \(0 came\)"):
        follow_topic(rk, "x", Ending("message on 'x'", None, 0.0), "drop_oldest", 0, False)
    keeping.close()


def test_the_values_of_a_cell(rk: Session, capfd: Any) -> None:
    """1. It has none yet. 2. It has one, which is printed; a value may be null. 3. None comes in time."""
    with pytest.raises(Failure, match="the cell 'c' has no value"):
        print_cell(rk, "c", False)
    assert capfd.readouterr().out == ""
    with pytest.raises(Failure):
        print_cell(rk, "c", True)
    assert capfd.readouterr().out == '{"cell": "c"}\n'
    with rk.cell("c") as cell:
        cell.set(None)
        print_cell(rk, "c", False)
        follow_cell(rk, "c", Ending("value", 1, 5), True)
        assert capfd.readouterr().out == 'null\n{"cell": "c", "value": null}\n'
    with pytest.raises(WaitTimeout, match="no value for 0 s"):
        follow_cell(rk, "c", Ending("value", 2, 0.0), False)


def test_a_system_that_ends() -> None:
    with system() as head, head.session() as session:
        head.close()
        with pytest.raises(SessionClosed):
            follow_topic(session, "x", Ending("message", None, 5), "block", 0, False)
