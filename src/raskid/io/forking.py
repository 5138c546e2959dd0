"""The fork server: a small single-threaded process that forks runners for a node agent (`raskid.io.forkserver`).

It has imported light things only (never numpy, unless the script has), owns one socket to the agent, and waits in one
`poll`. The first one of a system is forked by the head before that has opened anything (`raskid.services.boot`);
`python -m raskid.io.forking FD [MODULE ...]` runs one that takes the place of another.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgspec

from raskid.io.forkwire import Exited, Fork, Forked, Reply, Request, kill_group, packet
from raskid.io.packets import take_packets
from raskid.model.ids import PeerId

_FDS_MAX = 16
_REAP_S_MAX = 1.0

#: Threads inside a runner are the user's choice; by default a runner is one core.
_THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")

#: Imported when nothing was asked for so long, so that runners started later share it.
_LATER = ("cloudpickle",)
_LATER_MS = 200

_PR_SET_PDEATHSIG = 1


def describe_status(status: int) -> str:
    """A wait status in words: "exit code 3", "killed by signal SIGSEGV (11)"."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    return f"killed by signal {name} ({-code})"


class _Server:
    """The server's state: single-threaded, and it never blocks except in `poll`."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pid = os.getpid()
        self._received = bytearray()
        self._unsent = bytearray()
        #: Descriptors received and not yet taken by their Fork, in the order of sending.
        self._fds: deque[int] = deque()
        #: Children not yet reaped: their pids cannot have been given to other processes.
        self._children: dict[int, Fork] = {}
        self._decoder = msgspec.msgpack.Decoder(Request)
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (control, self._wake_read, self._wake_write):
            end.setblocking(False)
        self._prctl = _load_prctl()

    def serve(self) -> None:
        """Works until the agent's end closes, or SIGTERM."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Handlers that do nothing: what counts is the byte that Python writes for each signal.
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        wait_ms: int | None = _LATER_MS
        poll.register(self._wake_read, select.POLLIN)
        try:
            while True:
                poll.register(self._control, select.POLLIN | (select.POLLOUT if self._unsent else 0))
                if not poll.poll(wait_ms):
                    # The first runners do not wait for this: many tasks do without, and the others import it.
                    _import(_LATER)
                    wait_ms = None
                    continue
                signals = self._take_signals()
                if signal.SIGTERM in signals or not self._receive():
                    return
                # After the requests, so that a child that ended at once was reported as forked before.
                self._reap()
                self._flush()
        finally:
            # A child leaves by os._exit, never through here.
            self._end_all()

    def _take_signals(self) -> bytes:
        taken = b""
        with contextlib.suppress(BlockingIOError):
            while more := self._wake_read.recv(4096):
                taken += more
        return taken

    def _receive(self) -> bool:
        """Reads and carries out requests; False when the agent is gone."""
        while True:
            try:
                data, fds, _flags, _address = socket.recv_fds(self._control, 65536, _FDS_MAX)
            except BlockingIOError:
                return True
            except OSError:
                return False
            self._fds.extend(fds)
            if not data:
                return False
            self._received += data
            for body in take_packets(self._received):
                request = self._decoder.decode(body)
                if isinstance(request, Fork):
                    self._fork(request)
                else:
                    self._kill(request.runner)

    def _fork(self, request: Fork) -> None:
        fds = [self._fds.popleft() if passed else -1 for passed in request.passes]
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as error:
            self._reply(Exited(request.runner, request.incarnation, 0, f"could not fork: {error}"))
        else:
            if pid == 0:
                self._become_runner(request, *fds)
            self._children[pid] = request
            self._reply(Forked(request.runner, request.incarnation, pid))
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def _kill(self, runner: PeerId) -> None:
        for pid, request in self._children.items():
            if request.runner == runner:
                kill_group(pid, leader=True)

    def _reap(self) -> None:
        """Reports children that ended, after killing what is left of their groups."""
        for pid, request in list(self._children.items()):
            status = _bury(pid)
            if status is None:
                continue
            del self._children[pid]
            self._reply(Exited(request.runner, request.incarnation, pid, describe_status(status)))

    def _reply(self, message: Reply) -> None:
        self._unsent += packet(message)

    def _flush(self) -> None:
        # An agent that is gone is noticed by reading.
        with contextlib.suppress(OSError):
            while self._unsent:
                del self._unsent[: self._control.send(self._unsent)]

    def _end_all(self) -> None:
        for pid in self._children:
            kill_group(pid, leader=True)
        # Once more at each one's end: a fork that was under way in a group may have been missed the first time.
        deadline = time.monotonic() + _REAP_S_MAX
        while self._children and time.monotonic() < deadline:
            self._reap()
            if self._children:
                select.select([self._wake_read], [], [], 0.01)
                self._take_signals()

    def _become_runner(self, request: Fork, outbox_fd: int, output_fd: int, errors_fd: int) -> None:
        """Turns this forked process into a runner; does not return."""
        code = 1
        try:
            # First of all: from here on a kill of the group reaches this process.
            os.setsid()
            if self._prctl is not None:
                self._prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != self._pid:
                # The server died before the death signal was set.
                os._exit(1)
            self._leave_server(outbox_fd, output_fd, errors_fd)
            random: Any = sys.modules.get("random")
            if random is not None:
                random.seed()
            numpy: Any = sys.modules.get("numpy")
            if numpy is not None:
                numpy.random.seed()
            module, _, function = request.target.partition(":")
            target: Callable[[bytes, int], int | None] = getattr(importlib.import_module(module), function)
            # Converted here, where a wrong type is an error like others: below, nothing may keep _exit from running.
            code = int(target(request.config, outbox_fd) or 0)
        except SystemExit as ending:
            if ending.code is None or isinstance(ending.code, int):
                code = ending.code or 0
            else:
                print(ending.code, file=sys.stderr)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code & 0xFF)

    def _leave_server(self, outbox_fd: int, output_fd: int, errors_fd: int) -> None:
        """Gives up the server's signals and descriptors."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        # Never the server's own: its file grows without bound, and nobody reads it.
        errors = errors_fd if errors_fd >= 0 else null
        os.dup2(output_fd if output_fd >= 0 else errors, 1)
        os.dup2(errors, 2)
        # The socket objects must not close their numbers later, which will be other files' by then.
        for end in (self._control, self._wake_read, self._wake_write):
            end.detach()
        _close_all_but({0, 1, 2, outbox_fd})
        if hasattr(sys.stdout, "reconfigure"):
            # Into a file or pipe Python would hold back what a task prints.
            sys.stdout.reconfigure(line_buffering=True)


def _close_all_but(kept: set[int]) -> None:
    # Not os.closerange: where the kernel lacks close_range(2), that is a million calls on machines with high limits.
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(folder):
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _bury(pid: int) -> int | None:
    """If this child has ended, kills what is left of its group and reaps it; returns its wait status, else None."""
    if hasattr(os, "waitid"):
        # Seen but not yet reaped: while the zombie holds the pid, no other group can have that number.
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        kill_group(pid, leader=False)
        return os.waitpid(pid, 0)[1]
    # macOS before Python 3.13 cannot look without reaping.
    ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        return None
    kill_group(pid, leader=False)
    return status


def _load_prctl() -> Callable[..., int] | None:
    """`prctl`, looked up before any fork; None where there is none (macOS), and there the socket's end must do."""
    if sys.platform != "linux":
        return None
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).prctl
    function.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    function.restype = ctypes.c_int
    prctl: Callable[..., int] = function
    return prctl


