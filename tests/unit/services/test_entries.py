from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from raskid.core.manager import Manager
from raskid.services import entries as entries_module
from raskid.services.entries import MANAGERS, entries, entry, is_named, load_manager, load_named


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str, str]]:
    """(group, name, package, value) of the entry points that there are."""
    there: list[tuple[str, str, str, str]] = []

    class Package:
        def __init__(self, name: str) -> None:
            self.name = name

    def entry_points(group: str) -> list[Any]:
        found = []
        for of, name, package, value in there:
            if of == group:
                point = EntryPoint(name, value, group)
                vars(point)["dist"] = Package(package)
                found.append(point)
        return found

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    monkeypatch.setattr(entries_module, "_found", {})
    return there


def test_names() -> None:
    assert load_named("os:path.join") is __import__("os").path.join
    for good in ("a:b", "a.b:c.d", "ä:b"):
        assert is_named(good)
    for bad in ("a", "a:", ":b", "a b:c", "a:b:c", "a.:b", "1a:b", "a:b()"):
        assert not is_named(bad)
        with pytest.raises(ValueError, match="module:attribute"):
            load_named(bad)


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ImportError, match=r"'os' \(.*os\.py\) has no 'nope'"):
        load_named("os:nope")
    with pytest.raises(ImportError, match="nowhere"):
        load_named("nowhere:x")


def test_a_package_goes_before_the_built_in_part(installed: list[tuple[str, str, str, str]]) -> None:
    installed.append(("g", "x", "raskid", "ours:X"))
    assert entry("g", "x", "ours:X") == "ours:X" == entry("g", "y", "ours:X")
    entries_module._found.clear()
    installed.append(("g", "x", "theirs", "theirs:X"))
    assert entry("g", "x", "ours:X") == "theirs:X"
    assert entry("g", "nothing") == ""


def test_two_packages_that_bring_the_same(installed: list[tuple[str, str, str, str]]) -> None:
    installed += [("g", "x", "one", "one:X"), ("g", "x", "two", "two:X"), ("g", "x", "two", "two:X")]
    assert entries("g")["x"] == [("one", "one:X"), ("two", "two:X")], "found twice counts once"
    with pytest.raises(ImportError, match=r"one \(one:X\) and two \(two:X\); uninstall one"):
        entry("g", "x")


def test_managers(installed: list[tuple[str, str, str, str]]) -> None:
    installed.append((MANAGERS, "mine", "p", "raskid.core.manager:Manager"))
    assert load_manager("mine") is Manager is load_manager("raskid.core.manager:Manager")
    with pytest.raises(ImportError, match=r"no package brings a manager named 'yours' \(mine\)"):
        load_manager("yours")
    with pytest.raises(TypeError, match="lacks handle, next_deadline, check_invariants, watching"):
        load_manager("os:getpid")
