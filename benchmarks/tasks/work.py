"""Task bodies, imported by reference on the workers of every peer."""


def noop(*_args: object) -> None:
    """Nothing: what remains is the runtime's own cost."""


def inc(x: int) -> int:
    """One link of the chain."""
    return x + 1
