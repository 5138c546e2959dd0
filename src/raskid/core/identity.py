"""Who a process is among its peers."""

from __future__ import annotations

import msgspec

from raskid.model.ids import PeerId
from raskid.protocol.messages import ROLE_EXECUTE


class Identity(msgspec.Struct, frozen=True):
    """Who a process is, and what it can prove."""

    peer: PeerId
    incarnation: int
    origin: int
    kind: str
    token: str
    role: str = ROLE_EXECUTE
    addresses: tuple[str, ...] = ()
    host: str = ""
    pid: int = 0
    python: str = ""
    raskid: str = ""
