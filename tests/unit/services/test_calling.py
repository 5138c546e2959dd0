"""Errors and values as pickles: whatever a task raises arrives, as itself where possible."""

from __future__ import annotations

import pickle
import threading
import types

import pytest

from raskid.model.errors import RemoteError, RemoteTraceback, ResultNotSendable
from raskid.services import calling
from raskid.services.calling import (
    dump,
    dump_error,
    dump_result,
    is_atom,
    load_arguments,
    load_error,
    load_value,
    resolve_input,
)


class TwoArguments(Exception):
    def __init__(self, text, code):
        super().__init__(f"{text}!")
        self.code = code


class Decoded(UnicodeDecodeError):
    def __init__(self, position):
        super().__init__("utf-8", b"\xff", position, position + 1, "bad byte")


class Wrong(Exception):
    """Says how to pickle it, and cannot be made again so."""

    def __init__(self, one, two):
        super().__init__(one, two)

    def __reduce__(self):
        return Wrong, (self.args[0],)


class Locked(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def travelled(error, what="f"):
    try:
        raise error
    except BaseException as raised:
        return load_error(dump_error(raised, "runner 1", what))


def test_an_error_arrives_with_its_traceback_as_cause():
    loaded = travelled(ValueError("broken"))
    assert type(loaded) is ValueError and loaded.args == ("broken",)
    assert isinstance(loaded.__cause__, RemoteTraceback)
    assert "in travelled" in str(loaded.__cause__) and "(on runner 1)" in str(loaded.__cause__)
    assert loaded.__suppress_context__


def test_an_error_class_with_an_init_of_its_own_arrives_as_itself():
    loaded = travelled(TwoArguments("text", 7))
    assert type(loaded) is TwoArguments
    assert (loaded.args, loaded.code, str(loaded)) == (("text!",), 7, "text!")
    decoded = travelled(Decoded(3))
    assert type(decoded) is Decoded and decoded.start == 3 and "bad byte" in str(decoded)
    wrong = travelled(Wrong(1, 2))
    assert type(wrong) is Wrong and wrong.args == (1, 2)


def test_errors_inside_errors_arrive_as_themselves():
    loaded = travelled(ExceptionGroup("two", [TwoArguments("a", 1), Decoded(0)]))
    assert [type(part) for part in loaded.exceptions] == [TwoArguments, Decoded]


def test_notes_arrive():
    error = TwoArguments("text", 1)
    error.add_note("seen twice")
    assert travelled(error).__notes__ == ["seen twice"]


def test_an_error_that_cannot_be_pickled_keeps_type_message_and_traceback():
    loaded = travelled(Locked("with a lock"))
    assert isinstance(loaded, RemoteError)
    assert loaded.kind == "Locked" and str(loaded) == "Locked: with a lock"
    assert "in travelled" in loaded.remote and "in travelled" in str(loaded.__cause__)


def test_an_error_that_cannot_be_unpickled_here_keeps_type_message_and_traceback(monkeypatch):
    """1. A task raises an error of a class. 2. The client cannot import that class."""
    module = types.ModuleType("only_there")
    exec("class Lost(Exception): pass", module.__dict__)
    monkeypatch.setitem(__import__("sys").modules, "only_there", module)
    data = dump_error(module.Lost("gone"), "runner 1")
    monkeypatch.delitem(__import__("sys").modules, "only_there")
    loaded = load_error(data)
    assert isinstance(loaded, RemoteError) and loaded.kind == "Lost"
    assert "Lost: gone" in str(loaded) and "No module named 'only_there'" in str(loaded)
    assert "Lost: gone" in str(loaded.__cause__)


def test_an_error_whose_text_fails_is_delivered():
    loaded = travelled(Silent())
    assert type(loaded) is Silent
    locked = Locked("x")
    locked.__class__ = type("Both", (Silent, Locked), {})
    described = travelled(locked)
    assert isinstance(described, RemoteError) and "its __str__ raised RuntimeError" in str(described)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (SystemExit(3), "SystemExit", r"f called sys.exit\(3\) on runner 1"),
        (SystemExit(), "SystemExit", r"f called sys.exit\(\) on runner 1"),
        (KeyboardInterrupt(), "KeyboardInterrupt", r"f was interrupted \(KeyboardInterrupt\) on runner 1"),
        (GeneratorExit("x"), "GeneratorExit", "f raised GeneratorExit on runner 1: x"),
    ],
)
def test_what_would_end_the_script_is_described(error, kind, text):
    loaded = travelled(error)
    assert isinstance(loaded, RemoteError) and loaded.kind == kind
    with pytest.raises(RemoteError, match=text):
        raise loaded


