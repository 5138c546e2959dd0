"""Waiting for a future with a limit whose end says what was waited for, blocking and in asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raskid.model.errors import WaitTimeout

if TYPE_CHECKING:
    from raskid.client.futures import Future


def result_of(future: Future, seconds: float, what: str) -> Any:
    """The result of a future.

    Args:
        future: What to wait for.
        seconds: How long.
        what: What did not happen when time is up, for example "the hub did not confirm …".

    Raises:
        WaitTimeout: It is not done in time.
        Exception: What the future failed with.
    """
    try:
        return future.result(seconds)
    except WaitTimeout:
        if future.done():
            # The future's own error: the system answered that some limit ran out.
            raise
    raise _too_late(seconds, what)


async def result_in(future: Future, seconds: float, what: str) -> Any:
    """As `result_of`, for coroutines."""
    import asyncio

    try:
        async with asyncio.timeout(seconds) as scope:
            return await future
    except TimeoutError:
        if not scope.expired():
            # The future's own error: the system answered that some limit ran out.
            raise
    raise _too_late(seconds, what)


def _too_late(seconds: float, what: str) -> WaitTimeout:
    return WaitTimeout(
        f"{what} within {seconds:g} s. The system is overloaded, or its head does not answer; see `raskid ps`"
    )
