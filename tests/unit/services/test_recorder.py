from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raskid.model.errors import TopicNameError
from raskid.protocol.values import encode_body
from raskid.services.recorder import Recorded, RecorderExtension, TopicRecorder, read


class FakeSubscription:
    def __init__(self, session: FakeSession, topic: str) -> None:
        self.session, self.topic = session, topic

    def close(self) -> None:
        self.session.closed.append(self.topic)


class FakeSession:
    """Stands for a session: keeps callbacks, and what it was to start and stop."""

    def __init__(self) -> None:
        self.callbacks: dict[str, Any] = {}
        self.closed: list[str] = []
        self.started: list[Any] = []

    def subscribe(self, topic: str, callback: Any) -> FakeSubscription:
        self.callbacks[topic] = callback
        return FakeSubscription(self, topic)

    def start_service(self, name: str, factory: Any, **settings: Any) -> str:
        self.started.append((name, factory, settings))
        return "started"

    def stop_service(self, name: str) -> str:
        return f"stopped {name}"


class FakeMessage:
    def __init__(self, topic: str, *args: Any, **fields: Any) -> None:
        self.topic, self.publisher, self.args, self.fields = topic, "peer", args, fields


def record(path: Path, *messages: FakeMessage, run: str = "r") -> None:
    session = FakeSession()
    recorder = TopicRecorder(session, ["a", "b"], str(path), run)
    for message in messages:
        session.callbacks[message.topic](message)
    recorder.close()
    assert session.closed == ["a", "b"]
    os.close(recorder._fd)


def told(path: Path) -> list[tuple[Any, ...]]:
    return [(one.topic, one.args, one.fields) for one in read(path)]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    long, short = "x" * 70_000, "é" * 40
    record(path, FakeMessage("a", 1, long, x=b"\x94\xcb"), FakeMessage("b"), FakeMessage("a", short, [1.5, None]))
    assert told(path) == [("a", (1, long), {"x": b"\x94\xcb"}), ("b", (), {}), ("a", (short, [1.5, None]), {})]
    first = next(read(path))
    assert isinstance(first, Recorded) and first.publisher == "peer" and first.time > 1.7e9
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_plain_messagepack(tmp_path: Path) -> None:
    path = tmp_path / "file"
    record(path, FakeMessage("a", 1))
    data, entries = path.read_bytes(), 0
    at = 0
    for end in range(len(data) + 1):
        try:
            time, _topic, _publisher, body = msgspec.msgpack.decode(data[at:end])
        except msgspec.DecodeError:
            continue
        assert isinstance(time, float) and isinstance(body, bytes)
        at, entries = end, entries + 1
    assert (at, entries) == (len(data), 2)


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    for content in (b"", b"something of mine", b"\x94"):
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(FileExistsError):
            TopicRecorder(FakeSession(), ["a"], str(path), "r")
        assert path.read_bytes() == content
    path.unlink()
    record(path, run="another")
    with pytest.raises(FileExistsError):
        TopicRecorder(FakeSession(), ["a"], str(path), "r")
    with pytest.raises(FileExistsError):
        TopicRecorder(FakeSession(), ["a"], str(tmp_path), "r")


def test_one_that_crashed_goes_on_with_its_own_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    record(path, FakeMessage("a", 1), FakeMessage("a", 2))
    path.write_bytes(path.read_bytes()[:-2])
    assert told(path) == [("a", (1,), {})], "what is incomplete is left out"
    record(path, FakeMessage("b", 3))
    assert told(path) == [("a", (1,), {}), ("b", (3,), {})]


@pytest.mark.parametrize(
    "content",
    [b"hello", b"\x94\xcb" + bytes(8) + b"\x01", msgspec.msgpack.encode((1.0, "a", "p", encode_body((), {})))],
)
def test_what_is_no_recording(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no recording"):
        list(read(path))


def test_the_extension_starts_and_stops_services() -> None:
    session = FakeSession()
    recorder = RecorderExtension(session)
    assert recorder.start("run1", ["a", "b", "a"], "file") == "started"
    ((name, factory, settings),) = session.started
    assert (name, factory) == ("recorder:run1", "raskid.services.recorder:TopicRecorder")
    assert settings["topics"] == ["a", "b"] and settings["path"] == os.path.abspath("file") and settings["run"]
    assert recorder.stop("run1") == "stopped recorder:run1"


def test_arguments_of_the_wrong_kind() -> None:
    recorder = RecorderExtension(FakeSession())
    with pytest.raises(TypeError, match=r"write \['a'\]"):
        recorder.start("run", "a", "file")
    with pytest.raises(ValueError, match="1 to 256 topics"):
        recorder.start("run", [], "file")
    with pytest.raises(TopicNameError):
        recorder.start("run", ["@a"], "file")
    with pytest.raises(TopicNameError):
        recorder.start("", ["a"], "file")
    with pytest.raises(TypeError):
        recorder.start("run", ["a"], 7)  # type: ignore[arg-type]
