"""This process as a peer: its links to others, and the handshake by which they come about.

The machine decides which connections to open and what goes over them; the driver opens them and moves bytes. A link
outlives its connections, see `raskid.core.paths`. Only when a lease has run out, or somebody said so, is the other
peer gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from raskid.core.effects import Disconnect, Effect, Forget
from raskid.core.events import (
    BytesReceived,
    ConnectionClosed,
    ConnectionOpened,
    Event,
    HandshakeRefused,
    PeerJoined,
    Received,
)
from raskid.core.handshake import Refusal, check_hello, make_hello, make_welcome, role_of_welcome
from raskid.core.identity import Identity
from raskid.core.link import Link
from raskid.core.paths import UNREAD_BYTES_MAX, Connection, Paths, Remote
from raskid.model.errors import RemoteProtocolError
from raskid.model.ids import PeerId
from raskid.protocol.codec import decode_batch
from raskid.protocol.framing import FRAME_BYTES_MAX, UNCOUNTED
from raskid.protocol.messages import AnyMessage, Goodbye, Hello, PeerRef, Refused, Welcome


class Peer:
    """The links of one process.

    Args:
        identity: Who we are.
        head: The peer that relays for us, if any (empty for the head itself and for tests without one).
        lease_s: How long a peer may be away before it is gone.
    """

    def __init__(self, identity: Identity, head: str = "", lease_s: float = 60.0) -> None:
        self.identity = identity
        self._paths = Paths(head, lease_s)
        self._paths.on_end = self._count_ended
        self._remotes = self._paths.remotes
        self._connections = self._paths.connections
        self.refused = 0
        #: Of links that have ended, see `counts`.
        self._counted = [0, 0, 0, 0]

    # ── what others may ask ──

    @property
    def head(self) -> str:
        """The peer that relays for us: a provisional name until the first handshake with it."""
        return self._paths.head

    @property
    def lease_s(self) -> float:
        """How long a peer may be away before it is gone."""
        return self._paths.lease_s

    def new_connection(self) -> int:
        """A number for a connection that somebody opened to us."""
        return self._paths.new_connection()

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
        if ref.peer == self.identity.peer or self._paths.gone.get(ref.peer, -1) >= ref.incarnation > 0:
            return [], []
        events: list[Event] = []
        effects: list[Effect] = []
        remote = self._remotes.get(ref.peer)
        if remote is not None and ref.peer == self.head and remote.info is not None:
            # Where the head is says our own session, and no other peer.
            return [], []
        if remote is not None and remote.link is not None and 0 < remote.link.incarnation < ref.incarnation:
            # Now, and not at the handshake: what is sent from here on is meant for the newer one.
            events, effects = self._paths.end(remote, f"incarnation {ref.incarnation} was announced")
            remote = None
        if remote is None:
            self._remotes[ref.peer] = Remote(ref)
        elif ref.incarnation > remote.ref.incarnation or (
            ref.incarnation == remote.ref.incarnation and ref.addresses and not remote.ref.addresses
        ):
            remote.ref = ref
            if remote.link is not None:
                effects = self._paths.try_(remote, now)
        return events, effects

    def send(self, peer: PeerId, message: AnyMessage, now: float) -> list[Effect]:
        """Queue a message for a peer, opening a connection where there is none.

        An effect `Forget` among those returned is to be performed when nothing else is under way: it ends the peer.

        Raises:
            LocalProtocolError: The message is longer than a message may be.
        """
        remote = self._remotes.get(peer)
        if remote is not None and (link := remote.link) is not None:
            link.send(message)
            if remote.connection is not None:
                self._paths.dirty[peer] = remote
            if link.control_bytes + link.unacked_bytes <= UNREAD_BYTES_MAX:
                return []
            reason = self._paths.does_not_read(remote, link, now)
            return [Forget(peer, remote.ref.incarnation, reason)] if reason else []
        if self._paths.gone.get(peer, -1) >= (remote.ref.incarnation if remote else 0):
            return []
        if remote is None:
            remote = self._remotes[peer] = Remote(PeerRef(peer, 0))
        link = Link(peer, remote.ref.incarnation)
        link.send(message)
        remote.link = link
        self._paths.away(remote, now)
        return self._paths.try_(remote, now)

    def backlog(self, peer: PeerId) -> int:
        """Bytes of bulk that wait for a peer."""
        remote = self._remotes.get(peer)
        return remote.link.bulk_bytes if remote is not None and remote.link is not None else 0

    def forget(self, peer: PeerId, incarnation: int, reason: str) -> tuple[list[Event], list[Effect]]:
        """Somebody who knows says that this incarnation has ended: do not wait for its lease."""
        remote = self._remotes.get(peer)
        if remote is None or remote.ref.incarnation != incarnation:
            return [], []
        return self._paths.end(remote, reason)

    def output(self, connection: int, room: int) -> bytes:
        """What to write to a connection now, about `room` bytes."""
        found = self._connections.get(connection)
        if found is None:
            return b""
        data = b""
        if found.raw:
            data, found.raw = found.raw, b""
            self._paths.raw.pop(connection, None)
        if found.open and found.link is not None and room > 0:
            peer = found.link.peer
            if self._remotes[peer].moving:
                return data
            rest = found.link.take(room)
            data = data + rest if data else rest
            if not found.link.has_output:
                self._paths.dirty.pop(peer, None)
        return data

    def dirty_connections(self) -> list[int]:
        """Connections with something to write."""
        dirty, raw = self._paths.dirty, self._paths.raw
        if not dirty and not raw:
            return []
        found = list(raw)
        for peer, remote in list(dirty.items()):
            if remote.connection is None:
                del dirty[peer]
            elif remote.connection.id not in raw and not remote.moving:
                found.append(remote.connection.id)
        return found

    def peers(self) -> Iterable[PeerId]:
        """Everybody with a link."""
        return [peer for peer, remote in self._remotes.items() if remote.link is not None]

    def is_connected(self, peer: PeerId) -> bool:
        """Whether a connection carries the link to a peer now."""
        remote = self._remotes.get(peer)
        return remote is not None and remote.connection is not None

    def counts(self) -> list[int]:
        """Frames sent, frames received, messages sent, messages received: over all links so far."""
        counted = list(self._counted)
        for remote in self._remotes.values():
            _add_counts(counted, remote.link)
        return counted

    def _count_ended(self, link: Link | None) -> None:
        _add_counts(self._counted, link)

    def is_away(self, peer: PeerId) -> bool:
        """Whether a peer has no connection now: it was here, or could not be reached by any of its paths."""
        remote = self._remotes.get(peer)
        return (
            remote is not None
            and remote.connection is None
            and (remote.info is not None or self._paths.in_vain(remote))
        )

    def unsent(self) -> list[PeerId]:
        """Peers for which messages wait that no connection has taken yet."""
        return [peer for peer, remote in self._remotes.items() if remote.link is not None and remote.link.has_unsent]

    def role_of(self, peer: PeerId) -> str:
        """The role that a peer has proved to us."""
        remote = self._remotes.get(peer)
        return remote.role if remote is not None and remote.role else self._paths.roles_gone.get(peer, "")

    def goodbye(self, reason: str, connections: Collection[int] | None = None) -> None:
        """Tell everybody, or those at the other ends of these connections, that we end on purpose; once each."""
        for peer, remote in self._remotes.items():
            connection = remote.connection
            if remote.link is None or connection is None or remote.parted:
                continue
            if connections is None or connection.id in connections:
                remote.link.send(Goodbye(reason))
                remote.parted = True
                self._paths.dirty[peer] = remote

    # ── events ──

    def handle(self, event: Event, now: float) -> tuple[list[Event], list[Effect]]:
        """Take in an event of a connection, or a Tick; return events for the machines above, and effects."""
        # What their last messages may do has been looked up by now.
        self._paths.roles_gone.clear()
        if type(event) is BytesReceived:
            return self._on_bytes(event, now)
        if type(event) is ConnectionOpened:
            return self._on_opened(event, now)
        if type(event) is ConnectionClosed:
            return self._on_closed(event.connection, now)
        return self._paths.on_tick(now)

    def next_deadline(self) -> float | None:
        """When a retry, a handshake's limit or a lease is due."""
        return self._paths.deadlines.first()

    def _on_opened(self, event: ConnectionOpened, now: float) -> tuple[list[Event], list[Effect]]:
        if not event.outbound:
            self._paths.add(Connection(event.connection), now)
            return [], []
        connection = self._connections.get(event.connection)
        if connection is None or connection.target is None:
            return [], [Disconnect(event.connection, "no longer wanted")]
        self._paths.limit(connection, now)
        # Whoever we chose to connect to may send large frames right behind its Welcome.
        connection.reader.payload_max = FRAME_BYTES_MAX
        remote = self._remotes.get(connection.target)
        target = "" if remote is None or remote.ref.peer == self.head else remote.ref.peer
        received = self._paths.declare(remote, connection)
        hello, connection.text = make_hello(self.identity, target, connection.address, received)
        self._paths.write_raw(connection, hello)
        return [], []

    def _on_closed(self, identifier: int, now: float) -> tuple[list[Event], list[Effect]]:
        connection = self._connections.get(identifier)
        if connection is not None:
            # Nothing can be written to it any more.
            connection.raw = b""
            self._paths.drop(connection, now)
        return [], []

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
                        more_events, more_effects = self._paths.end(remote, message.reason or "said goodbye")
                        return events + more_events, effects + more_effects
                    events.append(Received(peer, message))
                if link.has_output:
                    self._paths.dirty[peer] = self._remotes[peer]
        except RemoteProtocolError as error:
            more_events, more_effects = self._break(connection, "protocol", str(error), now)
            return events + more_events, effects + more_effects
        return events, effects

    def _break(self, connection: Connection, code: str, text: str, now: float) -> tuple[list[Event], list[Effect]]:
        """Answer a mistake of the other end: say what is wrong, then drop the connection."""
        self.refused += 1
        who = connection.link.peer if connection.link else "a stranger"
        events: list[Event] = []
        effects: list[Effect] = []
        if connection.link is not None and connection.open and code == "protocol":
            # The count of frames is not to be trusted after garbage: this link is over.
            remote = self._remotes[connection.link.peer]
            events, effects = self._paths.end(remote, f"broke the protocol: {text}", connection)
        else:
            self._paths.drop(connection, now)
        self._refuse(connection, code, text, now)
        return events, [*effects, Disconnect(connection.id, f"{who}: {text}")]

    def _refuse(self, connection: Connection, code: str, text: str, now: float) -> None:
        """Write why, and listen no more; the connection is forgotten when it is closed, or some time later."""
        connection.link = None
        connection.open = False
        connection.closing = True
        self._paths.add(connection, now)
        self._paths.write_raw(connection, Refused(code, text))

    # ── the handshake ──

    def _on_handshake(
        self, connection: Connection, messages: list[AnyMessage], now: float
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

    def _check_hello(self, hello: Hello) -> Refusal | str:
        """Why a Hello is refused, or the role granted."""
        answer = check_hello(self.identity, self.head, hello)
        if isinstance(answer, tuple):
            return answer
        me = self.identity
        known = self._remotes.get(hello.peer)
        if hello.incarnation <= self._paths.gone.get(hello.peer, -1) or (
            known is not None and known.ref.incarnation > hello.incarnation
        ):
            return "link-forgotten", (
                f"incarnation {hello.incarnation} of {hello.peer} was away for longer than its lease of "
                f"{self.lease_s:g} s, or has ended"
            )
        link = known.link if known is not None else None
        # More frames than this incarnation ever sent were those of an earlier one, whose link has ended.
        if hello.received and (link is None or link.incarnation != hello.incarnation or hello.received > link.sent):
            return "link-forgotten", (
                f"{me.peer} (incarnation {me.incarnation}) has no link to {hello.peer}, which has {hello.received} "
                "frames of one: that link has ended"
            )
        if link is not None and link.incarnation == hello.incarnation and link.is_outdated(hello.received):
            # It was sent before another connection carried the link on; its sender knows better by now.
            return "duplicate", f"a Hello of {hello.peer} counts {hello.received} frames; it has more"
        user = me.peer if hello.origin == me.origin else self._paths.origins.get(hello.origin, hello.peer)
        if user != hello.peer:
            return "origin-taken", f"origin {hello.origin} is in use by {user}; take another"
        return answer

    def _on_hello(self, connection: Connection, hello: Hello, now: float) -> tuple[list[Event], list[Effect]]:
        answer = self._check_hello(hello)
        if isinstance(answer, tuple):
            return self._break(connection, answer[0], answer[1], now)
        remote = self._remotes.get(hello.peer)
        me = self.identity
        # Of two peers that connect to one another at once, the smaller name wins; 0 is "whichever lives there".
        if remote is not None and remote.ref.incarnation in (0, hello.incarnation) and me.peer < hello.peer:
            ours = remote.connection
            if (ours is not None and ours.outbound) or (ours is None and remote.attempt is not None):
                return self._break(connection, "duplicate", f"{me.peer} is connecting to {hello.peer} itself", now)
        events, effects = self._joined(connection, hello, answer)
        remote = self._remotes[hello.peer]
        link = remote.link
        assert link is not None
        connection.declared = link.received
        welcome = make_welcome(me, hello, answer, connection.declared, self.lease_s)
        try:
            link.attach(hello.received, connection.declared)
        except RemoteProtocolError as error:
            text = f"{me.peer} no longer has this link: {error}"
            more_events, more_effects = self._paths.end(remote, text, connection)
            self._refuse(connection, "link-forgotten", text, now)
            return events + more_events, [*effects, *more_effects, Disconnect(connection.id, text)]
        self._paths.write_raw(connection, welcome)
        effects += self._paths.attach(remote, connection, now)
        return events, effects

    def _on_welcome(self, connection: Connection, welcome: Welcome, now: float) -> tuple[list[Event], list[Effect]]:
        role = role_of_welcome(self.identity, connection.text, welcome)
        if role is None:
            return self._distrust(connection, welcome, now)
        if connection.target and connection.target != welcome.peer:
            self._name_head(connection, welcome)
        remote = self._remotes[welcome.peer]
        if remote.link is not None and remote.link.incarnation == 0:
            # Addressed by name only: this is the incarnation that was meant.
            remote.link.incarnation = welcome.incarnation
            remote.ref = PeerRef(welcome.peer, welcome.incarnation, remote.ref.addresses)
        if welcome.incarnation < max(1, remote.ref.incarnation):
            raise RemoteProtocolError(
                f"incarnation {welcome.incarnation} of {welcome.peer} answered; {remote.ref.incarnation} was expected"
            )
        events, effects = self._joined(connection, welcome, role)
        remote = self._remotes[welcome.peer]
        link = remote.link
        assert link is not None
        try:
            link.attach(welcome.received, connection.declared)
        except RemoteProtocolError as error:
            more_events, more_effects = self._paths.end(remote, f"{welcome.peer} has forgotten this link: {error}")
            return events + more_events, effects + more_effects
        effects += self._paths.attach(remote, connection, now)
        return events, effects

    def _distrust(self, connection: Connection, welcome: Welcome, now: float) -> tuple[list[Event], list[Effect]]:
        """Somebody without this system's token answers where we wanted to reach a peer of it."""
        remote = self._remotes.get(connection.target or PeerId(""))
        text = (
            f"{welcome.peer[:128]} answers at {connection.address}, but proves no role of this system: that is another "
            "system, or somebody who only pretends to be of this one"
        )
        events, effects = self._break(connection, "bad-token", text, now)
        if remote is not None and remote.info is None:
            events.append(HandshakeRefused(remote.ref.peer, "bad-token", text))
            more_events, more_effects = self._paths.end(remote, f"refused: {text} [bad-token]", connection)
            return events + more_events, effects + more_effects
        # It was here before: only this way to it is not to be trusted.
        return events, effects

    def _name_head(self, connection: Connection, welcome: Welcome) -> None:
        """The head's id is not known before the first handshake with it: it stands under a provisional name."""
        target = connection.target
        remote = self._remotes.get(target) if target is not None else None
        if target is None or remote is None or target != self.head:
            raise RemoteProtocolError(f"{target} was expected at this address, {welcome.peer} answered")
        self._paths.head = welcome.peer
        connection.target = welcome.peer
        remote.ref = PeerRef(welcome.peer, welcome.incarnation, remote.ref.addresses)
        if remote.link is not None:
            remote.link.peer, remote.link.incarnation = welcome.peer, welcome.incarnation
        self._paths.rename(remote, target)

    def _joined(self, connection: Connection, greeting: Hello | Welcome, role: str) -> tuple[list[Event], list[Effect]]:
        """Find or make the link that a greeting belongs to; an older incarnation ends. `role` is what it proved."""
        peer = greeting.peer
        events: list[Event] = []
        effects: list[Effect] = []
        remote = self._remotes.get(peer)
        if remote is not None and remote.link is not None and remote.link.incarnation == 0:
            remote.link.incarnation = greeting.incarnation
        if remote is not None and remote.link is not None and remote.link.incarnation < greeting.incarnation:
            events, effects = self._paths.end(remote, f"incarnation {greeting.incarnation} came", connection)
            remote = None
        addresses = greeting.addresses or (remote.ref.addresses if remote else ())
        if remote is None:
            remote = self._remotes[peer] = Remote(PeerRef(peer, greeting.incarnation, addresses))
        remote.ref = PeerRef(peer, greeting.incarnation, addresses)
        if remote.link is None:
            remote.link = Link(peer, greeting.incarnation)
        remote.role = role
        if remote.info is None:
            remote.info = PeerJoined(
                peer, greeting.incarnation, greeting.kind, role, addresses, greeting.host, greeting.pid
            )
            remote.origin = greeting.origin
            self._paths.origins[greeting.origin] = peer
            events.append(remote.info)
        return events, effects

    def _on_refused(self, connection: Connection, refused: Refused, now: float) -> tuple[list[Event], list[Effect]]:
        peer = connection.target or (connection.link.peer if connection.link else PeerId(""))
        effects: list[Effect] = [Disconnect(connection.id, refused.text)]
        if refused.code == "duplicate":
            self._paths.drop(connection, now)
            return [], effects
        remote = self._remotes.get(peer)
        events: list[Event] = [HandshakeRefused(peer, refused.code, refused.text)]
        if remote is not None:
            reason = f"refused: {refused.text} [{refused.code}]"
            more_events, more_effects = self._paths.end(remote, reason, connection)
            events += more_events
            effects += more_effects
        self._paths.forget(connection.id)
        return events, effects

    def check_invariants(self) -> None:
        """Raise AssertionError when links and connections contradict each other."""
        self._paths.check_invariants()


def _add_counts(counted: list[int], link: Link | None) -> None:
    if link is not None:
        counted[0] += link.sent
        counted[1] += link.received
        counted[2] += link.messages_sent
        counted[3] += link.messages_received
