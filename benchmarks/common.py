"""What the benchmarks share: one fresh process per measurement, interleaved rounds, medians and ratios as a table.

A measurement is `python -m MODULE CASE PEER SCALE`, which prints one JSON object of numbers as its last line.
Its standard streams are files, so that a process it forgot cannot hold a pipe open; whatever it leaves behind is
found by a mark in the environment, counted and killed.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
MARK = "RASKID_BENCH_MARK"
START = "RASKID_BENCH_START"


@dataclass(frozen=True)
class Metric:
    """One row group of the table: the number `key` of the case `case`."""

    case: str
    key: str
    label: str
    higher_is_better: bool = False


@dataclass
class Outcome:
    """One measurement: numbers, or the reason why there are none."""

    round: int
    case: str
    peer: str
    values: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    left_processes: int = 0


def marked(mark: str) -> list[psutil.Process]:
    """The live processes that inherited `mark`, without this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def sweep(mark: str, grace: float = 2.0) -> int:
    """Kill what still carries `mark` after `grace` seconds; returns how many there were."""
    end = time.monotonic() + grace
    while (left := marked(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(left, timeout=5)
    return len(left)


def reason(text: str, status: int) -> str:
    """The last line of an error output, short enough for a table cell."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit status {status}").replace("|", "/")[:160]


def measure(module: str, case: str, peer: str, number: int, scale: float, timeout: float) -> Outcome:
    """Run one measurement in a fresh process and clean up after it."""
    mark = uuid.uuid4().hex
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, MARK: mark, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    env.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
    outcome = Outcome(number, case, peer)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        env[START] = repr(time.time())
        started = time.perf_counter()
        command = [sys.executable, "-m", module, case, peer, repr(scale)]
        child = subprocess.Popen(
            command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        status: int | None = None
        try:
            status = child.wait(timeout)
            elapsed = time.perf_counter() - started
        except subprocess.TimeoutExpired:
            outcome.error = f"no result within {timeout:g} s"
        finally:
            if status is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            outcome.left_processes = sweep(mark, 0.0 if status is None else 2.0)
        if status is None:
            return outcome
        out.seek(0)
        err.seek(0)
        answers = [line for line in out.read().splitlines() if line.startswith("{")]
        if status or not answers:
            outcome.error = reason(err.read(), status)
        else:
            outcome.values = {**json.loads(answers[-1]), "process_s": elapsed}
    return outcome


def rounds(
    module: str,
    plan: Sequence[tuple[str, str]],
    count: int,
    scale: float,
    timeout: float,
    missing: Callable[[str], str | None],
) -> list[Outcome]:
    """Every (case, peer) of `plan`, `count` times; the peers of a case stand next to each other and change places."""
    outcomes: list[Outcome] = []
    cases = list(dict.fromkeys(case for case, _ in plan))
    absent = {peer: why for peer in dict.fromkeys(peer for _, peer in plan) if (why := missing(peer))}
    for peer, why in absent.items():
        print(f"*** {peer} SKIPPED: {why} ***", file=sys.stderr, flush=True)
    for number in range(1, count + 1):
        for case in cases:
            peers = [peer for planned, peer in plan if planned == case]
            turn = number % len(peers)
            for peer in peers[turn:] + peers[:turn]:
                if peer in absent:
                    outcomes.append(Outcome(number, case, peer, error=absent[peer]))
                    continue
                outcome = measure(module, case, peer, number, scale, timeout)
                outcomes.append(outcome)
                shown = outcome.error or " ".join(f"{key}={short(value)}" for key, value in outcome.values.items())
                left = f"  LEFT {outcome.left_processes} PROCESSES" if outcome.left_processes else ""
                print(f"[{number}/{count}] {case} {peer}: {shown}{left}", file=sys.stderr, flush=True)
    return outcomes


def short(value: float) -> str:
    """Three significant figures, without an exponent for ordinary sizes."""
    if value and abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(outcomes: Sequence[Outcome], metrics: Iterable[Metric], references: Sequence[str]) -> str:
    """A markdown table; a ratio says how many times better than the reference of the same round (above 1 is better)."""
    head = ["measure", "peer", "median", "range", *(f"× {name}" for name in references)]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    blank = [""] * len(references)
    reported: set[tuple[str, str]] = set()
    for metric in metrics:
        here = [outcome for outcome in outcomes if outcome.case == metric.case]
        peers = sorted({outcome.peer for outcome in here}, key=lambda peer: (not peer.startswith("raskid"), peer))
        by_peer = {peer: [outcome for outcome in here if outcome.peer == peer] for peer in peers}
        known = {
            peer: {outcome.round: outcome.values[metric.key] for outcome in got if metric.key in outcome.values}
            for peer, got in by_peer.items()
        }
        for peer, got in by_peer.items():
            errors = [outcome.error for outcome in got if outcome.error]
            values = known[peer]
            if not values:
                if errors and (metric.case, peer) not in reported:
                    reported.add((metric.case, peer))
                    lines.append("| " + " | ".join([metric.label, peer, f"failed: {errors[0]}", "", *blank]) + " |")
                continue
            ratios = []
            for name in references:
                theirs = known.get(name, {})
                both = [(values[r], theirs[r]) for r in values if theirs.get(r) and values[r]]
                found = [mine / other if metric.higher_is_better else other / mine for mine, other in both]
                ratios.append(short(statistics.median(found)) if found else "–")
            numbers = list(values.values())
            note = f" ({len(errors)} of {len(got)} failed)" if errors else ""
            cells = [
                metric.label,
                peer,
                short(statistics.median(numbers)) + note,
                f"{short(min(numbers))} – {short(max(numbers))}",
                *ratios,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save(path: str, outcomes: Sequence[Outcome]) -> None:
    """All outcomes, with the machine they were measured on."""
    machine = {"cpus": os.cpu_count(), "python": sys.version.split()[0], "platform": sys.platform}
    Path(path).write_text(json.dumps({"machine": machine, "outcomes": [asdict(o) for o in outcomes]}, indent=1) + "\n")
