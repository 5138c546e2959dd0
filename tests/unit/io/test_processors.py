import os

import pytest

from raskid.io import processors
from raskid.io.processors import current_processor, leave_processor

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells")


def test_this_thread_runs_where_it_may():
    assert current_processor() in os.sched_getaffinity(0)


def test_leaving_goes_elsewhere_and_gives_up_nothing(monkeypatch):
    allowed = {3, 5, 7}
    asked = []
    monkeypatch.setattr(processors, "current_processor", lambda: 5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(allowed))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, mask: asked.append(set(mask)))
    assert leave_processor()
    assert asked == [{3, 7}, {3, 5, 7}]


@pytest.mark.parametrize("here", [None, 5])
def test_with_nowhere_to_go_it_stays(monkeypatch, here):
    monkeypatch.setattr(processors, "current_processor", lambda: here)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, mask: pytest.fail("it moved"))
    assert not leave_processor()


def test_what_the_kernel_refuses_changes_nothing(monkeypatch):
    asked = []

    def refuse(pid, mask):
        asked.append(set(mask))
        raise PermissionError("no")

    monkeypatch.setattr(processors, "current_processor", lambda: 5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 6})
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    assert not leave_processor()
    assert asked == [{6}]
