"""TracIn against steps that are really taken."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.pairwise import ATTRIBUTION
from stages.stage import ConfigError, Part, Vectors
from stages.tracin import TracIn


class Tables:
    """`Inputs` of one shard of examples and all queries, by instance."""

    part = Part("example", 0)

    def __init__(self, examples: dict[str, torch.Tensor], queries: dict[str, torch.Tensor]):
        self._examples, self._queries = examples, queries
        self.opened = None

    def table(self, name: str, role: str | None = None) -> pa.Table:
        rows = self._examples[name].numpy().astype(np.float32)
        flat = pa.array(rows.reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
        roles = pa.array(["example"] * len(rows))
        return pa.table({"id": np.arange(len(rows)), "role": roles, "vector": vectors})

    def vectors(self, name: str, role: str) -> Vectors:
        rows = self._queries[name].numpy().astype(np.float32)
        return Vectors(np.arange(len(rows)) + 50, rows)

    def details(self, name: str) -> dict[str, object]:
        return {}


def test_a_score_is_the_slope_of_the_querys_loss_along_the_examples_step() -> None:
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
    inputs = Tables({k: v[:6] for k, v in of.items()}, {k: v[6:] for k, v in of.items()})
    inputs.opened = stage.open(inputs)  # type: ignore[assignment, arg-type]
    ((_, batch),) = stage.compute(inputs)  # type: ignore[arg-type]
    assert batch.schema == ATTRIBUTION.schema
    small = 1e-5
    for row in batch.to_pylist():
        i, t = row["example_id"], row["query_id"] - 50 + 6
        fall = sum(
            rate * float(loss(w, t) - loss(w - small * gradient(w, i), t)) / small
            for rate, w in zip(rates, points, strict=True)
        )
        assert row["score"] == pytest.approx(fall, rel=1e-3, abs=1e-4)
        own = sum(r * float(of[f"g{c}"][i].square().sum()) for c, r in enumerate(rates))
        assert row["global_score"] == pytest.approx(own**0.5, rel=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"gradients": ()},
        {"gradients": ("a", "a")},
        {"rates": (0.1, 0.2)},
        {"rates": (0.0,)},
        {"top_k": 0},
    ],
)
def test_fields_that_cannot_be_used(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="found"):
        TracIn(**fields)  # type: ignore[arg-type]
