"""What the records of a topic's lists hold: reactions, and who serves requests."""

import msgspec

from raskid.model.errors import RemoteProtocolError
from raskid.protocol.messages import PeerRef

#: The operation that sends a message to a reaction's target.
DELIVER = "deliver"

BLOCK = "block"
DROP_OLDEST = "drop_oldest"
DROP_NEWEST = "drop_newest"
LATEST = "latest"
OVERFLOWS = (BLOCK, DROP_OLDEST, DROP_NEWEST, LATEST)

CAPACITY_MAX = 1_000_000


class Reaction(msgspec.Struct, frozen=True, array_like=True):
    """For each message of the topic do `op` in the publisher's process.

    The operation "deliver" sends the message to `target`, of which at most `capacity` may be waiting there; beyond
    that `overflow` says what happens.
    """

    op: str
    target: PeerRef
    capacity: int = 1024
    overflow: str = BLOCK


class Provider(msgspec.Struct, frozen=True, array_like=True):
    """A peer that answers requests."""

    target: PeerRef


_reaction = msgspec.msgpack.Decoder(Reaction)
_provider = msgspec.msgpack.Decoder(Provider)


def decode_reaction(data: bytes) -> Reaction:
    """A reaction from its record, or `RemoteProtocolError`."""
    try:
        reaction = _reaction.decode(data)
    except msgspec.DecodeError as error:
        raise RemoteProtocolError(f"a record of {len(data)} bytes is no reaction: {error}") from error
    if reaction.overflow not in OVERFLOWS or not 0 < reaction.capacity <= CAPACITY_MAX:
        raise RemoteProtocolError(
            f"a reaction asks for overflow {reaction.overflow!r} and capacity {reaction.capacity}; expected one of "
            f"{', '.join(OVERFLOWS)} and 1 to {CAPACITY_MAX}"
        )
    return reaction


def decode_provider(data: bytes) -> Provider:
    """A provider from its record, or `RemoteProtocolError`."""
    try:
        return _provider.decode(data)
    except msgspec.DecodeError as error:
        raise RemoteProtocolError(f"a record of {len(data)} bytes names no provider: {error}") from error
