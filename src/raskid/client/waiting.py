"""Waiting for a future with a limit whose end says what was waited for, blocking and in asyncio.

What waits for several futures, one after the other, can be written once for both: as `Steps`, a generator that yields
what to wait for, and is given the results.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeVar

from raskid.model.errors import WaitTimeout

if TYPE_CHECKING:
    from raskid.client.futures import Future

T = TypeVar("T")
#: Yields (future, seconds, what did not happen when time is up), as `result_of` takes them; returns what it came to.
Steps = Generator[tuple["Future", float | None, str], Any, T]


def take_steps(steps: Steps[T]) -> T:
    """What `steps` come to; blocks while they wait."""
    try:
        wait = next(steps)
        while True:
            try:
                result = result_of(*wait)
            except BaseException as error:
                wait = steps.throw(error)
            else:
                wait = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


async def take_steps_in(steps: Steps[T]) -> T:
    """As `take_steps`, for coroutines."""
    try:
        wait = next(steps)
        while True:
            try:
                result = await result_in(*wait)
            except BaseException as error:
                wait = steps.throw(error)
            else:
                wait = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


def result_of(future: Future, seconds: float | None, what: str) -> Any:
    """The result of a future.

    Args:
        future: What to wait for.
        seconds: How long; None: without limit.
        what: What did not happen when time is up, for example "the hub did not confirm …".

    Raises:
        WaitTimeout: It is not done in time.
        Exception: What the future failed with.
    """
    try:
        return future.result(seconds)
    except WaitTimeout:
        if future.done() or seconds is None:
            # The future's own error: the system answered that some limit ran out.
            raise
    raise _too_late(seconds, what)


async def result_in(future: Future, seconds: float | None, what: str) -> Any:
    """As `result_of`, for coroutines."""
    import asyncio

    try:
        async with asyncio.timeout(seconds) as scope:
            return await future
    except TimeoutError:
        if not scope.expired() or seconds is None:
            # The future's own error: the system answered that some limit ran out.
            raise
    raise _too_late(seconds, what)


def _too_late(seconds: float, what: str) -> WaitTimeout:
    return WaitTimeout(
        f"{what} within {seconds:g} s. The system is overloaded, or its head does not answer; see `raskid ps`"
    )
