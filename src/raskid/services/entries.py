"""Parts that others bring: by the name of an entry point, or as "module:attribute".

A package declares them in its `pyproject.toml`, in the groups `raskid.services` (extensions of the session) and
`raskid.managers` (classes that are a system's manager). The list of all packages is read when a name is looked for
that is known no other way, and once only: it takes milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

SERVICES = "raskid.services"
MANAGERS = "raskid.managers"

_NAMED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")

#: For each group: name → [(package, "module:attribute")].
_found: dict[str, dict[str, list[tuple[str, str]]]] = {}


def is_named(text: str) -> bool:
    """Whether a text has the form "module:attribute"."""
    return _NAMED.fullmatch(text) is not None


def load_named(name: str) -> Any:
    """What "module:attribute" names.

    Raises:
        ImportError: There is no such module, or it has no such attribute.
        ValueError: The text has another form.
    """
    if not is_named(name):
        raise ValueError(f"{name!r} names nothing; write \"module:attribute\", for example 'mypackage.services:Board'")
    from importlib import import_module

    module, _, path = name.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            where = getattr(found, "__file__", None) or "built in"
            raise ImportError(f"{module!r} ({where}) has no {path!r}") from None
    return found


def entries(group: str) -> Mapping[str, list[tuple[str, str]]]:
    """The entry points of a group: for each name, which package brings what."""
    known = _found.get(group)
    if known is None:
        from importlib.metadata import entry_points

        known = {}
        for point in entry_points(group=group):
            one = (point.dist.name if point.dist is not None else "?", point.value.replace(" ", ""))
            # A package that is found in two places counts once.
            if one not in known.setdefault(point.name, []):
                known[point.name].append(one)
        _found[group] = known
    return known


def entry(group: str, name: str, built_in: str = "") -> str:
    """What the entry point of that name stands for, as "module:attribute"; `built_in` when nobody brings another one.

    Raises:
        ImportError: Several packages bring one.
    """
    others = [(package, value) for package, value in entries(group).get(name, ()) if value != built_in]
    if len(others) > 1:
        told = " and ".join(f"{package} ({value})" for package, value in others)
        raise ImportError(f"{name!r} of {group} is brought by {told}; uninstall one")
    return others[0][1] if others else built_in


def load_manager(name: str) -> Any:
    """The class that is to be a system's manager, by the name of its entry point or as "module:attribute".

    Raises:
        ImportError: There is none of that name, or it cannot be imported.
        TypeError: It cannot be one.
    """
    value = name if is_named(name) else entry(MANAGERS, name)
    if not value:
        known = ", ".join(sorted(entries(MANAGERS))) or "none is installed"
        raise ImportError(f'no package brings a manager named {name!r} ({known}), and it is no "module:attribute"')
    found = load_named(value)
    missing = [part for part in ("handle", "next_deadline", "check_invariants", "watching") if not hasattr(found, part)]
    if not callable(found) or missing:
        lacks = f"lacks {', '.join(missing)}" if missing else "cannot be called"
        raise TypeError(f"{found!r} cannot be a manager: it {lacks}. Derive it from raskid.core.manager.Manager")
    return found
