import signal
import threading

import pytest

from raskid.client.interrupts import guard, interrupts_held, unguard


@pytest.fixture(autouse=True)
def handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_for_the_end():
    passed = []
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        signal.raise_signal(signal.SIGINT)
        passed.append(1)
    assert passed == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_nothing_happens():
    with interrupts_held():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_errors_pass():
    with pytest.raises(LookupError), interrupts_held():
        raise LookupError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_interrupt_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_held():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_leave_the_handler_alone():
    seen = []

    def look() -> None:
        with interrupts_held():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_the_lock_of_a_session_puts_an_interrupt_off():
    lock = threading.RLock()
    passed = []
    guard(lock)
    try:
        with pytest.raises(KeyboardInterrupt):
            with lock:
                signal.raise_signal(signal.SIGINT)
                passed.append(1)
            # It comes again by itself.
            threading.Event().wait(5)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        unguard(lock)
    assert passed == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_users_is_left_alone():
    def handler(number, frame):
        pass

    signal.signal(signal.SIGINT, handler)
    lock = threading.RLock()
    guard(lock)
    assert signal.getsignal(signal.SIGINT) is handler
    unguard(lock)
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_handler_goes_with_the_last_session():
    one, two = threading.RLock(), threading.RLock()
    guard(one)
    guard(two)
    unguard(one)
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    unguard(two)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
