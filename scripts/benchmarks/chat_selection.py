"""What a language model learns from the rows that are chosen for a target, and from others.

Sets of ALL (folders with train, validation and test.parquet) as in `answers`: a pool of chats of
six kinds, a tenth of them bad. Three kinds are targets in turn: word problems, questions about
texts, kinds of questions. Rows of a target's validation file choose, rows of its test file judge:
SmolLM2-135M is fine-tuned (LoRA) for as many steps on every set of rows, and the judges' mean loss
is taken, and the share of their answers that it would write word for word.

    assay         `assay select`: relevance by turns, without flagged answers and near duplicates
    RDS+          relevance by turns alone
    MiniLM        the same with embeddings of all-MiniLM-L6-v2
    BM25          words in common, by turns
    less          LESS: steps of Adam after a warm-up on a share of the pool, by turns
    likely right  the least p_wrong of `answer_issues`; no target
    IFD           the largest difficulty below 1; no target
    loss          the smallest loss; no target
    part K of N   one of N equal parts of the order of RDS+, the nearest first
    random        rows of as many tokens as `assay` chooses, several draws
    all           all rows
    nothing       no training
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from benchmarks.answers import pool, read
from benchmarks.environment import MODEL, language_model
from benchmarks.finished import Clock, run_config
from benchmarks.memory import MemoryInputs
from benchmarks.warm_up import warmed

from stages.model.batches import batches
from stages.model.completion_tuning import completion_learner, load_untuned, tune
from stages.model.fine_tuning import FineTuning
from stages.model.networks import IGNORED
from stages.model.precision import Precision
from stages.model.spec import Lora, ModelSpec, Trained
from stages.model.training import Learner, reset
from stages.ranking.turns import Choices

TARGETS = ("gsm8k", "squad_xquad_en", "trec")
QUERIES, JUDGES = 40, 60
LONGEST, BUDGET = 384, 2048
BAD = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="ALL")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--keep", type=float, default=0.05, help="share that is chosen")
    parser.add_argument("--steps", type=int, default=50, help="of 8 rows")
    parser.add_argument("--rate", type=float, default=5e-4, help="largest learning rate")
    parser.add_argument("--less", type=int, default=0, metavar="EPOCHS", help="of its warm-up")
    parser.add_argument("--warm-up", type=float, default=0.05, help="share that it trains on")
    parser.add_argument("--parts", type=int, default=0, metavar="N", help="of the order of RDS+")
    parser.add_argument("--draws", type=int, default=3, help="random sets")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of the model behind the scores; trainings in mixed precision",
    )
    parser.add_argument("--on-ray", action="store_true", help="stages on all cores, not timed")
    parser.add_argument("--by", nargs="+", metavar="RULE", help="trained, by their first letters")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every draw of the pool."""
    work = Path(arguments.work).resolve() / "chat_selection"
    cells = []
    for seed in arguments.seeds:
        own = "" if arguments.dtype == "float32" else f"-{arguments.dtype}"
        folder = work / f"{arguments.rows}-{seed}{own}"
        cells += judged(arguments, folder, seed)
    asked = {
        name: getattr(arguments, name)
        for name in ("rows", "keep", "steps", "rate", "draws", "dtype")
    }
    return {**asked, "cells": cells}


def judged(arguments: argparse.Namespace, folder: Path, seed: int) -> list[dict[str, Any]]:
    """For one pool the losses of each target's judges after each training."""
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(arguments.data).resolve()
    rows = [(r["prompt"], r["answer"]) for r in pool(data, arguments.rows, BAD, seed)]
    drawn = np.random.default_rng([seed, 1])
    asked: dict[str, list[tuple[str, str]]] = {}
    judges: dict[str, list[tuple[str, str]]] = {}
    for target in arguments.targets:
        for name, file, count in (
            (asked, "validation.parquet", QUERIES),
            (judges, "test.parquet", JUDGES),
        ):
            every = read(data / target / file, target)
            name[target] = [every[at] for at in drawn.permutation(len(every))[:count].tolist()]
    bench = Bench(rows, judges)
    less = bench.less(arguments, folder, len(rows)) if arguments.less else {}
    sets, cpu_s = chosen(arguments, folder, rows, asked, less)
    tokens = np.mean([bench.tokens_of(sets[f"assay, {target}"]) for target in arguments.targets])
    for draw in range(arguments.draws):
        order = drawn.permutation(len(rows))
        sizes = np.cumsum(bench.learner.lengths[order])
        sets[f"random {draw}"] = order[: int(np.searchsorted(sizes, tokens)) + 1]
    sets |= {"all": np.arange(len(rows)), "nothing": np.zeros(0, np.int64)}
    cells = []
    for chose, taken in sets.items():
        label, _, target = chose.partition(", ")
        if arguments.by and not label.startswith(tuple(arguments.by)):
            continue
        targets = [target] if target else arguments.targets
        found = bench.train(taken, targets, arguments, f"{seed}/{chose}")
        for at in targets:
            cell = {"seed": seed, "target": at, "by": label, "n": len(taken)}
            cells.append({**cell, "tokens": bench.tokens_of(taken), **found[at]})
            print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
    return [*cells, {"seed": seed, "cpu_s": cpu_s}]


