"""Which wrong orders of preference pairs are found, by which score.

Sets of ALL (folders with train.parquet): word problems, role play and tool calls, as many rows of
each. A row's own answer is chosen, against one of three kinds:

    another answer     that of another row of the set (half of the pairs)
    cut off            its own, a fifth to seven tenths of its words (a quarter)
    changed            its own, a fifth of its words taken from other answers of the set, and at
                       least two; of word problems, its numbers are changed (a quarter)

A share of the pairs is then turned around, whatever their kind. The area is that under the ROC
curve of the pairs that were turned around.
"""

import argparse
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.environment import language_model
from benchmarks.finished import Clock, run_config

from stages.metrics.ranks import auc
from stages.predictions.preference_issues import PreferenceIssues
from stages.surrogate.answer_mixture import NUMBERS
from stages.surrogate.pair_order import PARTS, Differences, differences, fit_order

TASKS = ("gsm8k", "gpteacher_roleplay", "gpteacher_toolformer")
KINDS = ("another answer", "cut off", "changed")
MARGINS = {
    "log-likelihood margin": "-margin",
    "margin per token": "-mean_margin",
    "difficulty (IFD)": "c.difficulty - r.difficulty",
    "what the prompt tells (gain)": "r.gain - c.gain",
    "loss of the end": "c.end_loss - r.end_loss",
    "loss of the worst tokens": "c.worst_loss - r.worst_loss",
    "length": "r.n_tokens - c.n_tokens",
}
"""Scores that are high where the order is wrong, of views: m of margins, c and r of the sides."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="ALL")
    parser.add_argument("--pairs", type=int, default=720)
    parser.add_argument(
        "--characters", type=int, default=1200, help="of a prompt with its answer, at most"
    )
    parser.add_argument("--wrong", type=float, default=0.2, help="share of wrong orders")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every draw."""
    work = Path(arguments.work).resolve() / "preferences"
    cells = []
    for seed in arguments.seeds:
        own = "" if arguments.dtype == "float32" else f"-{arguments.dtype}"
        sizes = f"{arguments.pairs}-{arguments.characters}-{arguments.wrong:g}"
        folder = work / f"{sizes}-{seed}{own}"
        cells.append(judged(arguments, folder, seed))
        print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
    told = {name: getattr(arguments, name) for name in ("pairs", "characters", "wrong", "dtype")}
    return {**told, "cells": cells}


