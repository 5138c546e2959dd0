"""Connections and the links that they carry: opening, losing and replacing connections, leases, and the end of a peer.

When a connection breaks, the end that had opened it tries again, directly and then through the head's relay, until the
lease runs out. A link that goes through the relay is moved to a direct connection as soon as one can be opened: nothing
more is written to the old one after the `Hello` on the new one, and what was still under way there is sent again.

What is said in a handshake is for `raskid.core.peer`, which owns the one `Paths` of a process.
"""

from __future__ import annotations

from collections.abc import Callable

from raskid.core.deadlines import Deadlines
from raskid.core.effects import Connect, Disconnect, Effect
from raskid.core.events import Event, PeerGone, PeerJoined
from raskid.core.handshake import HANDSHAKE_S, RELAY
from raskid.core.link import Link
from raskid.model.ids import PeerId
from raskid.protocol.codec import encode_batch
from raskid.protocol.framing import FRAME_BYTES_MAX, UNCOUNTED, FrameReader, frame
from raskid.protocol.messages import KIND_RUNNER, AnyMessage, PeerRef

RETRY_S_FIRST = 0.05
RETRY_S_MAX = 2.0
#: How long to wait before a relayed link looks for a direct path again; twice as long each time.
UPGRADE_S_FIRST = 5.0
UPGRADE_S_MAX = 300.0
GONE_REMEMBERED = 10_000
#: A peer for which more than this waits (control, and what it has not acknowledged), and which has acknowledged
#: nothing of it for `UNREAD_S`, does not read, and is given up.
UNREAD_BYTES_MAX = 64 << 20
UNREAD_S = 30.0

# What can be due: a handshake's limit (of a connection), another attempt, the end of a lease, a look for a direct path
# (of a peer).
_HANDSHAKE = "handshake"
_RETRY = "retry"
_LEASE = "lease"
_UPGRADE = "upgrade"


class Connection:
    """One connection. `address` is where we opened it, empty where somebody opened it to us."""

    __slots__ = ("address", "closing", "declared", "id", "link", "open", "outbound", "raw", "reader", "target", "text")

    def __init__(self, identifier: int, target: PeerId | None = None, address: str = "") -> None:
        self.id = identifier
        self.outbound = target is not None
        self.target = target
        self.address = address
        self.reader = FrameReader()
        self.link: Link | None = None
        #: The handshake is over, and `link` is carried.
        self.open = False
        #: Refused: what still comes is not read; the connection ends when `raw` is written.
        self.closing = False
        #: How many frames of the link we said that we have.
        self.declared = 0
        #: What the proofs of our Hello cover.
        self.text = ""
        #: Frames outside the link's count (handshake, refusal), to be written first.
        self.raw = b""

    @property
    def relayed(self) -> bool:
        """Whether we opened it through the head."""
        return self.address.startswith(RELAY)


class Remote:
    """What is known of another peer. `connection` carries its link now; `attempt` is one being opened."""

    __slots__ = (
        "attempt", "connection", "info", "initiated", "link", "moving", "origin", "parted", "ref", "retry_s", "role",
        "tried", "unread", "upgrade_s", "upgrades",
    )  # fmt: skip

    def __init__(self, ref: PeerRef) -> None:
        self.ref = ref
        self.link: Link | None = None
        self.connection: Connection | None = None
        self.attempt: int | None = None
        #: The attempt has said how many frames we have; nothing goes over `connection` until that is decided.
        self.moving = False
        #: We have said goodbye.
        self.parted = False
        self.retry_s = RETRY_S_FIRST
        self.tried = 0
        self.upgrade_s = UPGRADE_S_FIRST
        self.upgrades = 0
        self.initiated = False
        self.role = ""
        self.origin = 0
        self.info: PeerJoined | None = None
        #: Since too much has waited: the count of frames that it had acknowledged, and when.
        self.unread: tuple[int, float] | None = None


