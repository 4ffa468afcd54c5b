"""The fit of a kernel regression in primal form: one eigendecomposition of sums over the examples.

The answers are centred as in `kernel_regression`, whose predictions and leave-one-out predictions
follow from this row by row (`stages/surrogate/primal.py`). Of the sums of `feature_sums` those of
rows without an answer are taken out. Source: kernel regression as in arXiv:2406.04606, in its
primal form. [derived]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stages.reading.answered_rows import answered_rows, shards_of_examples
from stages.reading.feature_rows import LONGEST, sketched_lengths
from stages.reading.outer_products import read_sums
from stages.reading.supervision import no_answer
from stages.reading.vectors import evenly, matrix_of
from stages.stage import (
    Cost,
    DataError,
    Inputs,
    Rows,
    Split,
    Stage,
    Work,
    check_alike,
)
from stages.surrogate.kernel import RIDGE_GRID
from stages.surrogate.labelled_kernel import Ridge, check_fields
from stages.surrogate.primal import PrimalFit, decompose, squared_errors
from stages.surrogate.primal_tables import (
    KERNEL_FIT,
    UNANSWERED_SUMS,
    fit_rows,
    read_target_sums,
)
from storage.schema import TableSpec

RIDGE_ROWS, RIDGE_SHARDS = 32_768, 64
"""Most examples, and most shards of them, that the automatic ridge is chosen on."""


class FittedSums(NamedTuple):
    """The fits of all parts, and the facts of the regression for the manifest."""

    fits: list[PrimalFit]
    facts: dict[str, Any]


@dataclass(frozen=True)
class KernelFit(Stage):
    """Directions, eigenvalues and targets of each part. One task; memory 5 matrices of a part."""

    kernel: tuple[str, ...] = ("ntk",)
    """Feature tables, whose vectors are taken side by side."""
    normalize: bool = True
    """Scale every feature vector to unit length."""
    ridge: Ridge = "auto"
    """Relative to the kernel's mean diagonal; `auto` takes the least leave-one-out error, of 32,768
    examples at most, evenly spread."""
    parts: int = 1
    """Equal parts of the vectors, one for each class where kernels are per class."""
    features: str = "feature_sums"
    """Instance of `feature_sums` over these tables."""
    targets: str = "target_sums"
    """Instance of `target_sums` over these tables."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "whole"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")

    def __post_init__(self) -> None:
        """Refuses fields that no regression can be built from.

        Raises:
            ConfigError: no feature table is named, or the ridge is not positive.
        """
        check_fields(self.kernel, self.ridge)

    @property
    def reads(self) -> tuple[str, ...]:
        """The sums, and for the ridge some of the examples."""
        sums = (self.features, self.targets, f"{self.targets}.{UNANSWERED_SUMS.name}")
        return (*sums, *self.kernel, "label")

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """Sums over the same vectors."""
        fields = {"kernel": list(self.kernel), "normalize": self.normalize, "parts": self.parts}
        return {self.features: fields, self.targets: fields}

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses sums over other vectors.

        Raises:
            ConfigError: they are.
        """
        wanted = {name: getattr(self, name) for name in ("kernel", "normalize", "parts")}
        for instance in (self.features, self.targets):
            check_alike(instance, writers[instance], wanted)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per part and direction."""
        return (KERNEL_FIT,)

    def open(self, inputs: Inputs) -> FittedSums:
        """The fits of all parts, and the facts of the regression.

        Raises:
            DataError: no example has an answer and features, or a table has only zero vectors.
        """
        all_sums = read_sums(inputs.table(self.features))
        without = read_sums(inputs.table(f"{self.targets}.{UNANSWERED_SUMS.name}"))
        answered = read_target_sums(inputs.table(self.targets))
        if not answered:
            raise self._nothing(inputs)
        n, of_constant = answered[0][0], answered[0][1][-1, 1:]
        offset = float(of_constant.sum()) / (n * len(of_constant))
        fits, scales, mean_diagonals = [], [], []
        for part in range(self.parts):
            products, (_, target_sums) = all_sums[str(part)].products, answered[part]
            if str(part) in without:
                products = products - without[str(part)].products
            in_part = target_sums[:, 1:].chunk(self.parts, 1)[part]
            targets = in_part[:-1] - offset * target_sums[:-1, :1]
            found, column = self._scales(inputs, products, n)
            scales.append(found)
            products = products / column[:, None] / column
            fits.append(decompose(products, targets / column[:, None]))
            mean_diagonals.append(float(products.diagonal().sum()) / n)
        ridge, errors = self._ridge(inputs, fits, scales, mean_diagonals, offset)
        tried = [{"ridge": r, "error": e} for r, e in zip(RIDGE_GRID, errors, strict=False)]
        facts = {
            "ridge": ridge,
            "damping": [ridge * scale for scale in mean_diagonals],
            "offset": offset,
            "scales": scales,
            "n_examples": n,
            "dim": len(fits[0].eigenvalues),
            "ridge_errors": tried,
        }
        return FittedSums(fits, facts)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Ridge, damping and scales by part, the offset, and the error of each ridge tried."""
        fitted: FittedSums = inputs.opened
        return fitted.facts

    def compute(self, inputs: Inputs) -> Rows:
        """The directions of every part."""
        for batch in fit_rows(inputs.opened.fits).to_batches():
            yield KERNEL_FIT.name, batch

    def cost(self, work: Work) -> Cost:
        """An eigendecomposition per part, and the errors of some examples."""
        dim = min(LONGEST, work.dim * len(self.kernel) // self.parts)
        n = min(work.n_examples, RIDGE_ROWS) if self.ridge == "auto" else 0
        n_outputs = max(1, work.n_classes)
        n_shards = min(RIDGE_SHARDS, work.n_shards)
        ridges = 2.0 * n * dim * len(RIDGE_GRID) * (n_outputs + self.parts)
        return Cost(
            flops=self.parts * (10.0 * dim**3 + 2.0 * n * dim**2) + ridges,
            written_bytes=8 * self.parts * dim**2,
            memory_bytes=8 * dim**2 * (4 + 2 * self.parts) + 40 * RIDGE_ROWS // RIDGE_SHARDS * dim,
            note=f"primal: matrices of {dim:,} x {dim:,}",
            read_bytes=16 * self.parts * dim**2
            + 4 * work.dim * len(self.kernel) * work.n_examples * n_shards // work.n_shards,
        )

    def _nothing(self, inputs: Inputs) -> DataError:
        """The error of a corpus in which no example has both an answer and features."""
        if not inputs.details(self.targets).get("n_left_out"):
            return no_answer(inputs)
        return DataError(
            f"{', '.join(self.kernel)}: found features of none of the labelled examples in all of "
            "these tables, expected at least 1. Look into the view diagnostics for what happened "
            "to them."
        )

    def _scales(
        self, inputs: Inputs, products: Tensor, n: int
    ) -> tuple[list[float], Float[Tensor, " dim"]]:
        """What each table's vectors are divided by, as in `stages.surrogate.kernel.gram`.

        By table, and by number of the vectors side by side.

        Raises:
            DataError: all vectors of a table are zero.
        """
        n_tables = len(self.kernel)
        widths = [len(products)]
        if n_tables > 1:
            widths = sketched_lengths([self._width(inputs, table) for table in self.kernel])
        squares = [
            float(one.sum()) * n_tables / n for one in torch.split(products.diagonal(), widths)
        ]
        if not all(square > 0 for square in squares):
            raise DataError(
                "features: found only zero vectors among the examples, expected features that "
                "tell examples apart. Check the stage that writes them."
            )
        is_scaled = n_tables > 1 and not self.normalize
        scales = [square**0.5 if is_scaled else 1.0 for square in squares]
        column = torch.tensor(scales, dtype=torch.float64)
        return scales, column.repeat_interleave(torch.tensor(widths))

    def _width(self, inputs: Inputs, table: str) -> int:
        """How many numbers a part of a table's vectors has."""
        for rows in inputs.by_shard(table, "example"):
            if rows.num_rows:
                n_numbers: int = matrix_of(rows["vector"]).shape[1]
                return n_numbers // self.parts
        raise self._nothing(inputs)

    def _ridge(
        self,
        inputs: Inputs,
        fits: list[PrimalFit],
        scales: list[list[float]],
        mean_diagonals: list[float],
        offset: float,
    ) -> tuple[float, list[float]]:
        """The ridge, and for `auto` the mean error of every ridge of `RIDGE_GRID`."""
        if self.ridge != "auto":
            return self.ridge, []
        errors, n = torch.zeros(len(RIDGE_GRID), dtype=torch.float64), 0
        n_shards = sum(1 for _ in inputs.by_shard("label", "example", RIDGE_SHARDS))
        for label, *tables in shards_of_examples(inputs, self.kernel, RIDGE_SHARDS):
            for part, fit in enumerate(fits):
                rows = answered_rows(
                    inputs, label, tables, self.normalize, part, self.parts, scales[part]
                )
                chosen = evenly(len(rows.answers), -(-RIDGE_ROWS // n_shards))
                if not len(chosen):
                    continue
                targets = rows.answers.chunk(self.parts, 1)[part][chosen] - offset
                features = rows.features[torch.from_numpy(rows.is_answered)][chosen]
                dampings = [ridge * mean_diagonals[part] for ridge in RIDGE_GRID]
                errors += squared_errors(fit, features @ fit.basis, targets, dampings)
                n += len(chosen) if part == 0 else 0
        means = (errors / n).tolist()
        return RIDGE_GRID[int(np.argmin(means))], means


STAGE = KernelFit
