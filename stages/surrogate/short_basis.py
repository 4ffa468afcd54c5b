"""Long feature vectors in the leading directions of a sample, while a stage is at work.

For few examples, whose features are taken as they are (`short_features` writes a table for many).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.reading.feature_rows import FeatureRows

SAMPLE = 4096
"""Most rows that directions are taken from."""
BESIDE, PRODUCTS = 32, 2
"""Random directions beside those wanted, and products with the kernel that sharpen them."""


@dataclass(frozen=True)
class ShortRows:
    """Feature vectors along directions."""

    vectors: FeatureRows
    basis: Float[Tensor, "long short"] | None
    """None for the vectors as they are."""

    def __call__(self, rows: Int64[Tensor, " rows"]) -> Float[Tensor, "rows dim"]:
        """The vectors at these positions."""
        found = self.vectors(rows)
        return found if self.basis is None else found @ self.basis

    def along(self, others: FeatureRows) -> "ShortRows":
        """Other rows along the same directions."""
        return ShortRows(others, self.basis)


def shortened(rows: FeatureRows, n: int, most: int) -> ShortRows:
    """The first `n` rows in at most `most` directions, those in which their kernel is largest.

    By products with random directions (Halko, Martinsson, Tropp 2011, doi:10.1137/090771806,
    algorithm 4.4), from `SAMPLE` rows at most, always the same. Cost 2 (2 PRODUCTS + 2) rows dim
    `most` operations.
    """
    at = np.linspace(0, n - 1, min(n, SAMPLE)).astype(np.int64)
    sample = rows(torch.from_numpy(at))
    most = min(most, len(sample))
    if sample.shape[1] <= most:
        return ShortRows(rows, None)
    width = min(most + BESIDE, *sample.shape)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(sample.shape[1], width, dtype=sample.dtype, generator=generator)
    for _ in range(PRODUCTS):
        drawn = torch.linalg.qr(sample.T @ (sample @ drawn)).Q
    short = sample @ drawn
    values, vectors = torch.linalg.eigh(short.T @ short)
    leading = vectors[:, values.argsort(descending=True)[:most]]
    return ShortRows(rows, drawn @ leading)
