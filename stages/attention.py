"""A floor for token scores: the attention that a token receives in the last layer.

The mean over heads and over the row's tokens, which all read it. It is the same for every output,
has no sign, and says where the model looks, not what it makes of it.

Source: Jain and Wallace 2019, arXiv:1902.10186, on what it does not explain.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch

from stages.batching import batches
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
from stages.networks import attention_of
from stages.stage import Cost, Inputs, Split, Work
from stages.token_cost import gradient_cost
from storage.schema import TableSpec


@dataclass(frozen=True)
class Attention:
    """Scores of the tokens of every query, without a sign."""

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
        for rows in batches(units.tokens.lengths, self.token_budget):
            batch = embedded.batch(units.tokens, rows)
            with torch.no_grad():
                weights = attention_of(embedded.network, batch)
            mask = batch["attention_mask"].to(weights.dtype)
            read = (weights * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            for row, own in zip(rows.tolist(), read, strict=True):
                n = int(units.tokens.lengths[row])
                found[row] = Scored(own[:n].double().cpu().numpy())
        yield from token_rows(units, found)

    def cost(self, work: Work) -> Cost:
        """A forward pass, and those that say what is explained."""
        return gradient_cost(self.model, work, 0, self.token_budget, 3)


STAGE = Attention
