"""The handler that publishes log records: what a record becomes, and that logging neither waits nor fails."""

import logging
import sys
import threading

import pytest

import raskid
from raskid.client import logs
from raskid.client.aio import AsyncSession
from raskid.client.logs import TopicHandler
from raskid.model.errors import NotAllowed, Overflow, SessionClosed, TopicNameError
from raskid.services import publishing
from tests.unit.client.heads import Head as OwnHead
from tests.unit.client.systems import until


class Publisher:
    """Stands for a runner's: keeps what is published, with the values of functions; may be full."""

    def __init__(self):
        self.published = []
        self.error = None

    def publish(self, topic, args, fields):
        (function,) = args
        if self.error is not None:
            self.published.append((topic, None))
            raise self.error
        self.published.append((topic, function()))


@pytest.fixture
def task(monkeypatch):
    """Makes this process a runner."""
    found = Publisher()
    monkeypatch.setattr(publishing, "_publisher", found)
    return found


@pytest.fixture
def logger():
    """A logger of the test's own; `add` gives it a handler."""
    found = logging.Logger("app.io")
    yield found
    for handler in list(found.handlers):
        found.removeHandler(handler)
        handler.close()


def add(logger, *args, **options):
    handler = TopicHandler(*args, **options)
    logger.addHandler(handler)
    return handler


def test_what_a_message_says(rk, other, logger):
    add(logger, rk)
    with other.subscribe("logs") as messages:
        logger.warning("%d of %s", 3, "ten")
        line = sys._getframe().f_lineno - 1
        message = messages.get(5)
    fields = dict(message.fields)
    assert message.args == () and fields.pop("time") > 1e9 and fields.pop("host")
    assert fields == {
        "logger": "app.io", "level": "WARNING", "levelno": 30, "text": "3 of ten", "process": rk.peer.identity.pid,
        "thread": threading.current_thread().name, "file": __file__, "line": line,
    }  # fmt: skip


def test_exceptions_and_formatters(task, logger):
    handler = add(logger)
    try:
        raise ValueError("bad \udcff name")
    except ValueError:
        logger.exception("failed")
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.error("also", exc_info=(None, None, None))
    record = logging.makeLogRecord({"msg": "from afar", "exc_text": "Traceback of afar"})
    handler.handle(record)
    (_, first), (_, second), (_, third) = task.published
    assert first["text"] == "failed" and first["exception"].endswith("ValueError: bad \\udcff name")
    assert second["text"].startswith("app.io: also") and "exception" not in second
    assert third["exception"] == "Traceback of afar"


def test_nobody_reads_and_nothing_is_formatted(rk, logger):
    class Costly:
        def __str__(self):
            raise AssertionError("formatted")

    handler = add(logger, rk)
    assert rk.engine.wait(lambda: rk.plan_of("logs") is not None, 5)
    before = rk.counters()["messages_sent"]
    for _ in range(100):
        logger.warning(Costly())
    assert rk.counters()["messages_sent"] == before
    assert handler.level == 0


def test_levels_and_filters_count_as_with_any_handler(task, logger):
    handler = add(logger, level="ERROR")
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    logger.warning("low")
    logger.error("secret")
    logger.error("shown")
    assert [fields["text"] for _, fields in task.published] == ["shown"]


@pytest.mark.parametrize(
    ("name", "topic"),
    [
        ("app.io", "logs/app/io"),
        ("root", "logs/root"),
        ("bad\nname", "logs/other"),
        ("n" * 300, "logs/other"),
        ("\ud800", "logs/other"),
        ("äö", "logs/äö"),
    ],
)
def test_the_logger_in_the_topic(task, name, topic):
    handler = TopicHandler(topic="logs/{logger}")
    for _ in range(2):
        handler.handle(logging.makeLogRecord({"name": name, "msg": "x"}))
    assert [it[0] for it in task.published] == [topic, topic]


def test_names_of_loggers_are_not_remembered_without_end(task, monkeypatch):
    monkeypatch.setattr(logs, "TOPICS_MAX", 3)
    handler = TopicHandler(topic="{logger}")
    for number in range(10):
        handler.handle(logging.makeLogRecord({"name": f"@{number}" if number % 2 else f"n.{number}"}))
    assert {it[0] for it in task.published} == {"other", "n/0", "n/2", "n/4", "n/6", "n/8"}
    assert len(handler._topics) <= 3


