"""The outbox: entries come out whole and in order, whatever their sizes and whenever the writer dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raskid.io import outbox as module
from raskid.io.outbox import COUNTER_WORDS, Entry, Outbox
from raskid.model.errors import RemoteProtocolError

SOURCE = str(Path(module.__file__).parents[2])


def never() -> None:
    raise AssertionError("there was room")


def pair(capacity: int = 1024) -> tuple[Outbox, Outbox]:
    reader = Outbox.create(capacity)
    return reader, Outbox.attach(reader.fileno())


def test_one_entry() -> None:
    reader, writer = pair()
    assert reader.read() == []
    assert writer.try_write(2**64 - 1, 3, True, 0.5, b"client", b"value")
    assert writer.try_write(1, 1, False, 0.0, b"", b"")
    assert reader.read() == [Entry(2**64 - 1, 3, True, 0.5, "client", b"value"), Entry(1, 1, False, 0.0, "", b"")]
    assert reader.read() == []
    reader.close()
    reader.close()
    writer.close()


def test_full_ring_refuses_and_goes_on_when_read() -> None:
    reader, writer = pair()
    written = 0
    while writer.try_write(written, 1, True, 0.0, b"c", b"v" * 60):
        written += 1
    assert written == 1024 // 96
    assert [entry.task for entry in reader.read()] == list(range(written))
    assert writer.try_write(written, 1, True, 0.0, b"c", b"v" * 60)
    assert [entry.task for entry in reader.read()] == [written]


def test_limits_of_sizes() -> None:
    reader, writer = pair()
    assert writer.fits(b"", b"v" * 224)
    assert not writer.fits(b"", b"v" * 225)
    with pytest.raises(ValueError, match="needs write"):
        writer.try_write(1, 1, True, 0.0, b"", b"v" * 225)
    with pytest.raises(ValueError, match="id of 200 bytes"):
        writer.write(1, 1, True, 0.0, b"c" * 200, b"v" * 100, never)
    for capacity in (0, 512, 1025, 1 << 32):
        with pytest.raises(ValueError, match="power of two"):
            Outbox.create(capacity)
    assert reader.capacity == writer.capacity == 1024


def test_large_value_in_pieces() -> None:
    """1. A value of 40 rings is written. 2. The reader reads whenever the writer waits. 3. It comes out once, whole."""
    reader, writer = pair()
    value = os.urandom(40 * 1024)
    seen: list[Entry] = []
    writer.write(7, 2, True, 1.5, b"client", value, lambda: seen.extend(reader.read()))
    assert seen == []
    assert reader.read() == [Entry(7, 2, True, 1.5, "client", value)]


def test_large_value_given_up() -> None:
    """1. The writer's wait raises in the middle of a value. 2. Later entries, small or large, come out alone."""
    reader, writer = pair()

    def interrupted() -> None:
        raise KeyboardInterrupt

    for later in (b"small", b"large" * 100):
        with pytest.raises(KeyboardInterrupt):
            writer.write(1, 1, True, 0.0, b"", bytes(5000), interrupted)
        assert reader.read() == []
        writer.write(2, 1, False, 0.0, b"", later, never)
        assert reader.read() == [Entry(2, 1, False, 0.0, "", later)]


@settings(deadline=None, max_examples=150)
@given(
    steps=st.lists(st.tuples(st.text(max_size=12), st.integers(0, 1500), st.booleans(), st.booleans()), max_size=60),
    strong=st.booleans(),
)
def test_any_sizes_and_any_lag(steps: list[tuple[str, int, bool, bool]], strong: bool) -> None:
    """Whatever is written, with the reader reading sometimes, comes out equal and in order; also with barriers."""
    was = module._STRONG_ORDER
    module._STRONG_ORDER = strong
    reader, writer = pair()
    try:
        read: list[Entry] = []
        expected: deque[Entry] = deque()
        for number, (client, size, ok, reads) in enumerate(steps):
            value = bytes([number % 251]) * size
            expected.append(Entry(number, number % 5, ok, float(number), client, value, ok, not reads))
            entry = expected[-1]
            writer.write(
                *entry[:4],
                client.encode(),
                entry.value,
                lambda: read.extend(reader.read()),
                entry.direct,
                entry.started,
            )
            if reads:
                read.extend(reader.read())
        read.extend(reader.read())
        assert read == list(expected)
    finally:
        module._STRONG_ORDER = was
        reader.close()
        writer.close()


