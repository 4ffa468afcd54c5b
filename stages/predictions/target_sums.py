"""Sums of features times targets over the answered examples, for `kernel_fit`.

Beside `feature_sums`, which reads no label, these are all that a ridge regression needs: a
corrected label costs this pass alone, and new rows only their own. Source: the primal form of ridge
regression. [derived]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import torch
from torch import Tensor

from stages.capabilities import Merges
from stages.reading.answered_rows import answered_rows, shards_of_examples
from stages.reading.feature_rows import LONGEST
from stages.reading.outer_products import Sums, add, to_rows
from stages.stage import Cost, DataError, Inputs, Rows, Split, Work
from stages.surrogate.primal_tables import (
    TARGET_SUMS,
    UNANSWERED_SUMS,
    add_rows,
    read_target_sums,
    target_rows,
)
from storage.schema import TableSpec


@dataclass(frozen=True)
class TargetSums(Merges):
    """Sums over the answered examples that have features in every table; float64."""

    kernel: tuple[str, ...] = ("ntk",)
    """Feature tables, whose vectors are taken side by side."""
    normalize: bool = True
    """Scale every feature vector to unit length."""
    parts: int = 1
    """Equal parts of the vectors, one for each class where kernels are per class."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    shards_per_part: ClassVar[int] = 8
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature tables and the labels."""
        return (*self.kernel, "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Sums over the answered examples, and outer products over those without an answer."""
        return (TARGET_SUMS, UNANSWERED_SUMS)

    def compute(self, inputs: Inputs) -> Rows:
        """Sums over the examples of some shards."""
        answered: dict[int, tuple[int, Tensor]] = {}
        others: dict[str, Sums] = {}
        for label, *tables in shards_of_examples(inputs, self.kernel):
            for part in range(self.parts):
                rows = answered_rows(inputs, label, tables, self.normalize, part, self.parts)
                known = torch.from_numpy(rows.is_answered)
                add_rows(others, str(part), rows.features[~known])
                if part == 0:
                    inputs.tell(n_left_out=rows.n_left_out)
                if not len(rows.answers):
                    continue
                ones = torch.ones(len(rows.answers), 1, dtype=torch.float64)
                features = torch.cat([rows.features[known], ones], 1)
                sums = features.T @ torch.cat([ones, rows.answers], 1)
                n, before = answered.get(part, (0, torch.zeros(1, dtype=torch.float64)))
                answered[part] = n + len(ones), before + sums
        if answered:
            yield TARGET_SUMS.name, target_rows(answered)
        if others:
            yield UNANSWERED_SUMS.name, to_rows(others)

    def merge(self, parts: Mapping[str, Sequence[pa.Table]]) -> Rows:
        """Sums over the examples of all parts."""
        answered: dict[int, tuple[int, Tensor]] = {}
        for table in parts[TARGET_SUMS.name]:
            for part, (n, sums) in read_target_sums(table).items():
                if part in answered and answered[part][1].shape != sums.shape:
                    raise DataError(
                        f"target_sums: found parts of {tuple(answered[part][1].shape)} and of "
                        f"{tuple(sums.shape)} numbers, expected the same in every shard. Run the "
                        "stage that writes the features again."
                    )
                total, before = answered.get(part, (0, torch.zeros(1, dtype=torch.float64)))
                answered[part] = total + n, before + sums
        if answered:
            yield TARGET_SUMS.name, target_rows(answered)
        others = add(parts[UNANSWERED_SUMS.name])
        if others is not None:
            yield UNANSWERED_SUMS.name, others

    def cost(self, work: Work) -> Cost:
        """One product of every row with its targets; no more where all examples have an answer."""
        dim = min(LONGEST, work.dim * len(self.kernel))
        n_outputs = max(1, work.n_classes)
        return Cost(
            flops=2.0 * work.n_examples * dim * (n_outputs + 1),
            written_bytes=9 * dim * (n_outputs + 4) * -(-work.n_shards // self.shards_per_part),
            memory_bytes=8 * dim**2 // self.parts
            + 20 * work.n_examples // work.n_shards * dim
            + 100 * dim * (n_outputs + 4),
        )


STAGE = TargetSums
