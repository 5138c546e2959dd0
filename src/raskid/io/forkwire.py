"""What a fork server and its agent say to each other, and what both need to know.

Packets (`raskid.io.packets`) of MessagePack arrays; descriptors travel with the first byte of the `Fork` that they
belong to.
"""

from __future__ import annotations

import contextlib
import os
import signal

import msgspec

from raskid.io.packets import pack
from raskid.model.ids import PeerId

DEFAULT_TARGET = "raskid.services.runner:run"


class Fork(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Agent to server: start a runner. `passes` says which of (outbox, output, errors) come along as
    descriptors."""

    runner: PeerId
    incarnation: int
    config: bytes
    passes: tuple[bool, ...]
    target: str = DEFAULT_TARGET


class Kill(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Agent to server: kill every incarnation of this runner, with what it started."""

    runner: PeerId


class Forked(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The runner's process exists."""

    runner: PeerId
    incarnation: int
    pid: int


class Exited(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The runner's process ended, and its process group was killed. `pid` is 0 when it could not be forked."""

    runner: PeerId
    incarnation: int
    pid: int
    reason: str


Request = Fork | Kill
Reply = Forked | Exited


def packet(message: Request | Reply) -> bytes:
    """A message as it goes over the socket."""
    return pack(msgspec.msgpack.encode(message))


def kill_group(pid: int, *, leader: bool) -> None:
    """Kills a runner's group; also the `leader` by itself, which may not have made its group yet."""
    if leader:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
