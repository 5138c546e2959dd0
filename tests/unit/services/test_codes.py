"""Code objects on a runner: the script's source or an error, never other source."""

from __future__ import annotations

import os
import pickle
import sys

import pytest

from raskid.model.errors import StaleCode
from raskid.services import codes
from raskid.services.codes import CodeLoader, extend_path, hash_source, is_installed, own_directories, pack_code


class Library:
    """A directory with modules of a script."""

    def __init__(self, directory):
        self.directory = directory
        self.names = set()

    def write(self, name, text, age_s=0.0):
        path = self.directory / f"{name}.py"
        path.write_text(text)
        if age_s:
            past = path.stat().st_mtime - age_s
            os.utime(path, (past, past))
        self.names.add(name)
        return str(path)

    def code(self, name, function="f"):
        """A code object as a client makes it: the function by its name, and the module's source as it is now."""
        path = str(self.directory / f"{name}.py")
        by_name = b"\x80\x04c" + f"{name}\n{function}\n".encode() + b"."
        return pack_code((str(self.directory),), ((name, path, hash_source(path)),), by_name)


@pytest.fixture
def library(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    library = Library(tmp_path)
    yield library
    for name in library.names:
        sys.modules.pop(name, None)


def test_a_module_is_found_in_the_scripts_directories(library):
    library.write("codes_a", "def f(): return 1\n")
    loader = CodeLoader()
    blob = library.code("codes_a")
    function = loader.function("c1", blob)
    assert function() == 1
    assert loader.function("c1", b"not looked at again") is function


def test_changed_source_is_loaded_again(library):
    """1. A runner has a module. 2. The script is changed and run again. 3. The runner runs the new source."""
    library.write("codes_b", "def f(): return 'old'\n")
    loader = CodeLoader()
    old = loader.function("c1", library.code("codes_b"))
    library.write("codes_b", "def f(): return 'newer'\n")
    assert loader.function("c2", library.code("codes_b"))() == "newer"
    assert old() == "old"


def test_what_rests_on_changed_source_is_loaded_again(library):
    """1. Module c rests on module d. 2. Only d changes. 3. Functions of c see the new d."""
    library.write("codes_d", "def g(): return 'old'\n")
    library.write("codes_c", "from codes_d import g\ndef f(): return g()\n")
    loader = CodeLoader()
    assert loader.function("c1", library.code("codes_c"))() == "old"
    loader.function("c2", library.code("codes_d", "g"))
    library.write("codes_d", "def g(): return 'newer'\n")
    assert loader.function("c3", library.code("codes_d", "g"))() == "newer"
    assert "codes_c" not in sys.modules
    library.write("codes_c", "from codes_d import g\ndef f(): return g() + '!'\n")
    assert loader.function("c4", library.code("codes_c"))() == "newer!"


def test_source_that_changed_after_the_script_imported_it_is_refused(library):
    path = library.write("codes_e", "def f(): return 1\n")
    blob = library.code("codes_e")
    library.write("codes_e", "def f(): return 22\n")
    with pytest.raises(StaleCode, match=r"module 'codes_e' .* was changed after the script had imported it"):
        CodeLoader().function("c1", blob)
    os.unlink(path)
    with pytest.raises(StaleCode, match="is not there any more"):
        CodeLoader().function("c1", blob)


def test_a_module_imported_by_another_one_is_not_loaded_twice(library):
    """1. A function's body imports a module that nobody announced. 2. A later code object names it: it stays."""
    library.write("codes_f", "class Kept: pass\ndef f(): return Kept\n", age_s=100)
    extend_path((str(library.directory),))
    module = __import__("codes_f")
    assert CodeLoader().function("c1", library.code("codes_f"))() is module.Kept


def test_a_module_of_the_same_name_elsewhere_is_another_one(library, tmp_path):
    library.write("codes_g", "def f(): return 'here'\n", age_s=100)
    other = Library(tmp_path / "other")
    other.directory.mkdir()
    other.write("codes_g", "def f(): return 'there'\n", age_s=100)
    loader = CodeLoader()
    assert loader.function("c1", library.code("codes_g"))() == "here"
    assert loader.function("c2", other.code("codes_g"))() == "there"
    assert loader.function("c3", library.code("codes_g"))() == "here"


def test_functions_that_were_not_called_for_long_are_forgotten(monkeypatch):
    monkeypatch.setattr(codes, "FUNCTIONS_MAX", 3)
    loader = CodeLoader()
    for number in range(10):
        assert loader.function(f"c{number}", pack_code((), (), pickle.dumps(len)))([]) == 0
    assert list(loader.functions) == ["c7", "c8", "c9"]


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="c1 is a int, not a function"):
        CodeLoader().function("c1", pack_code((), (), pickle.dumps(3)))


def test_directories_stand_where_the_script_has_them(monkeypatch):
    monkeypatch.setattr(sys, "path", ["/b", "/python", "/c"])
    extend_path(("/a", "/b", "", "/d", "/c"))
    assert sys.path == ["/a", "/b", "/python", "/c", "/d"]
    extend_path(("/d", "", "/a"))
    assert sys.path == ["/d", "/a", "/b", "/python", "/c"]
    extend_path(())
    assert sys.path == ["/d", "/a", "/b", "/python", "/c"]


def test_own_directories_are_those_of_the_script(tmp_path, monkeypatch):
    standard = os.path.dirname(os.__file__)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), standard, f"{standard}/site-packages", "relative"])
    assert own_directories() == (str(tmp_path), "", str(tmp_path / "relative"))
    assert is_installed(f"{standard}/json/__init__.py") and is_installed(codes.__file__)
    assert not is_installed(str(tmp_path / "script.py"))


def test_in_a_users_own_process_other_source_is_refused_and_nothing_is_removed(library, tmp_path):
    """1. The program has imported a module. 2. A reaction's owner has another one of that name. 3. The program keeps
    its own, and whatever else it has."""
    library.write("codes_h", "def f(): return 'mine'\n", age_s=100)
    other = Library(tmp_path / "other")
    other.directory.mkdir()
    other.write("codes_h", "def f(): return 'theirs'\n", age_s=100)
    other.write("codes_i", "def f(): return 'new here'\n", age_s=100)
    sys.path.insert(0, str(library.directory))
    mine = __import__("codes_h")
    modules, path = dict(sys.modules), list(sys.path)
    loader = CodeLoader(replaces=False)
    for _ in range(2):
        with pytest.raises(StaleCode, match=r"'codes_h' is loaded here from other source .*Start this"):
            loader.function("c1", other.code("codes_h"))
    assert sys.modules == modules and sys.modules["codes_h"] is mine
    assert sys.path[: len(path)] == path
    assert loader.function("c2", other.code("codes_i"))() == "new here"
    assert sys.modules["codes_h"] is mine and sys.path == [*path, str(other.directory)]
    assert loader.function("c3", library.code("codes_h"))() == "mine"
    sys.modules.pop("codes_i")


def test_directories_come_last_in_a_users_own_process(monkeypatch):
    monkeypatch.setattr(sys, "path", ["/b", "/python", "/c"])
    extend_path(("/a", "/c", "", "/d", "/b"), first_place=False)
    assert sys.path == ["/b", "/python", "/c", "/a", "/d"]
    extend_path(("/a", "", "/d"), first_place=False)
    assert sys.path == ["/b", "/python", "/c", "/a", "/d"]
