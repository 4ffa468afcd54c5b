"""Commands that people copy from the screen: they hold for the folder in which assay was called."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def command(name: str, run: str | Path, *rest: str) -> str:
    """The command `name` over a run, with `rest` as it stands behind; `rest` is quoted already."""
    return " ".join([_program(), name, shell_path(str(run)), *rest])


def shell_path(path: str) -> str:
    """The path quoted for a shell, relative to the working directory where that is shorter."""
    return shlex.quote(min(path, os.path.relpath(path), key=len))


def _program() -> str:
    """`assay`, or the path by which it was called where it is not on the PATH."""
    is_called_by_path = os.path.basename(sys.argv[0]) == "assay" and not shutil.which("assay")
    return shell_path(sys.argv[0]) if is_called_by_path else "assay"
