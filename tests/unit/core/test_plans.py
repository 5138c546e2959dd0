"""A topic's reactions in order, and who wants the next message."""

from __future__ import annotations

from typing import Any

import pytest

from raskid.core.chains import Chain
from raskid.core.groups import Group
from raskid.core.plans import Plan, arrange
from raskid.core.targets import Target
from raskid.model.ids import RequestId
from raskid.model.operations import Operation
from raskid.protocol.reactions import BLOCK, PULL
from tests.unit.core.publishers import CONSUME, DELIVER, READER, Publisher, code, react

SAMPLE = Operation("sample", (), {"every": 2})
CHECK = Operation("check", (), {"type": "int"})
KEEP = Operation("keep", (), {"count": 1})
LINK = Operation("forward", ("u",))


def chain(identifier: int, *operations: Operation, **more: Any) -> Chain:
    return Chain(RequestId(identifier), "t", react(*operations, **more), b"", True)


def reader(identifier: int, overflow: str = BLOCK) -> Target:
    return Target("t", RequestId(identifier), READER, 2, overflow)


def plan_of(*members: Any, groups: dict[str, Group] | None = None) -> Plan:
    plan = arrange(list(members), groups or {})
    assert plan is not None
    return plan


def test_plain_readers_need_no_plan() -> None:
    assert arrange([], {}) is None
    assert arrange([reader(1), reader(2)], {}) is None
    assert arrange([reader(1), reader(2, PULL)], {}) is not None


def test_by_priority_and_then_by_age() -> None:
    one, two, three, four = reader(1), chain(2, priority=-1), chain(3, priority=5), chain(4)
    assert plan_of(one, two, three, four).units == [three, one, four, two]


def test_those_that_are_not_at_work_are_not_in_it() -> None:
    refused, suspended, over, removed = chain(1, Operation("sample")), chain(2, suspended="why"), chain(3), chain(4)
    over.over = removed.removed = True
    assert plan_of(refused, suspended, over, removed).units == []


def test_a_class_is_one_unit_where_its_highest_member_stands() -> None:
    """One member is at work, one is suspended, and both are members: it has what it did not acknowledge yet."""
    group = Group("t", "g")
    low, high = chain(1, group="g", priority=-5, ack=True), chain(3, group="g", priority=5)
    off, refused = chain(4, group="g", priority=9, suspended="why"), chain(5, Operation("sample"), group="g")
    middle = chain(2)
    plan = plan_of(low, middle, high, off, refused, groups={"g": group})
    assert plan.units == [group, middle] and group.members == [low, high, off] and group.ack
    high.suspended = True
    assert plan_of(low, middle, high, off, groups={"g": group}).units == [middle, group]
    low.suspended = True
    plan = plan_of(low, middle, high, off, groups={"g": group})
    assert plan.units == [middle] and group.members == [low, high, off] and not plan.numbered


def test_to_arrange_a_class_takes_a_look_or_two_at_each_member(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first ones are suspended, and when a member joins, which arranges a topic once."""
    looks = 0

    def active(self: Chain) -> bool:
        nonlocal looks
        looks += 1
        return not self.suspended

    monkeypatch.setattr(Chain, "active", property(active))
    members = [chain(at, group="g", suspended="why" if at < 50 else "") for at in range(1, 101)]
    assert len(plan_of(*members, groups={"g": Group("t", "g")}).units) == 1
    assert looks < 10 * len(members)
    publisher = Publisher({"t": {at: react(group="g") for at in range(1, 101)}})
    looks = 0
    publisher.put(101, react(group="g"))
    assert looks < 15 * len(members)


def test_what_a_plan_is() -> None:
    for members, facts in (
        ([chain(1, CONSUME, code())], "consumes lingers"),
        ([chain(1, code(), CONSUME)], "consumes holds lingers"),
        ([chain(1, KEEP)], "numbered encodes"),
        ([chain(1, CHECK, LINK, CONSUME, KEEP)], "consumes numbered encodes"),
        ([chain(1, Operation("filter", (["x", "has", True],)), DELIVER)], ""),
        ([chain(1, Operation("gather", (), {"count": 2}), DELIVER)], ""),
        ([chain(1, code(), DELIVER)], "lingers"),
        ([chain(1, DELIVER, code())], "encodes lingers"),
        ([chain(1, code(), place="helper")], "encodes lingers"),
        ([chain(1, numbered=True)], "numbered encodes"),
        ([chain(1, Operation("choose", ("x",)), DELIVER)], ""),
        ([chain(1, LINK)], "passes_on"),
        ([chain(1, LINK), reader(2)], "passes_on encodes"),
        ([chain(1, limit=3)], "encodes"),
    ):
        plan = plan_of(*members)
        for name in ("consumes", "holds", "lingers", "numbered", "encodes", "passes_on"):
            assert getattr(plan, name) is (name in facts.split()), (facts, name)


def test_what_a_plan_with_a_class_is() -> None:
    for more, facts in (({"ack": True}, "numbered encodes"), ({"choice": "by_metric", "metric": code()}, "holds")):
        plan = plan_of(chain(1, code(), DELIVER, group="g", **more), groups={"g": Group("t", "g")})
        for name in ("holds", "numbered", "encodes"):
            assert getattr(plan, name) is (name in facts.split()), (facts, name)


def test_who_wants_the_next_message() -> None:
    """1. A sample lets each second message pass; a reader that pulls has not asked. 2. It asks."""
    sampled, pulls, plain = chain(1, SAMPLE, DELIVER), reader(2, PULL), reader(3)
    pulls_through = chain(4, overflow=PULL)
    pulls_through.target = reader(4, PULL)
    plan = plan_of(sampled, pulls, plain, pulls_through)
    assert plan.wanting(0.0) == [(sampled, 1), (plain, 0)]
    assert plan.wanting(0.0) == [(plain, 0)]
    pulls.give(1)
    pulls_through.target.give(1)
    assert plan.wanting(0.0) == [(sampled, 1), (pulls, 0), (plain, 0), (pulls_through, 0)]
    sampled.suspended = True
    assert plan.wanting(0.0) == [(pulls, 0), (plain, 0), (pulls_through, 0)]


def test_where_one_may_consume_all_want_it_and_samples_decide_later() -> None:
    sampled, consumes, pulls = chain(1, SAMPLE, DELIVER), chain(2, CONSUME, priority=1), reader(3, PULL)
    plan = plan_of(sampled, consumes, pulls)
    for _ in range(2):
        assert plan.wanting(0.0) == [(consumes, 0), (sampled, 0), (pulls, 0)]
