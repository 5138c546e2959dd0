"""asyncio for those who may do without: importing it is a third of a session's start, and most scripts never use it."""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from types import CoroutineType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs on this thread, if one does."""
    events = sys.modules.get("asyncio.events")
    found: asyncio.AbstractEventLoop | None = None if events is None else events._get_running_loop()
    return found


def is_coroutine(value: Any) -> bool:
    """Whether a function of the user's gave a coroutine, which is still to be run."""
    return value is not None and isinstance(value, (CoroutineType, Coroutine))
