"""Grad x Input: the gradient at the query itself, times the word embedding.

It is exact for a model that is linear in its embeddings, up to the constant of a zero baseline.

Source: Shrikumar et al. 2016, arXiv:1605.01713.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from torch import Tensor

from stages.embedded import Embedded, differentiate
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
from stages.stage import Cost, Inputs, Split, Work
from stages.token_cost import gradient_cost
from storage.schema import TableSpec


@dataclass(frozen=True)
class GradInput:
    """Scores of the tokens of every query; positive raises the explained output."""

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
        found = [Scored(np.zeros(0))] * units.n

        def points(unit: int, _: Int[np.ndarray, " points"]) -> Tensor:
            return embedded.vectors(units.tokens.columns["input_ids"][unit])[None]

        def take(unit: int, _: Int[np.ndarray, " points"], gradient: Tensor, __: Tensor) -> None:
            products = gradient[0].double() * points(unit, _)[0].double()
            moved = units.places[unit].is_moved
            found[unit] = Scored(products.sum(1).cpu().numpy() * moved, 1)

        ones = [1] * units.n
        differentiate(embedded, units.tokens, units.targets, ones, points, take, self.token_budget)
        yield from token_rows(units, found)

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass."""
        return gradient_cost(self.model, work, 1, self.token_budget)


STAGE = GradInput
