"""react, link and op as a session has them: callbacks, asyncio, rings, publishing from within, the end."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
import time
import warnings

import pytest

from raskid.client.session import Session
from raskid.core.chains import FAILURES_MAX, HOPS_MAX
from raskid.model.errors import NotAllowed, SessionClosed, TopicNameError, WaitTimeout
from raskid.model.operations import CODE, FORWARD, Operation
from raskid.model.topics import REACTIONS, list_name
from raskid.protocol.messages import ROLE_MESSAGE, PutRecord, Watch
from raskid.protocol.reactions import Reaction, encode_reaction
from raskid.protocol.tokens import derive
from tests.unit.client.systems import TOKEN, until

#: What functions of reactions wait for, or do; they run in this very process.
gates: dict[str, threading.Event] = {}
calls: dict[str, object] = {}


@pytest.fixture
def topic(request):
    gates.clear()
    calls.clear()
    yield request.node.name[:200]
    for gate in gates.values():
        gate.set()


def double(value):
    return 2 * value


def wait_at(value, name):
    gates["reached"].set()
    gates[name].wait(10)
    return value


def call(value, name):
    return calls[name](value)


def values(subscription, count):
    return [subscription.get(5).value for _ in range(count)]


# ── links ──


def test_a_link_connects_what_may_come_later(rk, other, topic):
    """1. A link between names of which nothing exists. 2. A channel at each end comes later."""
    with rk.link(topic + "/a", topic + "/b"):
        into = rk.channel(topic + "/b").begin()
        until(lambda: rk.reactions(topic + "/b"))
        other.channel(topic + "/a").put(7)
        assert into.get(5) == 7


def test_a_link_from_a_channel_to_a_cell_and_from_a_cell_to_a_channel(rk, other, topic):
    channel, cell, last = rk.channel(topic + "/a", int), rk.cell(topic + "/b", int), rk.channel(topic + "/c")
    with last, rk.link(channel, cell), rk.link(cell, last, double):
        last.begin()
        other.channel(topic + "/a").put(3)
        until(lambda: cell.get(None) == 3)
        # What a link sets is a value of the cell like any other.
        assert last.get(5) == 6
        cell.set(5)
        assert last.get(5) == 10


def test_a_link_sets_a_cell_that_is_named(rk, other, topic):
    """Before there is one, and with a function on the way; its value is a cell's like any other."""
    with rk.link(topic, cell=topic + "/a"), rk.link(topic, double, cell=topic + "/b"):
        other.publish(topic, 3)
        for name, value in (("/a", 3), ("/b", 6)):
            assert rk.cell(topic + name).wait(timeout=5) == value
            until(lambda name=name: other.cell(topic + name).get() is not None)
    with pytest.raises(TypeError, match="a link has one target: give either 'b' or cell='c'"):
        rk.link(topic, "b", cell="c")
    with pytest.raises(TypeError, match="one target"):
        rk.link(topic, rk.channel(topic + "/c"), cell="c")
    with pytest.raises(ValueError, match="to itself"):
        rk.link(topic, cell=topic)
    with pytest.raises(TopicNameError):
        rk.link(topic, cell="")


@pytest.mark.parametrize("known", ["value", "declaration"])
def test_a_name_that_is_a_cell_is_no_target(rk, other, topic, known):
    name = f"{topic}/{known}"
    cell = other.cell(name, type=int if known == "declaration" else None)
    if known == "value":
        cell.set(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=re.escape(f"rk.link({topic!r}, cell={name!r}) does")):
            rk.link(topic, name)
        gc.collect()
    assert rk.reactions(topic) == []
    with rk.link(topic, rk.channel(name)), rk.subscribe(name) as messages:
        other.publish(topic, 5)
        assert messages.get(5).value == 5, "the channel of that name can be meant"
    with rk.link(topic, cell=name):
        other.publish(topic, 7)
        assert cell.wait(lambda value: value == 7, 5) == 7


def test_what_does_not_fit_is_refused_at_once_or_kept_back(rk, other, topic, capfd):
    words, numbers = rk.channel(topic + "/w", str), rk.channel(topic + "/n", int, min=0)
    with pytest.raises(ValueError, match=r"does not go into .* convert it on the way"):
        rk.link(words, numbers)
    whole, real = rk.channel(topic + "/i", int), rk.channel(topic + "/f", float)
    rk.link(whole, real).close()
    with rk.link(words, numbers, len):
        numbers.begin()
        other.channel(topic + "/w").put("four")
        assert numbers.get(5) == 4
    with rk.link(topic + "/any", numbers) as link:
        for value in (-1, 2):
            other.publish(topic + "/any", value)
        assert numbers.get(5) == 2
        until(lambda: link.failures == 1)
    printed = []
    until(lambda: printed.append(capfd.readouterr().err) or "operation 0, check(" in "".join(printed))
    assert "-1" in "".join(printed)


