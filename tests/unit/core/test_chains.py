"""Chains as data: stages, what they want, what they are refused for; and the examples of `docs/operations.json`
run through chains of a publisher."""

from __future__ import annotations

from typing import Any

import pytest

from raskid.core.chains import HAND_ON, Chain, Item, describe, result_item, runs_here
from raskid.model.errors import RemoteProtocolError, ValueNotSendable
from raskid.model.ids import RequestId
from raskid.model.operations import Operation
from raskid.protocol.messages import Deliver, ReactionFailed
from raskid.protocol.reactions import Reaction
from raskid.protocol.values import decode_body, encode_body
from tests.unit.core.publishers import CONSUME, DELIVER, Publisher, code, react, sent
from tests.unit.core.test_operation_vectors import ERRORS, EXAMPLES, read_content, read_operation, same

KEEP = Operation("keep", (), {"count": 1})


def chain(*operations: Operation, begin: int = -1, **more: Any) -> Chain:
    return Chain(RequestId(5), "t", react(*operations, **more), b"", True, begin)


def test_an_item_is_read_and_written_once() -> None:
    item = Item((1,), {"x": 2})
    body = item.encoded()
    assert item.encoded() is body and decode_body(body) == ((1,), {"x": 2})
    read = Item(None, None, body)
    assert read.values() == ((1,), {"x": 2}) and read.values()[1] is read.values()[1] and read.encoded() is body
    with pytest.raises(RemoteProtocolError):
        Item(None, None, b"\xc1").values()
    with pytest.raises(ValueNotSendable):
        Item((object(),), {}).encoded()


@pytest.mark.parametrize(
    ("result", "args", "fields"),
    [
        ({"x": 1}, (), {"x": 1}), ({}, (), {}), ({1: 2}, ({1: 2},), {}), (0, (0,), {}), ([1], ([1],), {}),
        ((1, 2), ((1, 2),), {}), (False, (False,), {}),
    ],
)  # fmt: skip
def test_what_a_function_returns_is_the_next_message(
    result: Any, args: tuple[Any, ...], fields: dict[str, Any]
) -> None:
    item = result_item(result)
    assert item is not None and item.values() == (args, fields)


def test_none_ends_a_message() -> None:
    assert result_item(None) is None


@pytest.mark.parametrize(
    ("operations", "facts"),
    [
        ((DELIVER,), "delivers"),
        ((CONSUME,), "consumes"),
        ((code(), CONSUME), "consumes holds"),
        ((CONSUME, code()), "consumes"),
        ((Operation("sample", (), {"every": 2}), DELIVER), "samples delivers"),
        ((Operation("forward", ("u",)),), "passes_on"),
        ((Operation("forward", ("u",)), DELIVER), "delivers"),
        ((Operation("gather", (), {"count": 2}),), "timed"),
        ((KEEP,), "numbered"),
    ],
)
def test_what_a_chain_is(operations: tuple[Operation, ...], facts: str) -> None:
    it = chain(*operations)
    for name in ("delivers", "consumes", "holds", "samples", "passes_on", "timed", "numbered"):
        assert getattr(it, name) is (name in facts.split()), name
    assert it.active and not it.refused


def test_a_link_with_a_limit_counts_and_does_not_just_pass_on() -> None:
    assert not chain(Operation("forward", ("u",)), limit=1).passes_on


@pytest.mark.parametrize(
    ("operations", "more", "text"),
    [
        ((Operation("sample"),), {}, "sample"),
        ((DELIVER, Operation("deliver", (1,))), {}, "deliver"),
        ((KEEP, KEEP), {}, "one 'keep' at most"),
        ((code(""),), {}, "the id of a code object is empty"),
        ((DELIVER,), {"metric": Operation("nonsense")}, "nonsense"),
        ((DELIVER,), {"cleanup": Operation("code", ("x",))}, "code"),
    ],
)
def test_what_cannot_be_run_is_refused(operations: tuple[Operation, ...], more: dict[str, Any], text: str) -> None:
    it = chain(*operations, **more)
    assert text in it.refused and not it.active


@pytest.mark.parametrize("operation", [Operation("explode"), Operation("code", ("f", "python", "2.7"))])
def test_what_is_not_known_here_is_handed_on(operation: Operation) -> None:
    assert not runs_here(operation)
    it = chain(Operation("sample", (), {"every": 1}), operation, DELIVER)
    assert [stage.op for stage in it.stages] == ["sample", HAND_ON] and it.hand_on == 1
    assert not it.delivers and not it.refused
    hosted = chain(Operation("sample", (), {"every": 1}), operation, DELIVER, begin=1)
    assert "neither by its publisher nor by its owner" in hosted.refused and describe(operation) in hosted.refused