class Paths:
    """The links of one process, and their connections."""

    def __init__(self, head: str, lease_s: float) -> None:
        self.head = head
        self.lease_s = lease_s
        self.remotes: dict[PeerId, Remote] = {}
        self.connections: dict[int, Connection] = {}
        #: Remotes whose link has something to write, and connections with something of their own.
        self.dirty: dict[PeerId, Remote] = {}
        self.raw: dict[int, Connection] = {}
        self.deadlines: Deadlines[tuple[str, int | str]] = Deadlines()
        self.gone: dict[PeerId, int] = {}
        #: The peers that use an origin.
        self.origins: dict[int, PeerId] = {}
        #: Roles of peers that ended just now: their last messages may still be on their way upwards.
        self.roles_gone: dict[PeerId, str] = {}
        self.on_end: Callable[[Link | None], None] = _nothing
        self._next_connection = 0

    def new_connection(self) -> int:
        """A number for a connection."""
        self._next_connection += 1
        return self._next_connection

    # ── connections ──

    def add(self, connection: Connection, now: float) -> None:
        """A connection begins its handshake."""
        self.connections[connection.id] = connection
        self.limit(connection, now)

    def limit(self, connection: Connection, now: float) -> None:
        """Give a connection this long for what it has to do next."""
        self.deadlines.set((_HANDSHAKE, connection.id), now + HANDSHAKE_S)

    def forget(self, identifier: int) -> None:
        """Nothing that happens on this connection matters any more."""
        self.connections.pop(identifier, None)
        self.raw.pop(identifier, None)
        self.deadlines.cancel((_HANDSHAKE, identifier))

    def write_raw(self, connection: Connection, message: AnyMessage) -> None:
        """Write a message of the handshake."""
        connection.raw += frame(UNCOUNTED, 0, encode_batch([message]))
        self.raw[connection.id] = connection

    def declare(self, remote: Remote | None, connection: Connection) -> int:
        """How many frames we have of the link that is to go over a connection. A link that moves falls silent."""
        if remote is not None and remote.link is not None:
            connection.declared = remote.link.received
            # An acknowledgement over the old connection could overtake this count, and make it look outdated.
            remote.moving = remote.connection is not None
        return connection.declared

    def attach(self, remote: Remote, connection: Connection, now: float) -> list[Effect]:
        """A connection has passed the handshake and carries the link from now on."""
        effects: list[Effect] = []
        old = remote.connection
        if old is not None and old is not connection:
            self.forget(old.id)
            effects.append(Disconnect(old.id, "another connection took its place"))
        if remote.attempt is not None and remote.attempt != connection.id:
            self.forget(remote.attempt)
            effects.append(Disconnect(remote.attempt, "another connection was quicker"))
        remote.attempt = None
        remote.moving = False
        remote.connection = connection
        remote.initiated = connection.outbound
        remote.retry_s = RETRY_S_FIRST
        remote.tried = 0
        peer = remote.ref.peer
        for what in (_LEASE, _RETRY, _UPGRADE):
            self.deadlines.cancel((what, peer))
        self.deadlines.cancel((_HANDSHAKE, connection.id))
        connection.link = remote.link
        connection.open = True
        connection.reader.payload_max = FRAME_BYTES_MAX
        self.dirty[peer] = remote
        if not connection.relayed:
            remote.upgrade_s = UPGRADE_S_FIRST
        else:
            self._plan_upgrade(remote, now)
        return effects

    def drop(self, connection: Connection, now: float) -> None:
        """A connection is of no use any more; its link, if any, waits for another."""
        if not connection.raw:
            self.forget(connection.id)
        connection.open = False
        peer = connection.link.peer if connection.link else connection.target
        remote = self.remotes.get(peer) if peer is not None else None
        if remote is None:
            return
        if remote.connection is connection:
            remote.connection = None
            self.dirty.pop(remote.ref.peer, None)
        elif remote.attempt != connection.id:
            return
        if remote.attempt == connection.id:
            remote.attempt = None
            remote.moving = False
        if remote.connection is not None:
            # It was a look for a better path; the one there is goes on.
            if remote.link is not None and remote.link.has_output:
                self.dirty[remote.ref.peer] = remote
            self._plan_upgrade(remote, now)
            return
        self.deadlines.cancel((_UPGRADE, remote.ref.peer))
        self.away(remote, now)
        waits = remote.link is not None and remote.link.has_unacknowledged
        if (remote.initiated or connection.outbound or waits) and not remote.parted:
            self.deadlines.set((_RETRY, remote.ref.peer), now + remote.retry_s if remote.tried else now)
            if remote.tried:
                remote.retry_s = min(remote.retry_s * 2, RETRY_S_MAX)

    def away(self, remote: Remote, now: float) -> None:
        """A peer has no connection: its lease runs."""
        if self.deadlines.get((_LEASE, remote.ref.peer)) is None:
            self.deadlines.set((_LEASE, remote.ref.peer), now + self.lease_s)

    def rename(self, remote: Remote, old: PeerId) -> None:
        """A peer is not called `old` any more, but as its `ref` says."""
        for what in (_LEASE, _RETRY, _UPGRADE):
            self.deadlines.cancel((what, old))
        self.remotes.pop(old, None)
        self.dirty.pop(old, None)
        self.remotes[remote.ref.peer] = remote

    # ── paths ──

    def _direct(self, remote: Remote) -> list[str]:
        return list(remote.ref.addresses)

    def _all(self, remote: Remote) -> list[str]:
        paths = self._direct(remote)
        if self.head and remote.ref.peer != self.head:
            paths.append(RELAY + remote.ref.peer)
        return paths

    def in_vain(self, remote: Remote) -> bool:
        """Whether every path to a peer without a connection was tried since it had one, and none led there."""
        failed = remote.tried - (remote.attempt is not None)
        return failed >= len(self._all(remote))

    def try_(self, remote: Remote, now: float) -> list[Effect]:
        """Open a connection to a peer that has none, by the next of its paths."""
        self.deadlines.cancel((_RETRY, remote.ref.peer))
        if remote.attempt is not None or remote.connection is not None:
            return []
        paths = self._all(remote)
        if not paths:
            return []
        address = paths[remote.tried % len(paths)]
        remote.tried += 1
        return self._open(remote, address, now)

    def _open(self, remote: Remote, address: str, now: float) -> list[Effect]:
        connection = Connection(self.new_connection(), remote.ref.peer, address)
        self.add(connection, now)
        remote.attempt = connection.id
        return [Connect(connection.id, address)]

    def _plan_upgrade(self, remote: Remote, now: float) -> None:
        if remote.connection is not None and remote.connection.relayed and self._direct(remote):
            self.deadlines.set((_UPGRADE, remote.ref.peer), now + remote.upgrade_s)

    def _upgrade(self, remote: Remote, now: float) -> list[Effect]:
        """Look for a direct path although the relayed one works."""
        paths = self._direct(remote)
        if not paths or remote.attempt is not None or remote.connection is None or not remote.connection.relayed:
            return []
        remote.upgrade_s = min(remote.upgrade_s * 2, UPGRADE_S_MAX)
        remote.upgrades += 1
        return self._open(remote, paths[remote.upgrades % len(paths)], now)

    # ── time and ends ──

    def on_tick(self, now: float) -> tuple[list[Event], list[Effect]]:
        """Do what is due."""
        events: list[Event] = []
        effects: list[Effect] = []
        for what, key in self.deadlines.take_due(now):
            if what == _HANDSHAKE:
                connection = self.connections.get(int(key))
                if connection is not None and not connection.open:
                    connection.raw = b""
                    self.drop(connection, now)
                    effects.append(Disconnect(connection.id, f"no handshake within {HANDSHAKE_S:g} s"))
                continue
            remote = self.remotes.get(PeerId(str(key)))
            if remote is None:
                continue
            if what == _LEASE:
                more_events, more = self.end(remote, f"away for longer than its lease of {self.lease_s:g} s")
                events += more_events
                effects += more
            elif what == _RETRY:
                effects += self.try_(remote, now)
            else:
                effects += self._upgrade(remote, now)
        return events, effects

    def does_not_read(self, remote: Remote, link: Link, now: float) -> str:
        """Why a peer for which more than `UNREAD_BYTES_MAX` waits is given up; empty: it is not (yet)."""
        waiting = link.control_bytes + link.unacked_bytes
        if remote.info is None or remote.info.kind == KIND_RUNNER:
            # A runner in the middle of a long task reads nothing; its node answers for it.
            return ""
        if remote.unread is None or remote.unread[0] != link.acked:
            remote.unread = (link.acked, now)
        elif now - remote.unread[1] >= UNREAD_S:
            return f"does not read: {waiting:,} bytes wait for it, and it took none for {UNREAD_S:g} s"
        return ""

    def end(self, remote: Remote, reason: str, keep: Connection | None = None) -> tuple[list[Event], list[Effect]]:
        """A peer's incarnation is gone. What becomes of connection `keep` is the caller's business."""
        peer = remote.ref.peer
        effects: list[Effect] = []
        for identifier in (remote.connection.id if remote.connection else None, remote.attempt):
            if identifier is not None and (keep is None or identifier != keep.id):
                self.forget(identifier)
                effects.append(Disconnect(identifier, reason))
        self.remotes.pop(peer, None)
        self.dirty.pop(peer, None)
        for what in (_LEASE, _RETRY, _UPGRADE):
            self.deadlines.cancel((what, peer))
        if self.origins.get(remote.origin) == peer:
            del self.origins[remote.origin]
        if remote.role:
            self.roles_gone[peer] = remote.role
        self.on_end(remote.link)
        incarnation = remote.link.incarnation if remote.link else remote.ref.incarnation
        if incarnation:
            self.gone.pop(peer, None)
            self.gone[peer] = incarnation
            if len(self.gone) > GONE_REMEMBERED:
                del self.gone[next(iter(self.gone))]
        return [PeerGone(peer, incarnation, reason)], effects

    def check_invariants(self) -> None:
        """Raise AssertionError when links and connections contradict each other."""
        for peer, remote in self.remotes.items():
            assert remote.ref.peer == peer
            if remote.connection is not None:
                assert remote.connection.link is remote.link and remote.connection.open
                assert self.connections.get(remote.connection.id) is remote.connection
                assert self.deadlines.get((_LEASE, peer)) is None and self.deadlines.get((_RETRY, peer)) is None
            assert not remote.moving or remote.attempt is not None
            assert remote.info is None or self.origins[remote.origin] == peer
            if remote.link is not None:
                remote.link.check_invariants()


def _nothing(link: Link | None) -> None:
    return
