"""`raskid run-test`: runs a script on a system of its own, and compares what it prints with an expected file.

The system is started as `raskid up` does, under a name that nobody else has; it ends with this process, in whatever way
that ends. The script is a child in a process group of its own, which is killed when the script has ended or its time is
up. What it writes to standard error, and what its tasks write, goes to this process's standard error.

In an expected file ``...`` stands for any text within its line, and a line that is just ``...`` for any number of
lines, none included. Everything else is compared exactly.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import raskid
from raskid.cli.shell import Misuse
from raskid.launch import local
from raskid.launch.connect import URL_VARIABLE, check_runners, check_timeout
from raskid.launch.directories import url_of

ANY = "..."
#: A script that writes more is stopped.
OUTPUT_BYTES_MAX = 16 << 20
#: Of two texts that differ in more lines, the rest is not shown.
DIFF_LINES_MAX = 2000
#: For a line that is not where it was expected, so many lines are looked through.
LOOK_LINES_MAX = 100
#: A script may end while processes that it started still hold its output; how often to look for that.
_LOOK_S = 0.1
#: When the script and its group are gone, what they wrote is read for so long. A system that it started may hold its
#: output for a moment longer.
_DRAIN_S = 5.0
_HUNK = re.compile(r"^@@ -(\d+)(\S*) \+(\d+)(\S*) @@", re.ASCII)
_COLOURS = {"+": "32", "-": "31", "@": "36"}


class Ended(NamedTuple):
    """How a script ended. `failure` says why that is none of the ways it should; `code` is None if it was stopped."""

    output: bytes
    code: int | None
    failure: str


class Report(NamedTuple):
    """What came of a test. `reason` is empty when it passed; `diff` holds lines without their ends."""

    script: str
    expected: str
    passed: bool
    reason: str
    exit_code: int | None
    updated: bool
    diff: list[str]


# ── Comparing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def lines_of(data: bytes) -> list[str]:
    """The lines of a text, with their ends; bytes that are no text stay distinguishable."""
    *lines, last = data.decode("utf-8", "backslashreplace").split("\n")
    return [*(f"{line}\n" for line in lines), *([last] if last else [])]


def _is_any(line: str) -> bool:
    return line.rstrip("\n") == ANY


def _fits(wanted: str, line: str) -> bool:
    """Whether a line is as expected."""
    first, *others = wanted.split(ANY)
    if not others:
        return wanted == line
    *middle, last = others
    at, end = len(first), len(line) - len(last)
    if at > end or not line.startswith(first) or not line.endswith(last):
        return False
    # The first place for each part leaves most room for the others.
    for part in middle:
        found = line.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _all_fit(wanted: list[str], lines: list[str], at: int) -> bool:
    return all(_fits(each, lines[at + number]) for number, each in enumerate(wanted))


def same(wanted: list[str], lines: list[str]) -> bool:
    """Whether the lines of an output are as expected."""
    parts: list[list[str]] = [[]]
    for line in wanted:
        if _is_any(line):
            parts.append([])
        else:
            parts[-1].append(line)
    first, *others = parts
    if not others:
        return len(first) == len(lines) and _all_fit(first, lines, 0)
    *middle, last = others
    at, end = len(first), len(lines) - len(last)
    if at > end or not _all_fit(first, lines, 0) or not _all_fit(last, lines, end):
        return False
    for part in middle:
        while at + len(part) <= end and not _all_fit(part, lines, at):
            at += 1
        at += len(part)
    return at <= end


def filled(wanted: list[str], lines: list[str]) -> list[str]:
    """What was expected, with what stands in the output for ``...``, as far as that can be told."""
    result: list[str] = []
    at = 0
    for number, line in enumerate(wanted):
        if _is_any(line):
            following = next((each for each in wanted[number + 1 :] if not _is_any(each)), None)
            end: int | None = len(lines)
            if following is not None:
                end = _find(following, lines, at, len(lines))
            if end is None:
                result.append(line)
            else:
                result += lines[at:end]
                at = end
            continue
        found = _find(line, lines, at, at + LOOK_LINES_MAX)
        if found is None:
            result.append(line)
        else:
            result.append(lines[found])
            at = found + 1
    return result


def _find(wanted: str, lines: list[str], begin: int, end: int) -> int | None:
    return next((at for at in range(begin, min(end, len(lines))) if _fits(wanted, lines[at])), None)


def difference(wanted: list[str], lines: list[str], wanted_name: str, name: str) -> list[str]:
    """A unified diff, as lines without their ends; what ``...`` stands for is no difference."""
    wanted = filled(wanted, lines)
    # Comparing lines can take the square of their number, so what is the same at the beginning is left out.
    equal = 0
    while equal < min(len(wanted), len(lines)) and wanted[equal] == lines[equal]:
        equal += 1
    begin = max(0, equal - 3)
    end = begin + DIFF_LINES_MAX
    shown: list[str] = []
    for line in difflib.unified_diff(wanted[begin:end], lines[begin:end], wanted_name, name):
        hunk = _HUNK.match(line)
        if hunk is not None:
            line = f"@@ -{int(hunk[1]) + begin}{hunk[2]} +{int(hunk[3]) + begin}{hunk[4]} @@\n"
        shown.append(line.removesuffix("\n"))
        if not line.endswith("\n"):
            shown.append("\\ no newline at the end")
    if max(len(wanted), len(lines)) > end:
        shown.append(f"(lines from {end + 1:,} on are not shown)")
    return shown


def coloured(diff: list[str]) -> list[str]:
    """The lines of a diff for a terminal."""
    return [f"\x1b[{_COLOURS[line[0]]}m{line}\x1b[0m" if line[:1] in _COLOURS else line for line in diff]


# ── Running ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def own_system(runners: int, script: str) -> Iterator[str]:
    """A system for one script; gives its URL when all its runners are there."""
    # What tasks write comes when it likes, and cannot be compared.
    name = f"test-{os.urandom(4).hex()}"
    handle, _ = local.start_head(runners, name, watch_input=True, script=script, output=(2, 2))
    try:
        with raskid.connect(url_of(name)) as session:
            session.wait_runners(runners)
        yield url_of(name)
    finally:
        handle.stop()


@contextlib.contextmanager
def signals_end() -> Iterator[None]:
    """Let signals that would end this process at once end it as Ctrl-C does, so that nothing is left behind."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_script(script: str, args: list[str], url: str, timeout: float) -> Ended:
    """Run a script to its end, or until it has run for `timeout` seconds; then none of its group is left."""
    # A script that is killed has written what it printed, and writes the same bytes wherever it runs.
    env = {**os.environ, URL_VARIABLE: url, "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        [sys.executable, "-u", script, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=env,
        process_group=0,
    )  # fmt: skip
    assert process.stdout is not None
    received = bytearray()
    failure = ""
    try:
        failure = _take_in(process, received, timeout)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        until = time.monotonic() + _DRAIN_S
        while len(received) <= OUTPUT_BYTES_MAX and _read(process.stdout.fileno(), received, until - time.monotonic()):
            pass
        process.stdout.close()
    if failure:
        return Ended(bytes(received), None, failure)
    code = process.returncode
    if code < 0:
        with contextlib.suppress(ValueError):
            return Ended(bytes(received), code, f"was killed by {signal.Signals(-code).name}")
    return Ended(bytes(received), code, f"ended with exit code {code}" if code else "")


