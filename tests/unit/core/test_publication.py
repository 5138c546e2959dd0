"""One message and all reactions of its topic: order, consuming, classes, forwards, lines."""

from __future__ import annotations

from typing import Any

import pytest

from raskid.core.chains import HOPS_MAX
from raskid.core.effects import RunCode, Send
from raskid.core.passage import STALLED_S
from raskid.model.errors import ValueNotSendable
from raskid.model.ids import RequestId
from raskid.model.operations import Operation
from raskid.protocol.messages import Deliver, ReactionFailed, ReactionStopped, Watch
from raskid.protocol.reactions import PULL, Reaction
from tests.unit.core.publishers import (
    CONSUME,
    DELIVER,
    OTHER,
    READER,
    Passed,
    Publisher,
    code,
    given,
    react,
    sent,
)


def forward(topic: str) -> Operation:
    return Operation("forward", (topic,))


def ready(topics: dict[str, Any], *names: str, draw: Any = None) -> Publisher:
    publisher = Publisher(topics, draw) if draw is not None else Publisher(topics)
    for name in names or ("f",):
        publisher.told(given(name))
    return publisher


def delivered(effects: list[Any]) -> list[tuple[int, list[int], bool]]:
    """(subscription, numbers, again) of what was delivered."""
    return [(it.subscription, it.numbers, it.again) for it in sent(effects, Deliver)]


# ── order and consuming ──


def test_reactions_run_by_priority_and_then_by_age() -> None:
    names = {1: 0, 2: 5, 3: 0, 4: -1}
    publisher = ready({"t": {it: react(code("f"), priority=priority) for it, priority in names.items()}})
    publisher.publish(1)
    assert [publisher.messaging._passage._jobs[job.job].chain.id for job in publisher.jobs] == [2, 1, 3, 4]


def test_behind_code_that_may_consume_messages_stand_in_line() -> None:
    """1. Three messages; the code decides of each whether the plain reader gets it. 2. Only the first is with the code:
    the others wait, since nobody may overtake. 3. The code keeps the second one back (it goes on), and consumes the
    others."""
    publisher = ready({"t": {5: react(), 6: react(code(), CONSUME, priority=1)}})
    passings = []
    for number in (1, 2, 3):
        publisher.publish(number)
        passings.append(publisher.passing)
        assert len(publisher.jobs) == 1
    assert Passed(passings[0].id) in publisher.ran("consumed")
    assert not passings[1].done
    publisher.ran(None)
    assert publisher.got == {5: [2]} and passings[1].done
    publisher.ran("consumed")
    assert publisher.got == {5: [2]} and passings[2].done and publisher.messaging._publication._lines == {}


def test_a_failure_of_code_lets_the_message_go_on() -> None:
    publisher = ready({"t": {5: react(), 6: react(code(), CONSUME, priority=1)}})
    publisher.publish(1)
    publisher.ran(error="E")
    assert publisher.got == {5: [1]}


def test_code_that_is_not_here_holds_the_line_as_well() -> None:
    publisher = Publisher({"t": {5: react(), 6: react(code(), CONSUME, priority=1)}})
    publisher.publish(1)
    publisher.publish(2)
    assert publisher.got == {}
    publisher.told(given(blob=b""))
    assert publisher.got == {5: [1]}, "the second waits for an answer of its own"
    publisher.told(given(blob=b""))
    assert publisher.got == {5: [1, 2]}


@pytest.mark.parametrize("gone", [False, True])
def test_a_long_line_goes_on_when_the_reaction_that_held_it_ends(gone: bool) -> None:
    publisher = Publisher({"t": {5: react(capacity=10_000), 6: react(code(), CONSUME, priority=1, target=OTHER)}})
    for number in range(3000):
        publisher.publish(number)
    assert publisher.got == {}
    if gone:
        publisher.gone(OTHER.peer)
    else:
        publisher.delete(6)
    assert publisher.got == {5: list(range(3000))} and publisher.passing.done


