"""Systems on this machine: start one for a script, or one that stays; attach to either by its name.

A system's directory holds its unix sockets and, with mode 0600, its session file: the token and the head's address.
The head gets its settings, token included, on its standard input, which it also watches: when the script is gone in
whatever way, its end of the pipe closes, and the system ends. The head of a system that stays does not watch it, and
writes its errors to `log` in the system's directory.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from raskid.model.errors import SessionClosed, StartFailed
from raskid.services.settings import HeadReady, HeadSettings, new_token

if TYPE_CHECKING:
    from raskid.client.session import Session

START_S = 20.0
#: Modules that take long to import: if the script has one, runners get it before they are forked.
PRELOAD = ("numpy",)
#: A unix socket's path holds 107 bytes; names inside a system's directory need 24 of them.
DIRECTORY_BYTES_MAX = 80


class SessionFile(msgspec.Struct, frozen=True):
    """What a system's session file holds."""

    token: str
    address: str
    pid: int


def runtime_directory() -> Path:
    """Where systems of this user on this machine have their directories: `RASKID_RUNTIME`, or a short private one."""
    chosen = os.environ.get("RASKID_RUNTIME")
    if chosen:
        base = Path(chosen)
    else:
        base = Path(tempfile.gettempdir()) / f"raskid-{os.getuid()}"
        if "XDG_RUNTIME_DIR" in os.environ or sys.platform == "darwin":
            import platformdirs

            base = Path(platformdirs.user_runtime_dir("raskid"))
        if len(os.fsencode(base)) > DIRECTORY_BYTES_MAX - 20 or not _can_make(base):
            base = Path(tempfile.gettempdir()) / f"raskid-{os.getuid()}"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = base.stat()
    if info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise StartFailed(f"{base} must belong to you alone (mode 0700); set RASKID_RUNTIME to another directory")
    return base


def _can_make(base: Path) -> bool:
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(base, os.W_OK)


def default_runners() -> int:
    """One runner for each processor that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class HeadHandle:
    """The head process that this process started."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, errors: IO[bytes]) -> None:
        self.process = process
        self.directory = directory
        self._errors = errors

    def error_text(self) -> str:
        """What it wrote to its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()

    def detach(self) -> None:
        """Let go of a head that stays: close this end of its pipes, and wait for it no longer."""
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        # It outlives this process, so that there is nothing to wait for; else Popen would warn that it still runs.
        self.process.returncode = 0

    def stop(self) -> None:
        """Close its input, which ends the system, and wait; kill it if it does not end."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(4.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._errors.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def start_head(runners: int, name: str, watch_input: bool) -> tuple[HeadHandle, SessionFile]:
    """Start a head and its runners, and wait until it listens.

    Raises:
        StartFailed: It did not come up; the text holds its standard error.
    """
    handle, token = begin_head(runners, name, watch_input)
    return handle, await_head(handle, token)


def begin_head(runners: int, name: str, watch_input: bool) -> tuple[HeadHandle, str]:
    """Start the process of a head; returns it and the new system's token. Does not wait."""
    directory = runtime_directory() / name
    if len(os.fsencode(directory)) > DIRECTORY_BYTES_MAX:
        raise StartFailed(f"{directory} is too long for unix sockets; set RASKID_RUNTIME to a shorter path")
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError as error:
        raise StartFailed(
            f"a system named {name!r} exists already ({directory}); end it with: raskid down {name}"
        ) from error
    # Closed with the handle, which reads it when something went wrong.
    errors: IO[bytes] = tempfile.TemporaryFile() if watch_input else _open_private(directory / "log")  # noqa: SIM115
    command = [sys.executable, "-m", "raskid.services.boot"]
    source = str(Path(__file__).resolve().parents[2])
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([source, *filter(None, [env.get("PYTHONPATH")])]))
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True, env=env
    )
    handle = HeadHandle(process, directory, errors)
    token = new_token()
    path = tuple(dict.fromkeys(os.path.abspath(entry or os.getcwd()) for entry in sys.path))
    preload = tuple(module for module in PRELOAD if module in sys.modules)
    settings = HeadSettings(token, str(directory), runners, watch_input, path, os.getcwd(), name=name, preload=preload)
    try:
        data = msgspec.msgpack.encode(settings)
        assert process.stdin is not None
        process.stdin.write(len(data).to_bytes(4, "little") + data)
        process.stdin.flush()
    except BrokenPipeError:
        # It has ended already; whoever waits for its answer says with which words.
        pass
    return handle, token


