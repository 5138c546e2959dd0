"""The processes of services, as the head starts and ends them for its steward (`raskid.core.steward`).

A process is forked by the fork server like a runner. In the place of an outbox it gets the end of a pipe that is never
written to: when the head closes the other end, the process is to end, which it also is when the head is gone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from raskid.core.effects import Effect, EndService, ForkService, ServiceReported
from raskid.core.events import ServiceExited
from raskid.io.forkserver import Exited, ForkServer
from raskid.model.ids import PeerId
from raskid.services.output import Output
from raskid.services.settings import HeadSettings, ServiceSettings

#: What becomes of the forked process. It stands above this package, and is imported by that process only.
TARGET = "raskid.client.service:run"
#: How long services may take to end at the end of their system.
CLOSE_S = 1.0
#: Names of these processes for the fork server and in the log.
_PREFIX = "service "


class Upkeep:
    """The processes of a head's services.

    Args:
        settings: The head's.
        address: Where the head listens.
        output: Takes what the processes write to their standard error.
        server: Gives the fork server of the moment.
        handle: Gives an event to the head's machines.
    """

    def __init__(
        self, settings: HeadSettings, address: str, output: Output, server: Callable[[], ForkServer | None],
        handle: Callable[[ServiceExited], None],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._address = address
        self._output = output
        self._server = server
        self._handle = handle
        #: For each process that has not ended its incarnation, and this end of its pipe: -1 once it was closed.
        self._lives: dict[PeerId, tuple[int, int]] = {}

    def apply(self, effect: Effect) -> bool:
        """Do what the steward asks for; False for an effect that is not the steward's."""
        if isinstance(effect, ForkService):
            self._fork(effect)
        elif isinstance(effect, EndService):
            self._end(effect)
        elif isinstance(effect, ServiceReported):
            print(f"raskid: the service {effect.name!r} {effect.text}", file=sys.stderr)
        else:
            return False
        return True

    def _fork(self, effect: ForkService) -> None:
        server, settings = self._server(), self._settings
        assert server is not None
        config = ServiceSettings(
            settings.token, effect.name, effect.incarnation, self._address, settings.directory,
            f"local://{settings.name}", effect.code.name, effect.code.code, effect.code.blob, effect.settings,
            settings.path, settings.cwd, settings.script,
        )  # fmt: skip
        process = PeerId(_PREFIX + effect.name)
        theirs, ours = os.pipe()
        errors = self._output.pipe(process)
        self._lives[process] = (effect.incarnation, ours)
        server.fork(
            process, effect.incarnation, msgspec.msgpack.encode(config), (theirs, settings.output[0], errors), TARGET
        )
        os.close(theirs)
        os.close(errors)

    def _end(self, effect: EndService) -> None:
        process = PeerId(_PREFIX + effect.name)
        server = self._server()
        if effect.kill and server is not None:
            server.kill(process)
        else:
            self._let_go(process)

    def _let_go(self, process: PeerId) -> None:
        incarnation, life = self._lives.get(process, (0, -1))
        if life >= 0:
            os.close(life)
            self._lives[process] = (incarnation, -1)

    def exited(self, event: Exited) -> bool:
        """The fork server saw a process end; False when it was no service's."""
        if event.runner not in self._lives:
            return False
        self._let_go(event.runner)
        incarnation, _ = self._lives.pop(event.runner)
        wrote = self._output.ended(event.runner)
        orderly = event.reason == "exit code 0"
        reason = f"{event.reason}; the last it wrote:\n{wrote}" if wrote and not orderly else event.reason
        self._handle(ServiceExited(event.runner.removeprefix(_PREFIX), incarnation, reason, orderly))
        return True

    def finish(self, step: Callable[[float], Any]) -> None:
        """The system ends: have the services end in order, for `CLOSE_S` at most; `step` serves the fork server."""
        self.close()
        until = time.monotonic() + CLOSE_S
        while self._lives and (left := until - time.monotonic()) > 0:
            step(left)

    def close(self) -> None:
        """Let go of all processes."""
        for process in list(self._lives):
            self._let_go(process)
