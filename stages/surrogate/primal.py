"""Kernel ridge regression in primal form, from sums over the examples: pure functions on tensors.

With features phi of length d, so that K = Phi Phi', and one eigendecomposition Phi'Phi = U s U',

    f(x) = g' (U'B) / (s + damping),   g = U' phi(x),   B = Phi' Y,

which is the dual form's K[x,:] (K + damping I)^-1 Y, at 4 d^2 operations a row and no matrix with
a side of n. For an example, h = sum_j g_j^2 / (s_j + damping) is its leverage; the prediction of a
fit on all others is (f - h y) / (1 - h), and its weight in the dual form (y - f) / damping.
[derived; the push-through identity and the leave-one-out identity of linear smoothers]
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

PANEL = 256
"""Columns of a matrix of sums that are computed at a time, of its lower triangle alone: at 2,048
columns 0.56 of the operations of the whole product."""


class PrimalFit(NamedTuple):
    """The eigendecomposition of the sums of one kernel, and its targets in that basis."""

    basis: Float[Tensor, "dim dim"]
    """U; a column is a direction."""
    eigenvalues: Float[Tensor, " dim"]
    """s, at least 0."""
    targets: Float[Tensor, "dim outputs"]
    """U'B."""


class OutOfSample(NamedTuple):
    """What a fit says of its own examples."""

    outputs: Float[Tensor, "rows outputs"]
    """Leave-one-out predictions, in units of the targets."""
    dual: Float[Tensor, "rows outputs"]
    """Row of (K + damping I)^-1 Y of each example."""


def add_products(
    total: Float[Tensor, "dim dim"], rows: Float[Tensor, "rows dim"]
) -> Float[Tensor, "dim dim"]:
    """Adds rows' rows to the lower triangle of `total`, in place; above it, numbers mean nothing.

    Cost rows * dim^2 multiplications and additions, or little more.
    """
    for start in range(0, total.shape[0], PANEL):
        stop = min(start + PANEL, total.shape[0])
        total[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])
    return total


def decompose(
    products: Float[Tensor, "dim dim"], targets: Float[Tensor, "dim outputs"]
) -> PrimalFit:
    """The fit of the sums Phi'Phi and Phi'Y. Cost about 10 dim^3; memory 4 matrices of dim^2."""
    eigenvalues, basis = torch.linalg.eigh(products)
    # Rounding leaves eigenvalues of singular sums a little below zero.
    return PrimalFit(basis, eigenvalues.clamp_(min=0.0), basis.T @ targets)


def predict(
    fit: PrimalFit, features: Float[Tensor, "rows dim"], damping: float
) -> Float[Tensor, "rows outputs"]:
    """Outputs for rows that are not examples, in units of the targets. Cost rows dim outputs."""
    return features @ (fit.basis @ (fit.targets / (fit.eigenvalues + damping)[:, None]))


def out_of_sample(
    fit: PrimalFit,
    in_basis: Float[Tensor, "rows dim"],
    targets: Float[Tensor, "rows outputs"],
    damping: float,
) -> OutOfSample:
    """Leave-one-out predictions and dual weights of examples; `in_basis` is their features @ U.

    Exact for a fixed damping.
    """
    shrunk = 1 / (fit.eigenvalues + damping)
    leverage = (in_basis.square() @ shrunk)[:, None]
    fitted = in_basis @ (fit.targets * shrunk[:, None])
    return OutOfSample((fitted - leverage * targets) / (1 - leverage), (targets - fitted) / damping)


def squared_errors(
    fit: PrimalFit,
    in_basis: Float[Tensor, "rows dim"],
    targets: Float[Tensor, "rows outputs"],
    dampings: Sequence[float],
) -> Float[Tensor, " dampings"]:
    """For each damping the leave-one-out squared error, summed over the rows and the outputs.

    `in_basis` is the features of examples @ U. Cost rows dim (outputs + 1) for each damping.
    """
    shrunk = 1 / (fit.eigenvalues[:, None] + torch.tensor(dampings, dtype=torch.float64))
    leverage = in_basis.square() @ shrunk
    weights = fit.targets[:, :, None] * shrunk[:, None, :]
    fitted = (in_basis @ weights.flatten(1)).view(len(in_basis), *weights.shape[1:])
    residual = (targets[:, :, None] - fitted) / (1 - leverage)[:, None, :]
    return residual.square().sum((0, 1))
