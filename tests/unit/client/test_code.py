"""Functions as code objects: pickled again exactly when what they rest on is another object."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import pickle
import sys
import threading

import pytest

from raskid.client import code as module
from raskid.client.code import CodeBook
from raskid.services.calling import load_value
from raskid.services.codes import hash_source


class Script:
    """What a script (`__main__`) defines."""

    def __init__(self, text=""):
        self.names = {"__name__": "__main__"}
        self.run(text)

    def run(self, text):
        exec(text, self.names)

    def __getattr__(self, name):
        return self.names[name]


@pytest.fixture
def book():
    return CodeBook()


def loaded(code):
    """The function as a runner has it (which has the class, if any, from here, and must not change it)."""
    _, _, pickled = pickle.loads(code.blob)
    return load_value(pickled)


def test_a_function_is_pickled_once_and_has_its_name(book):
    script = Script("def f(x): return x + 1")
    code = book.code_of(script.f)
    assert book.code_of(script.f) is code
    assert code.name == "f" and loaded(code)(1) == 2
    assert book.code_of(len) is book.code_of(len) and book.code_of(len).name == "len"
    assert book.code_of(functools.partial(pow, 2)).name == "pow"


CHANGES = {
    "a global": ("LIMIT = 1\ndef f(): return LIMIT", "f", "LIMIT = 2", 2),
    "a function that it calls": ("def g(): return 1\ndef f(): return g()", "f", "def g(): return 2", 2),
    "a global of a function that it calls": ("N = 1\ndef g(): return N\ndef f(): return g()", "f", "N = 2", 2),
    "a method of a class": ("class A:\n def m(s): return 1\ndef f(): return A().m()", "f", "A.m = lambda s: 2", 2),
    "a global of a method": ("N = 1\nclass A:\n def m(s): return N\ndef f(): return A().m()", "f", "N = 2", 2),
    "a global of a base's static method": (
        "N = 1\nclass B:\n @staticmethod\n def m(): return N\nclass A(B): pass\ndef f(): return A.m()", "f", "N = 2", 2,
    ),
    "a global of a property": (
        "N = 1\nclass A:\n @property\n def p(s): return N\nA0 = A()\ndef f(): return A0.p", "f", "N = 2", 2,
    ),
    "a global of what a partial calls": (
        "import functools\nN = 1\ndef g(x): return N\nf = functools.partial(g, 0)", "f", "N = 2", 2,
    ),
    "a global of a bound method": ("N = 1\nclass A:\n def m(s): return N\nf = A().m", "f", "N = 2", 2),
    "an attribute of the object of a bound method": (
        "class A:\n n = 1\n def m(s): return s.n\na = A()\nf = a.m", "f", "a.n = 2", 2,
    ),
    "an attribute of a callable object": (
        "class A:\n def __init__(s): s.n = 1\n def __call__(s): return s.n\nf = A()", "f", "f.n = 2", 2,
    ),
    "a global of a default": ("N = 1\ndef g(): return N\ndef f(g=g): return g()", "f", "N = 2", 2),
    "a global of a keyword default": ("N = 1\ndef g(): return N\ndef f(*, g=g): return g()", "f", "N = 2", 2),
    "a global of what a table holds": (
        "N = 1\ndef g(): return N\nT = {'g': g}\ndef f(): return T['g']()", "f", "N = 2", 2,
    ),
    "a new attribute of a class": ("class A: pass\ndef f(): return getattr(A, 'n', 1)", "f", "A.n = 2", 2),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_function_is_pickled_again_when_it_rests_on_another_object(book, change):
    text, name, then, value = CHANGES[change]
    script = Script(text)
    before = book.code_of(script.names[name])
    assert loaded(before)() == 1
    assert book.code_of(script.names[name]).code == before.code
    script.run(then)
    after = book.code_of(script.names[name])
    assert after.code != before.code
    assert loaded(after)() == value


def test_closures_are_seen(book):
    def make():
        n = 1

        def f():
            return n

        def change(value):
            nonlocal n
            n = value

        return f, change

    f, change = make()
    assert loaded(book.code_of(f))() == 1
    change(2)
    assert loaded(book.code_of(f))() == 2


def test_functions_that_are_gone_are_forgotten(book):
    for number in range(100):
        book.code_of(eval(f"lambda: {number}"))
        if number % 20 == 19:
            gc.collect()
    book.code_of(len)
    assert len(book._known) <= 3


def test_what_is_kept_is_bounded(book, monkeypatch):
    monkeypatch.setattr(module, "CODES_MAX", 10)
    kept = [eval(f"lambda: {number}") for number in range(50)]
    for function in kept:
        book.code_of(function)
    assert len(book._known) == 10
    monkeypatch.setattr(module, "CODES_BYTES_MAX", 3000)
    large = [eval(f"lambda: b'{'x' * 1000}{number}'") for number in range(10)]
    for function in large:
        book.code_of(function)
    assert book._bytes == sum(len(known.code.blob) for known in book._known.values()) <= 5000
    assert loaded(book.code_of(kept[0]))() == 0


def test_equal_objects_are_not_taken_for_one_another(book):
    script = Script(
        "class A:\n def __init__(s, n): s.n = n\n def __call__(s): return s.n\n"
        " def __eq__(s, o): return True\n def __hash__(s): return 1\none = A(1)\ntwo = A(2)"
    )
    assert [loaded(book.code_of(function))() for function in (script.one, script.two)] == [1, 2]


def test_what_cannot_be_sent_is_refused_with_its_place(book):
    script = Script("import threading\nlock = threading.Lock()\ndata = {'a': [1, lock]}\ndef f(): return data\n")
    with pytest.raises(TypeError, match=r"the function f cannot be sent: 'data', which f uses,\['a'\]\[1\] is a lock"):
        book.code_of(script.f)
    with pytest.raises(TypeError, match="is a function, got 3"):
        book.code_of(3)
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"'lock', which .* uses, is a lock"):
        book.code_of(lambda: lock)


def test_coroutine_functions_are_refused(book):
    script = Script(
        "import functools\nasync def f(): pass\nasync def g():\n yield 1\nclass A:\n async def __call__(s): pass\n"
        "p = functools.partial(f)\na = A()"
    )
    for name in ("f", "g", "p", "a"):
        with pytest.raises(TypeError, match="is a coroutine function"):
            book.code_of(script.names[name])


class TestOwnModules:
    @pytest.fixture
    def write(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        names = []

        def write(name, text):
            path = tmp_path / (name.replace(".", os.sep) + ".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            importlib.invalidate_caches()
            names.append(name)
            return str(path)

        yield write
        for name in list(sys.modules):
            if name.startswith("own_"):
                del sys.modules[name]

    def modules_of(self, code):
        path, modules, _ = pickle.loads(code.blob)
        return path, {name: (file, digest) for name, file, digest in modules}

    def test_they_travel_by_name_with_the_hash_of_their_source(self, book, write, tmp_path):
        """1. A function stands in a package, which names another module. 2. All three are listed, json is not."""
        init = write("own_pack.__init__", "")
        other = write("own_other", "def g(): return 1\n")
        inner = write("own_pack.inner", "import json\nfrom own_other import g\ndef f(): return g()\n")
        f = importlib.import_module("own_pack.inner").f
        path, modules = self.modules_of(book.code_of(f))
        assert path[0] == str(tmp_path)
        assert modules == {
            "own_pack": (init, hash_source(init)),
            "own_pack.inner": (inner, hash_source(inner)),
            "own_other": (other, hash_source(other)),
        }

    def test_a_script_that_names_them_lists_them(self, book, write):
        write("own_a", "def g(): return 1\n")
        write("own_b", "def g(): return 1\n")
        script = Script("import own_a\ndef f():\n import own_b\n return own_a.g()")
        importlib.import_module("own_b")
        assert set(self.modules_of(book.code_of(script.f))[1]) == {"own_a", "own_b"}

    def test_a_reload_is_seen(self, book, write):
        write("own_c", "def g(): return 1\n")
        write("own_d", "import own_c\ndef f(): return own_c.g()\n")
        d = importlib.import_module("own_d")
        before = book.code_of(d.f)
        assert book.code_of(d.f) is before
        path = write("own_c", "def g(): return 222\n")
        assert book.code_of(d.f) is before
        importlib.reload(sys.modules["own_c"])
        after = book.code_of(d.f)
        assert after.code != before.code
        assert self.modules_of(after)[1]["own_c"] == (path, hash_source(path))


class Model:
    """Of a module, so that its class travels by name."""

    weight = 1

    def predict(self, x):
        return self.weight * x


def test_what_holds_state_is_pickled_as_it_is_now(book):
    """1. A bound method and a partial. 2. What they hold changes, by name and in place. 3. So does what is sent."""
    model, weights = Model(), [1]
    first = book.code_of(model.predict), book.code_of(functools.partial(max, weights))
    assert first == (book.code_of(model.predict), book.code_of(functools.partial(max, weights)))
    model.weight = 5
    weights.append(7)
    second = book.code_of(model.predict), book.code_of(functools.partial(max, weights))
    assert first[0].code != second[0].code and first[1].code != second[1].code
    assert loaded(second[0])(10) == 50


def test_an_attribute_of_an_instance_that_a_function_reads_is_seen(book):
    script = Script("def f(x): return model.predict(x)")
    script.names["model"] = model = Model()
    first = book.code_of(script.f)
    assert book.code_of(script.f) is first
    model.weight = 5
    second = book.code_of(script.f)
    assert second.code != first.code and loaded(second)(10) == 50