def run_forked(control: socket.socket, stderr_fd: int, preload: Sequence[str]) -> NoReturn:
    """Become the server in a process that was just forked, and leave behind what it inherited; does not return."""
    code = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(stderr_fd, 1)
        os.dup2(stderr_fd, 2)
        _close_all_but({0, 1, 2, control.fileno()})
        run(control, preload)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def run(control: socket.socket, preload: Sequence[str]) -> None:
    """Serve on a socket to the agent, after importing what runners need and the modules named by `preload`."""
    # Before any import that could start threads by them; the runners inherit these.
    for name in _THREAD_LIMITS:
        os.environ.setdefault(name, "1")
    # The server's own arguments are nothing for a task to see.
    sys.argv = [""]
    control.set_inheritable(False)
    # What every runner needs, so that it is imported once and its memory shared.
    _import(("pickle", "raskid.services.runner", *preload))
    _Server(control).serve()


def _import(modules: Sequence[str]) -> None:
    for module in modules:
        # One that cannot be imported will say so in the task that needs it.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    # The collector would otherwise touch, and so copy, the shared memory in every runner.
    gc.freeze()


def main() -> None:
    """Runs the server on the socket whose descriptor is the first argument; the others name modules to import."""
    run(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])


if __name__ == "__main__":
    main()
