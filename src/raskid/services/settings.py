"""What a process of a system is told when it starts. It comes over a pipe, since it holds the token."""

import os

import msgspec

from raskid.model.ids import ORIGIN_BITS


class HeadSettings(msgspec.Struct, frozen=True):
    """For the head of a system on this machine.

    `directory` holds the unix sockets; `watch_input`: end when standard input closes (the script is gone); `preload`
    names modules that the script has and that runners would import first.
    """

    token: str
    directory: str
    runners: int
    watch_input: bool = True
    path: tuple[str, ...] = ()
    cwd: str = ""
    lease_s: float = 60.0
    name: str = ""
    preload: tuple[str, ...] = ()
    #: The script's name, for the runners' `sys.argv`.
    script: str = ""
    #: Descriptors that the head inherits: the script's standard output and standard error; -1 for none. There go what
    #: tasks print, and what runners write to theirs. Without them both go to the system's log.
    output: tuple[int, int] = (-1, -1)
    #: The class that is the manager, when it is not the built-in one: the name of an entry point, or
    #: "module:attribute".
    manager: str = ""


class HeadReady(msgspec.Struct, frozen=True):
    """What the head answers on standard output once it listens; `error` when it could not."""

    peer: str = ""
    address: str = ""
    error: str = ""


class RunnerSettings(msgspec.Struct, frozen=True):
    """For a runner."""

    token: str
    peer: str
    incarnation: int
    node: str
    node_address: str
    address: str
    path: tuple[str, ...] = ()
    cwd: str = ""
    script: str = ""
    #: The peer that keeps the lists.
    hub: str = ""


class ServiceSettings(msgspec.Struct, frozen=True):
    """For the process of a service.

    `factory` names what makes it ("module:attribute"), unless `blob` is a code object; `settings` is the pickled
    dictionary of its arguments, empty for none.
    """

    token: str
    name: str
    incarnation: int
    address: str
    directory: str
    url: str
    factory: str = ""
    code: str = ""
    blob: bytes = b""
    settings: bytes = b""
    path: tuple[str, ...] = ()
    cwd: str = ""
    script: str = ""


def new_origin() -> int:
    """A random origin for the ids that this process makes."""
    # From the kernel, as `secrets` would, whose import takes longer than the rest of this module.
    return int.from_bytes(os.urandom(16), "little") % ((1 << ORIGIN_BITS) - 1) + 1


def new_token() -> str:
    """A secret for a new system."""
    return os.urandom(32).hex()
