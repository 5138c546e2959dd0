"""Joining, asking, and leaving, with a head in this process. Forks are in `tests/processes/test_sessions.py`."""

import gc
import threading
import time
import warnings
import weakref

import pytest

from raskid.client import connection as connection_module
from raskid.core.events import PeerGone, PeerJoined
from raskid.io.processes import ProcessWatch
from raskid.model.errors import ConnectionRefused, NotAllowed, RaskidError, SessionClosed, StartFailed
from raskid.model.ids import PeerId
from raskid.protocol.messages import ListTopics
from tests.unit.client.heads import Head

SOON_S = 10.0


@pytest.fixture
def head():
    with Head() as head:
        yield head


def until(condition):
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_wrong_token_is_refused(head):
    with pytest.raises(ConnectionRefused, match="bad-token") as caught:
        connection_module.Connection(head.address, "wrong", directory=head.directory, timeout=SOON_S)
    assert caught.value.code == "bad-token"


def test_a_head_that_is_not_there(head):
    """The time limit holds, whatever was made on the way is given back, and who started the head is told."""
    ended = []
    with pytest.raises(StartFailed, match=r"did not answer within 0\.05 s"):
        connection_module.Connection(
            f"unix:{head.directory}/nobody", "t", timeout=0.05, on_close=lambda: ended.append(True)
        )
    assert ended == [True]


def test_the_role_is_the_one_that_the_head_granted(head):
    with head.session(role="message") as session:
        assert session.role == "message"
        with pytest.raises(NotAllowed, match=r"local://test\?role=execute"):
            session.require("execute", "this")
        session.require("view", "this")
        session.require("message", "this")


def test_leaving_tells_the_head_why(head):
    session = head.session()
    name = session.peer.identity.peer
    assert head.driver.station.peer.is_connected(name)
    session.close()
    until(lambda: not head.driver.station.peer.is_connected(name))
    assert name not in head.driver.station.peer.peers()
    session.close()


def test_registering_and_the_end_do_not_miss_one_another(head):
    """1. A call has found the session alive. 2. It ends. 3. The call is refused, and no future is left pending."""
    session = head.session()
    real = session.require

    def require(role, what):
        real(role, what)
        session.close()

    session.require = require
    with pytest.raises(SessionClosed, match="was closed"):
        session.ask(ListTopics(session.request_id(), ""))
    assert session._requests == {}


def test_the_end_is_told_under_the_lock(head, monkeypatch):
    session = head.session()
    seen = []
    monkeypatch.setattr(
        session, "_fail", lambda error, real=session._fail: (seen.append(_is_held(session)), real(error))
    )
    session.close()
    assert seen and all(seen)


def _is_held(session):
    """Whether this thread holds the session's lock: another cannot take it."""
    taken = []
    thread = threading.Thread(target=lambda: taken.append(session.engine.lock.acquire(blocking=False)))
    thread.start()
    thread.join(SOON_S)
    return taken == [False]


def test_the_heads_words_are_part_of_the_error(head):
    session = head.session(head_text=lambda: "Traceback of the head")
    future = session.request_nowait("nobody", timeout=SOON_S)
    head.close()
    with pytest.raises(SessionClosed, match="it was told to; the end of what it wrote:\nTraceback of the head"):
        future.result(SOON_S)
    session.close()


def test_nobody_is_waited_for_who_is_away(head):
    """1. A subscriber was there, and its connection broke. 2. What waits for it does not hold up the end."""
    other, session = head.session(), head.session()
    other.subscribe("t")
    session.publish("t", 1)
    name = other.peer.identity.peer
    until(lambda: session.peer.is_connected(name) and not session._unwritten())
    with session.engine.lock:
        remote = session.peer._remotes[name]
        connection, remote.connection = remote.connection, None
        session._messaging.publish("t", b"")
        session.peer.send(name, ListTopics(session.request_id(), ""), 0.0)
        assert session.peer.is_away(name) and name in session.peer.unsent() and not session._unwritten()
        remote.connection = connection
        assert session._unwritten()
    session.close()
    other.close()


def test_a_dropped_session_is_closed_with_a_warning(head):
    ended = threading.Event()
    session = head.session(on_close=ended.set)
    engine = session.engine
    there = weakref.ref(session)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del session
        gc.collect()
    assert there() is None
    assert next(str(w.message) for w in caught if w.category is ResourceWarning).endswith(
        "was dropped without being closed; use it with `with`, or call its close()"
    )
    assert ended.wait(SOON_S) and engine.driver.closed
    with pytest.raises(SessionClosed, match="dropped without being closed"):
        engine.check_alive()


def test_a_session_with_callbacks_is_in_use(head):
    """1. Nobody holds the session, but a callback waits for messages. 2. It goes on."""
    came = []
    session = head.session()
    there = weakref.ref(session)
    subscription = weakref.ref(session.subscribe("t", came.append))
    del session
    gc.collect()
    with head.session() as other:
        other.publish("t", 1)
        until(lambda: came)
    assert subscription() is not None
    there().close()


def test_a_closed_session_gives_no_warning(head):
    session = head.session()
    session.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del session
        gc.collect()


def test_what_is_pending_keeps_the_session_until_it_is_done(head):
    session = head.session()
    there = weakref.ref(session)
    future = session.request_nowait("nobody", timeout=0.2)
    del session
    gc.collect()
    assert there() is not None
    assert isinstance(future.exception(SOON_S), RaskidError)
    until(lambda: there() is None or there().engine.owner is None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert there() is None


def test_watched_processes_are_given_back_under_the_lock(head):
    """While another thread handles what came, nothing is closed below it."""
    with head.session() as session:
        watch = ProcessWatch(session.driver)
        closed = threading.Event()
        with session.engine.lock:
            # The parent of this process lives as long as the test.
            watch.joined(PeerJoined(PeerId("p"), 1, "client", "view", (), watch._host, 1))
            thread = threading.Thread(target=lambda: (watch.close(), closed.set()))
            thread.start()
            assert not closed.wait(0.05)
            watch.gone(PeerGone(PeerId("p"), 1, "it ended"))
        assert closed.wait(SOON_S)
        thread.join(SOON_S)
