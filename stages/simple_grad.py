"""SimpleGrad: the squared gradient at the query itself, summed over dimensions; it has no sign.

Source: Simonyan et al. 2014, arXiv:1312.6034, in the form of arXiv:2204.10893.
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
class SimpleGrad:
    """Scores of the tokens of every query, without a sign: large matters."""

    model: ModelSpec
    """The model that is explained."""
    continuation: str = "continuation"
    """Instance that chose the tokens to be explained, with `head: completion`."""
    token_budget: int = 2048
    """Padded tokens per batch."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "query"
    outside_key: ClassVar[frozenset[str]] = frozenset({"model.train"})

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
        squares = Squares("simple")
        scores = squared_scores(embedded, units, squares, self.token_budget)
        yield from token_rows(units, [Scored(own, squares.n_gradients) for own in scores])

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass."""
        return gradient_cost(self.model, work, 1, self.token_budget)


STAGE = SimpleGrad
