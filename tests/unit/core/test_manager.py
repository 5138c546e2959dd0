from typing import Any

import pytest

from raskid.core.dispatch import BALANCE_S, BALANCE_S_MAX
from raskid.core.effects import Effect, Introduce, Send
from raskid.core.events import PeerGone, PeerJoined, Received, Tick
from raskid.core.manager import Manager
from raskid.core.tasks import FINISHED, PLACED, READY, TaskEntry, move
from raskid.model.errors import InvalidTransition
from raskid.model.ids import CodeId, PeerId, RequestId, TaskId
from raskid.protocol.messages import (
    AskStatus,
    CancelTasks,
    Code,
    DropValues,
    LeaseEnded,
    LeaseGranted,
    PeerRef,
    Placement,
    RecallTasks,
    ReleaseTasks,
    RequestLease,
    RequestRefused,
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
    ValuesAt,
)

F = CodeId("f")
CODE = Code(F, b"function")
CLIENT_REF = PeerRef(PeerId("c"), 1, ("c-address",))


def spec(task: int, *inputs: int, retries: int = 0, count: int = 0) -> TaskSpec:
    return TaskSpec(TaskId(task), F, b"", tuple(TaskId(n) for n in inputs), count, retries)


def place(task: TaskSpec, attempt: int = 1, *keepers: str, client: str = "c", raised: int = 0) -> Placement:
    return Placement(task, attempt, PeerId(client), tuple(PeerId(k) for k in keepers), raised)


class Bench:
    """A manager, and short ways to tell it things."""

    def __init__(self, runners: int = 1) -> None:
        self.manager = Manager(PeerId("head"))
        self.now = 0.0
        for peer in ("c", "c2", "n", "n2"):
            self.event(PeerJoined(PeerId(peer), 1, "x", "execute", (f"{peer}-address",)))
        for number in range(1, runners + 1):
            self.start(f"r{number}")

    def event(self, event: Any) -> list[Effect]:
        effects = self.manager.handle(event, self.now)
        self.manager.check_invariants()
        return [effect for effect in effects if not isinstance(effect, Introduce)]

    def get(self, peer: str, message: Any) -> list[Effect]:
        return self.event(Received(PeerId(peer), message))

    def start(self, runner: str, node: str = "n", incarnation: int = 1, mean_s: float = 0.00125) -> list[Effect]:
        """A runner starts; from here on it counts as one whose tasks last `mean_s` (window 8)."""
        effects = self.get(node, RunnerStarted(PeerRef(PeerId(runner), incarnation), 7, "host"))
        entry = self.manager._pool.runners[PeerId(runner)]
        entry.mean_s = mean_s
        self.manager._pool.fit_window(entry)
        return effects

    def end(self, runner: str, node: str = "n", running: int = 0) -> list[Effect]:
        return self.get(node, RunnerEnded(PeerId(runner), 1, "killed", TaskId(running)))

    def submit(self, *specs: TaskSpec, client: str = "c", attempt: int = 1) -> list[Effect]:
        return self.get(client, SubmitTasks(list(specs), [CODE], attempt))

    def finish(
        self,
        runner: str,
        *tasks: int,
        attempt: int = 1,
        ok: bool = True,
        seconds: float = 0.00125,
        node: str = "n",
        direct: bool = False,
    ) -> list[Effect]:
        c = PeerId("c")
        outcomes = [TaskOutcome(TaskId(n), attempt, ok, 1, seconds, PeerId(runner), c, direct) for n in tasks]
        return self.get(node, TasksFinished(outcomes))

    def recalled(self, runner: str, *tasks: int, started: tuple[int, ...] = (), attempt: int = 1) -> list[Effect]:
        pairs = [(TaskId(task), attempt) for task in tasks]
        return self.get("n", TasksRecalled(PeerId(runner), 1, pairs, [(TaskId(task), attempt) for task in started]))

    def release(self, *tasks: int, client: str = "c") -> list[Effect]:
        return self.get(client, ReleaseTasks([TaskId(task) for task in tasks]))

    def cancel(self, *tasks: int) -> list[Effect]:
        return self.get("c", CancelTasks([TaskId(task) for task in tasks]))

    def gone(self, peer: str) -> list[Effect]:
        return self.event(PeerGone(PeerId(peer), 1, "left"))

    def state(self, task: int) -> Any:
        return self.manager._tasks[TaskId(task)].state

    def flush(self) -> list[Effect]:
        self.now = (self.manager.next_deadline() or self.now) + 0.001
        return self.event(Tick())