def chosen(
    arguments: argparse.Namespace,
    folder: Path,
    rows: list[tuple[str, str]],
    asked: dict[str, list[tuple[str, str]]],
    less: dict[str, Any],
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Numbers of the rows that each method chooses, and CPU-seconds of the stages.

    `less` are the stages after its warm-up; empty where it is left out.
    """
    write(folder / "pool.jsonl", rows)
    count = round(arguments.keep * len(rows))
    cpu_s: dict[str, float] = {}

    def finished(name: str, stages: dict[str, Any], **more: Any) -> Any:
        clock = Clock()
        model = {
            "path": str(language_model()),
            "head": "completion",
            "max_length": LONGEST,
            "dtype": arguments.dtype,
        }
        done = run_config(
            {
                "run": str(folder / name),
                "store": str(folder / "store"),
                "model": model,
                "corpus": {"path": str(folder / "pool.jsonl"), "task": "completion", "id": "id"},
                "stages": stages,
                "ray": {"engine": "ray" if arguments.on_ray else "in_process"},
                **more,
            },
            clock,
        )
        if not arguments.on_ray:
            cpu_s.update({f"{stage}, {name}": round(s, 1) for stage, s in clock.cpu_s.items()})
        return done

    def first(done: Any, statement: str) -> np.ndarray:
        found = done.sql(f"SELECT e.source_id::BIGINT FROM examples AS e {statement}").fetchall()
        return np.array([row for (row,) in found])

    # What queries have no say in, once for all targets.
    planted = {"planted_answers": {"rows": 96}}
    whole = finished("all", {"answer_issues": {}, **planted, "near_duplicates": {}})
    issues = "JOIN answer_issues AS i USING (example_id)"
    losses = "JOIN answer_losses AS l ON l.id = e.example_id AND l.role = 'example'"
    difficulty = "WHERE difficulty < 1 ORDER BY difficulty DESC"
    sets = {
        "likely right": first(whole, f"{issues} ORDER BY p_wrong")[:count],
        "IFD": first(whole, f"{losses} {difficulty}")[:count],
        "loss": first(whole, f"{losses} ORDER BY l.loss")[:count],
    }
    # As `assay select` has it.
    flagged = first(whole, f"{issues} WHERE is_answer_issue")
    near = first(
        whole,
        "JOIN near_duplicates AS n USING (example_id) JOIN answer_issues AS i USING (example_id) "
        "WHERE NOT is_answer_issue QUALIFY row_number() OVER (PARTITION BY cluster "
        "ORDER BY example_id) > 1",
    )
    left_out = np.concatenate([flagged, near])
    for target, queries in asked.items():
        write(folder / f"{target}.jsonl", queries)
        done = finished(
            target,
            {
                "query_relevance": {},
                "minilm": {"stage": "embedding", "model": {"path": MODEL, "max_length": 256}},
                "of_minilm": {"stage": "query_relevance", "features": "minilm"},
                "bm25": {"top_k": None},
                **less,
            },
            queries={"path": str(folder / f"{target}.jsonl"), "id": "id"},
        )
        ranked = "JOIN query_relevance AS q USING (example_id) WHERE q.method = "
        by_turns = {"RDS+": "query_relevance", "MiniLM": "of_minilm"}
        for name, method in {**by_turns, **({"less": "of_less"} if less else {})}.items():
            order = first(done, f"{ranked} '{method}' ORDER BY q.rank")
            sets[f"{name}, {target}"] = order[:count]
            if name == "RDS+":
                sets[f"assay, {target}"] = order[~np.isin(order, left_out)][:count]
                parts = np.array_split(order, arguments.parts) if arguments.parts else []
                for at, part in enumerate(parts, 1):
                    sets[f"part {at} of {len(parts)}, {target}"] = part
        pairs = done.sql(
            "SELECT e.source_id::BIGINT AS row, query_id, score FROM attributions JOIN examples "
            "AS e USING (example_id) WHERE method = 'bm25'"
        ).fetchnumpy()
        of = np.unique(pairs["query_id"], return_inverse=True)[1]
        scores = np.zeros((len(rows), of.max() + 1), np.float32)
        scores[pairs["row"], of] = pairs["score"]
        choices = Choices(scores.shape[1], arguments.keep, len(rows))
        choices.add(np.arange(len(rows)), scores)
        sets[f"BM25, {target}"] = choices.turns(count)[0]
    return sets, cpu_s


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    """Rows as conversations of two messages, by number."""
    lines = [json.dumps({"id": at, "messages": chat(*row)}) for at, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")


def chat(prompt: str, answer: str) -> list[dict[str, str]]:
    """A conversation of two messages."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


class Messages(MemoryInputs):
    """What the model is told of the corpus: that its rows are conversations."""

    def details(self, name: str) -> dict[str, str]:
        """The form of the texts."""
        return {"format": "messages"}


class Bench:
    """The model, the rows of the pool, and behind them the judges of all targets."""

    def __init__(
        self, rows: list[tuple[str, str]], judges: dict[str, list[tuple[str, str]]]
    ) -> None:
        spec = ModelSpec(str(language_model()), head="completion", max_length=LONGEST)
        measurement = load_untuned(Messages(), spec, Trained(lora=Lora()))
        every = [*rows, *(row for of in judges.values() for row in of)]
        texts = [json.dumps(chat(*row)) for row in every]
        table = pa.table({"text": texts, "text_b": pa.nulls(len(texts), pa.string())})
        tokens = self._tokens = measurement.tokenise(table)
        self._has_answer = np.array(measurement.has_target(tokens))
        self.learner: Learner = completion_learner(measurement, tokens)
        ends = len(rows) + np.cumsum([0, *(len(of) for of in judges.values())])
        self._judges = {
            target: np.arange(ends[at], ends[at + 1])[self._has_answer[ends[at] : ends[at + 1]]]
            for at, target in enumerate(judges)
        }

    def less(self, arguments: argparse.Namespace, folder: Path, n_rows: int) -> dict[str, Any]:
        """The stages of LESS, after its warm-up on random rows of the pool."""
        drawn = np.random.default_rng(0).permutation(n_rows)
        drawn = drawn[self._has_answer[drawn]][: round(arguments.warm_up * n_rows)]
        place = folder / f"warm_up_{arguments.less}_{arguments.warm_up:g}"
        stages = warmed(language_model(), self._tokens, drawn, place, arguments.less, LONGEST)
        return {
            **{name: fields for name, fields in stages.items() if name != "query_relevance"},
            "of_less": {"stage": "query_relevance", "features": "less"},
        }

    def tokens_of(self, rows: np.ndarray) -> int:
        """The tokens of some rows together."""
        return int(self.learner.lengths[rows].sum())

    def train(
        self, rows: np.ndarray, targets: Sequence[str], asked: argparse.Namespace, name: str
    ) -> dict[str, dict[str, Any]]:
        """Of each target the judges' losses, their mean, and the share that is said exactly."""
        rows = rows[self._has_answer[rows]]
        how = FineTuning(batch_size=8, learning_rate=asked.rate, weight_decay=0.0)
        if len(rows):
            precision: Precision = asked.dtype
            tune(self.learner, rows, asked.steps, how, BUDGET, name, precision)
        else:
            reset(self.learner)
        found = {}
        for target in targets:
            losses, is_exact = self._read(self._judges[target])
            found[target] = {
                "loss": round(float(losses.mean()), 4),
                "exact": round(float(is_exact.mean()), 4),
                "losses": [round(float(loss), 4) for loss in losses],
            }
        return found

    def _read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The loss of each answer, and whether the model by itself writes it, token for token.

        The likeliest token at every place of the answer is the answer's: greedy writing would then
        have come the same way.
        """
        network: Any = self.learner.network
        losses, is_exact = np.zeros(len(rows)), np.zeros(len(rows), bool)
        for part in batches(self.learner.lengths[rows], BUDGET):
            batch = self.learner.batch(rows[part])
            targets = batch.pop("targets")
            with torch.no_grad():
                hidden = network.trunk(**batch, use_cache=False).last_hidden_state
                for place, row in enumerate(part.tolist()):
                    at = torch.nonzero(targets[place] != IGNORED)[:, 0]
                    logits, words = network.head(hidden[place, at]), targets[place, at]
                    losses[row] = float(torch.nn.functional.cross_entropy(logits, words))
                    is_exact[row] = bool((logits.argmax(1) == words).all())
        return losses, is_exact
