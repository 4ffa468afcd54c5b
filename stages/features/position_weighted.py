"""Embeddings for relevance: the mean last hidden state, in which the t-th token has weight t.

Later tokens of a causal language model have read more of the row, its answer above all. With the
cosine, the largest over queries, and turns between them, this is RDS+ (arXiv:2503.01807, section
3), the stage `query_relevance`.
"""

from dataclasses import dataclass
from typing import ClassVar

from stages.model.averaged import Averaged, vector_table
from storage.schema import TableSpec

POSITION_WEIGHTED = vector_table("position_weighted")


@dataclass(frozen=True)
class PositionWeighted(Averaged):
    """One vector per row, prompt and answer together as plain text."""

    version: ClassVar[int] = 1

    @property
    def _layer(self) -> int:
        return -1

    @property
    def _by_position(self) -> bool:
        return True

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One vector per row of text."""
        return (POSITION_WEIGHTED,)


STAGE = PositionWeighted
