"""What all messages share: the version of the protocol, roles and kinds of peers, and how a peer is reached.

`raskid.protocol.messages` gives these names, and all messages, in one place.
"""

import msgspec

from raskid.model.ids import PeerId

PROTOCOL_VERSION = 2

#: The value of a record has no more bytes than this.
VALUE_BYTES_MAX = 256 * 1024

KIND_HEAD = "head"
KIND_NODE = "node"
KIND_RUNNER = "runner"
KIND_CLIENT = "client"
KINDS = (KIND_HEAD, KIND_NODE, KIND_RUNNER, KIND_CLIENT)


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all messages."""


class PeerRef(msgspec.Struct, frozen=True, array_like=True):
    """Who a peer is and how to reach it. `addresses` are tried in order; without one, the head relays."""

    peer: PeerId
    incarnation: int
    addresses: tuple[str, ...] = ()
