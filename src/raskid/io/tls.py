"""TLS over a connected socket. Importing `ssl` takes time that a system on one machine need not spend."""

from __future__ import annotations

import contextlib
import socket
import ssl

from raskid.io.streams import RECEIVE_BYTES, SocketTransport, TransportError


class TlsTransport(SocketTransport):
    """TLS over a connected socket. The handshake runs along with the first reads and writes."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_side: bool) -> None:
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._ready = False
        #: What was sent before the handshake was over.
        self._plain = bytearray()
        self._shake()

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._push()
            return
        except ssl.SSLError as error:
            # The other end is to learn why, if it still listens.
            with contextlib.suppress(OSError):
                self._push()
            raise _tls_error(error) from error
        self._ready = True
        plain, self._plain = self._plain, bytearray()
        self._encrypt(plain)
        self._push()

    def _encrypt(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]

    def _push(self) -> None:
        if self._outgoing.pending:
            super().send(self._outgoing.read())

    def receive(self) -> bytes | None:
        data = super().receive()
        if not data:
            return data
        self._incoming.write(data)
        if not self._ready:
            self._shake()
            if not self._ready:
                return None
        parts: list[bytes] = []
        ended = False
        try:
            while part := self._tls.read(RECEIVE_BYTES):
                parts.append(part)
            ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            ended = True
        except ssl.SSLError as error:
            if not parts:
                raise _tls_error(error) from error
            # What came before the mistake counts; the next call meets the mistake again, or the end.
        self._push()
        return b"".join(parts) if parts or ended else None

    def send(self, data: bytes) -> None:
        if not self._ready:
            self._plain += data
            return
        self._encrypt(data)
        self._push()

    @property
    def pending(self) -> int:
        return len(self._kept) + len(self._plain)

    @property
    def wants_write(self) -> bool:
        # What waits for the handshake waits for the other end, not for room in the kernel.
        return len(self._kept) > 0

    def close(self) -> None:
        if self._ready and not self._kept and self.sock.fileno() >= 0:
            with contextlib.suppress(OSError):
                self._tls.unwrap()
            with contextlib.suppress(OSError):
                self._push()
        super().close()


def _tls_error(error: ssl.SSLError) -> TransportError:
    """What went wrong, for somebody who knows no TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TransportError(
            f"the other end's certificate is not this session's ({error.verify_message}); is this the right address, "
            "and the session file up to date?"
        )
    reason = error.reason or str(error)
    if "ALERT" in reason:
        return TransportError(f"the other end refused our certificate, or does not trust its own session's: {reason}")
    return TransportError(f"no TLS with the other end: {reason}")