def judged(arguments: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """The areas of one draw, by score and kind, and the flags."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = pool(
        Path(arguments.data).resolve(),
        arguments.pairs,
        arguments.wrong,
        seed,
        arguments.characters,
    )
    lines = [
        json.dumps(
            {
                "id": at,
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "chosen": [{"role": "assistant", "content": row["chosen"]}],
                "rejected": [{"role": "assistant", "content": row["rejected"]}],
            }
        )
        for at, row in enumerate(rows)
    ]
    (folder / "pool.jsonl").write_text("\n".join(lines) + "\n")
    clock = Clock()
    done = run_config(
        {
            "run": str(folder / "run"),
            "model": {
                "path": str(language_model()),
                "head": "completion",
                "max_length": 384,
                "dtype": arguments.dtype,
            },
            "corpus": {"path": str(folder / "pool.jsonl"), "task": "preference", "id": "id"},
            "stages": {"answer_margin": {}, "preference_issues": {}},
            "ray": {"engine": "in_process"},
        },
        clock,
    )
    columns = ", ".join(f"{column} AS s{at}" for at, column in enumerate(MARGINS.values()))
    found = done.sql(
        "SELECT e.source_id::INT AS row, i.example_id, is_preference_issue, p_wrong, reason, "
        f"{columns} FROM preference_issues AS i JOIN examples AS e USING (example_id) "
        "JOIN answer_margins AS m ON m.id = example_id AND m.role = 'example' "
        "JOIN answer_sides AS c ON c.id = example_id AND c.side = 'chosen' "
        "JOIN answer_sides AS r ON r.id = example_id AND r.side = 'rejected' ORDER BY row"
    ).fetchnumpy()
    scores = {name: found[f"s{at}"] for at, name in enumerate(MARGINS)}
    scores |= parts_alone(done, found["example_id"])
    scores["preference_issues"] = found["p_wrong"]
    scores["random"] = np.random.default_rng([seed, 7]).random(len(found["row"]))
    kind = np.array([rows[at]["kind"] for at in found["row"]])
    is_wrong = np.array([rows[at]["is_wrong"] for at in found["row"]])
    flagged = found["is_preference_issue"].astype(bool)
    cell: dict[str, Any] = {
        "seed": seed,
        "judged": len(kind),
        "wrong": int(is_wrong.sum()),
        "flagged": int(flagged.sum()),
        "right": int((flagged & is_wrong).sum()),
        "details": done.sql(
            "SELECT details FROM runs WHERE instance = 'preference_issues'"
        ).fetchall()[0][0],
        "cpu_s": {stage: round(seconds, 1) for stage, seconds in clock.cpu_s.items()},
        "bins": calibration(found["p_wrong"], is_wrong),
        "scores": {},
        "flags": {},
    }
    for name, values in scores.items():
        score = np.ma.filled(values.astype(float), np.nan)
        score = np.where(np.isnan(score), np.nanmedian(score), score)
        cell["scores"][name] = measured(score, is_wrong) | {
            k: round(float(auc(score[kind == k], is_wrong[kind == k])), 4) for k in KINDS
        }
    for k in KINDS:
        own = flagged & (kind == k)
        reasons, counts = np.unique(found["reason"][own].astype(str), return_counts=True)
        cell["flags"][k] = {
            "wrong": int((is_wrong & (kind == k)).sum()),
            "flagged": int(own.sum()),
            "right": int((own & is_wrong).sum()),
            **dict(zip(reasons.tolist(), counts.tolist(), strict=True)),
        }
    return cell


def measured(score: np.ndarray, is_wrong: np.ndarray) -> dict[str, float]:
    """Area, average precision, and F1 of as many of the highest scores as there are wrong pairs."""
    hits = is_wrong[np.argsort(-score, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    found = {
        "area": float(auc(score, is_wrong)),
        "average precision": float(precision[hits].mean()),
        "F1 at the planted number": float(hits[: hits.sum()].mean()),
    }
    return {name: round(number, 4) for name, number in found.items()}


def calibration(p_wrong: np.ndarray, is_wrong: np.ndarray) -> list[list[float]]:
    """Pairs, mean `p_wrong` and share of wrong ones, in bins of `p_wrong`."""
    edges = [0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0001]
    found = []
    for low, high in itertools.pairwise(edges):
        inside = (p_wrong >= low) & (p_wrong < high)
        if inside.any():
            means = p_wrong[inside].mean(), is_wrong[inside].mean()
            found.append([int(inside.sum()), *(round(float(m), 3) for m in means)])
    return found


def parts_alone(done: Any, ids: np.ndarray) -> dict[str, np.ndarray]:
    """What the fit says with the losses alone, and with the hidden states alone."""
    names = ", ".join(NUMBERS)
    table = pa.table(
        done.sql(f"SELECT id, side, {names}, vector FROM tables.answer_side ORDER BY id, side")
    )
    assert table["id"].to_numpy()[::2].tolist() == ids.tolist()
    numbers = np.column_stack([np.asarray(table[name], dtype=float) for name in NUMBERS])
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    states = vectors[:, vectors.shape[1] // 2 :].reshape(len(ids), 2, -1)
    pairs = differences(numbers[::2], numbers[1::2], states)
    part = PreferenceIssues()._parts(ids)
    assert part.max() < PARTS
    alone = {
        "losses of both answers, fitted": Differences(pairs.signals, 0 * pairs.states),
        "hidden states, fitted": Differences(0 * pairs.signals, pairs.states),
    }
    return {name: fit_order(own, part).judge(own, part).p_wrong for name, own in alone.items()}


def pool(data: Path, n: int, wrong: float, seed: int, characters: int) -> list[dict[str, Any]]:
    """Pairs in a drawn order, with their kind and whether they were turned around."""
    draw = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for task in TASKS:
        table = pq.read_table(data / task / "train.parquet").to_pylist()
        short = [
            (row["prompt"], row["completion"])
            for row in table
            if len(row["prompt"]) + len(row["completion"]) <= characters
            and len(row["completion"].split()) >= 4
        ]
        chosen = [short[at] for at in draw.permutation(len(short))[: n // len(TASKS)]]
        for at, (prompt, answer) in enumerate(chosen):
            kind = KINDS[max(0, at % 4 - 1)]
            others = [other for _, other in chosen if other != answer]
            rejected = worse(answer, kind, others, task, draw)
            rows.append({"prompt": prompt, "chosen": answer, "rejected": rejected, "kind": kind})
    rows = [rows[at] for at in draw.permutation(len(rows))]
    turned = set(draw.permutation(len(rows))[: round(wrong * len(rows))].tolist())
    for at, row in enumerate(rows):
        row["is_wrong"] = at in turned
        if row["is_wrong"]:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return rows


def worse(answer: str, kind: str, others: list[str], task: str, draw: np.random.Generator) -> str:
    """An answer that is worse than `answer`; `others` are those of other rows."""
    words = answer.split(" ")
    if kind == "another answer":
        return others[int(draw.integers(len(others)))]
    if kind == "cut off":
        return " ".join(words[: max(1, int(len(words) * draw.uniform(0.2, 0.7)))])
    if task == "gsm8k":
        changed = re.sub(r"\d+", lambda found: _other_number(found[0], draw), answer)
        if changed != answer:
            return changed
    for at in draw.permutation(len(words))[: max(2, len(words) // 5)].tolist():
        donor = others[int(draw.integers(len(others)))].split(" ")
        words[at] = donor[int(draw.integers(len(donor)))]
    return " ".join(words)


def _other_number(number: str, draw: np.random.Generator) -> str:
    """Half of the numbers with another last digit."""
    if draw.random() < 0.5:
        return number
    return f"{number[:-1]}{(int(number[-1]) + int(draw.integers(1, 10))) % 10}"
