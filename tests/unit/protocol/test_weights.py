"""Weights of messages against their true lengths."""

from __future__ import annotations

import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raskid.protocol.codec import encode_batch
from raskid.protocol.messages import AnyMessage, Message, Status
from raskid.protocol.weights import PLAIN, weigh

#: Fields of messages that are short by their nature: names of peers, topics, hosts.
SHORT = st.text(max_size=8)
SCALARS: dict[object, st.SearchStrategy[object]] = {
    str: SHORT,
    bytes: st.binary(max_size=300),
    int: st.integers(0, 2**40),
    bool: st.booleans(),
    float: st.floats(0, 1e6),
}


def strategy(kind: object) -> st.SearchStrategy[object]:
    kind = getattr(kind, "__supertype__", kind)
    if kind in SCALARS:
        return SCALARS[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return st.lists(strategy(arguments[0]), max_size=4)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(strategy(arguments[0]), max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*map(strategy, arguments))
    return made(kind)  # type: ignore[arg-type]


def made(kind: type[typing.Any]) -> st.SearchStrategy[typing.Any]:
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{name: strategy(hints[name]) for name in kind.__struct_fields__})


#: Those of the handshake never wait in a link.
HANDSHAKE = ("Hello", "Welcome", "Refused", "Status")
WAITING = [kind for kind in typing.get_args(AnyMessage) if kind.__name__ not in HANDSHAKE]
#: What a few names, addresses and numbers take, which weights leave out.
SLACK_BYTES = 4 * PLAIN


@pytest.mark.parametrize("kind", WAITING, ids=lambda kind: kind.__name__)
def test_a_weight_is_near_the_length_and_hardly_below(kind: type[Message]) -> None:
    @settings(max_examples=15, deadline=None)
    @given(made(kind))
    def check(message: typing.Any) -> None:
        length = len(encode_batch([message]))
        assert length <= weigh(message) + SLACK_BYTES
        assert weigh(message) <= 40 * length

    check()


def test_a_status_is_weighed_by_encoding_it() -> None:
    assert weigh(Status(1, {"x": "y" * 1000})) > 1000  # type: ignore[arg-type]
