import gc
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from raskid.io.outbox import Outbox
from raskid.launch.local import read_session
from raskid.model.errors import SessionClosed, TaskLost, TopicNameError
from raskid.protocol.codec import decode_batch, encode_batch
from raskid.protocol.framing import HEADER, UNCOUNTED, FrameReader, frame
from raskid.protocol.messages import PROTOCOL_VERSION, Hello, Refused, Welcome
from raskid.protocol.tokens import hello_text, make_proofs
from tests.processes.helpers import family, head_pid, nothing_left, script, wait_for

pytestmark = pytest.mark.slow


def increase(value):
    return value + 1


def mark_and_nap(path, seconds):
    """Appends its process id to a file; the first one to come naps."""
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    if len(Path(path).read_text().split()) == 1:
        time.sleep(seconds)
    return os.getpid()


def end_with(code):
    os._exit(code)


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def leave_a_child():
    return subprocess.Popen(["sleep", "600"]).pid


def first_line(path):
    return wait_for(lambda: path.exists() and path.read_text().split(), what=f"a line in {path}")[0]


def test_a_task_of_a_killed_runner_runs_elsewhere(own, tmp_path):
    path = tmp_path / "pids"
    future = own.submit(mark_and_nap, str(path), 60)
    dependant = own.submit(increase, future)
    killed = int(first_line(path))
    os.kill(killed, signal.SIGKILL)
    assert future.result(10) != killed
    assert dependant.result(10) == future.result(10) + 1
    own.wait_runners(2, 10)


def test_a_value_outlives_its_runner(own):
    futures = [own.submit(os.getpid) for _ in range(4)]
    pids = set(own.gather(futures, 10))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert [own.submit(increase, future).result(10) for future in futures] == [f.result() + 1 for f in futures]


def test_a_directly_dispatched_task_of_a_killed_runner_runs_elsewhere(own, tmp_path):
    for value in range(20):
        assert own.submit(increase, value).result(10) == value + 1
    path = tmp_path / "pids"
    future = own.submit(mark_and_nap, str(path), 60)
    dependant = own.submit(increase, future)
    killed = int(first_line(path))
    os.kill(killed, signal.SIGKILL)
    assert future.result(10) != killed
    assert dependant.result(10) == future.result(10) + 1
    for value in range(20):
        assert own.submit(increase, value).result(10) == value + 1


def test_a_task_that_always_ends_its_runner_is_lost(own):
    started = time.monotonic()
    with pytest.raises(TaskLost, match=r"10.*code 3"):
        own.submit(end_with, 3).result(20)
    assert time.monotonic() - started < 10
    assert own.submit(increase, 1).result(10) == 2


def test_a_task_that_crashes_its_runner_is_lost(own):
    with pytest.raises(TaskLost, match="SIGSEGV"):
        own.submit(crash).result(20)
    assert own.submit(increase, 1).result(10) == 2


def test_a_task_that_ends_its_runners_takes_nobody_along(own):
    """1. One task of a burst ends its process. 2. All others get values. 3. It says how often, and how they ended."""
    assert own.gather([own.submit(increase, value) for value in range(1000)], 20) == list(range(1, 1001))
    before = [own.submit(increase, value) for value in range(250)]
    deadly = own.submit(end_with, 7)
    after = [own.submit(increase, value) for value in range(250)]
    assert own.gather(before + after, 20) == 2 * list(range(1, 251))
    with pytest.raises(TaskLost, match=r"end_with.* 10 attempts ended with their runner: exit code 7 \(10 times\)"):
        deadly.result(20)


def raise_and_die(path):
    """Raises; its process is killed from outside before it can say so to the client."""
    Path(path).write_text(str(os.getpid()))
    raise ValueError("the last words")


def test_an_error_that_only_the_node_has_reaches_its_client(own, tmp_path):
    """1. A client is stopped from outside. 2. A task raises, and its runner is killed. 3. The client gets the error."""
    path = tmp_path / "pid"
    future = own.submit(raise_and_die, str(path))
    pid = int(first_line(path))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ValueError, match="the last words"):
        future.result(10)


