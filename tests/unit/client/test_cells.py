"""Cells as a user holds them, over a real head."""

import asyncio
import gc
import threading
import weakref

import numpy
import pytest

from raskid.client.cells import AsyncCell
from raskid.model.errors import NotAllowed, SessionClosed, TopicNameError, ValueNotSendable, WaitTimeout
from raskid.protocol.base import VALUE_BYTES_MAX
from raskid.protocol.messages import DeleteRecord, PutRecord, Watch
from raskid.protocol.values import encode_value
from tests.unit.client.systems import until


@pytest.fixture
def mute(head):
    yield head.mute.update
    head.mute.clear()


def run(head, body, limit=10.0):
    """Run `body(here, there)` in a loop that drives both sessions."""

    async def main():
        here, there = head.session(), head.session()
        async with asyncio.timeout(limit), here as first, there as second:
            await body(first, second)

    asyncio.run(main())


def put_by_hand(rk, cell, value, record="value"):
    """Write into a cell as somebody does who knows nothing of its declaration."""
    data = value if isinstance(value, bytes) else encode_value(value)
    rk.ask(PutRecord(rk.request_id(), f"cells:{cell}", record, data, True)).result(5)


# ── values ──


def test_a_value_is_seen_at_once_here_and_soon_elsewhere(rk, other):
    mine, theirs = rk.cell("height"), other.cell("height")
    mine.set({"m": 1.5})
    assert mine.value == {"m": 1.5} == theirs.wait(timeout=5) and theirs.value == mine.get()
    assert mine.writer == theirs.writer == "" and mine.version == theirs.version
    mine.value["m"] = 2
    assert mine.value == {"m": 1.5}, "what is read is a copy"
    theirs.set_nowait(numpy.arange(3)).result(5)
    assert mine.wait(lambda value: isinstance(value, numpy.ndarray), 5).tolist() == [0, 1, 2]
    mine.clear()
    mine.clear()
    until(lambda: theirs.get() is None)
    assert mine.address == ("cells:height", "value")
    theirs.set(None)
    assert theirs.value is None and mine.wait(timeout=5) is None
    mine.clear()


def test_a_newcomer_gets_the_last_value_though_the_writer_has_gone(head, rk):
    with head.session() as writer:
        writer.cell("left").set(5)
        writer.cell("gone", permanent=False).set(6)
    assert rk.cell("left").value == 5
    gone = rk.cell("gone")
    until(lambda: gone.get("nothing") == "nothing")


def test_only_the_writer_sets_what_goes_with_it(rk, other):
    owned, theirs = rk.cell("owned", permanent=False), other.cell("owned")
    owned.set(1)
    assert theirs.wait(timeout=5) == 1 and theirs.writer == rk.peer.identity.peer
    for call in (lambda: theirs.set(2), theirs.clear):
        with pytest.raises(NotAllowed, match="belongs to peer"):
            call()
    rk.cell("owned").set(3)
    theirs.wait(lambda value: value == 3, 5)
    theirs.set(4)
    assert theirs.value == 4


def test_a_cell_without_a_value_says_so(rk):
    cell = rk.cell("empty")
    for call in (lambda: cell.value, lambda: cell.writer):
        with pytest.raises(LookupError, match="cell 'empty' has no value: nobody has set it, or it was cleared"):
            call()
    assert cell.get() is None and cell.get(5) == 5 and repr(cell) == "<raskid.Cell, cell 'empty': no value>"
    with pytest.raises(WaitTimeout, match=r"cell 'empty' was not set within 0\.01 s"):
        cell.wait(timeout=0.01)
    cell.set([1, 2])
    assert repr(cell) == "<raskid.Cell, cell 'empty': [1, 2]>"
    with pytest.raises(WaitTimeout, match=r"did not satisfy the condition within 0\.01 s"):
        cell.wait(lambda value: False, 0.01)
    with pytest.raises(ZeroDivisionError):
        cell.wait(lambda value: 1 / 0, 5)


