"""The guarantees of tasks, over many simulated systems with faults. ``RASKID_SEEDS=100`` runs 100 times as many."""

from __future__ import annotations

import os

import pytest

from raskid.core.effects import TaskEnded, TaskResolved
from raskid.model.ids import PeerId, RequestId, TaskId
from raskid.testing.simulator import HEAD
from raskid.testing.tasks import TOPIC, Client, TaskWorld

FACTOR = int(os.environ.get("RASKID_SEEDS", "1"))


def seeds(count: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("seed", range(count * FACTOR))


def finish(world: TaskWorld, *clients: Client) -> None:
    """Every task ends with what it must give; after everything is released, nothing is left."""
    world.heal()
    for client in clients:
        world.run_until(client.done, 300.0, f"{client} has all of its {len(client.results)} values")
        client.check_right()
        client.release(client.results)
    world.check_empty()


def submit_some(world: TaskWorld, client: Client, count: int) -> None:
    """Tasks that need up to three of those before, at random moments."""
    for _ in range(count):
        known = list(client.right)[-12:]
        inputs = world.random.sample(known, min(len(known), world.random.choice((0, 0, 1, 2, 3))))
        client.submit(world.random.randrange(100), inputs, world.random.choice((0.001, 0.01, 0.3)))
        world.run(world.random.choice((0.0, 0.0, 0.05, 0.2)))


def crash_some_runner(world: TaskWorld, busy: bool | None = None) -> None:
    found = [worker for worker in world.workers() if busy is None or worker.busy == busy]
    if found:
        world.crash(world.random.choice(found).name)


@seeds(10)
def test_right_values_without_faults(seed: int) -> None:
    """Every task gets its right value, and nothing is left after its release."""
    world = TaskWorld(seed)
    clients = world.add_system(runners=2, nodes=seed % 3, clients="ab")
    for _ in range(4):
        for client in clients:
            submit_some(world, client, 10)
    finish(world, *clients)
    world.check(len(world.runs) == 80, f"{len(world.runs)} runs of 80 tasks")


@seeds(10)
def test_shapes(seed: int) -> None:
    """Chains, trees and fan-outs have the right values, although runners crash while they run or are idle."""
    world = TaskWorld(seed)
    (a,) = world.add_system(runners=3, nodes=seed % 2)
    chain = a.submit(1)
    for _ in range(25):
        chain = a.submit(1, [chain])
    row = [a.submit(number) for number in range(16)]
    while len(row) > 1:
        row = [a.submit(0, row[at : at + 2]) for at in range(0, len(row), 2)]
    fan = [a.submit(number, [row[0], chain]) for number in range(10)]
    a.submit(0, fan)
    for _ in range(3):
        world.run(world.random.uniform(0, 0.3))
        crash_some_runner(world, busy=world.random.random() < 0.7)
    finish(world, a)


@seeds(14)
def test_right_values_with_faults(seed: int) -> None:
    """Connections, partitions, suspended and crashed runners, clocks that jump: every value is right all the same."""
    world = TaskWorld(seed)
    clients = world.add_system(runners=2, nodes=1 + seed % 2, clients="ab")
    for _ in range(15):
        for client in clients:
            if not client.suspended:
                submit_some(world, client, 3)
        chance = world.random.random()
        if chance < 0.3:
            world.random_fault([name for name, node in world.nodes.items() if node.alive and name != HEAD], 3.0)
        elif chance < 0.5:
            crash_some_runner(world)
        elif chance < 0.6:
            world.suspend(world.random.choice(world.workers()).name, 2.0)
    finish(world, *clients)


@seeds(10)
def test_lost_nodes(seed: int) -> None:
    """Values that were lost with a node are made again when something needs them."""
    world = TaskWorld(seed, lease_s=60.0)
    (a,) = world.add_system(runners=2, nodes=2)
    submit_some(world, a, 20)
    world.run(world.random.uniform(0, 2.0))
    world.crash(world.random.choice(("n0", "n1")))
    submit_some(world, a, 10)
    if seed % 2:
        world.run_until(a.done, 300.0, "the first tasks are done")
        submit_some(world, a, 10)
    finish(world, a)


@seeds(6)
def test_ten_attempts(seed: int) -> None:
    """A task is lost for good only when ten runners died while they ran it; then it says so, and so does what needs it.
    What was placed behind it has lost nothing."""
    world = TaskWorld(seed)
    (a,) = world.add_system(runners=2)
    deadly = a.submit(1, seconds=50.0)
    after = a.submit(1, [deadly])
    fine = [a.submit(1, seconds=0.01) for _ in range(10)]
    for death in range(1, 11):
        world.run_until(lambda: any(worker.busy for worker in world.workers()), what="it runs")
        world.run(3.0)
        world.check(not a.results[deadly], f"lost after {death - 1} deaths")
        for worker in world.workers():
            if worker.busy:
                world.crash(worker.name)
    world.run_until(a.done, what="all have an outcome")
    (lost,), (failed,) = a.results[deadly], a.results[after]
    world.check(isinstance(lost, TaskEnded) and lost.code == "TaskLost", f"{lost}")
    world.check(isinstance(failed, TaskEnded) and failed.code == "InputFailed", f"{failed}")
    a.check_right(fine)
    a.release([deadly, after, *fine])
    world.check_empty()


@seeds(10)
def test_errors_and_retries(seed: int) -> None:
    """A task that raises is tried again as often as it may be; its error is the error of what needs it."""
    world = TaskWorld(seed)
    (a,) = world.add_system(runners=2, nodes=seed % 2)
    for _ in range(12):
        known = list(a.right)[-6:]
        inputs = world.random.sample(known, min(len(known), world.random.randrange(3)))
        raises = world.random.choice((0, 0, 0, 1, 2))
        a.submit(1, inputs, world.random.choice((0.001, 0.1)), raises, retries=world.random.randrange(3))
        world.run(world.random.choice((0.0, 0.1)))
        if seed % 2 and world.random.random() < 0.3:
            # What a crash undoes is no error of the task: its retries are left.
            crash_some_runner(world)
    finish(world, a)


@seeds(12)
def test_cancelled_tasks_have_one_outcome(seed: int) -> None:
    """A cancelled task gets its value or says that it was cancelled, once; what needs it fails with it."""
    world = TaskWorld(seed)
    (a,) = world.add_system(runners=2, nodes=seed % 2)
    if seed % 3 == 0:
        lease(world, a)
    cancelled: set[TaskId] = set()
    for _ in range(10):
        submit_some(world, a, 5)
        some = world.random.sample(list(a.right), 3)
        a.cancel(some)
        cancelled.update(some)
        if world.random.random() < 0.2:
            crash_some_runner(world)
    world.run_until(a.done, 300.0, "every task has an outcome")
    for task, results in a.results.items():
        if isinstance(results[0], TaskResolved):
            a.check_right([task])
        else:
            world.check(results[0].code in ("TaskCancelled", "InputFailed"), f"{results}")
            world.check(results[0].code != "TaskCancelled" or task in cancelled, f"{task} was not cancelled: {results}")
    a.release(a.results)
    world.check_empty()


@seeds(10)
def test_lost_clients_leave_nothing(seed: int) -> None:
    """Of a client that crashed nothing is left after its lease, and others are not disturbed."""
    world = TaskWorld(seed, lease_s=20.0)
    a, b = world.add_system(runners=2, nodes=seed % 2, clients="ab")
    if seed % 2:
        lease(world, b)
    submit_some(world, a, 10)
    for _ in range(10):
        b.submit(1, list(b.right)[-2:], world.random.choice((0.001, 0.3, 3.0)))
    submit_some(world, b, 10)
    world.run(world.random.uniform(0, 1.0))
    world.crash("b")
    submit_some(world, a, 10)
    if seed % 3 == 0:
        crash_some_runner(world)
    finish(world, a)


def lease(world: TaskWorld, client: Client) -> None:
    """One task after the other, until the client has a lease."""
    for _ in range(20):
        task = client.submit(1, seconds=0.0005)
        world.run_until(lambda task=task: client.done([task]), what="a task ends")  # type: ignore[misc]
        if client.submitter._lease is not None:
            return
    world.fail("no lease")


@seeds(14)
def test_direct_dispatch(seed: int) -> None:
    """Tasks that go straight to a runner get their right values, also when it is lost, and as inputs of others."""
    world = TaskWorld(seed)
    (a,) = world.add_system(runners=2, nodes=seed % 2)
    if seed % 3 == 0:
        for runner in world.workers():
            if "n0" in runner.name:
                world.apart.add(frozenset(("a", runner.name)))
    for _ in range(4):
        lease(world, a)
        for _ in range(8):
            first = a.submit(world.random.randrange(9), seconds=world.random.choice((0.0005, 0.01, 0.3)))
            if world.random.random() < 0.5:
                then = a.submit(1, [first, *list(a.right)[-4:-1]][: world.random.randrange(1, 4)])
                if world.random.random() < 0.3:
                    a.submit(1, [then])
            if world.random.random() < 0.3:
                world.run_until(a.done, what="all so far are done")
            else:
                world.run(world.random.uniform(0, 0.1))
            if world.random.random() < 0.1:
                crash_some_runner(world)
            elif world.random.random() < 0.1:
                world.random_fault(["a", *(worker.name for worker in world.workers())], 1.0)
        world.run_until(a.done, what="all so far are done")
        world.run(world.random.choice((0.0, 3.0)))
    finish(world, a)


@seeds(10)
def test_releases_at_any_moment(seed: int) -> None:
    """A value released as soon as its dependants are submitted reaches these all the same, and nothing is left."""
    world = TaskWorld(seed)
    (a,) = world.add_system(runners=2, nodes=seed % 2)
    if seed % 2:
        lease(world, a)
    kept: list[TaskId] = list(a.right)
    for _ in range(40):
        inputs = world.random.sample(kept, min(len(kept), world.random.randrange(3)))
        kept.append(a.submit(1, inputs, world.random.choice((0.0005, 0.1))))
        if len(kept) > 3:
            gone = world.random.sample(kept, 2)
            a.release(gone)
            kept = [task for task in kept if task not in gone]
        world.run(world.random.choice((0.0, 0.0, 0.02, 0.3)))
        if world.random.random() < 0.05:
            crash_some_runner(world)
    world.run_until(lambda: a.done(kept), what="the tasks that are still wanted are done")
    a.check_right(kept)
    a.release(kept)
    world.check_empty()


@seeds(10)
def test_errors_outlive_their_runners(seed: int) -> None:
    """A task raises, then the runner crashes before it has written that to anybody: the error arrives all the same."""
    world = TaskWorld(seed)
    (a,) = world.add_system(runners=2, nodes=seed % 2)
    if seed % 3 == 0:
        lease(world, a)
    for _ in range(3):
        submit_some(world, a, 3)
        raising = a.submit(1, seconds=world.random.choice((0.01, 0.3)), raises=1)
        a.submit(1, [raising])
        worker = world.run_until_recorded(raising)
        # Nothing that it wrote arrives any more: what its host found in its outbox is all there is.
        for wire in world.live_wires():
            if worker in wire.nodes:
                world.cut(wire)
        world.crash(worker.name)
        world.run(world.random.choice((0.0, 0.5)))
    finish(world, a)


@seeds(10)
def test_tasks_do_not_wait_behind_long_ones(seed: int) -> None:
    """Whatever was placed behind a long task, although it could run, runs elsewhere once a runner is idle."""
    world = TaskWorld(seed)
    (a,) = world.add_system(runners=2, nodes=seed % 2)
    if seed % 3 == 0:
        lease(world, a)
    for _ in range(60):
        a.submit(1, seconds=0.0005)
    world.run_until(a.done, what="the runners are known to be quick")
    first = a.submit(1, seconds=0.001)
    long = a.submit(1, seconds=50.0)
    short = [a.submit(1, [first] if world.random.random() < 0.3 else [], seconds=0.01) for _ in range(20)]
    world.run_until(lambda: a.done(short), 20.0, "short tasks end long before the long one")
    world.check(not a.results[long], "the long one runs")
    started = [placement.spec.task for _, _, placement in world.runs]
    world.check(len(started) == len(set(started)), "a task was started twice")
    finish(world, a)


@seeds(10)
def test_cancelling_is_exact_and_does_not_wait(seed: int) -> None:
    """Tasks behind busy runners are cancelled at once; from then on none of them runs, whatever else happens."""
    world = TaskWorld(seed)
    (a,) = world.add_system(runners=2, nodes=seed % 2)
    for _ in range(60):
        a.submit(1, seconds=0.0005)
    world.run_until(a.done, what="the runners are known to be quick")
    long = [a.submit(1, seconds=50.0) for _ in range(2 + 2 * (seed % 2))]
    behind = [a.submit(1, seconds=0.01) for _ in range(world.random.randrange(1, 30))]
    world.run(world.random.uniform(0, 0.3))
    open_ones = [task for task in behind if not a.results[task]]
    a.cancel(open_ones)
    if seed % 2 == 0:
        world.run_until(lambda: a.done(behind), 10.0, "the runners' hosts answer for them")
        world.check(not a.done(long), "the runners are busy")
    if seed % 3 == 0:
        crash_some_runner(world, busy=True)
    world.run_until(a.done, 300.0, "every task has an outcome")
    for task in behind:
        (result,) = a.results[task]
        if isinstance(result, TaskEnded):
            world.check(result.code == "TaskCancelled", f"{result}")
            later = world.runs[world.cancelled[task] :]
            world.check(all(run[2].spec.task != task for run in later), f"cancelled task {task} was started")
        else:
            a.check_right([task])
    a.release(a.results)
    world.check_empty()


def numbers_from(client: Client, subscription: RequestId, publisher: PeerId) -> list[int]:
    return [int(it.bodies[0]) for it in client.arrived[subscription] if it.publisher == publisher]


@seeds(12)
def test_busy_runners_publish(seed: int) -> None:
    """1. Tasks that look at no connection for seconds publish now and then. 2. A subscription is settled at once all
    the same, and what they publish from then on arrives, once each and in order. 3. So is its end, and nothing
    published afterwards arrives."""
    world = TaskWorld(seed)
    (a,) = world.add_system(runners=2, nodes=seed % 2)
    b = world.add_submitter("b")
    for _ in range(2 * (1 + seed % 2)):
        a.submit(1, seconds=30.0, publishes=10)
    world.run(world.random.uniform(0.5, 8.0))
    subscription, request = b.subscribe(TOPIC, capacity=world.random.choice((2, 100)), settle_s=20.0)
    world.run_until(lambda: request in b.replies, 5.0, "the nodes answer for busy runners")
    settled = world.now
    world.check(b.replies[request].silent == (), f"{b.replies[request]}")
    for _ in range(world.random.randrange(4)):
        world.run(world.random.uniform(0, 3.0))
        if seed % 3 == 0:
            world.random_fault([name for name, node in world.nodes.items() if node.alive and name != HEAD], 1.0)
    world.run(world.random.uniform(0, 10.0))
    world.heal()
    asked = world.now
    ended_request = b.unsubscribe(TOPIC, subscription, settle_s=20.0)
    world.run_until(lambda: ended_request in b.replies, 25.0, "the end is settled")
    ended = world.now
    world.run_until(a.done, 300.0, "all tasks have an outcome")
    world.run(10.0)
    for worker in world.workers():
        got = numbers_from(b, subscription, worker.name)
        said = [(at, number) for at, name, _, number in world.published if name == worker.name]
        wanted = [number for at, number in said if settled < at < asked]
        # What still waited for room when the subscription ended is left out, and counted.
        dropped = sum(it.dropped for it in b.ended.get(subscription, ()) if it.publisher == worker.name)
        missing = [number for number in wanted if number not in got]
        world.check(got == sorted(set(got)), f"{worker.name}: {got}")
        world.check(
            len(missing) <= dropped, f"{worker.name}: {missing} of {wanted} are missing, {dropped} were dropped"
        )
        late = {number for at, number in said if at > ended}
        world.check(not late & set(got), f"{worker.name} published {late} after the end; {got} arrived")
    a.release(a.results)
    world.check_empty()
