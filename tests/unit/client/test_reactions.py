"""Reactions as users put them together, between two sessions at a real head."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings

import pytest

from raskid.client.handles import describe_failure, shown
from raskid.client.reactions import Op
from raskid.core.chains import FAILURES_MAX
from raskid.core.effects import ReactionReported
from raskid.model.errors import SessionClosed, TopicNameError, ValueNotSendable, WaitTimeout
from raskid.model.operations import FILTER, Operation
from raskid.protocol.messages import PutRecord, ReactionFailed
from tests.unit.client.systems import until


def times(value, factor=2):
    return value * factor


def fields(value, **more):
    return {"value": value, **more}


def only_even(value):
    return value if value % 2 == 0 else None


def fail(value):
    raise ValueError(f"cannot do {value}")


def no_message(value):
    return object()


@pytest.fixture
def topic(request):
    """A topic of the test's own."""
    return request.node.name[:200]


def values(subscription, count):
    return [subscription.get(5).value for _ in range(count)]


@pytest.mark.parametrize(
    ("build", "given", "expected"),
    [
        (lambda d: d.map(times), [1, 2], [2, 4]),
        (lambda d: d.map(times, 10), [1, 2], [10, 20]),
        (lambda d: d.map(times, factor=3).map(times), [1], [6]),
        (lambda d: d.map(only_even), [1, 2, 3, 4], [2, 4]),
        (lambda d: d.filter(0, ">", 2), [1, 2, 3], [3]),
        (lambda d: d.filter((0, ">", 1), (0, "<", 4)), [1, 2, 3, 4], [2, 3]),
        (lambda d: d.sample(every=2), [1, 2, 3, 4], [1, 3]),
        (lambda d: d.reduce("mean", count=2), [1, 3, 5, 7], [2.0, 6.0]),
        (lambda d: d.reduce("sum", count=3).map(times), [1, 2, 3], [12]),
        (lambda d: d.gather(count=2), [1, 2, 3, 4], [[1, 2], [3, 4]]),
        (lambda d: d.check(int, min=0), [1, 2], [1, 2]),
        (lambda d: d.add(Operation(FILTER, ([0, "==", 2],))), [1, 2], [2]),
    ],
)  # fmt: skip
def test_what_a_chain_makes_of_messages(rk, other, topic, build, given, expected):
    with rk.subscribe(topic + "/out") as out, build(rk.react(topic)).forward(topic + "/out"):
        for value in given:
            other.publish(topic, value)
        assert values(out, len(expected)) == expected


def test_fields_are_chosen_and_compared(rk, other, topic):
    with rk.react(topic).filter(kind="a").choose("x").deliver() as handle:
        for kind, x in (("b", 1), ("a", 2)):
            other.publish(topic, 0, kind=kind, x=x)
        message = handle.subscription.get(5)
        assert (message.args, message.fields) == ((), {"x": 2})


def test_code_runs_where_the_message_is_published_before_publish_returns(rk, other, topic):
    """1. Code changes nothing of the message but looks at it. 2. The publisher changes it as soon as it may."""
    given = [1]
    with rk.subscribe(topic + "/out") as out, rk.react(topic, rk.op(times, 3)).forward(topic + "/out"):
        other.publish(topic, given)
        given.append(2)
        message = out.get(5)
    assert message.value == [1, 1, 1] and message.publisher == other.peer.identity.peer


def test_a_consumed_message_goes_no_further(rk, other, topic):
    with (
        rk.react(topic, priority=1).filter(0, ">", 1).consume().deliver() as first,
        rk.subscribe(topic) as second,
    ):
        for value in (1, 2, 3):
            other.publish(topic, value)
        assert values(first.subscription, 2) == [2, 3]
        assert values(second, 1) == [1]
        with pytest.raises(WaitTimeout):
            second.get(0)


def test_action_at_the_publisher_and_done_here(rk, other, topic):
    got = []
    with rk.react(topic, action=times, done=lambda message: got.append(message.value)) as handle:
        other.publish(topic, 4)
        until(lambda: got == [8])
        assert shown(handle.operations) == "map(times) | deliver"
    with rk.react(topic, action=times) as handle:
        other.publish(topic, 4)
        assert handle.subscription is None and "map(times), at work" in repr(handle)
    assert got == [8]


def test_a_cell_is_set_to_what_comes_out(rk, other, topic):
    cell = rk.cell(topic + "/cell")
    with rk.react(topic).map(times).set(cell), rk.react(topic).set(topic + "/named"):
        other.publish(topic, 21)
        until(lambda: cell.get() == 42)
    named = other.cell(topic + "/named")
    until(lambda: named.get() == 21)


