"""Every message that crosses a wire: one frozen struct each, one tagged union.

Messages are MessagePack arrays ``[tag, field, ...]``. New fields go last and have defaults; types never change; a
tag is never used again. `docs/protocol.md` explains each message and is checked against this module.

Fields of type ``bytes`` named `body`, `value` or `arguments` are opaque here. Bodies of messages are written by
`raskid.protocol.values` (no pickle); arguments and values of tasks are pickles, which only runners and the client
that asked ever load. Messages about tasks are defined in `raskid.protocol.task_messages`, and belong to the union here.
"""

import msgspec

from raskid.model.ids import CodeId, PeerId, RequestId, StreamId
from raskid.model.roles import ROLE_EXECUTE, ROLE_MESSAGE, ROLE_VIEW, ROLES
from raskid.protocol.base import (
    KIND_CLIENT,
    KIND_HEAD,
    KIND_NODE,
    KIND_RUNNER,
    KINDS,
    PROTOCOL_VERSION,
    Message,
    PeerRef,
)
from raskid.protocol.task_messages import (
    AskStatus,
    AskValue,
    CancelTasks,
    Code,
    DropValues,
    EndSystem,
    LeaseEnded,
    LeaseGranted,
    Placement,
    RecallTasks,
    ReleaseTasks,
    RequestLease,
    RunnerEnded,
    RunnerStarted,
    RunTasks,
    Status,
    SubmitTasks,
    TaskFailed,
    TaskOutcome,
    TasksCancelled,
    TasksFinished,
    TaskSpec,
    TasksRecalled,
    TaskValue,
    ValuesAt,
)

__all__ = [
    "BULK",
    "EXECUTE",
    "KINDS",
    "KIND_CLIENT",
    "KIND_HEAD",
    "KIND_NODE",
    "KIND_RUNNER",
    "PROTOCOL_VERSION",
    "ROLES",
    "ROLE_EXECUTE",
    "ROLE_MESSAGE",
    "ROLE_VIEW",
    "VIEW",
    "Acknowledge",
    "AcknowledgeList",
    "Answer",
    "AnyMessage",
    "AskCode",
    "AskHelper",
    "AskStatus",
    "AskValue",
    "Call",
    "CancelCall",
    "CancelTasks",
    "ChangesSent",
    "CloseStream",
    "Code",
    "CodeGiven",
    "Consumed",
    "DeleteRecord",
    "Deliver",
    "Delivered",
    "DropValues",
    "EndSystem",
    "Goodbye",
    "Hello",
    "HelperGiven",
    "HostReaction",
    "LeaseEnded",
    "LeaseGranted",
    "ListState",
    "ListTopics",
    "Message",
    "OpenStream",
    "PeerRef",
    "Placement",
    "PutCode",
    "PutRecord",
    "ReactionFailed",
    "ReactionStopped",
    "RecallTasks",
    "Record",
    "RecordDeleted",
    "RecordPut",
    "RecordSettled",
    "Refused",
    "ReleaseTasks",
    "RequestLease",
    "RequestRefused",
    "RunTasks",
    "RunnerEnded",
    "RunnerStarted",
    "ServiceReady",
    "StartService",
    "Status",
    "StopService",
    "StreamCredit",
    "StreamData",
    "StreamOpened",
    "SubmitTasks",
    "TaskFailed",
    "TaskOutcome",
    "TaskSpec",
    "TaskValue",
    "TasksCancelled",
    "TasksFinished",
    "TasksRecalled",
    "TopicInfo",
    "TopicsListed",
    "Unwatch",
    "ValuesAt",
    "Watch",
    "Welcome",
    "needed_role",
]


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One record of a list. `owner` is the peer whose end removes it, empty for a permanent one. `limited`: whoever
    wrote it has a lower role than execute, and must not have anything executed."""

    record: str
    value: bytes
    owner: str = ""
    limited: bool = False


class TopicInfo(msgspec.Struct, frozen=True, array_like=True):
    """What the hub knows of a list: its records, and who reads it."""

    name: str
    version: int
    records: int
    readers: int


# ── Handshake and the life of a link ─────────────────────────────────────────────────────────────────────────────────


class Hello(Message, frozen=True, array_like=True, tag=1):
    """Opens a connection. `token` holds proofs (`raskid.protocol.tokens`); `received` counts the frames of this link
    that the sender already has; `target` is the peer it means to reach, empty for whoever leads the system; `address`
    is where it means to reach it. The proofs cover both."""

    protocol: int
    peer: PeerId
    incarnation: int
    origin: int
    kind: str
    role: str
    token: str
    received: int = 0
    addresses: tuple[str, ...] = ()
    host: str = ""
    pid: int = 0
    python: str = ""
    raskid: str = ""
    target: str = ""
    address: str = ""


class Welcome(Message, frozen=True, array_like=True, tag=2):
    """Accepts a `Hello`. `role` is what it grants; `token` holds proofs of what the sender holds itself, made for that
    `Hello`."""

    peer: PeerId
    incarnation: int
    origin: int
    kind: str
    role: str
    received: int = 0
    addresses: tuple[str, ...] = ()
    lease_s: float = 60.0
    host: str = ""
    pid: int = 0
    python: str = ""
    raskid: str = ""
    token: str = ""


class Refused(Message, frozen=True, array_like=True, tag=3):
    """Refuses a `Hello`, or ends a connection that broke the protocol. `code` is one of `REFUSAL_CODES`."""

    code: str
    text: str


class Goodbye(Message, frozen=True, array_like=True, tag=4):
    """The sender's link is over on purpose: it will not come back."""

    reason: str = ""


