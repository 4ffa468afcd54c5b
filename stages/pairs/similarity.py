"""Similarity of the features of a query and of an example: a baseline that looks at no loss.

The cosine, by default, or the inner product. The more alike, the more an example counts as a help:
the score knows of no label, so that an example of another class does, too.

The inner product comes apart into the length of the example's vector (global) and its component of
the query (local); a cosine, which no length enters, does not.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from stages.pairs.scores import FactorRows, PairScores
from stages.reading.vectors import query_vectors, vectors_of
from stages.stage import Inputs


@dataclass(frozen=True)
class Similarity(PairScores):
    """Scores of the pairs of all queries and examples that have features.

    A task holds one shard's vectors and the queries', and 16 million scores.
    """

    features: str = "embedding"
    """The feature table whose vectors are compared."""
    normalize: bool = True
    """Cosines, in which a zero vector has 0 with all; without it, inner products."""

    version: ClassVar[int] = 2
    speaks_for: ClassVar[str] = "likeness"

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature table."""
        return (self.features,)

    def queries(self, inputs: Inputs) -> FactorRows:
        """Features of the queries."""
        return self._rows(*query_vectors(inputs, self.features))

    def examples(self, inputs: Inputs) -> FactorRows:
        """Features of the examples of one shard."""
        ids, rows = vectors_of(inputs, self.features)
        magnitude = None if self.normalize else rows.norm(dim=1)
        return self._rows(ids, rows)._replace(magnitude=magnitude)

    def _rows(self, ids: np.ndarray, rows: torch.Tensor) -> FactorRows:
        """The rows as factors, with `normalize` scaled to unit length in place."""
        if self.normalize:
            # In float64: the squares of long and of short vectors leave the range of float32.
            length = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
            rows /= torch.where(length > 0, length, 1.0)
        return FactorRows(ids, (rows,))


STAGE = Similarity
