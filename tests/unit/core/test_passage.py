"""Messages in chains: code, failures, limits, cells, windows, code objects."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from raskid.core import passage as passage_module
from raskid.core.chains import FAILURES_MAX
from raskid.core.effects import DropCode, Introduce, ReactionReported, RunCode, Send
from raskid.core.events import CodeRan
from raskid.core.passage import STALLED_S
from raskid.model.ids import CodeId, PeerId, RequestId
from raskid.model.operations import Operation
from raskid.protocol.messages import (
    AskCode,
    Code,
    Deliver,
    Delivered,
    PutRecord,
    ReactionFailed,
    ReactionStopped,
    Record,
    RecordPut,
    RecordSettled,
    RequestRefused,
)
from raskid.protocol.reactions import decode_reaction, encode_reaction
from raskid.protocol.values import decode_value
from tests.unit.core.publishers import (
    CONSUME,
    DELIVER,
    HUB,
    OTHER,
    READER,
    WHERE,
    CheckCode,
    Passed,
    Publisher,
    code,
    given,
    plain,
    react,
    sent,
    texts,
)

GATHER = Operation("gather", (), {"seconds": 5})


def ready(*names: str, **topics: Any) -> Publisher:
    """A publisher that has its code."""
    publisher = Publisher(topics)
    for name in names or ("f",):
        publisher.told(given(name))
    return publisher


# ── code ──


def test_code_runs_elsewhere_and_its_result_goes_on() -> None:
    """1. The record came, and with it the question for the code. 2. The code is here. 3. A message: a job. 4. Its
    result is delivered, and the message is through."""
    publisher = Publisher({"t": {5: react(code("f", 10, unit="s"), DELIVER)}})
    assert publisher.first[:3] == [publisher.first[0], Introduce(READER), Send(HUB, AskCode(CodeId("f")))]
    assert publisher.told(given()) == []
    effects = publisher.publish(1, x=2, unit="m")
    assert effects == [RunCode(1, Code(CodeId("f"), b"code"), [((1, 10), {"x": 2, "unit": "s"})], 10.0)]
    assert not publisher.passing.done
    effects = publisher.ran({"y": 3})
    assert effects[0] == Passed(publisher.passing.id)
    assert texts(effects) == [((), {"y": 3})] and publisher.passing.done
    assert publisher.messaging.next_deadline() is None


@pytest.mark.parametrize(
    ("value", "got"), [(None, []), (7, [7]), ([1, 2], [[1, 2]]), ({}, [((), {})]), (False, [False])]
)
def test_what_code_returns(value: Any, got: list[Any]) -> None:
    publisher = ready(t={5: react(code(), DELIVER)})
    publisher.publish(1)
    assert texts(publisher.ran(value)) == got
    assert publisher.passing.done


def test_an_error_is_told_to_the_owner_with_the_message() -> None:
    publisher = ready(t={5: react(Operation("choose", ("x",)), code(), DELIVER)})
    publisher.publish(1, x=2)
    (failure,) = sent(publisher.ran(error="KeyError", text="'y'"), ReactionFailed)
    assert (failure.subscription, failure.topic, failure.step) == (5, "t", 1)
    assert (failure.error, failure.text, failure.failures, failure.where) == ("KeyError", "'y'", 1, WHERE)
    assert plain(failure.body) == ((), {"x": 2}) and not failure.suspended
    assert publisher.passing.done and publisher.got == {}


def test_ten_failures_in_a_row_suspend_it_and_its_owner_wakes_it() -> None:
    """1. Ten errors: the last report says that it is suspended, and nobody hears the topic any more. 2. The owner puts
    the record as suspended, and then not: messages go through it again. 3. Failures count anew."""
    publisher = ready(t={5: react(code(), DELIVER)})
    for number in range(FAILURES_MAX):
        assert publisher.heard()
        publisher.publish(number)
        (failure,) = sent(publisher.ran(error="E", text="why"), ReactionFailed)
        assert failure.suspended is (number == FAILURES_MAX - 1)
    assert not publisher.heard() and "t" not in publisher.messaging.complex
    assert publisher.publish(1) == [] and not publisher.jobs
    publisher.put(5, react(code(), DELIVER, suspended="it failed"))
    assert not publisher.heard()
    publisher.put(5, react(code(), DELIVER))
    publisher.publish(2)
    assert texts(publisher.ran(3)) == [3]
    publisher.publish(2)
    assert sent(publisher.ran(error="E"), ReactionFailed)[0].failures == 1


def test_what_is_not_as_declared_never_suspends_a_reaction() -> None:
    """The owner is told of the first ones, and then ever less often; what is as declared goes through all the time."""
    publisher = Publisher({"t": {5: react(Operation("check", (), {"type": "int"}), DELIVER)}})
    assert sent(publisher.first, ReactionFailed) == []
    reports = [it for _ in range(40) for it in sent(publisher.publish("no number"), ReactionFailed)]
    assert [it.failures for it in reports] == [*range(1, 11), 16, 32]
    assert not any(it.suspended for it in reports) and publisher.heard()
    publisher.publish(1)
    assert publisher.got == {5: [1]}


def test_in_a_row_means_that_no_message_came_to_the_end_between() -> None:
    publisher = ready(t={5: react(code(), DELIVER)})
    reports = 0
    for number in range(40):
        publisher.publish(number)
        if number % 5 == 4:
            publisher.ran(1)
        else:
            reports += len(sent(publisher.ran(error="E"), ReactionFailed))
    assert publisher.heard()
    assert reports == 10 + 2, "32 failures: the first ten, and then the 16th and the 32nd"


def test_messages_come_out_of_two_pieces_of_code_in_order() -> None:
    publisher = ready("f", "g", t={5: react(code("f"), code("g"), DELIVER)})
    for number in (1, 2, 3):
        publisher.publish(number)
    for _ in range(6):
        job = publisher.jobs[0]
        publisher.ran(job.calls[0][0][0])
    assert publisher.got == {5: [1, 2, 3]} and not publisher.jobs


def test_a_job_that_is_not_known_is_left_out() -> None:
    publisher = ready(t={5: react(code(), DELIVER)})
    assert publisher.take(CodeRan(9, [1])) == []


def test_code_that_takes_long_is_looked_at() -> None:
    publisher = ready(t={5: react(code(), DELIVER, seconds=2.0)})
    publisher.publish(1)
    assert publisher.messaging.next_deadline() == 2.0
    assert publisher.wait(1.9) == []
    assert publisher.wait(0.1) == [CheckCode(1)]
    assert publisher.messaging.next_deadline() == 4.0
    (failure,) = sent(publisher.ran(error="WaitTimeout", text="2 s"), ReactionFailed)
    assert failure.error == "WaitTimeout"


# ── code that is not here ──


def test_messages_wait_for_their_code_and_go_on_in_order() -> None:
    publisher = Publisher({"t": {5: react(code(), DELIVER)}})
    assert publisher.publish(1) == [] and publisher.publish(2) == [], "it has been asked for"
    assert publisher.messaging.waits(lambda peer: True)
    effects = publisher.told(given())
    assert [it.calls[0][0] for it in effects if isinstance(it, RunCode)] == [(1,), (2,)]
    publisher.ran(10)
    publisher.ran(20)
    assert publisher.got == {5: [10, 20]} and not publisher.messaging.waits(lambda peer: True)


def test_only_the_hub_gives_code() -> None:
    publisher = Publisher({"t": {5: react(code(), DELIVER)}})
    publisher.publish(1)
    publisher.messaging._lists.hub = PeerId("another")
    assert publisher.told(given()) == [] and not publisher.jobs


def test_code_that_nobody_has_is_a_failure_of_each_message() -> None:
    publisher = Publisher({"t": {5: react(code(), DELIVER)}})
    publisher.publish(1)
    first = publisher.passing
    publisher.publish(2)
    effects = publisher.told(given(blob=b""))
    failures = sent(effects, ReactionFailed)
    assert [(it.error, it.step, plain(it.body)) for it in failures] == [("LookupError", 0, 1), ("LookupError", 0, 2)]
    assert first.done and publisher.passing.done
    assert publisher.publish(3) == [Send(HUB, AskCode(CodeId("f")))], "asked again: somebody may have it by now"


def test_waiting_for_code_has_a_limit_in_time() -> None:
    publisher = Publisher({"t": {5: react(code(), DELIVER)}})
    publisher.publish(1)
    assert publisher.messaging.next_deadline() == STALLED_S
    assert publisher.wait(STALLED_S - 1) == []
    (failure,) = sent(publisher.wait(1), ReactionFailed)
    assert failure.error == "WaitTimeout" and f"within {STALLED_S:g} s" in failure.text
    assert publisher.messaging.next_deadline() is None and publisher.passing.done


def test_waiting_for_code_has_a_limit_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage_module, "STALLED_MAX", 2)
    publisher = Publisher({"t": {5: react(code(), DELIVER)}})
    publisher.publish(1)
    publisher.publish(2)
    (failure,) = sent(publisher.publish(3), ReactionFailed)
    assert "more than 2 messages wait for the code" in failure.text and plain(failure.body) == 3


def test_one_that_waits_for_the_second_code_is_not_overtaken() -> None:
    """The first code is here, the second is not: the first message waits before the second code, the next ones behind
    it wherever they are."""
    publisher = Publisher({"t": {5: react(code("f"), code("g"), DELIVER)}})
    publisher.told(given("f"))
    publisher.publish(1)
    publisher.ran(1)
    publisher.publish(2)
    assert not publisher.jobs
    publisher.told(given("g"))
    while publisher.jobs:
        publisher.ran(publisher.jobs[0].calls[0][0][0])
    assert publisher.got == {5: [1, 2]}


def test_code_that_nobody_names_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage_module, "CODES_MAX", 1)
    publisher = ready(t={5: react(code(), DELIVER)})
    publisher.messaging.add_code(Code(CodeId("old"), b"x"))
    publisher.told(given("g"))
    assert set(publisher.messaging._passage.codes) == {"f"}
    publisher.put(6, react(code("h"), DELIVER))
    publisher.told(given("h"))
    assert set(publisher.messaging._passage.codes) == {"f", "h"}


def test_what_nobody_waits_for_is_left_out_beyond_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Nobody waits: the third message is left out, and the owner told. 2. However often that happens, the reaction
    is at work. 3. Whoever waits is let in."""
    monkeypatch.setattr(passage_module, "JOBS_MAX", 2)
    publisher = ready(t={5: react(code(), DELIVER)})
    for number in (1, 2):
        assert sent(publisher.publish_unawaited(number), ReactionFailed) == []
    (failure,) = sent(publisher.publish_unawaited(3), ReactionFailed)
    assert (failure.error, failure.step, plain(failure.body)) == ("Overflow", 0, 3) and not failure.suspended
    reports = [it for number in range(39) for it in sent(publisher.publish_unawaited(number), ReactionFailed)]
    assert [it.failures for it in reports] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 32] and publisher.heard()
    publisher.publish(4)
    for number in (1, 2, 4):
        publisher.ran(number)
    assert publisher.got == {5: [1, 2, 4]} and not publisher.jobs


