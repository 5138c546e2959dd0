"""Waiting for descriptors, with epoll and with what other systems have."""

from __future__ import annotations

import os
import select
import selectors
import socket
from collections.abc import Iterator

import pytest

from raskid.io.poller import READ, WRITE, Poller
from tests.unit.io.ends import descriptors


@pytest.fixture(params=["epoll", "selector"])
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Poller]:
    if request.param == "selector":
        monkeypatch.delattr(select, "epoll", raising=False)
        if hasattr(selectors, "KqueueSelector"):
            monkeypatch.setattr(selectors, "DefaultSelector", selectors.KqueueSelector)
    elif not hasattr(select, "epoll"):
        pytest.skip("no epoll here")
    before = descriptors()
    made = Poller()
    yield made
    made.close()
    assert descriptors() == before


def test_reading_and_writing(poller: Poller) -> None:
    one, other = socket.socketpair()
    with one, other:
        poller.set(one.fileno(), READ, known=False)
        assert poller.wait(0) == []
        other.send(b"x")
        assert poller.wait(10) == [(one.fileno(), READ)]
        assert poller.wait(None) == [(one.fileno(), READ)]
        poller.set(one.fileno(), READ | WRITE, known=True)
        assert poller.wait(10) == [(one.fileno(), READ | WRITE)]
        one.recv(1)
        assert poller.wait(10) == [(one.fileno(), WRITE)]
        poller.remove(one.fileno())
        assert poller.wait(0) == []
        poller.remove(one.fileno())


def test_a_closed_pipe_wakes_its_reader(poller: Poller) -> None:
    reader, writer = os.pipe()
    poller.set(reader, READ, known=False)
    os.close(writer)
    ((fd, events),) = poller.wait(10)
    assert fd == reader and events & ~WRITE
    poller.remove(reader)
    os.close(reader)


def test_a_pipe_nobody_reads_wakes_its_writer(poller: Poller) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    poller.set(writer, WRITE, known=False)
    ((fd, events),) = poller.wait(10)
    assert fd == writer and events
    poller.remove(writer)
    os.close(writer)


def test_a_foreign_loop_can_watch_it(poller: Poller) -> None:
    one, other = socket.socketpair()
    with one, other:
        poller.set(one.fileno(), READ, known=False)
        assert select.select([poller.fileno()], [], [], 0)[0] == []
        other.send(b"x")
        assert select.select([poller.fileno()], [], [], 10)[0] == [poller.fileno()]
        poller.remove(one.fileno())
