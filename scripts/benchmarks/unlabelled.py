"""Values of a corpus without classes: what they find, and how far their promise reaches.

SmolLM2-135M-Instruct, as it is and with its last four blocks fine-tuned on the answers of rows that
were not drawn; rows are questions about paragraphs with their answers as completions.

*detection*: a fifth of the rows is corrupted, their answers by those of other rows (swapped) or the
whole row by a film review cut in two (off_topic). Values of the game of loss gradients, positive
helps, against what is simpler: inner products with the queries' gradients, the row's own loss, the
length of its gradient. AUC is that of low scores for corrupted rows, so below 0.5 a score points
the wrong way. Rows are corrupted in blocks, each block in one of the patterns: every block is a
shard, so that a pattern computes the gradients of its own blocks alone.

*step*: the real fall of the queries' loss after a step of size eta in the weights of the last
block, for random subsets of a corpus with swapped answers, against eta times what the game
promises.

DIR holds the folders squad_xquad_en (train.parquet and validation.parquet: text, text_b,
answer_text) and mr (train.parquet: text). One process, one thread.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.corrupted import Corpus, read_corpus
from benchmarks.environment import language_model
from benchmarks.finished import Clock, run_config
from benchmarks.real_step import real_step
from benchmarks.retrain import spearman
from benchmarks.tuned import tuned

BLOCKS, PATTERNS = 10, 5
"""Blocks that the rows are cut into, and ways to corrupt two of them."""
RESAMPLES = 1000
GAME = {"kernel": ["gradient"], "utilities": ["loss"]}
SHAPLEY = {"stage": "freeshap", **GAME, "rounds": 24}
LEAVE_ONE_OUT = {"stage": "leave_one_out", **GAME}
RIDGES = (0.1, 1.0, 10.0, 100.0, 1000.0)
DEFAULT = "one_ridge_1"
INSTANCES: dict[str, dict[str, Any]] = {
    f"{target}_ridge_{ridge:g}": {**SHAPLEY, "target": target, "ridge": ridge}
    for target in ("one", "loss")
    for ridge in RIDGES
} | {
    "one_ridge_1_unit_length": {**SHAPLEY, "ridge": 1.0, "normalize": True},
    "leave_one_out_ridge_1": {**LEAVE_ONE_OUT, "ridge": 1.0},
    "leave_one_out_ridge_100": {**LEAVE_ONE_OUT, "ridge": 100.0},
}
"""Values by name: what the regression predicts of a row, 1 or its loss, and the ridge."""
STEP_ROWS, STEP_SWAPPED, STEP_QUERIES = 80, 20, 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with a folder per data set")
    parser.add_argument("--starts", nargs="+", default=["as_it_is", "tuned"], help="models")
    parser.add_argument("--parts", nargs="+", default=["detection", "step"])
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--subsets", type=int, default=10, help="of each size in `step`")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure of the parts that are asked for."""
    import torch

    torch.set_num_threads(1)
    # A folder of its own, so that every stage is computed and timed.
    work = Path(arguments.work).resolve() / "unlabelled" / str(time.time_ns())
    work.mkdir(parents=True)
    n_rows, n_queries = arguments.rows, arguments.queries
    corpus = read_corpus(Path(arguments.data), n_rows, n_queries, BLOCKS, arguments.seed)
    result: dict[str, Any] = {"seed": arguments.seed, "rows": n_rows, "queries": n_queries}
    for start in arguments.starts:
        folder = work / start
        folder.mkdir()
        path = language_model()
        if start == "tuned":
            path = tuned(model(path, 4), corpus.rest, folder / "model")
        result[start] = {}
        for part in (detection, step):
            name = part.__name__
            if name in arguments.parts:
                begun = time.process_time()
                result[start][name] = part(corpus, path, folder, arguments)
                result[start][name]["cpu_s"] = round(time.process_time() - begun, 1)
                print(json.dumps(result[start][name]), file=sys.stderr, flush=True)
    return result


