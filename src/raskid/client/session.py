"""A client's stay in a system: everything that a user calls."""

from __future__ import annotations

from typing import Any

from raskid.client.extensions import Extensions
from raskid.client.flows import Flows
from raskid.client.reacting import Reacting
from raskid.client.requests import Requests


class Session(Reacting, Flows, Requests, Extensions):
    """A connection to a system. Made by `raskid.connect`; use it with ``with``, or ``async with``.

    What is no call of its own is an extension: ``rk.recorder``, or one that `raskid.register` or a package brings.

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

    def __getattr__(self, name: str) -> Any:
        # Asked for what is not there otherwise. Python itself looks for names that begin so, also before there is
        # anything in this object.
        if name.startswith("_") or "engine" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.extension(name)

    def __repr__(self) -> str:
        state = "closed" if self.engine.closing else "open"
        return f"<raskid.Session {self.peer.identity.peer} at {self.url or self.head}: {state}>"
