"""The process of a service: a session, and in it what the service's factory makes, until the head lets it go.

The fork server calls `run`. The pipe that it passes is never written to: its end is the sign to end. So it is when the
session ends, by the service itself or because the head is gone.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import sys
import traceback
from typing import TYPE_CHECKING, Any

import msgspec

from raskid.model.errors import RaskidError
from raskid.protocol.messages import ROLE_EXECUTE, ServiceReady
from raskid.services.codes import CodeLoader
from raskid.services.entries import load_named
from raskid.services.settings import ServiceSettings

if TYPE_CHECKING:
    from raskid.client.session import Session

#: The end of a traceback that travels.
_TEXT_CHARS_MAX = 16_000


def call_named(name: str, session: Session, /, **settings: Any) -> Any:
    """Make a service whose factory is given by name."""
    return load_named(name)(session, **settings)


def _make(session: Session, settings: ServiceSettings) -> Any:
    """The service: first its code, which says where modules are, then its settings, which may need them."""
    if settings.blob:
        factory = CodeLoader().function(settings.code, settings.blob)
    else:
        factory = load_named(settings.factory)
    given = pickle.loads(settings.settings) if settings.settings else {}
    return factory(session, **given)


def _say_ready(session: Session, settings: ServiceSettings, error: str = "") -> None:
    engine, head = session.engine, session.head
    assert head is not None
    message = ServiceReady(settings.name, settings.incarnation, error)
    with engine.lock:
        session.driver.perform(session.peer.send(head, message, session.driver.clock()))
    engine.flush()


def _text_of(error: BaseException) -> str:
    """The traceback, from the first line on that is not of this module."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))[-_TEXT_CHARS_MAX:].rstrip()


def _stay(session: Session, life_fd: int) -> None:
    """Serve the session until its end, or that of the pipe."""
    ended = False

    def let_go(events: int) -> None:
        nonlocal ended
        ended = True
        session.driver.unwatch(life_fd)

    try:
        with session.engine.lock:
            session.engine.check_alive()
            session.driver.watch(life_fd, let_go)
        session.engine.wait(lambda: ended)
    except RaskidError:
        # The session has ended, and that is the end of the service, too.
        return


def run(config: bytes, life_fd: int) -> int:
    """Entry point in a process forked by the fork server."""
    from raskid.client.session import Session

    settings = msgspec.msgpack.decode(config, type=ServiceSettings)
    sys.path[:0] = [entry for entry in settings.path if entry not in sys.path]
    if settings.cwd:
        os.chdir(settings.cwd)
    faulthandler.enable()
    sys.argv = [settings.script]
    session = Session(
        settings.address, settings.token, ROLE_EXECUTE, directory=settings.directory, url=settings.url
    )  # fmt: skip
    try:
        service = _make(session, settings)
    except BaseException as error:
        # SystemExit, too: whoever asked for the service is to hear why there is none.
        try:
            _say_ready(session, settings, _text_of(error))
        finally:
            session.close()
        return 1
    _say_ready(session, settings)
    try:
        _stay(session, life_fd)
        close = getattr(service, "close", None)
        if callable(close):
            close()
    finally:
        session.close()
    return 0
