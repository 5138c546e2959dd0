"""Publishing from a task: what it waits for, and what it says when that does not come."""

import threading
import time

import pytest

import raskid
from raskid.core.identity import Identity
from raskid.core.lists import Lists
from raskid.core.messaging import Messaging
from raskid.core.peer import Peer
from raskid.core.relay import RelayEnd
from raskid.core.station import Station
from raskid.io.driver import Driver
from raskid.model.errors import Overflow, RaskidError, TopicNameError, ValueNotSendable, WaitTimeout
from raskid.model.ids import IdSource, PeerId
from raskid.protocol.messages import KIND_RUNNER, PeerRef
from raskid.services import publishing
from raskid.services.publishing import Publisher
from tests.unit.client.heads import TOKEN, Head
from tests.unit.client.systems import until


class Outbox:
    """The word that node and runner share."""

    announced = 0


class Runner:
    """The part of a runner's process that publishes."""

    def __init__(self, head):
        hub = PeerId("head-1")
        peer = Peer(Identity(PeerId("n/0"), 1, 9, KIND_RUNNER, TOKEN), head=hub)
        peer.introduce(PeerRef(hub, 0, (head.address,)))
        self.lists = Lists(hub)
        self.messaging = Messaging(self.lists)
        self.outbox = Outbox()
        station = Station(peer, [self.lists, self.messaging], RelayEnd(hub, IdSource(9)))
        self.driver = Driver(station, self._apply)
        self.publisher = Publisher(self.driver, self.lists, self.messaging, self.outbox)

    def _apply(self, effect):
        self.publisher.on_effect(effect)

    def publish(self, topic, *args, **fields):
        self.publisher.publish(topic, args, fields)


@pytest.fixture
def head():
    with Head() as found:
        yield found


@pytest.fixture
def runner(head):
    found = Runner(head)
    yield found
    found.publisher._outgoing.close()
    found.driver.close()
    until(lambda: not any(thread.name == "raskid-reactions" for thread in threading.enumerate()))


@pytest.fixture
def rk(head):
    session = head.session()
    yield session
    session.close()


def test_messages_arrive_in_order(runner, rk):
    messages = rk.subscribe("t")
    for number in range(300):
        runner.publish("t", number, square=number**2)
    got = [messages.get(5) for _ in range(300)]
    assert [(it.value, it["square"]) for it in got] == [(n, n * n) for n in range(300)]


def test_nobody_listens_and_nothing_is_sent(runner):
    runner.publish("t", 1)
    before = runner.driver.totals().as_dict()
    called = []
    runner.publish("t", lambda: called.append(1))
    assert runner.driver.totals().as_dict() == before
    assert not called


def test_a_function_is_called_for_its_value(runner, rk):
    messages = rk.subscribe("t")
    runner.publish("t", lambda: "made now")
    assert messages.get(5).value == "made now"


def test_announced_changes_are_taken_in_before_anything_is_published(runner, rk):
    """1. The topic is known to have no reader. 2. Somebody subscribes, and the node answers for the runner, which has
    not looked. 3. The next message reaches that subscription."""
    runner.publish("t", 1)
    # Nobody acknowledges for it in this test, so the subscription waits for nothing.
    subscription, future = rk.subscribe_nowait("t", timeout=0.0)
    future.result(5)
    runner.outbox.announced = 1
    runner.publish("t", 2)
    assert subscription.get(5).value == 2
    assert runner.lists.changes == 1


def test_changes_that_never_come_are_not_waited_for_without_limit(runner, monkeypatch):
    runner.publish("t", 1)
    monkeypatch.setattr(publishing, "FOLLOW_S", 0.02)
    runner.outbox.announced = 5
    with pytest.raises(WaitTimeout, match="who reads 't'"):
        runner.publish("t", 2)


def test_a_full_subscription_holds_the_task_up_until_there_is_room(runner, rk):
    messages = rk.subscribe("t", capacity=1)
    runner.publish("t", 1)
    reader = threading.Timer(0.05, lambda: messages.get(5))
    reader.start()
    runner.publish("t", 2)
    reader.join()
    assert messages.get(5).value == 2


def test_a_subscription_that_stays_full_is_named(runner, rk, monkeypatch):
    rk.subscribe("t", capacity=1)
    runner.publish("t", 1)
    monkeypatch.setattr(publishing, "BLOCK_S", 0.02)
    with pytest.raises(Overflow, match="its queue of 1 is full"):
        runner.publish("t", 2)


def test_a_policy_that_drops_never_holds_the_task_up(runner, rk):
    messages = rk.subscribe("t", capacity=1, overflow="latest")
    for number in range(5):
        runner.publish("t", number)
    assert messages.get(5).value == 0
    # That there is room again is on its way; whatever is published next looks.
    while (message := _next(messages)) is None:
        runner.publish("t", "last")
    assert message.value in (4, "last")
    assert message.dropped >= 3


