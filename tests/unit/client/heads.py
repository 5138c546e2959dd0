"""A head in this process, without runners: enough for sessions to send messages and requests through."""

import tempfile
import threading

from raskid.client.session import Session
from raskid.core.codestore import CodeStore
from raskid.core.hub import Hub
from raskid.core.identity import Identity
from raskid.core.peer import Peer
from raskid.core.relay import RelayHub
from raskid.core.station import Station
from raskid.io.driver import Driver
from raskid.io.transports import listen
from raskid.model.ids import PeerId
from raskid.protocol.messages import KIND_HEAD, ROLE_EXECUTE
from raskid.protocol.tokens import derive

TOKEN = "token of these tests"


class Head:
    """Serves sessions until it is closed; use it with ``with``."""

    def __init__(self):
        # pytest's own directories have paths too long for sockets.
        self._directory = tempfile.TemporaryDirectory(prefix="rk", dir="/tmp")
        self.directory = self._directory.name
        self.address = f"unix:{self.directory}/head"
        peer = Peer(Identity(PeerId("head-1"), 1, 1, KIND_HEAD, TOKEN, addresses=(self.address,)))
        self.unhandled = []
        self.driver = Driver(Station(peer, [Hub(), CodeStore(), RelayHub()]), self.unhandled.append)
        self._listener = listen(self.address)
        self.driver.listen(self._listener)
        self._stopping = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while not self._stopping:
            self.driver.step(None)

    def session(self, role=ROLE_EXECUTE, **more):
        """A session that nobody has closed yet."""
        return Session(
            self.address, derive(TOKEN, ROLE_EXECUTE, role), role, self.directory, "local://test", timeout=10.0, **more
        )

    def close(self):
        """As a head that ends: it says goodbye."""
        if not self._stopping:
            self._stopping = True
            self.driver.wake()
            self._thread.join()
            self.driver.close("it was told to")
            self._listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
        self._directory.cleanup()
