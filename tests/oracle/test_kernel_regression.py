"""Kernel regression against retraining: leave-one-out, the automatic ridge, the stage's rows.

Tolerance 1e-9 where the condition of K + damping I is at most 1e5; see the test of FreeShap.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from stages.kernel import RIDGE_GRID, auto_ridge, closed_form_loo, mean_diagonal, one_hot, solve
from stages.kernel_regression import KernelRegression
from stages.stage import Part, Vectors


def problem(n: int, dim: int, c: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n + dim + c)
    features = torch.randn(n, dim, dtype=torch.float64, generator=g)
    labels = (features[:, 0] > 0).long() + torch.randint(c - 1, (n,), generator=g)
    return features @ features.T, one_hot(labels, c) - 1 / c


def retrained(kernel: Tensor, targets: Tensor, damping: float) -> Tensor:
    """The prediction for each row of a fit on all the others."""
    n = len(kernel)
    predictions = []
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        damped = kernel[rest][:, rest] + damping * torch.eye(n - 1, dtype=torch.float64)
        predictions.append(kernel[i, rest] @ torch.linalg.solve(damped, targets[rest]))
    return torch.stack(predictions)


@pytest.mark.parametrize(("n", "dim", "c"), [(20, 5, 2), (15, 40, 3), (2, 3, 2)])
def test_closed_form_equals_retraining(n: int, dim: int, c: int) -> None:
    kernel, targets = problem(n, dim, c)
    found = closed_form_loo(targets, solve(kernel, targets, 0.3))
    torch.testing.assert_close(found, retrained(kernel, targets, 0.3), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("n", "dim", "c"), [(25, 4, 2), (20, 50, 3)])
def test_automatic_ridge_equals_brute_force(n: int, dim: int, c: int) -> None:
    kernel, targets = problem(n, dim, c)
    ridge, errors = auto_ridge(kernel, targets)
    expected = []
    for candidate in RIDGE_GRID:
        residual = targets - retrained(kernel, targets, candidate * mean_diagonal(kernel))
        expected.append(float(residual.square().sum(1).mean()))
    # Ridge 1e-4 over four features: condition 1e5 in the solve, 1e4 in the leave-one-out quotient.
    np.testing.assert_allclose(errors, expected, rtol=1e-8)
    assert ridge == RIDGE_GRID[int(np.argmin(expected))]


class InMemory:
    """Twenty examples of which id 3 is dropped, four queries without labels."""

    def __init__(self) -> None:
        g = np.random.default_rng(2)
        self.part, self.opened = Part("", 0), None
        self.rows = {
            "example": Vectors(np.arange(20), g.normal(size=(20, 6)).astype(np.float32)),
            "query": Vectors(np.arange(4), g.normal(size=(4, 6)).astype(np.float32)),
        }
        self.kept = np.delete(np.arange(20), 3)
        self.labels = (self.rows["example"].matrix[self.kept, 0] > 0).astype(np.int64)

    def table(self, name: str, role: str) -> pa.Table:
        ids, labels = self.kept, self.labels
        if role == "query":
            return pa.table({"id": pa.array([0, 1]), "label": pa.array([None, None], pa.int64())})
        return pa.table({"id": ids, "label": labels})

    def vectors(self, name: str, role: str) -> Vectors:
        return self.rows[role]

    def details(self, name: str) -> dict[str, Any]:
        return {"classes": ["negative", "positive"]}


def test_the_stage_writes_out_of_sample_outputs_of_every_row() -> None:
    stage, inputs = KernelRegression(normalize=False), InMemory()
    inputs.opened = stage.open(inputs)
    batches = [batch for name, batch in stage.compute(inputs) if name == "prediction"]
    rows = stage.writes[0].check(pa.Table.from_batches(batches))
    assert rows["source"].unique().to_pylist() == ["kernel"]
    assert rows["role"].to_pylist() == ["example"] * 19 + ["query"] * 4
    assert rows["id"].to_pylist() == [*inputs.kept.tolist(), 0, 1, 2, 3]

    facts = stage.details(inputs)
    features, queries = (
        torch.from_numpy(inputs.rows[role].matrix.astype(np.float64))
        for role in ("example", "query")
    )
    features = features[inputs.kept]
    targets = one_hot(torch.from_numpy(inputs.labels), 2) - 0.5
    kernel = features @ features.T
    assert facts["damping"] == pytest.approx(facts["ridge"] * mean_diagonal(kernel))
    damped = kernel + facts["damping"] * torch.eye(19, dtype=torch.float64)
    of_queries = queries @ features.T @ torch.linalg.solve(damped, targets)
    expected = torch.cat([retrained(kernel, targets, facts["damping"]), of_queries]) + 0.5
    # Outputs are stored as float32.
    np.testing.assert_allclose(np.array(rows["logits"].to_pylist()), expected, rtol=0, atol=1e-6)
    best = min(facts["ridge_errors"], key=lambda tried: tried["error"])
    assert best["ridge"] == facts["ridge"]
