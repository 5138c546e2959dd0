from __future__ import annotations

from typing import Any

import pytest

from raskid.core.effects import EndService, ForkService, Send, ServiceReported
from raskid.core.events import PeerGone, PeerJoined, Received, ServiceExited, Tick
from raskid.core.steward import (
    END_S,
    HELPER_FACTORY,
    MOVES,
    RESTART_S,
    RESTARTS_MAX,
    RESTARTS_S,
    SERVICES_MAX,
    SETTINGS_BYTES_MAX,
    START_S,
    Steward,
)
from raskid.model.errors import InvalidTransition
from raskid.model.ids import CodeId, PeerId, RequestId
from raskid.protocol.messages import (
    KIND_CLIENT,
    ROLE_EXECUTE,
    AskHelper,
    Code,
    HelperGiven,
    PeerRef,
    RecordSettled,
    RequestRefused,
    ServiceReady,
    StartService,
    StopService,
)

USER, OTHER, PROCESS = PeerId("user"), PeerId("other"), PeerId("process")
CODE = Code(CodeId("c"), b"blob", "factory")


class Bench:
    def __init__(self) -> None:
        self.steward = Steward()
        self.now = 100.0
        self.request = 0

    def event(self, event: Any) -> list[Any]:
        effects = self.steward.handle(event, self.now)
        self.steward.check_invariants()
        return effects

    def ask(self, kind: type, *fields: Any, peer: PeerId = USER) -> list[Any]:
        self.request += 1
        return self.event(Received(peer, kind(RequestId(self.request), *fields)))

    def start(self, name: str = "s") -> list[Any]:
        return self.ask(StartService, name, CODE, b"settings")

    def join(self, pid: int = 7, peer: PeerId = PROCESS) -> None:
        assert self.event(PeerJoined(peer, 1, KIND_CLIENT, ROLE_EXECUTE, ("unix:there",), "host", pid)) == []

    def ready(self, incarnation: int = 1, error: str = "", name: str = "s", peer: PeerId = PROCESS) -> list[Any]:
        return self.event(Received(peer, ServiceReady(name, incarnation, error)))

    def exited(self, incarnation: int = 1, orderly: bool = False, name: str = "s") -> list[Any]:
        return self.event(ServiceExited(name, incarnation, "exit code 0" if orderly else "crashed", orderly))

    def tick(self, seconds: float) -> list[Any]:
        self.now += seconds
        return self.event(Tick())

    def serving(self) -> Bench:
        self.start()
        self.join()
        assert self.ready() == [Send(USER, RecordSettled(RequestId(1), 0))]
        return self

    @property
    def state(self) -> str:
        return str(self.steward.facts()[0]["state"])

    @property
    def why(self) -> str:
        return str(self.steward.facts()[0]["why"])


def refused(effects: list[Any], code: str) -> str:
    """The text of the one refusal among effects."""
    (found,) = [
        effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, RequestRefused)
    ]
    assert found.code == code
    return str(found.text)


def test_a_service_starts_serves_and_is_stopped() -> None:
    """1. Its process is asked for. 2. It joins and says that it serves: so is whoever asked for it told. 3. It is asked
    to end. 4. Its end is told."""
    bench = Bench()
    assert bench.start() == [ForkService("s", 1, CODE, b"settings")]
    assert bench.state == "starting" and bench.steward.next_deadline() == 100.0 + START_S
    bench.join()
    assert bench.ready() == [Send(USER, RecordSettled(RequestId(1), 0))]
    assert bench.steward.facts() == [
        {"name": "s", "state": "running", "pid": 7, "peer": PROCESS, "incarnation": 1, "why": ""}
    ]
    assert bench.steward.next_deadline() is None
    assert bench.ask(StopService, "s") == [EndService("s", 1, False)]
    assert bench.ask(StopService, "s", peer=OTHER) == []
    assert bench.exited(orderly=True) == [
        Send(USER, RecordSettled(RequestId(2), 0)),
        Send(OTHER, RecordSettled(RequestId(3), 0)),
    ]
    assert bench.steward.facts() == []


def test_one_that_does_not_end_is_killed() -> None:
    bench = Bench().serving()
    bench.ask(StopService, "s")
    assert bench.tick(END_S) == [EndService("s", 1, True)]
    assert bench.tick(END_S) == []
    assert bench.exited() == [Send(USER, RecordSettled(RequestId(2), 0))]


