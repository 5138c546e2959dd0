import asyncio
import concurrent.futures
import ctypes
import gc
import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest

import raskid
from raskid.launch import local
from raskid.model.errors import RemoteError, RemoteTraceback, ResultNotSendable, TaskLost, WaitTimeout
from tests.processes.helpers import run_script, script, wait_for

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


# ── What a task raises ──


def count_calls(path_and_item):
    path, item = path_and_item
    with open(path, "a") as file:
        file.write(f"{item}\n")
    if item == 3:
        raise KeyError(item)
    return threading.Lock() if item == 5 else item


def test_no_item_of_a_map_runs_twice(rk, tmp_path):
    path = str(tmp_path / "calls")
    result = rk.map(count_calls, [(path, item) for item in range(300)])
    with pytest.raises(KeyError):
        rk.gather(result, 20)
    with pytest.raises(ResultNotSendable, match="count_calls returned a lock"):
        result[5]
    assert result[4] == 4
    with open(path) as file:
        assert sorted(map(int, file)) == list(range(300))


def test_exceptions_of_the_script_are_caught_by_their_class(tmp_path):
    """1. A task raises an exception of the script's, whose __init__ takes two arguments. 2. `except` catches it.
    3. What would end the script is an error instead. 4. A task has the script's name, not its arguments."""
    text = """
import sys, raskid
class Broken(Exception):
    def __init__(self, part, code):
        super().__init__(f"{part} is broken")
        self.code = code
def work():
    raise Broken("pump", 7)
def leave():
    sys.exit(3)
def interrupted():
    raise KeyboardInterrupt
with raskid.connect("local://?runners=1") as rk:
    for _ in range(2):
        try:
            rk.submit(work).result(10)
        except Broken as error:
            print(error, error.code, "in work" in str(error.__cause__))
    for function in (leave, interrupted):
        try:
            rk.submit(function).result(10)
        except raskid.model.errors.RemoteError as error:
            print(error.kind, str(error).split(" on ")[0])
    print(rk.submit(lambda: (sys.argv == [__import__("os").path.abspath(sys.argv[0])], len(sys.argv))).result(10))
"""
    code, output, errors = run_script(text, str(tmp_path))
    expected = (
        "pump is broken 7 True\npump is broken 7 True\nSystemExit leave called sys.exit(3)\n"
        "KeyboardInterrupt interrupted was interrupted (KeyboardInterrupt)\n(True, 1)\n"
    )
    assert (code, output, errors) == (0, expected, "")


def test_a_function_that_uses_the_session_says_what_to_do(tmp_path):
    text = """
import raskid
def nested():
    return rk.submit(abs, -1).result(5)
with raskid.connect("local://?runners=1") as rk:
    try:
        rk.submit(nested)
    except TypeError as error:
        print(error)
"""
    code, output, errors = run_script(text, str(tmp_path))
    assert (code, errors) == (0, "")
    assert output.startswith("the function nested cannot be sent: 'rk', which nested uses, is a Session")
    assert "inside a task, connect with raskid.connect('local://" in output


# ── Cancelling ──


def test_cancel_answers_at_once(rk):
    """1. Both runners are busy for a second. 2. A queued task is cancelled, a running one is not: both at once."""
    rk.wait_runners(2)
    with raskid.connect(rk.url) as session:
        running = [session.submit(nap, 1.0) for _ in range(2)]
        queued = [session.submit(nap, 0.01) for _ in range(20)]
        wait_for(lambda: sum(runner["outstanding"] > 0 for runner in rk.runners()) == 2)
        began = time.monotonic()
        assert queued[0].cancel()
        assert session.cancel(queued[1:]) == 19
        assert not running[0].cancel() and not running[0].cancelled()
        assert time.monotonic() - began < 0.5
        assert session.gather(running, 10) == [1.0, 1.0]


# ── Output ──


