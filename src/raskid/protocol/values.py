"""How the bodies of messages are written: MessagePack, without pickle.

Bodies carry None, bool, int of any size, float, complex, str, bytes, datetime, lists, dicts whose keys are any of these
that can be keys, and numpy arrays and scalars of every dtype that holds no objects. Floats keep every bit.

What MessagePack has no kind for arrives as the nearest plain kind: a tuple, set or frozenset as a list (as a tuple
where it is the key of a dict), a bytearray or memoryview as bytes, a date, a time or a datetime without a time zone as
ISO text, a datetime with one in UTC, an Enum as its value, a dataclass as a dict. Keeping these apart would take a walk
through every value in Python, several times the cost of writing it.

Arrays arrive read-only and without a copy: they are views of the body, which lives as long as they do. A view begins
wherever the body's other parts left off; code that needs aligned memory asks with ``np.require(a, requirements="A")``.

numpy is never imported here for writing, and for reading only when an array comes in.
"""

from __future__ import annotations

import functools
import importlib
import math
import re
import struct
import sys
import types
from typing import Any, NoReturn

import msgspec
from msgspec.msgpack import Decoder, Encoder, Ext

from raskid.model.errors import RemoteProtocolError, ValueNotSendable

BODY_BYTES_MAX = 1 << 30

# Numbers of extension types. Never use one again for something else; -1 is MessagePack's own timestamp.
EXT_INT = 1
EXT_COMPLEX = 2
EXT_ARRAY = 3
EXT_SCALAR = 4

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1
_COMPLEX = struct.Struct("<dd")
_HEADER_SIZE = struct.Struct("<I")
_DESCRIPTION_BYTES_MAX = 64 * 1024
#: Kinds of dtype whose elements are their bytes.
_DTYPE = re.compile(r"[<>|=][biufcmMSUV][0-9]{0,10}(\[[0-9]{0,10}[A-Za-z]{1,2}(/[0-9]{1,10})?\])?", re.ASCII)


#: What `publish` calls to get the message. A class, or an object that can be called, is not meant by this.
LAZY = (
    types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType, functools.partial,
    functools._lru_cache_wrapper,
)  # fmt: skip


class _ArrayHeader(msgspec.Struct, frozen=True, array_like=True):
    """Stands before an array's raw bytes. `description` is the dtype's, in MessagePack."""

    description: bytes
    shape: tuple[int, ...]
    fortran: bool


def encode_body(args: tuple[Any, ...], fields: dict[str, Any]) -> bytes:
    """Write what was published or asked.

    Raises:
        ValueNotSendable: Something in it is of a kind that bodies do not carry; `path` says where, for example
            ``fields['mesh'].x`` or ``args[0][2]``. Or the body exceeds 1 GiB.
    """
    try:
        body = _encode((args, fields))
    except (TypeError, ValueError, OverflowError, AttributeError, RecursionError):
        body = _encode_slowly((args, fields), ("args", "fields"))
    if len(body) > BODY_BYTES_MAX:
        _refuse_size(len(body))
    return body


