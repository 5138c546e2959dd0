"""About how many bytes a message takes on the wire, known without encoding it.

A link cuts what waits into batches by these weights, and sees by them how much waits. They err upwards, so that a
message that is light enough to be sent is never too long for the other end.
"""

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import msgspec

from raskid.protocol import messages as wire
from raskid.protocol.messages import BULK, Code, TaskSpec

#: The weight of a message or struct without its variable parts.
PLAIN = 64
_BULK_PLAIN = 24
_ID = 10
#: A body without its bytes.
_BODY = 5
_OUTCOME = 128
#: A character takes four bytes at most.
_CHARACTER = 4
#: A peer and its addresses.
_REF = 256


def _texts(texts: Iterable[str]) -> int:
    return sum(_CHARACTER * len(text) for text in texts)


def _codes(codes: list[Code]) -> int:
    return sum(PLAIN + len(code.blob) + _CHARACTER * len(code.name) for code in codes)


def _inline(spec: TaskSpec) -> int:
    return sum(PLAIN + len(value) for _, value in spec.inline)


# Every task passes through the next two, so they are written for speed.


def _submit(message: wire.SubmitTasks) -> int:
    weight = PLAIN
    for spec in message.tasks:
        weight += PLAIN + len(spec.arguments)
        if spec.inputs:
            weight += _ID * len(spec.inputs)
        if spec.inline:
            weight += _inline(spec)
    return weight + _codes(message.codes) if message.codes else weight


def _run(message: wire.RunTasks) -> int:
    weight = PLAIN + _REF * len(message.peers)
    for placement in message.placements:
        spec = placement.spec
        weight += 2 * PLAIN + len(spec.arguments)
        if spec.inputs:
            weight += _ID * len(spec.inputs) + PLAIN * len(placement.keepers)
        if spec.inline:
            weight += _inline(spec)
    return weight + _codes(message.codes) if message.codes else weight


def _list_state(message: wire.ListState) -> int:
    return PLAIN + sum(
        PLAIN + len(record.value) + _CHARACTER * (len(record.record) + len(record.owner)) for record in message.records
    )


def _record_put(message: wire.RecordPut) -> int:
    record = message.record
    return 2 * PLAIN + len(record.value) + _CHARACTER * (len(message.name) + len(record.record) + len(record.owner))


def _put_record(message: wire.PutRecord) -> int:
    return PLAIN + len(message.value) + _CHARACTER * (len(message.name) + len(message.record))


def _tasks(message: Any) -> int:
    return PLAIN + _ID * len(message.tasks)


def _tasks_and_started(message: Any) -> int:
    return PLAIN + 2 * _ID * (len(message.tasks) + len(message.started))


def _text(message: Any) -> int:
    return PLAIN + _CHARACTER * (len(message.code) + len(message.text))


def _encoded(message: Any) -> int:
    return len(msgspec.msgpack.encode(message))


def _deliver(message: wire.Deliver) -> int:
    bodies = message.bodies
    weight = _BULK_PLAIN + _CHARACTER * len(message.topic) + _BODY * len(bodies) + sum(map(len, bodies))
    return weight + _ID * len(message.numbers) + _CHARACTER * len(message.publisher)


def _host(message: wire.HostReaction) -> int:
    return PLAIN + _CHARACTER * len(message.topic) + len(message.reaction)


def _failed(message: wire.ReactionFailed) -> int:
    return 2 * PLAIN + len(message.body) + _texts((message.topic, message.error, message.text, message.where))


def _carrying(field: str) -> Callable[[Any], int]:
    get = attrgetter(field)
    return lambda message: len(get(message)) + _BULK_PLAIN


_WEIGHERS: dict[type, Callable[[Any], int]] = {
    kind: _carrying(name)
    for kind in BULK
    for name in ("body", "value", "data")
    if name in kind.__struct_fields__
} | {
    wire.Deliver: _deliver,
    wire.Acknowledge: lambda message: PLAIN + _ID * len(message.numbers),
    wire.HostReaction: _host,
    wire.ReactionFailed: _failed,
    wire.PutCode: lambda message: PLAIN + _codes([message.code]),
    wire.CodeGiven: lambda message: PLAIN + _codes([message.code]),
    wire.StartService: lambda message: 2 * PLAIN + _codes([message.service]) + len(message.settings),
    wire.ServiceReady: lambda message: PLAIN + _texts((message.name, message.error)),
    wire.HelperGiven: lambda message: PLAIN + _REF,
    wire.SubmitTasks: _submit,
    wire.RunTasks: _run,
    wire.ListState: _list_state,
    wire.RecordPut: _record_put,
    wire.PutRecord: _put_record,
    wire.RecordDeleted: lambda message: PLAIN + _CHARACTER * (len(message.name) + len(message.record)),
    wire.DeleteRecord: lambda message: PLAIN + _CHARACTER * (len(message.name) + len(message.record)),
    wire.RecordSettled: lambda message: PLAIN + _texts(message.silent) + len(message.silent),
    wire.RequestRefused: _text,
    wire.TaskFailed: _text,
    wire.TopicsListed: lambda message: PLAIN + sum(PLAIN + _CHARACTER * len(each.name) for each in message.topics),
    wire.TasksFinished: lambda message: PLAIN + _OUTCOME * len(message.outcomes),
    wire.ReleaseTasks: _tasks,
    wire.CancelTasks: _tasks,
    wire.TasksCancelled: _tasks_and_started,
    wire.ValuesAt: lambda message: PLAIN + _REF + _ID * len(message.tasks),
    wire.DropValues: lambda message: PLAIN + _ID * len(message.tasks) + PLAIN * len(message.codes),
    wire.RecallTasks: lambda message: PLAIN + 2 * _ID * len(message.tasks),
    wire.TasksRecalled: _tasks_and_started,
    wire.Status: _encoded,
}  # fmt: skip
_PLAIN_OF: dict[type, int] = {kind: _BULK_PLAIN for kind in BULK}


def weigh(message: Any) -> int:
    """About how many bytes a message takes in a batch."""
    kind = type(message)
    weigher = _WEIGHERS.get(kind)
    return weigher(message) if weigher is not None else _PLAIN_OF.get(kind, PLAIN)
