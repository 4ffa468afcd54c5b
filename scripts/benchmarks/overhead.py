"""What everything but the methods costs: a run with nothing to do, and the share beside a model.

A run over vectors in shards of five rows (a probe, its predictions, and three scores of pairs and
examples) is executed, and then given again: CPU-seconds of `assay run` with nothing to do, those of
its imports apart, and those of a plan in full, which a changed input leads to. Then the embeddings
of real sentences by MiniLM, in shards of a thousand rows, in this process and on two workers of
Ray: CPU-seconds inside the model's passes and outside of them.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from benchmarks.environment import MODEL, ROOT
from benchmarks.finished import Clock

ROWS = 5
"""Of a shard of vectors."""
IMPORTS = "import pipeline.cli, pipeline.unchanged, pipeline.open_run, storage.catalog, rich.table"
PLANS = "from pipeline.config import read_config; from pipeline.run import execute_run; import sys"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the case."""
    parser.add_argument("--shards", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--embedded", type=int, default=4, help="shards of 1,000 sentences")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures all of it."""
    work = Path(arguments.work).resolve() / "overhead"
    return {
        "imports_cpu_s": min(cpu_s_of([sys.executable, "-c", IMPORTS]) for _ in range(3)),
        "nothing_to_do": [nothing_to_do(work, n) for n in arguments.shards],
        "embedding": embedding(work, arguments.embedded) if arguments.embedded else None,
    }


def nothing_to_do(work: Path, n_shards: int) -> dict[str, Any]:
    """CPU-seconds of a finished run over that many shards of vectors that is given again."""
    folder = work / f"vectors-{n_shards}"
    config = folder / "config.yaml"
    if not config.exists():
        write_vectors(folder, n_shards)
    command = [ROOT / ".venv/bin/assay", "run", config]
    cpu_s_of(command)
    planned = f"{PLANS}; execute_run(read_config(sys.argv[1]))"
    in_full = cpu_s_of([sys.executable, "-c", planned, config])
    cpu_s_of(command)  # what was run in full does not say how it was given
    again = [cpu_s_of(command) for _ in range(3)]
    n_files = sum(1 for _ in (folder / "run" / "store").glob("*/*.parquet"))
    return {"shards": n_shards, "files": n_files, "cpu_s": min(again), "planned_cpu_s": in_full}


def write_vectors(folder: Path, n_shards: int) -> None:
    """A corpus of vectors of 8 numbers in two classes, 20 queries, and the YAML of a run."""
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    sources = {}
    for role, n in (("corpus", n_shards * ROWS), ("queries", 20)):
        labels = drawn.integers(0, 2, n)
        vectors = drawn.normal(size=(n, 8)).astype(np.float32)
        vectors[:, 0] += 3 * labels
        np.save(folder / f"{role}.npy", vectors)
        pq.write_table(pa.table({"id": np.arange(n), "label": labels}), folder / f"{role}.parquet")
        paths = {"path": f"{role}.parquet", "features": f"{role}.npy"}
        sources[role] = {**paths, "text": None, "id": "id"}
    stages = {
        "probe": {"embedding": "features"},
        "prediction": {"embedding": "features"},
        "random_score": {},
        "similarity": {"features": "features"},
        "knn_shapley": {"features": "features"},
    }
    raw = {"run": str(folder / "run"), "shard_size": ROWS, "ray": {"engine": "in_process"}}
    text = yaml.safe_dump({**raw, **sources, "stages": stages})
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def embedding(work: Path, n_shards: int) -> dict[str, Any]:
    """CPU-seconds of embeddings by MiniLM, inside and outside of the model."""
    folder = work / f"embedded-{time.time_ns()}"
    folder.mkdir(parents=True)
    texts = pq.read_table(ROOT / "configs" / "data" / "sst2_train.parquet")
    rows = pa.concat_tables([texts] * -(-1000 * n_shards // len(texts))).slice(0, 1000 * n_shards)
    # Ids of their own, as the sentences come again.
    rows = rows.set_column(rows.column_names.index("id"), "id", pa.array(range(len(rows))))
    pq.write_table(rows, folder / "rows.parquet")
    raw = {
        "model": {"path": MODEL},
        "corpus": {"path": str(folder / "rows.parquet"), "id": "id"},
        "stages": {"embedding": {}},
    }
    return {
        "rows": len(rows),
        "in_process": in_process({**raw, "run": str(folder / "one")}),
        "ray": on_ray({**raw, "run": str(folder / "two")}, folder),
    }


def in_process(raw: dict[str, Any]) -> dict[str, float]:
    """CPU-seconds of the stage in this process: all of it, and of that inside the model."""
    from pipeline.config import parse_config
    from pipeline.run import execute_run
    from stages.features.embedding import Embedding

    inside, compute, opened = Counter[str](), Embedding.compute, Embedding.open

    def computed(stage: Embedding, inputs: Any) -> Iterator[Any]:
        rows = compute(stage, inputs)
        while True:
            start = time.process_time()
            row = next(rows, None)
            inside["model"] += time.process_time() - start
            if row is None:
                return
            yield row

    def loaded(stage: Embedding, inputs: Any) -> Any:
        start = time.process_time()
        state = opened(stage, inputs)
        inside["load"] += time.process_time() - start
        return state

    clock = Clock()
    patched: Any = Embedding
    patched.compute, patched.open = computed, loaded
    start = time.process_time()
    try:
        execute_run(parse_config({**raw, "ray": {"engine": "in_process"}}, "bench"), clock)
    finally:
        patched.compute, patched.open = compute, opened
    whole, stage = time.process_time() - start, clock.cpu_s["embedding"]
    outside = stage - inside["model"] - inside["load"]
    return {
        "model_cpu_s": inside["model"],
        "load_cpu_s": inside["load"],
        "stage_cpu_s": stage,
        "outside_share": outside / stage,
        "read_and_plan_cpu_s": whole - stage,
    }


def on_ray(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """CPU-seconds of `assay run` on two workers: of the driver, and of Ray with its workers."""
    config = folder / "ray.yaml"
    raw = {**raw, "ray": {"default": {"workers": 2}}}
    config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    start = time.time()
    with subprocess.Popen(
        [ROOT / ".venv/bin/assay", "run", config], stdout=subprocess.DEVNULL
    ) as process:
        found: dict[int, float] = {}
        while process.poll() is None:
            look(process.pid, found)
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(process.returncode)
    driver = found.pop(process.pid)
    return {
        "wall_s": time.time() - start,
        "driver_cpu_s": driver,
        "others_cpu_s": sum(found.values()),
    }


def look(root: int, found: dict[int, float]) -> None:
    """Adds the CPU-seconds, by process, of the process `root` and of all that came of it."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rsplit(") ", 1)[1].split()
        except OSError:  # it has ended meanwhile
            continue
        parents[int(entry)] = int(fields[1])
        ticks = int(fields[11]) + int(fields[12])
        seconds[int(entry)] = ticks / os.sysconf("SC_CLK_TCK")
    for pid in parents:
        ancestor = pid
        while ancestor in parents and ancestor != root and ancestor not in found:
            ancestor = parents[ancestor]
        if ancestor == root or ancestor in found:
            found[pid] = max(seconds[pid], found.get(pid, 0.0))


def cpu_s_of(command: list[Any]) -> float:
    """CPU-seconds of a command and what it waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
