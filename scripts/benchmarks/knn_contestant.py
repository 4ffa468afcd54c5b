"""One contestant of the case `knn`, alone in its process.

    python knn_contestant.py NAME DATA.npz SETTINGS.json

The process loads its features, prints `ready`, waits for a line on its input (so that two processes
start together), computes the value of every example and prints one JSON object; the values go to a
file. Time starts with unit vectors in memory and ends with values in memory.

It runs in the environment of assay or in that of a peer, so it imports neither at the top.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Data(NamedTuple):
    """Unit vectors in float32, and labels 0 and 1."""

    examples: np.ndarray
    labels: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray


def assay(data: Data, neighbours: int) -> np.ndarray:
    """The stage `knn_shapley`, which takes its vectors as if they had any length."""
    import pyarrow as pa
    from benchmarks.memory import MemoryInputs

    from stages.stage import Part, Role, Vectors
    from stages.values.knn_shapley import KnnShapley

    matrices = {"example": data.examples, "query": data.queries}
    labels = {"example": data.labels, "query": data.query_labels}

    class Block(MemoryInputs):
        """All queries as one block."""

        def table(self, name: str, role: Role | None = None) -> pa.Table:
            """The labels."""
            tables = [
                pa.table({"id": np.arange(len(y)), "role": [key] * len(y), "label": y})
                for key, y in labels.items()
                if role in (None, key)
            ]
            return pa.concat_tables(tables)

        def vectors(self, name: str, role: Role) -> Vectors:
            """Ids from 0, and the vectors."""
            return Vectors(np.arange(len(matrices[role])), matrices[role])

    inputs, stage = Block(), KnnShapley(neighbours=neighbours)
    inputs.part = Part("query", 0)
    inputs.opened = stage.open(inputs)
    ((_, rows),) = stage.compute(inputs)
    return rows["total"].to_numpy() / len(data.queries)


def plain(data: Data, neighbours: int) -> np.ndarray:
    """The formula in float64, as it is quickly written: an argsort and sums for every query."""
    n, n_classes = len(data.labels), 2
    examples, total = data.examples.astype(np.float64), np.zeros(n)
    ranks = np.arange(1, n)
    harmonic = (1 / np.arange(1, neighbours + 1)).sum()
    steps = (harmonic - 1) / (n - 1) + np.minimum(ranks, neighbours) / (ranks * neighbours)
    for start in range(0, len(data.queries), 32):
        block = slice(start, start + 32)
        cosines = data.queries[block].astype(np.float64) @ examples.T
        for row, label in zip(cosines, data.query_labels[block], strict=True):
            order = np.argsort(-row, kind="stable")
            matches = (data.labels[order] == label).astype(np.float64)
            farthest = (matches[-1] - matches[:-1].mean()) * (harmonic - 1) / n
            farthest += (matches[-1] - 1 / n_classes) / n
            rises = -np.diff(matches) * steps
            total[order[-1]] += farthest
            total[order[:-1]] += farthest + np.cumsum(rises[::-1])[::-1]
    return total / len(data.queries)


def pydvl(data: Data, neighbours: int) -> np.ndarray:
    """`KNNShapleyValuation`: the vote's hits are divided by K, whatever the number of voters."""
    from pydvl.valuation.dataset import Dataset
    from pydvl.valuation.methods.knn_shapley import KNNShapleyValuation
    from sklearn.neighbors import KNeighborsClassifier

    valuation = KNNShapleyValuation(
        KNeighborsClassifier(n_neighbors=neighbours),
        Dataset(data.queries, data.query_labels),
        progress=False,
    )
    return np.asarray(valuation.fit(Dataset(data.examples, data.labels)).result.values)


def cleanlab(data: Data, neighbours: int) -> np.ndarray:
    """`data_shapley_knn`: every example is a query of all others; ranks behind K count as 0."""
    from cleanlab.data_valuation import data_shapley_knn

    return np.asarray(data_shapley_knn(data.labels, features=data.examples, k=neighbours))


CONTESTANTS: dict[str, tuple[Callable[[Data, int], np.ndarray], tuple[str, ...]]] = {
    "assay": (assay, ("numpy", "torch")),
    "plain": (plain, ("numpy",)),
    "pydvl": (pydvl, ("pyDVL", "scikit-learn", "numpy")),
    "cleanlab": (cleanlab, ("cleanlab", "scikit-learn", "numpy")),
}
"""What computes the values, and the packages whose versions count."""


def peak_bytes() -> int:
    """Largest resident memory of this process so far, not counting that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(kilobytes)


def main() -> None:
    """Times one contestant within limits of CPU-seconds and of memory."""
    name, path, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    scripts = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(scripts), str(scripts.parent)]
    values_of, packages = CONTESTANTS[name]
    with np.load(path) as saved:
        data = Data(**{field: saved[field] for field in Data._fields})
    start, stop = settings["queries"]
    data = data._replace(
        queries=data.queries[start:stop], query_labels=data.query_labels[start:stop]
    )
    small = Data(data.examples[:64], data.labels[:64], data.queries[:8], data.query_labels[:8])
    values_of(small, 1)
    loaded = peak_bytes()
    limit = settings["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    seconds = int(time.process_time()) + settings["cpu_s"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    print("ready", flush=True)
    sys.stdin.readline()
    wall, cpu = time.perf_counter(), time.process_time()
    result: dict[str, Any] = {"versions": {package: version(package) for package in packages}}
    try:
        values = values_of(data, settings["neighbours"])
    except MemoryError:
        result["failed"] = f"more than {limit / 2**30:.0f} GiB"
    else:
        np.save(settings["values"], values)
    result |= {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "loaded_bytes": loaded,
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
