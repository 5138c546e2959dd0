"""JSON for everything that messages carry, for programs that have JSON and nothing else.

What JSON has is written as it is. The rest is an object with a single name that begins with "$", an *escape*:

    {"$int": "123456789012345678901"}       integers beyond 2**53, which many languages would round
    {"$float": "nan"}, "inf", "-inf"        numbers that JSON has no way to write
    {"$complex": [1.5, -2.0]}
    {"$bytes": "aGVsbG8="}                  base64
    {"$datetime": "2024-05-01T12:00:00+00:00"}
    {"$array": {"dtype": "<f8", "shape": [2, 3], "data": "…"}}     a numpy array: its bytes in C order, as base64
    {"$scalar": {"dtype": "<f4", "data": "…"}}                     a numpy scalar
    {"$dict": [[1, "one"], [2, "two"]]}     a dict with keys that are no text, or one that looks like an escape

`to_json` and `from_json` turn values into what a JSON encoder takes, and back. What they read comes from elsewhere:
nothing in it is to be believed. numpy is imported only to read an array or a scalar.
"""

from __future__ import annotations

import binascii
import datetime
import difflib
import importlib
import math
import re
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from raskid.protocol import values

#: Whole numbers up to here are exact in a program whose numbers are all floats.
INT_MAX = (1 << 53) - 1
#: Python reads no longer decimal numbers; hexadecimal ones may have any length.
_DECIMAL_MAX = 10**4000
_INT = re.compile(r"-?(0|[1-9][0-9]{0,4000}|0x[0-9a-fA-F]+)", re.ASCII)
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_UTC = datetime.UTC


class EscapeError(ValueError):
    """An escape that nobody knows, or one that cannot be read."""


# ── Writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_json(value: Any) -> Any:
    """What stands for a value in JSON.

    Args:
        value: As it comes out of a message; of other kinds, those that messages carry.

    Raises:
        TypeError: It is of a kind that messages do not carry.
        RecursionError: It nests too deeply.
    """
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int:
        return value if -INT_MAX <= value <= INT_MAX else {"$int": _int_text(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if kind is list or kind is tuple:
        return [to_json(item) for item in value]
    if kind is dict:
        return _dict_to_json(value)
    if kind is bytes:
        return {"$bytes": _base64(value)}
    if kind is complex:
        return {"$complex": [to_json(value.real), to_json(value.imag)]}
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return {"$datetime": value.astimezone(_UTC).isoformat()}
    np: Any = sys.modules.get("numpy")
    if np is not None and isinstance(value, np.ndarray):
        return {
            "$array": {"dtype": _dtype_to_json(value), "shape": list(value.shape), "data": _base64(value.tobytes())}
        }
    if np is not None and isinstance(value, np.generic):
        # An array of one has the dtype in full, where that of an empty text says nothing of its size.
        one = np.array(value, dtype=value.dtype)
        return {"$scalar": {"dtype": _dtype_to_json(one), "data": _base64(one.tobytes())}}
    raise TypeError(f"JSON lines have no way to write {value!r:.60} of type {kind.__name__}")


def _int_text(value: int) -> str:
    return str(value) if -_DECIMAL_MAX < value < _DECIMAL_MAX else hex(value)


def _dict_to_json(value: dict[Any, Any]) -> Any:
    for key in value:
        if type(key) is not str or (len(value) == 1 and key[:1] == "$"):
            return {"$dict": [[to_json(key), to_json(item)] for key, item in value.items()]}
    return {key: to_json(item) for key, item in value.items()}


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _dtype_to_json(value: Any) -> Any:
    # As it stands in messages: text, or the list of a structure's fields.
    return msgspec.msgpack.decode(values.describe_dtype(value.dtype))


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def from_json(value: Any) -> Any:
    """The value that something read from JSON stands for.

    Raises:
        EscapeError: An escape in it is unknown, or cannot be read.
        RecursionError: It nests too deeply.
    """
    if type(value) is list:
        return [from_json(item) for item in value]
    if type(value) is not dict:
        return value
    if len(value) == 1:
        (name,) = value
        if name[:1] == "$":
            return _read_escape(name, value[name])
    return {key: from_json(item) for key, item in value.items()}


def _read_escape(name: str, inner: Any) -> Any:
    read = _ESCAPES.get(name)
    if read is None:
        close = difflib.get_close_matches(name, _ESCAPES, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(_ESCAPES)};"
        raise EscapeError(
            f"{name[:60]!r} is no known escape; {hint} an object that is meant as it is stands as "
            f'{{"$dict": [["{name[:60]}", …]]}}'
        )
    try:
        return read(inner)
    except EscapeError as error:
        if error.args and str(error).startswith("$"):
            # Of an escape further in.
            raise
        raise EscapeError(f"{name}: {error}") from None
    # numpy has no list of what it raises for a bad description.
    except Exception as error:
        if isinstance(error, RecursionError | MemoryError):
            raise
        raise EscapeError(f"{name}: {inner!r:.60} cannot be read: {error}") from error


def _expect(condition: bool, expected: str, given: Any) -> None:
    if not condition:
        raise EscapeError(f"expected {expected}, got {given!r:.60}")


def _read_int(inner: Any) -> int:
    text = 'a whole number as text, such as "-12" or "0xff"'
    _expect(isinstance(inner, str) and _INT.fullmatch(inner) is not None, text, inner)
    return int(inner, 0)


def _read_float(inner: Any) -> float:
    _expect(isinstance(inner, str) and inner in _FLOATS, 'one of "nan", "inf" and "-inf"', inner)
    return _FLOATS[inner]


def _read_complex(inner: Any) -> complex:
    parts = [from_json(part) for part in inner] if isinstance(inner, list) else []
    right = len(parts) == 2 and all(type(part) in (int, float) for part in parts)
    _expect(right, "two numbers, such as [1.5, -2.0]", inner)
    return complex(*parts)


def _read_bytes(inner: Any) -> bytes:
    _expect(isinstance(inner, str), "base64 as text", inner)
    return binascii.a2b_base64(inner, strict_mode=True)


def _read_datetime(inner: Any) -> datetime.datetime:
    text = 'a date, a time and a time zone as text, such as "2024-05-01T12:00:00Z"'
    _expect(isinstance(inner, str), text, inner)
    value = datetime.datetime.fromisoformat(inner)
    _expect(value.tzinfo is not None, text, inner)
    return value.astimezone(_UTC)


def _read_array(inner: Any) -> Any:
    right = isinstance(inner, dict) and inner.keys() == {"dtype", "shape", "data"} and isinstance(inner["shape"], list)
    _expect(right, 'an object with "dtype", "shape" (a list) and "data"', inner)
    shape = inner["shape"]
    _expect(all(type(length) is int and length >= 0 for length in shape), "a shape of whole numbers", shape)
    return _elements(inner["dtype"], tuple(shape), _read_bytes(inner["data"]))


def _read_scalar(inner: Any) -> Any:
    right = isinstance(inner, dict) and inner.keys() == {"dtype", "data"}
    _expect(right, 'an object with "dtype" and "data"', inner)
    return _elements(inner["dtype"], (), _read_bytes(inner["data"]))[()]


def _elements(description: Any, shape: tuple[int, ...], data: bytes) -> Any:
    np: Any = importlib.import_module("numpy")
    dtype = values.read_dtype(msgspec.msgpack.encode(description))
    # Not left to numpy: it takes bytes that are more than the array's.
    size = math.prod(shape) * dtype.itemsize
    _expect(size == len(data), f"{size:,} bytes for shape {list(shape)} of {dtype}", f"{len(data):,} bytes")
    return np.ndarray(shape, dtype, buffer=data)


def _read_dict(inner: Any) -> dict[Any, Any]:
    pairs: list[Any] = inner if isinstance(inner, list) else [None]
    right = all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    _expect(right, "a list of pairs, such as [[1, 2], [3, 4]]", inner)
    return {_as_key(from_json(key)): from_json(item) for key, item in pairs}


def _as_key(key: Any) -> Any:
    return tuple(_as_key(part) for part in key) if isinstance(key, list) else key


_ESCAPES: dict[str, Callable[[Any], Any]] = {
    "$int": _read_int,
    "$float": _read_float,
    "$complex": _read_complex,
    "$bytes": _read_bytes,
    "$datetime": _read_datetime,
    "$array": _read_array,
    "$scalar": _read_scalar,
    "$dict": _read_dict,
}
