"""A client's stay in a system: everything that a user calls."""

from __future__ import annotations

import sys
from typing import Any

from raskid.client.extensions import Extensions
from raskid.client.flows import Flows
from raskid.client.reacting import Reacting
from raskid.client.requests import Requests
from raskid.client.waiting import take_steps, take_steps_in


class Session(Reacting, Flows, Requests, Extensions):
    """A connection to a system. Made by `raskid.connect`; use it with ``with``, or ``async with``.

    What is no call of its own is an extension: ``rk.recorder``, or one that `raskid.register` or a package brings.

    Attributes:
        url: What another process gives to `raskid.connect` to reach the same system.
        started_system: Whether the system ends with this session.
    """

    started_system = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Any:
        from raskid.client.aio import AsyncSession

        self.engine.check_alive()
        import asyncio

        self.engine.attach(asyncio.get_running_loop())
        return AsyncSession(self)

    async def __aexit__(self, *error: object) -> None:
        await self.close_async()

    def close(self) -> None:
        """Leave the system; one that this session started ends as well.

        What this process keeps for a basket (`Draft.keep`) is handed over, unless the basket ends with this session,
        and what was sent is written first, for 2 s at most, to those who are there to take it. Callbacks that are due
        still run, for 2 s at most.
        """
        try:
            if kept := self._kept():
                if self.engine.serves_this_thread():
                    _say_not_handed_over(kept)
                else:
                    from raskid.client.baskets import handing_over

                    take_steps(handing_over(self, kept))
        finally:
            super().close()

    async def close_async(self) -> None:
        """As `close`, in the event loop that drives this session, which goes on meanwhile."""
        try:
            if kept := self._kept():
                from raskid.client.baskets import handing_over

                await take_steps_in(handing_over(self, kept))
        finally:
            await super().close_async()

    def _kept(self) -> list[tuple[str, str, list[tuple[int, bytes, float]]]]:
        """What is kept here for baskets, as long as they can be told."""
        engine = self.engine
        if engine.failure is not None or engine.closing or self._closing or self.started_system:
            return []
        with engine.lock:
            return self._messaging.kept(self.driver.clock())

    def __getattr__(self, name: str) -> Any:
        # Asked for what is not there otherwise. Python itself looks for names that begin so, also before there is
        # anything in this object.
        if name.startswith("_") or "engine" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.extension(name)

    def __repr__(self) -> str:
        state = "closed" if self.engine.closing else "open"
        return f"<raskid.Session {self.peer.identity.peer} at {self.url or self.head}: {state}>"


def _say_not_handed_over(kept: list[tuple[str, str, list[tuple[int, bytes, float]]]]) -> None:
    """The event loop that would have to hand it over is the one that waits."""
    for topic, basket, messages in kept:
        print(
            f"raskid: {len(messages)} messages on {topic!r} that were kept for the basket {basket!r} are not handed "
            "over to it: close() in an event loop cannot wait for that. Leave with `await rk.close()`, or `async with`",
            file=sys.stderr,
        )
