"""`raskid.connect`: what a URL means."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from raskid.launch import local
from raskid.protocol.messages import ROLE_EXECUTE, ROLES

if TYPE_CHECKING:
    from raskid.client.session import Session

_PARAMETERS = ("runners", "role", "timeout")
RUNNERS_MAX = 1024


def connect(url: str | None = None, *, runners: int | None = None, timeout: float | None = None) -> Session:
    """Connect to a system, starting it where the URL says so.

    Args:
        url: ``local://?runners=N`` starts a system on this machine that ends with the session; ``local://NAME``
            attaches to one that runs (`raskid up`, or the `url` of another session). Parameters: ``runners``, ``role``
            (view, message or execute), ``timeout`` in seconds. Without a URL: `RASKID_URL`, else ``local://``.
        runners: How many runners to start; goes before the URL. Default: one per processor.
        timeout: How long starting and connecting may take, in seconds.

    Raises:
        ValueError: The URL cannot be read; the text says what is wrong and what was probably meant.
        StartFailed: The system did not come up; the text holds what it wrote.
        SessionClosed: No system of that name runs.
    """
    url = url or os.environ.get("RASKID_URL") or "local://"
    parts = urlsplit(url)
    if parts.scheme != "local":
        raise ValueError(f"{url!r} has scheme {parts.scheme!r}; this version knows local://?runners=N and local://NAME")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in given:
        if name not in _PARAMETERS:
            import difflib

            close = difflib.get_close_matches(name, _PARAMETERS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(_PARAMETERS)}"
            raise ValueError(f"{url!r} has an unknown parameter {name!r}{hint}")
    role = given.get("role", ROLE_EXECUTE)
    if role not in ROLES:
        raise ValueError(f"{url!r} asks for role {role!r}; roles are {', '.join(ROLES)}")
    if timeout is None:
        timeout = float(given.get("timeout", local.START_S))
    name = parts.netloc + parts.path.rstrip("/")
    if name:
        if "/" in name:
            raise ValueError(f"{url!r}: a system's name holds no '/'")
        return local.attach(name, role, timeout)
    count = runners if runners is not None else _number(url, given.get("runners"))
    return local.start(count, role, timeout)


def _number(url: str, text: str | None) -> int:
    if text is None:
        return local.default_runners()
    if not text.isdigit() or not 0 < int(text) <= RUNNERS_MAX:
        raise ValueError(f"{url!r}: runners is a number from 1 to {RUNNERS_MAX}, got {text!r}")
    return int(text)
