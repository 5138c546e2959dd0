"""The helper: a peer that runs reactions for publishers that must not be held up by them.

The head starts it when the first publisher asks for one. It has nothing to do by itself: its session runs what it is
asked to, and this object says no more than that it is there.
"""

from __future__ import annotations

from typing import Any


class Helper:
    """The service `helper`."""

    def __init__(self, session: Any) -> None:
        self.session = session
        session.run_for_others()
