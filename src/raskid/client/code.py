"""Functions as code objects: pickled once, named by the hash of their bytes.

A function of an importable module travels by name. One of the script (``__main__``), a lambda or a closure travels by
value, and is pickled again when any object that it names globally or in a closure, transitively, is a different
object. Changing such an object in place is not seen.
"""

from __future__ import annotations

import hashlib
import pickle
import types
from collections.abc import Callable
from typing import Any

from raskid.model.ids import CodeId
from raskid.protocol.messages import Code
from raskid.services.calling import dump

_MISSING = object()


class _Known:
    __slots__ = ("cells", "code", "names")

    def __init__(self, code: Code) -> None:
        self.code = code
        #: What the function's meaning rests on: (namespace, name, object) and (cell, object).
        self.names: list[tuple[dict[str, Any], str, Any]] = []
        self.cells: list[tuple[Any, Any]] = []

    def holds(self) -> bool:
        """Whether everything it rests on is still the same object."""
        for namespace, name, value in self.names:
            if namespace.get(name, _MISSING) is not value:
                return False
        return all(_content(cell) is value for cell, value in self.cells)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _names_of(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_of(constant)
    return names


class CodeBook:
    """The code objects of one client."""

    def __init__(self) -> None:
        self._known: dict[Any, _Known] = {}

    def code_of(self, function: Callable[..., Any]) -> Code:
        """The code object of a function.

        Raises:
            TypeError: It is no function, or cannot be pickled.
        """
        try:
            known = self._known.get(function)
        except TypeError:
            return self._make(function).code
        if known is not None and ((not known.names and not known.cells) or known.holds()):
            return known.code
        known = self._make(function)
        self._known[function] = known
        return known.code

    def _make(self, function: Callable[..., Any]) -> _Known:
        if not callable(function):
            raise TypeError(f"the first argument of submit() and map() is a function, got {function!r}")
        try:
            blob = dump(function)
        except Exception as error:
            raise TypeError(f"the function {function!r} cannot be pickled: {error}") from error
        known = _Known(Code(CodeId(hashlib.blake2b(blob, digest_size=12).hexdigest()), blob))
        if not _by_name(blob):
            _collect(function, known, set())
        return known


def _by_name(blob: bytes) -> bool:
    # A pickle by name is short and holds no code.
    return b"cloudpickle" not in blob and len(blob) < 4096 and pickle.PROTO in blob[:1]


def _collect(function: Any, known: _Known, seen: set[int]) -> None:
    function = getattr(function, "__func__", function)
    if id(function) in seen or not isinstance(function, types.FunctionType):
        return
    seen.add(id(function))
    found: list[Any] = []
    namespace = function.__globals__
    for name in sorted(_names_of(function.__code__)):
        if name in namespace:
            known.names.append((namespace, name, namespace[name]))
            found.append(namespace[name])
    for cell in function.__closure__ or ():
        known.cells.append((cell, _content(cell)))
        found.append(_content(cell))
    for value in found:
        if getattr(value, "__module__", None) == function.__module__:
            _collect(value, known, seen)
