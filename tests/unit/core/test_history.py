"""What a basket has and what comes live, as one sequence: exact messages and questions."""

from __future__ import annotations

import pytest

from raskid.core import history as history_module
from raskid.core.basket import Extract, Page
from raskid.core.history import History, Messages


class Reader:
    """A history whose outcome is written down: ``p3`` is message 3 of p."""

    def __init__(self, **limits: int) -> None:
        self.history = History(**limits)

    def _names(self, messages: Messages) -> list[str]:
        self.history.check_invariants()
        assert all(body == f"{publisher}{number}".encode() for publisher, number, body in messages)
        return [f"{publisher}{number}" for publisher, number, _ in messages]

    def introduced(self, publisher: str, first: int) -> list[str]:
        return self._names(self.history.introduced(publisher, first))

    def live(self, *names: str) -> list[str]:
        return [it for name in names for it in self._names(self.history.live(name[0], int(name[1:]), name.encode()))]

    def page(self, *names: str) -> list[str]:
        return self._names(self.history.stored(Page(_messages(names), 0, False, {})))

    def last_page(self, *names: str, **latest: int) -> list[str]:
        highest = {name[0]: int(name[1:]) for name in names} | latest
        return self._names(self.history.stored(Page(_messages(names), 0, True, highest)))

    def answered(self, publisher: str, until: int, *numbers: int) -> list[str]:
        messages = [(number, f"{publisher}{number}".encode()) for number in numbers]
        return self._names(self.history.answered(publisher, Extract(messages, until)))

    def ended(self, publisher: str) -> list[str]:
        return self._names(self.history.publisher_ended(publisher))

    def questions(self) -> list[tuple[str, int, int]]:
        return self.history.take_questions()

    @property
    def dropped(self) -> int:
        return self.history.dropped


def _messages(names: tuple[str, ...]) -> Messages:
    return [(name[0], int(name[1:]), name.encode()) for name in names]


def test_pages_come_first_and_what_is_live_behind_them() -> None:
    """1. Live messages wait while pages come. 2. Pages are handed out at once. 3. What comes twice counts once."""
    reader = Reader()
    assert reader.page("p1", "q1") == ["p1", "q1"]
    assert reader.introduced("p", 3) == []
    assert reader.live("p3", "p4") == []
    assert reader.page("p2", "p3") == ["p2", "p3"]
    assert reader.last_page("q2", p=3) == ["q2", "p4"]
    assert reader.live("p5") == ["p5"]
    assert reader.questions() == [] and reader.dropped == 0


def test_a_publisher_that_the_basket_does_not_know_goes_live_from_its_first_message() -> None:
    reader = Reader()
    assert reader.last_page() == []
    assert reader.introduced("p", 1) == []
    assert reader.live("p1", "p2") == ["p1", "p2"]
    assert reader.questions() == []


def test_what_was_under_way_to_the_basket_is_asked_for_and_the_publisher_waits() -> None:
    reader = Reader()
    assert reader.last_page("p1", "p2", "q1") == ["p1", "p2", "q1"]
    assert reader.introduced("p", 5) == []
    assert reader.questions() == [("p", 3, 4)]
    assert reader.questions() == [], "each question is named once"
    assert reader.live("p5", "p6") == []
    assert reader.introduced("q", 2) == [] and reader.live("q2") == ["q2"], "others do not wait"
    assert reader.answered("p", 4, 3, 4) == ["p3", "p4", "p5", "p6"]
    assert reader.live("p7") == ["p7"]
    assert reader.questions() == [] and reader.dropped == 0


def test_the_question_is_there_before_the_pages_are() -> None:
    reader = Reader()
    reader.introduced("p", 4)
    reader.live("p4")
    assert reader.questions() == []
    assert reader.last_page("p1", "p2") == ["p1", "p2"]
    assert reader.questions() == [("p", 3, 3)]
    assert reader.answered("p", 3, 3) == ["p3", "p4"]


def test_an_answer_in_parts_is_asked_for_until_it_is_whole() -> None:
    reader = Reader()
    reader.last_page("p1")
    reader.introduced("p", 6)
    assert reader.questions() == [("p", 2, 5)]
    assert reader.answered("p", 3, 2, 3) == ["p2", "p3"]
    assert reader.questions() == [("p", 4, 5)]
    assert reader.answered("p", 3) == [], "nothing yet"
    assert reader.questions() == [("p", 4, 5)]
    assert reader.answered("p", 5, 4, 5) == ["p4", "p5"]
    assert reader.questions() == []


def test_what_the_basket_will_not_have_is_counted_where_something_older_was_handed_out() -> None:
    reader = Reader()
    reader.last_page("p1")
    reader.introduced("p", 6)
    reader.introduced("q", 6)
    reader.live("p6", "q6")
    assert reader.questions() == [("p", 2, 5), ("q", 1, 5)]
    assert reader.answered("p", 5, 3) == ["p3", "p6"]
    assert reader.dropped == 3
    assert reader.answered("q", 5, 4, 5) == ["q4", "q5", "q6"]
    assert reader.dropped == 3, "the history of q begins with 4"


