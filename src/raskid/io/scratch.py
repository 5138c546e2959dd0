"""Files without a name: they end with their last descriptor and mapping, however their processes end."""

from __future__ import annotations

import os


def nameless_file(label: str) -> int:
    """The descriptor of a new empty file, for reading and writing; `label` shows in /proc where it is in memory."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    import tempfile

    with tempfile.TemporaryFile(prefix=f"{label}-", buffering=0) as file:
        return os.dup(file.fileno())
