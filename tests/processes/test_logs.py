"""A client and a task log to one reader."""

import logging
import os

import pytest

import raskid

pytestmark = pytest.mark.slow


def log_from_a_task(count):
    logger = logging.getLogger("of.task")
    if not logger.handlers:
        logger.addHandler(raskid.TopicHandler(topic="logs"))
    for number in range(count):
        logger.warning("step %d", number)
    return os.getpid()


def test_a_client_and_a_task_log_to_one_reader(rk):
    """1. Somebody reads. 2. A script logs, and a task that runs twice and adds its handler once. 3. All is here."""
    logger = logging.Logger("of.script")
    logger.addHandler(raskid.TopicHandler(rk, topic="logs"))
    with raskid.connect(rk.url) as other, other.subscribe("logs", overflow="drop_oldest") as messages:
        logger.error("begin")
        assert messages.get(10)["text"] == "begin"
        pids = [rk.submit(log_from_a_task, 3).result(10) for _ in range(2)]
        got = [messages.get(10) for _ in range(6)]
        assert sorted(it["text"] for it in got) == ["step 0", "step 0", "step 1", "step 1", "step 2", "step 2"]
        assert {(it["logger"], it["process"], it["level"]) for it in got} == {
            ("of.task", pid, "WARNING") for pid in pids
        }
        try:
            raise ValueError("lost")
        except ValueError:
            logger.exception("end")
        last = messages.get(10)
        assert last["text"] == "end" and last["exception"].endswith("ValueError: lost")
        assert last["process"] == os.getpid() and messages.dropped == 0
