"""Singular values of a row's gradient of a layer, from what it is a product of; it is never formed.

With D (tokens, outputs) and A (tokens, inputs) the output gradients and the inputs of a linear
layer, the gradient of its weight is G = D' A, of at most as many singular values above 0 as there
are tokens, inputs or outputs. Their squares are the eigenvalues of A' (D D') A, and, but for zeros,
those of S (D D') S, S the root of A A': of the two the smaller is taken.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

NUMBERS = 2**22
"""Numbers of D that are held in float64 at a time."""


def singular_values(
    deltas: Float[Tensor, "tokens outputs"], inputs: Float[Tensor, "tokens inputs"]
) -> Float[Tensor, " values"]:
    """The singular values of D' A, largest first, as many as there are tokens or inputs.

    In float64; right to 1e-8 of the largest, as the squares are known to 1e-16. Cost tokens^2
    (outputs + inputs), and an eigendecomposition of the smaller side.
    """
    n_tokens, width = inputs.shape
    products = torch.zeros(n_tokens, n_tokens, dtype=torch.float64, device=inputs.device)
    block = max(1, NUMBERS // n_tokens)
    for start in range(0, deltas.shape[1], block):
        part = deltas[:, start : start + block].double()
        products.addmm_(part, part.T)
    exact = inputs.double()
    if width < n_tokens:
        small = exact.T @ products @ exact
    else:
        values, vectors = torch.linalg.eigh(exact @ exact.T)
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        small = root @ products @ root
    squares = torch.linalg.eigvalsh((small + small.T) / 2)
    largest_first: Tensor = squares.clamp(min=0).sqrt().flip(0)
    return largest_first


def spectral_entropy(values: Float[Tensor, " values"], top: int) -> float:
    """How evenly the `top` largest singular values share their sum, from 0 (one) to 1 (alike).

    -sum_k p_k log p_k / log top, with p_k a value over the sum of all that count; values that a
    matrix does not have are 0. NaN of a matrix of zeros.

    Source: GradSentry, arXiv:2605.26574, and its published code.
    """
    largest = values[:top]
    shares = largest / largest.sum()
    shares = shares[shares != 0]
    return float(-(shares * shares.log()).sum() / math.log(top))
