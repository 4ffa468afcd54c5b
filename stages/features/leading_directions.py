"""Leading directions of feature vectors: where their kernel lies, in as few numbers as possible.

The eigenvectors of the sum of phi_i phi_i' over the examples with the largest eigenvalues; of all
vectors of so many numbers, features along these give the kernel that is nearest to the whole one
(Eckart and Young 1936, doi:10.1007/BF02288367). Labels are never read, so that corrected ones move
nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from stages.reading.feature_rows import LONGEST
from stages.reading.outer_products import read_sums
from stages.stage import (
    ConfigError,
    Cost,
    DataError,
    Inputs,
    Rows,
    Split,
    Stage,
    Work,
    check_alike,
)
from stages.tables import DIRECTION
from storage.schema import TableSpec


class Directions(NamedTuple):
    """Unit vectors, a row each, and the shares of the kernel's trace along them, descending."""

    vectors: Float[Tensor, "directions dim"]
    shares: Float[Tensor, " directions"]


@dataclass(frozen=True)
class LeadingDirections(Stage):
    """The directions that features are longest along, of all examples. One task, 40 dim^2 bytes."""

    kernel: tuple[str, ...] = ("ntk",)
    """Feature tables, whose vectors are taken side by side."""
    normalize: bool = True
    """Scale every feature vector to unit length."""
    dim: int = 512
    """Directions that are kept at most."""
    sums: str = "feature_sums"
    """Instance of `feature_sums` over these tables."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "whole"

    def __post_init__(self) -> None:
        """Refuses fewer directions than one.

        Raises:
            ConfigError: `dim` is below 1.
        """
        if self.dim < 1:
            raise ConfigError(
                f"leading_directions: found dim: {self.dim}, expected at least 1. Raise it."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature tables, by name, and the sums of their outer products."""
        return (*self.kernel, self.sums)

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """Sums over these tables."""
        return {self.sums: {"kernel": list(self.kernel), "normalize": self.normalize}}

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses sums over other vectors, or over parts of them.

        Raises:
            ConfigError: they are.
        """
        wanted = {"kernel": self.kernel, "normalize": self.normalize, "parts": 1}
        check_alike(self.sums, writers[self.sums], wanted)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per direction."""
        return (DIRECTION,)

    def open(self, inputs: Inputs) -> Directions:
        """The directions.

        Raises:
            DataError: no example has features, or all are zero.
        """
        sums = read_sums(inputs.table(self.sums))
        products = sums["0"].products if sums else torch.zeros(0, 0, dtype=torch.float64)
        trace = float(products.diagonal().sum())
        if not trace > 0:
            raise DataError(
                f"{', '.join(self.kernel)}: found no features of the examples other than zeros, "
                "expected some that tell them apart. Check the stage that writes them."
            )
        eigenvalues, basis = torch.linalg.eigh(products)
        n_kept = min(self.dim, len(eigenvalues))
        vectors = basis.T.flip(0)[:n_kept]
        # A direction and its opposite are the same: the largest number of each is positive.
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
        shares = eigenvalues.flip(0)[:n_kept].clamp(min=0) / trace
        return Directions(vectors * largest.sign(), shares)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """How many directions there are, and the share of the kernel's trace that they keep."""
        directions: Directions = inputs.opened
        kept = float(directions.shares.sum())
        return {
            "n_directions": len(directions.shares),
            "share_kept": kept,
            "notices": [
                f"{len(directions.shares)} directions of {directions.vectors.shape[1]} keep "
                f"{kept:.1%} of the kernel of {', '.join(self.kernel)}"
            ],
        }

    def compute(self, inputs: Inputs) -> Rows:
        """The directions, the longest features first."""
        directions: Directions = inputs.opened
        flat = pa.array(np.ascontiguousarray(directions.vectors.numpy()).reshape(-1))
        columns = [
            pa.array(np.arange(len(directions.shares))),
            pa.array(directions.shares.numpy()),
            pa.FixedSizeListArray.from_arrays(flat, directions.vectors.shape[1]),
        ]
        yield DIRECTION.name, pa.RecordBatch.from_arrays(columns, DIRECTION.schema.names)

    def cost(self, work: Work) -> Cost:
        """An eigendecomposition."""
        dim = min(LONGEST, work.dim * len(self.kernel))
        return Cost(
            flops=10.0 * dim**3,
            written_bytes=8 * dim * min(self.dim, dim),
            memory_bytes=40 * dim**2,
            note=f"{min(self.dim, dim):,} directions at most",
        )


STAGE = LeadingDirections
