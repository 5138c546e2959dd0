"""Directories of systems: whose they are, and when they may go."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from raskid.launch import directories
from raskid.launch.directories import SessionFile, check_name, claim, read_session, systems, write_session
from raskid.model.errors import SessionClosed, StartFailed


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RASKID_RUNTIME", str(tmp_path / "r"))
    # The paths of pytest are long, and no socket is made here.
    monkeypatch.setattr(directories, "DIRECTORY_BYTES_MAX", 4096)
    yield tmp_path / "r"


def test_a_system_lives_as_long_as_its_lock_is_held(base: Path) -> None:
    """1. A claimed name is taken, and not listed before its session file is there. 2. It is listed. 3. Its processes
    are gone: it is neither listed nor there."""
    directory, lock = claim("t")
    assert directory == base / "t" and systems() == []
    with pytest.raises(StartFailed, match=r"exists already.*raskid.connect\('local://t'\).*raskid down t"):
        claim("t")
    write_session(directory, SessionFile("secret", "unix:x", 1))
    assert (directory / "session").stat().st_mode & 0o777 == 0o600
    assert systems() == ["t"] and read_session("t") == (directory, SessionFile("secret", "unix:x", 1))
    os.close(lock)
    assert systems() == [] and not directory.exists()


def test_a_dead_system_cannot_be_attached_to(base: Path) -> None:
    directory, lock = claim("two words")
    write_session(directory, SessionFile("secret", "unix:x", 123))
    (directory / "log").write_text("its last words\n")
    os.close(lock)
    with pytest.raises(SessionClosed, match=r"'two words' is gone: its head \(pid 123\) has ended; .*\nits last words"):
        read_session("two words")
    with pytest.raises(SessionClosed, match=r"no system named 'two words'.*raskid up --name 'two words'"):
        read_session("two words")


def test_what_a_dead_start_left_does_not_keep_the_name(base: Path) -> None:
    """A starting process can end before the lock is made, before it is taken, and before anything else is there."""
    base.mkdir(mode=0o700)
    (base / "t").mkdir()
    directory, lock = claim("t")
    os.close(lock)
    (directory / "head").touch()
    assert claim("t")[0] == directory
    assert not (directory / "head").exists()


def test_whoever_removes_a_directory_may_come_between(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The lock file is made. 2. Somebody who looks for dead systems takes the lock first, and removes the directory.
    3. It is made again."""
    real = fcntl.flock
    met = []

    def flock(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        met.append(directories.remove_if_dead(base / "t"))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    directory, lock = claim("t")
    assert met == [True] and not directories.remove_if_dead(directory)
    os.close(lock)


def test_directories_of_others_are_left_alone(base: Path) -> None:
    base.mkdir(mode=0o700)
    (base / "mine").mkdir()
    (base / "mine" / "session").write_text("a diary")
    (base / "file").touch()
    assert systems() == []
    with pytest.raises(SessionClosed):
        read_session("mine")
    assert (base / "mine" / "session").read_text() == "a diary"


def test_the_runtime_directory_is_no_link_and_nobody_elses(base: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    base.symlink_to(target)
    with pytest.raises(StartFailed, match="is a link"):
        systems()
    base.unlink()
    base.mkdir(mode=0o755)
    base.chmod(0o755)
    with pytest.raises(StartFailed, match="mode 0700"):
        systems()
    base.rmdir()
    base.touch()
    with pytest.raises(StartFailed, match="cannot hold systems"):
        systems()


@pytest.mark.parametrize("name", ["", "..", ".x", "-x", " x", "x ", "a/b", "a?b", "a#b", "a\nb", "a'b", "a%20b"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a system"):
        check_name(name)


@pytest.mark.parametrize("name", ["default", "s-12ab", "two words", "größe", "a.b_c"])
def test_names_that_can_be(name: str) -> None:
    assert check_name(name) == name


def test_the_end_of_a_file_is_read_without_moving_in_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 5000 + b"the end\n")
    with path.open("rb") as file:
        text = directories.text_end(file.fileno(), 10)
        assert text == "xxthe end" and file.tell() == 0


def test_an_interrupt_while_the_directory_is_made_leaves_none(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A Ctrl-C comes while the kernel makes the directory. 2. It is raised when the call returns."""
    made = os.mkdir

    def mkdir(path: str, mode: int = 0o777) -> None:
        made(path, mode)
        if str(path).endswith("interrupted"):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(KeyboardInterrupt):
        claim("interrupted")
    assert not (base / "interrupted").exists()
