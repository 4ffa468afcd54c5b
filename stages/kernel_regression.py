"""Predictions of the surrogate model: the full fit for queries, leave-one-out for examples.

Out-of-sample predictions for every training row without cross-validation, exact where the kernel
saw no labels. Source: the regression of arXiv:2406.04606 (methods.md 1.4), the leave-one-out
identity of linear smoothers. [derived]
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from stages.kernel import RIDGE_GRID, closed_form_loo, solve
from stages.labelled_kernel import LabelledKernel, Ridge, check_fields, read_labelled_kernel
from stages.stage import Cost, Inputs, Role, Split, Work
from stages.tables import PREDICTION
from storage.schema import TableSpec


class Fit(NamedTuple):
    """The regression and its outputs, which sum to one over the classes."""

    regression: LabelledKernel
    of_examples: Float[Tensor, "examples classes"]
    """Each from a fit on all the other examples."""
    of_queries: Float[Tensor, "queries classes"]


def fit(regression: LabelledKernel) -> Fit:
    """Out-of-sample outputs of every row. Cost n^3 + n queries classes, memory 24 n^2 bytes."""
    targets = regression.targets
    solution = solve(regression.kernel, targets, regression.damping)
    offset = 1 / targets.shape[1]
    return Fit(
        regression=regression,
        of_examples=offset + closed_form_loo(targets, solution),
        of_queries=offset + regression.query_kernel @ solution.dual,
    )


@dataclass(frozen=True)
class KernelRegression:
    """Logits of every labelled example and every query, with `source` "kernel".

    One task; its memory grows as 8 n (4 n + m) bytes for n labelled examples and m queries.
    """

    kernel: tuple[str, ...] = ("ntk",)
    """Feature tables; with several, their kernels' mean."""
    normalize: bool = True
    """Scale every feature vector to unit length."""
    ridge: Ridge = "auto"
    """Relative to the kernel's mean diagonal; `auto` takes the least leave-one-out error."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "whole"

    def __post_init__(self) -> None:
        """Refuse what cannot be computed.

        Raises:
            ConfigError: no feature table is named, or the ridge is not positive.
        """
        check_fields(self.kernel, self.ridge)

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature tables and the labels."""
        return (*self.kernel, "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Predictions."""
        return (PREDICTION,)

    def open(self, inputs: Inputs) -> Fit:
        """The fit, which `compute` and `details` share."""
        return fit(read_labelled_kernel(inputs, self.kernel, self.normalize, self.ridge))

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Ridge, damping, and the error of each ridge that was tried."""
        regression: LabelledKernel = inputs.opened.regression
        tried = zip(RIDGE_GRID, regression.ridge_errors, strict=False)
        return {
            "ridge": regression.ridge,
            "damping": regression.damping,
            "n_examples": len(regression.example_ids),
            "ridge_errors": [{"ridge": ridge, "error": error} for ridge, error in tried],
            **regression.left_out(),
        }

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Outputs of all rows."""
        opened: Fit = inputs.opened
        regression = opened.regression
        yield PREDICTION.name, _rows("example", regression.example_ids, opened.of_examples)
        yield PREDICTION.name, _rows("query", regression.query_ids, opened.of_queries)

    def cost(self, work: Work) -> Cost:
        """One inverse, and for `auto` one eigendecomposition."""
        n, m, n_classes = work.n_examples, work.n_queries, work.n_classes
        return Cost(
            flops=(11.0 if self.ridge == "auto" else 1.0) * n**3 + 2.0 * n * (n + m) * work.dim,
            written_bytes=(n + m) * (4 * n_classes + 24),
            memory_bytes=32 * n**2 + 8 * n * m + 8 * (n + m) * work.dim,
        )


def _rows(role: Role, ids: np.ndarray, logits: Float[Tensor, "rows classes"]) -> pa.RecordBatch:
    flat = pa.array(logits.numpy().astype(np.float32).reshape(-1))
    columns = [
        pa.array(ids),
        pa.array([role] * len(ids), pa.string()),
        pa.array(["kernel"] * len(ids), pa.string()),
        pa.FixedSizeListArray.from_arrays(flat, logits.shape[1]),
    ]
    return pa.RecordBatch.from_arrays(columns, PREDICTION.schema.names)


STAGE = KernelRegression
