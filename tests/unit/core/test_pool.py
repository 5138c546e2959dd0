"""The manager's table of runners, where the manager's own tests do not reach."""

from __future__ import annotations

import pytest

from raskid.core import pool as module
from raskid.core.effects import Send
from raskid.core.pool import Pool
from raskid.model.ids import CodeId, PeerId, TaskId
from raskid.protocol.messages import Code, PeerRef, Placement, RunnerStarted, RunTasks, TaskSpec

RUNNER = PeerRef(PeerId("n/0"), 1, ("here",))
CLIENT = PeerRef(PeerId("c"), 1, ("there",))
CODE = Code(CodeId("f"), b"function")


def test_placements_that_are_long_together_travel_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Five tasks with arguments of 40 bytes, where a message is to carry 100. 2. Two and two and one go, in order;
    the function and the client's address go with the first."""
    monkeypatch.setattr(module, "RUN_BYTES", 100)
    pool = Pool()
    pool.add(PeerId("n"), RunnerStarted(RUNNER, 1, "host"))
    pool.effects.clear()
    runner = pool.runners[RUNNER.peer]
    for number in range(5):
        spec = TaskSpec(TaskId(number), CODE.code, b"x" * 40)
        runner.placements.append(Placement(spec, 1, CLIENT.peer))
    runner.new_codes.append(CODE)
    runner.new_peers.append(CLIENT)
    pool.touched[runner] = None
    pool.flush_runners()
    sent = [effect.message for effect in pool.effects if isinstance(effect, Send)]
    assert all(isinstance(message, RunTasks) for message in sent)
    assert [[each.spec.task for each in message.placements] for message in sent] == [[0, 1], [2, 3], [4]]
    assert [(message.codes, message.peers) for message in sent] == [([CODE], [CLIENT]), ([], []), ([], [])]
