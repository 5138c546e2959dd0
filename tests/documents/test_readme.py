"""The README in both languages: its example runs as pasted, and the two say the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and contents of the code blocks."""
    return FENCE.findall(text)


def shape(text: str) -> list[str]:
    """Headings by their level, and for each line of a table the number of its cells; in order."""
    found = []
    for line in FENCE.sub("", text).splitlines():
        if line.startswith("#"):
            found.append(line.split()[0])
        elif line.startswith("|"):
            found.append(f"row of {line.count('|') - 1}")
        elif line.startswith("- "):
            found.append("item")
    return found


def examples() -> list[str]:
    return [code for language, code in blocks(text_of("README.md")) if language == "python"]


def test_the_first_example_is_the_file() -> None:
    assert examples()[0] == (ROOT / "examples" / "hello.py").read_text()


MEANS = "[{'step': 0, 'mean': 1.01}, {'step': 10, 'mean': 1.12}, {'step': 20, 'mean': 1.23}]\n"


@pytest.mark.slow
@pytest.mark.parametrize(("code", "printed"), list(zip(examples(), ["285\n3\n", MEANS], strict=True)))
def test_the_examples_run_as_pasted(code: str, printed: str) -> None:
    with tempfile.TemporaryDirectory(prefix="rk") as directory:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        env = {**os.environ, "RASKID_RUNTIME": directory, "PYTHONPATH": path}
        command = [sys.executable, "-W", "error", "-"]
        done = subprocess.run(command, check=False, input=code, capture_output=True, text=True, timeout=60, env=env)
        assert (done.stdout, done.stderr, done.returncode) == (printed, "", 0)
        assert not os.listdir(directory)


def test_both_languages_have_the_same_code_and_parts() -> None:
    english, russian = text_of("README.md"), text_of("README.ru.md")
    assert blocks(english) == blocks(russian)
    assert shape(english) == shape(russian)


@pytest.mark.parametrize("name", ["README.md", "README.ru.md"])
def test_files_that_are_named_exist(name: str) -> None:
    named = re.findall(r"`((?:docs|examples)/[^`]*)`", text_of(name))
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]
