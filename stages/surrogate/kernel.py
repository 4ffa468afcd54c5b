"""Kernels from feature vectors, and kernel ridge regression: pure functions on tensors."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stages.stage import DataError

RIDGE_GRID: tuple[float, ...] = tuple(float(10.0 ** (step / 4)) for step in range(-16, 13))
"""Candidates of `ridge="auto"`: 1e-4 to 1e3, four to the decade."""


class Solution(NamedTuple):
    """A solved kernel ridge regression: M = (K + damping I)^-1, and M times the targets."""

    inverse: Float[Tensor, "examples examples"]
    """M."""
    dual: Float[Tensor, "examples classes"]
    """M Y, the weight of each example in each output."""


def gram(
    features: list[tuple[Float[Tensor, "examples _"], Float[Tensor, "queries _"]]], normalize: bool
) -> tuple[Float[Tensor, "examples examples"], Float[Tensor, "queries examples"]]:
    """The mean of the feature tables' kernels, among the examples and from queries to examples.

    `features` holds one pair (examples, queries) for each table. `normalize` scales each row to
    unit length first (a zero row stays zero); otherwise, of several tables, each kernel is divided
    by its mean diagonal over the examples, so that no table wins by its units. float64; beside the
    result one table in float64. Cost O((n + m) n dim). [ours; the paper has one raw kernel]

    Raises:
        DataError: all examples have zero features in a table.
    """
    n = len(features[0][0])
    total = torch.zeros(n + len(features[0][1]), n, dtype=torch.float64)
    for rows in _scaled(features, normalize):
        total.addmm_(rows, rows[:n].T, alpha=1 / len(features))
    return total[:n], total[n:]


def to_queries(
    features: list[tuple[Float[Tensor, "examples _"], Float[Tensor, "queries _"]]], normalize: bool
) -> Float[Tensor, "queries examples"]:
    """The kernel from queries to examples alone, as `gram` has it. Cost O(m n dim).

    Raises:
        DataError: all examples have zero features in a table.
    """
    n = len(features[0][0])
    kernels = [rows[n:] @ rows[:n].T for rows in _scaled(features, normalize)]
    return torch.stack(kernels).mean(0)


def query_lengths(
    features: list[tuple[Float[Tensor, "examples _"], Float[Tensor, "queries _"]]], normalize: bool
) -> Float[Tensor, " queries"]:
    """The square root of each query's kernel with itself, as `gram` has it. Cost O((n + m) dim).

    Raises:
        DataError: all examples have zero features in a table.
    """
    squares = [
        rows[len(examples) :].square().sum(1)
        for rows, (examples, _) in zip(_scaled(features, normalize), features, strict=True)
    ]
    return torch.stack(squares).mean(0).sqrt()


def _scaled(
    features: list[tuple[Float[Tensor, "examples _"], Float[Tensor, "queries _"]]], normalize: bool
) -> Iterator[Float[Tensor, "rows _"]]:
    """Each table's rows, of examples and then of queries, in float64 and scaled as in `gram`."""
    for examples, queries in features:
        n = len(examples)
        rows = torch.empty(n + len(queries), examples.shape[1], dtype=torch.float64)
        rows[:n], rows[n:] = examples, queries
        length = rows.norm(dim=1, keepdim=True)
        if not length[:n].any():
            raise DataError(
                "features: found only zero vectors among the examples, expected features that "
                "tell examples apart. Check the stage that writes them."
            )
        if normalize:
            rows /= torch.where(length > 0, length, 1.0)
        elif len(features) > 1:
            rows /= length[:n].square().mean().sqrt()
        yield rows


def mean_diagonal(kernel: Float[Tensor, "examples examples"]) -> float:
    """The mean diagonal entry of the kernel, the scale that `ridge` is relative to."""
    return float(kernel.diagonal().mean())


def factor(
    kernel: Float[Tensor, "examples examples"], damping: float
) -> Float[Tensor, "examples examples"]:
    """Lower Cholesky factor of K + damping I. Cost n^3 / 3.

    Raises:
        DataError: the damped kernel is not positive definite to working precision.
    """
    damped = kernel.clone()
    damped.diagonal().add_(damping)
    lower: Tensor
    lower, info = torch.linalg.cholesky_ex(damped)
    if int(info):
        raise DataError(
            f"kernel: found a matrix that is not positive definite at row {int(info)} with damping "
            f"{damping:.3g}, expected one that is. Raise ridge, or set ridge: auto."
        )
    return lower


def solve(
    kernel: Float[Tensor, "examples examples"],
    targets: Float[Tensor, "examples classes"],
    damping: float,
) -> Solution:
    """The regression on all examples, with its inverse matrix. Cost n^3."""
    inverse = torch.cholesky_inverse(factor(kernel, damping))
    return Solution(inverse, inverse @ targets)


def closed_form_loo(
    targets: Float[Tensor, "examples classes"], solution: Solution
) -> Float[Tensor, "examples classes"]:
    """The prediction for each example of a fit on all the others: y_i - (M y)_i / M_ii.

    In units of `targets`; exact for a fixed damping. Cost n classes, given the fit on all.
    [derived; the leave-one-out identity of linear smoothers]
    """
    return targets - solution.dual / solution.inverse.diagonal()[:, None]


def auto_ridge(
    kernel: Float[Tensor, "examples examples"],
    targets: Float[Tensor, "examples classes"],
    grid: tuple[float, ...] = RIDGE_GRID,
) -> tuple[float, tuple[float, ...]]:
    """The ridge of `grid` with the least leave-one-out squared error on the labels, and all errors.

    An error is the mean over examples of the sum over classes; the smaller ridge wins a tie. One
    eigendecomposition serves the whole grid: about 10 n^3 + len(grid) n^2 C. The damping is held
    at ridge times the mean diagonal over *all* examples while one is left out. [ours]
    """
    values, basis = torch.linalg.eigh(kernel)
    # Rounding leaves eigenvalues of a singular kernel a little below zero.
    values.clamp_(min=0.0)
    projected, squared = basis.T @ targets, basis.square()
    scale = mean_diagonal(kernel)
    errors = []
    for ridge in grid:
        shrunk = 1 / (values + ridge * scale)
        residual = (basis @ (shrunk[:, None] * projected)) / (squared @ shrunk)[:, None]
        errors.append(float(residual.square().sum(1).mean()))
    return grid[int(np.argmin(errors))], tuple(errors)
