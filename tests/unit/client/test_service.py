"""What becomes of a service's process, on a thread of the tests, in a head that forks nothing."""

from __future__ import annotations

import faulthandler
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from raskid.client.service import run
from raskid.core.steward import Steward
from raskid.model.errors import NotRunning, StartFailed
from raskid.services.settings import ServiceSettings
from tests.unit.client.systems import TOKEN, Head, system, until

#: What services of these tests leave.
left: list[Any] = []


class Noting:
    """A service that notes its life."""

    def __init__(self, session: Any, **settings: Any) -> None:
        self.session = session
        left.append(settings)

    def close(self) -> None:
        left.append("closed")


def ends_itself(session: Any) -> None:
    threading.Thread(target=session.close).start()


def fails(session: Any) -> None:
    raise ValueError("no luck")


class Process:
    """Runs a service that `name` was asked for."""

    def __init__(self, head: Head, factory: str, settings: bytes = b"") -> None:
        theirs, self.life = os.pipe()
        config = ServiceSettings(
            TOKEN, "s", 1, head.address, head.directory, "local://x", f"{__name__}:{factory}", settings=settings,
            script="script.py",
        )  # fmt: skip
        self.code: int | None = None
        self.thread = threading.Thread(target=self._run, args=(msgspec.msgpack.encode(config), theirs))
        self.thread.start()

    def _run(self, config: bytes, life: int) -> None:
        try:
            self.code = run(config, life)
        finally:
            os.close(life)

    def ended(self) -> int | None:
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.code

    def let_go(self) -> int | None:
        os.close(self.life)
        return self.ended()


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    left.clear()
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(faulthandler, "enable", lambda: None)
    with system() as found:
        yield found


def steward(head: Head) -> Steward:
    found = next(machine for machine in head.driver.station.machines if isinstance(machine, Steward))  # type: ignore[attr-defined]
    assert isinstance(found, Steward)
    return found


def test_it_serves_until_it_is_let_go(head: Head) -> None:
    with head.session() as session:
        asked = session.start_service_nowait("s", Noting, {})
        process = Process(head, "Noting", pickle.dumps({"x": 1}))
        asked.result(10)
        (one,) = session.services()
        assert (one["state"], one["pid"]) == ("running", os.getpid())
        assert process.let_go() == 0
    assert left == [{"x": 1}, "closed"]


def test_a_factory_that_raises_is_told_from_its_first_line_on(head: Head) -> None:
    with head.session() as session:
        session.start_service_nowait("s", fails, {})
        process = Process(head, "fails")
        assert process.let_go() == 1
        until(lambda: steward(head).services["s"].error)
        text = steward(head).services["s"].error
        assert text.startswith("Traceback") and "in fails" in text and text.endswith("ValueError: no luck")
        assert "service.py" not in text.replace("test_service.py", "")


def test_one_that_ends_its_session_ends(head: Head) -> None:
    with head.session() as session:
        session.start_service_nowait("s", ends_itself, {})
        process = Process(head, "ends_itself")
        assert process.ended() == 0
        os.close(process.life)


def test_a_wait_that_is_given_up_ends_the_service(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The service does not begin. 2. Its end is asked for. 3. The error says both."""
    monkeypatch.setattr("raskid.client.extensions._STORY_S", 0.05)
    with head.session() as session:
        with pytest.raises(StartFailed, match=r"'s' did not begin within 0.01 s, and was ended$"):
            session.start_service("s", Noting, timeout=0.01)
        until(lambda: steward(head).services["s"].state == "stopping")
        with pytest.raises(NotRunning, match="no service 't' runs; there are 's'"):
            session.stop_service("t")


def test_extensions_are_made_once_and_anew_when_others_are_registered(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    import raskid
    from raskid.services import extension as extension_module

    monkeypatch.setattr(extension_module, "_registered", {})

    class First(raskid.Extension):
        pass

    class Second:
        def __init__(self, session: Any) -> None:
            self.session = session

    raskid.register("mine", First)
    with head.session() as session:
        first = session.mine
        assert isinstance(first, First) and first is session.mine and first.name == "mine" and first.session is session
        raskid.register("mine", Second)
        assert isinstance(session.mine, Second) and session.mine.session is session
        with pytest.raises(AttributeError, match="neither a call nor an extension 'mien'; did you mean 'mine'"):
            session.mien  # noqa: B018
        assert not hasattr(session, "__deepcopy__")


def test_extensions_in_asyncio(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    import raskid
    from raskid.client.aio import AsyncSession
    from raskid.services import extension as extension_module

    monkeypatch.setattr(extension_module, "_registered", {})

    class Awaited(raskid.Extension):
        pass

    class Both(raskid.Extension):
        asynchronous = Awaited

    raskid.register("both", Both)
    raskid.register("blocking", Awaited)
    with head.session() as session:
        face = AsyncSession(session)
        assert isinstance(face.both, Awaited) and face.both.session is face and isinstance(session.both, Both)
        with pytest.raises(AttributeError, match=r"'blocking' is not for asyncio.*to_thread\(rk\.session\.blocking"):
            face.blocking  # noqa: B018
