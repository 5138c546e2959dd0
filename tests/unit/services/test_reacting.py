"""Code of reactions on its thread: one answer each, in time, whatever the code does."""

from __future__ import annotations

import itertools
import os
import queue
import sys
import threading
import types
import weakref

import pytest

from raskid.core.effects import RunCode
from raskid.core.events import CodeRan
from raskid.model.ids import CodeId
from raskid.protocol.messages import Code
from raskid.services import reacting
from raskid.services.codes import hash_source, pack_code
from raskid.services.reacting import Reactor

LIMIT_S = 10.0
FAR = 5.0


class Rig:
    """A reactor, the functions that it can load, its answers, and a clock that stands still."""

    def __init__(self):
        self.module = types.ModuleType("reacting_functions")
        self.now = 1000.0
        self.answers = queue.SimpleQueue()
        self.reactor = Reactor(self.answers.put, clock=lambda: self.now)
        self.numbers = itertools.count(1)
        self.releases = []

    def code(self, function, name="f"):
        entry = f"f{next(self.numbers)}"
        setattr(self.module, entry, function)
        by_name = b"\x80\x04c" + f"{self.module.__name__}\n{entry}\n".encode() + b"."
        return Code(CodeId(entry), pack_code((), (), by_name), name)

    def run(self, function, *calls, seconds=LIMIT_S, code=None):
        """Put a job in line: the calls' arguments by position, or one call without any."""
        job = next(self.numbers)
        listed = [(args, {}) for args in calls] or [((), {})]
        self.reactor.run(RunCode(job, code or self.code(function), listed, seconds))
        return job

    def answer(self):
        return self.answers.get(timeout=FAR)

    def begin(self, inside=lambda: None, seconds=LIMIT_S):
        """Run a job that calls `inside` once the test knows of it; gives the number and the thread."""
        threads = queue.SimpleQueue()

        def function():
            threads.put(threading.current_thread())
            return inside()

        job = self.run(function, seconds=seconds)
        return job, threads.get(timeout=FAR)

    def block(self, seconds=LIMIT_S):
        """Run a job that sits in a C call until it is released; gives its number, its thread, and what releases it."""
        release = threading.Event()
        self.releases.append(release)
        return *self.begin(release.wait, seconds), release


@pytest.fixture
def rig(monkeypatch):
    rig = Rig()
    monkeypatch.setitem(sys.modules, rig.module.__name__, rig.module)
    yield rig
    rig.reactor.close()
    for release in rig.releases:
        release.set()
    for thread in threading.enumerate():
        if thread.name == "raskid-reactions":
            thread.join(FAR)
            assert not thread.is_alive()


def loop():
    """Ends by an exception that is no `Exception`, and by nothing else."""
    while True:
        try:
            raise ValueError
        except Exception:
            pass


# ── Jobs that are dropped ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_that_is_dropped_in_line_is_answered_in_its_turn_and_never_called(rig):
    """1. One job is at work, two stand behind it. 2. The first and the second are dropped. 3. The first ends as it
    would have, the second was not called, the third is."""
    called = []
    job, _, release = rig.block()
    second, third = rig.run(lambda: called.append(2)), rig.run(lambda: called.append(3))
    for number in (job, second, 99):
        rig.reactor.drop(number)
    release.set()
    assert rig.answer() == CodeRan(job, [True])
    dropped = rig.answer()
    assert (dropped.job, dropped.error) == (second, "Dropped") and "was not called" in dropped.text
    assert rig.answer() == CodeRan(third, [None]) and called == [3]
    assert rig.reactor.check() is None and not rig.reactor._waiting


def test_code_knows_through_how_many_topics_its_message_came(rig):
    rig.reactor.run(RunCode(1, rig.code(rig.reactor.hops), [((), {})], LIMIT_S, 3))
    assert rig.answer() == CodeRan(1, [3]) and rig.reactor.hops() is None


# ── Values and errors ────────────────────────────────────────────────────────────────────────────────────────────────


