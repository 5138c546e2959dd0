"""The handshake, as far as it needs no memory: what a `Hello` and a `Welcome` say, and what is wrong with one.

Both ends prove their roles (`raskid.protocol.tokens`). The proofs of a `Hello` cover whom it is for and at which
address, so that whoever gets it somewhere else cannot pass it on; those of a `Welcome` cover the `Hello` that it
answers. Which peers, incarnations and origins are known already is for `raskid.core.peer` to check.
"""

from __future__ import annotations

from raskid.core.identity import Identity
from raskid.protocol.messages import KIND_HEAD, KINDS, PROTOCOL_VERSION, ROLES, Hello, Welcome
from raskid.protocol.tokens import check_proofs, hello_text, make_proofs, welcome_text

#: The scheme of addresses that lead through the head.
RELAY = "relay:"
#: How long a handshake may take, in seconds.
HANDSHAKE_S = 10.0
PEER_CHARACTERS_MAX = 128

#: (code, text) of a `Refused`.
Refusal = tuple[str, str]


def make_hello(me: Identity, target: str, address: str, received: int) -> tuple[Hello, str]:
    """A `Hello` to `target` at `address`, and the text that its proofs cover."""
    text = hello_text(me.peer, me.incarnation, me.origin, target, address)
    hello = Hello(
        PROTOCOL_VERSION, me.peer, me.incarnation, me.origin, me.kind, me.role, make_proofs(me.token, me.role, text),
        received, me.addresses, me.host, me.pid, me.python, me.raskid, target, address,
    )  # fmt: skip
    return hello, text


def make_welcome(me: Identity, hello: Hello, granted: str, received: int, lease_s: float) -> Welcome:
    """The answer to a `Hello` that is in order."""
    text = welcome_text(_text_of(hello), me.peer, me.incarnation, me.origin)
    return Welcome(
        me.peer, me.incarnation, me.origin, me.kind, granted, received, me.addresses, lease_s, me.host, me.pid,
        me.python, me.raskid, make_proofs(me.token, me.role, text),
    )  # fmt: skip


def _text_of(hello: Hello) -> str:
    return hello_text(hello.peer, hello.incarnation, hello.origin, hello.target, hello.address)


def role_of_welcome(me: Identity, text: str, welcome: Welcome) -> str | None:
    """The role that whoever answered the `Hello` with this text has proved, no higher than ours; None: none."""
    text = welcome_text(text, welcome.peer, welcome.incarnation, welcome.origin)
    return check_proofs(welcome.token, me.token, me.role, text)


def check_hello(me: Identity, head: str, hello: Hello) -> Refusal | str:
    """Why a `Hello` is refused, or the role granted. `head` is the id of the head, empty where it is not known."""
    if hello.protocol != PROTOCOL_VERSION:
        return "bad-version", (
            f"{hello.peer} speaks protocol {hello.protocol} (raskid {hello.raskid or '?'}, Python "
            f"{hello.python or '?'}); {me.peer} speaks {PROTOCOL_VERSION} (raskid {me.raskid or '?'}). "
            "Install the same raskid at both ends"
        )
    if hello.role not in ROLES or hello.kind not in KINDS:
        return "bad-role", (
            f"{hello.peer} asks for role {hello.role!r} as {hello.kind!r}; roles are {', '.join(ROLES)}, "
            f"kinds are {', '.join(KINDS)}"
        )
    if hello.target not in ("", me.peer) or (hello.target == "" and me.kind != KIND_HEAD):
        return "bad-peer", f"{hello.peer} wants to reach {hello.target or 'the head'}; this is {me.peer}"
    if not hello.peer or len(hello.peer) > PEER_CHARACTERS_MAX or hello.peer == me.peer:
        return "bad-peer", f"{hello.peer[:PEER_CHARACTERS_MAX]!r} cannot be the id of a peer of {me.peer}"
    if hello.incarnation < 1:
        return "bad-peer", f"{hello.peer} says that it is incarnation {hello.incarnation}; the first one is 1"
    role = check_proofs(hello.token, me.token, me.role, _text_of(hello))
    if role is None:
        return "bad-token", f"the token of {hello.peer} is not one of this system's"
    if hello.kind == KIND_HEAD and head and hello.peer != head:
        return "bad-peer", f"{hello.peer} says that it is the head; {me.peer} knows {head} as that"
    if _was_passed_on(me, hello):
        return "bad-peer", (
            f"{hello.peer} meant to reach {me.peer} at {hello.address}, where it does not listen; it listens at "
            f"{', '.join(me.addresses) or 'no address'}"
        )
    return ROLES[min(ROLES.index(role), ROLES.index(hello.role))]


def _was_passed_on(me: Identity, hello: Hello) -> bool:
    """Whether a `Hello` was meant for another address than ours: somebody there passed it on.

    The head is reached in ways of which it does not know (a forwarded port, the pipes of ssh), but its address comes
    from the session's own file and never from a peer.
    """
    address = hello.address
    return bool(address) and not address.startswith(RELAY) and me.kind != KIND_HEAD and address not in me.addresses