def test_opening_is_one_watch_that_brings_value_and_declaration(head, rk, other):
    """However many read a cell: one message to the hub for each, and nothing else."""
    rk.cell("one watch", type=int).set(5)
    before = len(head.hub._lists["cells:one watch"].readers)
    sent = other.counters()["messages_sent"]
    cell = other.cell("one watch")
    assert other.counters()["messages_sent"] == sent + 1 and cell.value == 5
    with pytest.raises(TypeError):
        cell.set("x")
    assert len(head.hub._lists["cells:one watch"].readers) == before + 1


# ── what is published ──


def test_a_refused_value_is_not_published(rk, other):
    """1. A cell belongs to its writer, and somebody reacts to it. 2. Another process sets it in vain. 3. Only what the
    hub took is published, whichever way it was set."""
    owned, theirs = rk.cell("refused", permanent=False), other.cell("refused")
    with rk.subscribe("refused") as messages:
        owned.set(1)
        assert messages.get(5).value == 1
        with pytest.raises(NotAllowed):
            theirs.set(2)
        with pytest.raises(NotAllowed):
            theirs.set_nowait(3).result(5)
        owned.clear()
        theirs.set_nowait({"four": 4}).result(5)
        theirs.set([5])
        assert [messages.get(5).value for _ in range(2)] == [{"four": 4}, [5]]
    assert not theirs._unpublished


def test_values_are_published_in_the_order_of_the_calls(rk, other):
    cell = rk.cell("published in order")
    with other.subscribe("published in order") as messages:
        for number in range(0, 100, 2):
            cell.set_nowait(number)
            if number % 10 == 0:
                cell.set(number + 1)
            else:
                cell.set_nowait(number + 1)
        assert [messages.get(5).value for _ in range(100)] == list(range(100))


def test_a_value_is_published_as_it_was_set(rk, mute):
    """What the hub has not answered for is not published, also when somebody stops waiting for it."""
    cell, value = rk.cell("published later"), [1]
    with rk.subscribe("published later") as messages:
        mute({PutRecord})
        with pytest.raises(WaitTimeout):
            cell.set(value, timeout=0.01)
        with pytest.raises(WaitTimeout):
            messages.get(0.01)
        ((future, _),) = cell._unpublished
        value.append(2)
        with rk.engine.lock:
            future.resolve_with(None)
        assert messages.get(5).value == [1]


def test_what_was_set_before_a_session_leaves_is_published(head, other):
    """Also through a handle that was closed, and when the session ends in an event loop."""

    async def in_loop():
        async with head.session() as rk:
            (await rk.cell("set and gone")).set_nowait(2)

    with other.subscribe("set and gone") as messages:
        with head.session() as session, session.cell("set and gone") as cell:
            cell.set_nowait(0)
            cell.set_nowait(1)
        asyncio.run(in_loop())
        assert [messages.get(5).value for _ in range(3)] == [0, 1, 2]


def test_a_refused_value_is_not_published_in_asyncio(head):
    async def body(here, there):
        async with (
            await here.cell("async refused", permanent=False) as owned,
            await there.cell("async refused") as cell,
            await here.subscribe("async refused") as messages,
        ):
            await owned.set(1)
            with pytest.raises(NotAllowed):
                await cell.set(2)
            await there.publish("async refused", "behind it")
            assert {(await anext(messages)).value for _ in range(2)} == {1, "behind it"}

    run(head, body)


# ── changes ──


def test_loops_begin_with_the_present_value_and_miss_nothing(rk, other):
    mine, theirs = rk.cell("looped"), other.cell("looped")
    mine.set(0)
    theirs.wait(timeout=5)
    first = iter(theirs)
    for number in range(1, 50):
        mine.set_nowait(number)
    mine.set(50)
    assert [next(first) for _ in range(51)] == list(range(51))
    theirs.wait(lambda value: value == 50, 5)
    assert next(iter(theirs)) == 50, "each loop has its own"
    mine.clear()
    mine.set(50)
    assert first.get(5) == 50, "the same value again is a change"
    with pytest.raises(WaitTimeout, match=r"cell 'looped' had no new value within 0\.01 s"):
        first.get(0.01)