# ── the end of a reaction ──


@pytest.mark.parametrize("end", ["gone", "deleted", "replaced"])
def test_code_that_has_not_begun_does_not_run_when_the_reaction_ends(end: str) -> None:
    """1. Three messages: the first is in the code, two stand behind. 2. The reaction ends: all are dropped, and the
    two are through. 3. The first is through when its code is. 4. What is told of the others harms nothing."""
    publisher = ready("f", "g", t={5: react(code(), DELIVER), 6: react(code("g"), DELIVER, target=OTHER)})
    passings = []
    for number in (1, 2, 3):
        publisher.publish(number)
        passings.append(publisher.passing)
    if end == "gone":
        effects = publisher.gone()
    else:
        effects = publisher.delete(5) if end == "deleted" else publisher.put(5, react(code("g"), DELIVER))
    assert [it.job for it in effects if isinstance(it, DropCode)] == [1, 3, 5]
    assert [it.pending for it in passings] == [2, 1, 1]
    publisher.ran(7)
    assert passings[0].pending == 1
    for job in range(5):
        publisher.ran(job)
    assert [it.done for it in passings] == [True] * 3
    assert publisher.got == {6: [0, 2, 4]} and not publisher.jobs


def test_a_metric_of_a_reaction_that_ends_is_not_asked_and_the_message_goes_in_turn() -> None:
    more: dict[str, Any] = {"group": "g", "choice": "by_metric", "metric": code()}
    publisher = ready(t={5: react(**more), 6: react(target=OTHER, **more)})
    publisher.publish(1)
    assert DropCode(1) in publisher.delete(5)
    assert sent(publisher.ran(error="Dropped"), ReactionFailed) == [] and publisher.got == {6: [1]}


