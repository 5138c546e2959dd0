"""`raskid run-test` on real scripts: what it says, and that nothing is left of it."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.processes.helpers import alive, family, nothing_left, wait_for

pytestmark = pytest.mark.slow

EXAMPLES = os.path.join(os.path.dirname(__file__), "..", "..", "examples")
COMMAND = [sys.executable, "-W", "error", "-m", "raskid.cli.main", "run-test"]
ATTACHED = """
import os, sys, raskid
from beside import triple

with raskid.connect() as rk:
    print(len(rk.runners()), "runners,", rk.submit(triple, 5).result(), sys.argv[1:])
    print("pid", os.getpid())
"""
TALKS = "import sys\n\ndef triple(x):\n    print('a task says')\n    return 3 * x\n"
ENDLESS = """
import os, subprocess, sys, time, raskid

with raskid.connect("local://?runners=1"):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("begun", raskid.connect().url[:13])
    open(os.path.join(os.path.dirname(__file__), "begun"), "w").close()
    time.sleep(60)
"""


@pytest.fixture
def started():
    """Starts the command; ends what a failing test leaves."""
    processes = []

    def start(*args):
        processes.append(subprocess.Popen([*COMMAND, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def write(tmp_path):
    """Writes a file; returns its path."""

    def put(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return put


def finish(process, code):
    output, errors = process.communicate(timeout=30)
    assert process.returncode == code, f"{output}\n{errors}"
    return output, errors


@pytest.mark.parametrize("name", ["hello.py", "insitu.py"])
def test_an_example_prints_what_stands_beside_it(started, name):
    output, errors = finish(started(os.path.join(EXAMPLES, name), "--runners", "1"), 0)
    assert output.endswith(f"{name}: as expected\n") and errors == ""


def test_a_script_attaches_to_the_system(started, write, runtime):
    """1. Its expected file is not there yet. 2. It is made. 3. With dots in it, it still fits, and is left so. 4. Other
    arguments make a difference."""
    write("beside.py", TALKS)
    script = write("attached.py", ATTACHED)
    output, errors = finish(started(script), 2)
    assert output == "" and errors.endswith(f"make it with: raskid run-test {script} --update\n")
    output, errors = finish(started(script, "--runners", "2", "--update", "--", "-q", "x"), 0)
    file = script.replace(".py", ".expected")
    assert output == f"{script}: wrote {file}\n" and errors == "a task says\n"
    with open(file) as made:
        first, second = made.read().splitlines()
    assert first == "2 runners, 15 ['-q', 'x']" and second.startswith("pid ")
    write("attached.expected", f"{first}\npid ...\n")
    output, errors = finish(started(script, "--runners", "1", "--json", "--", "-q"), 1)
    report = json.loads(output)
    assert report["diff"][-3:] == ["-2 runners, 15 ['-q', 'x']", "+1 runners, 15 ['-q']", report["diff"][-1]]
    assert report["diff"][-1].startswith(" pid ") and not report["passed"] and report["exit_code"] == 0
    assert errors.splitlines()[-1] == f"raskid: {script}: its output is not that of {file!r}"
    nothing_left([], runtime)


def test_a_script_that_fails(started, write, runtime):
    """Also: what it says goes to standard error, and its output is as expected all the same."""
    script = write("fails.py", "print('so far')\nraise SystemExit('no more')\n")
    write("other.txt", "so far\n")
    expected = script.replace("fails.py", "other.txt")
    output, errors = finish(started(script, "--expected", expected, "--runners", "1"), 1)
    assert output == ""
    assert errors == f"no more\nraskid: {script}: ended with exit code 1, though its output is as expected\n"
    script = write("killed.py", "import os\nprint('so far')\nos.kill(os.getpid(), 11)\n")
    output, errors = finish(started(script, "--expected", expected, "--runners", "1"), 1)
    assert "was killed by SIGSEGV, though" in errors
    nothing_left([], runtime)


def test_a_script_that_does_not_end(started, write, runtime):
    """1. It has a system of its own, and a child. 2. Its time is up. 3. Nothing is left, and its output is shown."""
    script = write("endless.py", ENDLESS)
    write("endless.expected", "begun local://test-\nended\n")
    process = started(script, "--runners", "1", "--timeout", "2")
    wait_for(lambda: os.path.exists(script.replace("endless.py", "begun")))
    below = family(process.pid)
    output, errors = finish(process, 1)
    assert output.splitlines()[3:] == [" begun local://test-", "-ended"]
    assert errors.startswith(f"raskid: {script}: did not end within 2 s and was killed, and its output")
    nothing_left(below, runtime)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(started, write, runtime, number):
    script = write("endless.py", ENDLESS)
    process = started(script, "--runners", "1", "--update")
    wait_for(lambda: os.path.exists(script.replace("endless.py", "begun")))
    below = family(process.pid)
    process.send_signal(number)
    output, errors = finish(process, 128 + number)
    assert (output, errors) == ("", "")
    nothing_left(below, runtime)


def test_what_a_script_leaves_running_holds_nothing_up(started, write, runtime):
    text = (
        "import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)\n"
    )
    script = write("leaves.py", text)
    finish(started(script, "--runners", "1", "--update", "--timeout", "20"), 0)
    with open(script.replace(".py", ".expected")) as made:
        pid = int(made.read())
    wait_for(lambda: not psutil.pid_exists(pid) or not alive(psutil.Process(pid)))
    nothing_left([], runtime)


def test_a_script_that_writes_without_end(started, write, runtime):
    script = write("writes.py", "while True:\n    print('x' * 100_000)\n")
    write("writes.expected", "x\n")
    _, errors = finish(started(script, "--runners", "1"), 1)
    assert "wrote more than 16 MiB and was killed" in errors