def sent(effects: list[Effect], kind: type[Any]) -> list[tuple[str, Any]]:
    return [(e.peer, e.message) for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


def to(peer: str, message: Any) -> Effect:
    return Send(PeerId(peer), message)


def run(peer: str, *placements: Placement) -> Effect:
    return to(peer, RunTasks(list(placements)))


def test_submit_goes_out_with_code_and_client_once() -> None:
    b = Bench()
    assert b.submit(spec(1), spec(2)) == [to("r1", RunTasks([place(spec(1)), place(spec(2))], [CODE], [CLIENT_REF]))]
    assert b.submit(spec(3)) == [run("r1", place(spec(3)))]


def test_tasks_wait_for_a_runner() -> None:
    b = Bench(runners=0)
    assert b.submit(spec(1), spec(2, 1)) == []
    assert b.start("r1") == [to("r1", RunTasks([place(spec(1)), place(spec(2, 1), 1, "r1")], [CODE], [CLIENT_REF]))]


def test_tasks_spread_over_runners() -> None:
    b = Bench(runners=2)
    effects = sent(b.submit(*[spec(n) for n in range(1, 6)]), RunTasks)
    assert [(peer, len(message.placements)) for peer, message in effects] == [("r1", 3), ("r2", 2)]


def test_window_bounds_and_refills_at_half() -> None:
    b = Bench()
    [(_, first)] = sent(b.submit(*[spec(n) for n in range(1, 21)]), RunTasks)
    assert len(first.placements) == 8
    assert b.finish("r1", 1, 2, 3) == []
    assert b.finish("r1", 4) == [run("r1", *[place(spec(n)) for n in range(9, 13)])]


def test_window_follows_durations() -> None:
    b = Bench(runners=0)
    b.start("r1", mean_s=-1.0)
    b.submit(*[spec(n) for n in range(1, 2000)])
    [(_, message)] = sent(b.finish("r1", 1, seconds=1e-6), RunTasks)
    assert len(message.placements) == 512
    b = Bench()
    b.submit(*[spec(n) for n in range(1, 20)])
    assert b.finish("r1", *range(1, 8), seconds=1.0) == []
    assert b.finish("r1", 8, seconds=1.0) == [run("r1", place(spec(9)))]


def test_a_runner_whose_tasks_are_not_known_gets_one() -> None:
    """1. Two tasks come before any runner. 2. The first runner gets one of them. 3. The second gets the other."""
    b = Bench(runners=0)
    b.submit(spec(1), spec(2))
    assert [p.spec.task for p in sent(b.start("r1"), RunTasks)[0][1].placements] == [1]
    b = Bench(runners=0)
    b.start("r1", mean_s=-1.0)
    b.submit(spec(1), spec(2))
    assert sent(b.start("r2"), RunTasks) == [("r2", RunTasks([place(spec(2))], [CODE], [CLIENT_REF]))]


def test_dependants_are_placed_at_once_beyond_the_window() -> None:
    b = Bench(runners=2)
    chain = [spec(1), *[spec(n, n - 1) for n in range(2, 31)]]
    [(peer, message)] = sent(b.submit(*chain), RunTasks)
    assert peer == "r1"
    assert [p.keepers for p in message.placements] == [(), *[("r1",)] * 29]


def test_dependant_goes_where_most_inputs_are_and_learns_of_other_keepers() -> None:
    b = Bench(runners=2)
    b.submit(spec(1), spec(2), spec(3))
    assert b.submit(spec(4, 1, 2, 3)) == [
        to("r1", RunTasks([place(spec(4, 1, 2, 3), 1, "r1", "r1", "r2")], [], [PeerRef(PeerId("r2"), 1)]))
    ]


def test_wide_inputs_spill_to_a_runner_with_room() -> None:
    b = Bench(runners=2)
    b.submit(spec(1))
    effects = sent(b.submit(*[spec(n, 1) for n in range(2, 30)]), RunTasks)
    assert len(effects) == 2


def test_long_chain_does_not_recurse() -> None:
    b = Bench(runners=0)
    b.submit(spec(1), *[spec(n, n - 1) for n in range(2, 3000)])
    [(_, message)] = sent(b.start("r1"), RunTasks)
    assert len(message.placements) == 2999
    for n in range(1, 3000):
        b.manager.handle(Received(PeerId("c"), ReleaseTasks([TaskId(n)])), 0.0)
    b.finish("r1", *range(1, 3000))
    assert not b.manager._tasks


def test_unknown_input_fails() -> None:
    b = Bench()
    assert b.submit(spec(2, 1)) == [
        to("c", TaskFailed(TaskId(2), "InputFailed", "task #2 needs the value of task #1, which is not known"))
    ]
    b.release(2)
    assert not b.manager._tasks
    assert sent(b.submit(spec(3, 3)), TaskFailed)


def test_failed_input_fails_new_tasks_but_leaves_placed_ones() -> None:
    b = Bench()
    b.submit(spec(1), spec(2, 1))
    assert b.finish("r1", 1, ok=False) == []
    assert b.state(2) is PLACED
    [(peer, failed)] = sent(b.submit(spec(3, 1)), TaskFailed)
    assert (peer, failed.task, failed.code) == ("c", 3, "InputFailed")


def test_stale_outcomes_are_dropped() -> None:
    b = Bench()
    b.submit(spec(1))
    assert b.finish("r1", 1, attempt=2) == []
    assert b.state(1) is PLACED


def test_retries() -> None:
    b = Bench()
    b.submit(spec(1, retries=1))
    assert b.finish("r1", 1, ok=False) == [run("r1", place(spec(1, retries=1), 2, raised=1))]
    assert b.finish("r1", 1, ok=False, attempt=2) == []
    assert sent(b.submit(spec(2, 1)), TaskFailed)


def test_lost_tasks_go_to_the_front_in_order() -> None:
    b = Bench()
    b.submit(*[spec(n) for n in range(1, 11)])
    assert b.end("r1") == []
    [(_, message)] = sent(b.start("r2"), RunTasks)
    assert [(p.spec.task, p.attempt) for p in message.placements] == [(1, 2)]
    [(_, message)] = sent(b.finish("r2", 1, attempt=2), RunTasks)
    assert [(p.spec.task, p.attempt) for p in message.placements] == [(n, 2) for n in range(2, 9)] + [(9, 1)]


def test_dependants_of_lost_tasks_are_sent_again_with_new_keepers() -> None:
    b = Bench(runners=2)
    b.submit(spec(1), spec(2), spec(3))
    b.submit(spec(4, 1, 2, 3))
    effects = b.end("r2")
    assert effects == [
        run("r1", place(spec(3), 2), place(spec(4, 1, 2, 3), 1, "r1", "r1", "r1")),
    ]


def test_task_lost_after_ten_attempts() -> None:
    """1. Its runner ends ten times, each time while it runs. 2. It is lost, and says how; what needs it fails."""
    b = Bench(runners=0)
    b.get("c", SubmitTasks([spec(1), spec(2, 1)], [Code(F, b"function", "mine.deadly")]))
    for n in range(1, 10):
        b.start(f"r{n}")
        assert b.end(f"r{n}", running=1) == []
    b.start("r10")
    effects = b.get("n", RunnerEnded(PeerId("r10"), 1, "exit code 3", TaskId(1)))
    lost, failed = (message for _, message in sent(effects, TaskFailed))
    why = "mine.deadly #1 was given up: 10 attempts ended with their runner: killed (9 times); exit code 3"
    assert lost == TaskFailed(TaskId(1), "TaskLost", why)
    needs = "mine.deadly #2 cannot run: its input, mine.deadly #1, failed: "
    assert failed == TaskFailed(TaskId(2), "InputFailed", needs + why)


def test_what_did_not_run_when_its_runner_ended_has_lost_nothing() -> None:
    """1. Task 1 ends its runner, over and over. 2. Task 2, placed behind it each time, is placed again each time."""
    b = Bench(runners=0)
    b.submit(spec(1), spec(2), spec(3))
    told: list[TaskFailed] = []
    for n in range(1, 31):
        b.start(f"r{n}")
        b.event(Tick())
        assert b.state(2) is PLACED and b.state(3) is PLACED
        told += [message for _, message in sent(b.end(f"r{n}", running=1), TaskFailed)]
    assert [message.task for message in told] == [1]


def test_what_ended_its_runner_goes_behind_the_others() -> None:
    b = Bench()
    b.submit(spec(1), spec(2))
    b.end("r1", running=1)
    b.submit(spec(3))
    b.start("r2")
    assert [b.state(n) for n in (1, 2, 3)] == [READY, PLACED, READY]
    b.finish("r2", 2, attempt=2)
    assert list(b.manager._pool.runners[PeerId("r2")].tasks) == [2, 1, 3]


def test_values_of_an_ended_runner_are_with_its_node() -> None:
    b = Bench(runners=2)
    b.submit(spec(1))
    b.get("c", RequestLease(RequestId(5)))
    b.finish("r1", 1)
    lease = next(r for r in b.manager._pool.runners.values() if r.leases).peer
    effects = b.end("r1")
    assert effects[0] == to("c", ValuesAt(PeerRef(PeerId("n"), 1, ("n-address",)), [TaskId(1)]))
    assert effects[1:] == ([to("c", LeaseEnded(PeerId("r1"), "killed"))] if lease == "r1" else [])
    [(_, message)] = sent(b.submit(spec(2, 1)), RunTasks)
    assert message.placements == [place(spec(2, 1), 1, "n")]
    assert PeerRef(PeerId("n"), 1, ("n-address",)) in message.peers
    b.finish("r2", 2)
    b.release(1, 2)
    assert (
        b.flush()
        == [
            to("r2", DropValues([TaskId(2)])),
            to("n", DropValues([TaskId(2), TaskId(1)])),
        ]
        or not b.manager._tasks
    )


def test_lost_node_runs_again_what_is_wanted_and_what_it_descends_from() -> None:
    b = Bench()
    b.submit(spec(1), spec(2, 1), spec(3))
    b.finish("r1", 1, 2, 3)
    b.release(1, 3)
    assert b.start("r2", node="n2") == []
    [(peer, message)] = sent(b.gone("n"), RunTasks)
    assert peer == "r2"
    assert message.placements == [place(spec(1), 2), place(spec(2, 1), 2, "r2")]
    b.finish("r2", 1, 2, attempt=2, node="n2")
    b.release(2)
    assert not b.manager._tasks
    assert sent(b.flush(), DropValues)


def test_lost_client_takes_its_tasks_along() -> None:
    b = Bench()
    b.submit(*[spec(n) for n in range(1, 11)])
    b.submit(spec(11, 1))
    b.finish("r1", 1)
    b.get("c", RequestLease(RequestId(5)))
    effects = b.gone("c")
    assert [m.tasks for _, m in sent(effects, CancelTasks)] == [[11, *range(8, 1, -1)]]
    assert not b.manager._tasks
    assert not b.manager._pool.codes
    assert {p for p, m in sent(b.flush(), DropValues)} == {"r1", "n"}


def test_inputs_of_other_clients_outlive_their_client() -> None:
    b = Bench()
    b.submit(spec(1))
    b.submit(spec(2, 1), client="c2")
    assert b.gone("c") == []
    b.finish("r1", 1, 2)
    b.release(2, client="c2")
    assert not b.manager._tasks


def test_releases_are_batched() -> None:
    b = Bench()
    b.submit(spec(1), spec(2))
    b.finish("r1", 1)
    assert b.release(1, 2) == []
    assert b.manager.next_deadline() == pytest.approx(0.05)
    b.now = 0.04
    assert b.event(Tick()) == []
    assert b.finish("r1", 2) == []
    assert b.flush() == [to("r1", DropValues([TaskId(1), TaskId(2)])), to("n", DropValues([TaskId(1), TaskId(2)]))]
    assert b.manager.next_deadline() is None


def test_many_releases_go_at_once() -> None:
    b = Bench()
    b.submit(*[spec(n) for n in range(256)])
    for n in range(256):
        b.finish("r1", n)
    assert len(b.release(*range(256))) == 2


def test_needed_inputs_outlive_their_release() -> None:
    b = Bench()
    b.submit(spec(1), spec(2, 1))
    b.finish("r1", 1)
    b.release(1)
    assert b.manager.next_deadline() is None
    b.finish("r1", 2)
    assert sent(b.flush(), DropValues)[0] == ("r1", DropValues([TaskId(1)]))


def test_cancel_before_placement() -> None:
    b = Bench(runners=0)
    b.submit(spec(1), spec(2, 1))
    effects = b.cancel(1)
    assert effects[0] == to("c", TasksCancelled([TaskId(1)]))
    assert [m.task for _, m in sent(effects[1:], TaskFailed)] == [2]


def test_cancel_on_a_runner() -> None:
    b = Bench()
    b.submit(spec(1), spec(2, 1))
    recall = to("n", RecallTasks(PeerId("r1"), 1, [(TaskId(1), 1)]))
    assert b.cancel(1, 1) == [recall, to("r1", CancelTasks([TaskId(1)]))]
    assert b.recalled("r1", 1) == [
        to("c", TasksCancelled([TaskId(1)])),
        to("c", TaskFailed(TaskId(2), "InputFailed", "task #2 cannot run: its input, task #1, was cancelled")),
        to("r1", CancelTasks([TaskId(2)])),
    ]


def test_a_late_answer_is_about_the_attempt_that_it_names() -> None:
    """1. The node has taken a task back, which is placed again. 2. The runner, which was told as well, says that it
    left the first attempt out: the second goes on."""
    b = Bench()
    b.submit(spec(1))
    assert b.recalled("r1", 1) == [run("r1", place(spec(1), 2))]
    assert b.get("r1", TasksRecalled(PeerId("r1"), 1, [(TaskId(1), 1)])) == []


def test_too_late_to_cancel() -> None:
    """1. The node says that it has started. 2. Should it come back all the same, it is placed: it was not cancelled."""
    b = Bench()
    b.submit(spec(1), spec(2))
    b.finish("r1", 2)
    assert b.cancel(2, 77) == [to("c", TasksCancelled([], [TaskId(2), TaskId(77)]))]
    b.cancel(1)
    assert b.recalled("r1", started=(1,)) == [to("c", TasksCancelled([], [TaskId(1)]))]
    assert b.recalled("r1", 1, 1) == [run("r1", place(spec(1), 2))]


def test_a_task_named_twice_is_cancelled_once() -> None:
    b = Bench(runners=0)
    b.submit(spec(1))
    assert b.cancel(1, 1) == [to("c", TasksCancelled([TaskId(1)]))]


def test_cancelled_task_is_not_placed_again() -> None:
    b = Bench(runners=2)
    b.submit(spec(1))
    b.cancel(1)
    assert b.end("r1") == [to("c", TasksCancelled([TaskId(1)]))]


def test_leases() -> None:
    b = Bench(runners=2)
    b.submit(spec(1))
    grant = LeaseGranted(RequestId(1), PeerRef(PeerId("r2"), 1), 1)
    assert b.get("c", RequestLease(RequestId(1))) == [to("c", grant)]
    assert sent(b.get("c", RequestLease(RequestId(2))), LeaseGranted)[0][1].runner.peer == "r1"
    assert sent(b.get("c", RequestLease(RequestId(3))), RequestRefused)[0][1].code == "Full"
    assert b.get("c", LeaseEnded(PeerId("r2"))) == []
    assert b.get("c", RequestLease(RequestId(4))) == [to("c", LeaseGranted(RequestId(4), PeerRef(PeerId("r2"), 1), 1))]


def test_direct_values_can_be_inputs_and_be_released() -> None:
    b = Bench()
    b.get("c", RequestLease(RequestId(1)))
    assert b.finish("r1", 50, 51, direct=True) == []
    assert sent(b.submit(spec(1, 50)), RunTasks)[0][1].placements == [place(spec(1, 50), 1, "r1")]
    assert b.submit(spec(51), attempt=2) == [to("c", ValuesAt(PeerRef(PeerId("r1"), 1), [TaskId(51)]))]
    b.finish("r1", 1)
    b.release(50, 51, 1)
    b.release(52)
    b.finish("r1", 52, direct=True)
    assert not b.manager._tasks
    assert not b.manager._early


def test_direct_task_of_a_lost_runner_is_submitted() -> None:
    b = Bench()
    b.get("c", RequestLease(RequestId(1)))
    b.finish("r1", 50, direct=True)
    effects = b.end("r1")
    assert [type(e.message) for e in effects if isinstance(e, Send)] == [ValuesAt, LeaseEnded]
    b.submit(spec(51), attempt=2)
    assert sent(b.start("r2"), RunTasks)[0][1].placements == [place(spec(51), 2)]
    assert sent(b.gone("n"), TaskFailed)[0][1].code == "TaskLost"


def test_newer_runner_ends_the_old_one() -> None:
    b = Bench()
    b.submit(spec(1))
    assert b.start("r1", incarnation=2) == [to("r1", RunTasks([place(spec(1), 2)], [CODE], [CLIENT_REF]))]
    assert b.end("r1") == []


def test_client_that_comes_back_is_told_anew() -> None:
    b = Bench()
    b.submit(spec(1))
    b.event(PeerJoined(PeerId("c"), 2, "client", "execute", ("new",)))
    [(_, message)] = sent(b.submit(spec(2)), RunTasks)
    assert message.peers == [PeerRef(PeerId("c"), 2, ("new",))]
    assert b.gone("c") == []
    assert b.state(2) is PLACED


def test_status() -> None:
    b = Bench()
    b.submit(*[spec(n) for n in range(1, 11)])
    b.finish("r1", 1)
    b.get("c", RequestLease(RequestId(9)))
    runner = {"runner": "r1", "host": "host", "pid": 7, "outstanding": 7, "leases": 1, "finished": 1, "window": 8}
    facts = {"runners": [runner], "tasks": {"ready": 2, "placed": 7, "finished": 1}, "queued": 2}
    assert b.get("c2", AskStatus(RequestId(1))) == [to("c2", Status(RequestId(1), facts))]


def test_map_chunk_is_one_task() -> None:
    b = Bench()
    b.submit(spec(1, count=100))
    assert b.finish("r1", 1) == []
    assert b.state(1) is FINISHED


def test_illegal_move_tells_the_story() -> None:
    entry = TaskEntry(TaskId(1), spec(1), PeerId("c"), 3, FINISHED)
    with pytest.raises(InvalidTransition, match="task 1 of c, FINISHED, attempt 3 cannot become READY"):
        move(entry, READY)


def test_task_that_others_on_full_runners_wait_for_is_placed_at_once() -> None:
    bench = Bench(2)
    bench.submit(spec(1, retries=1), *(spec(number, 1) for number in range(2, 40)))
    bench.finish("r1", 1, ok=False)
    bench.finish("r2", 1, ok=False)
    entry = bench.manager._tasks[TaskId(1)]
    assert (entry.state, entry.attempt) == (PLACED, 2)


def test_nothing_is_sent_to_a_runner_whose_link_is_over() -> None:
    bench = Bench()
    bench.event(PeerGone(PeerId("r1"), 1))
    assert bench.submit(spec(1)) == []
    assert bench.manager._tasks[TaskId(1)].state is READY
    bench.end("r1")
    assert [effect.peer for effect in bench.start("r1", incarnation=2)] == ["r1"]  # type: ignore[attr-defined]


# ── Errors, late reports, functions ──────────────────────────────────────────────────────────────────────────────────


def test_an_error_outlives_its_runner_as_a_value_does() -> None:
    b = Bench()
    b.submit(spec(1))
    b.finish("r1", 1, ok=False)
    assert b.end("r1") == [to("c", ValuesAt(PeerRef(PeerId("n"), 1, ("n-address",)), [TaskId(1)]))]


def test_an_error_that_is_lost_with_its_node_is_told() -> None:
    """1. Task 1 raises; task 2, on another node, waits for its error. 2. The first node is lost. 3. Both are told."""
    b = Bench()
    b.start("r2", node="n2")
    b.submit(spec(1), spec(9))
    b.submit(spec(2, 9, 1))
    b.finish("r1", 1, ok=False)
    assert b.state(2) is PLACED
    failed = [message for _, message in sent(b.gone("n"), TaskFailed)]
    assert [(message.task, message.code) for message in failed] == [(1, "TaskLost"), (2, "InputFailed")]
    assert "raised an exception, which was lost: node n is gone" in failed[0].text


def test_a_late_value_of_a_task_that_was_given_up_is_dropped() -> None:
    """1. A client with a lease has a task failed and released. 2. It ran all the same. 3. Nothing is kept of it."""
    b = Bench(runners=2)
    b.get("c", RequestLease(RequestId(1)))
    b.submit(spec(1), spec(2, 1))
    b.cancel(1)
    b.recalled("r2", 1)
    b.release(1, 2)
    assert not b.manager._tasks
    b.flush()
    b.finish("r2", 2)
    assert not b.manager._tasks
    assert [peer for peer, _ in sent(b.flush(), DropValues)] == ["r2", "n"]


def test_the_value_of_an_attempt_that_is_not_valid_is_dropped() -> None:
    """1. Task 1 was taken back from a runner. 2. That runs it all the same. 3. It forgets the value, the node not."""
    b = Bench(runners=2)
    b.submit(spec(1))
    b.recalled("r1", 1)
    assert b.manager._tasks[TaskId(1)].runner is b.manager._pool.runners[PeerId("r2")]
    assert b.finish("r1", 1) == [to("r1", DropValues([TaskId(1)]))]
    assert b.finish("r2", 1, attempt=2) == []
    assert b.state(1) is FINISHED


def test_functions_go_with_the_last_client_that_counts_on_them() -> None:
    b = Bench()
    b.submit(spec(1))
    b.submit(spec(2), client="c2")
    assert not sent(b.gone("c"), DropValues)
    assert sent(b.gone("c2"), DropValues) == [("r1", DropValues([], [F]))]
    assert not b.manager._pool.codes
    b.event(PeerJoined(PeerId("c"), 2, "client", "execute"))
    assert sent(b.submit(spec(3)), RunTasks)[0][1].codes == [CODE]


def test_a_late_report_of_a_runner_whose_successor_is_known_gets_nothing() -> None:
    """1. Incarnation 2 of a runner has connected. 2. Only then the node's report of its incarnation 1 comes."""
    b = Bench(runners=0)
    b.event(PeerJoined(PeerId("r1"), 2, "runner", "execute"))
    b.submit(spec(1))
    assert b.start("r1") == []
    assert b.state(1) is READY
    b.end("r1")
    assert sent(b.start("r1", incarnation=2), RunTasks)


# ── Balance ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_leased_runner_counts_as_occupied() -> None:
    """1. A client has a lease on r1. 2. A task goes to r2. 3. When there is nobody else, r1 gets one too."""
    b = Bench(runners=0)
    b.start("r1", mean_s=1.0)
    b.get("c", RequestLease(RequestId(1)))
    b.start("r2", mean_s=1.0)
    assert [peer for peer, _ in sent(b.submit(spec(1)), RunTasks)] == ["r2"]
    assert [peer for peer, _ in sent(b.submit(spec(2)), RunTasks)] == ["r1"]
    assert b.submit(spec(3)) == []
    b.get("c", LeaseEnded(PeerId("r1")))
    assert b.state(3) is READY


def test_waiting_tasks_are_recalled_for_an_idle_runner() -> None:
    """1. r1 has five tasks, the first of them long; r2 is idle. 2. After a moment half of the rest is taken back, the
    last placed ones. 3. One had started meanwhile; the others go to r2, as attempts that count for nothing."""
    b = Bench()
    b.submit(*[spec(n) for n in range(1, 6)])
    assert b.manager.next_deadline() is None
    b.start("r2")
    assert b.manager.next_deadline() == pytest.approx(BALANCE_S)
    b.now = BALANCE_S / 2
    assert b.event(Tick()) == []
    four, five = TaskId(4), TaskId(5)
    assert b.flush() == [
        to("n", RecallTasks(PeerId("r1"), 1, [(four, 1), (five, 1)])), to("r1", CancelTasks([four, five])),
    ]  # fmt: skip
    [(peer, message)] = sent(b.recalled("r1", 4, 5), RunTasks)
    assert (peer, message.placements) == ("r2", [place(spec(4), 2), place(spec(5), 2)])
    assert b.manager.next_deadline() is None
    assert not b.manager._tasks[TaskId(4)].trouble.ends


def test_what_waits_for_its_inputs_or_runs_is_not_recalled_again_and_again() -> None:
    """1. A chain is on r1, r2 is idle. 2. Only the first task could be recalled; it has started. 3. The looks become
    rare."""
    b = Bench()
    b.submit(spec(1), spec(2, 1), spec(3, 2))
    b.start("r2")
    assert sent(b.flush(), RecallTasks)[0][1].tasks == [(1, 1)]
    assert b.recalled("r1", started=(1,)) == []
    pauses = []
    for _ in range(8):
        assert b.flush() == []
        pauses.append((b.manager.next_deadline() or 0.0) - b.now)
    assert pauses == sorted(pauses) and pauses[-1] == pytest.approx(BALANCE_S_MAX)
    b.finish("r1", 1, 2, 3)
    assert b.manager.next_deadline() is None


def test_a_recalled_task_with_inputs_leaves_their_keeper() -> None:
    b = Bench(runners=2)
    b.submit(spec(1))
    b.finish("r1", 1)
    b.submit(spec(2, 1))
    b.submit(spec(3, 2))
    assert b.manager._tasks[TaskId(2)].runner is b.manager._pool.runners[PeerId("r1")]
    [(_, recall)] = sent(b.flush(), RecallTasks)
    assert recall.tasks == [(2, 1)]
    effects = sent(b.recalled("r1", 2), RunTasks)
    assert [(peer, message.placements) for peer, message in effects] == [
        ("r2", [place(spec(2, 1), 2, "r1")]),
        ("r1", [place(spec(3, 2), 1, "r2")]),
    ]


def test_nobody_but_a_runner_and_its_node_gives_tasks_back() -> None:
    b = Bench()
    b.submit(spec(1))
    assert b.get("c2", TasksRecalled(PeerId("r1"), 1, [(TaskId(1), 1)])) == []
