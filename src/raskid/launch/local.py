"""Systems on this machine: start one for a script, or one that stays; attach to either by its name.

What this module imports delays every start, since the head's process is started first and everything else afterwards.

The head gets its settings, token included, on its standard input, which it also watches: when the script is gone in
whatever way, its end of the pipe closes, and the system ends. The head of a system that stays does not watch it, and
writes its errors to `log` in the system's directory. Directories are the business of `raskid.launch.directories`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from raskid.client.interrupts import interrupts_held
from raskid.launch.directories import (
    DIRECTORY_BYTES_MAX,
    LOG,
    SessionFile,
    check_name,
    claim,
    open_private,
    read_session,
    remove,
    runtime_directory,
    systems,
    text_end,
    url_of,
    write_session,
)
from raskid.model.errors import StartFailed
from raskid.model.roles import ROLE_EXECUTE

if TYPE_CHECKING:
    from raskid.client.session import Session
    from raskid.services.settings import HeadReady

__all__ = [
    "DIRECTORY_BYTES_MAX",
    "HeadHandle",
    "SessionFile",
    "attach",
    "await_head",
    "begin_head",
    "check_name",
    "default_runners",
    "read_session",
    "runtime_directory",
    "start",
    "start_head",
    "systems",
]

START_S = 20.0
#: How long a head may take to end before it is killed.
STOP_S = 4.0
#: Modules that take long to import: if the script has one, runners get it before they are forked.
PRELOAD = ("numpy",)


#: Heads that this process has started and not ended. A Ctrl-C can interrupt even the tidying up after a Ctrl-C; what is
#: still here when the process ends is tidied up then.
_begun: dict[Path, HeadHandle] = {}


@atexit.register
def _end_begun() -> None:
    for handle in list(_begun.values()):
        handle.stop(kill=True)


os.register_at_fork(after_in_child=_begun.clear)


def default_runners() -> int:
    """One runner for each processor that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class HeadHandle:
    """The head process that this process started."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, errors: IO[bytes]) -> None:
        self.process = process
        self.directory = directory
        self._errors = errors
        self._text = ""

    def error_text(self) -> str:
        """The end of what it wrote to its standard error."""
        if not self._errors.closed:
            self._text = text_end(self._errors.fileno())
        return self._text

    def _streams(self) -> list[IO[bytes]]:
        return [stream for stream in (self.process.stdin, self.process.stdout, self._errors) if stream is not None]

    def _close(self) -> None:
        self.error_text()
        for stream in self._streams():
            with contextlib.suppress(OSError):
                stream.close()

    def detach(self) -> None:
        """Let go of a head that stays: close this end of its pipes, and wait for it no longer."""
        _begun.pop(self.directory, None)
        self._close()
        # It outlives this process, so that there is nothing to wait for; else Popen would warn that it still runs.
        self.process.returncode = 0

    def abandon(self) -> None:
        """In a process that was forked: close the copies of the descriptors. The head is the other process's."""
        for stream in self._streams():
            # Below the buffers, whose locks threads may have held that are not here.
            with contextlib.suppress(OSError):
                (stream.raw if hasattr(stream, "raw") else stream).close()
        self.process.returncode = 0

    def stop(self, kill: bool = False) -> None:
        """Close its input, which ends the system, and wait; `kill` it, at once or if it does not end."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            if kill:
                self.process.kill()
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        finally:
            self._close()
            remove(self.directory)
            _begun.pop(self.directory, None)


def start_head(
    runners: int, name: str, watch_input: bool, timeout: float = START_S, script: str | None = None,
    output: tuple[int, int] = (1, 2), manager: str = "",
) -> tuple[HeadHandle, SessionFile]:  # fmt: skip
    """Start a head and its runners, and wait until it listens, at most `timeout` seconds.

    Raises:
        StartFailed: It did not come up; the text holds its standard error.
    """
    handle, token = begin_head(runners, name, watch_input, script, output, manager)
    return handle, await_head(handle, token, timeout)


def begin_head(
    runners: int, name: str, watch_input: bool, script: str | None = None, output: tuple[int, int] = (1, 2),
    manager: str = "",
) -> tuple[HeadHandle, str]:  # fmt: skip
    """Start the process of a head; returns it and the new system's token. Does not wait.

    Args:
        runners: How many runners it starts.
        name: The system's name.
        watch_input: Whether the system ends when this process is gone; else it stays, and writes to its log.
        script: The script whose tasks it is to run; None: the one that this process runs.
        output: Descriptors to which standard output and standard error of runners go, if the system does not stay.
        manager: What takes the place of the built-in manager.
    Raises:
        StartFailed: A system of that name runs, or no process could be started.
    """
    directory, lock = claim(name)
    handle: HeadHandle | None = None
    errors: IO[bytes] | None = None
    copies: tuple[()] | tuple[int, int] = ()
    try:
        # Closed with the handle, which reads it when something went wrong.
        errors = _nameless() if watch_input else open_private(directory / LOG)
        copies = _copies(output) if watch_input else ()
        handle = HeadHandle(_spawn(errors, (lock, *copies)), directory, errors)
        _begun[directory] = handle
        # Not before: the head, which takes longest, is on its way now.
        with interrupts_held():
            import msgspec

            from raskid.io.packets import pack
            from raskid.services.settings import HeadSettings, new_token

        token = new_token()
        # Python puts a script's directory first, so that the script can import what lies there.
        entries = sys.path if script is None else [os.path.dirname(script), *sys.path]
        path = tuple(dict.fromkeys(os.path.abspath(entry or os.getcwd()) for entry in entries))
        preload = tuple(module for module in PRELOAD if module in sys.modules)
        settings = HeadSettings(
            token, str(directory), runners, watch_input, path, os.getcwd(), name=name, preload=preload,
            script=script or "".join(sys.argv[:1]), output=copies or (-1, -1), manager=manager,
        )  # fmt: skip
        data = msgspec.msgpack.encode(settings)
        process = handle.process
        assert process.stdin is not None
        # If it has ended already, whoever waits for its answer says with which words.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(pack(data))
            process.stdin.flush()
        # While the head imports what it needs: what starts that were killed have left behind goes.
        systems()
    except BaseException as error:
        if handle is not None:
            handle.stop(kill=True)
        elif errors is not None:
            errors.close()
        remove(directory)
        if isinstance(error, OSError):
            raise StartFailed(f"the head's process cannot be started: {error}") from error
        raise
    finally:
        # The head has it now, and holds the lock as long as it lives.
        for fd in (lock, *copies):
            os.close(fd)
    return handle, token


def _nameless() -> IO[bytes]:
    from raskid.io.scratch import nameless_file

    return os.fdopen(nameless_file("raskid-head"), "w+b")


def _copies(output: tuple[int, int]) -> tuple[()] | tuple[int, int]:
    """Copies of the descriptors where runners' output goes; none where this process does not have them."""
    try:
        first = os.dup(output[0])
    except OSError:
        return ()
    try:
        return first, os.dup(output[1])
    except OSError:
        os.close(first)
        return ()