def test_words_of_the_header() -> None:
    reader, writer = pair()
    assert reader.counters() == [0] * COUNTER_WORDS
    writer.set_counters([1, 2, 2**64 + 5])
    assert reader.counters() == [1, 2, 5] + [0] * 13
    writer.set_counters(list(range(20)))
    assert reader.counters() == list(range(16))
    assert reader.read() == []


@pytest.mark.parametrize("strong", [True, False])
def test_recalled_tasks_do_not_start(strong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The runner starts task 1. 2. 1, 2 and 3 are recalled: 1 may have started. 3. The runner learns of it once."""
    monkeypatch.setattr(module, "_STRONG_ORDER", strong)
    reader, writer = pair()
    assert reader.running == 0
    assert writer.start(1) == []
    assert reader.running == 1
    assert reader.recall([(1, 1), (2, 1), (3, 4)]) == ([(2, 1), (3, 4)], [(1, 1)])
    assert writer.start(2) == [(1, 1), (2, 1), (3, 4)]
    assert writer.start(3) == []
    assert reader.recall([]) == ([], [])
    assert writer.recalls() == []
    reader.recall([(7, 2)])
    assert writer.recalls() == [(7, 2)]
    assert writer.start(4) == []


def test_recalls_have_a_limit() -> None:
    """1. More is recalled than there is room for. 2. The rest counts as started. 3. There is room after a look."""
    reader, writer = pair()
    tasks = [(number, 1) for number in range(1, module.RECALLS_MAX + 3)]
    assert reader.recall(tasks) == (tasks[:-2], tasks[-2:])
    assert reader.recall([(9999, 1)]) == ([], [(9999, 1)])
    assert writer.start(5000) == tasks[:-2]
    assert reader.recall(tasks[-2:]) == (tasks[-2:], [])
    assert writer.start(5001) == tasks[-2:]
    writer._words[module._W_RECALLS_READ] = 2**40
    with pytest.raises(RemoteProtocolError, match="recalls behind"):
        reader.recall([(1, 1)])


def test_a_client_that_is_no_text_is_an_error() -> None:
    reader, writer = pair()
    writer.try_write(1, 1, True, 0.0, b"\xff\xfe", b"value")
    with pytest.raises(RemoteProtocolError, match="no text"):
        reader.read()


def test_attached_outbox_has_no_descriptor() -> None:
    reader, writer = pair()
    with pytest.raises(ValueError, match="no descriptor"):
        writer.fileno()
    reader.close()
    with pytest.raises(ValueError, match="no descriptor"):
        reader.fileno()
    assert writer.try_write(1, 1, True, 0.0, b"", b"the mapping outlives the other side")


def test_only_outboxes_can_be_attached() -> None:
    with tempfile.TemporaryFile() as file:
        with pytest.raises(RemoteProtocolError, match="less than its header"):
            Outbox.attach(file.fileno())
        file.write(bytes(10_000))
        file.flush()
        with pytest.raises(RemoteProtocolError, match="magic 0x0"):
            Outbox.attach(file.fileno())


def test_without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    reader, writer = pair()
    writer.try_write(1, 1, True, 0.0, b"c", b"v")
    assert reader.read() == [Entry(1, 1, True, 0.0, "c", b"v")]


def test_memory_cannot_be_cut_short() -> None:
    if not hasattr(os, "memfd_create"):
        pytest.skip("only memfds can be sealed")
    with pytest.raises(PermissionError):
        os.ftruncate(Outbox.create(1024).fileno(), 0)


@pytest.mark.parametrize(
    ("offset", "wrong"),
    [
        (64, (4096).to_bytes(8, sys.byteorder)),
        (64, (33).to_bytes(8, sys.byteorder)),
        (4096 + 40, (900).to_bytes(4, sys.byteorder)),
        (4096 + 40, (0).to_bytes(4, sys.byteorder)),
        (4096 + 40 + 30, b"\x05"),
    ],
    ids=["tail too far", "tail not aligned", "size", "mark", "piece of nothing"],
)
def test_nonsense_in_the_ring_is_an_error(offset: int, wrong: bytes) -> None:
    """1. Two entries are written. 2. Something overwrites a word. 3. What precedes it is read, then it raises."""
    reader, writer = pair()
    for number in range(2):
        writer.try_write(number, 1, True, 0.0, b"", b"12345678")
    writer._memory[offset : offset + len(wrong)] = wrong
    with pytest.raises(RemoteProtocolError, match="outbox"):
        assert [entry.task for entry in reader.read()] == [0]
        reader.read()


WRITER = """
import sys, zlib
from raskid.io.outbox import Outbox
outbox = Outbox.attach(int(sys.argv[1]))
number = 0
while True:
    size = (number * 7919) % 3000 if number % 10 == 0 else number % 50
    value = bytes([number % 256]) * size
    outbox.write(number, zlib.crc32(value), True, 0.0, b"client", value, lambda: None)
    number += 1
"""


@pytest.mark.parametrize("rounds", [1, 50, 500])
def test_writer_is_killed(rounds: int) -> None:
    """1. Another process writes without a pause. 2. It is killed anywhere. 3. What was read is whole, without gaps."""
    reader = Outbox.create(4096)
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(reader.fileno())], pass_fds=[reader.fileno()], env=environment
    ) as writer:
        entries: list[Entry] = []
        deadline = time.monotonic() + 20
        reads = 0
        while reads < rounds and time.monotonic() < deadline:
            more = reader.read()
            reads += bool(more)
            entries += more
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    entries += reader.read()
    assert reader.read() == []
    assert len(entries) >= rounds
    for number, entry in enumerate(entries):
        assert entry.task == number
        assert entry.attempt == zlib.crc32(entry.value)
        assert entry.client == "client"


STARTER = """
import sys
from raskid.io.outbox import Outbox
outbox = Outbox.attach(int(sys.argv[1]))
recalled = set()
for task in range(1, int(sys.argv[2])):
    recalled.update(name for name, attempt in outbox.start(task))
    outbox.write(task, 1, True, 0.0, b"", b"", lambda: None, started=task not in recalled)
"""


def test_no_task_that_was_answered_for_starts() -> None:
    """1. Another process starts one task after the other. 2. The one that it may be about to start is recalled, again
    and again. 3. What was said never to start did not; what was skipped without that word was reported as skipped."""
    reader = Outbox.create(1 << 16)
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    count = 60_000
    never: set[int] = set()
    entries: dict[int, bool] = {}
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(reader.fileno()), str(count)], pass_fds=[reader.fileno()], env=environment
    ) as starter:
        while True:
            ended = starter.poll() is not None
            running = reader.running
            told, _ = reader.recall([(running + 1, 1), (running + 2, 1)]) if not ended else ([], [])
            entries.update((entry.task, entry.started) for entry in reader.read())
            # What lies in the ring by then has started before; its entry says what became of it.
            never.update(task for task, _ in told if task not in entries)
            if ended:
                break
    assert starter.returncode == 0
    assert len(entries) == count - 1
    assert never
    assert not [task for task in never if entries.get(task)]


def test_announced_changes_never_become_fewer() -> None:
    agent, runner = pair()
    assert runner.announced == 0
    agent.announce(3)
    agent.announce(2)
    assert runner.announced == 3