def test_a_reaction_sets_no_cell_past_its_declaration(rk, other, topic):
    """What the handle declares is checked at the publisher: the cell keeps its value, and the owner hears of it."""
    cell, told = rk.cell(topic + "/cell", type=int, min=0), []
    with rk.react(topic, on_error=told.append).set(cell):
        for value in ("text", -1, 7):
            other.publish(topic, value)
        assert cell.wait(timeout=5) == 7 and cell.rejected == 0
        until(lambda: len(told) == 2)
        assert [each.message.value for each in told] == ["text", -1]
    state = rk.cell(topic + "/state", type=dict)
    with rk.react(topic).set(state):
        other.publish(topic, step=5)
        assert state.wait(timeout=5) == {"step": 5}


def test_a_reaction_forwards_into_no_channel_past_its_declaration(rk, other, topic):
    channel, told = rk.channel(topic + "/channel", type=float).listen(), []
    with rk.react(topic, on_error=told.append).forward(channel), rk.subscribe(topic + "/channel") as all_of_it:
        other.publish(topic, "text")
        other.publish(topic, 0.5)
        assert channel.get(5) == 0.5 == all_of_it.get(5).value and channel.rejected == 0
        until(lambda: told)
    assert told[0].message.value == "text"


def test_what_is_kept_comes_first_to_a_later_subscriber(rk, other, topic):
    with rk.react(topic).keep(2):
        for number in range(4):
            other.publish(topic, number)
        with rk.subscribe(topic, history=-1, numbered=True) as messages:
            other.publish(topic, 4)
            assert [(it.value, it.number) for it in (messages.get(5) for _ in range(3))] == [(2, 3), (3, 4), (4, 5)]


def test_a_handle_is_closed_once_and_then_nothing_happens(rk, other, topic):
    handle = rk.react(topic).deliver()
    other.publish(topic, 1)
    assert values(handle.subscription, 1) == [1]
    handle.close()
    handle.close()
    other.publish(topic, 2)
    assert handle.closed and "closed" in repr(handle)
    assert list(handle.subscription) == []
    assert rk.reactions(topic) == [] and rk.reaction_handles == {} and rk.subscriptions == {}
    for call in (handle.suspend, handle.resume):
        with pytest.raises(ValueError, match="was closed"):
            call()


def test_a_suspended_reaction_does_nothing_until_it_is_resumed(rk, other, topic):
    with rk.react(topic).deliver() as handle:
        handle.suspend("to be looked at")
        other.publish(topic, 1)
        assert rk.reactions(topic)[0]["suspended"] == "to be looked at" and "suspended" in repr(handle)
        handle.resume()
        other.publish(topic, 2)
        assert values(handle.subscription, 1) == [2]
        assert handle.suspended == ""


def failed(handle, suspended=True):
    return ReactionFailed(handle.id, handle.topic, 0, "ValueError", "no", b"", FAILURES_MAX, "", suspended)


def test_a_suspension_does_not_put_a_reaction_back_that_is_being_closed(rk, topic):
    """1. A reaction is being closed, and the hub has not confirmed that. 2. A publisher says that it has suspended it;
    the user resumes it, and gives it a value. 3. It is gone."""
    handle = rk.react(topic, on_error=lambda failure: None).map(fail).run()
    closing = handle._closing(5.0)
    deleted, _, _ = next(closing)
    with rk.engine.lock:
        handle.on_failed("p", failed(handle))
    for call in (handle.resume, handle.suspend, lambda: handle.set_value(1)):
        with pytest.raises(ValueError, match="was closed"):
            call()
    with pytest.raises(StopIteration):
        closing.send(deleted.result(5))
    assert rk.reactions(topic) == [] and handle.closed and not handle.suspended


@pytest.mark.parametrize("asynchronous", [False, True])
def test_closing_its_subscription_closes_a_reaction(rk, other, topic, asynchronous):
    handle = rk.react(topic).deliver()
    asyncio.run(handle.subscription.aclose()) if asynchronous else handle.subscription.close()
    with rk.engine.lock:
        handle.on_failed("p", failed(handle))
    with pytest.raises(ValueError, match="was closed"):
        handle.resume()
    assert handle.closed and rk.reaction_handles == {} and rk.reactions(topic) == []
    handle.close()


