"""A linear probe: logistic or least-squares regression on the embeddings of the training examples.

`stages/surrogate/linear.py` says what it minimises.

The probe is an artefact: fitted once on the labels of that time, then kept, so that correcting a
label does not move the features of every other row. It has seen its own training labels; judge
those by leave-one-out predictions of a kernel, not by the probe's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int

from stages.reading.supervision import count_classes, read_labels, read_targets, task_of
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Split, Stage, Vectors, Work
from stages.surrogate.linear import LinearHead, fit, fit_least_squares
from storage.schema import TableSpec

PROBE = TableSpec(
    name="probe",
    schema=pa.schema(
        [("class", pa.int64()), ("weight", pa.list_(pa.float32())), ("bias", pa.float32())]
    ),
    key=("class",),
)


@dataclass(frozen=True)
class Probe(Stage):
    """The head of a model that was never fine-tuned, or of vectors alone.

    One task; its memory grows with the examples, 12 bytes per number of their embeddings.
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

    version: ClassVar[int] = 2
    split: ClassVar[Split] = "whole"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")
    is_kept: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses a regularization that is not positive."""
        if not self.regularization > 0:
            raise ConfigError(
                f"probe: found regularization: {self.regularization}, expected a positive number. "
                "Raise it; separable classes have no finite probe without it."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Embeddings and labels of the examples."""
        return (self.embedding, "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per class; of a regression one row."""
        return (PROBE,)

    def open(self, inputs: Inputs) -> LinearHead:
        """The head fitted on all examples that have a label or target and an embedding.

        Raises:
            DataError: there are none, or of one class alone.
        """
        embeddings = inputs.vectors(self.embedding, "example")
        if task_of(inputs) != "regression":
            return self._classifier(inputs, embeddings)
        ids, targets = read_targets(inputs, "example")
        rows, targets = _answered_rows(embeddings.ids, ids, targets)
        if len(rows) == 0:
            raise DataError(
                f"probe: found no row of {self.embedding} with a target among "
                f"{len(embeddings.ids)}, expected some. Check the labels."
            )
        vectors = torch.from_numpy(np.array(embeddings.matrix[rows]))
        return fit_least_squares(vectors, torch.from_numpy(targets), self.regularization)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The table it was fitted on, the layer that a model's head must read, and its units.

        Vectors of the user's own have no layer, so that no model takes them for its own.
        """
        fitted: LinearHead = inputs.opened
        return {
            "embedding": self.embedding,
            "layer": inputs.details(self.embedding).get("layer"),
            "regularization": self.regularization,
            "mean": fitted.mean.tolist(),
            "scale": fitted.scale,
        }

    def compute(self, inputs: Inputs) -> Rows:
        """Weight and bias per class."""
        fitted: LinearHead = inputs.opened
        flat = pa.array(fitted.weight.numpy().astype(np.float32).reshape(-1))
        columns = [
            pa.array(np.arange(len(fitted.weight))),
            pa.FixedSizeListArray.from_arrays(flat, fitted.weight.shape[1]),
            pa.array(fitted.bias.numpy().astype(np.float32)),
        ]
        yield PROBE.name, pa.RecordBatch.from_arrays(columns, PROBE.schema.names)

    def _classifier(self, inputs: Inputs, embeddings: Vectors) -> LinearHead:
        """The head fitted on labels."""
        n_classes = count_classes(inputs)
        ids, labels = read_labels(inputs, "example", n_classes)
        rows, labels = _answered_rows(embeddings.ids, ids, labels)
        if len(np.unique(labels)) < 2:
            raise DataError(
                f"probe: found labels {np.unique(labels)[:8].tolist()} among {len(rows)} examples, "
                f"expected at least two of the classes 0 to {n_classes - 1}. Check the labels."
            )
        vectors = torch.from_numpy(np.array(embeddings.matrix[rows]))
        return fit(vectors, torch.from_numpy(labels), n_classes, self.regularization)

    def cost(self, work: Work) -> Cost:
        """Some two hundred products of the embeddings with a matrix, and as many transposed."""
        size = work.n_examples * work.dim
        return Cost(
            flops=4.0 * 200 * size * work.n_classes,
            written_bytes=4 * work.n_classes * (work.dim + 1),
            memory_bytes=12 * size + 32 * work.n_examples * work.n_classes,
        )


def _answered_rows(
    ids: Int[np.ndarray, " rows"], answered: Int[np.ndarray, " labelled"], answers: np.ndarray
) -> tuple[Int[np.ndarray, " both"], np.ndarray]:
    """Positions in `ids` of the `answered` ids, which are ascending, and their answers."""
    at = np.searchsorted(answered, ids).clip(max=max(len(answered) - 1, 0))
    rows = np.flatnonzero(answered[at] == ids) if len(answered) else np.zeros(0, np.int64)
    return rows, answers[at[rows]]


STAGE = Probe
