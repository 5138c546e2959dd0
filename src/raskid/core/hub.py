"""The hub: ordered lists of small records, and who reads them.

Peers announce what they offer (reactions, shared values, services) as records of a list. Whoever watches a list gets
its state and then every change, all readers in the same order. A record belongs to the peer that put it and goes when
that peer is gone for good; a permanent record belongs to nobody and stays.

A writer may ask to be answered only when the readers *act by* its change: readers that promised to (`Watch.acks`)
acknowledge versions, and the hub answers when all of them did, when those that did not are gone, or at a time limit.

The hub carries no messages and no values of tasks, and does not look into the records.
"""

from __future__ import annotations

import heapq
from typing import Any

from raskid.core.effects import Effect, Send
from raskid.core.events import PeerGone, PeerJoined, Received, Tick
from raskid.model.errors import TopicNameError
from raskid.model.ids import PeerId, RequestId
from raskid.model.roles import ROLE_EXECUTE
from raskid.model.topics import check_list_name
from raskid.protocol.base import VALUE_BYTES_MAX
from raskid.protocol.messages import (
    AcknowledgeList,
    ChangesSent,
    DeleteRecord,
    ListState,
    ListTopics,
    Message,
    PutRecord,
    Record,
    RecordDeleted,
    RecordPut,
    RecordSettled,
    RequestRefused,
    TopicInfo,
    TopicsListed,
    Unwatch,
    Watch,
)

RECORD_NAME_CHARS_MAX = 1024
RECORDS_MAX = 100_000
LISTS_MAX = 100_000
WAITS_MAX = 100_000
#: Nobody waits longer than this for readers; it also keeps times finite.
SETTLE_S_MAX = 3600.0


class _Wait:
    """An answer held back until `pending` readers acknowledge `version`."""

    __slots__ = ("asker", "deadline", "name", "number", "pending", "request", "version")

    def __init__(
        self, number: int, asker: PeerId, request: RequestId, name: str, version: int, deadline: float,
        pending: dict[PeerId, None],
    ) -> None:  # fmt: skip
        self.number = number
        self.asker = asker
        self.request = request
        self.name = name
        self.version = version
        self.deadline = deadline
        #: For each peer here, `waits` of that list's reader holds this wait, and nowhere else.
        self.pending = pending


class _Reader:
    """A peer that watches a list."""

    __slots__ = ("acked", "agent", "waits")

    def __init__(self) -> None:
        #: Who acknowledges for it while it is busy; empty for one that does so by itself.
        self.agent = PeerId("")
        #: None for one that does not acknowledge.
        self.acked: int | None = None
        #: In order of version, because changes come in that order.
        self.waits: dict[int, _Wait] = {}


class _List:
    """The records of one list in order of insertion; `version` counts its changes."""

    __slots__ = ("readers", "records", "version")

    def __init__(self, version: int) -> None:
        self.version = version
        self.records: dict[str, Record] = {}
        self.readers: dict[PeerId, _Reader] = {}