def corrupt_outbox():
    """Writes over the memory that this process shares with the head."""
    box = next(found for found in gc.get_objects() if isinstance(found, Outbox))
    box._memory[64:72] = (33).to_bytes(8, sys.byteorder)
    box._memory[72:80] = bytes(8)
    time.sleep(30)


def test_a_runner_that_corrupts_its_outbox_is_killed_and_others_go_on(own):
    """1. A task writes over its outbox. 2. Its runner is killed. 3. Other tasks get values, and it is lost at last."""
    future = own.submit(corrupt_outbox)
    assert own.gather([own.submit(increase, value) for value in range(100)], 20) == list(range(1, 101))
    with pytest.raises(TaskLost, match=r"corrupt_outbox.*SIGKILL"):
        future.result(20)
    assert own.submit(increase, 1).result(10) == 2


def test_the_fork_server_killed(own, runtime):
    assert own.submit(increase, 1).result(10) == 2
    head = head_pid(own)
    before = family(head)
    server = psutil.Process(head).children()[0]
    server.kill()
    assert own.submit(increase, 2).result(10) == 3
    everything = before + family(head)
    own.close()
    nothing_left(everything, runtime)


def test_the_head_killed(own, runtime):
    assert own.submit(increase, 1).result(10) == 2
    future = own.submit(time.sleep, 60)
    head = head_pid(own)
    everything = [psutil.Process(head), *family(head)]
    started = time.monotonic()
    os.kill(head, signal.SIGKILL)
    with pytest.raises(SessionClosed):
        future.result(10)
    assert time.monotonic() - started < 5
    with pytest.raises(SessionClosed):
        own.submit(increase, 1)
    own.close()
    nothing_left(everything, runtime)


def test_a_stopped_runner_goes_on(own):
    pid = own.submit(os.getpid).result(10)
    os.kill(pid, signal.SIGSTOP)
    try:
        futures = [own.submit(increase, value) for value in range(20)]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert own.gather(futures, 10) == list(range(1, 21))


def test_what_a_task_started_ends_with_the_session(own, runtime):
    child = psutil.Process(own.submit(leave_a_child).result(10))
    assert child.is_running()
    own.close()
    nothing_left([child], runtime)


SCRIPT = """
import os, sys, time, raskid
def nap(): time.sleep(60)
with raskid.connect("local://?runners=2") as rk:
    rk.submit(pow, 1, 1).result()
    future = rk.submit(nap)
    print(rk.status()["head"]["pid"], flush=True)
    END
"""
WAIT = "future.result()"


def started(text, directory, **options):
    """A script that runs, and all processes of its system."""
    process = script(text, directory, **options)
    head = int(process.stdout.readline() or process.stderr.read())
    return process, [psutil.Process(process.pid), psutil.Process(head), *family(head)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_script_that_is_ended_by_a_signal_leaves_nothing(runtime, tmp_path, number):
    process, everything = started(SCRIPT.replace("END", WAIT), str(tmp_path))
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode != 0
    assert number != signal.SIGINT or "KeyboardInterrupt" in errors
    nothing_left(everything, runtime)


def test_a_script_that_raises_leaves_nothing(runtime, tmp_path):
    process, everything = started(SCRIPT.replace("END", "raise ValueError('mine')"), str(tmp_path))
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 1 and errors.strip().endswith("ValueError: mine")
    nothing_left(everything, runtime)


def test_a_script_that_forgets_to_close_leaves_nothing(runtime, tmp_path):
    text = SCRIPT.replace('with raskid.connect("local://?runners=2") as rk:', 'rk = raskid.connect("local://")\nif 1:')
    process, everything = started(text.replace("END", "pass"), str(tmp_path))
    process.communicate(timeout=10)
    assert process.returncode == 0
    nothing_left(everything, runtime)


def test_a_terminal_that_is_closed_leaves_nothing(runtime, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.replace("END", WAIT))
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, str(tmp_path / "script.py")])
    head = int(os.read(terminal, 64).split()[0])
    everything = [psutil.Process(head), *family(head)]
    os.close(terminal)
    nothing_left(everything, runtime)
    os.waitpid(pid, 0)


# ── bad input ──


