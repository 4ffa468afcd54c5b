"""One contestant of the case `features`, alone in its process.

    python contestant.py NAME ROWS.npz SETTINGS.json

The process loads everything, computes a few rows that are not timed, prints `ready`, waits for a
line on its input (so that two processes start together), computes its rows and prints one JSON
object. Time starts with token ids in memory and ends with features in memory: no contestant
tokenises, and none writes to a disk.

It runs in the environment of assay or in that of the peers, so it imports neither at the top.
"""

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

MODULES = {
    "forward": "benchmarks.by_assay",
    "assay": "benchmarks.by_assay",
    "assay_default": "benchmarks.by_assay",
    "assay_bfloat16": "benchmarks.by_assay",
    "plain": "benchmarks.by_autograd",
    "plain_sorted": "benchmarks.by_autograd",
    "bergson": "benchmarks.by_bergson",
    "bergson_sorted": "benchmarks.by_bergson",
    "trak": "benchmarks.by_trak",
    "dattri": "benchmarks.by_dattri",
}
"""The module of each contestant; its function `contestant(name, settings)` makes one."""


class Rows(NamedTuple):
    """Some rows, as token ids without padding."""

    ids: list[list[int]]
    labels: np.ndarray

    def part(self, start: int, stop: int) -> "Rows":
        """The rows from `start` to before `stop`."""
        return Rows(self.ids[start:stop], self.labels[start:stop])


class Contestant(NamedTuple):
    """What is timed, and what shows that it computes the right thing."""

    features: Callable[[Rows], int]
    """Makes the features of all rows and returns their bytes, 0 where there are none."""
    gradients: Callable[[Rows], list[np.ndarray]] | None
    """Gradients that are not projected: one (rows, numbers) array per weight, in the order of the
    network's modules. None for a contestant without gradients per row."""
    packages: tuple[str, ...]
    """Packages whose versions count."""
    warms_up: bool = True
    """False where even a few rows take minutes."""


def read_rows(path: Path) -> Rows:
    """The rows that the case saved."""
    with np.load(path) as saved:
        pieces = np.split(saved["ids"], np.cumsum(saved["lengths"])[:-1])
        return Rows([piece.tolist() for piece in pieces], saved["labels"])


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Times one contestant, or compares its gradients with autograd's."""
    name, path, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    scripts = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(scripts), str(scripts.parent)]
    torch.set_num_threads(settings["threads"])
    torch.set_num_interop_threads(1)
    contestant: Contestant = importlib.import_module(MODULES[name]).contestant(name, settings)
    rows = read_rows(path)
    result: dict[str, Any] = {
        "versions": {package: version(package) for package in ("torch", *contestant.packages)}
    }
    if settings["compare"]:
        result["error"] = error(contestant, rows.part(0, settings["compare"]), settings)
        print(json.dumps(result))
        return
    mine = rows.part(settings["start"], settings["stop"])
    if contestant.warms_up:
        contestant.features(mine.part(0, 64))
    loaded = peak_bytes()
    print("ready", flush=True)
    sys.stdin.readline()
    wall, cpu = time.perf_counter(), time.process_time()
    feature_bytes = contestant.features(mine)
    result |= {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "loaded_bytes": loaded,
        "peak_bytes": peak_bytes(),
        "row_bytes": feature_bytes / len(mine.ids),
        "rows": len(mine.ids),
    }
    print(json.dumps(result))


def error(contestant: Contestant, rows: Rows, settings: dict[str, Any]) -> float | None:
    """Largest distance over rows from autograd's gradient, relative to its length."""
    from benchmarks.by_autograd import gradients

    if contestant.gradients is None:
        return None
    found, expected = contestant.gradients(rows), gradients(rows, settings)
    shapes = [[array.shape for array in arrays] for arrays in (found, expected)]
    if shapes[0] != shapes[1]:
        raise SystemExit(f"features: found gradients of shapes {shapes[0]}, expected {shapes[1]}.")
    off = sum(((f - e) ** 2).sum(1) for f, e in zip(found, expected, strict=True))
    size = sum((e**2).sum(1) for e in expected)
    return float(np.sqrt(off / size).max())


if __name__ == "__main__":
    main()
