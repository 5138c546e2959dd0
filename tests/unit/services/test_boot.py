"""The first process of a system: what its fork server has, which it forked, and what it leaves as it found it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import raskid

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_the_fork_server_has_nothing_of_the_head() -> None:
    """1. Start a system. 2. Its fork server has one thread, and of descriptors only its own: no socket of the head,
    not the script's output, not the pipe whose end tells the head that the script is gone."""
    with raskid.connect("local://?runners=1") as rk:
        rk.wait_runners(1)
        head = rk.status()["head"]["pid"]
        (server,) = children(head)
        assert len(os.listdir(f"/proc/{server}/task")) == 1
        links = {int(fd): os.readlink(f"/proc/{server}/fd/{fd}") for fd in os.listdir(f"/proc/{server}/fd")}
        assert links[0] == "/dev/null"
        assert "raskid-forkserver" in links[1] and links[1] == links[2]
        # Its end of the socket to the head, and the two by which signals wake it.
        assert sorted(link.partition(":")[0] for fd, link in links.items() if fd > 2) == ["socket"] * 3
        assert os.getpgid(server) == server


def test_a_module_kept_away_while_starting_can_be_imported_afterwards() -> None:
    code = "import raskid.services.boot, sys; assert 'typing_extensions' not in sys.modules; import typing_extensions"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    # It is there wherever something installed needs it; raskid itself does not.
    assert done.returncode == 0 or "No module named 'typing_extensions'" in done.stderr, done.stderr
