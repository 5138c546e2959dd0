"""Messages and subscriptions as a user holds them."""

import asyncio
import threading
import types

import pytest

from raskid.client.messages import Message, Subscription
from raskid.core.effects import Arrived
from raskid.model.errors import SessionClosed, ValueNotSendable, WaitTimeout, WrongThread
from raskid.model.ids import PeerId, RequestId
from raskid.protocol.messages import DeleteRecord
from raskid.protocol.values import encode_body
from tests.unit.client.systems import until


def test_a_message_says_which_fields_it_has():
    message = Message("t", PeerId("p"), 0, encode_body((1, 2), {"a": 3, "b": None}))
    assert (message["a"], message["b"], message.value, message.args) == (3, None, 1, (1, 2))
    with pytest.raises(KeyError, match=r"message on 't' has no field 'c'; its fields are 'a', 'b'"):
        message["c"]
    with pytest.raises(TypeError, match=r"by name, got 0; this one on 't' has 2 without a name, in \.args"):
        message[0]
    with pytest.raises(KeyError, match="it has no fields"):
        Message("t", PeerId("p"), 0, encode_body((), {}))["a"]


def test_what_a_subscription_looks_like(rk):
    with rk.subscribe("looks") as messages:
        assert repr(messages) == "<raskid.Subscription to 'looks': open, 0 waiting, 0 dropped>"
    assert repr(messages) == "<raskid.Subscription to 'looks': closed, 0 waiting, 0 dropped>"
    with rk.subscribe("looks", print) as messages:
        assert "called back" in repr(messages)


@pytest.mark.parametrize("limit", ["3", -1, [], True])
def test_wrong_limits_are_named(rk, limit):
    with rk.subscribe("limits") as messages:
        for call in (lambda: messages.get(limit), lambda: messages.close(limit)):
            with pytest.raises((TypeError, ValueError), match="timeout is a number of seconds"):
                call()
        assert not messages.closed
        rk.publish("limits", 1)
        assert messages.get(float("inf")).value == 1


def test_async_for_over_a_subscription_of_a_blocking_session(rk, other):
    """The coroutine is woken from the thread that reads, though nothing else happens in its loop."""
    seen = []

    async def read():
        async with asyncio.timeout(5):
            async for message in messages:
                seen.append(message.value)

    with rk.subscribe("woken") as messages:
        reader = threading.Thread(target=lambda: asyncio.run(read()))
        reader.start()
        for number in range(3):
            until(lambda: messages._waiters)
            other.publish("woken", number)
            until(lambda number=number: len(seen) == number + 1)
        until(lambda: messages._waiters)
    reader.join(5)
    assert seen == [0, 1, 2] and not reader.is_alive(), "the end is told as well"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_cancelled_reader_passes_its_message_on(rk, elsewhere):
    """1. Two coroutines wait. 2. A message wakes the first, from this thread or from another. 3. The first is cancelled
    before it runs: the second gets the message."""

    async def main():
        first, second = (asyncio.ensure_future(anext(messages)) for _ in range(2))
        while len(messages._waiters) < 2:
            await asyncio.sleep(0)
        if elsewhere:
            thread = threading.Thread(target=rk.publish, args=("passed", 1))
            thread.start()
            thread.join(5)
        else:
            rk.publish("passed", 1)
        assert len(messages._waiters) == 1
        first.cancel()
        async with asyncio.timeout(5):
            assert (await second).value == 1
        with pytest.raises(asyncio.CancelledError):
            await first

    with rk.subscribe("passed") as messages:
        # So that the next one comes without the help of a loop.
        rk.publish("passed", 0)
        messages.get(5)
        asyncio.run(main())


