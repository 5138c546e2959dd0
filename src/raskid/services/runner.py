"""A runner: one thread on a blocking poll loop, which runs tasks one at a time.

Between tasks it looks at its connections, but no more often than every `POLL_S`, and writes results out as often; a
task that takes longer than that is preceded and followed by a look. Every outcome lies in the shared-memory outbox
before the next task starts, so the node can answer for it while this process is busy, or after it has died.
"""

from __future__ import annotations

import faulthandler
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

from raskid.core.effects import DropCodes, Effect, Record, Told
from raskid.core.events import PeerGone, RecallsRead, TaskDone
from raskid.core.identity import Identity
from raskid.core.lists import Lists
from raskid.core.messaging import Messaging
from raskid.core.peer import Peer
from raskid.core.relay import RelayEnd
from raskid.core.runner import Runner
from raskid.core.station import Station
from raskid.io.driver import Driver
from raskid.io.outbox import Outbox
from raskid.io.transports import listen
from raskid.model.errors import ResultNotSendable, StaleCode
from raskid.model.ids import CodeId, IdSource, PeerId, TaskId
from raskid.model.version import VERSION
from raskid.protocol.messages import KIND_RUNNER, PeerRef, Placement, TasksFinished
from raskid.services.calling import dump_error, dump_result, is_atom, load_arguments
from raskid.services.codes import CodeLoader
from raskid.services.publishing import Publisher, serve_tasks
from raskid.services.settings import RunnerSettings, new_origin

POLL_S = 0.0005
#: How long to look for the next task before sleeping, where there are processors for that.
SPIN_S = 0.0001 if (os.cpu_count() or 1) > 1 else 0.0