@pytest.mark.parametrize("gone", [False, True])
def test_a_reader_that_ends_gets_nothing_that_stood_in_line(gone: bool) -> None:
    publisher = ready({"t": {5: react(), 6: react(code(), CONSUME, priority=1, target=OTHER)}})
    publisher.publish(1)
    if gone:
        publisher.gone()
    else:
        publisher.delete(5)
    publisher.ran(None)
    assert publisher.got == {} and publisher.passing.done


def test_what_cannot_be_sent_is_the_publishers_error_and_nothing_happens() -> None:
    publisher = ready({"t": {5: react(), 6: react(code(), priority=1, numbered=True)}})
    with pytest.raises(ValueNotSendable):
        publisher.publish(object())
    assert not publisher.jobs and publisher.messaging._publication.numbers == {}
    publisher.messaging.check_invariants()


@pytest.mark.parametrize(
    "operations",
    [
        (Operation("set", ("shared:c", "value")), DELIVER),
        (CONSUME, Operation("keep", (), {"count": 1})),
    ],
)
def test_what_a_chain_gets_as_it_is_has_to_be_sendable(operations: tuple[Operation, ...]) -> None:
    publisher = ready({"t": {5: react(code(), priority=1), 6: react(*operations)}})
    with pytest.raises(ValueNotSendable):
        publisher.publish(object())
    assert not publisher.jobs


def test_what_only_a_filter_lets_through_need_not_be_sendable_before() -> None:
    """1. A filter that leaves it out: nobody needs its bytes. 2. One that lets it pass: the publisher's error, and not
    the owner's; other reactions have it."""
    publisher = ready({"t": {5: react(Operation("filter", ([0, "==", 1],)), DELIVER), 6: react(code())}})
    publisher.publish(object())
    assert publisher.passing.unsendable is None and len(publisher.jobs) == 1
    publisher = ready({"t": {5: react(Operation("filter", ([0, "!=", 1],)), DELIVER), 6: react(code())}})
    effects = publisher.publish(object())
    assert isinstance(publisher.passing.unsendable, ValueNotSendable) and len(publisher.jobs) == 1
    assert sent(effects, ReactionFailed) == []
    publisher.ran(None)
    assert publisher.passing.done


def test_what_no_reader_gets_as_it_is_need_not_be_sendable() -> None:
    publisher = ready({"t": {5: react(code(), DELIVER)}})
    publisher.publish(value := object())
    assert publisher.jobs[0].calls == [((value,), {})]


@pytest.mark.parametrize(
    "reactions",
    [
        {5: react(code(), DELIVER)},
        {5: react(code("late"), DELIVER)},
        {5: react(Operation("explode"), DELIVER, place="helper")},
        {5: react(group="g", choice="by_metric", metric=code())},
    ],
)
def test_what_nobody_waits_for_is_not_changed_later(reactions: dict[int, Reaction]) -> None:
    """1. Nobody waits, and the values are changed at once: code gets them as they were. 2. Where somebody waits, they
    are not copied."""
    publisher = ready({"t": reactions})
    value = [1]
    publisher.publish_unawaited(value)
    seen = publisher.passing.item.values()[0][0]
    assert seen == [1] and seen is not value
    with pytest.raises(ValueNotSendable):
        publisher.publish_unawaited(object())
    publisher.messaging.check_invariants()
    publisher.publish(value)
    assert publisher.passing.item.values()[0][0] is value


def test_what_stands_in_line_and_nobody_waits_for_is_not_changed_later() -> None:
    publisher = ready({"t": {5: react(code(), CONSUME, priority=1), 6: react(Operation("choose", ("x",)), DELIVER)}})
    publisher.publish(x=0)
    publisher.publish_unawaited(x=(value := [1]))
    value.append(2)
    while publisher.jobs:
        publisher.ran(None)
    assert publisher.got == {6: [((), {"x": 0}), ((), {"x": [1]})]}


# ── other topics ──


