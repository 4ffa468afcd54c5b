"""The best examples of each sign for every query: speed against a bare product and FAISS.

Synthetic unit vectors of 512 numbers in float16, in Parquet shards of 50,000 rows as a run stores
them; 1,000 queries, 100 examples of each sign. Every contestant has a process of its own and one
thread, from files to results in memory; rounds take turns, and medians and ranges are told:

    assay       the stage `tracin`: shards are read, scored, and merged eight at a time
    similarity  the stage `similarity`, cosines
    product     the same shards are read, cast to float32 and multiplied, and nothing is kept
    plain       the same from a plain file, which needs no decoding
    faiss       `IndexFlatIP` over the same vectors in float32, which tells the largest alone; its
                vectors come from a plain file, and the search is timed alone, too

The results of assay and FAISS are compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from benchmarks.environment import OURS, ROOT, environment

DIM = 512
SHARD = 50_000
TOP_K = 100
FAISS = ("faiss-cpu==1.15.1",)
CONTESTANTS = ("assay", "similarity", "product", "plain", "faiss")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestants", nargs="+", default=CONTESTANTS, choices=CONTESTANTS)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure of the case."""
    name = f"pairs-{arguments.rows}-{arguments.queries}"
    work = Path(arguments.work).resolve() / name
    write_vectors(work, arguments.rows, arguments.queries)
    python = {"faiss": environment("peers-faiss", FAISS)}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.contestants}
    for _ in range(arguments.rounds):
        for name, parts in rounds.items():
            parts.append(timed(name, python.get(name, Path(sys.executable)), work))
            print(name, json.dumps(parts[-1]), file=sys.stderr, flush=True)
    result: dict[str, Any] = {
        "rows": arguments.rows,
        "queries": arguments.queries,
        "dim": DIM,
        "top_k": TOP_K,
    }
    for name, parts in rounds.items():
        result[name] = {key: spread([part[key] for part in parts]) for key in parts[0]}
    for name in ("product", "plain", "faiss"):
        if name in rounds and "assay" in rounds:
            ratios = [
                mine["cpu_s"] / other["cpu_s"]
                for mine, other in zip(rounds["assay"], rounds[name], strict=True)
            ]
            result[f"assay_over_{name}"] = spread(ratios)
    if {"assay", "faiss"} <= set(rounds):
        result["same_as_faiss"] = agreement(work)
    return result


def spread(numbers: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers)}


def timed(name: str, python: Path, work: Path) -> dict[str, Any]:
    """What one contestant took."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    script = Path(__file__).with_name("pairs_contestant.py")
    # -P: beside the script lie files with the names of our rooms.
    done = subprocess.run(
        [python, "-P", script, name, work, str(TOP_K)],
        env={**os.environ, **dict.fromkeys(threads, "1"), "PYTHONPATH": OURS},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_vectors(work: Path, n: int, n_queries: int) -> None:
    """Unit vectors in float16 as shards and as a plain file, unless they are there."""
    if (work / "queries.npy").exists():
        return
    from stages.features.gradient import GRADIENT
    from storage.table import Store

    store, drawn = Store(str(work / "store")), np.random.default_rng(0)
    work.mkdir(parents=True, exist_ok=True)
    plain = np.lib.format.open_memmap(work / "examples.npy", "w+", np.float16, (n, DIM))
    for index, start in enumerate(range(0, n, SHARD)):
        rows = unit(drawn, min(SHARD, n - start))
        plain[start : start + len(rows)] = rows
        lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), DIM)
        ids = pa.array(np.arange(start, start + len(rows)))
        columns = {"id": ids, "role": ["example"] * len(rows), "vector": lists}
        store.write_shard(GRADIENT, f"{index:016x}", "example", index, pa.table(columns))
    plain.flush()
    np.save(work / "queries.npy", unit(drawn, n_queries))


def unit(drawn: np.random.Generator, n: int) -> np.ndarray:
    """Rows of length 1, to the precision of float16."""
    rows = drawn.standard_normal((n, DIM), np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def agreement(work: Path) -> float:
    """Share of FAISS's pairs that are among those of assay with a score above zero."""
    ours, theirs = np.load(work / "assay.npy"), np.load(work / "faiss.npy")
    return float(np.isin(theirs, ours).mean())
