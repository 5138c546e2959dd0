"""One later subscriber's view of a topic: what a basket has of it, and then what comes live, as one sequence.

Of each publisher messages are handed out by rising number, each once; what is missing between two of them is counted in
`dropped`. The basket's messages come first, in its order. What comes live meanwhile waits, in bounded room.

A publisher introduces itself: it sends live from some number on. If the basket's messages of it end before that, the
rest may have been under way to the basket when it answered. So the basket is asked for exactly these, and what comes
live of that publisher waits for its answer. Numbers that the basket has seen, and does not have any more, are not asked
for: there the limits of the basket are where the history begins.

A message of the basket may also be ahead of what comes live: numbers before it that the basket does not have are still
on their way here. It waits for them, until something later comes live, or its publisher has ended.

The owner passes on what subscription and basket say, hands out what the methods return, and asks the basket what
`take_questions` names; it also decides how long it waits for an answer.
"""

from __future__ import annotations

from collections import deque

from raskid.core.basket import Extract, Page

#: What comes live and has to wait has no more messages and bytes than this; beyond it the oldest is left out.
HELD_MAX = 100_000
HELD_BYTES_MAX = 64 << 20
#: Publishers that have ended are remembered up to so many, in case they come again.
ENDED_MAX = 10_000

#: (publisher, number, body), in the order in which they are to be handed out.
Messages = list[tuple[str, int, bytes]]


class _Held:
    """Something live that waits: a message, or (without a body) an introduction."""

    __slots__ = ("body", "number", "source")

    def __init__(self, source: _Source, number: int, body: bytes | None) -> None:
        self.source = source
        self.number = number
        self.body = body