@pytest.mark.parametrize("unknown", [Operation("explode"), Operation("code", ("f", "python", "2.7"))])
@pytest.mark.parametrize(
    ("behind", "more", "lost"),
    [((CONSUME,), {}, "'consume'"), ((DELIVER, KEEP), {}, "'keep'"), ((DELIVER,), {"ack": True}, "acknowledgement")],
)
def test_what_a_host_cannot_do_for_a_publisher_is_refused(
    unknown: Operation, behind: tuple[Operation, ...], more: dict[str, Any], lost: str
) -> None:
    """Nobody hosts it, no message is lost in it, and its owner is told once."""
    it = chain(unknown, *behind, **more)
    assert f"and {lost} can be done by a publisher alone" in it.refused and describe(unknown) in it.refused
    assert not it.active and not it.holds
    helped = chain(*behind, place="helper", **more)
    assert lost in helped.refused and "it is for a helper" in helped.refused
    publisher = Publisher({"t": {5: react(unknown, *behind, **more)}})
    (failure,) = sent(publisher.first, ReactionFailed)
    assert (failure.error, failure.step) == ("ValueError", -1) and not publisher.heard()


def test_what_comes_before_what_is_handed_on_is_done_here() -> None:
    it = chain(CONSUME, KEEP, Operation("explode"), DELIVER)
    assert not it.refused and it.consumes and it.keeper is not None and it.hand_on == 2
    assert not chain(Operation("explode"), CONSUME, begin=1).refused, "at its host"


def test_a_helper_runs_it_all() -> None:
    it = chain(DELIVER, place="helper", cleanup=code())
    assert [stage.op for stage in it.stages] == [HAND_ON] and it.cleanup is None and it.codes() == []
    hosted = chain(DELIVER, place="helper", cleanup=code(), begin=0)
    assert hosted.delivers and hosted.codes() == ["f"]


def test_a_chain_names_its_code() -> None:
    other = Operation("code", ("g", "lua", "5.4"))
    assert chain(code("a"), code("b"), metric=code("m"), cleanup=code("c")).codes() == ["a", "b", "m", "c"]
    assert chain(DELIVER, metric=other).codes() == []


def test_texts_name_code_as_people_do() -> None:
    named = Operation("code", ("f", "python", "3.11"), {"name": "double"})
    assert describe(named) == "the code double (python 3.11)"
    assert describe(Operation("explode")) == "the operation 'explode'"


# ── the examples of the specification (section 6) ──


class Run:
    """A chain of an example with "deliver" behind it, at a publisher."""

    def __init__(self, operations: list[Operation]) -> None:
        self.publisher = Publisher({"t": {5: Reaction(react().target, (*operations, DELIVER), 1000)}})
        assert sent(self.publisher.first, ReactionFailed) == []
        self.seen = 0

    def messages(self, effects: list[Any]) -> list[Any]:
        return [decode_body(body) for message in sent(effects, Deliver) for body in message.bodies]

    def step(self, step: dict[str, Any]) -> tuple[list[Any], list[ReactionFailed]]:
        self.publisher.now = float(step["at"])
        if "message" in step:
            args, fields = read_content(step["message"])
            effects = self.publisher.publish_content(args, fields)
        elif "tick" in step:
            effects = self.publisher.wait(0.0)
        else:
            effects = self.publisher.note(self.publisher.messaging.flush_windows(self.publisher.now))
        return self.messages(effects), sent(effects, ReactionFailed)


@pytest.mark.parametrize("example", EXAMPLES["chains"], ids=lambda example: example["name"])
def test_a_publisher_gives_what_the_example_says(example: dict[str, Any]) -> None:
    """Also after a tick or the end, and with failures told to the owner (section 2, rule 3)."""
    run = Run([read_operation(each) for each in example["operations"]])
    for number, step in enumerate(example["steps"]):
        gives, failures = run.step(step)
        if "raises" in step:
            (failure,) = failures
            assert failure.error == ERRORS[step["raises"]].__name__, f"step {number}: {failure}"
            assert gives == []
            continue
        # What messages carry, is compared: a tuple has become a list.
        expected = [decode_body(encode_body(*read_content(each))) for each in step["gives"]]
        assert failures == [] and same(gives, expected), f"step {number} gave {gives}"


@pytest.mark.parametrize("example", EXAMPLES["refused"], ids=lambda example: example["name"])
def test_wrong_arguments_are_one_failure_and_no_harm(example: dict[str, Any]) -> None:
    """The publisher checks again what came in a record (section 1, rule 4)."""
    operation = read_operation(example["operation"])
    publisher = Publisher({"t": {5: react(operation, DELIVER), 6: react()}})
    failures = sent(publisher.first, ReactionFailed)
    if runs_here(operation):
        (failure,) = failures
        assert (failure.subscription, failure.step, failure.error) == (5, -1, "ValueError") and failure.text
        assert publisher.messaging.plans["t"], "the other one is there"
        publisher.publish(1)
        assert publisher.got == {6: [1]}
