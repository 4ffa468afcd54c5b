"""Which neural tangent kernel predicts best: logits, margins, classes, checkpoints, heads.

MiniLM frozen, ridge regression in closed form on a draw of training rows, the least leave-one-out
error chooses the ridge; accuracy on the validation split, which nothing was chosen on. DIR holds
the folders sst2, mr, trec (6 classes) and mrpc (pairs), each with train.parquet and
validation.parquet: columns id, text, label, and text_b for pairs. One process, one thread.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from benchmarks.environment import MODEL
from benchmarks.finished import Clock, accuracy, run_config

DATASETS = ("sst2", "mr", "trec", "mrpc")
MOST_QUERIES = 872


class Variant(NamedTuple):
    """A kernel, and what has to be computed before it."""

    kernel: tuple[str, ...]
    before: tuple[str, ...] = ()
    per_class: bool = False


PROBE = ("embedding", "probe")
VARIANTS = {
    "logit 0": Variant(("logit",), PROBE),
    "margin": Variant(("margin",), PROBE),
    "all, summed": Variant(("all",), PROBE),
    "all, per class": Variant(("all",), PROBE, per_class=True),
    "random head": Variant(("random_head",)),
    "probe and random head": Variant(("logit", "random_head"), PROBE),
    "embedding, last layer": Variant(("embedding",)),
    "embedding, all layers": Variant(("hidden_states",)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with a folder per data set")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--rows", type=int, default=1500, help="training rows of each draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of the random head")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy and cost of every variant on every data set."""
    result: dict[str, Any] = {
        "train_rows": arguments.rows,
        "seed": arguments.seed,
        "default": "logit 0",
    }
    for name in arguments.datasets:
        work = Path(arguments.work).resolve() / "variants" / f"{name}-{arguments.seed}"
        source = Path(arguments.data).resolve() / name
        result[name] = on_dataset(source, work, arguments.rows, arguments.seed)
        print(markdown({name: result[name]}), file=sys.stderr, flush=True)
    print(markdown({n: result[n] for n in arguments.datasets}), file=sys.stderr)
    return result


def on_dataset(source: Path, work: Path, n_rows: int, seed: int) -> dict[str, Any]:
    """Every variant on one data set.

    CPU-seconds count all stages that a variant needs, the embeddings and the probe under the head
    included.
    """
    work.mkdir(parents=True, exist_ok=True)
    train = pq.read_table(source / "train.parquet")
    order = np.random.default_rng(seed).permutation(train.num_rows)
    drawn = train.take(order[:n_rows])
    pq.write_table(drawn, work / "train.parquet")
    queries = pq.read_table(source / "validation.parquet").slice(0, MOST_QUERIES)
    pq.write_table(queries, work / "queries.parquet")
    n_classes = len(drawn["label"].unique())
    columns = {"id": "id", "text_b": "text_b" if "text_b" in train.column_names else None}
    random = {"path": MODEL, "head": "random", "num_labels": n_classes, "seed": seed}
    stages: dict[str, Any] = {
        "embedding": {},
        "hidden_states": {},
        "probe": {},
        "prediction": {},
        "logit": {"stage": "ntk"},
        "margin": {"stage": "ntk", "output": "margin"},
        "all": {"stage": "ntk", "logit": "all"},
        "random_head": {"stage": "ntk", "model": random},
    }
    fits = {name: f"{name.replace(' ', '_').replace(',', '')}_fit" for name in VARIANTS}
    for name, variant in VARIANTS.items():
        stages[fits[name]] = {
            "stage": "kernel_regression",
            "kernel": list(variant.kernel),
            "per_class": variant.per_class,
        }
    clock = Clock()
    finished = run_config(
        {
            # A folder of its own, so that every stage is computed and timed.
            "run": str(work / f"run-{len(list(work.glob('run-*')))}"),
            "model": {"path": MODEL},
            "corpus": {"path": str(work / "train.parquet"), **columns},
            "queries": {"path": str(work / "queries.parquet"), **columns},
            "shard_size": 250,
            "stages": stages,
            "ray": {"engine": "in_process"},
        },
        clock,
    )
    found: dict[str, Any] = {}
    for name, variant in VARIANTS.items():
        needed = {*variant.before, *variant.kernel, fits[name]}
        found[name] = {
            "accuracy": round(accuracy(finished, fits[name]), 4),
            "cpu_s": round(sum(clock.cpu_s[instance] for instance in needed), 1),
            **against(finished, fits[name], fits["logit 0"]),
        }
    found["probe itself"] = {
        "accuracy": round(accuracy(finished, "prediction"), 4),
        "cpu_s": round(sum(clock.cpu_s[i] for i in (*PROBE, "prediction")), 1),
        **against(finished, "prediction", fits["logit 0"]),
    }
    majority = float(np.bincount(queries["label"].to_numpy()).max() / queries.num_rows)
    return {
        "queries": queries.num_rows,
        "classes": n_classes,
        "majority": round(majority, 4),
        "rows_per_cpu_s": {
            instance: round(clock.rows_per_cpu_s(instance), 1)
            for instance in ("embedding", "hidden_states", "logit", "margin", "all", "random_head")
        },
        "variants": found,
    }


def against(run: Any, method: str, other: str) -> dict[str, int]:
    """Queries that one instance has right and the other wrong, and the other way round."""
    gained, lost = run.sql(
        "SELECT count(*) FILTER (a.predicted = q.label AND b.predicted <> q.label), "
        "count(*) FILTER (a.predicted <> q.label AND b.predicted = q.label) FROM queries AS q "
        "JOIN predictions AS a ON a.id = q.query_id AND a.role = 'query' "
        "JOIN predictions AS b ON b.id = q.query_id AND b.role = 'query' "
        f"WHERE a.method = '{method}' AND b.method = '{other}'"
    ).fetchall()[0]
    return {"gained": gained, "lost": lost}


def markdown(results: dict[str, Any]) -> str:
    """Accuracy, and CPU-seconds in brackets, per variant and data set."""
    head = [f"{n} ({r['classes']} classes, {r['queries']} queries)" for n, r in results.items()]
    lines = [f"| variant | {' | '.join(head)} |", "|---|" + "--:|" * len(head)]
    for name in next(iter(results.values()))["variants"]:
        cells = [r["variants"][name] for r in results.values()]
        told = [f"{cell['accuracy']:.3f} ({cell['cpu_s']:.0f} s)" for cell in cells]
        lines.append(f"| {name} | {' | '.join(told)} |")
    majorities = [f"{r['majority']:.3f}" for r in results.values()]
    return "\n".join([*lines, f"| majority class | {' | '.join(majorities)} |"])
