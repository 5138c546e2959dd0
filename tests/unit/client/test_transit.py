"""Traces of messages: what is told, that nothing is while nobody looks, and that traces do not trace one another."""

import pytest

from raskid.client import transit
from raskid.client.transit import TRANSIT
from tests.unit.client.heads import Head as OwnHead
from tests.unit.client.systems import until


def know(*sessions):
    """Wait until these sessions know who reacts to traces."""
    for session in sessions:
        session.announce_nowait(TRANSIT).result(5)


def take(traces, count):
    """So many traces, by what they tell and then by their order."""
    found = [traces.get(5).fields for _ in range(count)]
    return sorted(found, key=lambda fields: (fields["event"], fields["time"]))


@pytest.fixture
def topic(request):
    return request.node.name


def test_what_is_told(rk, other, topic):
    """1. Somebody looks at traces. 2. A message goes from one session to another. 3. Both tell of it."""
    know(rk, other)
    with rk.subscribe(TRANSIT) as traces, other.subscribe(topic) as messages:
        rk.publish(topic, "x" * 1000)
        assert messages.get(5).value == "x" * 1000
        arrived, published = take(traces, 2)
    assert arrived.pop("time") >= published.pop("time") > 1e9
    size = published.pop("bytes")
    one, two = rk.peer.identity.peer, other.peer.identity.peer
    assert published == {"event": "published", "topic": topic, "publisher": one, "readers": 1, "count": 1}
    assert arrived == {
        "event": "arrived", "topic": topic, "publisher": one, "receiver": two, "count": 1, "bytes": size,
    }  # fmt: skip
    assert size > 1000


def test_nobody_looks_and_nothing_is_told(rk, other, topic):
    know(rk, other)
    with other.subscribe(topic) as messages:
        before = rk.counters()["messages_sent"]
        for number in range(10):
            rk.publish(topic, number)
        assert [messages.get(5).value for _ in range(10)] == list(range(10))
        assert rk.counters()["messages_sent"] - before <= 10
        assert not rk._transit._traces and not other._transit._traces and not rk._transit._due


def test_it_is_asked_for_with_the_first_message_that_is_heard(rk, other, topic):
    rk.publish(topic, 0)
    assert rk.plan_of(TRANSIT) is None
    with other.subscribe(topic) as messages:
        rk.publish(topic, 1)
        messages.get(5)
        until(lambda: rk.plan_of(TRANSIT) == () == other.plan_of(TRANSIT))


def test_what_arrives_together_is_one_trace(rk, topic):
    know(rk)
    with rk.subscribe(TRANSIT) as traces, rk.subscribe(topic, lambda message: None):
        with rk.engine.lock:
            for number in range(3):
                rk.driver.perform(rk._messaging.publish(topic, bytes([0x92, 0x91, number, 0x80])))
        rk.engine.flush()
        (arrived,) = take(traces, 1)
    assert (arrived["event"], arrived["count"], arrived["bytes"]) == ("arrived", 3, 12)


def test_reactions(rk, other, topic):
    """What goes through operations has no size before these are through; what they deliver is told where it arrives."""
    know(rk, other)
    with rk.subscribe(TRANSIT) as traces, other.react(topic).filter("step", ">", 0).deliver() as reaction:
        rk.publish(topic, step=0)
        rk.publish(topic, step=1)
        assert reaction.subscription.get(5)["step"] == 1
        arrived, *published = take(traces, 3)
    assert [it["bytes"] for it in published] == [None, None]
    assert arrived["publisher"] == rk.peer.identity.peer and arrived["count"] == 1


def test_traces_that_are_passed_on_are_not_traced(rk, other, topic):
    """1. Traces are linked to another topic, which is read, and set in a cell, which is read too.
    2. One message gives two traces there, and these none."""
    know(rk, other)
    with (
        rk.link(TRANSIT, "copies"), other.react(TRANSIT).set("last trace"), other.subscribe("copies") as copies,
        other.subscribe(topic) as messages, other.subscribe("last trace") as last,
    ):  # fmt: skip
        for number in range(2):
            rk.publish(topic, number)
            messages.get(5)
            assert {it["topic"] for it in take(copies, 2)} == {topic}
            assert {it["topic"] for it in take(last, 2)} == {topic}
    assert not copies._messages and not last._messages


def test_a_slow_reader_of_traces_holds_up_nobody(rk, other, topic):
    """1. A reader of traces with policy "block" and room for one takes nothing. 2. Publishing goes on."""
    know(rk)
    with other.subscribe(TRANSIT, capacity=1) as traces, other.subscribe(topic, lambda message: None):
        for number in range(50):
            rk.publish(topic, number)
        found = [traces.get(5) for _ in range(2)]
        assert all(it["topic"] == topic for it in found)


def test_too_many_traces_at_once_are_counted(rk, topic, monkeypatch):
    monkeypatch.setattr(transit, "TRACES_MAX", 3)
    know(rk)
    with rk.subscribe(TRANSIT) as traces:
        with rk.engine.lock:
            for size in range(5):
                rk._transit._note({"event": "published", "bytes": size})
        found = [traces.get(5).fields for _ in range(3)]
    assert [it["bytes"] for it in found] == [2, 3, 4]
    assert [it.get("left_out") for it in found] == [2, None, None]


def test_it_is_asked_for_again_after_it_was_given_up_but_not_after_it_was_refused(rk, topic, monkeypatch):
    asked = []

    def announce(name):
        asked.append(name)
        return rk.begin_announce(topic)

    monkeypatch.setattr(rk._transit, "_session", Asking(announce))
    with rk.engine.lock:
        rk._transit._announce()
    rk._transit._announced.result(5)
    rk._transit._announce()
    assert asked == [TRANSIT, TRANSIT]
    failed = type(rk._transit._announced)(rk.engine)
    with rk.engine.lock:
        failed.fail_with(ValueError("refused"))
    rk._transit._announced = failed
    rk._transit._announce()
    assert asked == [TRANSIT, TRANSIT]


class Asking:
    """Stands for a session, to see what is asked of it."""

    def __init__(self, announce):
        self.begin_announce = announce


def test_the_end_of_a_session_is_no_error(capsys, topic):
    with OwnHead() as head:
        with head.session() as rk:
            know(rk)
        rk._transit._publish()
        rk._transit.published(topic, 1)
    assert capsys.readouterr().err == ""
