"""Kernel regression: predictions for queries of a fit on all examples, leave-one-out for examples.

Out-of-sample predictions for every example without cross-validation, exact where the kernel saw no
labels. Source: the regression of arXiv:2406.04606, the leave-one-out identity of linear smoothers.
[derived]

Up to 5,000 examples one task solves it in dual form, from the kernel of the examples. Beyond, each
shard's predictions follow from a fit in primal form (`kernel_fit`), whose cost grows with the
number of rows and the square of the vectors' length. Where both use the same ridge they give the
same outputs, up to rounding.

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
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.capabilities import AnswersQueries
from stages.reading.answered_rows import answered_rows
from stages.reading.feature_rows import LONGEST, shard_features
from stages.reading.supervision import centre, read_answers, task_of
from stages.reading.vectors import aligned, matrix_of
from stages.stage import (
    ConfigError,
    Cost,
    DataError,
    Inputs,
    Role,
    Rows,
    Size,
    Split,
    Stage,
    Work,
    check_alike,
)
from stages.surrogate.default_kernel import LABEL_FREE
from stages.surrogate.dual import DualFit, cut, fit_dual
from stages.surrogate.kernel import RIDGE_GRID, to_queries
from stages.surrogate.labelled_kernel import Ridge, check_fields, has_features, read_features
from stages.surrogate.primal import out_of_sample, predict, squared_errors
from stages.surrogate.primal_tables import RIDGE_ERROR, PrimalRegression, read_fit
from stages.tables import KERNEL_DUAL, PREDICTION
from storage.schema import TableSpec

DUAL_EXAMPLES = 5_000
"""Most examples for which `form: auto` holds their kernel: 3.2 GB while the ridge is chosen."""


@dataclass(frozen=True)
class KernelRegression(AnswersQueries):
    """Logits of every labelled example and every query, with `source` "kernel".

    Of a regression the one logit is the predicted target. In dual form one task, whose memory grows
    as 8 n (4 n + m) bytes for n labelled examples and m queries; in primal form a task a shard,
    which holds its vectors of length d and 8 d^2 bytes.
    """

    kernel: tuple[str, ...] = LABEL_FREE
    """Feature tables; with several, their kernels' mean. The hidden states of all layers have seen
    no label, so that leave-one-out predictions are out of sample; `[ntk]` is at a fitted probe."""
    normalize: bool = True
    """Scale every feature vector to unit length."""
    ridge: Ridge = "auto"
    """Relative to the kernel's mean diagonal; `auto` takes the least leave-one-out error."""
    per_class: bool = False
    """Whether the vectors are one part per class, each the kernel of that class alone."""

    form: Literal["auto", "dual", "primal"] = "auto"
    """`dual` holds the kernel of all examples, `primal` works by shard on a fit of their sums;
    `auto` takes the first for up to 5,000 examples."""
    fit: str = "kernel_fit"
    """Instance of `kernel_fit`, of the primal form."""
    parts: int | None = None
    """Parts of the primal form's vectors, one per class with `per_class`, else one; the plan fills
    it in, whatever stands here."""

    version: ClassVar[int] = 1
    judges_rows: ClassVar[bool] = True
    outside_key: ClassVar[frozenset[str]] = frozenset({"form", "fit", "parts"})
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")

    def __post_init__(self) -> None:
        """Refuses fields that no regression can be built from.

        Raises:
            ConfigError: no feature table is named, the ridge is not positive, or `per_class` is set
                for the hidden states.
        """
        check_fields(self.kernel, self.ridge)
        if self.per_class and set(LABEL_FREE) & set(self.kernel):
            raise ConfigError(
                f"per_class: found true with kernel: {list(self.kernel)}, expected vectors of one "
                "part per class, which hidden states do not have. Set kernel: [ntk] and "
                "ntk: {logit: all}, or per_class: false."
            )

    @property
    def split(self) -> Split:
        """Shards in primal form, the whole in dual form."""
        return "shard" if self.form == "primal" else "whole"

    def sized(self, size: Size) -> Stage:
        """The form for so many examples."""
        form = self.form
        if form == "auto":
            form = "dual" if size.n_examples <= DUAL_EXAMPLES else "primal"
        parts = max(1, size.n_classes) if self.per_class else 1
        return replace(self, form=form, parts=parts)

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature tables and the labels, and in primal form the fit."""
        return (*self.kernel, "label", *((self.fit,) if self.form == "primal" else ()))

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """A fit with this kernel."""
        fields = {"normalize": self.normalize, "ridge": self.ridge, "parts": self.parts or 1}
        fit = {self.fit: {"kernel": list(self.kernel), **fields}}
        return fit

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Predictions, and the weight of each example in them; in primal form errors of ridges."""
        of_ridges = (RIDGE_ERROR,) if self.form == "primal" else ()
        return (PREDICTION, KERNEL_DUAL, *of_ridges)

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses a fit of another kernel.

        Raises:
            ConfigError: it has another.
        """
        if self.fit in writers:
            own = {"normalize": self.normalize, "ridge": self.ridge, "parts": self.parts or 1}
            check_alike(self.fit, writers[self.fit], {"kernel": self.kernel, **own})

    def open(self, inputs: Inputs) -> Any:
        """The fitted regression, which `compute` and `details` share.

        Raises:
            DataError: kernels are to be per class where there is none.
        """
        if self.per_class and (task := task_of(inputs)) != "classification":
            raise DataError(
                f"per_class: found true in a corpus with task: {task}, expected classes. Set "
                "per_class: false."
            )
        return read_fit(inputs, self.fit) if self.form == "primal" else self._dual_fit(inputs)

    def _dual_fit(self, inputs: Inputs) -> DualFit:
        """The fit on all examples at once."""
        joined = read_features(inputs, self.kernel)
        answers, query_ids, features, left_out = joined
        n_parts = answers.targets.shape[1] if self.per_class else 1
        fitted = fit_dual(answers, query_ids, features, n_parts, self.normalize, self.ridge)
        return fitted._replace(left_out=left_out)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Ridge, damping (per class with `per_class`), and the error of each ridge tried."""
        if self.form == "primal":
            facts = dict(inputs.details(self.fit))
            facts["damping"] = facts["damping"] if self.per_class else facts["damping"][0]
            return {name: fact for name, fact in facts.items() if name not in ("scales", "offset")}
        opened: DualFit = inputs.opened
        tried = zip(RIDGE_GRID, opened.ridge_errors, strict=False)
        return {
            "ridge": opened.ridge,
            "damping": list(opened.dampings) if self.per_class else opened.dampings[0],
            "n_examples": len(opened.example_ids),
            "ridge_errors": [{"ridge": ridge, "error": error} for ridge, error in tried],
            **opened.left_out.details(),
        }

    def compute(self, inputs: Inputs) -> Rows:
        """Outputs of all rows, or of a shard's, and the weights of the examples in them."""
        if self.form == "primal" and inputs.part.role == "query":
            yield PREDICTION.name, self._of_shard_queries(inputs, inputs.opened)
        elif self.form == "primal":
            yield from self._of_shard_examples(inputs, inputs.opened)
        else:
            opened: DualFit = inputs.opened
            yield PREDICTION.name, _rows("example", opened.example_ids, opened.of_examples)
            yield PREDICTION.name, _rows("query", opened.query_ids, opened.of_queries)
            yield KERNEL_DUAL.name, _dual_rows(opened.example_ids, opened.dual)

    def _of_shard_examples(self, inputs: Inputs, opened: PrimalRegression) -> Rows:
        """Leave-one-out outputs, weights and errors of a shard's examples."""
        label, tables = inputs.table("label"), [inputs.table(name) for name in self.kernel]
        ids = np.zeros(0, np.int64)
        outputs, duals = [], []
        errors = torch.zeros(len(RIDGE_GRID), dtype=torch.float64)
        n_parts = len(opened.parts)
        for part, (fit, damping, scales) in enumerate(opened.parts):
            rows = answered_rows(inputs, label, tables, self.normalize, part, n_parts, scales)
            ids = rows.ids[rows.is_answered]
            if part == 0:
                inputs.tell(n_left_out=rows.n_left_out)
            if not len(ids):
                return
            targets = rows.answers.chunk(n_parts, 1)[part] - opened.offset
            in_basis = rows.features[torch.from_numpy(rows.is_answered)] @ fit.basis
            found = out_of_sample(fit, in_basis, targets, damping)
            outputs.append(opened.offset + found.outputs)
            duals.append(found.dual)
            if self.ridge == "auto":
                scale = damping / opened.ridge
                errors += squared_errors(fit, in_basis, targets, [r * scale for r in RIDGE_GRID])
        yield PREDICTION.name, _rows("example", ids, torch.cat(outputs, 1))
        yield KERNEL_DUAL.name, _dual_rows(ids, torch.cat(duals, 1))
        if self.ridge == "auto":
            columns = [
                pa.array(np.full(len(RIDGE_GRID), inputs.part.index)),
                pa.array(RIDGE_GRID),
                pa.array(np.full(len(RIDGE_GRID), len(ids))),
                pa.array(errors.numpy()),
            ]
            yield RIDGE_ERROR.name, pa.RecordBatch.from_arrays(columns, RIDGE_ERROR.schema.names)

    def _of_shard_queries(self, inputs: Inputs, opened: PrimalRegression) -> pa.RecordBatch:
        """Outputs of a shard's queries."""
        tables = [inputs.table(name, "query") for name in self.kernel]
        n_parts = len(opened.parts)
        outputs = []
        for part, (fit, damping, scales) in enumerate(opened.parts):
            ids, rows = shard_features(tables, self.normalize, part, n_parts, scales)
            if part == 0:
                n_queries = inputs.table("label", "query").num_rows
                inputs.tell(n_left_out=n_queries - len(ids))
            if not len(ids):
                return _rows("query", ids, torch.zeros(0, len(fit.targets[0]) * n_parts))
            outputs.append(opened.offset + predict(fit, rows, damping))
        return _rows("query", ids, torch.cat(outputs, 1))

    def of_queries(self, inputs: Inputs) -> Rows:
        """Outputs of the queries alone, from the fit, or from the weights that were written.

        Cost dim outputs for each query in primal form, and 2 n dim in dual form.
        """
        if self.form == "primal":
            yield PREDICTION.name, self._of_shard_queries(inputs, read_fit(inputs, self.fit))
            return
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
        """One inverse per kernel, and for `auto` one eigendecomposition; or products by shard."""
        n, m, n_classes = work.n_examples, work.n_queries, work.n_classes
        if self.form == "primal":
            dim = min(LONGEST, work.dim * len(self.kernel))
            ridges = len(RIDGE_GRID) if self.ridge == "auto" else 1
            per_row = 2.0 * dim**2 // (self.parts or 1) + 2.0 * dim * ridges * (n_classes + 1)
            return Cost(
                flops=n * per_row + 2.0 * m * dim * n_classes,
                written_bytes=(n + m) * (4 * n_classes + 24) + n * (8 * n_classes + 8),
                memory_bytes=16 * dim**2 // (self.parts or 1) + 40 * n // work.n_shards * dim,
                note=f"primal form, as {n:,} examples are more than {DUAL_EXAMPLES:,}",
            )
        solves = (11.0 if self.ridge == "auto" else 1.0) * n**3
        return Cost(
            flops=(n_classes if self.per_class else 1) * solves + 2.0 * n * (n + m) * work.dim,
            written_bytes=(n + m) * (4 * n_classes + 24) + n * (8 * n_classes + 8),
            memory_bytes=32 * n**2 + 8 * n * m + 8 * (n + m) * work.dim,
            note=f"dual form, as {n:,} examples are at most {DUAL_EXAMPLES:,}",
        )


def _dual_rows(
    ids: Int64[np.ndarray, " examples"], dual: Float[Tensor, "examples outputs"]
) -> pa.RecordBatch:
    """Rows of `KERNEL_DUAL`."""
    flat = pa.array(np.ascontiguousarray(dual.numpy()).reshape(-1))
    lists = pa.FixedSizeListArray.from_arrays(flat, dual.shape[1])
    columns = [pa.array(ids), pa.array(["example"] * len(ids), pa.string()), lists]
    return pa.RecordBatch.from_arrays(columns, KERNEL_DUAL.schema.names)


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