def test_what_has_expired_at_the_basket_is_not_asked_for() -> None:
    reader = Reader()
    assert reader.last_page("p4", q=9) == ["p4"]
    reader.introduced("p", 5)
    reader.introduced("q", 10)
    assert reader.live("p5", "q10") == ["p5", "q10"]
    assert reader.questions() == [] and reader.dropped == 0


def test_what_goes_from_the_basket_while_it_is_read_is_counted() -> None:
    reader = Reader()
    reader.page("p1", "q1")
    assert reader.last_page("p4", q=3) == ["p4"]
    assert reader.dropped == 2
    reader.introduced("q", 4)
    assert reader.dropped == 4 and reader.questions() == []


def test_what_the_basket_has_no_more_and_came_live_is_not_lost() -> None:
    """1. Live messages wait. 2. The basket has a later one only, or none. 3. They are handed out before it."""
    reader = Reader()
    reader.introduced("p", 3)
    reader.live("p3", "p4", "p5", "p6")
    reader.introduced("q", 1)
    reader.live("q1", "q2")
    assert reader.last_page("p1", "p5", q=2) == ["p1", "p3", "p4", "p5", "p6", "q1", "q2"]
    assert reader.dropped == 1 and reader.questions() == []


def test_what_the_basket_has_waits_for_live_messages_before_it_that_are_still_on_their_way() -> None:
    """1. The basket came later than the subscriber. 2. The live messages between come after the pages."""
    reader = Reader()
    reader.introduced("p", 1)
    reader.live("p1", "p2")
    assert reader.page("p5", "q1") == ["p1", "p2", "q1"], "others do not wait"
    assert reader.live("p3") == []
    assert reader.last_page("p6", "p7") == ["p3"]
    assert reader.live("p4") == ["p4", "p5", "p6", "p7"]
    assert reader.live("p5", "p6", "p7", "p8") == ["p8"]
    assert reader.questions() == [] and reader.dropped == 0


def test_what_waits_for_live_messages_comes_when_something_later_does() -> None:
    reader = Reader()
    reader.introduced("p", 1)
    assert reader.last_page("p3", "p6") == []
    assert reader.live("p2", "p5") == ["p2", "p3", "p5", "p6"]
    assert reader.dropped == 2


def test_what_waits_for_live_messages_comes_when_its_publisher_ends() -> None:
    """1. It ends before the last page, with something that waits. 2. It ends after the last page."""
    reader = Reader()
    reader.introduced("p", 1)
    assert reader.page("p4") == []
    reader.live("p1", "p2")
    assert reader.ended("p") == ["p1", "p2", "p4"]
    assert reader.dropped == 1
    reader.introduced("q", 1)
    assert reader.last_page("p6", "q3") == ["p6"]
    assert reader.ended("q") == ["q3"]


def test_what_waits_for_live_messages_has_a_bound() -> None:
    reader = Reader(held_max=2)
    reader.introduced("p", 1)
    reader.live("p1")
    assert reader.last_page("p3", "p4", "p5") == ["p1", "p3", "p4", "p5"]
    assert reader.dropped == 1


def test_a_hand_over_fills_the_gap_that_messages_wait_for() -> None:
    reader = Reader()
    reader.introduced("p", 1)
    assert reader.page("p2", "p5") == []
    assert reader.page("p4", "p5") == []
    assert reader.last_page("p1", "p3", "p4", "p5") == ["p1", "p2", "p3", "p4", "p5"]
    assert reader.dropped == 0


def test_pages_that_overlap_after_a_hand_over_double_nothing() -> None:
    reader = Reader()
    assert reader.page("p3", "p4") == ["p3", "p4"]
    assert reader.last_page("p1", "p2", "p3", "p4", "p5") == ["p5"]
    assert reader.dropped == 0


def test_a_publisher_that_keeps_its_messages_gives_them_itself() -> None:
    reader = Reader()
    assert reader.last_page("p3", "p4") == ["p3", "p4"]
    assert reader.introduced("p", 1) == []
    assert reader.live(*(f"p{n}" for n in range(1, 7))) == ["p5", "p6"]
    assert reader.questions() == []


def test_what_the_subscription_left_out_is_counted_and_not_asked_for() -> None:
    reader = Reader()
    reader.last_page()
    reader.introduced("p", 1)
    assert reader.live("p3", "p4", "p7") == ["p3", "p4", "p7"]
    assert reader.dropped == 4 and reader.questions() == []


