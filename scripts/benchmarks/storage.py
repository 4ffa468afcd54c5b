"""Tables on disk: encodings of vectors, and a catalog over many shards.

Vectors: CPU time to write a shard and to have its matrix back, and its size, for encodings of
Parquet at 64, 512 and 2,048 numbers a row, decoded by pyarrow, beside the store's own shards and
beside the products that a task computes with them. Catalog: a synthetic run of `--rows` examples
in `--shards` shards with texts, labels, a source column, label scores and `--rounds` rounds of
values; what it takes to sum the values, to build and open the catalog, to compare files with their
hashes for the first and the second time, and to answer questions.
"""

import argparse
import io
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

QUESTIONS = {
    "worst_100": "SELECT text, given_label, suggested_label, label_score FROM label_issues JOIN "
    "examples USING (example_id) ORDER BY label_score LIMIT 100",
    "worst_100_first": "SELECT e.text, i.* FROM (FROM label_issues ORDER BY label_score, "
    "example_id LIMIT 100) AS i JOIN examples AS e USING (example_id) ORDER BY i.label_score",
    "by_source": "SELECT origin, count(*), avg(label_score) FROM label_issues JOIN examples "
    "USING (example_id) GROUP BY ALL",
    "best_10_values": "SELECT e.text, s.value FROM (FROM shapley ORDER BY rank LIMIT 10) AS s "
    "JOIN examples AS e USING (example_id)",
    "values_by_label": "SELECT label_name, sum(value) FROM shapley JOIN examples "
    "USING (example_id) GROUP BY ALL",
    "one_value": "SELECT value, p_helpful FROM shapley WHERE example_id = 4321",
}
ENCODINGS: dict[str, dict[str, Any]] = {
    "zstd": {"compression": "zstd"},
    "lz4": {"compression": "lz4"},
    "none": {"compression": "none"},
    "none, not nullable": {"compression": "none"},
    "none, variable lists, not nullable": {"compression": "none"},
    "zstd, byte stream split": {
        "compression": "zstd",
        "column_encoding": {"vector.list.element": "BYTE_STREAM_SPLIT"},
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the case."""
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--times", type=int, default=3, help="how often each question is asked")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Encodings, then the catalog; the synthetic run is removed again."""
    pa.set_cpu_count(1)
    work = Path(arguments.work).resolve() / f"storage-{os.getpid()}"
    try:
        return {
            "rows": arguments.rows,
            "shards": arguments.shards,
            "rounds": arguments.rounds,
            "vectors": [of_vectors(dim) for dim in (64, 512, 2048)],
            "catalog": of_catalog(work, arguments),
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)


def of_vectors(dim: int, rows: int = 1000) -> dict[str, Any]:
    """Milliseconds of CPU and bytes a row for each encoding of a shard of 1,000 rows."""
    from stages.features.ntk import NTK
    from stages.reading.vectors import matrix_of
    from storage import shard_file

    matrix = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
    weights = np.ones((dim, 2), np.float32)
    found: dict[str, Any] = {
        "dim": dim,
        "product_with_2_ms": best_ms(lambda: matrix @ weights),
        "gram_ms": best_ms(lambda: matrix.T @ matrix),
        "encodings": {},
    }
    for name, settings in ENCODINGS.items():
        table = as_table(matrix, not name.endswith("not nullable"), "variable" not in name)
        data = encoded(table, settings)
        found["encodings"][name] = {
            "write_ms": best_ms(lambda t=table, s=settings: encoded(t, s)),
            "read_ms": best_ms(lambda d=data: decoded(d)),
            "bytes_a_row": len(data) / rows,
        }
    table = as_table(matrix, True, True)
    data = shard_file.encode(NTK, "key", table, None)[1]
    read = matrix_of(shard_file.decode(data, "ntk", "key")["vector"])
    if not np.array_equal(read, matrix) or not np.array_equal(decoded(data), matrix):
        raise SystemExit("the store's shards do not hold the matrix")
    listed = shard_file.record(NTK, "key", "example", 0, table, data)
    found["encodings"]["the store's, sealed and hashed"] = {
        "write_ms": best_ms(lambda: shard_file.encode(NTK, "key", table, None)),
        "read_ms": best_ms(lambda: matrix_of(shard_file.decode(data, "ntk", "key")["vector"])),
        "hash_ms": best_ms(lambda: shard_file.check_bytes(data, "ntk", listed)),
        "bytes_a_row": len(data) / rows,
    }
    return found


def as_table(matrix: np.ndarray, is_nullable: bool, is_fixed: bool) -> pa.Table:
    """Rows of a feature table with these vectors."""
    rows, dim = matrix.shape
    item = pa.field("element", pa.float32(), nullable=is_nullable)
    kind = pa.list_(item, dim) if is_fixed else pa.list_(item)
    cells = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), dim).cast(kind)
    schema = pa.schema(
        [
            ("id", pa.int64()),
            ("role", pa.string()),
            pa.field("vector", kind, nullable=is_nullable),
        ]
    )
    return pa.table([np.arange(rows), ["example"] * rows, cells], schema=schema)


