"""Flags under every kind of label noise, beside confident learning on the same features.

Sets of ALL (folders with train.parquet, columns id, text, label), 2,000 rows a draw (emoji 5,000):

    clean           no label is moved
    even 10/20/40   so many per cent of the labels, to any other class
    one-way         a fifth of the most frequent class, to the class whose mean is nearest
    pairs           every class has a rate between 0 and 40 %, and a class that it goes to
    boundary        a tenth of the labels, of the rows that a model of the right labels is least
                    sure of, to the class that it thinks next best

Kernel regression on the hidden states of all layers (frozen MiniLM), leave-one-out, and the noise
model of `label_issues`; the peer is cleanlab's confident learning over logistic regressions on 512
directions of the same features, 5 folds, C by their log-loss. Beside them SimiFeat, the stage
`neighbour_vote` on the hidden states of the last layer: flags by vote and by rank, one order.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from benchmarks.environment import MODEL, environment
from benchmarks.finished import run_config
from benchmarks.short_rows import STATE, Fitted, Rows, directions, solved, unit

PEERS = ("cleanlab==2.9.0", "scikit-learn")
KINDS = ("clean", "even 10", "even 20", "even 40", "one-way", "pairs", "boundary")
SETS = ("sst2", "mr", "subj", "trec", "tweeteval_hate", "tweeteval_emotion", "tweeteval_emoji")
ROWS, ROWS_OF = 2000, {"tweeteval_emoji": 5000}
DIRECTIONS = 512
PEER = """
import sys
import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

data = np.load(sys.argv[1])
given, rows, n_classes = data["given"], data["rows"], int(data["n_classes"])
best = None
folds = StratifiedKFold(5, shuffle=True, random_state=0)
for strength in (0.1, 1.0, 10.0, 100.0):
    p = np.full((len(given), n_classes), 1e-9)
    for train, test in folds.split(rows, given):
        model = LogisticRegression(C=strength, max_iter=300).fit(rows[train], given[train])
        p[np.ix_(test, model.classes_)] += model.predict_proba(rows[test])
    p /= p.sum(1, keepdims=True)
    loss = log_loss(given, p, labels=np.arange(n_classes))
    if best is None or loss < best[0]:
        best = (loss, p)
