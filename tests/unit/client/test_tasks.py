"""Submitting: what travels, and what is refused with which words."""

from __future__ import annotations

import concurrent.futures
import pickle
import threading

import pytest

from raskid.client import futures as futures_module
from raskid.client import tasks as module
from raskid.model.errors import SessionClosed
from raskid.services.calling import dump_error, load_arguments
from tests.unit.client.ends import FakeSession


@pytest.fixture
def session():
    return FakeSession()


def test_a_task_travels_with_its_inputs(session):
    one = session.submit(pow, 2, 3)
    session.submit(pow, one, {"b": [one]}, mod=None)
    spec = session.specs[1]
    assert spec.inputs == (one.task,) and spec.count == 0
    assert load_arguments(spec.arguments, lambda task: 8) == ((8, {"b": [8]}), {"mod": None})
    assert session._known_codes[spec.code].name == "pow"


def test_outcomes_reach_their_futures(session):
    futures = [session.submit(pow, 2, number) for number in range(3)]
    session.resolve(session.specs[0], True, pickle.dumps(1))
    session.resolve(session.specs[1], False, dump_error(ValueError("x"), "runner"))
    session.end(session.specs[2], "TaskCancelled", "too late")
    assert futures[0].result(0) == 1 and isinstance(futures[1].exception(0), ValueError) and futures[2].cancelled()
    assert not session._futures


class Held:
    def __init__(self, value):
        self.value = value


REFUSED = {
    "an argument": (lambda s, lock: s.submit(pow, 1, lock), "argument 1 is a lock, which cannot be pickled"),
    "a named argument": (lambda s, lock: s.submit(pow, 1, mod=lock), "mod is a lock"),
    "a part of one": (lambda s, lock: s.submit(pow, {"a": [1, 2, lock]}), r"argument 0\['a'\]\[2\] is a lock"),
    "an attribute": (lambda s, lock: s.submit(pow, [Held(lock)]), r"argument 0\[0\].value is a lock"),
    "an item": (lambda s, lock: s.map(pow, range(400), [*range(390), {"x": lock}]), r"item 390\[1\]\['x'\] is a lock"),
    "a session": (lambda s, lock: s.submit(pow, s), r"raskid.connect\('local://test'\)"),
    "a session in a function": (
        lambda s, lock: s.submit(lambda: s.status(1)), "'s', which .* uses, is a FakeSession.*connect",
    ),
    "a map": (lambda s, lock: s.submit(sum, s.map(abs, [1])), r"argument 0 is a MapResult.*gather\(result\)"),
    "a map without items": (lambda s, lock: s.map(pow), "at least one iterable"),
    "a foreign future": (lambda s, lock: s.submit(pow, FakeSession().submit(abs, 1)), "abs #1.*another session"),
    "a foreign future in a map": (
        lambda s, lock: s.map(pow, [FakeSession().submit(abs, 1)]), "item 0.*another session",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_travel_is_refused_by_its_place(session, case):
    call, text = REFUSED[case]
    with pytest.raises(TypeError, match=text):
        call(session, threading.Lock())
    assert futures_module.collecting.futures is None


def test_coroutine_functions_are_refused(session):
    async def work(x):
        return x

    for call in (lambda: session.submit(work, 1), lambda: session.map(work, [1])):
        with pytest.raises(TypeError, match="work is a coroutine function"):
            call()


def test_arguments_have_a_size(session, monkeypatch):
    monkeypatch.setattr(module, "ARGUMENT_BYTES_MAX", 1000)
    with pytest.raises(ValueError, match=r"the arguments of abs take 2,\d\d\d bytes, more than 1,000"):
        session.submit(abs, bytes(2000))
    with pytest.raises(ValueError, match=r"items 2 to 2 of the map of abs take 2,\d\d\d bytes"):
        session.map(abs, [1, 2, bytes(2000)])
    assert len(session.specs) == 2


def test_a_map_that_cannot_go_on_cancels_what_it_has_begun(session):
    with pytest.raises(TypeError, match="item 1 is a lock"):
        session.map(abs, [1, threading.Lock(), 2])
    assert session.engine.cancelled == [[session.specs[0].task]]


def test_cancelling_many_is_one_message(session):
    futures = [session.submit(abs, number) for number in range(4)]
    session.resolve(session.specs[0], True, pickle.dumps(0))

    def answer():
        session.end(session.specs[1], "TaskCancelled")
        futures[2].cancelled_too_late()
        futures[3].fail_with(concurrent.futures.CancelledError())

    session.engine.on_wait = answer
    assert session.cancel(futures) == 2
    assert session.engine.cancelled == [[future.task for future in futures[1:]]]
    assert session.cancel(futures[:1]) == 0
    assert len(session.engine.cancelled) == 1


def test_a_session_that_is_over_takes_no_tasks(session):
    session.engine.failure = SessionClosed("over")
    for call in (lambda: session.submit(abs, 1), lambda: session.map(abs, [1])):
        with pytest.raises(SessionClosed):
            call()


def test_gather_takes_a_number_of_seconds(session):
    with pytest.raises(TypeError, match="timeout is a number"):
        session.gather([], "1")


def test_code_objects_are_kept_up_to_a_bound(session, monkeypatch):
    """1. A script submits one lambda after the other. 2. Those that no task needs any more are forgotten."""
    monkeypatch.setattr(module, "CODES_MAX", 10)
    forgotten = []
    session._submitter.forget_codes = lambda: (
        forgotten.append(len(session._known_codes)) or session._known_codes.clear()
    )
    for number in range(25):
        session.submit(eval(f"lambda: {number}"))
        assert session.specs[-1].code in session._known_codes
    assert forgotten == [10, 10]
    assert session._codes_bytes == sum(len(code.blob) for code in session._known_codes.values())
    monkeypatch.setattr(module, "CODES_BYTES_MAX", 100)
    session.map(eval("lambda x: x"), [1, 2])
    assert len(session._known_codes) == 1


def test_a_single_future_where_a_list_is_meant(rk):
    future = rk.request_nowait("nobody", timeout=0.01)
    for call in (rk.gather, rk.cancel):
        with pytest.raises(TypeError, match=r"takes a list of futures, got one; write \w+\(\[future\]\)"):
            call(future)


def test_what_cannot_be_iterated_over_is_named(rk):
    with pytest.raises(TypeError, match=r"number 2 is 4 of type int.*functools\.partial"):
        rk.map(pow, [1, 2], 4)
