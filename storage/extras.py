"""How a person installs what an optional part of this project needs."""

import re
import shlex
import sys
from importlib import metadata

PROJECT = "assay"


def install_command(extra: str, *options: str) -> str:
    """The command that installs the packages of an extra of `pyproject.toml`, for this Python.

    It names the packages themselves: `pip install -e '.[s3]'` works in a checkout alone, and the
    name of the project belongs to another one on the package index.
    """
    lines = metadata.requires(PROJECT) or []
    marked = [line.partition(";") for line in lines]
    packages = [
        package.strip()
        for package, _, marker in marked
        if re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", marker)
    ]
    return shlex.join([sys.executable, "-m", "pip", "install", *options, *packages])
