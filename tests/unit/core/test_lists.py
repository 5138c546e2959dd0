"""Replicas of lists: exact effects."""

from raskid.core.effects import Effect, ListChanged, ListRefused, Replied, Send, Unhandled
from raskid.core.events import Received, UnwatchList, WatchList
from raskid.core.lists import Lists, Replica
from raskid.model.ids import PeerId, RequestId
from raskid.protocol.messages import (
    AcknowledgeList,
    AnyMessage,
    ListState,
    Record,
    RecordDeleted,
    RecordPut,
    RecordSettled,
    RequestRefused,
    TopicsListed,
    Unwatch,
    Watch,
)

HUB = PeerId("head")
NAME = "shared:x"


def watch(number: int, acks: bool = False, name: str = NAME) -> Send:
    return Send(HUB, Watch(name, acks, RequestId(number)))


def told(lists: Lists, message: AnyMessage) -> list[object]:
    effects: list[object] = [*lists.handle(Received(HUB, message), 0.0)]
    lists.check_invariants()
    return effects


def test_a_list_is_followed_until_nobody_follows_it() -> None:
    lists = Lists(HUB)
    assert lists.handle(WatchList(NAME), 0.0) == [watch(1)]
    assert lists.handle(WatchList(NAME), 0.0) == []
    assert told(lists, ListState(NAME, 3, [Record("r", b"1")])) == [ListChanged(NAME, 3, None)]
    assert told(lists, RecordPut(NAME, 4, Record("s", b"2"))) == [ListChanged(NAME, 4, "s", Record("s", b"2"))]
    assert told(lists, RecordDeleted(NAME, 5, "r")) == [ListChanged(NAME, 5, "r")]
    assert lists.replicas[NAME].records == {"s": Record("s", b"2")}
    assert lists.handle(UnwatchList(NAME), 0.0) == []
    assert lists.handle(UnwatchList(NAME), 0.0) == [Send(HUB, Unwatch(NAME))]
    assert told(lists, RecordDeleted(NAME, 6, "s")) == []


def test_what_answers_an_earlier_watch_is_not_taken_for_the_state() -> None:
    lists = Lists(HUB)
    for event in (WatchList(NAME), UnwatchList(NAME), WatchList(NAME)):
        lists.handle(event, 0.0)
    assert told(lists, ListState(NAME, 3, [])) == []
    assert told(lists, RecordPut(NAME, 4, Record("s", b"2"))) == []
    assert told(lists, ListState(NAME, 5, [])) == [ListChanged(NAME, 5, None)]
    assert told(lists, RecordPut(NAME, 6, Record("s", b"2"))) == [ListChanged(NAME, 6, "s", Record("s", b"2"))]


def test_a_reader_that_must_acknowledge_later_asks_anew() -> None:
    lists = Lists(HUB)
    lists.handle(WatchList(NAME), 0.0)
    told(lists, ListState(NAME, 3, []))
    assert lists.follow(NAME, acks=True) == [watch(2, True)]
    assert told(lists, RecordPut(NAME, 4, Record("s", b"2"))) == []
    state = ListState(NAME, 4, [Record("s", b"2")])
    assert told(lists, state) == [ListChanged(NAME, 4, None), Send(HUB, AcknowledgeList(NAME, 4))]


def test_answers_are_passed_on() -> None:
    answer = RecordSettled(RequestId(7), 1)
    assert told(Lists(HUB), answer) == [Replied(7, answer)]


class Watcher:
    def __init__(self) -> None:
        self.refused: list[tuple[str, str, str]] = []

    def on_replica(self, topic: str, replica: Replica, change: object, now: float) -> list[Effect]:
        return []

    def on_refused(self, topic: str, code: str, text: str) -> list[Effect]:
        self.refused.append((topic, code, text))
        return []


def test_a_refused_watch_is_told_and_may_be_tried_again() -> None:
    lists = Lists(HUB)
    watcher = lists.observers["shared"] = Watcher()
    lists.handle(WatchList(NAME), 0.0)
    refused = RequestRefused(RequestId(1), "Overflow", "too many")
    assert told(lists, refused) == [ListRefused(NAME, "Overflow", "too many")]
    assert watcher.refused == [("x", "Overflow", "too many")] and not lists.replicas
    assert lists.handle(WatchList(NAME), 0.0) == [watch(2)]
    assert told(lists, ListState(NAME, 5, [])) == [ListChanged(NAME, 5, None)]


def test_the_refusal_of_an_earlier_watch_is_not_taken_for_the_last() -> None:
    lists = Lists(HUB)
    for event in (WatchList(NAME), UnwatchList(NAME), WatchList(NAME)):
        lists.handle(event, 0.0)
    assert told(lists, RequestRefused(RequestId(1), "Overflow", "too many")) == []
    assert told(lists, ListState(NAME, 5, [])) == [ListChanged(NAME, 5, None)]


def test_only_the_hub_says_what_lists_hold() -> None:
    lists = Lists(HUB)
    lists.handle(WatchList(NAME), 0.0)
    told(lists, ListState(NAME, 3, []))
    forged: list[AnyMessage] = [
        ListState(NAME, 9, [Record("evil", b"")]), RecordPut(NAME, 4, Record("evil", b"")), RecordDeleted(NAME, 4, "r"),
        RecordSettled(RequestId(7), 1), TopicsListed(RequestId(7), []), RequestRefused(RequestId(7), "Overflow", ""),
    ]  # fmt: skip
    for message in forged:
        effects = lists.handle(Received(PeerId("mallory"), message), 0.0)
        assert effects == [Unhandled(PeerId("mallory"), type(message).__name__, "only the hub may send it")]
    assert lists.replicas[NAME].records == {} and lists.replicas[NAME].version == 3


def test_every_change_that_the_hub_sent_is_counted() -> None:
    """Also one of a list that is followed no longer: the hub counts what it sends."""
    lists = Lists(HUB, agent=PeerId("n"))
    assert lists.handle(WatchList(NAME), 0.0) == [Send(HUB, Watch(NAME, False, RequestId(1), PeerId("n")))]
    told(lists, ListState(NAME, 1, []))
    told(lists, RecordPut(NAME, 2, Record("r", b"1")))
    lists.handle(UnwatchList(NAME), 0.0)
    told(lists, RecordDeleted(NAME, 3, "r"))
    assert lists.changes == 2
    lists.handle(Received(PeerId("x"), RecordDeleted(NAME, 4, "r")), 0.0)
    assert lists.changes == 2
