"""A runner: one thread on a blocking poll loop, which runs tasks one at a time.

Between tasks it looks at its connections, but no more often than every `POLL_S`, and writes results out as often; a
task that takes longer than that is preceded and followed by a look. Every outcome lies in the shared-memory outbox
before the next task starts, so the node can answer for it while this process is busy, or after it has died.
"""

from __future__ import annotations

import os
import pickle
import platform
import random
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from raskid.core.machine import Effect, PeerGone
from raskid.core.peer import Identity, Peer
from raskid.core.relay import RelayEnd
from raskid.core.runner import Record, Runner, Stop, TaskDone
from raskid.core.station import Station, Told
from raskid.io.driver import Driver
from raskid.io.outbox import Outbox
from raskid.io.transports import listen
from raskid.model.ids import CodeId, IdSource, PeerId, TaskId
from raskid.model.version import VERSION
from raskid.protocol.messages import KIND_RUNNER, PeerRef, Placement, TasksFinished
from raskid.services.calling import dump_error, dump_result, is_atom, load_arguments
from raskid.services.settings import RunnerSettings, new_origin

POLL_S = 0.0005
#: How long to look for the next task before sleeping, where there are processors for that.
SPIN_S = 0.0001 if (os.cpu_count() or 1) > 1 else 0.0

_pc = time.perf_counter


class RunnerProcess:
    """The runner's station and the functions it has loaded."""

    def __init__(self, settings: RunnerSettings, outbox: Outbox) -> None:
        self.settings = settings
        self.outbox = outbox
        self.ids = IdSource(new_origin())
        node = PeerId(settings.node)
        own = PeerRef(PeerId(settings.peer), settings.incarnation, (settings.address,))
        identity = Identity(
            own.peer, own.incarnation, self.ids.origin, KIND_RUNNER, settings.token, addresses=own.addresses,
            host=socket.gethostname(), pid=os.getpid(), python=platform.python_version(), raskid=VERSION,
        )  # fmt: skip
        peer = Peer(identity, head=node)
        peer.introduce(PeerRef(node, 0, (settings.node_address,)))
        self.machine = Runner(own)
        self.station = Station(peer, [self.machine], RelayEnd(node, self.ids))
        self.driver = Driver(self.station, self._apply)
        self.driver.spin_s = SPIN_S
        self.driver.listen(listen(settings.address))
        self.where = f"{settings.peer} (pid {os.getpid()}, {socket.gethostname()})"
        self._functions: dict[CodeId, Callable[..., Any]] = {}
        #: Values of inputs that nobody can change, by the identity of their bytes' owner.
        self._atoms: dict[TaskId, Any] = {}
        self._rung = 0
        self.stopping = ""

    def _apply(self, effect: Effect) -> None:
        kind = type(effect)
        if kind is Record:
            assert isinstance(effect, Record)
            self.outbox.write(
                effect.task, effect.attempt, effect.ok, effect.seconds, effect.client.encode(), effect.value,
                self._outbox_full,
            )  # fmt: skip
            if effect.urgent:
                self._rung += 1
        elif kind is Stop:
            assert isinstance(effect, Stop)
            self.stopping = effect.reason or "asked to"
        elif kind is Told:
            assert isinstance(effect, Told)
            if isinstance(effect.event, PeerGone) and effect.event.peer == self.settings.node:
                self.stopping = "the node is gone"

    def ring(self) -> None:
        """Tell the node that the outbox has something new."""
        if self._rung:
            self._rung = 0
            self.outbox.set_counters(self.driver.totals().as_list())
            # An empty report is the bell: the outcomes themselves are in shared memory.
            self.driver.perform(
                self.station.peer.send(PeerId(self.settings.node), TasksFinished([]), self.driver.clock())
            )

    def _outbox_full(self) -> None:
        self._rung = 1
        self.ring()
        self.driver.flush()
        time.sleep(0.0005)

    def join(self) -> None:
        """Begin to connect to the node."""
        self._rung = 1
        self.ring()

    def run(self) -> None:
        """Run tasks until told to stop."""
        driver = self.driver
        machine = self.machine
        self.join()
        looked = 0.0
        counters = driver.counters
        while not self.stopping:
            placement = machine.next_task()
            if placement is None:
                self.ring()
                driver.step(None)
                looked = _pc()
                continue
            counters.tasks += 1
            started = _pc()
            if started - looked > POLL_S:
                looked = started
                self.ring()
                driver.step(0)
                if self.stopping:
                    break
                started = _pc()
            ok, value = self._execute(placement)
            seconds = _pc() - started
            driver.handle(TaskDone(ok, value, seconds))
            if seconds > POLL_S:
                self.ring()
                driver.flush()
        self.station.peer.goodbye(self.stopping)
        driver.close()

    def _function(self, code: CodeId) -> Callable[..., Any]:
        function = self._functions.get(code)
        if function is None:
            loaded = pickle.loads(self.machine.codes[code])
            if not callable(loaded):
                raise TypeError(f"code object {code} is a {type(loaded).__name__}, not a function")
            function = self._functions[code] = loaded
        return function

    def _input(self, task: TaskId) -> Any:
        if task in self._atoms:
            return self._atoms[task]
        running = self.machine.running
        if running is not None and running.spec.inline:
            for name, data in running.spec.inline:
                if name == task:
                    return pickle.loads(data)
        return pickle.loads(self.machine.value(task).data)

    def _execute(self, placement: Placement) -> tuple[bool, bytes]:
        spec = placement.spec
        try:
            if spec.inputs and (failed := self.machine.failed_input(placement)) is not None:
                return False, failed.data
            function = self._function(spec.code)
            if spec.count:
                single, items = load_arguments(spec.arguments, self._input)
                return True, self._execute_map(function, single, items)
            args, kwargs = load_arguments(spec.arguments, self._input)
            value = function(*args, **kwargs)
            if is_atom(value):
                if len(self._atoms) > 10_000:
                    self._atoms.clear()
                self._atoms[spec.task] = value
            return True, dump_result(value, getattr(function, "__qualname__", str(function)))
        except KeyboardInterrupt as error:
            return False, dump_error(error, self.where)
        except BaseException as error:
            return False, dump_error(error, self.where)

    def _execute_map(self, function: Callable[..., Any], single: bool, items: list[Any]) -> bytes:
        name = getattr(function, "__qualname__", "map")
        try:
            values = [function(item) for item in items] if single else [function(*item) for item in items]
            return dump_result((values, {}), name)
        except Exception:
            return self._execute_map_singly(function, [(item,) for item in items] if single else items, name)

    def _execute_map_singly(self, function: Callable[..., Any], items: list[Any], name: str) -> bytes:
        """One item failed, or its value cannot be pickled: find out which, so that the others keep their values."""
        values: list[Any] = []
        errors: dict[int, bytes] = {}
        for index, item in enumerate(items):
            try:
                value = function(*item)
                dump_result(value, name)
            except BaseException as error:
                value = None
                errors[index] = dump_error(error, self.where)
            values.append(value)
        return dump_result((values, errors), name)


def run(config: bytes, outbox_fd: int) -> int:
    """Entry point in a process forked by the fork server."""
    settings = msgspec.msgpack.decode(config, type=RunnerSettings)
    for entry in reversed(settings.path):
        if entry not in sys.path:
            sys.path.insert(0, entry)
    if settings.cwd:
        os.chdir(settings.cwd)
    random.seed()
    outbox = Outbox.attach(outbox_fd)
    os.close(outbox_fd)
    RunnerProcess(settings, outbox).run()
    return 0
