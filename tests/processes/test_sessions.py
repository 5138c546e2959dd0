"""Sessions of real systems: how they begin, what ends them, and what a fork leaves of them."""

import asyncio
import gc
import os
import re
import resource
import signal
import sys
import tempfile
import textwrap
import threading
import time
import warnings

import psutil
import pytest

import raskid
from raskid import NotAllowed, SessionClosed, StartFailed
from raskid.launch import directories, local
from tests.processes.helpers import alive, family, head_pid, nothing_left, run_script, script, wait_for

pytestmark = pytest.mark.slow

MESSAGES = 3000
BODY = b"x" * 2000


class Reader:
    """Reads a topic on a thread of its own, in a session of its own."""

    def __init__(self, url, topic):
        self.session = raskid.connect(url)
        self.subscription = self.session.subscribe(topic, capacity=2 * MESSAGES)
        self.count = 0
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self):
        for _ in self.subscription:
            self.count += 1

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.session.close()
        self.thread.join()


@pytest.fixture
def alone(monkeypatch):
    """A runtime directory for one test, in which nothing else is."""
    with tempfile.TemporaryDirectory(prefix="rk", dir="/tmp") as directory:
        monkeypatch.setenv("RASKID_RUNTIME", directory)
        yield directory


# ── closing ──


def test_closing_loses_nothing_for_somebody_who_reads(rk):
    """1. Far more is published than the kernel keeps. 2. The session ends at once. 3. All of it arrives."""
    with Reader(rk.url, "bulk") as reader:
        with raskid.connect(rk.url) as publisher:
            for _ in range(MESSAGES):
                publisher.publish("bulk", BODY)
        wait_for(lambda: reader.count == MESSAGES, what=f"{reader.count} messages came")


def test_closing_inside_asyncio_loses_nothing_and_blocks_nobody(rk):
    """As above; meanwhile another coroutine goes on."""
    turns = 0

    async def go_on(stop):
        nonlocal turns
        while not stop.is_set():
            turns += 1
            await asyncio.sleep(0)

    async def main():
        stop = asyncio.Event()
        async with raskid.connect(rk.url) as publisher:
            for _ in range(MESSAGES):
                await publisher.publish("bulk", BODY)
            assert publisher.session.driver.unwritten()
            other = asyncio.create_task(go_on(stop))
            before = turns
        after = turns
        stop.set()
        await other
        assert after - before > 10

    with Reader(rk.url, "bulk") as reader:
        asyncio.run(main())
        wait_for(lambda: reader.count == MESSAGES, what=f"{reader.count} messages came")


def test_closing_does_not_wait_for_somebody_who_is_away(own):
    """1. A subscriber is there. 2. Its connection ends, and it does not come back. 3. What waits for it holds nobody
    up."""
    with raskid.connect(own.url) as other:
        other.subscribe("t", lambda message: None)
        own.publish("t", 1)
        wait_for(lambda: not own.driver.unwritten())
        name = other.peer.identity.peer
        # It does not answer any more, and what listened for it is gone.
        other.driver.unlisten(other._listener)
        other.engine.closing = True
        other.driver.wake()
        for channel in list(other.driver._channels.values()):
            other.driver._close(channel)
        wait_for(lambda: not own.peer.is_connected(name))
        own.publish("t", 2)
        started = time.monotonic()
        own.close()
        assert time.monotonic() - started < 1.5
        other.engine.closing = False


