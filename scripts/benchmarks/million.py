"""Shapley values of a million examples, end to end: how many signs are sure after half an hour.

Synthetic vectors of 512 numbers (the k-th with a standard deviation of k^-1/2, then unit length),
labels by a linear teacher with noise, a tenth of them flipped; 872 queries, margin, the automatic
ridge, `assay run` on the vectors until a limit in minutes. Beside it, in the same run, one whole
permutation. Told: the share of examples whose sign is at least 0.9 sure, round by round, the area
under the ROC curve of flipped labels (small values first), seconds and memory.
"""

import argparse
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from benchmarks.demo import used_bytes
from benchmarks.environment import ROOT

DIM = 512
QUERIES = 872
SURE = 0.9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the case."""
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the corpus, has it valued, and looks at the values."""
    from pipeline import open_run

    work = Path(arguments.work).resolve() / f"million-{arguments.rows}-{arguments.seed}"
    work.mkdir(parents=True, exist_ok=True)
    write_corpus(work, arguments.rows, arguments.seed)
    config = work / "config.yaml"
    config.write_text(yaml.safe_dump(configured(work, arguments)), encoding="utf-8")
    start, peak, before, said = time.time(), 0, used_bytes(), work / "said.txt"
    # Ray's workers are not this process's children to count, so all resident memory is sampled.
    with (
        said.open("w", encoding="utf-8") as file,
        subprocess.Popen([ROOT / ".venv/bin/assay", "run", config], cwd=ROOT, stderr=file) as done,
    ):
        while done.poll() is None:
            peak = max(peak, used_bytes() - before)
            time.sleep(0.5)
    if done.returncode:
        raise SystemExit(said.read_text(encoding="utf-8"))
    finished = open_run(work / "run")
    facts = finished.sql("SELECT instance, rows, bytes, seconds FROM runs").df()
    return {
        "rows": arguments.rows,
        "queries": QUERIES,
        "dim": DIM,
        "minutes": arguments.minutes,
        "wall_s": time.time() - start,
        "peak_bytes": peak,
        "stages": facts.to_dict("records"),
        "why": re.findall(r"freeshap: .*", said.read_text(encoding="utf-8")),
        **looked_at(finished),
    }


def write_corpus(work: Path, n: int, seed: int) -> None:
    """Vectors and labels of examples and queries, unless they are there."""
    if (work / "query.parquet").exists():
        return
    drawn = np.random.default_rng(seed)
    decay = np.arange(1, DIM + 1) ** -0.5
    teacher = drawn.standard_normal(DIM) * decay
    for role, rows in (("example", n), ("query", QUERIES)):
        vectors = np.empty((rows, DIM), np.float32)
        for start in range(0, rows, 65536):
            some = drawn.standard_normal((min(65536, rows - start), DIM)) * decay
            vectors[start : start + 65536] = some / np.linalg.norm(some, axis=1, keepdims=True)
        level = vectors @ teacher.astype(np.float32) / np.linalg.norm(teacher)
        label = (level + 0.03 * drawn.standard_normal(rows) > 0).astype(np.int64)
        np.save(work / f"{role}.npy", vectors)
        pq.write_table(pa.table({"label": label}), work / f"{role}.parquet")


def configured(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The run: values until the limit, and one whole permutation."""
    game = {"kernel": ["features"], "utilities": ["margin"]}
    once = {"stage": "freeshap", "sampling": "uniform", "rounds": 1, "units_per_round": 1}
    sources = {
        role: {"path": str(work / f"{role}.parquet"), "text": None, "label": "label"}
        | {"features": str(work / f"{role}.npy")}
        for role in ("example", "query")
    }
    return {
        "run": str(work / "run"),
        "corpus": sources["example"] | {"flip_labels": {"fraction": 0.1, "seed": 0}},
        "queries": sources["query"],
        "shard_size": 50_000,
        "stages": {
            "permutation": {**game, **once},
            "freeshap": {
                **game,
                "rounds": 1000,
                "units_per_round": 1,
                "minutes": arguments.minutes,
            },
        },
    }


def looked_at(finished: Any) -> dict[str, Any]:
    """Shares of sure signs after each number of units, and areas under ROC curves."""
    from stages.game.uncertainty import student_t_quantile
    from stages.metrics.ranks import auc

    flipped = finished.sql(
        "SELECT label != true_label AS is_flipped FROM examples ORDER BY example_id"
    ).fetchnumpy()["is_flipped"]
    found: dict[str, Any] = {"n_flipped": int(flipped.sum())}
    for method in ("permutation", "freeshap"):
        values = finished.sql(
            f"SELECT value, p_helpful, n_samples FROM shapley WHERE method = '{method}' "
            "ORDER BY example_id"
        ).fetchnumpy()
        found[method] = {
            "units": int(values["n_samples"][0]),
            "flip_auc": auc(-values["value"], flipped),
        }
    sure = np.maximum(values["p_helpful"], 1 - values["p_helpful"])
    found["freeshap"] |= {
        "sure": float((sure >= SURE).mean()),
        "helpful": float((values["value"] > 0).mean()),
        "helpful_among_flipped": float((values["value"][flipped] > 0).mean()),
    }
    total = squares = 0.0
    found["by_units"] = []
    for index in range(found["freeshap"]["units"]):
        own = finished.sql(
            f"SELECT total FROM tables.shapley_round WHERE method = 'freeshap' AND round = {index} "
            "ORDER BY example_id"
        ).fetchnumpy()["total"]
        total, squares, k = total + own, squares + own**2, index + 1
        if k < 2:
            continue
        error = np.sqrt(np.maximum(squares - total**2 / k, 0) / (k - 1) / k)
        is_sure = np.abs(total / k) > student_t_quantile(SURE, k - 1) * error
        found_auc = auc(-np.asarray(total), flipped)
        found["by_units"].append({"units": k, "sure": float(is_sure.mean()), "flip_auc": found_auc})
    return found
