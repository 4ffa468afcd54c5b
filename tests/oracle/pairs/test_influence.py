"""Influence against the explicit inverse of every block, and against models that are retrained."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from stages.features.curvature import fisher_sums, gauss_newton_sums
from stages.gradients.blocks import blocks_of
from stages.pairs.influence import Influence
from stages.reading.outer_products import to_rows
from stages.stage import ConfigError, DataError

TOLD = {
    "blocks": [
        {"name": "late", "start": 0, "size": 5},
        {"name": "early", "start": 5, "size": 3},
        {"name": "dead", "start": 8, "size": 2},
    ]
}
N, M = 23, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def fisher(g: Tensor) -> pa.Table:
    return pa.Table.from_batches([to_rows(fisher_sums(g, blocks_of(TOLD, g.shape[1])))])


@pytest.fixture
def gradients() -> tuple[Tensor, Tensor]:
    """Of examples and queries; float32 numbers, of blocks in other units, one without any."""
    unit = torch.tensor([30.0] * 5 + [0.01] * 3 + [0.0] * 2, dtype=torch.float64)
    return tuple((random(n, 10, seed=n) * unit).float().double() for n in (N, M))  # type: ignore[return-value]


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
def test_a_score_is_the_product_through_the_explicit_inverse(
    gradients: tuple[Tensor, Tensor], damping: float, sharded: Any, rows: Any, score_matrix: Any
) -> None:
    g, queries = gradients
    tables = {"gradient": rows(g, queries), "curvature": fisher(g)}
    inputs = sharded(tables, {"gradient": TOLD})
    found = inputs.run(Influence(damping=damping, top_k=None))
    expected, own = torch.zeros(M, N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    for part in (slice(0, 5), slice(5, 8)):
        hessian = sum(torch.outer(row, row) for row in g[:, part]) / N
        scale = torch.linalg.eigvalsh(hessian).mean()
        inverse = torch.linalg.inv(hessian + damping * scale * torch.eye(len(hessian)))
        expected += queries[:, part] @ inverse @ g[:, part].T
        own += (g[:, part] @ inverse * g[:, part]).sum(1)
    scores = score_matrix(found, M, N)
    # Whitened rows are rounded to float32.
    np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
    order = np.argsort(found["example_id"].to_numpy()[:N])
    globally = found["global_score"].to_numpy()[:N][order]
    np.testing.assert_allclose(globally, own.sqrt(), rtol=1e-6)
    assert inputs.facts == [{"n_blocks": 2}] * 3


def test_only_the_best_of_each_sign_are_kept(
    gradients: tuple[Tensor, Tensor], sharded: Any, rows: Any, score_matrix: Any
) -> None:
    g, queries = gradients
    inputs = sharded({"gradient": rows(g, queries), "curvature": fisher(g)}, {"gradient": TOLD})
    scores = score_matrix(inputs.run(Influence(top_k=None)), M, N)
    kept = inputs.run(Influence(top_k=2))
    for query, row in enumerate(scores):
        mine = kept.filter(pa.compute.equal(kept["query_id"], 1000 + query))
        order = np.argsort(row)
        assert set(mine["example_id"].to_pylist()) == {*order[:2].tolist(), *order[-2:].tolist()}


def logistic(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """The minimum of sum_i weights_i loss_i, by Newton's method."""
    theta = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(60):
        p = torch.sigmoid(x @ theta)
        gradient = x.T @ (weights * (p - y))
        hessian = (x * (weights * p * (1 - p))[:, None]).T @ x
        theta = theta - torch.linalg.solve(hessian, gradient)
    return theta


def test_it_foretells_what_leaving_an_example_out_does(
    sharded: Any, rows: Any, score_matrix: Any
) -> None:
    """Two classes, logits (0, x . theta): the Gauss-Newton matrix is the Hessian there."""
    n, m = 150, 6
    x = random(n + m, 4, seed=2)
    noise = random(n + m, seed=3)
    y = (x[:, 0] - 0.5 * x[:, 1] + 1.5 * noise > 0).double()
    ones = torch.full((n,), 1 / n, dtype=torch.float64)
    theta = logistic(x[:n], y[:n], ones)
    p = torch.sigmoid(x @ theta)
    g = (p - y)[:, None] * x
    logits = torch.stack([torch.zeros(n), x[:n] @ theta], 1)
    of_logits = torch.stack([torch.zeros_like(x[:n]), x[:n]], 1)
    blocks = blocks_of({}, 4)
    sums = gauss_newton_sums(of_logits, logits, blocks)
    tables = {
        "gradient": rows(g[:n], g[n:]),
        "curvature": pa.Table.from_batches([to_rows(sums)]),
    }
    stage = Influence(damping=1e-9, top_k=None)
    scores = score_matrix(sharded(tables).run(stage), m, n) / n

    def log_p(theta: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid((2 * y[n:] - 1) * (x[n:] @ theta))

    real = np.empty((m, n))
    for i in range(n):
        kept = ones.clone()
        kept[i] = 0
        real[:, i] = log_p(theta) - log_p(logistic(x[:n], y[:n], kept))
    for found, true in zip(scores, real, strict=True):
        assert spearmanr(found, true).statistic >= 0.99
        assert np.polyfit(true, found, 1)[0] == pytest.approx(1, abs=0.06)


def test_what_does_not_fit_is_refused(
    gradients: tuple[Tensor, Tensor], sharded: Any, rows: Any
) -> None:
    g, queries = gradients
    other = pa.Table.from_batches([to_rows(fisher_sums(g, blocks_of({}, 10)))])
    inputs = sharded({"gradient": rows(g, queries), "curvature": other}, {"gradient": TOLD})
    with pytest.raises(DataError, match="found 1 blocks of 10 numbers, expected those of the"):
        inputs.run(Influence())
    with pytest.raises(DataError, match="gradient: found no query"):
        sharded({"gradient": rows(g, queries[:0])}).run(Influence())
    for damping in (0.0, -1.0, float("inf")):
        with pytest.raises(ConfigError, match="damping: found"):
            Influence(damping=damping)
