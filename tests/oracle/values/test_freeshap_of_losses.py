"""The game of loss gradients against really taking the step, on a small network in float64."""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs, label_table
from torch import Tensor

from stages.stage import Vectors
from stages.values.freeshap import FreeShap

N, M = 6, 4


def network(parameters: Tensor, x: Tensor) -> Tensor:
    """Two layers of 3 x 5 and 5 x 3 weights."""
    hidden = torch.tanh(x @ parameters[:15].view(3, 5))
    return hidden @ parameters[15:].view(5, 3)


@pytest.fixture(scope="module")
def drawn() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    found = {
        "start": torch.randn(30, generator=g, dtype=torch.float64) / 2,
        "x": torch.randn(N, 3, generator=g, dtype=torch.float64),
        "query_x": torch.randn(M, 3, generator=g, dtype=torch.float64),
        "y": torch.randint(3, (N,), generator=g),
        "query_y": torch.randint(3, (M,), generator=g),
    }
    for role, n in (("", N), ("query_", M)):
        rows = []
        for i in range(n):
            at = found["start"].clone().requires_grad_()
            loss(at, found[f"{role}x"][i : i + 1], found[f"{role}y"][i : i + 1]).backward()
            assert at.grad is not None
            rows.append(at.grad)
        found[f"{role}gradients"] = torch.stack(rows)
    return found


def loss(parameters: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(network(parameters, x), y)


class Gradients(MemoryInputs):
    """The gradients as a feature table, of a corpus of completions."""

    def __init__(self, drawn: dict[str, Tensor]) -> None:
        self.losses = [
            float(loss(drawn["start"], drawn["x"][i : i + 1], drawn["y"][i : i + 1]))
            for i in range(N)
        ]
        rows = {"example": drawn["gradients"], "query": drawn["query_gradients"]}
        unlabelled = {role: dict.fromkeys(range(len(g))) for role, g in rows.items()}
        tables = {
            "label": label_table(unlabelled),
            "diagnostics": pa.table({"id": range(N), "measured": self.losses}),
            "gradient.diagnostics": pa.table({"id": range(N), "measured": self.losses}),
        }
        super().__init__(
            tables,
            {"label": {"task": "completion", "classes": []}},
            {role: Vectors(np.arange(len(g)), g.numpy()) for role, g in rows.items()},
        )


def stepped(drawn: dict[str, Tensor], subset: list[int], ridge: float, size: float) -> float:
    """By how much the queries' mean loss falls, per unit of step, when the step is taken."""
    gradients = drawn["gradients"]
    damping = ridge * float(gradients.square().sum(1).mean())
    some = gradients[subset]
    matrix = some.T @ some + damping * torch.eye(30, dtype=torch.float64)
    direction = torch.linalg.solve(matrix, some.sum(0))
    queries = drawn["query_x"], drawn["query_y"]
    before = loss(drawn["start"], *queries)
    after = loss(drawn["start"] - size * direction, *queries)
    return float((before - after) / size)


@pytest.mark.parametrize("subset", [[0], [1, 4], [0, 2, 3, 5], list(range(N))])
def test_the_worth_of_a_set_is_the_slope_of_its_step(
    drawn: dict[str, Tensor], subset: list[int]
) -> None:
    inputs: Any = Gradients(drawn)
    stage = FreeShap(kernel=("gradient",), utilities=("loss",), ridge=0.3)
    game = stage.open(inputs).labelled.game
    regression = game.regression()
    regression.take(torch.tensor(subset))
    promised = float(game.measure("loss")(regression.outputs))
    errors = [abs(stepped(drawn, subset, 0.3, size) - promised) for size in (1e-2, 5e-3, 2.5e-3)]
    # The error of a first-order promise halves with the step.
    for larger, smaller in itertools.pairwise(errors):
        assert larger / smaller == pytest.approx(2, rel=0.1)
    assert errors[-1] < 0.02 * abs(promised) + 1e-4


@pytest.mark.parametrize("engine", ["prefix_cholesky", "least_squares"])
def test_values_are_the_enumerated_slopes(drawn: dict[str, Tensor], engine: Any) -> None:
    """Within 5 standard errors, and adding up to what all rows together promise."""
    inputs: Any = Gradients(drawn)
    stage = FreeShap(
        kernel=("gradient",),
        utilities=("loss",),
        engine=engine,
        sampling="uniform",
        units_per_round=200,
    )
    inputs.opened = stage.open(inputs)
    assert inputs.opened.labelled.facts["ridge"] == 1.0
    batches = [batch for name, batch in stage.compute(inputs) if name == "shapley_round"]
    rows = pa.Table.from_batches(batches).to_pydict()
    mean = np.array(rows["total"]) / 200
    error = np.sqrt((np.array(rows["total_sq"]) / 200 - mean**2) / 199)
    worth = {
        frozenset(s): stepped(drawn, list(s), 1.0, 1e-6) if s else 0.0
        for k in range(N + 1)
        for s in itertools.combinations(range(N), k)
    }
    exact = np.zeros(N)
    for order in itertools.permutations(range(N)):
        for at, i in enumerate(order):
            exact[i] += (worth[frozenset(order[: at + 1])] - worth[frozenset(order[:at])]) / 720
    assert (np.abs(mean - exact) <= 5 * error + 1e-5).all()
    assert mean.sum() == pytest.approx(worth[frozenset(range(N))], abs=1e-5)


def test_the_target_may_be_the_loss(drawn: dict[str, Tensor]) -> None:
    inputs: Any = Gradients(drawn)
    stage = FreeShap(kernel=("gradient",), utilities=("loss",), target="loss", ridge=0.3)
    assert stage.reads == ("gradient", "label", "diagnostics")
    game = stage.open(inputs).labelled.game
    regression = game.regression()
    regression.take(torch.arange(N))
    gradients, mean = drawn["gradients"], drawn["query_gradients"].mean(0)
    damping = 0.3 * float(gradients.square().sum(1).mean())
    matrix = gradients.T @ gradients + damping * torch.eye(30, dtype=torch.float64)
    weights = torch.tensor(inputs.losses, dtype=torch.float64)
    expected = mean @ torch.linalg.solve(matrix, gradients.T @ weights)
    torch.testing.assert_close(regression.outputs[0, 0], expected, rtol=1e-9, atol=1e-12)