def test_a_value_is_changed(rk, other, topic):
    """1. Members of a class say that they have a greater value, by the handle and by what it delivers. 2. One is
    suspended and resumed: the value stays."""
    with rk.react(topic, one_of="c", choose_by="by_value", value=1).deliver() as first, rk.react(
        topic, one_of="c", choose_by="by_value", value=2
    ).deliver() as second:  # fmt: skip
        other.publish(topic, "a")
        first.set_value(3)
        other.publish(topic, "b")
        second.subscription.set_value(4)
        first.suspend()
        first.resume()
        other.publish(topic, "c")
        assert values(first.subscription, 2) == ["a", "c"] and values(second.subscription, 1) == ["b"]
        with pytest.raises(ValueNotSendable, match="object"):
            first.set_value(object())
        assert sorted(it["value"] for it in rk.reactions(topic)) == [3, 4]


def test_what_a_member_has_taken_is_no_load_any_more(rk, other, topic):
    with rk.react(topic, one_of="c", choose_by="least_loaded").deliver() as handle:
        other.publish(topic, 1)
        ((member,),) = (group.members for group in other._messaging._groups[topic].values())
        assert member.load == 1
        assert values(handle.subscription, 1) == [1]
        until(lambda: member.load == 0)


class SlowError:
    """A standard error that sees whether the session goes on while it is written to."""

    def __init__(self, lock):
        self.lock = lock
        self.free = []

    def write(self, text):
        def look():
            self.free.append(self.lock.acquire(timeout=1))
            if self.free[-1]:
                self.lock.release()

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    def flush(self):
        pass


def test_nothing_is_printed_under_the_lock(rk, head, other, topic, monkeypatch):
    """1. A reaction fails, and is suspended. 2. One whose owner has gone fails. 3. All is printed, while others may
    take the lock."""
    error = SlowError(other.engine.lock)
    monkeypatch.setattr("sys.stderr", error)
    with other.react(topic).map(fail).run() as handle:
        with other.engine.lock:
            handle.on_failed("p", failed(handle))
        until(lambda: len(error.free) >= 4)
        with other.engine.lock:
            other._on_reaction_reported(ReactionReported("", ReactionFailed(1, topic, 0, "E", "no", b"", 1)))
        until(lambda: len(error.free) >= 6)
    assert all(error.free)


def test_failures_are_told_with_their_message(rk, other, topic):
    told = []
    with rk.react(topic, on_error=told.append).map(times, 1).map(fail).run() as handle:
        other.publish(topic, 5, name="x")
        until(lambda: told)
    with rk.react(topic, on_error=told.append).map(fail).run() as handle:
        other.publish(topic, 5)
        until(lambda: handle.failures == 1 and len(told) == 2)
    first, second = told
    assert first.error == "TypeError" and first.operation == 0
    assert (second.operation, second.error, second.failures) == (0, "ValueError", 1)
    assert second.text.startswith("cannot do 5\n") and 'raise ValueError(f"cannot do {value}")' in second.text
    assert second.publisher.startswith(f"{other.peer.identity.peer} on ")
    assert second.message.value == 5 and second.message.topic == topic
    assert list(handle.last_failures) == [second]


def test_failures_that_nobody_asked_for_are_printed_once_for_each_kind(rk, other, topic, capfd):
    with rk.react(topic).map(fail).run() as handle:
        for _ in range(3):
            other.publish(topic, 5)
        other.publish(topic, 6)
        until(lambda: handle.failures == 4)
    parts = []
    until(lambda: parts.append(capfd.readouterr().err) or "cannot do 6\n" in "".join(parts))
    printed = "".join(parts)
    assert printed.count("cannot do 5\n") == 1 and printed.count("cannot do 6\n") == 1
    assert f"the reaction on {topic!r} failed at {other.peer.identity.peer} on " in printed
    assert "operation 0, map(fail): ValueError" in printed and "the message was <raskid.Message" in printed


def test_one_that_fails_again_and_again_is_suspended_and_can_be_mended(rk, other, topic, capfd):
    told = []
    with rk.react(topic, on_error=told.append).map(fail).run() as handle:
        for number in range(FAILURES_MAX + 3):
            other.publish(topic, number)
        until(lambda: handle.suspended)
        assert handle.failures == FAILURES_MAX == len(handle.last_failures)
        assert f"it failed {FAILURES_MAX} times at" in handle.suspended
        until(lambda: rk.reactions(topic)[0]["suspended"] == handle.suspended)
        until(lambda: len(told) == FAILURES_MAX)
        assert [it.suspends for it in told] == [False] * (FAILURES_MAX - 1) + [True] and not capfd.readouterr().err
        handle.resume()
        other.publish(topic, "again")
        until(lambda: handle.failures == FAILURES_MAX + 1)


