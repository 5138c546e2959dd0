from raskid.core.effects import CancelledTooLate, Introduce, Send, TaskEnded, TaskResolved
from raskid.core.events import CancelValues, PeerGone, Received, ReleaseValues, Tick
from raskid.core.lists import Lists
from raskid.core.submitter import LEASE_IDLE_S, LEASE_RETRY_S, RELEASE_S, SEQUENTIAL_MIN, Submitter
from raskid.model.ids import CodeId, IdSource, PeerId, RequestId, TaskId
from raskid.protocol.messages import (
    AskValue,
    CancelTasks,
    Code,
    LeaseEnded,
    LeaseGranted,
    PeerRef,
    Placement,
    ReleaseTasks,
    RequestLease,
    RequestRefused,
    RunTasks,
    SubmitTasks,
    TaskFailed,
    TasksCancelled,
    TaskSpec,
    TaskValue,
    ValuesAt,
)

OWN = PeerRef(PeerId("c"), 1, ("here",))
MANAGER = PeerId("m")
RUNNER = PeerRef(PeerId("n/0"), 2, ("there",))
CODE = Code(CodeId("f"), b"function")


def spec(task: int, *inputs: int, inline: tuple[tuple[TaskId, bytes], ...] = ()) -> TaskSpec:
    return TaskSpec(TaskId(task), CODE.code, b"", tuple(TaskId(name) for name in inputs), 0, 0, inline)


class Bench:
    def __init__(self) -> None:
        self.submitter = Submitter(OWN, MANAGER, IdSource(1), lists := Lists(MANAGER))
        self.lists = lists
        self.submitter.codes[CODE.code] = CODE
        self.now = 0.0
        self.next = 0

    def event(self, event: object) -> list[object]:
        effects = self.submitter.handle(event, self.now)
        self.submitter.check_invariants()
        return list(effects)

    def get(self, message: object, peer: str = "m") -> list[object]:
        return self.event(Received(PeerId(peer), message))  # type: ignore[arg-type]

    def submit(self, *specs: TaskSpec) -> list[object]:
        effects = [effect for each in specs for effect in self.submitter.submit(each, self.now)]
        self.submitter.check_invariants()
        return [*effects, *self.submitter.flush()]

    def value(self, task: int, ok: bool = True, value: bytes = b"v") -> list[object]:
        return self.get(TaskValue(TaskId(task), 1, ok, value), RUNNER.peer)

    def tick(self, seconds: float) -> list[object]:
        self.now += seconds
        return self.event(Tick())

    def lease(self) -> None:
        assert self.get(LeaseGranted(RequestId(1), RUNNER, 2)) == [Introduce(RUNNER)]


def resolved(task: int, ok: bool = True, value: bytes = b"v") -> TaskResolved:
    return TaskResolved(TaskId(task), ok, value)


def cancelled(task: int) -> TaskEnded:
    return TaskEnded(TaskId(task), "TaskCancelled", f"task #{task} was cancelled before it started")


def test_batch_carries_code_once() -> None:
    bench = Bench()
    assert bench.submit(spec(1), spec(2, 1)) == [Send(MANAGER, SubmitTasks([spec(1), spec(2, 1)], [CODE]))]
    assert bench.submit(spec(3)) == [Send(MANAGER, SubmitTasks([spec(3)], []))]


def test_first_outcome_counts() -> None:
    bench = Bench()
    bench.submit(spec(1), spec(2))
    assert bench.value(1) == [resolved(1)]
    assert bench.value(1) == []
    assert bench.get(TaskFailed(TaskId(2), "TaskLost", "why")) == [TaskEnded(TaskId(2), "TaskLost", "why")]
    assert bench.value(2) == []
    assert not bench.submitter.out


def test_releases_are_collected() -> None:
    bench = Bench()
    bench.submit(spec(1))
    bench.value(1)
    assert bench.event(ReleaseValues([TaskId(1)])) == []
    assert bench.submitter.next_deadline() == RELEASE_S
    assert bench.tick(RELEASE_S) == [Send(MANAGER, ReleaseTasks([TaskId(1)]))]


def test_values_elsewhere_are_asked_for() -> None:
    bench = Bench()
    bench.submit(spec(1))
    keeper = PeerRef(PeerId("n"), 1)
    asked = [Introduce(keeper), Send(keeper.peer, AskValue(TaskId(1), OWN))]
    assert bench.get(ValuesAt(keeper, [TaskId(1), TaskId(2)])) == asked


def test_lease_is_asked_for_and_given_back() -> None:
    bench = Bench()
    for number in range(1, SEQUENTIAL_MIN + 1):
        effects = bench.submit(spec(number))
        bench.value(number)
    assert isinstance(effects[0], Send) and isinstance(effects[0].message, RequestLease)
    bench.lease()
    assert bench.tick(LEASE_IDLE_S) == [Send(MANAGER, LeaseEnded(RUNNER.peer, "not used"))]


