"""What the records of a topic's lists hold: reactions, and who serves requests."""

from __future__ import annotations

from typing import Any

import msgspec

from raskid.model.errors import RemoteProtocolError
from raskid.model.operations import DELIVER, Operation
from raskid.protocol.messages import PeerRef

BLOCK = "block"
DROP_OLDEST = "drop_oldest"
DROP_NEWEST = "drop_newest"
LATEST = "latest"
#: Nothing is sent unless the reader has asked for it.
PULL = "pull"
OVERFLOWS = (BLOCK, DROP_OLDEST, DROP_NEWEST, LATEST)
_POLICIES = (*OVERFLOWS, PULL)

CAPACITY_MAX = 1_000_000
#: A reaction has no more operations than this,
OPERATIONS_MAX = 64
#: and its code may take no longer for a message than this, in seconds.
SECONDS_MAX = 3600.0
PRIORITY_MAX = 1_000_000

ROUND_ROBIN = "round_robin"
RANDOM = "random"
LEAST_LOADED = "least_loaded"
BY_VALUE = "by_value"
BY_METRIC = "by_metric"
CHOICES = (ROUND_ROBIN, RANDOM, LEAST_LOADED, BY_VALUE, BY_METRIC)

#: The reaction runs in the publisher's process,
AT_PUBLISHER = ""
#: or in a helper on the publisher's node.
AT_HELPER = "helper"
PLACES = (AT_PUBLISHER, AT_HELPER)

#: The chain of a subscription: every message, as it is.
JUST_DELIVER = (Operation(DELIVER),)


class Reaction(msgspec.Struct, frozen=True, array_like=True):
    """For each message of the topic do `operations`, one after the other.

    Attributes:
        target: The owner. "deliver" sends to it, it is told of failures, and it goes on with what a publisher cannot
            run.
        operations: The chain.
        capacity: So many delivered messages of one publisher may be waiting at the owner; beyond that
        overflow: says what happens.
        priority: Reactions of a topic run by falling priority, and by age where it is the same.
        limit: The reaction is over, at one publisher, after so many messages; 0: never.
        group: A class. Of the reactions of one class one gets each message,
        choice: chosen in this way,
        metric: the one for which this operation gives the least, where the choice is by metric.
        ack: A message of a class goes to another member unless the one that got it says that it is done.
        numbered: Messages carry their numbers, counted for each publisher and topic.
        history: So many messages that the publisher keeps are delivered first; -1: all of them.
        place: Where the chain runs.
        seconds: Code may take so long for one message, all operations together.
        cleanup: An operation to run where the reaction ran, when it is removed.
        value: What the owner says of itself: plain data.
        suspended: Why nothing happens at present; empty while the reaction is at work.
    """

    target: PeerRef
    operations: tuple[Operation, ...] = JUST_DELIVER
    capacity: int = 1024
    overflow: str = BLOCK
    priority: int = 0
    limit: int = 0
    group: str = ""
    choice: str = ROUND_ROBIN
    metric: Operation | None = None
    ack: bool = False
    numbered: bool = False
    history: int = 0
    place: str = AT_PUBLISHER
    seconds: float = 10.0
    cleanup: Operation | None = None
    value: Any = None
    suspended: str = ""

    @property
    def delivers(self) -> bool:
        """Whether its owner gets messages from it."""
        return any(operation.op == DELIVER for operation in self.operations)


class Provider(msgspec.Struct, frozen=True, array_like=True):
    """A peer that answers requests."""

    target: PeerRef


_reaction: msgspec.msgpack.Decoder[Reaction] | None = None
_provider = msgspec.msgpack.Decoder(Provider)


def encode_reaction(reaction: Reaction) -> bytes:
    """The record of a reaction.

    Raises:
        ValueNotSendable: A bound argument is of a kind that messages do not carry.
    """
    from raskid.protocol.values import encode_value

    return encode_value(reaction)


def decode_reaction(data: bytes) -> Reaction:
    """A reaction from its record, or `RemoteProtocolError`."""
    global _reaction
    if _reaction is None:
        # Only now: runners start without what this imports, and few ever need it.
        from raskid.protocol.values import read_other

        _reaction = msgspec.msgpack.Decoder(Reaction, ext_hook=read_other)
    try:
        reaction = _reaction.decode(data)
    except (msgspec.DecodeError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise RemoteProtocolError(f"a record of {len(data)} bytes is no reaction: {error}") from error
    if reaction.overflow not in _POLICIES or not 0 < reaction.capacity <= CAPACITY_MAX:
        raise RemoteProtocolError(
            f"a reaction asks for overflow {reaction.overflow!r} and capacity {reaction.capacity}; expected one of "
            f"{', '.join(_POLICIES)} and 1 to {CAPACITY_MAX}"
        )
    if not 0 < len(reaction.operations) <= OPERATIONS_MAX:
        raise RemoteProtocolError(
            f"a reaction has {len(reaction.operations)} operations; expected 1 to {OPERATIONS_MAX}"
        )
    if reaction.choice not in CHOICES or not 0 < reaction.seconds <= SECONDS_MAX or reaction.limit < 0:
        raise RemoteProtocolError(
            f"a reaction has choice {reaction.choice!r}, seconds {reaction.seconds} and limit {reaction.limit}; "
            f"expected one of {', '.join(CHOICES)}, up to {SECONDS_MAX:g} s, and 0 or more"
        )
    if reaction.place not in PLACES or abs(reaction.priority) > PRIORITY_MAX:
        raise RemoteProtocolError(
            f"a reaction has place {reaction.place!r} and priority {reaction.priority}; expected one of "
            f"{', '.join(map(repr, PLACES))}, and {PRIORITY_MAX:,} at most"
        )
    return reaction


def decode_provider(data: bytes) -> Provider:
    """A provider from its record, or `RemoteProtocolError`."""
    try:
        return _provider.decode(data)
    except msgspec.DecodeError as error:
        raise RemoteProtocolError(f"a record of {len(data)} bytes names no provider: {error}") from error