def test_a_result_that_cannot_be_sent_is_a_failure_of_the_next_operation(rk, other, topic):
    told = []
    with rk.react(topic, on_error=told.append).map(no_message).forward(topic + "/out"), rk.subscribe(topic + "/out"):
        other.publish(topic, 1)
        until(lambda: told)
    assert (told[0].operation, told[0].error, told[0].message) == (1, "ValueNotSendable", None)


def test_an_on_error_that_raises_harms_nothing(rk, other, topic, capfd):
    with rk.react(topic, on_error=lambda failure: 1 / 0).map(fail).run() as handle:
        other.publish(topic, 5)
        other.publish(topic, 6)
        until(lambda: handle.failures == 2)
        until(lambda: "ZeroDivisionError" in capfd.readouterr().err)
    assert rk.topics("nothing") == {}


def test_a_limit_ends_it_at_each_publisher(rk, other, topic):
    with rk.react(topic, limit=2).deliver() as handle:
        for number in range(4):
            other.publish(topic, number)
        rk.publish(topic, 10)
        assert sorted(values(handle.subscription, 3)) == [0, 1, 10]
        until(lambda: handle.stopped)
        assert handle.stopped == {other.peer.identity.peer: 2}


def test_a_clean_up_runs_where_the_reaction_ran(rk, other, topic):
    with rk.subscribe(topic + "/end") as out, rk.react(topic + "/clean").forward(topic + "/end"):
        told = []
        handle = rk.react(topic, cleanup=rk.op(fail, "away"), on_error=told.append).forward(topic + "/out")
        other.publish(topic, 1)
        handle.close()
        other.publish(topic + "/clean", 1)
        assert values(out, 1) == [1]


def test_that_it_is_suspended_is_printed_where_nobody_asked(rk, other, topic, capfd):
    with rk.react(topic).map(fail).run() as handle:
        for _ in range(FAILURES_MAX):
            other.publish(topic, 1)
        until(lambda: handle.suspended)
        until(lambda: f"{topic!r} is suspended: it failed {FAILURES_MAX} times at" in capfd.readouterr().err)


def test_of_a_class_one_gets_each_message(rk, other, topic):
    members = [rk.react(topic, one_of="workers", value=number).deliver() for number in range(2)]
    for number in range(6):
        other.publish(topic, number)
    got = [values(member.subscription, 3) for member in members]
    assert sorted(got[0] + got[1]) == list(range(6)) and got == [[0, 2, 4], [1, 3, 5]]
    for member in members:
        member.close()


def test_a_class_goes_by_a_function_called_at_the_publisher(rk, other, topic):
    members = [rk.react(topic, one_of="w", value=n, choose_by=distance).deliver() for n in (1, 10)]
    fetch_code(other, topic)
    for number in (2, 9, 0):
        other.publish(topic, number)
    assert values(members[0].subscription, 2) == [2, 0] and values(members[1].subscription, 1) == [9]
    for member in members:
        member.close()


def fetch_code(session, topic):
    """Let a publisher have the code of a topic's reactions; the first message goes to whoever is in turn."""
    session.announce_nowait(topic).result(5)
    until(lambda: session._messaging.codes_in_use() <= session._messaging._passage.codes.keys())


def distance(member, value):
    return abs(member - value)


def test_a_metric_that_fails_is_told_and_the_message_goes_to_somebody(rk, other, topic):
    told = []
    member = rk.react(topic, one_of="w", choose_by=fail_metric, on_error=told.append).deliver()
    fetch_code(other, topic)
    other.publish(topic, 1)
    assert values(member.subscription, 1) == [1]
    until(lambda: told)
    assert told[0].operation == -1 and told[0].error == "ValueError"
    member.close()


def fail_metric(member, value):
    raise ValueError("no measure")