def test_forward_to_a_topic_of_each_kind() -> None:
    """Plain readers, nobody, more than plain readers, and a topic that is not announced yet."""
    publisher = ready(
        {
            "t": {5: react(forward("plain"), forward("unheard"), forward("complex"), forward("new"))},
            "plain": {6: react()}, "unheard": {}, "complex": {7: react(code(), DELIVER)},
        }
    )  # fmt: skip
    effects = publisher.publish(1)
    assert [it.message for it in effects if isinstance(it, Send)] == [
        Watch("reactions:new", True, RequestId(5)),
        Deliver(RequestId(6), "plain", publisher_body(1)),
    ]
    assert not publisher.passing.done, "the code of the other topic"
    assert Passed(publisher.passing.id) in publisher.ran(2)
    publisher.state("new", {8: react()})
    assert publisher.got == {6: [1], 7: [2], 8: [1]}


def publisher_body(*args: Any) -> list[bytes]:
    from raskid.protocol.values import encode_body

    return [encode_body(args, {})]


def test_a_ring_of_forwards_is_a_failure_and_nobody_loses_anything() -> None:
    topics = {"t": {1: react(forward("u")), 2: react(numbered=True)}, "u": {3: react(forward("t")), 4: react()}}
    publisher = Publisher(topics)
    effects = publisher.publish(1)
    (failure,) = sent(effects, ReactionFailed)
    assert failure.error == "RemoteProtocolError" and "form a ring" in failure.text
    assert len(publisher.got[2]) + len(publisher.got[4]) == 1 + HOPS_MAX
    assert publisher.passing.done
    assert [number for it in sent(effects, Deliver) if it.subscription == 2 for number in it.numbers] == list(
        range(1, 10)
    )


def test_links_that_branch_and_meet_again_are_looked_at_once() -> None:
    """Three links from each of 40 topics to the next: as many ways as nobody could look at."""
    layers = 40
    topics = {f"t{at}": {3 * at + way: react(forward(f"t{at + 1}")) for way in (1, 2, 3)} for at in range(layers)}
    publisher = Publisher({**topics, f"t{layers}": {}})
    assert publisher.messaging.begin("t0", False, 0.0) is None
    publisher.state(f"t{layers}", {1000: react(DELIVER)})
    assert publisher.messaging.begin("t0", False, 0.0) is not None


def test_a_ring_through_a_topic_that_is_not_announced_ends_too() -> None:
    publisher = Publisher({"t": {1: react(forward("u"))}})
    publisher.publish(1)
    effects = publisher.state("u", {2: react(forward("u"))})
    (failure,) = sent(effects, ReactionFailed)
    assert "form a ring" in failure.text


@pytest.mark.parametrize("ring", [("t",), ("u", "t")])
def test_a_ring_through_a_line_stops_nothing(ring: tuple[str, ...]) -> None:
    """The topic holds its messages until code has decided, and the code's result is published there again."""
    first, *rest = ring
    topics: dict[str, Any] = {"t": {5: react(), 6: react(code(), CONSUME, forward(first), priority=1)}}
    if rest:
        topics["u"] = {7: react(forward("t"), Operation("keep", (), {"count": 1}))}
    publisher = ready(topics)
    publisher.publish(1)
    passing = publisher.passing
    publisher.publish(2)
    publisher.ran("again")
    assert publisher.jobs[0].calls == [((2,), {})]
    publisher.ran(None)
    assert publisher.jobs[0].calls == [(("again",), {})], "behind what was published before it"
    publisher.ran(None)
    assert passing.done and publisher.got == {5: [2, "again"]}
    assert publisher.messaging._publication._lines == {}


def test_a_topic_that_forwards_to_itself() -> None:
    publisher = Publisher({"t": {1: react(forward("t")), 2: react()}})
    (failure,) = sent(publisher.publish(1), ReactionFailed)
    assert not failure.suspended and len(publisher.got[2]) == 1 + HOPS_MAX


def test_a_message_that_only_links_would_get_is_not_even_made() -> None:
    """1. A link to a topic whose reader has not asked; to one that nobody reads; through another link. 2. It asks."""
    publisher = Publisher(
        {"t": {1: react(forward("u"))}, "u": {2: react(forward("v"))}, "v": {3: react(overflow=PULL, numbered=False)}}
    )
    assert publisher.publish(1) == [] and publisher.passing is None
    publisher.credit(3, 1)
    publisher.publish(2)
    assert publisher.got == {3: [2]}
    assert publisher.publish(3) == [] and publisher.passing is None
    publisher.delete(3, "v")
    assert publisher.publish(4) == []