def test_what_tasks_print_comes_out_of_the_script(tmp_path):
    text = """
import sys, raskid
def speak(word):
    print("says", word)
    print("warns", word, file=sys.stderr)
with raskid.connect("local://?runners=1") as rk:
    for word in ("one", "two"):
        rk.submit(speak, word).result(10)
        print("done", word, flush=True)
"""
    code, output, errors = run_script(text, str(tmp_path))
    assert (code, errors) == (0, "warns one\nwarns two\n")
    assert output.splitlines() == ["says one", "done one", "says two", "done two"]


def test_much_output_is_kept_nowhere(tmp_path):
    """1. Tasks write 50 MB to either stream. 2. All comes out. 3. Neither head nor fork server holds it in a file."""
    text = """
import os, sys, raskid
def flood():
    line = "x" * 1023 + "\\n"
    for _ in range(25 * 1024):
        sys.stdout.write(line)
        sys.stderr.write(line)
def held():
    import psutil
    total = 0
    for process in psutil.Process(os.getppid()).parents()[:1] + [psutil.Process(os.getppid())]:
        for fd in os.listdir(f"/proc/{process.pid}/fd"):
            try:
                if "deleted" in os.readlink(f"/proc/{process.pid}/fd/{fd}"):
                    total += os.stat(f"/proc/{process.pid}/fd/{fd}").st_size
            except OSError:
                pass
    return total
with raskid.connect("local://?runners=2") as rk:
    rk.gather([rk.submit(flood) for _ in range(2)], 60)
    limit = 8 << 20
    if (size := rk.submit(held).result(10)) > limit:
        print("kept", size)
"""
    with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
        process = script(text, str(tmp_path), stdout=out, stderr=err)
        assert process.wait(60) == 0
    assert (tmp_path / "out").stat().st_size == (tmp_path / "err").stat().st_size == 50 << 20


def die_with_words(number):
    sys.stderr.write(f"item {number} was too much\n")
    os._exit(3)


def test_the_last_words_of_a_runner_stand_in_the_error(own):
    with pytest.raises(TaskLost, match=r"exit code 3; the last it wrote:\nitem 7 was too much"):
        own.submit(die_with_words, 7).result(30)
    result = own.map(die_with_words, [8])
    with pytest.raises(TaskLost, match=r"item 8 was too much(?s:.*)item 0 of the map of die_with_words"):
        result[0]


def crash():
    ctypes.string_at(0)


def test_a_crash_shows_where(own):
    with pytest.raises(TaskLost, match=r"SIGSEGV(?s:.*)Segmentation fault(?s:.*) in crash"):
        own.submit(crash).result(30)


def test_runners_that_cannot_start_say_why(tmp_path):
    """1. The directory of the script goes away. 2. Its runner is lost, and no other one can start. 3. The error holds
    the traceback."""
    text = """
import os, raskid
os.mkdir("gone")
os.chdir("gone")
rk = raskid.connect("local://?runners=1")
rk.wait_runners(1)
os.chdir("..")
os.rmdir("gone")
try:
    rk.submit(os._exit, 1).result(30)
except raskid.model.errors.SessionClosed as error:
    print(error)
"""
    code, output, _ = run_script(text, str(tmp_path), 40.0)
    assert code == 0
    assert "no runner can be started: exit code 1" in output
    assert "os.chdir(settings.cwd)" in output and "FileNotFoundError" in output


def test_a_system_that_stays_writes_output_to_its_log(tmp_path, runtime):
    """1. A system is started that stays. 2. What its runners write stands in its log, with their names."""
    handle, _ = local.start_head(1, "stays", watch_input=False)
    try:
        with raskid.connect("local://stays") as session:
            session.submit(print, "printed by a task").result(10)
            session.submit(warn, "warned by a task").result(10)
            log = Path(runtime, "stays", "log")
            wait_for(lambda: "warned by a task" in log.read_text())
            assert re.search(r"^head-\w+/0: printed by a task$", log.read_text(), re.M)
            session.end_system()
    finally:
        handle.stop()


