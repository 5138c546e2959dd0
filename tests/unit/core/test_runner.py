from raskid.core.askers import ASKERS_S
from raskid.core.effects import DropCodes, Introduce, Record, Send
from raskid.core.events import PeerGone, RecallsRead, Received, TaskDone, Tick
from raskid.core.runner import ASK_NODE_S, RECALLED_MAX, Runner
from raskid.model.ids import CodeId, PeerId, TaskId
from raskid.protocol.messages import (
    AskValue,
    CancelTasks,
    Code,
    DropValues,
    PeerRef,
    Placement,
    RunTasks,
    TasksCancelled,
    TaskSpec,
    TasksRecalled,
    TaskValue,
)

OWN = PeerRef(PeerId("n/0"), 1, ("here",))
ASKER = PeerRef(PeerId("n/1"), 1, ("there",))
F = CodeId("f")


def place(task: int, *inputs: str, attempt: int = 1, retries: int = 0, raised: int = 0) -> Placement:
    """Inputs are given as "2@keeper"."""
    pairs = [text.split("@") for text in inputs]
    spec = TaskSpec(TaskId(task), F, b"", tuple(TaskId(int(name)) for name, _ in pairs), 0, retries)
    return Placement(spec, attempt, PeerId("c"), tuple(PeerId(keeper) for _, keeper in pairs), raised)


class Bench:
    def __init__(self) -> None:
        self.runner = Runner(OWN)
        self.now = 0.0

    def event(self, event: object) -> list[object]:
        effects = self.runner.handle(event, self.now)
        self.runner.check_invariants()
        return list(effects)

    def get(self, message: object, peer: str = "m") -> list[object]:
        return self.event(Received(PeerId(peer), message))  # type: ignore[arg-type]

    def run(self, *placements: Placement, peer: str = "m") -> list[object]:
        return self.get(RunTasks(list(placements), [Code(F, b"function")]), peer)

    def next(self) -> int | None:
        placement = self.runner.next_task()
        self.runner.check_invariants()
        return None if placement is None else placement.spec.task

    def done(self, ok: bool = True, value: bytes = b"v") -> list[object]:
        return self.event(TaskDone(ok, value, 0.5))


def test_task_runs_and_its_value_goes_to_the_outbox_first() -> None:
    bench = Bench()
    assert bench.run(place(1)) == []
    assert bench.runner.codes == {F: b"function"}
    assert bench.next() == 1
    record = Record(TaskId(1), 1, True, 0.5, PeerId("c"), b"v")
    assert bench.done() == [record, Send(PeerId("c"), TaskValue(TaskId(1), 1, True, b"v"))]
    assert bench.next() is None
    bench.get(DropValues([TaskId(1)]))
    assert not bench.runner.values


def test_record_of_a_task_from_its_client_says_so() -> None:
    bench = Bench()
    bench.run(place(1), peer="c")
    bench.next()
    record = bench.done()[0]
    assert isinstance(record, Record) and record.direct


def test_missing_input_is_asked_of_its_keeper_and_then_of_the_node() -> None:
    bench = Bench()
    ask = AskValue(TaskId(2), OWN)
    assert bench.run(place(1, "2@n2/0")) == [Send(PeerId("n2/0"), ask)]
    assert bench.next() is None
    assert bench.runner.next_deadline() == ASK_NODE_S
    bench.now = ASK_NODE_S
    assert bench.event(Tick()) == [Send(PeerId("n2"), ask)]
    assert bench.get(TaskValue(TaskId(2), 0, True, b"two")) == []
    assert bench.runner.next_deadline() is None
    assert bench.next() == 1
    assert bench.runner.value(TaskId(2)).data == b"two"
    bench.done()
    assert not bench.runner.inputs


def test_input_made_here_needs_no_message() -> None:
    bench = Bench()
    assert bench.run(place(2), place(1, "2@n/0")) == []
    assert bench.next() == 2
    bench.done()
    assert bench.next() == 1


def test_input_that_is_placed_again_is_asked_of_the_new_keeper() -> None:
    bench = Bench()
    bench.run(place(1, "2@"))
    assert bench.runner.next_deadline() is None
    assert bench.run(place(1, "2@n/1")) == [Send(PeerId("n/1"), AskValue(TaskId(2), OWN))]
    assert bench.run(place(1, "2@n/1")) == []


def test_error_that_is_tried_again_is_shown_to_nobody() -> None:
    bench = Bench()
    bench.run(place(1, retries=1))
    bench.next()
    assert bench.done(False, b"error") == [Record(TaskId(1), 1, False, 0.5, PeerId("c"), b"")]
    assert not bench.runner.values
    bench.run(place(1, attempt=2, retries=1, raised=1))
    bench.next()
    assert bench.done(False, b"error")[1] == Send(PeerId("c"), TaskValue(TaskId(1), 2, False, b"error"))


def test_outcome_of_an_earlier_attempt_is_left_out() -> None:
    bench = Bench()
    bench.run(place(1))
    bench.next()
    bench.run(place(1, attempt=2))
    assert bench.done() == []
    assert bench.next() == 1


def test_failed_input_is_found() -> None:
    bench = Bench()
    bench.run(place(1, "2@n/1"))
    bench.get(TaskValue(TaskId(2), 1, False, b"error"))
    assert bench.next() == 1
    running = bench.runner.running
    assert running is not None
    failed = bench.runner.failed_input(running)
    assert failed is not None and failed.data == b"error"


def test_cancelled_unless_it_runs() -> None:
    bench = Bench()
    bench.run(place(1), place(2), place(3, "9@n/1"))
    bench.next()
    cancelled = bench.get(CancelTasks([TaskId(1), TaskId(2), TaskId(3), TaskId(4)]))
    assert cancelled == [Send(PeerId("m"), TasksRecalled(PeerId("n/0"), 1, [(TaskId(2), 1), (TaskId(3), 1)]))]
    bench.done()
    assert bench.next() is None