class Stranger:
    """A raw socket to the head."""

    def __init__(self, rk):
        _, self.file = read_session(rk.url.removeprefix("local://"))
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(self.file.address.removeprefix("unix:"))
        self.socket.settimeout(5)

    def hello(self, **changes):
        values = dict(
            protocol=PROTOCOL_VERSION, peer="stranger", incarnation=1, origin=77, kind="client", role="execute"
        )
        values["token"] = make_proofs(self.file.token, "execute", hello_text("stranger", 1, 77, ""))
        return Hello(**{**values, **changes})

    def answer(self):
        """The next message, and None at the end of the stream."""
        reader = FrameReader(1 << 20)
        while data := self.socket.recv(65536):
            for _, _, payload in reader.feed(data):
                return decode_batch(payload)[0]
        return None


@pytest.fixture
def stranger(rk):
    found = Stranger(rk)
    yield found
    found.socket.close()
    # Others go on.
    assert rk.submit(increase, 1).result(10) == 2


def handshake(payload):
    return frame(UNCOUNTED, 0, payload)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "frame header b'GET / HT'.*Is the other end raskid"),
        (HEADER.pack(UNCOUNTED | (1 << 24) - 1, 0), "announces 16,777,215 bytes"),
        (handshake(b"\xc1\xc1"), "not MessagePack"),
        (handshake(b""), "not MessagePack"),
        (handshake(msgspec.msgpack.encode([[9999, 1]])), r"9999.*\$\[0\]"),
        (handshake(msgspec.msgpack.encode([[1, "one"]])), r"length 8, got 2 - at `\$\[0\]`"),
        (handshake(msgspec.msgpack.encode([[3, "a", 5]])), r"[Ee]xpected `str`, got `int` - at `\$\[0\]\[2\]`"),
        (handshake(b"\x91" * 5000), "does not fit|not MessagePack"),
        (frame(0, 0, encode_batch([Welcome("x", 1, 1, "head", "view")])), "first frame .* must be a Hello"),
        (handshake(encode_batch([Welcome("x", 1, 1, "head", "view")])), "Welcome is not expected"),
        (handshake(encode_batch([])), "holds one message, got 0"),
    ],
)
def test_bad_bytes_are_refused_by_name(stranger, data, text):
    stranger.socket.sendall(data)
    refused = stranger.answer()
    assert isinstance(refused, Refused) and refused.code == "protocol"

    assert re.search(text, refused.text), refused.text
    assert stranger.answer() is None


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"token": "execute=00"}, "bad-token", "stranger"),
        ({"token": ""}, "bad-token", "stranger"),
        ({"protocol": 999}, "bad-version", "999"),
        ({"role": "emperor"}, "bad-role", "emperor"),
        ({"kind": "emperor"}, "bad-role", "emperor"),
        ({"peer": ""}, "bad-peer", "peer"),
        ({"peer": "x" * 1000}, "bad-peer", "xxx"),
        ({"incarnation": 0}, "bad-peer", "incarnation 0"),
        ({"target": "somebody"}, "bad-peer", "somebody"),
    ],
)
def test_a_wrong_hello_is_refused_by_name(stranger, changes, code, text):
    stranger.socket.sendall(handshake(encode_batch([stranger.hello(**changes)])))
    refused = stranger.answer()
    assert isinstance(refused, Refused) and refused.code == code and text in refused.text


def test_a_truncated_frame_harms_nobody(stranger):
    stranger.socket.sendall(handshake(encode_batch([stranger.hello()]))[:-10])
    stranger.socket.shutdown(socket.SHUT_WR)
    assert stranger.answer() is None


def test_garbage_after_the_handshake_ends_that_peer_only(stranger):
    stranger.socket.sendall(handshake(encode_batch([stranger.hello()])))
    assert isinstance(stranger.answer(), Welcome)
    stranger.socket.sendall(frame(0, 0, b"\xc1"))
    refused = stranger.answer()
    assert isinstance(refused, Refused) and "not MessagePack" in refused.text


def test_names_of_topics_are_checked(rk):
    for name in ("", "x" * 10_000_000, "a\x00b"):
        for call in (rk.publish, rk.subscribe, rk.request, rk.shared):
            with pytest.raises(TopicNameError):
                call(name)
        with pytest.raises(TopicNameError):
            rk.serve(name, increase)
    assert rk.submit(increase, 1).result(10) == 2
