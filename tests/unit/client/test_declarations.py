"""What channels and cells carry: said, kept, compared and checked."""

import numpy
import pytest

from raskid.client.declarations import Declaration, declare, read_declaration
from raskid.protocol.messages import Record
from raskid.protocol.values import encode_value


def test_nothing_declares_nothing():
    assert declare() is None and read_declaration(None) is None


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"type": float}, {"type": "float"}),
        ({"type": "float", "min": 0}, {"type": "float", "min": 0}),
        ({"type": numpy.ndarray, "shape": (3, None)}, {"type": "array", "shape": [3, None]}),
        ({"type": int, "min": numpy.int32(1), "max": numpy.float64(2.5)}, {"type": "int", "min": 1, "max": 2.5}),
        ({"max": -0.5}, {"max": -0.5}),
    ],
)
def test_what_is_declared_is_kept_as_plain_values(given, fields):
    declaration = declare(**given)
    assert declaration.fields == fields
    found = read_declaration(Record("value", encode_value(declaration.fields)))
    assert found == declaration and hash(found) == hash(declaration) and str(found) == str(declaration)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"type": "flaot"}, ValueError),
        ({"type": 5}, (TypeError, ValueError)),
        ({"type": object}, ValueError),
        ({"min": "low", "max": 5}, TypeError),
        ({"type": int, "min": "0"}, TypeError),
        ({"min": float("nan")}, ValueError),
        ({"min": 2, "max": 1}, ValueError),
        ({"type": bool, "min": 0}, ValueError),
        ({"type": int, "shape": [3]}, ValueError),
        ({"shape": 3}, TypeError),
        ({"shape": [-1]}, ValueError),
        ({"type": "array", "min": numpy.zeros(3)}, TypeError),
    ],
)
def test_what_declares_nothing_is_refused(given, error):
    with pytest.raises(error, match="this declares nothing: operation 'check'"):
        declare(**given)


@pytest.mark.parametrize(
    "value", [b"no MessagePack \xc1", encode_value(5), encode_value({"type": "flaot"}), encode_value({"other": 1})]
)
def test_a_record_of_something_else_is_no_declaration(value):
    assert read_declaration(Record("value", value)) is None


@pytest.mark.parametrize(
    ("given", "good", "bad", "error"),
    [
        ({"type": float, "min": 0, "max": 1}, 0.5, 1.5, ValueError),
        ({"type": float, "min": 0, "max": 1}, 1, float("nan"), ValueError),
        ({"type": float}, float("nan"), "0.5", TypeError),
        ({"type": int}, 1 << 80, True, TypeError),
        ({"type": str}, "x", b"x", TypeError),
        ({"type": list}, (1, 2), {"a": 1}, TypeError),
        ({"type": "array", "shape": (2, None)}, numpy.zeros((2, 5)), numpy.zeros((3, 5)), ValueError),
        ({"type": "array", "min": 0}, numpy.ones(3), numpy.array([1.0, numpy.nan]), ValueError),
        ({"type": "array"}, numpy.ones(3), [1.0], TypeError),
        ({"min": 0}, 5, "five", TypeError),
    ],
)
def test_values_are_checked(given, good, bad, error):
    declaration = declare(**given)
    assert isinstance(declaration, Declaration)
    declaration.check(good)
    with pytest.raises(error, match="the value is declared"):
        declaration.check(bad)
