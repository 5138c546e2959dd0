"""Directories of systems on this machine: where they are, whose they are, and whether anybody lives there.

A system's directory holds its unix sockets and, with mode 0600, its session file: the token and the head's address.
Its lock file is held by whoever starts the system, and then by the head, until it ends in whatever way: the kernel
lets go of the lock with the process. So whoever can take the lock knows that nobody is left, and may remove the
directory, however far its start had come.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
import time
from pathlib import Path
from typing import IO, NamedTuple

from raskid.model.errors import SessionClosed, StartFailed

#: A unix socket's path holds 107 bytes; names inside a system's directory need 24 of them.
DIRECTORY_BYTES_MAX = 80
LOCK = "raskid.lock"
SESSION = "session"
LOG = "log"
#: What has a meaning in URLs, paths or terminals.
_NOT_IN_NAMES = frozenset("/?#[]\\%@:'\"")
#: Somebody else may remove what is being made so often, one after another, before this gives up.
_TRIES_MAX = 50
#: Removing is tried so often, 50 ms apart.
REMOVE_TRIES = 10


class SessionFile(NamedTuple):
    """What a system's session file holds."""

    token: str
    address: str
    pid: int


def runtime_directory() -> Path:
    """Where systems of this user on this machine have their directories: `RASKID_RUNTIME`, or a short private one.

    Raises:
        StartFailed: It is not a directory that belongs to this user alone.
    """
    chosen = os.environ.get("RASKID_RUNTIME")
    if chosen:
        base = Path(chosen)
    else:
        base = _temporary_directory() / f"raskid-{os.getuid()}"
        if "XDG_RUNTIME_DIR" in os.environ or sys.platform == "darwin":
            import platformdirs

            base = Path(platformdirs.user_runtime_dir("raskid"))
        if len(os.fsencode(base)) > DIRECTORY_BYTES_MAX - 20 or not _can_make(base):
            base = _temporary_directory() / f"raskid-{os.getuid()}"
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Not what a link leads to: in a directory that everybody may write, the link would be another user's.
        info = os.lstat(base)
    except OSError as error:
        raise StartFailed(f"{base} cannot hold systems: {error}; set RASKID_RUNTIME to another directory") from error
    if not stat.S_ISDIR(info.st_mode):
        raise StartFailed(f"{base} is a link, not a directory; set RASKID_RUNTIME to a directory of your own")
    if info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise StartFailed(f"{base} must belong to you alone (mode 0700); set RASKID_RUNTIME to another directory")
    return base


def _temporary_directory() -> Path:
    # As `tempfile.gettempdir`, without its trial of writing there: nothing is to be imported before a head starts.
    for variable in ("TMPDIR", "TEMP", "TMP"):
        path = os.environ.get(variable)
        if path and os.path.isdir(path):
            return Path(os.path.abspath(path))
    return Path("/tmp")


def _can_make(base: Path) -> bool:
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(base, os.W_OK)


def check_name(name: str) -> str:
    """A system's name, which is part of paths and URLs.

    Raises:
        ValueError: It cannot be one; the text says why.
    """
    for character in name:
        if character in _NOT_IN_NAMES or not character.isprintable():
            raise ValueError(f"{name!r} cannot name a system: a name holds no {character!r}")
    if not name or name[0] in ".- " or name[-1] == " ":
        raise ValueError(
            f"{name!r} cannot name a system: a name is not empty, does not begin with '.', '-' or a space, and does "
            "not end with a space"
        )
    return name


def url_of(name: str) -> str:
    """What `raskid.connect` takes to attach to a system."""
    return f"local://{name}"


