import os
import signal

import msgspec
import pytest

import raskid
from raskid.core.effects import Effect
from raskid.services.head import assemble
from raskid.services.recording import ReplayDiffers, read, replay

pytestmark = pytest.mark.slow


class Replayed:
    """Stands for the head's process: facts come from the recording."""

    def __init__(self, peer, next_facts):
        self.peer = peer
        self.next_facts = next_facts
        self.bells = set()
        self.ending = ""

    def add_facts(self, effect: Effect) -> Effect:
        message = getattr(effect, "message", None)
        if type(message).__name__ != "Status":
            return effect
        facts = self.next_facts()
        return msgspec.structs.replace(effect, message=msgspec.structs.replace(message, facts=facts))


def build(about, next_facts):
    identity = about["identity"]
    return assemble(identity, about["lease_s"], Replayed(identity.peer, next_facts))[0]


def increase(value):
    return value + 1


@pytest.fixture
def recording(tmp_path, monkeypatch):
    path = tmp_path / "recording"
    monkeypatch.setenv("RASKID_RECORD", str(path))
    with raskid.connect("local://?runners=2") as rk, raskid.connect(rk.url) as other:
        chain = rk.submit(increase, 0)
        for _ in range(30):
            chain = rk.submit(increase, chain)
        assert chain.result(10) == 31
        assert rk.gather(rk.map(increase, range(300)), 10) == list(range(1, 301))
        for value in range(20):
            assert rk.submit(increase, value).result(10) == value + 1
        with pytest.raises(ZeroDivisionError):
            rk.submit(divmod, 1, 0).result(10)
        os.kill(rk.submit(os.getpid).result(10), signal.SIGKILL)
        assert rk.submit(increase, chain).result(10) == 32
        other.serve("double", lambda value: 2 * value)
        assert rk.request("double", 4) == 8
        with other.subscribe("topic") as messages:
            rk.publish("topic", 1)
            assert messages.get(5).value == 1
        rk.shared("facts")["a"] = 1
    return read(path)


def test_the_recording_of_a_real_head_replays_to_the_same_effects_and_bytes(recording):
    assert replay(recording, build) > 100


def test_a_recording_is_new_and_private(tmp_path, monkeypatch):
    """It holds the token: others cannot read it, and a file or link that somebody put there is not written to."""
    path = tmp_path / "recording"
    monkeypatch.setenv("RASKID_RECORD", str(path))
    raskid.connect("local://?runners=1").close()
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(raskid.StartFailed, match="File exists"):
        raskid.connect("local://?runners=1")
    assert not (tmp_path / "elsewhere").exists()


def test_a_replay_notices_a_difference(recording):
    at = next(at for at, entry in enumerate(recording) if type(entry) is bytes and entry)
    recording[at] += b"!"
    with pytest.raises(ReplayDiffers, match=f"entry {at + 1}"):
        replay(recording, build)
