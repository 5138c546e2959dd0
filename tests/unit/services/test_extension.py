from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from raskid.client.extensions import register
from raskid.services import extension as extension_module
from raskid.services.entries import load_named
from raskid.services.extension import BUILT_IN, Extension, extension_kind, extension_names

PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension_module, "_registered", {})
    monkeypatch.setattr(extension_module, "_loaded", {})


class Mine(Extension):
    service = "a:b"


def test_the_project_declares_the_built_in_ones() -> None:
    declared = tomllib.loads(PROJECT.read_text())["project"]["entry-points"]["raskid.services"]
    assert declared == BUILT_IN
    for name, value in BUILT_IN.items():
        assert load_named(value) is extension_kind(name)


def test_what_is_registered_goes_first() -> None:
    assert extension_kind("board") is None and "board" not in extension_names()
    register("board", Mine)
    register("recorder", Mine)
    assert extension_kind("board") is Mine and "board" in extension_names()
    assert extension_kind("recorder") is Mine


def test_one_given_by_name_is_imported_when_it_is_used() -> None:
    register("late", "collections:OrderedDict")
    assert extension_kind("late").__name__ == "OrderedDict"
    register("broken", "nowhere:x")
    with pytest.raises(ImportError, match=r"the extension 'broken' \(nowhere:x\) cannot be loaded: No module"):
        extension_kind("broken")


@pytest.mark.parametrize(
    ("name", "kind", "error", "text"),
    [
        ("publish", Mine, ValueError, "'publish' is part of every session"),
        ("url", Mine, ValueError, "'url' is part of every session"),
        ("two words", Mine, ValueError, "cannot stand there"),
        ("_x", Mine, ValueError, "cannot stand there"),
        ("", Mine, ValueError, "cannot stand there"),
        (7, Mine, TypeError, "is text, got 7 of type int"),
        ("board", "nonsense", ValueError, "module:attribute"),
        ("board", None, TypeError, "None cannot be called"),
    ],
)
def test_what_cannot_be_registered(name: Any, kind: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        register(name, kind)
    assert extension_names() == sorted(BUILT_IN)


def test_the_base_class_starts_its_service() -> None:
    class Session:
        def start_service(self, *args: Any, **settings: Any) -> Any:
            return args, settings

        def stop_service(self, name: str) -> str:
            return name

    mine = Mine(Session())
    mine.name = "mine"
    assert mine.start(x=1) == (("mine", "a:b"), {"x": 1}) and mine.stop() == "mine"
    with pytest.raises(TypeError, match="Extension names no service"):
        Extension(Session()).start()
