"""What LESS compares: steps of Adam at several checkpoints, joined so that one cosine says all.

With Gamma_c(i) the step of an example at checkpoint c, g_c(t) the gradient of a query there and
eta_c the learning rate, LESS scores the pair by

    score(t, i) = sum_c eta_c cos(g_c(t), Gamma_c(i)).

Here the vector of a row is that of each checkpoint (`adam_step`) at length 1, times the root of
eta_c / sum_c eta_c, side by side. It has length 1 itself, and the cosine of two rows is the score
over the sum of the rates. So whatever compares vectors of rows by the cosine compares by LESS:
`query_relevance: {features: less}` chooses by it, `similarity: {features: less}` shows its pairs.

The source averages the gradients of a task's queries and takes the largest score over tasks;
`query_relevance` lets the queries take turns.

Source: Xia et al. 2024, arXiv:2402.04333, definition 3.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from stages.model.averaged import vector_table
from stages.reading.vectors import matrix_of, unit_rows, vector_rows
from stages.stage import ConfigError, Cost, Inputs, Rows, Split, Stage, Work
from storage.schema import TableSpec

LESS = vector_table("less")


@dataclass(frozen=True)
class Less(Stage):
    """One vector per row that has one at every checkpoint. A task holds a shard of all of them."""

    steps: tuple[str, ...] = ("adam_step",)
    """Instances of `adam_step`, one per checkpoint, with one projection or several."""
    rates: tuple[float, ...] | None = None
    """Learning rate of each checkpoint, in the source the mean of its epoch; by default alike."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "completion")
    speaks_for: ClassVar[str] = "label"
    is_one_map: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuses rates that do not fit the checkpoints.

        Raises:
            ConfigError: they do not, or no checkpoint is named, or one twice.
        """
        rates = self._rates()
        if not self.steps or len(set(self.steps)) < len(self.steps):
            raise ConfigError(
                f"steps: found {list(self.steps)}, expected at least one instance, each once. Name "
                "instances of adam_step."
            )
        if len(rates) != len(self.steps) or min(rates) <= 0:
            raise ConfigError(
                f"rates: found {list(rates)} for {len(self.steps)} checkpoints, expected one "
                "positive number for each. Correct them, or leave them out."
            )

    def _rates(self) -> tuple[float, ...]:
        return self.rates or (1.0,) * len(self.steps)

    @property
    def reads(self) -> tuple[str, ...]:
        """The steps at every checkpoint."""
        return self.steps

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses vectors that are no steps of Adam.

        Raises:
            ConfigError: a checkpoint's are others.
        """
        for name, writer in writers.items():
            if writer.writes[0].name != "adam_step":
                raise ConfigError(
                    f"steps: found {name}, which writes {writer.writes[0].name}, expected an "
                    "instance of adam_step. Name one for each checkpoint."
                )

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One vector per row."""
        return (LESS,)

    def compute(self, inputs: Inputs) -> Rows:
        """The vectors of one shard; rows that a checkpoint lacks are counted."""
        tables = [inputs.table(name).sort_by("id") for name in self.steps]
        every = [table["id"].to_numpy() for table in tables]
        ids = every[0]
        for other in every[1:]:
            ids = np.intersect1d(ids, other)
        inputs.tell(n_left_out=max(map(len, every)) - len(ids))
        if not len(ids):
            return
        total, parts = sum(self._rates()), []
        for rate, own, table in zip(self._rates(), every, tables, strict=True):
            unit = unit_rows(matrix_of(table["vector"])[np.searchsorted(own, ids)])
            parts.append((unit * (rate / total) ** 0.5).astype(np.float32))
        kept = tables[0].filter(pa.compute.is_in(tables[0]["id"], pa.array(ids)))
        yield LESS.name, vector_rows(kept, np.arange(len(ids)), np.concatenate(parts, axis=1))

    def cost(self, work: Work) -> Cost:
        """Every vector once."""
        n, dim = work.n_examples + work.n_queries, work.dim * len(self.steps)
        return Cost(
            flops=3.0 * n * dim,
            written_bytes=n * (4 * dim + 16),
            memory_bytes=16 * dim * (work.n_examples // max(1, work.n_shards)),
            vector_length=dim,
        )


STAGE = Less
