"""The steward under random events: every request is answered once, and processes and services agree."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raskid.core.effects import EndService, ForkService, Send, ServiceReported
from raskid.core.events import PeerGone, PeerJoined, Received, ServiceExited, Tick
from raskid.core.steward import HELPER, START_S, Steward
from raskid.model.ids import CodeId, PeerId, RequestId
from raskid.protocol.messages import (
    KIND_CLIENT,
    ROLE_EXECUTE,
    AskHelper,
    Code,
    ServiceReady,
    StartService,
    StopService,
)

NAMES = st.sampled_from(["a", "b", HELPER])
USERS = st.sampled_from([PeerId("u"), PeerId("v")])
CODE = Code(CodeId("c"), b"blob", "factory")


class StewardRules(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.steward = Steward()
        self.now = 0.0
        self.requests = 0
        self.open: dict[int, PeerId] = {}
        #: The processes that there are: name → incarnation. Those that were killed end before time goes on.
        self.processes: dict[str, int] = {}
        self.killed: set[str] = set()
        self.incarnations: dict[str, int] = {}

    def event(self, event: Any) -> None:
        for effect in self.steward.handle(event, self.now):
            if isinstance(effect, Send):
                assert self.open.pop(effect.message.request) == effect.peer  # type: ignore[union-attr]
            elif isinstance(effect, ForkService):
                assert effect.name not in self.processes, "two processes of one service"
                assert effect.incarnation > self.incarnations.get(effect.name, 0)
                self.incarnations[effect.name] = self.processes[effect.name] = effect.incarnation
            elif isinstance(effect, EndService):
                assert self.processes[effect.name] == effect.incarnation
                if effect.kill:
                    self.killed.add(effect.name)
            else:
                assert isinstance(effect, ServiceReported)
        self.steward.check_invariants()

    def ask(self, user: PeerId, message: type, *fields: Any) -> None:
        self.requests += 1
        self.open[self.requests] = user
        self.event(Received(user, message(RequestId(self.requests), *fields)))

    @rule(user=USERS, name=NAMES)
    def start(self, user: PeerId, name: str) -> None:
        self.ask(user, StartService, name, CODE, b"")

    @rule(user=USERS, name=NAMES)
    def stop(self, user: PeerId, name: str) -> None:
        self.ask(user, StopService, name)

    @rule(user=USERS)
    def ask_helper(self, user: PeerId) -> None:
        self.ask(user, AskHelper)

    @rule(user=USERS)
    def user_gone(self, user: PeerId) -> None:
        self.open = {request: peer for request, peer in self.open.items() if peer != user}
        self.event(PeerGone(user, 1))

    @rule(name=NAMES, back=st.integers(0, 1), error=st.sampled_from(["", "", "", "no luck"]))
    def ready(self, name: str, back: int, error: str) -> None:
        peer = PeerId(f"{name}-process")
        self.event(PeerJoined(peer, 1, KIND_CLIENT, ROLE_EXECUTE, (), "host", 1))
        self.event(Received(peer, ServiceReady(name, self.incarnations.get(name, 0) - back, error)))

    @rule(name=NAMES)
    def session_gone(self, name: str) -> None:
        self.event(PeerGone(PeerId(f"{name}-process"), 1))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), orderly=st.booleans())
    def exit(self, data: st.DataObject, orderly: bool) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.processes))), orderly)

    def end(self, name: str, orderly: bool) -> None:
        self.killed.discard(name)
        incarnation = self.processes.pop(name)
        self.event(ServiceExited(name, incarnation, "somehow", orderly))

    @rule(seconds=st.sampled_from([0.05, 0.2, 6.0, 61.0, START_S]))
    def wait(self, seconds: float) -> None:
        for name in sorted(self.killed):
            self.end(name, False)
        until = self.now + seconds
        while (due := self.steward.next_deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            self.event(Tick())
            for name in sorted(self.killed):
                self.end(name, False)
        self.now = until

    @invariant()
    def services_and_processes_agree(self) -> None:
        active = {one["name"] for one in self.steward.facts() if one["state"] in ("starting", "running", "stopping")}
        assert active == set(self.processes)

    def teardown(self) -> None:
        """Whatever was asked gets its answer when everything that runs is stopped."""
        for name in ("a", "b", HELPER):
            self.stop(PeerId("u"), name)
        self.wait(START_S)
        assert not self.open


StewardRules.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStewardRules = StewardRules.TestCase
