"""What runners write is passed on, and little of it is kept."""

from __future__ import annotations

import os
import resource
import threading

from raskid.services import output as module
from raskid.services.output import Output, ToLog, ToStream


class Sink:
    """Remembers how much came; can be closed for a while."""

    def __init__(self):
        self.total = 0
        self.last = b""
        self.open = threading.Event()
        self.open.set()

    def __call__(self, name, data):
        self.open.wait(20)
        self.total += len(data)
        self.last = data


def fill(fd, count):
    """Write `count` bytes and close."""
    block = b"x" * 65536
    left = count
    while left:
        left -= os.write(fd, block[: min(left, len(block))])
    os.write(fd, b"the end\n")
    os.close(fd)


def test_everything_is_passed_on_and_the_end_is_kept():
    """1. A runner writes 50 MB. 2. All of it is passed on. 3. Its last words are known; no more than that is kept."""
    sink = Sink()
    output = Output(sink)
    count = 50 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fill(output.pipe("r"), count)
    tail = output.ended("r")
    output.close()
    assert sink.total == count + 8
    assert tail.endswith("xthe end")
    assert len(tail) <= module.TOLD_BYTES
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10


def test_a_reader_that_does_not_read_holds_up_the_writer_only():
    """1. Nobody reads. 2. A runner writes more than its pipe holds, and waits. 3. The head can do everything else.
    4. Somebody reads again: nothing was lost."""
    sink = Sink()
    sink.open.clear()
    output = Output(sink)
    writer = threading.Thread(target=fill, args=(output.pipe("r"), 4 << 20))
    writer.start()
    os.close(output.pipe("s"))
    assert output.ended("s") == ""
    assert output.ended("nobody") == ""
    assert writer.is_alive()
    sink.open.set()
    writer.join(20)
    assert output.ended("r").endswith("the end")
    output.close()
    assert sink.total == (4 << 20) + 8


def test_what_ended_runners_leave_while_nobody_reads_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "PENDING_BYTES_MAX", 100_000)
    monkeypatch.setattr(module, "_CLOSE_S_MAX", 0.05)
    sink = Sink()
    sink.open.clear()
    output = Output(sink)
    for number in range(50):
        fd = output.pipe(f"r{number}")
        fill(fd, 30_000)
        output.ended(f"r{number}")
    assert output._pending_bytes < 200_000
    output.close()
    sink.open.set()
    output._thread.join(20)


def test_a_new_runner_of_the_same_name_has_a_new_tail():
    output = Output(lambda name, data: None)
    fill(output.pipe("r"), 0)
    fill(output.pipe("r"), 10)
    assert output.ended("r") == "x" * 10 + "the end"
    output.close()


def test_a_stream_that_nobody_reads_any_more_is_left_alone():
    read, write = os.pipe()
    to = ToStream(write)
    to("r", b"one")
    assert os.read(read, 10) == b"one"
    os.close(read)
    to("r", b"two")
    to("r", b"three")
    os.close(write)


def test_a_log_has_names_and_a_bound(tmp_path):
    path = tmp_path / "log"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    to = ToLog(fd, bytes_max=1000, bytes_kept=300)
    to("runner/1", b"first\nsecond")
    assert path.read_text() == "runner/1: first\nrunner/1: second\n"
    for number in range(500):
        to("runner/1", f"line {number}\n".encode())
        assert path.stat().st_size <= 1100
    text = path.read_text()
    assert text.startswith("(the beginning of this log was left out)\nrunner/1: ")
    assert text.endswith("runner/1: line 499\n")
    os.close(fd)
