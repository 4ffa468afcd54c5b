"""The fit of a linear head: its objective, and Newton's method or the normal equations for it.

With embeddings centred and divided by their root mean square length s, the head minimises

    (1/n) sum_i -log softmax(W x_i + b)[y_i]  +  (regularization / 2) ||W||^2,

so that its predictions change neither with the unit of the embeddings, nor with a shift or rotation
of them, nor when every example is repeated. scikit-learn's `LogisticRegression(C=...)` on the raw
embeddings is the same problem at C = 1 / (n * regularization * s^2).

For a regression it has one output, "class" 0, and minimises in the same units

    (1/2n) sum_i (w x_i + b - y_i)^2  +  (regularization / 2) ||w||^2,

which scikit-learn's `Ridge(alpha=n * regularization * s^2)` on the raw embeddings does, too.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.stage import DataError, StageError

BIAS_PENALTY = 1e-6
"""Penalty on biases. It keeps finite what the data leave open: the bias of a class without
examples, and a shift common to all biases. At 1e-6 it moves no probability that matters."""


class LinearHead(NamedTuple):
    """A linear head for raw embeddings, and the units that its penalty is in; float64."""

    weight: Float[Tensor, "outputs dim"]
    bias: Float[Tensor, " outputs"]
    mean: Float[Tensor, " dim"]
    """Of the embeddings."""
    scale: float
    """Root mean square length of the embeddings less their mean."""


def objective(
    theta: Float[Tensor, "classes dim_and_bias"],
    features: Float[Tensor, "rows dim_and_bias"],
    labels: Int[Tensor, " rows"],
    regularization: float,
) -> Float[Tensor, ""]:
    """Mean cross-entropy plus penalty at theta = (W, b); the last column of `features` is 1."""
    loss = torch.nn.functional.cross_entropy(features @ theta.T, labels)
    weight, bias = theta[:, :-1], theta[:, -1]
    return loss + 0.5 * (
        regularization * weight.square().sum() + BIAS_PENALTY * bias.square().sum()
    )


def fit(
    embeddings: Float[Tensor, "rows dim"],
    labels: Int[Tensor, " rows"],
    n_classes: int,
    regularization: float,
    tolerance: float = 1e-9,
    max_steps: int = 100,
) -> LinearHead:
    """The head of least mean cross-entropy plus penalty.

    Newton's method with conjugate gradients and halved steps; it ends when no entry of the
    gradient exceeds `tolerance`. The objective is strictly convex: the answer does not depend on
    the start. Cost O(rows * dim * classes) per conjugate step, some hundreds of them; memory one
    float64 copy of the embeddings.

    Raises:
        StageError: the tolerance was not reached in `max_steps` Newton steps.
        DataError: all embeddings are equal.
    """
    features, mean, scale = standardised(embeddings)

    penalty = torch.full((features.shape[1],), regularization, dtype=torch.float64)
    penalty[-1] = BIAS_PENALTY
    onehot = torch.nn.functional.one_hot(labels, n_classes).double()
    theta = torch.zeros(n_classes, features.shape[1], dtype=torch.float64)
    for _ in range(max_steps):
        p = torch.softmax(features @ theta.T, 1)
        gradient = (p - onehot).T @ features / len(features) + penalty * theta
        steepest = float(gradient.abs().max())
        if steepest <= tolerance:
            weight = theta[:, :-1] / scale
            return LinearHead(weight, theta[:, -1] - weight @ mean, mean, scale)

        def curvature(v: Tensor, p: Tensor = p) -> Tensor:
            u = p * (features @ v.T)
            u -= p * u.sum(1, keepdim=True)
            return u.T @ features / len(features) + penalty * v

        # The classical forcing term: early steps are solved roughly, late ones quadratically well.
        step = _conjugate_gradients(curvature, -gradient, min(0.1, steepest**0.5))
        theta = _line_search(theta, step, gradient, features, labels, regularization)
    raise StageError(
        f"probe: found a gradient of {steepest:.1e} after {max_steps} Newton steps, expected at "
        f"most {tolerance:.1e}. Raise regularization."
    )


def fit_least_squares(
    embeddings: Float[Tensor, "rows dim"],
    targets: Float[Tensor, " rows"],
    regularization: float,
) -> LinearHead:
    """The head of least mean squared error plus penalty, with one output.

    In closed form, through the smaller of the matrices over dimensions and over rows: cost
    rows * dim * min(rows, dim), memory one float64 copy of the embeddings and that matrix.

    Raises:
        DataError: all embeddings are equal.
    """
    features, mean, scale = standardised(embeddings)
    features, level = features[:, :-1], targets.double().mean()
    residual = targets.double() - level
    n_rows, dim = features.shape
    if dim <= n_rows:
        gram = features.T @ features / n_rows
        gram.diagonal().add_(regularization)
        moments = (features.T @ residual / n_rows)[:, None]
        weight = torch.cholesky_solve(moments, lower_factor(gram))[:, 0]
    else:
        gram = features @ features.T / n_rows
        gram.diagonal().add_(regularization)
        dual = torch.cholesky_solve(residual[:, None], lower_factor(gram))[:, 0] / n_rows
        weight = features.T @ dual
    weight = weight[None] / scale
    return LinearHead(weight, level - weight @ mean, mean, scale)


def lower_factor(matrix: Float[Tensor, "size size"]) -> Float[Tensor, "size size"]:
    """The lower Cholesky factor of a matrix of second derivatives. Cost size^3 / 3.

    Raises:
        DataError: it is not positive definite to working precision.
    """
    lower: Tensor
    lower, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise DataError(
            f"probe: found a matrix that is not positive definite at row {int(info)}, expected one "
            "that is. Raise regularization."
        )
    return lower


def standardised(
    embeddings: Float[Tensor, "rows dim"],
) -> tuple[Float[Tensor, "rows dim_and_bias"], Float[Tensor, " dim"], float]:
    """Embeddings centred and in units of their root mean square length, then a column of ones.

    Beside them the mean and the length, in float64.

    Raises:
        DataError: all embeddings are equal.
    """
    mean = embeddings.double().mean(0)
    features = torch.empty(len(embeddings), embeddings.shape[1] + 1, dtype=torch.float64)
    features[:, :-1] = embeddings
    features[:, :-1] -= mean
    scale = float(features[:, :-1].square().sum(1).mean().sqrt())
    if scale == 0.0:
        raise DataError(
            f"probe: found {len(embeddings)} equal embeddings, expected different ones. "
            "Give more examples, or check the embedding stage."
        )
    features[:, :-1] /= scale
    features[:, -1] = 1.0
    return features, mean, scale


def _conjugate_gradients(
    curvature: Callable[[Tensor], Tensor], target: Tensor, precision: float
) -> Tensor:
    """The x with curvature(x) = target, to a residual norm of `precision` times the target's."""
    x, residual = torch.zeros_like(target), target.clone()
    direction, square = residual.clone(), residual.square().sum()
    goal = precision**2 * square
    for _ in range(2 * target.numel()):
        if square <= goal:
            break
        curved = curvature(direction)
        length = square / (direction * curved).sum()
        x += length * direction
        residual -= length * curved
        before, square = square, residual.square().sum()
        direction = residual + (square / before) * direction
    return x


def _line_search(
    theta: Tensor,
    step: Tensor,
    gradient: Tensor,
    features: Tensor,
    labels: Tensor,
    regularization: float,
) -> Tensor:
    """Weights after the step, halved until the objective falls by a share of what it promises."""
    start = objective(theta, features, labels, regularization)
    slope = (gradient * step).sum()
    # Near the optimum the decrease drowns in the rounding of the objective itself.
    rounding = 1e-14 * start.abs()
    for halvings in range(40):
        moved = theta + step * 0.5**halvings
        value = objective(moved, features, labels, regularization)
        if value <= start + 1e-4 * 0.5**halvings * slope + rounding:
            break
    return moved
