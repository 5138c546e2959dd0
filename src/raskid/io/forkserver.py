"""The fork server: a small single-threaded process that forks runners for a node agent, and the agent's end of it.

Forking from the agent itself would copy its threads' locks and its sockets. The server has neither: it has imported
light things only (never numpy), owns one socket to the agent, and waits in one `poll`. A runner starts in
milliseconds and inherits nothing but what the agent passed for it.

No process stays behind: every runner leads a process group of its own, which is killed when the runner ends, when the
agent says so, and when the agent's end of the socket closes (also by its death). A runner also dies with the server,
by its parent-death signal. A subprocess that leaves its runner's group on purpose is not followed.

On the socket, each message is 4 bytes of length and a MessagePack array. Descriptors travel with the first byte of
the `Fork` that they belong to. `python -m raskid.io.forkserver FD` runs the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import msgspec

from raskid.model.errors import LocalProtocolError, RemoteProtocolError
from raskid.model.ids import PeerId

DEFAULT_TARGET = "raskid.services.runner:run"

#: A Fork's configuration is far smaller than this; more means that the two ends are out of step.
_FRAME_BYTES_MAX = 64 << 20
_FDS_MAX = 16
_STDERR_TAIL_BYTES = 4000
_SEND_S_MAX = 5.0
_CLOSE_S_MAX = 2.0
_REAP_S_MAX = 1.0

#: Threads inside a runner are the user's choice; by default a runner is one core.
_THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")

_PR_SET_PDEATHSIG = 1


class Fork(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Agent to server: start a runner. `passes` says which of (outbox, log) come along as descriptors."""

    runner: PeerId
    incarnation: int
    config: bytes
    passes: tuple[bool, bool]
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


class ServerLost(msgspec.Struct, frozen=True):
    """The server ended on its own; all its runners were reported as `Exited` before. `text` has its last words."""

    text: str


_Request = Fork | Kill
_Reply = Forked | Exited


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


def _frame(message: _Request | _Reply) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body


def _split_frames(received: bytearray) -> list[bytes]:
    """Takes the whole frames out of `received`."""
    bodies = []
    at = 0
    while len(received) - at >= 4:
        size = int.from_bytes(received[at : at + 4], "big")
        if size > _FRAME_BYTES_MAX:
            raise RemoteProtocolError(f"fork server socket: a frame of {size} bytes")
        if len(received) - at - 4 < size:
            break
        bodies.append(bytes(received[at + 4 : at + 4 + size]))
        at += 4 + size
    del received[:at]
    return bodies


def _kill_group(pid: int, *, leader: bool) -> None:
    """Kills a runner's group; also the `leader` by itself, which may not have made its group yet."""
    if leader:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


# ── The agent's end ──────────────────────────────────────────────────────────────────────────────────────────────────


