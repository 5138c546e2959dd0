"""`docs/pipe.md` names every command with its arguments, every event and every escape, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

from raskid.client import escapes, notices, representative

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "pipe.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, str]:
    """The second cells of the table under a heading, by the name in the first."""
    section = TEXT[TEXT.index(heading) :]
    section = section[: section.find("\n## ", 1)]
    found = {}
    for line in section.splitlines():
        cells = line.split("|")
        if len(cells) > 3 and "`" in cells[1]:
            found[re.findall(r"`(\w+)`", cells[1])[0]] = cells[2]
    return found


def test_commands() -> None:
    table = rows("## 3. Commands")
    assert list(table) == list(representative.COMMANDS)
    for name, command in representative.COMMANDS.items():
        assert set(re.findall(r"`(\w+)`", table[name])) == set(command.arguments), name
        optional = {it for part in re.findall(r"\[(.*?)\]", table[name]) for it in re.findall(r"`(\w+)`", part)}
        required = {key for key, argument in command.arguments.items() if argument.required}
        assert not optional & required, name


def test_events() -> None:
    source = "".join(Path(str(module.__file__)).read_text() for module in (notices, representative))
    source += (ROOT / "src/raskid/client/pipe.py").read_text()
    assert set(re.findall(r'"event": "(\w+)"', source)) == set(rows("## 4. Events"))


def test_escapes() -> None:
    assert set(re.findall(r'^\| `\{"(\$\w+)"', TEXT, re.MULTILINE)) == set(escapes._ESCAPES)
