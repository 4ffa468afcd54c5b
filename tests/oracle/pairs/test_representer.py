"""Representer values add up to the logit of a fresh probe, and are what their formula says."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from stages.pairs.representer import Representer

N, M, DIM = 90, 7, 6
STAGE = Representer(top_k=None)


def problem(kind: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    e = (torch.randn(N + M, DIM, generator=generator) * 2 - 1).double()
    noise = torch.randn(N + M, 3, generator=generator).double()
    outputs = e[:, :3] + noise
    answers = {
        "two": (outputs[:, 0] > 0).long(),
        "three": outputs.argmax(1),
        "regression": 5 * outputs[:, 0] - 30,
    }
    return e, answers[kind]


@pytest.mark.parametrize("kind", ["two", "three", "regression"])
@pytest.mark.parametrize("regularization", [1e-3, 0.1])
def test_values_add_up_to_the_logit_less_the_bias(
    kind: str, regularization: float, probed: Any, score_matrix: Any
) -> None:
    e, y = problem(kind)
    inputs = probed(e, y, M, regularization=regularization)
    table = inputs.run(STAGE)
    scores = score_matrix(table, M, N)
    weight = torch.tensor(np.array(inputs.table("probe")["weight"].to_pylist())).double()
    bias = torch.tensor(inputs.table("probe")["bias"].to_pylist(), dtype=torch.float64)
    centred = e - e[:N].mean(0)
    # W x of centred x: the bias in these coordinates is what the probe says of the mean.
    logits = (centred[N:] @ weight.T).numpy()
    chosen = (e[N:] @ weight.T + bias).argmax(1).numpy()
    expected = logits[np.arange(M), chosen]
    # The fit ends at a gradient of 1e-9, and is stored in float32: 6e-8 of its weights.
    tolerance = 1e-6 / regularization * np.abs(expected).max()
    np.testing.assert_allclose(scores.sum(1), expected, rtol=0, atol=tolerance)
    assert inputs.facts[0]["miss"] <= 1e-6 / regularization
    assert all("notices" not in facts for facts in inputs.facts)

    x = centred / centred[:N].square().sum(1).mean().sqrt()
    outputs = e[:N] @ weight.T + bias
    if kind == "regression":
        alpha = (y[:N, None] - outputs) / (N * regularization)
    else:
        onehot = torch.nn.functional.one_hot(y[:N]).double()
        alpha = (onehot - torch.softmax(outputs, 1)) / (N * regularization)
    values = (alpha[:, chosen] * (x[:N] @ x[N:].T)).T
    np.testing.assert_allclose(scores, values, rtol=0, atol=2e-6 * float(values.abs().max()))
    own = alpha.abs().max(1).values.numpy()[table["example_id"].to_numpy()]
    np.testing.assert_allclose(table["global_score"], own, rtol=1e-5, atol=1e-6)


def test_it_says_how_far_a_kept_probe_is_from_adding_up(probed: Any, score_matrix: Any) -> None:
    e, y = problem("three")
    inputs = probed(e, y, M)
    logits = score_matrix(inputs.run(STAGE), M, N).sum(1)
    label = inputs.tables["label"]
    corrected = [*((y[:9] + 1) % 3).tolist(), *y[9:N].tolist(), *[None] * M]
    inputs.tables["label"] = label.set_column(2, "label", pa.array(corrected, pa.int64()))
    missed = score_matrix(inputs.run(STAGE), M, N).sum(1) - logits
    miss = inputs.facts[0]["miss"]
    assert miss > 0.01
    assert miss == pytest.approx(np.linalg.norm(missed) / np.linalg.norm(logits), rel=1e-3)
    (notice,) = [n for facts in inputs.facts for n in facts.get("notices", ())]
    assert f"by {miss:.1%}" in notice
    inputs.tables["label"] = label.filter(pa.array([row != 4 for row in range(N + M)]))
    found = inputs.run(STAGE)
    assert 4 not in found["example_id"].to_pylist()
    assert inputs.facts[0]["n_examples"] == N - 1


def test_it_says_how_far_a_probe_of_some_rows_is_from_adding_up(
    probed: Any, score_matrix: Any
) -> None:
    e, y = problem("three")
    inputs = probed(e, y, M, rows=60)
    scores = score_matrix(inputs.run(STAGE), M, N)
    weight = np.array(inputs.table("probe")["weight"].to_pylist())
    centred = e[N:].numpy() - np.array(inputs.facts_of["probe"]["mean"])
    bias = np.array(inputs.table("probe")["bias"].to_pylist())
    chosen = (e[N:].numpy() @ weight.T + bias).argmax(1)
    logits = (centred @ weight.T)[np.arange(M), chosen]
    miss = inputs.facts[0]["miss"]
    assert 0.01 < miss < 1
    assert miss == pytest.approx(
        np.linalg.norm(scores.sum(1) - logits) / np.linalg.norm(logits), rel=1e-3
    )
    (notice,) = [n for facts in inputs.facts for n in facts.get("notices", ())]
    assert "or on a part of them" in notice