def config(
    folder: Path, rows: pa.Table, queries: pa.Table, trained: dict[str, Any]
) -> dict[str, Any]:
    """A run over these rows with their gradients; runs with neighbouring folders share a store."""
    folder.mkdir()
    pq.write_table(rows, folder / "rows.parquet")
    pq.write_table(queries, folder / "queries.parquet")
    source = {"task": "completion", "id": "id"}
    return {
        "run": str(folder / "run"),
        "store": str(folder.parent / "store"),
        "model": trained,
        "corpus": {"path": str(folder / "rows.parquet"), **source},
        "queries": {"path": str(folder / "queries.parquet"), "id": "id"},
        "shard_size": max(1, rows.num_rows // BLOCKS),
        "stages": {"gradient": {}},
        "ray": {"engine": "in_process"},
    }


def model(path: Path, last_blocks: int) -> dict[str, Any]:
    """The model with its last blocks trained; no row is so long that it loses its answer."""
    trained = {"last_blocks": last_blocks}
    return {"path": str(path), "head": "completion", "max_length": 384, "train": trained}


def detection(
    corpus: Corpus, path: Path, work: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """AUC of each score for each kind of corruption, over the patterns."""
    clean, result = corpus.versions["clean"], {}
    block = np.arange(clean.num_rows) // (clean.num_rows // BLOCKS)
    for kind in ("swapped", "off_topic"):
        other, found, bad = corpus.versions[kind], [], []
        cpu_s: dict[str, float] = {}
        for pattern in range(PATTERNS):
            is_bad = block // (BLOCKS // PATTERNS) == pattern
            at = np.where(is_bad, clean.num_rows, 0) + np.arange(clean.num_rows)
            rows = pa.concat_tables([clean, other]).take(at)
            trained = model(path, 4)
            settings = config(work / f"{kind}-{pattern}", rows, corpus.queries, trained)
            settings["stages"] |= INSTANCES
            clock = Clock()
            finished = run_config(settings, clock)
            found.append(scores(finished, clean.num_rows))
            bad.append(is_bad)
            for name, seconds in clock.cpu_s.items():
                cpu_s[name] = cpu_s.get(name, 0.0) + seconds
        facts = [one.pop("facts") for one in found]
        result[kind] = {
            "areas": judged(found, np.array(bad)),
            "like_grad_dot": {
                name: round(float(np.mean([spearman(f[name], f["grad_dot"]) for f in found])), 3)
                for name in INSTANCES
            },
            **{name: round(float(np.mean([f[name] for f in facts])), 4) for name in facts[0]},
            "medians": medians(found, np.array(bad)),
            "cpu_s": {name: round(seconds, 1) for name, seconds in cpu_s.items()},
        }
    return result


def step(corpus: Corpus, path: Path, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Real falls against promised ones, see `benchmarks.real_step`."""
    swapped = corpus.versions["swapped"].slice(0, STEP_SWAPPED)
    clean = corpus.versions["clean"].slice(STEP_SWAPPED, STEP_ROWS - STEP_SWAPPED)
    rows, queries = pa.concat_tables([swapped, clean]), corpus.queries.slice(0, STEP_QUERIES)
    finished = run_config(config(work / "step", rows, queries, model(path, 1)))
    projected = vectors(finished, "example"), vectors(finished, "query").mean(0)
    return real_step(model(path, 1), rows, queries, projected, arguments.subsets, arguments.seed)


def scores(run: Any, n_rows: int) -> dict[str, Any]:
    """Of each row in the order of ids: values, and what is simpler; high is good."""
    found: dict[str, Any] = {}
    for name, values in run.sql(
        "SELECT method, list(value ORDER BY example_id) FROM shapley GROUP BY method"
    ).fetchall():
        found[name] = np.array(values)
    example, query = vectors(run, "example"), vectors(run, "query")
    diagnostics = run.sql(
        "SELECT list(measured ORDER BY id), list(norm ORDER BY id) FROM diagnostics "
        "GROUP BY role ORDER BY role"
    ).fetchall()
    (losses, norms), (of_queries, _) = diagnostics
    found["grad_dot"] = example @ query.mean(0)
    found["cosine"] = unit(example) @ unit(query).mean(0)
    found["low_loss"], found["short_gradient"] = -np.array(losses), -np.array(norms)
    wrong = {name: len(values) for name, values in found.items() if len(values) != n_rows}
    if wrong:
        raise SystemExit(f"unlabelled: found {wrong} rows with a score, expected {n_rows} of each.")
    found["facts"] = {
        "noise": mean_square_error(run) ** 0.5 / found[DEFAULT].std(),
        "query_loss": float(np.mean(of_queries)),
    }
    return found


def mean_square_error(run: Any) -> float:
    """Of sampling, over the rows, of the default values."""
    found = run.sql(f"SELECT avg(stderr ** 2) FROM shapley WHERE method = '{DEFAULT}'").fetchall()
    return float(found[0][0])


def vectors(run: Any, role: str) -> np.ndarray:
    """Gradients of the rows of a role, by id, in float64."""
    rows = run.sql(f"SELECT vector FROM gradients WHERE role = '{role}' ORDER BY id").fetchall()
    return np.array([row[0] for row in rows], np.float64)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def judged(found: list[dict[str, Any]], bad: np.ndarray) -> dict[str, Any]:
    """Mean AUC over the patterns, its spread, and intervals over resampled rows.

    A resample takes the same rows in all patterns and for all scores, so that differences between
    scores have intervals as well.
    """
    from stages.metrics.ranks import auc

    rng = np.random.default_rng(0)
    picked = [rng.integers(bad.shape[1], size=bad.shape[1]) for _ in range(RESAMPLES)]
    resampled = {
        name: np.array(
            [
                np.mean([auc(-f[name][rows], b[rows]) for f, b in zip(found, bad, strict=True)])
                for rows in picked
            ]
        )
        for name in found[0]
    }
    result = {}
    for name in found[0]:
        areas = [auc(-f[name], b) for f, b in zip(found, bad, strict=True)]
        result[name] = {
            "auc": round(float(np.mean(areas)), 4),
            "sd": round(float(np.std(areas, ddof=1)), 4),
            "interval": interval(resampled[name]),
            "over_default": interval(resampled[name] - resampled[DEFAULT]),
            "over_grad_dot": interval(resampled[name] - resampled["grad_dot"]),
        }
    return result


def interval(resampled: np.ndarray) -> list[float]:
    """95 % of the resampled numbers lie in it."""
    return [round(float(q), 4) for q in np.quantile(resampled, (0.025, 0.975))]


def medians(found: list[dict[str, Any]], bad: np.ndarray) -> dict[str, dict[str, float]]:
    """Of some scores, of corrupted and of clean rows."""
    return {
        name: {
            which: float(np.median(np.concatenate([f[name][at] for f, at in pairs])))
            for which, pairs in (
                ("corrupted", list(zip(found, bad, strict=True))),
                ("clean", list(zip(found, ~bad, strict=True))),
            )
        }
        for name in (DEFAULT, "grad_dot", "low_loss", "short_gradient")
    }
