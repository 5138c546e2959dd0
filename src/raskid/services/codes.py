"""Code objects: what the blob of one holds, and how a runner makes a function of it.

A blob is a pickle of (search path, modules, pickled function). The search path holds the directories of the script's
own modules. `modules` names those of them that the function rests on, each with its file and the hash of the source
that the script has. A runner that has other source loaded under such a name imports it again; when the file on disk
is not the script's source any more, it says so instead of running something else.

Installed packages are not looked at: they do not change under a running system, or the system is restarted.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

from raskid.model.errors import StaleCode

#: Of functions that were not called for long only the blobs are kept.
FUNCTIONS_MAX = 4096

#: Stands in a search path for Python's own modules and the installed packages.
PYTHON = ""

#: (name, file, hash of its source)
OwnModule = tuple[str, str, str]


def pack_code(path: tuple[str, ...], modules: tuple[OwnModule, ...], function: bytes) -> bytes:
    """The blob of a code object."""
    return pickle.dumps((path, modules, function), 5)


def hash_source(file: str) -> str:
    """The hash of a module's source; empty when it cannot be read."""
    try:
        with open(file, "rb") as source:
            return hashlib.blake2b(source.read(), digest_size=12).hexdigest()
    except OSError:
        return ""


class CodeLoader:
    """The functions that one process has loaded, and which source they came from.

    Args:
        replaces: The process is a runner: modules of scripts that are loaded from other source go, and are imported
            again. In a process of the user's own they stay, and what needs others is refused.
    """

    def __init__(self, replaces: bool = True) -> None:
        self.replaces = replaces
        self.functions: dict[str, Callable[..., Any]] = {}
        #: The script's own modules as they are loaded here: name → (file, hash of the source).
        self._loaded: dict[str, tuple[str, str]] = {}
        self._began = time.time()

    def function(self, code: str, blob: bytes) -> Callable[..., Any]:
        """The function of a code object.

        Raises:
            StaleCode: A module that it needs was changed after the script had imported it.
            ImportError: A module that it needs is not there.
            TypeError: It is no function.
        """
        found = self.functions.get(code)
        if found is not None:
            return found
        path, modules, pickled = pickle.loads(blob)
        extend_path(path, self.replaces)
        self._prepare(modules)
        loaded = pickle.loads(pickled)
        if not callable(loaded):
            raise TypeError(f"code object {code} is a {type(loaded).__name__}, not a function")
        if len(self.functions) >= FUNCTIONS_MAX:
            del self.functions[next(iter(self.functions))]
        function: Callable[..., Any] = loaded
        self.functions[code] = function
        return function

    def _prepare(self, modules: tuple[OwnModule, ...]) -> None:
        """See to it that these modules are, or will be, loaded from the script's source."""
        wanted = {name: (file, digest) for name, file, digest in modules}
        new = {name: source for name, source in wanted.items() if self._loaded.get(name) != source}
        if not new:
            return
        for name, (file, digest) in new.items():
            now = hash_source(file)
            if now != digest:
                happened = "was changed after the script had imported it" if now else "is not there any more"
                raise StaleCode(
                    f"the module {name!r} ({file}) {happened}, so this runner cannot load what the script has. Start "
                    "the script again, or in a session that stays: importlib.reload the module and submit again"
                )
        if any(name in sys.modules and not self._is_loaded(name, *source) for name, source in new.items()):
            if not self.replaces:
                name = next(name for name in new if name in sys.modules and not self._is_loaded(name, *new[name]))
                raise StaleCode(
                    f"the module {name!r} is loaded here from other source than {new[name][0]} as the reaction's owner "
                    "has it. Start this program again, or the owner, so that both have the same"
                )
            # Loaded from other source. What rests on it holds objects of the old one, so that all modules of scripts
            # go, and are imported again as they are needed.
            for name in self._loaded.keys() | new.keys():
                sys.modules.pop(name, None)
            self._loaded = {}
            importlib.invalidate_caches()
            new = wanted
        self._loaded.update(new)

    def _is_loaded(self, name: str, file: str, digest: str) -> bool:
        """Whether a module that is loaded came from this source."""
        if name in self._loaded:
            return self._loaded[name] == (file, digest)
        # Another module imported it, or a function's body did: it is what the file holds, unless that changed since.
        if getattr(sys.modules[name], "__file__", None) != file:
            return False
        return os.stat(file).st_mtime < self._began


def extend_path(path: tuple[str, ...], first_place: bool = True) -> None:
    """Put a script's directories where the script has them: another script's modules may have the same names.

    Args:
        path: As from `own_directories`.
        first_place: Otherwise they come last, behind those of this process's own script.
    """
    if not first_place:
        sys.path += [entry for entry in path if entry != PYTHON and entry not in sys.path]
        return
    at = path.index(PYTHON) if PYTHON in path else len(path)
    first, last = path[:at], path[at + 1 :]
    if tuple(sys.path[:at]) == first and all(entry in sys.path for entry in last):
        return
    others = [entry for entry in sys.path if entry not in first]
    sys.path[:] = [*first, *others, *(entry for entry in last if entry not in others and entry not in first)]
    importlib.invalidate_caches()


def own_directories() -> tuple[str, ...]:
    """The entries of this process's search path that hold a script's own modules: not Python's, nor installed ones.

    The entry `PYTHON` stands where Python's own modules come: only what goes before may hide those.
    """
    return _own_among(tuple(sys.path), os.getcwd())


@functools.lru_cache(maxsize=16)
def _own_among(path: tuple[str, ...], cwd: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for entry in path:
        full = os.path.normpath(os.path.join(cwd, entry))
        found[PYTHON if is_installed(full + os.sep) else full] = None
    return tuple(found)


def is_installed(file: str) -> bool:
    """Whether a file belongs to Python, to an installed package, or to this one."""
    if f"{os.sep}site-packages{os.sep}" in file or f"{os.sep}dist-packages{os.sep}" in file:
        return True
    return file.startswith(_INSTALLED)


_STANDARD = os.path.dirname(os.path.abspath(os.__file__))
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_ZIPPED = os.path.join(os.path.dirname(_STANDARD), f"python{sys.version_info.major}{sys.version_info.minor}.zip")
_INSTALLED = (_STANDARD + os.sep, _ZIPPED, _OURS + os.sep)
