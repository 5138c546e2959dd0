"""The store of code objects: nobody replaces another's, and nothing grows without bound."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from raskid.client.code import CodeBook
from raskid.core import codestore as codestore_module
from raskid.core.codestore import CodeStore
from raskid.core.effects import Effect, Send
from raskid.core.events import PeerGone, Received, Tick
from raskid.model import errors
from raskid.model.ids import CodeId, PeerId, RequestId
from raskid.model.roles import ROLE_EXECUTE, ROLE_MESSAGE
from raskid.protocol.codec import decode_batch, encode_batch
from raskid.protocol.messages import (
    AskCode,
    Code,
    CodeGiven,
    PutCode,
    RecordSettled,
    RequestRefused,
    needed_role,
)

A, B = PeerId("a"), PeerId("b")


class Rig:
    """A store whose invariants are checked after every event; what goes in and comes out has crossed the wire."""

    def __init__(self) -> None:
        self.store = CodeStore()

    def receive(self, peer: PeerId, message: Any) -> list[Effect]:
        effects = self.store.handle(Received(peer, _wired(message)), 1.0)
        self.store.check_invariants()
        return [Send(effect.peer, _wired(effect.message)) for effect in effects if isinstance(effect, Send)]

    def put(self, code: Code, request: int = 1) -> RecordSettled | RequestRefused:
        (effect,) = self.receive(A, PutCode(RequestId(request), code))
        assert isinstance(effect, Send) and effect.peer == A
        answer = effect.message
        assert isinstance(answer, RecordSettled | RequestRefused) and answer.request == request
        return answer

    def ask(self, code: str) -> Code:
        (effect,) = self.receive(B, AskCode(CodeId(code)))
        assert isinstance(effect, Send) and effect.peer == B and isinstance(effect.message, CodeGiven)
        return effect.message.code


def _wired(message: Any) -> Any:
    (decoded,) = decode_batch(encode_batch([message]))
    return decoded


def code_of(blob: bytes, name: str = "f") -> Code:
    return Code(CodeId(hashlib.blake2b(blob, digest_size=12).hexdigest()), blob, name)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_what_was_put_is_given_to_whoever_asks(rig: Rig) -> None:
    code = code_of(b"pickle")
    assert rig.put(code, 7) == RecordSettled(RequestId(7), 0)
    assert rig.ask(code.code) == code


def test_a_clients_code_objects_are_named_as_the_store_expects(rig: Rig) -> None:
    code = CodeBook().code_of(lambda value: value + 1)
    assert isinstance(rig.put(code), RecordSettled)
    assert rig.ask(code.code) == code


@pytest.mark.parametrize("code", ["", "0" * 24, "x" * 10_000])
def test_what_is_not_there_comes_back_empty(rig: Rig, code: str) -> None:
    assert rig.ask(code) == Code(CodeId(code), b"")


def test_nobody_replaces_another_ones_code(rig: Rig) -> None:
    """1. a puts. 2. Other bytes come under that id. 3. The store still gives what a has put."""
    code = code_of(b"right")
    rig.put(code)
    answer = rig.put(Code(code.code, b"wrong", "f"))
    assert isinstance(answer, RequestRefused) and answer.code == "LocalProtocolError"
    assert code_of(b"wrong").code in answer.text and code.code in answer.text
    assert rig.ask(code.code) == code


@pytest.mark.parametrize("alter", [str.upper, lambda name: name[:-1], lambda name: "", lambda name: " " + name])
def test_an_id_is_the_hash_to_the_letter(rig: Rig, alter: Any) -> None:
    code = code_of(b"\x01")
    name = alter(code.code)
    assert isinstance(rig.put(Code(CodeId(name), code.blob)), RequestRefused)
    assert rig.ask(name).blob == b""


def test_an_empty_blob_is_refused_although_it_has_a_hash(rig: Rig) -> None:
    assert isinstance(rig.put(code_of(b"")), RequestRefused)


def test_the_same_code_is_stored_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Room for one. 2. It is put again, under another name, by another peer: settled. 3. The first name stays."""
    monkeypatch.setattr(codestore_module, "STORE_BYTES_MAX", 6)
    monkeypatch.setattr(codestore_module, "CODES_MAX", 1)
    rig.put(code_of(b"pickle", "f"))
    assert isinstance(rig.put(code_of(b"pickle", "g")), RecordSettled)
    assert rig.ask(code_of(b"pickle").code).name == "f"


def test_a_blob_of_the_limit_is_stored_and_one_byte_more_is_not(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codestore_module, "BLOB_BYTES_MAX", 100)
    largest, larger = code_of(bytes(100)), code_of(bytes(101))
    assert isinstance(rig.put(largest), RecordSettled)
    answer = rig.put(larger)
    assert isinstance(answer, RequestRefused) and answer.code == "Overflow" and "101" in answer.text
    assert rig.ask(larger.code).blob == b""


def test_a_full_store_refuses_and_keeps_what_it_has(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codestore_module, "STORE_BYTES_MAX", 10)
    kept = code_of(b"123456")
    rig.put(kept)
    answer = rig.put(code_of(b"12345"))
    assert isinstance(answer, RequestRefused) and answer.code == "Overflow"
    assert isinstance(rig.put(code_of(b"1234")), RecordSettled)
    assert rig.ask(kept.code) == kept


def test_many_short_ones_have_a_bound_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codestore_module, "CODES_MAX", 2)
    answers = [rig.put(code_of(bytes([number]))) for number in range(3)]
    assert [type(answer) for answer in answers] == [RecordSettled, RecordSettled, RequestRefused]


def test_a_name_without_end_is_cut(rig: Rig) -> None:
    code = code_of(b"pickle", "n" * 100_000)
    rig.put(code)
    assert 0 < len(rig.ask(code.code).name) < 1000


@pytest.mark.parametrize("blob", [b"", bytes(101), b"other"])
def test_a_refusal_stays_short_whatever_was_sent(rig: Rig, monkeypatch: pytest.MonkeyPatch, blob: bytes) -> None:
    monkeypatch.setattr(codestore_module, "BLOB_BYTES_MAX", 100)
    answer = rig.put(Code(CodeId("c" * 100_000), blob, "n" * 100_000))
    assert isinstance(answer, RequestRefused) and len(answer.text) < 1000
    assert issubclass(getattr(errors, answer.code), errors.RaskidError)


def test_code_stays_when_the_peer_that_brought_it_is_gone(rig: Rig) -> None:
    code = code_of(b"pickle")
    rig.put(code)
    assert rig.store.handle(PeerGone(A, 1), 2.0) == [] and rig.store.handle(Tick(), 3.0) == []
    assert rig.ask(code.code) == code and rig.store.next_deadline() is None


def test_bringing_code_takes_the_execute_role_and_asking_does_not() -> None:
    assert needed_role(PutCode) == ROLE_EXECUTE and needed_role(AskCode) == ROLE_MESSAGE
    # Whoever asked believes only the head, which has proved the execute role.
    assert needed_role(CodeGiven) == ROLE_EXECUTE