def test_one_that_cannot_begin_says_why_and_is_not_started_again() -> None:
    bench = Bench()
    bench.start()
    assert bench.ready(error="ValueError: no luck") == []
    effects = bench.exited()
    assert refused(effects, "StartFailed") == "the service 's' could not begin:\nValueError: no luck"
    assert ServiceReported("s", "could not begin:\nValueError: no luck") in effects
    assert bench.state == "failed" and bench.steward.next_deadline() is None
    assert bench.start() == [ForkService("s", 2, CODE, b"settings")]


def test_one_that_said_it_cannot_begin_and_stays_is_killed() -> None:
    bench = Bench()
    bench.start()
    bench.ready(error="ValueError")
    assert bench.tick(END_S) == [EndService("s", 1, True)]
    assert "ValueError" in refused(bench.exited(), "StartFailed")


def test_one_that_ends_before_it_serves_is_told_with_its_last_words() -> None:
    bench = Bench()
    bench.start()
    assert refused(bench.exited(), "StartFailed") == "the service 's' ended before it served: crashed"


def test_one_that_takes_too_long_is_killed() -> None:
    bench = Bench()
    bench.start()
    assert bench.tick(START_S) == [EndService("s", 1, True)]
    assert "did not begin within" in refused(bench.exited(), "StartFailed")


def test_one_that_has_not_begun_is_killed_when_it_is_stopped() -> None:
    bench = Bench()
    bench.start()
    assert bench.ask(StopService, "s", peer=OTHER) == [EndService("s", 1, True)]
    assert bench.ready() == [], "too late"
    effects = bench.exited()
    assert "was stopped before it served" in refused(effects, "StartFailed")
    assert Send(OTHER, RecordSettled(RequestId(2), 0)) in effects


def test_a_crash_is_followed_by_a_new_start() -> None:
    bench = Bench().serving()
    (report,) = bench.exited()
    assert isinstance(report, ServiceReported) and "ended: crashed" in report.text
    assert bench.state == "paused"
    assert bench.tick(RESTART_S) == [ForkService("s", 2, CODE, b"settings")]
    assert bench.ready(1) == [], "of the process that crashed"
    assert bench.ready(2) == [] and bench.state == "running" and bench.why == ""


def test_one_that_crashes_again_and_again_is_given_up() -> None:
    bench = Bench().serving()
    for number in range(1, RESTARTS_MAX + 1):
        bench.exited(number)
        assert len(bench.tick(RESTART_S)) == 1
        bench.ready(number + 1)
    (report,) = bench.exited(RESTARTS_MAX + 1)
    assert "given up after 4 crashes" in report.text and bench.state == "failed" and "crashed" in bench.why
    assert bench.steward.next_deadline() is None


def test_crashes_far_apart_do_not_add_up() -> None:
    bench = Bench().serving()
    for number in range(1, 3 * RESTARTS_MAX):
        bench.exited(number)
        bench.tick(RESTART_S)
        bench.ready(number + 1)
        bench.tick(RESTARTS_S)
    assert bench.state == "running"


def test_one_that_cannot_begin_again_counts_as_crashed() -> None:
    bench = Bench().serving()
    bench.exited()
    for number in range(2, RESTARTS_MAX + 2):
        bench.tick(RESTART_S)
        bench.ready(number, error="the file is gone")
        bench.exited(number)
    assert bench.state == "failed" and "the file is gone" in bench.why


def test_one_that_ends_by_itself_stays_ended() -> None:
    bench = Bench().serving()
    assert bench.exited(orderly=True) == []
    assert (bench.state, bench.why) == ("ended", "ended by itself")
    assert refused(bench.ask(StopService, "s"), "NotRunning") == "no service 's' runs: it ended by itself"
    assert bench.start() == [ForkService("s", 2, CODE, b"settings")]


def test_one_whose_session_is_gone_has_a_while_to_end() -> None:
    bench = Bench().serving()
    bench.event(PeerGone(PROCESS, 1, "its lease ended"))
    assert bench.tick(END_S) == [EndService("s", 1, True)]
    assert bench.exited() and bench.state == "paused"


