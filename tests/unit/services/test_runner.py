"""How a runner executes tasks: each item once, each error in its place."""

from __future__ import annotations

import pickle
import threading

import pytest

from raskid.core.runner import Runner, Value
from raskid.model.errors import RemoteError, ResultNotSendable, StaleCode
from raskid.model.ids import CodeId, PeerId, TaskId
from raskid.protocol.messages import PeerRef, Placement, TaskSpec
from raskid.services import calling
from raskid.services import runner as module
from raskid.services.calling import load_error, resolve_input
from raskid.services.codes import CodeLoader, pack_code
from raskid.services.runner import RunnerProcess

calls = []


def noted(item):
    calls.append(item)
    if isinstance(item, BaseException):
        raise item
    return item


def give_lock(item):
    calls.append(item)
    return threading.Lock() if item == "lock" else item


def leave():
    raise SystemExit(3)


class Runs:
    """A runner without a process: executes tasks."""

    def __init__(self):
        self.process = RunnerProcess.__new__(RunnerProcess)
        self.process.machine = Runner(PeerRef(PeerId("node/0"), 1))
        self.process._loader = CodeLoader()
        self.process._atoms = {}
        self.process.where = "node/0"
        self.next = 1

    def execute(self, function, arguments, count=0, inputs=()):
        code = CodeId(f"code{self.next}")
        self.process.machine.codes[code] = pack_code((), (), pickle.dumps(function))
        spec = TaskSpec(TaskId(self.next), code, pickle.dumps(arguments), inputs, count)
        self.next += 1
        ok, data = self.process._execute(Placement(spec, 1, PeerId("client")))
        if ok:
            # As the machine does when it hears of the end.
            self.process.machine.values[spec.task] = Value(ok, data)
        return ok, data

    def map(self, function, items, single=True):
        ok, data = self.execute(function, (single, items), len(items))
        assert ok
        values, errors = pickle.loads(data)
        return values, {index: load_error(error) for index, error in errors.items()}


@pytest.fixture
def runs():
    calls.clear()
    return Runs()


def test_an_item_that_fails_is_not_run_again_nor_are_the_others(runs):
    failing = ValueError("second")
    values, errors = runs.map(noted, [1, failing, 3, StopIteration("fourth"), 5])
    assert calls[0] == 1 and len(calls) == 5
    assert values == [1, None, 3, None, 5]
    assert {index: type(error) for index, error in errors.items()} == {1: ValueError, 3: StopIteration}
    assert "During handling" not in str(errors[1].__cause__)
    assert str(errors[1].__cause__).count("ValueError: second") == 1


def test_items_of_several_iterables(runs):
    values, errors = runs.map(pow, [(2, 3), (0, -1), (3, 2)], single=False)
    assert values == [8, None, 9] and type(errors[1]) is ZeroDivisionError


def test_a_value_that_cannot_be_pickled_takes_no_other_along_and_runs_nothing_again(runs):
    values, errors = runs.map(give_lock, ["a", "lock", "b", "lock"])
    assert calls == ["a", "lock", "b", "lock"]
    assert values == ["a", None, "b", None]
    assert sorted(errors) == [1, 3]
    assert all(type(error) is ResultNotSendable for error in errors.values())


def test_items_that_want_to_end_the_runner_do_not(runs):
    values, errors = runs.map(noted, [SystemExit(3), 2, KeyboardInterrupt()])
    assert values == [None, 2, None]
    assert errors[0].kind == "SystemExit" and "noted called sys.exit(3) on node/0" in str(errors[0])
    assert errors[2].kind == "KeyboardInterrupt"


def test_values_that_are_too_large_together_are_refused(runs, monkeypatch):
    monkeypatch.setattr(calling, "VALUE_BYTES_MAX", 1000)
    ok, data = runs.execute(noted, (True, [bytes(600), bytes(600)]), 2)
    error = load_error(data)
    assert not ok and "the values of 2 items of noted do not go together" in str(error)


def test_a_task_that_calls_exit_fails(runs):
    ok, data = runs.execute(leave, ((), {}))
    error = load_error(data)
    assert not ok and isinstance(error, RemoteError)
    assert str(error).startswith("leave called sys.exit(3) on node/0")


def test_an_error_while_the_function_is_loaded_says_so(runs):
    runs.process.machine.codes[CodeId("broken")] = pack_code((), (), b"\x80\x04cno_such_module\nf\n.")
    spec = TaskSpec(TaskId(1), CodeId("broken"), pickle.dumps(((), {})))
    ok, data = runs.process._execute(Placement(spec, 1, PeerId("client")))
    error = load_error(data)
    assert not ok and type(error) is ModuleNotFoundError
    assert error.__notes__ == ["(while loading the function on node/0)"]
    assert issubclass(StaleCode, ImportError)


class Input:
    def __init__(self, task):
        self.task = task

    def __reduce__(self):
        return resolve_input, (self.task,)


def test_small_values_are_kept_as_objects_while_the_machine_has_them(runs, monkeypatch):
    monkeypatch.setattr(module, "ATOMS_MAX", 4)
    runs.execute(noted, ((7,), {}))
    assert runs.process._atoms == {1: 7}
    assert pickle.loads(runs.execute(noted, ((Input(1),), {}))[1]) == 7
    # A later attempt gave something else, or the value is gone and comes from another runner.
    runs.process.machine.values[TaskId(1)] = Value(True, pickle.dumps([8]))
    runs.process._keep_atom(TaskId(1), [8])
    assert pickle.loads(runs.execute(noted, ((Input(1),), {}))[1]) == [8]
    runs.execute(noted, ((bytes(1000),), {}))
    for value in range(20):
        runs.execute(noted, ((value,), {}))
        assert len(runs.process._atoms) <= 4
    runs.process.machine.values.clear()
    runs.execute(noted, ((1,), {}))
    runs.execute(noted, ((1,), {}))
    assert all(type(value) is not bytes for value in runs.process._atoms.values())
