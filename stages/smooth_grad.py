"""SmoothGrad: the squared mean of gradients at noisy copies of the query; it has no sign.

Source: Smilkov et al. 2017, arXiv:1706.03825, in the form of arXiv:2204.10893.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from stages.embedded import Embedded
from stages.explained import (
    EXPLAINED,
    TOKEN,
    Scored,
    load_embedded,
    queries,
    tables_read,
    token_rows,
    with_probe,
)
from stages.measurement import ModelSpec
from stages.squared_gradients import Squares, squared_scores
from stages.stage import Cost, Inputs, Split, Work
from stages.token_cost import gradient_cost
from storage.schema import TableSpec


@dataclass(frozen=True)
class SmoothGrad:
    """Scores of the tokens of every query, without a sign: large matters."""

    model: ModelSpec
    """The model that is explained."""
    samples: int = 25
    """Noisy copies, a gradient each."""
    noise: float = 0.1
    """Standard deviation of the noise, as a share of the range of a query's word embeddings."""
    seed: int = 0
    """Of the noise, which depends on the query beside it."""
    continuation: str = "continuation"
    """Instance that chose the tokens to be explained, with `head: completion`."""
    token_budget: int = 2048
    """Padded tokens per batch."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "query"
    outside_key: ClassVar[frozenset[str]] = frozenset({"model.train"})

    def __post_init__(self) -> None:
        """Refuse numbers out of range; see `Squares`."""
        Squares("smooth", self.samples, self.noise)

    @property
    def reads(self) -> tuple[str, ...]:
        """The text of the queries."""
        return with_probe(self.model, tables_read(self.model, self.continuation))

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Scores, and what was explained."""
        return (TOKEN, EXPLAINED)

    def open(self, inputs: Inputs) -> Embedded:
        """The model."""
        return load_embedded(self.model, inputs)

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Scores of one block of queries."""
        embedded: Embedded = inputs.opened
        units = queries(embedded, inputs, self.token_budget, self.continuation)
        squares = Squares("smooth", self.samples, self.noise, seed=self.seed)
        scores = squared_scores(embedded, units, squares, self.token_budget)
        yield from token_rows(units, [Scored(own, squares.n_gradients) for own in scores])

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass for each copy."""
        return gradient_cost(self.model, work, self.samples, self.token_budget)


STAGE = SmoothGrad
