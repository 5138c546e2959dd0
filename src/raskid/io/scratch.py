"""Files without a name, which end with their last descriptor and mapping, however their processes end; and the end of
directories."""

from __future__ import annotations

import contextlib
import os


def remove_tree(directory: str | os.PathLike[str]) -> None:
    """Remove a directory and what is in it, as far as that is possible.

    As ``shutil.rmtree`` with errors ignored, whose module takes as long to import as a system takes to end.
    """
    if os.path.islink(directory):
        # What it leads to is somebody else's.
        return
    with contextlib.suppress(OSError):
        with os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        remove_tree(entry.path)
                    else:
                        os.unlink(entry.path)
        os.rmdir(directory)


def nameless_file(label: str) -> int:
    """The descriptor of a new empty file, for reading and writing; `label` shows in /proc where it is in memory."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    import tempfile

    with tempfile.TemporaryFile(prefix=f"{label}-", buffering=0) as file:
        return os.dup(file.fileno())