#: So many small values are kept as objects, at most.
ATOMS_MAX = 4096

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
        lists = Lists(PeerId(settings.hub), agent=node)
        self.where = f"{settings.peer} (pid {os.getpid()}, {socket.gethostname()})"
        messaging = Messaging(lists, random.Random(self.ids.origin).randrange, self.where)
        self.station = Station(peer, [self.machine, lists, messaging], RelayEnd(node, self.ids))
        self.driver = Driver(self.station, self._apply)
        self.driver.looking.look(SPIN_S, may_move=True)
        self.driver.listen(listen(settings.address))
        self.publisher = Publisher(self.driver, lists, messaging, outbox)
        self._loader = CodeLoader()
        self._functions = self._loader.functions
        #: Small values made here that nobody can change, so that tasks here need not unpickle them. One counts only
        #: as long as the machine has the value too: until it is dropped.
        self._atoms: dict[TaskId, Any] = {}
        self._rung = 0
        self.stopping = ""

    def _apply(self, effect: Effect) -> None:
        kind = type(effect)
        if kind is Record:
            assert isinstance(effect, Record)
            self.outbox.write(
                effect.task, effect.attempt, effect.ok, effect.seconds, effect.client.encode(), effect.value,
                self._outbox_full, effect.direct, effect.started,
            )  # fmt: skip
            if not effect.direct:
                self._rung += 1
        elif kind is DropCodes:
            assert isinstance(effect, DropCodes)
            for code in effect.codes:
                self._functions.pop(code, None)
        elif kind is Told:
            assert isinstance(effect, Told)
            if isinstance(effect.event, PeerGone) and effect.event.peer == self.settings.node:
                self.stopping = "the node is gone"
        else:
            self.publisher.on_effect(effect)

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
        outbox = self.outbox
        self.join()
        looked = 0.0
        counters = driver.counters
        while not self.stopping:
            placement = machine.next_task()
            if placement is None:
                recalled = outbox.recalls()
                if recalled:
                    # They may have come here after their recall, and wait for inputs that nobody has any more.
                    driver.handle(RecallsRead(recalled))
                self.ring()
                driver.step(None)
                looked = _pc()
                continue
            started = _pc()
            if started - looked > POLL_S:
                looked = started
                self.ring()
                driver.step(0)
                if self.stopping:
                    break
                started = _pc()
            recalled = outbox.start(placement.spec.task)
            if recalled:
                driver.handle(RecallsRead(recalled))
                if machine.running is None:
                    # This one, too, was taken back.
                    continue
            counters.tasks += 1
            ok, value = self._execute(placement)
            seconds = _pc() - started
            driver.handle(TaskDone(ok, value, seconds))
            if seconds > POLL_S:
                self.ring()
                driver.flush()
        driver.close(self.stopping)

    def _function(self, code: CodeId) -> Callable[..., Any]:
        try:
            return self._loader.function(code, self.machine.codes[code])
        except StaleCode:
            raise
        except Exception as error:
            error.add_note(f"(while loading the function on {self.where})")
            raise

    def _input(self, task: TaskId) -> Any:
        if task in self._atoms and task in self.machine.values:
            return self._atoms[task]
        running = self.machine.running
        if running is not None and running.spec.inline:
            for name, data in running.spec.inline:
                if name == task:
                    return pickle.loads(data)
        return pickle.loads(self.machine.value(task).data)

    def _keep_atom(self, task: TaskId, value: Any) -> None:
        atoms = self._atoms
        if not is_atom(value):
            # An earlier attempt may have given one.
            atoms.pop(task, None)
            return
        if len(atoms) >= ATOMS_MAX:
            values = self.machine.values
            for old in [old for old in atoms if old not in values]:
                del atoms[old]
            if len(atoms) >= ATOMS_MAX:
                atoms.clear()
        atoms[task] = value

    def _execute(self, placement: Placement) -> tuple[bool, bytes]:
        spec = placement.spec
        name = "the task"
        try:
            if spec.inputs and (failed := self.machine.failed_input(placement)) is not None:
                return False, failed.data
            function = self._function(spec.code)
            name = getattr(function, "__qualname__", None) or type(function).__qualname__
            if spec.count:
                single, items = load_arguments(spec.arguments, self._input)
                return True, self._execute_map(function, name, single, items)
            args, kwargs = load_arguments(spec.arguments, self._input)
            value = function(*args, **kwargs)
            self._keep_atom(spec.task, value)
            return True, dump_result(value, name)
        except BaseException as error:
            # Not even SystemExit ends a runner: it is the task's outcome, like other errors.
            return False, dump_error(error, self.where, name)

    def _execute_map(self, function: Callable[..., Any], name: str, single: bool, items: list[Any]) -> bytes:
        """Call the function once for each item; what one raises is that item's, and the others keep their values."""
        values: list[Any] = []
        errors: dict[int, bytes] = {}
        append = values.append
        left = iter(items)
        while True:
            try:
                if single:
                    for item in left:
                        append(function(item))
                else:
                    for item in left:
                        append(function(*item))
                break
            except BaseException as error:
                errors[len(values)] = dump_error(error, self.where, name)
                append(None)
        try:
            return dump_result((values, errors), name)
        except Exception as error:
            return self._dump_each(values, errors, name, error)

    def _dump_each(self, values: list[Any], errors: dict[int, bytes], name: str, reason: Exception) -> bytes:
        """The values do not go together: find out which cannot be pickled, so that the others arrive."""
        failed = False
        for index, value in enumerate(values):
            if index not in errors:
                try:
                    dump_result(value, name)
                except Exception as error:
                    failed = True
                    values[index] = None
                    errors[index] = dump_error(error, self.where, name)
        if not failed:
            raise ResultNotSendable(f"the values of {len(values)} items of {name} do not go together: {reason}")
        return dump_result((values, errors), name)


def run(config: bytes, outbox_fd: int) -> int:
    """Entry point in a process forked by the fork server."""
    settings = msgspec.msgpack.decode(config, type=RunnerSettings)
    for entry in reversed(settings.path):
        if entry not in sys.path:
            sys.path.insert(0, entry)
    if settings.cwd:
        os.chdir(settings.cwd)
    # A crash inside of an extension says where, on standard error, and so in the error of its task.
    faulthandler.enable()
    # Whatever system the head's own environment names: it is not this one.
    os.environ.pop("RASKID_URL", None)
    # As in the script, but for its arguments, which are the script's affair.
    sys.argv = [settings.script]
    outbox = Outbox.attach(outbox_fd)
    os.close(outbox_fd)
    process = RunnerProcess(settings, outbox)
    serve_tasks(process.publisher)
    process.run()
    return 0
