"""Replicas of lists: exact effects."""

from raskid.core.lists import ListChanged, Lists, Replied, UnwatchList, WatchList
from raskid.core.machine import Received, Send
from raskid.model.ids import PeerId, RequestId
from raskid.protocol.messages import (
    AcknowledgeList,
    AnyMessage,
    ListState,
    Record,
    RecordDeleted,
    RecordPut,
    RecordSettled,
    Unwatch,
    Watch,
)

HUB = PeerId("head")
NAME = "shared:x"


def told(lists: Lists, message: AnyMessage) -> list[object]:
    effects: list[object] = [*lists.handle(Received(HUB, message), 0.0)]
    lists.check_invariants()
    return effects


def test_a_list_is_followed_until_nobody_follows_it() -> None:
    lists = Lists(HUB)
    assert lists.handle(WatchList(NAME), 0.0) == [Send(HUB, Watch(NAME))]
    assert lists.handle(WatchList(NAME), 0.0) == []
    assert told(lists, ListState(NAME, 3, [Record("r", b"1")])) == [ListChanged(NAME, 3, None)]
    assert told(lists, RecordPut(NAME, 4, Record("s", b"2"))) == [ListChanged(NAME, 4, "s")]
    assert told(lists, RecordDeleted(NAME, 5, "r")) == [ListChanged(NAME, 5, "r")]
    assert lists.replicas[NAME].records == {"s": Record("s", b"2")}
    assert lists.handle(UnwatchList(NAME), 0.0) == []
    assert lists.handle(UnwatchList(NAME), 0.0) == [Send(HUB, Unwatch(NAME))]
    assert told(lists, RecordDeleted(NAME, 6, "s")) == []


def test_changes_for_an_earlier_watch_are_not_taken_for_the_state() -> None:
    lists = Lists(HUB)
    for event in (WatchList(NAME), UnwatchList(NAME), WatchList(NAME)):
        lists.handle(event, 0.0)
    assert told(lists, RecordPut(NAME, 4, Record("s", b"2"))) == []
    assert told(lists, ListState(NAME, 5, [])) == [ListChanged(NAME, 5, None)]


def test_a_reader_that_must_acknowledge_later_asks_anew() -> None:
    lists = Lists(HUB)
    lists.handle(WatchList(NAME), 0.0)
    told(lists, ListState(NAME, 3, []))
    assert lists.follow(NAME, acks=True) == [Send(HUB, Watch(NAME, True))]
    assert told(lists, RecordPut(NAME, 4, Record("s", b"2"))) == []
    state = ListState(NAME, 4, [Record("s", b"2")])
    assert told(lists, state) == [ListChanged(NAME, 4, None), Send(HUB, AcknowledgeList(NAME, 4))]


def test_answers_are_passed_on() -> None:
    answer = RecordSettled(RequestId(7), 1)
    assert told(Lists(HUB), answer) == [Replied(7, answer)]
