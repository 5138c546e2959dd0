"""Operations: what a reaction does with a message, as data that any peer can carry and show.

An operation is a name and its bound arguments. Names come from the table in `docs/operations.md`, which every
implementation knows; `CODE` names a code object, which only peers of its language and version run.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

# Where a message goes.
DELIVER = "deliver"
FORWARD = "forward"
SET = "set"
KEEP = "keep"
CONSUME = "consume"
# What becomes of it on the way.
FILTER = "filter"
CHOOSE = "choose"
CHECK = "check"
SAMPLE = "sample"
REDUCE = "reduce"
GATHER = "gather"
CODE = "code"

#: All names of the table.
OPERATIONS = (FILTER, CHOOSE, CHECK, SAMPLE, REDUCE, GATHER, CODE, CONSUME, FORWARD, SET, KEEP, DELIVER)

#: The language and version of the code objects that this process can load.
LANGUAGE = "python"
LANGUAGE_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


class Operation(msgspec.Struct, frozen=True, array_like=True):
    """`op` with its arguments, by position and by name."""

    op: str
    args: tuple[Any, ...] = ()
    fields: dict[str, Any] = {}
