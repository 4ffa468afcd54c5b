"""Planted wrong labels found in SST-2, against a peer."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from benchmarks.environment import MODEL, environment
from benchmarks.finished import accuracy, run_config

PEERS = ("cleanlab==2.9.0", "scikit-learn")
VIEWS = {"embedding": "embeddings", "hidden_states": "hidden_states"}

AREA = """
SELECT (sum(rank) FILTER (bad) - count(*) FILTER (bad) * (count(*) FILTER (bad) + 1) / 2.0)
       / (count(*) FILTER (bad) * count(*) FILTER (NOT bad))
FROM (SELECT e.true_label <> e.label AS bad,
             rank() OVER (ORDER BY s.score DESC)
             + (count(*) OVER (PARTITION BY s.score) - 1) / 2.0 AS rank
      FROM ({scores}) AS s JOIN examples AS e USING (example_id))
"""

PEER = """
import json, sys
import numpy as np
from cleanlab.rank import get_label_quality_scores
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold

data = np.load(sys.argv[1])
given, wrong = data["given"], data["wrong"]
found = {}
for name in ("embedding", "hidden_states"):
    best = None
    for strength in 10.0 ** np.arange(-4, 2.01, 0.5):
        p = np.zeros((len(given), given.max() + 1))
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        for train, test in folds.split(data[name], given):
            model = LogisticRegression(C=strength, max_iter=1000)
            p[test] = model.fit(data[name][train], given[train]).predict_proba(data[name][test])
        loss = log_loss(given, p)
        if best is None or loss < best[0]:
            best = (loss, strength, p)
    score = get_label_quality_scores(given, best[2], method="normalized_margin")
    found[name] = {"auc": roc_auc_score(wrong, -score), "C": best[1]}
print(json.dumps(found))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with train and validation.parquet")
    parser.add_argument("--seeds", type=int, default=5, help="draws of 2,000 rows")
    parser.add_argument("--rounds", type=int, default=20, help="of 10 permutations each")


def area(run: Any, scores: str) -> float:
    """Area under the ROC curve of planted wrong labels; `scores` gives example_id, score."""
    return float(run.sql(AREA.format(scores=scores)).fetchall()[0][0])


