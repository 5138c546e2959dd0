from raskid.core.askers import ASKERS_S
from raskid.core.effects import ChangesAnnounced, Forget, Introduce, Recall, RunnerGivenUp, Send, StartRunner
from raskid.core.events import AddRunner, OutcomesRead, PeerJoined, RecallDone, Received, RunnerExited, Tick
from raskid.core.node import FAILED_STARTS_MAX, QUICK_END_S, RESTART_S, Node
from raskid.model.ids import PeerId, TaskId
from raskid.protocol.messages import (
    KIND_RUNNER,
    ROLE_EXECUTE,
    AcknowledgeList,
    AskValue,
    ChangesSent,
    DropValues,
    PeerRef,
    RecallTasks,
    RunnerEnded,
    RunnerStarted,
    TaskOutcome,
    TasksFinished,
    TasksRecalled,
    TaskValue,
)

RUNNER = PeerId("n/0")
MANAGER = PeerId("m")
ASKER = PeerRef(PeerId("c"), 1, ("there",))


class Bench:
    def __init__(self) -> None:
        self.node = Node(PeerId("n"), MANAGER)
        self.now = 0.0
        assert self.event(AddRunner()) == [StartRunner(RUNNER, 1)]

    def event(self, event: object) -> list[object]:
        effects = self.node.handle(event, self.now)
        self.node.check_invariants()
        return list(effects)

    def get(self, message: object) -> list[object]:
        return self.event(Received(PeerId("c"), message))  # type: ignore[arg-type]

    def join(self, incarnation: int = 1) -> list[object]:
        return self.event(PeerJoined(RUNNER, incarnation, KIND_RUNNER, ROLE_EXECUTE, ("r",), "host", 7))

    def exit(self, incarnation: int) -> list[object]:
        return self.event(RunnerExited(RUNNER, incarnation, "killed"))


def test_runner_is_reported_when_it_joined() -> None:
    bench = Bench()
    started = RunnerStarted(PeerRef(RUNNER, 1, ("r",)), 7, "host")
    assert bench.join() == [Send(MANAGER, started)]
    assert bench.join(2) == []


def test_ended_runner_is_started_again() -> None:
    bench = Bench()
    bench.join()
    bench.now = QUICK_END_S
    assert bench.exit(1) == [
        Forget(RUNNER, 1, "killed"), Send(MANAGER, RunnerEnded(RUNNER, 1, "killed")), StartRunner(RUNNER, 2),
    ]  # fmt: skip
    assert bench.exit(1) == []


def test_runner_that_never_joins_is_given_up() -> None:
    bench = Bench()
    bench.exit(1)
    for incarnation in range(2, FAILED_STARTS_MAX):
        assert len(bench.exit(incarnation)) == 2
        bench.now += RESTART_S
        assert bench.node.next_deadline() is not None
        assert bench.event(Tick()) == [StartRunner(RUNNER, incarnation + 1)]
    assert bench.exit(FAILED_STARTS_MAX)[-1] == RunnerGivenUp(RUNNER, "killed")
    assert not bench.node.runners


def test_runner_that_joins_is_never_given_up() -> None:
    bench = Bench()
    bench.exit(1)
    for incarnation in range(2, 4 * FAILED_STARTS_MAX):
        bench.node.runners[RUNNER].ref = PeerRef(RUNNER, incarnation)
        bench.exit(incarnation)
        bench.now += RESTART_S
        bench.event(Tick())
    assert RUNNER in bench.node.runners


def test_outcomes_are_reported_and_values_kept() -> None:
    bench = Bench()
    ask = AskValue(TaskId(1), ASKER)
    assert bench.get(ask) == [Introduce(ASKER)]
    outcomes = [
        TaskOutcome(TaskId(1), 2, True, 3, 0.5, RUNNER, PeerId("c")),
        TaskOutcome(TaskId(2), 1, False, 0, 0.5, RUNNER, PeerId("c")),
    ]
    entries = [(1, 2, True, 0.5, "c", b"one", False, True), (2, 1, False, 0.5, "c", b"", False, True)]
    assert bench.event(OutcomesRead(RUNNER, 1, entries)) == [
        Send(ASKER.peer, TaskValue(TaskId(1), 2, True, b"one")), Send(MANAGER, TasksFinished(outcomes)),
    ]  # fmt: skip
    assert list(bench.node.values) == [1]
    assert bench.get(ask) == [Introduce(ASKER), Send(ASKER.peer, TaskValue(TaskId(1), 0, True, b"one"))]
    bench.get(DropValues([TaskId(1)]))
    assert not bench.node.values


def test_askers_are_forgotten_in_the_end() -> None:
    bench = Bench()
    bench.get(AskValue(TaskId(1), ASKER))
    assert bench.node.next_deadline() == ASKERS_S
    bench.now = ASKERS_S
    bench.event(Tick())
    assert not bench.node._askers.by_task and bench.node.next_deadline() is None


def test_the_end_of_a_runner_says_what_it_was_running() -> None:
    bench = Bench()
    bench.join()
    effects = bench.event(RunnerExited(RUNNER, 1, "killed", TaskId(7)))
    assert effects[1] == Send(MANAGER, RunnerEnded(RUNNER, 1, "killed", TaskId(7)))


def test_recalls_go_through_the_outbox_of_the_incarnation_meant() -> None:
    bench = Bench()
    bench.join()
    pairs = [(TaskId(1), 1), (TaskId(2), 3)]
    assert bench.get(RecallTasks(RUNNER, 1, pairs)) == [Recall(RUNNER, 1, pairs)]
    assert bench.get(RecallTasks(RUNNER, 2, pairs)) == []
    assert bench.event(RecallDone(RUNNER, 1, pairs[1:], pairs[:1])) == [
        Send(MANAGER, TasksRecalled(RUNNER, 1, pairs[1:], pairs[:1]))
    ]


def test_a_task_left_out_at_the_last_moment_is_no_outcome() -> None:
    bench = Bench()
    assert bench.event(OutcomesRead(RUNNER, 1, [(1, 2, False, 0.0, "c", b"", False, False)])) == [
        Send(MANAGER, TasksRecalled(RUNNER, 1, [(TaskId(1), 2)]))
    ]
    assert not bench.node.values


def test_a_node_answers_for_a_runner_that_has_changes_to_read() -> None:
    """Only the hub, which is where the manager is, may say so; and only of a runner that runs."""
    bench = Bench()
    changes = ChangesSent(RUNNER, 1, 3, "reactions:t", 8)
    assert bench.event(Received(MANAGER, changes)) == [
        ChangesAnnounced(RUNNER, 1, 3),
        Send(MANAGER, AcknowledgeList("reactions:t", 8, RUNNER)),
    ]
    assert bench.event(Received(PeerId("c"), changes)) == []
    assert bench.event(Received(MANAGER, ChangesSent(RUNNER, 2, 3, "reactions:t", 8))) == []
    assert bench.event(Received(MANAGER, ChangesSent(PeerId("n/9"), 1, 3, "reactions:t", 8))) == []
