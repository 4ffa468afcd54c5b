"""Memory of one task of a large corpus, in a process of its own, against what the plan says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import assay, write_run

pytestmark = [pytest.mark.system, pytest.mark.slow]
ROWS, QUERIES, DIM, WORDS, SHARD = 100_000, 200, 96, 20, 20_000
ON_FEATURES: dict[str, Any] = {"embedding": "features"}
STAGES: dict[str, Any] = {
    "probe": {**ON_FEATURES, "rows": 20_000},
    "prediction": ON_FEATURES,
    "example_loss": {},
    "knn_shapley": {"features": "features"},
    "representer": ON_FEATURES,
    "head_influence": ON_FEATURES,
    "similarity": {"features": "features"},
    "support": {"features": "features"},
    "random_score": {},
    "word_frequency": {},
    "bm25": {},
}
FIRST_USE = 80e6
"""What a process takes the first time that it reads and writes tables."""
MEASURED = """
import re, sys
from pathlib import Path
import torch, transformers
torch.set_num_threads(1)
from pipeline.finished import Finished
from pipeline.folder import RunFolder
from pipeline.task import Worker
from stages.stage import Part

def kilobytes(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

job = Finished(RunFolder(Path(sys.argv[1]))).job(sys.argv[2])
parts = {"shard": Part("example", 3), "query": Part("query", 0), "whole": Part("", 0)}
before = kilobytes("VmRSS")
Worker().run_task(job, parts[job.stage.split], "0" * 16)
print(kilobytes("VmHWM") - before)
"""
"""The script that prints how many KiB one task adds to a process; it writes a shard beside those of
the run."""


@pytest.fixture(scope="module")
def large_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """The folder of a finished run, and the memory of each stage as it was planned."""
    folder, g = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    teacher = g.normal(size=DIM)
    vocabulary = np.array([f"w{rank}" for rank in range(20_000)])
    sources = {}
    for role, n in (("corpus", ROWS), ("queries", QUERIES)):
        vectors = g.normal(size=(n, DIM)).astype(np.float32)
        words = vocabulary[np.minimum(g.zipf(1.3, size=(n, WORDS)), len(vocabulary)) - 1]
        label = (vectors @ teacher + 4 * g.normal(size=n) > 0).astype(np.int64)
        columns = {"text": [" ".join(row) for row in words.tolist()], "label": label}
        path = folder / f"{role}.parquet"
        pq.write_table(pa.table(columns), path)
        np.save(folder / f"{role}.npy", vectors)
        sources[role] = {"path": str(path), "features": str(folder / f"{role}.npy")}
    config = write_run(folder, **sources, shard_size=SHARD, stages=STAGES)
    planned = json.loads(assay("plan", config, "--json").stdout)
    assay("run", config)
    return folder / "run", {row["stage"]: row["memory_bytes"] for row in planned["stages"]}


@pytest.mark.parametrize("name", STAGES)
def test_a_task_takes_what_the_plan_says(
    name: str, large_run: tuple[Path, dict[str, float]]
) -> None:
    run, planned = large_run
    command = [sys.executable, "-c", MEASURED, str(run), name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured = int(done.stdout) * 1024
    print(f"{name}: {measured / 1e6:.0f} MB, planned {planned[name] / 1e6:.0f}")
    assert measured <= 2 * planned[name] + FIRST_USE
    assert planned[name] <= 2 * measured
