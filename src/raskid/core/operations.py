"""The table of operations: what arguments each takes, and the steps that are made of them.

Whoever installs a reaction checks its operations here, and so does every publisher that gets them, since records come
from elsewhere. Texts of errors name the operation, the argument, what was expected, and what was given. What the
operations do is in `raskid.core.steps` and `raskid.core.windows`; what those do that need more than the message
(`forward`, `set`, `keep`, `deliver`, `consume`, `code`) is with the machine that runs the chain. `docs/operations.md`
says all of this for other implementations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from raskid.core.arguments import (
    as_place,
    as_positive,
    as_whole,
    check_form,
    check_named_topic,
    check_names,
    check_no_args,
    check_texts,
    closest,
    flag_given,
    place_given,
    window_given,
    wrong,
    wrong_text,
)
from raskid.core.steps import (
    ANY,
    ARRAY,
    HAS,
    IN,
    KINDS,
    NOT_IN,
    OPERATORS,
    Check,
    Choose,
    Condition,
    Filter,
    SampleCount,
    SampleRate,
    Step,
    fits,
    shown,
)
from raskid.core.windows import REDUCTIONS, Gather, Reduce
from raskid.model.operations import (
    CHECK,
    CHOOSE,
    CODE,
    CONSUME,
    DELIVER,
    FILTER,
    FORWARD,
    GATHER,
    KEEP,
    OPERATIONS,
    REDUCE,
    SAMPLE,
    SET,
    Operation,
)
from raskid.model.topics import CELLS, SHARED, check_list_name

__all__ = ["KEEP_BYTES", "Step", "check_operation", "make_step"]

#: What `keep` holds on to at most, unless it says otherwise, and what it may say at most.
KEEP_BYTES: Final = 64 << 20
KEEP_BYTES_MAX: Final = 1 << 40
RECORD_NAME_CHARS_MAX: Final = 1024


def make_step(operation: Operation) -> Step:
    """The step of an operation that looks at messages: `filter`, `choose`, `check`, `sample`, `reduce`, `gather`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is wrong otherwise, or the operation has no step, or there is no such operation.
    """
    maker = _MAKERS.get(operation.op)
    if maker is None:
        check_operation(operation)
        raise ValueError(f"operation {operation.op!r} has no step of its own: whoever runs the chain does what it says")
    check_form(operation)
    return maker(operation)


def check_operation(operation: Operation) -> None:
    """Refuse an operation that is not in the table, or has wrong arguments.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is wrong otherwise, or there is no such operation.
    """
    if operation.op in _MAKERS:
        make_step(operation)
        return
    check = _CHECKS.get(operation.op)
    if check is None:
        raise ValueError(
            f"there is no operation {operation.op!r:.80}; expected one of {', '.join(OPERATIONS)}"
            + closest(operation.op, OPERATIONS)
        )
    check_form(operation)
    check(operation)


# ── Those that look at messages ──────────────────────────────────────────────────────────────────────────────────────


def _make_filter(operation: Operation) -> Step:
    conditions: list[Condition] = []
    for number, given in enumerate(operation.args):
        what = f"condition {number}"
        if not isinstance(given, list | tuple):
            raise TypeError(wrong(FILTER, what, "a list [name, operator, value]", given))
        if len(given) != 3:
            raise ValueError(wrong_text(FILTER, what, "a list [name, operator, value]", f"{len(given)} values"))
        place, relation, value = given
        if relation not in OPERATORS:
            raise ValueError(wrong(FILTER, f"the operator of {what}", f"one of {', '.join(OPERATORS)}", relation))
        if relation in (IN, NOT_IN) and not fits("list", value):
            raise TypeError(wrong(FILTER, f"the value of {what}, after {relation!r},", "a list", value))
        if relation == HAS and not isinstance(value, bool):
            raise TypeError(wrong(FILTER, f"the value of {what}, after {relation!r},", "true or false", value))
        conditions.append(Condition(as_place(FILTER, f"the name of {what}", place), relation, value))
    conditions.extend([Condition(name, "==", value) for name, value in operation.fields.items()])
    if not conditions:
        raise ValueError("operation 'filter' has no condition; expected lists [name, operator, value], or name=value")
    return Filter(conditions)


def _make_choose(operation: Operation) -> Step:
    check_names(operation, ("positional",))
    positional = flag_given(operation, "positional")
    names: list[str] = []
    for number, name in enumerate(operation.args):
        if not isinstance(name, str):
            raise TypeError(wrong(CHOOSE, f"argument {number}", "the name of a field", name))
        if name in names:
            raise ValueError(f"operation 'choose': field {name!r} is named twice")
        names.append(name)
    if not names and not positional:
        raise ValueError("operation 'choose' names nothing; expected names of fields, or positional=true")
    return Choose(names, positional)


def _make_check(operation: Operation) -> Step:
    check_names(operation, ("type", "min", "max", "shape", "name"))
    check_no_args(operation)
    fields = operation.fields
    kind = fields.get("type")
    if kind is None:
        kind = ANY
    elif kind not in KINDS:
        raise ValueError(wrong(CHECK, "type", f"one of {', '.join(KINDS)}", kind) + closest(kind, KINDS))
    least, most = _bound("min", fields.get("min"), kind), _bound("max", fields.get("max"), kind)
    if least is not None and most is not None:
        if isinstance(least, str | bytes) != isinstance(most, str | bytes):
            raise TypeError(f"operation 'check': min is {shown(least)} and max is {shown(most)}; expected one kind")
        if least > most:
            raise ValueError(f"operation 'check': min is {least!r} and max is {most!r}, so that nothing passes")
    return Check(place_given(operation), kind, least, most, _shape(fields.get("shape"), kind))


def _bound(name: str, bound: Any, kind: str) -> Any:
    """A bound that values of a kind can be compared with."""
    if bound is None:
        return None
    if kind in ("str", "bytes"):
        if not fits(kind, bound):
            raise TypeError(wrong(CHECK, name, f"of type {kind} too", bound))
    elif kind in ("int", "float", ARRAY, ANY):
        others = kind == ANY and isinstance(bound, str | bytes)
        if not others and not fits("float", bound):
            raise TypeError(wrong(CHECK, name, "a number" + (", text or bytes" if kind == ANY else ""), bound))
        if bound != bound:
            raise ValueError(f"operation 'check': {name} is not a number (NaN), with which nothing can be compared")
    else:
        raise ValueError(f"operation 'check': {name} does not go with type {kind!r}, whose values have no order")
    return bound


def _shape(shape: Any, kind: str) -> list[int | None] | None:
    if shape is None:
        return None
    if kind not in (ARRAY, ANY):
        raise ValueError(f"operation 'check': shape goes with type 'array', got type {kind!r}")
    if not isinstance(shape, list | tuple):
        raise TypeError(wrong(CHECK, "shape", "a list of lengths, null for any length", shape))
    return [
        None if each is None else as_whole(CHECK, f"length {axis} of shape", each, 0, 1 << 62)
        for axis, each in enumerate(shape)
    ]


def _make_sample(operation: Operation) -> Step:
    check_names(operation, ("every", "rate"))
    check_no_args(operation)
    every, rate = operation.fields.get("every"), operation.fields.get("rate")
    if (every is None) == (rate is None):
        given = "neither" if every is None else "both"
        raise ValueError(f"operation 'sample' takes either every or rate (messages per second), got {given}")
    if every is not None:
        return SampleCount(as_whole(SAMPLE, "every", every, 1, 1 << 62))
    return SampleRate(as_positive(SAMPLE, "rate", rate, "messages per second", 1e9))


def _make_reduce(operation: Operation) -> Step:
    check_names(operation, ("how", "name", "count", "seconds"))
    check_no_args(operation)
    given = operation.fields.get("how")
    single = isinstance(given, str)
    hows: list[str] = []
    if isinstance(given, str):
        hows.append(given)
    elif isinstance(given, list | tuple):
        hows.extend(given)
    else:
        raise TypeError(wrong(REDUCE, "how", f"one of {', '.join(REDUCTIONS)}, or a list of these", given))
    if not hows:
        raise ValueError(f"operation 'reduce': how is an empty list; expected some of {', '.join(REDUCTIONS)}")
    for how in hows:
        if how not in REDUCTIONS:
            raise ValueError(wrong(REDUCE, "how", f"one of {', '.join(REDUCTIONS)}", how) + closest(how, REDUCTIONS))
        if hows.count(how) > 1:
            raise ValueError(f"operation 'reduce': how names {how!r} twice")
    count, seconds = window_given(operation)
    return Reduce(hows, single, place_given(operation), count, seconds)


def _make_gather(operation: Operation) -> Step:
    check_names(operation, ("count", "seconds"))
    check_no_args(operation)
    count, seconds = window_given(operation)
    return Gather(count, seconds)


# ── Those that need more than the message ────────────────────────────────────────────────────────────────────────────


def _check_nothing(operation: Operation) -> None:
    check_names(operation, ())
    check_no_args(operation)


def _check_code(operation: Operation) -> None:
    check_names(operation, ("args", "fields", "name"))
    check_texts(operation, ("the id of a code object", "its language", "its version"))
    args, fields, name = operation.fields.get("args"), operation.fields.get("fields"), operation.fields.get("name")
    if args is not None and not isinstance(args, list | tuple):
        raise TypeError(wrong(CODE, "args", "a list of bound arguments", args))
    if fields is not None and (not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields)):
        raise TypeError(wrong(CODE, "fields", "a dict of bound arguments by name", fields))
    if name is not None and not isinstance(name, str):
        raise TypeError(wrong(CODE, "name", "text", name))


def _check_forward(operation: Operation) -> None:
    check_names(operation, ())
    check_texts(operation, ("the topic",))
    check_named_topic(FORWARD, "the topic", operation.args[0])


def _check_set(operation: Operation) -> None:
    check_names(operation, ("permanent",))
    check_texts(operation, ("the name of a list", "the name of a record"))
    flag_given(operation, "permanent")
    try:
        kind, _ = check_list_name(operation.args[0])
    except ValueError as error:
        raise ValueError(f"operation 'set': {error}") from error
    if kind not in (CELLS, SHARED):
        # The records of the others have a form that a message has not.
        expected = f"one that begins with {CELLS}: or {SHARED}:"
        raise ValueError(wrong(SET, "the name of a list", expected, operation.args[0]))
    length = len(operation.args[1])
    if length > RECORD_NAME_CHARS_MAX:
        expected = f"{RECORD_NAME_CHARS_MAX:,} characters long at most"
        raise ValueError(wrong_text(SET, "the name of a record", expected, f"{length:,}"))


def _check_keep(operation: Operation) -> None:
    check_names(operation, ("count", "seconds", "bytes", "basket"))
    check_no_args(operation)
    window_given(operation)
    size, basket = operation.fields.get("bytes"), operation.fields.get("basket")
    if size is not None:
        as_whole(KEEP, "bytes", size, 1, KEEP_BYTES_MAX)
    if basket is not None:
        if not isinstance(basket, str):
            raise TypeError(wrong(KEEP, "basket", "the name of a basket", basket))
        check_named_topic(KEEP, "basket", basket)


_MAKERS: Final[dict[str, Callable[[Operation], Step]]] = {
    FILTER: _make_filter,
    CHOOSE: _make_choose,
    CHECK: _make_check,
    SAMPLE: _make_sample,
    REDUCE: _make_reduce,
    GATHER: _make_gather,
}
_CHECKS: Final[dict[str, Callable[[Operation], None]]] = {
    CODE: _check_code,
    CONSUME: _check_nothing,
    DELIVER: _check_nothing,
    FORWARD: _check_forward,
    SET: _check_set,
    KEEP: _check_keep,
}