# ── Hub: lists of records ────────────────────────────────────────────────────────────────────────────────────────────


class Watch(Message, frozen=True, array_like=True, tag=10):
    """Asks for a list's state and then every change. `acks`: the reader acknowledges versions (a publisher does).
    `request` names the watch in a refusal; 0: a refusal is not answered. `agent`: who answers for the reader while it
    is busy, and hears of every change by `ChangesSent`."""

    name: str
    acks: bool = False
    request: RequestId = RequestId(0)
    agent: PeerId = PeerId("")


class Unwatch(Message, frozen=True, array_like=True, tag=11):
    """Ends a `Watch`."""

    name: str


class ListState(Message, frozen=True, array_like=True, tag=12):
    """A list's records in order, at `version`."""

    name: str
    version: int
    records: list[Record]


class RecordPut(Message, frozen=True, array_like=True, tag=13):
    """Change number `version` of a list: a record was added, or replaced in its place."""

    name: str
    version: int
    record: Record


class RecordDeleted(Message, frozen=True, array_like=True, tag=14):
    """Change number `version` of a list: a record was removed."""

    name: str
    version: int
    record: str


class AcknowledgeList(Message, frozen=True, array_like=True, tag=15):
    """The reader acts by `version` of the list from now on; from its agent when `reader` names it."""

    name: str
    version: int
    reader: PeerId = PeerId("")


class ChangesSent(Message, frozen=True, array_like=True, tag=24):
    """To a reader's agent: the reader was sent `count` changes so far, the last one being `version` of list `name`.

    From here on the agent sees to it that the reader takes them in before it acts, and acknowledges for it.
    """

    reader: PeerId
    incarnation: int
    count: int
    name: str
    version: int


class PutRecord(Message, frozen=True, array_like=True, tag=16):
    """Adds or replaces a record. `settle_s` > 0: answer when all acknowledging readers act by it, or after so long."""

    request: RequestId
    name: str
    record: str
    value: bytes
    permanent: bool = False
    settle_s: float = 0.0


class DeleteRecord(Message, frozen=True, array_like=True, tag=17):
    """Removes a record; removing what is not there is no error."""

    request: RequestId
    name: str
    record: str
    settle_s: float = 0.0


class RecordSettled(Message, frozen=True, array_like=True, tag=18):
    """Answers `PutRecord` and `DeleteRecord`. `silent` names readers that did not acknowledge within the limit."""

    request: RequestId
    version: int
    silent: tuple[str, ...] = ()


class RequestRefused(Message, frozen=True, array_like=True, tag=19):
    """The request cannot be carried out; `code` is the name of the error class to raise."""

    request: RequestId
    code: str
    text: str


