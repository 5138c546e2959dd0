"""Every message that crosses a wire: one frozen struct each, one tagged union.

Messages are MessagePack arrays ``[tag, field, ...]``. New fields go last and have defaults; types never change; a
tag is never used again. `docs/protocol.md` explains each message and is checked against this module.

Fields of type ``bytes`` named `body`, `value` or `arguments` are opaque here. Bodies of messages are written by
`raskid.protocol.values` (no pickle); arguments and values of tasks are pickles, which only runners and the client
that asked ever load.
"""

from typing import Any

import msgspec

from raskid.model.ids import CodeId, PeerId, RequestId, StreamId, TaskId

PROTOCOL_VERSION = 1

ROLE_VIEW = "view"
ROLE_MESSAGE = "message"
ROLE_EXECUTE = "execute"
#: Each role includes those before it.
ROLES = (ROLE_VIEW, ROLE_MESSAGE, ROLE_EXECUTE)

KIND_HEAD = "head"
KIND_NODE = "node"
KIND_RUNNER = "runner"
KIND_CLIENT = "client"
KINDS = (KIND_HEAD, KIND_NODE, KIND_RUNNER, KIND_CLIENT)


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all messages."""


class PeerRef(msgspec.Struct, frozen=True, array_like=True):
    """Who a peer is and how to reach it. `addresses` are tried in order; without one, the head relays."""

    peer: PeerId
    incarnation: int
    addresses: tuple[str, ...] = ()


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One record of a list. `owner` is the peer whose end removes it, empty for a permanent one."""

    record: str
    value: bytes
    owner: str = ""


class TopicInfo(msgspec.Struct, frozen=True, array_like=True):
    """What the hub knows of a list: its records, and who reads it."""

    name: str
    version: int
    records: int
    readers: int


# ── Handshake and the life of a link ─────────────────────────────────────────────────────────────────────────────────


class Hello(Message, frozen=True, array_like=True, tag=1):
    """Opens a connection. `token` holds proofs (`raskid.protocol.tokens`); `received` counts the frames of this link
    that the sender already has; `target` is the peer it means to reach, empty for whoever leads the system."""

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


class Welcome(Message, frozen=True, array_like=True, tag=2):
    """Accepts a `Hello`."""

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


class Refused(Message, frozen=True, array_like=True, tag=3):
    """Refuses a `Hello`, or ends a connection that broke the protocol. `code` is one of `REFUSAL_CODES`."""

    code: str
    text: str


class Goodbye(Message, frozen=True, array_like=True, tag=4):
    """The sender's link is over on purpose: it will not come back."""

    reason: str = ""


# ── Hub: lists of records ────────────────────────────────────────────────────────────────────────────────────────────


class Watch(Message, frozen=True, array_like=True, tag=10):
    """Asks for a list's state and then every change. `acks`: the reader acknowledges versions (a publisher does)."""

    name: str
    acks: bool = False


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
    """The reader acts by `version` of the list from now on."""

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


# ── Messages and requests, peer to peer ──────────────────────────────────────────────────────────────────────────────


class Deliver(Message, frozen=True, array_like=True, tag=30):
    """One published message. `dropped` counts messages left out just before it by the subscription's policy."""

    subscription: RequestId
    topic: str
    body: bytes
    dropped: int = 0


class Consumed(Message, frozen=True, array_like=True, tag=31):
    """The subscriber took `count` more messages: the publisher may send as many more."""

    subscription: RequestId
    count: int


class Delivered(Message, frozen=True, array_like=True, tag=32):
    """The publisher sends nothing more for this subscription; `dropped` counts what its policy left out at the end."""

    subscription: RequestId
    dropped: int = 0


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


# ── Tasks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Code(msgspec.Struct, frozen=True, array_like=True):
    """A pickled function, named by the hash of its bytes."""

    code: CodeId
    blob: bytes


class TaskSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One task, or a run of `count` tasks of a map with consecutive ids.

    `arguments` is a pickle of (args, kwargs) in which inputs stand as references; for a map's run it is a pickle of
    the list of items. `inputs` names the tasks whose values are needed; values that the client already has, of tasks
    that only it knows, travel along in `inline`.
    """

    task: TaskId
    code: CodeId
    arguments: bytes
    inputs: tuple[TaskId, ...] = ()
    count: int = 0
    retries: int = 0
    inline: tuple[tuple[TaskId, bytes], ...] = ()


class Placement(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A task on a runner: which attempt this is, who gets the value, and where its inputs are or will be."""

    spec: TaskSpec
    attempt: int
    client: PeerId
    keepers: tuple[PeerId, ...] = ()


class TaskOutcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one task on a runner, as its node reports it."""

    task: TaskId
    attempt: int
    ok: bool
    value_bytes: int
    seconds: float
    runner: PeerId
    client: PeerId


class SubmitTasks(Message, frozen=True, array_like=True, tag=50):
    """Client to manager: tasks to place, with code that the manager has not had from this client."""

    tasks: list[TaskSpec]
    codes: list[Code] = []
    #: The attempt these tasks begin with: more than 1 when the client takes them back from a lost runner.
    attempt: int = 1


class RunTasks(Message, frozen=True, array_like=True, tag=51):
    """Manager (or a client with a lease) to runner: tasks to run, and how to reach the peers named in them."""

    placements: list[Placement]
    codes: list[Code] = []
    peers: list[PeerRef] = []


class TaskValue(Message, frozen=True, array_like=True, tag=52):
    """A task's pickled value, or its pickled error, to whoever wants it."""

    task: TaskId
    attempt: int
    ok: bool
    value: bytes


class AskValue(Message, frozen=True, array_like=True, tag=53):
    """Asks the keeper of `task` for its value, now or when it is there."""

    task: TaskId
    asker: PeerRef


class TasksFinished(Message, frozen=True, array_like=True, tag=54):
    """Node to manager: outcomes, in the order in which they happened on each runner."""

    outcomes: list[TaskOutcome]


class ReleaseTasks(Message, frozen=True, array_like=True, tag=55):
    """Nobody at the sender wants these values any more."""

    tasks: list[TaskId]


class CancelTasks(Message, frozen=True, array_like=True, tag=56):
    """Do not start these tasks; client to manager, manager to runner."""

    tasks: list[TaskId]


class TasksCancelled(Message, frozen=True, array_like=True, tag=57):
    """These tasks were not started and will not be; runner to manager, manager to client."""

    tasks: list[TaskId]


class TaskFailed(Message, frozen=True, array_like=True, tag=58):
    """Manager to client: a task that has no value and will have none, with the name of the error class to raise."""

    task: TaskId
    code: str
    text: str


class ValuesAt(Message, frozen=True, array_like=True, tag=59):
    """Manager to client: these values are with `keeper` now (their runner was lost after it had finished them)."""

    keeper: PeerRef
    tasks: list[TaskId]


class RunnerStarted(Message, frozen=True, array_like=True, tag=60):
    """Node to manager: a runner is ready for tasks."""

    runner: PeerRef
    pid: int
    host: str


class RunnerEnded(Message, frozen=True, array_like=True, tag=61):
    """Node to manager: a runner's process ended. Sent after the outcomes it had left behind."""

    runner: PeerId
    incarnation: int
    reason: str


class RequestLease(Message, frozen=True, array_like=True, tag=62):
    """Client to manager: asks for the right to dispatch tasks straight to a runner."""

    request: RequestId


class LeaseGranted(Message, frozen=True, array_like=True, tag=63):
    """Manager to client: dispatch to `runner` until `LeaseEnded`, at most `slots` tasks at a time."""

    request: RequestId
    runner: PeerRef
    slots: int


class LeaseEnded(Message, frozen=True, array_like=True, tag=64):
    """The lease is over; either side may say so. Tasks without a value go back to the manager."""

    runner: PeerId
    reason: str = ""


class StopRunner(Message, frozen=True, array_like=True, tag=65):
    """Node to runner: end after the present task."""

    reason: str = ""


class AskStatus(Message, frozen=True, array_like=True, tag=66):
    """Anybody to manager: how things stand."""

    request: RequestId


class Status(Message, frozen=True, array_like=True, tag=67):
    """Answers `AskStatus`: runners, tasks by state, counters; a mapping from names to plain values."""

    request: RequestId
    facts: dict[str, Any]


class EndSystem(Message, frozen=True, array_like=True, tag=68):
    """Client to head: end the whole system."""

    reason: str = ""


class DropValues(Message, frozen=True, array_like=True, tag=69):
    """Manager to nodes and runners: nobody wants these values any more."""

    tasks: list[TaskId]


AnyMessage = (
    Hello | Welcome | Refused | Goodbye
    | Watch | Unwatch | ListState | RecordPut | RecordDeleted | AcknowledgeList
    | PutRecord | DeleteRecord | RecordSettled | RequestRefused | ListTopics | TopicsListed
    | Deliver | Consumed | Delivered | Call | Answer | CancelCall
    | OpenStream | StreamOpened | StreamData | StreamCredit | CloseStream
    | SubmitTasks | RunTasks | TaskValue | AskValue | TasksFinished | ReleaseTasks | CancelTasks | TasksCancelled
    | TaskFailed | ValuesAt | RunnerStarted | RunnerEnded | RequestLease | LeaseGranted | LeaseEnded | StopRunner
    | AskStatus | Status | EndSystem | DropValues
)  # fmt: skip

#: Messages that carry a user's bytes, and those that must stay behind them: they follow control messages, in pieces,
#: and never hold them up.
BULK: frozenset[type[Message]] = frozenset(
    {Goodbye, Deliver, Delivered, Call, Answer, CancelCall, StreamData, CloseStream, TaskValue}
)
