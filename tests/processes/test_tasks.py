import asyncio
import concurrent.futures
import gc
import os
import threading
import time

import pytest

import raskid
from raskid.model.errors import RemoteError, RemoteTraceback, ResultNotSendable, WaitTimeout
from tests.processes.helpers import run_script, wait_for

pytestmark = pytest.mark.slow


def add(a, b=0, *, c=0):
    return a + b + c


def increase(value):
    return value + 1


def fail(text):
    raise ValueError(text)


def fail_at_three(value):
    if value == 3:
        raise KeyError(value)
    return value * 2


def nap(seconds):
    time.sleep(seconds)
    return seconds


class Stubborn(Exception):
    """Cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


def fail_stubbornly():
    raise Stubborn("no pickle")


def total(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    return sum(map(total, tree)) if isinstance(tree, list | tuple) else tree


def test_a_task_has_positional_and_named_arguments(rk):
    assert rk.submit(pow, 2, 10).result(10) == 1024
    assert rk.submit(add, 1, 2, c=3).result(10) == 6


def test_tasks_run_in_other_processes(rk):
    assert rk.submit(os.getpid).result(10) != os.getpid()


def test_lambdas_and_closures_travel_by_value(rk):
    offset = 5
    assert rk.submit(lambda x: x + offset, 1).result(10) == 6

    def scale(x):
        return x * offset

    assert rk.submit(scale, 2).result(10) == 10
    offset = 7
    assert rk.submit(scale, 2).result(10) == 14


def test_a_script_sees_changed_globals_and_its_own_modules(tmp_path):
    (tmp_path / "beside.py").write_text("FACTOR = 3\ndef triple(x):\n    return FACTOR * x\n")
    text = """
import raskid, beside
LIMIT = 1
def over(x):
    return helper(x) > LIMIT
def helper(x):
    return beside.triple(x)
class Point:
    def __init__(self, x):
        self.x = x
def moved(point):
    return Point(point.x + 1)
with raskid.connect("local://?runners=1") as rk:
    print(rk.submit(beside.triple, 2).result(10), rk.submit(over, 1).result(10))
    LIMIT = 5
    print(rk.submit(over, 1).result(10))
    def helper(x):
        return 100
    print(rk.submit(over, 1).result(10), rk.submit(moved, Point(4)).result(10).x)
