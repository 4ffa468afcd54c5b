"""A linear probe: logistic or least-squares regression on the embeddings of the training examples.

`stages/surrogate/linear.py` says what it minimises.

The probe is an artefact: fitted once on the labels of that time, then kept, so that correcting a
label does not move the features of every other row. It has seen its own training labels; judge
those by leave-one-out predictions of a kernel, not by the probe's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.reading.drawn import is_drawn
from stages.reading.supervision import (
    answered_rows_of,
    count_classes,
    read_labels,
    read_targets,
    task_of,
)
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Size, Split, Stage, Work
from stages.surrogate.linear import LinearHead, fit, fit_least_squares
from storage.schema import TableSpec

PROBE = TableSpec(
    name="probe",
    schema=pa.schema(
        [("class", pa.int64()), ("weight", pa.list_(pa.float32())), ("bias", pa.float32())]
    ),
    key=("class",),
)


MOST_ROWS = 50_000
"""Examples that a probe is fitted on by default, at most."""


class FittedProbe(NamedTuple):
    """The head, and how many examples it was fitted on."""

    head: LinearHead
    n_rows: int


@dataclass(frozen=True)
class Probe(Stage):
    """The head of a model that was never fine-tuned, or of vectors alone.

    One task. Its memory is 12 bytes per number of the embeddings that it is fitted on, and 40 bytes
    per example for its label.
    """

    embedding: str = "embedding"
    """Feature table that it is fitted on: an instance of `embedding`, or `features`."""
    regularization: float = 1e-2
    """Penalty per example on weights, for embeddings of unit mean square length.

    Seen with all-MiniLM-L6-v2 on 2,000 rows of SST-2 with a tenth of wrong labels: 1e-4 to 1e-3
    gave the smallest loss on held-out rows, but such a probe learns the wrong labels and hands them
    to the NTK; 3e-3 to 3e-2 flag them best. More than 1e-2 costs the probe's own accuracy when
    there are many classes.
    """

    rows: int | None = None
    """Most examples that it is fitted on, drawn by a hash of their ids; null takes all, or 50,000
    of a corpus that has more when it is first read.

    Seen with all-MiniLM-L6-v2: 35,000 rows instead of 17,500 of TweetEval's emoji, 20 classes,
    raised the mean area under the ROC curve from 0.714 to 0.718 and changed 0.3 % of the predicted
    classes; 9,000 instead of 4,000 of its hate, from 0.762 to 0.761, and 3.5 %.
    """

    version: ClassVar[int] = 2
    split: ClassVar[Split] = "whole"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")
    is_kept: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses a regularization that is not positive, or a number of rows below 1.

        Raises:
            ConfigError: it is.
        """
        if not self.regularization > 0:
            raise ConfigError(
                f"probe: found regularization: {self.regularization}, expected a positive number. "
                "Raise it; separable classes have no finite probe without it."
            )
        if self.rows is not None and self.rows < 1:
            raise ConfigError(
                f"probe: found rows: {self.rows}, expected at least 1, or null for all. Raise it."
            )

    @property
    def outside_key(self) -> frozenset[str]:
        """`rows` where all are taken, as they were before there was the field."""
        return frozenset({"rows"} if self.rows is None else ())

    @property
    def reads(self) -> tuple[str, ...]:
        """Embeddings and labels of the examples."""
        return (self.embedding, "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per class; of a regression one row."""
        return (PROBE,)

    def sized(self, size: Size) -> "Probe":
        """With `MOST_ROWS` for `rows`, where there are more and it is left open."""
        is_open = self.rows is None and size.first_examples > MOST_ROWS
        return replace(self, rows=MOST_ROWS) if is_open else self

    def open(self, inputs: Inputs) -> FittedProbe:
        """The head fitted on the examples that have a label or target and an embedding.

        Raises:
            DataError: there are none, or of one class alone.
        """
        is_regression = task_of(inputs) == "regression"
        if is_regression:
            answered, known = read_targets(inputs, "example")
        else:
            n_classes = count_classes(inputs)
            answered, known = read_labels(inputs, "example", n_classes)
        if self.rows is not None:
            drawn = is_drawn(answered, self.rows)
            answered, known = answered[drawn], known[drawn]
        vectors, places = self._vectors(inputs, answered)
        answers = torch.from_numpy(known[places])
        if is_regression:
            head = fit_least_squares(vectors, answers, self.regularization)
            return FittedProbe(head, len(vectors))
        found = np.unique(answers.numpy())
        if len(found) < 2:
            raise DataError(
                f"probe: found labels {found[:8].tolist()} among {len(vectors)} examples, expected "
                f"at least two of the classes 0 to {n_classes - 1}. Check the labels."
            )
        return FittedProbe(fit(vectors, answers, n_classes, self.regularization), len(vectors))

    def _vectors(
        self, inputs: Inputs, answered: Int64[np.ndarray, " answered"]
    ) -> tuple[Float[Tensor, "rows dim"], Int64[np.ndarray, " rows"]]:
        """Embeddings of these examples, in the order of the corpus, and their positions in it.

        Raises:
            DataError: none has one.
        """
        parts, places, n_rows = [], [], 0
        for shard in inputs.by_shard(self.embedding, "example"):
            rows, of_answered = answered_rows_of(shard["id"].to_numpy(), answered)
            n_rows += shard.num_rows
            if len(rows):
                parts.append(matrix_of(shard["vector"])[rows])
                places.append(of_answered)
        if not parts:
            raise DataError(
                f"probe: found no row of {self.embedding} with a label or target among {n_rows}, "
                "expected some. Check the labels."
            )
        return torch.from_numpy(np.concatenate(parts)), np.concatenate(places)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The table it was fitted on, the layer that a model's head must read, and its units.

        Vectors of the user's own have no layer, so that no model takes them for its own.
        """
        fitted: LinearHead = inputs.opened.head
        return {
            "n_rows": inputs.opened.n_rows,
            "embedding": self.embedding,
            "layer": inputs.details(self.embedding).get("layer"),
            "regularization": self.regularization,
            "mean": fitted.mean.tolist(),
            "scale": fitted.scale,
        }

    def compute(self, inputs: Inputs) -> Rows:
        """Weight and bias per class."""
        fitted: LinearHead = inputs.opened.head
        flat = pa.array(fitted.weight.numpy().astype(np.float32).reshape(-1))
        columns = [
            pa.array(np.arange(len(fitted.weight))),
            pa.FixedSizeListArray.from_arrays(flat, fitted.weight.shape[1]),
            pa.array(fitted.bias.numpy().astype(np.float32)),
        ]
        yield PROBE.name, pa.RecordBatch.from_arrays(columns, PROBE.schema.names)

    def cost(self, work: Work) -> Cost:
        """Some two hundred products of the embeddings with a matrix, and as many transposed."""
        n_rows = work.n_examples if self.rows is None else min(self.rows, work.n_examples)
        size = n_rows * work.dim
        n_outputs = max(1, work.n_classes)
        note = f"fitted on {n_rows} rows" if n_rows < work.n_examples else ""
        return Cost(
            flops=4.0 * 200 * size * n_outputs,
            written_bytes=4 * n_outputs * (work.dim + 1),
            memory_bytes=12 * size
            + 40 * n_rows * n_outputs
            + 40 * work.n_examples
            + 12 * work.dim * work.n_examples // max(1, work.n_shards),
            note=note,
        )


STAGE = Probe