def test_several_threads_read_one_subscription(rk, other):
    """Each message goes to one of them, credit is given back for each, and the end reaches all."""
    count, readers = 2000, 4
    got = [[] for _ in range(readers)]

    def read(into):
        for message in messages:
            into.append(message.value)

    messages = rk.subscribe("several", capacity=8)
    threads = [threading.Thread(target=read, args=(into,)) for into in got]
    for thread in threads:
        thread.start()
    for number in range(count):
        other.publish("several", number)
    until(lambda: sum(map(len, got)) == count)
    messages.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert sorted(value for into in got for value in into) == list(range(count))
    assert all(into == sorted(into) for into in got)
    assert messages.dropped == 0 and messages.get(0) is None


def test_the_end_of_the_session_is_told_by_get_and_ends_loops(head, other):
    rk = head.session()
    messages = rk.subscribe("orphaned")
    other.publish("orphaned", 1)
    until(lambda: bool(messages._messages))
    rk.close()
    assert messages.get().value == 1, "what had come is still there"
    with pytest.raises(SessionClosed, match=r"no more messages on 'orphaned'.*closed"):
        messages.get()
    assert list(messages) == []

    async def read():
        return [message async for message in messages]

    assert asyncio.run(read()) == []
    messages.close()


def test_a_thread_that_waits_hears_of_the_end_of_the_session(head):
    rk = head.session()
    messages = rk.subscribe("waits")
    seen = []

    def read():
        try:
            messages.get()
        except SessionClosed as error:
            seen.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    rk.close()
    thread.join(5)
    assert not thread.is_alive() and len(seen) == 1


def test_closing_in_another_thread_frees_who_waits(rk):
    messages = rk.subscribe("freed")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(messages.get()))
    thread.start()
    messages.close()
    thread.join(5)
    assert seen == [None]


def test_a_close_that_is_not_confirmed_says_so(rk, head, monkeypatch):
    monkeypatch.setattr("raskid.client.messages.ANSWER_S", 0.05)
    messages = rk.subscribe("unconfirmed")
    head.mute.add(DeleteRecord)
    try:
        with pytest.raises(WaitTimeout, match="did not confirm the end of a subscription to 'unconfirmed'"):
            messages.close(0)
    finally:
        head.mute.clear()
    assert messages.closed


def test_leaving_a_subscription_in_asyncio(head):
    async def main():
        async with head.session() as rk:
            messages = await rk.subscribe("left")
            with pytest.raises(WrongThread, match=r"await subscription\.aclose\(\)"):
                messages.close()
            assert not messages.closed
            await messages.aclose()
            assert messages.closed
            await messages.aclose()
            async with await rk.subscribe("left") as messages:
                await rk.publish("left", 1)
                assert (await anext(messages)).value == 1
            assert messages.closed
            assert [message async for message in messages] == []
            assert "reactions:left" not in rk.session.subscriptions

    asyncio.run(main())


def test_messages_that_go_to_a_callback_cannot_be_read(rk):
    with rk.subscribe("called", print) as messages, pytest.raises(TypeError, match="'called' go to a callback"):
        messages.get(0)


@pytest.mark.parametrize("in_loop", [False, True])
def test_coroutine_functions_are_called_back_in_order(head, in_loop, capfd):
    seen = []
    running = 0
    done = threading.Event()

    async def callback(message):
        nonlocal running
        running += 1
        assert running == 1, "one at a time"
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1
        seen.append(message.value)
        if len(seen) == 20:
            done.set()
        if message.value == 5:
            raise ValueError("in the coroutine")

    async def main():
        async with head.session() as rk, await rk.subscribe("coroutine", callback, capacity=2):
            async with asyncio.timeout(5):
                for number in range(20):
                    await rk.publish("coroutine", number)
                while not done.is_set():
                    await asyncio.sleep(0.001)

    if in_loop:
        asyncio.run(main())
    else:
        with head.session() as rk, rk.subscribe("coroutine", callback, capacity=2):
            for number in range(20):
                rk.publish("coroutine", number)
            assert done.wait(5)
    assert seen == list(range(20)), "credit was given back for each"
    assert "in the coroutine" in capfd.readouterr().err


