"""A simulation of whole systems: real stations and real bytes over a pretended network, in virtual time.

Everything that happens is drawn from one seed, so that a failure repeats. A `World` holds nodes (a station each, with
a clock of its own) and wires between them; faults cut wires, part or suspend or crash nodes, and make clocks jump.
After every event the invariants of the station that met it are checked.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from raskid.core.calls import Calls
from raskid.core.effects import (
    Arrived,
    CallDone,
    Connect,
    Disconnect,
    Invoke,
    PublisherEnded,
    Replied,
    Send,
    Told,
    Unhandled,
)
from raskid.core.events import (
    Announce,
    BytesReceived,
    ConnectionClosed,
    ConnectionOpened,
    HandshakeRefused,
    PeerGone,
    PeerJoined,
    Publish,
    Reply,
    Request,
    Serve,
    Subscribed,
    Tick,
    Took,
    Unsubscribed,
    WatchList,
)
from raskid.core.hub import Hub
from raskid.core.identity import Identity
from raskid.core.lists import Lists
from raskid.core.manager import Manager
from raskid.core.messaging import Messaging
from raskid.core.peer import Peer
from raskid.core.relay import RelayEnd, RelayHub
from raskid.core.station import Station
from raskid.model.ids import IdSource, PeerId, RequestId
from raskid.model.topics import REACTIONS, SERVICES, list_name
from raskid.protocol.messages import KIND_CLIENT, KIND_HEAD, DeleteRecord, PeerRef, PutRecord
from raskid.protocol.reactions import BLOCK, JUST_DELIVER, Provider, Reaction

HEAD = PeerId("head")
TOKEN = "simulated token"
SCHEME = "sim:"
IN_FLIGHT_BYTES_MAX = 256 * 1024
TICKS_AT_ONCE_MAX = 1000
PRESENCE = "shared:presence"


class SimulationError(AssertionError):
    """An invariant or a property failed; the text names the seed, the step and what happened last."""


class Wire:
    """A connection between two nodes; each end is a node's life and its number for the connection."""

    def __init__(self, opener: Node, opener_number: int, acceptor: Node) -> None:
        self.nodes = (opener, acceptor)
        self.numbers = [opener_number, 0]
        self.open = [False, False]
        #: For each direction (by sender): when the last piece arrives, and how many bytes are under way.
        self.arrival = [0.0, 0.0]
        self.in_flight = [0, 0]
        self.cut = False


