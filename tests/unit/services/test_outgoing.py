"""Publishing through reactions, without a system: who waits for their code, and until when."""

from __future__ import annotations

import threading
import time

import pytest

from raskid.core.chains import HOPS_MAX
from raskid.core.effects import CheckCode, DropCode, Passed, RunCode
from raskid.core.events import Announce, CodeRan, Received
from raskid.core.identity import Identity
from raskid.core.lists import Lists
from raskid.core.messaging import Messaging
from raskid.core.peer import Peer
from raskid.core.relay import RelayEnd
from raskid.core.station import Station
from raskid.io.driver import Driver
from raskid.model.errors import RemoteProtocolError, SessionClosed, ValueNotSendable
from raskid.model.ids import CodeId, IdSource, PeerId, RequestId
from raskid.model.operations import CODE, DELIVER, FILTER, LANGUAGE, LANGUAGE_VERSION, Operation
from raskid.model.topics import REACTIONS, list_name
from raskid.protocol.messages import Code, ListState, PeerRef, ReactionFailed, Record
from raskid.protocol.reactions import Reaction, encode_reaction
from raskid.services.codes import pack_code
from raskid.services.outgoing import LOOK_S, Outgoing, say_failure
from tests.unit.client.systems import until

HUB = PeerId("hub")
OWNER = PeerRef(PeerId("owner"), 1, ())


class Rig:
    """One process that publishes on topic "t"; what it would write is never written."""

    def __init__(self):
        peer = Peer(Identity(PeerId("me"), 1, 9, "client", "token"), head=HUB)
        lists = Lists(HUB)
        self.messaging = Messaging(lists)
        station = Station(peer, [lists, self.messaging], RelayEnd(HUB, IdSource(9)))
        self.effects = []
        self.driver = Driver(station, self._apply)
        self.outgoing = Outgoing(self.driver, self.messaging, self.tell, replaces=False)
        self.told = threading.Event()

    def _apply(self, effect):
        if type(effect) in (RunCode, Passed, CheckCode, DropCode):
            self.effects.append(effect)
            self.outgoing.on_effect(effect)

    def tell(self, event):
        self.driver.handle(event)
        self.told.set()

    def react(self, *operations, function=None, seconds=10.0):
        if function is not None:
            self.messaging.add_code(Code(CodeId("c1"), pack_code((), (), b""), "function"))
            self.outgoing.reactor.know("c1", function)
            operations = (Operation(CODE, ("c1", LANGUAGE, LANGUAGE_VERSION)), *operations)
        record = Record("7", encode_reaction(Reaction(OWNER, operations, seconds=seconds)), "owner")
        self.driver.handle(Announce("t"))
        state = ListState(list_name(REACTIONS, "t"), 1, [record])
        with self.driver.lock:
            for effect in self.driver.station.machines[0].handle(Received(HUB, state), 0.0):
                self._apply(effect)
        assert "t" in self.messaging.complex

    def forget(self):
        """The record of the reaction is deleted."""
        with self.driver.lock:
            state = ListState(list_name(REACTIONS, "t"), 2, [])
            for effect in self.driver.station.machines[0].handle(Received(HUB, state), 0.0):
                self._apply(effect)

    def publish(self, *args, waits=True, **fields):
        return self.outgoing.publish("t", args, fields, waits, True)

    def sent(self):
        """How many messages have used up credit of the owner."""
        return [target.capacity - target.credit for target in self.messaging.targets_of("t")]


@pytest.fixture
def rig():
    found = Rig()
    yield found
    found.outgoing.close()
    found.driver.close()
    until(lambda: not any(thread.name == "raskid-reactions" for thread in threading.enumerate()))


def nothing():
    return


def test_without_code_nobody_waits(rig):
    rig.react(Operation(FILTER, ([0, ">", 1],)), Operation(DELIVER))
    assert rig.publish(1) == ([], None) and rig.sent() == [0]
    assert rig.publish(2) == ([], None) and rig.sent() == [1]


def test_a_message_that_nobody_wants_is_not_made(rig):
    rig.react(Operation("sample", (), {"every": 2}), Operation(DELIVER))
    made = []
    for number in range(4):
        rig.outgoing.publish("t", (lambda number=number: made.append(number) or number,), {}, True, True)
    assert rig.sent() == [2]
    assert rig.outgoing.publish("unknown", (lambda: made.append("never"),), {}, True, True) is None
    assert "never" not in made


def test_who_publishes_waits_until_code_has_run(rig):
    go = threading.Event()
    rig.react(Operation(DELIVER), function=lambda value: go.wait(5) and value)
    waiting, waiter = rig.publish(1)
    assert waiting == [] and not waiter.done and rig.sent() == [0]
    go.set()
    rig.outgoing.wait(waiter, nothing)
    assert waiter.done and rig.sent() == [1] and not rig.outgoing._waiters


def test_code_that_is_through_at_once_is_not_missed(rig):
    rig.react(Operation(DELIVER), function=lambda value: value)
    for number in range(200):
        waiter = rig.publish(number)[1]
        rig.outgoing.wait(waiter, nothing)
    assert rig.sent() == [200] and not rig.outgoing._waiters


def test_a_callback_is_called_once_it_is_through(rig):
    go, called = threading.Event(), threading.Event()
    rig.react(function=lambda value: go.wait(5))
    waiter = rig.publish(1)[1]
    waiter.callback = called.set
    go.set()
    assert called.wait(5) and waiter.done


def test_time_is_up_although_nobody_else_looks_at_the_clock(rig):
    go = threading.Event()
    rig.react(function=lambda value: go.wait(5), seconds=0.02)
    started = time.monotonic()
    rig.outgoing.wait(rig.publish(1)[1], nothing)
    assert 0.02 <= time.monotonic() - started < 2
    go.set()


