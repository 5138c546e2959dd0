"""A basket under random events, against a plain list of all that was published."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raskid.core.basket import COUNT_MAX, Basket

TOPIC = "t"
PUBLISHERS = st.sampled_from(["p", "q", "r"])


def body_of(publisher: str, number: int) -> bytes:
    return publisher.encode() * (number % 4) + b"%d" % number


class BasketRules(RuleBasedStateMachine):
    """Publishers publish, what they publish is under way to the basket for a while, and they hand over what they have.

    The publishers keep everything themselves, so a hand-over always names a run of numbers up to the last one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.basket = Basket()
        self.count, self.seconds, self.size = COUNT_MAX, float("inf"), 1 << 30
        self.basket.keep(TOPIC, 0.0)
        #: When each message was published: (publisher, number) to time.
        self.published: dict[tuple[str, int], float] = {}
        self.last: dict[str, int] = {}
        #: Under way to the basket, by publisher.
        self.under_way: dict[str, list[int]] = {}
        #: What is expected to be there, by publisher: number to time of arrival, and all that ever was.
        self.here: dict[str, dict[int, float]] = {}
        self.been: set[tuple[str, int]] = set()
        self.dropped = 0
        #: A reader of pages: where it is, and what it has read.
        self.position = 0
        self.read: list[tuple[str, int]] = []

    @rule(publisher=PUBLISHERS, count=st.integers(1, 3))
    def publish(self, publisher: str, count: int) -> None:
        for _ in range(count):
            number = self.last[publisher] = self.last.get(publisher, 0) + 1
            self.published[publisher, number] = self.now
            self.under_way.setdefault(publisher, []).append(number)

    @rule(publisher=PUBLISHERS, twice=st.booleans())
    def deliver(self, publisher: str, twice: bool) -> None:
        if not self.under_way.get(publisher):
            return
        number = self.under_way[publisher].pop(0)
        new = number > max((n for name, n in self.been if name == publisher), default=0)
        assert self.basket.store(TOPIC, publisher, number, body_of(publisher, number), self.now) == new
        if new:
            self.arrive(publisher, number, self.now)
        if twice:
            assert not self.basket.store(TOPIC, publisher, number, b"another", self.now)
        self.drop()

    @rule(publisher=PUBLISHERS, kept=st.integers(0, 6))
    def hand_over(self, publisher: str, kept: int) -> None:
        last = self.last.get(publisher, 0)
        numbers = range(max(1, last - kept + 1), last + 1)
        given = [(n, body_of(publisher, n), self.now - self.published[publisher, n]) for n in numbers]
        gone = {n for name, n in self.been if name == publisher and n not in self.here.get(publisher, {})}
        new = [n for n in numbers if n > max(gone, default=0) and n not in self.here.get(publisher, {})]
        assert self.basket.take_over(TOPIC, publisher, given, self.now) == len(new)
        for number in new:
            self.arrive(publisher, number, self.published[publisher, number])
        self.drop()

    def arrive(self, publisher: str, number: int, at: float) -> None:
        self.here.setdefault(publisher, {})[number] = at
        self.been.add((publisher, number))

    def drop(self) -> None:
        """What has gone must be the lowest numbers of their publishers, and only as many as the limits ask for."""
        there: dict[str, list[int]] = {}
        for publisher, number, body in self.basket.read(TOPIC, 0, 1 << 20, 1 << 30).messages:
            assert body == body_of(publisher, number)
            there.setdefault(publisher, []).append(number)
        gone = []
        for publisher, expected in self.here.items():
            numbers = there.pop(publisher, [])
            first = min(numbers, default=1 << 30)
            assert numbers == sorted(n for n in expected if n >= first), "in order, each once, the lowest ones gone"
            gone += [(publisher, n, expected.pop(n)) for n in sorted(expected) if n < first]
        assert not there, "nothing else is there"
        self.dropped += len(gone)
        expired = [it for it in gone if it[2] + self.seconds <= self.now]
        if len(gone) > len(expired):
            count = sum(map(len, self.here.values()))
            size = sum(len(body_of(name, n)) for name, kept in self.here.items() for n in kept)
            # With the last one that went the topic would be over a limit.
            longest = max(len(body_of(name, n)) for name, n, _ in gone)
            assert count + 1 > self.count or size + longest > self.size

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.basket.expire(self.now)
        self.drop()
        deadline = self.basket.next_deadline()
        firsts = [min(kept.items())[1] for kept in self.here.values() if kept]
        assert deadline == (min(firsts) + self.seconds if firsts and self.seconds < 1e9 else None)

    @rule(count=st.sampled_from([None, 1, 3, 10]), seconds=st.sampled_from([None, 1.0, 10.0]),
          size=st.sampled_from([None, 5, 40]))  # fmt: skip
    def limit(self, count: int | None, seconds: float | None, size: int | None) -> None:
        self.basket.keep(TOPIC, self.now, count=count, seconds=seconds, size=size)
        self.count, self.seconds, self.size = count or COUNT_MAX, seconds or float("inf"), size or 1 << 30
        self.drop()

    @rule(count=st.integers(1, 4), size=st.integers(0, 20))
    def read_on(self, count: int, size: int) -> None:
        page = self.basket.read(TOPIC, self.position, count, size)
        assert page.position >= self.position and len(page.messages) <= count
        assert page.messages or page.complete
        self.position = page.position
        self.read += [(publisher, number) for publisher, number, _ in page.messages]
        if page.complete:
            # Whoever has read to the end has met all that is there.
            assert {(name, n) for name, kept in self.here.items() for n in kept} <= set(self.read)

    @rule(publisher=PUBLISHERS, first=st.integers(1, 20), length=st.integers(0, 10), count=st.integers(1, 5))
    def read_one(self, publisher: str, first: int, length: int, count: int) -> None:
        extract = self.basket.read_publisher(TOPIC, publisher, first, first + length, count, 1 << 20)
        kept = self.here.get(publisher, {})
        wanted = sorted(n for n in kept if first <= n <= first + length)
        assert [n for n, _ in extract.messages] == wanted[:count]
        latest = self.basket.latest(TOPIC).get(publisher, 0)
        whole = max(min(first + length, latest), first - 1)
        assert extract.until == (wanted[count - 1] if len(wanted) > count else whole)

    @invariant()
    def it_is_as_it_says(self) -> None:
        self.basket.check_invariants()
        facts = self.basket.facts(TOPIC)
        assert facts.count == sum(map(len, self.here.values())) and facts.dropped == self.dropped
        latest = self.basket.latest(TOPIC)
        for publisher in {name for name, _ in self.been}:
            assert latest[publisher] == max(n for name, n in self.been if name == publisher)


TestBasketRules = BasketRules.TestCase
TestBasketRules.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
