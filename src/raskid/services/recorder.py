"""The recorder: a service that writes the messages of some topics into a file, and `rk.recorder`, which starts it.

A file is a stream of MessagePack arrays ``[time, topic, publisher, body]``: seconds since 1970, and the bytes of the
message as they came (`raskid.protocol.values`). The first one has an empty topic, and in the publisher's place what
names this recording, so that a recorder which is started again after a crash knows its own file and goes on with it.
Entries are written as they come; an incomplete one at the end is cut off, or left out by `read`.
"""

from __future__ import annotations

import os
import struct
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import msgspec

from raskid.model.topics import check_topic
from raskid.protocol.values import decode_body, encode_body
from raskid.services.extension import Extension

TOPICS_MAX = 256
_MARK = "raskid recording"


class _Entry(NamedTuple):
    """One entry, and where in the file it ends."""

    end: int
    time: float
    topic: str
    publisher: str
    body: bytes


class Recorded(NamedTuple):
    """One message of a recording; `time` is when it came, in seconds since 1970."""

    time: float
    topic: str
    publisher: str
    args: tuple[Any, ...]
    fields: dict[str, Any]


class TopicRecorder:
    """The service.

    Args:
        session: The session of the process.
        topics: What is recorded.
        path: The file, which must not be there yet, unless it is the one of this very `run`.
        run: Names this recording.
    """

    def __init__(self, session: Any, topics: list[str], path: str, run: str) -> None:
        self._fd = _open(path, topics, run)
        self._subscriptions = [session.subscribe(topic, self._record) for topic in topics]

    def _record(self, message: Any) -> None:
        try:
            _write(self._fd, time.time(), message.topic, message.publisher, encode_body(message.args, message.fields))
        except Exception:
            # A recording with a hole in it would be worse than none: this process ends, which is seen.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def close(self) -> None:
        """Record what was published until now; the session's end waits until that is written."""
        for subscription in self._subscriptions:
            subscription.close()


class RecorderExtension(Extension):
    """What `rk.recorder` gives; in asyncio its calls are awaited."""

    def start(self, name: str, topics: Iterable[str], path: str | os.PathLike[str]) -> Any:  # type: ignore[override]
        """Write the messages of `topics` into the file `path`, from now on until `stop(name)` or the system's end.

        The file is new, and readable for its owner only. A publisher waits when the recorder cannot keep up.

        Raises:
            StartFailed: There is such a file, or it cannot be made; or a recording of that name runs.
            TypeError: The topics are no list of names.
            TopicNameError: A name cannot be used.
        """
        if isinstance(topics, str):
            raise TypeError(f"start() takes a list of topics, got {topics!r}; write [{topics!r}]")
        names = list(dict.fromkeys(check_topic(topic) for topic in topics))
        if not 0 < len(names) <= TOPICS_MAX:
            raise ValueError(f"a recording has 1 to {TOPICS_MAX} topics, got {len(names)}")
        return self.session.start_service(
            _service(name), "raskid.services.recorder:TopicRecorder", topics=names,
            path=os.path.abspath(os.fspath(path)), run=os.urandom(8).hex(),
        )  # fmt: skip

    def stop(self, name: str) -> Any:  # type: ignore[override]
        """End a recording; what was published before is in the file when this returns.

        Raises:
            NotRunning: There is no recording of that name.
        """
        return self.session.stop_service(_service(name))


RecorderExtension.asynchronous = RecorderExtension


def _service(name: str) -> str:
    return f"recorder:{check_topic(name)}"


def read(path: str | os.PathLike[str]) -> Iterator[Recorded]:
    """The messages of a recording, in the order in which they came; also of one that is still being written.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no recording.
    """
    with open(path, "rb") as file:
        for entry in _entries(file):
            if entry.topic:
                args, fields = decode_body(entry.body)
                yield Recorded(entry.time, entry.topic, entry.publisher, args, fields)


# ── The file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _open(path: str, topics: list[str], run: str) -> int:
    """A descriptor to append to: of a new file, or of the one that this recording has begun."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        if not os.path.isfile(path):
            raise
        with open(path, "rb") as file:
            entries = _entries(file)
            try:
                first = next(entries, None)
            except ValueError:
                first = None
            if first is None or first.topic or first.publisher != run:
                raise
            end = max((entry.end for entry in entries), default=first.end)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.ftruncate(fd, end)
    else:
        _write(fd, time.time(), "", run, encode_body((_MARK,), {"topics": topics}))
    return fd


def _write(fd: int, at: float, topic: str, publisher: str, body: bytes) -> None:
    data = msgspec.msgpack.encode((at, topic, publisher, body))
    while data:
        data = data[os.write(fd, data) :]


class _Incomplete(Exception):
    """The file ends in the middle of an entry."""


def _entries(file: BinaryIO) -> Iterator[_Entry]:
    """The whole entries of a file."""
    first = True
    try:
        while mark := file.read(1):
            if mark != b"\x94" or _take(file, 1) != b"\xcb":
                raise ValueError(f"{file.name} is no recording, or is damaged at byte {file.tell() - 1}")
            (at,) = struct.unpack(">d", _take(file, 8))
            topic, publisher, body = _sized(file).decode(), _sized(file).decode(), _sized(file)
            if first and (topic or decode_body(body)[0] != (_MARK,)):
                raise ValueError(f"{file.name} is no recording")
            first = False
            yield _Entry(file.tell(), at, topic, publisher, body)
    except _Incomplete:
        return


def _sized(file: BinaryIO) -> bytes:
    """Text or bytes of MessagePack, with their length before them."""
    kind = _take(file, 1)[0]
    if 0xA0 <= kind <= 0xBF:
        return _take(file, kind & 0x1F)
    width = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}.get(kind)
    if width is None:
        raise ValueError(f"{file.name} is no recording, or is damaged at byte {file.tell() - 1}")
    return _take(file, int.from_bytes(_take(file, width), "big"))


def _take(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _Incomplete
    return data
