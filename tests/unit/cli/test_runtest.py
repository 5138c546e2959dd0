"""Comparing an output with an expected file, and what is said of it; nothing runs here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raskid.cli import runtest
from raskid.cli.runtest import Ended, coloured, compare, difference, filled, lines_of, run_test, same
from raskid.cli.shell import Misuse


def fits(wanted: str, output: str) -> bool:
    return same(lines_of(wanted.encode()), lines_of(output.encode()))


def diff(wanted: str, output: str) -> list[str]:
    return difference(lines_of(wanted.encode()), lines_of(output.encode()), "wanted", "output")


@pytest.mark.parametrize(
    ("wanted", "output", "expected"),
    [
        ("", "", True),
        ("a\n", "a\n", True),
        ("a\n", "a", False),
        ("a\n", "a\n\n", False),
        ("a \n", "a\n", False),
        ("a\r\n", "a\n", False),
        ("t = ... s\n", "t = 0.5 s\n", True),
        ("t = ... s\n", "t =  s\n", True),
        ("t = ... s\n", "t = 0.5 s \n", False),
        ("t = ... s\n", "t = 0.5\n1 s\n", False),
        ("ab...ba\n", "aba\n", False),
        ("1 ... 2 ... 2\n", "1 2 2 2\n", False),
        ("1 ... 2 ... 2\n", "1  2  2\n", True),
        ("...x...x\n", "x\n", False),
        ("...\n", "", True),
        ("...\n", "a\nb\n", True),
        ("...", "a\nb", True),
        ("a\n...\nb\n", "a\nb\n", True),
        ("a\n...\nb\n", "a\nx\nb\nb\n", True),
        ("a\n...\nb\n", "a\nx\n", False),
        ("a\n...\na\n", "a\n", False),
        ("...\na\nb\n...\nc\n", "a\nx\na\nb\nc\n", True),
        ("...\na\nb\n...\nc\n", "a\nx\nb\nc\n", False),
        ("...\nb\n...\nb\n", "b\n", False),
        ("...\nx = ...\n...\n", "1\nx = 2\n", True),
        (" ...\n", "a\n", False),
        ("....\n", "x.\n", True),
    ],
)
def test_what_is_as_expected(wanted: str, output: str, expected: bool) -> None:
    assert fits(wanted, output) is expected


WORDS = st.lists(st.sampled_from(["a", "b", "ab", "", "...", "a...", "...b", "a...b"]), max_size=6)


@given(WORDS, WORDS)
def test_there_is_a_diff_exactly_when_something_differs(wanted: list[str], output: list[str]) -> None:
    first, second = "".join(f"{it}\n" for it in wanted), "".join(f"{it}\n" for it in output)
    assert fits(first, first)
    if not fits(first, second):
        assert diff(first, second)
    if not any("..." in it for it in wanted):
        assert fits(first, second) is (first == second)


def test_what_dots_stand_for_is_no_difference() -> None:
    wanted = "begin\ntook ... s\n...\nlast\nend\n"
    output = "begin\ntook 0.5 s\nx\ny\nlost\nlast\nend?\n"
    assert diff(wanted, output) == [
        "--- wanted", "+++ output", "@@ -4,4 +4,4 @@", " y", " lost", " last", "-end", "+end?",
    ]  # fmt: skip


def test_a_line_too_many_does_not_make_the_rest_differ() -> None:
    assert diff("a\n...b\nc\n", "a\nnew\n1b\nc\n")[3:] == [" a", "+new", " 1b", " c"]
    assert diff("a\n...b\nc\n...\nz\n", "a\nc\nz\n")[3:] == [" a", "-...b", " c", " z"]
    assert filled(["...\n", "gone\n"], ["a\n"]) == ["...\n", "gone\n"]


def test_an_end_without_a_newline_is_seen() -> None:
    assert diff("a\n", "a")[3:] == ["-a", "+a", "\\ no newline at the end"]
    assert coloured(["@@ -1 +1 @@", "-a", "+b", " c", ""])[1:] == ["\x1b[31m-a\x1b[0m", "\x1b[32m+b\x1b[0m", " c", ""]


def test_long_outputs_are_cut_where_they_begin_to_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtest, "DIFF_LINES_MAX", 10)
    many = [f"{number}\n" for number in range(100)]
    shown = difference(many, [*many[:50], "other\n", *many[51:]], "wanted", "output")
    assert shown[2] == "@@ -48,7 +48,7 @@" and shown[6:8] == ["-50", "+other"]
    assert shown[-1] == "(lines from 58 on are not shown)"


def test_bytes_that_are_no_text_differ() -> None:
    assert lines_of(b"\xff\n") != lines_of(b"\xfe\n")
    assert lines_of("a\u2028b\x0cc\rd\n".encode()) == ["a\u2028b\x0cc\rd\n"]


def test_what_is_said_of_a_script_that_has_ended(tmp_path: Path) -> None:
    file = tmp_path / "a.expected"
    file.write_text("x ...\n")
    report = compare("a.py", file, Ended(b"x 1\n", 0, ""), False)
    assert report.passed and report.reason == "" and report.diff == [] and not report.updated
    report = compare("a.py", file, Ended(b"x 1\n", 3, "ended with exit code 3"), False)
    assert not report.passed and report.reason == "ended with exit code 3, though its output is as expected"
    report = compare("a.py", file, Ended(b"y\n", 0, ""), False)
    assert not report.passed and report.reason == f"its output is not that of {str(file)!r}"
    assert report.diff[-2:] == ["-x ...", "+y"]
    report = compare("a.py", file, Ended(b"y\n", None, "did not end within 1 s and was killed"), False)
    assert report.reason == f"did not end within 1 s and was killed, and its output is not that of {str(file)!r}"


def test_updating(tmp_path: Path) -> None:
    """1. What fits is left alone, with its dots. 2. What does not is written. 3. Not so from a script that failed."""
    file = tmp_path / "a.expected"
    file.write_text("x ...\n")
    report = compare("a.py", file, Ended(b"x 1\n", 0, ""), True)
    assert report.passed and not report.updated and file.read_text() == "x ...\n"
    report = compare("a.py", file, Ended(b"\xff", 0, ""), True)
    assert report.passed and report.updated and file.read_bytes() == b"\xff"
    report = compare("a.py", file, Ended(b"z\n", 1, "ended with exit code 1"), True)
    assert not report.passed and not report.updated and file.read_bytes() == b"\xff"
    file.unlink()
    report = compare("a.py", file, Ended(b"", 1, "ended with exit code 1"), True)
    assert report.reason == f"ended with exit code 1, and {str(file)!r} was not written" and not file.exists()


def test_what_cannot_be_meant(tmp_path: Path) -> None:
    script = tmp_path / "two words.py"

    def refused(**changes: object) -> str:
        given = {
            "script": str(script), "args": [], "runners": 1, "expected": None, "timeout": 5.0, "update": False,
        }  # fmt: skip
        with pytest.raises(Misuse) as caught:
            run_test(**{**given, **changes})  # type: ignore[arg-type]
        return str(caught.value)

    assert refused() == f"there is no script {str(script)!r}"
    assert "no script" in refused(script=str(tmp_path))
    script.touch()
    assert refused().endswith(f"make it with: raskid run-test '{script}' --update")
    assert refused(expected="x", args=["-q"]).endswith(f"'{script}' --expected x --update -- -q")
    assert "would be the script itself" in refused(expected=str(script), update=True)
    assert "runners is a whole number" in refused(runners=0)
    assert "timeout is a positive number" in refused(timeout=0.0)