class _Refusal(Exception):
    """Ends the handling of a request before anything was changed."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Hub:
    """The machine that keeps all lists of a system."""

    handles: frozenset[type[Message]] = frozenset(
        {Watch, Unwatch, AcknowledgeList, PutRecord, DeleteRecord, ListTopics}
    )

    def __init__(self) -> None:
        #: Watches that could not be carried out; those that carry a request were answered as well.
        self.refused = 0
        self._lists: dict[str, _List] = {}
        #: At least the version of every list that was forgotten, so that a list which comes again never goes back.
        self._version_base = 0
        self._incarnations: dict[PeerId, int] = {}
        #: Peers that may write records, and have nothing executed.
        self._limited: set[PeerId] = set()
        #: Exactly the records with an owner; dicts stand for ordered sets, so that replays repeat every order.
        self._owned: dict[PeerId, dict[tuple[str, str], None]] = {}
        #: Changes sent so far to each peer that has an agent.
        self._sent: dict[PeerId, int] = {}
        #: Exactly the lists that a peer reads.
        self._reads: dict[PeerId, dict[str, None]] = {}
        self._waits: dict[int, _Wait] = {}
        self._waits_of: dict[PeerId, dict[int, None]] = {}
        #: Holds (deadline, number) of every wait, and of some that are over.
        self._deadlines: list[tuple[float, int]] = []
        self._wait_number = 0

    # ── The machine's face ───────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, event: Any, now: float) -> list[Effect]:
        """Take in one event at time `now`; return the messages to send, in order."""
        effects: list[Effect] = []
        if isinstance(event, Received):
            self._on_message(event.peer, event.message, now, effects)
        elif isinstance(event, PeerJoined):
            if self._incarnations.get(event.peer, event.incarnation) != event.incarnation:
                self._forget_peer(event.peer, effects)
            self._incarnations[event.peer] = event.incarnation
            if event.role == ROLE_EXECUTE:
                self._limited.discard(event.peer)
            else:
                self._limited.add(event.peer)
        elif isinstance(event, PeerGone):
            # The end of an older incarnation may be told after the newer one came: by then it was cleared away.
            if self._incarnations.get(event.peer, event.incarnation) == event.incarnation:
                self._incarnations.pop(event.peer, None)
                self._limited.discard(event.peer)
                self._forget_peer(event.peer, effects)
        elif isinstance(event, Tick):
            self._end_late_waits(now, effects)
        return effects

    def next_deadline(self) -> float | None:
        """When the first wait for readers runs out."""
        heap = self._deadlines
        while heap and heap[0][1] not in self._waits:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        owned: set[tuple[str, str, str]] = set()
        reads: set[tuple[str, str]] = set()
        pending: set[tuple[int, str]] = set()
        for name, lst in self._lists.items():
            assert lst.records or lst.readers, f"{name} is empty and was not forgotten"
            assert lst.version >= 0 and len(lst.records) <= RECORDS_MAX
            for record in lst.records.values():
                assert lst.records[record.record] is record
                if record.owner:
                    owned.add((record.owner, name, record.record))
            for peer, reader in lst.readers.items():
                reads.add((peer, name))
                assert reader.acked is None or reader.acked <= lst.version, f"{peer} acknowledged the future of {name}"
                versions = [wait.version for wait in reader.waits.values()]
                assert versions == sorted(versions)
                for number, wait in reader.waits.items():
                    assert wait.number == number and wait.name == name and self._waits[number] is wait
                    assert reader.acked is not None and reader.acked < wait.version <= lst.version
                    pending.add((number, peer))
        assert owned == {(peer, *key) for peer, keys in self._owned.items() for key in keys}
        assert reads == {(peer, name) for peer, names in self._reads.items() for name in names}
        assert pending == {(number, peer) for number, wait in self._waits.items() for peer in wait.pending}
        assert all(wait.pending for wait in self._waits.values()), "a wait for nobody was not answered"
        assert all(self._owned.values()) and all(self._reads.values()) and all(self._waits_of.values())
        asked = {(wait.asker, number) for number, wait in self._waits.items()}
        assert asked == {(peer, number) for peer, numbers in self._waits_of.items() for number in numbers}
        assert {(wait.deadline, number) for number, wait in self._waits.items()} <= set(self._deadlines)
        assert len(self._waits) <= WAITS_MAX and len(self._lists) <= LISTS_MAX

    # ── Messages ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_message(self, peer: PeerId, message: Message, now: float, effects: list[Effect]) -> None:
        if isinstance(message, AcknowledgeList):
            self._on_acknowledge(peer, message, effects)
        elif isinstance(message, Watch):
            self._on_watch(peer, message, effects)
        elif isinstance(message, Unwatch):
            if message.name in self._reads.get(peer, ()):
                self._remove_reader(peer, message.name, effects)
        elif isinstance(message, PutRecord | DeleteRecord):
            try:
                if isinstance(message, PutRecord):
                    self._on_put(peer, message, now, effects)
                else:
                    self._on_delete(peer, message, now, effects)
            except _Refusal as refusal:
                effects.append(Send(peer, RequestRefused(message.request, refusal.code, refusal.text)))
        elif isinstance(message, ListTopics):
            topics = [
                TopicInfo(name, lst.version, len(lst.records), len(lst.readers))
                for name, lst in sorted(self._lists.items())
                if name.startswith(message.prefix)
            ]
            effects.append(Send(peer, TopicsListed(message.request, topics)))

    def _on_watch(self, peer: PeerId, message: Watch, effects: list[Effect]) -> None:
        name = message.name
        try:
            lst = self._list_for_change(name)
        except _Refusal as refusal:
            self.refused += 1
            if message.request:
                effects.append(Send(peer, RequestRefused(message.request, refusal.code, refusal.text)))
            return
        effects.append(Send(peer, ListState(name, lst.version, list(lst.records.values()))))
        reader = lst.readers.get(peer)
        if reader is None:
            lst.readers[peer] = reader = _Reader()
            self._reads.setdefault(peer, {})[name] = None
        reader.agent = message.agent
        # What the state holds needs no acknowledgement: the reader acts by nothing older than it.
        reader.acked = lst.version if message.acks else None
        self._stop_counting(peer, reader, lst.version, effects)

    def _on_acknowledge(self, peer: PeerId, message: AcknowledgeList, effects: list[Effect]) -> None:
        lst = self._lists.get(message.name)
        reading = message.reader or peer
        reader = None if lst is None else lst.readers.get(reading)
        if lst is None or reader is None or reader.acked is None:
            return  # It crossed an Unwatch on its way.
        if reading != peer and reader.agent != peer:
            return  # Nobody but its agent answers for a reader.
        # Nobody can act by a version that does not exist yet.
        reader.acked = max(reader.acked, min(message.version, lst.version))
        self._stop_counting(reading, reader, reader.acked, effects)

    def _on_put(self, peer: PeerId, message: PutRecord, now: float, effects: list[Effect]) -> None:
        name, key = message.name, message.record
        if len(message.value) > VALUE_BYTES_MAX:
            raise _Refusal(
                "Overflow",
                f"record {key[:60]!r} of {name[:60]!r} has {len(message.value):,} bytes; the limit is "
                f"{VALUE_BYTES_MAX:,}. Share large data as a payload and put its reference here",
            )
        if len(key) > RECORD_NAME_CHARS_MAX:
            raise _Refusal("Overflow", f"a record's name has {len(key):,} characters; limit {RECORD_NAME_CHARS_MAX:,}")
        self._check_settle(message)
        present = self._lists.get(name)
        if present is not None:
            old = present.records.get(key)
            if old is not None:
                self._check_owner(peer, name, old)
            elif len(present.records) >= RECORDS_MAX:
                raise _Refusal("Overflow", f"list {name!r} holds {RECORDS_MAX:,} records already, which is the limit")
        lst = self._list_for_change(name)
        self._disown(name, lst.records.get(key))
        limited = peer in self._limited
        record = Record(key, message.value, "" if message.permanent else peer, limited)
        lst.records[key] = record
        if not message.permanent:
            self._owned.setdefault(peer, {})[name, key] = None
        lst.version += 1
        self._tell(lst, RecordPut(name, lst.version, record), effects)
        self._settle(peer, message, lst.version, lst.readers, now, effects)

    def _on_delete(self, peer: PeerId, message: DeleteRecord, now: float, effects: list[Effect]) -> None:
        name = message.name
        self._check_settle(message)
        lst = self._lists.get(name)
        if lst is None:
            self._check_name(name)
            effects.append(Send(peer, RecordSettled(message.request, self._version_base)))
            return
        old = lst.records.get(message.record)
        if old is not None:
            self._check_owner(peer, name, old)
            self._delete(name, lst, old, effects)
        # Deleting twice waits like deleting once: the first deletion may not be acknowledged yet.
        self._settle(peer, message, lst.version, lst.readers, now, effects)
        self._forget_if_empty(name, lst)

    # ── Checks: they raise before anything is changed ────────────────────────────────────────────────────────────────

    def _check_name(self, name: str) -> None:
        try:
            check_list_name(name)
        except TopicNameError as error:
            raise _Refusal("TopicNameError", str(error)) from None

    def _check_owner(self, peer: PeerId, name: str, old: Record) -> None:
        if old.owner and old.owner != peer:
            raise _Refusal(
                "NotAllowed",
                f"record {old.record!r} of {name!r} belongs to peer {old.owner!r}; {peer!r} cannot change it. "
                "Choose another name for the record, or let its owner make it permanent",
            )

    def _check_settle(self, message: PutRecord | DeleteRecord) -> None:
        if message.settle_s > 0 and len(self._waits) >= WAITS_MAX:
            raise _Refusal("Overflow", f"{WAITS_MAX:,} changes wait for readers already; try later, or with settle_s=0")

    def _list_for_change(self, name: str) -> _List:
        """The list of that name, made when there is none; raises `_Refusal`."""
        lst = self._lists.get(name)
        if lst is None:
            self._check_name(name)
            if len(self._lists) >= LISTS_MAX:
                raise _Refusal("Overflow", f"there are {LISTS_MAX:,} lists already, so {name!r} cannot be added")
            lst = self._lists[name] = _List(self._version_base)
        return lst

    # ── Changes ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _delete(self, name: str, lst: _List, old: Record, effects: list[Effect]) -> None:
        del lst.records[old.record]
        self._disown(name, old)
        lst.version += 1
        self._tell(lst, RecordDeleted(name, lst.version, old.record), effects)

    def _tell(self, lst: _List, change: RecordPut | RecordDeleted, effects: list[Effect]) -> None:
        """Send a change to all readers, and say so to their agents."""
        for peer, reader in lst.readers.items():
            effects.append(Send(peer, change))
            if reader.agent:
                count = self._sent[peer] = self._sent.get(peer, 0) + 1
                incarnation = self._incarnations.get(peer, 0)
                told = ChangesSent(peer, incarnation, count, change.name, change.version)
                effects.append(Send(reader.agent, told))

    def _disown(self, name: str, old: Record | None) -> None:
        if old is not None and old.owner:
            owner = PeerId(old.owner)
            del self._owned[owner][name, old.record]
            if not self._owned[owner]:
                del self._owned[owner]

    def _remove_reader(self, peer: PeerId, name: str, effects: list[Effect]) -> None:
        lst = self._lists[name]
        reader = lst.readers.pop(peer)
        del self._reads[peer][name]
        if not self._reads[peer]:
            del self._reads[peer]
        self._stop_counting(peer, reader, lst.version, effects)
        self._forget_if_empty(name, lst)

    def _forget_if_empty(self, name: str, lst: _List) -> None:
        if not lst.records and not lst.readers:
            self._version_base = max(self._version_base, lst.version)
            del self._lists[name]

    def _forget_peer(self, peer: PeerId, effects: list[Effect]) -> None:
        self._sent.pop(peer, None)
        # Its own questions and readings go first, so that nothing is sent to a peer that is not there.
        for number in list(self._waits_of.get(peer, ())):
            wait = self._waits[number]
            for pending in wait.pending:
                del self._lists[wait.name].readers[pending].waits[number]
            self._drop_wait(wait)
        for name in list(self._reads.get(peer, ())):
            self._remove_reader(peer, name, effects)
        for name, key in list(self._owned.get(peer, ())):
            lst = self._lists[name]
            self._delete(name, lst, lst.records[key], effects)
            self._forget_if_empty(name, lst)

    # ── Waits for readers ────────────────────────────────────────────────────────────────────────────────────────────

    def _settle(
        self,
        peer: PeerId,
        message: PutRecord | DeleteRecord,
        version: int,
        readers: dict[PeerId, _Reader],
        now: float,
        effects: list[Effect],
    ) -> None:
        """Answer a change now, or note that its answer waits for readers."""
        pending: dict[PeerId, None] = {}
        if message.settle_s > 0:
            pending = {name: None for name, it in readers.items() if it.acked is not None and it.acked < version}
        if not pending:
            effects.append(Send(peer, RecordSettled(message.request, version)))
            return
        self._wait_number += 1
        number = self._wait_number
        deadline = now + min(message.settle_s, SETTLE_S_MAX)
        wait = _Wait(number, peer, message.request, message.name, version, deadline, pending)
        self._waits[number] = wait
        self._waits_of.setdefault(peer, {})[number] = None
        for name in pending:
            readers[name].waits[number] = wait
        heapq.heappush(self._deadlines, (deadline, number))

    def _stop_counting(self, peer: PeerId, reader: _Reader, version: int, effects: list[Effect]) -> None:
        """Waits up to `version` wait for this reader no longer."""
        waits = reader.waits
        while waits:
            number, wait = next(iter(waits.items()))
            if wait.version > version:
                break
            del waits[number]
            del wait.pending[peer]
            if not wait.pending:
                self._drop_wait(wait)
                effects.append(Send(wait.asker, RecordSettled(wait.request, wait.version)))

    def _end_late_waits(self, now: float, effects: list[Effect]) -> None:
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            wait = self._waits[self._deadlines[0][1]]
            readers = self._lists[wait.name].readers
            for name in wait.pending:
                del readers[name].waits[wait.number]
            self._drop_wait(wait)
            effects.append(Send(wait.asker, RecordSettled(wait.request, wait.version, tuple(wait.pending))))

    def _drop_wait(self, wait: _Wait) -> None:
        del self._waits[wait.number]
        del self._waits_of[wait.asker][wait.number]
        if not self._waits_of[wait.asker]:
            del self._waits_of[wait.asker]
        # Most waits end long before their deadline, whose entry stays in the heap; this keeps those in proportion.
        if len(self._deadlines) > 64 + 2 * len(self._waits):
            self._deadlines = [(it.deadline, number) for number, it in self._waits.items()]
            heapq.heapify(self._deadlines)
