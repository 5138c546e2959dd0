"""A client's stay in a system: everything that a user calls."""

from __future__ import annotations

from typing import Any

from raskid.client.requests import Requests
from raskid.client.tasks import Tasks
from raskid.client.topics import Topics


class Session(Topics, Requests, Tasks):
    """A connection to a system. Made by `raskid.connect`; use it with ``with``, or ``async with``.

    Attributes:
        url: What another process gives to `raskid.connect` to reach the same system.
    """

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

    def __repr__(self) -> str:
        state = "closed" if self.engine.closing else "open"
        return f"<raskid.Session {self.peer.identity.peer} at {self.url or self.head}: {state}>"