def _next(messages):
    try:
        return messages.get(0.02)
    except WaitTimeout:
        return None


@pytest.mark.parametrize("topic", ["", "a b\n", 5, ["x"], "x" * 10_000_000])
def test_names_that_are_none(runner, topic):
    with pytest.raises((TopicNameError, TypeError)):
        runner.publish(topic, 1)


def test_values_that_messages_do_not_carry(runner, rk):
    messages = rk.subscribe("t")
    with pytest.raises(ValueNotSendable, match="object"):
        runner.publish("t", object())
    runner.publish("t", 1)
    assert messages.get(5).value == 1


def test_what_the_hub_refuses_is_said(runner, monkeypatch):
    monkeypatch.setattr("raskid.core.hub.LISTS_MAX", 0)
    with pytest.raises(RaskidError, match=r"nothing can be published on 't'.*lists already"):
        runner.publish("t", 1)


def test_several_threads_of_a_task_publish(runner, rk):
    messages = rk.subscribe("t")

    def publish(name):
        for number in range(50):
            runner.publish("t", name, number)

    threads = [threading.Thread(target=publish, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    got = [messages.get(5).args for _ in range(100)]
    for thread in threads:
        thread.join()
    for name in "ab":
        assert [n for who, n in got if who == name] == list(range(50))


def test_outside_of_a_task_it_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"rk\.publish"):
        raskid.publish("t", 1)


# ── through reactions ──


def double(value):
    return 2 * value


def again(value, topic):
    """Code of a reaction that publishes; `runners` is this process's."""
    runners[0].publish(topic, value)
    return value


#: What code of reactions finds here, since it runs in this very process.
runners: list = []


def wait_for_it(value):
    time.sleep(value)
    return value


def while_driven(runner, call):
    """What `call()` gives, on a thread, while the runner looks at what comes: no node answers for it here."""
    given = []
    thread = threading.Thread(target=lambda: given.append(call()))
    thread.start()
    while thread.is_alive():
        runner.driver.step(0.001)
    return given[0]


def test_code_runs_before_publish_returns(runner, rk):
    out, plain = rk.subscribe("out"), rk.subscribe("t")
    rk.react("t", rk.op(double)).forward("out")
    given = [1]
    for number in range(20):
        runner.publish("t", given)
        given[0] = number
    assert [out.get(5).value for _ in range(3)] == [[1, 1], [0, 0], [1, 1]]
    assert plain.get(5).value == [1]


def test_code_that_publishes_does_not_wait_for_the_task_that_waits_for_it(runner, rk):
    """1. Code publishes on a topic that is new, then known, then with code of its own. 2. Nobody waits for another."""
    runners[:] = [runner]
    new, outer = rk.subscribe("new"), rk.react("t", rk.op(again, "new")).deliver()
    started = time.monotonic()
    for number in range(5):
        runner.publish("t", number)
    inner = while_driven(runner, lambda: rk.react("new", rk.op(double)).deliver())
    runner.publish("t", 5)
    runner.publish("t", 6)
    assert [inner.subscription.get(5).value for _ in range(2)] == [10, 12]
    assert time.monotonic() - started < 5
    assert [new.get(5).value for _ in range(7)] == list(range(7))
    assert [outer.subscription.get(5).value for _ in range(7)] == list(range(7))


def test_code_that_takes_too_long_is_left_behind_and_the_task_goes_on(runner, rk):
    told = []
    rk.react("t", seconds=0.05, on_error=told.append).map(wait_for_it).run()
    started = time.monotonic()
    runner.publish("t", 0.2)
    assert 0.05 <= time.monotonic() - started < 0.2
    until(lambda: told)
    assert told[0].error == "TimeLimit"


@pytest.mark.parametrize("coded", [False, True])
def test_a_full_reaction_holds_the_task_up_and_is_named(runner, rk, monkeypatch, coded):
    monkeypatch.setattr(publishing, "BLOCK_S", 0.02)
    draft = rk.react("t", rk.op(double)) if coded else rk.react("t").filter(0, ">", 0)
    handle = draft.deliver(capacity=1)
    runner.publish("t", 1)
    with pytest.raises(Overflow, match="its queue of 1 is full"):
        runner.publish("t", 2)
    handle.subscription.get(5)
    while_driven(runner, lambda: until(lambda: not runner.messaging.blocked("t")))
    runner.driver.step(0.02)
    runner.publish("t", 3)
    assert handle.subscription.get(5).value == (6 if coded else 3)


def test_what_fails_whose_owner_has_gone_is_said_by_the_task(runner, head, capfd):
    owner = head.session()
    owner.react("t", permanent=True).check(int).forward("x")
    runner.publish("t", 1)
    owner.close()
    while_driven(runner, lambda: until(lambda: not runner.driver.station.peer.is_connected(owner.peer.identity.peer)))
    runner.publish("t", "text")
    assert "raskid: a reaction on 't', whose owner has gone, failed here in operation 0" in capfd.readouterr().err
