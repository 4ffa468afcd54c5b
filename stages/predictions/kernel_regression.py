"""Kernel regression: predictions for queries of a fit on all examples, leave-one-out for examples.

Out-of-sample predictions for every example without cross-validation, exact where the kernel saw no
labels. Source: the regression of arXiv:2406.04606 (methods.md 1.4), the leave-one-out
identity of linear smoothers. [derived]

A regression corpus has one output, its targets less their mean, which is added back. The mean stays
that of all examples while one is left out, as the damping does.

With `per_class`, a feature vector is C equal parts, and class c is fitted on part c alone: the
kernel of a class is then that of its own gradients. One ridge serves all classes, relative to the
mean diagonal of each one's kernel: outputs of different classes are compared with each other, and a
class that shrinks more than the others would lose the close calls. It is also what makes parts that
are all equal the same as one kernel. So `auto` takes the ridge with the least error summed over
classes, as it does for one kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.reading.supervision import Answers, centre, read_answers, task_of
from stages.reading.vectors import aligned, matrix_of
from stages.stage import AnswersQueries, Cost, DataError, Inputs, Role, Rows, Split, Work
from stages.surrogate.kernel import (
    RIDGE_GRID,
    auto_ridge,
    closed_form_loo,
    gram,
    mean_diagonal,
    solve,
    to_queries,
)
from stages.surrogate.labelled_kernel import (
    LeftOut,
    Ridge,
    check_fields,
    has_features,
    read_features,
)
from stages.tables import KERNEL_DUAL, PREDICTION
from storage.schema import TableSpec

Features = list[tuple[Tensor, Tensor]]
"""Of each feature table the rows of the examples and those of the queries."""


class Fit(NamedTuple):
    """The fitted regression and its outputs; of classes that share a kernel they sum to one."""

    example_ids: Int64[np.ndarray, " examples"]
    query_ids: Int64[np.ndarray, " queries"]
    of_examples: Float[Tensor, "examples outputs"]
    """Leave-one-out: each from a fit on all the other examples."""
    of_queries: Float[Tensor, "queries outputs"]
    dual: Float[Tensor, "examples outputs"]
    """(K + damping I)^-1 times the targets, of each output by its own kernel."""
    ridge: float
    dampings: tuple[float, ...]
    """One for each kernel."""
    ridge_errors: tuple[float, ...]
    """Leave-one-out error for each of `kernel.RIDGE_GRID`; empty if the ridge was given."""
    left_out: LeftOut = LeftOut()


def fit(
    answers: Answers,
    query_ids: Int64[np.ndarray, " queries"],
    features: Features,
    n_parts: int,
    normalize: bool,
    ridge: Ridge,
) -> Fit:
    """The regression on all examples, with `n_parts` kernels, and its out-of-sample outputs.

    The vectors of each table are cut into that many equal parts; part k is the kernel of the k-th
    of as many equal shares of the outputs. Cost per part n^3, and 10 n^3 for `auto`; memory 24 n^2
    bytes, of one part at a time.

    Raises:
        DataError: a table's vectors cannot be cut so, or are all zero in a part.
    """
    shares = answers.targets.chunk(n_parts, dim=1)
    held = [gram(features, normalize)] if n_parts == 1 else None

    def kernels(part: int) -> tuple[Tensor, Tensor]:
        """The kernel of a part among the examples, and from queries to examples."""
        return held[part] if held is not None else gram(cut(features, part, n_parts), normalize)

    errors: tuple[float, ...] = ()
    if ridge == "auto":
        tried = [auto_ridge(kernels(part)[0], share)[1] for part, share in enumerate(shares)]
        errors = tuple(float(total) for total in np.sum(tried, axis=0))
        ridge = RIDGE_GRID[int(np.argmin(errors))]
    of_examples, of_queries, duals, dampings = [], [], [], []
    for part, share in enumerate(shares):
        kernel, query_kernel = kernels(part)
        dampings.append(ridge * mean_diagonal(kernel))
        solution = solve(kernel, share, dampings[-1])
        of_examples.append(answers.offset + closed_form_loo(share, solution))
        of_queries.append(answers.offset + query_kernel @ solution.dual)
        duals.append(solution.dual)
    return Fit(
        answers.ids,
        query_ids,
        torch.cat(of_examples, dim=1),
        torch.cat(of_queries, dim=1),
        torch.cat(duals, dim=1),
        ridge,
        tuple(dampings),
        errors,
    )


def cut(features: Features, part: int, n_parts: int) -> Features:
    """Part number `part` of `n_parts` equal parts of the vectors of every table.

    Raises:
        DataError: a table's vectors have another length than a multiple of `n_parts`.
    """
    columns = []
    for examples, _ in features:
        width, rest = divmod(examples.shape[1], n_parts)
        if rest or not width:
            raise DataError(
                f"kernel: found vectors of length {examples.shape[1]}, expected a multiple of "
                f"{n_parts}, one part per class. Set per_class: false, or name tables that hold "
                "one part per class."
            )
        columns.append(slice(part * width, (part + 1) * width))
    return [
        (examples[:, own], queries[:, own])
        for (examples, queries), own in zip(features, columns, strict=True)
    ]


@dataclass(frozen=True)
class KernelRegression(AnswersQueries):
    """Logits of every labelled example and every query, with `source` "kernel".

    Of a regression the one logit is the predicted target. One task; its memory grows as
    8 n (4 n + m) bytes for n labelled examples and m queries.
    """

    kernel: tuple[str, ...] = ("ntk",)
    """Feature tables; with several, their kernels' mean."""
    normalize: bool = True
    """Scale every feature vector to unit length."""
    ridge: Ridge = "auto"
    """Relative to the kernel's mean diagonal; `auto` takes the least leave-one-out error."""
    per_class: bool = False
    """Whether the vectors are one part per class, each the kernel of that class alone."""

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
        """The feature tables and the labels."""
        return (*self.kernel, "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Predictions, and the weight of each example in them."""
        return (PREDICTION, KERNEL_DUAL)

    def open(self, inputs: Inputs) -> Fit:
        """The fitted regression, which `compute` and `details` share."""
        if self.per_class and (task := task_of(inputs)) != "classification":
            raise DataError(
                f"per_class: found true in a corpus with task: {task}, expected classes. Set "
                "per_class: false."
            )
        joined = read_features(inputs, self.kernel)
        answers, query_ids, features, left_out = joined
        n_parts = answers.targets.shape[1] if self.per_class else 1
        fitted = fit(answers, query_ids, features, n_parts, self.normalize, self.ridge)
        return fitted._replace(left_out=left_out)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Ridge, damping (per class with `per_class`), and the error of each ridge tried."""
        opened: Fit = inputs.opened
        tried = zip(RIDGE_GRID, opened.ridge_errors, strict=False)
        return {
            "ridge": opened.ridge,
            "damping": list(opened.dampings) if self.per_class else opened.dampings[0],
            "n_examples": len(opened.example_ids),
            "ridge_errors": [{"ridge": ridge, "error": error} for ridge, error in tried],
            **opened.left_out.details(),
        }

    def compute(self, inputs: Inputs) -> Rows:
        """Outputs of all rows, and the weights of the examples in them."""
        opened: Fit = inputs.opened
        yield PREDICTION.name, _rows("example", opened.example_ids, opened.of_examples)
        yield PREDICTION.name, _rows("query", opened.query_ids, opened.of_queries)
        flat, n = pa.array(opened.dual.numpy().reshape(-1)), len(opened.dual)
        duals = pa.FixedSizeListArray.from_arrays(flat, opened.dual.shape[1])
        columns = [pa.array(opened.example_ids), pa.array(["example"] * n, pa.string()), duals]
        yield KERNEL_DUAL.name, pa.RecordBatch.from_arrays(columns, KERNEL_DUAL.schema.names)

    def of_queries(self, inputs: Inputs) -> Rows:
        """Outputs of the queries alone, from the weights that were written. Cost 2 n dim each."""
        table = inputs.table(KERNEL_DUAL.name, "example").sort_by("id")
        ids, dual = (
            np.array(table["id"].to_numpy()),
            torch.from_numpy(np.array(matrix_of(table["dual"]))),
        )
        answered, columns = read_answers(inputs)
        offset = centre(ids, columns[torch.from_numpy(np.searchsorted(answered, ids))]).offset
        query_ids = np.array(inputs.vectors(self.kernel[0], "query").ids)
        query_ids = query_ids[has_features(inputs, self.kernel, "query", query_ids)]
        features = [
            (
                aligned(inputs.vectors(name, "example"), ids),
                aligned(inputs.vectors(name, "query"), query_ids),
            )
            for name in self.kernel
        ]
        n_parts = dual.shape[1] if self.per_class else 1
        outputs = [
            offset + to_queries(cut(features, part, n_parts), self.normalize) @ share
            for part, share in enumerate(dual.chunk(n_parts, dim=1))
        ]
        yield PREDICTION.name, _rows("query", query_ids, torch.cat(outputs, dim=1))

    def cost(self, work: Work) -> Cost:
        """One inverse per kernel, and for `auto` one eigendecomposition."""
        n, m, n_classes = work.n_examples, work.n_queries, work.n_classes
        solves = (11.0 if self.ridge == "auto" else 1.0) * n**3
        return Cost(
            flops=(n_classes if self.per_class else 1) * solves + 2.0 * n * (n + m) * work.dim,
            written_bytes=(n + m) * (4 * n_classes + 24) + n * (8 * n_classes + 8),
            memory_bytes=32 * n**2 + 8 * n * m + 8 * (n + m) * work.dim,
        )


def _rows(role: Role, ids: np.ndarray, logits: Float[Tensor, "rows classes"]) -> pa.RecordBatch:
    """Rows of `PREDICTION` with source "kernel"."""
    flat = pa.array(logits.numpy().astype(np.float32).reshape(-1))
    columns = [
        pa.array(ids),
        pa.array([role] * len(ids), pa.string()),
        pa.array(["kernel"] * len(ids), pa.string()),
        pa.FixedSizeListArray.from_arrays(flat, logits.shape[1]),
    ]
    return pa.RecordBatch.from_arrays(columns, PREDICTION.schema.names)


STAGE = KernelRegression
