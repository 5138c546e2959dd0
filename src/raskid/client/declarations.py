"""What a channel or cell carries: declared once for all who use it, and checked at both ends.

A declaration is a record of the hub, so that every handle finds it: record ``value`` of the list ``channels:NAME`` for
a channel, record ``declaration`` of the cell's own list for a cell, which is thus read together with the value. The
checks themselves are those of the operation ``check`` (`raskid.core.operations`), so that a link, a reaction and a
handle agree.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from raskid.client.futures import Future
from raskid.client.shared import PUT_S
from raskid.client.waiting import Steps
from raskid.core.operations import make_step
from raskid.model.operations import CHECK, Operation
from raskid.protocol.messages import PutRecord, Record
from raskid.protocol.values import decode_value, encode_value

if TYPE_CHECKING:
    from raskid.client.topics import Topics

#: Python's types by the names that `check` has for them; numpy's array, of whatever dtype, is "array".
_NAMES = {int: "int", float: "float", str: "str", bool: "bool", bytes: "bytes", list: "list", dict: "dict"}


class Declaration:
    """Type, range and shape of the values of a channel or cell. What is not declared is not checked.

    Attributes:
        fields: What was declared: "type", "min", "max" and "shape", each with a value that messages carry.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        try:
            self._step = make_step(Operation(CHECK, (), fields))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"this declares nothing: {error}") from None

    def check(self, value: Any) -> None:
        """Raise TypeError or ValueError for a value that does not fit."""
        try:
            self._step.take((value,), {}, 0.0)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(str(error).removeprefix("check: ").replace("positional value 0", "the value", 1)) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Declaration) and other.fields == self.fields

    def __hash__(self) -> int:
        return hash(repr(self.fields))

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.fields.items())

    def __repr__(self) -> str:
        return f"<raskid declaration {self}>"


def check_of(end: Any) -> Operation | None:
    """The operation that checks for a channel or cell what is to go into it; None where nothing is declared."""
    found = _standing_of(end)
    if found is None or (hasattr(end, "address") and found.fields.get("type") == "dict"):
        # A cell is set to a dict of the fields where a message has nothing else, and the operation looks at one value.
        return None
    return Operation(CHECK, (), found.fields)


def check_fits(source: Any, target: Any) -> None:
    """Raise ValueError when what one channel or cell declares can never go into the other."""
    out, into = _standing_of(source), _standing_of(target)
    if out is None or into is None:
        return
    given, wanted = out.fields.get("type", "any"), into.fields.get("type", "any")
    if given != wanted and "any" not in (given, wanted) and (given, wanted) != ("int", "float"):
        raise ValueError(
            f"what {source._gate.what} carries ({out}) does not go into {target._gate.what} ({into}); convert it on "
            "the way: rk.link(source, target, function)"
        )


def _standing_of(end: Any) -> Declaration | None:
    gate = getattr(end, "_gate", None)
    found: Declaration | None = gate.standing if gate is not None else None
    return found


def declare(type: Any = None, min: Any = None, max: Any = None, shape: Any = None) -> Declaration | None:
    """A declaration from what a user gives; None when that is nothing.

    Args:
        type: One of Python's types int, float (also takes int), str, bool, bytes, list and dict, or its name;
            ``numpy.ndarray`` or "array"; "any".
        min: The least value, of an array's elements too.
        max: The greatest.
        shape: An array's lengths, None for one that may be any.

    Raises:
        TypeError, ValueError: It is no declaration; the text says what is wrong.
    """
    given = {
        "type": _type_name(type), "min": _plain(min), "max": _plain(max),
        "shape": list(shape) if isinstance(shape, tuple) else shape,
    }  # fmt: skip
    fields = {name: value for name, value in given.items() if value is not None}
    return Declaration(fields) if fields else None


def read_declaration(record: Record | None) -> Declaration | None:
    """The declaration that stands in a record; a record that holds none counts as none."""
    if record is None:
        return None
    try:
        fields = decode_value(record.value)
        return declare(**{name: fields[name] for name in ("type", "min", "max", "shape") if name in fields})
    except Exception:
        # Anybody may write records.
        return None