def test_slow_loops_leave_the_oldest_out(rk):
    cell = rk.cell("slow", capacity=3)
    values = iter(cell)
    for number in range(10):
        cell.set(number)
    assert [values.get(5) for _ in range(3)] == [7, 8, 9] and cell.dropped == 7
    del values
    for number in range(10):
        cell.set(number)
    assert cell.dropped == 7, "a loop that is over counts no more"


def test_slow_callbacks_leave_the_oldest_out(rk):
    cell = rk.cell("slow callback", capacity=2)
    go_on, seen = threading.Event(), []

    def callback(value):
        seen.append(value)
        go_on.wait(5)

    cell.set("present")
    cell.on_value(callback)
    until(lambda: seen)
    for number in range(5):
        cell.set(number)
    go_on.set()
    until(lambda: len(seen) == 3)
    assert seen == ["present", 3, 4] and cell.dropped == 3
    cell.close()


def test_callbacks_begin_with_the_present_value_and_may_be_coroutines(rk, other):
    cell, theirs = rk.cell("called"), other.cell("called")
    seen = []

    async def later(value):
        await asyncio.sleep(0)
        seen.append(("later", value))

    theirs.set(1)
    cell.wait(timeout=5)
    cell.on_value(lambda value: seen.append(("now", value)))
    cell.on_value(later)
    theirs.set(2)
    theirs.clear()
    theirs.set(3)
    until(lambda: len(seen) == 6)
    for kind in ("now", "later"):
        assert [value for which, value in seen if which == kind] == [1, 2, 3]
    cell.close()
    theirs.set(4)
    assert rk.cell("called").value == 4 and len(seen) == 6


def test_a_loop_in_another_thread_ends_when_the_handle_is_closed(rk):
    cell, seen = rk.cell("closing"), []
    reader = threading.Thread(target=lambda: seen.extend(cell))
    reader.start()
    until(lambda: len(cell._loops) and cell._change is not None)
    cell.set(1)
    until(lambda: cell._change is not None)
    cell.close()
    reader.join(5)
    assert not reader.is_alive() and seen == [1]


def test_two_writers_one_order(rk, other):
    """Both see the changes of both in the same order, their own included."""
    mine, theirs = rk.cell("order"), other.cell("order")
    loops = [iter(mine), iter(theirs)]
    futures = [cell.set_nowait((cell is mine, number)) for number in range(50) for cell in (mine, theirs)]
    for future in futures:
        future.result(5)
    seen = [[tuple(next(loop)) for _ in range(100)] for loop in loops]
    assert seen[0] == seen[1] and set(seen[0]) == {(a, n) for a in (True, False) for n in range(50)}


# ── declarations ──


def test_values_are_checked_at_both_ends(rk, other, capsys):
    cell = rk.cell("checked", type=float, min=0, max=1)
    cell.set(0.5)
    theirs = other.cell("checked")
    for handle in (cell, theirs):
        for value, error in (("x", TypeError), (2.0, ValueError), (float("nan"), ValueError), (None, TypeError)):
            with pytest.raises(error, match="cell 'checked' takes no such value: the value is declared"):
                handle.set(value)
    values = iter(cell)
    for value in ("wrong", b"\xc1", 7.0, 0.75):
        put_by_hand(other, "checked", value)
    assert cell.wait(lambda value: value == 0.75, 5) and [next(values), next(values)] == [0.5, 0.75]
    assert cell.rejected == 3
    put_by_hand(other, "checked", "wrong")
    until(lambda: cell.rejected == 4)
    assert cell.value == 0.75, "what does not fit is left out"
    assert rk.cell("checked").get("none yet") == "none yet", "also for newcomers"
    errors = []
    until(lambda: errors.append(capsys.readouterr().err) or "".join(errors).count("\n") == 3)
    assert "a value on cell 'checked' does not fit" in "".join(errors), "once for each handle"


