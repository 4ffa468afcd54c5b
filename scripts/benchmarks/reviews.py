"""How well the flags count what is still wrong, while a person reviews the most doubtful rows.

Sets of ALL (folders with train.parquet, columns id, text, label), few rows a draw, labels moved as
in the case `noise`. A reviewer who knows the labels before they were moved decides about the lowest
scores first, some more at each step; then all is fitted again. Twice: by `label_issues` as it is,
which holds decided labels for right and learns from them how noisy the others are, and by a noise
model that takes corrected labels as it finds them. With `--errs` a share of the decisions, drawn by
chance, names another class.

Of each step: how many labels are still wrong, how many are flagged, how many of these are wrong.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.noise import KINDS, drawn, planted
from benchmarks.short_rows import Rows, directions, solved, unit

SETS = ("sst2", "mr", "subj", "trec", "tweeteval_hate", "tweeteval_emotion")
NOISES = ("clean", "even 10", "even 20", "one-way")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="ALL")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--kinds", nargs="+", default=list(NOISES), choices=KINDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12], help="draws of rows")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--errs", type=float, default=0.0, help="share of decisions that are wrong")
    parser.add_argument("--steps", nargs="+", type=int, default=[12, 12, 24], help="decisions")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every set, draw and kind of noise."""
    work = Path(arguments.work).resolve() / "reviews"
    work.mkdir(parents=True, exist_ok=True)
    cells = []
    for name in arguments.sets:
        for seed in arguments.seeds:
            source = Path(arguments.data).resolve() / name
            truth, features = drawn(source, work, seed, arguments.rows)
            rows = unit(features)
            basis = directions(Rows(rows, rows[:1]))
            for kind in arguments.kinds:
                given = planted(kind, truth, rows, int(truth.max()) + 1, seed, basis)
                cell: dict[str, Any] = {"set": name, "seed": seed, "noise": kind}
                for way in ("learns", "forgets"):
                    told = mistaken(truth, arguments.errs, seed)
                    cell[way] = reviewed(
                        basis, given, truth, told, arguments.steps, way == "learns"
                    )
                cells.append(cell)
                print(json.dumps(cell), file=sys.stderr, flush=True)
    return {"errs": arguments.errs, "cells": cells}


def mistaken(truth: np.ndarray, share: float, seed: int) -> np.ndarray:
    """What the reviewer takes each label for: the right one, or of a share any other."""
    drawn = np.random.default_rng([seed, 7])
    n_classes = int(truth.max()) + 1
    other = (truth + drawn.integers(1, n_classes, len(truth))) % n_classes
    return np.where(drawn.random(len(truth)) < share, other, truth)


def reviewed(
    basis: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    given: np.ndarray,
    truth: np.ndarray,
    told: np.ndarray,
    steps: list[int],
    is_told: bool,
) -> list[dict[str, int]]:
    """What is wrong, flagged, and rightly so, before the review and after each of its steps.

    Of rows that nobody decided about. `told` is what the reviewer says of each; `is_told` says
    whether the noise model knows the decisions.
    """
    from stages.predictions.label_noise import lowest
    from stages.surrogate.noise_fit import fit_noise_model
    from stages.surrogate.noise_model import Judged

    ids, right, said = np.arange(len(given)), torch.from_numpy(truth), torch.from_numpy(told)
    at_first = torch.from_numpy(given)
    labels, is_decided = at_first.clone(), torch.zeros(len(given), dtype=torch.bool)
    found = []
    for step in (*steps, 0):
        outputs = solved(*basis, labels, int(truth.max()) + 1).left_out
        seen = at_first if is_told else labels
        known = torch.where(is_decided, labels, -1) if is_told else None
        model = fit_noise_model(outputs, seen, known)
        judged = Judged(ids, outputs, labels, seen, is_decided)
        score = judged.scores(model).numpy()
        last, last_id = lowest(score, ids, round(float(judged.wrong(model).sum())))
        is_low = (score < last) | ((score == last) & (ids <= last_id))
        flagged = is_low & (judged.opinions(model).argmax(1) != labels).numpy()
        is_wrong = ((labels != right) & ~is_decided).numpy()
        counts = (is_wrong.sum(), flagged.sum(), (is_wrong & flagged).sum())
        found.append(dict(zip(("wrong", "flagged", "right"), map(int, counts), strict=True)))
        decided = torch.from_numpy(np.lexsort((ids, score))[:step])
        is_decided[decided] = True
        labels[decided] = said[decided]
    return found