def test_jobs_are_answered_in_their_order(rig):
    code = rig.code(lambda value: value * 2)
    jobs = [rig.run(None, (value,), code=code) for value in range(500)]
    assert [rig.answer() for _ in jobs] == [CodeRan(job, [value * 2]) for value, job in enumerate(jobs)]
    assert rig.reactor.check() is None


def test_arguments_go_by_position_and_by_name_and_each_call_has_its_value(rig):
    def function(*args, **fields):
        return args, fields

    calls = [((1, 2), {"x": 3}), ((), {}), (([],), {"y": {}})]
    rig.reactor.run(RunCode(1, rig.code(function), calls, LIMIT_S))
    assert rig.answer() == CodeRan(1, calls)


def test_no_calls_are_an_answer_too(rig):
    rig.reactor.run(RunCode(1, rig.code(len), [], LIMIT_S))
    assert rig.answer() == CodeRan(1, [])


def test_all_jobs_run_on_one_thread_that_does_not_hold_up_the_process_end(rig):
    for _ in range(3):
        rig.run(threading.current_thread)
    threads = [rig.answer().values[0] for _ in range(3)]
    assert threads[0] is threads[1] is threads[2] and threads[0].daemon and threads[0] is not threading.main_thread()


def test_no_thread_before_the_first_job(rig):
    before = threading.active_count()
    Reactor(rig.answers.put).close()
    assert rig.reactor.check() is None and threading.active_count() == before


def test_an_error_has_its_type_its_message_and_the_users_frames(rig):
    """1. A function raises. 2. The answer says where, with nothing of this package. 3. The next job runs."""

    def deeper(value):
        raise KeyError(f"no {value} here")

    job = rig.run(lambda value: [deeper(value)], ("mesh",))
    rig.run(lambda: 5)
    ran = rig.answer()
    assert (ran.job, ran.values, ran.error) == (job, [], "KeyError")
    assert ran.text.startswith("'no mesh here'\n") and 'in deeper\n    raise KeyError(f"no {value} here")' in ran.text
    assert "reacting.py" not in ran.text.replace("test_reacting.py", "")
    assert rig.answer().values == [5]


def test_the_calls_after_the_one_that_raises_are_not_made(rig):
    made = []

    def function(value):
        made.append(value)
        return 1 // value

    rig.run(function, (1,), (0,), (2,))
    assert rig.answer().error == "ZeroDivisionError" and made == [1, 0]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_nothing_that_code_raises_ends_the_thread(rig, kind):
    def function():
        raise kind(3)

    rig.run(function)
    rig.run(lambda: 5)
    ran = rig.answer()
    assert ran.error == kind.__name__ and "3" in ran.text
    assert rig.answer().values == [5]


def test_exit_says_what_to_do_instead(rig):
    rig.run(lambda: sys.exit("bye"))
    assert rig.answer().text.startswith("f called sys.exit('bye'); a reaction returns, or raises an exception\n")


def test_arguments_that_do_not_fit_are_an_error_of_the_job(rig):
    rig.run(lambda: 5, (1, 2, 3))
    assert rig.answer().error == "TypeError"


def test_values_that_cannot_be_compared_or_hashed_pass(rig):
    class Odd:
        __hash__ = None

        def __eq__(self, other):
            raise RuntimeError("cannot be compared")

    rig.run(Odd)
    assert type(rig.answer().values[0]) is Odd


@pytest.mark.parametrize("raised_by_str", [ValueError, SystemExit])
def test_an_error_that_cannot_be_shown_is_answered_all_the_same(rig, raised_by_str):
    class Odd(Exception):
        def __str__(self):
            raise raised_by_str

    def function():
        raise Odd

    rig.run(function)
    ran = rig.answer()
    assert ran.error == "Odd" and raised_by_str.__name__ in ran.text


def test_texts_are_short_and_can_be_sent(rig):
    def deep(level):
        if level == 0:
            raise ValueError("\udc80" + "long" * 100_000)
        deep(level - 1)

    rig.run(deep, (300,))
    ran = rig.answer()
    assert ran.error == "ValueError" and len(ran.text.encode()) <= 4096 + 100
    assert ran.text.startswith("\\udc80long") and ran.text.count("in deep") < 10


