"""What a basket holds: messages of many topics, for subscribers that come later.

A message is named by its publisher and its number, which rises by one from message to message of that publisher and
topic. What is stored twice is kept once, so a basket may get the same messages from a subscription and from a publisher
that leaves and hands over what it kept. `publisher` names one incarnation of a peer: whoever counts from 1 anew has
another name.

Each topic has limits. Beyond them the oldest messages go, and are counted. So what is here of one publisher is its last
messages without gaps, unless messages were left out on their way here.

A basket can also say what it will not have (`latest`): messages under way to it come in order, so a number that is
lower than one that has come was dropped, or never sent here. Who reads the messages and merges them with those that
come live is `raskid.core.history`; asking for messages and answering readers is the service's part.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from raskid.core.deadlines import Deadlines
from raskid.model.errors import BasketFull, NotKept
from raskid.model.topics import check_topic

TOPICS_MAX = 10_000
#: A topic has no more messages than this, whatever its limits allow; bodies may be empty.
COUNT_MAX = 1_000_000
BYTES_MAX = 1 << 40
SECONDS_MAX = 1e9
#: Publishers without a message here are remembered, for each topic, up to so many.
EMPTY_MAX = 10_000
#: Lists that messages leave at the front are cut when they are longer than this and most of them is over.
SLACK = 64

_FOREVER = float("inf")


class Page:
    """Messages of a topic, in the order in which they came here."""

    __slots__ = ("complete", "latest", "messages", "position")

    def __init__(
        self, messages: list[tuple[str, int, bytes]], position: int, complete: bool, latest: dict[str, int]
    ) -> None:
        #: (publisher, number, body)
        self.messages = messages
        #: Where the next page begins.
        self.position = position
        #: Whether there is nothing after this page; `latest` is empty otherwise.
        self.complete = complete
        self.latest = latest


class Extract:
    """Messages of one publisher. Numbers up to `until` that are not among them will not come here any more."""

    __slots__ = ("messages", "until")

    def __init__(self, messages: list[tuple[int, bytes]], until: int) -> None:
        #: (number, body)
        self.messages = messages
        self.until = until


class TopicFacts:
    """What a basket says of a topic: what it holds now, its limits (None: none), and what has gone because of them."""

    __slots__ = ("body_bytes", "bytes_max", "count", "count_max", "dropped", "publishers", "seconds_max", "topic")

    def __init__(self, topic: str, shelf: _Shelf) -> None:
        self.topic = topic
        self.count = shelf.count
        self.body_bytes = shelf.body_bytes
        self.publishers = len(shelf.runs) - len(shelf.empty)
        self.dropped = shelf.dropped
        self.count_max = shelf.count_max
        self.bytes_max = shelf.bytes_max
        self.seconds_max: float | None = None if shelf.seconds_max == _FOREVER else shelf.seconds_max


class _Kept:
    """One message. It stays in its lists for a while after it has gone, without its body."""

    __slots__ = ("at", "body", "here", "number", "position", "run")

    def __init__(self, run: _Run, number: int, body: bytes, at: float, position: int) -> None:
        self.run = run
        self.number = number
        self.body = body
        #: When it was published, as far as that is known here.
        self.at = at
        self.position = position
        self.here = True


class _Run:
    """The messages of one publisher."""

    __slots__ = ("dropped_to", "ended", "kept", "latest", "publisher", "start")

    def __init__(self, publisher: str) -> None:
        self.publisher = publisher
        #: By number, rising; those before `start` have gone, and no others have.
        self.kept: list[_Kept] = []
        self.start = 0
        #: Messages up to this number have come, or will not come by themselves.
        self.latest = 0
        #: Messages up to this number went because of the limits, and are not taken again.
        self.dropped_to = 0
        self.ended = False

    def place(self, number: int) -> int:
        """Where in `kept` that number is, or would be."""
        return bisect_left(self.kept, number, lo=self.start, key=_number_of)

    def holds(self, number: int) -> bool:
        """Whether that message is here."""
        at = self.place(number)
        return at < len(self.kept) and self.kept[at].number == number

    def pop_first(self) -> None:
        """Its oldest message has gone."""
        self.dropped_to = max(self.dropped_to, self.kept[self.start].number)
        self.start += 1
        if self.start == len(self.kept) or (self.start > SLACK and 2 * self.start > len(self.kept)):
            del self.kept[: self.start]
            self.start = 0


class _Shelf:
    """A topic."""

    __slots__ = (
        "body_bytes", "bytes_max", "count", "count_max", "dropped", "empty", "order", "runs", "seconds_max", "start",
    )  # fmt: skip

    def __init__(self) -> None:
        self.count_max = COUNT_MAX
        self.seconds_max = _FOREVER
        self.bytes_max = BYTES_MAX
        #: All messages by position, rising, and some that have gone; all those before `start` have.
        self.order: list[_Kept] = []
        self.start = 0
        #: Of the messages that are here; within the limits after each call.
        self.count = 0
        self.body_bytes = 0
        self.dropped = 0
        self.runs: dict[str, _Run] = {}
        #: The publishers without a message here, in the order in which they became so.
        self.empty: dict[str, None] = {}

    def first(self) -> _Kept:
        """The message that came first; there is one."""
        while not self.order[self.start].here:
            self.start += 1
        return self.order[self.start]

    def leave(self, kept: _Kept) -> None:
        """A message is not at this position any more."""
        self.count -= 1
        self.body_bytes -= len(kept.body)
        kept.here = False
        kept.body = b""
        if len(self.order) > SLACK and len(self.order) > 2 * self.count:
            self.order = [it for it in self.order if it.here]
            self.start = 0


def _number_of(kept: _Kept) -> int:
    return kept.number


def _position_of(kept: _Kept) -> int:
    return kept.position


class Basket:
    """The messages of all topics of one basket."""

    def __init__(self) -> None:
        self._shelves: dict[str, _Shelf] = {}
        #: The last position that was given, in any topic: positions mean the same after a topic was dropped.
        self._position = 0
        #: When the oldest message of (topic, publisher) expires, where the topic has a limit in seconds.
        self._expiry: Deadlines[tuple[str, str]] = Deadlines()

    # ── Topics ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def keep(
        self, topic: str, now: float, *, count: int | None = None, seconds: float | None = None, size: int | None = None
    ) -> None:
        """Keep messages of a topic from here on, or change its limits.

        Args:
            topic: The topic's name.
            now: The time.
            count: So many messages at most.
            seconds: Each for so long.
            size: Bodies of so many bytes at most, all together.
        Raises:
            TopicNameError: That is no name of a topic.
            ValueError: A limit is out of range.
            BasketFull: There are too many topics here.
        """
        check_topic(topic)
        count_max = COUNT_MAX if count is None else count
        seconds_max = _FOREVER if seconds is None else seconds
        bytes_max = BYTES_MAX if size is None else size
        if not 1 <= count_max <= COUNT_MAX:
            raise ValueError(f"a basket cannot keep {count_max:,} messages of {topic!r}; expected 1 to {COUNT_MAX:,}")
        if not (0 < seconds_max <= SECONDS_MAX or seconds is None):
            raise ValueError(f"a basket cannot keep {topic!r} for {seconds} s; expected more than 0, or no limit")
        if not 1 <= bytes_max <= BYTES_MAX:
            raise ValueError(f"a basket cannot keep {bytes_max:,} bytes of {topic!r}; expected 1 to {BYTES_MAX:,}")
        shelf = self._shelves.get(topic)
        if shelf is None:
            if len(self._shelves) >= TOPICS_MAX:
                raise BasketFull(
                    f"this basket keeps {TOPICS_MAX:,} topics, and cannot keep {topic!r:.80} as well. Drop topics that "
                    "nobody needs, use a basket of another name, or put the key into the message, not into the topic"
                )
            shelf = self._shelves[topic] = _Shelf()
        shelf.count_max, shelf.seconds_max, shelf.bytes_max = count_max, seconds_max, bytes_max
        for run in list(shelf.runs.values()):
            self._watch(topic, shelf, run)
        self._trim(topic, shelf, now)

    def drop(self, topic: str) -> int:
        """Forget a topic and its messages; returns how many these were.

        Raises:
            NotKept: The topic is not kept here.
        """
        shelf = self._shelf(topic)
        for publisher in shelf.runs:
            self._expiry.cancel((topic, publisher))
        del self._shelves[topic]
        return shelf.count

    def topics(self) -> list[str]:
        """What is kept here, in the order in which that began."""
        return list(self._shelves)

    def keeps(self, topic: str) -> bool:
        """Whether messages of that topic are kept here."""
        return topic in self._shelves

    def facts(self, topic: str) -> TopicFacts:
        """What there is to say of a topic.

        Raises:
            NotKept: The topic is not kept here.
        """
        return TopicFacts(topic, self._shelf(topic))

    # ── Messages come ────────────────────────────────────────────────────────────────────────────────────────────────

    def introduce(self, topic: str, publisher: str, first: int) -> None:
        """`publisher` sends here what it publishes from number `first` on, and nothing older."""
        shelf = self._shelves.get(topic)
        if shelf is not None:
            run = self._run(topic, shelf, publisher)
            run.ended = False
            run.latest = max(run.latest, first - 1)

    def end(self, topic: str, publisher: str) -> None:
        """`publisher` sends nothing more here."""
        shelf = self._shelves.get(topic)
        if shelf is not None:
            self._run(topic, shelf, publisher).ended = True

    def store(self, topic: str, publisher: str, number: int, body: bytes, now: float) -> bool:
        """Keep a message as it comes from its publisher, in order; returns whether it is new here.

        What comes for a topic that is not kept (any more) is left out.

        Raises:
            ValueError: That is no number of a message.
        """
        _check_number(publisher, number)
        shelf = self._shelves.get(topic)
        if shelf is None:
            return False
        run = self._run(topic, shelf, publisher)
        if number <= run.latest:
            return False
        self._append(topic, shelf, run, number, body, now)
        self._trim(topic, shelf, now)
        return True

    def take_over(self, topic: str, publisher: str, messages: list[tuple[int, bytes, float]], now: float) -> int:
        """Keep what a publisher that leaves has kept itself; returns how many of these messages are new here.

        Messages that fill a gap, or come before those that are here, are put in front of them: the later ones of that
        publisher move to the end of the topic, since readers may be past their place.

        Args:
            topic: The topic's name.
            publisher: Whose messages these are.
            messages: (number, body, age in seconds), in any order; may overlap what is here.
            now: The time.
        Raises:
            NotKept: The topic is not kept here.
            ValueError: A number or an age is none.
        """
        for number, _, age_s in messages:
            _check_number(publisher, number)
            if not 0 <= age_s < _FOREVER:
                raise ValueError(f"message {number} of {publisher} is said to be {age_s} s old; expected 0 or more")
        shelf = self._shelf(topic)
        run = self._run(topic, shelf, publisher)
        new = {
            number: (body, now - age_s)
            for number, body, age_s in messages
            if number > run.dropped_to and not run.holds(number)
        }
        if not new:
            return 0
        place = run.place(min(new))
        later = run.kept[place:]
        del run.kept[place:]
        for kept in later:
            new[kept.number] = (kept.body, kept.at)
            shelf.leave(kept)
        for number in sorted(new):
            body, at = new[number]
            self._append(topic, shelf, run, number, body, at)
        self._watch(topic, shelf, run)
        self._trim(topic, shelf, now)
        return len(new) - len(later)

    def _append(self, topic: str, shelf: _Shelf, run: _Run, number: int, body: bytes, at: float) -> None:
        begins = run.start == len(run.kept)
        self._position += 1
        kept = _Kept(run, number, body, at, self._position)
        run.kept.append(kept)
        run.latest = max(run.latest, number)
        shelf.order.append(kept)
        shelf.count += 1
        shelf.body_bytes += len(body)
        if begins:
            self._watch(topic, shelf, run)

    # ── Messages go ──────────────────────────────────────────────────────────────────────────────────────────────────

    def expire(self, now: float) -> None:
        """Drop what has been here for too long."""
        for topic, publisher in self._expiry.take_due(now):
            shelf = self._shelves[topic]
            run = shelf.runs[publisher]
            while run.kept and run.kept[run.start].at + shelf.seconds_max <= now:
                self._drop_first(shelf, run)
            self._watch(topic, shelf, run)

    def next_deadline(self) -> float | None:
        """When `expire` has something to do next."""
        return self._expiry.first()

    def _trim(self, topic: str, shelf: _Shelf, now: float) -> None:
        """Drop the oldest messages until the topic is within its limits."""
        self.expire(now)
        while shelf.count > shelf.count_max or shelf.body_bytes > shelf.bytes_max:
            run = shelf.first().run
            self._drop_first(shelf, run)
            self._watch(topic, shelf, run)

    def _drop_first(self, shelf: _Shelf, run: _Run) -> None:
        shelf.leave(run.kept[run.start])
        run.pop_first()
        shelf.dropped += 1

    def _watch(self, topic: str, shelf: _Shelf, run: _Run) -> None:
        """The first message of a publisher has changed, or the limits have."""
        if not run.kept:
            self._expiry.cancel((topic, run.publisher))
            shelf.empty.setdefault(run.publisher)
            if len(shelf.empty) > EMPTY_MAX:
                forgotten = next(iter(shelf.empty))
                del shelf.empty[forgotten], shelf.runs[forgotten]
            return
        shelf.empty.pop(run.publisher, None)
        if shelf.seconds_max < _FOREVER:
            self._expiry.set((topic, run.publisher), run.kept[run.start].at + shelf.seconds_max)
        else:
            self._expiry.cancel((topic, run.publisher))

    def _run(self, topic: str, shelf: _Shelf, publisher: str) -> _Run:
        run = shelf.runs.get(publisher)
        if run is None:
            run = shelf.runs[publisher] = _Run(publisher)
            self._watch(topic, shelf, run)
        return run

    # ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, topic: str, after: int, count: int, size: int) -> Page:
        """The messages after a position, 0 for all: up to `count` of them and about `size` bytes, at least one.

        Raises:
            NotKept: The topic is not kept here.
        """
        shelf = self._shelf(topic)
        order = shelf.order
        at = bisect_right(order, after, lo=shelf.start, key=_position_of)
        messages: list[tuple[str, int, bytes]] = []
        room = size
        while at < len(order):
            kept = order[at]
            if kept.here:
                room -= len(kept.body)
                if messages and (len(messages) >= count or room < 0):
                    return Page(messages, after, False, {})
                messages.append((kept.run.publisher, kept.number, kept.body))
                after = kept.position
            at += 1
        return Page(messages, after, True, self.latest(topic))

    def read_publisher(self, topic: str, publisher: str, first: int, last: int, count: int, size: int) -> Extract:
        """The messages of one publisher from number `first` to `last`, within limits like those of `read`.

        Raises:
            NotKept: The topic is not kept here.
        """
        run = self._shelf(topic).runs.get(publisher)
        if run is None:
            return Extract([], first - 1)
        messages: list[tuple[int, bytes]] = []
        room = size
        at = run.place(first)
        while at < len(run.kept) and run.kept[at].number <= last:
            kept = run.kept[at]
            room -= len(kept.body)
            if messages and (len(messages) >= count or room < 0):
                return Extract(messages, messages[-1][0])
            messages.append((kept.number, kept.body))
            at += 1
        return Extract(messages, last if run.ended else max(min(last, run.latest), first - 1))

    def latest(self, topic: str) -> dict[str, int]:
        """For each publisher the highest number that has come; lower ones that are not here do not come any more.

        Raises:
            NotKept: The topic is not kept here.
        """
        return {publisher: run.latest for publisher, run in self._shelf(topic).runs.items()}

    def _shelf(self, topic: str) -> _Shelf:
        shelf = self._shelves.get(topic)
        if shelf is None:
            raise NotKept(f"this basket does not keep {topic!r:.300}; basket.keep(topic) has it keep it from then on")
        return shelf

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        assert len(self._shelves) <= TOPICS_MAX
        expiring: set[tuple[str, str]] = set()
        for topic, shelf in self._shelves.items():
            here = [kept for kept in shelf.order if kept.here]
            assert len(here) == shelf.count <= shelf.count_max
            assert sum(len(kept.body) for kept in here) == shelf.body_bytes <= shelf.bytes_max
            assert not any(kept.here for kept in shelf.order[: shelf.start])
            positions = [kept.position for kept in shelf.order]
            assert positions == sorted(set(positions)) and (not positions or positions[-1] <= self._position)
            assert sum(len(run.kept) - run.start for run in shelf.runs.values()) == shelf.count
            assert {name for name, run in shelf.runs.items() if not run.kept} == set(shelf.empty)
            for publisher, run in shelf.runs.items():
                kept_here = run.kept[run.start :]
                assert all(kept.here and kept.run is run for kept in kept_here)
                numbers = [kept.number for kept in kept_here]
                assert numbers == sorted(set(numbers)) and (not numbers or run.dropped_to < numbers[0])
                assert not numbers or numbers[-1] <= run.latest
                places = [kept.position for kept in kept_here]
                assert places == sorted(places)
                if kept_here and shelf.seconds_max < _FOREVER:
                    expiring.add((topic, publisher))
                    assert self._expiry.get((topic, publisher)) == kept_here[0].at + shelf.seconds_max
        assert len(expiring) == len(self._expiry)


def _check_number(publisher: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{number} is no number of a message of {publisher}; they begin with 1")
