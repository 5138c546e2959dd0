"""Baskets as a user calls them, over a real head; the service runs in a session of the tests."""

import asyncio
import threading

import pytest

from raskid.client import baskets as baskets_module
from raskid.client.baskets import BasketExtension, BasketHandle
from raskid.model.errors import NotKept, RemoteError, SessionClosed, TopicNameError, WaitTimeout
from raskid.services import basket as service_module
from raskid.services.basket import BasketService
from tests.unit.client.systems import until


class Baskets:
    """A basket for each test, with a handle on it in a session of its user."""

    def __init__(self, session, rk, name):
        self.session = session
        self.service = BasketService(session, name)
        self.handle = BasketHandle(rk, name, False)
        self.held = []

    def hold_up(self, topic):
        """From here on what comes to the basket is under way, until `let_in`."""
        feed = self.service._feeds[topic][0]
        feed.arrived = self.held.append

    def let_in(self, topic):
        feed = self.service._feeds[topic][0]
        del feed.arrived
        with self.session.engine.lock:
            for arrived in self.held:
                feed.arrived(arrived)
        self.session.engine.rouse_all()

    def has(self, topic, count):
        """A condition: so many messages are in the basket."""
        return lambda: len(self.handle.messages(topic)) == count


@pytest.fixture
def kept(head, rk, request):
    with head.session() as session:
        baskets = Baskets(session, rk, request.node.name)
        yield baskets
        baskets.service.close()


def values(messages):
    return [message.value for message in messages]


def take(subscription, count):
    return [subscription.get(5).value for _ in range(count)]


def test_what_was_published_before_comes_first_and_each_message_once(kept, other):
    basket = kept.handle
    assert basket.keep("b/one") == []
    for number in range(10):
        other.publish("b/one", number)
    until(kept.has("b/one", 10))
    messages = basket.messages("b/one")
    assert values(messages) == list(range(10))
    assert [message.number for message in messages] == list(range(1, 11))
    assert {(message.topic, message.publisher) for message in messages} == {("b/one", other.peer.identity.peer)}
    with basket.subscribe("b/one") as subscription:
        for number in range(10, 20):
            other.publish("b/one", number)
        assert take(subscription, 20) == list(range(20))
        assert subscription.complete and subscription.dropped == 0 and subscription.silent == ()
        with pytest.raises(WaitTimeout):
            subscription.get(0)


def test_a_slow_reader_has_no_more_than_a_page_and_misses_nothing(kept, other):
    basket = kept.handle
    basket.keep("b/slow")
    for number in range(20):
        other.publish("b/slow", number)
    until(kept.has("b/slow", 20))
    with basket.subscribe("b/slow", capacity=3) as subscription:
        assert len(subscription._messages) == 3 and not subscription.complete
        writer = threading.Thread(target=lambda: [other.publish("b/slow", number) for number in range(20, 60)])
        writer.start()
        assert take(subscription, 60) == list(range(60))
        writer.join(5)
        assert not writer.is_alive() and subscription.dropped == 0


def test_a_callback_gets_both(kept, other):
    kept.handle.keep("b/callback")
    for number in range(5):
        other.publish("b/callback", number)
    until(kept.has("b/callback", 5))
    got = []
    with kept.handle.subscribe("b/callback", lambda message: got.append(message.value), capacity=2):
        for number in range(5, 10):
            other.publish("b/callback", number)
        until(lambda: len(got) == 10)
    assert got == list(range(10))


def test_an_empty_basket_and_a_publisher_that_comes_later(kept, other):
    kept.handle.keep("b/empty")
    assert kept.handle.messages("b/empty") == []
    with kept.handle.subscribe("b/empty") as subscription:
        assert subscription.complete
        other.publish("b/empty", 1)
        assert take(subscription, 1) == [1]