# ── Code that cannot be loaded ───────────────────────────────────────────────────────────────────────────────────────


def test_source_that_was_changed_is_not_run(rig, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "reacting_changed.py"
    file.write_text("def f(): return 1\n")
    modules = (("reacting_changed", str(file), hash_source(str(file))),)
    file.write_text("def f(): return 2\n")
    code = Code(CodeId("c"), pack_code((os.fspath(tmp_path),), modules, b"\x80\x04creacting_changed\nf\n."))
    rig.run(None, code=code)
    ran = rig.answer()
    assert ran.error == "StaleCode" and "reacting_changed" in ran.text


@pytest.mark.parametrize(
    ("blob", "error"),
    [
        (pack_code((), (), b"\x80\x04cno_such_module\nf\n."), "ModuleNotFoundError"),
        (pack_code((), (), b"\x80\x04cos\nno_such_name\n."), "AttributeError"),
        (pack_code((), (), b"\x80\x05K\x05."), "TypeError"),
        (b"", "EOFError"),
        (b"junk", "UnpicklingError"),
    ],
)
def test_code_that_cannot_be_loaded_is_an_error_of_the_job(rig, blob, error):
    rig.run(None, code=Code(CodeId("bad"), blob))
    rig.run(lambda: 5)
    assert rig.answer().error == error
    assert rig.answer().values == [5]


# ── Time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_has_all_its_time(rig):
    job, _, release = rig.block()
    assert rig.reactor.check() == LIMIT_S and rig.reactor.check(job) == LIMIT_S
    rig.now += 9.5
    assert rig.reactor.check(job) == 0.5
    release.set()
    assert rig.answer() == CodeRan(job, [True])
    assert rig.reactor.check(job) is None


def test_a_loop_is_ended(rig):
    """1. A job loops for ever. 2. At its time it is answered for, and its thread dies. 3. The next job runs."""
    job, thread = rig.begin(loop)
    behind = rig.run(lambda: 5)
    rig.now += LIMIT_S
    assert rig.reactor.check(job) is None
    ran = rig.answer()
    assert (ran.job, ran.values, ran.error) == (job, [], "TimeLimit") and "f took longer than 10 s" in ran.text
    assert rig.answer() == CodeRan(behind, [5])
    thread.join(FAR)
    assert not thread.is_alive() and rig.answers.empty()


def test_a_loop_in_a_module_that_the_code_imports_is_ended(rig, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "reacting_loops.py").write_text("import reacting_functions\nreacting_functions.loop_here()\n")
    threads = queue.SimpleQueue()

    def loop_here():
        threads.put(threading.current_thread())
        loop()

    rig.module.loop_here = loop_here
    job = rig.run(None, code=Code(CodeId("c"), pack_code((), (), b"\x80\x04creacting_loops\nf\n.")))
    thread = threads.get(timeout=FAR)
    rig.now += LIMIT_S
    rig.reactor.check(job)
    thread.join(FAR)
    assert rig.answer().error == "TimeLimit" and not thread.is_alive()


def test_a_call_that_blocks_is_left_behind(rig):
    """1. A job sits in C code. 2. It is answered for; its thread lives. 3. Others run meanwhile. 4. What it gives in
    the end is dropped."""
    job, thread, release = rig.block()
    rig.now += LIMIT_S
    assert rig.reactor.check() is None
    assert rig.answer().error == "TimeLimit" and thread.is_alive()
    rig.run(threading.current_thread)
    assert rig.answer().values[0] is not thread
    assert rig.reactor.check(job) is None
    release.set()
    thread.join(FAR)
    assert not thread.is_alive() and rig.answers.empty()


def test_code_that_swallows_the_exception_is_answered_for_once(rig):
    finished = threading.Event()

    def stubborn():
        try:
            loop()
        except BaseException:
            finished.set()
        return "late"

    _, thread = rig.begin(stubborn)
    rig.now += LIMIT_S
    rig.reactor.check()
    thread.join(FAR)
    assert finished.is_set() and not thread.is_alive()
    assert rig.answer().error == "TimeLimit" and rig.answers.empty()


def test_the_clock_of_a_job_starts_when_it_begins(rig):
    """1. A job of 1 s stands in line behind one that takes 9 s. 2. It has all its time when it begins."""
    _, _, release = rig.block()
    begun, go_on = threading.Event(), threading.Event()
    rig.releases.append(go_on)

    def second():
        begun.set()
        return go_on.wait()

    job = rig.run(second, seconds=1.0)
    rig.now += 9.0
    assert rig.reactor.check(job) == 1.0 and rig.answers.empty(), "1 s is left to the job at work"
    release.set()
    assert begun.wait(FAR)
    rig.now += 0.75
    assert rig.reactor.check(job) == 0.25
    rig.now += 0.25
    assert rig.reactor.check(job) is None
    assert rig.answer().error == "" and rig.answer().error == "TimeLimit"


def test_whoever_waits_for_a_job_in_line_ends_the_one_before_it(rig):
    """1. A job never ends; another stands behind it. 2. Only the other is asked about. 3. It runs."""
    _, _, _ = rig.block()
    behind = rig.run(lambda: 5)
    rig.now += LIMIT_S
    rig.reactor.check(behind)
    assert rig.answer().error == "TimeLimit" and rig.answer() == CodeRan(behind, [5])


def test_each_job_has_one_answer_although_its_time_is_up_as_it_ends(rig):
    """Every job is over its time from the beginning, and two threads look all the while."""
    over = threading.Event()

    def look():
        while not over.is_set():
            rig.reactor.check()

    watchers = [threading.Thread(target=look) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    code = rig.code(lambda: sum(range(300)))
    jobs = [rig.run(None, code=code, seconds=0.0) for _ in range(300)]
    answers = [rig.answer() for _ in jobs]
    over.set()
    for watcher in watchers:
        watcher.join(FAR)
    assert sorted(ran.job for ran in answers) == jobs and rig.answers.empty()
    assert {ran.error for ran in answers} <= {"", "TimeLimit", "Overflow"}
    rig.run(lambda: 5)
    assert rig.answer().values == [5]


def test_code_of_this_package_is_not_interrupted(rig):
    """1. A reaction is inside of a call of this package when its time is up. 2. That call comes to its end. 3. The
    reaction is interrupted when the next job begins."""
    release, through = threading.Event(), threading.Event()
    rig.releases.append(release)
    names = {"__name__": "raskid.pretended", "release": release, "through": through}
    exec("def publish():\n    release.wait()\n    for _ in range(1000): pass\n    through.set()\n", names)

    def function():
        names["publish"]()
        loop()

    _, thread = rig.begin(function)
    rig.now += LIMIT_S
    rig.reactor.check()
    assert rig.answer().error == "TimeLimit"
    release.set()
    assert through.wait(FAR)
    # The thread may still be in the last line of the call: another job follows until it is found outside.
    while thread.is_alive():
        rig.run(lambda: 5)
        assert rig.answer().values == [5]


def test_a_job_may_look_at_its_own_time(rig):
    """1. A reaction publishes, and so checks, when its time is up. 2. It is answered for; its value is dropped."""

    def function():
        rig.now += LIMIT_S
        return rig.reactor.check()

    job = rig.run(function)
    assert (rig.answer().job, rig.answers.empty()) == (job, True)
    rig.run(lambda: 5)
    assert rig.answer().values == [5]


def test_too_many_that_never_end_are_not_joined_by_more(rig, monkeypatch):
    """1. Two threads sit in C code, which is the limit. 2. A job is answered at once. 3. One ends. 4. Jobs run."""
    monkeypatch.setattr(reacting, "ABANDONED_MAX", 2)
    ends = []
    for _ in range(2):
        ends.append(rig.block()[1:])
        rig.now += LIMIT_S
        rig.reactor.check()
        assert rig.answer().error == "TimeLimit"
    called = []
    rig.run(called.append, (1,))
    ran = rig.answer()
    assert ran.error == "Overflow" and "f was not called: 2 threads" in ran.text and not called
    thread, release = ends[0]
    release.set()
    thread.join(FAR)
    rig.run(called.append, (2,))
    assert rig.answer().error == "" and called == [2]


# ── Threads ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_thread_knows_that_it_belongs_to_a_reactor_even_when_left_behind(rig):
    release, after = threading.Event(), queue.SimpleQueue()
    rig.releases.append(release)

    def function():
        try:
            release.wait()
        finally:
            after.put(rig.reactor.on_thread())

    rig.begin(function)
    rig.now += LIMIT_S
    rig.reactor.check()
    release.set()
    assert after.get(timeout=FAR) is True and rig.reactor.on_thread() is False
    other = Reactor(rig.answers.put)
    rig.answer()
    rig.run(lambda: (rig.reactor.on_thread(), other.on_thread()))
    assert rig.answer().values == [(True, False)]


def test_without_a_thread_jobs_are_refused_by_whoever_looks(rig, monkeypatch):
    """1. No thread can be started. 2. `run` says nothing. 3. `check` answers. 4. Later there is one."""

    def start(thread):
        raise RuntimeError("can't start new thread")

    called = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        jobs = [rig.run(called.append, (1,)) for _ in range(2)]
        assert rig.answers.empty()
        assert rig.reactor.check(jobs[0]) is None
    refused = [rig.answer() for _ in jobs]
    assert [ran.job for ran in refused] == jobs and "can't start new thread" in refused[0].text
    rig.run(called.append, (2,))
    assert rig.answer().error == "" and called == [2]


def test_jobs_may_be_put_in_line_by_whoever_takes_answers(rig):
    left = [3]

    def tell(ran):
        rig.answers.put(ran)
        if left[0]:
            left[0] -= 1
            chain.run(RunCode(ran.job + 1, code, [((), {})], LIMIT_S))

    chain, code = Reactor(tell), rig.code(lambda: 5)
    chain.run(RunCode(1, code, [((), {})], LIMIT_S))
    assert [rig.answer().job for _ in range(4)] == [1, 2, 3, 4]
    chain.close()


def test_a_mistake_of_whoever_takes_answers_does_not_end_the_thread(rig, capfd):
    def tell(ran):
        rig.answers.put(ran)
        raise LookupError("a mistake")

    broken, code = Reactor(tell), rig.code(lambda: 5)
    for job in (1, 2):
        broken.run(RunCode(job, code, [((), {})], LIMIT_S))
    assert [rig.answer().job for _ in range(2)] == [1, 2]
    broken.close()


def test_an_idle_thread_keeps_nothing_of_its_last_job(rig):
    class Block:
        pass

    block, gone = Block(), threading.Event()
    weakref.finalize(block, gone.set)
    rig.run(lambda value: [value], (block,))
    del block
    rig.answer()
    assert gone.wait(FAR)


def test_a_thread_that_was_left_behind_and_has_ended_keeps_nothing(rig):
    class Block:
        pass

    block, begun, gone = Block(), threading.Event(), threading.Event()
    weakref.finalize(block, gone.set)

    def function(value):
        begun.set()
        loop()

    rig.run(function, (block,))
    del block
    assert begun.wait(FAR)
    rig.now += LIMIT_S
    rig.reactor.check()
    assert gone.wait(FAR) and rig.answer().error == "TimeLimit"


# ── The end ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_closing_ends_a_loop_and_forgets_the_line(rig):
    called = []
    _, thread = rig.begin(loop)
    rig.run(called.append, (1,))
    rig.reactor.close()
    rig.run(called.append, (2,))
    thread.join(FAR)
    assert not thread.is_alive() and rig.answers.empty() and not called
    assert rig.reactor.check() is None
    rig.reactor.close()


def test_closing_lets_an_idle_thread_end(rig):
    rig.run(threading.current_thread)
    thread = rig.answer().values[0]
    rig.reactor.close()
    thread.join(FAR)
    assert not thread.is_alive()


def test_code_may_close_what_runs_it(rig):
    """A reaction that ends the session comes to its own end."""
    through = threading.Event()

    def function():
        rig.reactor.close()
        through.set()

    rig.run(function)
    assert through.wait(FAR)