def _type_name(given: Any) -> Any:
    """The name of a type; what is none is left to the check."""
    if not isinstance(given, type):
        return given
    np: Any = sys.modules.get("numpy")
    if np is not None and given is np.ndarray:
        return "array"
    return _NAMES.get(given, given.__name__)


def _plain(bound: Any) -> Any:
    """A number of numpy's as one of Python's, so that declarations can be compared."""
    return bound.item() if hasattr(bound, "dtype") and getattr(bound, "ndim", 1) == 0 else bound


class Gate:
    """Lets values out of one handle, and into it, if they fit what is declared.

    Attributes:
        what: Whose handle this is, for texts, for example "channel 'mesh/mean'".
        rejected: How many values that came did not fit, and were left out.
    """

    def __init__(
        self, session: Topics, what: str, own: Declaration | None = None, address: tuple[str, str] = ("", "")
    ) -> None:  # fmt: skip
        self._session = session
        self.what = what
        self._own = own
        #: Where declarations stand; empty for what is never declared.
        self._list, self._record = address
        self.rejected = 0
        #: `_standing` is what `_read` says.
        self._read: Record | None = None
        self._standing: Declaration | None = None

    @property
    def standing(self) -> Declaration | None:
        """What is declared in the whole system."""
        if not self._list:
            return None
        try:
            record = self._session.replica(self._list).records.get(self._record)
        except KeyError:
            # The handle was closed, and what it had not given out yet is looked at now.
            return self._standing
        if record is not self._read:
            self._standing = read_declaration(record)
            self._read = record
        return self._standing

    def opening(self) -> Steps[None]:
        """Declare what this handle declares, unless somebody has already; its list is followed by now.

        Raises:
            ValueError: Somebody has declared something else.
        """
        if self._own is None:
            return
        if self.standing is None:
            session = self._session
            value = encode_value(self._own.fields)
            # The hub tells readers of a change before it answers whoever made it: the declaration is here then.
            yield (
                session.ask(PutRecord(session.request_id(), self._list, self._record, value, True)), PUT_S,
                f"the hub did not confirm the declaration of {self.what}",
            )  # fmt: skip
        self._check_own()

    def _check_own(self) -> None:
        standing = self.standing
        if self._own is not None and standing is not None and standing != self._own:
            raise ValueError(
                f"{self.what} was declared with {standing}, and this handle declares {self._own}. Declare the same, "
                "or nothing, or choose another name"
            )

    def check(self, value: Any) -> None:
        """Raise TypeError or ValueError for a value that may not go out."""
        if self._own is not None:
            # Two that declared at the same moment: the later one stands.
            self._check_own()
        standing = self.standing
        if standing is None:
            return
        try:
            standing.check(value)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{self.what} takes no such value: {error}") from None

    def admit(self, read: Callable[[], Any]) -> tuple[Any] | None:
        """The value that `read()` gives, if it fits; None for one that is left out."""
        try:
            value = read()
            standing = self.standing
            if standing is not None:
                standing.check(value)
        except Exception as error:
            self.rejected += 1
            if self.rejected == 1:
                text = (
                    f"raskid: a value on {self.what} does not fit, and is left out here, as all like it will be; "
                    f"`.rejected` counts them: {error}"
                )
                # Not here: a cell looks at values under the session's lock, and whoever reads what is printed may be
                # slow.
                self._session.engine.call_soon(partial(print, text, file=sys.stderr))
            return None
        return (value,)

    def admits_all(self) -> bool:
        """Whether nothing is declared, so that a value need not be looked at."""
        return self.standing is None


def follow_steps(session: Topics, name: str, future: Future, gate: Gate, limit_s: float) -> Steps[None]:
    """Wait for a list that is followed since `future`, and declare; it is not followed any more if that fails."""
    try:
        yield future, limit_s, f"the hub did not say what {gate.what} holds"
        yield from gate.opening()
    except BaseException:
        session.unfollow(name, future)
        raise