def test_after_a_refusal_a_lease_is_asked_for_again_later() -> None:
    bench = Bench()

    def asked() -> list[RequestId]:
        requests = []
        for _ in range(SEQUENTIAL_MIN + 1):
            number = bench.next = bench.next + 1
            effects = bench.submit(spec(number))
            bench.value(number)
            messages = [effect.message for effect in effects if isinstance(effect, Send)]
            requests += [message.request for message in messages if isinstance(message, RequestLease)]
        return requests

    (request,) = asked()
    assert asked() == [], "one that is not answered yet is not asked for twice"
    refused = Received(MANAGER, RequestRefused(request, "Full", "there is no runner to lease"))
    assert bench.lists.handle(refused, bench.now) == []
    assert asked() == []
    bench.now += LEASE_RETRY_S
    assert len(asked()) == 1


def test_direct_task() -> None:
    bench = Bench()
    bench.lease()
    run = RunTasks([Placement(spec(1), 1, OWN.peer)], [CODE], [OWN])
    assert bench.submit(spec(1)) == [Send(RUNNER.peer, run)]
    assert bench.submit(spec(2)) == [Send(MANAGER, SubmitTasks([spec(2)], [CODE]))], "not behind one that runs"
    bench.value(1)
    bench.value(2)
    assert bench.submit(spec(3)) == [Send(RUNNER.peer, RunTasks([Placement(spec(3), 1, OWN.peer)]))]


def test_dependant_of_a_direct_task_waits_and_takes_its_value_along() -> None:
    bench = Bench()
    bench.lease()
    bench.submit(spec(1))
    assert bench.submit(spec(2, 1)) == []
    sent = spec(2, inline=((TaskId(1), b"v"),))
    assert bench.value(1) == [resolved(1), Send(MANAGER, SubmitTasks([sent], [CODE]))]


def test_dependant_of_a_direct_error_fails_here() -> None:
    bench = Bench()
    bench.lease()
    bench.submit(spec(1), spec(2, 1))
    assert bench.value(1, False, b"error") == [resolved(1, False, b"error"), resolved(2, False, b"error")]


def test_releases_wait_for_what_is_held_back() -> None:
    bench = Bench()
    bench.submit(spec(1))
    bench.value(1)
    bench.lease()
    bench.submit(spec(2), spec(3, 1, 2))
    bench.event(ReleaseValues([TaskId(1), TaskId(2)]))
    assert bench.tick(RELEASE_S) == []
    bench.value(2)
    assert bench.tick(RELEASE_S) == [Send(MANAGER, ReleaseTasks([TaskId(1), TaskId(2)]))]
    assert not bench.submitter._direct_values


def test_lost_lease_submits_again() -> None:
    bench = Bench()
    bench.lease()
    bench.submit(spec(1), spec(2, 1))
    assert bench.event(PeerGone(RUNNER.peer, 1)) == []
    assert bench.event(PeerGone(RUNNER.peer, 2)) == [
        Send(MANAGER, SubmitTasks([spec(1)], [CODE], 2)), Send(MANAGER, SubmitTasks([spec(2, 1)], [])),
    ]  # fmt: skip


def test_cancel_goes_to_whoever_has_the_task() -> None:
    bench = Bench()
    bench.lease()
    bench.submit(spec(2))
    bench.submit(spec(1))
    assert bench.event(CancelValues([TaskId(1), TaskId(2), TaskId(3)])) == [
        Send(RUNNER.peer, CancelTasks([TaskId(2)])), Send(MANAGER, CancelTasks([TaskId(1)])),
    ]  # fmt: skip
    assert bench.get(TasksCancelled([TaskId(2)]), RUNNER.peer) == [cancelled(2)]
    assert bench.get(TasksCancelled([TaskId(2)]), RUNNER.peer) == []


def test_cancel_of_a_direct_task_frees_what_waits_for_it() -> None:
    bench = Bench()
    bench.lease()
    bench.submit(spec(1), spec(2, 1))
    bench.event(CancelValues([TaskId(1)]))
    effects = bench.get(TasksCancelled([TaskId(1)]), RUNNER.peer)
    assert effects == [cancelled(1), Send(MANAGER, SubmitTasks([spec(2, 1)], [CODE]))]


def test_cancel_of_what_is_held_back() -> None:
    bench = Bench()
    bench.lease()
    bench.submit(spec(1), spec(2, 1))
    assert bench.event(CancelValues([TaskId(2)])) == [cancelled(2)]
    assert bench.value(1) == [resolved(1)]


def test_a_task_that_was_cancelled_too_late_is_told_and_keeps_its_outcome() -> None:
    b = Bench()
    b.submit(spec(1), spec(2))
    assert b.get(TasksCancelled([], [TaskId(2), TaskId(99)])) == [CancelledTooLate(TaskId(2))]
    assert b.value(2) == [resolved(2)]


def test_codes_are_forgotten_but_for_those_that_a_task_may_still_take_along() -> None:
    """1. A task went straight to a runner, which may be lost. 2. Its code stays, others go and can come again."""
    b = Bench()
    other = Code(CodeId("g"), b"other")
    b.lease()
    b.submit(spec(1))
    b.submitter.codes[other.code] = other
    b.submitter.forget_codes()
    assert list(b.submitter.codes) == [CODE.code]
    b.value(1)
    b.submitter.forget_codes()
    assert not b.submitter.codes
