"""The guide: every example runs as a script of its own and prints what stands under it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"
EXAMPLE = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^## (.*)$", re.MULTILINE)


def examples() -> list[object]:
    text = GUIDE.read_text(encoding="utf-8")
    found = []
    for match in EXAMPLE.finditer(text):
        heading = HEADING.findall(text[: match.start()])[-1]
        line = text.count("\n", 0, match.start()) + 1
        found.append(pytest.param(match[1], match[2], id=f"{heading}, line {line}"))
    return found


def test_every_example_says_what_it_prints() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert len(examples()) == text.count("```python\n") > 5


@pytest.mark.slow
@pytest.mark.parametrize(("code", "printed"), examples())
def test_examples(code: str, printed: str) -> None:
    with tempfile.TemporaryDirectory(prefix="rk") as directory:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        env = {**os.environ, "RASKID_RUNTIME": directory, "PYTHONPATH": path}
        command = [sys.executable, "-W", "error", "-"]
        done = subprocess.run(command, check=False, input=code, capture_output=True, text=True, timeout=60, env=env)
        assert (done.stdout, done.stderr, done.returncode) == (printed, "", 0)
        assert not os.listdir(directory)
