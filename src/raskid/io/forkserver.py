"""The agent's end of a fork server: starts the server, asks it for runners, hears of their ends.

Forking from the agent itself would copy its threads' locks and its sockets. The server (`raskid.io.forking`) has
neither; a runner starts in milliseconds and inherits nothing but what the agent passed for it.

No process stays behind: every runner leads a process group of its own, which is killed when the runner ends, when the
agent says so, and when the agent's end of the socket closes (also by its death). A runner also dies with the server,
by its parent-death signal. A subprocess that leaves its runner's group on purpose is not followed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from raskid.io.forkwire import DEFAULT_TARGET, Exited, Fork, Forked, Kill, Reply, Request, kill_group, packet
from raskid.io.packets import take_packets
from raskid.io.scratch import nameless_file
from raskid.model.errors import LocalProtocolError, RemoteProtocolError
from raskid.model.ids import PeerId

if TYPE_CHECKING:
    import subprocess

__all__ = ["Exited", "ForkServer", "Forked", "ServerLost"]

_STDERR_TAIL_BYTES = 4000
_SEND_S_MAX = 5.0
_CLOSE_S_MAX = 2.0


class ServerLost(msgspec.Struct, frozen=True):
    """The server ended on its own; all its runners were reported as `Exited` before. `text` has its last words."""

    text: str


class ForkedProcess:
    """A child that was forked and not executed: as much of `subprocess.Popen` as is needed here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        """Wait for its end."""
        code = self._reap(0)
        assert code is not None
        return code

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            try:
                ended, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                # Somebody has told the kernel not to keep children's ends: it is gone, and nobody knows how.
                self.returncode = 255
                return 255
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        """Kill it, unless it was reaped."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class ForkServer:
    """The agent's end: register `fileno` for reading with a poll loop, and call `receive` when it is ready."""

    def __init__(
        self, process: subprocess.Popen[bytes] | ForkedProcess, connection: socket.socket, stderr: int
    ) -> None:
        """Use `start` or `begin`."""
        self._process = process
        self._connection = connection
        self._stderr = stderr
        self._received = bytearray()
        self._decoder = msgspec.msgpack.Decoder(Reply)
        #: Every runner asked for and not yet reported as `Exited`; the pid is 0 until it is known.
        self._runners: dict[tuple[PeerId, int], int] = {}
        self._lost = False
        self._closed = False

    @classmethod
    def begin(cls, preload: Sequence[str] = ()) -> ForkServer:
        """As `start`, by forking this process, which saves an interpreter's start and most imports.

        Only for a process with one thread that has opened nothing yet: the server inherits what this process has
        imported, and closes every descriptor that it does not need.
        """
        from raskid.io.forking import run_forked

        ours, theirs = socket.socketpair()
        stderr = nameless_file("raskid-forkserver")
        pid = os.fork()
        if pid == 0:
            run_forked(theirs, stderr, preload)
        theirs.close()
        ours.setblocking(False)
        return cls(ForkedProcess(pid), ours, stderr)

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
        import subprocess

        ours, theirs = socket.socketpair()
        # A file, not a pipe: a pipe that nobody reads at that moment would stop the server or lose its last words.
        stderr = nameless_file("raskid-forkserver")
        try:
            with theirs:
                process = subprocess.Popen(
                    [python, "-m", "raskid.io.forking", str(theirs.fileno()), *preload],
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    env=None if env is None else dict(env),
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            os.close(stderr)
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
            fds: The descriptors of its outbox, its standard output and its standard error. -1 for none: output goes
                where errors go, and errors nowhere. They stay the caller's, who may close them at once.
            target: "module:function", called as ``function(config, outbox_fd)`` in the new process.
        Raises:
            LocalProtocolError: There are not three descriptors, or this incarnation runs already.
        """
        if len(fds) != 3:
            raise LocalProtocolError(f"a runner gets three descriptors, outbox, output and errors, not {len(fds)}")
        if (runner, incarnation) in self._runners:
            raise LocalProtocolError(f"incarnation {incarnation} of runner {runner} was forked already")
        self._runners[runner, incarnation] = 0
        message = Fork(runner, incarnation, config, tuple(fd >= 0 for fd in fds), target)
        self._send(message, [fd for fd in fds if fd >= 0])

    def kill(self, runner: PeerId) -> None:
        """Kills all incarnations of `runner` with their process groups; `Exited` follows. No error if there is none."""
        self._send(Kill(runner), [])

    def _send(self, message: Request, fds: list[int]) -> None:
        if self._closed:
            raise LocalProtocolError("this fork server is closed")
        if self._lost:
            return
        data = packet(message)
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
            for body in take_packets(self._received):
                event = self._decoder.decode(body)
                self._note(event)
                events.append(event)
        except (RemoteProtocolError, msgspec.MsgspecError) as error:
            ended = f"it sent nonsense: {error}"
        if ended:
            self._lost = True
            events += self._after_loss(ended)
        return events

    def _note(self, event: Reply) -> None:
        if isinstance(event, Forked):
            self._runners[event.runner, event.incarnation] = event.pid
        else:
            self._runners.pop((event.runner, event.incarnation), None)

    def _after_loss(self, ended: str) -> list[Exited | ServerLost]:
        code = self._end_of_process(0.5)
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        reason = f"its fork server was lost ({how})"
        # The runners themselves die by their parent-death signal, what they had started does not.
        self._kill_known()
        exited = [Exited(runner, incarnation, pid, reason) for (runner, incarnation), pid in self._runners.items()]
        self._runners.clear()
        tail = self._stderr_tail()
        return [*exited, ServerLost(f"the fork server ended: {ended}, {how}" + (f"\n{tail}" if tail else ""))]

    def _end_of_process(self, timeout: float) -> int:
        """Wait for the process, and kill it when it does not end; returns its exit code."""
        deadline = time.monotonic() + timeout
        while (code := self._process.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.001)
        if code is None:
            self._process.kill()
            code = self._process.wait()
        return code

    def _kill_known(self) -> None:
        for pid in self._runners.values():
            if pid:
                # Not the leader by its pid: it is dead or dying, and the number might be another process's by now.
                kill_group(pid, leader=False)

    def _stderr_tail(self) -> str:
        size = os.fstat(self._stderr).st_size
        tail = os.pread(self._stderr, _STDERR_TAIL_BYTES, max(0, size - _STDERR_TAIL_BYTES))
        return tail.decode(errors="replace").strip()

    def close(self) -> None:
        """Ends the server and all runners with their process groups, within seconds. Closing twice is no error."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        if self._end_of_process(_CLOSE_S_MAX) != 0:
            self._kill_known()
        self._runners.clear()
        os.close(self._stderr)
