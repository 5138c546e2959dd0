"""`raskid.connect`: what a URL means, and what may stand in it."""

from __future__ import annotations

import contextlib
import math
import operator
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from raskid.launch import local
from raskid.model.roles import ROLE_EXECUTE, ROLES

if TYPE_CHECKING:
    from raskid.client.session import Session

URL_VARIABLE = "RASKID_URL"
RUNNERS_MAX = 1024
#: A day; whoever wants to wait longer has forgotten a unit.
TIMEOUT_S_MAX = 86_400.0
_SCHEME = "local://"
_PARAMETERS = ("runners", "role", "timeout", "manager")
_FORMS = "local://?runners=N starts a system, local://NAME attaches to one that runs"


class Wanted(NamedTuple):
    """What a URL and the arguments of `connect` ask for.

    `name` is empty when a system is to be started, with `runners` runners; `timeout` is in seconds; `manager` names
    what takes the place of the built-in manager, and is empty for that one.
    """

    name: str
    runners: int
    role: str
    timeout: float
    manager: str = ""


def _check_not_in_a_task() -> None:
    """A task without a URL would start a system of its own, once for each call, which nobody means."""
    # Only a runner has it.
    publishing = sys.modules.get("raskid.services.publishing")
    if publishing is not None and publishing.in_task():
        raise RuntimeError(
            "connect() in a task would start a second system. Give it the url of the one to attach to (rk.url in the "
            "script). A task that waits there for another task holds its runner meanwhile. To publish, a task needs no "
            "session: raskid.publish(topic, ...)"
        )


def connect(
    url: str | None = None, *, runners: int | None = None, timeout: float | None = None, manager: str | None = None
) -> Session:
    """Connect to a system, starting it where the URL says so.

    Args:
        url: ``local://?runners=N`` starts a system on this machine that ends with the session; ``local://NAME``
            attaches to one that runs (`raskid up`, or the `url` of another session). Parameters: ``runners``, ``role``
            (view, message or execute), ``timeout`` in seconds, ``manager``. Without a URL: `RASKID_URL`, else
            ``local://``.
        runners: How many runners to start; goes before the URL. Default: one per processor.
        timeout: How long starting and connecting may take together, in seconds; goes before the URL. Default: 20.
        manager: The class that is the manager of the system to be started, instead of `raskid.core.manager.Manager`,
            from which it is derived: "module:attribute", which the head imports from where this script imports, or the
            name of an entry point of the group ``raskid.managers``; goes before the URL.

    Raises:
        RuntimeError: A task calls this without a URL.
        TypeError: The URL is no text, or an argument no number.
        ValueError: The URL or an argument cannot be used; the text says what is wrong and what was probably meant.
        StartFailed: The system did not come up; the text holds what it wrote.
        SessionClosed: No system of that name runs.
    """
    if url is None and not os.environ.get(URL_VARIABLE):
        _check_not_in_a_task()
    wanted = read_url(url, runners, timeout, manager)
    if wanted.name:
        return local.attach(wanted.name, wanted.role, wanted.timeout)
    return local.start(wanted.runners, wanted.role, wanted.timeout, wanted.manager)


def read_url(url: str | None = None, runners: Any = None, timeout: Any = None, manager: Any = None) -> Wanted:
    """What `connect` is asked for; touches nothing but the environment."""
    if url is not None and not isinstance(url, str):
        hint = f"; did you mean connect(runners={url!r})?" if type(url) is int else ""
        raise TypeError(f"connect() takes a URL as text ({_FORMS}), got {url!r} of type {type(url).__name__}{hint}")
    what = repr(url)
    if url is None:
        url = os.environ.get(URL_VARIABLE) or _SCHEME
        what = f"{url!r} (from the environment variable {URL_VARIABLE})"
    name, given = _split(url, what)
    role = given.get("role", ROLE_EXECUTE)
    if role not in ROLES:
        raise ValueError(f"{what}: role is one of {', '.join(ROLES)}, got {role!r}{_closest(role, ROLES)}")
    if timeout is not None:
        seconds = check_timeout(timeout)
    else:
        seconds = _number(what, given["timeout"], float, check_timeout) if "timeout" in given else local.START_S
    if manager is None and "manager" in given:
        manager = given["manager"]
    chosen = "" if manager is None else check_manager(manager)
    if name:
        if chosen:
            raise ValueError(
                f"{what} attaches to the system {name!r}, which has its manager already: leave manager out, or start a "
                f"system of your own with local://?manager=..."
            )
        if runners is not None or "runners" in given:
            raise ValueError(
                f"{what} attaches to the system {name!r}, which has its runners already: leave runners out, or start "
                f"a system of your own with local://?runners=N"
            )
        return Wanted(name, 0, role, seconds)
    if runners is not None:
        count = check_runners(runners)
    else:
        count = _number(what, given["runners"], int, check_runners) if "runners" in given else local.default_runners()
    return Wanted("", count, role, seconds, chosen)


