"""Requests: exact effects, one outcome each."""

import msgspec

from raskid.core.calls import Calls
from raskid.core.effects import CallDone, Introduce, Invoke, InvokeCancelled, Send
from raskid.core.events import CancelRequest, PeerGone, Received, Reply, Request, Serve, Tick
from raskid.core.lists import Lists
from raskid.model.ids import PeerId, RequestId
from raskid.protocol.messages import (
    Answer,
    Call,
    CancelCall,
    ListState,
    PeerRef,
    Record,
    RequestRefused,
    Unwatch,
    Watch,
)
from raskid.protocol.reactions import Provider
from raskid.protocol.values import decode_value

HUB, ME, SERVER = PeerId("head"), PeerId("me"), PeerId("server")
NAME = "services:s"
ONE = RequestId(1)


def state(incarnation: int = 1) -> Received:
    value = msgspec.msgpack.encode(Provider(PeerRef(SERVER, incarnation)))
    return Received(HUB, ListState(NAME, incarnation, [Record("r", value)]))


def called() -> tuple[Calls, Lists]:
    calls = Calls(lists := Lists(HUB))
    assert calls.handle(Request(ONE, "s", b"q", 5.0), 0.0) == [Send(HUB, Watch(NAME, False, RequestId(1)))]
    effects = lists.handle(state(), 0.0)
    assert effects[:2] == [Introduce(PeerRef(SERVER, 1)), Send(SERVER, Call(ONE, "s", b"q"))]
    calls.check_invariants()
    return calls, lists


def test_a_request_is_answered_once() -> None:
    calls, _ = called()
    answer = Received(SERVER, Answer(ONE, True, b"a"))
    assert calls.handle(Received(ME, Answer(ONE, True, b"a")), 1.0) == [], "an answer of somebody else"
    assert calls.handle(answer, 1.0) == [CallDone(ONE, True, b"a")]
    assert calls.handle(answer, 1.0) == []
    assert calls.next_deadline() is None


def test_the_loss_of_the_server_is_an_outcome() -> None:
    calls, lists = called()
    lists.handle(state(2), 1.0)
    calls.handle(Request(RequestId(2), "s", b"q", 5.0), 1.0)
    (done,) = calls.handle(PeerGone(SERVER, 1, "crashed"), 1.0)
    assert isinstance(done, CallDone) and (done.request, done.error) == (ONE, "PeerLost") and "crashed" in done.text
    assert calls.handle(Received(SERVER, Answer(RequestId(2), True, b"a")), 2.0) == [CallDone(RequestId(2), True, b"a")]


def test_time_limits() -> None:
    calls, _ = called()
    done, cancel = calls.handle(Tick(), 5.0)
    assert isinstance(done, CallDone) and done.error == "WaitTimeout" and cancel == Send(SERVER, CancelCall(ONE))
    calls.handle(Request(RequestId(2), "nobody", b"q", 7.0), 5.0)
    assert calls.next_deadline() == 7.0
    unwatch, done = calls.handle(Tick(), 7.0)
    assert isinstance(done, CallDone) and done.error == "NoSuchService"
    assert unwatch == Send(HUB, Unwatch("services:nobody")), "a name that nobody serves is not followed for ever"
    calls.check_invariants()


def test_a_cancelled_request_has_no_outcome_here() -> None:
    calls, _ = called()
    assert calls.handle(CancelRequest(ONE), 1.0) == [Send(SERVER, CancelCall(ONE))]
    assert calls.handle(Received(SERVER, Answer(ONE, True, b"a")), 1.0) == []


def test_a_list_that_was_followed_already_is_used() -> None:
    calls = Calls(lists := Lists(HUB))
    lists.follow(NAME)
    lists.handle(state(), 0.0)
    effects = calls.handle(Request(ONE, "s", b"q", 5.0), 0.0)
    assert effects == [Introduce(PeerRef(SERVER, 1)), Send(SERVER, Call(ONE, "s", b"q"))]


def test_serving() -> None:
    calls = Calls(Lists(HUB))
    (refused,) = calls.handle(Received(ME, Call(ONE, "s", b"q")), 0.0)
    assert isinstance(refused, Send) and isinstance(refused.message, Answer) and not refused.message.ok
    assert decode_value(refused.message.body)[0] == "NoSuchService"
    calls.handle(Serve("s"), 0.0)
    assert calls.handle(Received(ME, Call(ONE, "s", b"q")), 0.0) == [Invoke(ONE, ME, "s", b"q")]
    assert calls.handle(Reply(ONE, True, b"a"), 0.0) == [Send(ME, Answer(ONE, True, b"a"))]
    assert calls.handle(Reply(ONE, True, b"a"), 0.0) == []
    calls.handle(Received(ME, Call(ONE, "s", b"q")), 0.0)
    assert calls.handle(Received(SERVER, CancelCall(ONE)), 0.0) == [], "only the caller may"
    assert calls.handle(Received(ME, CancelCall(ONE)), 0.0) == [InvokeCancelled(ONE)]


def test_a_service_that_cannot_be_followed_ends_its_requests() -> None:
    calls = Calls(lists := Lists(HUB))
    calls.handle(Request(ONE, "s", b"q", 5.0), 0.0)
    done, _ = lists.handle(Received(HUB, RequestRefused(RequestId(1), "Overflow", "too many")), 0.0)
    assert done == CallDone(ONE, False, b"", "Overflow", "too many")
    calls.check_invariants()
    assert calls.next_deadline() is None


def test_the_nearest_deadline_is_found_among_many() -> None:
    calls, _ = called()
    for number in range(2, 300):
        calls.handle(Request(RequestId(number), "s", b"q", float(1000 - number)), 0.0)
    assert calls.next_deadline() == 5.0
    for number in range(1, 299):
        calls.handle(Received(SERVER, Answer(RequestId(number), True, b"a")), 1.0)
        calls.check_invariants()
    assert calls.next_deadline() == 701.0
    assert len(calls._deadlines) < 100, "entries of requests that are over do not pile up"
    (done, _) = calls.handle(Tick(), 701.0)
    assert isinstance(done, CallDone) and done.request == 299
