"""A session without a system: what it would send is kept, and answers are given by the test."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from raskid.client.code import CodeBook
from raskid.client.tasks import Tasks
from raskid.core.effects import TaskEnded, TaskResolved
from raskid.model.ids import IdSource
from raskid.protocol.messages import ROLE_EXECUTE


class FakeEngine:
    """Waits for nothing: what is not there when somebody waits does not come, unless `on_wait` brings it."""

    def __init__(self):
        self.lock = threading.RLock()
        self.failure = None
        self.closing = False
        self.loop = None
        self.stepping = None
        self.cancelled = []
        self.released = []
        self.waits = []
        self.on_wait = lambda: None
        self.later = []

    def check_alive(self):
        if self.failure is not None:
            raise self.failure

    def wait(self, done, timeout=None):
        self.waits.append(timeout)
        if not done():
            self.on_wait()
        return done()

    def wait_for(self, future, timeout):
        return self.wait(future.done, timeout)

    def cancel(self, tasks):
        self.cancelled.append(list(tasks))

    def release(self, task):
        self.released.append(task)

    def call_soon(self, function, *args):
        self.later.append((function, args))

    def prompt(self):
        pass

    flush = nudge = settle = prompt


class FakeSession(Tasks):
    """The part of a session that submits; its tasks are in `specs`."""

    def __init__(self):
        self.engine = FakeEngine()
        self.url = "local://test"
        self.role = ROLE_EXECUTE
        self.specs = []
        self.driver = SimpleNamespace(
            clock=lambda: 0.0, perform=lambda effects: None, counters=SimpleNamespace(tasks=0)
        )
        self._submitter = SimpleNamespace(submit=self._take)
        self._book = CodeBook()
        self._known_codes = {}
        self._ids = IdSource(5)
        self._futures = {}
        self._maps = {}

    def _take(self, spec, now):
        self.specs.append(spec)
        return []

    def resolve(self, spec, ok, value):
        """The value, or the error, of a task comes."""
        self._on_resolved(TaskResolved(spec.task, ok, value))

    def end(self, spec, code, text=""):
        """A task has no value and will have none."""
        self._on_ended(TaskEnded(spec.task, code, text))
