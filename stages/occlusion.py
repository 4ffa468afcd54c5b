"""Occlusion: how much the explained output falls without a token, one at a time.

score_i = F(x) - F(x with the baseline in place of token i): what leaving one token out changes.

Source: Zeiler and Fergus 2014, arXiv:1311.2901, there of parts of images; Li et al. 2016,
arXiv:1612.08220, of words.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from stages.embedded import BaselineName, Embedded
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
from stages.perturbed import Variant, answers
from stages.stage import Cost, Inputs, Split, Work
from stages.token_cost import gradient_cost, queries_length
from storage.schema import TableSpec


@dataclass(frozen=True)
class Occlusion:
    """Scores of the tokens of every query; positive raises the explained output."""

    model: ModelSpec
    """The model that is explained."""
    baseline: BaselineName = "mask"
    """What a token is replaced with: the token for masking or padding, or the zero vector."""
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
        none = np.zeros(0, np.int64)
        moved = [np.flatnonzero(places.is_moved) for places in units.places]
        variants = [
            Variant(unit, none, np.array([at], np.int64))
            for unit, own in enumerate(moved)
            for at in own.tolist()
        ]
        without = iter(
            answers(embedded, units, variants, self.baseline, self.token_budget, "logit").tolist()
        )
        found = []
        for own, value, length in zip(moved, units.values, units.tokens.lengths, strict=True):
            scores = np.zeros(int(length))
            for at in own.tolist():
                scores[at] = float(value) - next(without)
            found.append(Scored(scores))
        yield from token_rows(units, found)

    def cost(self, work: Work) -> Cost:
        """One forward pass for each token."""
        return gradient_cost(self.model, work, 0, self.token_budget, 2 + queries_length(work))


STAGE = Occlusion
