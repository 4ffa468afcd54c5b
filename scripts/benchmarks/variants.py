"""Which neural tangent kernel predicts best: SST-2, MR, TREC (6 classes) and MRPC (pairs).

all-MiniLM-L6-v2, seeded draws of the training rows, the validation rows as queries, kernel
regression on vectors of unit length with the automatic ridge, as a run does it. The head is the
probe that the run fits, unless it is random. `sum` is `logit: all`, the sum of the classes'
kernels; `per class` gives each class its own; `two checkpoints` is the mean of the kernels at the
probe and at a random head.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from benchmarks.environment import MODEL

DATA_SETS = ("sst2", "mr", "trec", "mrpc")
KERNELS: dict[str, dict[str, Any]] = {
    "logit 0": {"kernel": ["first"]},
    "margin": {"kernel": ["margin"]},
    "sum": {"kernel": ["every"]},
    "per class": {"kernel": ["every"], "per_class": True},
    "per class, margin": {"kernel": ["margins"], "per_class": True},
    "random head": {"kernel": ["random"]},
    "two checkpoints": {"kernel": ["first", "random"]},
    "embeddings, last layer": {"kernel": ["embedding"]},
    "embeddings, all layers": {"kernel": ["all_layers"]},
    "logit 0 and all layers": {"kernel": ["first", "all_layers"]},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help=f"folder with {', '.join(DATA_SETS)}")
    parser.add_argument("--data-sets", nargs="+", default=list(DATA_SETS), choices=DATA_SETS)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--queries", type=int, default=872, help="at most")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the training rows")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of every variant on every data set."""
    found: dict[str, Any] = {}
    for name in arguments.data_sets:
        draws = [one_draw(arguments, name, seed) for seed in range(arguments.seeds)]
        found[name] = {
            "queries": draws[0]["queries"],
            "seconds": draws[0]["seconds"],
            "accuracy": {
                variant: [draw["accuracy"][variant] for draw in draws]
                for variant in draws[0]["accuracy"]
            },
        }
        print(name, found[name], file=sys.stderr, flush=True)
    print(markdown(found), file=sys.stderr)
    return {"rows": arguments.rows, "seeds": arguments.seeds, "data_sets": found}


def one_draw(arguments: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """One run over one draw of the training rows."""
    from benchmarks.flags import accuracy, run_config

    folder = Path(arguments.work).resolve() / "variants" / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(Path(arguments.data) / name / "train.parquet")
    order = np.random.default_rng(seed).permutation(table.num_rows)[: arguments.rows]
    pq.write_table(table.take(np.sort(order)), folder / "train.parquet")
    queries = pq.read_table(Path(arguments.data) / name / "validation.parquet")
    pq.write_table(queries.slice(0, arguments.queries), folder / "validation.parquet")
    n_classes = int(table["label"].to_numpy().max()) + 1
    names = [str(label) for label in range(n_classes)]
    columns = {"id": "id", **({"text_b": "text_b"} if name == "mrpc" else {})}
    random = {"path": MODEL, "head": "random", "num_labels": n_classes}
    stages: dict[str, Any] = {
        "embedding": {},
        "all_layers": {"stage": "embedding", "layer": "all"},
        "probe": {},
        "prediction": {},
        "first": {"stage": "ntk"},
        "margin": {"stage": "ntk", "output": "margin"},
        "every": {"stage": "ntk", "logit": "all"},
        "margins": {"stage": "ntk", "logit": "all", "output": "margin"},
        "random": {"stage": "ntk", "model": random},
    }
    fits = {
        f"fit_{variant}".replace(" ", "_").replace(",", ""): v for variant, v in KERNELS.items()
    }
    stages |= {fit: {"stage": "kernel_regression", **fields} for fit, fields in fits.items()}
    opened = run_config(
        {
            "run": str(folder / "run"),
            "model": {"path": MODEL},
            "corpus": {"path": str(folder / "train.parquet"), "classes": names, **columns},
            "queries": {"path": str(folder / "validation.parquet"), **columns},
            "shard_size": 500,
            "stages": stages,
            "ray": {"engine": "in_process"},
        }
    )
    found = {v: accuracy(opened, fit) for v, fit in zip(KERNELS, fits, strict=True)}
    found["the probe itself"] = accuracy(opened, "prediction")
    labels = queries["label"].to_numpy()[: arguments.queries]
    seconds = opened.sql("SELECT instance, max(seconds) FROM runs GROUP BY ALL").fetchall()
    return {
        "queries": len(labels),
        "accuracy": {
            **found,
            "most frequent class": float(np.bincount(labels).max() / len(labels)),
        },
        "seconds": {instance: round(s, 1) for instance, s in seconds if instance in stages},
    }


def markdown(found: dict[str, Any]) -> str:
    """The accuracies as a table."""
    lines = [f"| kernel | {' | '.join(found)} |", "|---|" + "--:|" * len(found)]
    for variant in next(iter(found.values()))["accuracy"]:
        means = [statistics.fmean(one["accuracy"][variant]) for one in found.values()]
        lines.append(f"| {variant} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    return "\n".join(lines)
