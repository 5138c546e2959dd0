"""A process that was forked gives up its copies of connections: the other process's go on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from raskid.io.poller import READ, Poller
from raskid.io.transports import listen
from tests.unit.io.ends import KINDS, ends, until


def in_a_child(work: Callable[[], object]) -> None:
    """Call `work` in a forked process, which then ends."""
    with warnings.catch_warnings():
        # Some kinds of connection have a thread.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_goes_on(kind: str) -> None:
    with ends(kind) as (near, far):
        came = bytearray()

        def turn() -> None:
            near.flush()
            if kind == "tls":
                near.receive()
            came.extend(far.receive() or b"")

        near.send(b"before")
        until(lambda: came == b"before", turn)
        in_a_child(near.abandon)
        near.send(b" and after")
        until(lambda: came == b"before and after", turn)


def test_a_listener_goes_on() -> None:
    path = Path(f"/tmp/rk-abandon-{os.getpid()}")
    listener = listen(f"unix:{path}")
    in_a_child(listener.abandon)
    assert path.exists()
    listener.close()
    assert not path.exists()


def test_what_is_watched_stays_watched() -> None:
    """Closing the set of descriptors in the child is no removal from it, which both processes would see."""
    poller = Poller()
    read, write = os.pipe()
    poller.set(read, READ, False)

    def give_up() -> None:
        poller.close()
        os.close(read)

    in_a_child(give_up)
    os.write(write, b"!")
    assert [fd for fd, _ in poller.wait(5.0)] == [read]
    poller.close()
    os.close(read)
    os.close(write)