class ForkServer:
    """The agent's end: register `fileno` for reading with a poll loop, and call `receive` when it is ready."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket, stderr: IO[bytes]) -> None:
        """Use `start`."""
        self._process = process
        self._connection = connection
        self._stderr = stderr
        self._received = bytearray()
        self._decoder = msgspec.msgpack.Decoder(_Reply)
        #: Every runner asked for and not yet reported as `Exited`; the pid is 0 until it is known.
        self._runners: dict[tuple[PeerId, int], int] = {}
        self._lost = False
        self._closed = False

    @classmethod
    def start(
        cls, python: str = sys.executable, env: Mapping[str, str] | None = None, preload: Sequence[str] = ()
    ) -> ForkServer:
        """Starts a server; does not wait for it. If it cannot run, `receive` says so with its standard error.

        Args:
            python: The interpreter.
            env: The whole environment, or None for this process's.
            preload: Modules to import before the first fork, so that all runners share them.
        Raises:
            OSError: `python` cannot be executed.
        """
        ours, theirs = socket.socketpair()
        # A file, not a pipe: a pipe that nobody reads at that moment would stop the server or lose its last words.
        stderr = tempfile.TemporaryFile(prefix="raskid-forkserver-")  # noqa: SIM115 - lives as long as the server
        try:
            with theirs:
                process = subprocess.Popen(
                    [python, "-m", "raskid.io.forkserver", str(theirs.fileno()), *preload],
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    env=None if env is None else dict(env),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            stderr.close()
            raise
        ours.setblocking(False)
        return cls(process, ours, stderr)

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def fileno(self) -> int:
        """The socket: readable when `receive` has something."""
        return self._connection.fileno()

    def fork(
        self, runner: PeerId, incarnation: int, config: bytes, fds: Sequence[int], target: str = DEFAULT_TARGET
    ) -> None:
        """Asks for a runner; `Forked` and later `Exited` tell what became of it, in any case.

        Args:
            runner: The runner's id.
            incarnation: Its incarnation; the two together are used once only.
            config: Passed to the target as it is.
            fds: The outbox's descriptor and that of the log, which becomes standard output and error. -1 for none.
                They stay the caller's, who may close them at once.
            target: "module:function", called as ``function(config, outbox_fd)`` in the new process.
        Raises:
            LocalProtocolError: There are not two descriptors, or this incarnation runs already.
        """
        if len(fds) != 2:
            raise LocalProtocolError(f"a runner gets two descriptors, outbox and log, not {len(fds)}")
        if (runner, incarnation) in self._runners:
            raise LocalProtocolError(f"incarnation {incarnation} of runner {runner} was forked already")
        self._runners[runner, incarnation] = 0
        outbox_fd, log_fd = fds
        message = Fork(runner, incarnation, config, (outbox_fd >= 0, log_fd >= 0), target)
        self._send(message, [fd for fd in fds if fd >= 0])

    def kill(self, runner: PeerId) -> None:
        """Kills all incarnations of `runner` with their process groups; `Exited` follows. No error if there is none."""
        self._send(Kill(runner), [])

    def _send(self, message: _Request, fds: list[int]) -> None:
        if self._closed:
            raise LocalProtocolError("this fork server is closed")
        if self._lost:
            return
        data = _frame(message)
        self._connection.settimeout(_SEND_S_MAX)
        try:
            sent = socket.send_fds(self._connection, [data], fds) if fds else 0
            self._connection.sendall(data[sent:])
        except OSError:
            # The server is gone, or has not read for seconds: it never blocks, so it is stopped or broken. Its death
            # makes the socket readable, and `receive` tells of it.
            self._process.kill()
        finally:
            self._connection.setblocking(False)

    def receive(self) -> list[Forked | Exited | ServerLost]:
        """What happened since the last call, in order; does not block.

        (Only when the server is lost this waits for the end of its process, half a second at most.)
        """
        if self._lost or self._closed:
            return []
        events: list[Forked | Exited | ServerLost] = []
        ended = ""
        while not ended:
            try:
                data = self._connection.recv(65536)
            except BlockingIOError:
                break
            except OSError as error:
                ended = str(error)
                break
            if not data:
                ended = "it closed its socket"
            self._received += data
        try:
            for body in _split_frames(self._received):
                event = self._decoder.decode(body)
                self._note(event)
                events.append(event)
        except (RemoteProtocolError, msgspec.MsgspecError) as error:
            ended = f"it sent nonsense: {error}"
        if ended:
            self._lost = True
            events += self._after_loss(ended)
        return events

    def _note(self, event: _Reply) -> None:
        if isinstance(event, Forked):
            self._runners[event.runner, event.incarnation] = event.pid
        else:
            self._runners.pop((event.runner, event.incarnation), None)

    def _after_loss(self, ended: str) -> list[Exited | ServerLost]:
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        code = self._process.returncode
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        reason = f"its fork server was lost ({how})"
        # The runners themselves die by their parent-death signal, what they had started does not.
        self._kill_known()
        exited = [Exited(runner, incarnation, pid, reason) for (runner, incarnation), pid in self._runners.items()]
        self._runners.clear()
        tail = self._stderr_tail()
        return [*exited, ServerLost(f"the fork server ended: {ended}, {how}" + (f"\n{tail}" if tail else ""))]

    def _kill_known(self) -> None:
        for pid in self._runners.values():
            if pid:
                # Not the leader by its pid: it is dead or dying, and the number might be another process's by now.
                _kill_group(pid, leader=False)

    def _stderr_tail(self) -> str:
        size = os.fstat(self._stderr.fileno()).st_size
        tail = os.pread(self._stderr.fileno(), _STDERR_TAIL_BYTES, max(0, size - _STDERR_TAIL_BYTES))
        return tail.decode(errors="replace").strip()

    def close(self) -> None:
        """Ends the server and all runners with their process groups, within seconds. Closing twice is no error."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        try:
            self._process.wait(_CLOSE_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode != 0:
            self._kill_known()
        self._runners.clear()
        self._stderr.close()


# ── The server ───────────────────────────────────────────────────────────────────────────────────────────────────────


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
        self._decoder = msgspec.msgpack.Decoder(_Request)
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
        poll.register(self._wake_read, select.POLLIN)
        try:
            while True:
                poll.register(self._control, select.POLLIN | (select.POLLOUT if self._unsent else 0))
                poll.poll()
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
            for body in _split_frames(self._received):
                request = self._decoder.decode(body)
                if isinstance(request, Fork):
                    self._fork(request)
                else:
                    self._kill(request.runner)

    def _fork(self, request: Fork) -> None:
        outbox_fd, log_fd = (self._fds.popleft() if passed else -1 for passed in request.passes)
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as error:
            self._reply(Exited(request.runner, request.incarnation, 0, f"could not fork: {error}"))
        else:
            if pid == 0:
                self._become_runner(request, outbox_fd, log_fd)
            self._children[pid] = request
            self._reply(Forked(request.runner, request.incarnation, pid))
        for fd in (outbox_fd, log_fd):
            if fd >= 0:
                os.close(fd)

    def _kill(self, runner: PeerId) -> None:
        for pid, request in self._children.items():
            if request.runner == runner:
                _kill_group(pid, leader=True)

    def _reap(self) -> None:
        """Reports children that ended, after killing what is left of their groups."""
        for pid, request in list(self._children.items()):
            status = _bury(pid)
            if status is None:
                continue
            del self._children[pid]
            self._reply(Exited(request.runner, request.incarnation, pid, describe_status(status)))

    def _reply(self, message: _Reply) -> None:
        self._unsent += _frame(message)

    def _flush(self) -> None:
        # An agent that is gone is noticed by reading.
        with contextlib.suppress(OSError):
            while self._unsent:
                del self._unsent[: self._control.send(self._unsent)]

    def _end_all(self) -> None:
        for pid in self._children:
            _kill_group(pid, leader=True)
        # Once more at each one's end: a fork that was under way in a group may have been missed the first time.
        deadline = time.monotonic() + _REAP_S_MAX
        while self._children and time.monotonic() < deadline:
            self._reap()
            if self._children:
                select.select([self._wake_read], [], [], 0.01)
                self._take_signals()

    def _become_runner(self, request: Fork, outbox_fd: int, log_fd: int) -> None:
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
            self._leave_server(outbox_fd, log_fd)
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
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code & 0xFF)

    def _leave_server(self, outbox_fd: int, log_fd: int) -> None:
        """Gives up the server's signals and descriptors."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        if log_fd >= 0:
            os.dup2(log_fd, 1)
            os.dup2(log_fd, 2)
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
        _kill_group(pid, leader=False)
        return os.waitpid(pid, 0)[1]
    # macOS before Python 3.13 cannot look without reaping.
    ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        return None
    _kill_group(pid, leader=False)
    return status


def _load_prctl() -> Callable[..., int] | None:
    """`prctl`, looked up before any fork; None where there is none (macOS), and there the socket's end must do."""
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None, use_errno=True).prctl
    function.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    function.restype = ctypes.c_int
    prctl: Callable[..., int] = function
    return prctl


def main() -> None:
    """Runs the server on the socket whose descriptor is the first argument; the others name modules to import."""
    # Before any import that could start threads by them; the runners inherit these.
    for name in _THREAD_LIMITS:
        os.environ.setdefault(name, "1")
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    # What every runner needs, so that it is imported once and its memory shared.
    for module in ("pickle", "cloudpickle", "raskid.services.runner", *sys.argv[2:]):
        # One that cannot be imported will say so in the task that needs it.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    server = _Server(control)
    gc.collect()
    # The collector would otherwise touch, and so copy, the shared memory in every runner.
    gc.freeze()
    server.serve()


if __name__ == "__main__":
    main()
