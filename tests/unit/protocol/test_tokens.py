"""Proofs of roles."""

import pytest

from raskid.protocol.messages import ROLES
from raskid.protocol.tokens import check_proofs, derive, make_proofs


@pytest.mark.parametrize("mine", ROLES)
@pytest.mark.parametrize("theirs", ROLES)
def test_the_highest_role_that_both_hold_is_granted(mine: str, theirs: str) -> None:
    token = "top"
    proofs = make_proofs(derive(token, "execute", theirs), theirs, "a to b")
    granted = check_proofs(proofs, derive(token, "execute", mine), mine, "a to b")
    assert granted == min(mine, theirs, key=ROLES.index)


def test_a_proof_is_of_no_use_for_another_connection() -> None:
    assert check_proofs(make_proofs("top", "execute", "a to b"), "top", "execute", "a to c") is None


def test_another_token_proves_nothing() -> None:
    assert check_proofs(make_proofs("other", "execute", "a to b"), "top", "execute", "a to b") is None


@pytest.mark.parametrize("proofs", ["", "=", "execute", "execute=,view=", "execute=ü", ",,,=a=b"])
def test_garbage_proves_nothing(proofs: str) -> None:
    assert check_proofs(proofs, "top", "execute", "a to b") is None