@pytest.mark.parametrize("kind", ["text", "channel", "cell"])
def test_a_link_to_itself_is_refused(rk, topic, kind):
    end = {"text": lambda: topic, "channel": lambda: rk.channel(topic), "cell": lambda: rk.cell(topic)}[kind]()
    with pytest.raises(ValueError, match="to itself would never end"):
        rk.link(end, end)


def test_the_ends_of_a_link_are_checked(rk):
    for source, target in ((5, "t"), ("t", None), (object(), "t")):
        with pytest.raises(TypeError, match="of a link is a channel, a cell"):
            rk.link(source, target)
    with pytest.raises(TopicNameError):
        rk.link("", "t")
    with pytest.raises(TypeError, match="function"), warnings.catch_warnings():
        warnings.simplefilter("error")
        rk.link("s", "t", 5)
        gc.collect()


def test_a_ring_of_links_is_told_and_harms_nobody(rk, other, topic, capfd):
    """1. Three links form a ring. 2. A message goes round as often as messages may, and ends. 3. It is said once."""
    names = [f"{topic}/{number}" for number in range(3)]
    links = [rk.link(names[at], names[(at + 1) % 3]) for at in range(3)]
    with rk.subscribe(names[0]) as messages:
        other.publish(names[0], 1)
        until(lambda: sum(link.failures for link in links) == 1)
        other.publish(names[1], 2)
        until(lambda: sum(link.failures for link in links) == 2)
        got = []
        while True:
            try:
                got.append(messages.get(0.05).value)
            except WaitTimeout:
                break
        assert set(got) == {1, 2} and 2 < len(got) <= 2 * (HOPS_MAX + 1)
    printed = []
    until(lambda: printed.append(capfd.readouterr().err) or "form a ring" in "".join(printed))
    assert 1 <= "".join(printed).count("form a ring") <= 2
    for link in links:
        link.close()
    other.publish(names[0], 3)


# ── where calls are made ──


def test_a_callback_publishes_and_waits_for_code(rk, other, topic):
    """Its publish returns when the code has run, and messages go on to other callbacks afterwards."""
    order = []
    calls["note"] = lambda value: order.append(("code", value))

    def callback(message):
        rk.publish(topic + "/inner", message.value)
        order.append(("callback", message.value))

    with rk.react(topic + "/inner").map(call, "note").run(), rk.subscribe(topic, callback):
        rk.publish(topic + "/inner", -1)
        for number in range(3):
            other.publish(topic, number)
        until(lambda: len(order) == 7)
    assert order == [("code", -1), *((who, n) for n in range(3) for who in ("code", "callback"))]


def test_a_callback_reacts_and_closes(rk, other, topic):
    done = []

    def callback(message):
        with rk.react(topic + "/inner", double).forward(topic + "/out") as handle:
            done.append(handle.silent)

    with rk.subscribe(topic, callback):
        other.publish(topic, 1)
        until(lambda: done)
    assert done == [()] and rk.reactions(topic + "/inner") == []


def test_code_that_publishes_waits_for_nothing(rk, other, topic):
    """1. Code publishes on a topic with code of its own, on a full one, and on one that is new. 2. No deadlock."""
    calls["publish"] = lambda value: [
        rk.publish(topic + "/full", value), rk.publish(topic + "/code", value), rk.publish(topic + "/new", value)
    ]  # fmt: skip
    with (
        other.subscribe(topic + "/full", capacity=1) as full,
        other.subscribe(topic + "/new") as new,
        other.react(topic + "/code", double).deliver() as coded,
        rk.react(topic).map(call, "publish").run(),
    ):
        started = time.monotonic()
        for number in range(3):
            rk.publish(topic, number)
        assert time.monotonic() - started < 5
        assert values(coded.subscription, 3) == [0, 2, 4]
        assert values(new, 3) == [0, 1, 2]
        assert full.get(5).value == 0


def test_code_that_reacts_and_asks(rk, other, topic):
    calls["react"] = lambda value: rk.react(topic + "/other").filter(0, ">", value).deliver()
    other.serve("answer", lambda: 42)
    calls["ask"] = lambda value: rk.request("answer")
    with rk.react(topic).map(call, "react").run(), rk.react(topic).map(call, "ask").deliver() as answered:
        rk.publish(topic, 1)
        until(lambda: rk.reactions(topic + "/other"))
        assert values(answered.subscription, 1) == [42]
    for handle in list(rk.reaction_handles.values()):
        handle.close()


