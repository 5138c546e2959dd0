"""State machines without IO. Each has one entry point, ``handle(event, now) -> list[Effect]``."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Tells the compiler what a class is to allow.
    from mypy_extensions import mypyc_attr as mypyc_attr
else:
    # Here, in a module that is never compiled: a package that only the compiler needs is not needed to run.
    def mypyc_attr(**options):
        """Leaves a class as it is."""
        return lambda kind: kind
