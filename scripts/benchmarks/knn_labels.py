"""Planted wrong labels that KNN-Shapley finds, by features and K; a part of the case `knn`.

2,000 training rows with a tenth of the labels flipped, the validation rows as queries; SST-2 is
drawn as in the case `flags`. Beside it cleanlab's `data_shapley_knn` on the same embeddings, which
needs no queries: each example is one for all others.
"""

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from benchmarks.environment import MODEL, environment
from benchmarks.finished import run_config
from benchmarks.flags import PEERS as CLEANLAB
from benchmarks.flags import area, sd

NEIGHBOURS = (1, 5, 10, 50)
FEATURES = ("embedding", "hidden_states", "ntk")
VIEWS = {"embedding": "embeddings", "hidden_states": "hidden_states"}
ROWS = 2000

PEER = """
import json, sys
import numpy as np
from cleanlab.data_valuation import data_shapley_knn
from sklearn.metrics import roc_auc_score

data, found = np.load(sys.argv[1]), {}
for name in sys.argv[2].split():
    for k in map(int, sys.argv[3].split()):
        values = data_shapley_knn(data["given"], features=data[name], k=k)
        found[f"{name}_{k}"] = roc_auc_score(data["wrong"], -values)
print(json.dumps(found))
"""


def wrong_labels(source: Path, work: Path, seeds: int) -> dict[str, Any]:
    """Mean and spread over draws of the area under the ROC curve of planted wrong labels."""
    per_seed = [one_draw(source, work / str(seed), seed) for seed in range(seeds)]
    return {
        "rows": ROWS,
        "seeds": seeds,
        "mean": {k: round(statistics.fmean(d[k] for d in per_seed), 4) for k in per_seed[0]},
        "sd": {k: round(sd([d[k] for d in per_seed]), 4) for k in per_seed[0]},
    }


def one_draw(source: Path, work: Path, seed: int) -> dict[str, float]:
    """Areas of one draw by features and K, of the stage and of cleanlab."""
    work.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(source / "train.parquet")
    order = np.random.default_rng(seed).permutation(table.num_rows)
    pq.write_table(table.take(order[:ROWS]), work / "train.parquet")
    features = FEATURES if source.name == "sst2" else FEATURES[:2]
    kinds = {
        "embedding": {"embedding": {}},
        "hidden_states": {"hidden_states": {}},
        "ntk": {"ntk": {}},
    }
    stages: dict[str, Any] = {}
    for name in features:
        stages |= kinds[name]
        for k in NEIGHBOURS:
            stages[f"{name}_{k}"] = {"stage": "knn_shapley", "features": name, "neighbours": k}
    run = run_config(
        {
            "run": str(work / "run"),
            "model": {"path": MODEL},
            "corpus": {
                "path": str(work / "train.parquet"),
                "id": "id",
                "flip_labels": {"fraction": 0.1, "seed": seed},
            },
            "queries": {"path": str(source / "validation.parquet"), "id": "id"},
            "shard_size": 250,
            "stages": stages,
            "ray": {"engine": "in_process"},
        }
    )
    scores = "SELECT example_id, value AS score FROM shapley WHERE method = '{}'"
    found = {
        f"{name}_{k}": area(run, scores.format(f"{name}_{k}"))
        for name in features
        for k in NEIGHBOURS
    }
    return found | {f"cleanlab_{key}": auc for key, auc in by_cleanlab(run, work).items()}


def by_cleanlab(run: Any, work: Path) -> dict[str, float]:
    """The peer's figures on the run's own embeddings."""
    arrays = {}
    for name in FEATURES[:2]:
        rows = run.sql(
            f"SELECT v.vector, e.label, e.label <> e.true_label FROM {VIEWS[name]} AS v JOIN "
            "examples AS e ON e.example_id = v.id WHERE v.role = 'example' ORDER BY v.id"
        ).fetchall()
        arrays[name] = np.array([row[0] for row in rows], np.float32)
        arrays["given"] = np.array([row[1] for row in rows])
        arrays["wrong"] = np.array([row[2] for row in rows])
    np.savez(work / "peer.npz", **arrays)
    told = [" ".join(FEATURES[:2]), " ".join(map(str, NEIGHBOURS))]
    python = environment("peers", CLEANLAB)
    output = subprocess.run(
        [python, "-W", "ignore", "-c", PEER, work / "peer.npz", *told],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(output.stdout)
    return found
