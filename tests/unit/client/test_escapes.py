"""Values as JSON: what messages carry comes back, and no JSON from elsewhere does harm."""

from __future__ import annotations

import datetime as dt
import json
import math
import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raskid.client.escapes import EscapeError, from_json, to_json
from raskid.protocol.values import decode_value, encode_value

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
NAMES = TEXT | st.sampled_from(["$int", "$dict", "$", "$array", "$unknown"])
KEYS = (
    st.none() | st.booleans() | st.integers(-(1 << 80), 1 << 80) | st.floats(allow_nan=False) | NAMES
    | st.binary(max_size=9) | st.complex_numbers(allow_nan=False) | st.datetimes(timezones=st.just(dt.UTC))
)  # fmt: skip
PLAIN = st.recursive(
    KEYS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES, inner, max_size=2)
        | st.dictionaries(KEYS | st.tuples(KEYS, KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)
DTYPES = (
    hnp.scalar_dtypes() | hnp.unicode_string_dtypes(min_len=1) | hnp.byte_string_dtypes(min_len=1)
    | hnp.nested_dtypes(hnp.scalar_dtypes(), max_leaves=4)
).map(np.dtype).filter(lambda dtype: dtype.subdtype is None)  # fmt: skip


def there_and_back(value: Any) -> Any:
    """As a message out of a system, through JSON, and as a message again."""
    text = msgspec.json.encode(to_json(decode_value(encode_value(value))))
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    return decode_value(encode_value(from_json(msgspec.json.decode(text))))


def alike(one: Any, other: Any) -> bool:
    """Equal, and of the same types, which `==` alone does not tell for 1, 1.0 and True."""
    return repr(one) == repr(other)


@given(PLAIN)
def test_plain_values_come_back(value: Any) -> None:
    assert alike(there_and_back(value), decode_value(encode_value(value)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_arrays_and_scalars_come_back(data: st.DataObject) -> None:
    dtype = data.draw(DTYPES)
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)))
    if data.draw(st.booleans()):
        array = array.T
    got = there_and_back(array)
    assert type(got) is np.ndarray and got.dtype == array.dtype and got.shape == array.shape
    if dtype.names is None:
        assert got.tobytes() == array.tobytes()
        scalar = np.zeros((), dtype)[()] if not array.size else array.reshape(-1)[0]
        again = there_and_back(scalar)
        assert type(again) is type(scalar) and again.tobytes() == scalar.tobytes()


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (2**53 - 1, 9007199254740991),
        (2**53, {"$int": "9007199254740992"}),
        (-(2**53), {"$int": "-9007199254740992"}),
        (math.inf, {"$float": "inf"}),
        (-math.inf, {"$float": "-inf"}),
        (1j, {"$complex": [0.0, 1.0]}),
        (b"hello", {"$bytes": "aGVsbG8="}),
        (dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC), {"$datetime": "2024-05-01T12:00:00+00:00"}),
        ({"$x": 1}, {"$dict": [["$x", 1]]}),
        ({"$x": 1, "y": 2}, {"$x": 1, "y": 2}),
        ({1: "a"}, {"$dict": [[1, "a"]]}),
        ({(1, "b"): []}, {"$dict": [[[1, "b"], []]]}),
        ({}, {}),
        ({"": 1}, {"": 1}),
        (np.float32(1.5), {"$scalar": {"dtype": "<f4", "data": "AADAPw=="}}),
        (np.array([[1, 2]], ">i2"), {"$array": {"dtype": ">i2", "shape": [1, 2], "data": "AAEAAg=="}}),
    ],
)
def test_how_values_are_written(value: Any, written: Any) -> None:
    assert to_json(value) == written
    assert alike(from_json(written), value)


@pytest.mark.parametrize("sign", [1, -1])
def test_integers_of_any_length(sign: int) -> None:
    """Python writes very long ones in hexadecimal only."""
    value = sign << 20_000
    assert to_json(value) == {"$int": hex(value)} and from_json({"$int": hex(value)}) == value
    value = sign * 10**3999
    assert to_json(value) == {"$int": str(value)} and from_json({"$int": str(value)}) == value


def test_nan() -> None:
    assert to_json(math.nan) == {"$float": "nan"}
    assert math.isnan(from_json({"$float": "nan"}))