def evaluate_message(args: tuple[Any, ...], fields: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The message that was given to `publish`: a single function is called, and gives it.

    A plain dict with text for all keys gives named fields, beside those given; anything else is the one value.
    """
    if len(args) == 1 and callable(args[0]) and isinstance(args[0], LAZY):
        value = args[0]()
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return (), {**fields, **value}
        return (value,), fields
    return args, fields


def encode_message(args: tuple[Any, ...], fields: dict[str, Any]) -> bytes:
    """As `encode_body`, for what `publish` was given."""
    if len(args) == 1 and callable(args[0]) and isinstance(args[0], LAZY):
        args, fields = evaluate_message(args, fields)
    return encode_body(args, fields)


def encode_value(value: Any) -> bytes:
    """Write one value; otherwise like `encode_body`, with paths that begin with ``value``."""
    try:
        body = _encode(value)
    except (TypeError, ValueError, OverflowError, AttributeError, RecursionError):
        body = _encode_slowly(value, "value")
    if len(body) > BODY_BYTES_MAX:
        _refuse_size(len(body))
    return body


def decode_body(data: bytes | bytearray | memoryview) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read what `encode_body` wrote.

    Raises:
        RemoteProtocolError: These bytes are no body.
    """
    if len(data) > BODY_BYTES_MAX:
        raise RemoteProtocolError(f"a body has {len(data):,} bytes; the limit is {BODY_BYTES_MAX:,}")
    try:
        return _decode_body(data)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise RemoteProtocolError(f"a body of {len(data):,} bytes cannot be read: {error}") from error


def decode_value(data: bytes | bytearray | memoryview) -> Any:
    """Read what `encode_value` wrote; otherwise like `decode_body`."""
    if len(data) > BODY_BYTES_MAX:
        raise RemoteProtocolError(f"a value has {len(data):,} bytes; the limit is {BODY_BYTES_MAX:,}")
    try:
        return _decode_value(data)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise RemoteProtocolError(f"a value of {len(data):,} bytes cannot be read: {error}") from error


# ── Writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_other(value: Any) -> Any:
    """The encoder's hook: turn what it does not know into what it knows."""
    if type(value) is complex:
        return Ext(EXT_COMPLEX, _COMPLEX.pack(value.real, value.imag))
    np: Any = sys.modules.get("numpy")
    if np is not None:
        # Before the plain kinds: some scalars of numpy are subclasses of float, complex, str or bytes.
        if isinstance(value, np.ndarray):
            return _write_array(np, value, EXT_ARRAY)
        if isinstance(value, np.generic):
            return _write_array(np, np.array(value, dtype=value.dtype), EXT_SCALAR)
    # Subclasses arrive as the plain kind. Their own conversions are not asked: they could return anything.
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return bytes(memoryview(value))
    raise ValueNotSendable(_text(f"a value of type {_type_name(value)}"))


def _write_array(np: Any, array: Any, code: int) -> Ext:
    if type(array) is not np.ndarray and type(array) is not np.memmap:
        raise ValueNotSendable(
            f"messages carry plain numpy arrays, and {_type_name(array)} would lose what it adds to them. "
            "Send np.asarray(x), and what else it holds as separate fields"
        )
    try:
        description = describe_dtype(array.dtype)
    except (ValueError, TypeError) as error:
        raise ValueNotSendable(f"messages do not carry numpy arrays of dtype {array.dtype}: {error}") from error
    fortran = bool(array.flags.f_contiguous and not array.flags.c_contiguous)
    header = _encode_header(_ArrayHeader(description, array.shape, fortran))
    raw: Any = b""
    if array.nbytes:
        # A view of bytes: not every dtype (dates, for example) offers its memory to others itself.
        flat = (array.T if fortran else np.ascontiguousarray(array)).reshape(-1)
        raw = memoryview(flat.view(np.uint8))
    return Ext(code, b"".join((_HEADER_SIZE.pack(len(header)), header, raw)))


@functools.lru_cache(maxsize=256)
def describe_dtype(dtype: Any) -> bytes:
    """A dtype in MessagePack: text, or the list of a structure's fields. Raises ValueError where that cannot be."""
    if dtype.hasobject:
        raise ValueError("its elements are Python objects. Send a list, or convert it: x.astype(float), x.astype('U')")
    np_format: Any = importlib.import_module("numpy.lib.format")
    # Asking for the description of what has none is an error in some versions of numpy and a warning in others.
    description = dtype.descr if dtype.names is not None else dtype.str
    if np_format.descr_to_dtype(description) != dtype:
        raise ValueError("numpy cannot describe it in full. Convert it to a standard dtype with x.astype(...)")
    written = _encode(description)
    if len(written) > _DESCRIPTION_BYTES_MAX:
        raise ValueError(f"its description exceeds {_DESCRIPTION_BYTES_MAX:,} bytes")
    read_dtype(written)
    return written


def _encode_slowly(value: Any, path: str | tuple[str, str]) -> bytes:
    """Write what the encoder alone cannot (integers beyond 64 bits), or raise the error that names the place."""
    try:
        if isinstance(path, tuple):
            return _encode((_rewrite(value[0], path[0]), _rewrite(value[1], path[1])))
        return _encode(_rewrite(value, path))
    except RecursionError:
        raise ValueNotSendable(
            "a value nests too deeply for a message, or contains itself. Send it flattened"
        ) from None
    except ValueNotSendable:
        raise
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueNotSendable(f"this cannot be written into a message: {error}") from error


def _rewrite(value: Any, path: str) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and not _INT_MIN <= value <= _INT_MAX:
        data = int.to_bytes(value, value.bit_length() // 8 + 1, "little", signed=True)
        return _Written(Ext(EXT_INT, data))
    if isinstance(value, dict):
        return {_rewrite_key(key, path): _rewrite(item, f"{path}[{key!r:.60}]") for key, item in value.items()}
    if isinstance(value, list):
        return [_rewrite(item, f"{path}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, tuple):
        return tuple(_rewrite(item, f"{path}[{place}]") for place, item in enumerate(value))
    if isinstance(value, set | frozenset):
        return [_rewrite(item, f"{path}{{{item!r:.60}}}") for item in value]
    if hasattr(type(value), "__dataclass_fields__"):
        import dataclasses

        return {it.name: _rewrite(getattr(value, it.name), f"{path}.{it.name}") for it in dataclasses.fields(value)}
    try:
        _encode(value)
    except ValueNotSendable as error:
        raise ValueNotSendable(f"{path}: {error}", path) from error.__cause__
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        text = _text(f"this value of type {_type_name(value)} ({error})")
        raise ValueNotSendable(f"{path}: {text}", path) from error
    return value


def _rewrite_key(key: Any, path: str) -> Any:
    new = _rewrite(key, f"{path}.keys()[{key!r:.60}]")
    return tuple(new) if isinstance(new, list) else new


class _Written:
    """Holds an `Ext`, which has no hash, where it may be the key of a dict; the encoder's hook unpacks it."""

    __slots__ = ("ext",)

    def __init__(self, ext: Ext) -> None:
        self.ext = ext


def _hook(value: Any) -> Any:
    return value.ext if type(value) is _Written else _write_other(value)


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text(what: str) -> str:
    return (
        f"messages do not carry {what}. Send plain values or numpy arrays, or write it as bytes yourself; "
        "arguments and values of tasks may be of any type that can be pickled"
    )


def _refuse_size(size: int) -> NoReturn:
    raise ValueNotSendable(
        f"this message has {size:,} bytes; the limit is {BODY_BYTES_MAX:,}. Share large data as a payload instead"
    )


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_other(code: int, data: memoryview) -> Any:
    """The hook of decoders of values. The bytes come from elsewhere: nothing in them is to be believed."""
    if code == EXT_COMPLEX and len(data) == _COMPLEX.size:
        return complex(*_COMPLEX.unpack(data))
    if code == EXT_INT and len(data):
        return int.from_bytes(data, "little", signed=True)
    if code in (EXT_ARRAY, EXT_SCALAR):
        try:
            array = _read_array(data)
            return array if code == EXT_ARRAY else array[()]
        except RemoteProtocolError:
            raise
        # numpy has no list of what it raises for a bad description.
        except Exception as error:
            raise RemoteProtocolError(f"a numpy array in a message cannot be read: {error}") from error
    raise RemoteProtocolError(f"a message holds {len(data):,} bytes of extension type {code}, which cannot be read")


def _read_array(data: memoryview) -> Any:
    (size,) = _HEADER_SIZE.unpack_from(data)
    start = _HEADER_SIZE.size + size
    header = _decode_header(data[_HEADER_SIZE.size : start])
    raw = data[start:]
    try:
        np: Any = importlib.import_module("numpy")
    except ImportError as error:
        raise RemoteProtocolError("a message holds a numpy array, and numpy is not installed here") from error
    if len(header.description) > _DESCRIPTION_BYTES_MAX:
        raise ValueError("the description of its dtype is too long")
    dtype = read_dtype(header.description)
    if any(length < 0 for length in header.shape):
        raise ValueError(f"its shape is {header.shape}")
    # Not left to numpy: it takes a buffer that is longer than the array.
    if math.prod(header.shape) * dtype.itemsize != len(raw):
        raise ValueError(f"shape {header.shape} of {dtype} does not take {len(raw):,} bytes")
    array = np.ndarray(header.shape, dtype, buffer=raw, order="F" if header.fortran else "C")
    array.flags.writeable = False
    return array


@functools.lru_cache(maxsize=256)
def read_dtype(description: bytes) -> Any:
    """The dtype that `describe_dtype` described. Raises ValueError for bytes that describe none."""
    np_format: Any = importlib.import_module("numpy.lib.format")
    dtype = np_format.descr_to_dtype(_check_description(_decode_plain(description)))
    if dtype.hasobject or dtype.subdtype is not None:
        raise ValueError(f"its dtype is {dtype}")
    return dtype


def _check_description(description: Any) -> Any:
    """The description in the form that numpy wants, tuples for lists; raises ValueError for any other form."""
    if isinstance(description, str) and _DTYPE.fullmatch(description):
        return description
    if not isinstance(description, list):
        raise ValueError(f"its dtype is described by {description!r:.60}")
    fields: list[Any] = []
    for field in description:
        name, inner, *shape = field
        if isinstance(name, list):
            name = tuple(name)
        fields.append((name, _check_description(inner), *(tuple(lengths) for lengths in shape)))
    return fields


_encode = Encoder(enc_hook=_hook).encode
_encode_header = Encoder().encode
_decode_header = Decoder(_ArrayHeader).decode
_decode_plain = Decoder().decode
_decode_body = Decoder(tuple[tuple[Any, ...], dict[str, Any]], ext_hook=read_other).decode
_decode_value = Decoder(ext_hook=read_other).decode