def test_what_is_under_way_to_the_basket_is_waited_for(kept, other):
    """1. Two messages arrive, three are under way to the basket. 2. A subscriber comes: further ones go to it as well.
    3. It gets the first two, and the others only when those under way have come. 4. All are in order."""
    basket = kept.handle
    basket.keep("b/way")
    for number in range(2):
        other.publish("b/way", number)
    until(kept.has("b/way", 2))
    kept.hold_up("b/way")
    for number in range(2, 5):
        other.publish("b/way", number)
    until(lambda: sum(len(arrived.bodies) for arrived in kept.held) == 3)
    with basket.subscribe("b/way") as subscription:
        for number in range(5, 8):
            other.publish("b/way", number)
        assert take(subscription, 2) == [0, 1]
        with pytest.raises(WaitTimeout):
            subscription.get(0.05)
        kept.let_in("b/way")
        assert take(subscription, 6) == list(range(2, 8))
        assert subscription.dropped == 0


def test_what_never_comes_to_the_basket_is_counted_after_a_while(kept, other, monkeypatch):
    monkeypatch.setattr(baskets_module, "UNDER_WAY_S", 0.0)
    monkeypatch.setattr(service_module, "UNDER_WAY_S", 0.01)
    basket = kept.handle
    basket.keep("b/never")
    other.publish("b/never", 0)
    until(kept.has("b/never", 1))
    kept.hold_up("b/never")
    other.publish("b/never", 1)
    other.publish("b/never", 2)
    with basket.subscribe("b/never") as subscription:
        other.publish("b/never", 3)
        assert take(subscription, 1) == [0]
        message = subscription.get(5)
        assert message.value == 3 and message.dropped == 2 and subscription.dropped == 2


def test_a_subscription_outlives_its_basket(kept, other, capsys, monkeypatch):
    monkeypatch.setattr(baskets_module, "REQUEST_S", 0.3)
    basket = kept.handle
    basket.keep("b/lost")
    for number in range(5):
        other.publish("b/lost", number)
    until(kept.has("b/lost", 5))
    subscription = basket.subscribe("b/lost", capacity=2)
    kept.session.close()
    assert take(subscription, 2) == [0, 1]
    other.publish("b/lost", 5)
    message = subscription.get(15)
    assert message.value == 5 and message.dropped == 3
    other.publish("b/lost", 6)
    assert take(subscription, 1) == [6]
    assert "goes on without its basket" in capsys.readouterr().err
    subscription.close()


def test_limits_and_what_they_cost(kept, other):
    basket = kept.handle
    basket.keep("b/limits", count=3, seconds=1000, bytes=None)
    for number in range(10):
        other.publish("b/limits", number)
    until(lambda: basket.info()["b/limits"]["dropped"] == 7)
    facts = basket.info()["b/limits"]
    assert (facts["messages"], facts["publishers"]) == (3, 1) and facts["bytes"] > 0
    assert (facts["count_max"], facts["seconds_max"]) == (3, 1000.0)
    with basket.subscribe("b/limits") as subscription:
        assert take(subscription, 3) == [7, 8, 9] and subscription.dropped == 0
    basket.keep("b/limits", count=1)
    assert values(basket.messages("b/limits")) == [9]
    assert basket.drop("b/limits") == 1
    assert basket.info() == {}
    other.publish("b/limits", 10)
    with pytest.raises(NotKept):
        basket.messages("b/limits")


def test_what_publishers_keep_comes_into_the_basket(kept, other):
    with other.react("b/own").keep(count=100):
        for number in range(5):
            other.publish("b/own", number)
        kept.handle.keep("b/own")
        until(kept.has("b/own", 5))
        assert values(kept.handle.messages("b/own")) == list(range(5))


def test_arrays_and_fields(kept, other):
    import numpy as np

    kept.handle.keep("b/array")
    other.publish("b/array", np.arange(6.0), step=3)
    until(kept.has("b/array", 1))
    (message,) = kept.handle.messages("b/array")
    assert message["step"] == 3 and message.value.sum() == 15