def test_forwarded_messages_wait_at_full_readers_for_their_publisher() -> None:
    publisher = Publisher({"t": {1: react(forward("u"))}, "u": {5: react(capacity=1)}})
    publisher.publish(1)
    publisher.publish(2, waits=True)
    ((target, place),) = publisher.passing.waiting
    assert (target.subscription, place) == (5, 1)


# ── pull, numbers, history ──


def test_a_reader_that_pulls_gets_what_comes_after_it_asked() -> None:
    publisher = Publisher({"t": {5: react(overflow=PULL)}})
    assert Send(READER.peer, Deliver(RequestId(5), "t", [], 0, [1])) in publisher.first, "it knows whom to ask"
    assert publisher.publish(1) == [] and publisher.passing is None
    publisher.credit(5, 1)
    publisher.publish(2)
    publisher.publish(3)
    assert publisher.got == {5: [2]}


def test_numbers_are_contiguous_and_introduced() -> None:
    publisher = Publisher({"t": {5: react(numbered=True)}})
    assert delivered(publisher.first) == [(5, [1], False)]
    assert delivered(publisher.publish("a")) == [(5, [1], False)]
    effects = publisher.put(6, react(numbered=True, target=OTHER))
    assert sent(effects, Deliver) == [Deliver(RequestId(6), "t", [], 0, [2])]
    assert delivered(publisher.publish("b")) == [(5, [2], False), (6, [2], False)]


def test_a_numbered_reader_that_comes_while_messages_stand_in_line() -> None:
    publisher = ready({"t": {5: react(numbered=True), 6: react(code(), CONSUME, priority=1)}})
    publisher.publish("a")
    publisher.publish("b")
    assert delivered(publisher.put(7, react(numbered=True))) == [(7, [3], False)]
    publisher.ran(None)
    publisher.ran(None)
    publisher.publish("c")
    publisher.ran(None)
    assert publisher.got == {5: ["a", "b", "c"], 7: ["c"]}


@pytest.mark.parametrize(("history", "got"), [(-1, ["b", "c", "d"]), (2, ["b", "c", "d"][1:]), (0, [])])
def test_history_comes_first_and_then_what_is_live(history: int, got: list[str]) -> None:
    publisher = Publisher({"t": {5: react(Operation("keep", (), {"count": 3}))}})
    for value in ("a", "b", "c", "d"):
        publisher.publish(value)
    effects = publisher.put(6, react(history=history, numbered=True))
    numbers = list(range(5 - len(got), 5))
    assert sent(effects, Deliver)[0] == Deliver(RequestId(6), "t", [], 0, [numbers[0] if numbers else 5])
    assert publisher.got.get(6, []) == got
    assert delivered(publisher.publish("e")) == [(6, [5], False)]
    assert publisher.got[6] == [*got, "e"]


def test_history_longer_than_the_credit_waits_and_nothing_overtakes_it() -> None:
    publisher = Publisher({"t": {5: react(Operation("keep", (), {"count": 9}))}})
    for number in range(5):
        publisher.publish(number)
    publisher.put(6, react(history=-1, capacity=2))
    publisher.publish(5, waits=True)
    for _ in range(3):
        publisher.credit(6, 2)
    assert publisher.got[6] == [0, 1, 2, 3, 4, 5]


def test_history_of_a_reader_that_pulls_waits_until_it_asks() -> None:
    publisher = Publisher({"t": {5: react(Operation("keep", (), {"count": 9}))}})
    for number in range(4):
        publisher.publish(number)
    publisher.put(6, react(overflow=PULL, history=-1, capacity=2))
    publisher.publish(4)
    assert publisher.got.get(6, []) == []
    for _ in range(5):
        publisher.credit(6, 1)
    publisher.publish(5)
    assert publisher.got[6] == [0, 1, 2, 3, 5]


