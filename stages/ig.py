"""Integrated gradients: the path is the straight line from the baseline to the text's words.

Source: Sundararajan, Taly and Yan 2017, arXiv:1703.01365; Gauss-Legendre nodes as in captum.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa
import torch

from stages.embedded import BaselineName, Embedded
from stages.explained import (
    EXPLAINED,
    TOKEN,
    load_embedded,
    queries,
    tables_read,
    token_rows,
    with_probe,
)
from stages.measurement import ModelSpec
from stages.path import LineRule, Path, baseline_rows, check_steps, follow, nodes
from stages.stage import Cost, Inputs, Split, Work
from stages.token_cost import gradient_cost
from stages.word_distance import line_distance
from storage.schema import TableSpec


@dataclass(frozen=True)
class IntegratedGradients:
    """Scores of the tokens of every query; positive raises the explained output."""

    model: ModelSpec
    """The model that is explained."""
    steps: int = 50
    """Gradients per output."""
    rule: LineRule = "gauss_legendre"
    """Quadrature (`stages/path.py`)."""
    baseline: BaselineName = "mask"
    """Where the path begins: the token for masking or padding, or the zero vector."""
    output: Literal["predicted", "largest"] = "predicted"
    """The output of the query's own prediction, or at every point whichever is largest there."""
    word_distance: bool = False
    """Whether the mean distance of the path's points to the nearest word is computed, too."""
    continuation: str = "continuation"
    """Instance that chose the tokens to be explained, with `head: completion`."""
    token_budget: int = 2048
    """Padded tokens per batch."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "query"
    outside_key: ClassVar[frozenset[str]] = frozenset({"model.train"})

    def __post_init__(self) -> None:
        """Refuse too few steps; see `check_steps`."""
        check_steps(self.steps, self.rule)

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
        at, weights = (torch.from_numpy(part).float() for part in nodes(self.steps, self.rule))
        at, weights = at.to(embedded.table.device), weights.to(embedded.table.device)

        def path(unit: int) -> Path:
            start = baseline_rows(embedded, units, unit, self.baseline)
            step = embedded.vectors(units.tokens.columns["input_ids"][unit]) - start
            return Path(start + at[:, None, None] * step, weights[:, None, None] * step)

        distance = line_distance(embedded, units, at, self.baseline) if self.word_distance else None
        yield from token_rows(
            units,
            follow(
                *(embedded, units, path, self.steps, self.baseline, self.token_budget),
                *(self.output == "largest", distance),
            ),
        )

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass for each step."""
        return gradient_cost(self.model, work, self.steps, self.token_budget)


STAGE = IntegratedGradients