"""
    code, output, errors = run_script(text, str(tmp_path))
    assert (code, output, errors) == (0, "6 True\nFalse\nTrue 5\n", "")


def test_an_exception_carries_the_remote_traceback(rk):
    future = rk.submit(fail, "broken")
    with pytest.raises(ValueError, match="broken") as caught:
        future.result(10)
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert "in fail" in str(cause) and "(on head-" in str(cause)
    assert isinstance(future.exception(0), ValueError)


def test_an_exception_that_cannot_be_pickled_is_described(rk):
    with pytest.raises(RemoteError, match="no pickle") as caught:
        rk.submit(fail_stubbornly).result(10)
    assert caught.value.kind == "Stubborn"
    assert "fail_stubbornly" in caught.value.remote


def test_a_result_that_cannot_be_pickled_is_named(rk):
    with pytest.raises(ResultNotSendable, match="lock"):
        rk.submit(threading.Lock).result(10)


def test_an_argument_that_cannot_be_pickled_is_named(rk):
    with pytest.raises(TypeError, match="argument 1 is a lock"):
        rk.submit(add, 1, threading.Lock())
    with pytest.raises(TypeError, match="c is a lock"):
        rk.submit(add, 1, c=threading.Lock())
    with pytest.raises(TypeError, match="is a function"):
        rk.submit(3)


def test_a_future_as_argument_stands_for_its_value_at_any_depth(rk):
    one, two = rk.submit(add, 1), rk.submit(add, 2)
    assert rk.submit(total, {"a": [one, (two, 3)], "b": {"c": one}}).result(10) == 7
    assert rk.submit(add, one, b=two, c=one).result(10) == 4


def test_the_error_of_an_input_is_the_error_of_the_task(rk):
    with pytest.raises(ValueError, match="first"):
        rk.submit(add, rk.submit(fail, "first"), 1).result(10)
    with pytest.raises(ValueError, match="second"):
        rk.submit(increase, rk.submit(increase, rk.submit(fail, "second"))).result(10)


def test_chain(rk):
    future = rk.submit(add, 0)
    for _ in range(300):
        future = rk.submit(increase, future)
    assert future.result(20) == 300


def test_tree(rk):
    level = [rk.submit(add, value) for value in range(64)]
    while len(level) > 1:
        level = [rk.submit(add, level[at], level[at + 1]) for at in range(0, len(level), 2)]
    assert level[0].result(20) == sum(range(64))


def test_wide_inputs(rk):
    assert rk.submit(total, [rk.submit(add, value) for value in range(500)]).result(20) == sum(range(500))


def test_map(rk):
    result = rk.map(increase, range(1000))
    assert len(result) == 1000
    assert result[10] == 11 and result[-1] == 1000 and result[3:5] == [4, 5]
    assert rk.gather(result, 10) == list(range(1, 1001))
    assert list(result) == list(range(1, 1001))
    assert rk.gather(rk.map(pow, [2, 3, 4], [3, 2, 1]), 10) == [8, 9, 4]


def test_map_with_an_item_that_fails_keeps_the_others(rk):
    result = rk.map(fail_at_three, range(6))
    assert result[2] == 4 and result[5] == 10
    with pytest.raises(KeyError) as caught:
        result[3]
    assert "fail_at_three" in str(caught.value.__cause__)
    with pytest.raises(KeyError):
        rk.gather(result, 10)


def test_map_over_nothing(rk):
    assert rk.gather(rk.map(increase, []), 10) == []
    assert list(rk.map(increase, [])) == []


def test_map_with_futures_among_the_items(rk):
    assert rk.gather(rk.map(add, [rk.submit(add, 1), 2], [3, rk.submit(add, 4)]), 10) == [4, 6]


def test_map_names_what_cannot_be_pickled(rk):
    with pytest.raises(TypeError, match="lock"):
        rk.map(increase, [1, threading.Lock()])


def test_gather(rk):
    assert rk.gather([rk.submit(add, 1), 5, rk.submit(add, 2)], 10) == [1, 5, 2]
    with pytest.raises(ValueError, match="gathered"):
        rk.gather([rk.submit(add, 1), rk.submit(fail, "gathered")], 10)
    with pytest.raises(WaitTimeout):
        rk.gather([rk.submit(nap, 0.3)], 0.01)


def test_standard_wait_and_as_completed(rk):
    futures = [rk.submit(increase, value) for value in range(20)]
    done, rest = concurrent.futures.wait(futures, 10)
    assert len(done) == 20 and not rest
    futures = [rk.submit(increase, value) for value in range(20)] + [rk.submit(fail, "x")]
    values = [f.result() for f in concurrent.futures.as_completed(futures, 10) if not f.exception()]
    assert sorted(values) == list(range(1, 21))
    slow = rk.submit(nap, 0.2)
    assert concurrent.futures.wait([slow], 0.01).not_done == {slow}
    first = concurrent.futures.wait([slow, rk.submit(add, 1)], 10, concurrent.futures.FIRST_COMPLETED)
    assert first.done


def test_done_callbacks(rk):
    seen = []
    future = rk.submit(add, 4)
    future.add_done_callback(lambda f: seen.append(f.result()))
    wait_for(lambda: seen == [4])
    future.add_done_callback(lambda f: seen.append("late"))
    wait_for(lambda: seen == [4, "late"])


def test_await(rk):
    async def main():
        async with raskid.connect(rk.url) as session:
            one = session.submit(increase, 1)
            assert await session.submit(increase, one) == 3
            assert await session.gather([session.submit(increase, value) for value in range(10)]) == list(range(1, 11))
            assert await session.map(increase, range(10)) == list(range(1, 11))
            with pytest.raises(ValueError, match="awaited"):
                await session.submit(fail, "awaited")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await session.submit(nap, 0.2)
            assert await session.status()

    asyncio.run(main())


def test_await_of_a_blocking_session(rk):
    async def main():
        return await rk.submit(increase, 1)

    assert asyncio.run(main()) == 2


def test_a_wait_has_a_limit(rk):
    future = rk.submit(nap, 0.2)
    with pytest.raises(WaitTimeout, match="not done") as caught:
        future.result(0.01)
    assert isinstance(caught.value, TimeoutError)
    assert future.result(10) == 0.2


def test_queued_tasks_can_be_cancelled(rk):
    running = [rk.submit(nap, 0.3) for _ in range(2)]
    queued = [rk.submit(nap, 0.01) for _ in range(50)]
    dependant = rk.submit(increase, queued[-1])
    assert queued[-1].cancel() and queued[-1].cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        queued[-1].result(10)
    with pytest.raises((concurrent.futures.CancelledError, raskid.model.errors.RaskidError)):
        dependant.result(10)
    assert rk.gather(running + queued[:-1], 20)
    assert not running[0].cancel()


def test_released_futures_leave_nothing_at_the_manager(rk):
    gc.collect()
    with raskid.connect(rk.url) as session:
        futures = [session.submit(increase, value) for value in range(100)]
        session.gather(futures, 10)
        assert sum(session.status()["tasks"].values()) >= 100
        del futures
        gc.collect()
        wait_for(lambda: sum(session.status()["tasks"].values()) == 0, what="no tasks at the manager")


def test_a_session_that_ends_leaves_nothing_at_the_manager(rk):
    with raskid.connect(rk.url) as session:
        kept = [session.submit(increase, value) for value in range(100)]
        session.gather(kept, 10)
    gc.collect()
    wait_for(lambda: sum(rk.status()["tasks"].values()) == 0, what="no tasks at the manager")


def test_direct_dispatch(rk):
    with raskid.connect(rk.url) as session:
        for value in range(50):
            assert session.submit(increase, value).result(10) == value + 1
        assert session._submitter._lease is not None
        direct = session.submit(increase, 0)
        chain = direct
        for _ in range(20):
            chain = session.submit(increase, chain)
        assert chain.result(10) == 21
        assert session.submit(add, direct, chain).result(10) == 22
        broken = session.submit(fail, "direct")
        with pytest.raises(ValueError, match="direct"):
            session.submit(increase, session.submit(increase, broken)).result(10)
        with pytest.raises(ValueError, match="direct"):
            broken.result(10)
        after = session.submit(increase, broken)
        with pytest.raises(ValueError, match="direct"):
            after.result(10)
        with pytest.raises(ValueError, match="direct"):
            session.submit(increase, after).result(10)
        for value in range(20):
            assert session.submit(increase, value).result(10) == value + 1
        direct = chain = broken = after = None
        gc.collect()
        wait_for(lambda: sum(session.status()["tasks"].values()) == 0, what="no tasks at the manager")


def test_a_task_dispatched_directly_can_be_cancelled(rk):
    with raskid.connect(rk.url) as session:
        for value in range(20):
            session.submit(increase, value).result(10)
        running = [session.submit(nap, 0.2) for _ in range(2)]
        queued = [session.submit(increase, 1) for _ in range(5)]
        dependant = session.submit(increase, queued[-1])
        queued[-1].cancel()
        with pytest.raises((concurrent.futures.CancelledError, raskid.model.errors.RaskidError)):
            queued[-1].result(10)
        with pytest.raises((concurrent.futures.CancelledError, raskid.model.errors.RaskidError)):
            dependant.result(10)
        assert session.gather(running, 10) == [0.2, 0.2]


@pytest.mark.parametrize("megabytes", [1, 20])
def test_big_values_travel_both_ways(rk, megabytes):
    data = os.urandom(1024) * (1024 * megabytes)
    assert rk.submit(len, data).result(20) == len(data)
    echo = rk.submit(bytes.__add__, data, b"!")
    assert rk.submit(len, echo).result(20) == len(data) + 1
    assert echo.result(20) == data + b"!"


def test_many_threads_submit_at_once(rk):
    errors = []

    def work(base):
        try:
            futures = [rk.submit(increase, base + value) for value in range(100)]
            assert [future.result(20) for future in futures] == [base + value + 1 for value in range(100)]
            for value in range(20):
                assert rk.submit(increase, value).result(20) == value + 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors and not any(thread.is_alive() for thread in threads)


def test_waiting_in_a_callback_is_refused_or_works_and_never_hangs(rk):
    seen = []

    def callback(future):
        seen.append(rk.submit(increase, future.result()).result(10))

    rk.submit(increase, 1).add_done_callback(callback)
    wait_for(lambda: seen == [3])


def test_a_closed_session_says_so():
    session = raskid.connect("local://?runners=1")
    future = session.submit(nap, 5)
    session.close()
    with pytest.raises(raskid.model.errors.SessionClosed):
        future.result(1)
    with pytest.raises(raskid.model.errors.SessionClosed):
        session.submit(nap, 5)