class Node:
    """One process: its station and what its application saw. A new life has a new `Node`."""

    def __init__(self, world: World, name: PeerId, incarnation: int, origin: int, offset: float) -> None:
        self.world = world
        self.name = name
        self.incarnation = incarnation
        self.ids = IdSource(origin)
        self.offset = offset
        self.alive = True
        self.suspended = False
        #: Running a task: what arrives meanwhile is looked at afterwards.
        self.busy = False
        self.held: deque[tuple[str, Callable[[], None]]] = deque()
        self.ends: dict[int, tuple[Wire, int]] = {}
        self.tick_at: float | None = None
        self.ticks_at_once = 0
        #: How long the reader takes over each message, at most.
        self.take_s = 0.05
        self.arrived: dict[RequestId, list[Arrived]] = {}
        self.ended: dict[RequestId, list[PublisherEnded]] = {}
        self.replies: dict[int, Any] = {}
        self.outcomes: dict[RequestId, list[CallDone]] = {}
        self.invoked: list[Invoke] = []
        self.told: list[Any] = []
        self.unhandled: list[Unhandled] = []
        identity = Identity(name, incarnation, origin, self.kind, TOKEN, addresses=(SCHEME + name,))
        head = self.kind == KIND_HEAD
        peer = Peer(identity, "" if head else HEAD, world.lease_s)
        self.lists = Lists(HEAD, self.agent)
        self.messaging = Messaging(self.lists, world.random.randrange, f"{name}/{incarnation}")
        self.calls = Calls(self.lists)
        machines: list[Any] = [self.lists, self.messaging, self.calls]
        self.hub: Hub | None = None
        self.relay_hub: RelayHub | None = None
        relay: RelayEnd | None = None
        if head:
            self.hub, self.relay_hub = Hub(), RelayHub()
            machines += [self.hub, self.relay_hub]
        else:
            relay = RelayEnd(HEAD, self.ids)
            peer.introduce(PeerRef(HEAD, 0, (SCHEME + HEAD,)), self.clock)
        self.station = Station(peer, [*machines, *self.more_machines()], relay)

    @property
    def kind(self) -> str:
        """What this process is to others."""
        return KIND_HEAD if self.name == HEAD else KIND_CLIENT

    @property
    def agent(self) -> PeerId:
        """Who answers the hub for this process while it is busy."""
        return PeerId("")

    def more_machines(self) -> list[Any]:
        """Machines besides those that every node has."""
        return [Manager(self.name)] if self.name == HEAD else []

    def after_event(self) -> None:
        """Called when the station has met an event and its effects are performed."""

    def __repr__(self) -> str:
        return f"{self.name}/{self.incarnation}"

    @property
    def clock(self) -> float:
        """What this node's monotonic clock says."""
        return self.world.now + self.offset

    @property
    def ref(self) -> PeerRef:
        """How others reach this node."""
        return self.station.peer.own_ref

    # ── What an application does ──

    def do(self, command: Any) -> None:
        """Give a command to the station, unless the node is suspended: then it comes afterwards."""
        self.world.deliver(self, f"{type(command).__name__} {command!r:.80}", lambda: self.world.handle(self, command))

    def send(self, message: Any) -> None:
        """Send a message to the head, as the client library does."""

        def act() -> None:
            self.world.perform(self, self.station_send(message))

        self.world.deliver(self, f"send {message!r:.80}", act)

    def station_send(self, message: Any) -> list[Any]:
        """Have the station send a message to the head."""
        out: list[Any] = []
        self.station._perform([Send(HEAD, message)], out, self.clock)
        return out

    def subscribe(
        self, topic: str, capacity: int = 8, overflow: str = BLOCK, settle_s: float = 5.0
    ) -> tuple[RequestId, RequestId]:
        """Subscribe; returns the ids of the subscription and of the request that settles it."""
        subscription, request = RequestId(self.ids.take()), RequestId(self.ids.take())
        self.arrived[subscription] = []
        self.do(Subscribed(subscription, capacity))
        value = msgspec.msgpack.encode(Reaction(self.ref, JUST_DELIVER, capacity, overflow))
        self.send(PutRecord(request, list_name(REACTIONS, topic), str(subscription), value, settle_s=settle_s))
        return subscription, request

    def unsubscribe(self, topic: str, subscription: RequestId, settle_s: float = 5.0) -> RequestId:
        """Unsubscribe; messages are taken until `Unsubscribed` is done."""
        request = RequestId(self.ids.take())
        self.send(DeleteRecord(request, list_name(REACTIONS, topic), str(subscription), settle_s))
        return request

    def forget(self, subscription: RequestId) -> None:
        """Take no more messages of a subscription."""
        self.do(Unsubscribed(subscription))

    def announce(self, topic: str) -> None:
        """Get ready to publish."""
        self.do(Announce(topic))

    def may_publish(self, topic: str) -> bool:
        """Whether a publishing call would not have to wait."""
        return self.alive and not self.suspended and topic in self.messaging.plans and not self.messaging.blocked(topic)

    def publish(self, topic: str, body: bytes) -> None:
        """Publish a message."""
        self.do(Publish(topic, body))

    def serve(self, service: str) -> None:
        """Answer requests of a service with their own body."""
        self.do(Serve(service))
        value = msgspec.msgpack.encode(Provider(self.ref))
        self.send(PutRecord(RequestId(self.ids.take()), list_name(SERVICES, service), self.name, value))

    def request(self, service: str, body: bytes, limit_s: float = 10.0) -> RequestId:
        """Call a service."""
        request = RequestId(self.ids.take())
        self.outcomes[request] = []
        self.do(Request(request, service, body, self.clock + limit_s))
        return request

    def take(self, one: Arrived) -> None:
        """Take one message, after a while."""
        world = self.world
        took = Took(one.subscription, one.publisher, 1)
        world.later(world.random.uniform(0, self.take_s), self, "take", lambda: world.handle(self, took))

    def on_effect(self, effect: Any) -> None:
        """Note what the station tells the application, and read messages after a while."""
        world = self.world
        kind = type(effect)
        if kind is Arrived:
            for at, body in enumerate(effect.bodies):
                # One by one, as their reader takes them.
                one = Arrived(
                    effect.subscription, effect.publisher, effect.topic, [body], 0 if at else effect.dropped,
                    effect.numbers[at : at + 1], effect.again, effect.on_behalf,
                )  # fmt: skip
                self.arrived.setdefault(effect.subscription, []).append(one)
                self.take(one)
        elif kind is PublisherEnded:
            self.ended.setdefault(effect.subscription, []).append(effect)
        elif kind is Replied:
            assert effect.request not in self.replies, f"{self} was answered twice: {effect}"
            self.replies[effect.request] = effect.message
        elif kind is CallDone:
            self.outcomes[effect.request].append(effect)
        elif kind is Invoke:
            self.invoked.append(effect)
            reply = Reply(effect.request, True, effect.body)
            world.later(world.random.uniform(0, 0.2), self, "reply", lambda: world.handle(self, reply))
        elif kind is Told:
            self.told.append(effect.event)
        elif kind is Unhandled:
            self.unhandled.append(effect)


