"""Functions as code objects: pickled once, named by the hash of their bytes.

A function of an importable module travels by name, with the hash of the source of every module of the script that it
rests on (installed packages are taken as they are): a runner that has other source loaded does not run it. A function
of the script itself (``__main__``), a lambda or a closure travels by value, and is pickled again when any object that
it names, transitively, is a different object: globals, closures, defaults, attributes of the script's classes and of
their instances. Changing an object in place (a list, an array) is not seen, nor is a module that only the body of a
function imports.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from raskid.client.pickling import why_not
from raskid.model.ids import CodeId
from raskid.protocol.messages import Code
from raskid.services.calling import dump
from raskid.services.codes import OwnModule, hash_source, is_installed, own_directories, pack_code

_MISSING = object()

#: Code objects that are kept ready, at most, and what their blobs may take together.
CODES_MAX = 4096
CODES_BYTES_MAX = 64 << 20
#: So many objects that a function rests on are looked at; what lies beyond counts as unchanging.
_OBJECTS_MAX = 4000
_ELEMENTS_MAX = 1000

#: The source that each of the script's modules was loaded from, as far as that is known: name → (spec, file, hash).
#: A spec is as old as the load: a reload makes a new one.
_sources: dict[str, tuple[Any, str, str]] = {}


class _Known:
    """A code object, and what it rests on."""

    __slots__ = ("cells", "code", "modules", "names", "of", "sizes")

    def __init__(self, of: Callable[[], Any]) -> None:
        #: Weakly: the object that was pickled (of a bound method, the object that it is bound to).
        self.of = of
        self.code = Code(CodeId(""), b"")
        #: What its meaning rests on: (namespace, name, object) and (cell, object).
        self.names: list[tuple[Mapping[str, Any], str, Any]] = []
        self.cells: list[tuple[Any, Any]] = []
        #: Namespaces of classes and instances, and how many names they had.
        self.sizes: list[tuple[Mapping[str, Any], int]] = []
        self.modules: dict[str, OwnModule] = {}

    def holds(self) -> bool:
        """Whether everything it rests on is still the same object."""
        for namespace, name, value in self.names:
            if namespace.get(name, _MISSING) is not value:
                return False
        for cell, value in self.cells:
            if _content(cell) is not value:
                return False
        return all(len(namespace) == size for namespace, size in self.sizes)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


class CodeBook:
    """The code objects of one client."""

    def __init__(self) -> None:
        #: By identity: two functions that are equal may differ in what they rest on.
        self._known: dict[Any, _Known] = {}
        self._bytes = 0
        self._lock = threading.RLock()
        #: Keys whose object is gone; told by the garbage collector, at any moment and on any thread.
        self._gone: deque[Any] = deque()

    def code_of(self, function: Callable[..., Any]) -> Code:
        """The code object of a function.

        Raises:
            TypeError: It is no function, or a coroutine function, or cannot be pickled.
        """
        key: Any = id(function)
        anchor: Any = function
        if type(function) is types.MethodType:
            # A new object at every look: what stays is what it is bound to.
            key, anchor = (id(function.__self__), id(function.__func__)), function.__self__
        known = self._known.get(key)
        if known is not None and known.of() is anchor and ((not known.names and not known.cells) or known.holds()):
            return known.code
        with self._lock:
            return self._make(function, key, anchor)

    def _make(self, function: Callable[..., Any], key: Any, anchor: Any) -> Code:
        while self._gone:
            self._forget(self._gone.popleft())
        name = name_of(function)
        _check_callable(function, name)
        try:
            pickled = dump(function)
        except Exception as error:
            raise TypeError(f"the function {name} cannot be sent: {why_not(name, function, error)}") from error
        known = _Known(lambda: None)
        _Collector(known).collect(function)
        blob = pack_code(own_directories(), tuple(known.modules.values()), pickled)
        digest = hashlib.blake2b(blob, digest_size=12).hexdigest()
        known.code = Code(CodeId(digest), blob, name)
        if not _carries_state(function):
            self._keep(key, anchor, known)
        return known.code

    def _keep(self, key: Any, anchor: Any, known: _Known) -> None:
        self._forget(key)
        gone = self._gone
        try:
            known.of = weakref.ref(anchor, lambda _: gone.append(key))
        except TypeError:
            # Pickled anew at every use: there is no telling when it is gone.
            return
        self._known[key] = known
        self._bytes += len(known.code.blob)
        while len(self._known) > CODES_MAX or (self._bytes > CODES_BYTES_MAX and len(self._known) > 1):
            self._forget(next(iter(self._known)))

    def _forget(self, key: Any) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self._bytes -= len(known.code.blob)


def _carries_state(function: Any) -> bool:
    """Whether it holds an object whose changes nobody can see: such a function is pickled at every use. (What is sent
    is named by its hash, so that one which has not changed is sent once.)"""
    if isinstance(function, types.MethodType):
        return not isinstance(function.__self__, type | types.ModuleType)
    return not isinstance(function, types.FunctionType | types.BuiltinFunctionType | type)


def name_of(function: Any) -> str:
    """What to call a function in texts."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(name).replace("<locals>.", "")


