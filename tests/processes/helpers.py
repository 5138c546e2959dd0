"""What the tests with real processes have in common."""

import os
import subprocess
import sys
import time

import psutil

POLL_S = 0.02


def wait_for(condition, limit=5.0, what=""):
    """Look now and then until `condition()` holds; its value is returned."""
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what or condition} did not come about within {limit:g} s"
        time.sleep(POLL_S)
    return value


def head_pid(rk):
    """The process id of the head."""
    return rk.status()["head"]["pid"]


def family(pid):
    """All processes below `pid`, at any depth."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(process):
    """Whether a process runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def nothing_left(processes, directory, limit=5.0):
    """Assert that within `limit` seconds none of `processes` runs and `directory` is empty."""
    deadline = time.monotonic() + limit
    while True:
        running = [process for process in processes if alive(process)]
        files = os.listdir(directory) if os.path.isdir(directory) else []
        if not running and not files:
            return
        if time.monotonic() > deadline:
            told = [(p.pid, p.cmdline()) for p in running if alive(p)]
            for process in running:
                if alive(process):
                    process.kill()
            raise AssertionError(f"{limit:g} s later these were left: processes {told}, files {files}")
        time.sleep(POLL_S)


def script(text, directory, name="script.py", **options):
    """Start a script of its own in `directory`."""
    path = os.path.join(directory, name)
    with open(path, "w") as file:
        file.write(text)
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    return subprocess.Popen([sys.executable, path], text=True, **options)


def run_script(text, directory, limit=20.0, **options):
    """Run a script to its end; returns (code, output, errors)."""
    process = script(text, directory, **options)
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        raise AssertionError(f"the script did not end; it wrote:\n{output}\n{errors}") from None
    return process.returncode, output, errors