def test_a_reader_gives_credit_as_it_goes_along():
    """However many messages came at once: every half of the capacity, and what is left with those that come next."""
    given = []
    session = types.SimpleNamespace(took=lambda subscription, publisher, count: given.append(count))
    session.engine = types.SimpleNamespace(lock=threading.RLock())
    subscription = Subscription(session, RequestId(1), "t", 8, None)
    bodies = [encode_body((n,), {}) for n in range(11)]
    subscription.arrived(Arrived(RequestId(1), PeerId("p"), "t", bodies[:6], 2))
    subscription.arrived(Arrived(RequestId(1), PeerId("p"), "t", bodies[6:], 0))
    told = []
    while (message := subscription._pop(subscription._reader)) is not None:
        told.append((message.value, message.dropped, sum(given)))
    assert told == [(n, 2 if n == 0 else 0, (n + 1) // 4 * 4) for n in range(11)]
    assert subscription.dropped == 2
    subscription.publisher_ended(PeerId("p"))
    assert not subscription._uncredited


def test_what_is_published_before_a_session_closes_arrives(head, other):
    """Also where nothing was sent to that reader before, so that there is no connection yet."""
    for _ in range(10):
        with other.subscribe("last words") as messages:
            with head.session() as session:
                session.publish("last words", 1)
                session.publish("last words", 2)
            assert [messages.get(5).value for _ in range(2)] == [1, 2]


def test_a_request_does_not_overtake_what_was_published_before(rk, other):
    seen = []
    other.serve("seen", lambda: list(seen))
    with other.subscribe("t") as messages:
        for number in range(20):
            rk.publish("t", number)
            future = rk.request_nowait("seen")
            assert messages.get(5).value == number
            future.result(5)
    order = []
    other.serve("noted", lambda number: order.append(("request", number)))
    with other.subscribe("t", lambda message: order.append(("message", message.value))):
        for number in range(20):
            rk.publish("t", number)
            rk.request("noted", number)
    assert order == [(kind, number) for number in range(20) for kind in ("message", "request")]


def test_messages_that_are_acknowledged_by_hand(head, rk, other):
    """1. A member of a class takes two messages, and acknowledges the second. 2. It goes: the first is for the other
    member, the second is not. 3. What nobody has cannot be acknowledged, and nothing twice."""
    with head.session() as publisher:
        first = rk.subscribe("work", one_of="c", ack=True)
        first.by_hand = True
        publisher.publish("work", 1)
        publisher.publish("work", 2)
        one, two = first.get(5), first.get(5)
        peer = publisher.peer.identity.peer
        assert (one.publisher, one.number, two.number) == (peer, 1, 2)
        assert not first.acknowledge(peer, 3) and not first.acknowledge("somebody", 1)
        assert first.acknowledge(peer, 2) and not first.acknowledge(peer, 2)
        with other.subscribe("work", one_of="c", ack=True) as second:
            first.close()
            assert not first.acknowledge(peer, 1)
            again = second.get(5)
            assert (again.value, again.again) == (1, True)
            publisher.publish("work", 3)
            assert second.get(5).value == 3


# ── other manners of subscribing ──


def test_a_reader_that_pulls_gets_one_message_for_each_that_it_asks_for(rk, other):
    """1. Nothing is made, nor sent, before somebody asks. 2. Each asking gives the next that is published then."""
    made = []

    def publish(number):
        other.publish("pulled", lambda: made.append(number) or number)

    with rk.subscribe("pulled", pull=True) as messages:
        publish(0)
        until(lambda: messages._publishers)
        publish(1)
        assert made == [] or made == [0]
        made.clear()
        for number in (2, 3):
            with pytest.raises(WaitTimeout):
                messages.get(0)
            until(lambda: other._messaging.targets_of("pulled")[0].credit == 1)
            publish(number)
            publish(-1)
            assert messages.get(5).value == number
        publish(4)
        assert made == [2, 3] and len(messages._messages) == 0


def test_a_publisher_that_comes_later_is_not_asked_when_nobody_waits(rk, other, head):
    """1. A reader has got what it asked for. 2. Another publisher comes: it sends nothing unasked."""
    with rk.subscribe("pulled/later", pull=True) as messages:
        other.publish("pulled/later", 0)
        until(lambda: messages._publishers)
        with pytest.raises(WaitTimeout):
            messages.get(0)
        until(lambda: other._messaging.targets_of("pulled/later")[0].credit == 1)
        other.publish("pulled/later", 1)
        assert messages.get(5).value == 1
        with head.session() as third:
            made = []
            third.publish("pulled/later", lambda: made.append(1))
            until(lambda: len(messages._publishers) == 2)
            third.publish("pulled/later", lambda: made.append(2))
            assert made == []
            with pytest.raises(WaitTimeout):
                messages.get(0)
            until(lambda: third._messaging.targets_of("pulled/later")[0].credit == 1)
            third.publish("pulled/later", 3)
            assert messages.get(5).value == 3
        until(lambda: len(messages._publishers) == 1)


def test_a_reader_that_pulls_waits_on_a_thread_and_in_asyncio(rk, other, head):
    with rk.subscribe("pulled/wait", pull=True) as messages:
        other.publish("pulled/wait", 0)
        got = []
        thread = threading.Thread(target=lambda: got.append(messages.get(5).value))
        thread.start()
        until(lambda: messages._publishers and other._messaging.targets_of("pulled/wait")[0].credit == 1)
        other.publish("pulled/wait", 1)
        thread.join(5)
        assert got == [1]

    async def main():
        async with head.session() as session, await session.subscribe("pulled/loop", pull=True) as messages:
            await session.publish("pulled/loop", 0)
            waiting = asyncio.create_task(anext(messages))
            async with asyncio.timeout(5):
                while not waiting.done():
                    await session.publish("pulled/loop", 1)
                    await asyncio.sleep(0)
            assert (await waiting).value == 1

    asyncio.run(main())


def test_only_some_fields_are_asked_for(rk, other):
    with rk.subscribe("fields", fields=["b", "c"]) as some, rk.subscribe("fields", fields="a") as one:
        other.publish("fields", 0, a=1, b=2, c=3)
        other.publish("fields", a=4, b=5, c=6)
        assert [(it.args, it.fields) for it in (some.get(5), some.get(5))] == [
            ((), {"b": 2, "c": 3}), ((), {"b": 5, "c": 6})
        ]  # fmt: skip
        assert one.get(5).fields == {"a": 1}


def test_messages_are_numbered_where_that_is_asked_for(rk, other):
    with rk.subscribe("numbers", numbered=True) as numbered, rk.subscribe("numbers") as plain:
        for value in "abc":
            other.publish("numbers", value)
        assert [(it.value, it.number) for it in (numbered.get(5) for _ in range(3))] == [("a", 1), ("b", 2), ("c", 3)]
        assert plain.get(5).number == 0


def test_a_later_subscriber_hears_from_which_number_on_messages_come(rk, other):
    told = []
    with rk.subscribe("introduced", numbered=True) as first:
        for value in range(3):
            other.publish("introduced", value)
        assert first.get(5).number == 1
        later, future = rk.subscribe_nowait("introduced", numbered=True, history=-1)
        later.on_introduced = lambda publisher, number: told.append((publisher, number))
        future.result(5)
        until(lambda: told)
        assert told == [(other.peer.identity.peer, 4)]
        later.close()


def test_a_member_that_goes_leaves_what_it_has_not_done_to_another(head, rk, other):
    """1. A member takes a message, and is through with it when it takes the next. 2. It leaves with an error: what it
    had in hand, and what it had not taken, is another's, once."""
    first = rk.subscribe("class", one_of="c", ack=True)
    for number in range(4):
        other.publish("class", number)
    assert [first.get(5).value for _ in range(2)] == [0, 1]
    until(lambda: len(first._messages) == 2)
    with rk.subscribe("class", one_of="c", ack=True) as second:
        with pytest.raises(ZeroDivisionError), first:
            raise ZeroDivisionError
        assert list(first) == []
        assert [(it.value, it.again, it.number) for it in (second.get(5) for _ in range(3))] == [
            (1, True, 2), (2, True, 3), (3, True, 4)
        ]  # fmt: skip


def test_a_member_that_closes_leaves_what_it_has_not_said_to_be_done(rk, other):
    """1. A member has three messages: it says that one is done, is done with one at the end of a block, and just has
    the third. 2. It goes: only the third is another's. 3. It is too late then, and what is done is so once."""
    first = rk.subscribe("class/2", one_of="c", ack=True)
    first.by_hand = True
    for number in range(3):
        other.publish("class/2", number)
    zero, one, two = (first.get(5) for _ in range(3))
    zero.done()
    zero.done()
    with one:
        pass
    first.close()
    two.done()
    with rk.subscribe("class/2", one_of="c", ack=True) as second:
        again = second.get(5)
        assert (again.value, again.again) == (2, True)
        again.done()
        with pytest.raises(WaitTimeout):
            second.get(0.02)


def open_numbers(publisher, topic):
    (group,) = publisher._messaging._groups[topic].values()
    return sorted(group.open)


@pytest.mark.parametrize("how", ["wait_for", "tasks", "get in threads"])
def test_whoever_takes_the_next_message_is_through_with_the_one_before(rk, other, how):
    """1. Each message of a subscription with room for one is taken in a task, or thread, of its own. 2. None of them
    holds the next one back."""
    seen = []

    async def read():
        for _ in range(4):
            if how == "tasks":
                async with asyncio.timeout(5):
                    seen.append((await asyncio.create_task(anext(messages))).value)
            else:
                seen.append((await asyncio.wait_for(anext(messages), 5)).value)

    def read_in_threads():
        for _ in range(4):
            thread = threading.Thread(target=lambda: seen.append(messages.get(5).value))
            thread.start()
            thread.join()

    with rk.subscribe("any task", one_of="c", ack=True, capacity=1) as messages:
        sender = threading.Thread(target=lambda: [other.publish("any task", number) for number in range(4)])
        sender.start()
        read_in_threads() if how == "get in threads" else asyncio.run(read())
        sender.join()
        assert seen == [0, 1, 2, 3]
        until(lambda: open_numbers(other, "any task") == [4])


def test_each_loop_is_a_reader_of_its_own(rk, other):
    """1. Two loops take messages of one subscription in turn. 2. One of them goes on: what the other is at is open
    still. 3. So it is when the subscription is closed: both messages in hand are another's."""
    messages = rk.subscribe("loops", one_of="c", ack=True)
    for number in range(4):
        other.publish("loops", number)
    one, two = iter(messages), iter(messages)
    assert [next(it).number for it in (one, two, two)] == [1, 2, 3]
    until(lambda: open_numbers(other, "loops") == [1, 3, 4])

    async def read():
        async for message in messages:
            return message.number

    assert asyncio.run(read()) == 4
    assert open_numbers(other, "loops") == [1, 3, 4]
    with rk.subscribe("loops", one_of="c", ack=True) as second:
        messages.close()
        again = iter(second)
        assert [next(again).number for _ in range(3)] == [1, 3, 4]
        assert list(one) == []


def test_a_block_that_raises_leaves_its_message_to_another(rk, other):
    """1. A block around a message raises, and its reader goes on: only what came after is done. 2. It goes."""
    messages = rk.subscribe("blocks", one_of="c", ack=True)
    for number in range(3):
        other.publish("blocks", number)
    with pytest.raises(ZeroDivisionError), messages.get(5):
        raise ZeroDivisionError
    with messages.get(5):
        pass
    assert messages.get(5).value == 2
    until(lambda: open_numbers(other, "blocks") == [1, 3])
    with rk.subscribe("blocks", one_of="c", ack=True) as second:
        messages.close()
        assert [second.get(5).number for _ in range(2)] == [1, 3]


def test_done_of_a_message_that_is_not_acknowledged_is_nothing(rk):
    with rk.subscribe("not acknowledged") as messages:
        rk.publish("not acknowledged", 1)
        with messages.get(5) as message:
            message.done()
        assert message.value == 1 and iter(messages) is messages


def test_a_member_of_a_class_says_at_once_that_it_has_room(rk, other):
    """A publisher may go by the load of each member: one message that was taken is no load any more."""
    with rk.subscribe("load", one_of="c", choose_by="least_loaded") as messages:
        other.publish("load", 1)
        (group,) = other._messaging._groups["load"].values()
        (member,) = group.members
        assert member.load == 1
        messages.get(5)
        until(lambda: member.load == 0)


def test_a_value_is_changed(rk, other):
    """1. Of two members the one of the lesser value gets messages. 2. It says that it has a greater one. 3. What cannot
    be sent changes nothing; nor does one that is closed."""
    first = rk.subscribe("valued", one_of="c", choose_by="by_value", value=1)
    with rk.subscribe("valued", one_of="c", choose_by="by_value", value=2) as second:
        other.publish("valued", "a")
        first.set_value(3)
        other.publish("valued", "b")
        assert (first.get(5).value, second.get(5).value) == ("a", "b")
        asyncio.run(second.aset_value(4))
        other.publish("valued", "c")
        assert first.get(5).value == "c"
        with pytest.raises(ValueNotSendable, match="object"):
            first.set_value(object())
        assert [it["value"] for it in rk.reactions("valued")] == [3, 4]
        first.close()
        with pytest.raises(ValueError, match="to 'valued' was closed"):
            first.set_value(5)
        assert [it["value"] for it in rk.reactions("valued")] == [4]


def test_a_callback_acknowledges_when_it_has_returned(rk, other):
    go, seen = threading.Event(), []

    def callback(message):
        go.wait(5)
        seen.append((message.value, message.again))

    with rk.subscribe("class/3", callback, one_of="c", ack=True):
        other.publish("class/3", 1)
        other.publish("class/3", 2)
        (group,) = other._messaging._groups["class/3"].values()
        assert sorted(group.open) == [1, 2]
        go.set()
        until(lambda: not group.open)
    assert seen == [(1, False), (2, False)]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pull": True, "callback": print}, "pulls is iterated over"),
        ({"pull": True, "overflow": "latest"}, "pulls is iterated over"),
        ({"pull": True, "one_of": "c"}, "pulls is iterated over"),
        ({"pull": 1}, "pull is"),
        ({"ack": True}, "ack=True is for a class"),
        ({"ack": True, "one_of": "c", "overflow": "latest"}, "goes with overflow='block'"),
        ({"choose_by": "best", "one_of": "c"}, "choose_by is one of"),
        ({"choose_by": "by_metric", "one_of": "c"}, "a function goes with"),
        ({"one_of": 5}, "one_of"),
        ({"history": -2}, "history"),
        ({"history": "all"}, "history"),
        ({"fields": []}, "choose"),
        ({"fields": [1]}, "choose"),
        ({"numbered": "yes"}, "numbered"),
    ],
)
def test_manners_that_do_not_go_together_are_named(rk, options, text):
    with pytest.raises((TypeError, ValueError), match=text):
        rk.subscribe("manners", **options)
    assert rk.subscriptions == {}


def test_a_publisher_that_leaves_waits_for_acknowledgement_or_says_what_it_leaves(head, monkeypatch, capsys):
    monkeypatch.setattr("raskid.client.connection.DRAIN_S", 0.2)
    with head.session() as reader:
        with head.session() as publisher:
            handled = reader.subscribe("jobs", lambda message: None, one_of="workers", ack=True)
            publisher.publish("jobs", 1)
        assert "leaves" not in capsys.readouterr().err
        handled.close()
        with head.session() as publisher:
            jobs = reader.subscribe("jobs", one_of="workers", ack=True)
            for number in (1, 2):
                publisher.publish("jobs", number)
            assert jobs.get(5).value == 1
        said = capsys.readouterr().err
        assert "this session leaves 2 messages on 'jobs' that nobody of class 'workers' has acknowledged" in said
