"""TracIn against steps that are really taken, and of the last layer against autograd."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from stages.pairs.tracin import TracIn
from stages.stage import ConfigError, DataError


def test_a_score_is_the_slope_of_the_querys_loss_along_the_examples_step(
    sharded: Any, rows: Any
) -> None:
    """Two checkpoints of a logistic regression, their rates: the falls really seen add up to it."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(9, 4, generator=drawn, dtype=torch.float64)
    y = torch.randint(2, (9,), generator=drawn)
    points = [torch.randn(4, generator=drawn, dtype=torch.float64) for _ in range(2)]
    rates = (0.5, 0.1)

    def loss(w: torch.Tensor, i: int) -> torch.Tensor:
        return torch.nn.functional.softplus(-(2 * y[i] - 1) * (x[i] @ w))

    def gradient(w: torch.Tensor, i: int) -> torch.Tensor:
        at = w.clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(at, i), at)
        return found

    of = {f"g{c}": torch.stack([gradient(w, i) for i in range(9)]) for c, w in enumerate(points)}
    stage = TracIn(gradients=("g0", "g1"), rates=rates, top_k=None)
    found = sharded({name: rows(g[:6], g[6:]) for name, g in of.items()}).run(stage)
    assert found.num_rows == 18
    small = 1e-5
    for row in found.to_pylist():
        i, t = row["example_id"], row["query_id"] - 1000 + 6
        fall = sum(
            rate * float(loss(w, t) - loss(w - small * gradient(w, i), t)) / small
            for rate, w in zip(rates, points, strict=True)
        )
        assert row["score"] == pytest.approx(fall, rel=1e-3, abs=1e-4)
        own = sum(r * float(of[f"g{c}"][i].square().sum()) for c, r in enumerate(rates))
        assert row["global_score"] == pytest.approx(own**0.5, rel=1e-5)


def test_the_last_layer_has_the_gradients_that_autograd_finds(
    sharded: Any, rows: Any, score_matrix: Any
) -> None:
    """Of the weight of a linear head, for examples at labels, for queries at predictions."""
    n, m, dim, n_classes = 11, 4, 5, 3
    drawn = torch.Generator().manual_seed(1)
    f = torch.randn(n + m, dim, generator=drawn).double()
    weight = torch.randn(n_classes, dim, generator=drawn).double().requires_grad_()
    logits = f @ weight.T + torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    y = torch.randint(n_classes, (n + m,), generator=drawn)
    label = pa.table(
        {
            "id": [*range(n), *range(1000, 1000 + m)],
            "role": ["example"] * n + ["query"] * m,
            "label": y.numpy(),
        }
    )
    y = torch.cat([y[:n], logits[n:].argmax(1)])
    losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    g = torch.stack(
        [torch.autograd.grad(loss, weight, retain_graph=True)[0].flatten() for loss in losses]
    )
    held = logits.detach()
    tables = {"label": label, "embedding": rows(f[:n], f[n:])}
    tables["prediction"] = rows(held[:n], held[n:], "logits", source="model")
    told = {"label": {"classes": ["a", "b", "c"]}}
    stage, inputs = TracIn(layer="last", top_k=None), sharded(tables, told)
    found = inputs.run(stage)
    expected = (g[n:] @ g[:n].T).numpy()
    # Logits and features are stored in float32, products computed in it.
    np.testing.assert_allclose(score_matrix(found, m, n), expected, rtol=0, atol=2e-6)
    residuals = torch.softmax(held, 1) - torch.nn.functional.one_hot(y, n_classes)
    own = residuals.norm(dim=1).numpy()[found["example_id"].to_numpy()]
    np.testing.assert_allclose(found["global_score"], own, rtol=1e-5)

    inputs.tables["label"] = label.filter(pc.not_equal(label["id"], 2))
    inputs.tables["embedding"] = tables["embedding"].filter(
        pc.not_equal(tables["embedding"]["id"], 7)
    )
    assert set(inputs.run(stage)["example_id"].to_pylist()) == set(range(n)) - {2, 7}
    assert sum(facts["n_left_out"] for facts in inputs.facts) == 1
    inputs.tables["prediction"] = rows(held[:n], held[n:], "logits", source="kernel")
    with pytest.raises(DataError, match="found predictions of kernel"):
        inputs.run(stage)
    inputs.tables["prediction"] = rows(held[:n], held[n:n], "logits", source="model")
    with pytest.raises(DataError, match="embedding, prediction: found no query in both"):
        inputs.run(stage)


@pytest.mark.parametrize(
    "fields",
    [
        {"gradients": ()},
        {"gradients": ("a", "a")},
        {"rates": (0.1, 0.2)},
        {"rates": (0.0,)},
        {"top_k": 0},
        {"predictions": "mine"},
        {"layer": "last", "rates": (0.1,)},
        {"layer": "last", "gradients": ("mine",)},
    ],
)
def test_fields_that_cannot_be_used(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="found"):
        TracIn(**fields)  # type: ignore[arg-type]