def test_other_ways_of_writing_are_read() -> None:
    assert from_json({"$datetime": "2024-05-01T14:00:00+02:00"}) == dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
    assert from_json({"$datetime": "2024-05-01T12:00:00Z"}) == dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
    assert from_json({"$int": "0xff"}) == 255
    assert from_json({"$complex": [1, {"$float": "inf"}]}) == complex(1, math.inf)
    # More than one name: no escape.
    assert from_json({"$int": 1, "$float": 2}) == {"$int": 1, "$float": 2}


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ({"$byte": ""}, r"'\$byte' is no known escape; did you mean '\$bytes'\?"),
        ({"$": 1}, r"known are \$int, .*\"\$dict\""),
        ({"$int": 5}, "a whole number as text"),
        ({"$int": "1_000"}, "a whole number as text"),
        ({"$int": " 1"}, "a whole number as text"),
        ({"$int": "٣"}, "a whole number as text"),
        ({"$int": "9" * 5000}, "a whole number as text"),
        ({"$float": "NaN"}, '"nan", "inf" and "-inf"'),
        ({"$complex": [1]}, "two numbers"),
        ({"$complex": [1, True]}, "two numbers"),
        ({"$bytes": "aGVsbG8"}, "cannot be read"),
        ({"$bytes": "aGV\nsbG8="}, "cannot be read"),
        ({"$bytes": [1, 2]}, "base64 as text"),
        ({"$datetime": "2024-05-01T12:00:00"}, "a time zone"),
        ({"$datetime": "yesterday"}, "cannot be read"),
        ({"$array": {"dtype": "<f8", "shape": [2]}}, '"dtype", "shape"'),
        ({"$array": {"dtype": "<f8", "shape": [2], "data": "AAAA"}}, r"16 bytes for shape \[2\].*got '3 bytes'"),
        ({"$array": {"dtype": "<f8", "shape": [-1], "data": ""}}, "a shape of whole numbers"),
        ({"$array": {"dtype": "<f8", "shape": [1 << 70], "data": ""}}, "bytes for shape"),
        ({"$array": {"dtype": "<f8", "shape": [0, 1 << 70], "data": ""}}, "cannot be read"),
        ({"$array": {"dtype": "|O", "shape": [], "data": "AAAAAAAAAAA="}}, "dtype is described by"),
        ({"$array": {"dtype": {"x": 1}, "shape": [], "data": ""}}, "dtype is described by"),
        ({"$scalar": {"dtype": "<f8", "data": ""}}, "8 bytes"),
        ({"$dict": {"a": 1}}, "a list of pairs"),
        ({"$dict": [[1, 2, 3]]}, "a list of pairs"),
        ({"$dict": [[{}, 1]]}, "cannot be read"),
    ],
)
def test_escapes_that_cannot_be_read_are_refused(written: Any, text: str) -> None:
    with pytest.raises(EscapeError, match=text):
        from_json({"deep": [written]})


def test_the_innermost_escape_is_named() -> None:
    with pytest.raises(EscapeError, match=r"^\$int: expected"):
        from_json({"$dict": [[1, {"$complex": [0, {"$int": "x"}]}]]})


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXT, inner, max_size=3)
        | st.builds(
            lambda name, value: {name: value},
            st.sampled_from(["$int", "$float", "$complex", "$bytes", "$datetime", "$array", "$scalar", "$dict"]),
            inner | st.fixed_dictionaries({"dtype": inner, "shape": inner, "data": TEXT}),
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(ANY_JSON)
def test_arbitrary_json_is_a_value_or_is_refused(value: Any) -> None:
    try:
        got = from_json(value)
    except EscapeError:
        return
    assert alike(from_json(to_json(got)), got)


@pytest.mark.parametrize("value", [object(), {1, 2}, dt.datetime(2024, 1, 1), np.array([object()])])
def test_what_messages_do_not_carry_has_no_json(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        to_json(value)


def test_deep_values_are_refused_and_not_fatal() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for convert in (to_json, from_json):
        with pytest.raises(RecursionError):
            convert(deep)


def test_numpy_is_not_imported_for_plain_values() -> None:
    code = (
        "import sys; from raskid.client.escapes import *; "
        "from_json(to_json({1: b'', 'a': [1j, 2**70]})); assert 'numpy' not in sys.modules; "
        "from_json({'$scalar': {'dtype': '|u1', 'data': 'AA=='}}); assert 'numpy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
