"""Raskid: a runtime for parallel programs in Python.

    with raskid.connect("local://?runners=4") as rk:
        print(rk.submit(pow, 2, 10).result())

The public face is loaded when it is first used, so that processes of the system itself start quickly.
"""

from typing import TYPE_CHECKING, Any

from raskid.model.version import VERSION as __version__

if TYPE_CHECKING:
    from raskid.client.futures import Future
    from raskid.client.messages import Message, SharedDict, Subscription
    from raskid.client.session import Session
    from raskid.launch.connect import connect

_FACE = {
    "connect": "raskid.launch.connect",
    "Session": "raskid.client.session",
    "Future": "raskid.client.futures",
    "Message": "raskid.client.messages",
    "SharedDict": "raskid.client.messages",
    "Subscription": "raskid.client.messages",
}

__all__ = ["Future", "Message", "Session", "SharedDict", "Subscription", "__version__", "connect"]


def __getattr__(name: str) -> Any:
    module = _FACE.get(name)
    if module is None:
        raise AttributeError(f"module 'raskid' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(module), name)
