"""Which code this is: a digest of assay's own source, and the versions of packages."""

import functools
import hashlib
import importlib.metadata
import os
from pathlib import Path

ROOMS = ("pipeline", "stages", "storage")
PACKAGES = ("assay", "torch", "transformers", "datasets", "pyarrow", "duckdb", "ray", "numpy")
"""Packages whose versions are noted with every table."""


@functools.cache
def source_digest() -> str:
    """Stands for assay's own source: all Python and SQL in its rooms."""
    found = hashlib.sha256()
    root = Path(__file__).parents[1]
    for room in ROOMS:
        for folder, folders, names in os.walk(root / room):
            folders.sort()
            for name in sorted(names):
                if name.endswith((".py", ".sql")):
                    with open(os.path.join(folder, name), "rb") as file:
                        content = hashlib.file_digest(file, "sha256").digest()
                    found.update(name.encode() + b"\0" + content)
    return found.hexdigest()


@functools.cache
def package_version(package: str) -> str:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
