"""In-situ processing: a simulation publishes its field at every step, and reactions look at it where it is.

    python examples/insitu.py

The simulation is a task on a runner. A reaction runs in its process, next to the field: it reduces 8 MB to a few
statistics and a thumbnail. These are set in a cell, which shows the last ones to whoever comes, and kept in a basket,
which has those before. A second process, started later, reads both. With nobody who reacts the simulation runs at full
speed: publishing costs it two look-ups a step.
"""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np

import raskid

SIDE = 1000
STEPS = 100
TOPIC = "heat/field"
SUMMARY = "heat/summary"


def simulate(steps: int) -> float:
    """Heat spreads over a plate; returns the seconds it took for a step, publishing included."""
    field = np.zeros((SIDE, SIDE))
    field[SIDE // 3 : SIDE // 2, SIDE // 3 : SIDE // 2] = 100.0
    began = time.perf_counter()
    for step in range(steps):
        inner = field[1:-1, 1:-1]
        inner += 0.2 * (field[:-2, 1:-1] + field[2:, 1:-1] + field[1:-1, :-2] + field[1:-1, 2:] - 4 * inner)
        # The field itself, without a copy: reactions are through with it when this returns.
        raskid.publish(TOPIC, step=step, field=field)
    return (time.perf_counter() - began) / steps


def summarise(step: int, field: np.ndarray) -> dict:
    """What is worth sending: runs in the process that has the field."""
    return {
        "step": step,
        "mean": float(field.mean()),
        "hottest": float(field.max()),
        "thumbnail": field[:: SIDE // 32, :: SIDE // 32].astype("f4"),
    }


def look(url: str) -> None:
    """The second process: the last summary from the cell, and those before from the basket."""
    with raskid.connect(url) as rk:
        last = rk.cell("heat/last").value
        history = rk.basket("heat").messages(SUMMARY)
        print(f"  a process that came later sees step {last['step']}: mean {last['mean']:.3f}, thumbnail of "
              f"{last['thumbnail'].shape[0]} x {last['thumbnail'].shape[1]}")  # fmt: skip
        print(f"  and {len(history)} summaries from before, the first of step {history[0]['step']}")


def main() -> None:
    """Run the simulation three times: unheard, with a reaction next to it, and sent whole to another process."""
    with raskid.connect("local://?runners=1") as rk:
        rk.submit(simulate, 5).result()
        unheard = rk.submit(simulate, STEPS).result()

        rk.basket("heat").keep(SUMMARY, count=1000)
        with (
            rk.react(TOPIC).sample(every=10).map(summarise).forward(SUMMARY),
            rk.link(SUMMARY, rk.cell("heat/last")),
        ):
            at_the_source = rk.submit(simulate, STEPS).result()
            subprocess.run([sys.executable, __file__, rk.url], check=True)

        with rk.subscribe(TOPIC, lambda message: message["field"].mean(), capacity=4):
            sent_whole = rk.submit(simulate, STEPS).result()

        print(f"nobody reacts:            {unheard * 1e3:6.2f} ms a step")
        print(f"summary at the source:    {at_the_source * 1e3:6.2f} ms a step")
        print(f"whole field to a process: {sent_whole * 1e3:6.2f} ms a step")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        look(sys.argv[1])
    else:
        main()
