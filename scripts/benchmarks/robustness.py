"""How often the sign of a value hangs on its companions: leave-one-out against Shapley values.

`assay evaluate RUN robustness` on MiniLM's NTK at a probe, with all training rows as the pool and
all validation rows as queries. DIR holds the folders sst2 and mr, each with train.parquet and
validation.parquet (columns id, text, label). Beside each share stands the one that the paper
prints (arXiv:2406.04606, BERT with a prompt, utility accuracy). One process, one thread; 50 points
make a standard error of up to 0.07 for a share. Features stay in the work folder: the next call
finds them there, and counts next to nothing for them.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import MODEL
from benchmarks.finished import run_config

DATASETS = ("sst2", "mr")
ROUNDS = {300: 60, 500: 48, 1000: 36}
PAPER = {
    "sst2": {300: (0.44, 0.56), 500: (0.86, 0.30), 1000: (0.38, 0.50)},
    "mr": {300: (0.44, 0.24), 500: (0.98, 0.18), 1000: (1.00, 0.28)},
}
"""Share of points that are not robust, of leave-one-out and of Shapley values, by training rows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with a folder per data set")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(ROUNDS), choices=list(ROUNDS))
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], help="of the draws of points and companions"
    )
    parser.add_argument("--rounds", type=int, help="instead of 60, 48 and 36 by size")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The metric's rows on every data set, size and seed."""
    result: dict[str, Any] = {"seeds": arguments.seeds, "paper": PAPER}
    for name in arguments.datasets:
        source = Path(arguments.data).resolve() / name
        start = time.process_time()
        finished = run_config(
            {
                "run": str(Path(arguments.work).resolve() / "robustness" / name),
                "model": {"path": MODEL},
                "corpus": {"path": str(source / "train.parquet"), "id": "id"},
                "queries": {"path": str(source / "validation.parquet"), "id": "id"},
                "stages": {"ntk": {}},
                "ray": {"engine": "in_process"},
            }
        )
        result[name] = {"features_cpu_s": round(time.process_time() - start, 1)}
        for size in arguments.sizes:
            rounds = arguments.rounds or ROUNDS[size]
            found = [measured(finished, size, rounds, seed) for seed in arguments.seeds]
            result[name][str(size)] = found
            print(markdown({name: {str(size): found}}), file=sys.stderr, flush=True)
    print(markdown({name: result[name] for name in arguments.datasets}), file=sys.stderr)
    return result


def measured(finished: Any, size: int, rounds: int, seed: int) -> dict[str, Any]:
    """What the metric says of one draw, and its CPU-seconds."""
    from pipeline.evaluate import evaluate

    start = time.process_time()
    fields = [f"examples={size}", f"rounds={rounds}", f"seed={seed}"]
    found = evaluate(finished.folder.path, "robustness", fields)
    return {
        "rounds": rounds,
        "cpu_s": round(time.process_time() - start, 1),
        "facts": found["facts"],
        "rows": [
            {k: round(v, 7) if isinstance(v, float) else v for k, v in row.items()}
            for row in found["rows"]
        ],
    }


def markdown(results: dict[str, Any]) -> str:
    """A line per data set, size, method and utility; means over seeds, numbers times 1000."""
    lines = [
        "| data | n | values | utility | non-robust | surely | paper | zeros | mean \\|value\\| "
        "| mean sd | stderr |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, sizes in results.items():
        for size, found in sizes.items():
            if size == "features_cpu_s":
                continue
            for rows in zip(*(one["rows"] for one in found), strict=True):
                first = rows[0]
                of_paper = ""
                if first["utility"] == "accuracy":
                    of_paper = f"{PAPER[name][int(size)][first['semivalue'] == 'shapley']:.2f}"
                mean = {
                    k: statistics.mean(row[k] for row in rows)
                    for k, v in first.items()
                    if isinstance(v, float)
                }
                lines.append(
                    f"| {name} | {size} | {first['semivalue']} | {first['utility']} "
                    f"| {mean['non_robust']:.2f} | {mean['surely_non_robust']:.2f} | {of_paper} "
                    f"| {mean['zeros']:.2f} | {1e3 * mean['mean_abs']:.2f} "
                    f"| {1e3 * mean['mean_sd']:.2f} | {1e3 * mean['stderr']:.2f} |"
                )
    return "\n".join(lines)