class World:
    """Nodes, wires and faults. `now` is virtual time in seconds."""

    def __init__(self, seed: int, lease_s: float = 20.0, delay_s: float = 0.02) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.lease_s = lease_s
        self.delay_s = delay_s
        self.now = 0.0
        self.step = 0
        self.nodes: dict[PeerId, Node] = {}
        self.wires: list[Wire] = []
        #: Pairs that never reach one another directly, and those that do not for the time being.
        self.apart: set[frozenset[str]] = set()
        self.parted: dict[frozenset[str], float] = {}
        #: Pairs between which everything takes longer, by so many seconds.
        self.slow: dict[frozenset[str], float] = {}
        self._heap: list[tuple[float, int, Node | None, str, Callable[[], None]]] = []
        self._number = 0
        self._origin = 0
        self._history: deque[str] = deque(maxlen=20)

    # ── Nodes ──

    def add_head(self) -> Node:
        """The head of the system."""
        return self._add(HEAD, 1)

    def add_client(self, name: str) -> Node:
        """A client, which watches a list from the start."""
        node = self._add(PeerId(name), 1)
        node.do(WatchList(PRESENCE))
        return node

    def _add(self, name: PeerId, incarnation: int) -> Node:
        self._origin += 1
        node = self.nodes[name] = self.new_node(name, incarnation, self._origin, self.random.uniform(0, 1000))
        return node

    def new_node(self, name: PeerId, incarnation: int, origin: int, offset: float) -> Node:
        """Make a node; worlds with other kinds of nodes make these."""
        return Node(self, name, incarnation, origin, offset)

    # ── Time ──

    def later(self, delay: float, node: Node | None, label: str, act: Callable[[], None]) -> None:
        """Do something in a node's present life (or in the world) after some time."""
        self._number += 1
        heapq.heappush(self._heap, (self.now + delay, self._number, node, label, act))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            at, _, node, label, act = heapq.heappop(self._heap)
            self.now = max(self.now, at)
            self.deliver(node, label, act)
        self.now = end

    def run_until(self, condition: Callable[[], bool], limit_s: float = 120.0, what: str = "") -> None:
        """Let time pass until something is true; it must become true within the limit."""
        end = self.now + limit_s
        while not condition():
            if self.now >= end:
                self.fail(f"did not come true within {limit_s:g} s: {what or condition.__qualname__}")
            self.run(0.05)

    def deliver(self, node: Node | None, label: str, act: Callable[[], None]) -> None:
        """Let one thing happen, now or when the node is no longer suspended."""
        if node is not None:
            if not node.alive:
                return
            if node.suspended or node.busy:
                node.held.append((label, act))
                return
        self.step += 1
        self._history.append(f"#{self.step} {self.now:.4f} {node or 'world'}: {label}")
        try:
            act()
        except SimulationError:
            raise
        except Exception as error:
            raise SimulationError(self._story(f"{type(error).__name__}: {error}")) from error

    def fail(self, text: str) -> None:
        """Say that a property does not hold."""
        raise SimulationError(self._story(text))

    def check(self, condition: object, text: str) -> None:
        """Fail unless the condition holds."""
        if not condition:
            self.fail(text)

    def _story(self, text: str) -> str:
        return "\n  ".join([f"seed {self.seed}, step {self.step}: {text}", "what happened last:", *self._history])

    # ── Stations ──

    def handle(self, node: Node, event: Any) -> None:
        """Give an event to a node's station and do what it asks for."""
        self.perform(node, node.station.handle(event, node.clock))

    def perform(self, node: Node, effects: Iterable[Any]) -> None:
        """Carry out effects, check the station, and take what it has to write."""
        for effect in effects:
            if type(effect) is Connect:
                self._connect(node, effect)
            elif type(effect) is Disconnect:
                self._disconnect(node, effect.connection)
            else:
                node.on_effect(effect)
        node.station.check_invariants()
        self._pump(node)
        self._plan_tick(node)
        node.after_event()

    def _plan_tick(self, node: Node) -> None:
        deadline = node.station.next_deadline()
        if deadline is None:
            node.tick_at = None
            return
        at = max(self.now, deadline - node.offset + 1e-6)
        if node.tick_at == at:
            return
        node.tick_at = at

        def tick() -> None:
            if node.tick_at != at:
                return
            node.tick_at = None
            node.ticks_at_once = node.ticks_at_once + 1 if at <= self.now - 0.0 and at == self._last_tick else 0
            self._last_tick = at
            assert node.ticks_at_once < TICKS_AT_ONCE_MAX, f"{node} asks for a Tick again and again"
            self.handle(node, Tick())

        self.later(at - self.now, node, "Tick", tick)

    _last_tick = -1.0

    def _pump(self, node: Node) -> None:
        peer = node.station.peer
        for number in peer.dirty_connections():
            end = node.ends.get(number)
            if end is None:
                continue
            wire, side = end
            while wire.open[side] and (room := IN_FLIGHT_BYTES_MAX - wire.in_flight[side]) > 0:
                data = peer.output(number, room)
                if not data:
                    break
                self._write(wire, side, data)

    # ── Wires ──

    def reachable(self, one: str, other: str) -> bool:
        """Whether a connection between two nodes can be opened and kept now."""
        pair = frozenset((one, other))
        return pair not in self.apart and self.parted.get(pair, 0.0) <= self.now

    def _delay(self) -> float:
        # Mostly short, sometimes long.
        return self.random.uniform(0, self.delay_s) * (10 if self.random.random() < 0.03 else 1)

    def _connect(self, node: Node, effect: Connect) -> None:
        name = PeerId(effect.address.removeprefix(SCHEME))

        def arrive() -> None:
            target = self.nodes.get(name)
            if target is None or not target.alive or not self.reachable(node.name, name):
                if self.random.random() < 0.8:
                    closed = ConnectionClosed(effect.connection, "unreachable")
                    self.later(self._delay(), node, repr(closed), lambda: self.handle(node, closed))
                return
            wire = Wire(node, effect.connection, target)
            self.wires.append(wire)
            self.deliver(target, f"accept from {node}", lambda: self._accept(wire))

        self.later(self._delay(), None, f"{node} connects to {name}", arrive)

    def _accept(self, wire: Wire) -> None:
        node, target = wire.nodes
        number = wire.numbers[1] = target.station.peer.new_connection()
        if wire.cut:
            return
        wire.open = [True, True]
        target.ends[number] = (wire, 1)
        self.handle(target, ConnectionOpened(number, outbound=False))

        def opened() -> None:
            if not wire.cut:
                node.ends[wire.numbers[0]] = (wire, 0)
                self.handle(node, ConnectionOpened(wire.numbers[0], outbound=True))

        if not node.alive:
            self._hang_up(wire, 0)
            return
        delay = self._delay()
        wire.arrival[1] = self.now + delay
        self.later(delay, node, f"connected to {target}", opened)

    def _write(self, wire: Wire, side: int, data: bytes) -> None:
        """Put bytes on a wire, in pieces cut anywhere."""
        cuts = sorted(self.random.randrange(len(data) + 1) for _ in range(self.random.choice((0, 0, 1, 2))))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            if start == end:
                continue
            piece = data[start:end]
            wire.in_flight[side] += len(piece)
            slow = self.slow.get(frozenset(node.name for node in wire.nodes), 0.0)
            at = wire.arrival[side] = max(wire.arrival[side], self.now + slow + self._delay())
            receiver = wire.nodes[1 - side]
            label = f"{len(piece)} bytes from {wire.nodes[side]}"
            self.later(at - self.now, receiver, label, self._arrival(wire, side, piece))

    def _arrival(self, wire: Wire, side: int, piece: bytes) -> Callable[[], None]:
        def arrive() -> None:
            sender, receiver = wire.nodes[side], wire.nodes[1 - side]
            wire.in_flight[side] -= len(piece)
            if wire.cut or not wire.open[1 - side]:
                return
            self.handle(receiver, BytesReceived(wire.numbers[1 - side], piece))
            if sender.alive and not sender.suspended and not sender.busy:
                self._pump(sender)

        return arrive

    def _disconnect(self, node: Node, number: int) -> None:
        """One end closes: what it wrote still arrives, then the other end sees the close."""
        end = node.ends.get(number)
        if end is None:
            return
        wire, side = end
        if not wire.open[side]:
            return
        data = node.station.peer.output(number, 1)
        if data and not wire.cut:
            self._write(wire, side, data)
        self._hang_up(wire, side)

    def _hang_up(self, wire: Wire, side: int) -> None:
        wire.open[side] = False
        self._tell_closed(wire, side, self._delay())
        self._tell_closed(wire, 1 - side, max(0.0, wire.arrival[side] - self.now) + 1e-6)

    def _tell_closed(self, wire: Wire, side: int, delay: float) -> None:
        node = wire.nodes[side]

        def close() -> None:
            wire.open[side] = False
            node.ends.pop(wire.numbers[side], None)
            self.handle(node, ConnectionClosed(wire.numbers[side], "closed"))

        self.later(delay, node, f"closed by {wire.nodes[1 - side]}", close)

    # ── Faults ──

    def live_wires(self) -> list[Wire]:
        """Wires that are open at both ends."""
        self.wires = [wire for wire in self.wires if not wire.cut and any(wire.open)]
        return [wire for wire in self.wires if all(wire.open)]

    def cut(self, wire: Wire) -> None:
        """Break a connection; what is under way is lost, and the ends notice at different times."""
        self._history.append(f"{self.now:.4f} fault: cut {wire.nodes[0]} to {wire.nodes[1]}")
        wire.cut = True
        for side in (0, 1):
            self._tell_closed(wire, side, self._delay() * self.random.choice((0, 1, 30)))

    def cut_between(self, one: str, other: str) -> None:
        """Break all connections between two nodes."""
        for wire in self.live_wires():
            if {node.name for node in wire.nodes} == {one, other}:
                self.cut(wire)

    def part(self, one: str, other: str, seconds: float) -> None:
        """Two nodes cannot reach one another for a while."""
        self.parted[frozenset((one, other))] = self.now + seconds
        self.cut_between(one, other)

    def isolate(self, name: str, seconds: float) -> None:
        """A node reaches nobody for a while."""
        for other in list(self.nodes):
            if other != name:
                self.part(name, other, seconds)

    def crash(self, name: str) -> None:
        """A node ends without a word; everything it knew is lost."""
        node = self.nodes[PeerId(name)]
        self._history.append(f"{self.now:.4f} fault: crash {node}")
        node.alive = False
        for wire in self.live_wires():
            if node in wire.nodes:
                side = wire.nodes.index(node)
                wire.open[side] = False
                self._tell_closed(wire, 1 - side, max(0.0, wire.arrival[side] - self.now) + self._delay())

    def leave(self, name: str, reason: str) -> None:
        """A node says goodbye, writes what it can write at once, and ends."""
        node = self.nodes[PeerId(name)]
        self._history.append(f"{self.now:.4f} {node} leaves: {reason}")
        self.perform(node, node.station.goodbye(reason, node.clock))
        self.crash(name)

    def restart(self, name: str) -> Node:
        """A crashed node comes back as its next incarnation."""
        old = self.nodes[PeerId(name)]
        assert not old.alive
        node = self._add(old.name, old.incarnation + 1)
        node.do(WatchList(PRESENCE))
        return node

    def suspend(self, name: str, seconds: float) -> None:
        """A node does nothing for a while, and then everything at once."""
        node = self.nodes[PeerId(name)]
        if node.suspended or not node.alive:
            return
        self._history.append(f"{self.now:.4f} fault: suspend {node} for {seconds:g} s")
        node.suspended = True

        def resume() -> None:
            node.suspended = False
            self.release_held(node)

        self.later(seconds, None, f"resume {node}", resume)

    def release_held(self, node: Node) -> None:
        """Let happen what waited for a suspended or busy node."""
        while node.held and node.alive and not node.suspended and not node.busy:
            label, act = node.held.popleft()
            self.deliver(node, label, act)
        if node.alive and not node.suspended and not node.busy:
            self._pump(node)

    def jump(self, name: str, seconds: float) -> None:
        """A node's clock goes forward."""
        node = self.nodes[PeerId(name)]
        node.offset += seconds
        self.deliver(node, f"clock jumps by {seconds:g} s", lambda: self.handle(node, Tick()))

    def random_fault(self, names: list[str], longest_s: float) -> None:
        """Some fault that no link dies of."""
        kind = self.random.randrange(5)
        name = self.random.choice(names)
        seconds = self.random.uniform(0, longest_s)
        if kind == 0 and (wires := self.live_wires()):
            self.cut(self.random.choice(wires))
        elif kind == 1:
            self.part(name, self.random.choice([other for other in self.nodes if other != name]), seconds)
        elif kind == 2:
            self.isolate(name, seconds)
        elif kind == 3:
            self.suspend(name, seconds)
        else:
            self.jump(name, seconds / 10)

    def heal(self) -> None:
        """No more obstacles, but for those that were there from the beginning."""
        self.parted.clear()

    def gone(self, node: Node) -> list[PeerGone]:
        """The ends of peers that a node was told of."""
        return [event for event in node.told if isinstance(event, PeerGone)]

    def joined(self, node: Node) -> list[PeerJoined]:
        """The peers that a node was told of."""
        return [event for event in node.told if isinstance(event, PeerJoined)]

    def refusals(self, node: Node) -> list[HandshakeRefused]:
        """The refusals that a node met."""
        return [event for event in node.told if isinstance(event, HandshakeRefused)]