def test_a_direct_task_is_cancelled_for_its_client() -> None:
    bench = Bench()
    bench.run(place(1), peer="c")
    assert bench.get(CancelTasks([TaskId(1)]), peer="c") == [Send(PeerId("c"), TasksCancelled([TaskId(1)]))]
    assert bench.next() is None


def test_askers_get_the_value_now_or_later() -> None:
    bench = Bench()
    bench.run(place(1))
    ask = AskValue(TaskId(1), ASKER)
    assert bench.get(ask) == [Introduce(ASKER)]
    bench.next()
    assert bench.done()[2] == Send(ASKER.peer, TaskValue(TaskId(1), 1, True, b"v"))
    assert bench.get(ask) == [Introduce(ASKER), Send(ASKER.peer, TaskValue(TaskId(1), 0, True, b"v"))]


def test_askers_of_what_is_not_here_are_forgotten() -> None:
    bench = Bench()
    bench.run(place(1))
    bench.get(AskValue(TaskId(1), ASKER))
    bench.get(AskValue(TaskId(2), ASKER))
    for _ in range(3):
        bench.now += ASKERS_S
        bench.event(Tick())
    assert list(bench.runner._askers.by_task) == [1]


def test_a_direct_task_that_raises_is_tried_again_here() -> None:
    bench = Bench()
    bench.run(place(1, retries=1), peer="c")
    assert bench.next() == 1
    assert bench.done(False, b"error") == []
    assert bench.next() == 1
    assert bench.done(False, b"error")[1] == Send(PeerId("c"), TaskValue(TaskId(1), 1, False, b"error"))


def test_a_placement_that_comes_again_after_its_end_does_not_run_again() -> None:
    """1. A task ends. 2. Its placement comes again, with other keepers. 3. A later attempt does run."""
    bench = Bench()
    bench.run(place(1, "2@n/0"), place(2))
    assert bench.next() == 2
    bench.done()
    assert bench.next() == 1
    bench.done()
    assert bench.run(place(1, "2@n/1")) == []
    assert bench.next() is None
    bench.run(place(1, "2@n/0", attempt=2))
    assert bench.next() == 1


def recall(bench: Bench, *pairs: tuple[int, int]) -> list[object]:
    return bench.event(RecallsRead(list(pairs)))


def not_started(task: int, attempt: int) -> Record:
    return Record(TaskId(task), attempt, False, 0.0, PeerId(""), b"", started=False)


def test_recalled_tasks_are_left_out_also_when_they_come_later() -> None:
    bench = Bench()
    bench.run(place(1), place(2))
    assert recall(bench, (2, 1), (3, 2)) == [not_started(2, 1), not_started(3, 2)]
    bench.run(place(3), place(3, attempt=2), place(2))
    assert bench.next() == 1
    bench.done()
    assert bench.next() is None
    bench.run(place(3, attempt=3))
    assert bench.next() == 3


def test_a_task_recalled_at_its_very_start_says_so() -> None:
    bench = Bench()
    bench.run(place(1), place(2))
    assert bench.next() == 1
    assert recall(bench, (1, 1)) == [not_started(1, 1)]
    assert bench.runner.running is None
    assert bench.next() == 2


def test_a_recalled_attempt_does_not_run_when_a_later_one_has_taken_its_place() -> None:
    """1. Attempt 1 is about to start. 2. Attempt 3 of the same task comes. 3. Attempt 1 turns out to be recalled: it
    does not run, and attempt 3 does."""
    bench = Bench()
    bench.run(place(1))
    assert bench.next() == 1
    bench.run(place(1, attempt=3))
    assert recall(bench, (1, 1)) == [not_started(1, 1)]
    assert bench.runner.running is None
    assert bench.next() == 1
    assert bench.runner.running is not None and bench.runner.running.attempt == 3


def test_a_later_attempt_that_is_recalled_says_so_also_when_it_comes_later() -> None:
    """1. Attempt 1 raises, and is tried again here. 2. The node, to which it still looks as if the task were running,
    recalls attempt 2 and says that it runs. 3. So the runner says that it does not, and leaves it out when it comes."""
    bench = Bench()
    bench.run(place(1))
    assert bench.next() == 1
    bench.done(ok=False)
    assert recall(bench, (1, 2)) == [not_started(1, 2)]
    bench.run(place(1, attempt=2))
    assert bench.next() is None


def test_what_is_remembered_of_recalls_goes_with_the_value_and_has_a_bound() -> None:
    bench = Bench()
    recall(bench, (1, 1))
    bench.get(DropValues([TaskId(1)]))
    assert not bench.runner._recalled
    recall(bench, *((number, 1) for number in range(RECALLED_MAX + 5)))
    assert len(bench.runner._recalled) == RECALLED_MAX


def test_functions_go_when_nobody_counts_on_them() -> None:
    """1. The manager and a client bring the same function. 2. It goes when both have given it up."""
    bench = Bench()
    bench.run(place(1))
    bench.run(place(2), peer="c")
    assert bench.get(DropValues([], [F])) == []
    assert bench.event(PeerGone(PeerId("c"), 1)) == [DropCodes([F])]
    assert not bench.runner.codes


def test_a_client_that_is_gone_takes_its_direct_tasks_along() -> None:
    bench = Bench()
    bench.run(place(1), peer="c")
    bench.run(place(2), peer="c")
    bench.run(place(3))
    assert bench.next() == 1
    bench.event(PeerGone(PeerId("c"), 1))
    bench.done()
    assert bench.next() == 3
