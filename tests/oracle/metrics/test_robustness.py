"""Robustness of signs against its definition: every training set, every subset of it, one by one.

Tolerance 1e-9: with ridge 0.2 on unit vectors the condition of K + damping I is below 100.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from memory_inputs import MemoryInputs, label_table

from stages.game.game import Game
from stages.game.least_squares import RecursiveLeastSquares
from stages.game.prefix_cholesky import PrefixCholesky
from stages.game.utility import Judge, fitted
from stages.metrics.robustness import Robustness, draw_sets
from stages.reading.supervision import one_hot
from stages.stage import Vectors
from stages.values.leave_one_out import leave_one_out

RIDGE = 0.2
N_POOL, N_QUERIES = 14, 7
EXAMPLES, POINTS, DRAWS = 6, 3, 5
UTILITIES = ("accuracy", "cross_entropy", "margin")
FIELDS: dict[str, Any] = {
    "ridge": RIDGE,
    "utilities": UTILITIES,
    "examples": EXAMPLES,
    "points": POINTS,
    "draws": DRAWS,
}


class Pool(MemoryInputs):
    """Labelled vectors under ids that have gaps; one example has no label, one no vector."""

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes
        g = np.random.default_rng(n_classes)
        self.ids = {
            "example": 3 * np.arange(N_POOL + 2) + 1,
            "query": 2 * np.arange(N_QUERIES),
        }
        self.labels: dict[str, list[int | None]] = {
            role: g.integers(0, n_classes, len(ids)).tolist() for role, ids in self.ids.items()
        }
        self.labels["example"][4] = None
        self.matrix = {
            role: g.normal(size=(len(ids), 5)).astype(np.float32) for role, ids in self.ids.items()
        }
        self.with_rows = {role: np.arange(len(ids)) for role, ids in self.ids.items()}
        self.with_rows["example"] = np.delete(self.with_rows["example"], 9)
        labels = {
            r: dict(zip(ids.tolist(), self.labels[r], strict=True)) for r, ids in self.ids.items()
        }
        super().__init__(
            {"label": label_table(labels)},
            {"label": {"classes": [f"class {c}" for c in range(n_classes)]}},
            {
                role: Vectors(ids[self.with_rows[role]], self.matrix[role][self.with_rows[role]])
                for role, ids in self.ids.items()
            },
        )

    def worth(self, subset: tuple[int, ...]) -> np.ndarray:
        """Each utility of a regression on the examples at these places, query by query."""
        features, queries = (
            rows / np.linalg.norm(rows, axis=1, keepdims=True)
            for rows in (self.matrix[role].astype(float) for role in ("example", "query"))
        )
        joined = features[list(subset)]
        targets = np.array(
            [
                [(self.labels["example"][i] == c) - 1 / self.n_classes for c in self.classes()]
                for i in subset
            ]
        ).reshape(len(subset), self.n_classes)
        dual = np.linalg.solve(joined @ joined.T + RIDGE * np.eye(len(subset)), targets)
        total = np.zeros(3)
        for query, label in zip(queries, self.labels["query"], strict=True):
            assert label is not None
            outputs = (joined @ query) @ dual
            best = outputs >= outputs.max() - 1e-10
            total += [
                best[label] / best.sum(),
                outputs[label] - math.log(np.exp(outputs).sum()),
                outputs[label] - np.delete(outputs, label).max(),
            ]
        return total / N_QUERIES

    def classes(self) -> range:
        return range(self.n_classes)

    def playing(self) -> np.ndarray:
        """Places of the examples that have a label and a vector."""
        return np.array([i for i in self.with_rows["example"] if i != 4])


def shapley(worth: Callable[[tuple[int, ...]], np.ndarray], players: list[int], i: int) -> Any:
    others = [j for j in players if j != i]
    n, total = len(players), np.zeros(3)
    for size in range(n):
        weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
        for subset in itertools.combinations(others, size):
            total += weight * (worth((*subset, i)) - worth(subset))
    return total


def by_loops(pool: Pool, sets: np.ndarray) -> dict[str, np.ndarray]:
    """Values of the points, (draws, points, utilities), from the worth of sets alone."""
    found: dict[str, list[Any]] = {"loo": [], "shapley": []}
    for row in pool.playing()[sets].tolist():
        rests = [tuple(j for j in row if j != i) for i in row[:POINTS]]
        found["loo"].append([pool.worth(tuple(row)) - pool.worth(rest) for rest in rests])
        found["shapley"].append([shapley(pool.worth, row, i) for i in row[:POINTS]])
    return {name: np.array(values) for name, values in found.items()}


def share_of_non_robust(values: list[list[float]]) -> float:
    """Of values per point and draw: the protocol in its own words."""
    count = 0
    for draws in values:
        signs = [1 if value >= 0 else -1 for value in draws]
        truth = 1 if signs.count(1) > signs.count(-1) else -1
        count += any(sign != truth for sign in signs)
    return count / len(values)


@pytest.mark.parametrize("n_classes", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("engine", ["prefix_cholesky", "least_squares"])
def test_values_and_shares_are_those_of_the_protocol(n_classes: int, engine: Any) -> None:
    pool = Pool(n_classes)
    metric = Robustness(**FIELDS, engine=engine, precision="float64", rounds=12, coalitions=2)
    steps: list[tuple[int, int]] = []
    rows, facts, details = metric.compute(pool, lambda *step: steps.append(step))
    assert steps == [(done, 2 * DRAWS) for done in range(2 * DRAWS + 1)]
    sets = draw_sets(N_POOL, EXAMPLES, POINTS, DRAWS, 0)
    expected = by_loops(pool, sets)
    ids = pool.ids["example"][pool.playing()][sets[0, :POINTS]].tolist()
    assert len(rows) == 6
    for row in rows:
        own = {key: row[key] for key in ("method", "semivalue", "utility")}
        cells = [cell for cell in details if own.items() <= cell.items()]
        assert [cell["example_id"] for cell in cells] == ids
        value, stderr = (np.array([cell[key] for cell in cells]).T for key in ("value", "stderr"))
        right = expected[row["semivalue"]][:, :, UTILITIES.index(row["utility"])]
        if row["semivalue"] == "loo":
            assert (stderr == 0).all()
            np.testing.assert_allclose(value, right, atol=1e-9)
            assert row["non_robust"] == share_of_non_robust(np.where(abs(right) < 1e-9, 0, right).T)
            assert row["surely_non_robust"] == row["non_robust"]
        else:
            # 45 values a case, 24 units: five standard errors are passed once in some 500 cases.
            assert (abs(value - right) <= 5 * stderr + 1e-12).all()
            assert row["surely_non_robust"] <= row["non_robust"]
            if (abs(right) > 5 * stderr).all():
                assert row["non_robust"] == share_of_non_robust(right.T)
        assert row["non_robust"] == share_of_non_robust(value.T)
        assert row["zeros"] == np.mean([v == 0 for v in value.flat])
        means = [sum(column) / DRAWS for column in value.T]
        assert row["mean_abs"] == pytest.approx(np.mean(np.abs(means)))
        spreads = [
            math.sqrt(sum((v - mean) ** 2 for v in column) / (DRAWS - 1))
            for column, mean in zip(value.T, means, strict=True)
        ]
        assert row["mean_sd"] == pytest.approx(np.mean(spreads))
        assert row["stderr"] == pytest.approx(math.sqrt(np.mean([e * e for e in stderr.flat])))
    whole = [pool.worth(tuple(row)) for row in pool.playing()[sets].tolist()]
    assert list(facts["utility_of_sets"].values()) == pytest.approx(np.mean(whole, 0), abs=1e-9)
    assert (facts["n_pool"], facts["n_queries"]) == (N_POOL, N_QUERIES)
    assert facts["n_drawn"] == len(np.unique(sets))


@pytest.mark.parametrize("engine", [PrefixCholesky, RecursiveLeastSquares])
def test_a_game_among_some_is_the_game_that_has_no_others(engine: Any) -> None:
    g = torch.Generator().manual_seed(0)
    features, queries = (torch.randn(n, 4, dtype=torch.float64, generator=g) for n in (9, 5))
    judge = Judge(torch.tensor([0, 1, 2, 1, 0]), 3)
    targets = fitted(one_hot(torch.arange(9) % 3, 3) - 1 / 3)

    def game(rows: torch.Tensor) -> Game:
        own, goal = features[rows], targets[rows]
        if engine is PrefixCholesky:
            return Game(len(rows), lambda: engine(own @ own.T, own @ queries.T, goal, 0.5), judge)
        return Game(len(rows), lambda: engine(lambda ids: own[ids], queries, goal, 0.5), judge, 4)

    players = torch.tensor([7, 2, 3, 0, 8])
    some, alone = game(torch.arange(9)).among(players), game(players)
    for utilities in (("accuracy",), ("cross_entropy", "margin")):
        torch.testing.assert_close(some.ends(utilities), alone.ends(utilities))
        torch.testing.assert_close(leave_one_out(some, utilities), leave_one_out(alone, utilities))
    taken, directly = some.regression(), alone.regression()
    for regression in (taken, directly):
        regression.take(torch.tensor([4, 1]))
    ids = torch.tensor([[0, 3], [2, 0]])
    for one, other in zip(taken.outside(ids)[:4], directly.outside(ids)[:4], strict=True):
        torch.testing.assert_close(one, other)
    twice = some.among(torch.tensor([3, 1]))
    torch.testing.assert_close(
        leave_one_out(twice, ("margin",)),
        leave_one_out(game(players[torch.tensor([3, 1])]), ("margin",)),
    )
