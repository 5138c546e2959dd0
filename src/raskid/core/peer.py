"""This process as a peer: its links to others, the handshake, paths, reconnection and leases.

The machine decides which connections to open and what goes over them; the driver opens them and moves bytes. A link
outlives its connections: when one breaks, the end that had opened it tries again, directly and then through the
head's relay, until the lease runs out. Only then is the other peer gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import msgspec

from raskid.core.link import Link
from raskid.core.machine import Effect, Event, PeerGone, PeerJoined, Received
from raskid.model.errors import RemoteProtocolError
from raskid.model.ids import PeerId
from raskid.protocol.codec import decode_batch, encode_batch
from raskid.protocol.framing import FRAME_BYTES_MAX, UNCOUNTED, FrameReader, frame
from raskid.protocol.messages import (
    KIND_HEAD,
    KINDS,
    PROTOCOL_VERSION,
    ROLE_EXECUTE,
    ROLES,
    AnyMessage,
    Goodbye,
    Hello,
    PeerRef,
    Refused,
    Welcome,
)
from raskid.protocol.tokens import check_proofs, make_proofs

RELAY = "relay:"
HANDSHAKE_S = 10.0
RETRY_S_FIRST = 0.05
RETRY_S_MAX = 2.0
GONE_REMEMBERED = 10_000


class ConnectionOpened(Event, frozen=True):
    """A connection exists: one that `Connect` asked for, or (not `outbound`) one that somebody opened to us."""

    connection: int
    outbound: bool


class ConnectionClosed(Event, frozen=True):
    """A connection ended, or could not be opened."""

    connection: int
    reason: str = ""


class BytesReceived(Event, frozen=True):
    """Bytes came over a connection."""

    connection: int
    data: bytes


class Connect(Effect, frozen=True):
    """Open a connection to an address; answer with `ConnectionOpened` or `ConnectionClosed`."""

    connection: int
    address: str


class Disconnect(Effect, frozen=True):
    """Close a connection once what was written to it is out."""

    connection: int
    reason: str


class HandshakeRefused(Event, frozen=True):
    """The peer refused us for good; trying again is of no use."""

    peer: PeerId
    code: str
    text: str


class Identity(msgspec.Struct, frozen=True):
    """Who a process is, and what it can prove."""

    peer: PeerId
    incarnation: int
    origin: int
    kind: str
    token: str
    role: str = ROLE_EXECUTE
    addresses: tuple[str, ...] = ()
    host: str = ""
    pid: int = 0
    python: str = ""
    raskid: str = ""


class _Connection:
    __slots__ = ("closing", "deadline", "declared", "id", "link", "open", "outbound", "raw", "reader", "target")

    def __init__(self, identifier: int, outbound: bool, target: PeerId | None, deadline: float) -> None:
        self.id = identifier
        self.outbound = outbound
        self.target = target
        self.reader = FrameReader()
        self.link: Link | None = None
        self.open = False
        #: Refused: what still comes is not read; the connection ends when `raw` is written.
        self.closing = False
        self.deadline = deadline
        self.declared = 0
        #: Frames outside the link's count (handshake, refusal), to be written first.
        self.raw = b""


class _Remote:
    """What is known of another peer. `connection` carries its link now; `attempt` is one being opened."""

    __slots__ = (
        "attempt", "away_since", "connection", "info", "initiated", "link", "next_try", "origin", "ref", "retry_s",
        "role", "tried",
    )  # fmt: skip

    def __init__(self, ref: PeerRef) -> None:
        self.ref = ref
        self.link: Link | None = None
        self.connection: _Connection | None = None
        self.attempt: int | None = None
        self.away_since: float | None = None
        self.next_try: float | None = None
        self.retry_s = RETRY_S_FIRST
        self.tried = 0
        self.initiated = False
        self.role = ""
        self.origin = 0
        self.info: PeerJoined | None = None


class Peer:
    """The links of one process.

    Args:
        identity: Who we are.
        head: The peer that relays for us, if any (empty for the head itself and for tests without one).
        lease_s: How long a peer may be away before it is gone.
    """

    def __init__(self, identity: Identity, head: str = "", lease_s: float = 60.0) -> None:
        self.identity = identity
        self.head = head
        self.lease_s = lease_s
        self._remotes: dict[PeerId, _Remote] = {}
        self._connections: dict[int, _Connection] = {}
        self._dirty: dict[PeerId, _Remote] = {}
        self._raw: dict[int, _Connection] = {}
        #: Remotes with a clock running: away, or to be tried again.
        self._waiting: dict[PeerId, _Remote] = {}
        self._gone: dict[PeerId, int] = {}
        #: Roles of peers that ended since the last Tick: their last messages may still be on their way upwards.
        self._roles_gone: dict[PeerId, str] = {}
        self._next_connection = 0
        self.refused = 0

    # ── what others may ask ──

    def new_connection(self) -> int:
        """A number for a connection that somebody opened to us."""
        self._next_connection += 1
        return self._next_connection

    def ref(self, peer: PeerId) -> PeerRef | None:
        """How to reach a peer that we know."""
        remote = self._remotes.get(peer)
        return remote.ref if remote else None

    @property
    def own_ref(self) -> PeerRef:
        """How others reach us."""
        identity = self.identity
        return PeerRef(identity.peer, identity.incarnation, identity.addresses)

    def introduce(self, ref: PeerRef, now: float = 0.0) -> tuple[list[Event], list[Effect]]:
        """Remember how a peer is reached; where a newer incarnation is named, the older one has ended."""
        if ref.peer == self.identity.peer or self._gone.get(ref.peer, -1) >= ref.incarnation > 0:
            return [], []
        events: list[Event] = []
        effects: list[Effect] = []
        remote = self._remotes.get(ref.peer)
        if remote is not None and remote.link is not None and 0 < remote.link.incarnation < ref.incarnation:
            # Now, and not at the handshake: what is sent from here on is meant for the newer one.
            events, effects = self._end(remote, f"incarnation {ref.incarnation} was announced")
            remote = None
        if remote is None:
            self._remotes[ref.peer] = _Remote(ref)
        elif ref.incarnation > remote.ref.incarnation or (
            ref.incarnation == remote.ref.incarnation and ref.addresses and not remote.ref.addresses
        ):
            remote.ref = ref
            if remote.link is not None and remote.connection is None and remote.attempt is None:
                effects = self._try(remote, now)
        return events, effects

    def send(self, peer: PeerId, message: AnyMessage, now: float) -> list[Effect]:
        """Queue a message for a peer, opening a connection where there is none."""
        remote = self._remotes.get(peer)
        if remote is not None and (link := remote.link) is not None:
            link.send(message)
            if remote.connection is not None:
                self._dirty[peer] = remote
            return []
        if self._gone.get(peer, -1) >= (remote.ref.incarnation if remote else 0):
            return []
        if remote is None:
            remote = self._remotes[peer] = _Remote(PeerRef(peer, 0))
        remote.link = Link(peer, remote.ref.incarnation)
        remote.link.send(message)
        remote.away_since = now
        self._waiting[peer] = remote
        return self._try(remote, now)

    def backlog(self, peer: PeerId) -> int:
        """Bytes of bulk that wait for a peer."""
        remote = self._remotes.get(peer)
        return remote.link.bulk_bytes if remote is not None and remote.link is not None else 0

    def forget(self, peer: PeerId, incarnation: int, reason: str) -> tuple[list[Event], list[Effect]]:
        """Somebody who knows says that this incarnation has ended: do not wait for its lease."""
        remote = self._remotes.get(peer)
        if remote is None or remote.ref.incarnation != incarnation:
            return [], []
        return self._end(remote, reason)

    def output(self, connection: int, room: int) -> bytes:
        """What to write to a connection now, about `room` bytes."""
        found = self._connections.get(connection)
        if found is None:
            return b""
        data = b""
        if found.raw:
            data, found.raw = found.raw, b""
            self._raw.pop(connection, None)
        if found.open and found.link is not None and room > 0:
            rest = found.link.take(room)
            data = data + rest if data else rest
            if not found.link.has_output:
                self._dirty.pop(found.link.peer, None)
        return data

    def dirty_connections(self) -> list[int]:
        """Connections with something to write."""
        if not self._dirty and not self._raw:
            return []
        found = list(self._raw)
        for peer, remote in list(self._dirty.items()):
            if remote.connection is None:
                del self._dirty[peer]
            elif remote.connection.id not in self._raw:
                found.append(remote.connection.id)
        return found

    def peers(self) -> Iterable[PeerId]:
        """Everybody with a link."""
        return [peer for peer, remote in self._remotes.items() if remote.link is not None]

    def is_connected(self, peer: PeerId) -> bool:
        """Whether a connection carries the link to a peer now."""
        remote = self._remotes.get(peer)
        return remote is not None and remote.connection is not None

    def unsent(self) -> list[PeerId]:
        """Peers for which messages wait that no connection has taken yet."""
        return [
            peer
            for peer, remote in self._remotes.items()
            if remote.link is not None and (remote.link.control or remote.link.bulk_bytes)
        ]

    def role_of(self, peer: PeerId) -> str:
        """The role that a peer has proved to us; our own where we proved ours to it."""
        remote = self._remotes.get(peer)
        return remote.role if remote is not None and remote.role else self._roles_gone.get(peer, "")

    def goodbye(self, reason: str) -> None:
        """Tell everybody that we end on purpose."""
        for peer, remote in self._remotes.items():
            if remote.link is not None and remote.connection is not None:
                remote.link.send(Goodbye(reason))
                self._dirty[peer] = remote

    # ── events ──

    def handle(self, event: Event, now: float) -> tuple[list[Event], list[Effect]]:
        """Take in an event of a connection, or a Tick; return events for the machines above, and effects."""
        if type(event) is BytesReceived:
            return self._on_bytes(event, now)
        if type(event) is ConnectionOpened:
            return self._on_opened(event, now)
        if type(event) is ConnectionClosed:
            return self._on_closed(event.connection, event.reason, now)
        return self._on_tick(now)

    def next_deadline(self) -> float | None:
        """When a retry, a handshake's limit or a lease is due."""
        times = [remote.next_try for remote in self._waiting.values() if remote.next_try is not None]
        times += [r.away_since + self.lease_s for r in self._waiting.values() if r.away_since is not None]
        times += [connection.deadline for connection in self._connections.values() if not connection.open]
        return min(times, default=None)

    def _on_opened(self, event: ConnectionOpened, now: float) -> tuple[list[Event], list[Effect]]:
        if not event.outbound:
            self._connections[event.connection] = _Connection(event.connection, False, None, now + HANDSHAKE_S)
            return [], []
        connection = self._connections.get(event.connection)
        if connection is None:
            return [], [Disconnect(event.connection, "no longer wanted")]
        connection.deadline = now + HANDSHAKE_S
        # Whoever we chose to connect to may send large frames right behind its Welcome.
        connection.reader.payload_max = FRAME_BYTES_MAX
        remote = self._remotes.get(connection.target) if connection.target is not None else None
        link = remote.link if remote else None
        connection.declared = link.received if link else 0
        me = self.identity
        hello = Hello(
            PROTOCOL_VERSION, me.peer, me.incarnation, me.origin, me.kind, me.role,
            make_proofs(me.token, me.role, _proof_text(me.peer, me.incarnation, me.origin, self._target_of(remote))),
            connection.declared, me.addresses, me.host, me.pid, me.python, me.raskid, self._target_of(remote),
        )  # fmt: skip
        self._write_raw(connection, hello)
        return [], []

    def _target_of(self, remote: _Remote | None) -> str:
        return "" if remote is None or remote.ref.peer == self.head else remote.ref.peer

    def _write_raw(self, connection: _Connection, message: AnyMessage) -> None:
        connection.raw += frame(UNCOUNTED, 0, encode_batch([message]))
        self._raw[connection.id] = connection

    def _on_bytes(self, event: BytesReceived, now: float) -> tuple[list[Event], list[Effect]]:
        connection = self._connections.get(event.connection)
        if connection is None or connection.closing:
            return [], []
        events: list[Event] = []
        effects: list[Effect] = []
        try:
            for word, acknowledged, payload in connection.reader.feed(event.data):
                if word & UNCOUNTED:
                    more_events, more_effects = self._on_handshake(connection, decode_batch(payload), now)
                    events += more_events
                    effects += more_effects
                    if connection.closing or connection.id not in self._connections:
                        break
                    continue
                link = connection.link
                if link is None:
                    raise RemoteProtocolError("the first frame of a connection must be a Hello; got a counted frame")
                if not connection.open:
                    break
                peer = link.peer
                for message in link.receive(word, acknowledged, payload):
                    if type(message) is Goodbye:
                        remote = self._remotes[peer]
                        more_events, more_effects = self._end(remote, message.reason or "said goodbye")
                        return events + more_events, effects + more_effects
                    events.append(Received(peer, message))
                if link.has_output:
                    self._dirty[peer] = self._remotes[peer]
        except RemoteProtocolError as error:
            more_events, more_effects = self._break(connection, "protocol", str(error), now)
            return events + more_events, effects + more_effects
        return events, effects

    def _break(self, connection: _Connection, code: str, text: str, now: float) -> tuple[list[Event], list[Effect]]:
        """Answer a mistake of the other end: say what is wrong, then drop the connection."""
        self.refused += 1
        who = connection.link.peer if connection.link else "a stranger"
        if connection.link is not None and connection.open and code == "protocol":
            # The count of frames is not to be trusted after garbage: this link is over.
            events, effects = self._end(self._remotes[connection.link.peer], f"broke the protocol: {text}", connection)
        else:
            events, effects = self._drop(connection, now)
        self._refuse(connection, code, text, now)
        return events, [*effects, Disconnect(connection.id, f"{who}: {text}")]

    def _refuse(self, connection: _Connection, code: str, text: str, now: float) -> None:
        """Write why, and listen no more; the connection is forgotten when it is closed, or some time later."""
        connection.link = None
        connection.open = False
        connection.closing = True
        connection.deadline = now + HANDSHAKE_S
        self._connections[connection.id] = connection
        self._write_raw(connection, Refused(code, text))

    def _on_handshake(
        self, connection: _Connection, messages: list[AnyMessage], now: float
    ) -> tuple[list[Event], list[Effect]]:
        if len(messages) != 1:
            raise RemoteProtocolError(f"a frame of the handshake holds one message, got {len(messages)}")
        message = messages[0]
        if type(message) is Hello and not connection.outbound and not connection.open:
            return self._on_hello(connection, message, now)
        if type(message) is Welcome and connection.outbound and not connection.open:
            return self._on_welcome(connection, message, now)
        if type(message) is Refused:
            return self._on_refused(connection, message, now)
        raise RemoteProtocolError(f"{type(message).__name__} is not expected at this point of the handshake")

    def _refusal_of(self, hello: Hello) -> tuple[str, str] | str:
        """Why a Hello is refused as (code, text), or the role granted."""
        me = self.identity
        if hello.protocol != PROTOCOL_VERSION:
            return "bad-version", (
                f"{hello.peer} speaks protocol {hello.protocol} (raskid {hello.raskid or '?'}, Python "
                f"{hello.python or '?'}); {me.peer} speaks {PROTOCOL_VERSION} (raskid {me.raskid or '?'}). "
                "Install the same raskid at both ends"
            )
        if hello.role not in ROLES or hello.kind not in KINDS:
            return "bad-role", (
                f"{hello.peer} asks for role {hello.role!r} as {hello.kind!r}; roles are {', '.join(ROLES)}, "
                f"kinds are {', '.join(KINDS)}"
            )
        if hello.target not in ("", me.peer) or (hello.target == "" and me.kind != KIND_HEAD):
            return "bad-peer", f"{hello.peer} wants to reach {hello.target or 'the head'}; this is {me.peer}"
        if not hello.peer or len(hello.peer) > 128 or hello.peer == me.peer:
            return "bad-peer", f"{hello.peer[:128]!r} cannot be the id of a peer of {me.peer}"
        if hello.incarnation < 1:
            return "bad-peer", f"{hello.peer} says that it is incarnation {hello.incarnation}; the first one is 1"
        text = _proof_text(hello.peer, hello.incarnation, hello.origin, hello.target)
        role = check_proofs(hello.token, me.token, me.role, text)
        if role is None:
            return "bad-token", f"the token of {hello.peer} is not one of this system's"
        role = ROLES[min(ROLES.index(role), ROLES.index(hello.role))]
        known = self._remotes.get(hello.peer)
        if hello.incarnation <= self._gone.get(hello.peer, -1) or (
            known is not None and known.ref.incarnation > hello.incarnation
        ):
            return "link-forgotten", (
                f"incarnation {hello.incarnation} of {hello.peer} was away for longer than its lease of "
                f"{self.lease_s:g} s, or has ended"
            )
        link = known.link if known is not None else None
        if hello.received and (link is None or link.incarnation != hello.incarnation):
            return "link-forgotten", (
                f"{me.peer} (incarnation {me.incarnation}) has no link to {hello.peer}, which has {hello.received} "
                "frames of one: that link has ended"
            )
        if link is not None and link.incarnation == hello.incarnation and link.is_outdated(hello.received):
            # It was sent before another connection carried the link on; its sender knows better by now.
            return "duplicate", f"a Hello of {hello.peer} counts {hello.received} frames; it has more"
        if hello.origin == me.origin:
            return "origin-taken", f"origin {hello.origin} is in use by {me.peer}; take another"
        for remote in self._remotes.values():
            if remote.origin == hello.origin and remote.ref.peer != hello.peer:
                return "origin-taken", f"origin {hello.origin} is in use by {remote.ref.peer}; take another"
        return role

    def _on_hello(self, connection: _Connection, hello: Hello, now: float) -> tuple[list[Event], list[Effect]]:
        answer = self._refusal_of(hello)
        if isinstance(answer, tuple):
            return self._break(connection, answer[0], answer[1], now)
        remote = self._remotes.get(hello.peer)
        me = self.identity
        if remote is not None and remote.ref.incarnation == hello.incarnation and me.peer < hello.peer:
            ours = remote.connection
            if (ours is not None and ours.outbound) or (ours is None and remote.attempt is not None):
                return self._break(connection, "duplicate", f"{me.peer} is connecting to {hello.peer} itself", now)
        events, effects = self._joined(connection, hello, answer)
        remote = self._remotes[hello.peer]
        link = remote.link
        assert link is not None
        connection.declared = link.received
        welcome = Welcome(
            me.peer, me.incarnation, me.origin, me.kind, answer, connection.declared, me.addresses, self.lease_s,
            me.host, me.pid, me.python, me.raskid,
        )  # fmt: skip
        try:
            link.attach(hello.received, connection.declared)
        except RemoteProtocolError as error:
            text = f"{me.peer} no longer has this link: {error}"
            more_events, more_effects = self._end(remote, text, connection)
            self._refuse(connection, "link-forgotten", text, now)
            return events + more_events, [*effects, *more_effects, Disconnect(connection.id, text)]
        self._write_raw(connection, welcome)
        effects += self._attach(remote, connection)
        return events, effects

    def _on_welcome(self, connection: _Connection, welcome: Welcome, now: float) -> tuple[list[Event], list[Effect]]:
        if connection.target and connection.target != welcome.peer:
            # The head's id is not known before the first handshake with it: it stands under a provisional name.
            remote = self._remotes.get(connection.target)
            if remote is None or remote.ref.peer != self.head:
                raise RemoteProtocolError(f"{connection.target} was expected at this address, {welcome.peer} answered")
            del self._remotes[connection.target]
            self._waiting.pop(connection.target, None)
            self._dirty.pop(connection.target, None)
            self.head = welcome.peer
            connection.target = welcome.peer
            remote.ref = PeerRef(welcome.peer, welcome.incarnation, remote.ref.addresses)
            if remote.link is not None:
                remote.link.peer, remote.link.incarnation = welcome.peer, welcome.incarnation
            self._remotes[welcome.peer] = remote
        remote = self._remotes[welcome.peer]
        if remote.link is not None and remote.link.incarnation == 0:
            # Addressed by name only: this is the incarnation that was meant.
            remote.link.incarnation = welcome.incarnation
            remote.ref = PeerRef(welcome.peer, welcome.incarnation, remote.ref.addresses)
        if welcome.incarnation < max(1, remote.ref.incarnation):
            raise RemoteProtocolError(
                f"incarnation {welcome.incarnation} of {welcome.peer} answered; {remote.ref.incarnation} was expected"
            )
        events, effects = self._joined(connection, welcome, self.identity.role)
        link = self._remotes[welcome.peer].link
        assert link is not None
        try:
            link.attach(welcome.received, connection.declared)
        except RemoteProtocolError as error:
            more_events, more_effects = self._end(remote, f"{welcome.peer} has forgotten this link: {error}")
            return events + more_events, effects + more_effects
        effects += self._attach(self._remotes[welcome.peer], connection)
        return events, effects

    def _joined(
        self, connection: _Connection, greeting: Hello | Welcome, role: str
    ) -> tuple[list[Event], list[Effect]]:
        """Find or make the link that a greeting belongs to; an older incarnation ends."""
        peer = greeting.peer
        events: list[Event] = []
        effects: list[Effect] = []
        remote = self._remotes.get(peer)
        if remote is not None and remote.link is not None and remote.link.incarnation == 0:
            remote.link.incarnation = greeting.incarnation
        if remote is not None and remote.link is not None and remote.link.incarnation < greeting.incarnation:
            events, effects = self._end(remote, f"incarnation {greeting.incarnation} came", connection)
            remote = None
        addresses = greeting.addresses or (remote.ref.addresses if remote else ())
        if remote is None:
            remote = self._remotes[peer] = _Remote(PeerRef(peer, greeting.incarnation, addresses))
        remote.ref = PeerRef(peer, greeting.incarnation, addresses)
        if remote.link is None:
            remote.link = Link(peer, greeting.incarnation)
        remote.role = role if isinstance(greeting, Hello) else greeting_role(greeting, self.identity.role)
        if remote.info is None:
            remote.info = PeerJoined(
                peer, greeting.incarnation, greeting.kind, remote.role, addresses, greeting.host, greeting.pid
            )
            remote.origin = greeting.origin
            events.append(remote.info)
        return events, effects

    def _attach(self, remote: _Remote, connection: _Connection) -> list[Effect]:
        effects: list[Effect] = []
        old = remote.connection
        if old is not None and old is not connection:
            self._connections.pop(old.id, None)
            self._raw.pop(old.id, None)
            effects.append(Disconnect(old.id, "another connection took its place"))
        if remote.attempt is not None and remote.attempt != connection.id:
            self._connections.pop(remote.attempt, None)
            self._raw.pop(remote.attempt, None)
            effects.append(Disconnect(remote.attempt, "another connection was quicker"))
        remote.attempt = None
        remote.connection = connection
        remote.initiated = connection.outbound
        remote.away_since = remote.next_try = None
        remote.retry_s = RETRY_S_FIRST
        remote.tried = 0
        self._waiting.pop(remote.ref.peer, None)
        connection.link = remote.link
        connection.open = True
        connection.reader.payload_max = FRAME_BYTES_MAX
        self._dirty[remote.ref.peer] = remote
        return effects

    def _on_refused(self, connection: _Connection, refused: Refused, now: float) -> tuple[list[Event], list[Effect]]:
        peer = connection.target or (connection.link.peer if connection.link else PeerId(""))
        events: list[Event]
        effects: list[Effect]
        if refused.code == "duplicate":
            events, effects = self._drop(connection, now)
            return events, [*effects, Disconnect(connection.id, refused.text)]
        remote = self._remotes.get(peer)
        events = [HandshakeRefused(peer, refused.code, refused.text)]
        effects = [Disconnect(connection.id, refused.text)]
        if remote is not None:
            more_events, more_effects = self._end(remote, f"refused: {refused.text} [{refused.code}]", connection)
            events += more_events
            effects += more_effects
        self._connections.pop(connection.id, None)
        self._raw.pop(connection.id, None)
        return events, effects

    # ── ends ──

    def _on_closed(self, identifier: int, reason: str, now: float) -> tuple[list[Event], list[Effect]]:
        connection = self._connections.get(identifier)
        if connection is None:
            return [], []
        # Nothing can be written to it any more.
        connection.raw = b""
        return self._drop(connection, now)

    def _drop(self, connection: _Connection, now: float) -> tuple[list[Event], list[Effect]]:
        """A connection is of no use any more; its link, if any, waits for another."""
        if not connection.raw:
            self._connections.pop(connection.id, None)
            self._raw.pop(connection.id, None)
        connection.open = False
        peer = connection.link.peer if connection.link else connection.target
        remote = self._remotes.get(peer) if peer is not None else None
        if remote is None:
            return [], []
        if remote.connection is connection:
            remote.connection = None
            self._dirty.pop(remote.ref.peer, None)
        elif remote.attempt != connection.id:
            return [], []
        if remote.attempt == connection.id:
            remote.attempt = None
        if remote.connection is not None:
            return [], []
        if remote.away_since is None:
            remote.away_since = now
        self._waiting[remote.ref.peer] = remote
        if remote.initiated or connection.outbound or (remote.link is not None and remote.link.control):
            remote.next_try = now + remote.retry_s if remote.tried else now
            if remote.tried:
                remote.retry_s = min(remote.retry_s * 2, RETRY_S_MAX)
        return [], []

    def _paths(self, remote: _Remote) -> list[str]:
        paths = [address for address in remote.ref.addresses if self.can_reach(address)]
        if self.head and remote.ref.peer != self.head:
            paths.append(RELAY + remote.ref.peer)
        return paths

    #: Whether an address is worth trying from here; the assembly may put in a better judge.
    can_reach: Callable[[str], bool] = staticmethod(lambda address: True)

    def _try(self, remote: _Remote, now: float) -> list[Effect]:
        paths = self._paths(remote)
        remote.next_try = None
        if not paths or remote.attempt is not None or remote.connection is not None:
            return []
        address = paths[remote.tried % len(paths)]
        remote.tried += 1
        self._next_connection += 1
        connection = _Connection(self._next_connection, True, remote.ref.peer, now + HANDSHAKE_S)
        self._connections[connection.id] = connection
        remote.attempt = connection.id
        return [Connect(connection.id, address)]

    def _on_tick(self, now: float) -> tuple[list[Event], list[Effect]]:
        events: list[Event] = []
        effects: list[Effect] = []
        self._roles_gone.clear()
        for connection in [c for c in self._connections.values() if not c.open and c.deadline <= now]:
            more_events, more_effects = self._drop(connection, now)
            self._connections.pop(connection.id, None)
            self._raw.pop(connection.id, None)
            events += more_events
            effects += [*more_effects, Disconnect(connection.id, f"no handshake within {HANDSHAKE_S:g} s")]
        for remote in list(self._waiting.values()):
            if remote.away_since is not None and now >= remote.away_since + self.lease_s:
                more_events, more_effects = self._end(remote, f"away for longer than its lease of {self.lease_s:g} s")
                events += more_events
                effects += more_effects
            elif remote.next_try is not None and now >= remote.next_try:
                effects += self._try(remote, now)
        return events, effects

    def _end(self, remote: _Remote, reason: str, keep: _Connection | None = None) -> tuple[list[Event], list[Effect]]:
        """A peer's incarnation is gone."""
        peer = remote.ref.peer
        effects: list[Effect] = []
        for identifier in (remote.connection.id if remote.connection else None, remote.attempt):
            if identifier is not None and (keep is None or identifier != keep.id):
                self._connections.pop(identifier, None)
                self._raw.pop(identifier, None)
                effects.append(Disconnect(identifier, reason))
        self._remotes.pop(peer, None)
        self._dirty.pop(peer, None)
        self._waiting.pop(peer, None)
        if remote.role:
            self._roles_gone[peer] = remote.role
        incarnation = remote.link.incarnation if remote.link else remote.ref.incarnation
        if incarnation:
            self._gone.pop(peer, None)
            self._gone[peer] = incarnation
            if len(self._gone) > GONE_REMEMBERED:
                del self._gone[next(iter(self._gone))]
        return [PeerGone(peer, incarnation, reason)], effects

    def check_invariants(self) -> None:
        """Raise AssertionError when links and connections contradict each other."""
        for peer, remote in self._remotes.items():
            assert remote.ref.peer == peer
            if remote.connection is not None:
                assert remote.connection.link is remote.link and remote.connection.open
                assert self._connections.get(remote.connection.id) is remote.connection
                assert peer not in self._waiting
            if remote.link is not None:
                remote.link.check_invariants()


def greeting_role(greeting: Welcome | Hello, own: str) -> str:
    """The role of whoever welcomed us: it could check our proofs, so it holds at least the role it granted."""
    return greeting.role if greeting.role in ROLES else own


def _proof_text(peer: str, incarnation: int, origin: int, target: str) -> str:
    return hashlib.sha256(f"{peer}\0{incarnation}\0{origin}\0{target}".encode()).hexdigest()
