"""The floor of a chain: the same operations as plain calls, one after the other, on the publisher's thread."""

from __future__ import annotations

from typing import Any

from benchmarks.reactions.shared import LENGTHS, Values, per_call_us


def _passes(fields: dict[str, Any]) -> bool:
    return bool(fields["step"] >= 0)


def chain(n: int) -> Values:
    """One call, with a look at one field, for each operation."""
    values: Values = {}
    for length in LENGTHS:
        operations = [_passes] * length

        def publish(operations: list[Any] = operations, **fields: Any) -> None:
            for operation in operations:
                if not operation(fields):
                    return

        values[f"k{length}_us"] = per_call_us(lambda publish=publish: publish(step=3, value=1.5), n)  # type: ignore[misc]
    return values
