"""Channels and cells between processes."""

import os
import threading
import warnings

import pytest

import raskid
from tests.processes.helpers import run_script, script, wait_for

pytestmark = pytest.mark.slow


def program(rk, body):
    """A script with a session `rk` in the system."""
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return f"import raskid\nwith raskid.connect({rk.url!r}) as rk:\n{lines}"


def run(rk, directory, body):
    """Run such a script to its end; what it printed."""
    code, output, errors = run_script(program(rk, body), str(directory))
    assert (code, errors) == (0, ""), errors
    return output


def test_a_newcomer_sees_the_last_value_after_its_writer_has_left(rk, tmp_path):
    run(rk, tmp_path, "cell = rk.cell('left', type=int, min=0)\nfor n in range(10):\n    cell.set(n)")
    assert rk.cell("left").value == 9
    wrong = """
try:
    rk.cell('left').set(-1)
except ValueError as error:
    print(error)
print(rk.cell('left').value)
"""
    assert run(rk, tmp_path, wrong).splitlines() == [
        "cell 'left' takes no such value: the value is declared to be at least 0, got -1 of type int",
        "9",
    ]


def test_a_value_goes_with_its_writer_where_it_says_so(rk, tmp_path):
    cell = rk.cell("goes")
    values = iter(cell)
    assert run(rk, tmp_path, "rk.cell('goes', permanent=False).set(1)\nprint(rk.cell('goes').value)") == "1\n"
    assert values.get(5) == 1
    wait_for(lambda: cell.get("nothing") == "nothing", what="the end of the value")


def test_two_writers_in_two_processes_and_one_order(rk, tmp_path):
    """1. Two processes set one cell as fast as they can. 2. A third, and this one, see the same changes in one order,
    each writer's own in its order."""
    count = 200
    cell = rk.cell("order", capacity=3 * count)
    values = iter(cell)
    writer = """
cell, go = rk.cell('order'), rk.cell('go')
print('ready', flush=True)
go.wait(timeout=20)
futures = [cell.set_nowait([{name!r}, n]) for n in range({count})]
for future in futures:
    future.result(20)
"""
    reader = """
cell = rk.cell('order', capacity={total})
values = iter(cell)
print('ready', flush=True)
print([values.get(20) for _ in range({total})])
"""
    bodies = [writer.format(name=name, count=count) for name in "ab"] + [reader.format(total=2 * count)]
    processes = [script(program(rk, body), str(tmp_path), name=f"{number}.py") for number, body in enumerate(bodies)]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    rk.cell("go").set(True)
    seen = [values.get(20) for _ in range(2 * count)]
    outputs = [process.communicate(timeout=30) for process in processes]
    assert [errors for _, errors in outputs] == ["", "", ""]
    assert outputs[2][0] == f"{seen}\n"
    for name in "ab":
        assert [number for writer, number in seen if writer == name] == list(range(count))


def test_a_channel_between_processes(rk, tmp_path):
    """What a task publishes with one value is a value of the channel, too."""
    with rk.channel("between", type=float).listen() as channel:
        run(rk, tmp_path, "channel = rk.channel('between')\nfor n in range(100):\n    channel.put(n / 4)")
        assert [channel.get(5) for _ in range(100)] == [n / 4 for n in range(100)]
        rk.submit(publish, "between", 0.5).result(20)
        assert channel.get(5) == 0.5


def test_a_forked_process_has_what_was_known_and_no_more(rk):
    """A thread waits for a change when the process is forked: the child neither waits nor writes."""
    cell, seen = rk.cell("forked"), []
    cell.set(1)
    reader = threading.Thread(target=lambda: seen.append(cell.wait(lambda value: value == 2, 20)))
    reader.start()
    wait_for(lambda: cell._change is not None)
    with warnings.catch_warnings():
        # Forking beside threads is what is tried here.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            cell.set(3)
        except raskid.SessionClosed:
            code = 10 + cell.value if list(cell) == [1] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 11
    cell.set(2)
    reader.join(10)
    assert seen == [2]


def publish(topic, value):
    raskid.publish(topic, value)
