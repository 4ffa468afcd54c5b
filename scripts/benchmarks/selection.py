"""What training on selected rows gives, beside random rows and other rules.

Sets of ALL (folders with train, validation and test.parquet, columns id, text, label): 2,000 rows
of the first, 400 queries of the second, judged on up to 1,000 rows of the third (or, where there is
none, on others of the second), which nothing else sees. Labels as they are, or a fifth of them
moved to any other class. A run of assay as a user would make it, then `select` by each rule, and a
fresh logistic head on frozen MiniLM embeddings trained on the rows that are kept, its strength
chosen on these rows by three folds. With `--tuned`, MiniLM itself is fine-tuned on them instead.

Rules: coreset (the default), shapley, label_score; cleanlab's label quality; class-wise Shapley
values and, up to half of the rows, k-center and facility location in the embeddings; all of these
keep the same share of each class. Random rows are drawn anew, the same share of each class, too.
"""

import argparse
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from benchmarks.class_wise import class_wise
from benchmarks.environment import MODEL
from benchmarks.finished import run_config
from benchmarks.noise import confident_learning
from finetune import encoder_folder
from torch import Tensor

SETS = ("sst2", "mr", "subj", "trec", "tweeteval_hate", "tweeteval_emotion")
ROWS, QUERIES, TEST = 2000, 400, 1000
KEEP = (0.05, 0.1, 0.2, 0.5, 0.8, 0.95)
TUNED_KEEP = (0.05, 0.2, 0.5)
STRENGTHS = (0.3, 3.0, 30.0)
RULES = ("coreset", "shapley", "label_score", "cleanlab", "class_wise")
STEPS, RATE, BATCH, EPOCHS = 120, 5e-5, 16, 3
"""Of fine-tuning: so many steps at least."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="ALL")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--flips", nargs="+", type=float, default=[0.0, 0.2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="draws of rows")
    parser.add_argument("--keep", nargs="+", type=float, help="shares of the rows")
    parser.add_argument("--draws", type=int, help="random choices; by default 10, tuned 3")
    parser.add_argument("--rules", nargs="+", default=list(RULES), help="beside random rows")
    parser.add_argument("--tuned", action="store_true", help="fine-tune MiniLM")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every set, draw, noise, share and rule."""
    work = Path(arguments.work).resolve() / "selection"
    cells = []
    for name in arguments.sets:
        for seed in arguments.seeds:
            for flips in arguments.flips:
                for cell in judged(arguments, work, name, seed, flips):
                    cells.append(cell)
                    print(json.dumps(cell), file=sys.stderr, flush=True)
    return {"cells": cells}


def judged(
    arguments: argparse.Namespace, work: Path, name: str, seed: int, flips: float
) -> Iterator[dict[str, Any]]:
    """A cell for each share that is kept."""
    folder = work / f"{name}-{seed}-{flips:g}"
    folder.mkdir(parents=True, exist_ok=True)
    texts, truth = drawn(Path(arguments.data).resolve() / name, folder, seed, flips)
    done = valued(folder, work / f"{name}-{seed}-store")
    of = {role: vectors(done, role) for role in ("example", "query")}
    ids, rows, given = of["example"]
    n_classes = int(given.max()) + 1
    test_ids, test_rows, told = of["query"]
    is_test = np.isin(test_ids, list(truth))
    answers = torch.tensor([truth[i] for i in test_ids[is_test].tolist()])
    labels = torch.from_numpy(given.copy())
    generator = np.random.default_rng([seed, 1])

    def train(chosen: np.ndarray, draw: int = 0) -> float:
        at = torch.from_numpy(chosen)
        if arguments.tuned:
            outputs = tuned(texts, ids[chosen], labels[at], test_ids[is_test], n_classes, draw)
        else:
            outputs = logistic(rows[at], labels[at], n_classes, test_rows[is_test])
        return round(float((outputs.argmax(1) == answers).double().mean()), 4)

    @functools.cache
    def score_of(rule: str) -> np.ndarray:
        if rule == "cleanlab":
            return confident_learning(rows.float().numpy(), given, n_classes, folder)["score"]
        queries, known = (part[~is_test] for part in (test_rows.numpy(), told))
        return class_wise(rows.numpy(), given, queries, known.astype(int), seed)

    def chosen_by(rule: str, count: int) -> np.ndarray:
        if rule in ("cleanlab", "class_wise"):
            return per_class(score_of(rule), given, count)
        kept = done.select(keep=count, by=rule).to_arrow_table()["example_id"].to_numpy()
        return np.searchsorted(ids, np.sort(kept))

    everything = train(np.arange(len(ids)))
    shares = arguments.keep or (TUNED_KEEP if arguments.tuned else KEEP)
    forecast = {} if arguments.tuned else forecasts(done, ids, test_ids[is_test], answers)
    for share in shares:
        count = round(share * len(ids))
        random = [
            train(per_class(generator.random(len(ids)), given, count), draw)
            for draw in range(arguments.draws or (3 if arguments.tuned else 10))
        ]
        cell: dict[str, Any] = {"set": name, "seed": seed, "flips": flips, "keep": share}
        cell |= {"all": everything, "random": random}
        for rule in arguments.rules:
            cell[rule] = train(chosen_by(rule, count))
        if share <= 0.5 and not arguments.tuned:
            cell["k_center"] = train(k_center(rows, given, count, generator))
            cell["facility_location"] = train(facility_location(rows, given, count))
        yield cell | forecast.get(share, {})


