"""Names of topics and of lists: what is accepted, and what a refusal says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raskid.model.errors import RaskidError, TopicNameError
from raskid.model.topics import LIST_KINDS, TOPIC_BYTES_MAX, check_list_name, check_topic, list_name


@pytest.mark.parametrize("name", ["a", "mesh/ready", "a:b", "a@b", "a b", "температура", "x" * TOPIC_BYTES_MAX])
def test_good_names_are_returned_unchanged(name: str) -> None:
    assert check_topic(name) == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (7, "is text, got int: '7'"),
        (b"mesh", "is text, got bytes"),
        (None, "is text, got NoneType"),
        ("", "is empty"),
        ("x" * (TOPIC_BYTES_MAX + 1), "256 characters"),
        ("ж" * 128, "255 bytes of UTF-8"),
        ("@site/mesh", "begins with '@'"),
        ("mesh\nready", "control character"),
        ("mesh\x00", "control character"),
        ("\ud800", "control character"),
    ],
)
def test_bad_names_are_refused_with_the_reason(name: object, says: str) -> None:
    with pytest.raises(TopicNameError, match=says):
        check_topic(name)


def test_the_error_is_a_value_error_and_one_of_ours() -> None:
    assert issubclass(TopicNameError, ValueError)
    assert issubclass(TopicNameError, RaskidError)


@pytest.mark.parametrize("length", [2**10, 2**20])
def test_the_error_for_a_long_name_is_short(length: int) -> None:
    with pytest.raises(TopicNameError) as caught:
        check_topic("x" * length)
    assert len(str(caught.value)) < 300


def test_limit_counts_bytes_not_characters() -> None:
    assert check_topic("ж" * 127)
    with pytest.raises(TopicNameError):
        check_topic("ж" * 127 + "xx")


@pytest.mark.parametrize("kind", LIST_KINDS)
def test_a_list_is_named_by_kind_and_topic(kind: str) -> None:
    assert list_name(kind, "mesh/ready") == f"{kind}:mesh/ready"


def test_a_list_of_a_bad_topic_has_no_name() -> None:
    with pytest.raises(TopicNameError, match="is empty"):
        list_name("shared", "")


@pytest.mark.parametrize("name", ["", "shared", "other:mesh", ":mesh", "mesh:shared"])
def test_names_of_no_list_are_refused(name: str) -> None:
    with pytest.raises(TopicNameError, match="names no list; expected one of reactions, shared, services"):
        check_list_name(name)


def test_a_list_name_with_a_bad_topic_is_refused() -> None:
    with pytest.raises(TopicNameError, match="begins with '@'"):
        check_list_name("shared:@site")


@given(kind=st.sampled_from(LIST_KINDS), topic=st.text(alphabet="abж:/@ .", min_size=1, max_size=60))
def test_list_names_split_into_what_they_were_made_of(kind: str, topic: str) -> None:
    if topic[0] == "@":
        with pytest.raises(TopicNameError):
            list_name(kind, topic)
    else:
        assert check_list_name(list_name(kind, topic)) == (kind, topic)