def _split(url: str, what: str) -> tuple[str, dict[str, str]]:
    """The name of the system and the parameters of a URL."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(f"{what} cannot be read as a URL: {error}; {_FORMS}") from error
    if url[: len(_SCHEME)].lower() == _SCHEME:
        # Schemes have no case (RFC 3986, section 3.1).
        url = _SCHEME + url[len(_SCHEME) :]
    if not url.startswith(_SCHEME):
        if parts.scheme in ("", "local"):
            rest = url.removeprefix("local:").lstrip("/")
            raise ValueError(f"{what} does not begin with {_SCHEME}; did you mean {_SCHEME + rest!r}?")
        raise ValueError(f"{what} has scheme {parts.scheme!r}; this version knows local:// only: {_FORMS}")
    if parts.fragment or "#" in url:
        raise ValueError(f"{what}: '#' has no meaning here; parameters follow '?' and are separated by '&'")
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise ValueError(f"{what}: {error}; parameters are written as name=value, separated by '&'") from error
    given: dict[str, str] = {}
    for key, value in pairs:
        if key not in _PARAMETERS:
            raise ValueError(f"{what} has an unknown parameter {key!r}{_closest(key, _PARAMETERS)}")
        if key in given:
            raise ValueError(f"{what} has the parameter {key!r} twice")
        given[key] = value
    # Not from `parts`: a host's name has rules of its own.
    name = url.removeprefix(_SCHEME).partition("?")[0].rstrip("/")
    if name.partition("=")[0] in _PARAMETERS and "=" in name:
        raise ValueError(f"{what} names a system {name!r}; did you mean {_SCHEME}?{name}")
    if name:
        try:
            local.check_name(name)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error
    return name, given


def check_runners(runners: Any) -> int:
    """A number of runners, as an int.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is too small or too large.
    """
    text = f"runners is a whole number from 1 to {RUNNERS_MAX}, got {runners!r}"
    try:
        count = operator.index(runners)
    except TypeError:
        raise TypeError(f"{text} of type {type(runners).__name__}") from None
    if isinstance(runners, bool):
        raise TypeError(f"{text} of type bool")
    if not 0 < count <= RUNNERS_MAX:
        raise ValueError(text)
    return count


def check_manager(manager: Any) -> str:
    """The name of what is to be the manager.

    Raises:
        TypeError: It is no text.
        ValueError: It is empty.
    """
    if not isinstance(manager, str):
        hint = ""
        if isinstance(manager, type):
            hint = f"; did you mean manager='{manager.__module__}:{manager.__qualname__}'? The head imports it"
        raise TypeError(
            f'manager is text, "module:attribute", got {manager!r:.80} of type {type(manager).__name__}{hint}'
        )
    if not manager:
        raise ValueError('manager is "module:attribute" or the name of an entry point, got an empty text')
    return manager


def check_timeout(timeout: Any) -> float:
    """A time limit, as a float, in seconds.

    Raises:
        TypeError: It is no number.
        ValueError: It is not positive, or not finite.
    """
    text = f"timeout is a positive number of seconds up to {TIMEOUT_S_MAX:g}, got {timeout!r}"
    if isinstance(timeout, (bool, str, bytes)):
        raise TypeError(f"{text} of type {type(timeout).__name__}")
    try:
        seconds = float(timeout)
    except (TypeError, ValueError):
        raise TypeError(f"{text} of type {type(timeout).__name__}") from None
    if not (math.isfinite(seconds) and 0 < seconds <= TIMEOUT_S_MAX):
        raise ValueError(text)
    return seconds


def _number(what: str, text: str, kind: Callable[[str], Any], check: Callable[[Any], Any]) -> Any:
    """A number in a URL, which obeys the same check as the argument of that name."""
    value: Any = text
    with contextlib.suppress(ValueError):
        # Python's numbers may hold underscores.
        value = text if "_" in text else kind(text)
    try:
        return check(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {str(error).removesuffix(' of type str')}") from None


def _closest(given: str, known: tuple[str, ...]) -> str:
    import difflib

    close = difflib.get_close_matches(given, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
