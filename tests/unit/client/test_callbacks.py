"""Callbacks, without threads: what is due is called by the test."""

import asyncio
import contextlib

import pytest

from raskid.client.callbacks import Callback


class Engine:
    loop = None

    def __init__(self):
        self.due = []

    def call_soon(self, function, *args):
        self.due.append((function, args))

    def waiting(self):
        return contextlib.nullcontext()

    def run(self):
        while self.due:
            function, args = self.due.pop(0)
            function(*args)


def test_a_function_is_called_and_then_it_is_through(capsys):
    engine, seen = Engine(), []

    def function(value):
        seen.append(value)
        if value == 2:
            raise ValueError("in the function")

    line = Callback(engine, function)
    for value in (1, 2, 3):
        line.call_soon(value, then=lambda value=value: seen.append(-value))
    line.call_soon(4)
    engine.run()
    assert seen == [1, -1, 2, -2, 3, -3, 4]
    assert "in the function" in capsys.readouterr().err


def test_what_ends_a_process_goes_on_but_the_call_is_through():
    engine, seen = Engine(), []

    def function():
        raise SystemExit

    Callback(engine, function).call_soon(then=lambda: seen.append("through"))
    with pytest.raises(SystemExit):
        engine.run()
    assert seen == ["through"]


@pytest.mark.parametrize("in_loop", [False, True])
def test_coroutines_run_one_after_the_other(in_loop, capsys):
    engine, seen = Engine(), []

    def function(value):
        async def coroutine():
            seen.append(("begins", value))
            await asyncio.sleep(0)
            if value == 1:
                raise ValueError("in the coroutine")
            seen.append(("ends", value))

        # Every other call returns no coroutine.
        return coroutine() if value % 2 else seen.append(("at once", value))

    line = Callback(engine, function)

    def call():
        for value in (1, 2, 3):
            line.call_soon(value, then=lambda value=value: seen.append(("through", value)))
        engine.run()

    async def main():
        engine.loop = asyncio.get_running_loop()
        call()
        async with asyncio.timeout(5):
            while ("through", 3) not in seen:
                await asyncio.sleep(0)

    if in_loop:
        asyncio.run(main())
    else:
        call()
    assert seen == [
        ("begins", 1), ("through", 1), ("at once", 2), ("through", 2), ("begins", 3), ("ends", 3), ("through", 3),
    ]  # fmt: skip
    assert "in the coroutine" in capsys.readouterr().err


def test_several_calls_in_one_go_keep_their_order_whatever_ends_one():
    engine, seen = Engine(), []

    def function(value):
        seen.append(value)
        if value == 2:
            raise SystemExit

    line = Callback(engine, function)
    line.call_each([(1,), (2,), (3,)], lambda value: seen.append(-value))
    line.call_each([(4,)])
    with pytest.raises(SystemExit):
        engine.run()
    engine.run()
    assert seen == [1, -1, 2, -2, 3, -3, 4]


def test_a_coroutine_that_is_cancelled_before_its_first_step_holds_nothing_up():
    """1. The task is cancelled before the loop has begun it. 2. It is through all the same, and the next follows."""
    engine, seen = Engine(), []

    async def function(value):
        seen.append(value)

    async def main():
        engine.loop = asyncio.get_running_loop()
        line = Callback(engine, function)
        line.call_each([(1,), (2,)], lambda value: seen.append(-value))
        engine.run()
        line._task.cancel()
        while len(seen) < 3:
            await asyncio.sleep(0)

    asyncio.run(main())
    assert seen == [-1, 2, -2]


def test_a_coroutine_that_is_due_when_an_event_loop_takes_over_runs_where_it_is_called():
    """It was called on a callback thread: what belongs to the loop may be touched on the loop's thread only."""
    engine, seen = Engine(), []
    engine.loop = asyncio.new_event_loop()

    async def function(value):
        seen.append(value)

    try:
        line = Callback(engine, function)
        line.call_each([(1,), (2,)], lambda value: seen.append(-value))
        engine.run()
        assert seen == [1, -1, 2, -2]
    finally:
        engine.loop.close()
