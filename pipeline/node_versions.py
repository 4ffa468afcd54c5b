"""Whether the nodes of a cluster have the packages of the machine that runs `assay`.

Its own code is sent along, the packages are not. Other versions of them give other bytes under the
same keys, so a worker that has others is refused before it is given a task.
"""

import importlib.metadata
import sys
from collections.abc import Mapping

from pipeline.errors import TaskError

PACKAGES = ("numpy", "pyarrow", "tokenizers", "torch", "transformers")
"""Packages that decide the bytes of shards."""
NONE = "none"


def installed() -> dict[str, str]:
    """Versions of Python and of `PACKAGES` in this process, by name."""
    python = ".".join(map(str, sys.version_info[:2]))
    return {"python": python, **{name: _version(name) for name in PACKAGES}}


def check_versions(found: Mapping[str, str], node: str) -> None:
    """Raises unless a node has the versions of this process.

    Builds of one version, such as torch 2.9.1+cpu and 2.9.1+cu126, count as equal: a cluster may
    have nodes with and without GPUs.

    Args:
        found: What `installed` says there.
        node: The node's name.

    Raises:
        TaskError: a version is another, or a package is not installed there.
    """
    here = installed()
    differing = [name for name, version in here.items() if found.get(name, NONE) != version]
    if not differing:
        return
    packages = [f"{name}=={here[name]}" for name in differing if name != "python"]
    install = f"Install them there (`pip install {' '.join(packages)}`)" if packages else ""
    python = "use the same Python there" if "python" in differing else ""
    advice = ", and ".join(part for part in (install, python) if part)
    raise TaskError(
        f"ray: found {_told(found, differing)} on the node {node}, expected "
        f"{_told(here, differing)}, as on the machine that runs assay: others give other bytes. "
        f"{advice[0].upper()}{advice[1:]}, or start all nodes from one image."
    )


def _told(versions: Mapping[str, str], names: list[str]) -> str:
    return ", ".join(f"{name} {versions.get(name, NONE)}" for name in names)


def _version(package: str) -> str:
    """The installed version without its build; `NONE` where there is none."""
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return NONE
