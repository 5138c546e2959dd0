"""Compiles the hot modules with mypyc while a wheel is built; without a C compiler the wheel is pure Python.

``RASKID_COMPILE=0`` leaves compiling out, ``RASKID_COMPILE=1`` makes its failure an error. An editable installation is
never compiled: an extension beside its source would hide later changes of the source. `docs/design/008` says what is
compiled and why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: Structs of msgspec lose their options when they are compiled, so the modules that hold them stay interpreted.
INTERPRETED = {"__init__.py", "effects.py", "events.py", "identity.py"}
#: Hot modules besides the machines.
HOT = (
    "protocol/framing.py",
    "io/driver.py",
    "io/looking.py",
    "io/outbox.py",
    "client/code.py",
    "client/engine.py",
    "services/outgoing.py",
)

MYPY = """\
[mypy]
mypy_path = src
explicit_package_bases = True
ignore_missing_imports = True
"""

SETUP = """\
import sys
from mypyc.build import mypycify
from setuptools import setup

extensions = mypycify(sys.argv.pop().split(","), opt_level="3", group_name="raskid")
setup(name="raskid", package_dir={"": "src"}, packages=[], ext_modules=extensions)
"""


class CompileHook(BuildHookInterface[Any]):
    """Adds compiled modules to a wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tell the builder where the results are."""
        wanted = os.environ.get("RASKID_COMPILE", "auto")
        if version == "editable" or wanted == "0":
            return
        self._scratch = Path(tempfile.mkdtemp(prefix="raskid-build-"))
        try:
            compiled = _compile(Path(self.root), self._scratch)
        except (OSError, subprocess.CalledProcessError) as error:
            if wanted == "1":
                raise
            output = getattr(error, "stdout", "") or ""
            print(
                f"raskid: not compiled, which costs speed and nothing else: {error}\n{output[-2000:]}", file=sys.stderr
            )
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for path in compiled.rglob("*.so"):
            build_data["force_include"][str(path)] = str(path.relative_to(compiled))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what compiling left."""
        if hasattr(self, "_scratch"):
            shutil.rmtree(self._scratch, ignore_errors=True)


def modules(source: Path) -> list[str]:
    """The modules to compile, relative to `source`."""
    machines = [path for path in sorted((source / "raskid/core").glob("*.py")) if path.name not in INTERPRETED]
    return [str(path.relative_to(source)) for path in machines] + [f"raskid/{name}" for name in HOT]


def _compile(root: Path, scratch: Path) -> Path:
    """Compile a copy of the source; returns the folder that holds the extensions."""
    shutil.copytree(root / "src", scratch / "src", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (scratch / "mypy.ini").write_text(MYPY)
    (scratch / "setup.py").write_text(SETUP)
    paths = [f"src/{name}" for name in modules(scratch / "src")]
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(scratch / "lib"), ",".join(paths)],
        cwd=scratch, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return scratch / "lib"
