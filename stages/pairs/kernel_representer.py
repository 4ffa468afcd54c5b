"""What every training example adds to the output of a kernel regression for a query.

With alpha = (K + damping I)^-1 (Y - offset) of the stage `kernel_regression`, and c the class that
it predicts for query t, or a regression's one output,

    score(t, i) = alpha_ic K(x_i, x_t),

which add up to the output of c less the offset. A positive score raises that output.

Global: max_c |alpha_ic|, large where the regression leaves a large residual, as alpha is that
residual divided by the damping; local: what is left, for two classes +-K(x_i, x_t).

Source: the dual form of kernel ridge regression; global and local are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from torch import Tensor

from stages.pairs.scores import FactorRows, PairScores
from stages.reading.feature_rows import FeatureRows, sketched, sketched_lengths
from stages.reading.supervision import one_hot
from stages.reading.vectors import matrix_of
from stages.stage import (
    ConfigError,
    DataError,
    Inputs,
    Vectors,
    Work,
)
from stages.surrogate.default_kernel import LABEL_FREE
from stages.surrogate.labelled_kernel import has_features
from stages.tables import KERNEL_DUAL


@dataclass(frozen=True)
class KernelRepresenter(PairScores):
    """Values of all examples of a kernel regression, for all its queries.

    A task holds the features of one shard and of the queries, and 16 million scores. Rows that have
    no label or no features are those that the regression left out, and counts.
    """

    kernel: tuple[str, ...] = LABEL_FREE
    """Feature tables, those of the regression."""
    normalize: bool = True
    """Scale every feature vector to unit length, as the regression does."""
    regression: str = "kernel_regression"
    """Instance of `kernel_regression`."""

    version: ClassVar[int] = 2
    speaks_for: ClassVar[str] = "prediction"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature tables, and the regression with the weights that it wrote."""
        return (*self.kernel, self.regression, self._dual)

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """A regression with this kernel."""
        fields = {"kernel": list(self.kernel), "normalize": self.normalize}
        return {self.regression: fields}

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses a regression with another kernel.

        Raises:
            ConfigError: it has another, or one for each class.
        """
        fitted = writers[self.regression]
        own = {"kernel": self.kernel, "normalize": self.normalize, "per_class": False}
        for name, value in own.items():
            other = getattr(fitted, name, value)
            if other != value:
                raise ConfigError(
                    f"{self.regression}: found {name}: {other}, expected {value}, the kernel that "
                    f"its outputs are taken apart by. Set {name} alike in both"
                    + (", or leave this stage out." if name == "per_class" else ".")
                )

    def queries(self, inputs: Inputs) -> FactorRows:
        """Predicted classes and features of the queries; scales and length are `shared`.

        Raises:
            DataError: no query has features in all tables.
        """
        dim = inputs.details(self.regression).get("dim")
        scales = self._scales(inputs, dim)
        queries = [inputs.vectors(name, "query") for name in self.kernel]
        query_ids = np.sort(queries[0].ids)
        query_ids = query_ids[has_features(inputs, self.kernel, "query", query_ids)]
        if len(query_ids) == 0:
            raise DataError(
                f"{', '.join(self.kernel)}: found no query in all of these tables, expected at "
                "least one, as pairs are scored. Add `queries:`."
            )
        outputs = inputs.table(self.regression, "query")
        outputs = outputs.filter(pc.equal(outputs["role"], "query")).sort_by("id")
        at = np.searchsorted(outputs["id"].to_numpy(), query_ids)
        logits = torch.from_numpy(np.array(matrix_of(outputs["logits"].take(pa.array(at)))))
        chosen = one_hot(logits.argmax(1), logits.shape[1])
        factors = (chosen.float(), self._rows(queries, query_ids, scales, dim).float())
        return FactorRows(query_ids, factors, shared=(scales, dim))

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """How many examples the regression has."""
        return {"n_examples": inputs.details(self.regression)["n_examples"]}

    def examples(self, inputs: Inputs) -> FactorRows:
        """Alpha and features of a shard's examples that the regression was fitted on."""
        dual = inputs.table(self._dual)
        tables = [inputs.table(name) for name in self.kernel]
        ids, at, _ = np.intersect1d(
            dual["id"].to_numpy(),
            tables[0]["id"].to_numpy(),
            assume_unique=True,
            return_indices=True,
        )
        if len(ids) == 0:
            return FactorRows(ids, ())
        own = [Vectors(table["id"].to_numpy(), matrix_of(table["vector"])) for table in tables]
        alpha = torch.from_numpy(np.array(matrix_of(dual["dual"].take(pa.array(at)))))
        features = self._rows(own, ids, *inputs.opened.shared)
        return FactorRows(ids, (alpha.float(), features.float()), alpha.abs().amax(1))

    def _scales(self, inputs: Inputs, dim: int | None) -> list[float]:
        """What each table's vectors are divided by: their mean length, where it matters.

        Over the examples of the regression; in primal form that of what a sketch leaves of them.
        """
        n_tables = len(self.kernel)
        if self.normalize or n_tables == 1:
            return [1.0] * n_tables
        fitted_on = inputs.table(self._dual)["id"].to_numpy()
        squares = np.zeros(n_tables)
        for tables in zip(*(inputs.by_shard(name, "example") for name in self.kernel), strict=True):
            chosen = [np.isin(table["id"].to_numpy(), fitted_on) for table in tables]
            if not chosen[0].any():
                continue
            own = [
                matrix_of(table["vector"])[rows] for table, rows in zip(tables, chosen, strict=True)
            ]
            if dim is not None:
                lengths = [matrix.shape[1] for matrix in own]
                rows = sketched(torch.from_numpy(np.concatenate(own, 1, dtype=np.float64)), lengths)
                parts = torch.split(rows, sketched_lengths(lengths), 1)
                own = [part.numpy() for part in parts]
            squares += [float(np.square(matrix, dtype=np.float64).sum()) for matrix in own]
        scales: list[float] = np.sqrt(squares / len(fitted_on)).tolist()
        return scales

    def width(self, work: Work) -> int:
        """Features of all tables, and outputs."""
        return work.dim * len(self.kernel) + work.n_classes

    @property
    def _dual(self) -> str:
        return f"{self.regression}.{KERNEL_DUAL.name}"

    def _rows(
        self, tables: list[Vectors], ids: np.ndarray, scales: list[float], dim: int | None
    ) -> Float[Tensor, "rows dim"]:
        """Feature rows of `ids`, whose inner products are the kernel, in float64.

        `dim` is the length of the regression's vectors in primal form, which may be a sketch.
        """
        rows = FeatureRows(tables, ids, self.normalize, torch.float64, scales)(
            torch.arange(len(ids))
        )
        lengths = [table.matrix.shape[1] for table in tables]
        return rows if dim is None else sketched(rows, lengths)


STAGE = KernelRepresenter
