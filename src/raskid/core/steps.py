"""Steps: the operations of a chain that look at a message and let it pass, changed or not.

A reaction has steps of its own at each publisher, since some of them remember what went before. `raskid.core.windows`
holds the steps that collect several messages; `raskid.core.operations` makes steps from operations and refuses wrong
arguments. `docs/operations.md` is the specification, and `docs/operations.json` holds examples that every
implementation has to satisfy.

Values are compared as they are. Arrays are recognised by what they have, so that numpy is never imported here.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any, Final

#: A message without its topic: values by position, and values by name.
Content = tuple[tuple[Any, ...], dict[str, Any]]
#: Where in a message a value stands: the name of a field, or the number of a positional value, from 0.
Place = str | int

#: What `find` gives for a value that is not there.
ABSENT: Final = object()

HAS: Final = "has"
IN: Final = "in"
NOT_IN: Final = "not in"
_COMPARISONS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
#: Everything that can stand between a place and a value in a condition.
OPERATORS: Final = (*_COMPARISONS, IN, NOT_IN, HAS)

ANY: Final = "any"
ARRAY: Final = "array"
#: The kinds of values that have a counterpart in every language.
PLAIN_KINDS: Final[dict[str, tuple[type, ...]]] = {
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "bool": (bool,),
    "bytes": (bytes, bytearray, memoryview),
    # Messages carry all of these as lists.
    "list": (list, tuple, set, frozenset),
    "dict": (dict,),
}
KINDS: Final = (*PLAIN_KINDS, ARRAY, ANY)
#: What a scalar of numpy is, by the kind of its dtype.
_SCALAR_KINDS: Final[dict[str, tuple[str, ...]]] = {
    "i": ("int", "float"),
    "u": ("int", "float"),
    "f": ("float",),
    "b": ("bool",),
    "U": ("str",),
    "S": ("bytes",),
}
#: Members of sets that are found by their hash exactly where comparing would find them; NaN keeps floats out.
_HASHED: Final = (str, bytes, int)


class Step:
    """An operation at work. What a message or a time makes it raise leaves it as it was."""

    __slots__ = ()

    def take(self, args: tuple[Any, ...], fields: dict[str, Any], now: float) -> Content | None:
        """One message in, one or none out. Never changes what it was given.

        Raises:
            TypeError: A value is of the wrong kind for this operation.
            ValueError: It is of the right kind, and wrong; or it is not there.
        """
        raise NotImplementedError

    def next_deadline(self) -> float | None:
        """When `tick` will have something to give, should no message come before."""
        return None

    def tick(self, now: float) -> Content | None:
        """What is due now."""
        return None

    def flush(self) -> Content | None:
        """What is still collected. For when the reaction ends."""
        return None


class Condition:
    """A comparison of one value of a message with a constant."""

    __slots__ = ("compare", "members", "operator", "place", "value")

    def __init__(self, place: Place, operator: str, value: Any) -> None:
        self.place = place
        self.operator = operator
        self.value = value
        self.compare = _COMPARISONS.get(operator)
        #: The same as `value` where members can be looked up by their hash.
        self.members: frozenset[Any] | None = None
        if operator in (IN, NOT_IN) and all(type(member) in _HASHED for member in value):
            self.members = frozenset(value)

    def holds(self, args: tuple[Any, ...], fields: dict[str, Any]) -> bool:
        """Whether a message satisfies it; one without the value does not, whatever the comparison."""
        found = find(self.place, args, fields)
        if self.operator == HAS:
            return bool(self.value) == (found is not ABSENT)
        if found is ABSENT:
            return False
        try:
            if self.compare is not None:
                return everywhere(self.compare(found, self.value))
            return self._is_member(found) == (self.operator == IN)
        except TypeError as error:
            raise TypeError(f"filter cannot compare {self._shown(found)}: {error}") from error
        except ValueError as error:
            raise ValueError(f"filter cannot compare {self._shown(found)}: {error}") from error

    def _is_member(self, found: Any) -> bool:
        if self.members is not None and type(found) in _HASHED:
            return found in self.members
        return any(everywhere(found == member) for member in self.value)

    def _shown(self, found: Any) -> str:
        return f"{named(self.place)}, {shown(found)}, by {self.operator} with {shown(self.value)}"


class Filter(Step):
    """Lets messages pass that satisfy all conditions."""

    __slots__ = ("conditions",)

    def __init__(self, conditions: list[Condition]) -> None:
        self.conditions = conditions

    def take(self, args: tuple[Any, ...], fields: dict[str, Any], now: float) -> Content | None:
        """The message, or nothing."""
        for condition in self.conditions:
            if not condition.holds(args, fields):
                return None
        return args, fields


class Choose(Step):
    """Leaves out what is not named."""

    __slots__ = ("names", "positional")

    def __init__(self, names: list[str], positional: bool) -> None:
        self.names = names
        self.positional = positional

    def take(self, args: tuple[Any, ...], fields: dict[str, Any], now: float) -> Content | None:
        """A message of the chosen fields, in the order in which they were named."""
        return args if self.positional else (), {name: fields[name] for name in self.names if name in fields}


class Check(Step):
    """Lets messages pass whose value is as declared, and raises for others."""

    __slots__ = ("kind", "least", "most", "place", "shape")

    def __init__(self, place: Place, kind: str, least: Any, most: Any, shape: list[int | None] | None) -> None:
        """None for `least`, `most` or `shape`: whatever it is."""
        self.place = place
        self.kind = kind
        self.least = least
        self.most = most
        self.shape = shape

    def take(self, args: tuple[Any, ...], fields: dict[str, Any], now: float) -> Content | None:
        """The message as it is."""
        value = look(self.place, args, fields, "check")
        if not fits(self.kind, value):
            raise TypeError(f"check: {named(self.place)} is declared as {self.kind}, got {shown(value)}")
        if self.shape is not None:
            self._check_shape(value, self.shape)
        if self.least is not None:
            self._check_bound(value, operator.ge, self.least, "at least")
        if self.most is not None:
            self._check_bound(value, operator.le, self.most, "at most")
        return args, fields

    def _check_shape(self, value: Any, wanted: list[int | None]) -> None:
        if not hasattr(value, "shape"):
            raise TypeError(f"check: {named(self.place)} is declared as an array of a shape, got {shown(value)}")
        shape = tuple(value.shape)
        if len(shape) != len(wanted) or any(
            length is not None and length != shape[axis] for axis, length in enumerate(wanted)
        ):
            text = ", ".join("any" if length is None else str(length) for length in wanted)
            raise ValueError(f"check: {named(self.place)} is declared to have shape [{text}], got {shown(value)}")

    def _check_bound(self, value: Any, compare: Callable[[Any, Any], Any], bound: Any, text: str) -> None:
        try:
            holds = everywhere(compare(value, bound))
        except TypeError as error:
            raise TypeError(
                f"check: {named(self.place)} is declared to be {text} {bound!r}, got {shown(value)}: {error}"
            ) from error
        if not holds:
            whole = " in all its elements" if is_array(value) else ""
            raise ValueError(
                f"check: {named(self.place)} is declared to be {text} {bound!r}{whole}, got {shown(value)}"
            )


class SampleCount(Step):
    """Lets the first message pass, and then every n-th."""

    __slots__ = ("every", "skipped")

    def __init__(self, every: int) -> None:
        self.every = every
        #: Messages held back since the last that passed; 0 before the first.
        self.skipped = 0

    def take(self, args: tuple[Any, ...], fields: dict[str, Any], now: float) -> Content | None:
        """The message, or nothing."""
        passes = self.skipped == 0
        self.skipped = (self.skipped + 1) % self.every
        return (args, fields) if passes else None


class SampleRate(Step):
    """Lets at most so many messages a second pass, evenly."""

    __slots__ = ("next_at", "period")

    def __init__(self, rate: float) -> None:
        self.period = 1.0 / rate
        self.next_at = float("-inf")

    def take(self, args: tuple[Any, ...], fields: dict[str, Any], now: float) -> Content | None:
        """The message, or nothing."""
        if now < self.next_at:
            return None
        self.next_at = now + self.period
        return args, fields


# ── Values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def find(place: Place, args: tuple[Any, ...], fields: dict[str, Any]) -> Any:
    """The value that stands there, or `ABSENT`."""
    if isinstance(place, str):
        return fields.get(place, ABSENT)
    return args[place] if place < len(args) else ABSENT


def look(place: Place, args: tuple[Any, ...], fields: dict[str, Any], operation: str) -> Any:
    """The value that stands there; raises ValueError when the message has none."""
    value = find(place, args, fields)
    if value is ABSENT:
        names = ", ".join(repr(name) for name in list(fields)[:8]) or "no fields"
        raise ValueError(
            f"{operation}: the message has no {named(place)}; it has {len(args)} positional values and {names}"
        )
    return value


def everywhere(result: Any) -> bool:
    """Whether a comparison holds, for arrays in all elements."""
    if result is True or result is False:
        return result is True
    whole = getattr(result, "all", None)
    return bool(result if whole is None else whole())


def is_scalar(value: Any) -> bool:
    """Whether it is a number (or text, or a time) of numpy's own kind."""
    np: Any = sys.modules.get("numpy")
    generic = getattr(np, "generic", None)
    return generic is not None and isinstance(value, generic)


def is_array(value: Any) -> bool:
    """Whether it has elements of one kind in some shape."""
    return hasattr(value, "dtype") and hasattr(value, "shape") and not is_scalar(value)


def fits(kind: str, value: Any) -> bool:
    """Whether a value is of one of `KINDS`."""
    if kind == ANY:
        return True
    if kind == ARRAY:
        return is_array(value)
    if is_scalar(value):
        return kind in _SCALAR_KINDS.get(value.dtype.kind, ())
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, PLAIN_KINDS[kind])


def named(place: Place) -> str:
    """A place, for people."""
    return f"field {place!r}" if isinstance(place, str) else f"positional value {place}"


def shown(value: Any) -> str:
    """A value, for people: short, and in little time however large it is."""
    kind = type(value).__name__
    if is_array(value):
        return f"an array of {value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple | dict | set | frozenset):
        text = repr(value) if not value else f"{len(value):,} values"
    elif isinstance(value, str | bytes | bytearray) and len(value) > 60:
        text = f"{value[:60]!r}…"
    elif isinstance(value, int) and value.bit_length() > 200:
        text = f"a number of {value.bit_length():,} bits"
    else:
        text = f"{value!r:.60}"
    return f"{text} of type {kind}"