def _spawn(errors: IO[bytes], inherited: tuple[int, ...]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "raskid.services.boot"]
    source = str(Path(__file__).resolve().parents[2])
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([source, *filter(None, [env.get("PYTHONPATH")])]))
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True, env=env,
        pass_fds=inherited,
    )  # fmt: skip


def await_head(handle: HeadHandle, token: str, timeout: float = START_S) -> SessionFile:
    """Wait until a head that was begun listens, at most `timeout` seconds; write its session file.

    Raises:
        StartFailed: It did not come up; the text holds its standard error.
    """
    try:
        ready = _read_ready(handle, timeout)
        file = SessionFile(token, ready.address, handle.process.pid)
        write_session(handle.directory, file)
        return file
    except BaseException:
        handle.stop(kill=True)
        raise


def _read_ready(handle: HeadHandle, timeout: float) -> HeadReady:
    import msgspec

    from raskid.io.packets import take_packets
    from raskid.services.settings import HeadReady

    process = handle.process
    assert process.stdout is not None
    fd = process.stdout.fileno()
    received = bytearray()
    deadline = time.monotonic() + timeout
    while not (bodies := take_packets(received)):
        left = deadline - time.monotonic()
        if left <= 0:
            raise StartFailed(f"the head did not start within {timeout:g} s; it wrote:\n{handle.error_text()}")
        if select.select([fd], [], [], left)[0]:
            piece = os.read(fd, 65536)
            if not piece:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
                raise StartFailed(f"the head ended with code {process.returncode}; it wrote:\n{handle.error_text()}")
            received += piece
    ready = msgspec.msgpack.decode(bodies[0], type=HeadReady)
    if ready.error:
        raise StartFailed(f"the head could not start:\n{ready.error}")
    return ready


class _Log:
    """The log of a head that stays, kept open: its end can be read when the head has removed its directory."""

    def __init__(self, directory: Path) -> None:
        self._file: IO[bytes] | None = None
        with contextlib.suppress(OSError):
            self._file = open(directory / LOG, "rb", buffering=0)  # noqa: SIM115 - `close` closes it

    def text(self) -> str:
        """Its end."""
        return text_end(self._file.fileno()) if self._file is not None and not self._file.closed else ""

    def close(self) -> None:
        """Read it no more."""
        if self._file is not None:
            self._file.close()


def attach(name: str, role: str, timeout: float) -> Session:
    """A session in a system that runs on this machine."""
    with interrupts_held():
        from raskid.client.session import Session
        from raskid.protocol.tokens import derive

    directory, file = read_session(name)
    log = _Log(directory)
    # The file holds the token of the highest role; a session holds no more than it asks for.
    token = derive(file.token, ROLE_EXECUTE, role)
    return Session(
        file.address, token, role, str(directory), url_of(name), timeout, on_close=log.close, on_fork=log.close,
        head_text=log.text,
    )  # fmt: skip


def start(runners: int, role: str, timeout: float, manager: str = "") -> Session:
    """A new system that ends with this session, and the session."""
    deadline = time.monotonic() + timeout
    name = f"s-{os.urandom(4).hex()}"
    handle, token = begin_head(runners, name, watch_input=True, manager=manager)
    try:
        # Imported while the head starts.
        with interrupts_held():
            from raskid.client.session import Session
            from raskid.protocol.tokens import derive

        file = await_head(handle, token, timeout)
        session = Session(
            file.address, derive(token, ROLE_EXECUTE, role), role, str(handle.directory), url_of(name),
            max(0.1, deadline - time.monotonic()), on_close=handle.stop, on_fork=handle.abandon,
            head_text=handle.error_text,
        )  # fmt: skip
        session.started_system = True
        return session
    except BaseException as error:
        handle.stop(kill=True)
        text = handle.error_text()
        if text and text not in str(error):
            error.add_note(f"the head wrote:\n{text}")
        raise
