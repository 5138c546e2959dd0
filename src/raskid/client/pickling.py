"""Why something cannot be pickled: which part of it, and where that part stands."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

from raskid.services.calling import dump

#: So deep, and at so many parts, one looks for the culprit.
_DEPTH_MAX = 20
_PARTS_MAX = 5000


def why_not(place: str, value: Any, error: BaseException) -> str:
    """Where in `value`, which stands at `place`, the part is that cannot be pickled, what it is, and why.

    Args:
        place: How the user knows the value: "argument 0", "item 17".
        value: What could not be pickled.
        error: With what that failed.
    """
    left = _PARTS_MAX
    reason: BaseException = error
    for _ in range(_DEPTH_MAX):
        for inner, part in _parts(place, value):
            left -= 1
            if left < 0:
                break
            try:
                dump(part)
            except Exception as failure:
                place, value, reason = inner, part, failure
                break
        else:
            break
        if left < 0:
            break
    return f"{place} is a {type(value).__name__}, which cannot be pickled: {reason}"


def _parts(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a value, each with its place. A module is none: it travels by name."""
    if isinstance(value, dict):
        yield from ((f"{place}[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"{place}[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from ((f"an element of {place}", part) for part in value)
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, types.MethodType):
        yield f"{place}'s object", value.__self__
        yield f"{place}'s function", value.__func__
    elif isinstance(value, functools.partial):
        yield f"{place}.func", value.func
        yield f"{place}.args", value.args
        yield f"{place}.keywords", value.keywords
    elif not isinstance(value, types.ModuleType | type) and _is_pickled_by_fields(type(value)):
        fields = getattr(value, "__dict__", None)
        if isinstance(fields, dict):
            yield from ((f"{place}.{name}", part) for name, part in fields.items())


def _is_pickled_by_fields(kind: type) -> bool:
    """Whether nothing but its attributes can be in the way: a class that says how to pickle it also says why not."""
    return not any("__reduce__" in vars(base) or "__reduce_ex__" in vars(base) for base in kind.__mro__[:-1])


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    name = function.__qualname__
    for used in function.__code__.co_names:
        if used in function.__globals__:
            yield f"{used!r}, which {name} uses,", function.__globals__[used]
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"{variable!r}, which {name} uses,", cell.cell_contents
        except ValueError:
            continue
    for index, default in enumerate(function.__defaults__ or ()):
        yield f"default {index} of {name}", default
    for key, default in (function.__kwdefaults__ or {}).items():
        yield f"the default of {key} of {name}", default