def await_head(handle: HeadHandle, token: str) -> SessionFile:
    """Wait until a head that was begun listens; write its session file.

    Raises:
        StartFailed: It did not come up; the text holds its standard error.
    """
    try:
        ready = _read_ready(handle.process, handle)
        file = SessionFile(token, ready.address, handle.process.pid)
        _write_private(handle.directory / "session", msgspec.json.encode(file))
        return file
    except BaseException:
        handle.process.kill()
        handle.stop()
        raise


def _read_ready(process: subprocess.Popen[bytes], handle: HeadHandle) -> HeadReady:
    assert process.stdout is not None
    fd = process.stdout.fileno()
    data = b""
    deadline = time.monotonic() + START_S
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise StartFailed(f"the head did not start within {START_S:g} s; it wrote:\n{handle.error_text()}")
        if select.select([fd], [], [], left)[0]:
            piece = os.read(fd, 65536)
            if not piece:
                process.wait(5)
                raise StartFailed(f"the head ended with code {process.returncode}; it wrote:\n{handle.error_text()}")
            data += piece
    ready = msgspec.msgpack.decode(data[4:], type=HeadReady)
    if ready.error:
        raise StartFailed(f"the head could not start:\n{ready.error}")
    return ready


def _open_private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600), "w+b")


def _write_private(path: Path, data: bytes) -> None:
    with _open_private(path) as file:
        file.write(data)


def read_session(name: str) -> tuple[Path, SessionFile]:
    """The directory and session file of a running system.

    Raises:
        SessionClosed: There is none of that name.
    """
    directory = runtime_directory() / name
    try:
        return directory, msgspec.json.decode((directory / "session").read_bytes(), type=SessionFile)
    except (OSError, msgspec.DecodeError) as error:
        known = ", ".join(sorted(systems())) or "none"
        raise SessionClosed(
            f"no system named {name!r} runs on this machine (running: {known}); start one with: raskid up --name {name}"
        ) from error


def systems() -> list[str]:
    """Names of systems whose head lives; directories of dead ones are removed."""
    found = []
    for directory in runtime_directory().iterdir():
        try:
            file = msgspec.json.decode((directory / "session").read_bytes(), type=SessionFile)
            os.kill(file.pid, 0)
        except ProcessLookupError:
            shutil.rmtree(directory, ignore_errors=True)
        except (OSError, msgspec.DecodeError):
            continue
        else:
            found.append(directory.name)
    return found


def attach(name: str, role: str, timeout: float) -> Session:
    """A session in a system that runs on this machine."""
    from raskid.client.session import Session

    directory, file = read_session(name)
    return Session(file.address, file.token, role, str(directory), f"local://{name}", timeout)


def start(runners: int, role: str, timeout: float) -> Session:
    """A new system that ends with this session, and the session."""
    name = f"s-{secrets.token_hex(4)}"
    handle, token = begin_head(runners, name, watch_input=True)
    # Imported while the head starts.
    from raskid.client.session import Session

    file = await_head(handle, token)
    try:
        return Session(
            file.address, file.token, role, str(handle.directory), f"local://{name}", timeout, on_close=handle.stop
        )
    except BaseException as error:
        text = handle.error_text()
        if handle.process.poll() is None:
            handle.stop()
        if text:
            error.add_note(f"the head wrote:\n{text}")
        raise
