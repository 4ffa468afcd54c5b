"""Similarity of the features of a query and of an example: a baseline that asks no loss.

The cosine, by default, or the inner product. The more alike, the more an example counts as a help:
the score knows of no label, so that an example of another class does, too.

The inner product comes apart into the length of the example's vector (global) and its component of
the query (local); a cosine, which no length enters, does not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch

from stages.pairs.scores import ATTRIBUTION, TOP_K, Side, check_top_k, merged, pairs_cost, scored
from stages.reading.vectors import query_vectors, vectors_of
from stages.stage import Cost, Inputs, Role, Split, Work
from storage.schema import TableSpec


@dataclass(frozen=True)
class Similarity:
    """Scores of the pairs of all queries and examples that have features.

    A task holds one shard's vectors and the queries', and 16 million scores.
    """

    features: str = "embedding"
    """The feature table whose vectors are compared."""
    normalize: bool = True
    """Cosines, in which a zero vector has 0 with all; without it, inner products."""
    top_k: int | None = TOP_K
    """Scores of each sign that are kept per query; null keeps all pairs."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    opens: ClassVar[tuple[Role, ...]] = ("query",)

    def __post_init__(self) -> None:
        """Refuse what cannot be kept."""
        check_top_k(self.top_k)

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature table."""
        return (self.features,)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Scores, of inner products with their two parts."""
        return (ATTRIBUTION,)

    def open(self, inputs: Inputs) -> Side:
        """The queries that have features."""
        return self._side(*query_vectors(inputs, self.features))

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """The best scores among the examples of one shard."""
        ids, rows = vectors_of(inputs, self.features)
        if len(ids):
            magnitude = None if self.normalize else rows.norm(dim=1)
            examples = self._side(ids, rows)._replace(magnitude=magnitude)
            yield ATTRIBUTION.name, scored(inputs.opened, examples, self.top_k)

    def merge(
        self, parts: Mapping[str, Sequence[pa.Table]]
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        """The best of several parts."""
        return merged(parts, self.top_k)

    def cost(self, work: Work) -> Cost:
        """One product of the features of queries and examples."""
        return pairs_cost(work, work.dim, self.top_k)

    def _side(self, ids: np.ndarray, rows: torch.Tensor) -> Side:
        if self.normalize:
            # The least length keeps 0 of a zero vector from becoming NaN.
            rows /= rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
        return Side(ids, (rows,))


STAGE = Similarity