def test_what_two_reactions_keep_comes_once() -> None:
    publisher = Publisher({"t": {5: react(Operation("keep", (), {"count": 2}))}})
    for number in (1, 2, 3):
        publisher.publish(number)
    publisher.put(6, react(Operation("keep", (), {"count": 9})))
    publisher.publish(4)
    publisher.put(7, react(history=-1))
    assert publisher.got == {7: [3, 4]}
    publisher.put(8, react(history=1))
    assert publisher.got[8] == [4]


def test_what_is_kept_behind_a_window_has_no_number() -> None:
    publisher = Publisher({"t": {5: react(Operation("gather", (), {"count": 2}), Operation("keep", (), {"count": 2}))}})
    publisher.publish(1)
    publisher.wait(1)
    publisher.note(publisher.messaging.flush_windows(1.0))
    effects = publisher.put(6, react(history=-1, numbered=True))
    assert [it.numbers for it in sent(effects, Deliver)] == [[2], []] and publisher.got == {6: [[1]]}


def test_keeping_outlives_a_suspension() -> None:
    keep = Operation("keep", (), {"count": 2})
    publisher = Publisher({"t": {5: react(keep)}})
    publisher.publish(1)
    publisher.put(5, react(keep, suspended="why"))
    publisher.put(5, react(keep))
    publisher.put(6, react(history=-1))
    assert publisher.got == {6: [1]}


# ── classes ──


def members(*ids: int, **more: Any) -> dict[str, Any]:
    """A class, members alternately of two readers."""
    found = {}
    for at, identifier in enumerate(ids):
        found[identifier] = react(target=(READER, OTHER)[at % 2], group="g", **more)
    return {"t": found}


def test_of_a_class_one_gets_each_message() -> None:
    publisher = Publisher(members(1, 2))
    for number in range(4):
        publisher.publish(number)
    assert publisher.got == {1: [0, 2], 2: [1, 3]}


def test_a_suspended_member_gets_nothing() -> None:
    publisher = Publisher(members(1, 2))
    publisher.put(1, react(group="g", suspended="why"))
    publisher.publish(1)
    publisher.put(2, react(group="g", target=OTHER, suspended="why"))
    assert not publisher.heard() and publisher.publish(2) == []
    assert publisher.got == {2: [1]}


def test_the_last_member_of_a_class_leaves_a_topic_that_nobody_hears() -> None:
    for gone in (False, True):
        publisher = Publisher(members(1))
        if gone:
            publisher.gone()
        publisher.delete(1)
        assert not publisher.heard() and "t" in publisher.messaging._idle


def test_by_metric() -> None:
    """1. The metric is asked once for all members: their values, and the message. 2. The least gets it; another message
    waits in line meanwhile. 3. It fails: in turn. 4. NaN: the same."""
    metric = code("m", 7)
    one = react(group="g", choice="by_metric", metric=metric, value="one")
    publisher = ready({"t": {1: one, 2: react(group="g", value="two"), 3: react()}}, "m")
    publisher.publish("a", x=1)
    publisher.publish("b")
    assert [it.calls for it in publisher.jobs] == [[(("one", "a", 7), {"x": 1}), (("two", "a", 7), {"x": 1})]]
    publisher.ran([2, 1])
    assert publisher.got == {2: [(("a",), {"x": 1})], 3: [(("a",), {"x": 1})]}
    (failure,) = sent(publisher.ran(error="E", text="why"), ReactionFailed)
    assert (failure.subscription, failure.step, failure.error) == (1, -1, "E")
    assert len(publisher.got[3]) == 2 and len(publisher.got.get(1, [])) + len(publisher.got[2]) == 2
    publisher.publish("c")
    (failure,) = sent(publisher.ran([float("nan"), 1]), ReactionFailed)
    assert failure.error == "TypeError" and "expected a number" in failure.text
    assert len(publisher.got[3]) == 3 and len(publisher.got.get(1, [])) + len(publisher.got[2]) == 3


