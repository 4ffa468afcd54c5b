"""Outliers: examples that lie far from all others, such as texts of another kind or language.

How far an example lies is 1 less the cosine of its features with the mean direction of all, the sum
of their unit vectors: up to a constant, its mean squared distance from all other examples. Those
beyond Tukey's upper fence, k times the interquartile range above the upper quartile, are outliers;
it flags about one in a hundred of clean rows.

The mean over the nearest neighbours alone, as Datalab has it, misses rows of another kind as soon
as there are more of them than neighbours, for they are near to each other; leverage, the distance
along rare directions, suffers from the same (`scripts/benchmarks/duplicates.md`). What this one
misses is a row between the rows of a corpus of several kinds.

Source: Tukey 1977, Exploratory Data Analysis, section 2D (fences). The rest is ours.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float64, Int64

from stages.reading.vectors import matrix_of, unit_rows
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Split, Stage, Work
from storage.schema import TableSpec

OUTLIER = TableSpec(
    name="outlier",
    schema=pa.schema(
        [
            ("example_id", pa.int64()),
            ("outlier_score", pa.float64()),
            ("is_outlier", pa.bool_()),
            ("distance", pa.float64()),
        ]
    ),
    key=("example_id",),
)
"""How far an example lies, from 0 to 2, and its score from 0, farthest, to 1: 2^-(d / f) for a
distance that is d above the median, f of the fence; an outlier's is below 1/2."""


ALIKE = 1e-6
"""Distances that differ by less are of equal texts: where most texts are equal, so is the fence."""


class Distances(NamedTuple):
    """How far the examples lie, by ascending id, and what is far."""

    ids: Int64[np.ndarray, " examples"]
    distances: Float64[np.ndarray, " examples"]
    median: float
    fence: float


def scores(found: Distances) -> Float64[np.ndarray, " examples"]:
    """From 0, farthest, to 1, at the median and nearer; 1/2 on the fence."""
    beyond = np.maximum(found.distances - found.median, 0.0)
    return np.exp2(-beyond / (found.fence - found.median))


@dataclass(frozen=True)
class Outliers(Stage):
    """A score in [0, 1] for each example (low = far from all others), and a decision.

    One task, which reads every vector twice and holds a shard of them, and 48 bytes a row.
    """

    features: str = "embedding"
    """The feature table whose vectors are compared."""
    fence: float = 1.25
    """k: interquartile ranges above the upper quartile, beyond which examples are outliers. Higher
    flags fewer."""

    version: ClassVar[int] = 2
    split: ClassVar[Split] = "whole"

    def __post_init__(self) -> None:
        """Refuses a fence below the quartile.

        Raises:
            ConfigError: it is.
        """
        if not self.fence >= 0:
            raise ConfigError(
                f"outliers: found fence: {self.fence}, expected interquartile ranges of at least "
                "0. Set 1.25, or more to flag fewer."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature table."""
        return (self.features,)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per example with features."""
        return (OUTLIER,)

    def open(self, inputs: Inputs) -> Distances:
        """The distance of every example.

        Raises:
            DataError: no example has features.
        """
        total, ids, cosines = np.zeros(0), [], []
        for _, rows in self._vectors(inputs):
            total = unit_rows(rows).sum(0) + (total if len(total) else 0.0)
        centre = unit_rows(total[None])[0]
        for own, rows in self._vectors(inputs):
            ids.append(own)
            cosines.append(unit_rows(rows) @ centre)
        if not ids:
            raise DataError(
                f"{self.features}: found no example with features, expected some to compare. The "
                "view diagnostics tells what became of features."
            )
        every, distances = np.concatenate(ids), 1 - np.concatenate(cosines)
        order = np.argsort(every)
        low, median, high = np.quantile(distances, (0.25, 0.5, 0.75))
        fence = high + max(self.fence * (high - low), ALIKE)
        return Distances(every[order], distances[order], float(median), float(fence))

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The median distance, and the fence."""
        return {"median": inputs.opened.median, "fence": inputs.opened.fence}

    def compute(self, inputs: Inputs) -> Rows:
        """The score of every example."""
        found: Distances = inputs.opened
        is_outlier = found.distances > found.fence
        columns = [found.ids, scores(found), is_outlier, found.distances]
        batch = pa.RecordBatch.from_arrays(list(map(pa.array, columns)), schema=OUTLIER.schema)
        yield OUTLIER.name, batch

    def cost(self, work: Work) -> Cost:
        """A few operations for every number."""
        n = work.n_examples
        return Cost(
            flops=12.0 * n * work.dim,
            written_bytes=18 * n,
            memory_bytes=48 * n + 24 * n // max(1, work.n_shards) * work.dim,
        )

    def _vectors(
        self, inputs: Inputs
    ) -> Iterator[tuple[np.ndarray, Float[np.ndarray, "rows dim"]]]:
        """Ids and vectors of the examples of each shard that has some."""
        for table in inputs.by_shard(self.features, "example"):
            if table.num_rows:
                yield table["id"].to_numpy(), matrix_of(table["vector"])


STAGE = Outliers