def drawn(
    source: Path, folder: Path, seed: int, flips: float
) -> tuple[dict[int, str], dict[int, int]]:
    """Texts by id, and right labels of the test rows, once the files of a run are written."""
    generator = np.random.default_rng(seed)
    parts = []
    has_test = (source / "test.parquet").exists()
    held_out = (("validation", QUERIES), ("test", TEST))
    for split, most in (("train", ROWS), *(held_out if has_test else (("validation", None),))):
        table = pq.read_table(source / f"{split}.parquet", columns=["id", "text", "label"])
        order = generator.permutation(table.num_rows)
        cuts = [order[:most]] if most else [order[:QUERIES], order[QUERIES:][:TEST]]
        parts += [table.take(np.sort(cut)) for cut in cuts]
    train, queries, test = parts
    given = train["label"].to_numpy().copy()
    n_classes = int(given.max()) + 1
    moved = generator.permutation(len(given))[: round(flips * len(given))]
    given[moved] = (given[moved] + generator.integers(1, n_classes, len(moved))) % n_classes
    pq.write_table(train.set_column(2, "label", pa.array(given)), folder / "train.parquet")
    hidden = test.set_column(2, "label", pa.nulls(test.num_rows, pa.int64()))
    pq.write_table(pa.concat_tables([queries, hidden]), folder / "queries.parquet")
    truth = dict(zip(test["id"].to_pylist(), test["label"].to_pylist(), strict=True))
    texts = {
        i: text
        for p in parts
        for i, text in zip(p["id"].to_pylist(), p["text"].to_pylist(), strict=True)
    }
    return texts, truth


def valued(folder: Path, store: Path) -> Any:
    """The run."""
    columns = {"id": "id", "text": "text", "label": "label"}
    return run_config(
        {
            "run": str(folder / "run"),
            "store": str(store),
            "model": {"path": MODEL},
            "corpus": {"path": str(folder / "train.parquet"), **columns},
            "queries": {"path": str(folder / "queries.parquet"), **columns},
            "stages": {"embedding": {}, "coreset": {}, "label_issues": {}, "freeshap": {}},
            "ray": {"engine": "in_process"},
        }
    )


def vectors(done: Any, role: str, view: str = "embeddings") -> tuple[np.ndarray, Tensor, Any]:
    """Ids, ascending, vectors of unit length, and labels (of queries those that are told)."""
    table = done.sql(
        f"SELECT v.id, v.vector, l.label FROM {view} AS v JOIN tables.label AS l ON l.id = v.id "
        f"AND l.role = v.role WHERE v.role = '{role}' ORDER BY v.id"
    ).to_arrow_table()
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    rows = torch.from_numpy(flat.astype(np.float64).reshape(table.num_rows, -1))
    labels = table["label"].to_numpy(zero_copy_only=False)
    return table["id"].to_numpy(), torch.nn.functional.normalize(rows, dim=1), labels


def forecasts(
    done: Any, ids: np.ndarray, test_ids: np.ndarray, answers: Tensor
) -> dict[float, dict[str, Any]]:
    """For each share: the accuracy that is forecast, its interval, and that on the test rows."""
    from pipeline.api import evaluate

    shares = [share for share in KEEP if share < 1]
    told = evaluate(done, "selection", {"methods": ["coreset"], "keep": shares})
    _, features, given = vectors(done, "example", "ntk")
    query_ids, to, _ = vectors(done, "query", "ntk")
    to = to[torch.from_numpy(np.searchsorted(query_ids, test_ids))]
    damping = told["facts"]["ridge"] * float(features.square().sum(1).mean())
    n_classes = int(given.max()) + 1
    found = {}
    for row in told["rows"]:
        if row["by"] != "coreset":
            continue
        count = round(row["keep"] * len(ids))
        kept = done.select(keep=count, by="coreset").to_arrow_table()["example_id"].to_numpy()
        at = torch.from_numpy(np.searchsorted(ids, kept))
        x = features[at]
        targets = torch.nn.functional.one_hot(torch.from_numpy(given)[at], n_classes).double()
        kernel = x @ x.T + damping * torch.eye(len(x), dtype=x.dtype)
        outputs = to @ (x.T @ torch.linalg.solve(kernel, targets - 1 / n_classes))
        found[row["keep"]] = {
            "forecast": [round(row[f"accuracy{end}"], 4) for end in ("", "_low", "_high")],
            "surrogate": round(float((outputs.argmax(1) == answers).double().mean()), 4),
        }
    return found


