"""Every error that a user of raskid can meet, with what it is about as attributes.

A mistake on this side is a `LocalProtocolError`; the other side's is a `RemoteProtocolError`.
"""

from __future__ import annotations


class RaskidError(Exception):
    """Base of all errors raised by raskid itself (never of exceptions raised by a user's function)."""


class TopicNameError(RaskidError, ValueError):
    """A topic's name cannot be used; the text says why."""


class ValueNotSendable(RaskidError, TypeError):
    """A value in a message is of a kind that messages do not carry. `path` says where in the message it stands."""

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text)
        self.path = path


class ProtocolError(RaskidError):
    """Bytes on a connection broke the protocol."""


class LocalProtocolError(ProtocolError):
    """This process tried to send something that the protocol does not allow: a bug here."""


class RemoteProtocolError(ProtocolError):
    """The other end sent something that the protocol does not allow."""


class ConnectionRefused(RaskidError):
    """The other end answered the handshake with a refusal. `code` is one of `REFUSAL_CODES`."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{text} [{code}]")
        self.code = code


REFUSAL_CODES = (
    "bad-token", "bad-version", "bad-role", "bad-peer", "origin-taken", "link-forgotten", "duplicate", "protocol",
    "full",
)  # fmt: skip


class StartFailed(RaskidError):
    """A system, node or runner did not start in time; the text holds what it wrote to its standard error."""


class NotRunning(RaskidError, LookupError):
    """A service that is to be stopped does not run."""


class SessionClosed(RaskidError):
    """The session is over: closed here, or its head is gone."""


class PeerLost(RaskidError):
    """The peer that was to answer is gone. `peer` is its id."""

    def __init__(self, text: str, peer: str = "") -> None:
        super().__init__(text)
        self.peer = peer


class WaitTimeout(RaskidError, TimeoutError):
    """A time limit given by the caller ran out."""


class NoSuchService(WaitTimeout):
    """Nobody served requests of that name within the time limit."""


class NotAllowed(RaskidError, PermissionError):
    """The session's role does not include what was asked for."""


class Overflow(RaskidError):
    """A bounded queue stayed full for the whole time limit of a blocking publish."""


class NotKept(RaskidError, LookupError):
    """A basket was asked about a topic that it does not keep."""


class BasketFull(RaskidError):
    """A basket keeps as many topics as it can."""


class TaskLost(RaskidError):
    """A task was started as often as is allowed, and its runner was lost each time."""


class TaskCancelled(RaskidError):
    """A task was cancelled before it finished (futures raise the standard `CancelledError`)."""


class InputFailed(RaskidError):
    """A task could not run because one of its inputs failed; the input's error is the cause."""


class ResultNotSendable(RaskidError, TypeError):
    """A task's value, or its argument, cannot be pickled."""


class StaleCode(RaskidError, ImportError):
    """A module of the script was changed after the script had imported it: a runner cannot load what the script has."""


class RemoteError(RaskidError):
    """An exception was raised in another process, and is described here: by a handler of requests, or by a task whose
    exception cannot travel or would end the script (`sys.exit()`, `KeyboardInterrupt`).

    `kind` is its type's name, `remote` its traceback.
    """

    def __init__(self, text: str, kind: str = "", remote: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.remote = remote


class RemoteTraceback(Exception):
    """The text of a traceback in another process; stands as `__cause__` of the exception raised here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


class WrongThread(RaskidError):
    """A blocking call was made on the thread that would have to serve it (inside a callback)."""


class InvalidTransition(RaskidError):
    """A state machine was asked for a move that its table does not allow; carries the story so far. A bug."""