def test_messages_wait_for_a_metric_that_is_not_here_in_order() -> None:
    publisher = Publisher(members(1, 2, choice="by_metric", metric=code("m")))
    assert not publisher.publish(1) and not publisher.publish(2)
    publisher.told(given("m"))
    publisher.ran([2, 1])
    publisher.ran([1, 2])
    assert publisher.got == {2: [1], 1: [2]} and publisher.passing.done


@pytest.mark.parametrize("late", [False, True])
def test_a_metric_that_does_not_come_is_a_failure_and_the_message_goes_in_turn(late: bool) -> None:
    publisher = Publisher(members(1, 2, choice="by_metric", metric=code("m")))
    publisher.publish(1)
    effects = publisher.wait(STALLED_S) if late else publisher.told(given("m", b""))
    (failure,) = sent(effects, ReactionFailed)
    assert (failure.error, failure.step) == ("WaitTimeout" if late else "LookupError", -1)
    assert publisher.got == {1: [1]} and publisher.passing.done


def test_the_one_that_was_chosen_may_have_gone_meanwhile() -> None:
    publisher = ready(members(1, 2, choice="by_metric", metric=code("m")), "m")
    publisher.publish(1)
    publisher.delete(2)
    publisher.ran([2, 1])
    assert publisher.got == {1: [1]} and publisher.passing.done
    publisher.publish(2)
    publisher.delete(1)
    publisher.ran([1])
    assert publisher.passing.done and publisher.got == {1: [1]}


# ── acknowledgement ──


@pytest.mark.parametrize("gone", [False, True])
def test_what_a_member_left_goes_to_another_under_its_number(gone: bool) -> None:
    """1. Two members have two messages each; each acknowledges its first. 2. One goes: its second goes to the other."""
    publisher = Publisher(members(1, 2, ack=True))
    for value in "abcd":
        publisher.publish(value)
    publisher.acknowledge(1, 1)
    publisher.acknowledge(2, 2, peer=OTHER.peer)
    effects = publisher.gone() if gone else publisher.delete(1)
    assert delivered(effects) == [(2, [3], True)]
    if gone:
        assert delivered(publisher.delete(1)) == []
    publisher.acknowledge(2, 3, 4, peer=OTHER.peer)
    assert delivered(publisher.gone(OTHER.peer)) == []
    assert publisher.got == {1: ["a", "c"], 2: ["b", "d", "c"]}


def test_what_the_last_member_left_waits_for_the_next_one() -> None:
    publisher = Publisher(members(1, ack=True))
    publisher.publish("a")
    publisher.publish("b")
    publisher.gone()
    publisher.publish("c")
    effects = publisher.put(2, react(target=OTHER, group="g", ack=True, numbered=True))
    assert delivered(effects) == [(2, [3], False), (2, [1, 2], True)]
    assert publisher.got[2] == ["a", "b"]


def test_an_acknowledgement_of_somebody_else_is_of_no_use() -> None:
    publisher = Publisher(members(1, 2, ack=True))
    publisher.publish("a")
    publisher.acknowledge(1, 1, peer=OTHER.peer)
    publisher.acknowledge(2, 1, peer=OTHER.peer)
    assert delivered(publisher.gone()) == [(2, [1], True)]


def test_what_waits_for_the_code_of_a_member_that_goes_is_for_another() -> None:
    for missing in (True, False):
        publisher = Publisher(
            {"t": {1: react(code(), DELIVER, group="g", ack=True), 2: react(target=OTHER, group="g", ack=True)}}
        )
        if not missing:
            publisher.told(given())
        publisher.publish("a")
        assert delivered(publisher.delete(1)) == [(2, [1], True)]
        if not missing:
            publisher.ran("late")
        assert publisher.got == {2: ["a"]}


def test_what_is_under_way_in_a_member_whose_record_is_put_again_goes_on_from_the_beginning() -> None:
    publisher = ready({"t": {1: react(code(), DELIVER, group="g", ack=True)}})
    publisher.publish("a")
    publisher.put(1, react(code(), DELIVER, group="g", ack=True, suspended="why"))
    publisher.ran("lost")
    publisher.put(1, react(code(), DELIVER, group="g", ack=True))
    publisher.ran("b")
    assert publisher.got == {1: ["b"]}
    publisher.acknowledge(1, 1)
    assert delivered(publisher.delete(1)) == [] and publisher.messaging._groups == {}


