"""Which bad answers are found in a mixed pool of chats, by which score.

Sets of ALL (folders with train.parquet and validation.parquet): word problems, role play, tool
calls, questions about texts, and two sets of labelled texts as instructions, as many rows of each.
A share of the rows is made bad, in equal parts:

    swapped in task    the answer of another row of the set
    swapped across     that of a row of another set
    cut off            a fifth to seven tenths of its words
    garbled            a quarter of its letters replaced
    no answer          such as `N/A`
    off topic          an answer of a row that is not in the pool, of any set
    near duplicate     the prompt nearly that of another row, with this one's answer
    flipped            of the two labelled sets, another class's words

Every score is one of `answer_losses` or of `answer_issues`, or `spectral_entropy`; its area is that
under the ROC curve of the bad rows, without the flipped ones, which are told apart.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from benchmarks.environment import language_model
from benchmarks.finished import Clock, run_config

from stages.metrics.ranks import auc

TASKS = (
    "gsm8k",
    "gpteacher_roleplay",
    "gpteacher_toolformer",
    "squad_xquad_en",
    "sst2",
    "trec",
)
LABELLED = {
    "sst2": (
        "Is this movie review positive or negative?",
        ("negative", "positive"),
    ),
    "trec": (
        "What does this question ask for: a description, an entity, an abbreviation, a person, a "
        "place or a number?",
        ("a description", "an entity", "an abbreviation", "a person", "a place", "a number"),
    ),
}
KINDS = (
    "swapped in task",
    "swapped across",
    "cut off",
    "garbled",
    "no answer",
    "off topic",
    "near duplicate",
    "flipped",
)
NOTHING = ("N/A", "-", "...", "I don't know.")
SCORES = {
    "answer_issues": "p_wrong",
    "another class": "coalesce(p_other_class, 0)",
    "difficulty (IFD)": "difficulty",
    "minus the gain": "-gain",
    "loss": "l.loss",
    "end loss": "end_loss",
    "worst tokens": "worst_loss",
    "length": "-l.n_tokens",
    "gradient's entropy": "spectral_entropy",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="ALL")
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--bad", type=float, default=0.3, help="share of bad rows")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--planted", type=int, default=96, help="rows of planted_answers")
    parser.add_argument("--dtype", default="float32", help="of the model's weights")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every draw."""
    work = Path(arguments.work).resolve() / "answers"
    cells = []
    for seed in arguments.seeds:
        own = "" if arguments.dtype == "float32" else f"-{arguments.dtype}"
        folder = work / f"{arguments.rows}-{arguments.bad:g}-{seed}{own}"
        cells.append(judged(arguments, folder, seed))
        print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
    asked = {name: getattr(arguments, name) for name in ("rows", "bad", "dtype")}
    return {**asked, "cells": cells}


