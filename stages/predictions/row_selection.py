"""Which examples are worth a dearer look: those that cheap scores doubt, and some beside them.

A cascade computes cheap scores of all rows, and gradients (`ntk: {rows: row_selection}`) of the
doubtful ones alone. Half of these have a wrong label, so a regression on them alone would learn the
noise: rows that are drawn by a hash of their ids stand beside them. What it gains and costs:
`scripts/benchmarks/short_features.md`. Ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int64

from stages.reading.drawn import is_drawn
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Split, Stage, Work
from stages.tables import ROW_SELECTION
from storage.schema import TableSpec

DOUBTS = {"label_score": 1.0, "score": -1.0}
"""Columns that rows are chosen by, with the sign by which low numbers are chosen first."""


@dataclass(frozen=True)
class RowSelection(Stage):
    """Ids of examples. One task, which holds 16 bytes for each example that has a score."""

    scores: str = "label_issues"
    """Instance whose scores choose: the lowest of `label_issues`, or of a method of pairs those
    that help the queries most, all pairs that it kept added up."""
    top: float = 0.2
    """Share of the examples with a score that is chosen."""
    beside: float | None = None
    """Share that is drawn from the others; by default as many as `top`."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "whole"

    def __post_init__(self) -> None:
        """Refuses shares out of range.

        Raises:
            ConfigError: a share is not between 0 and 1.
        """
        for name, share in (("top", self.top), ("beside", self.beside)):
            if share is not None and not (0 < share <= 1 or (name == "beside" and share == 0)):
                raise ConfigError(
                    f"{name}: found {share}, expected a share of the examples above 0 and at most "
                    f"1. Set {name}: 0.2 for a fifth."
                )

    @property
    def reads(self) -> tuple[str, ...]:
        """The scores."""
        return (self.scores,)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per chosen example."""
        return (ROW_SELECTION,)

    @property
    def chosen_share(self) -> float:
        """Share of the examples that is chosen in all."""
        return min(1.0, self.top + (self.top if self.beside is None else self.beside))

    def open(self, inputs: Inputs) -> dict[str, Int64[np.ndarray, " rows"]]:
        """Ids of the chosen examples, by why.

        Raises:
            DataError: there are no scores.
        """
        ids, doubts = self._read(inputs)
        n_top = max(1, round(self.top * len(ids)))
        order = np.lexsort((ids, doubts))
        others = ids[order[n_top:]]
        share = self.top if self.beside is None else self.beside
        n_beside = min(len(others), round(share * len(ids)))
        drawn = others[is_drawn(others, n_beside)] if n_beside else others[:0]
        return {"top": np.sort(ids[order[:n_top]]), "beside": np.sort(drawn)}

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """How many examples are chosen, and why."""
        return {f"n_{why}": len(ids) for why, ids in inputs.opened.items()}

    def compute(self, inputs: Inputs) -> Rows:
        """The chosen examples."""
        for why, ids in inputs.opened.items():
            columns = [pa.array(ids), pa.array([why] * len(ids), pa.string())]
            rows = pa.RecordBatch.from_arrays(columns, ROW_SELECTION.schema.names)
            yield ROW_SELECTION.name, rows

    def cost(self, work: Work) -> Cost:
        """A sort of the scores."""
        in_all = f"{self.chosen_share:.0%} of the examples"
        return Cost(
            flops=100.0 * work.n_examples,
            written_bytes=round(16 * self.chosen_share * work.n_examples),
            memory_bytes=60 * work.n_examples,
            note=f"{in_all}: {self.top:.0%} by {self.scores}, others beside them",
        )

    def _read(
        self, inputs: Inputs
    ) -> tuple[Int64[np.ndarray, " examples"], Float[np.ndarray, " examples"]]:
        """Ids of the examples with a score, and a number that is low for those to choose first."""
        ids, doubts = [], []
        for rows in inputs.by_shard(self.scores, "example"):
            column = next((name for name in DOUBTS if name in rows.column_names), None)
            if column is None or "example_id" not in rows.column_names:
                raise DataError(
                    f"{self.scores}: found columns {', '.join(rows.column_names)}, expected "
                    "example_id beside label_score or score. Name an instance of label_issues, or "
                    "of a method of pairs."
                )
            ids.append(rows["example_id"].to_numpy())
            doubts.append(DOUBTS[column] * rows[column].to_numpy())
        if not sum(map(len, ids)):
            raise DataError(
                f"{self.scores}: found no scores, expected some to choose rows by. Name an "
                "instance of label_issues, or of a method of pairs."
            )
        every, place = np.unique(np.concatenate(ids), return_inverse=True)
        return every, np.bincount(place, np.concatenate(doubts), len(every))


STAGE = RowSelection
