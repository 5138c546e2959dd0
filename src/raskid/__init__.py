"""Raskid: a runtime for parallel programs in Python.

    with raskid.connect("local://?runners=4") as rk:
        print(rk.submit(pow, 2, 10).result())

The public face is loaded when it is first used, so that processes of the system itself start quickly.
"""

from typing import TYPE_CHECKING, Any

from raskid.model.version import VERSION as __version__

if TYPE_CHECKING:
    from raskid.client.cells import Cell
    from raskid.client.changes import Change
    from raskid.client.channels import Channel
    from raskid.client.extensions import register
    from raskid.client.futures import Future
    from raskid.client.handles import Failure, ReactionHandle
    from raskid.client.logs import TopicHandler
    from raskid.client.messages import Message, Subscription
    from raskid.client.reactions import Draft, Op
    from raskid.client.reading import when_all
    from raskid.client.session import Session
    from raskid.client.shared import SharedDict
    from raskid.launch.connect import connect
    from raskid.model.errors import (
        BasketFull,
        ConnectionRefused,
        InputFailed,
        NoSuchService,
        NotAllowed,
        NotKept,
        NotRunning,
        Overflow,
        PeerLost,
        RaskidError,
        RemoteError,
        ResultNotSendable,
        SessionClosed,
        StaleCode,
        StartFailed,
        TaskLost,
        TopicNameError,
        ValueNotSendable,
        WaitTimeout,
        WrongThread,
    )
    from raskid.services.extension import Extension
    from raskid.services.publishing import publish

_FACE = {
    "connect": "raskid.launch.connect",
    "publish": "raskid.services.publishing",
    "register": "raskid.client.extensions",
    "Extension": "raskid.services.extension",
    "when_all": "raskid.client.reading",
    "Session": "raskid.client.session",
    "Cell": "raskid.client.cells",
    "Channel": "raskid.client.channels",
    "Future": "raskid.client.futures",
    "Message": "raskid.client.messages",
    "SharedDict": "raskid.client.shared",
    "Subscription": "raskid.client.messages",
    "TopicHandler": "raskid.client.logs",
    "BasketFull": "raskid.model.errors",
    "Change": "raskid.client.changes",
    "Draft": "raskid.client.reactions",
    "Failure": "raskid.client.handles",
    "Op": "raskid.client.reactions",
    "ReactionHandle": "raskid.client.handles",
    "ConnectionRefused": "raskid.model.errors",
    "InputFailed": "raskid.model.errors",
    "NoSuchService": "raskid.model.errors",
    "NotAllowed": "raskid.model.errors",
    "NotKept": "raskid.model.errors",
    "NotRunning": "raskid.model.errors",
    "Overflow": "raskid.model.errors",
    "PeerLost": "raskid.model.errors",
    "RaskidError": "raskid.model.errors",
    "RemoteError": "raskid.model.errors",
    "ResultNotSendable": "raskid.model.errors",
    "SessionClosed": "raskid.model.errors",
    "StaleCode": "raskid.model.errors",
    "StartFailed": "raskid.model.errors",
    "TaskLost": "raskid.model.errors",
    "TopicNameError": "raskid.model.errors",
    "ValueNotSendable": "raskid.model.errors",
    "WaitTimeout": "raskid.model.errors",
    "WrongThread": "raskid.model.errors",
}

__all__ = [
    "BasketFull",
    "Cell",
    "Change",
    "Channel",
    "ConnectionRefused",
    "Draft",
    "Extension",
    "Failure",
    "Future",
    "InputFailed",
    "Message",
    "NoSuchService",
    "NotAllowed",
    "NotKept",
    "NotRunning",
    "Op",
    "Overflow",
    "PeerLost",
    "RaskidError",
    "ReactionHandle",
    "RemoteError",
    "ResultNotSendable",
    "Session",
    "SessionClosed",
    "SharedDict",
    "StaleCode",
    "StartFailed",
    "Subscription",
    "TaskLost",
    "TopicHandler",
    "TopicNameError",
    "ValueNotSendable",
    "WaitTimeout",
    "WrongThread",
    "__version__",
    "connect",
    "publish",
    "register",
    "when_all",
]


def __getattr__(name: str) -> Any:
    module = _FACE.get(name)
    if module is None:
        raise AttributeError(f"module 'raskid' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
