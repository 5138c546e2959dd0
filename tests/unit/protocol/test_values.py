"""Bodies of messages: what goes in comes out, and no bytes from elsewhere do harm."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import math
import struct
import subprocess
import sys
import threading
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raskid.model.errors import RemoteProtocolError, ValueNotSendable
from raskid.protocol import values
from raskid.protocol.values import decode_body, decode_value, encode_body, encode_message, encode_value

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTS = st.integers(-(1 << 80), 1 << 80)
FLOATS = st.floats(allow_nan=False)
COMPLEX = st.complex_numbers(allow_nan=False)
UTC = st.datetimes(timezones=st.just(dt.UTC))
KEYS = st.none() | st.booleans() | INTS | FLOATS | TEXT | st.binary(max_size=9) | COMPLEX | UTC
LEAVES = KEYS
PLAIN = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS | st.tuples(KEYS, KEYS), inner, max_size=5),
    max_leaves=12,
)
DTYPES = (
    (
        hnp.scalar_dtypes()
        | hnp.unicode_string_dtypes()
        | hnp.byte_string_dtypes()
        | hnp.array_dtypes(hnp.scalar_dtypes(), allow_subarrays=True)
        | hnp.nested_dtypes(hnp.scalar_dtypes(), max_leaves=4)
    )
    .map(np.dtype)
    .filter(lambda dtype: dtype.subdtype is None)
)


def check_same_array(got: Any, sent: Any) -> None:
    assert type(got) is np.ndarray
    assert got.dtype == sent.dtype and got.shape == sent.shape
    assert not got.flags.writeable
    if sent.dtype.names is None:
        assert got.tobytes() == sent.tobytes()
    else:
        # Padding is not part of the value.
        for name in sent.dtype.names:
            assert got[name].tobytes() == sent[name].tobytes()


@given(PLAIN)
def test_plain_values_come_back(value: Any) -> None:
    assert decode_value(encode_value(value)) == value


@given(st.lists(PLAIN, max_size=3).map(tuple), st.dictionaries(TEXT, PLAIN, max_size=3))
def test_bodies_come_back(args: tuple[Any, ...], fields: dict[str, Any]) -> None:
    assert decode_body(encode_body(args, fields)) == (args, fields)


@given(st.binary(min_size=8, max_size=8))
def test_floats_keep_their_bits(raw: bytes) -> None:
    (value,) = struct.unpack("<d", raw)
    assert struct.pack("<d", decode_value(encode_value(value))) == struct.pack("<d", value)
    again = decode_value(encode_value(complex(1.0, value)))
    assert struct.pack("<d", again.imag) == struct.pack("<d", value)
    array = np.frombuffer(raw, "<f8")
    assert decode_value(encode_value(array)).tobytes() == raw


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_arrays_come_back(data: st.DataObject) -> None:
    dtype = data.draw(DTYPES)
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
    form = data.draw(st.sampled_from(["as it is", "fortran", "reversed", "strided", "transposed"]))
    if form == "fortran":
        array = np.asfortranarray(array)
    elif form == "reversed" and array.ndim:
        array = array[::-1]
    elif form == "strided" and array.ndim:
        array = array[..., ::2]
    elif form == "transposed":
        array = array.T
    check_same_array(decode_value(encode_value(array)), array)
    args, fields = decode_body(encode_body((1, [array]), {"a": array}))
    check_same_array(args[1][0], array)
    check_same_array(fields["a"], array)


@given(st.data())
def test_scalars_come_back(data: st.DataObject) -> None:
    dtype = data.draw(hnp.scalar_dtypes() | hnp.unicode_string_dtypes(min_len=1) | hnp.byte_string_dtypes(min_len=1))
    value = data.draw(hnp.arrays(dtype, ()))[()]
    got = decode_value(encode_value(value))
    assert type(got) is type(value) and got.dtype == value.dtype
    assert got.tobytes() == value.tobytes()


def test_order_and_views() -> None:
    array = np.arange(6.0).reshape(2, 3)
    body = encode_value(array)
    got = decode_value(body)
    assert np.shares_memory(got, np.frombuffer(body, np.uint8))
    assert got.flags.c_contiguous
    assert decode_value(encode_value(np.asfortranarray(array))).flags.f_contiguous
    assert not decode_value(bytearray(body)).flags.writeable
    record = np.array([(1, [2.0, 3.0])], np.dtype([("a", "i1"), ("b", "f8", (2,))], align=True))
    assert decode_value(encode_value(record[0]))["b"].tolist() == [2.0, 3.0]
    assert decode_value(encode_value({np.int64(3): 1})) == {3: 1}


class Colour(enum.Enum):
    RED = 1


class Count(int):
    pass


class Name(str):
    pass


class Ratio(float):
    pass


class Blob(bytes):
    pass


@dataclasses.dataclass
class Mesh:
    x: Any
    n: int = 0


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        ((1, (2,)), [1, [2]]),
        ({1}, [1]),
        (frozenset([1 << 70]), [1 << 70]),
        ({frozenset([1 << 70]): 1}, {(1 << 70,): 1}),
        ((1 << 70, 2), [1 << 70, 2]),
        ({(1, 1 << 70): 1, 1 << 70: 2}, {(1, 1 << 70): 1, 1 << 70: 2}),
        (bytearray(b"x"), b"x"),
        (dt.datetime(2024, 1, 2), "2024-01-02T00:00:00"),
        (Colour.RED, 1),
        (Count(3), 3),
        (Count(1 << 70), 1 << 70),
        (Name("n"), "n"),
        (Ratio(0.5), 0.5),
        (Blob(b"b"), b"b"),
        (Mesh(1), {"x": 1, "n": 0}),
        (Mesh(1 << 70), {"x": 1 << 70, "n": 0}),
        (collections.OrderedDict(a=1), {"a": 1}),
    ],
)
def test_other_kinds_arrive_as_the_nearest_plain_kind(value: Any, arrives: Any) -> None:
    got = decode_value(encode_value(value))
    assert got == arrives and type(got) is type(arrives)


@pytest.mark.parametrize(
    ("args", "fields", "path"),
    [
        (([1, 2, threading.Lock()],), {}, "args[0][2]"),
        ((), {"mesh": Mesh(object())}, "fields['mesh'].x"),
        ((), {"a": {"b": (1, object)}}, "fields['a']['b'][1]"),
        ((1, np.array([None])), {}, "args[1]"),
        ((np.ma.masked_array([1]),), {}, "args[0]"),
        ((), {"a": [np.zeros(1, [("o", "O")])]}, "fields['a'][0]"),
        (("\ud800",), {}, "args[0]"),
        (({object: 1},), {}, f"args[0].keys()[{object!r}]"),
    ],
)
def test_what_cannot_be_sent_is_named(args: tuple[Any, ...], fields: dict[str, Any], path: str) -> None:
    with pytest.raises(ValueNotSendable) as caught:
        encode_body(args, fields)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")


def test_the_error_says_what_to_do() -> None:
    with pytest.raises(ValueNotSendable, match=r"^value: messages do not carry a value of type object\. Send plain"):
        encode_value(object())
    with pytest.raises(ValueNotSendable, match=r"fields\[.q.\]: .*MaskedArray would lose"):
        encode_body((), {"q": np.ma.masked_array([1])})
    with pytest.raises(ValueNotSendable, match=r"overlapping|in full"):
        overlapping = {"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [0, 2]}
        encode_value(np.zeros(1, np.dtype(overlapping)))  # type: ignore[call-overload]
    many = np.dtype([(f"{'f' * 99}{n}", "i1") for n in range(700)])
    with pytest.raises(ValueNotSendable, match="description exceeds"):
        encode_value(np.zeros(1, many))


def test_what_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueNotSendable, match="contains itself"):
        encode_value(loop)


def test_sizes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    body = encode_body((b"x" * 100,), {})
    monkeypatch.setattr(values, "BODY_BYTES_MAX", 50)
    with pytest.raises(ValueNotSendable, match="limit is 50"):
        encode_body((b"x" * 100,), {})
    with pytest.raises(ValueNotSendable, match="limit is 50"):
        encode_value(b"x" * 100)
    with pytest.raises(RemoteProtocolError, match="limit is 50"):
        decode_body(body)
    with pytest.raises(RemoteProtocolError, match="limit is 50"):
        decode_value(body)


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_do_no_harm(data: bytes) -> None:
    for decode in (decode_value, decode_body):
        try:
            decode(data)
        except RemoteProtocolError:
            pass


JUNK = st.recursive(
    st.integers(-2, 9) | TEXT | st.sampled_from(["<f8", "|O", "<M8[25s]", "|V0", "|V9999999999", ""]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(
    st.integers(-128, 127),
    st.binary(max_size=40),
    st.none()
    | JUNK
    | st.lists(st.tuples(TEXT, st.sampled_from(["<i4", "|O"]), st.lists(st.integers(-1, 3))), max_size=3),
    st.lists(st.integers(-1, 1 << 62) | st.integers(0, 3), max_size=3),
    st.booleans(),
)
def test_malformed_extensions_do_no_harm(code: int, raw: bytes, junk: Any, shape: list[int], fortran: bool) -> None:
    header = msgspec.msgpack.encode((msgspec.msgpack.encode(junk), shape, fortran))
    array = len(header).to_bytes(4, "little") + header + raw
    for number, data in ((code, raw), (values.EXT_ARRAY, array), (values.EXT_SCALAR, array), (values.EXT_ARRAY, raw)):
        try:
            got = decode_value(msgspec.msgpack.encode([msgspec.msgpack.Ext(number, data)]))
        except RemoteProtocolError:
            continue
        assert isinstance(got, list)


@pytest.mark.parametrize(
    ("description", "shape", "raw", "text"),
    [
        ("|O", [1], b"12345678", "described by"),
        ("<f8", [2], b"12345678", "does not take 8 bytes"),
        ("<f8", [-1, -1], b"12345678", "shape"),
        ("f8,i4", [1], b"123456789012", "described by"),
        (3, [1], b"", "described by 3"),
        (["x"], [1], b"", "cannot be read"),
        ([["a" * 70_000, "<f8"]], [0], b"", "too long"),
    ],
)
def test_malformed_arrays_are_the_other_ends_mistake(description: Any, shape: Any, raw: bytes, text: str) -> None:
    header = msgspec.msgpack.encode((msgspec.msgpack.encode(description), shape, False))
    data = len(header).to_bytes(4, "little") + header + raw
    with pytest.raises(RemoteProtocolError, match=text):
        decode_value(msgspec.msgpack.encode(msgspec.msgpack.Ext(values.EXT_ARRAY, data)))


def test_other_bytes_are_the_other_ends_mistake() -> None:
    deep = b"\x91" * 100_000
    for data in (b"", b"\xa1\xff", b"\x81\x80\x01", deep, msgspec.msgpack.encode(msgspec.msgpack.Ext(99, b"x"))):
        with pytest.raises(RemoteProtocolError):
            decode_value(data)
    for data in (b"", b"\x91\x90", b"\x92\x90\x90", encode_value(((), {1: 2})), deep):
        with pytest.raises(RemoteProtocolError):
            decode_body(data)


def test_numpy_is_not_imported_for_plain_values() -> None:
    """Also: a reader without numpy is told so."""
    body = encode_value(np.zeros(2))
    code = (
        "import sys\n"
        "from raskid.protocol.values import *\n"
        "from raskid.model.errors import *\n"
        "assert decode_body(encode_body((1j, 1 << 70), {'a': b'x'})) == ((1j, 1 << 70), {'a': b'x'})\n"
        "try: encode_value(object())\n"
        "except ValueNotSendable: pass\n"
        "assert 'numpy' not in sys.modules\n"
        "sys.modules['numpy'] = None\n"
        f"try: decode_value({body!r})\n"
        "except RemoteProtocolError as error: assert 'not installed' in str(error)\n"
        "else: raise SystemExit('read')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_numbers_that_are_no_numbers() -> None:
    assert math.isnan(decode_value(encode_value(float("nan"))))
    assert decode_value(encode_value([math.inf, -0.0])) == [math.inf, 0.0]


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ({"step": 3, Name("x"): [1]}, ((), {"step": 3, "x": [1], "given": 0})),
        ({"given": 1}, ((), {"given": 1})),
        ({}, ((), {"given": 0})),
        ({"step": 3, 4: 5}, (({"step": 3, 4: 5},), {"given": 0})),
        (collections.OrderedDict(step=3), (({"step": 3},), {"given": 0})),
        ([{"step": 3}], (([{"step": 3}],), {"given": 0})),
    ],
)
def test_a_function_that_gives_a_dict_gives_the_fields(value: Any, body: Any) -> None:
    """Only a plain dict with text as keys can be meant by that; a dict that is published itself is a value."""
    assert decode_body(encode_message((lambda: value,), {"given": 0})) == body
    assert decode_body(encode_message((value,), {})) == ((value,), {})


def test_a_field_from_a_function_that_cannot_be_sent_is_named() -> None:
    with pytest.raises(ValueNotSendable, match=r"^fields\['lock'\]: "):
        encode_message((lambda: {"lock": threading.Lock()},), {})
