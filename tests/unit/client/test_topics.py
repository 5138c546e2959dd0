"""Publishing and subscribing as a user calls them, over a real head."""

import functools
import threading
import time

import pytest

from raskid.core import hub as hub_module
from raskid.core import messaging as messaging_module
from raskid.model.errors import Overflow, SessionClosed, TopicNameError, ValueNotSendable, WaitTimeout
from raskid.protocol.messages import ListTopics, PutRecord, Watch
from tests.unit.client.systems import system, until


@pytest.fixture
def mute(head):
    """Lets the hub swallow messages of the kinds given."""
    yield head.mute.update
    head.mute.clear()


WRONG = {
    "publish a number": (lambda rk: rk.publish(5, 1), TopicNameError, "got int"),
    "publish a list": (lambda rk: rk.publish(["a"], 1), TopicNameError, "got list"),
    "publish a surrogate": (lambda rk: rk.publish("\ud800", 1), TopicNameError, "control character"),
    "subscribe to None": (lambda rk: rk.subscribe(None), TopicNameError, "NoneType"),
    "subscribe with text as a limit": (lambda rk: rk.subscribe("t", timeout="3"), TypeError, "timeout is a number"),
    "subscribe with None as a limit": (lambda rk: rk.subscribe("t", timeout=None), TypeError, "timeout is a number"),
    "subscribe with a limit below zero": (lambda rk: rk.subscribe("t", timeout=-1), ValueError, "0 or more"),
    "subscribe with text as capacity": (lambda rk: rk.subscribe("t", capacity="8"), TypeError, "capacity is a whole"),
    "subscribe with capacity 0": (lambda rk: rk.subscribe("t", capacity=0), ValueError, "from 1 to"),
    "subscribe with a wrong policy": (lambda rk: rk.subscribe("t", overflow=3), ValueError, "overflow is one of"),
    "subscribe with a list as policy": (lambda rk: rk.subscribe("t", overflow=[]), ValueError, "overflow is one of"),
    "subscribe with a callback that is none": (lambda rk: rk.subscribe("t", 5), TypeError, "callback is something"),
    "topics of a number": (lambda rk: rk.topics(5), TypeError, "prefix is text"),
    "topics of a surrogate": (lambda rk: rk.topics("\ud800"), ValueError, "surrogate"),
    "shared of a number": (lambda rk: rk.shared(5), TopicNameError, "got int"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named_and_harms_nothing(rk, name):
    call, error, text = WRONG[name]
    with pytest.raises(error, match=text):
        call(rk)
    assert rk.topics("nothing") == {}, "the session goes on"


def test_subclasses_of_text_are_names(rk, other):
    class Name(str):
        pass

    with rk.subscribe(Name("sub/class")) as messages:
        other.publish(Name("sub/class"), 1)
        assert messages.get(5).topic == "sub/class"


def test_only_functions_are_called_for_the_message(rk):
    class Answer:
        def give(self):
            return 3

        def __call__(self):
            return 4

    with rk.subscribe("lazy") as messages:
        for lazy in (lambda: 1, functools.partial(int, "2"), Answer().give, functools.cache(lambda: 4), [5].pop):
            rk.publish("lazy", lazy)
        assert [messages.get(5).value for _ in range(5)] == [1, 2, 3, 4, 5]
        for value in (int, Answer()):
            with pytest.raises(ValueNotSendable):
                rk.publish("lazy", value)


@pytest.mark.parametrize(
    ("kind", "call", "text"),
    [
        (Watch, lambda rk: rk.publish("silent/hub", 1), "who reads 'silent/hub'.*nothing was published.*within 0.05 s"),
        (Watch, lambda rk: rk.shared("silent"), "did not send the shared list 'silent' within 0.05 s"),
        (ListTopics, lambda rk: rk.topics(), "which lists it keeps within 0.05 s"),
    ],
)
def test_a_hub_that_is_silent_is_told_of(rk, mute, monkeypatch, kind, call, text):
    monkeypatch.setattr("raskid.client.topics.FOLLOW_S", 0.05)
    mute([kind])
    with pytest.raises(WaitTimeout, match=text):
        call(rk)


def test_a_subscription_that_is_not_confirmed_leaves_nothing_behind(rk, mute, monkeypatch):
    monkeypatch.setattr("raskid.client.topics.ANSWER_S", 0.05)
    mute([PutRecord])
    with pytest.raises(WaitTimeout, match="did not confirm a subscription to 't'"):
        rk.subscribe("t", timeout=0)
    assert rk.subscriptions == {}


def test_what_the_hub_refuses_is_raised_and_can_be_tried_again(rk, head, monkeypatch):
    monkeypatch.setattr(hub_module, "LISTS_MAX", len(head.hub._lists))
    started = time.monotonic()
    for call in (lambda: rk.publish("one/more", 1), lambda: rk.shared("one/more"), lambda: rk.subscribe("one/more")):
        with pytest.raises(Overflow, match="one/more"):
            call()
    assert time.monotonic() - started < 5, "nobody waits for a limit"
    monkeypatch.undo()
    rk.publish("one/more", 1)
    assert rk.shared("one/more") == {}


def test_what_callbacks_publish_in_vain_is_told_and_counted(rk, head, monkeypatch, capfd):
    called = threading.Event()

    def callback(message):
        monkeypatch.setattr(hub_module, "LISTS_MAX", len(head.hub._lists))
        rk.publish("refused", 1)
        called.set()

    with rk.subscribe("call/back", callback):
        rk.publish("call/back")
        assert called.wait(5)
        until(lambda: rk.counters()["messages_early_dropped"] == 1)
    until(lambda: "messages on 'refused' were left out" in capfd.readouterr().err)


def test_topics_without_readers_are_given_up_beyond_a_number(rk, head, monkeypatch):
    monkeypatch.setattr(messaging_module, "IDLE_MAX", 10)
    for number in range(50):
        rk.publish(f"idle/{number}", 1)
    assert len(rk.topics("reactions:idle/")) == 10
    with rk.subscribe("idle/0") as messages:
        rk.publish("idle/0", 1)
        assert messages.get(5).value == 1


def test_who_gives_up_is_whose_message_is_left_out(rk, other, monkeypatch):
    """1. The reader takes nothing, and one message fills it. 2. A thread publishes and waits for long. 3. Another gives
    up soon: it is its message that is left out, and not that of the first."""
    with other.subscribe("full", capacity=1) as messages:
        rk.publish("full", "fills")
        patient = threading.Thread(target=rk.publish, args=("full", "patient"))
        patient.start()
        (target,) = rk._plans["full"]
        until(lambda: len(target.queue) == 1)
        monkeypatch.setattr("raskid.client.topics.BLOCK_S", 0.05)
        with pytest.raises(Overflow, match=r"'full' was not taken within 0\.05 s by client-.*queue of 1 is full"):
            rk.publish("full", "impatient")
        assert [messages.get(5).value for _ in range(2)] == ["fills", "patient"]
        patient.join(5)
        assert not patient.is_alive()
        rk.publish("full", "after")
        last = messages.get(5)
        assert (last.value, messages.dropped) == ("after", 1)
        assert not rk._rooms


def test_many_threads_block_at_once_and_lose_nothing(rk, other):
    with other.subscribe("many", capacity=1) as messages:
        threads = [threading.Thread(target=rk.publish, args=("many", number)) for number in range(20)]
        for thread in threads:
            thread.start()
        assert sorted(messages.get(5).value for _ in range(20)) == list(range(20))
        for thread in threads:
            thread.join(5)
        assert messages.dropped == 0 and not rk._rooms


def test_the_end_of_a_subscription_frees_its_publishers(rk, other):
    messages = other.subscribe("ending", capacity=1)
    rk.publish("ending", 0)
    messages.get(5)
    rk.publish("ending", 1)
    blocked = threading.Thread(target=rk.publish, args=("ending", 2))
    blocked.start()
    (target,) = rk._plans["ending"]
    until(lambda: len(target.queue) == 1)
    messages.close()
    blocked.join(5)
    assert not blocked.is_alive()


def test_the_end_of_the_session_is_raised(head):
    rk = head.session()
    rk.publish("idle", 1)
    facts = rk.shared("facts")
    rk.close()
    for call in (
        lambda: rk.publish("idle", 1), lambda: rk.publish("new", 1), lambda: rk.subscribe("t"),
        lambda: rk.shared("s"), rk.topics, lambda: facts.put("a", 1),
    ):  # fmt: skip
        with pytest.raises(SessionClosed):
            call()
    facts.close()


def test_the_loss_of_the_head_frees_a_blocked_publisher():
    with system() as head:
        errors = []

        def publish():
            try:
                rk.publish("t", 2)
            except SessionClosed as error:
                errors.append(error)

        with head.session() as rk, head.session() as other:
            other.subscribe("t", capacity=1)
            rk.publish("t", 1)
            thread = threading.Thread(target=publish)
            thread.start()
            (target,) = rk._plans["t"]
            until(lambda: len(target.queue) == 1)
            head.close()
            thread.join(5)
            assert len(errors) == 1
