"""What the manager's part of a task costs: submit, place, finish and release, in microseconds of one core."""

from __future__ import annotations

import gc
import time

from raskid.core.effects import Send
from raskid.core.events import PeerJoined, Received
from raskid.core.manager import Manager
from raskid.model.ids import CodeId, PeerId, TaskId
from raskid.protocol.messages import (
    Code,
    PeerRef,
    ReleaseTasks,
    RunnerStarted,
    RunTasks,
    SubmitTasks,
    TaskOutcome,
    TasksFinished,
    TaskSpec,
)

CLIENT, NODE, CODE = PeerId("c"), PeerId("n"), CodeId("f")


def measure(count: int, batch: int, runners: int, chained: bool) -> float:
    """Microseconds per task, everything counted except making the messages that come in."""
    manager = Manager(PeerId("head"))
    for peer in (CLIENT, NODE):
        manager.handle(PeerJoined(peer, 1, "client", "execute"), 0.0)
    for number in range(runners):
        manager.handle(Received(NODE, RunnerStarted(PeerRef(PeerId(f"r{number}"), 1), 1, "h")), 0.0)
    spent = 0.0
    now = 0.0
    for first in range(1, count, batch):
        ids = [TaskId(n) for n in range(first, first + batch)]
        specs = [TaskSpec(n, CODE, b"", (TaskId(n - 1),) if chained and n > first else ()) for n in ids]
        events = [Received(CLIENT, SubmitTasks(specs, [Code(CODE, b"")]))]
        while events:
            started = time.perf_counter()
            effects = [effect for event in events for effect in manager.handle(event, now)]
            spent += time.perf_counter() - started
            now += 1e-4
            events = []
            for effect in effects:
                if isinstance(effect, Send) and isinstance(effect.message, RunTasks):
                    done = [
                        TaskOutcome(placed.spec.task, placed.attempt, True, 1, 5e-5, effect.peer, CLIENT)
                        for placed in effect.message.placements
                    ]
                    events.append(Received(NODE, TasksFinished(done)))
        started = time.perf_counter()
        manager.handle(Received(CLIENT, ReleaseTasks(ids)), now)
        spent += time.perf_counter() - started
    return spent / count * 1e6


def main() -> None:
    """Print a line per kind of load."""
    gc.freeze()
    for batch, runners, chained in (
        (1000, 4, False),
        (100, 4, False),
        (1000, 64, False),
        (1, 4, False),
        (100, 4, True),
    ):
        cost = min(measure(50_000, batch, runners, chained) for _ in range(3))
        print(
            f"batches of {batch:5}, {runners:3} runners, {'chains' if chained else 'single'}: {cost:6.2f} us per task"
        )


if __name__ == "__main__":
    main()