def test_a_message_takes_its_hops_into_code() -> None:
    publisher = ready(t={5: react(code(), DELIVER)}, s={6: react(Operation("forward", ("t",)), DELIVER)})
    publisher.publish(1, topic="s")
    publisher.publish(1)
    assert [it.hops for it in publisher.jobs] == [1, 0]


@pytest.mark.parametrize("gone", [False, True])
def test_what_is_under_way_in_code_goes_no_further_when_the_reaction_ends(gone: bool) -> None:
    publisher = ready(t={5: react(code(), DELIVER), 6: react(target=OTHER)})
    publisher.publish(1)
    effects = publisher.gone() if gone else publisher.delete(5)
    assert sent(effects, Delivered) == ([] if gone else [Delivered(RequestId(5), 0)])
    assert publisher.ran(7) == [Passed(publisher.passing.id)] and publisher.got == {6: [1]}
    publisher.publish(2)
    publisher.delete(5)
    assert publisher.got == {6: [1, 2]}


@pytest.mark.parametrize("gone", [False, True])
def test_what_waits_for_code_goes_no_further_when_the_reaction_ends(gone: bool) -> None:
    publisher = Publisher({"t": {5: react(code(), DELIVER)}})
    publisher.publish(1)
    effects = publisher.gone() if gone else publisher.delete(5)
    assert Passed(publisher.passing.id) in effects and sent(effects, ReactionFailed) == []
    assert publisher.told(given()) == [] and publisher.messaging.next_deadline() is None


