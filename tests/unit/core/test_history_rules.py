"""Publishers, a real basket and one later subscriber, with everything under way for as long as it likes."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raskid.core.basket import Basket
from raskid.core.history import History, Messages

TOPIC = "t"
NAMES = ("p", "q")
PUBLISHERS = st.sampled_from(NAMES)


def body_of(publisher: str, number: int) -> bytes:
    return f"{publisher}{number}".encode()


class Publisher:
    """Counts its messages; what it sends to the basket and to the subscriber is under way in two queues."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last = 0
        self.keeps = False
        #: (number, None) is an introduction, (0, None) the end.
        self.to_basket: deque[tuple[int, bytes | None]] = deque()
        self.to_reader: deque[tuple[int, bytes | None]] = deque()
        #: The first number that each was promised.
        self.basket_from: int | None = None
        self.reader_from: int | None = None
        self.gone = False


class HistoryRules(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.basket = Basket()
        self.basket.keep(TOPIC, 0.0)
        self.history = History()
        self.publishers = {name: Publisher(name) for name in NAMES}
        self.position = 0
        self.handed_out: dict[str, list[int]] = {name: [] for name in NAMES}
        self.questions: list[tuple[str, int, int]] = []
        #: Whether messages may be missing: some never reached the basket, or have left it.
        self.crashed = False
        self.limited = False
        #: Whether the subscriber began to read before everything had arrived at the basket.
        self.early = False

    # ── Publishers ──

    @rule(name=PUBLISHERS, count=st.integers(1, 4))
    def publish(self, name: str, count: int) -> None:
        it = self.publishers[name]
        for _ in range(0 if it.gone else count):
            it.last += 1
            message = (it.last, body_of(name, it.last))
            if it.basket_from is not None:
                it.to_basket.append(message)
            if it.reader_from is not None:
                it.to_reader.append(message)

    @rule(name=PUBLISHERS)
    def react_for_the_basket(self, name: str) -> None:
        """The publisher takes in the basket's reaction."""
        it = self.publishers[name]
        if it.basket_from is None and not it.gone:
            it.basket_from = it.last + 1
            it.to_basket.append((it.basket_from, None))

    @rule(name=PUBLISHERS)
    def keep(self, name: str) -> None:
        """The publisher keeps its messages itself, all of them from the first one on."""
        it = self.publishers[name]
        it.keeps = it.keeps or it.last == 0

    @rule(name=PUBLISHERS)
    def react_for_the_subscriber(self, name: str) -> None:
        """The publisher takes in the subscriber's reaction, and gives what it keeps first."""
        it = self.publishers[name]
        if it.reader_from is None and not it.gone:
            it.reader_from = 1 if it.keeps else it.last + 1
            it.to_reader.append((it.reader_from, None))
            it.to_reader.extend((n, body_of(name, n)) for n in range(it.reader_from, it.last + 1))

    @rule(name=PUBLISHERS)
    def leave(self, name: str) -> None:
        """It sends what is under way, and hands over what it kept; all that overtakes what it had sent."""
        it = self.publishers[name]
        if it.gone:
            return
        it.gone = True
        it.to_basket.append((0, None))
        if it.reader_from is not None:
            it.to_reader.append((0, None))
        if it.keeps:
            messages = [(n, body_of(name, n), 0.0) for n in range(1, it.last + 1)]
            self.basket.take_over(TOPIC, name, messages, 0.0)

    @rule(name=PUBLISHERS, for_basket=st.integers(0, 3), for_reader=st.integers(0, 3))
    def crash(self, name: str, for_basket: int, for_reader: int) -> None:
        """It is gone, and so is the end of what it had under way."""
        it = self.publishers[name]
        if it.gone:
            return
        it.gone = self.crashed = True
        for queue, lost in ((it.to_basket, for_basket), (it.to_reader, for_reader)):
            for _ in range(min(lost, len(queue))):
                queue.pop()
        it.to_basket.append((0, None))
        it.to_reader.append((0, None))

    # ── The basket, and the way to both ──

    @rule(name=PUBLISHERS, count=st.integers(1, 4))
    def deliver_to_basket(self, name: str, count: int) -> None:
        queue = self.publishers[name].to_basket
        for _ in range(min(count, len(queue))):
            number, body = queue.popleft()
            if body is not None:
                self.basket.store(TOPIC, name, number, body, 0.0)
            elif number:
                self.basket.introduce(TOPIC, name, number)
            else:
                self.basket.end(TOPIC, name)

    @rule(name=PUBLISHERS, count=st.integers(1, 4))
    def deliver_to_reader(self, name: str, count: int) -> None:
        queue = self.publishers[name].to_reader
        for _ in range(min(count, len(queue))):
            number, body = queue.popleft()
            if body is not None:
                self.take(self.history.live(name, number, body))
            elif number:
                self.take(self.history.introduced(name, number))
            else:
                self.take(self.history.publisher_ended(name))

    @rule(count=st.sampled_from([1, 2, 5]))
    def limit(self, count: int) -> None:
        self.limited = True
        self.basket.keep(TOPIC, 0.0, count=count)

    # ── The subscriber ──

    @precondition(lambda self: not self.history.complete)
    @rule(count=st.integers(1, 3))
    def read(self, count: int) -> None:
        self.early = True
        self.read_page(count)

    def read_page(self, count: int) -> None:
        page = self.basket.read(TOPIC, self.position, count, 1 << 20)
        self.position = page.position
        self.take(self.history.stored(page))

    @precondition(lambda self: self.questions)
    @rule(count=st.integers(1, 3))
    def ask(self, count: int) -> None:
        name, first, last = self.questions.pop(0)
        self.take(self.history.answered(name, self.basket.read_publisher(TOPIC, name, first, last, count, 1 << 20)))

    def take(self, messages: Messages) -> None:
        for name, number, body in messages:
            assert body == body_of(name, number)
            handed_out = self.handed_out[name]
            assert not handed_out or handed_out[-1] < number, "doubled or out of order"
            handed_out.append(number)
        questions = self.history.take_questions()
        self.questions += questions
        assert len({name for name, _, _ in self.questions}) == len(self.questions), "two questions about one publisher"
        for name, first, last in questions:
            assert 0 < first <= last <= self.publishers[name].last

    @invariant()
    def what_is_missing_is_counted(self) -> None:
        self.history.check_invariants()
        self.basket.check_invariants()
        gaps = sum(it[-1] - it[0] + 1 - len(it) for it in self.handed_out.values() if it)
        # The numbers behind the last one that was handed out may be known to be missing already.
        assert gaps <= self.history.dropped
        if not self.crashed and not self.limited:
            assert self.history.dropped == 0

    def teardown(self) -> None:
        for it in self.publishers.values():
            # What is under way arrives; whom the basket has not heard of yet, it hears of now.
            self.react_for_the_basket(it.name)
            self.deliver_to_basket(it.name, len(it.to_basket))
            self.deliver_to_reader(it.name, len(it.to_reader))
        while not self.history.complete:
            self.read_page(2)
        rounds = 0
        while self.questions:
            self.ask(2)
            rounds += 1
            assert rounds < 1000, "a question is never answered"
        self.what_is_missing_is_counted()
        for it in self.publishers.values():
            self.check(it)

    def check(self, it: Publisher) -> None:
        """The run of one publisher: where it begins, where it ends."""
        numbers = self.handed_out[it.name]
        if self.crashed:
            return
        if it.reader_from is not None and it.last >= it.reader_from:
            assert numbers and numbers[-1] == it.last, "it ends with the last live message"
        if self.limited:
            return
        if it.keeps and (it.reader_from or (it.gone and not self.early)):
            expected = 1
        elif it.basket_from is not None and (it.reader_from is not None or not self.early):
            expected = min(it.basket_from, it.reader_from or it.basket_from)
        else:
            return
        if expected <= it.last:
            assert numbers and numbers[0] <= expected, "it begins with the first one that was kept"


TestHistoryRules = HistoryRules.TestCase
TestHistoryRules.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
