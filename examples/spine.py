"""A simulation that publishes its field at every step, a second process that listens, and tasks on runners.

Run `python examples/spine.py`. It starts a system on this machine, runs the simulation first with nobody listening
and then with a listener, and prints what each costs. The listener is this very script, started with the system's URL.
"""

import subprocess
import sys
import time

import numpy as np
from rich.console import Console
from rich.table import Table

import raskid

SIZE = 256
STEPS_ALONE = 2000
STEPS_HEARD = 1000
TASK_EVERY = 50
BLOCKS = 5
RUNNERS = 2


# ── The simulation ───────────────────────────────────────────────────────────────────────────────────────────────────


def start_field():
    """Two hot spots on a cold plate."""
    field = np.zeros((SIZE, SIZE))
    field[60:90, 60:90] = 100.0
    field[150:200, 170:190] = 50.0
    return field


def step(u):
    """One explicit step of the heat equation; the rim stays cold."""
    new = u.copy()
    new[1:-1, 1:-1] += 0.2 * (u[2:, 1:-1] + u[:-2, 1:-1] + u[1:-1, 2:] + u[1:-1, :-2] - 4.0 * u[1:-1, 1:-1])
    return new


def simulate(rk, field, steps, each=None):
    """Run `steps` steps, publishing the field at each if there is a system; returns the last field and µs per step."""
    started = time.perf_counter()
    for number in range(steps):
        field = step(field)
        if rk is not None:
            rk.publish("heat/field", step=number, field=field)
        if each is not None:
            each(number, field)
    return field, (time.perf_counter() - started) / steps * 1e6


# ── Tasks, which run on the runners ──────────────────────────────────────────────────────────────────────────────────


def stats_of(field):
    """Mean and highest temperature."""
    return float(field.mean()), float(field.max())


def cooling(stats):
    """How much the highest temperature sank over the run, and the mean of the means; depends on many tasks."""
    means, highest = zip(*stats, strict=True)
    return f"the highest temperature sank by {highest[0] - highest[-1]:.2f}, the mean was {sum(means) / len(means):.2f}"


# ── The second process ───────────────────────────────────────────────────────────────────────────────────────────────


def listen(url):
    """Attach to the system, watch the field, publish statistics of it, and say at the end what was seen."""
    seen = 0
    with raskid.connect(url) as rk:
        with rk.subscribe("heat/field", capacity=64) as fields:
            for message in fields:
                seen += 1
                if message["step"] % 200 == 0 or message["step"] == STEPS_HEARD - 1:
                    field = message["field"]
                    rk.publish("heat/stats", step=message["step"], mean=float(field.mean()), max=float(field.max()))
                if message["step"] == STEPS_HEARD - 1:
                    break
        rk.publish("heat/stats", last=True, seen=seen)
        rk.status()  # a round trip: the last message is written before we leave


# ── The report ───────────────────────────────────────────────────────────────────────────────────────────────────────


def difference(after, before):
    """What was counted between two looks."""
    return {name: after[name] - before[name] for name in after if not isinstance(after[name], dict)}


def table(title, columns, rows):
    """A table of rich."""
    made = Table(title=title, title_justify="left", min_width=len(title))
    for name in columns:
        made.add_column(name, justify="left" if name == columns[0] else "right")
    for row in rows:
        made.add_row(*[f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row])
    return made


def counts_row(what, counts, n):
    """Counters of this process for each of `n` things."""
    return what, n, *(counts[name] / n for name in ("wakeups", "syscalls", "bytes_sent", "bytes_received"))


def run_heard(rk, field):
    """The simulation with a listener and with tasks; returns µs per step, statistics, and the tasks' outcome."""
    received = []
    with rk.subscribe("heat/stats") as stats:
        listener = subprocess.Popen([sys.executable, __file__, rk.url])
        try:
            while not rk.topics("reactions:heat/field").get("reactions:heat/field", {}).get("records"):
                time.sleep(0.01)  # until the listener has subscribed
            futures = []

            def each(number, field):
                if number % TASK_EVERY == 0:
                    futures.append(rk.submit(stats_of, field))

            field, us = simulate(rk, field, STEPS_HEARD, each)
            outcome = rk.submit(cooling, futures).result(20)
            while True:
                message = stats.get(timeout=20)
                if message.fields.get("last"):
                    break
                received.append((message["step"], message["mean"], message["max"]))
            listener.wait(10)
        finally:
            if listener.poll() is None:
                listener.kill()
                listener.wait()
    return us, received, message["seen"], outcome, len(futures) + 1


def task_costs(rk, count=1000):
    """Counters of this process for small tasks that are submitted together."""
    before = rk.counters()
    rk.gather([rk.submit(pow, 2, 10) for _ in range(count)])
    return difference(rk.counters(), before)


def run_alone(rk):
    """The simulation without and with publishing, in turn, so that whatever else the machine does hits both alike;
    returns the last field and the least µs per step of each: the rest is the machine's doing."""
    bare, silent = [], []
    for _ in range(BLOCKS):
        bare.append(simulate(None, start_field(), STEPS_ALONE // BLOCKS)[1])
        field, us = simulate(rk, start_field(), STEPS_ALONE // BLOCKS)
        silent.append(us)
    return field, min(bare), min(silent)


def main():
    """Both runs, then the tables."""
    console = Console()
    with raskid.connect(f"local://?runners={RUNNERS}") as rk:
        rk.wait_runners(RUNNERS)
        console.print(f"{rk.url}, {RUNNERS} runners; a {SIZE}×{SIZE} field is published at every step")
        simulate(None, start_field(), 200)  # warm up
        before = rk.counters()
        field, bare, silent = run_alone(rk)
        alone = difference(rk.counters(), before)
        before = rk.counters()
        heard, received, seen, outcome, tasks = run_heard(rk, field)
        with_listener = difference(rk.counters(), before)
        small = task_costs(rk)
        status = rk.status()

        rows = [("no publish at all", STEPS_ALONE, bare), ("nobody listens", STEPS_ALONE, silent)]
        rows += [(f"listener and {tasks} tasks", STEPS_HEARD, heard)]
        rows = [(run, steps, us, 1e6 / us) for run, steps, us in rows]
        console.print(table("Simulation", ("run", "steps", "µs per step", "steps/s"), rows))
        console.print(table("Statistics from the second process", ("step", "mean", "max"), received))
        console.print(f"It saw {seen} of {STEPS_HEARD} fields.")
        console.print(f"A task that combines the others: {outcome}.")
        counters = status["runner_counters"]
        rows = [(r["runner"], r["pid"], counters[r["runner"]]["tasks"]) for r in status["runners"]]
        console.print(table("Runners", ("runner", "pid", "tasks run"), rows))
        rows = [
            counts_row("unheard message", alone, STEPS_ALONE),
            counts_row("heard message*", with_listener, STEPS_HEARD),
            counts_row("small task", small, 1000),
        ]
        titles = ("each", "count", "wake-ups", "sys calls", "bytes out", "bytes in")
        console.print(table("What this process does for each message and task", titles, rows))
        console.print("* with the tasks that ran beside; a field has 524,288 bytes")
        console.print("Wake-ups and system calls are what keeps a processor from the simulation.")


if len(sys.argv) > 1:
    listen(sys.argv[1])
else:
    main()
