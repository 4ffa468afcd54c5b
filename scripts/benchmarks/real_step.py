"""The real fall of a loss after a damped step, against what the game of loss gradients promises.

For a subset S of the rows with gradients g_i, the step is eta times
(sum_S g_i g_i^T + damping I)^-1 sum_S g_i in the weights of the linear layers of the last block,
whole and unprojected; its promise is eta times the inner product of that with the mean gradient of
the queries. Beside it stands what projected gradients promise, which is what the stages have.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from benchmarks.language_model import TOKEN_BUDGET, FormInputs, text_table
from benchmarks.retrain import pearson
from torch import Tensor

ETAS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
ARMS = ((1.0, 0.5), (0.1, 0.5), (10.0, 0.5), (1.0, 0.125))
"""Ridge, and size of the subsets as a share of the rows."""
PARTS_BY = 0.2
"""Where a ratio is as far from 1, promise and truth have parted."""


def real_step(
    model: dict[str, Any],
    rows: pa.Table,
    queries: pa.Table,
    projected: tuple[np.ndarray, np.ndarray],
    n_subsets: int,
    seed: int,
) -> dict[str, Any]:
    """Ratios of real to promised falls by eta, for each ridge and size of subsets.

    `projected` holds the stages' gradients of the rows, and the queries' mean.
    """
    from pipeline.config import parse_stage
    from stages.model.layers import trained_layers
    from stages.model.learners import text_learner
    from stages.model.measurement import load_measurement
    from stages.model.training import outputs

    spec = parse_stage("prediction", {"model": model}, None, "bench").model
    measurement = load_measurement(spec, FormInputs("prompt_completion"))
    layers = trained_layers(measurement.network, spec.train)
    both = pa.concat_tables([rows, queries])
    tokens = measurement.tokenise(text_table(both["prompt"], both["completion"]))
    n = rows.num_rows
    learner = text_learner(measurement, tokens, spec.train.last_blocks, [], TOKEN_BUDGET)
    weights = [layer.weight for layer in layers.values()]
    asked = np.arange(n, both.num_rows)

    def loss() -> float:
        return float(-outputs(learner, asked, TOKEN_BUDGET).mean())

    def gradient(row: int) -> Tensor:
        output = learner.network(**learner.batch(np.array([row])))
        return torch.cat([g.ravel() for g in torch.autograd.grad(-output.sum(), weights)])

    gradients = torch.stack([gradient(row) for row in range(n)])
    of_queries = torch.stack([gradient(int(row)) for row in asked]).double().mean(0)
    kernel = gram(gradients)
    to_queries = torch.cat([some.double() @ of_queries for some in gradients.split(8)])
    short = tuple(torch.from_numpy(part) for part in projected)
    cheap = gram(short[0]), short[0] @ short[1]
    start, before = [weight.detach().clone() for weight in weights], loss()
    rng = np.random.default_rng(seed)
    result: dict[str, Any] = {
        "n": n,
        "queries": len(asked),
        "weights": gradients.shape[1],
        "loss_before": before,
        "kernel_like_projected": correlation_off_diagonal(kernel, cheap[0]),
        "arms": [],
    }
    for ridge, share in ARMS:
        promised, by_projected, real = [], [], []
        for _ in range(n_subsets):
            subset = torch.from_numpy(np.sort(rng.permutation(n)[: int(n * share)]))
            dual = solved(kernel, subset, ridge)
            promised.append(float(to_queries[subset] @ dual))
            by_projected.append(float(cheap[1][subset] @ solved(cheap[0], subset, ridge)))
            direction = dual.float() @ gradients[subset]
            falls = []
            for eta in ETAS:
                move(weights, start, direction, eta)
                falls.append(before - loss())
            move(weights, start, direction, 0.0)
            real.append(falls)
        found = compared(np.array(promised), np.array(by_projected), np.array(real))
        result["arms"].append({"ridge": ridge, "size": int(n * share), **found})
    return result


def gram(rows: Tensor) -> Tensor:
    """Inner products in float64, a few columns at a time."""
    parts = rows.split(100_000, dim=1)
    return sum((part.double() @ part.double().T for part in parts), torch.zeros(1))


def solved(kernel: Tensor, subset: Tensor, ridge: float) -> Tensor:
    """Weights of a subset's gradients in its step; the damping is the same for every subset."""
    damping = ridge * float(kernel.diagonal().mean())
    own = kernel[subset][:, subset]
    return torch.linalg.solve(
        own + damping * torch.eye(len(own), dtype=own.dtype), own.new_ones(len(own))
    )


def move(weights: list[Any], start: list[Tensor], direction: Tensor, eta: float) -> None:
    """The weights from where they began, a step down."""
    pieces = direction.split([weight.numel() for weight in start])
    with torch.no_grad():
        for weight, value, piece in zip(weights, start, pieces, strict=True):
            weight.copy_(value - eta * piece.view_as(value))


def correlation_off_diagonal(first: Tensor, second: Tensor) -> float:
    """Of two kernels' entries, each pair of rows once."""
    at = np.triu_indices(len(first), 1)
    return round(pearson(first.numpy()[at], second.numpy()[at]), 4)


def compared(promised: np.ndarray, by_projected: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    """Per eta the ratio of mean real to mean promised falls, and their correlation over subsets."""
    ratio = real / (np.array(ETAS) * promised[:, None])
    by_eta = [
        {
            "eta": eta,
            "fall": round(float(real[:, at].mean()), 5),
            "ratio": round(float(real[:, at].mean() / (eta * promised.mean())), 3),
            "ratio_range": [
                round(float(ratio[:, at].min()), 3),
                round(float(ratio[:, at].max()), 3),
            ],
            "correlation": round(pearson(promised, real[:, at]), 3),
            "correlation_projected": round(pearson(by_projected, real[:, at]), 3),
            "loss_rises": int((real[:, at] < 0).sum()),
        }
        for at, eta in enumerate(ETAS)
    ]
    parted = [each["eta"] for each in by_eta if abs(each["ratio"] - 1) > PARTS_BY]
    return {
        "subsets": len(promised),
        "promised": round(float(promised.mean()), 4),
        "promised_sd": round(float(promised.std(ddof=1)), 4),
        "projected_to_whole": round(float((by_projected / promised).mean()), 3),
        "correlation_of_promises": round(pearson(by_projected, promised), 3),
        "parts_at": min(parted, default=None),
        "by_eta": by_eta,
    }