def test_a_session_that_is_dropped_ends(alone):
    """1. Nobody has the session any more. 2. There is a warning, and its system and threads end."""
    session = raskid.connect("local://?runners=1")
    head = psutil.Process(head_pid(session))
    session.submit(pow, 2, 2).result(10)
    threads = session.engine._workers._threads
    engine = session.engine
    wait_for(lambda: engine.owner is None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del session
        gc.collect()
        wait_for(lambda: not alive(head), 10)
    assert [w for w in caught if w.category is ResourceWarning and "dropped without being closed" in str(w.message)]
    wait_for(lambda: not any(thread.is_alive() for thread in threads))
    wait_for(lambda: not os.listdir(alone))


def test_a_future_is_enough_to_keep_its_session(rk):
    """1. Only a future is held while its task runs. 2. The value comes all the same."""
    future = raskid.connect(rk.url).submit(time.sleep, 0.3)
    gc.collect()
    assert future.result(10) is None
    closing = future._engine
    del future
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wait_for(lambda: gc.collect() is not None and closing.closing)


def test_callbacks_that_are_due_run_before_the_interpreter_ends(rk, tmp_path):
    """1. Messages wait behind a slow callback. 2. The script ends without closing. 3. All callbacks have run."""
    text = f"""
        import raskid, time
        rk = raskid.connect({rk.url!r})
        def slow(message):
            time.sleep(0.05)
            print(message.value, flush=True)
        rk.subscribe("due", slow)
        other = raskid.connect({rk.url!r})
        for number in range(10):
            other.publish("due", number)
        other.request_nowait("nobody", timeout=0.2).exception()
    """
    code, output, errors = run_script(textwrap.dedent(text), tmp_path)
    assert (code, errors) == (0, "")
    assert output.split() == [str(number) for number in range(10)]


# ── what ends a session ──


def test_the_death_of_the_head_is_told_with_its_words(own):
    """1. The head is killed. 2. Whatever waits fails, each with an error of its own; what is asked later as well."""
    futures = [own.submit(time.sleep, 60) for _ in range(3)]
    own.status()
    os.kill(head_pid(own), signal.SIGKILL)
    errors = [future.exception(10) for future in futures]
    assert all(isinstance(error, SessionClosed) and "head is gone" in str(error) for error in errors)
    assert len({id(error) for error in errors}) == 3
    for call in (lambda: own.submit(abs, 1), own.status, lambda: own.publish("t", 1), lambda: own.subscribe("t")):
        frames = []
        for _ in range(2):
            with pytest.raises(SessionClosed, match="head is gone") as caught:
                call()
            frames.append(len(caught.traceback))
        assert frames[0] == frames[1]


def test_the_words_of_a_head_that_fails_reach_its_clients(own, monkeypatch):
    """1. The head writes to its standard error, and ends. 2. The error of the session holds it."""
    monkeypatch.setattr(own, "_head_text", lambda: "Traceback: the reason")
    os.kill(head_pid(own), signal.SIGKILL)
    with pytest.raises(SessionClosed, match="the end of what it wrote:\nTraceback: the reason"):
        own.submit(time.sleep, 60).result(10)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of other processes are Linux's")
def test_a_head_that_fails_by_an_error_of_its_own_says_which(alone, monkeypatch, tmp_path):
    """1. The head records, and may write no more. 2. It ends by an error. 3. Its clients are told the traceback, both
    who started it and who attached."""
    monkeypatch.setenv("RASKID_RECORD", str(tmp_path / "recording"))
    with raskid.connect("local://?runners=1") as rk, raskid.connect(rk.url) as other:
        pid = head_pid(rk)
        errors = []
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (os.stat(tmp_path / "recording").st_size, hard))
        for session in (rk, other):
            with pytest.raises(
                SessionClosed, match=r"an error in it: RuntimeError: the recording cannot.*File too large"
            ) as caught:
                for _ in range(1000):
                    session.status()
            errors.append(str(caught.value))
        assert "Traceback (most recent call last)" in errors[0] and "in run" in errors[0]


def test_no_future_stays_behind_when_the_session_ends_meanwhile(rk):
    """Threads submit and ask while another closes the session: each future is done, or was refused."""
    session = raskid.connect(rk.url)
    futures, refused = [], []

    def ask():
        while not refused:
            try:
                futures.append(session.submit(abs, -1))
                futures.append(session.request_nowait("nobody", timeout=60))
                futures.append(session.ask(_status(session)))
            except SessionClosed:
                refused.append(True)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(futures) > 30)
    session.close()
    for thread in threads:
        thread.join(10)
    assert refused and all(future.done() for future in futures)