score = get_label_quality_scores(given, best[1], method="normalized_margin")
flagged = find_label_issues(given, best[1], n_jobs=1)
np.savez(sys.argv[1] + ".found.npz", score=score, flagged=flagged)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="ALL")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seeds", type=int, default=3, help="draws of rows")
    parser.add_argument("--no-peer", action="store_true")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every set, draw and kind of noise."""
    work = Path(arguments.work).resolve() / "noise"
    work.mkdir(parents=True, exist_ok=True)
    cells = []
    for name in arguments.sets:
        for seed in range(arguments.seeds):
            truth, features = drawn(Path(arguments.data).resolve() / name, work, seed)
            n_classes = int(truth.max()) + 1
            rows = unit(features)
            basis, near = directions(Rows(rows, rows[:1])), neighbours(features)
            for kind in arguments.kinds:
                given = planted(kind, truth, rows, n_classes, seed, basis)
                cell = {"set": name, "seed": seed, "noise": kind, "rows": len(truth)}
                cell["planted"] = int((given != truth).sum())
                fit = solved(*basis, torch.from_numpy(given), n_classes)
                cell["assay"] = ours(fit, given, truth)
                cell |= votes(near, given, truth, n_classes)
                if not arguments.no_peer:
                    cell["cleanlab"] = peer(fit, given, truth, n_classes, work)
                cells.append(cell)
                print(json.dumps(cell), file=sys.stderr, flush=True)
    return {"cells": cells}


def drawn(
    source: Path, work: Path, seed: int, n_rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Right labels of a draw of rows, and the hidden states of all layers.

    As many rows as `ROWS` and `ROWS_OF` say, or `n_rows`; the rows lie in `work`.
    """
    saved = work / f"{source.name}-{seed}.npz"
    if not saved.exists():
        train = pq.read_table(source / "train.parquet", columns=["id", "text", "label"])
        order = np.random.default_rng(seed).permutation(train.num_rows)
        n_rows = n_rows or ROWS_OF.get(source.name, ROWS)
        train = train.take(np.sort(order[:n_rows]))
        folder = work / f"{source.name}-{seed}"
        folder.mkdir(exist_ok=True)
        pq.write_table(train, folder / "train.parquet")
        pq.write_table(train.slice(0, 2), folder / "queries.parquet")
        columns = {"id": "id", "text": "text", "label": "label"}
        done = run_config(
            {
                "run": str(folder / "run"),
                "model": {"path": MODEL},
                "corpus": {"path": str(folder / "train.parquet"), **columns},
                "queries": {"path": str(folder / "queries.parquet"), **columns},
                "stages": {"hidden_states": {}},
                "ray": {"engine": "in_process"},
            }
        )
        rows = done.sql(
            "SELECT e.label, v.vector FROM hidden_states AS v JOIN examples AS e ON "
            "e.example_id = v.id WHERE v.role = 'example' ORDER BY v.id"
        ).to_arrow_table()
        flat = rows["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        features = flat.astype(np.float32).reshape(rows.num_rows, -1)
        np.savez(saved, truth=rows["label"].to_numpy(), features=features)
    held = np.load(saved)
    return held["truth"], held["features"]


def planted(
    kind: str,
    truth: np.ndarray,
    rows: torch.Tensor,
    n_classes: int,
    seed: int,
    basis: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> np.ndarray:
    """The labels with some of them moved, as `kind` says; `basis` are the rows' directions."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    given, n = truth.copy(), len(truth)
    if kind.startswith("even"):
        moved = rng.permutation(n)[: round(int(kind.split()[1]) / 100 * n)]
        given[moved] = (truth[moved] + rng.integers(1, n_classes, len(moved))) % n_classes
    elif kind == "one-way":
        source = int(np.bincount(truth).argmax())
        members = rng.permutation(np.flatnonzero(truth == source))
        given[members[: len(members) // 5]] = nearest(rows, truth, n_classes)[source]
    elif kind == "pairs":
        rates = rng.uniform(0, 0.4, n_classes)
        targets = (np.arange(n_classes) + rng.integers(1, n_classes, n_classes)) % n_classes
        moved = rng.random(n) < rates[truth]
        given[moved] = targets[truth[moved]]
    elif kind == "boundary":
        fit = solved(*basis, torch.from_numpy(truth), n_classes)
        outputs = fit.left_out.clone()
        own = outputs[torch.arange(n), torch.from_numpy(truth)].clone()
        outputs[torch.arange(n), torch.from_numpy(truth)] = -torch.inf
        unsure = (own - outputs.amax(1)).abs().argsort()[: round(0.2 * n)].numpy()
        moved = rng.permutation(unsure)[: round(0.1 * n)]
        given[moved] = outputs.argmax(1).numpy()[moved]
    return given


def nearest(rows: torch.Tensor, truth: np.ndarray, n_classes: int) -> np.ndarray:
    """Of each class the other one whose mean row is nearest."""
    means = torch.stack(
        [rows[torch.from_numpy(np.flatnonzero(truth == c))].mean(0) for c in range(n_classes)]
    )
    distances = torch.cdist(means, means).fill_diagonal_(torch.inf).nan_to_num(torch.inf)
    found: np.ndarray = distances.argmin(1).numpy()
    return found


def ours(fit: Fitted, given: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """What `label_issues` makes of the leave-one-out predictions."""
    from stages.predictions.label_noise import lowest
    from stages.surrogate.noise_fit import fit_noise_model

    labels = torch.from_numpy(given)
    model = fit_noise_model(fit.left_out, labels)
    opinions, p_wrong = (f(fit.left_out, labels) for f in (model.opinions, model.wrong))
    score = opinions[torch.arange(len(given)), labels].numpy()
    last, last_id = lowest(score, np.arange(len(given)), round(float(p_wrong.sum())))
    is_low = (score < last) | ((score == last) & (np.arange(len(given)) <= last_id))
    flagged = is_low & (opinions.argmax(1).numpy() != given)
    found = judged(score, flagged, given != truth)
    found["expected"] = round(float(p_wrong.sum()), 1)
    found["agreement"] = round(float((fit.left_out.argmax(1) == labels).double().mean()), 3)
    replaced = model.rates[~torch.eye(len(model.rates), dtype=torch.bool)]
    found["is_even"] = bool(replaced.max() <= 1.01 * replaced.min())
    found["calibration"] = calibration(p_wrong.numpy(), given != truth)
    return found


def neighbours(features: np.ndarray) -> np.ndarray:
    """Of each row the nearest others by the hidden states of the last layer, nearest first."""
    from stages.predictions.neighbour_vote import NeighbourVote
    from stages.ranking.nearest import blocks_of_distances, nearest, place_points

    last = np.ascontiguousarray(features[:, -STATE:])
    points = place_points(last, np.arange(len(last)), True)
    distances = (row for block in blocks_of_distances(points, last) for row in block)
    found = []
    for place, of_row in enumerate(distances):
        of_row[place] = np.inf
        found.append(nearest(of_row, NeighbourVote().neighbours))
    return np.stack(found)


def votes(
    near: np.ndarray, given: np.ndarray, truth: np.ndarray, n_classes: int
) -> dict[str, dict[str, Any]]:
    """What `neighbour_vote` makes of the labels of the nearest others."""
    from stages.predictions.neighbour_vote import (
        last_of_each,
        likeliest_rates,
        scores,
        winners,
        wrong_of_each,
    )

    counts = (given[near][:, :, None] == np.arange(n_classes)).sum(1)
    score, ids = scores(counts, given), np.arange(len(given))
    rates = likeliest_rates(np.column_stack([given, given[near[:, :2]]]), n_classes)
    last, last_id = last_of_each(score, ids, given, wrong_of_each(*rates))
    is_low = (score < last[given]) | ((score == last[given]) & (ids <= last_id[given]))
    flagged = {"simifeat_vote": winners(counts, given) != given, "simifeat_rank": is_low}
    return {name: judged(score, flags, given != truth) for name, flags in flagged.items()}


def peer(
    fit: Fitted, given: np.ndarray, truth: np.ndarray, n_classes: int, work: Path
) -> dict[str, Any]:
    """What confident learning makes of the leading directions of the same features."""
    rows = fit.examples[:, :DIRECTIONS].float().numpy()
    held = confident_learning(rows, given, n_classes, work)
    return judged(held["score"], held["flagged"], given != truth)


def confident_learning(
    rows: np.ndarray, given: np.ndarray, n_classes: int, work: Path
) -> dict[str, np.ndarray]:
    """Cleanlab's `score` of each label (low is doubted), and which it has `flagged`."""
    place = work / "peer.npz"
    np.savez(place, given=given, rows=rows, n_classes=n_classes)
    subprocess.run([environment("peers", PEERS), "-c", PEER, place], check=True)
    held = np.load(f"{place}.found.npz")
    return {name: held[name] for name in ("score", "flagged")}


def judged(score: np.ndarray, flagged: np.ndarray, is_wrong: np.ndarray) -> dict[str, Any]:
    """Order and flags against the labels that were planted."""
    from stages.metrics.ranks import auc, average_precision

    right = int((flagged & is_wrong).sum())
    found: dict[str, Any] = {"flagged": int(flagged.sum()), "right": right}
    if is_wrong.any():
        found["auc"] = round(auc(-score, is_wrong), 4)
        found["average_precision"] = round(average_precision(-score, is_wrong), 4)
        found["f1"] = round(2 * right / max(1, int(flagged.sum()) + int(is_wrong.sum())), 4)
    return found


def calibration(p_wrong: np.ndarray, is_wrong: np.ndarray) -> float:
    """Expected calibration error of the probabilities in ten bins of equal width."""
    bins = np.minimum((10 * p_wrong).astype(int), 9)
    gaps = [
        abs(float(p_wrong[bins == b].mean() - is_wrong[bins == b].mean()))
        * float((bins == b).sum())
        for b in range(10)
        if (bins == b).any()
    ]
    return round(sum(gaps) / len(p_wrong), 4)
