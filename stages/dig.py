"""DIG: gradients along a chain of neighbouring words from each word to the baseline.

Source: Sanyal and Ren 2021, arXiv:2108.13654 (`stages/anchors.py`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa

from stages.anchors import Candidates, Strategy, check_anchors, n_points
from stages.discrete_path import Anchored, check_paths, path_fields, score
from stages.embedded import BaselineName
from stages.explained import EXPLAINED, TOKEN, load_embedded, tables_read, token_rows, with_probe
from stages.measurement import ModelSpec
from stages.path import Rule
from stages.stage import Cost, Inputs, Split, Work
from stages.token_cost import gradient_cost
from storage.schema import TableSpec

CANDIDATES: Candidates = "previous"


@dataclass(frozen=True)
class Dig:
    """Scores of the tokens of every query; positive raises the explained output."""

    model: ModelSpec
    """The model that is explained."""
    anchors: int = 30
    """Anchor words of a path, m."""
    neighbours: int = 500
    """Candidates for each, k."""
    strategy: Strategy = "greedy"
    """Which candidate is taken; see `stages/anchors.py`."""
    midpoints: int = 0
    """Rounds of midpoints between the anchors, f: a path has 2^f (m + 1) + 1 points."""
    rule: Rule = "left"
    """Quadrature (`stages/path.py`)."""
    baseline: BaselineName = "mask"
    """Where paths begin: the token for masking or padding, or the zero vector."""
    output: Literal["predicted", "largest"] = "predicted"
    """The output of the query's own prediction, or, as the authors' code has it, at every point
    whichever is largest there."""
    word_distance: bool = False
    """Whether the mean distance of the path's points to the nearest word is computed, too."""
    paths: str = "word_path"
    """Instance of `word_path` that holds the anchors. Two stages with different anchors need one
    each, by name."""
    continuation: str = "continuation"
    """Instance that chose the tokens to be explained, with `head: completion`."""
    token_budget: int = 2048
    """Padded tokens per batch."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "query"
    outside_key: ClassVar[frozenset[str]] = frozenset({"model.train"})

    def __post_init__(self) -> None:
        """Refuse what cannot be computed; see `check_anchors`."""
        check_anchors(self.anchors, self.neighbours, self.midpoints)

    @property
    def reads(self) -> tuple[str, ...]:
        """The text of the queries, and anchors."""
        tables = (*tables_read(self.model, self.continuation), self.paths)
        return with_probe(self.model, tables)

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """Anchors as they are wanted here."""
        return {self.paths: path_fields(self, CANDIDATES)}

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Scores, and what was explained."""
        return (TOKEN, EXPLAINED)

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses other anchors; see `check_paths`."""
        check_paths(self, CANDIDATES, self.paths, writers[self.paths])

    def open(self, inputs: Inputs) -> Anchored:
        """The model and the anchors."""
        embedded = load_embedded(self.model, inputs)
        return Anchored(embedded, inputs.table(self.paths), self, CANDIDATES)

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Scores of one block of queries."""
        yield from token_rows(*score(self, inputs.opened, inputs))

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass for each point."""
        count = n_points(self.anchors, self.midpoints)
        return gradient_cost(self.model, work, count, self.token_budget)


STAGE = Dig