def test_code_at_work_holds_up_no_other_session_and_not_this_one(rk, other, topic):
    gates.update(reached=threading.Event(), go=threading.Event())
    with rk.react(topic).map(wait_at, "go").deliver() as handle, other.react(topic + "/2", double).deliver() as second:
        publisher = threading.Thread(target=rk.publish, args=(topic, 1))
        publisher.start()
        assert gates["reached"].wait(5)
        other.serve("here", lambda: "yes")
        assert rk.request("here") == "yes" and other.topics("none") == {}
        other.publish(topic + "/2", 1)
        assert values(second.subscription, 1) == [2]
        assert publisher.is_alive()
        gates["go"].set()
        publisher.join(5)
        assert values(handle.subscription, 1) == [1] and not publisher.is_alive()


def test_time_is_up_for_code_and_the_publisher_goes_on(rk, other, topic):
    gates.update(reached=threading.Event(), go=threading.Event())
    told = []
    with other.react(topic, seconds=0.05, on_error=told.append).map(wait_at, "go").run():
        rk.publish(topic, 1)
        until(lambda: told)
        assert told[0].error == "TimeLimit" and "wait_at took longer than 0.05 s" in told[0].text
    with other.react(topic, double).deliver() as handle:
        rk.publish(topic, 2)
        assert values(handle.subscription, 1) == [4]


# ── the end ──


def test_the_end_of_the_session_ends_a_publish_that_waits_for_code(head, other, topic, monkeypatch):
    monkeypatch.setattr("raskid.client.connection.DRAIN_S", 0.05)
    gates.update(reached=threading.Event(), go=threading.Event())
    session = head.session()
    raised = []

    def publish():
        try:
            session.publish(topic, 1)
        except SessionClosed as error:
            raised.append(error)

    with other.react(topic).map(wait_at, "go").run():
        thread = threading.Thread(target=publish)
        thread.start()
        assert gates["reached"].wait(5)
        session.close()
        thread.join(5)
        assert not thread.is_alive() and len(raised) == 1


def test_what_code_and_windows_have_is_delivered_before_a_session_leaves(head, other, topic):
    """1. A window is half full, and code is at work whose result goes into a window. 2. The session is closed."""
    gates.update(reached=threading.Event(), go=threading.Event())
    session = head.session()
    with (
        other.react(topic + "/window").gather(10).deliver() as gathered,
        other.react(topic + "/code").map(wait_at, "go").gather(10).map(len).deliver() as coded,
    ):
        session.publish(topic + "/window", 1)
        session.publish(topic + "/window", 2)
        thread = threading.Thread(target=session.publish, args=(topic + "/code", 1))
        thread.start()
        assert gates["reached"].wait(5)
        threading.Timer(0.05, gates["go"].set).start()
        session.close()
        thread.join(5)
        assert gathered.subscription.get(5).value == [1, 2]
        assert coded.subscription.get(5).value == 1


def test_a_session_that_is_dropped_warns_although_it_has_reactions(head, topic):
    ended = threading.Event()
    session = head.session(on_close=ended.set)
    handle = session.react(topic, double).forward(topic + "/out")
    draft = session.react(topic)
    draft.forget()
    session.publish(topic, 1)
    with pytest.warns(ResourceWarning, match="was dropped without being closed"):
        del handle, draft, session
        until(lambda: gc.collect() >= 0 and ended.is_set())


def test_a_session_that_is_to_tell_of_failures_stays(head, other, topic):
    told = []
    session = head.session()
    session.react(topic, on_error=told.append).map(double, 1).run()
    engine = session.engine
    del session
    gc.collect()
    other.publish(topic, 1)
    until(lambda: told)
    owner = engine.owner
    assert owner is not None
    owner.close()


# ── roles, and records of others ──


def test_a_session_that_only_sends_messages_brings_no_code(head, other, topic):
    token = derive(TOKEN, "execute", ROLE_MESSAGE)
    with Session(head.address, token, ROLE_MESSAGE, head.directory) as rk:
        for wrong in (lambda: rk.op(double), lambda: rk.react(topic, double), lambda: rk.react(topic, action=double)):
            with pytest.raises(NotAllowed, match=r"needs the role .execute."):
                wrong()
        with rk.react(topic).filter(0, ">", 1).deliver() as handle:
            other.publish(topic, 1)
            other.publish(topic, 2)
            assert values(handle.subscription, 1) == [2]