WRONG = {
    "keep a number": (lambda b: b.keep(5), TopicNameError, "got int"),
    "keep nothing": (lambda b: b.keep("t", count=0), ValueError, "count is a whole number from 1"),
    "keep text": (lambda b: b.keep("t", count="3"), TypeError, "count is a whole number"),
    "keep for no time": (lambda b: b.keep("t", seconds=0), ValueError, "seconds is above 0"),
    "keep for text": (lambda b: b.keep("t", seconds="3"), TypeError, "seconds is a number"),
    "keep no bytes": (lambda b: b.keep("t", bytes=0), ValueError, "bytes is a whole number"),
    "subscribe to a number": (lambda b: b.subscribe(5), TopicNameError, "got int"),
    "subscribe with a callback that is none": (lambda b: b.subscribe("t", 5), TypeError, "callback is something"),
    "subscribe with capacity 0": (lambda b: b.subscribe("t", capacity=0), ValueError, "capacity is a whole number"),
    "subscribe to what is not kept": (lambda b: b.subscribe("t"), NotKept, "does not keep 't'"),
    "read what is not kept": (lambda b: b.messages("t"), NotKept, "does not keep 't'"),
    "drop what is not kept": (lambda b: b.drop("t"), NotKept, "does not keep 't'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named_and_harms_nothing(kept, name):
    call, error, text = WRONG[name]
    with pytest.raises(error, match=text):
        call(kept.handle)
    assert kept.handle.info() == {}, "nothing is kept"
    assert kept.handle._session.subscriptions == {}, "and nothing subscribed"


@pytest.mark.parametrize("name", [5, "", "@x", "x" * 250])
def test_names_that_no_basket_can_have(rk, name):
    with pytest.raises(TopicNameError):
        BasketExtension(rk)(name)


def test_in_asyncio_its_calls_are_awaited(head, kept, other):
    async def main():
        async with head.session() as rk:
            basket = BasketHandle(rk.session, kept.handle.name, True)
            assert await basket.keep("b/async") == []
            for number in range(6):
                other.publish("b/async", number)
            while len(await basket.messages("b/async")) < 6:
                await asyncio.sleep(0.001)
            got = []
            async with await basket.subscribe("b/async", capacity=2) as subscription:
                other.publish("b/async", 6)
                async for message in subscription:
                    got.append(message.value)
                    if len(got) == 7:
                        break
            assert got == list(range(7))
            assert (await basket.info())["b/async"]["messages"] == 7
            assert await basket.drop("b/async") == 7
            with pytest.raises(NotKept):
                await basket.subscribe("b/async")

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_session_that_leaves_hands_over_what_it_keeps(head, kept, monkeypatch):
    """1. A session keeps its own messages, the last three, for a basket that does not know the topic. 2. It leaves.
    3. The basket has them, and a later subscriber gets them."""
    monkeypatch.setattr(BasketHandle, "_starting", _there)
    with head.session() as session:
        session.react("b/hand").keep(count=3, basket=kept.handle.name)
        for number in range(5):
            session.publish("b/hand", number)
    assert values(kept.handle.messages("b/hand")) == [2, 3, 4]
    with kept.handle.subscribe("b/hand") as subscription:
        assert take(subscription, 3) == [2, 3, 4]


def test_a_hand_over_in_asyncio_and_in_parts(head, kept, monkeypatch):
    monkeypatch.setattr(BasketHandle, "_starting", _there)
    monkeypatch.setattr(baskets_module, "PAGE_BYTES", 20)

    async def main():
        async with head.session() as rk:
            await rk.react("b/parts").keep(count=100, basket=kept.handle.name)
            for number in range(30):
                await rk.publish("b/parts", number)

    asyncio.run(asyncio.wait_for(main(), 20))
    assert values(kept.handle.messages("b/parts")) == list(range(30))


def test_what_is_kept_for_a_basket_comes_there_whatever_happens_to_its_publisher(head, kept, rk, monkeypatch):
    """1. A session has a topic kept for a basket. 2. Another publishes, and the basket has it while that still lives.
    3. It hands over when it leaves; nothing is there twice. 4. Without the reaction the basket goes on."""
    monkeypatch.setattr(BasketHandle, "_starting", _there)
    with rk.react("b/now").keep(count=10, seconds=1000, basket=kept.handle.name):
        facts = kept.handle.info()["b/now"]
        assert (facts["count_max"], facts["seconds_max"], facts["bytes_max"]) == (10, 1000.0, service_module.BYTES)
        with head.session() as publisher:
            for number in range(5):
                publisher.publish("b/now", number)
            until(kept.has("b/now", 5))
        assert values(kept.handle.messages("b/now")) == list(range(5))
    rk.publish("b/now", "later")
    until(kept.has("b/now", 6))


def test_what_somebody_asked_of_a_basket_stays(kept, rk, monkeypatch):
    monkeypatch.setattr(BasketHandle, "_starting", _there)
    kept.handle.keep("b/stays", bytes=5000)
    rk.react("b/stays").keep(count=1, basket=kept.handle.name).close()
    facts = kept.handle.info()["b/stays"]
    assert facts["bytes_max"] == 5000 and facts["count_max"] > 1


@pytest.mark.parametrize("part", ["filtered", "limited", "of a class"])
def test_what_is_not_the_whole_topic_is_only_handed_over(head, kept, monkeypatch, part):
    monkeypatch.setattr(BasketHandle, "_starting", _there)
    options = {"filtered": {}, "limited": {"limit": 3}, "of a class": {"one_of": "c"}}[part]
    with head.session() as session:
        draft = session.react(f"b/{part}", **options)
        (draft.filter((0, "<", 3)) if part == "filtered" else draft).keep(count=10, basket=kept.handle.name)
        assert kept.handle.info() == {}
        for number in range(3):
            session.publish(f"b/{part}", number)
    assert values(kept.handle.messages(f"b/{part}")) == [0, 1, 2]


def test_one_that_cannot_be_installed_has_no_basket_keep_anything(kept, rk, monkeypatch):
    monkeypatch.setattr(BasketHandle, "_starting", _there)
    with pytest.raises(ValueError, match="for reactions at the publisher"):
        rk.react("b/helper", place="helper").keep(count=10, basket=kept.handle.name)
    assert kept.handle.info() == {}


def test_a_close_in_an_event_loop_says_what_it_does_not_hand_over(head, kept, monkeypatch, capsys):
    monkeypatch.setattr(BasketHandle, "_starting", _there)

    async def main():
        async with head.session() as rk:
            await rk.react("b/loop").keep(count=10, basket=kept.handle.name)
            await rk.publish("b/loop", 1)
            rk.session.close()

    asyncio.run(asyncio.wait_for(main(), 20))
    errors = capsys.readouterr().err
    assert "1 messages on 'b/loop'" in errors and "await rk.close()" in errors


def test_a_session_with_which_the_basket_ends_hands_over_nothing(head, kept, monkeypatch):
    monkeypatch.setattr(BasketHandle, "_starting", _there)
    asked = []
    with head.session() as session:
        session.started_system = True
        session.react("b/ends").keep(count=10, basket=kept.handle.name)
        session.publish("b/ends", 1)
        monkeypatch.setattr(baskets_module, "handing_over", lambda *args: asked.append(args))
    assert asked == []


def test_a_hand_over_that_fails_is_told_and_holds_up_nobody(head, kept, monkeypatch, capsys):
    def fails(handle):
        raise WaitTimeout("the basket sleeps")
        yield

    monkeypatch.setattr(BasketHandle, "_starting", _there)
    session = head.session()
    session.react("b/fails").keep(seconds=60, basket=kept.handle.name)
    session.publish("b/fails", 1)
    monkeypatch.setattr(BasketHandle, "_starting", fails)
    session.close()
    assert f"the basket {kept.handle.name!r} did not get all 1 messages on 'b/fails'" in capsys.readouterr().err
    with pytest.raises(SessionClosed):
        session.publish("b/fails", 2)


def _there(handle):
    """Instead of starting the basket: it runs here."""
    return handle
    yield


def test_other_errors_of_the_basket_come_as_they_are(kept):
    with pytest.raises(RemoteError, match="a basket is not asked to 'dance'; it knows keep, "):
        baskets_module.take_steps(kept.handle._asking("dance"))