class ListTopics(Message, frozen=True, array_like=True, tag=20):
    """Asks which lists exist whose name begins with `prefix`."""

    request: RequestId
    prefix: str = ""


class TopicsListed(Message, frozen=True, array_like=True, tag=21):
    """Answers `ListTopics`."""

    request: RequestId
    topics: list[TopicInfo]


# ── Code, services and helpers ───────────────────────────────────────────────────────────────────────────────────────


class PutCode(Message, frozen=True, array_like=True, tag=25):
    """A code object that reactions name from now on; answered by `RecordSettled`."""

    request: RequestId
    code: Code


class AskCode(Message, frozen=True, array_like=True, tag=26):
    """Asks for a code object."""

    code: CodeId


class CodeGiven(Message, frozen=True, array_like=True, tag=27):
    """Answers `AskCode`; the blob is empty when the code object is not known."""

    code: Code


class StartService(Message, frozen=True, array_like=True, tag=28):
    """Asks for a process of its own for a service; answered when it is ready. `service` is the pickled function that
    makes it, or the name of one (``module:attribute``), `settings` its pickled arguments."""

    request: RequestId
    name: str
    service: Code
    settings: bytes


class StopService(Message, frozen=True, array_like=True, tag=29):
    """Asks that the process of a service ends; answered when it has."""

    request: RequestId
    name: str


class ServiceReady(Message, frozen=True, array_like=True, tag=45):
    """A service's process serves from now on, or could not begin: `error` says why."""

    name: str
    incarnation: int
    error: str = ""


class AskHelper(Message, frozen=True, array_like=True, tag=46):
    """A publisher asks its node for the peer that runs reactions for the publishers there."""

    request: RequestId


class HelperGiven(Message, frozen=True, array_like=True, tag=47):
    """Answers `AskHelper`."""

    request: RequestId
    helper: PeerRef


# ── Messages and requests, peer to peer ──────────────────────────────────────────────────────────────────────────────


class Deliver(Message, frozen=True, array_like=True, tag=30):
    """Published messages, in order. `dropped` counts what the subscription's policy left out just before the first.

    `numbers` are those of the messages, where the reaction asks for them; one number and no body says from which on
    they come. `again`: another member of the class had these and did not say that they are done. `publisher` is whose
    messages these are, where the sender is a host. `hops` says to a host through how many other topics they came.
    """

    subscription: RequestId
    topic: str
    bodies: list[bytes]
    dropped: int = 0
    numbers: list[int] = []
    again: bool = False
    publisher: PeerId = PeerId("")
    hops: int = 0


class Consumed(Message, frozen=True, array_like=True, tag=31):
    """The subscriber took `count` more messages: the publisher may send as many more."""

    subscription: RequestId
    count: int


class Delivered(Message, frozen=True, array_like=True, tag=32):
    """The publisher sends nothing more for this subscription; `dropped` counts what its policy left out at the end."""

    subscription: RequestId
    dropped: int = 0


class Acknowledge(Message, frozen=True, array_like=True, tag=33):
    """The subscriber is done with messages of a class; gives credit for as many more."""

    subscription: RequestId
    numbers: list[int]


class HostReaction(Message, frozen=True, array_like=True, tag=34):
    """Asks a peer to run a reaction's operations, from number `step` on, for what comes with that `subscription`.

    `reaction` is its record; `owned`: that goes with its owner. Failures of others go to the publisher when the owner
    is not there.
    """

    subscription: RequestId
    topic: str
    reaction: bytes
    step: int = 0
    owned: bool = True


class ReactionFailed(Message, frozen=True, array_like=True, tag=38):
    """An operation raised, or ran out of time. `body` is the message that it was given, empty when that is long;
    `where` says in which process; `suspended`: it has failed so often that nothing more is done there."""

    subscription: RequestId
    topic: str
    step: int
    error: str
    text: str
    body: bytes
    failures: int
    where: str = ""
    suspended: bool = False


class ReactionStopped(Message, frozen=True, array_like=True, tag=39):
    """A reaction has let through as many messages as its limit allows, at this publisher."""

    subscription: RequestId
    passed: int