def test_who_waits_serves_connections_where_nobody_else_does(rig):
    go = threading.Event()
    rig.react(function=lambda value: go.wait(5))
    waiter = rig.publish(1)[1]
    steps = []

    def step(seconds):
        steps.append(seconds)
        go.set()
        rig.told.wait(5)

    rig.outgoing.wait(waiter, nothing, step)
    assert steps and all(0 < seconds <= LOOK_S for seconds in steps)


def test_code_that_publishes_does_not_wait(rig):
    """1. Code publishes on its own topic. 2. It stands behind itself, so that it must not wait. 3. Both are through."""
    inner = []

    def function(value):
        if value:
            inner.append(rig.publish(value - 1, waits=False))
        return value

    rig.react(Operation(DELIVER), function=function)
    rig.outgoing.wait(rig.publish(3)[1], nothing)
    while rig.sent() != [4]:
        rig.told.wait(0.01)
    assert inner == [([], None)] * 3


def test_code_that_publishes_on_its_own_topic_for_ever_comes_to_an_end(rig):
    """Each time the message has come through one topic more; the last time it is the code's error."""
    errors = []

    def function(value):
        try:
            rig.publish(value + 1)
        except RemoteProtocolError as error:
            errors.append((value, str(error)))

    rig.react(function=function)
    rig.outgoing.wait(rig.publish(0)[1], nothing)
    until(lambda: errors)
    ((value, text),) = errors
    assert value == HOPS_MAX and "form a ring" in text


def test_nothing_of_a_reaction_runs_after_its_end(rig):
    """1. Code is at work, two messages stand behind. 2. The reaction ends: who waits for these is let go at once.
    3. The code at work ends, and no other runs."""
    go, seen = threading.Event(), []

    def function(value):
        seen.append(value)
        go.wait(5)

    rig.react(function=function)
    first, second, third = [rig.publish(number)[1] for number in range(3)]
    until(lambda: seen)
    rig.forget()
    for waiter in (second, third):
        rig.outgoing.wait(waiter, nothing)
    assert not first.done
    go.set()
    rig.outgoing.wait(first, nothing)
    until(lambda: not rig.outgoing.reactor._jobs)
    assert seen == [0]


def test_what_nobody_waits_for_may_be_changed_at_once(rig):
    """Whether it is published without waiting, or by code."""
    seen, value = [], [1]

    def function(given, first=False):
        seen.append(list(given))
        if first:
            rig.publish(value)
            value.append(3)

    rig.react(function=function)
    assert rig.outgoing.publish("t", (value, True), {}, False, False)[1] is None
    with pytest.raises(ValueNotSendable):
        rig.outgoing.publish("t", (object(),), {}, False, False)
    until(lambda: len(seen) == 2)
    assert seen == [[1], [1]] and value == [1, 3]


def test_the_end_lets_those_go_who_wait(rig):
    go = threading.Event()
    rig.react(function=lambda value: go.wait(5))
    first, second = rig.publish(1)[1], rig.publish(2)[1]
    called = threading.Event()
    second.callback = called.set
    ended = []

    def check_alive():
        raise SessionClosed("over")

    def wait():
        with pytest.raises(SessionClosed):
            rig.outgoing.wait(first, check_alive)
        ended.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    rig.outgoing.close()
    thread.join(5)
    assert ended == [True] and called.is_set() and not first.done
    go.set()
    # What is told late harms nothing.
    rig.driver.handle(CodeRan(1, [1]))


def test_what_cannot_be_sent_is_raised_and_leaves_nothing_behind(rig):
    rig.react(Operation(DELIVER), Operation(FILTER, ([0, "==", 1],)))
    with pytest.raises(ValueError, match="made wrong"):
        rig.publish(wrong)
    assert rig.publish(1) == ([], None) and rig.sent() == [1]
    with pytest.raises(ValueNotSendable):
        rig.publish(object())
    assert rig.sent() == [1]
    assert not rig.outgoing._waiters
    with pytest.raises(ValueNotSendable):
        from raskid.protocol.values import encode_message

        encode_message((object(),), {})


def test_what_a_filter_lets_through_and_cannot_be_sent_is_raised(rig):
    rig.react(Operation(FILTER, ([0, "!=", 1],)), Operation(DELIVER))
    with pytest.raises(ValueNotSendable):
        rig.publish(object())
    assert rig.publish(2) == ([], None) and rig.sent() == [1] and not rig.outgoing._waiters


def wrong():
    raise ValueError("made wrong")


def test_a_value_that_waits_to_be_set_is_still_here(rig):
    """1. The hub is at the first value for a cell. 2. A later one waits: a session that ends waits for it, too."""
    rig.react(Operation("set", ("shared:c", "value")))

    def waits():
        return rig.messaging.waits(lambda peer: True)

    assert rig.publish(1) == ([], None)
    before = waits()
    rig.publish(2)
    rig.publish(3)
    assert (before, waits()) == (False, True)


def test_a_failure_that_nobody_else_says_is_printed(capsys):
    say_failure(ReactionFailed(RequestId(7), "t", 2, "ValueError", "bad", b"", 3, "here", True))
    say_failure(ReactionFailed(RequestId(7), "t", -1, "ValueError", "bad", b"", 1, "here", False))
    say_failure(object())
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "raskid: a reaction on 't', whose owner has gone, failed here in operation 2 (3 times so far): "
        "ValueError: bad. It is suspended here"
    )
    assert "in its clean-up or metric (1 times so far)" in second