def claim(name: str) -> tuple[Path, int]:
    """Make the directory of a new system; returns it and the descriptor of its lock, which is held.

    Raises:
        ValueError: The name cannot be one.
        StartFailed: A system of that name runs, or the path is too long.
    """
    directory = runtime_directory() / check_name(name)
    if len(os.fsencode(directory)) > DIRECTORY_BYTES_MAX:
        raise StartFailed(f"{directory} is too long for unix sockets; set RASKID_RUNTIME to a shorter path")
    for _ in range(_TRIES_MAX):
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError as error:
            with contextlib.suppress(OSError):
                # Nothing in it: its maker came no further. (One who is only just making it makes it again.)
                directory.rmdir()
            if directory.exists() and not remove_if_dead(directory):
                raise StartFailed(
                    f"a system named {name!r} exists already ({directory}); attach to it with "
                    f"raskid.connect({url_of(name)!r}), or end it with: raskid down {quoted(name)}"
                ) from error
            continue
        except BaseException:
            # A Ctrl-C is raised when the call returns, and the directory is there.
            with contextlib.suppress(OSError):
                directory.rmdir()
            raise
        try:
            fd = _lock_new(directory)
        except BaseException:
            remove(directory)
            raise
        if fd is not None:
            return directory, fd
    raise StartFailed(f"{directory} is removed by somebody as often as it is made")


def _lock_new(directory: Path) -> int | None:
    """Take the lock of a directory just made; None when somebody who removes dead ones came in between."""
    try:
        fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    if fd < 3:
        # Where standard input or output is closed, this number would be taken for the head's own pipes.
        low, fd = fd, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(low)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def remove_if_dead(directory: Path) -> bool:
    """Remove a system's directory if its processes are gone; returns whether it is gone.

    A directory without a lock file is none of ours, and is left alone.
    """
    try:
        fd = os.open(directory / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return not directory.exists()
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # While the lock is held, so that nobody takes the directory for his own in between.
        remove(directory)
    except OSError:
        return False
    finally:
        os.close(fd)
    return not directory.exists()


def systems() -> list[str]:
    """Names of systems whose head lives and listens; directories of dead ones are removed."""
    found = []
    for directory in runtime_directory().iterdir():
        if (directory / LOCK).exists() and not remove_if_dead(directory) and (directory / SESSION).exists():
            found.append(directory.name)
    return found


def read_session(name: str) -> tuple[Path, SessionFile]:
    """The directory and session file of a running system. What a dead one left is removed.

    Raises:
        ValueError: The name cannot be one.
        SessionClosed: There is none of that name, or its head has ended.
    """
    directory = runtime_directory() / check_name(name)
    try:
        file = _read_session_file(directory / SESSION)
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(systems())) or "none"
        raise SessionClosed(
            f"no system named {name!r} runs on this machine (running: {known}); start one with: "
            f"raskid up --name {quoted(name)}"
        ) from error
    text = log_end(directory)
    if remove_if_dead(directory):
        wrote = f"; the end of its log:\n{text}" if text else ""
        raise SessionClosed(f"the system {name!r} is gone: its head (pid {file.pid}) has ended{wrote}")
    return directory, file


def _read_session_file(path: Path) -> SessionFile:
    import msgspec

    try:
        found = msgspec.json.decode(path.read_bytes())
        file = SessionFile(found["token"], found["address"], found["pid"])
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no session file: {error}") from error
    if (type(file.token), type(file.address), type(file.pid)) != (str, str, int):
        raise ValueError(f"{path} is no session file")
    return file


def remove(directory: Path) -> None:
    """Remove a system's directory, as far as that is possible."""
    from raskid.io.scratch import remove_tree

    for _ in range(REMOVE_TRIES):
        remove_tree(directory)
        if not directory.exists():
            return
        # A runner whose head was killed may be making its socket this very moment; it ends soon.
        time.sleep(0.05)


def quoted(name: str) -> str:
    """A name as a shell takes it."""
    import shlex

    return shlex.quote(name)


def write_session(directory: Path, file: SessionFile) -> None:
    """Write the session file, which nobody else may read, at once or not at all."""
    import msgspec

    path = directory / f"{SESSION}.new"
    with open_private(path) as out:
        out.write(msgspec.json.encode(file._asdict()))
    path.rename(directory / SESSION)


def open_private(path: Path) -> IO[bytes]:
    """A new file that only this user can read."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600), "w+b")


def log_end(directory: Path) -> str:
    """The end of what a head that stays has written to its log; empty when there is none."""
    try:
        with (directory / LOG).open("rb") as file:
            return text_end(file.fileno())
    except OSError:
        return ""


def text_end(fd: int, size: int = 4000) -> str:
    """The last `size` bytes of a file, as text. Does not move its position, which others may share."""
    end = os.fstat(fd).st_size
    return os.pread(fd, size, max(0, end - size)).decode(errors="replace").strip()
