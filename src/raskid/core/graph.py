"""The manager's graph of tasks: which can be placed, what becomes of those that need a lost, failed or released one.

A task's state is changed here (and, for the two usual moves, on the hot paths of `raskid.core.dispatch` and
`raskid.core.manager`). What may be placed goes into one of three containers, which the dispatcher empties at the end
of the event. Chains of tasks can be as long as memory allows, so that nothing here recurses along them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from raskid.core.pool import Pool
from raskid.core.tasks import (
    CANCELLED,
    FAILED,
    FINISHED,
    PLACED,
    READY,
    RELEASED,
    UNFINISHED,
    WAITING,
    TaskEntry,
    TaskState,
    move,
)
from raskid.model.ids import PeerId, TaskId, counter_of
from raskid.protocol.messages import TaskFailed, TasksCancelled, TaskSpec

#: Runners that may end while they run a task; placements that came to nothing otherwise are not counted.
ENDS_MAX = 10


class Graph:
    """The tasks."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.tasks: dict[TaskId, TaskEntry] = {}
        #: Holds every READY task that is not in `placing` or `front`; entries in other states are skipped.
        self.queue: deque[TaskEntry] = deque()
        #: READY tasks with inputs, to be placed at the end of the event.
        self.placing: deque[TaskEntry] = deque()
        #: READY tasks that go before the queue at the end of the event.
        self.front: list[TaskEntry] = []
        #: How many tasks are READY.
        self.ready = 0
        #: Tasks that are PLACED and whose inputs' keepers changed in this event.
        self.resend: dict[TaskId, TaskEntry] = {}

    def describe(self, entry: TaskEntry) -> str:
        """A task for people: as its future shows itself, with its function's name where that is known."""
        code = self._pool.codes.get(entry.spec.code) if entry.spec is not None else None
        return f"{code.name if code is not None and code.name else 'task'} #{counter_of(entry.task)}"

    # ── Getting ready ────────────────────────────────────────────────────────────────────────────────────────────────

    def add_with_inputs(self, spec: TaskSpec, client: PeerId, attempt: int) -> None:
        """A new task that needs others."""
        tasks = self.tasks
        # Looked up before the task itself is put into the table, so that a task cannot be its own input.
        inputs = {task: tasks.get(task) for task in spec.inputs}
        entry = TaskEntry(spec.task, spec, client, attempt, WAITING)
        tasks[spec.task] = entry
        unknown = [task for task, found in inputs.items() if found is None]
        if unknown:
            text = f"{self.describe(entry)} needs the value of task #{counter_of(unknown[0])}, which is not known"
            self.fail(entry, "InputFailed", text)
            return
        entry.inputs = tuple(found for found in inputs.values() if found is not None)
        for found in entry.inputs:
            found.unfinished += 1
            if found.children is None:
                found.children = {}
            found.children[spec.task] = entry
        self.await_inputs(entry)

    def await_inputs(self, first: TaskEntry) -> None:
        """Make a WAITING task ready, or wait for its inputs, or fail it; inputs without a value are run again."""
        pending = [first]
        while pending:
            entry = pending.pop()
            missing = 0
            for found in entry.inputs:
                state = found.state
                if state is PLACED or state is FINISHED:
                    continue
                missing += 1
                if state is RELEASED:
                    pending += self._revive([found], "its value was lost")
                    state = found.state
                if state is FAILED or state is CANCELLED:
                    if entry.state is WAITING:
                        self.fail_all(entry, "InputFailed", f"its input, {self.describe(found)}, failed")
                    break
            if entry.state is WAITING:
                entry.missing = missing
                if not missing:
                    self.make_ready(entry)

    def make_ready(self, entry: TaskEntry) -> None:
        """A WAITING task whose inputs are all placed or finished may be placed."""
        move(entry, READY)
        entry.missing = 0
        self.ready += 1
        if entry.inputs or entry.unfinished:
            # What runs again for others goes even to a runner without room: tasks that wait for it may fill all.
            self.placing.append(entry)
        elif entry.trouble is not None and entry.trouble.ends:
            # Its runner ended while it ran. If that was its doing, it had better not take the next one from others.
            self.queue.append(entry)
        else:
            self.front.append(entry)

    def placed(self, entry: TaskEntry) -> None:
        """An entry with children was placed: those that only waited for that are ready."""
        assert entry.children is not None
        for child in entry.children.values():
            if child.state is WAITING:
                child.missing -= 1
                if not child.missing:
                    self.make_ready(child)
            elif child.state is PLACED:
                # It was placed with another keeper for this input.
                self.resend[child.task] = child

    # ── Another attempt ──────────────────────────────────────────────────────────────────────────────────────────────

    def unplace(self, entry: TaskEntry) -> None:
        """Take a task from the runner that computes or keeps it: WAITING if it was PLACED, RELEASED if FINISHED."""
        runner = entry.runner
        assert runner is not None
        if entry.state is PLACED:
            runner.outstanding -= 1
            self._pool.reindex(runner)
            move(entry, WAITING)
        else:
            move(entry, RELEASED)
        del runner.tasks[entry.task]
        entry.runner = None
        if entry.children:
            for child in entry.children.values():
                if child.state is READY:
                    self.ready -= 1
                    move(child, WAITING)
                    child.missing = 1
                elif child.state is WAITING:
                    child.missing += 1

    def start_again(self, entries: list[TaskEntry], why: str) -> None:
        """The next attempt of tasks that were taken from their runners."""
        for entry in self._revive(entries, why):
            if entry.state is WAITING:
                self.await_inputs(entry)

    def _revive(self, entries: Iterable[TaskEntry], why: str) -> list[TaskEntry]:
        """Bring WAITING and RELEASED tasks to the start of the next attempt; return those that may have one."""
        revived = []
        # A value that was given up just now may still be among the collected releases, which name no attempt: they
        # must not reach a runner after the new attempt.
        self._pool.flush_releases()
        for entry in entries:
            if entry.state is RELEASED:
                if entry.spec is None:
                    self.fail_all(entry, "TaskLost", f"{self.describe(entry)} was sent to a runner directly; {why}")
                    continue
                move(entry, WAITING)
                for found in entry.inputs:
                    found.unfinished += 1
            elif entry.state is not WAITING:
                continue
            if entry.cancelled:
                self.cancel([entry])
            elif entry.trouble is not None and sum(entry.trouble.ends.values()) >= ENDS_MAX:
                self.fail_all(entry, "TaskLost", self._why_lost(entry))
            else:
                entry.attempt += 1
                # All its inputs count as missing until `await_inputs` has looked at them.
                entry.missing = len(entry.inputs)
                revived.append(entry)
        return revived

    def _why_lost(self, entry: TaskEntry) -> str:
        ends = entry.trouble.ends if entry.trouble is not None else {}
        told = "; ".join(f"{reason} ({count} times)" if count > 1 else reason for reason, count in ends.items())
        return f"{self.describe(entry)} was given up: {sum(ends.values())} attempts ended with their runner: {told}"

    # ── Ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def leave(self, entry: TaskEntry, state: TaskState) -> None:
        """End a task without a value: nothing descends from its inputs through it any more."""
        old = entry.state
        move(entry, state)
        if old is READY:
            self.ready -= 1
            if len(self.queue) > 2 * self.ready + 1024:
                kept = [queued for queued in self.queue if queued.state is READY]
                self.queue.clear()
                self.queue.extend(kept)
        elif old is PLACED:
            assert entry.runner is not None
            entry.runner.outstanding -= 1
            self._pool.reindex(entry.runner)
        inputs = entry.inputs
        entry.inputs = ()
        for found in inputs:
            assert found.children is not None
            del found.children[entry.task]
            if old is not RELEASED:
                found.unfinished -= 1
            if found.released:
                self.reap(found)

    def cancel(self, entries: list[TaskEntry]) -> None:
        """Cancel tasks that are on no runner (any more), tell their clients, and fail what needs them."""
        told: dict[PeerId, list[TaskId]] = {}
        # All become CANCELLED before dependants fail: one of them may be another's input.
        for entry in entries:
            self.leave(entry, CANCELLED)
            told.setdefault(entry.client, []).append(entry.task)
        for client, tasks in told.items():
            self._pool.send(client, TasksCancelled(tasks))
        for entry in entries:
            self.fail_children(entry, f"its input, {self.describe(entry)}, was cancelled", placed=True)
            self.reap(entry)

    def abandon(self, entry: TaskEntry) -> None:
        """End an unfinished task that nobody wants any more."""
        if entry.state is PLACED:
            # The runner stays noted, so that the release reaches it in case that the task runs nevertheless.
            self._pool.cancel(entry)
        self.leave(entry, CANCELLED)

    def fail(self, entry: TaskEntry, code: str, text: str) -> None:
        """A task will have no value."""
        if entry.state is PLACED:
            self._pool.cancel(entry)
        self.leave(entry, FAILED)
        if not entry.released:
            self._pool.send(entry.client, TaskFailed(entry.task, code, text))

    def fail_all(self, entry: TaskEntry, code: str, text: str) -> None:
        """Fail a task and everything unfinished that needs it."""
        self.fail(entry, code, text)
        self.fail_children(entry, f"its input, {self.describe(entry)}, failed: {text}", placed=True)
        self.reap(entry)

    def fail_children(self, root: TaskEntry, text: str, placed: bool) -> None:
        """Fail what needs `root`. `placed`: also those on runners, because no runner will tell them."""
        failed = [root]
        while failed:
            entry = failed.pop()
            for child in list(entry.children.values()) if entry.children else ():
                if child.state in UNFINISHED and (child.state is not PLACED or placed or entry is not root):
                    self.fail(child, "InputFailed", f"{self.describe(child)} cannot run: {text}")
                    failed.append(child)
            if entry is not root:
                self.reap(entry)

    def lose_error(self, entry: TaskEntry, why: str) -> None:
        """The error of a FAILED task is lost: whoever still waits for it is told that much."""
        text = f"{self.describe(entry)} raised an exception, which was lost: {why}"
        if not entry.released:
            self._pool.send(entry.client, TaskFailed(entry.task, "TaskLost", text))
        self.fail_children(entry, text, placed=True)

    def give_back_inputs(self, entry: TaskEntry) -> None:
        """A task with inputs got its value, and needs them no longer."""
        for found in entry.inputs:
            found.unfinished -= 1
            if found.released and not found.unfinished:
                self.reap(found)

    def reap(self, first: TaskEntry) -> None:
        """Give up a released task's value when no unfinished task needs it, and the task when nothing descends."""
        pending = [first]
        while pending:
            entry = pending.pop()
            if not entry.released or entry.unfinished or entry.state in UNFINISHED:
                continue
            if entry.runner is not None:
                self._pool.collect_release(entry)
            if entry.state is FINISHED:
                move(entry, RELEASED)
            if entry.children:
                continue
            if self.tasks.get(entry.task) is entry:
                del self.tasks[entry.task]
            for found in entry.inputs:
                assert found.children is not None
                del found.children[entry.task]
                pending.append(found)
            entry.inputs = ()

    # ── Checking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        assert not (self.placing or self.front or self.resend), "work left after an event"
        queued = {entry.task for entry in self.queue if entry.state is READY}
        ready = {task for task, entry in self.tasks.items() if entry.state is READY}
        assert ready == queued, f"queue and states differ: {ready ^ queued}"
        assert self.ready == len(ready), f"{self.ready} counted as ready, {len(ready)} are"
        for task, entry in self.tasks.items():
            self._check_task(task, entry)

    def _check_task(self, task: TaskId, entry: TaskEntry) -> None:
        assert entry.task == task
        assert (entry.state not in (PLACED, FINISHED)) or entry.runner is not None, entry.story()
        if entry.runner is not None:
            assert entry.runner.tasks.get(task) is entry, entry.story()
            assert entry.state in (PLACED, FINISHED, FAILED, CANCELLED), entry.story()
            assert entry.state is not PLACED or entry.runner.alive, entry.story()
        if entry.state is WAITING:
            missing = sum(found.state not in (PLACED, FINISHED) for found in entry.inputs)
            assert entry.missing == missing > 0, f"{entry.story()}: {entry.missing} counted as missing, {missing} are"
            assert all(found.state in UNFINISHED or found.state is FINISHED for found in entry.inputs), entry.story()
        children = entry.children or {}
        assert entry.unfinished == sum(child.state in UNFINISHED for child in children.values()), entry.story()
        for found in entry.inputs:
            assert found.children is not None and found.children.get(task) is entry, entry.story()
            assert self.tasks.get(found.task) is found, f"{entry.story()}: its input {found.story()} was forgotten"
        if entry.released and entry.state not in UNFINISHED:
            assert entry.unfinished or entry.runner is None, f"{entry.story()}: value kept for nobody"
            assert children, f"{entry.story()}: kept for nobody"
