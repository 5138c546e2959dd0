"""Which runner gets which task: pure functions over how busy the runners are. The manager applies the choice.

Greedy on purpose: a task without inputs goes where least is outstanding, a task with inputs to where most of them
are. Amounts are numbers of tasks; durations enter through the width of a runner's window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

#: How much work a runner should have in hand, so that it neither idles nor holds tasks that others could start.
WINDOW_S = 0.010
WINDOW_MAX = 512
#: Before the first outcome. A task placed behind another one waits as long as that takes, which nobody knows yet;
#: a burst of short tasks loses one round trip by it.
WINDOW_START = 1
#: Weight of the newest duration in the exponential mean.
MEAN_WEIGHT = 0.2


class Load(Protocol):
    """How busy a runner is."""

    @property
    def outstanding(self) -> int:
        """Tasks placed there without an outcome, and one for each lease on it."""

    @property
    def window(self) -> int:
        """How many it should have at most."""


LoadT = TypeVar("LoadT", bound=Load)


def window_for(mean_s: float) -> int:
    """The window of a runner whose tasks last `mean_s` seconds on average; negative: nobody knows.

    From `WINDOW_S` / 2 on it is 1: tasks wait where every runner can take them, and not behind one of them.
    """
    if mean_s < 0.0:
        return WINDOW_START
    if mean_s * WINDOW_MAX <= WINDOW_S:
        return WINDOW_MAX
    return max(1, int(WINDOW_S / mean_s))


def recall_count(waiting: int, idle: int) -> int:
    """How many of `waiting` tasks to take back from a busy runner for `idle` runners.

    All get the same share, the busy one included; what does not divide goes to the idle ones, which begin at once.
    """
    return waiting - waiting // (idle + 1)


def share_out(count: int, loads: Sequence[Load]) -> list[int]:
    """How many of `count` equal tasks each runner gets, so that the fullest ends as empty as possible.

    Args:
        count: Tasks to place, 1 or more.
        loads: Runners with room (`outstanding` < `window`); ties go to the earlier one.
    Returns:
        Numbers in the order of `loads`; their sum is `count`, or less when all windows are full.
    Source:
        Water filling: find the highest level that the tasks can fill everywhere, then one more each from the front.
    """
    if count == 1 and loads:
        counts = [0] * len(loads)
        counts[min(range(len(loads)), key=lambda n: loads[n].outstanding)] = 1
        return counts
    low, high = 0, max((load.window for load in loads), default=0)
    while low < high:
        level = (low + high + 1) // 2
        if sum(max(min(level, load.window) - load.outstanding, 0) for load in loads) <= count:
            low = level
        else:
            high = level - 1
    counts = [max(min(low, load.window) - load.outstanding, 0) for load in loads]
    left = count - sum(counts)
    for number, load in enumerate(loads):
        if left == 0:
            break
        # One level higher does not fit everywhere, so whoever has room at this level takes one of the rest.
        if load.outstanding + counts[number] == low < load.window:
            counts[number] += 1
            left -= 1
    return counts


def choose_near(
    holders: Mapping[LoadT, int], spare: LoadT | None, wide: bool, other: LoadT | None = None
) -> LoadT | None:
    """The runner for a task with inputs.

    Args:
        holders: Living runners that have or compute inputs, with how many of them.
        spare: The least busy runner that has room, if any.
        wide: Some input is wanted by other tasks too. Only then is a full window a reason to go elsewhere: a chain
            stays where it is, however long, because its tasks cannot run side by side anyway; a thousand tasks that
            want one value must not queue up behind its maker.
        other: Some other runner, each time another one, for when all are full.
    Returns:
        The holder of most inputs, then the least busy of these; `spare` when there is no holder or it is full; the
        less busy of the holder and `other` when there is no `spare` either.
    """
    best: LoadT | None = None
    most = 0
    for holder, count in holders.items():
        if best is None or count > most or (count == most and holder.outstanding < best.outstanding):
            best, most = holder, count
    if best is None:
        return spare
    if wide and best.outstanding >= best.window:
        if spare is not None:
            return spare
        if other is not None and other.outstanding < best.outstanding:
            return other
    return best
