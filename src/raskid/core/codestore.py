"""The code objects that reactions name, kept at the head for every publisher that has to run one.

A code object is named by the hash of its bytes, and the store checks that: whoever knows an id knows what it stands
for, and nobody can put other code in its place. What is stored stays until the system ends. A record names a code
object without saying so to the store, and a publisher may come by that record at any time, so that nothing here tells
which of them are needed no more; when the store is full, further ones are refused.

The store does not load what it keeps: to the head, a blob is bytes.
"""

from __future__ import annotations

import hashlib
from typing import Any

from raskid.core.effects import Effect, Send
from raskid.core.events import Received
from raskid.model.ids import CodeId
from raskid.protocol.messages import AskCode, Code, CodeGiven, Message, PutCode, RecordSettled, RequestRefused

#: What one code object may take,
BLOB_BYTES_MAX = 16 << 20
#: and all together. So many of them: short ones cost more than their bytes.
STORE_BYTES_MAX = 256 << 20
CODES_MAX = 100_000
#: Names are for people; what is longer is cut.
_NAME_CHARS_MAX = 256
#: An id is so many bytes of hash, in hexadecimal digits (`raskid.client.code` makes it).
_DIGEST_BYTES = 12


class CodeStore:
    """The machine that keeps the code objects of a system."""

    __slots__ = ("_bytes", "_codes")

    handles: frozenset[type[Message]] = frozenset({PutCode, AskCode})

    def __init__(self) -> None:
        self._codes: dict[CodeId, Code] = {}
        #: The length of all blobs in `_codes`.
        self._bytes = 0

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in one event; return the answer."""
        if not isinstance(event, Received):
            return []
        message = event.message
        if isinstance(message, PutCode):
            refusal = self._put(message.code)
            if refusal is None:
                return [Send(event.peer, RecordSettled(message.request, 0))]
            return [Send(event.peer, RequestRefused(message.request, *refusal))]
        if isinstance(message, AskCode):
            return [Send(event.peer, CodeGiven(self._codes.get(message.code) or Code(message.code, b"")))]
        return []

    def next_deadline(self) -> float | None:
        """Nothing here depends on time."""
        return None

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        assert self._bytes == sum(len(code.blob) for code in self._codes.values())
        assert self._bytes <= STORE_BYTES_MAX and len(self._codes) <= CODES_MAX
        for name, code in self._codes.items():
            assert name == code.code and code.blob, f"code object {name} is stored empty, or under another id"

    def _put(self, code: Code) -> tuple[str, str] | None:
        """Store a code object; returns error class and text when it is not stored."""
        blob = code.blob
        what = f"code object {code.code[:60]!r} ({code.name[:_NAME_CHARS_MAX] or 'without a name'})"
        if len(blob) > BLOB_BYTES_MAX:
            return "Overflow", (
                f"{what} has {len(blob):,} bytes; the limit is {BLOB_BYTES_MAX:,}. A function carries what it names "
                "along: leave large data out, and let the function load it, or get it with the message"
            )
        if not blob:
            return "LocalProtocolError", f"{what} is empty; a code object has one byte at least"
        digest = hashlib.blake2b(blob, digest_size=_DIGEST_BYTES).hexdigest()
        if digest != code.code:
            return "LocalProtocolError", (
                f"{what} does not have the hash of its {len(blob):,} bytes as its id; expected {digest}. An id is the "
                f"blake2b hash of the blob, {_DIGEST_BYTES} bytes, in hexadecimal digits"
            )
        if code.code in self._codes:
            return None
        if self._bytes + len(blob) > STORE_BYTES_MAX or len(self._codes) >= CODES_MAX:
            return "Overflow", (
                f"{what} of {len(blob):,} bytes does not fit: reactions of this system have brought "
                f"{len(self._codes):,} code objects of {self._bytes:,} bytes, and the limits are {CODES_MAX:,} and "
                f"{STORE_BYTES_MAX:,}. They stay until the system ends: start it again, and make a reaction's function "
                "once instead of once for each use"
            )
        self._codes[code.code] = Code(code.code, blob, code.name[:_NAME_CHARS_MAX])
        self._bytes += len(blob)
        return None
