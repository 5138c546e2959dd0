"""The nearest of many times."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raskid.core.deadlines import Deadlines

STEPS = st.lists(st.tuples(st.sampled_from(["set", "cancel", "take"]), st.integers(0, 5), st.integers(0, 20)))


@given(STEPS)
def test_the_first_is_the_smallest_of_those_that_are_set(steps: list[tuple[str, int, int]]) -> None:
    deadlines: Deadlines[int] = Deadlines()
    model: dict[int, float] = {}
    for what, key, at in steps:
        if what == "set":
            deadlines.set(key, float(at))
            model[key] = float(at)
        elif what == "cancel":
            deadlines.cancel(key)
            model.pop(key, None)
        else:
            due = deadlines.take_due(float(at))
            assert sorted(due) == sorted(found for found, when in model.items() if when <= at)
            assert [model[found] for found in due] == sorted(model[found] for found in due)
            model = {found: when for found, when in model.items() if when > at}
        assert deadlines.first() == min(model.values(), default=None)
        assert [deadlines.get(found) for found in range(6)] == [model.get(found) for found in range(6)]
        assert len(deadlines) == len(model)


def test_times_that_change_all_the_time_fill_no_memory() -> None:
    deadlines: Deadlines[int] = Deadlines()
    deadlines.set(0, 1e9)
    for number in range(10_000):
        deadlines.set(1, 1e6 + number)
    assert len(deadlines._heap) < 200 and deadlines.first() == 1e6 + 9999
