"""Classes: who is chosen, and whose a message is until it is done."""

from __future__ import annotations

from typing import Any

import pytest

from raskid.core import groups as groups_module
from raskid.core.chains import Chain
from raskid.core.groups import Group
from raskid.core.targets import Target
from raskid.model.ids import RequestId
from tests.unit.core.publishers import READER, code, react


def member(identifier: int, **more: Any) -> Chain:
    chain = Chain(RequestId(identifier), "t", react(group="g", **more), b"", True)
    chain.target = Target("t", chain.id, READER, 10, "block")
    return chain


def group(*values: Any, choice: str = "round_robin", ack: bool = False) -> Group:
    """Members 1, 2, … with these values."""
    it = Group("t", "g")
    it.members = [member(at + 1, value=value, choice=choice, ack=ack) for at, value in enumerate(values)]
    it.ack = ack
    return it


class Draw:
    """Chance that is known."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)
        self.asked: list[int] = []

    def __call__(self, count: int) -> int:
        self.asked.append(count)
        return self.numbers.pop(0)


def chosen(it: Group, count: int, draw: Any = None) -> list[int]:
    found = []
    for _ in range(count):
        one = it.choose(draw or Draw())
        found.append(one.id if one is not None else 0)
    it.check_invariants()
    return found


def test_in_turn() -> None:
    assert chosen(group(None, None, None), 7) == [1, 2, 3, 1, 2, 3, 1]


def test_by_chance() -> None:
    draw = Draw(2, 0, 1)
    assert chosen(group(None, None, None, choice="random"), 3, draw) == [3, 1, 2] and draw.asked == [3, 3, 3]


def test_the_less_loaded_of_two() -> None:
    it = group(None, None, None, choice="least_loaded")
    for one, load in zip(it.members, (3, 1, 2), strict=True):
        assert one.target is not None
        one.target.credit -= load
    # The second number is counted from behind the first: never the same one.
    assert chosen(it, 3, Draw(0, 0, 0, 1, 2, 1)) == [2, 3, 2]
    assert chosen(group(None, choice="least_loaded"), 1, Draw()) == [1]


def test_load_counts_code_and_what_waits_for_it() -> None:
    one = member(1)
    one.jobs = 2
    assert one.load == 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((3, 1, 2.5), [2, 2, 2, 2]),
        ((1, 2, 1.0), [1, 3, 1, 3]),
        ((1, "x", 0), [1, 2, 3, 1]),
        ((1, True, 0), [1, 2, 3, 1]),
        ((float("nan"), 1, 2), [1, 2, 3, 1]),
        ((1, None), [1, 2, 1, 2]),
        ((float("inf"), 5), [2, 2, 2, 2]),
    ],
)
def test_by_value_and_in_turn_where_values_are_no_numbers(values: tuple[Any, ...], expected: list[int]) -> None:
    assert chosen(group(*values, choice="by_value"), 4) == expected


def test_one_that_is_not_at_work_is_not_chosen() -> None:
    it = group(None, None, None)
    it.members[0].suspended = True
    it.members[2].over = True
    assert chosen(it, 3) == [2, 2, 2]
    it.members[1].removed = True
    assert chosen(it, 1) == [0]


def test_the_oldest_at_work_says_how_to_choose_and_where_the_class_stands() -> None:
    it = Group("t", "g")
    metric = code("m")
    it.members = [
        member(1, priority=9, choice="by_metric", metric=metric), member(2, priority=1), member(3, priority=5),
    ]  # fmt: skip
    assert it.priority == 9 and it.metric_of() is it.members[0]
    it.members[0].suspended = True
    assert it.priority == 5 and it.choice == "round_robin" and it.metric_of() is None
    for one in it.members:
        one.suspended = True
    assert it.metric_of() is None and it.priority == 9


def test_a_metric_chooses_the_least_and_takes_turns_among_equals() -> None:
    it = group(None, None, None)
    members = it.members
    assert it.choose_by(members, [3, 1, 2]) is members[1]
    assert [it.choose_by(members, [1, 1, 2]) for _ in range(2)] == [members[1], members[0]]


def test_a_metric_is_not_for_those_that_have_gone() -> None:
    it = group(None, None, None)
    one, two, three = it.members
    two.removed = True
    assert it.choose_by([one, two], [2, 1]) is one
    one.removed = True
    assert it.choose_by([one, two], [2, 1]) is three, "the ones that were asked have gone"
    three.removed = True
    assert it.choose_by([one, two], [2, 1]) is None


@pytest.mark.parametrize("values", [[float("nan"), 1], [True, 1], [None, 1], ["x", 1], [1]])
def test_a_metric_that_gives_no_numbers_is_an_error(values: list[Any]) -> None:
    it = group(None, None)
    with pytest.raises((TypeError, ValueError)):
        it.choose_by(it.members, values)


def test_a_message_is_somebodys_until_it_is_done() -> None:
    it = group(None, None, ack=True)
    one, two = it.members
    for number, who in ((3, one), (1, one), (2, two)):
        it.hold(who, number, b"%d" % number)
    it.close(two.id, 3)
    it.close(one.id, 9)
    it.check_invariants()
    assert it.left_by(one.id) == [(1, b"1"), (3, b"3")], "in order; another's word does not count"
    assert it.left_by(one.id) == [] and set(it.open) == {2}


def test_what_was_sent_is_its_members_to_acknowledge() -> None:
    it = group(None, None, ack=True)
    one, two = it.members
    for number in (1, 2, 3):
        it.hold(one, number, b"")
    it.mark_sent(one.id, 1)
    it.mark_sent(two.id, 2)
    it.kept_back(one.id, 1)
    it.kept_back(one.id, 2)
    assert set(it.open) == {1, 3}
    assert it.take_back(one.id, 1) is None and it.take_back(two.id, 3) is None
    assert it.take_back(one.id, 3) == b"" and set(it.open) == {1}
    it.close(one.id, 1)
    it.check_invariants()
    assert not it.sent


def test_only_so_many_wait_for_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "WAITING_MAX", 2)
    it = Group("t", "g")
    for number in (1, 2, 3):
        it.wait(number, b"")
    it.check_invariants()
    assert [number for number, _ in it.waiting] == [2, 3] and it.dropped == 1
