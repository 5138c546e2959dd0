"""Logs as topics: a handler of Python's `logging` that publishes what is logged.

In a script it publishes by the session that it is given, in a task by `raskid.publish`. A record is formatted only when
somebody reacts to its topic; while nobody does, it costs little more than a look-up.

Whoever logs wants to go on. So in a script nothing here waits: what finds a full reader is queued or left out, as what
callbacks publish is. In a task, `raskid.publish` has no way not to wait for a full reader whose policy is "block";
after it has waited in vain, the handler keeps quiet for `PAUSE_S`.

This module logs nothing, and leaves out what the loggers of Raskid itself say: it would come back here.
"""

from __future__ import annotations

import functools
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from raskid.model.errors import Overflow, SessionClosed, TopicNameError, WaitTimeout
from raskid.model.roles import ROLE_MESSAGE
from raskid.model.topics import check_topic
from raskid.services import publishing

if TYPE_CHECKING:
    from raskid.client.aio import AsyncSession
    from raskid.client.session import Session

#: In a topic's name, stands for the name of the logger, with slashes for dots.
LOGGER = "{logger}"
#: Takes the place of a logger's name that cannot be part of a topic's.
OTHER = "other"
#: So many loggers' names are remembered with their topics.
TOPICS_MAX = 1000
#: After a reader has held up a task, its records are left out for so long.
PAUSE_S = 60.0

_PLAIN = logging.Formatter()
#: Whether this thread is publishing a record: what is logged meanwhile is left out.
_busy = threading.local()


class TopicHandler(logging.Handler):
    """Publishes log records to a topic; costs next to nothing while nobody reads it.

    A message has the named fields `logger`, `level` (its name), `levelno`, `text`, `time` (seconds since 1970), `host`,
    `process` (its id), `thread` (its name), `file` and `line`; and `exception`, the traceback's text, where there is
    one. With a formatter set, `text` is what that makes of the record.

        logging.getLogger().addHandler(raskid.TopicHandler(rk))

    Readers should subscribe with ``overflow="drop_oldest"``. In a script no reader holds up what logs: beyond a
    subscription's capacity the oldest records are left out whatever its policy is. In a task, a reader with policy
    "block" that is full holds it up for 30 s, and then all records of the handler are left out for a minute. A task
    that adds a handler to a logger should look first whether an earlier task on the same runner has done so.

    Once its session has ended, the handler does nothing. Other errors go the way of `logging.Handler.handleError`.

    Args:
        session: Publishes the records: what `raskid.connect` gives, or ``async with`` of it. None: inside a task, by
            `raskid.publish`.
        topic: The topic's name. ``{logger}`` in it stands for the logger's name with slashes for dots, so that
            "logs/{logger}" is "logs/app/io" for "app.io"; a name that cannot be part of a topic's gives "logs/other".
        level: Records below it are left out, as with any handler.

    Raises:
        TypeError: `session` is no session.
        RuntimeError: There is no session, and this process is no runner.
        NotAllowed: The session's role does not let it publish.
        SessionClosed: The session has ended.
        TopicNameError: The topic's name cannot be used.
    """

    def __init__(
        self, session: Session | AsyncSession | None = None, topic: str = "logs", level: int | str = 0
    ) -> None:
        super().__init__(level)
        check_topic(topic.replace(LOGGER, OTHER) if isinstance(topic, str) else topic)
        self._template = str.__str__(topic)
        self._topics: dict[str, str] = {}
        self._host = socket.gethostname()
        self._quiet_until = 0.0
        self._session = _check_session(session)
        if self._session is not None and LOGGER not in topic:
            # Asked for now and not waited for, so that it is mostly known who reads when the first record comes.
            self._session.announce_nowait(self._template)

    def handle(self, record: logging.LogRecord) -> bool:
        """As any handler does, but not one thread after another: there is nothing here that threads could disturb, and
        one that is held up should not hold up the others."""
        kept: Any = self.filter(record)
        if kept:
            # Since Python 3.12 a filter may give another record.
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        """Publish a record."""
        # Records that were made by hand may have None.
        name = str(record.name)
        if name == "raskid" or name.startswith("raskid.") or getattr(_busy, "publishing", False):
            return
        _busy.publishing = True
        try:
            self._publish(self._topics.get(name) or self._topic_of(name), functools.partial(self._fields, record))
        except SessionClosed:
            # Programs go on logging after they have left a system.
            pass
        except Exception:
            self.handleError(record)
        finally:
            _busy.publishing = False

    def _publish(self, topic: str, fields: functools.partial[dict[str, Any]]) -> None:
        session = self._session
        if session is not None:
            plan = session.plan_of(topic)
            if plan or plan is None:
                session.begin_publish(topic, (fields,), {}, waits=False)
        elif publishing.in_task() and time.monotonic() >= self._quiet_until:
            # A process that a task has forked is none, and what it logs is left out.
            try:
                publishing.publish(topic, fields)
            except (Overflow, WaitTimeout):
                self._quiet_until = time.monotonic() + PAUSE_S
                raise

    def _topic_of(self, name: str) -> str:
        if len(self._topics) >= TOPICS_MAX:
            self._topics.clear()
        try:
            topic = check_topic(self._template.replace(LOGGER, name.replace(".", "/")))
        except TopicNameError:
            topic = self._template.replace(LOGGER, OTHER)
        self._topics[name] = topic
        return topic

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What a message says of a record; called when somebody reacts."""
        text = record.getMessage() if self.formatter is None else self.formatter.format(record)
        fields = {
            "logger": _sendable(record.name), "level": _sendable(record.levelname), "levelno": record.levelno,
            "text": _sendable(text), "time": record.created, "host": self._host, "process": record.process,
            "thread": _sendable(record.threadName or ""), "file": _sendable(record.pathname), "line": record.lineno,
        }  # fmt: skip
        if record.exc_info:
            # Three times None where there was no exception to log.
            if record.exc_info[0] is not None:
                fields["exception"] = _sendable((self.formatter or _PLAIN).formatException(record.exc_info))
        elif record.exc_text:
            # The record comes from another process, where the exception is.
            fields["exception"] = _sendable(record.exc_text)
        return fields


def _check_session(session: Any) -> Session | None:
    """The session that is to publish; None in a task."""
    if session is None:
        if not publishing.in_task():
            raise RuntimeError(
                "TopicHandler() without a session is for tasks, and this process is no runner (one that a task has "
                "forked is none). In a script, give it the session that publishes the records: raskid.TopicHandler(rk)"
            )
        return None
    # Not above: runners have no session, and what makes one up takes long to import.
    from raskid.client.aio import AsyncSession
    from raskid.client.session import Session

    if isinstance(session, AsyncSession):
        session = session.session
    if not isinstance(session, Session):
        hint = f"; did you mean TopicHandler(topic={session!r:.60})?" if isinstance(session, str) else ""
        raise TypeError(
            f"session is what raskid.connect() gives, got {session!r:.60} of type {type(session).__name__}{hint}"
        )
    session.require(ROLE_MESSAGE, "publishing")
    return session


def _sendable(text: Any) -> str:
    """Text that can be sent: names of files, and so texts with them, may hold bytes that are no text."""
    plain = str(text)
    return plain if plain.isascii() else plain.encode("utf-8", "backslashreplace").decode()