def test_a_name_is_taken_once() -> None:
    bench = Bench()
    bench.start()
    text = refused(bench.ask(StartService, "s", CODE, b"", peer=OTHER), "StartFailed")
    assert "is there already (starting, incarnation 1)" in text and "stop_service('s')" in text
    bench.join()
    assert bench.ready() == [Send(USER, RecordSettled(RequestId(1), 0))]


def test_stopping_what_waits_to_be_started_again() -> None:
    bench = Bench().serving()
    bench.exited()
    assert bench.ask(StopService, "s") == [Send(USER, RecordSettled(RequestId(2), 0))]
    assert bench.tick(RESTART_S) == [] and bench.steward.facts() == []


@pytest.mark.parametrize("name", ["", "@site", "a\nb", "x" * 300])
def test_names_are_those_of_topics(name: str) -> None:
    refused(Bench().start(name), "TopicNameError")


def test_limits() -> None:
    bench = Bench()
    assert "limit" in refused(bench.ask(StartService, "s", CODE, bytes(SETTINGS_BYTES_MAX)), "StartFailed")
    for number in range(SERVICES_MAX):
        bench.start(f"s{number}")
    assert "as many as" in refused(bench.start("more"), "StartFailed")
    refused(bench.ask(AskHelper), "StartFailed")
    bench.exited(name="s5")
    assert len(bench.start("more")) == 1, "one that is over makes room"


def test_who_is_gone_is_told_nothing() -> None:
    bench = Bench()
    bench.start()
    bench.ask(StopService, "s", peer=OTHER)
    bench.event(PeerGone(USER, 1))
    bench.event(PeerGone(OTHER, 1))
    assert bench.exited() == []


def test_what_nobody_asked_for_changes_nothing() -> None:
    bench = Bench()
    assert bench.ready() == [] and bench.exited() == []
    bench.serving()
    assert bench.exited(3) == [] and bench.ready(1) == [] and bench.state == "running"
    text = refused(bench.ask(StopService, "t"), "NotRunning")
    assert text == "no service 't' runs; there are 's'"


# ── The helper ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_helper_is_started_when_somebody_asks_for_it() -> None:
    bench = Bench()
    (fork,) = bench.ask(AskHelper)
    assert isinstance(fork, ForkService) and fork.code.name == HELPER_FACTORY and not fork.code.blob
    assert bench.ask(AskHelper, peer=OTHER) == []
    bench.join()
    ref = PeerRef(PROCESS, 1, ("unix:there",))
    assert bench.ready(name="helper") == [
        Send(USER, HelperGiven(RequestId(1), ref)),
        Send(OTHER, HelperGiven(RequestId(2), ref)),
    ]
    assert bench.ask(AskHelper) == [Send(USER, HelperGiven(RequestId(3), ref))]


def test_who_asks_while_the_helper_is_started_again_waits() -> None:
    bench = Bench()
    bench.ask(AskHelper)
    bench.join()
    bench.ready(name="helper")
    bench.exited(name="helper")
    assert bench.ask(AskHelper, peer=OTHER) == []
    assert len(bench.tick(RESTART_S)) == 1
    bench.join(8, PeerId("second"))
    assert bench.ready(2, name="helper", peer=PeerId("second")) == [
        Send(OTHER, HelperGiven(RequestId(2), PeerRef(PeerId("second"), 1, ("unix:there",))))
    ]


def test_a_helper_that_cannot_begin_is_not_tried_at_every_question() -> None:
    bench = Bench()
    bench.ask(AskHelper)
    refused(bench.exited(name="helper"), "StartFailed")
    assert "ended before it served" in refused(bench.ask(AskHelper), "StartFailed")
    bench.tick(RESTARTS_S)
    assert isinstance(bench.ask(AskHelper)[0], ForkService)


def test_another_service_can_be_the_helper() -> None:
    bench = Bench()
    bench.start("helper")
    bench.join()
    bench.ready(name="helper")
    assert isinstance(bench.ask(AskHelper)[0].message, HelperGiven)


def test_moves_that_the_table_does_not_have() -> None:
    bench = Bench().serving()
    with pytest.raises(InvalidTransition, match="'s' cannot go from running to starting"):
        bench.steward.services["s"].move("s", "starting")
    assert {state for targets in MOVES.values() for state in targets} == set(MOVES)