def judged(run: Any, issues: str, regression: str) -> dict[str, float]:
    """How well one label_issues instance flags, and how well its kernel predicts the queries."""
    score = f"SELECT example_id, label_score AS score FROM label_issues WHERE method = '{issues}'"
    flagged, right, planted = run.sql(
        "SELECT count(*) FILTER (i.is_label_issue), "
        "count(*) FILTER (i.is_label_issue AND e.label <> e.true_label), "
        "count(*) FILTER (e.label <> e.true_label) "
        f"FROM label_issues AS i JOIN examples AS e USING (example_id) WHERE method = '{issues}'"
    ).fetchall()[0]
    agree = run.sql(
        "SELECT avg((i.margin > 0)::INT) FILTER (e.label = e.true_label), "
        "avg((i.margin > 0)::INT) FILTER (e.label <> e.true_label) "
        f"FROM label_issues AS i JOIN examples AS e USING (example_id) WHERE method = '{issues}'"
    ).fetchall()[0]
    return {
        "auc": area(run, score),
        "accuracy": accuracy(run, regression),
        "flagged": flagged,
        "precision": right / max(flagged, 1),
        "recall": right / max(planted, 1),
        "agree_right": agree[0],
        "agree_wrong": agree[1],
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Planted flips found in SST-2: seeds, kernels, the probe's leak, Shapley values, the peer."""
    source, work = Path(arguments.data).resolve(), Path(arguments.work).resolve()
    peer_python = environment("peers", PEERS)
    per_seed = []
    for seed in range(arguments.seeds):
        start = time.time()
        result = one_seed(source, work / str(seed), seed, arguments.rounds, peer_python)
        result["seconds"] = time.time() - start
        per_seed.append(result)
        print(json.dumps({"seed": seed, **result}), file=sys.stderr)
    names = [name for name in per_seed[0] if name != "seconds"]
    return {
        "rows": 2000,
        "flipped": 0.1,
        "seeds": arguments.seeds,
        "permutations": arguments.rounds * 10,
        "mean": {n: spread([r[n] for r in per_seed], statistics.fmean) for n in names},
        "sd": {n: spread([r[n] for r in per_seed], sd) for n in names},
    }


def one_seed(
    source: Path, work: Path, seed: int, rounds: int, peer_python: Path
) -> dict[str, dict[str, float]]:
    """Every figure of one draw of 2,000 rows with a tenth of the labels flipped."""
    work.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(source / "train.parquet")
    order = np.random.default_rng(seed).permutation(table.num_rows)
    pq.write_table(table.take(order[:2000]), work / "train.parquet")
    pq.write_table(table.take(order[2000:4000]), work / "other.parquet")

    def raw(name: str, train: str, stages: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "run": str(work / name),
            "store": str(work / "store"),
            "model": {"path": MODEL},
            "corpus": {
                "path": str(work / train),
                "id": "id",
                "classes": ["negative", "positive"],
                "flip_labels": {"fraction": 0.1, "seed": seed},
            },
            "queries": {"path": str(source / "validation.parquet"), "id": "id"},
            "shard_size": 250,
            "stages": stages,
            **more,
        }

    def issues(**kernels: list[str]) -> dict[str, Any]:
        stages: dict[str, Any] = {}
        for name, kernel in kernels.items():
            stages[f"{name}_fit"] = {"stage": "kernel_regression", "kernel": kernel}
            stages[name] = {"stage": "label_issues", "predictions": f"{name}_fit"}
        return stages

    everything = issues(
        ntk_kernel=["ntk"],
        embedding_kernel=["embedding"],
        all_layers_kernel=["hidden_states"],
        ntk_and_all_layers=["ntk", "hidden_states"],
    )
    stages = {
        "embedding": {},
        "hidden_states": {},
        "ntk": {},
        "prediction": {},
        **everything,
        "freeshap": {
            "rounds": rounds,
            "utilities": ["accuracy", "cross_entropy", "margin"],
        },
        "leave_one_out": {"utilities": ["accuracy", "cross_entropy", "margin"]},
    }
    main = run_config(raw("main", "train.parquet", stages))
    result: dict[str, dict[str, float]] = {
        name: judged(main, name, f"{name}_fit") for name in everything if not name.endswith("_fit")
    }
    result["probe"] = {"accuracy": accuracy(main, "prediction")}
    for semivalue, utility in main.sql(
        "SELECT DISTINCT semivalue, utility FROM shapley ORDER BY ALL"
    ).fetchall():
        scores = (
            f"SELECT example_id, value AS score FROM shapley WHERE semivalue = '{semivalue}' "
            f"AND utility = '{utility}'"
        )
        result[f"{semivalue}_{utility}"] = {"auc": area(main, scores)}

    # The leak: the same features at a probe that never saw these labels, and at a random head.
    other = run_config(raw("other", "other.parquet", {"embedding": {}, "probe": {}}))
    pin = other.config().artefacts["probe"]
    leak = raw("pinned", "train.parquet", issues(ntk_other_probe=["ntk"]), artefacts={})
    leak["stages"]["probe"], leak["artefacts"] = {}, {"probe": dict(pin)}
    result["ntk_other_probe"] = judged(run_config(leak), "ntk_other_probe", "ntk_other_probe_fit")
    random = raw("random", "train.parquet", issues(ntk_random_head=["ntk"]))
    random["model"] = {"path": MODEL, "head": "random", "num_labels": 2}
    result["ntk_random_head"] = judged(run_config(random), "ntk_random_head", "ntk_random_head_fit")
    for name, found in peer_scores(main, work, peer_python).items():
        result[f"cleanlab_{name}"] = found
    return result


def peer_scores(run: Any, work: Path, python: Path) -> dict[str, dict[str, float]]:
    """The peer's figures on the run's own embeddings, 5 folds, C by the folds' log-loss."""
    arrays = {}
    for name, view in VIEWS.items():
        rows = run.sql(
            "SELECT v.vector, e.label, e.label <> e.true_label AS wrong "
            f"FROM {view} AS v JOIN examples AS e ON e.example_id = v.id "
            "WHERE v.role = 'example' ORDER BY v.id"
        ).fetchall()
        arrays[name] = np.array([row[0] for row in rows], np.float32)
        given = np.array([row[1] for row in rows])
        wrong = np.array([row[2] for row in rows])
    np.savez(work / "peer.npz", given=given, wrong=wrong, **arrays)
    output = subprocess.run(
        [python, "-c", PEER, work / "peer.npz"], capture_output=True, text=True, check=True
    )
    found: dict[str, dict[str, float]] = json.loads(output.stdout)
    return found


def spread(dicts: list[dict[str, float]], statistic: Any) -> dict[str, float]:
    """One statistic of each figure over the seeds."""
    return {key: round(statistic([d[key] for d in dicts]), 4) for key in dicts[0]}


def sd(values: list[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