def encoded(table: pa.Table, settings: dict[str, Any]) -> bytes:
    """A Parquet file of the rows."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, use_dictionary=["id", "role"], **settings)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """The matrix in a Parquet file, by pyarrow."""
    rows = pq.read_table(io.BytesIO(data), columns=["vector"], use_threads=False)
    column = rows["vector"].combine_chunks()
    matrix: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return matrix


def best_ms(work: Callable[[], Any], times: int = 5) -> float:
    """The least CPU time of several tries, in milliseconds."""
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return round(best * 1e3, 3)


def of_catalog(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of wall and CPU, of what a reader of a large run waits for."""
    from pipeline.folder import RunFolder
    from pipeline.open_run import open_run

    write_run(work, arguments.rows, arguments.shards, arguments.rounds)
    time.sleep(3)  # what was written just now is not remembered
    folder = RunFolder(work)
    found: dict[str, Any] = {"store_bytes": sum(p.stat().st_size for p in work.rglob("*.parquet"))}
    _, found["sum_and_build"] = clocked(folder.rebuild_catalog)
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    folder.catalog.unlink()
    _, found["build"] = clocked(folder.rebuild_catalog)
    _, found["nothing_to_build"] = clocked(folder.rebuild_catalog)
    for name in ("hash_all", "hash_none"):
        opened, found["open"] = clocked(lambda: open_run(work))
        read = opened._files.tables_read("FROM label_issues, examples, shapley")
        _, found[name] = clocked(lambda o=opened, r=read: o._files.check(r))
    rounds = "tables.shapley_round"
    asked = {**QUESTIONS, "all_rounds": f"SELECT sum(total), max(total_sq) FROM {rounds}"}
    for name, question in asked.items():
        tries = [clocked(opened.sql(question).fetchall)[1] for _ in range(arguments.times)]
        found[name] = min(tries, key=lambda one: one["cpu_s"])
    return found


def clocked(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a call gives, and its seconds."""
    start, cpu = time.time(), time.process_time()
    given = work()
    spent = {"wall_s": time.time() - start, "cpu_s": time.process_time() - cpu}
    return given, {name: round(seconds, 3) for name, seconds in spent.items()}


def write_run(work: Path, n: int, n_shards: int, n_rounds: int) -> None:
    """A finished run over synthetic rows, written by the store itself."""
    from pipeline.folder import RunFolder
    from stages.corpus.ingest import EXTRA, LABEL, TEXT
    from stages.predictions.label_issues import LABEL_ISSUES
    from stages.tables import SHAPLEY_ROUND
    from storage.manifest import Manifest, ShardRecord, digest
    from storage.table import Store

    work.mkdir(parents=True)
    store = Store(str(work / "store"))
    drawn = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(drawn.choice(letters, drawn.integers(2, 10))) for _ in range(20_000)])
    size = n // n_shards
    shards: dict[str, list[ShardRecord]] = {}

    def add(spec: Any, of: str, at: int, **columns: Any) -> None:
        key, rows = digest([spec.name, at]), pa.table(columns)
        shards.setdefault(spec.name, []).append(store.write_shard(spec, key, of, at, rows))

    for at in range(n_shards):
        ids, role = np.arange(at * size, (at + 1) * size), ["example"] * size
        texts = [
            " ".join(row) for row in words[np.minimum(drawn.zipf(1.3, (size, 11)), 20_000) - 1]
        ]
        label, score = drawn.integers(0, 2, size), drawn.random(size)
        text_b = pa.nulls(size, pa.string())
        add(TEXT, "example", at, id=ids, role=role, text=texts, text_b=text_b)
        none = {field.name: pa.nulls(size, field.type) for field in LABEL.schema}
        add(LABEL, "example", at, **none | {"id": ids, "role": role, "label": label})
        origin = [f"site {site}" for site in drawn.integers(0, 20, size)]
        source = {"source_id": list(map(str, ids)), "row_number": ids, "origin": origin}
        add(EXTRA, "example", at, id=ids, role=role, **source)
        judged = {"example_id": ids, "given_label": label, "suggested_label": 1 - label}
        signals = {"p_wrong": 1 - score, "margin": drawn.random(size), "confidence": score**2}
        flagged = {"label_score": score, "is_label_issue": score < 0.05}
        add(LABEL_ISSUES, "example", at, **judged, **flagged, **signals)
    worth, ids = drawn.normal(size=n) / n, np.arange(n)
    constant = np.zeros(n, np.int64)
    for at in range(n_rounds):
        total = 2 * (worth + drawn.normal(size=n) / n)
        names = {
            "semivalue": pa.array(["shapley"]).take(pa.array(constant)),
            "utility": pa.array(["cross_entropy"]).take(pa.array(constant)),
        }
        sums = {"example_id": ids, "total": total, "total_sq": total**2}
        counts = {"n_units": constant + 2, "n_observed": drawn.integers(0, 3, n)}
        add(SHAPLEY_ROUND, "", at, round=constant + at, **names, **sums, **counts, n_prior=constant)
    details: dict[str, Any] = {
        "label": {"task": "classification", "classes": ["negative", "positive"]},
        "text": {"format": "text", "has_text": True},
    }
    tables: dict[str, Any] = {}
    for table, records in shards.items():
        instance = {"label_issues": "label_issues", "shapley_round": "freeshap"}.get(table)
        facts = details.get(table, {})
        manifest = Manifest(table, instance or "ingest", 1, {}, {}, tuple(records), facts)
        state = {"manifest": store.write_manifest(manifest), "shards": [s.key for s in records]}
        tables.setdefault(instance or "corpus", {})[table] = state
    record = {"run_id": "bench-000000", "path": str(work), "config": "", "store": None}
    RunFolder(work).write_record({**record, "splits": {"example": "train"}, "tables": tables})