def _take_in(process: subprocess.Popen[bytes], received: bytearray, timeout: float) -> str:
    """Take in what a script writes until it ends; returns why it has to be stopped, or an empty text."""
    assert process.stdout is not None
    until = time.monotonic() + timeout
    open_ = True
    while process.poll() is None:
        left = until - time.monotonic()
        if left <= 0:
            return f"did not end within {timeout:g} s and was killed"
        if not open_:
            # It has closed its output, and may go on without.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(left)
            continue
        if select.select([process.stdout], [], [], min(left, _LOOK_S))[0]:
            open_ = _read(process.stdout.fileno(), received, 0.0)
        if len(received) > OUTPUT_BYTES_MAX:
            return f"wrote more than {OUTPUT_BYTES_MAX >> 20} MiB and was killed"
    return ""


def _read(fd: int, received: bytearray, left: float) -> bool:
    """Take in what is there, waiting `left` seconds for it; False at its end, or when time is up."""
    if not select.select([fd], [], [], max(0.0, left))[0]:
        return False
    piece = os.read(fd, 1 << 16)
    received += piece
    return bool(piece)


# ── The command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _checked(check: Any, value: Any) -> Any:
    try:
        return check(value)
    except (TypeError, ValueError) as error:
        raise Misuse(str(error)) from error


def run_test(
    script: str, args: list[str], runners: int | None, expected: str | None, timeout: float, update: bool
) -> Report:
    """Run a script on a system of its own, and compare what it prints.

    Raises:
        Misuse: There is no such script, or no expected file and it is not to be made; or a number cannot be used.
        StartFailed: The system did not come up.
    """
    count = local.default_runners() if runners is None else _checked(check_runners, runners)
    timeout = _checked(check_timeout, timeout)
    if not os.path.isfile(script):
        raise Misuse(f"there is no script {script!r}")
    file = Path(script).with_suffix(".expected") if expected is None else Path(expected)
    if file.exists() and os.path.samefile(file, script):
        raise Misuse(f"the expected file of {script!r} would be the script itself; name another with --expected")
    if not file.is_file() and not update:
        again = ["raskid", "run-test", script, *(["--expected", expected] if expected is not None else []), "--update"]
        again += ["--", *args] if args else []
        raise Misuse(
            f"there is no expected file {str(file)!r}; look at what the script prints, and make it with: "
            f"{shlex.join(again)}"
        )
    with signals_end(), own_system(count, script) as url:
        ended = run_script(script, args, url, timeout)
    return compare(script, file, ended, update)


def compare(script: str, file: Path, ended: Ended, update: bool) -> Report:
    """What came of a script that has ended; writes the expected file, if it is to and the script did not fail."""
    lines = lines_of(ended.output)
    there = file.is_file()
    wanted = lines_of(file.read_bytes()) if there else []
    alike = there and same(wanted, lines)
    if update and not ended.failure:
        # What is as expected is left alone: it may have places where any text will do.
        if not alike:
            file.write_bytes(ended.output)
        return Report(script, str(file), True, "", ended.code, not alike, [])
    if alike:
        reason = f"{ended.failure}, though its output is as expected" if ended.failure else ""
        return Report(script, str(file), not reason, reason, ended.code, False, [])
    differs = f"its output is not that of {str(file)!r}" if there else f"{str(file)!r} was not written"
    reason = f"{ended.failure}, and {differs}" if ended.failure else differs
    diff = difference(wanted, lines, str(file), f"output of {script}")
    return Report(script, str(file), False, reason, ended.code, False, diff)


def print_report(report: Report) -> None:
    """The report for people."""
    in_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in coloured(report.diff) if in_colour else report.diff:
        print(line)
    if report.updated:
        print(f"{report.script}: wrote {report.expected}")
    elif report.passed:
        print(f"{report.script}: as expected")
    sys.stdout.flush()