def test_what_does_not_fit_is_told_without_holding_the_lock(rk, other, monkeypatch):
    """Whoever reads the standard error may be slow, and may call the session."""
    held, cell = [], rk.cell("told", type=int)

    class Errors:
        def write(self, text):
            held.append(rk.engine.lock._is_owned())

        def flush(self):
            pass

    monkeypatch.setattr("sys.stderr", Errors())
    put_by_hand(other, "told", "wrong")
    until(lambda: held)
    assert not any(held) and cell.rejected == 1


@pytest.mark.parametrize(("value", "shown"), [("wrong", "'wrong'"), (b"\xc1", "1 bytes that are no value")])
def test_newcomers_are_told_of_a_value_that_does_not_fit(rk, other, value, shown):
    """It does not look as if there were none, until somebody sets one that fits."""
    name = f"poisoned {len(value)}"
    cell = rk.cell(name, type=int)
    put_by_hand(other, name, value)
    newcomer = other.cell(name)
    for call in (lambda: newcomer.value, lambda: newcomer.writer):
        with pytest.raises(ValueError, match=rf"cell '{name}' holds {shown}, .* is declared \(type='int'\)"):
            call()
    assert newcomer.rejected == 1 and newcomer.get("none") == "none" and "that does not fit" in repr(newcomer)
    cell.set(5)
    assert newcomer.wait(timeout=5) == 5 == newcomer.value
    put_by_hand(rk, name, value)
    assert cell.value == 5, "who has seen one that fits goes on with it"
    cell.clear()
    with pytest.raises(LookupError):
        cell.value  # noqa: B018 - it raises


def test_declarations_of_cells_must_agree(rk, other):
    rk.cell("declared", type="array", shape=(2, None)).set(numpy.zeros((2, 3)))
    with pytest.raises(
        ValueError, match=r"was declared with type='array', shape=\[2, None\], and this handle .* 'int'|="
    ):
        other.cell("declared", type=int)
    with pytest.raises(ValueError, match="shape"):
        other.cell("declared").set(numpy.zeros((3, 3)))
    other.cell("declared", type=numpy.ndarray, shape=[2, None]).set(numpy.ones((2, 1)))
    assert rk.cell("plain").get() is None
    rk.cell("plain").set("anything")


# ── keys of shared dictionaries ──


def test_a_key_of_a_shared_dictionary_is_a_cell(rk, other):
    facts = rk.shared("facts of cells")
    cell, theirs = facts.cell("viscosity"), other.shared("facts of cells").cell("viscosity", permanent=True)
    assert cell.address == ("shared:facts of cells", "viscosity") and cell.get() is None
    values = iter(theirs)
    facts["another"] = 1
    cell.set(0.5)
    assert facts["viscosity"] == 0.5 == theirs.wait(timeout=5) == next(values)
    assert facts.owner("viscosity") == cell.writer == rk.peer.identity.peer
    with pytest.raises(NotAllowed):
        theirs.set(1)
    facts["viscosity"] = 0.75
    del facts["another"]
    assert values.get(5) == 0.75
    facts.close()
    cell.set(1.0)
    assert values.get(5) == 1.0 and cell.value == 1.0, "it lives on when the dictionary's handle is closed"
    assert "cell 'viscosity' of shared list 'facts of cells'" in repr(cell)
    with pytest.raises(ValueError, match="was closed"):
        facts.cell("viscosity")
    cell.close()
    until(lambda: rk.topics("shared:facts of cells")["shared:facts of cells"]["readers"] == 1)
    declared = other.shared("facts of cells").cell("declaration")
    declared.set({"type": "int"})
    declared.set("is a key like any other")


# ── what a user may do wrong ──

