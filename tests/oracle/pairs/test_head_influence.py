"""Influence through the head against autograd's Hessian, and against probes that are refitted."""

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from stages.pairs.head_influence import HeadInfluence, hessian
from stages.stage import ConfigError, DataError
from stages.surrogate.linear import BIAS_PENALTY, fit, fit_least_squares, objective
from stages.surrogate.probe_head import all_examples, read_head

N, M, DIM, C, PENALTY = 120, 6, 5, 3, 1e-2
STAGE = HeadInfluence(top_k=None)


@functools.cache
def problem(is_regression: bool) -> tuple[Tensor, Tensor]:
    """Embeddings in float32 numbers and noisy answers; one answer in eight is a wrong one."""
    generator = torch.Generator().manual_seed(4)
    e = (torch.randn(N + M, DIM, generator=generator) * 3 + 2).double()
    teacher = torch.randn(DIM, C, generator=generator).double()
    noise = torch.randn(N + M, C, generator=generator).double()
    if is_regression:
        return e, e @ teacher[:, 0] + 4 * noise[:, 0] + 7
    y = ((e - 2) @ teacher / 3 + noise).argmax(1)
    y[::8] = (y[::8] + 1) % C
    return e, y


def standardised(e: Tensor) -> Tensor:
    """All rows in the units of the first N, and a 1."""
    centred = e - e[:N].mean(0)
    scale = centred[:N].square().sum(1).mean().sqrt()
    return torch.cat([centred / scale, torch.ones(len(e), 1, dtype=torch.float64)], 1)


def minimum(x: Tensor, y: Tensor, weights: Tensor, start: Tensor) -> Tensor:
    """Of sum_i weights_i loss_i plus penalty, by Newton's method with the Hessian written out."""
    penalty = torch.full_like(start, PENALTY)
    penalty[:, -1] = BIAS_PENALTY if start.shape[0] > 1 else 0.0
    theta = start
    for _ in range(12):
        if start.shape[0] > 1:
            p = torch.softmax(x @ theta.T, 1)
            r = p - torch.nn.functional.one_hot(y, C)
            curved = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        else:
            r, curved = x @ theta.T - y[:, None], torch.ones(len(x), 1, 1, dtype=torch.float64)
        gradient = (weights[:, None] * r).T @ x + penalty * theta
        matrix = torch.einsum("n,nck,na,nb->cakb", weights, curved, x, x)
        matrix = matrix.reshape(theta.numel(), -1) + penalty.flatten().diag()
        theta = theta - torch.linalg.solve(matrix, gradient.flatten()).reshape(theta.shape)
    return theta


def measured(theta: Tensor, x: Tensor, chosen: Tensor | None) -> Tensor:
    outputs = x @ theta.T
    if chosen is None:
        return outputs[:, 0]
    return torch.log_softmax(outputs, 1)[torch.arange(len(x)), chosen]


def test_the_hessian_and_the_scores_are_those_of_autograd(probed: Any, score_matrix: Any) -> None:
    e, y = problem(False)
    inputs = probed(e, y, M, regularization=PENALTY)
    inputs.part = type(inputs.part)("", 0)
    head = read_head(inputs, "embedding")
    x = standardised(e)
    theta = torch.cat([head.weight, head.bias[:, None]], 1)
    chosen = (x[N:] @ theta.T).argmax(1)
    shape = (C * (DIM + 1),) * 2
    whole = torch.autograd.functional.hessian(
        lambda theta: objective(theta, x[:N], y[:N], PENALTY), theta
    ).reshape(shape)
    found, n = hessian(head, all_examples(head, inputs, "embedding"))
    assert n == N
    torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-12)

    def losses(theta: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(x[:N] @ theta.T, y[:N], reduction="none")

    g = torch.autograd.functional.jacobian(losses, theta).flatten(1)
    rises = torch.autograd.functional.jacobian(lambda t: measured(t, x[N:], chosen), theta)
    expected = -rises.flatten(1) @ torch.linalg.inv(whole) @ g.T
    table = inputs.run(STAGE)
    scores = score_matrix(table, M, N)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))
    own = (g @ torch.linalg.inv(whole) * g).sum(1).sqrt().numpy()
    np.testing.assert_allclose(
        table["global_score"], own[table["example_id"].to_numpy()], rtol=1e-5, atol=1e-7
    )
    facts = {"n_examples": N, "n_parameters": C * (DIM + 1), "n_left_out": 0}
    assert inputs.facts == [facts] * 3


