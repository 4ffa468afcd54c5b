"""What the parts of the case `shapley` share: a game on SST-2 by its NTK, and ways to sample it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.environment import MODEL
from benchmarks.finished import run_config

UTILITIES = ("accuracy", "cross_entropy")
STRATEGIES: dict[str, dict[str, Any]] = {
    "paper": {"sampling": "uniform", "truncation": "tolerance"},
    "untruncated": {"sampling": "uniform"},
    "paired": {"sampling": "paired"},
    "quasi_random": {"sampling": "quasi_random"},
    "random_truncation": {"sampling": "uniform", "truncation": "random"},
    "stratified": {},
}


def features(source: Path, work: Path) -> dict[str, torch.Tensor]:
    """Unit-length features and labels of all training rows and of the validation rows."""
    work.mkdir(parents=True, exist_ok=True)
    done = run_config(
        {
            "run": str(work / "shapley"),
            "model": {"path": MODEL},
            "corpus": {
                "path": str(source / "train.parquet"),
                "id": "id",
                "classes": ["negative", "positive"],
                "flip_labels": {"fraction": 0.1, "seed": 0},
            },
            "queries": {"path": str(source / "validation.parquet"), "id": "id"},
            "stages": {"ntk": {}},
        }
    )
    rows: dict[str, torch.Tensor] = {}
    for role, view in (("example", "examples"), ("query", "queries")):
        table = done.sql(
            f"SELECT n.vector, r.label FROM ntk AS n JOIN {view} AS r ON r.{role}_id = n.id "
            f"WHERE n.role = '{role}' ORDER BY n.id"
        ).to_arrow_table()
        flat = table["vector"].combine_chunks().flatten().to_numpy().astype(np.float64)
        vectors = torch.from_numpy(flat.reshape(table.num_rows, -1))
        rows[role] = vectors / vectors.norm(dim=1, keepdim=True)
        rows[f"{role}_label"] = torch.from_numpy(table["label"].to_numpy().astype(np.int64))
    return rows


def drawn(rows: dict[str, torch.Tensor]) -> np.ndarray:
    """All examples in the order in which games take them."""
    found: np.ndarray = np.random.default_rng(0).permutation(len(rows["example"]))
    return found


def ridge_of(rows: dict[str, torch.Tensor]) -> float:
    """The automatic ridge of the first 2,000 examples."""
    from stages.reading.supervision import one_hot
    from stages.surrogate.kernel import auto_ridge

    chosen = drawn(rows)[:2000]
    some = rows["example"][chosen]
    return auto_ridge(some @ some.T, one_hot(rows["example_label"][chosen], 2) - 0.5)[0]


def game_of(rows: dict[str, torch.Tensor], n: int) -> Any:
    """The game of `n` rows drawn once."""
    from stages.game.game import Game
    from stages.game.prefix_cholesky import PrefixCholesky
    from stages.game.utility import Judge, fitted
    from stages.reading.supervision import one_hot
    from stages.surrogate.kernel import mean_diagonal

    chosen = drawn(rows)[:n]
    mine = rows["example"][chosen]
    kernel = mine @ mine.T
    judge = Judge(rows["query_label"], 2)
    to_queries = mine @ rows["query"].T * judge.signs()
    goal = fitted(one_hot(rows["example_label"][chosen], 2) - 0.5)
    damping = ridge_of(rows) * mean_diagonal(kernel)
    game = Game(n, lambda: PrefixCholesky(kernel, to_queries, goal, damping), judge)
    return game, kernel, to_queries, goal, damping
