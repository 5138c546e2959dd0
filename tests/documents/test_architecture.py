"""The code map names every module, and none that is not there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_module_stands_in_the_code_map():
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text[text.index("| package | module |") : text.index("## The way of a message")]
    named, package = set(), ""
    for line in table.splitlines()[2:]:
        cells = line.split("|")
        if len(cells) > 3:
            package = "".join(re.findall(r"`(\w+)`", cells[1])) or package
            named |= {f"{package}.{module}" for module in re.findall(r"`(\w+)`", cells[2])}
    there = {
        f"{path.parent.name}.{path.stem}" for path in (ROOT / "src/raskid").glob("*/*.py") if path.stem != "__init__"
    }
    assert named == there
