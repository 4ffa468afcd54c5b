"""Flags by a model that is really fine-tuned, beside those by frozen features, under label noise.

Sets of ALL (folders with train.parquet, columns id, text, label); labels are moved as in the case
`noise`, whose names of noise these are. Every cell is one run of assay. Its signals, of which low
ones are suspicious:

    default       label_score of label_issues as it is: leave-one-out predictions by
                  hidden_states
    ntk           the same by the NTK at a fitted probe
    tuned         label_score of label_issues on the out-of-sample predictions of cross_fitting
    ensemble      the same on the ensemble of both
    loss          minus the out-of-sample loss of cross_fitting
    aum           the area under the margin in training
    early_loss    minus the loss in training after one epoch
    cleanlab      confident learning on the same out-of-sample probabilities

and of each two of all but cleanlab the sum of their ranks. The first four and cleanlab flag as many
as they see fit; of the others the lowest are flagged, as many as were planted, which nobody knows.
`right` is the share of the labels before they were moved that the out-of-sample predictions agree
with. `cpu_s` are the CPU-seconds of each stage.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.environment import MODEL, environment
from benchmarks.finished import Clock, run_config
from benchmarks.noise import KINDS, PEERS, drawn, judged, planted
from benchmarks.short_rows import Rows, directions, unit

SETS = ("mr", "trec", "tweeteval_emotion")
NOISES = ("even 20", "one-way", "even 40")
ISSUES = {
    "default": "label_issues",
    "ntk": "by_ntk",
    "tuned": "by_tuned",
    "ensemble": "by_ensemble",
}
SIGNALS = {"loss": "-loss", "aum": "area_under_margin", "early_loss": "-early_loss"}
"""Columns of the view `training_dynamics` by signal."""
PEER = """
import sys
import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

data = np.load(sys.argv[1])
given, p = data["given"], data["p"]
score = get_label_quality_scores(given, p, method="normalized_margin")
flagged = find_label_issues(given, p, n_jobs=1)
np.savez(sys.argv[1] + ".found.npz", score=score, flagged=flagged)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="ALL")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--kinds", nargs="+", default=list(NOISES), choices=KINDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="draws of rows")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--no-peer", action="store_true")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every set, draw and kind of noise; what an earlier call computed is not computed again."""
    sizes = f"{arguments.rows}-{arguments.folds}-{arguments.epochs}"
    work = Path(arguments.work).resolve() / f"tuned_flags-{sizes}"
    work.mkdir(parents=True, exist_ok=True)
    cells = []
    for name in arguments.sets:
        for seed in arguments.seeds:
            source = Path(arguments.data).resolve() / name
            truth, features = drawn(source, work, seed, arguments.rows)
            rows, n_classes = unit(features), int(truth.max()) + 1
            basis = directions(Rows(rows, rows[:1]))
            for kind in arguments.kinds:
                given = planted(kind, truth, rows, n_classes, seed, basis)
                cell = {"set": name, "seed": seed, "noise": kind, "rows": len(truth)}
                cell["planted"] = int((given != truth).sum())
                cell |= one_cell(arguments, work / f"{name}-{seed}", kind, given, truth)
                cells.append(cell)
                print(json.dumps(cell), file=sys.stderr, flush=True)
    return {"folds": arguments.folds, "epochs": arguments.epochs, "cells": cells}


def one_cell(
    arguments: argparse.Namespace, folder: Path, kind: str, given: np.ndarray, truth: np.ndarray
) -> dict[str, Any]:
    """How well each signal finds the labels that were moved, and the CPU-seconds of each stage."""
    place = folder / kind.replace(" ", "-")
    place.mkdir(exist_ok=True)
    train = pq.read_table(folder / "train.parquet")
    pq.write_table(train.set_column(2, "label", pa.array(given)), place / "train.parquet")
    clock = Clock()
    done = run_config(
        {
            "run": str(place / "run"),
            "model": {"path": MODEL},
            "corpus": {
                "path": str(place / "train.parquet"),
                "id": "id",
                "text": "text",
                "label": "label",
            },
            "stages": {
                "embedding": {},
                "of_ntk": {"stage": "kernel_regression", "kernel": ["ntk"]},
                "cross_fitting": {
                    "folds": arguments.folds,
                    "training": {"epochs": arguments.epochs},
                },
                "label_issues": {},
                "by_ntk": {"stage": "label_issues", "predictions": "of_ntk"},
                "by_tuned": {"stage": "label_issues", "predictions": "cross_fitting"},
                "ensemble": {},
                "by_ensemble": {"stage": "label_issues", "predictions": "ensemble"},
            },
            "ray": {"engine": "in_process"},
        },
        clock,
    )
    scores, flags = read_issues(done)
    columns = ", ".join(f"{column} AS {name}" for name, column in SIGNALS.items())
    seen = done.sql(f"SELECT {columns} FROM training_dynamics ORDER BY example_id").fetchnumpy()
    scores |= {name: np.asarray(seen[name]) for name in SIGNALS}
    is_wrong = given != truth
    n_planted = int(is_wrong.sum())
    found: dict[str, Any] = {}
    for name, score in scores.items():
        found[name] = judged(score, flags.get(name, lowest(score, n_planted)), is_wrong)
    for first, second in itertools.combinations(scores, 2):
        score = ranks(scores[first]) + ranks(scores[second])
        found[f"{first} + {second}"] = judged(score, lowest(score, n_planted), is_wrong)
    p = probabilities(done)
    found["right"] = round(float((p.argmax(1) == truth).mean()), 4)
    if not arguments.no_peer:
        np.savez(place / "peer.npz", given=given, p=p)
        subprocess.run([environment("peers", PEERS), "-c", PEER, place / "peer.npz"], check=True)
        held = np.load(place / "peer.npz.found.npz")
        found["cleanlab"] = judged(held["score"], held["flagged"], is_wrong)
    spent = place / "cpu_s.json"
    if not spent.exists():
        spent.write_text(json.dumps({k: round(cpu_s, 1) for k, cpu_s in clock.cpu_s.items()}))
    return {**found, "cpu_s": json.loads(spent.read_text())}


def read_issues(done: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Score and flag of every label, by signal of `ISSUES`; rows ascend by id."""
    scores, flags = {}, {}
    for name, method in ISSUES.items():
        rows = done.sql(
            "SELECT label_score, is_label_issue FROM label_issues "
            f"WHERE method = '{method}' ORDER BY example_id"
        ).fetchnumpy()
        scores[name] = np.asarray(rows["label_score"])
        flags[name] = np.asarray(rows["is_label_issue"])
    return scores, flags


def probabilities(done: Any) -> np.ndarray:
    """Out-of-sample probabilities of the classes; rows ascend by id."""
    rows = done.sql("SELECT logits FROM predictions WHERE method = 'cross_fitting' ORDER BY id")
    logits = np.array([row[0] for row in rows.fetchall()], np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    shares: np.ndarray = p / p.sum(1, keepdims=True)
    return shares


def ranks(score: np.ndarray) -> np.ndarray:
    """The place of each row from the lowest score on."""
    places: np.ndarray = score.argsort(kind="stable").argsort()
    return places


def lowest(score: np.ndarray, count: int) -> np.ndarray:
    """Whether a row is among the `count` lowest scores."""
    return ranks(score) < count