@pytest.mark.parametrize("gone", [False, True])
def test_a_clean_up_runs_once_when_the_reaction_ends(gone: bool) -> None:
    publisher = ready("c", t={5: react(cleanup=code("c", 1, x=2))})
    effects = publisher.gone() if gone else publisher.delete(5)
    assert [(it.calls, it.code.code) for it in effects if isinstance(it, RunCode)] == [([((1,), {"x": 2})], "c")]
    if gone:
        assert not any(isinstance(it, RunCode) for it in publisher.delete(5)), "the hub says so as well"
    (failure,) = sent(publisher.ran(error="OSError", text="no"), ReactionFailed)
    assert (failure.step, failure.error) == (-1, "OSError")


def test_the_end_of_a_reaction_lets_its_windows_go() -> None:
    """Section 2, rule 6 of the operations: through what stands behind them, before the owner hears of the end."""
    publisher = Publisher({"t": {5: react(GATHER, DELIVER)}})
    publisher.publish(1)
    publisher.publish(2)
    effects = publisher.delete(5)
    assert [type(it) for it in (*sent(effects, Deliver), *sent(effects, Delivered))] == [Deliver, Delivered]
    assert texts(effects) == [[1, 2]]


def test_windows_of_an_owner_that_went_are_not_for_it() -> None:
    publisher = Publisher(
        {"t": {5: react(GATHER, DELIVER, Operation("forward", ("u",)))}, "u": {6: react(target=OTHER)}}
    )
    publisher.publish(1)
    assert texts(publisher.gone()) == [[1]] and publisher.got == {6: [[1]]}


# ── windows ──


def test_windows_end_by_time() -> None:
    publisher = Publisher({"t": {5: react(GATHER, DELIVER)}})
    publisher.now = 1.0
    publisher.publish(1)
    publisher.publish(2)
    assert publisher.messaging.next_deadline() == 6.0
    assert publisher.wait(4.9) == [] and texts(publisher.wait(0.1)) == [[1, 2]]
    assert publisher.messaging.next_deadline() is None


def test_a_window_of_a_suspended_reaction_wakes_nobody() -> None:
    publisher = Publisher({"t": {5: react(Operation("reduce", (), {"how": "sum", "seconds": 5}), DELIVER)}})
    publisher.publish(1)
    for _ in range(FAILURES_MAX):
        publisher.publish("x")
    assert not publisher.heard() and publisher.messaging.next_deadline() is None
    assert publisher.wait(10) == []


def test_leaving_lets_all_windows_go() -> None:
    publisher = Publisher({"t": {5: react(GATHER, DELIVER)}, "u": {6: react(GATHER, DELIVER)}})
    publisher.publish(1)
    publisher.publish(2, topic="u")
    assert texts(publisher.note(publisher.messaging.flush_windows(1.0))) == [[1], [2]]


