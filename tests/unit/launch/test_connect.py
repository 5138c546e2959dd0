"""What a URL and the arguments of `connect` mean; nothing is started here."""

from __future__ import annotations

from typing import Any

import pytest

from raskid.launch import local
from raskid.launch.connect import RUNNERS_MAX, Wanted, connect, read_url


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RASKID_URL", raising=False)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("local://?runners=3", Wanted("", 3, "execute", local.START_S)),
        ("local://?runners=3&timeout=1.5&role=view", Wanted("", 3, "view", 1.5)),
        ("local://name", Wanted("name", 0, "execute", local.START_S)),
        ("local://name/?role=message", Wanted("name", 0, "message", local.START_S)),
        ("local://two words", Wanted("two words", 0, "execute", local.START_S)),
        ("local://?runners=1&manager=mine:M", Wanted("", 1, "execute", local.START_S, "mine:M")),
    ],
)
def test_what_urls_mean(url: str, wanted: Wanted) -> None:
    assert read_url(url) == wanted


def test_without_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_url() == Wanted("", local.default_runners(), "execute", local.START_S)
    monkeypatch.setenv("RASKID_URL", "local://t?timeout=2")
    assert read_url() == Wanted("t", 0, "execute", 2.0)


def test_arguments_go_before_the_url() -> None:
    assert read_url("local://?runners=3&timeout=9", 2, 0.5) == Wanted("", 2, "execute", 0.5)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://[", r"'http://\[' cannot be read as a URL"),
        ("http://x", "has scheme 'http'; this version knows local:// only"),
        ("default", "does not begin with local://; did you mean 'local://default'"),
        ("local:default", "did you mean 'local://default'"),
        ("local://..", "does not begin with '.'"),
        ("local://a/b", "holds no '/'"),
        ("local://runners=2", r"did you mean local://\?runners=2"),
        ("local://?runers=2", "unknown parameter 'runers'; did you mean 'runners'"),
        ("local://?x=2", "known are runners, role, timeout, manager"),
        ("local://?runners=2&runners=3", "has the parameter 'runners' twice"),
        ("local://?runners", "written as name=value"),
        ("local://t#part", "'#' has no meaning here"),
        ("local://?role=vew", "got 'vew'; did you mean 'view'"),
        ("local://t?runners=2", "attaches to the system 't', which has its runners already"),
        ("local://t?manager=a:b", "attaches to the system 't', which has its manager already"),
        ("local://?manager=", "got an empty text"),
    ],
)
def test_urls_that_cannot_be_used(url: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_url(url)


@pytest.mark.parametrize("value", ["0", "-3", "5000", "2.0", "abc", "", "1_0", "True"])
def test_runners_in_a_url(value: str) -> None:
    with pytest.raises(ValueError, match=f"'local://.*runners is a whole number from 1 to {RUNNERS_MAX}, got"):
        read_url(f"local://?runners={value}")


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-3, ValueError), (5000, ValueError), ("2", TypeError), (2.0, TypeError), (True, TypeError)],
)
def test_runners_as_an_argument(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"runners is a whole number from 1 to {RUNNERS_MAX}, got {value!r}"):
        read_url("local://", runners=value)


@pytest.mark.parametrize("value", ["abc", "-1", "0", "nan", "inf", "1e9", ""])
def test_time_limits_in_a_url(value: str) -> None:
    with pytest.raises(ValueError, match=r"'local://.*timeout is a positive number of seconds"):
        read_url(f"local://?timeout={value}")


@pytest.mark.parametrize(
    ("value", "error"),
    [("abc", TypeError), (True, TypeError), (-1, ValueError), (0, ValueError), (float("nan"), ValueError)],
)
def test_time_limits_as_an_argument(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="timeout is a positive number of seconds"):
        read_url("local://", timeout=value)


def test_runners_do_not_go_with_a_name() -> None:
    with pytest.raises(ValueError, match="leave runners out"):
        connect("local://t", runners=2)


def test_managers_as_an_argument() -> None:
    assert read_url("local://?manager=a:b", manager="c:d").manager == "c:d"
    with pytest.raises(ValueError, match="leave manager out"):
        read_url("local://t", manager="c:d")
    with pytest.raises(TypeError, match=r"manager is text.*did you mean manager='builtins:int'"):
        read_url(manager=int)


def test_a_number_is_no_url() -> None:
    with pytest.raises(TypeError, match=r"did you mean connect\(runners=5\)"):
        connect(5)  # type: ignore[arg-type]


def test_the_environment_is_named_where_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RASKID_URL", "default")
    with pytest.raises(ValueError, match=r"environment variable RASKID_URL.* did you mean 'local://default'"):
        read_url()


def test_a_scheme_has_no_case():
    assert read_url("LOCAL://?runners=3", None, None) == read_url("local://?runners=3", None, None)


def test_a_task_does_not_start_a_second_system(monkeypatch):
    monkeypatch.delenv("RASKID_URL", raising=False)
    monkeypatch.setattr("raskid.services.publishing._publisher", object())
    with pytest.raises(RuntimeError, match=r"rk\.url"):
        connect()