def _status(session):
    from raskid.protocol.messages import AskStatus

    return AskStatus(session.request_id())


# ── roles ──


@pytest.mark.parametrize(
    ("role", "call", "needed"),
    [
        ("view", lambda session: session.publish("t", 1), "message"),
        ("view", lambda session: session.subscribe("t"), "message"),
        ("view", lambda session: session.serve("t", abs), "message"),
        ("view", lambda session: session.request("t"), "message"),
        ("view", lambda session: session.shared("t").put("a", 1), "message"),
        ("view", lambda session: session.submit(abs, 1), "execute"),
        ("message", lambda session: session.submit(abs, 1), "execute"),
        ("message", lambda session: session.map(abs, [1]), "execute"),
        ("message", lambda session: session.end_system(), "execute"),
    ],
)
def test_what_a_role_does_not_allow_fails_at_once(rk, role, call, needed):
    with raskid.connect(f"{rk.url}?role={role}") as session:
        assert session.role == role
        with pytest.raises(NotAllowed, match=f"needs the role '{needed}'; this session has '{role}'"):
            call(session)


def test_what_a_role_allows(rk):
    rk.shared("seen")["a"] = 1
    with raskid.connect(f"{rk.url}?role=view") as viewer, raskid.connect(f"{rk.url}?role=message") as reader:
        assert len(viewer.status()["runners"]) == 2 and dict(viewer.shared("seen")) == {"a": 1}
        with reader.subscribe("t") as messages, rk.subscribe("back") as back:
            rk.publish("t", 1)
            assert messages.get(5).value == 1
            reader.publish("back", 2)
            assert back.get(5).value == 2
    with raskid.connect("local://?runners=1&role=view") as viewer:
        viewer.wait_runners(1)


# ── forks ──


def in_a_child(work):
    """What `work()` returns as text, or the error it raises, in a process forked from this one, which then exits."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        # Forking beside threads is what is tried here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        try:
            text = str(work())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


FORKED = "SessionClosed: this session belongs to the process that forked this one; connect again here"


@pytest.mark.parametrize(
    "call",
    [
        lambda session, future: session.publish("heard", 1),
        lambda session, future: session.publish("new", 1),
        lambda session, future: session.submit(abs, 1),
        lambda session, future: session.status(),
        lambda session, future: session.subscribe("t"),
        lambda session, future: session.request("t"),
        lambda session, future: session.shared("t"),
        lambda session, future: future.result(5),
        lambda session, future: next(iter(session.map(abs, [1]))),
    ],
)
def test_a_forked_process_is_told_that_the_session_is_not_its(rk, call):
    """1. The child gets a clear error, and not only once. 2. The parent's session works."""
    with rk.subscribe("heard") as heard:
        rk.publish("heard", 0)
        future = rk.submit(time.sleep, 0.2)

        def twice():
            for _ in range(2):
                try:
                    call(rk, future)
                except SessionClosed as error:
                    text = f"SessionClosed: {error}"
            return text

        assert in_a_child(twice) == FORKED
        rk.publish("heard", 2)
        assert [heard.get(5).value for _ in range(2)] == [0, 2]
        assert future.result(5) is None


def test_the_end_of_a_forked_process_leaves_the_parents_session(own):
    """1. The child leaves its `with` block, drops the session, and opens files in the place of its descriptors. 2. The
    parent's files are there, and its session works, for messages as well."""

    def leave():
        with own:
            pass
        own.close()
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]
        gc.collect()
        for file in files:
            os.close(file)
        return "left"

    directory = directories.runtime_directory() / own.url.removeprefix("local://")
    files = set(os.listdir(directory))
    with own.subscribe("t") as messages:
        assert in_a_child(leave) == "left"
        assert files <= set(os.listdir(directory))
        assert own.gather([own.submit(pow, 2, n) for n in range(20)], 10) == [2**n for n in range(20)]
        own.publish("t", 1)
        assert messages.get(5).value == 1
        with raskid.connect(own.url) as other:
            other.publish("t", 2)
            assert messages.get(5).value == 2