def put(session, topic, *operations, version="3.99", **more):
    """A record as another implementation would write it."""
    reaction = Reaction(session.peer.own_ref, operations, **more)
    number = session.request_id()
    session.ask(
        PutRecord(number, list_name(REACTIONS, topic), str(number), encode_reaction(reaction), False, 5.0)
    ).result(5)


@pytest.mark.parametrize(
    ("operation", "what"),
    [
        (Operation(CODE, ("c1", "python", "3.99"), {"name": "f"}), "the code f (python 3.99)"),
        (Operation("transmogrify", (1,)), "the operation 'transmogrify'"),
    ],
)
def test_what_a_publisher_cannot_run_its_owner_gets_and_says_so(rk, other, topic, operation, what):
    """1. A record holds what nobody here can run. 2. The publisher hands it on. 3. The owner says what is wrong."""
    told = []
    with rk.subscribe(topic) as messages:
        rk._appliers[reported()] = lambda effect: told.append(effect.message)
        put(rk, topic, operation, Operation(FORWARD, ("x",)))
        other.publish(topic, 1)
        assert messages.get(5).value == 1
        until(lambda: told)
    assert told[0].text == f"{what} can be run neither by its publisher nor by its owner"


def reported():
    from raskid.core.effects import ReactionReported

    return ReactionReported


def test_what_fails_whose_owner_has_gone_is_said_at_the_publisher(head, other, topic, capfd):
    owner = head.session()
    owner.react(topic, permanent=True).map(double, 1, 2).forward(topic + "/out")
    other.publish(topic, 0)
    owner.close()
    until(lambda: not other.peer.is_connected(owner.peer.identity.peer))
    capfd.readouterr()
    other.publish(topic, 1)
    until(lambda: "whose owner has gone, failed here in operation 0" in capfd.readouterr().err)


def limited_session(head):
    """A session that may publish and react, but not have code run."""
    return Session(head.address, derive(TOKEN, "execute", ROLE_MESSAGE), ROLE_MESSAGE, directory=head.directory)


# ── permanent ones, which are everybody's ──


def test_a_permanent_reaction_is_suspended_resumed_and_removed_by_anybody(head, other, topic):
    """1. Its owner has gone. 2. Another session suspends it, and lets it happen again. 3. It removes it."""
    owner = head.session()
    identifier = owner.react(topic, permanent=True).filter(0, ">", 0).forward(topic + "/out").id
    owner.close()
    with limited_session(head) as anybody, other.subscribe(topic + "/out") as out:
        handle = anybody.reaction(topic, identifier)
        assert "filter([0, '>', 0]) | forward(" in repr(handle) and handle.id == identifier
        handle.suspend("lunch")
        other.publish(topic, 1)
        again = other.reaction(topic, str(identifier))
        assert again.suspended == other.reactions(topic)[0]["suspended"] == "lunch"
        again.resume()
        other.publish(topic, 2)
        assert values(out, 1) == [2]
        assert other.reactions(topic)[0]["permanent"]
        handle.close()
        assert other.reactions(topic) == []
        with pytest.raises(LookupError, match=f"no reaction '{identifier}' on '{topic}'; rk.reactions"):
            anybody.reaction(topic, identifier)


def test_one_that_its_publisher_has_suspended_is_resumed(head, other, topic, capfd):
    """1. Its owner has gone; it fails so often that its publisher does nothing for it, which no list says. 2. Somebody
    else resumes it. 3. Who may not have code run cannot do that, but remove it."""
    owner = head.session()
    identifier = owner.react(topic, permanent=True).map(double, 1).forward(topic + "/out").id
    other.publish(topic, 0)
    owner.close()
    until(lambda: not other.peer.is_connected(owner.peer.identity.peer))
    for number in range(FAILURES_MAX):
        other.publish(topic, number)
    until(lambda: "It is suspended here" in capfd.readouterr().err)
    with head.session() as anybody:
        anybody.reaction(topic, identifier).resume()
    other.publish(topic, 1)
    until(lambda: "(1 times so far)" in capfd.readouterr().err)
    with limited_session(head) as reader:
        handle = reader.reaction(topic, identifier)
        for call in (handle.suspend, handle.resume, lambda: handle.set_value(1)):
            with pytest.raises(NotAllowed, match="a change of a reaction with code"):
                call()
        handle.close()
    assert other.reactions(topic) == []