def quota(given: np.ndarray, count: int) -> np.ndarray:
    """How many rows of each class make the same share of each."""
    exact = np.bincount(given) * count / len(given)
    found = np.floor(exact).astype(int)
    found[np.argsort(found - exact, kind="stable")[: count - found.sum()]] += 1
    return found


def per_class(score: np.ndarray, given: np.ndarray, count: int) -> np.ndarray:
    """The rows with the highest scores of each class."""
    order = np.argsort(-score, kind="stable")
    return np.concatenate(
        [order[given[order] == c][:most] for c, most in enumerate(quota(given, count))]
    )


def k_center(
    rows: Tensor, given: np.ndarray, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Of each class, each time the row furthest from those that are taken."""
    found = []
    for c, most in enumerate(quota(given, count)):
        members = np.flatnonzero(given == c)
        own = rows[torch.from_numpy(members)]
        taken = [int(generator.integers(len(members)))] if most else []
        distance = torch.full((len(members),), torch.inf, dtype=rows.dtype)
        while len(taken) < most:
            distance = torch.minimum(distance, 1 - own @ own[taken[-1]])
            taken.append(int(distance.argmax()))
        found.append(members[taken])
    return np.concatenate(found)


def facility_location(rows: Tensor, given: np.ndarray, count: int) -> np.ndarray:
    """Of each class, each time the row that adds most to the likeness of all to their nearest."""
    found = []
    for c, most in enumerate(quota(given, count)):
        members = np.flatnonzero(given == c)
        own = rows[torch.from_numpy(members)]
        likeness = (own @ own.T).clamp_min(0)
        reached = torch.zeros(len(members), dtype=rows.dtype)
        taken: list[int] = []
        for _ in range(most):
            gain = (likeness - reached).clamp_min(0).sum(1)
            gain[taken] = -1
            taken.append(int(gain.argmax()))
            reached = torch.maximum(reached, likeness[taken[-1]])
        found.append(members[taken])
    return np.concatenate(found)


def logistic(x: Tensor, y: Tensor, n_classes: int, to: Tensor) -> Tensor:
    """Outputs of a logistic regression, its strength chosen by three folds."""
    fold = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)) % 3
    losses = {}
    for strength in STRENGTHS:
        loss = 0.0
        for part in range(3):
            weights = _fitted(x[fold != part], y[fold != part], n_classes, strength)
            outputs = _outputs(x[fold == part], weights)
            loss += float(
                torch.nn.functional.cross_entropy(outputs, y[fold == part], reduction="sum")
            )
        losses[strength] = loss
    return _outputs(to, _fitted(x, y, n_classes, min(losses, key=losses.__getitem__)))


def _outputs(x: Tensor, weights: Tensor) -> Tensor:
    return x @ weights[:-1] + weights[-1]


def _fitted(x: Tensor, y: Tensor, n_classes: int, strength: float) -> Tensor:
    weights = torch.zeros(x.shape[1] + 1, n_classes, dtype=x.dtype, requires_grad=True)
    search = torch.optim.LBFGS(
        [weights], max_iter=60, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = torch.nn.functional.cross_entropy(_outputs(x, weights), y, reduction="sum")
        loss = loss + weights[:-1].square().sum() / (2 * strength)
        loss.backward()
        return loss

    search.step(closure)
    return weights.detach()


def tuned(
    texts: dict[int, str],
    ids: np.ndarray,
    labels: Tensor,
    test_ids: np.ndarray,
    n_classes: int,
    seed: int,
) -> Tensor:
    """Outputs of MiniLM fine-tuned on the rows: AdamW, linear decay, at least `STEPS` steps."""
    import transformers

    torch.manual_seed(seed)
    folder = encoder_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, num_labels=n_classes
    )
    steps = max(STEPS, EPOCHS * len(ids) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = transformers.get_linear_schedule_with_warmup(optimiser, steps // 10, steps)
    order: list[int] = []
    model.train()
    for _ in range(steps):
        if len(order) < BATCH:
            order += torch.randperm(len(ids)).tolist()
        batch, order = order[:BATCH], order[BATCH:]
        given = _tokens(tokenizer, [texts[i] for i in ids[batch].tolist()])
        loss = torch.nn.functional.cross_entropy(model(**given).logits, labels[batch])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        parts = [test_ids[first : first + 100] for first in range(0, len(test_ids), 100)]
        return torch.cat(
            [model(**_tokens(tokenizer, [texts[i] for i in p.tolist()])).logits for p in parts]
        )


def _tokens(tokenizer: Any, texts: list[str]) -> Any:
    return tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
