"""How a driver waits, on a clock of the test's."""

import pytest

from raskid.io import looking as module
from raskid.io.counters import Counters
from raskid.io.looking import LUCK_MAX, SHARED_MAX, Looking

READY = [(7, 1)]


class Clock:
    """Moves on by `step_s` at each look; what is waited for comes at `comes_at`."""

    def __init__(self):
        self.now = 0.0
        self.step_s = 0.000001
        self.comes_at = 0.0
        self.slept = 0

    def perf_counter(self):
        self.now += self.step_s
        return self.now

    def wait(self, timeout):
        if self.now >= self.comes_at:
            return READY
        if timeout == 0:
            return []
        self.slept += 1
        self.now = self.comes_at
        return READY


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(module, "perf_counter", found.perf_counter)
    return found


@pytest.fixture
def moves(monkeypatch):
    found = []
    monkeypatch.setattr(module, "leave_processor", lambda: found.append(1) or True)
    return found


def after(looking, clock, seconds):
    """Wait for what comes in so many seconds; whether that took a sleep."""
    slept = clock.slept
    clock.comes_at = clock.now + seconds
    assert looking.wait(None) == READY
    return clock.slept > slept


def test_it_looks_only_while_that_is_worth_it(clock):
    looking = Looking(clock, Counters())
    assert after(looking, clock, 0.00005)
    looking.look(0.0001, may_move=False)
    assert after(looking, clock, 0.00005), "nothing is known yet"
    assert not after(looking, clock, 0.00005)
    for _ in range(LUCK_MAX):
        before = clock.now
        assert after(looking, clock, 1.0)
        assert clock.now - before < 1.1
    looks = looking._counters.syscalls
    assert after(looking, clock, 1.0)
    assert looking._counters.syscalls == looks, "it looked although that had not been worth it"


def test_a_look_has_no_sleep_in_it(clock):
    looking = Looking(clock, Counters())
    looking.look(0.0001, may_move=False)
    clock.comes_at = 1.0
    assert looking.wait(0) == []
    assert clock.slept == 0


def test_it_leaves_a_processor_that_it_shares_with_whom_it_waits_for(clock, moves):
    looking = Looking(clock, Counters())
    looking.look(0.001, may_move=True)
    after(looking, clock, 0.00005)
    # From here on somebody else runs between two looks.
    clock.step_s = 0.00004
    for _ in range(SHARED_MAX - 1):
        after(looking, clock, 0.00005)
    assert not moves
    after(looking, clock, 0.00005)
    assert moves and looking._counters.moves == 1
    clock.step_s = 0.000001
    for _ in range(3 * SHARED_MAX):
        after(looking, clock, 0.00005)
    assert len(moves) == 1


def test_a_users_thread_is_never_moved(clock, moves):
    looking = Looking(clock, Counters())
    looking.look(0.001, may_move=False)
    clock.step_s = 0.00004
    for _ in range(3 * SHARED_MAX):
        after(looking, clock, 0.00005)
    assert not moves