WRONG = {
    "nothing to do": (lambda rk: rk.react("t").run(), ValueError, "does nothing"),
    "a number as an operation": (lambda rk: rk.react("t", 5), TypeError, "rk.op"),
    "text as an operation": (lambda rk: rk.react("t", "times"), TypeError, "rk.op"),
    "a number to map": (lambda rk: rk.react("t").map(5), TypeError, "function"),
    "arguments twice": (lambda rk: rk.react("t").map(rk.op(times, 1), 2), TypeError, "has its arguments already"),
    "no topic": (lambda rk: rk.react(5), TopicNameError, "got int"),
    "no target": (lambda rk: rk.react("t").forward(5), TopicNameError, "got int"),
    "no cell": (lambda rk: rk.react("t").set(5), TypeError, "takes a cell"),
    "a priority of text": (lambda rk: rk.react("t", priority="high"), TypeError, "priority"),
    "a limit below zero": (lambda rk: rk.react("t", limit=-1), ValueError, "limit"),
    "a place that is none": (lambda rk: rk.react("t", place="moon"), ValueError, "'publisher' or 'helper'"),
    "no time": (lambda rk: rk.react("t", seconds=0), ValueError, "seconds is above 0"),
    "ack without a class": (lambda rk: rk.react("t", ack=True), ValueError, "one_of="),
    "a choice without a class": (lambda rk: rk.react("t", choose_by="random"), ValueError, "one_of="),
    "a choice that is none": (lambda rk: rk.react("t", one_of="c", choose_by="best"), ValueError, "choose_by is one"),
    "by metric without one": (lambda rk: rk.react("t", one_of="c", choose_by="by_metric"), ValueError, "a function"),
    "ack at a helper": (lambda rk: rk.react("t", one_of="c", ack=True, place="helper"), ValueError, "the helper"),
    "ack that forwards": (lambda rk: rk.react("t", one_of="c", ack=True).forward("u"), ValueError, "delivers here"),
    "on_error of text": (lambda rk: rk.react("t", on_error="print"), TypeError, "on_error"),
    "done of text": (lambda rk: rk.react("t", done="print"), TypeError, "callback"),
    "permanent delivery": (lambda rk: rk.react("t", permanent=True).deliver(), ValueError, "outlives this process"),
    "two keeps": (lambda rk: rk.react("t").add(Operation("keep", (), {"count": 1})).keep(2), ValueError, "once"),
    "a number names the calls": (lambda rk: rk.react("t", 5), TypeError, r"got 5.*rk\.react\('t'\)\.filter.*, deliver"),
    "a call as text": (lambda rk: rk.react("t", "filter"), TypeError, r"All others are calls.*filter, choose"),
    "a filter as text": (lambda rk: rk.react("t").filter("a > 3"), TypeError, r"'a > 3'.*\.filter\(\"a\", \">\", 3\)"),
    "a filter without operator": (lambda rk: rk.react("t").filter("a", 3), TypeError, r"\.filter\(\"a\", \">\", 3\)"),
    "a filter of two": (
        lambda rk: rk.react("t").filter(("a", 3)),
        ValueError,
        r"2 values.*\.filter\(\"a\", \">\", 3\)",
    ),
    "an operator that is none": (lambda rk: rk.react("t").filter("a", "=", 3), ValueError, r"'='.*The form is"),
    "no condition": (lambda rk: rk.react("t").filter(), ValueError, "no condition.*The form is"),
    "a sample of nothing": (lambda rk: rk.react("t").sample(), Exception, "sample"),
    "an overflow that is none": (lambda rk: rk.react("t").deliver(overflow="spill"), ValueError, "overflow is one of"),
    "an argument that is not sent": (lambda rk: rk.react("t").map(times, object()).run(), ValueNotSendable, "object"),
    "a value that is not sent": (lambda rk: rk.react("t", value=object()).deliver(), ValueNotSendable, "object"),
    "a function with a lock": (lambda rk: rk.react("t").map(holding(threading.Lock())), TypeError, "lock"),
}


def holding(thing):
    def function(value):
        return thing and value

    return function


@pytest.mark.filterwarnings("ignore:the reaction on 't' was never installed")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named_and_installs_nothing(rk, name):
    call, error, text = WRONG[name]
    with pytest.raises(error, match=text):
        call(rk)
    gc.collect()
    assert rk.reactions("t") == [] and rk.reaction_handles == {} and rk.subscriptions == {}


def test_a_draft_that_was_forgotten_is_warned_of(rk):
    with pytest.warns(RuntimeWarning, match="on 'forgotten' was never installed: end it with"):
        rk.react("forgotten").map(times)
        gc.collect()


