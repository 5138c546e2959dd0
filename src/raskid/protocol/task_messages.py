"""Messages about tasks: between clients, the manager, nodes and runners; see `raskid.protocol.messages`.

Fields of type ``bytes`` are pickles, which only runners and the client that asked ever load.
"""

from typing import Any

import msgspec

from raskid.model.ids import CodeId, PeerId, RequestId, TaskId
from raskid.protocol.base import Message, PeerRef


class Code(msgspec.Struct, frozen=True, array_like=True):
    """A pickled function, named by the hash of its bytes. `name` is for people: the function's qualified name."""

    code: CodeId
    blob: bytes
    name: str = ""


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
    """A task on a runner: which attempt this is, who gets the value, and where its inputs are or will be.

    The attempt counts placements, so that what an earlier one left behind is known as stale; `raised` counts those that
    ended with an error, which `TaskSpec.retries` allows.
    """

    spec: TaskSpec
    attempt: int
    client: PeerId
    keepers: tuple[PeerId, ...] = ()
    raised: int = 0


class TaskOutcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one task on a runner, as its node reports it. `direct`: its client had sent it there itself."""

    task: TaskId
    attempt: int
    ok: bool
    value_bytes: int
    seconds: float
    runner: PeerId
    client: PeerId
    direct: bool = False


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
    """To a client: these tasks were not started and will not be. From the manager; for direct tasks from the runner.

    `started` names those that it wanted to cancel too late: they get an outcome like any other.
    """

    tasks: list[TaskId]
    started: list[TaskId] = []


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
    """Node to manager: a runner's process ended. Sent after the outcomes it had left behind.

    `running` is the task that it had started last, 0 for none; without an outcome, that one was under way.
    """

    runner: PeerId
    incarnation: int
    reason: str
    running: TaskId = TaskId(0)


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
    """Manager to nodes and runners: nobody wants these values any more; to runners also: nor these functions."""

    tasks: list[TaskId]
    codes: list[CodeId] = []


class RecallTasks(Message, frozen=True, array_like=True, tag=70):
    """Manager to node: take back from a runner those of these (task, attempt) that it has not started."""

    runner: PeerId
    incarnation: int
    tasks: list[tuple[TaskId, int]]


class TasksRecalled(Message, frozen=True, array_like=True, tag=71):
    """To the manager: a runner has not started these (task, attempt) and never will; `started` it may have.

    The node answers at once, the runner when it looks.
    """

    runner: PeerId
    incarnation: int
    tasks: list[tuple[TaskId, int]]
    started: list[tuple[TaskId, int]] = []
