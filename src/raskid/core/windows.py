"""Windows: steps that make one message of several, `reduce` and `gather`.

A window begins with a message and ends after so many of them, or so many seconds after it began; the next message
begins the next one. So every message is in exactly one window. The time is only ever told, by messages and by `tick`.

What a window keeps is its own: the publisher may go on to change the array or list that it published.
"""

from __future__ import annotations

import copy
import sys
from typing import Any, Final

from raskid.core.steps import Content, Place, Step, is_array, is_scalar, look, named, shown

SUM: Final = "sum"
MEAN: Final = "mean"
MIN: Final = "min"
MAX: Final = "max"
FIRST: Final = "first"
LAST: Final = "last"
COUNT: Final = "count"
#: What `reduce` can make of the values of a window.
REDUCTIONS: Final = (SUM, MEAN, MIN, MAX, FIRST, LAST, COUNT)
#: Those that reckon, so that values have to be numbers or arrays of numbers, all of one shape.
_RECKONING: Final = frozenset({SUM, MEAN, MIN, MAX})
#: Numbers, by the kind of a dtype: whole ones with and without a sign, floats, complex ones.
_NUMBERS: Final = ("i", "u", "f", "c")

#: A window holds no more messages than this.
MESSAGES_MAX: Final = 1_000_000

#: Values of these types never change.
_CONSTANT: Final = frozenset({int, float, str, bytes, bool, complex, type(None)})
#: Sums of narrow numbers are kept in wide ones, by kind and bytes of the elements: they would overflow.
_WIDE: Final = {
    ("i", 1): "int64",
    ("i", 2): "int64",
    ("i", 4): "int64",
    ("u", 1): "uint64",
    ("u", 2): "uint64",
    ("u", 4): "uint64",
    ("f", 2): "float32",
}


class Window(Step):
    """What the two have in common: when a window begins and ends."""

    __slots__ = ("count", "ends_at", "seconds", "taken")

    def __init__(self, count: int, seconds: float | None) -> None:
        self.count = count
        self.seconds = seconds
        #: Messages in the present window; 0: none has begun, and nothing is kept.
        self.taken = 0
        #: When the present window ends.
        self.ends_at = float("inf")

    def take(self, args: tuple[Any, ...], fields: dict[str, Any], now: float) -> Content | None:
        """The result of the window that ends with this message, or ended before it."""
        # What can raise comes first, so that a message that does not fit neither counts nor ends anything.
        value = self._value_of(args, fields)
        finished: Content | None = None
        if self.taken > 0 and now >= self.ends_at:
            finished = self._finish()
        if self.taken == 0:
            self._begin(value)
            self.ends_at = float("inf") if self.seconds is None else now + self.seconds
        else:
            self._add(value)
        self.taken += 1
        if self.taken < self.count:
            return finished
        # A window of one message never stays open, so none was finished above.
        assert finished is None, f"two windows of {self.count} ended with one message"
        return self._finish()

    def next_deadline(self) -> float | None:
        """When the present window ends."""
        return self.ends_at if self.taken > 0 and self.seconds is not None else None

    def tick(self, now: float) -> Content | None:
        """The result of the window that has ended."""
        return self._finish() if self.taken > 0 and now >= self.ends_at else None

    def flush(self) -> Content | None:
        """The result of the present window, complete or not."""
        return self._finish() if self.taken > 0 else None

    def _finish(self) -> Content:
        try:
            return self._result()
        finally:
            # Over in any case: what cannot be reckoned now cannot be reckoned later.
            self.taken = 0
            self._forget()

    def _value_of(self, args: tuple[Any, ...], fields: dict[str, Any]) -> Any:
        """What the window wants of a message; may raise."""
        raise NotImplementedError

    def _begin(self, value: Any) -> None:
        """Take in the first value of a window."""
        raise NotImplementedError

    def _add(self, value: Any) -> None:
        """Take in a further value; where that raises, nothing has changed."""
        raise NotImplementedError

    def _result(self) -> Content:
        """The message that the window gives."""
        raise NotImplementedError

    def _forget(self) -> None:
        """Keep nothing of what a window held."""
        raise NotImplementedError


class Gather(Window):
    """Makes a list of the messages of a window."""

    __slots__ = ("values",)

    def __init__(self, count: int, seconds: float | None) -> None:
        super().__init__(count, seconds)
        self.values: list[Any] = []

    def _value_of(self, args: tuple[Any, ...], fields: dict[str, Any]) -> Any:
        """The message in the shortest form in which a reader would write it."""
        if not args:
            return own(fields, "gather")
        if not fields:
            return own(args[0] if len(args) == 1 else list(args), "gather")
        return own({"args": list(args), "fields": fields}, "gather")

    def _begin(self, value: Any) -> None:
        self.values = [value]

    def _add(self, value: Any) -> None:
        self.values.append(value)

    def _result(self) -> Content:
        return (self.values,), {}

    def _forget(self) -> None:
        self.values = []