@pytest.mark.parametrize(
    "call",
    [
        lambda rk: rk.react("t", place="moon"),
        lambda rk: rk.react("t", 5),
        lambda rk: rk.react(5),
        lambda rk: rk.react("t").run(),
        lambda rk: rk.react("t").filter("a > 3"),
        lambda rk: rk.react("t").map(5),
        lambda rk: rk.react("t").map(times).forward(5),
        lambda rk: rk.react("t").map(times).forward(),
        lambda rk: rk.react("t").set(None),
        lambda rk: rk.react("t").done("print"),
        lambda rk: rk.react("t").choose(1),
        lambda rk: rk.react("t").keep(-1),
        lambda rk: rk.link("t", "u", 5),
    ],
)
def test_an_error_is_enough_of_a_warning(rk, call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((TypeError, ValueError, TopicNameError)):
            call(rk)
        gc.collect()


def test_after_an_error_a_draft_goes_on(rk, other, topic):
    draft = rk.react(topic)
    with pytest.raises(TypeError):
        draft.filter("0 > 3")
    with draft.filter(0, ">", 3).deliver() as handle:
        other.publish(topic, 1)
        other.publish(topic, 4)
        assert values(handle.subscription, 1) == [4]


def test_what_is_installed_says_that_nothing_can_be_added(rk, topic):
    with rk.react(topic).keep(3) as handle:
        with pytest.raises(
            AttributeError, match=r"is installed: keep\(count=3\); so \.forward\(\) cannot.*a second one"
        ):
            handle.forward("x")
        with pytest.raises(AttributeError, match="has no attribute 'forwards'"):
            handle.forwards("x")


def test_a_function_that_takes_fewer_fields_is_explained(rk, other, topic, capfd):
    with rk.react(topic).map(times).run() as handle:
        other.publish(topic, 1, u=2)
        until(lambda: handle.failures)
        parts = []
        until(lambda: parts.append(capfd.readouterr().err) or "put .choose('u') before it, or take" in "".join(parts))
    assert "unexpected keyword argument 'u'" in handle.last_failures[0].text


def test_a_draft_is_installed_once(rk, topic):
    draft = rk.react(topic).map(times)
    with draft.forward(topic + "/out"):
        for call in (draft.run, lambda: draft.map(times), lambda: draft.forward("x")):
            with pytest.raises(ValueError, match="is installed already"):
                call()


def test_one_that_the_hub_does_not_confirm_leaves_nothing_behind(rk, head, topic, monkeypatch):
    monkeypatch.setattr("raskid.client.reactions.ANSWER_S", 0.02)
    head.mute.add(PutRecord)
    try:
        with pytest.raises(WaitTimeout, match=f"did not confirm a reaction on {topic!r}"):
            rk.react(topic, timeout=0).deliver()
    finally:
        head.mute.clear()
    assert rk.reaction_handles == {} and rk.subscriptions == {}


def test_code_is_put_to_the_head_once(rk, other, head, topic):
    with rk.react(topic).map(times).map(times, 3).forward(topic + "/1"), rk.react(topic + "/2", times).run():
        assert len(rk._codes_put) == 1
        assert rk.codes_to_put([rk.op(times)]) == []
        assert len(rk.codes_to_put([rk.op(only_even)])) == 1


def test_handles_end_with_their_session(head, topic):
    session = head.session()
    handle = session.react(topic).deliver()
    session.close()
    assert handle.closed and session.reaction_handles == {}
    handle.close()
    with pytest.raises(SessionClosed):
        session.react(topic).deliver()


def test_reactions_are_listed_for_people(rk, other, topic):
    first = rk.react(topic, rk.op(times, 2), priority=3, value={"a": 1}).forward("x/y")
    second = other.react(topic, permanent=True).filter("step", ">", 1).forward("z")
    listed = rk.reactions(topic)
    assert [it["operations"] for it in listed] == [
        "map(times) | forward('x/y')",
        "filter(['step', '>', 1]) | forward('z')",
    ]
    assert listed[0] == {
        "id": str(first.id), "owner": rk.peer.identity.peer, "operations": "map(times) | forward('x/y')",
        "priority": 3, "class": "", "value": {"a": 1}, "permanent": False, "suspended": "",
    }  # fmt: skip
    assert listed[1]["permanent"] is True
    first.close()
    second.close()
    assert rk.reactions(topic) == []


def test_operations_can_be_looked_at(rk):
    op = rk.op(times, 2)
    assert isinstance(op, Op) and repr(op) == "<raskid.Op times>"
    draft = rk.react("t", op)
    assert repr(draft) == "<raskid.Draft of a reaction on 't': map(times)>"
    draft.forget()


def test_a_failure_of_something_else_than_an_operation_is_described():
    from raskid.client.handles import Failure

    text = describe_failure("t", (), Failure("p", -1, "E", "text", None, 1))
    assert text == "raskid: the reaction on 't' failed at p in its clean-up or metric: E: text"