def test_endless_texts_are_cut():
    loaded = travelled(Locked("x" * 3_000_000))
    assert len(str(loaded)) <= calling._TEXT_CHARS_MAX
    assert len(loaded.remote) < calling._TEXT_CHARS_MAX + 200 and "characters left out" in loaded.remote


def test_frames_of_the_runner_itself_are_left_out():
    def work():
        raise ValueError("broken")

    lines = (
        "def run():\n    try:\n        work()\n    except Exception as error:\n        return dump_error(error, 'r')\n"
    )
    namespace = {"__name__": "raskid.services.runner", "work": work, "dump_error": dump_error}
    exec(compile(lines, "the_runner.py", "exec"), namespace)
    text = str(load_error(namespace["run"]()).__cause__)
    assert "in work" in text and "the_runner.py" not in text


def test_garbage_for_an_error_is_said_to_be_garbage():
    assert "cannot be read here" in str(load_error(b"garbage"))


def test_results_that_cannot_travel_name_function_and_kind(monkeypatch):
    with pytest.raises(ResultNotSendable, match="f returned a lock, which cannot be pickled"):
        dump_result(threading.Lock(), "f")
    monkeypatch.setattr(calling, "VALUE_BYTES_MAX", 1000)
    with pytest.raises(
        ResultNotSendable, match=r"f returned a bytes that takes 2,0\d\d bytes; a value takes at most 1,000"
    ):
        dump_result(bytes(2000), "f")
    assert pickle.loads(dump_result(bytes(900), "f")) == bytes(900)


def test_only_small_values_that_cannot_change_are_atoms():
    assert all(is_atom(value) for value in (None, True, 1, -(1 << 60), 1.5, 1j, "text", b"bytes"))
    assert not any(is_atom(value) for value in ([], (1,), "x" * 1000, bytes(1000), 1 << 100_000))


def test_inputs_are_found_only_while_arguments_are_loaded():
    class Input:
        def __reduce__(self):
            return resolve_input, (7,)

    data = pickle.dumps([Input(), 1])
    assert load_arguments(data, lambda task: task * 2) == [14, 1]
    with pytest.raises(pickle.UnpicklingError, match="task 7"):
        pickle.loads(data)


def test_a_value_that_comes_back_does_not_change_the_scripts_classes():
    """1. A script sends an object of a class of its own. 2. It comes back, with the class's definition.
    3. The class is the script's, and its methods see the script's globals."""
    script = {"__name__": "__main__"}
    exec("LIMIT = 1\nclass A:\n def m(self): return LIMIT", script)
    method = script["A"].m
    back = load_value(dump(script["A"]()))
    assert type(back) is script["A"] and script["A"].m is method
    script["LIMIT"] = 2
    assert back.m() == 2
    # A class that is not known here is made.
    data = dump(script["A"]())
    import cloudpickle.cloudpickle as implementation

    identifier = implementation._DYNAMIC_CLASS_TRACKER_BY_CLASS.pop(script["A"])
    del implementation._DYNAMIC_CLASS_TRACKER_BY_ID[identifier]
    other = load_value(data)
    assert type(other) is not script["A"] and other.m() == 2
