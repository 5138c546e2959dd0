"""Effects: everything that core machines can ask for.

A machine returns effects in the order in which they are to be performed. The station performs those that stay inside
a process (`Send`, `Introduce`, …); the driver opens and closes connections; the rest is the application's.
"""

from __future__ import annotations

from typing import Any

import msgspec

from raskid.core.events import Event
from raskid.model.ids import CodeId, PeerId, RequestId, StreamId, TaskId
from raskid.protocol import messages
from raskid.protocol.messages import AnyMessage, Code, PeerRef

# ── Every machine ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Effect(msgspec.Struct, frozen=True, gc=False):
    """Base of all effects."""


class Send(Effect, frozen=True, gc=False):
    """Send a message to a peer, in order, over whatever path leads there."""

    peer: PeerId
    message: AnyMessage


# ── Connections ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Connect(Effect, frozen=True):
    """Open a connection to an address; answer with `ConnectionOpened` or `ConnectionClosed`."""

    connection: int
    address: str


class Disconnect(Effect, frozen=True):
    """Close a connection once what was written to it is out."""

    connection: int
    reason: str


# ── Lists ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class ListChanged(Effect, frozen=True):
    """A followed list has a new version. `record` is what changed, None for the first state; `put` is what it was
    changed to, None for one that was deleted. By the time this is looked at, the list may have changed again."""

    name: str
    version: int
    record: str | None
    put: messages.Record | None = None


class ListRefused(Effect, frozen=True):
    """The hub does not let a list be followed; `code` names the error class. Nobody here follows it any more."""

    name: str
    code: str
    text: str


class Replied(Effect, frozen=True):
    """A request made of the hub or the manager was answered."""

    request: int
    message: AnyMessage


# ── Messages ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Introduce(Effect, frozen=True):
    """Remember how to reach a peer."""

    ref: PeerRef


class Arrived(Effect, frozen=True, gc=False):
    """Messages of a subscription made here, in order; `dropped` counts what was left out before the first.

    `publisher` sent them and gets the credit; `on_behalf` is whose they are, where that is somebody else. `numbers`
    and `again` are as in `Deliver`.
    """

    subscription: RequestId
    publisher: PeerId
    topic: str
    bodies: list[bytes]
    dropped: int
    numbers: list[int] = []
    again: bool = False
    on_behalf: PeerId = PeerId("")


class PublisherEnded(Effect, frozen=True):
    """A publisher sends nothing more for a subscription."""

    subscription: RequestId
    publisher: PeerId
    dropped: int


class PlanReady(Effect, frozen=True):
    """The replica of a topic's reactions is here."""

    topic: str


class RoomMade(Effect, frozen=True):
    """What waited for a subscription with policy "block" has left its queue, up to message `number` of that queue:
    it was sent, or the subscription has ended."""

    subscription: RequestId
    number: int


# ── Reactions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class RunCode(Effect, frozen=True):
    """Call a function once for each of `calls`, off the thread that serves the connections; answer with `CodeRan`.

    Jobs run one after the other, in the order in which they were asked for.
    """

    job: int
    code: Code
    #: Arguments by position and by name.
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    #: How long all calls together may take.
    seconds: float
    #: Through how many other topics the message came: what the code publishes has come through one more.
    hops: int = 0


class CheckCode(Effect, frozen=True):
    """A job should be through by now: see whether it has used up its time, and answer with `CodeRan` if so."""

    job: int


class DropCode(Effect, frozen=True):
    """A job's reaction has ended: unless its code runs already, it is not to run. It may be answered all the same."""

    job: int


class Passed(Effect, frozen=True):
    """All that a message set off here is through: whoever published it may go on and change what it holds."""

    message: int


class ReactionReported(Effect, frozen=True):
    """A reaction made here failed or came to its limit at a publisher."""

    peer: PeerId
    message: AnyMessage


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Invoke(Effect, frozen=True):
    """Run the handler of a service; answer with `Reply`."""

    request: RequestId
    caller: PeerId
    service: str
    body: bytes


class InvokeCancelled(Effect, frozen=True):
    """The caller of a running handler no longer waits."""

    request: RequestId


class CallDone(Effect, frozen=True):
    """A request has its answer: a body, or the name of an error class and a text."""

    request: RequestId
    ok: bool
    body: bytes
    error: str = ""
    text: str = ""


# ── Relayed streams ───────────────────────────────────────────────────────────────────────────────────────────────────


class Feed(Effect, frozen=True):
    """Give an event of a connection to this process's own peer. `connection` is filled in for a new stream."""

    event: Event


class AcceptStream(Effect, frozen=True):
    """Somebody opened a stream to us: number it as a connection and call `RelayEnd.accept`."""

    stream: StreamId


# ── The station ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Unhandled(Effect, frozen=True):
    """A message that nobody here handles, or that its sender's role does not allow; it was left out."""

    peer: PeerId
    name: str
    reason: str


class Told(Effect, frozen=True):
    """An event about a peer, for the application as well."""

    event: Event


class Forget(Effect, frozen=True):
    """A peer is known to have ended."""

    peer: PeerId
    incarnation: int
    reason: str


# ── A client's tasks ──────────────────────────────────────────────────────────────────────────────────────────────────


class TaskResolved(Effect, frozen=True, gc=False):
    """A task has its pickled value, or its pickled error."""

    task: TaskId
    ok: bool
    value: bytes


class TaskEnded(Effect, frozen=True):
    """A task has no value and will have none: `code` names the error, "TaskCancelled" for a cancelled one."""

    task: TaskId
    code: str
    text: str


class CancelledTooLate(Effect, frozen=True):
    """A task that was to be cancelled has started: it gets an outcome like any other."""

    task: TaskId


# ── A runner ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Record(Effect, frozen=True, gc=False):
    """Write an outcome into the outbox, before anything else happens."""

    task: TaskId
    attempt: int
    ok: bool
    seconds: float
    client: PeerId
    value: bytes
    #: Its client sent it here itself: the manager does not wait for it, so it can be reported with the next.
    direct: bool = False
    #: False: it was recalled at the last moment, and there is no outcome.
    started: bool = True


class DropCodes(Effect, frozen=True):
    """Functions that no task needs any more."""

    codes: list[CodeId]


# ── A node ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class StartRunner(Effect, frozen=True):
    """Start a runner's process."""

    runner: PeerId
    incarnation: int


class Recall(Effect, frozen=True):
    """Take back (task, attempt) from a runner through its outbox; answer with `RecallDone`."""

    runner: PeerId
    incarnation: int
    tasks: list[tuple[TaskId, int]]


class ChangesAnnounced(Effect, frozen=True):
    """A runner has been sent so many changes of lists: it is to take them in before it publishes again."""

    runner: PeerId
    incarnation: int
    count: int


class RunnerGivenUp(Effect, frozen=True):
    """A runner ended before it had joined, too often."""

    runner: PeerId
    reason: str


# ── Services ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class ForkService(Effect, frozen=True):
    """Start the process of a service; answer with `ServiceExited` when it has ended."""

    name: str
    incarnation: int
    code: Code
    settings: bytes


class EndService(Effect, frozen=True):
    """Ask the process of a service to end, or kill it."""

    name: str
    incarnation: int
    kill: bool


class ServiceReported(Effect, frozen=True):
    """Something that whoever runs the system should hear of a service."""

    name: str
    text: str