WRONG = {
    "no text as name": (lambda rk: rk.cell(5), TopicNameError, "a topic's name is text"),
    "a control character": (lambda rk: rk.cell("a\n"), TopicNameError, "control character"),
    "an unknown type": (lambda rk: rk.cell("w", type="flaot"), ValueError, "this declares nothing"),
    "no flag": (lambda rk: rk.cell("w", permanent="yes"), TypeError, "permanent is True or False"),
    "no capacity": (lambda rk: rk.cell("w", capacity=-1), ValueError, "capacity is a whole number from 1"),
    "what cannot be sent": (lambda rk: rk.cell("w").set(object()), ValueNotSendable, "object"),
    "a function": (lambda rk: rk.cell("w").set(lambda: 1), ValueNotSendable, "function"),
    "a large value": (
        lambda rk: rk.cell("w").set(bytes(VALUE_BYTES_MAX)), ValueError, "value for cell 'w' takes.*limit is 262,144"
    ),
    "text as a limit": (lambda rk: rk.cell("w").set(1, timeout="3"), TypeError, "timeout is a number"),
    "no limit of clearing": (lambda rk: rk.cell("w").clear(-1), ValueError, "timeout is a number"),
    "text as a limit of waiting": (lambda rk: rk.cell("w").wait(timeout="3"), TypeError, "timeout is a number"),
    "a condition that is none": (lambda rk: rk.cell("w").wait(5), TypeError, "condition is something to call"),
    "a callback that is none": (lambda rk: rk.cell("w").on_value(5), TypeError, "callback is something to call"),
    "a number as key": (lambda rk: rk.shared("w").cell(5), TypeError, "a key of shared list 'w' is text"),
    "no flag for a key": (lambda rk: rk.shared("w").cell("k", permanent=1), TypeError, "permanent is True or False"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named_and_harms_nothing(rk, name):
    call, error, text = WRONG[name]
    with pytest.raises(error, match=text):
        call(rk)
    with rk.cell("right") as cell:
        cell.set(bytes(VALUE_BYTES_MAX - 5))
        assert len(cell.value) == VALUE_BYTES_MAX - 5


def test_a_closed_handle_says_so_and_leaves_others_alone(rk):
    closed, kept = rk.cell("twice"), rk.cell("twice")
    values = iter(closed)
    closed.set(1)
    closed.close()
    closed.close()
    for call in (
        lambda: closed.set(1), lambda: closed.value, closed.get, lambda: iter(closed), closed.wait, closed.clear,
        lambda: closed.version, lambda: closed.writer, lambda: closed.on_value(print),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="this handle on cell 'twice' was closed"):
            call()
    assert list(values) == [1] and repr(closed) == "<raskid.Cell, cell 'twice': closed>"
    with pytest.raises(ValueError, match="was closed"):
        values.get(0)
    kept.set(2)
    assert kept.value == 2
    kept.close()
    assert "cells:twice" not in rk.cells
    until(lambda: rk.topics("cells:twice")["cells:twice"]["readers"] == 0)


def test_a_hub_that_is_silent_is_told_of(rk, mute, monkeypatch):
    for place in ("flows.FOLLOW_S", "declarations.PUT_S"):
        monkeypatch.setattr(f"raskid.client.{place}", 0.02)
    cell = rk.cell("silent")
    cell.set(1)
    mute({PutRecord, DeleteRecord})
    with pytest.raises(WaitTimeout, match=r"did not confirm the setting of cell 'silent' within 0\.01 s"):
        cell.set(2, timeout=0.01)
    with pytest.raises(WaitTimeout, match=r"did not confirm the clearing of cell 'silent' within 0\.01 s"):
        cell.clear(timeout=0.01)
    with pytest.raises(WaitTimeout, match="did not confirm the declaration of cell 'silent'"):
        rk.cell("silent", type=int)
    mute({Watch})
    with pytest.raises(WaitTimeout, match="the hub did not say what cell 'unseen' holds"):
        rk.cell("unseen")
    assert "cells:unseen" not in rk.cells


def test_the_end_of_the_session_ends_loops_and_waits(head):
    session = head.session()
    cell, errors, seen = session.cell("ending"), [], []
    cell.set(1)

    def wait():
        try:
            cell.wait(lambda value: value == 2)
        except SessionClosed as error:
            errors.append(error)

    threads = [threading.Thread(target=wait), threading.Thread(target=lambda: seen.extend(cell))]
    for thread in threads:
        thread.start()
    until(lambda: seen and session.engine.waiters + bool(session.engine.driving) >= 2)
    session.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert len(errors) == 1 and seen == [1]
    assert cell.value == 1, "what is known is still known"
    for call in (lambda: cell.set(3), lambda: cell.wait(lambda value: False)):
        with pytest.raises(SessionClosed):
            call()
    values = cell.begin()
    assert values.get() == 1
    with pytest.raises(SessionClosed, match="no more values of cell 'ending'"):
        values.get()
    cell.close()


def test_handles_that_were_dropped_are_forgotten(rk):
    cell = rk.cell("dropped")
    there = weakref.ref(cell)
    del cell
    gc.collect()
    assert there() is None
    called = []
    rk.cell("dropped").on_value(called.append)
    gc.collect()
    assert rk.is_used(), "callbacks keep theirs"
    rk.cell("dropped").set(1)
    until(lambda: called == [1])


# ── asyncio ──


def test_under_asyncio_calls_are_awaited(head):
    async def body(here, there):
        async with await here.cell("async", type=int) as mine, await there.cell("async") as theirs:
            assert isinstance(mine, AsyncCell)
            waiting = asyncio.create_task(theirs.wait(lambda value: value == 2))
            await mine.set(1)
            assert mine.value == 1
            await mine.set(2)
            assert await waiting == 2 and theirs.value == 2 and theirs.writer == ""
            with pytest.raises(TypeError):
                await theirs.set("x")
            with pytest.raises(WaitTimeout, match="did not satisfy"):
                await mine.wait(lambda value: False, 0.01)
            seen, called = [], []
            await theirs.on_value(called.append)
            async for value in theirs:
                seen.append(value)
                if value == 5:
                    break
                await mine.set(value + 1)
            assert seen == [2, 3, 4, 5]
            while called != seen:
                await asyncio.sleep(0)
            await theirs.clear()
            assert theirs.get("none") == "none"
        with pytest.raises(ValueError, match="was closed"):
            await mine.set(1)
        key = (await here.shared("async keys")).cell("key")
        await key.set(7)
        assert key.value == 7
        await key.close()

    run(head, body)


def test_closing_a_handle_or_the_session_wakes_coroutines(head):
    async def body(here, there):
        first, second = await here.cell("woken"), await here.cell("woken")
        loops = [asyncio.create_task(anext(aiter(cell), "the end")) for cell in (first, second)]
        waits = [asyncio.create_task(cell.wait()) for cell in (first, second)]
        await asyncio.sleep(0)
        await first.close()
        assert await loops[0] == "the end"
        with pytest.raises(ValueError, match="was closed"):
            await waits[0]
        await here.close()
        assert await loops[1] == "the end"
        with pytest.raises(SessionClosed):
            await waits[1]

    run(head, body)


def test_coroutines_read_the_cell_of_a_blocking_session(rk, other):
    async def main():
        values = aiter(cell)
        async with asyncio.timeout(5):
            assert await anext(values) == 1
            waiting = asyncio.create_task(anext(values))
            await asyncio.sleep(0)
            await asyncio.to_thread(other.cell("foreign loop").set, 2)
            assert await waiting == 2
            await cell.begin().next()
            with pytest.raises(WaitTimeout):
                await values.next(0.01)

    cell = rk.cell("foreign loop")
    cell.set(1)
    asyncio.run(main())
