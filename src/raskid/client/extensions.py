"""Services and extensions, as a user calls them: start, stop and list services; register extensions.

As in `raskid.client.topics`, what ends in `_nowait` gives futures, and the blocking and asynchronous calls are these
and a wait.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

from raskid.client.checks import check_callable, check_name, check_seconds
from raskid.client.futures import Future
from raskid.client.pickling import why_not
from raskid.client.service import call_named
from raskid.client.tasks import Tasks
from raskid.core.steward import SETTINGS_BYTES_MAX, START_S
from raskid.model.errors import RaskidError, StartFailed, WaitTimeout
from raskid.model.ids import CodeId
from raskid.protocol.messages import Code, StartService, StopService
from raskid.services.calling import dump
from raskid.services.codes import own_directories, pack_code
from raskid.services.entries import is_named
from raskid.services.extension import Extension, extension_kind, extension_names, keep

#: How long a service may take to begin, unless the caller says otherwise.
SERVICE_S = 20.0
#: How long the head may take to end one: the process is killed after 5 s.
STOP_S = 15.0
#: What a session has beside its calls.
_ATTRIBUTES = ("url", "role", "head", "peer", "engine", "driver", "subscriptions", "list_callbacks")
#: How long to wait for the story of a service that was ended because it took too long.
_STORY_S = 5.0


class Extensions(Tasks):
    """The part of a session that starts services, and that has extensions."""

    #: Those that were used: name → (what made it, the extension).
    _extensions: dict[str, tuple[Any, Any]] | None = None

    def start_service(
        self, name: str, factory: Callable[..., Any] | str, /, *, timeout: float = SERVICE_S, **settings: Any
    ) -> None:
        """Start a process of its own, which calls `factory(session, **settings)`; returns when that has returned.

        The session there is one of this very system, with all its calls. The process stays until `stop_service`, the
        end of the session there, or the end of the system; then the `close()` of what the factory returned is called,
        if it has one, and may take 5 s (1 s at the end of the system). A service whose process crashes is started again
        with the same settings, three times within a minute at most.

        Args:
            name: The service's name, by the rules for topics.
            factory: A class or function; or "module:attribute", to be imported there.
            timeout: How long the factory may take, in seconds, 600 at most.
            settings: Its arguments; whatever can be pickled.

        Raises:
            StartFailed: The factory raised, in which case the text has its traceback, or took too long; or a service
                of that name is there already.
            TypeError: The factory cannot be called, or it or a setting cannot be pickled; the text names the part.
        """
        seconds = check_start_s(timeout)
        future = self.start_service_nowait(name, factory, settings)
        try:
            try:
                future.result(seconds)
            except WaitTimeout:
                if future.done():
                    raise
                stopping = self.stop_service_nowait(name)
                self.engine.wait(lambda: future.done() and stopping.done(), _STORY_S)
                raise too_slow(name, seconds, future) from None
        except BaseException:
            self.give_up_service(name, future)
            raise

    def start_service_nowait(self, name: str, factory: Callable[..., Any] | str, settings: dict[str, Any]) -> Future:
        """As `start_service`, without waiting."""
        name = check_name(name)
        code = self._factory_code(factory)
        try:
            data = dump(settings) if settings else b""
        except Exception as error:
            raise TypeError(_which_setting(name, settings, error)) from error
        size = len(code.blob) + len(data)
        if size > SETTINGS_BYTES_MAX:
            raise ValueError(
                f"the code and settings of service {name!r} take {size:,} bytes; the limit is {SETTINGS_BYTES_MAX:,}. "
                "Pass the name of a file instead"
            )
        return self.ask(StartService(self.request_id(), name, code, data))

    def _factory_code(self, factory: Callable[..., Any] | str) -> Code:
        if not isinstance(factory, str):
            check_callable("factory", factory)
            if inspect.iscoroutinefunction(factory):
                raise TypeError(
                    f"{factory.__qualname__} is a coroutine function (async def); a factory is a plain function"
                )
            return self._book.code_of(factory)
        if not is_named(factory):
            raise ValueError(
                f'a factory is a class, a function, or its name as "module:attribute" (for example '
                f"'mypackage.services:Board'), got {factory[:80]!r}"
            )
        # It is imported there, but from where this script imports.
        blob = pack_code(own_directories(), (), dump(functools.partial(call_named, factory)))
        return Code(CodeId(hashlib.blake2b(blob, digest_size=12).hexdigest()), blob, factory)

    def give_up_service(self, name: str, future: Future) -> None:
        """Nobody waits for a service any more that has not begun: it is not to begin later."""
        if not future.done():
            try:
                self.stop_service_nowait(name)
            except RaskidError:
                # The session is over.
                return

    def stop_service(self, name: str) -> None:
        """End a service; returns when its process has ended. One that does not end within 5 s is killed.

        Raises:
            NotRunning: No such service runs.
        """
        future = self.stop_service_nowait(name)
        try:
            future.result(STOP_S)
        except WaitTimeout:
            if future.done():
                raise
            raise not_ended(name) from None

    def stop_service_nowait(self, name: str) -> Future:
        """As `stop_service`, without waiting."""
        return self.ask(StopService(self.request_id(), check_name(name)))

    def services(self) -> list[dict[str, Any]]:
        """The services: name, state, process id, peer, incarnation, and why one does not run.

        A state is "starting", "running", "paused" (before it is started again), "stopping", "failed" or "ended".
        """
        return list(self.status()["services"])

    def extension(self, name: str, face: Any = None) -> Any:
        """The extension of that name, which `rk.<name>` gives too.

        Raises:
            AttributeError: There is none.
            ImportError: It cannot be loaded.
        """
        kind = extension_kind(name)
        if kind is None:
            raise AttributeError(_no_extension(type(face or self), name))
        key = name
        if face is not None:
            kind = getattr(kind, "asynchronous", None)
            if kind is None:
                raise AttributeError(
                    f"the extension {name!r} is not for asyncio; use it on another thread: "
                    f"await asyncio.to_thread(rk.session.{name}...)"
                )
            key = f"{name} in asyncio"
        if self._extensions is None:
            self._extensions = {}
        made = self._extensions.get(key)
        if made is None or made[0] is not kind:
            # The first time, or another one was registered since.
            extension = kind(self if face is None else face)
            if isinstance(extension, Extension) and not extension.name:
                extension.name = name
            made = self._extensions[key] = (kind, extension)
        return made[1]


def check_start_s(timeout: Any) -> float:
    """The time limit of a start."""
    seconds = check_seconds("timeout", timeout)
    if seconds > START_S:
        raise ValueError(f"a service has {START_S:g} s to begin, got timeout={timeout!r}. Let it go on in a thread")
    return seconds


def too_slow(name: str, seconds: float, future: Future) -> StartFailed:
    """The error of a service that took too long; `future` may know more."""
    story = ""
    if future.done() and (error := future.exception(0)) is not None:
        story = f": {error}"
    return StartFailed(f"the service {name!r} did not begin within {seconds:g} s, and was ended{story}")


def not_ended(name: str) -> WaitTimeout:
    """The error of a service that nobody said had ended."""
    return WaitTimeout(f"the head did not say within {STOP_S:g} s that the service {name!r} has ended; see `raskid ps`")


def _which_setting(name: str, settings: dict[str, Any], error: Exception) -> str:
    for key, value in settings.items():
        try:
            dump(value)
        except Exception as reason:
            return why_not(f"setting {key!r} of service {name!r}", value, reason)
    return f"the settings of service {name!r} cannot be pickled: {error}"


def _no_extension(session: type, name: str) -> str:
    import difflib

    known = extension_names()
    calls = [call for call in dir(session) if not call.startswith("_")]
    close = difflib.get_close_matches(name, [*calls, *known], 3)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    there = f" (extensions here: {', '.join(known)})" if known else ""
    return f"a session has neither a call nor an extension {name!r}{hint}{there}"


def register(name: str, extension: Any) -> None:
    """Have `rk.<name>` give `extension(rk)`, in all sessions of this process; goes before everything else of that name.

    Args:
        name: A name as Python has them, which is no call of a session's own.
        extension: Called with a session: a class derived from `raskid.Extension`, or any other; or "module:attribute".

    Raises:
        TypeError: The name is no text, or the extension cannot be called.
        ValueError: The name cannot be used.
    """
    from raskid.client.session import Session

    if isinstance(name, str) and (hasattr(Session, name) or name in _ATTRIBUTES):
        raise ValueError(f"{name!r} is part of every session; an extension needs another name")
    keep(name, extension)