def warn(text):
    print(text, file=sys.stderr)


# ── Code ──


def test_a_system_that_stays_runs_the_source_that_the_script_has(rk, tmp_path):
    """1. A script attaches from a directory of its own: its modules are found. 2. A module is edited: the next run of
    the script has the new source. 3. A script in another directory has its own module of that name."""
    text = f"""
import raskid, raskid_own_library
with raskid.connect({rk.url!r}) as session:
    print(session.gather(session.map(raskid_own_library.value, range(4)), 10))
"""
    here, there = tmp_path / "here", tmp_path / "there"
    for directory, value in ((here, 1), (here, 22), (there, 333), (here, 22)):
        directory.mkdir(exist_ok=True)
        (directory / "raskid_own_library.py").write_text(f"def value(item): return {value}\n")
        code, output, errors = run_script(text, str(directory))
        assert (code, output, errors) == (0, f"{[value] * 4}\n", "")


def test_source_that_changed_under_the_script_is_not_run(rk, tmp_path):
    """1. A script imports a module, which is edited before its first task. 2. The task is refused, not run."""
    text = f"""
import raskid, raskid_own_edited
with raskid.connect({rk.url!r}) as session:
    code = session._book.code_of(raskid_own_edited.value)
    with open("raskid_own_edited.py", "w") as file:
        file.write("def value(): return 'edited'")
    try:
        print(session.submit(raskid_own_edited.value).result(10))
    except raskid.model.errors.StaleCode as error:
        print(str(error)[:30], "was changed after" in str(error))
"""
    (tmp_path / "raskid_own_edited.py").write_text("def value(): return 1\n")
    code, output, errors = run_script(text, str(tmp_path), cwd=str(tmp_path))
    assert (code, output, errors) == (0, "the module 'raskid_own_edited' True\n", "")


def nap_here(seconds):
    time.sleep(seconds)
    return os.getpid()


def warm(session):
    """Many short tasks, after which much may be placed on a runner at once."""
    session.gather([session.submit(increase, value) for value in range(2000)], 20)


def test_the_first_tasks_of_a_session_run_side_by_side():
    with raskid.connect("local://?runners=2") as session:
        assert len(set(session.gather([session.submit(nap_here, 0.5) for _ in range(2)], 10))) == 2


def test_a_task_is_not_put_behind_one_that_went_straight_to_a_runner():
    with raskid.connect("local://?runners=2") as session:
        for value in range(20):
            session.submit(increase, value).result(10)
        assert len(set(session.gather([session.submit(nap_here, 0.5) for _ in range(2)], 10))) == 2


def test_tasks_do_not_wait_behind_a_long_one_while_a_runner_is_idle(rk):
    """1. After many short tasks, a long one and short ones are placed. 2. All of these end before the long one."""
    warm(rk)
    long = rk.submit(nap_here, 3)
    others = rk.gather([rk.submit(nap_here, 0.02) for _ in range(10)], 10)
    assert not long.done()
    assert len(set(others)) == 1 and long.result(10) not in others


def mark_and_nap(path, seconds):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    return nap_here(seconds)


def test_cancelling_behind_a_busy_runner_needs_no_patience(rk, tmp_path):
    """1. Both runners are busy, with more tasks placed behind. 2. These are cancelled while the runners stay busy."""
    warm(rk)
    path = tmp_path / "started"
    running = [rk.submit(mark_and_nap, str(path), 2) for _ in range(2)]
    wait_for(lambda: path.exists() and len(path.read_text().split()) == 2, what="both runners are busy")
    queued = [rk.submit(increase, value) for value in range(50)]
    assert all(future.cancel() for future in reversed(queued))
    assert not any(future.done() for future in running)
    assert len(set(rk.gather(running, 10))) == 2
