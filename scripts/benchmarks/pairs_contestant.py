"""One contestant of the case `pairs`, alone in its process: `pairs_contestant.py NAME WORK TOP_K`.

Prints one JSON object; pairs with large scores go to a file, as query * 2^32 + example. It runs in
the environment of assay or in that of a peer, so it imports neither at the top.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def stage_pairs(work: Path, stage: Any, name: str) -> Iterator[None]:
    """A stage on every shard, and merges; the first step is the opening."""
    import pyarrow as pa
    import torch
    from benchmarks.memory import MemoryInputs

    from pipeline.merge_tree import FAN_IN
    from stages.stage import Role, Vectors
    from storage.table import Store

    torch.set_num_threads(1)
    store, queries = Store(str(work / "store")), np.load(work / "queries.npy")

    class Shard(MemoryInputs):
        """A shard of the store, and all queries."""

        key = ""

        def table(self, name: str, role: Role | None = None) -> pa.Table:
            """The shard."""
            return store.read_shard(name, self.key)

        def vectors(self, name: str, role: Role) -> Vectors:
            """The queries."""
            return Vectors(np.arange(len(queries)), queries)

    inputs = Shard()
    yield
    inputs.opened = stage.open(inputs)
    parts = []
    for inputs.key in sorted(store.shard_keys("gradient")):
        parts.append(pa.Table.from_batches([rows for _, rows in stage.compute(inputs)]))
    yield
    while len(parts) > 1:
        groups = [parts[at : at + FAN_IN] for at in range(0, len(parts), FAN_IN)]
        parts = [
            pa.Table.from_batches([rows for _, rows in stage.merge({"attribution": group})])
            for group in groups
        ]
    yield
    (rows,) = parts
    above = rows["score"].to_numpy() > 0
    query, example = (rows[name].to_numpy()[above] for name in ("query_id", "example_id"))
    np.save(work / f"{name}.npy", query * 2**32 + example)


def product(work: Path, is_plain: bool) -> Iterator[None]:
    """Reading, casting and multiplying, and nothing else."""
    import torch

    from stages.reading.vectors import matrix_of
    from storage.table import Store

    torch.set_num_threads(1)
    store = Store(str(work / "store"))
    queries = torch.from_numpy(np.load(work / "queries.npy").astype(np.float32))
    plain = np.load(work / "examples.npy", mmap_mode="r")
    keys = sorted(store.shard_keys("gradient"))
    size = -(-len(plain) // len(keys))
    yield
    for at, key in enumerate(keys):
        if is_plain:
            rows = plain[at * size : (at + 1) * size]
        else:
            rows = matrix_of(store.read_shard("gradient", key)["vector"])
        examples = torch.from_numpy(rows.astype(np.float32))
        for start in range(0, len(examples), 4096):
            torch.mm(queries, examples[start : start + 4096].T)
    yield
    yield


def faiss(work: Path, top_k: int) -> Iterator[None]:
    """The flat index, with blocks of vectors read from a plain file."""
    import faiss as library

    library.omp_set_num_threads(1)
    queries = np.load(work / "queries.npy").astype(np.float32)
    examples = np.load(work / "examples.npy", mmap_mode="r")
    yield
    index = library.IndexFlatIP(queries.shape[1])
    for start in range(0, len(examples), 50_000):
        index.add(examples[start : start + 50_000].astype(np.float32))
    yield
    _, places = index.search(queries, top_k)
    yield
    np.save(work / "faiss.npy", (np.arange(len(queries))[:, None] * 2**32 + places).ravel())


def steps(name: str, work: Path, top_k: int) -> Iterator[None]:
    """What a contestant does: ready, its first step, its second, and what is not timed."""
    if name == "faiss":
        return faiss(work, top_k)
    if name in ("product", "plain"):
        return product(work, name == "plain")
    from stages.pairs.similarity import Similarity
    from stages.pairs.tracin import TracIn

    stage = Similarity(features="gradient", top_k=top_k)
    return stage_pairs(work, stage if name == "similarity" else TracIn(top_k=top_k), name)


def peak_bytes() -> int:
    """Largest resident memory of this process so far, not counting that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(kilobytes)


def main() -> None:
    """Times one contestant."""
    name, work, top_k = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    todo = steps(name, work, top_k)
    next(todo)
    wall, cpu = time.perf_counter(), [time.process_time()]
    for _ in range(2):
        next(todo)
        cpu.append(time.process_time())
    result = {
        "cpu_s": round(cpu[2] - cpu[0], 3),
        "first_cpu_s": round(cpu[1] - cpu[0], 3),
        "second_cpu_s": round(cpu[2] - cpu[1], 3),
        "wall_s": round(time.perf_counter() - wall, 3),
        "peak_bytes": peak_bytes(),
    }
    next(todo, None)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