def judged(arguments: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """The areas of one draw, by score and kind, and the flags."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = pool(Path(arguments.data).resolve(), arguments.rows, arguments.bad, seed)
    lines = [
        json.dumps(
            {
                "id": at,
                "messages": [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["answer"]},
                ],
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
            "corpus": {"path": str(folder / "pool.jsonl"), "task": "completion", "id": "id"},
            "stages": {
                "planted_answers": {"rows": arguments.planted},
                "answer_issues": {},
                "spectral_entropy": {},
            },
            "ray": {"engine": "in_process"},
        },
        clock,
    )
    columns = ", ".join(f"{column} AS s{at}" for at, column in enumerate(SCORES.values()))
    found = done.sql(
        f"SELECT e.source_id::INT AS row, is_answer_issue, reason, {columns} FROM answer_issues "
        "JOIN examples AS e USING (example_id) JOIN answer_losses AS l ON l.id = example_id AND "
        "l.role = 'example' JOIN spectral_entropies USING (example_id) ORDER BY row"
    ).fetchnumpy()
    kind = np.array([rows[at]["kind"] for at in found["row"]])
    is_bad, flagged = kind != "", found["is_answer_issue"].astype(bool)
    counted = ~is_bad | (kind != "flipped")
    cell: dict[str, Any] = {
        "seed": seed,
        "judged": len(kind),
        "bad": int(is_bad.sum()),
        "flagged": int(flagged.sum()),
        "right": int((flagged & is_bad).sum()),
        "shares": done.sql("SELECT details FROM runs WHERE instance = 'answer_issues'").fetchall()[
            0
        ][0],
        "cpu_s": {stage: round(seconds, 1) for stage, seconds in clock.cpu_s.items()},
        "areas": {},
        "flags": {},
    }
    for at, name in enumerate(SCORES):
        score = np.ma.filled(found[f"s{at}"].astype(float), np.nan)
        score = np.where(np.isnan(score), np.nanmedian(score), score)
        order = np.argsort(-score[counted], kind="stable")
        hits = is_bad[counted][order]
        areas = {"all": auc(score[counted], is_bad[counted])}
        areas |= {
            k: auc(score[~is_bad | (kind == k)], is_bad[~is_bad | (kind == k)]) for k in KINDS
        }
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        areas["average precision"] = float(precision[hits].mean())
        areas["precision at planted"] = float(hits[: hits.sum()].mean())
        cell["areas"][name] = {k: round(float(v), 4) for k, v in areas.items()}
    for k in KINDS:
        of_kind = kind == k
        reasons, counts = np.unique(
            found["reason"][of_kind & flagged].astype(str), return_counts=True
        )
        told = dict(zip(reasons.tolist(), counts.tolist(), strict=True))
        cell["flags"][k] = {"n": int(of_kind.sum()), **told}
    return cell


def pool(data: Path, n_rows: int, bad: float, seed: int) -> list[dict[str, str]]:
    """Prompts and answers, and how each row was made bad; "" where it was not."""
    draw = np.random.default_rng(seed)
    rows: list[dict[str, str]] = []
    for task in TASKS:
        every = read(data / task / "train.parquet", task)
        for at in draw.permutation(len(every))[: n_rows // len(TASKS)].tolist():
            prompt, answer = every[at]
            rows.append({"task": task, "prompt": prompt, "answer": answer, "kind": ""})
    outside = [a for t in TASKS for _, a in read(data / t / "validation.parquet", t)]
    given = [row["answer"] for row in rows]
    chosen = draw.permutation(len(rows))[: round(bad * len(rows))].tolist()
    for turn, at in enumerate(chosen):
        row, kind = rows[at], KINDS[turn % len(KINDS)]
        if row["task"] in LABELLED and kind in ("swapped in task", "cut off"):
            kind = "flipped"
        elif row["task"] not in LABELLED and kind == "flipped":
            kind = "swapped in task"
        if kind == "cut off" and len(row["answer"].split()) < 4:
            kind = "garbled"
        others = [
            i
            for i, other in enumerate(rows)
            if given[i] != given[at]
            and (other["task"] == row["task"]) == (kind != "swapped across")
        ]
        other = int(draw.choice(others))
        row["kind"] = kind
        if kind == "near duplicate":
            words = rows[other]["prompt"].split(" ")
            row["prompt"] = " ".join(
                [*words[: len(words) // 2], "really", *words[len(words) // 2 :]]
            )
        elif kind == "cut off":
            words = row["answer"].split(" ")
            row["answer"] = " ".join(words[: max(1, int(len(words) * draw.uniform(0.2, 0.7)))])
        elif kind == "garbled":
            row["answer"] = "".join(
                chr(97 + int(draw.integers(26)))
                if sign.isalpha() and draw.random() < 0.25
                else sign
                for sign in row["answer"]
            )
        elif kind == "no answer":
            row["answer"] = str(draw.choice(NOTHING))
        elif kind == "off topic":
            row["answer"] = outside[int(draw.integers(len(outside)))]
        else:
            row["answer"] = given[other]
    return rows


def read(path: Path, task: str) -> list[tuple[str, str]]:
    """Prompts and answers of a set."""
    rows = pq.read_table(path).to_pylist()
    if task in LABELLED:
        question, words = LABELLED[task]
        return [(f"{question}\n\n{row['text']}", words[row["label"]]) for row in rows]
    if task == "squad_xquad_en":
        return [(f"{row['text']}\n\n{row['text_b']}", row["answer_text"]) for row in rows]
    return [(row["prompt"], row["completion"]) for row in rows]