def test_raskid_and_what_is_logged_meanwhile_are_left_out(task, logger):
    handler = add(logger)

    class Talkative:
        def __str__(self):
            logger.warning("within")
            return "without"

    logger.warning(Talkative())
    for name in ("raskid", "raskid.io"):
        handler.handle(logging.makeLogRecord({"name": name}))
    handler.handle(logging.makeLogRecord({"name": "raskidder"}))
    assert [fields["text"] or fields["logger"] for _, fields in task.published] == ["without", "raskidder"]


def test_a_full_reader_holds_up_no_script(rk, other, logger):
    """1. A reader with policy "block" and room for one takes nothing. 2. Logging goes on. 3. It gets the first and the
    newest, and the number of those in between."""
    add(logger, rk)
    with other.subscribe("logs", capacity=1) as messages:
        for number in range(50):
            logger.warning(number)
        assert [messages.get(5)["text"] for _ in range(2)] == ["0", "49"]
        assert messages.dropped == 48


def test_a_full_reader_holds_up_a_task_once_in_a_while(task, logger, monkeypatch, capsys):
    add(logger)
    task.error = Overflow("its queue is full")
    for number in range(3):
        logger.warning(number)
    assert len(task.published) == 1 and "its queue is full" in capsys.readouterr().err
    monkeypatch.setattr(logs, "PAUSE_S", -1.0)
    again = TopicHandler()
    for number in range(3):
        again.handle(logging.makeLogRecord({"msg": str(number)}))
    assert len(task.published) == 4


def test_wrong_format_arguments_are_reported_as_logging_does(task, logger, capsys, monkeypatch):
    add(logger)
    logger.warning("%d", "no number")
    assert "--- Logging error ---" in capsys.readouterr().err
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.warning("%d", "no number")
    assert capsys.readouterr().err == "" and task.published == []
    logger.warning("goes on")
    assert len(task.published) == 1


def test_programs_log_on_after_the_end(capsys, logger):
    """1. The session is closed, or its head is gone. 2. Records go nowhere, and nothing is said."""
    with OwnHead() as head:
        with head.session() as session:
            add(logger, session)
        logger.warning("closed")
        with head.session() as session:
            add(logger, session, "other/{logger}")
            head.close()
            until(lambda: session.engine.failure is not None)
            logger.warning("lost")
        with pytest.raises(SessionClosed):
            TopicHandler(session)
    assert capsys.readouterr().err == ""


def test_a_process_that_a_task_forked_logs_nothing(task, logger, monkeypatch, capsys):
    add(logger)
    monkeypatch.setattr(publishing, "_publisher", None)
    logger.warning("from the child")
    assert capsys.readouterr().err == "" and task.published == []


def test_a_thread_that_is_held_up_holds_up_no_other(task, logger, monkeypatch):
    entered, release = threading.Event(), threading.Event()

    class Slow:
        def __str__(self):
            entered.set()
            assert release.wait(5)
            return "slow"

    add(logger)
    thread = threading.Thread(target=logger.warning, args=(Slow(),))
    thread.start()
    assert entered.wait(5)
    logger.warning("quick")
    release.set()
    thread.join()
    assert [fields["text"] for _, fields in task.published] == ["quick", "slow"]


def test_the_asynchronous_session_will_do(rk, other, logger):
    add(logger, AsyncSession(rk), "logs/{logger}")
    with other.subscribe("logs/app/io") as messages:
        logger.info("hello")
        assert messages.get(5)["text"] == "hello"


def test_wrong_arguments():
    with pytest.raises(RuntimeError, match=r"no runner.*raskid\.TopicHandler\(rk\)"):
        TopicHandler()
    with pytest.raises(TypeError, match=r"got 'logs' of type str; did you mean TopicHandler\(topic='logs'\)\?"):
        TopicHandler("logs")
    with pytest.raises(TypeError, match=r"got 5 of type int$"):
        TopicHandler(5)
    for topic in ("", 5, "@{logger}", "x" * 300):
        with pytest.raises(TopicNameError):
            TopicHandler(topic=topic)
    with pytest.raises(ValueError, match="Unknown level"):
        TopicHandler(level="LOUD")


def test_a_session_that_only_looks_is_refused():
    with OwnHead() as head, head.session("view") as session, pytest.raises(NotAllowed, match="publishing needs"):
        TopicHandler(session, "logs/{logger}")


def test_the_public_face():
    assert raskid.TopicHandler is TopicHandler
