"""Short features: feature vectors along their leading directions, for games of many examples.

Inner products of short vectors are the kernel of rank `dim` that is nearest to the whole one. They
are what `freeshap`, `shapley_by_query` and `leave_one_out` work on where there are many examples,
as the cost of a coalition grows with the square of a vector's length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from stages.reading.feature_rows import LONGEST, shard_features
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, Cost, Inputs, Rows, Split, Stage, Work, check_alike
from storage.schema import TableSpec

SHORT_FEATURES = TableSpec(
    name="short_features",
    schema=pa.schema(
        [("id", pa.int64()), ("role", pa.string()), ("vector", pa.list_(pa.float32()))]
    ),
    key=("id",),
)


@dataclass(frozen=True)
class ShortFeatures(Stage):
    """One short vector per row that has features in every table. Cost 2 dim length a row."""

    kernel: tuple[str, ...] = ("ntk",)
    """Feature tables, whose vectors are taken side by side."""
    normalize: bool = True
    """Scale every feature vector to unit length first."""
    dim: int = 512
    """Numbers of a short vector at most."""
    directions: str = "leading_directions"
    """Instance of `leading_directions` of these tables."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"

    def __post_init__(self) -> None:
        """Refuses several tables of which one would win by its units.

        Raises:
            ConfigError: there are several, and their vectors are not scaled.
        """
        if len(self.kernel) > 1 and not self.normalize:
            raise ConfigError(
                f"short_features: found normalize: false with kernel: {list(self.kernel)}, "
                "expected one table, or vectors of unit length. Set normalize: true, or "
                "directions: null in the game that is played on them."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature tables and their directions."""
        return (*self.kernel, self.directions)

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """Directions of these tables."""
        fields = {"kernel": list(self.kernel), "normalize": self.normalize, "dim": self.dim}
        return {self.directions: fields}

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses directions of other vectors.

        Raises:
            ConfigError: they are.
        """
        wanted = {name: getattr(self, name) for name in ("kernel", "normalize", "dim")}
        check_alike(self.directions, writers[self.directions], wanted)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One vector per row."""
        return (SHORT_FEATURES,)

    @property
    def feature_dim(self) -> int | None:
        """Numbers of a vector, where the features are that long."""
        return self.dim

    def open(self, inputs: Inputs) -> Float[Tensor, "dim directions"]:
        """The directions, in columns."""
        table = inputs.table(self.directions).sort_by("direction")
        return torch.from_numpy(np.ascontiguousarray(matrix_of(table["vector"]).T))

    def compute(self, inputs: Inputs) -> Rows:
        """The rows of one shard."""
        tables = [inputs.table(name) for name in self.kernel]
        ids, rows = shard_features(tables, self.normalize)
        if not len(ids):
            return
        short = np.ascontiguousarray((rows @ inputs.opened).float().numpy())
        columns = [
            pa.array(ids),
            pa.array([inputs.part.role] * len(ids), pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(short.reshape(-1)), short.shape[1]),
        ]
        yield SHORT_FEATURES.name, pa.RecordBatch.from_arrays(columns, SHORT_FEATURES.schema.names)

    def cost(self, work: Work) -> Cost:
        """One product of every row with the directions."""
        n_rows, length = work.n_examples + work.n_queries, min(LONGEST, work.dim * len(self.kernel))
        dim = min(self.dim, length)
        return Cost(
            flops=2.0 * n_rows * length * dim,
            written_bytes=n_rows * (4 * dim + 24),
            memory_bytes=8 * length * dim + 40 * work.n_examples // work.n_shards * length,
        )


STAGE = ShortFeatures
