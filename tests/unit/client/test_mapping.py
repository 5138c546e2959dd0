"""The result of a map: errors belong to items, and users' code runs where somebody looks."""

from __future__ import annotations

import pickle
import traceback

import pytest

from raskid.client.mapping import MapResult
from raskid.model.errors import SessionClosed, TaskLost, WaitTimeout
from raskid.model.ids import TaskId
from raskid.services.calling import dump_error
from tests.unit.client.ends import FakeEngine


class Loud(Exception):
    """Counts how often it is unpickled."""

    loaded = 0

    def __reduce__(self):
        return _make_loud, ()


def _make_loud():
    Loud.loaded += 1
    return Loud()


@pytest.fixture
def result():
    made = MapResult(FakeEngine(), 6, "f")
    for first in (0, 2, 4):
        made.chunk_of(TaskId(10 + first), first, 2)
    return made


def values(*given, errors=None):
    return pickle.dumps((list(given), errors or {}))


def test_values_in_order(result):
    result.chunk_done(TaskId(12), True, values(3, 4))
    assert result[2] == 3 and result[-3] == 4 and not result.done()
    assert repr(result) == "<raskid.MapResult of f, 6 items: 1/3 runs done>"
    with pytest.raises(WaitTimeout, match="MapResult of f"):
        result.values(1)
    with pytest.raises(TypeError, match="timeout is a number"):
        result.values("1")
    result.chunk_done(TaskId(10), True, values(1, 2))
    result.chunk_done(TaskId(14), True, values(5, 6))
    assert list(result) == result.values() == result[:] == [1, 2, 3, 4, 5, 6]


def test_an_items_error_is_raised_where_it_is_looked_at(result):
    result.chunk_done(TaskId(10), True, values(1, None, errors={1: dump_error(ValueError("second"), "runner")}))
    assert result[0] == 1
    with pytest.raises(ValueError, match="second"):
        result[1]
    with pytest.raises(IndexError, match="6 items has no item 6"):
        result[6]


def test_users_code_does_not_run_when_an_error_comes(result):
    """1. A run fails as a whole. 2. Its error is unpickled by whoever looks, not by whoever brings it."""
    data = dump_error(Loud(), "runner")
    before = Loud.loaded
    result.chunk_done(TaskId(10), False, data)
    assert Loud.loaded == before
    with pytest.raises(Loud):
        result[0]
    assert Loud.loaded == before + 1


def test_a_lost_run_names_its_items(result):
    result.chunk_failed(TaskId(12), TaskLost("lost with runner 1"))
    with pytest.raises(
        TaskLost, match=r"lost with runner 1 \(items 2 to 3 of the map of f, which ran together: any of"
    ):
        result[3]


def test_looking_again_does_not_lengthen_the_traceback(result):
    result.fail_with(SessionClosed("over"))
    lengths = set()
    for _ in range(4):
        with pytest.raises(SessionClosed) as caught:
            result[0]
        lengths.add(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(lengths) == 1


def test_values_that_cannot_be_unpickled_name_the_items(result):
    result.chunk_done(TaskId(12), True, b"\x80\x04cno_such_module\nf\n.")
    with pytest.raises(ModuleNotFoundError) as caught:
        result[2]
    assert caught.value.__notes__ == ["(while the values of items 2 to 3 were unpickled in the script)"]


def test_it_is_no_argument(result):
    with pytest.raises(TypeError, match=r"session.gather\(result\)"):
        pickle.dumps(result)


def test_callbacks_are_called_once_when_all_runs_have_ended(result):
    called = []
    result.when_done(lambda: called.append("first"))
    result.chunk_done(TaskId(10), True, values(1, 2))
    result.chunk_failed(TaskId(12), TaskLost("lost"))
    assert called == []
    result.chunk_done(TaskId(14), True, values(5, 6))
    assert called == ["first"]
    result.when_done(lambda: called.append("late"))
    assert called == ["first", "late"]