def test_what_a_window_gives_runs_through_code() -> None:
    publisher = ready(t={5: react(GATHER, code(), DELIVER)})
    publisher.publish(1)
    publisher.wait(5)
    assert texts(publisher.ran("all")) == ["all"]


# ── failures of operations ──


class Hostile:
    """A value whose methods raise, with an error that has no text."""

    def __eq__(self, other: object) -> bool:
        raise Untold

    __hash__ = None  # type: ignore[assignment]


class Untold(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def test_a_value_that_raises_harms_nobody() -> None:
    publisher = Publisher({"t": {5: react(Operation("filter", (), {"x": 1}), DELIVER), 6: react(code(), target=OTHER)}})
    publisher.told(given())
    (failure,) = sent(publisher.publish(x=Hostile()), ReactionFailed)
    assert (failure.error, failure.text, failure.body) == ("Untold", "its text cannot be had", b"")
    assert len(publisher.jobs) == 1


def test_texts_that_cannot_be_written_are_written_otherwise() -> None:
    publisher = ready(t={5: react(code(), DELIVER)})
    publisher.publish(1)
    (failure,) = sent(publisher.ran(error="KeyError", text="\udc80 " * 3000), ReactionFailed)
    assert failure.text.startswith("\\udc80 ")


def test_a_message_that_cannot_be_sent_fails_where_it_is_to_be() -> None:
    publisher = ready(t={5: react(code(), DELIVER)})
    publisher.publish(1)
    (failure,) = sent(publisher.ran(object()), ReactionFailed)
    assert (failure.error, failure.step) == ("ValueNotSendable", 1)


def test_a_long_message_is_not_sent_along() -> None:
    publisher = ready(t={5: react(code())})
    publisher.publish("x" * 100_000)
    (failure,) = sent(publisher.ran(error="E", text="y" * 10_000), ReactionFailed)
    assert failure.body == b"" and len(failure.text) == passage_module.TEXT_CHARS_MAX


def test_failures_of_a_reaction_whose_owner_has_left_it_here_are_reported_here() -> None:
    publisher = Publisher({"t": {}})
    publisher.put(5, react(code()), owned=False)
    publisher.told(given())
    publisher.publish(1)
    effects = publisher.ran(error="E")
    (report,) = [it for it in effects if isinstance(it, ReactionReported)]
    assert report.peer == "" and sent(effects, ReactionFailed) == []


@pytest.mark.parametrize("limited", [False, True])
def test_a_reaction_whose_owner_has_left_it_here_is_suspended_in_its_record(limited: bool) -> None:
    """1. The tenth failure: its publisher puts the record with a reason, once, and is refused. 2. The record
    comes: it is suspended. 3. One whose code must not be run would be another's by that, and is left as it is."""
    publisher = Publisher({"t": {}})
    reaction = react(
        Operation("choose", ("x",)), Operation("sample", (), {"every": 1}), Operation("set", ("cells:c", "value"))
    )
    record = Record("5", encode_reaction(reaction), PeerId(""), limited)
    publisher.versions["t"] += 1
    publisher.told(RecordPut("reactions:t", publisher.versions["t"], record))
    puts = [it for _ in range(FAILURES_MAX) for it in sent(publisher.publish(x="x" * 300_000), PutRecord)]
    assert not publisher.heard()
    if limited:
        assert puts == []
        return
    (put,) = puts
    assert (put.name, put.record, put.permanent) == ("reactions:t", "5", True)
    suspended = decode_reaction(put.value)
    assert suspended.suspended == f"it failed 10 times at {WHERE}, last with ValueNotSendable"
    assert msgspec.structs.replace(suspended, suspended="") == reaction
    assert publisher.told(RequestRefused(put.request, "AccessDenied", "no")) == []
    publisher.put(5, suspended, owned=False)
    assert not publisher.heard()


# ── limits ──


def test_after_so_many_messages_a_reaction_is_over() -> None:
    publisher = Publisher({"t": {5: react(limit=2)}})
    assert sent(publisher.publish(1), ReactionStopped) == []
    assert sent(publisher.publish(2), ReactionStopped) == [ReactionStopped(RequestId(5), 2)]
    assert not publisher.heard() and publisher.publish(3) == []
    assert publisher.got == {5: [1, 2]}


def test_only_what_comes_through_counts() -> None:
    publisher = Publisher({"t": {5: react(Operation("filter", ([0, ">", 1],)), DELIVER, limit=2)}})
    for number in (1, 2, 0, 3, 4):
        publisher.publish(number)
    assert publisher.got == {5: [2, 3]}


def test_of_what_is_under_way_in_code_the_first_count() -> None:
    publisher = ready(t={5: react(code(), DELIVER, limit=2)})
    for number in (1, 2, 3, 4):
        publisher.publish(number)
    publisher.ran(None)
    assert sent(publisher.ran(2), ReactionStopped) == []
    assert sent(publisher.ran(3), ReactionStopped) == [ReactionStopped(RequestId(5), 2)]
    assert publisher.ran(4) == [Passed(publisher.passing.id)]
    assert publisher.got == {5: [2, 3]} and not publisher.heard()


def test_one_that_counts_already_goes_on_to_the_end() -> None:
    """1. The message is delivered before its code, and so it counts, once. 2. Another one comes too late. 3. The code
    is through: the first one's result is delivered, too."""
    publisher = ready(t={5: react(DELIVER, code(), DELIVER, limit=1)})
    effects = publisher.publish(1)
    assert sent(effects, ReactionStopped) == [ReactionStopped(RequestId(5), 1)]
    publisher.publish(2)
    publisher.ran(10)
    assert publisher.got == {5: [1, 10]} and not publisher.heard()


def test_a_message_counts_once_however_often_it_is_delivered() -> None:
    publisher = ready(t={5: react(DELIVER, code(), DELIVER, limit=2)})
    for number in (1, 2):
        publisher.publish(number)
        publisher.ran(10 * number)
    assert publisher.got == {5: [1, 10, 2, 20]}


def test_a_record_that_is_put_again_does_not_count_anew() -> None:
    publisher = Publisher({"t": {5: react(limit=2)}})
    publisher.publish(1)
    publisher.put(5, react(limit=2, suspended="why"))
    publisher.put(5, react(limit=2))
    publisher.publish(2)
    publisher.publish(3)
    assert publisher.got == {5: [1, 2]}


# ── cells ──


def test_of_values_for_a_cell_the_latest_follows_the_one_under_way() -> None:
    publisher = Publisher({"t": {5: react(Operation("set", ("cells:c", "value"), {"permanent": True}))}})
    (first,) = sent(publisher.publish(1), PutRecord)
    assert (first.name, first.record, decode_value(first.value), first.permanent) == ("cells:c", "value", 1, True)
    assert sent([*publisher.publish(2), *publisher.publish(x=3)], PutRecord) == []
    (second,) = sent(publisher.told(RecordSettled(first.request, 1)), PutRecord)
    assert decode_value(second.value) == {"x": 3} and publisher.messaging._passage.skipped == 1
    assert publisher.told(RecordSettled(second.request, 2)) == []
    assert len(sent(publisher.publish(4), PutRecord)) == 1


def test_a_cell_that_is_refused_is_a_failure_and_the_next_value_follows() -> None:
    publisher = Publisher({"t": {5: react(Operation("set", ("cells:c", "value")))}})
    (first,) = sent(publisher.publish(1), PutRecord)
    publisher.publish(2)
    effects = publisher.told(RequestRefused(first.request, "NotAllowed", "no"))
    (failure,) = sent(effects, ReactionFailed)
    assert failure.error == "NotAllowed" and "'cells:c' was not set: no" in failure.text
    assert [decode_value(it.value) for it in sent(effects, PutRecord)] == [2]


def test_a_value_too_large_for_a_cell_is_a_failure() -> None:
    publisher = Publisher({"t": {5: react(Operation("set", ("cells:c", "value")))}})
    (failure,) = sent(publisher.publish(bytes(300_000)), ReactionFailed)
    assert failure.error == "ValueNotSendable" and "a cell holds 262,144" in failure.text


# ── consume ──


def test_consume_without_code_ends_a_message_at_once() -> None:
    publisher = Publisher({"t": {5: react(), 6: react(Operation("filter", (), {"x": 1}), CONSUME, priority=1)}})
    publisher.publish(x=1)
    publisher.publish(x=2)
    assert publisher.got == {5: [((), {"x": 2})]} and publisher.passing.done


def test_consume_before_code_makes_nobody_wait() -> None:
    publisher = ready(t={5: react(), 6: react(CONSUME, code(), DELIVER, priority=1)})
    publisher.publish(1)
    publisher.publish(2)
    assert len(publisher.jobs) == 2 and publisher.got == {}
