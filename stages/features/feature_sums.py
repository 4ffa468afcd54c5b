"""Sums of outer products of feature vectors over all examples, for whatever needs their kernel.

With phi_i the features of example i, those of several tables side by side, the sum of phi_i phi_i'
has the same eigenvalues as the kernel of the examples, and the side of a vector instead of their
number. It reads no label, so that a corrected one changes nothing here: `kernel_fit` takes out what
rows without an answer have added. Source: the primal form of ridge regression. [derived]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from stages.capabilities import Merges
from stages.reading.feature_rows import LONGEST, shard_features
from stages.reading.outer_products import Sums, add, to_rows
from stages.stage import ConfigError, Cost, Inputs, Rows, Split, Work
from stages.surrogate.primal_tables import FEATURE_SUMS, add_rows
from storage.schema import TableSpec


@dataclass(frozen=True)
class FeatureSums(Merges):
    """Sums over all examples that have features in every table; float64.

    A task holds one shard of vectors and two matrices per part; a merge eight sets of these.
    """

    kernel: tuple[str, ...] = ("ntk",)
    """Feature tables, whose vectors are taken side by side."""
    normalize: bool = True
    """Scale every feature vector to unit length."""
    parts: int = 1
    """Equal parts that vectors are cut into, each with sums of its own: one for each class where
    kernels are per class."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    shards_per_part: ClassVar[int] = 8

    def __post_init__(self) -> None:
        """Refuses sums over nothing.

        Raises:
            ConfigError: no feature table is named, or no part.
        """
        if not self.kernel or self.parts < 1:
            raise ConfigError(
                f"feature_sums: found kernel: {list(self.kernel)}, parts: {self.parts}, expected "
                "at least one table and one part. Name feature tables, such as [embedding]."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature tables."""
        return self.kernel

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """The rows of each part's matrix."""
        return (FEATURE_SUMS,)

    def compute(self, inputs: Inputs) -> Rows:
        """Sums over the examples of some shards; no rows where none has features."""
        total: dict[str, Sums] = {}
        length = 0
        for tables in zip(*(inputs.by_shard(name, "example") for name in self.kernel), strict=True):
            for part in range(self.parts):
                ids, rows = shard_features(tables, self.normalize, part, self.parts)
                add_rows(total, str(part), rows)
            if len(ids):
                length = sum(table["vector"].type.list_size for table in tables) // self.parts
        if length > LONGEST:
            moved = (2 * len(self.kernel) / LONGEST) ** 0.5
            inputs.tell(
                f"vectors of {length} numbers are sketched to {LONGEST}, which moves their kernel "
                f"by {moved:.1%} of its diagonal at most, on average"
            )
        if total:
            yield FEATURE_SUMS.name, to_rows(total)

    def merge(self, parts: Mapping[str, Sequence[pa.Table]]) -> Rows:
        """Sums over the examples of all parts."""
        together = add(parts[FEATURE_SUMS.name])
        if together is not None:
            yield FEATURE_SUMS.name, together

    def cost(self, work: Work) -> Cost:
        """One product of half a matrix for every row; a partial result for eight shards."""
        dim = min(LONGEST, work.dim * len(self.kernel) // self.parts)
        matrix_bytes = 8 * dim**2 * self.parts
        n_parts = -(-work.n_shards // self.shards_per_part)
        return Cost(
            flops=1.2 * work.n_examples * dim**2 * self.parts,
            written_bytes=round(matrix_bytes / 2 * n_parts * 8 / 7),
            memory_bytes=10 * matrix_bytes // 2
            + 3 * matrix_bytes
            + 20 * work.n_examples // work.n_shards * dim * self.parts,
        )


STAGE = FeatureSums
