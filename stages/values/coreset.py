"""Coreset: an order of the examples in which any first part trains well, without clean labels.

Rows are taken one by one, each the one that improves a ridge regression on the rows taken so far
most (`stages/surrogate/greedy.py`). What the regression should say is known for the labelled
queries, and of the examples themselves it is the probability of each class being the right one,
given their labels and their out-of-sample predictions (`label_noise`): mistakes are not learnt, and
no query is needed. Examples whose label is probably wrong are taken last.

It is judged beside values, random rows and other rules in `scripts/benchmarks/selection.md`. The
greedy choice by the exact utility of a surrogate is ours; that one by expected loss on unlabelled
rows is a good one was shown for active learning (Roy and McCallum 2001).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from stages.game.fields import FeatureFields, n_directions
from stages.game.pool import order_of, read_pool, usable_queries
from stages.stage import ConfigError, Cost, Inputs, Rows, Split, Stage, Work, check_alike
from stages.surrogate.greedy import ALONE, BATCH
from stages.surrogate.labelled_kernel import check_ridge
from stages.surrogate.short_basis import SAMPLE
from storage.schema import TableSpec

CORESET = TableSpec(
    name="coreset",
    schema=pa.schema(
        [
            ("example_id", pa.int64()),
            ("rank", pa.int64()),
            ("gain", pa.float64()),
            ("is_taken", pa.bool_()),
        ]
    ),
    key=("example_id",),
)
"""Places in the order, from 1. `gain` is by how much the row lowered the loss when it was taken
and, for rows that were not, how much one of them would lower it at the end."""


@dataclass(frozen=True)
class Coreset(FeatureFields, Stage):
    """An order of the examples to train on: `assay select --by coreset`.

    One task. Up to 4,096 examples compete with each other; more in batches of 1,024. Cost, for n
    examples of d numbers: 28 n d^2 + 12 `share` n d operations times those that compete. Memory:
    60 d^2 bytes, 200,000 d, and 100 n + 16 n C. Longer vectors are taken along 512 directions,
    1,024 for more than two classes.
    """

    share: float = 0.5
    """Share of the examples that is taken one by one. The others follow by what each would add."""
    predictions: str = "kernel_regression"
    """Instance with out-of-sample predictions, for the probabilities of right classes."""
    noise: str = "label_noise"
    """Instance of `label_noise` over the same predictions."""
    random_seed: int = 0
    """Of the batches that more than 4,096 examples are cut into."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "whole"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def __post_init__(self) -> None:
        """Refuses fields out of range.

        Raises:
            ConfigError: the share is not above 0 and at most 1, or the ridge is not positive.
        """
        check_ridge(self.ridge)
        if not 0 < self.share <= 1:
            raise ConfigError(
                f"share: found {self.share}, expected a share of the examples above 0 and at most "
                "1. Set share: 0.5 for a half."
            )

    @property
    def seed(self) -> int:
        """The seed of the batches."""
        return self.random_seed

    @property
    def reads(self) -> tuple[str, ...]:
        """Features, labels, predictions, and the noise model of these."""
        return (*super().reads, self.predictions, self.noise)

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """Features as in `FeatureFields`, and a noise model of these predictions."""
        return {**super().asks, self.noise: {"predictions": self.predictions}}

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses a noise model of other predictions.

        Raises:
            ConfigError: it has others.
        """
        check_alike(self.noise, writers[self.noise], {"predictions": self.predictions})

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per labelled example with a prediction and features."""
        return (CORESET,)

    def compute(self, inputs: Inputs) -> Rows:
        """The order of all examples."""
        pool = read_pool(inputs, self, self.predictions, self.noise)
        queries = usable_queries(inputs, self, pool.right.shape[1])
        found = order_of(inputs, self, pool, queries, self.share, self.random_seed)
        columns = [
            pa.array(pool.ids[found.rows]),
            pa.array(np.arange(1, len(found.rows) + 1)),
            pa.array(found.gains),
            pa.array(np.arange(len(found.rows)) < found.n_taken),
        ]
        yield CORESET.name, pa.RecordBatch.from_arrays(columns, schema=CORESET.schema)

    def cost(self, work: Work) -> Cost:
        """Passes over the features, and the rows of a batch at every step."""
        n, long = work.n_examples, self.n_numbers(work)
        dim = min(long, n_directions(work.n_classes))
        competing, sample = n if n <= ALONE else BATCH, min(n, SAMPLE)
        shortens = 12.0 * sample * long * dim + 2.0 * n * long * dim if long > dim else 0.0
        return Cost(
            flops=shortens + 28.0 * n * dim**2 + 12.0 * self.share * n * competing * dim,
            written_bytes=25 * n,
            memory_bytes=60 * dim**2
            + 48 * min(n, ALONE) * dim
            + 16 * sample * long
            + n * (100 + 16 * work.n_classes),
            note="all examples compete" if n <= ALONE else f"batches of {BATCH:,}",
        )


STAGE = Coreset