def test_what_a_suspended_member_has_is_its_own_until_it_goes() -> None:
    """Another peer's end is none of its business."""
    publisher = Publisher(members(1, 2, 3, ack=True))
    for value in "abc":
        publisher.publish(value)
    publisher.put(1, react(group="g", ack=True, suspended="why"))
    assert delivered(publisher.gone(OTHER.peer)) == [(3, [2], True)]
    publisher.acknowledge(1, 1)
    assert delivered(publisher.delete(1)) == []


def test_a_member_at_its_limit_leaves_what_comes_too_late_to_others() -> None:
    publisher = ready({"t": {1: react(code(), DELIVER, group="g", ack=True, limit=1)}})
    publisher.publish("a")
    publisher.publish("b")
    assert sent(publisher.ran("A"), ReactionStopped)
    publisher.ran("B")
    assert publisher.got == {1: ["A"]}
    assert delivered(publisher.put(2, react(target=OTHER, group="g", ack=True))) == [(2, [2], True)]
    assert publisher.got[2] == ["b"]


def test_what_operations_keep_back_is_done() -> None:
    """Also where another reaction delivers the same message, and another class gets it."""
    one, other = (react(code(), DELIVER, group=name, ack=True) for name in "gh")
    publisher = ready({"t": {1: one, 2: other, 3: react(numbered=True)}})
    publisher.publish("a")
    publisher.ran(None)
    publisher.ran(error="E")
    assert all(not group.open for group in publisher.messaging._groups["t"].values())
    publisher.publish("b")
    publisher.ran("B")
    publisher.ran(None)
    open_ = {name: set(group.open) for name, group in publisher.messaging._groups["t"].items()}
    assert open_ == {"g": {2}, "h": set()}


def test_a_member_that_does_not_acknowledge_is_not_waited_for() -> None:
    publisher = Publisher({"t": {1: react(group="g", ack=True), 2: react(group="g", target=OTHER)}})
    for number in range(4):
        publisher.publish(number)
    assert set(publisher.messaging._groups["t"]["g"].open) == {1, 3}


def test_what_waits_for_credit_at_a_member_that_goes_is_for_another() -> None:
    publisher = Publisher(members(1, 2, ack=True, capacity=1))
    for value in "abcd":
        publisher.publish(value)
    publisher.gone()
    for number in (2, 4, 1):
        publisher.acknowledge(2, number, peer=OTHER.peer)
    assert publisher.got == {1: ["a"], 2: ["b", "d", "a", "c"]}


def test_what_the_policy_of_a_member_leaves_out_is_done() -> None:
    publisher = Publisher(members(1, ack=True, capacity=1, overflow="latest"))
    for value in "abc":
        publisher.publish(value)
    assert set(publisher.messaging._groups["t"]["g"].open) == {1, 3}


def test_a_class_and_its_reactions_with_code_run_side_by_side() -> None:
    publisher = ready(members(1, 2))
    publisher.put(3, react(code(), DELIVER))
    effects = publisher.publish("a")
    assert [type(it) for it in effects if isinstance(it, RunCode)] == [RunCode]
    assert publisher.got == {1: ["a"]}


def test_a_new_value_of_its_owner_leaves_alone_what_is_under_way() -> None:
    publisher = ready(members(1, 2, choice="by_value"), "f")
    chains = {identifier: react(code(), DELIVER, group="g", choice="by_value", value=value)
              for identifier, value in ((1, 1), (2, 2))}  # fmt: skip
    for identifier, reaction in chains.items():
        publisher.put(identifier, reaction)
    publisher.publish("under way")
    publisher.put(1, react(code(), DELIVER, group="g", choice="by_value", value=3))
    publisher.ran("done")
    publisher.publish("after")
    publisher.ran("second")
    assert publisher.got == {1: ["done"], 2: ["second"]}
