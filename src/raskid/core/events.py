"""Events and commands: everything that core machines can be told.

An event says what happened (a message came, a peer is gone, time has passed); a command is what this process's own
application asks for. Both are structs of plain values, so a stream of them can be recorded from a real run and
replayed. They stand apart from the machines because machines may be compiled, and structs may not (see
`docs/design/008-compiled-core.md`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from raskid.model.ids import PeerId, RequestId, TaskId
from raskid.protocol.messages import AnyMessage

# ── Every machine ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Event(msgspec.Struct, frozen=True):
    """Base of all events."""


class Received(Event, frozen=True):
    """A message from a peer."""

    peer: PeerId
    message: AnyMessage


class PeerJoined(Event, frozen=True):
    """A link to a peer's incarnation exists now (its first connection passed the handshake)."""

    peer: PeerId
    incarnation: int
    kind: str
    role: str
    addresses: tuple[str, ...] = ()
    host: str = ""
    pid: int = 0


class PeerGone(Event, frozen=True):
    """A peer's incarnation is gone for good: it said goodbye, its lease ended, or a newer incarnation came."""

    peer: PeerId
    incarnation: int
    reason: str = ""


class Tick(Event, frozen=True):
    """Time has passed; sent at the latest when `next_deadline` is reached."""


# ── Connections ───────────────────────────────────────────────────────────────────────────────────────────────────────


class ConnectionOpened(Event, frozen=True):
    """A connection exists: one that `Connect` asked for, or (not `outbound`) one that somebody opened to us."""

    connection: int
    outbound: bool


class ConnectionClosed(Event, frozen=True):
    """A connection ended, or could not be opened."""

    connection: int
    reason: str = ""


class BytesReceived(Event, frozen=True):
    """Bytes came over a connection."""

    connection: int
    data: bytes


class HandshakeRefused(Event, frozen=True):
    """The peer refused us for good; trying again is of no use."""

    peer: PeerId
    code: str
    text: str


# ── Lists ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class WatchList(Event, frozen=True):
    """Command: follow a list."""

    name: str


class UnwatchList(Event, frozen=True):
    """Command: stop following a list."""

    name: str


# ── Messages ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Announce(Event, frozen=True):
    """Command: this process will publish on a topic."""

    topic: str


class Publish(Event, frozen=True):
    """Command: send a message to whoever reacts."""

    topic: str
    body: bytes


class Subscribed(Event, frozen=True):
    """Command: messages of a subscription made here are expected."""

    subscription: RequestId
    capacity: int


class Unsubscribed(Event, frozen=True):
    """Command: messages of this subscription are no longer wanted."""

    subscription: RequestId


class Took(Event, frozen=True):
    """Command: the reader took messages of a subscription that came from `publisher`."""

    subscription: RequestId
    publisher: PeerId
    count: int


class Handled(Event, frozen=True):
    """Command: the reader is through with messages of a class, which have to be acknowledged."""

    subscription: RequestId
    publisher: PeerId
    numbers: list[int]


class CodeRan(Event, frozen=True):
    """Answers `RunCode`: what the calls returned, or the name of the error's type and its text."""

    job: int
    values: list[Any]
    error: str = ""
    text: str = ""


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Request(Event, frozen=True):
    """Command: call a service; `deadline` is a time of the same clock as `now`."""

    request: RequestId
    service: str
    body: bytes
    deadline: float


class CancelRequest(Event, frozen=True):
    """Command: the answer is no longer wanted."""

    request: RequestId


class Serve(Event, frozen=True):
    """Command: calls of this service are answered here."""

    service: str


class Unserve(Event, frozen=True):
    """Command: and no longer."""

    service: str


class Reply(Event, frozen=True):
    """Command: the answer to a call that was invoked here."""

    request: RequestId
    ok: bool
    body: bytes


# ── The station ───────────────────────────────────────────────────────────────────────────────────────────────────────


class PeerEnded(Event, frozen=True):
    """Command: the process of a peer is known to have ended."""

    peer: PeerId
    incarnation: int
    reason: str


# ── A client's tasks ──────────────────────────────────────────────────────────────────────────────────────────────────


class ReleaseValues(Event, frozen=True):
    """Command: nobody here holds these tasks' futures any more."""

    tasks: list[TaskId]


class CancelValues(Event, frozen=True):
    """Command: do not start these tasks."""

    tasks: list[TaskId]


# ── A runner ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class TaskDone(Event, frozen=True):
    """Command: the task given out by `next_task` has ended. `value` is its pickled value, or error when not `ok`."""

    ok: bool
    value: bytes
    seconds: float


class RecallsRead(Event, frozen=True):
    """Command: the node took back these (task, attempt); what `next_task` gave out is not running yet."""

    tasks: list[tuple[int, int]]


# ── A node ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class AddRunner(Event, frozen=True):
    """Command: one more runner."""


class OutcomesRead(Event, frozen=True):
    """Command: what a runner's outbox held, in order: (task, attempt, ok, seconds, client, value, direct, started)."""

    runner: PeerId
    incarnation: int
    entries: list[tuple[int, int, bool, float, str, bytes, bool, bool]]


class RecallDone(Event, frozen=True):
    """Command: what `Recall` found, after the outbox was read: (task, attempt) that never start, and the others."""

    runner: PeerId
    incarnation: int
    tasks: list[tuple[TaskId, int]]
    started: list[tuple[TaskId, int]]


class RunnerExited(Event, frozen=True):
    """Command: a runner's process has ended, and its outbox was read. `running` is the task it had started last."""

    runner: PeerId
    incarnation: int
    reason: str
    running: TaskId = TaskId(0)


# ── Services ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class ServiceExited(Event, frozen=True):
    """Command: the process of a service has ended, or could not be started. `orderly`: it ended by itself, in order."""

    name: str
    incarnation: int
    reason: str
    orderly: bool
