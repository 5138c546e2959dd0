"""Calling a user's function: arguments and values as pickles, inputs in their places, errors with their traceback.

Futures inside arguments are pickled as a call of `resolve_input`, at any depth; while the arguments of a task are
loaded, that finds the values of its inputs. Plain pickle comes first; what it cannot carry, or would carry by a name
that only the script knows (``__main__``), goes through cloudpickle.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any

from raskid.model.errors import RemoteTraceback, ResultNotSendable
from raskid.model.ids import TaskId

_ATOMS = (type(None), bool, int, float, str, bytes, complex)

#: Loads the value of an input of the task whose arguments are being loaded.
_input_source: Callable[[TaskId], Any] | None = None


def resolve_input(task: int) -> Any:
    """Stands in a pickle for the future of `task`; gives its value while a task's arguments are loaded."""
    if _input_source is None:
        raise pickle.UnpicklingError(f"the future of task {task} was unpickled outside of a task's arguments")
    return _input_source(TaskId(task))


def load_arguments(data: bytes, source: Callable[[TaskId], Any]) -> Any:
    """Unpickle arguments, taking inputs from `source`."""
    global _input_source
    _input_source = source
    try:
        return pickle.loads(data)
    finally:
        _input_source = None


def dump(value: Any) -> bytes:
    """Pickle a value, with cloudpickle where plain pickle will not do."""
    try:
        data = pickle.dumps(value, 5)
        if b"__main__" not in data:
            return data
    except Exception:
        pass
    import cloudpickle

    return bytes(cloudpickle.dumps(value, 5))


def is_atom(value: Any) -> bool:
    """Whether a value may be shared between tasks: nobody can change it."""
    return type(value) in _ATOMS


def dump_result(value: Any, what: str) -> bytes:
    """Pickle a task's value.

    Raises:
        ResultNotSendable: It cannot be pickled.
    """
    try:
        return dump(value)
    except Exception as error:
        raise ResultNotSendable(
            f"{what} returned a {type(value).__name__}, which cannot be pickled: {error}. Return plain data, or keep "
            "such an object where it was made"
        ) from error


def dump_error(error: BaseException, where: str) -> bytes:
    """Pickle an exception together with the text of its traceback; one that cannot be pickled is described."""
    text = "".join(traceback.format_exception(error)).rstrip() + f"\n(on {where})"
    try:
        data = dump((error, text))
        pickle.loads(data)
        return data
    except Exception:
        return pickle.dumps((None, text, type(error).__name__, str(error)), 5)


def load_error(data: bytes) -> BaseException:
    """The exception of a task, with the remote traceback as its cause."""
    from raskid.model.errors import RemoteError

    try:
        loaded = pickle.loads(data)
    except Exception as error:
        return RemoteError(f"a task failed, and its error cannot be unpickled here: {error}", type(error).__name__)
    if loaded[0] is None:
        _, text, kind, message = loaded
        return RemoteError(f"{kind}: {message}", kind, text)
    raised, text = loaded
    assert isinstance(raised, BaseException)
    raised.__cause__ = RemoteTraceback(text)
    return raised
