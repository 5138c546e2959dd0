"""All machines of one process together: who handles which message, and what leaves the process as an effect.

The station knows which role a message needs, loops messages to itself back, and turns relayed streams into
connections. Whoever owns it (the driver over real sockets, the simulator over pretended ones) gives it events and
performs the effects that remain: `Connect`, `Disconnect`, and those of the application.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from raskid.core.effects import (
    AcceptStream,
    Connect,
    Disconnect,
    Effect,
    Feed,
    Forget,
    Introduce,
    Send,
    Told,
    Unhandled,
)
from raskid.core.events import (
    BytesReceived,
    ConnectionClosed,
    ConnectionOpened,
    Event,
    HandshakeRefused,
    PeerEnded,
    PeerGone,
    PeerJoined,
    Received,
    Tick,
)
from raskid.core.handshake import RELAY
from raskid.core.peer import Peer
from raskid.core.relay import RelayEnd
from raskid.model.ids import PeerId
from raskid.protocol.messages import ROLES, Message, needed_role

_PEER_EVENTS = (BytesReceived, ConnectionOpened, ConnectionClosed)


class Station:
    """The machines of one process, and its peer."""

    def __init__(self, peer: Peer, machines: list[Any], relay: RelayEnd | None = None) -> None:
        self.peer = peer
        self.machines = [*machines, relay] if relay is not None else list(machines)
        self.relay = relay
        self._routes: dict[type[Message], Any] = {}
        self._commands: dict[type[Event], Any] = {}
        for machine in self.machines:
            for kind in machine.handles:
                self._routes[kind] = machine
            for command in getattr(machine, "commands", ()):
                self._commands[command] = machine
        #: For each kind of message its machine, by the rank of the role that may send it.
        ranks = {role: rank for rank, role in enumerate(ROLES)}
        self._ranks = ranks
        self._needs = {kind: ranks[needed_role(kind)] for kind in self._routes}
        self._own = peer.identity.peer
        #: Peers found to be at their end while effects were performed: those come first, so that whoever hears of the
        #: end has said all that it had to say before.
        self._ended: deque[Forget] = deque()

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in an event of a connection, a command, or a Tick; return the effects to perform."""
        out: list[Effect] = []
        kind = type(event)
        machine = self._commands.get(kind)
        if machine is not None:
            self._perform(machine.handle(event, now), out, now)
        elif kind in _PEER_EVENTS:
            self._on_peer_event(event, out, now)
        elif kind is Tick:
            self._on_peer_event(event, out, now)
            for machine in self.machines:
                self._perform(machine.handle(event, now), out, now)
        elif kind is PeerEnded:
            self._perform([Forget(event.peer, event.incarnation, event.reason)], out, now)
        else:
            self._broadcast(event, out, now)
        return self._finish(out, now)

    def _finish(self, out: list[Effect], now: float) -> list[Effect]:
        while self._ended:
            self._inside(self._ended.popleft(), out, now)
        if self.relay is not None and self.relay.connections:
            self._pump(out, now)
        return out

    def _on_peer_event(self, event: Event, out: list[Effect], now: float) -> None:
        events, effects = self.peer.handle(event, now)
        if self.relay is not None:
            self.relay.head = PeerId(self.peer.head)
        self._perform(effects, out, now)
        routes = self._routes
        last_peer, rank = None, -1
        for each in events:
            if type(each) is not Received:
                self._broadcast(each, out, now)
                continue
            if each.peer != last_peer:
                last_peer = each.peer
                rank = self._ranks.get(self.peer.role_of(each.peer), -1)
            kind = type(each.message)
            machine = routes.get(kind)
            if machine is None or rank < self._needs[kind]:
                reason = "nobody here handles it" if machine is None else f"it needs role {needed_role(kind)}"
                out.append(Unhandled(each.peer, kind.__name__, reason))
            else:
                self._perform(machine.handle(each, now), out, now)

    def _broadcast(self, event: Event, out: list[Effect], now: float) -> None:
        for machine in self.machines:
            self._perform(machine.handle(event, now), out, now)
        if isinstance(event, PeerJoined | PeerGone | HandshakeRefused):
            out.append(Told(event))

    def perform(self, effects: list[Effect], now: float) -> list[Effect]:
        """Perform effects of a machine that was asked directly; return what remains."""
        out: list[Effect] = []
        self._perform(effects, out, now)
        return self._finish(out, now)

    def goodbye(self, reason: str, now: float, relayed_only: bool = False) -> list[Effect]:
        """Tell all peers that this process ends on purpose; those reached through the relay first, or only those."""
        out: list[Effect] = []
        if self.relay is not None and self.relay.connections:
            # What is said to them has to be in the stream before its end is in sight.
            self.peer.goodbye(reason, self.relay.connections)
            self._pump(out, now)
        if not relayed_only:
            self.peer.goodbye(reason)
        return out

    def _perform(self, effects: list[Effect], out: list[Effect], now: float) -> None:
        """Do what stays inside; pass on the rest."""
        if not effects:
            return
        own = self._own
        loop: deque[Effect] | None = None
        for effect in effects:
            kind = type(effect)
            if kind is Send and effect.peer != own:  # type: ignore[attr-defined]
                more = self.peer.send(effect.peer, effect.message, now)  # type: ignore[attr-defined]
                for follow in more:
                    if type(follow) is Forget:
                        self._ended.append(follow)
                    else:
                        self._perform([follow], out, now)
            elif kind is Introduce:
                # At once: what is sent next may be for the peer introduced here.
                events, more = self.peer.introduce(effect.ref, now)  # type: ignore[attr-defined]
                self._perform(more, out, now)
                for event in events:
                    self._broadcast(event, out, now)
            elif kind in _INSIDE:
                if loop is None:
                    loop = deque()
                # After the rest: a message to oneself is handled when the state that sent it is complete.
                loop.append(effect)
            else:
                out.append(effect)
        while loop:
            self._inside(loop.popleft(), out, now)

    def _inside(self, effect: Any, out: list[Effect], now: float) -> None:
        kind = type(effect)
        if kind is Send:
            machine = self._routes.get(type(effect.message))
            if machine is None:
                out.append(Unhandled(self._own, type(effect.message).__name__, "nobody here handles it"))
            else:
                self._perform(machine.handle(Received(self._own, effect.message), now), out, now)
        elif kind is Forget:
            events, more = self.peer.forget(effect.peer, effect.incarnation, effect.reason)
            self._perform(more, out, now)
            for event in events:
                self._broadcast(event, out, now)
        elif kind is Connect:
            if effect.address.startswith(RELAY) and self.relay is not None:
                self._perform(self.relay.connect(effect), out, now)
            else:
                out.append(effect)
        elif kind is Disconnect:
            if self.relay is not None and effect.connection in self.relay.connections:
                self._flush_stream(effect.connection, out, now)
                self._perform(self.relay.disconnect(effect), out, now)
            else:
                out.append(effect)
        elif kind is Feed:
            self._on_peer_event(effect.event, out, now)
        elif kind is AcceptStream and self.relay is not None:
            self._perform(self.relay.accept(effect.stream, self.peer.new_connection()), out, now)

    def _pump(self, out: list[Effect], now: float) -> None:
        """Write to relayed streams what their credit allows."""
        assert self.relay is not None
        for connection in self.peer.dirty_connections():
            if connection in self.relay.connections and self.relay.room(connection) > 0:
                self._flush_stream(connection, out, now)

    def _flush_stream(self, connection: int, out: list[Effect], now: float) -> None:
        assert self.relay is not None
        data = self.peer.output(connection, max(0, self.relay.room(connection)))
        if data:
            self._perform(self.relay.write(connection, data), out, now)

    def next_deadline(self) -> float | None:
        """When a Tick is due."""
        nearest = self.peer.next_deadline()
        for machine in self.machines:
            deadline: float | None = machine.next_deadline()
            if deadline is not None and (nearest is None or deadline < nearest):
                nearest = deadline
        return nearest

    def check_invariants(self) -> None:
        """Raise AssertionError when any machine's state contradicts itself."""
        self.peer.check_invariants()
        for machine in self.machines:
            machine.check_invariants()


_INSIDE = frozenset({Send, Forget, Connect, Disconnect, Feed, AcceptStream})