def _check_callable(function: Any, name: str) -> None:
    if not callable(function):
        raise TypeError(f"the first argument of submit() and map() is a function, got {function!r}")
    called = function if inspect.isroutine(function) or isinstance(function, functools.partial) else function.__call__
    for candidate in (function, called):
        if inspect.iscoroutinefunction(candidate) or inspect.isasyncgenfunction(candidate):
            raise TypeError(
                f"{name} is a coroutine function (async def); a task is a plain function, which may call "
                "asyncio.run(...) itself"
            )


# ── What a function rests on ─────────────────────────────────────────────────────────────────────────────────────────


def _names_of(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_of(constant)
    return names


def _travels_by_value(value: Any) -> bool:
    """Whether a function or class is pickled by value: no other process can import it."""
    module = getattr(value, "__module__", None)
    if module is None or module == "__main__" or module not in sys.modules:
        return True
    found: Any = sys.modules[module]
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is not value


def _module_name(value: Any) -> Any:
    try:
        return getattr(value, "__module__", None)
    except Exception:
        # A stand-in for an object that is not there yet, as web frameworks have them.
        return None


class _Collector:
    """Walks through what a function rests on, and notes it."""

    def __init__(self, known: _Known) -> None:
        self.known = known
        self._seen: set[int] = set()
        self._todo: deque[Any] = deque()

    def collect(self, function: Any) -> None:
        """Note everything that `function` rests on."""
        self._todo.append(function)
        while self._todo and len(self._seen) < _OBJECTS_MAX:
            value = self._todo.popleft()
            if id(value) not in self._seen:
                self._seen.add(id(value))
                self._look(value)

    def _look(self, value: Any) -> None:
        if isinstance(value, types.ModuleType):
            self._module(value.__name__)
        elif isinstance(value, types.FunctionType):
            if _travels_by_value(value):
                self._function(value)
            else:
                self._module(value.__module__)
        elif isinstance(value, type):
            if not _travels_by_value(value):
                self._module(value.__module__)
            else:
                self._namespace(vars(value))
                self._todo.extend(value.__bases__)
        elif isinstance(value, types.MethodType):
            self._todo += (value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            self._todo += (value.func, *value.args, *value.keywords.values())
        elif isinstance(value, staticmethod | classmethod):
            self._todo.append(value.__func__)
        elif isinstance(value, property):
            self._todo += (value.fget, value.fset, value.fdel)
        elif isinstance(value, functools.cached_property):
            self._todo.append(value.func)
        elif isinstance(value, list | tuple | set | frozenset):
            self._todo.extend(list(value)[:_ELEMENTS_MAX])
        elif isinstance(value, dict):
            self._todo.extend(list(value.values())[:_ELEMENTS_MAX])
        elif type(value).__module__ != "builtins":
            self._todo.append(type(value))
            fields = getattr(value, "__dict__", None)
            if isinstance(fields, dict):
                self._namespace(fields)

    def _function(self, function: types.FunctionType) -> None:
        namespace = function.__globals__
        for name in sorted(_names_of(function.__code__)):
            if name in namespace:
                self.known.names.append((namespace, name, namespace[name]))
                self._todo.append(namespace[name])
            elif name in sys.modules:
                # Imported by the body.
                self._module(name)
        for cell in function.__closure__ or ():
            self.known.cells.append((cell, _content(cell)))
            self._todo.append(_content(cell))
        self._todo += (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())

    def _namespace(self, namespace: Mapping[str, Any]) -> None:
        self.known.sizes.append((namespace, len(namespace)))
        for name, value in list(namespace.items()):
            if name not in ("__dict__", "__weakref__", "__doc__", "__module__"):
                self.known.names.append((namespace, name, value))
                self._todo.append(value)

    def _module(self, name: str) -> None:
        """Note one of the script's modules, the packages around it, and all such modules that it names."""
        module = sys.modules.get(name)
        if module is None or name == "__main__" or name in self.known.modules:
            return
        file = getattr(module, "__file__", None)
        spec = getattr(module, "__spec__", None)
        if not file or not file.endswith(".py") or spec is None or is_installed(file):
            return
        source = _sources.get(name)
        if source is None or source[0] is not spec:
            source = _sources[name] = (spec, file, hash_source(file))
        self.known.modules[name] = (name, source[1], source[2])
        # A reload makes a new spec.
        self.known.names.append((vars(module), "__spec__", spec))
        around = name.rpartition(".")[0]
        if around:
            self._module(around)
        for value in list(vars(module).values()):
            if isinstance(value, types.ModuleType):
                self._todo.append(value)
            else:
                named = _module_name(value)
                if type(named) is str and named not in self.known.modules:
                    self._todo.append(sys.modules.get(named))