def test_a_forked_process_has_a_session_of_its_own(own):
    def connect():
        with raskid.connect(own.url) as session:
            return session.submit(pow, 2, 5).result(10)

    assert in_a_child(connect) == "32"
    assert own.submit(pow, 2, 6).result(10) == 64


def test_a_forked_process_that_lives_on_does_not_keep_the_system(alone):
    """1. A child is forked, and sleeps. 2. The parent closes its session. 3. The system ends all the same."""
    session = raskid.connect("local://?runners=1")
    head = head_pid(session)
    processes = [psutil.Process(head), *family(head)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    try:
        session.close()
        nothing_left(processes, alone, 10)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_multiprocessing_beside_a_session(rk, tmp_path):
    """A pool that forks inside a session leaves it alone."""
    text = f"""
        import multiprocessing, raskid
        def double(n):
            return 2 * n
        with raskid.connect({rk.url!r}) as rk:
            future = rk.submit(pow, 2, 3)
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(sum(pool.map(double, range(100))))
            print(future.result(10), rk.submit(pow, 2, 4).result(10))
    """
    code, output, errors = run_script(textwrap.dedent(text), tmp_path)
    assert (code, output) == (0, "9900\n8 16\n"), errors


# ── starting ──


def test_a_head_that_cannot_start_says_why(alone, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StartFailed, match="the head ended with code 1"):
        raskid.connect("local://?runners=1")
    assert os.listdir(alone) == []
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(StartFailed, match=r"cannot be started.*/nowhere/python"):
        raskid.connect("local://?runners=1")
    assert os.listdir(alone) == []


def test_a_session_that_cannot_join_shows_what_the_head_wrote(alone, monkeypatch):
    """1. The head is up, but ends before the session has joined. 2. The error is about that, and nothing is left."""
    real = local.await_head

    def await_head(handle, *more):
        file = real(handle, *more)
        os.pwrite(handle._errors.fileno(), b"its last words", 0)
        handle.process.kill()
        handle.process.wait()
        return file

    monkeypatch.setattr(local, "await_head", await_head)
    with pytest.raises(raskid.RaskidError) as caught:
        raskid.connect("local://?runners=1", timeout=1)
    assert "its last words" in str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))
    wait_for(lambda: not os.listdir(alone))


def test_the_time_limit_holds_for_the_start(alone, tmp_path, monkeypatch):
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(silent))
    started = time.monotonic()
    with pytest.raises(StartFailed, match=r"did not start within 0\.3 s"):
        raskid.connect("local://?runners=1&timeout=0.3")
    assert time.monotonic() - started < 5
    assert os.listdir(alone) == []


