"""Extensions of the session: what `rk.<name>` gives beside a session's own calls.

A feature is a service, which runs in a process of its own, and an extension, which is what its users call. Extensions
are looked for by name: first among those that this process has registered, then among the entry points of the group
`raskid.services`, then among the built-in ones. So any of them can be replaced.
"""

from __future__ import annotations

from typing import Any, ClassVar

from raskid.services.entries import SERVICES, entries, entry, is_named, load_named

#: The built-in extensions; `pyproject.toml` names the same ones.
BUILT_IN = {
    "basket": "raskid.client.baskets:BasketExtension",
    "recorder": "raskid.services.recorder:RecorderExtension",
}

_registered: dict[str, Any] = {}
#: What the names of others stand for, once they were loaded.
_loaded: dict[str, Any] = {}


class Extension:
    """What an extension can be derived from. It need not be: anything that can be called with a session will do.

    Attributes:
        session: The session.
        service: What makes the service, to be called with a session and settings: a class or function, or
            "module:attribute". None: there is no service.
        name: The service's name; default: the one by which the extension is known.
        asynchronous: What stands in the place of this class in asyncio, and is given an `AsyncSession`. None: the
            extension is not for asyncio.
    """

    service: ClassVar[Any] = None
    name: str = ""
    asynchronous: ClassVar[Any] = None

    def __init__(self, session: Any) -> None:
        self.session = session

    def start(self, **settings: Any) -> Any:
        """Start the service, as `Session.start_service`; in asyncio a coroutine."""
        kind = type(self)
        if kind.service is None:
            raise TypeError(f"{kind.__qualname__} names no service that could be started")
        return self.session.start_service(self.name, kind.service, **settings)

    def stop(self) -> Any:
        """Stop the service, as `Session.stop_service`; in asyncio a coroutine."""
        return self.session.stop_service(self.name)


def keep(name: str, extension: Any) -> None:
    """As `raskid.register`, which also knows which names sessions have themselves."""
    if not isinstance(name, str):
        raise TypeError(f"the name of an extension is text, got {name!r:.60} of type {type(name).__name__}")
    if not name.isidentifier() or name.startswith("_"):
        raise ValueError(f"an extension is used as rk.<name>, and {name[:60]!r} cannot stand there")
    if isinstance(extension, str):
        if not is_named(extension):
            raise ValueError(f'an extension is named as "module:attribute", got {extension!r:.80}')
    elif not callable(extension):
        raise TypeError(f"an extension is called with a session, and {extension!r:.60} cannot be called")
    _registered[name] = extension


def extension_names() -> list[str]:
    """The names under which there is an extension."""
    return sorted({*_registered, *entries(SERVICES), *BUILT_IN})


def extension_kind(name: str) -> Any:
    """What makes the extension of that name; None when there is none.

    Raises:
        ImportError: It cannot be loaded, or several packages bring one.
    """
    found = _registered.get(name)
    if found is None:
        found = _loaded.get(name)
        if found is None:
            found = entry(SERVICES, name, BUILT_IN.get(name, ""))
    if isinstance(found, str) and found:
        value = found
        try:
            found = load_named(value)
        except Exception as error:
            raise ImportError(f"the extension {name!r} ({value}) cannot be loaded: {error}") from error
        (_registered if name in _registered else _loaded)[name] = found
    return found or None
