"""Tokens and roles: how a peer proves its role without showing its token.

A system has one secret token per role. The token of a lower role is derived from that of the next higher one, so
whoever may execute may also send messages and view. A `Hello` carries a proof for each role that its sender holds:
an HMAC over who connects to whom. The acceptor grants the highest role whose proof it can check itself. So a peer
that only holds the message token cannot collect the execute token from those who connect to it, and a proof is of no
use against any other peer, nor at any other address.

The acceptor proves its own roles in turn: its `Welcome` carries proofs over that very `Hello` and over who welcomes.
Nobody has a role because it says so.
"""

import hashlib
import hmac

from raskid.protocol.messages import ROLES


def derive(token: str, role: str, wanted: str) -> str:
    """The token of role `wanted`, from the token of `role`, which must not be lower."""
    for _ in range(ROLES.index(role) - ROLES.index(wanted)):
        token = hmac.new(token.encode(), b"raskid lower role", hashlib.sha256).hexdigest()
    return token


def make_proofs(token: str, role: str, text: str) -> str:
    """Proofs for `role` and every lower one, over `text` (who connects to whom)."""
    proofs = []
    for lower in ROLES[: ROLES.index(role) + 1]:
        secret = derive(token, role, lower)
        proofs.append(f"{lower}={hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()}")
    return ",".join(proofs)


def hello_text(peer: str, incarnation: int, origin: int, target: str, address: str = "") -> str:
    """What the proofs of a `Hello` cover: who connects, to whom, and where."""
    return _digest(peer, incarnation, origin, target, address)


def welcome_text(hello: str, peer: str, incarnation: int, origin: int) -> str:
    """What the proofs of a `Welcome` cover: the text of the `Hello` that it answers, and who answers."""
    return _digest("welcome", hello, peer, incarnation, origin)


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def check_proofs(proofs: str, token: str, role: str, text: str) -> str | None:
    """The highest role, no higher than `role`, that `proofs` prove over `text`; None when they prove none."""
    given = dict(part.split("=", 1) for part in proofs.split(",") if "=" in part)
    for candidate in reversed(ROLES[: ROLES.index(role) + 1]):
        secret = derive(token, role, candidate)
        expected = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
        if hmac.compare_digest(given.get(candidate, "").encode(), expected.encode()):
            return candidate
    return None