def test_an_interrupted_start_leaves_nothing(alone, tmp_path):
    """Ctrl-C at many moments of a start."""
    text = """
        import signal
        # It is ignored where the tests run in the background of a shell, and that is inherited.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        import raskid
        print("begins", flush=True)
        raskid.connect("local://?runners=1")
        print("is up", flush=True)
        raskid.connect("local://?runners=1")
    """
    for delay in (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        process = script(textwrap.dedent(text), tmp_path)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        wait_for(lambda: not os.listdir(alone), 10, f"after {delay} s {os.listdir(alone)} were left")


def test_a_killed_start_is_tidied_up_by_the_next(alone, tmp_path):
    """1. The script is killed while its head starts. 2. Nobody lives in the directory any more, and it goes."""
    text = """
        import raskid
        print("begins", flush=True)
        raskid.connect("local://?runners=1")
        print("is up", flush=True)
    """
    for delay in (0.0, 0.05, 0.1, 0.2):
        process = script(textwrap.dedent(text), tmp_path)
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.communicate()
    wait_for(lambda: directories.systems() == [] and not os.listdir(alone), 10)


def test_attaching_to_a_dead_system_fails_at_once(alone):
    handle, file = local.start_head(1, "dead", watch_input=False)
    os.kill(file.pid, signal.SIGKILL)
    handle.process.wait()
    started = time.monotonic()
    with pytest.raises(SessionClosed, match=r"'dead' is gone: its head \(pid \d+\) has ended"):
        raskid.connect("local://dead")
    assert time.monotonic() - started < 1
    handle.detach()
    wait_for(lambda: not os.listdir(alone))


def test_errors_reach_the_script_with_their_names(rk):
    for name in ("RaskidError", "WaitTimeout", "SessionClosed", "TaskLost"):
        assert re.match(r"raskid\.model\.errors", getattr(raskid, name).__module__)
        assert name in dir(raskid) and name in raskid.__all__


def test_costs_are_shown_per_task_and_per_message(rk):
    """Counts, not times: they are positive, and the sum of sent and received messages is what they are divided by."""
    for _ in range(20):
        rk.submit(abs, -1).result(10)
    counted = rk.counters()
    assert counted["tasks"] >= 20 and counted["copies"] >= counted["bytes_received"]
    assert counted["per_task"]["syscalls"] == counted["syscalls"] / counted["tasks"]
    messages = counted["messages_sent"] + counted["messages_received"]
    assert counted["per_message"]["bytes_sent"] == counted["bytes_sent"] / messages > 0
    status = rk.status()
    assert status["head"]["counters"]["messages_received"] > 0 < status["head"]["counters"]["frames_sent"]
    runners = wait_for(lambda: [c for c in rk.status()["runner_counters"].values() if c["tasks"] and c["per_task"]])
    assert runners[0]["frames_received"] > 0 < runners[0]["per_message"]["bytes_received"]


# ── circumstances ──


def test_a_system_whose_script_has_no_standard_input_is_not_taken_for_dead(alone, tmp_path):
    """1. The script's standard input is closed, so that the next file opened has its number. 2. Somebody looks for dead
    systems. 3. This one is left alone."""
    text = """
        import os
        import raskid
        from raskid.launch import directories
        os.close(0)
        with raskid.connect("local://?runners=1") as rk:
            print(directories.systems() == [rk.url.removeprefix("local://")], rk.submit(abs, -1).result(20))
    """
    output, errors = script(textwrap.dedent(text), tmp_path).communicate(timeout=60)
    assert (output.strip(), errors.strip()) == ("True 1", "")


def test_a_script_that_ignores_the_end_of_children(alone, tmp_path):
    text = """
        import signal
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        import raskid
        with raskid.connect("local://?runners=1") as rk:
            print(rk.submit(abs, -1).result(20))
    """
    output, errors = script(textwrap.dedent(text), tmp_path).communicate(timeout=60)
    assert (output.strip(), errors.strip()) == ("1", "")
    wait_for(lambda: not os.listdir(alone), 10)


def test_connections_are_served_between_many_short_callbacks(alone):
    """1. Callbacks of some milliseconds each wait. 2. A record of another session comes long before their end."""
    seen = []
    with raskid.connect("local://?runners=1") as rk, raskid.connect(rk.url) as other:
        shared, theirs = rk.shared("settings"), other.shared("settings")
        with rk.subscribe("slow", lambda message: (time.sleep(0.003), seen.append(message.value)), capacity=2000):
            for value in range(1000):
                other.publish("slow", value)
            theirs["key"] = 1
            # Not by waiting for it: whoever waits reads by himself.
            wait_for(lambda: "key" in shared, 10)
            assert len(seen) < 700