def test_what_is_not_permanent_is_its_owners(rk, other, topic):
    with rk.react(topic).forward(topic + "/out") as handle, rk.subscribe(topic) as messages:
        assert rk.reaction(topic, handle.id) is handle
        for identifier in (handle.id, messages.id):
            with pytest.raises(NotAllowed, match=f"is not permanent: it belongs to '{rk.peer.identity.peer}'"):
                other.reaction(topic, identifier)
    for wrong in ("", "x", -1, None):
        with pytest.raises(LookupError, match="there is no reaction"):
            rk.reaction(topic, wrong)


def test_a_permanent_reaction_in_asyncio(head, rk, topic):
    identifier = rk.react(topic, permanent=True).forward(topic + "/out").id

    async def main():
        async with head.session() as session:
            handle = await session.reaction(topic, identifier)
            await handle.asuspend()
            await handle.aresume()
            await handle.aset_value(5)
            (found,) = await session.reactions(topic)
            assert found["value"] == 5 and not found["suspended"]
            await handle.aclose()
            assert await session.reactions(topic) == []

    asyncio.run(main())


# ── asyncio ──


def test_in_asyncio_a_cell_can_be_named_in_a_link(head, topic):
    async def main():
        async with asyncio.timeout(10), head.session() as rk:
            cell = await rk.cell(topic + "/cell", type=int)
            with pytest.raises(ValueError, match="a link to a name does not set it"):
                await rk.link(topic, topic + "/cell")
            async with await rk.link(topic, cell=topic + "/cell"), await rk.link(topic, topic + "/new"):
                await rk.publish(topic, 4)
                assert await cell.wait() == 4

    asyncio.run(main())


def test_in_asyncio_what_installs_is_awaited(head, topic):
    gates.update(reached=threading.Event(), go=threading.Event())

    async def main():
        async with head.session() as rk, head.session() as other:
            async with await rk.react(topic).map(double).forward(topic + "/out") as handle:
                out = await rk.subscribe(topic + "/out")
                await other.publish(topic, 4)
                assert (await anext(out)).value == 8
                assert len(await rk.reactions(topic)) == 1
                await handle.asuspend("why")
                await handle.aresume()
            assert await rk.reactions(topic) == []
            got = []
            async with await rk.react(topic, action=double, done=lambda message: got.append(message.value)):
                await other.publish(topic, 5)
                async with asyncio.timeout(5):
                    while not got:
                        await asyncio.sleep(0)
            assert got == [10]
            async with await rk.link(topic + "/a", topic + "/b", rk.op(double)), await rk.subscribe(topic + "/b") as b:
                await other.publish(topic + "/a", 6)
                assert (await anext(b)).value == 12

    asyncio.run(main())


def test_in_asyncio_a_publish_waits_for_code_and_the_loop_goes_on(head, topic):
    gates.update(reached=threading.Event(), go=threading.Event())

    async def main():
        async with head.session() as rk, await rk.react(topic).map(wait_at, "go").deliver() as handle:
            publishing = asyncio.create_task(rk.publish(topic, 1))
            await asyncio.to_thread(gates["reached"].wait, 5)
            for _ in range(10):
                await asyncio.sleep(0)
            assert not publishing.done() and await rk.topics("none") == {}
            cancelled = asyncio.create_task(rk.publish(topic, 2))
            await asyncio.sleep(0)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            gates["go"].set()
            await publishing
            assert [(await anext(handle.subscription)).value for _ in range(2)] == [1, 2]

    asyncio.run(main())


def test_an_event_loop_takes_over_while_a_thread_waits_for_code(head, topic):
    """1. A thread publishes, and waits for code. 2. Then an event loop attaches. 3. The thread gets its answer."""
    gates.update(reached=threading.Event(), go=threading.Event())
    session = head.session()
    handle = session.react(topic).map(wait_at, "go").deliver()
    thread = threading.Thread(target=session.publish, args=(topic, 1))
    thread.start()
    assert gates["reached"].wait(5)

    async def main():
        async with session:
            gates["go"].set()
            assert (await anext(handle.subscription)).value == 1
            await asyncio.to_thread(thread.join, 5)
            assert not thread.is_alive()

    asyncio.run(main())


def test_the_hub_is_asked_for_reactions_in_vain(rk, head, topic, monkeypatch):
    monkeypatch.setattr("raskid.client.reacting.FOLLOW_S", 0.02)
    head.mute.add(Watch)
    try:
        with pytest.raises(WaitTimeout, match=f"did not send the reactions of {topic!r}"):
            rk.reactions(topic)
    finally:
        head.mute.clear()
    assert list_name(REACTIONS, topic) not in rk._lists.replicas
