"""A floor for token scores: random numbers, the same for a query whatever stands beside it.

Every method should do better.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import torch

from stages.drawing import generator_of
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
from stages.stage import Cost, Inputs, Split, Work
from stages.token_cost import gradient_cost
from storage.schema import TableSpec


@dataclass(frozen=True)
class RandomToken:
    """A standard normal score for every token of every query."""

    model: ModelSpec
    """The model that is explained."""
    seed: int = 0
    """Of the numbers, which depend on the query beside it."""
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
        found = []
        for unit in range(units.n):
            name = f"{self.seed}/{units.query_ids[unit]}/{units.outputs[unit]}"
            n = int(units.tokens.lengths[unit])
            found.append(Scored(torch.randn(n, generator=generator_of(name)).double().numpy()))
        yield from token_rows(units, found)

    def cost(self, work: Work) -> Cost:
        """The forward passes that say what is explained."""
        return gradient_cost(self.model, work, 0, self.token_budget)


STAGE = RandomToken
