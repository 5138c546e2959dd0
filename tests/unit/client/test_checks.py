import pytest

from raskid.client import checks


@pytest.mark.parametrize(("value", "seconds"), [(1, 1.0), (0.5, 0.5), (0, 0.0), (1e99, checks.SECONDS_MAX)])
def test_seconds(value, seconds):
    found = checks.check_seconds("limit", value)
    assert found == seconds and type(found) is float
    assert checks.check_limit("limit", value) == seconds


def test_numbers_of_numpy_are_numbers():
    np = pytest.importorskip("numpy")
    assert checks.check_seconds("limit", np.float32(0.5)) == 0.5
    found = checks.check_count("count", np.int64(3), 1, 5)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", ["1", None, [], True, 1j])
def test_no_seconds(value):
    with pytest.raises(TypeError, match="limit is a number of seconds, got"):
        checks.check_seconds("limit", value)


@pytest.mark.parametrize("value", [-1, float("nan"), float("-inf")])
def test_seconds_that_cannot_pass(value):
    with pytest.raises(ValueError, match="0 or more"):
        checks.check_seconds("limit", value)


def test_no_limit():
    assert checks.check_limit("limit", None) is None
    assert checks.check_limit("limit", float("inf")) is None


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (6, ValueError), ("3", TypeError), (3.0, TypeError), (True, TypeError)]
)
def test_counts(value, error):
    with pytest.raises(error, match="count is a whole number from 1 to 5"):
        checks.check_count("count", value, 1, 5)


def test_flags():
    assert checks.check_flag("flag", True) is True
    with pytest.raises(TypeError, match="flag is True or False, got 1 of type int"):
        checks.check_flag("flag", 1)


def test_text():
    class Text(str):
        pass

    assert type(checks.check_text("text", Text("a"), 1)) is str
    assert type(checks.check_name(Text("a"))) is str
    with pytest.raises(ValueError, match="has 2 characters"):
        checks.check_text("text", "ab", 1)
    with pytest.raises(TypeError, match="text is text, got b'a' of type bytes"):
        checks.check_text("text", b"a", 1)