class Call(Message, frozen=True, array_like=True, tag=35):
    """A request to the peer that serves `service`."""

    request: RequestId
    service: str
    body: bytes


class Answer(Message, frozen=True, array_like=True, tag=36):
    """The answer to a `Call`. When not `ok`, `body` holds (type name, text, traceback)."""

    request: RequestId
    ok: bool
    body: bytes


class CancelCall(Message, frozen=True, array_like=True, tag=37):
    """The caller no longer waits for the answer."""

    request: RequestId


# ── Relay: a byte stream between two peers through the head ──────────────────────────────────────────────────────────


class OpenStream(Message, frozen=True, array_like=True, tag=40):
    """Asks the head for a stream to `to`; the head passes it on with `opener` filled in."""

    stream: StreamId
    to: PeerId
    opener: str = ""


class StreamOpened(Message, frozen=True, array_like=True, tag=41):
    """The other end accepted the stream; each side may send `credit` bytes before the next `StreamCredit`."""

    stream: StreamId
    credit: int


class StreamData(Message, frozen=True, array_like=True, tag=42):
    """Bytes of a stream, 64 kB at most."""

    stream: StreamId
    data: bytes


class StreamCredit(Message, frozen=True, array_like=True, tag=43):
    """The receiver took `count` bytes; the sender may send as many more."""

    stream: StreamId
    count: int


class CloseStream(Message, frozen=True, array_like=True, tag=44):
    """The stream is over, or could not be opened; says why."""

    stream: StreamId
    reason: str = ""


AnyMessage = (
    Hello | Welcome | Refused | Goodbye
    | Watch | Unwatch | ListState | RecordPut | RecordDeleted | AcknowledgeList | ChangesSent
    | PutRecord | DeleteRecord | RecordSettled | RequestRefused | ListTopics | TopicsListed
    | PutCode | AskCode | CodeGiven | StartService | StopService | ServiceReady | AskHelper | HelperGiven
    | Deliver | Consumed | Delivered | Acknowledge | HostReaction | ReactionFailed | ReactionStopped
    | Call | Answer | CancelCall
    | OpenStream | StreamOpened | StreamData | StreamCredit | CloseStream
    | SubmitTasks | RunTasks | TaskValue | AskValue | TasksFinished | ReleaseTasks | CancelTasks | TasksCancelled
    | TaskFailed | ValuesAt | RunnerStarted | RunnerEnded | RequestLease | LeaseGranted | LeaseEnded
    | AskStatus | Status | EndSystem | DropValues | RecallTasks | TasksRecalled
)  # fmt: skip

#: Messages that carry a user's bytes, and those that must stay behind them: they follow control messages, in pieces,
#: and never hold them up.
BULK: frozenset[type[Message]] = frozenset(
    {
        Goodbye, Deliver, Delivered, HostReaction, ReactionFailed, Call, Answer, CancelCall, StreamData, CloseStream,
        TaskValue,
    }
)  # fmt: skip

#: What a viewer asks, and what it is answered: it knows of the head only that it grants this role.
VIEW: frozenset[type[Message]] = frozenset(
    {
        Watch, Unwatch, AcknowledgeList, ListTopics, AskStatus, ListState, RecordPut, RecordDeleted, RecordSettled,
        RequestRefused, TopicsListed, Status,
    }
)  # fmt: skip
#: Messages that carry pickles, or move, end or answer for tasks.
EXECUTE: frozenset[type[Message]] = frozenset(
    {
        SubmitTasks, RunTasks, TaskValue, AskValue, TasksFinished, ReleaseTasks, CancelTasks, TasksCancelled,
        RunnerStarted, RunnerEnded, RequestLease, LeaseGranted, LeaseEnded, EndSystem, DropValues, TaskFailed,
        ValuesAt, RecallTasks, TasksRecalled, ChangesSent, PutCode, CodeGiven, StartService, StopService, ServiceReady,
        HelperGiven,
    }
)  # fmt: skip


def needed_role(kind: type[Message]) -> str:
    """The role that the sender of such a message must have proved."""
    return ROLE_EXECUTE if kind in EXECUTE else ROLE_VIEW if kind in VIEW else ROLE_MESSAGE
