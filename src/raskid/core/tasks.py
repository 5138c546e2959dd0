"""What the manager knows of a task and of a runner, and which moves between a task's states are legal.

Plain records, changed by the parts of the manager only: `graph`, `pool`, `dispatch`, `manager`. They hold no arguments'
values and no results: those are with runners and nodes.
"""

from __future__ import annotations

import enum

from raskid.model.errors import InvalidTransition
from raskid.model.ids import CodeId, PeerId, TaskId
from raskid.protocol.messages import Code, PeerRef, Placement, TaskSpec


class TaskState(enum.IntEnum):
    """Where a task stands. An integer kind, because its hash is then a fast one."""

    #: Some input is neither placed nor finished.
    WAITING = 0
    #: May be placed, and is in the manager's queue.
    READY = 1
    #: On a runner, which has not reported an outcome of this attempt.
    PLACED = 2
    #: The value is with the runner, or with its node when the runner ended.
    FINISHED = 3
    FAILED = 4
    CANCELLED = 5
    #: There is no value any more (given up, or lost); the spec is kept because wanted values descend from it.
    RELEASED = 6


# Names of the module: looking up a member of an enum costs as much as the rest of a step on the hot path.
WAITING = TaskState.WAITING
READY = TaskState.READY
PLACED = TaskState.PLACED
FINISHED = TaskState.FINISHED
FAILED = TaskState.FAILED
CANCELLED = TaskState.CANCELLED
RELEASED = TaskState.RELEASED

#: Legal moves, with the reason for each.
TRANSITIONS: dict[tuple[TaskState, TaskState], str] = {
    (WAITING, READY): "all inputs are placed or finished",
    (WAITING, FAILED): "an input failed, or the task was lost too often",
    (WAITING, CANCELLED): "cancelled before it was placed",
    (READY, WAITING): "an input was lost",
    (READY, PLACED): "sent to a runner",
    (READY, FAILED): "an input failed",
    (READY, CANCELLED): "cancelled before it was placed",
    (PLACED, WAITING): "its runner was lost, it was taken back unstarted, or it failed and may be tried again",
    (PLACED, FINISHED): "the runner has its value",
    (PLACED, FAILED): "it raised, or an input failed",
    (PLACED, CANCELLED): "the runner did not start it",
    (FINISHED, RELEASED): "nobody wants its value, or the value was lost",
    (RELEASED, WAITING): "its value is needed again",
    (RELEASED, FAILED): "its value is needed again, but cannot be computed",
}

#: States in which a task still needs its inputs.
UNFINISHED = frozenset({WAITING, READY, PLACED})


class Trouble:
    """What has befallen a task; few tasks have one of these."""

    __slots__ = ("ends", "moved", "raised")

    def __init__(self) -> None:
        #: How runners ended that were running this task, and how often so.
        self.ends: dict[str, int] = {}
        #: How many attempts raised and were tried again.
        self.raised = 0
        #: It was taken back from a busy runner, to run on one that is idle.
        self.moved = False


class TaskEntry:
    """One task in the manager's table."""

    __slots__ = (
        "attempt",
        "cancelled",
        "children",
        "client",
        "inputs",
        "missing",
        "released",
        "runner",
        "spec",
        "state",
        "task",
        "trouble",
        "unfinished",
    )

    def __init__(self, task: TaskId, spec: TaskSpec | None, client: PeerId, attempt: int, state: TaskState) -> None:
        self.task = task
        #: None for a task that a client sent straight to a runner: its value can be an input, but not be made again.
        self.spec = spec
        #: Who gets the value; empty when that client is gone and other clients' tasks still need the value.
        self.client = client
        self.attempt = attempt
        self.state = state
        #: The runner that computes or keeps the value (or the error); exactly then the task is in its `tasks`.
        self.runner: RunnerEntry | None = None
        #: Distinct inputs, in order.
        self.inputs: tuple[TaskEntry, ...] = ()
        #: Tasks with this one among their inputs, except failed and cancelled ones.
        self.children: dict[TaskId, TaskEntry] | None = None
        #: While WAITING: how many of `inputs` are neither PLACED nor FINISHED. While READY: 0.
        self.missing = 0
        #: How many of `children` are WAITING, READY or PLACED.
        self.unfinished = 0
        self.released = False
        #: A request to cancel is on its way to the runner.
        self.cancelled = False
        self.trouble: Trouble | None = None

    def troubled(self) -> Trouble:
        """Its trouble; from here on it has one."""
        trouble = self.trouble
        if trouble is None:
            trouble = self.trouble = Trouble()
        return trouble

    def story(self) -> str:
        """The task in words, for errors."""
        where = f" on {self.runner.peer}" if self.runner is not None else ""
        client = self.client or "a client that is gone"
        return f"task {self.task} of {client}, {self.state.name}, attempt {self.attempt}{where}"


def move(entry: TaskEntry, state: TaskState) -> None:
    """Change a task's state.

    Raises:
        InvalidTransition: The table has no such move.
    """
    if (entry.state, state) not in TRANSITIONS:
        raise InvalidTransition(f"{entry.story()} cannot become {state.name}")
    entry.state = state


class RunnerEntry:
    """One incarnation of a runner. It outlives the process while its node keeps values of it."""

    __slots__ = (
        "alive",
        "cancels",
        "codes",
        "crowded",
        "dropped_codes",
        "finished",
        "gone",
        "host",
        "index",
        "keeper",
        "leases",
        "mean_s",
        "new_codes",
        "new_peers",
        "node",
        "outstanding",
        "peer",
        "pid",
        "placements",
        "recalls",
        "ref",
        "releases",
        "running",
        "tasks",
        "told",
        "window",
    )

    def __init__(self, ref: PeerRef, node: PeerId, host: str, pid: int, window: int) -> None:
        self.ref = ref
        self.peer = ref.peer
        self.node = node
        #: Whom to ask for values of this runner: itself, and its node once it has ended.
        self.keeper = ref.peer
        self.host = host
        self.pid = pid
        self.alive = True
        #: Our link to it is over, and its node has not reported its end yet.
        self.gone = False
        #: Tasks PLACED here, and one for each lease: its client may be running something here.
        self.outstanding = 0
        #: Tasks that got their value here, ever.
        self.finished = 0
        #: How many may be outstanding; each lease widens it by the one that it counts for.
        self.window = window
        #: Exponential mean of the tasks' durations, negative before the first.
        self.mean_s = -1.0
        #: Tasks PLACED here, and those whose value or error is kept here, in the order of placement.
        self.tasks: dict[TaskId, TaskEntry] = {}
        #: Clients that may dispatch here by themselves.
        self.leases: dict[PeerId, None] = {}
        #: Code and peers that the runner has been told.
        self.codes: set[CodeId] = set()
        self.told: set[PeerId] = set()
        #: The manager's index that holds this runner, by how much room it has.
        self.index: dict[PeerId, RunnerEntry] | None = None
        #: Whether tasks may be waiting here behind another one, so that they could be taken back.
        self.crowded = False
        #: What is to be sent at the end of the event.
        self.placements: list[Placement] = []
        self.new_codes: list[Code] = []
        self.dropped_codes: list[CodeId] = []
        self.new_peers: list[PeerRef] = []
        self.cancels: list[TaskId] = []
        self.recalls: list[tuple[TaskId, int]] = []
        #: The task that it was last known to have started, from the answer to a recall.
        self.running = TaskId(0)
        #: Values to release with the next batch.
        self.releases: list[TaskId] = []