@pytest.mark.parametrize("is_regression", [False, True])
def test_it_foretells_what_leaving_an_example_out_does(
    is_regression: bool, probed: Any, score_matrix: Any
) -> None:
    """A fit in the same units, and one from scratch, whose mean, scale and count move, too."""
    e, y = problem(is_regression)
    x, rest = standardised(e), torch.arange(N)
    scores = score_matrix(probed(e, y, M, regularization=PENALTY).run(STAGE), M, N) / N
    start = torch.zeros(1 if is_regression else C, DIM + 1, dtype=torch.float64)
    ones = torch.full((N,), 1 / N, dtype=torch.float64)
    whole = minimum(x[:N], y[:N], ones, start)
    chosen = None if is_regression else (x[N:] @ whole.T).argmax(1)
    real, anew = np.empty((2, M, N))
    for i in range(N):
        weights = ones.clone()
        weights[i] = 0
        theta = minimum(x[:N], y[:N], weights, whole)
        real[:, i] = measured(whole, x[N:], chosen) - measured(theta, x[N:], chosen)
        others = rest[rest != i]
        if is_regression:
            fitted = fit_least_squares(e[others], y[others], PENALTY)
        else:
            fitted = fit(e[others], y[others], C, PENALTY)
        raw = torch.cat([fitted.weight, fitted.bias[:, None]], 1)
        ones_too = torch.cat([e[N:], torch.ones(M, 1, dtype=torch.float64)], 1)
        anew[:, i] = measured(whole, x[N:], chosen) - measured(raw, ones_too, chosen)
    slopes = [np.polyfit(true, found, 1)[0] for found, true in zip(scores, real, strict=True)]
    ranks = [spearmanr(found, true).statistic for found, true in zip(scores, real, strict=True)]
    again = [spearmanr(found, true).statistic for found, true in zip(scores, anew, strict=True)]
    assert min(ranks) >= 0.99
    assert min(again) >= 0.95
    # A whole example of 120 is no small change: 0.92 to 0.95, 1 to first order.
    np.testing.assert_allclose(slopes, 1, atol=0.1)
    for i in (0, 8, 50):
        weights = ones.clone()
        weights[i] *= 1 + 1e-4
        theta = minimum(x[:N], y[:N], weights, whole)
        rise = (measured(theta, x[N:], chosen) - measured(whole, x[N:], chosen)) / 1e-4
        np.testing.assert_allclose(rise, scores[:, i], rtol=1e-3, atol=2e-6)


def test_rows_without_a_label_or_an_embedding_are_left_out(probed: Any, score_matrix: Any) -> None:
    e, y = problem(False)
    inputs = probed(e, y, M)
    label, embedding = inputs.tables["label"], inputs.tables["embedding"]
    inputs.tables["label"] = label.filter(pc.not_equal(label["id"], 3))
    inputs.tables["embedding"] = embedding.filter(pc.not_equal(embedding["id"], 7))
    table = inputs.run(STAGE)
    assert set(table["example_id"].to_pylist()) == set(range(N)) - {3, 7}
    assert sum(facts["n_left_out"] for facts in inputs.facts) == 1
    assert inputs.facts[0]["n_examples"] == N - 2


def test_what_cannot_be_computed_is_refused(probed: Any, monkeypatch: Any) -> None:
    e, y = problem(False)
    inputs = probed(e, y, M)
    monkeypatch.setattr("stages.pairs.head_influence.MOST_PARAMETERS", 17)
    with pytest.raises(DataError, match="found 3 x 6 parameters, expected at most 17"):
        inputs.run(STAGE)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="found features with a probe fitted on embedding"):
        HeadInfluence(embedding="features").open(inputs)
    inputs.facts_of["probe"].pop("mean")
    with pytest.raises(DataError, match="Set artefacts.probe=refit"):
        inputs.run(STAGE)
    none = inputs.tables["label"].slice(0, 0)
    inputs = probed(e, y, M)
    inputs.tables["label"] = none
    with pytest.raises(DataError, match="found embeddings of none of the 0 examples"):
        inputs.run(STAGE)
    assert pa.types.is_int64(none["id"].type)