class _Source:
    """One publisher."""

    __slots__ = ("ahead", "asked", "begun", "coming", "done", "held", "known", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        #: Nothing up to this number is handed out any more.
        self.done = 0
        #: The basket has nothing more up to this number.
        self.known = 0
        #: Whether something of it was handed out, or is known to have come: from here on gaps count.
        self.begun = False
        #: What waits, in the order in which it came.
        self.held: deque[_Held] = deque()
        #: What comes live from now on has numbers from this one on; 0: nothing does.
        self.coming = 0
        #: Messages of the basket that wait for live ones before them, by number, rising.
        self.ahead: deque[_Held] = deque()
        #: The basket is asked for the numbers from `done + 1` to this one; 0: it is not.
        self.asked = 0


class History:
    """Merges a basket's messages of one topic with the live ones."""

    def __init__(self, held_max: int = HELD_MAX, held_bytes_max: int = HELD_BYTES_MAX) -> None:
        self._held_max = held_max
        self._held_bytes_max = held_bytes_max
        #: Whether all pages are in. Before, everything live waits; afterwards, what comes behind a question.
        self.complete = False
        #: Whether there is a basket that can be asked.
        self._basket = True
        self._sources: dict[str, _Source] = {}
        #: Publishers of `_sources` that have ended, in the order in which they did.
        self._ended: dict[str, None] = {}
        #: All messages that wait, in the order in which they came, and some that wait no longer (without a body).
        self._waiting: deque[_Held] = deque()
        self._held = 0
        self._held_bytes = 0
        self._questions: list[tuple[str, int, int]] = []
        #: Messages that are missing between two that were handed out.
        self.dropped = 0

    # ── What subscription and basket say ─────────────────────────────────────────────────────────────────────────────

    def introduced(self, publisher: str, first: int) -> Messages:
        """A publisher sends its messages live, from number `first` on."""
        return self._live(publisher, first, None)

    def live(self, publisher: str, number: int, body: bytes) -> Messages:
        """A message came from its publisher."""
        return self._live(publisher, number, body)

    def stored(self, page: Page) -> Messages:
        """The basket's next page of the topic came; nothing is to be passed on after a page that is `complete`."""
        if self.complete:
            return []
        out: Messages = []
        for publisher, number, body in page.messages:
            source = self._source(publisher)
            self._proceed_before(source, number, out)
            if number > source.done:
                self._take_stored(source, number, body, out)
        if page.complete:
            for publisher, latest in page.latest.items():
                source = self._source(publisher)
                source.known = max(source.known, latest)
            self._finish(out)
        return out

    def answered(self, publisher: str, extract: Extract) -> Messages:
        """The basket answered a question. When it still says nothing of the last number, it is asked again."""
        source = self._sources.get(publisher)
        out: Messages = []
        if source is None or not source.asked:
            return out
        for number, body in extract.messages:
            if source.done < number <= source.asked:
                self._hand_out(source, number, body, out)
        self._skip(source, min(extract.until, source.asked))
        if source.done < source.asked:
            self._questions.append((publisher, source.done + 1, source.asked))
        else:
            self._end_question(source)
            self._proceed(source, out)
        return out

    def basket_ended(self) -> Messages:
        """The basket is gone: what is live is all there is from here on."""
        out: Messages = []
        self._basket = False
        self._questions.clear()
        for source in list(self._sources.values()):
            if source.asked:
                self._end_question(source)
        self._finish(out)
        return out

    def publisher_ended(self, publisher: str) -> Messages:
        """A publisher sends nothing more; what it sent still counts, and it may introduce itself again."""
        source = self._sources.get(publisher)
        out: Messages = []
        if source is None:
            return out
        self._ended[publisher] = None
        source.coming = 0
        self._wait_no_longer(source, out)
        if len(self._ended) > ENDED_MAX:
            for name in self._ended:
                source = self._sources[name]
                if not source.held and not source.ahead and not source.asked:
                    del self._ended[name], self._sources[name]
                    break
        return out

    def done(self, publisher: str) -> int:
        """Up to which number messages of a publisher are not handed out any more."""
        source = self._sources.get(publisher)
        return source.done if source is not None else 0

    def take_questions(self) -> list[tuple[str, int, int]]:
        """What to ask the basket for: (publisher, first number, last number); each is named once."""
        questions, self._questions = self._questions, []
        return questions

    # ── What follows from it ─────────────────────────────────────────────────────────────────────────────────────────

    def _live(self, publisher: str, number: int, body: bytes | None) -> Messages:
        source = self._source(publisher)
        self._ended.pop(publisher, None)
        source.coming = number if body is None else number + 1
        out: Messages = []
        if self.complete and not source.asked:
            self._take(source, number, body, out)
            return out
        held = _Held(source, number, body)
        if body is None and source.held and source.held[-1].body is None:
            # Nothing came from the earlier one on.
            source.held.pop()
        source.held.append(held)
        if body is not None:
            self._keep_waiting(held, body)
            while self._held > self._held_max or self._held_bytes > self._held_bytes_max:
                self._leave_out_oldest()
        return out

    def _finish(self, out: Messages) -> None:
        self.complete = True
        for source in list(self._sources.values()):
            self._proceed(source, out)

    def _proceed(self, source: _Source, out: Messages) -> None:
        """Take what waits, up to the next question."""
        while source.held and not source.asked:
            held = source.held.popleft()
            number, body = held.number, held.body
            if body is not None:
                self._release(held, body)
            self._take(source, number, body, out)
        if not source.coming:
            self._wait_no_longer(source, out)

    def _proceed_before(self, source: _Source, number: int, out: Messages) -> None:
        """Take what waits and comes before a message of the basket: it may be there no longer."""
        while source.held and source.held[0].number < number:
            held = source.held.popleft()
            body = held.body
            if body is not None:
                self._release(held, body)
                self._take(source, held.number, body, out)
            else:
                # The basket's messages come in order, so what is not here yet has left it.
                source.known = max(source.known, held.number - 1)
                self._take(source, held.number, None, out)

    def _take_stored(self, source: _Source, number: int, body: bytes, out: Messages) -> None:
        """Take a message of the basket; it waits if numbers before it may still come live, and there is room."""
        ahead = source.ahead
        late = max(source.done + 1, source.coming) < number
        room = self._held < self._held_max and self._held_bytes + len(body) <= self._held_bytes_max
        if source.coming and late and room:
            at = len(ahead)
            while at and ahead[at - 1].number >= number:
                at -= 1
            if at == len(ahead) or ahead[at].number != number:
                held = _Held(source, number, body)
                ahead.insert(at, held)
                self._keep_waiting(held, body)
            return
        self._take_ahead(source, number, out)
        if number > source.done:
            self._hand_out(source, number, body, out)
        self._take_ahead(source, 0, out)

    def _take_ahead(self, source: _Source, number: int, out: Messages) -> None:
        """Hand out what waits for live messages: what comes before that number, and what follows without a gap."""
        ahead = source.ahead
        while ahead and (ahead[0].number < number or ahead[0].number <= source.done + 1):
            held = ahead.popleft()
            body = held.body
            if body is not None:
                self._release(held, body)
                if held.number > source.done:
                    self._hand_out(source, held.number, body, out)

    def _wait_no_longer(self, source: _Source, out: Messages) -> None:
        """Nothing more comes live; what waits for the basket's answer comes first."""
        while source.ahead and not source.asked:
            number = source.ahead[0].number
            self._proceed_before(source, number, out)
            self._take_ahead(source, number + 1, out)

    def _take(self, source: _Source, number: int, body: bytes | None, out: Messages) -> None:
        self._take_ahead(source, number, out)
        if body is not None:
            if number > source.done:
                self._hand_out(source, number, body, out)
            self._take_ahead(source, 0, out)
            return
        # What the basket has seen, and has no more, is not asked for.
        self._skip(source, min(source.known, number - 1))
        if source.done >= number - 1 or not self._basket:
            self._skip(source, number - 1)
            source.begun = True
        else:
            source.asked = number - 1
            self._questions.append((source.name, source.done + 1, source.asked))

    def _end_question(self, source: _Source) -> None:
        """From here on its messages come without gaps."""
        self._skip(source, source.asked)
        source.asked = 0
        source.begun = True

    def _hand_out(self, source: _Source, number: int, body: bytes, out: Messages) -> None:
        self._skip(source, number - 1)
        source.done = number
        source.begun = True
        out.append((source.name, number, body))

    def _skip(self, source: _Source, number: int) -> None:
        """Messages up to this number that are not here will not come."""
        if number > source.done:
            if source.begun:
                self.dropped += number - source.done
            source.done = number

    def _leave_out_oldest(self) -> None:
        held = self._waiting.popleft()
        body = held.body
        if body is not None:
            source = held.source
            (source.held if held in source.held else source.ahead).remove(held)
            self._release(held, body)

    def _keep_waiting(self, held: _Held, body: bytes) -> None:
        """A message waits from here on."""
        self._waiting.append(held)
        self._held += 1
        self._held_bytes += len(body)

    def _release(self, held: _Held, body: bytes) -> None:
        """A message waits no longer."""
        held.body = None
        self._held -= 1
        self._held_bytes -= len(body)
        if len(self._waiting) > 64 and len(self._waiting) > 2 * self._held:
            self._waiting = deque([it for it in self._waiting if it.body is not None])

    def _source(self, publisher: str) -> _Source:
        source = self._sources.get(publisher)
        if source is None:
            source = self._sources[publisher] = _Source(publisher)
        return source

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        held = [it for source in self._sources.values() for it in (*source.held, *source.ahead) if it.body is not None]
        waiting = [it for it in self._waiting if it.body is not None]
        assert {id(it) for it in held} == {id(it) for it in waiting} and len(held) == len(waiting) == self._held
        assert sum(len(it.body or b"") for it in held) == self._held_bytes <= self._held_bytes_max
        assert self._held <= self._held_max and self._ended.keys() <= self._sources.keys()
        for name, source in self._sources.items():
            assert source.name == name and (not source.held or source.asked or not self.complete)
            ahead = [it.number for it in source.ahead]
            assert ahead == sorted(set(ahead)) and (not ahead or source.coming or source.asked)
            assert not source.asked or (self.complete and self._basket and source.asked > source.done)
