"""Calling a user's function: arguments and values as pickles, inputs in their places, errors with their traceback.

Futures inside arguments are pickled as a call of `resolve_input`, at any depth; while the arguments of a task are
loaded, that finds the values of its inputs. Plain pickle comes first; what it cannot carry, or would carry by a name
that only the script knows (``__main__``), goes through cloudpickle.

An error travels as four things that are pickled apart: the exception itself, pickled once more, the text of its
traceback, the name of its type and its message. So whatever the exception is made of, its text arrives.
"""

from __future__ import annotations

import functools
import io
import pickle
import types
from collections import ChainMap
from collections.abc import Callable
from typing import Any

from raskid.core.link import MESSAGE_BYTES_MAX
from raskid.model.errors import RemoteError, RemoteTraceback, ResultNotSendable
from raskid.model.ids import TaskId

_SCALARS = (type(None), bool, float, complex)
#: A text or number longer than this is not kept as an object beside its pickle.
_ATOM_BYTES_MAX = 256

#: What a value may take: a message carries it, with a little around it.
VALUE_BYTES_MAX = MESSAGE_BYTES_MAX - (64 << 10)

#: An exception larger than this is described instead; texts longer than this are cut in the middle.
_ERROR_BYTES_MAX = 16 << 20
_TEXT_CHARS_MAX = 200_000

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
    out = io.BytesIO()
    _by_value_pickler()(out, 5).dump(value)
    return out.getvalue()


@functools.cache
def _by_value_pickler() -> Any:
    """cloudpickle's pickler, but for one thing: it forgets in which file code stands, so that tracebacks and warnings
    could not show its lines."""
    import cloudpickle
    from cloudpickle import cloudpickle as implementation

    reduce_code = getattr(implementation, "_code_reduce", None)
    if reduce_code is None:
        return cloudpickle.Pickler

    def reduce(code: types.CodeType) -> Any:
        make, arguments = reduce_code(code)
        # Only what stands in the file's place looks like this.
        return make, tuple(code.co_filename if part == "<dynamic-code>" else part for part in arguments)

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table = ChainMap({types.CodeType: reduce}, cloudpickle.Pickler.dispatch_table)

    return Pickler


class _Loader(pickle.Unpickler):
    """Leaves classes alone that this process defines itself.

    A class of the script comes back with its definition, made for processes that do not have it. Here it is known by
    its identity, and setting the definition again would put copies in the place of its methods, with globals of
    their own.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._new: list[Any] = []

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if module == "cloudpickle.cloudpickle" and name in ("_make_skeleton_class", "_make_skeleton_enum"):
            return functools.partial(self._make, found)
        if module == "cloudpickle.cloudpickle" and name == "_class_setstate":
            return functools.partial(self._set_state, found)
        return found

    def _make(self, make: Callable[..., Any], *args: Any) -> Any:
        import cloudpickle.cloudpickle as implementation

        known = set(map(id, getattr(implementation, "_DYNAMIC_CLASS_TRACKER_BY_ID", {}).values()))
        made = make(*args)
        if id(made) not in known:
            self._new.append(made)
        return made

    def _set_state(self, set_state: Callable[..., Any], made: Any, state: Any) -> Any:
        return set_state(made, state) if any(made is new for new in self._new) else made


def load_value(data: bytes) -> Any:
    """Unpickle what came from a runner, in the process of the script."""
    if b"_make_skeleton" in data:
        return _Loader(data).load()
    return pickle.loads(data)


def is_atom(value: Any) -> bool:
    """Whether a value is small and may be shared between tasks: nobody can change it."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if kind is int:
        return bool(value.bit_length() <= 8 * _ATOM_BYTES_MAX)
    return (kind is str or kind is bytes) and len(value) <= _ATOM_BYTES_MAX


def dump_result(value: Any, what: str) -> bytes:
    """Pickle a task's value. `what` names the function that gave it.

    Raises:
        ResultNotSendable: It cannot be pickled, or takes more than a message can carry.
    """
    try:
        data = dump(value)
    except Exception as error:
        raise ResultNotSendable(
            f"{what} returned a {type(value).__name__}, which cannot be pickled: {error}. Return plain data, or keep "
            "such an object where it was made"
        ) from error
    if len(data) > VALUE_BYTES_MAX:
        raise ResultNotSendable(
            f"{what} returned a {type(value).__name__} that takes {len(data):,} bytes; a value takes at most "
            f"{VALUE_BYTES_MAX:,}. Return it in parts, or write it to a file and return the file's name"
        )
    return data


# ── Errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def rebuild_error(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any] | None) -> BaseException:
    """An exception as it was, without calling the `__init__` that its class defines in Python.

    Such an `__init__` takes what its author chose, and `args` holds what it handed on: calling it with those fails,
    or does its work twice.
    """
    error = kind.__new__(kind, *args)
    # That of the built-in base fills the fields that live outside of `__dict__`, such as those of UnicodeDecodeError.
    native: Any = next(
        base for base in kind.__mro__ if isinstance(vars(base).get("__init__"), types.WrapperDescriptorType)
    )
    native.__init__(error, *args)
    if state:
        error.__dict__.update(state)
    return error


def _reduce_error(error: BaseException) -> Any:
    """How to pickle an exception: as its class says; as it stands, when the class has an `__init__` of its own and
    says nothing. NotImplemented: the usual way."""
    kind = type(error)
    if (
        kind.__reduce__ is BaseException.__reduce__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and isinstance(kind.__init__, types.FunctionType)
    ):
        return rebuild_error, (kind, error.args, error.__dict__ or None)
    return NotImplemented


class _AsItStands:
    """Pickled in place of an exception whose class says how to pickle it, wrongly."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_error, (type(self.error), self.error.args, self.error.__dict__ or None)


@functools.cache
def _error_pickler() -> type[pickle.Pickler]:
    import cloudpickle

    class ErrorPickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, BaseException):
                reduced = _reduce_error(obj)
                if reduced is not NotImplemented:
                    return reduced
            return super().reducer_override(obj)

    return ErrorPickler


def _dump_exception(error: BaseException) -> bytes:
    """The exception, pickled so that it can be made again; empty when there is no way."""
    for attempt in (error, _AsItStands(error)):
        try:
            buffer = io.BytesIO()
            _error_pickler()(buffer, 5).dump(attempt)
            data = buffer.getvalue()
            if len(data) <= _ERROR_BYTES_MAX and type(pickle.loads(data)) is type(error):
                return data
        except Exception:
            continue
    return b""


def _message_of(error: BaseException, where: str, what: str) -> str:
    kind = type(error).__name__
    if isinstance(error, SystemExit):
        code = "" if error.code is None else repr(error.code)
        return f"{what} called sys.exit({code}) on {where}; raise an exception instead, or return"
    if isinstance(error, KeyboardInterrupt):
        return f"{what} was interrupted (KeyboardInterrupt) on {where}"
    try:
        text = str(error)
    except Exception as second:
        text = f"(its __str__ raised {type(second).__name__})"
    if not isinstance(error, Exception):
        return f"{what} raised {kind} on {where}: {text}"
    return f"{kind}: {text}"


def format_trace(error: BaseException, frames_max: int | None = None) -> str:
    """The traceback of an error as text, from the first frame of the user's on; never fails.

    Args:
        error: What was raised.
        frames_max: So many frames are shown, the innermost; None: all.
    """
    try:
        came_by = error.__traceback__
        while came_by is not None and came_by.tb_frame.f_globals.get("__name__", "").startswith("raskid.services."):
            came_by = came_by.tb_next
        import traceback

        limit = None if frames_max is None else -frames_max
        return "".join(traceback.format_exception(type(error), error, came_by, limit)).rstrip()
    except Exception as second:
        return f"{type(error).__name__} (its traceback cannot be shown: {type(second).__name__})"


def dump_error(error: BaseException, where: str, what: str = "the task") -> bytes:
    """Pickle an exception, the text of its traceback, the name of its type and its message; never fails.

    Args:
        error: What was raised. One that is no `Exception` (SystemExit, KeyboardInterrupt) is described only: raised in
            the script, it would end the script.
        where: The runner.
        what: The function.
    """
    kind = type(error).__name__
    text = format_trace(error)
    if len(text) > _TEXT_CHARS_MAX:
        half = _TEXT_CHARS_MAX // 2
        text = f"{text[:half]}\n… ({len(text) - 2 * half:,} characters left out) …\n{text[-half:]}"
    message = _message_of(error, where, what)[:_TEXT_CHARS_MAX]
    pickled = _dump_exception(error) if isinstance(error, Exception) else b""
    return pickle.dumps((pickled, f"{text}\n(on {where})", kind, message), 5)


def load_error(data: bytes) -> Exception:
    """The exception of a task, with the remote traceback as its cause.

    It is a `RemoteError` with `kind` and `remote` where the exception itself could not travel.
    """
    try:
        pickled, text, kind, message = pickle.loads(data)
    except Exception as reason:
        return RemoteError(f"a task failed, and its error cannot be read here: {reason}", type(reason).__name__)
    raised: Exception
    try:
        raised = load_value(pickled) if pickled else RemoteError(message, kind, text)
    except Exception as reason:
        raised = RemoteError(
            f"{message}\n(the exception itself cannot be made here: {type(reason).__name__}: {reason})", kind, text
        )
    raised.__cause__ = RemoteTraceback(text)
    return raised
