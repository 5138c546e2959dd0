"""The changes of a shared dictionary, read one after the other."""

from __future__ import annotations

import asyncio
import threading

import pytest

from raskid.client.changes import Change
from raskid.model.errors import SessionClosed, WaitTimeout


def test_every_change_is_read_in_order_with_its_value(head):
    with head.session() as here, head.session() as there:
        mine, theirs = here.shared("x"), there.shared("x")
        mine["before"] = 0
        theirs.wait(lambda shared: "before" in shared, 5)
        with theirs.changes() as changes:
            mine["a"] = 1
            mine["a"] = 2
            del mine["a"]
            assert [changes.get(5) for _ in range(3)] == [
                Change("a", 1, False), Change("a", 2, False), Change("a", None, True),
            ]  # fmt: skip
            with pytest.raises(WaitTimeout, match=r"shared list 'x' did not change within 0\.01 s"):
                changes.get(0.01)
        assert list(changes) == []
        with pytest.raises(ValueError, match="closed"):
            changes.get(1)


def test_what_is_more_than_fits_is_counted(head):
    with head.session() as here:
        mine = here.shared("x")
        changes = mine.changes(capacity=2)
        for number in range(5):
            mine["n"] = number
        assert [changes.get(1).value for _ in range(2)] == [3, 4] and changes.dropped == 3
        for wrong in (0, 1.5, "many"):
            with pytest.raises((TypeError, ValueError), match="capacity"):
                mine.changes(wrong)


@pytest.mark.parametrize("end", ["reader", "handle", "session"])
def test_a_reader_that_waits_ends_with_what_it_reads(head, end):
    with head.session() as here:
        mine = here.shared("x")
        changes = mine.changes()
        got = []
        reader = threading.Thread(target=lambda: got.extend(changes))
        reader.start()
        mine["a"] = 1
        {"reader": changes.close, "handle": mine.close, "session": here.close}[end]()
        reader.join(5)
        assert not reader.is_alive() and got == [Change("a", 1, False)]
        with pytest.raises(SessionClosed if end == "session" else ValueError):
            changes.get(1)
        assert not here.changes or end == "session"


def test_coroutines_read_changes(head):
    async def body():
        async with head.session() as here:
            shared = await here.shared("x")
            async with shared.changes() as changes:
                await shared.put("a", 1)
                await shared.put("a", 2)
                got = []
                async for change in changes:
                    got.append(change.value)
                    if len(got) == 2:
                        break
                assert got == [1, 2]
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await changes.__anext__()
                await shared.put("a", 3)
                assert (await changes.next(5)).value == 3

    asyncio.run(body())