class Reduce(Window):
    """Makes one value, or a few, of the values of a window."""

    __slots__ = ("first", "how", "last", "least", "most", "place", "reckons", "shape", "single", "sums", "total")

    def __init__(self, how: list[str], single: bool, place: Place, count: int, seconds: float | None) -> None:
        """`single`: the result is the one value itself, and not fields named by `how`."""
        super().__init__(count, seconds)
        self.how = how
        self.single = single
        self.place = place
        self.reckons = not _RECKONING.isdisjoint(how)
        self.sums = SUM in how or MEAN in how
        #: The shape of all values of the window, None for numbers.
        self.shape: tuple[int, ...] | None = None
        # Of these only what `how` asks for is kept.
        self.total: Any = None
        self.least: Any = None
        self.most: Any = None
        self.first: Any = None
        self.last: Any = None

    def _value_of(self, args: tuple[Any, ...], fields: dict[str, Any]) -> Any:
        if self.how == [COUNT]:
            return None
        value = look(self.place, args, fields, "reduce")
        if not self.reckons:
            return own(value, "reduce")
        self._check_number(value)
        return value

    def _check_number(self, value: Any) -> None:
        if is_array(value) or is_scalar(value):
            kind = getattr(value.dtype, "kind", "")
        elif isinstance(value, complex):
            kind = "c"
        else:
            kind = "f" if isinstance(value, int | float) and not isinstance(value, bool) else ""
        if kind not in _NUMBERS:
            raise TypeError(
                f"reduce: {named(self.place)} has to be a number or an array of numbers for "
                f"{', '.join(self.how)}, got {shown(value)}"
            )
        if kind == "c" and (MIN in self.how or MAX in self.how):
            raise TypeError(f"reduce: {named(self.place)} is {shown(value)}, and complex numbers have no least or most")

    def _begin(self, value: Any) -> None:
        number = value
        if self.reckons:
            if is_array(value):
                number = value = own(value, "reduce")
                self.shape = tuple(value.shape)
            else:
                number = _plain(value)
                self.shape = None
        if self.sums:
            self.total = _widened(number)
        self.least = self.most = number
        self.first = self.last = value

    def _add(self, value: Any) -> None:
        total, least, most, last = self.total, self.least, self.most, value
        if self.reckons:
            array = is_array(value)
            if (tuple(value.shape) if array else None) != self.shape:
                begun = "a number" if self.shape is None else f"an array of shape {self.shape}"
                raise ValueError(
                    f"reduce: all values of a window have one shape; this one began with {begun}, and "
                    f"{named(self.place)} is {shown(value)}"
                )
            number = value if array else _plain(value)
            if self.sums:
                total = total + number
            if MIN in self.how:
                least = _numpy().minimum(least, number) if array else _lesser(least, number)
            if MAX in self.how:
                most = _numpy().maximum(most, number) if array else _greater(most, number)
            if array:
                last = own(value, "reduce") if LAST in self.how else None
        self.total, self.least, self.most, self.last = total, least, most, last

    def _result(self) -> Content:
        values = {how: self._reduced(how) for how in self.how}
        return ((values[self.how[0]],), {}) if self.single else ((), values)

    def _reduced(self, how: str) -> Any:
        if how == COUNT:
            return self.taken
        if how == SUM:
            return self.total
        if how == MEAN:
            return _divided(self.total, self.taken)
        if how == MIN:
            return self.least
        if how == MAX:
            return self.most
        return self.first if how == FIRST else self.last

    def _forget(self) -> None:
        self.total = self.least = self.most = self.first = self.last = None


def own(value: Any, operation: str) -> Any:
    """A value that nobody else can change: itself, or a copy."""
    if type(value) in _CONSTANT:
        return value
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    try:
        return copy.deepcopy(value)
    except TypeError as error:
        raise TypeError(f"{operation} cannot keep {shown(value)}: {error}") from error


def _numpy() -> Any:
    """numpy, which is there when arrays are."""
    return sys.modules["numpy"]


def _plain(number: Any) -> Any:
    """A number of numpy's as the language's own, which is wider."""
    return number.item() if is_scalar(number) else number


def _widened(number: Any) -> Any:
    """What a sum begins with."""
    if not is_array(number):
        return number
    wide = _WIDE.get((number.dtype.kind, number.dtype.itemsize))
    return number if wide is None else number.astype(wide)


def _lesser(one: Any, other: Any) -> Any:
    """The lesser of two numbers; NaN where one of them is NaN, as in arrays."""
    return other if other < one or other != other else one


def _greater(one: Any, other: Any) -> Any:
    """The greater of two numbers; NaN where one of them is NaN."""
    return other if other > one or other != other else one


def _divided(total: Any, count: int) -> Any:
    try:
        return total / count
    except OverflowError:
        # A sum of whole numbers that no float holds; one of floats would be infinite by now.
        return float("inf") if total > 0 else float("-inf")