def test_a_publisher_that_introduces_itself_again_is_asked_for_what_it_published_between() -> None:
    reader = Reader()
    reader.last_page()
    reader.introduced("p", 1)
    assert reader.live("p1", "p2") == ["p1", "p2"]
    reader.history.publisher_ended("p")
    assert reader.introduced("p", 5) == []
    assert reader.questions() == [("p", 3, 4)]
    reader.live("p5")
    reader.introduced("p", 8)
    reader.introduced("p", 9)
    reader.live("p9")
    assert reader.answered("p", 4, 3, 4) == ["p3", "p4", "p5"]
    assert reader.questions() == [("p", 6, 8)], "the last introduction counts"
    assert reader.answered("p", 8, 6, 7, 8) == ["p6", "p7", "p8", "p9"]
    assert reader.dropped == 0


def test_a_publisher_that_says_again_what_it_said_does_not_put_off_an_answer() -> None:
    reader = Reader()
    reader.last_page()
    for _ in range(3):
        reader.introduced("p", 3)
    assert reader.questions() == [("p", 1, 2)]
    assert len(reader.history._sources["p"].held) == 1
    assert reader.answered("p", 2, 2) == ["p2"]
    assert reader.live("p3") == ["p3"]


def test_a_publisher_that_did_not_introduce_itself_is_live_all_the_same() -> None:
    reader = Reader()
    reader.last_page()
    assert reader.live("p4", "p5") == ["p4", "p5"]
    assert reader.dropped == 0


def test_a_publisher_that_ends_loses_nothing_that_waits() -> None:
    reader = Reader()
    reader.introduced("p", 2)
    reader.live("p2")
    reader.history.publisher_ended("p")
    reader.history.publisher_ended("unknown")
    assert reader.last_page() == []
    assert reader.answered("p", 1, 1) == ["p1", "p2"]


def test_a_basket_that_ends_leaves_what_is_live() -> None:
    reader = Reader()
    reader.last_page("p1", "q1")
    reader.introduced("p", 5)
    reader.live("p5")
    assert reader.questions() == [("p", 2, 4)]
    assert [it[1] for it in reader.history.basket_ended()] == [5]
    reader.history.check_invariants()
    assert reader.dropped == 3
    assert reader.answered("p", 4, 2, 3, 4) == [], "too late"
    reader.introduced("q", 4)
    assert reader.live("q4") == ["q4"]
    assert reader.questions() == [] and reader.dropped == 5


def test_a_basket_that_ends_before_its_last_page_leaves_what_is_live() -> None:
    reader = Reader()
    assert reader.page("p1") == ["p1"]
    reader.introduced("p", 2)
    reader.introduced("q", 7)
    reader.live("p2", "q7")
    assert [it[:2] for it in reader.history.basket_ended()] == [("p", 2), ("q", 7)]
    assert reader.page("p3") == [], "too late"
    assert reader.live("p3") == ["p3"] and reader.dropped == 0


def test_pages_after_the_last_one_are_left_out() -> None:
    reader = Reader()
    reader.last_page("p1")
    assert reader.page("p2") == [] and reader.last_page("p3") == []
    assert reader.answered("p", 9, 2, 3) == [], "nobody asked"
    assert reader.answered("q", 9, 1) == []


def test_an_answer_gives_only_what_was_asked_for() -> None:
    reader = Reader()
    reader.last_page("p2")
    reader.introduced("p", 5)
    assert reader.answered("p", 99, 1, 2, 3, 4, 5, 6) == ["p3", "p4"]
    assert reader.live("p5") == ["p5"]


@pytest.mark.parametrize("limits", [{"held_max": 2}, {"held_bytes_max": 4}])
def test_what_waits_has_a_bound_and_the_oldest_is_left_out(limits: dict[str, int]) -> None:
    reader = Reader(**limits)
    reader.introduced("p", 1)
    reader.introduced("q", 1)
    assert reader.live("p1", "q1", "p2", "q2", "p3") == []
    assert reader.last_page() == ["p3", "q2"]
    assert reader.dropped == 3


def test_what_was_left_out_while_it_waited_and_the_basket_has_is_not_missing() -> None:
    reader = Reader(held_max=1)
    reader.introduced("p", 3)
    reader.live("p3", "p4", "p5")
    assert reader.last_page("p1", "p2", "p3", "p4") == ["p1", "p2", "p3", "p4", "p5"]
    assert reader.dropped == 0


def test_what_waited_once_fills_no_memory() -> None:
    """p waits for its answer all the time, while q's questions are answered over and over."""
    reader = Reader()
    reader.last_page()
    reader.introduced("p", 2)
    reader.live("p2")
    for number in range(2, 1000, 2):
        reader.introduced("q", number)
        reader.live(f"q{number}")
        reader.answered("q", number - 1)
    assert len(reader.history._waiting) <= 66


def test_publishers_that_have_ended_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "ENDED_MAX", 2)
    reader = Reader()
    reader.last_page()
    reader.introduced("a", 2)
    for name in "abcd":
        if name != "a":
            assert reader.introduced(name, 1) == [] and reader.live(f"{name}1") == [f"{name}1"]
        reader.history.publisher_ended(name)
    assert set(reader.history._sources) == {"a", "d"}, "a still waits for an answer"
    assert reader.answered("a", 1, 1) == ["a1"]
