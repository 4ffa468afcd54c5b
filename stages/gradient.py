"""Projected gradients of each row's training loss.

The loss is the cross-entropy of the row's label; a query without a label is given the class that
the model predicts for it. Rows of the text that have no row in `label` (dropped ones) have no
gradient. `stages.projection` says with respect to which weights and how they are projected.

Sign: of the loss. The inner product of two rows is positive where a small gradient step on one
lowers the loss of the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.batching import vector_rows
from stages.measurement import ModelSpec, cross_entropy
from stages.projection import (
    Projected,
    load_projected,
    project_rows,
    projected_cost,
)
from stages.stage import Cost, DataError, Inputs, Split, Work
from storage.schema import TableSpec

GRADIENT = TableSpec(
    name="gradient",
    schema=pa.schema(
        [("id", pa.int64()), ("role", pa.string()), ("vector", pa.list_(pa.float32()))]
    ),
    key=("id",),
)
UNLABELLED = -1


def loss(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Cross-entropy per row in nats; a label of -1 stands for the predicted class."""
    predicted = logits.detach().argmax(1)
    return cross_entropy(logits, torch.where(labels == UNLABELLED, predicted, labels))


def labelled_rows(
    text: pa.Table, label: pa.Table, n_classes: int
) -> tuple[pa.Table, Int[np.ndarray, " rows"]]:
    """Rows of the text that have a row in `label`, and their labels, -1 for a null of a query.

    Raises:
        DataError: an example's label is null, or a label is not a class of the model.
    """
    text = text.filter(pc.is_in(text["id"], value_set=label["id"].combine_chunks()))
    at = pc.index_in(text["id"], value_set=label["id"].combine_chunks())
    label = label.take(at)
    unlabelled = pc.is_null(label["label"]).to_numpy(zero_copy_only=False)
    is_example = pc.equal(text["role"], "example").to_numpy(zero_copy_only=False)
    labels = pc.fill_null(label["label"], UNLABELLED).to_numpy(zero_copy_only=False)
    wrong = (unlabelled & is_example) | (~unlabelled & ((labels < 0) | (labels >= n_classes)))
    if wrong.any():
        at_row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"gradient: found label {label['label'][at_row]} for {text['role'][at_row]} "
            f"{text['id'][at_row]}, expected 0 to {n_classes - 1}, the model's classes. "
            "Correct the label, or use a head with that many classes."
        )
    return text, labels.astype(np.int64)


@dataclass(frozen=True)
class Gradient:
    """One projected loss gradient per labelled row, and per query."""

    model: ModelSpec
    """The classifier whose loss is differentiated."""
    layer_projection: int | None = 16
    """Length k that each side of a layer's gradient is projected to; null keeps all."""
    projection_dim: int | None = 2048
    """Length of a feature vector; null joins the layers' blocks, k x k numbers each."""
    seed: int = 0
    """Seed of the projections; with the seed and lengths of `ntk` both lie in one space."""
    token_budget: int = 2048
    """Padded tokens per batch; changes the last bits of a vector, hence part of the key."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"

    @property
    def reads(self) -> tuple[str, ...]:
        """Text and labels, and the probe where it is the head."""
        return ("text", "label", "probe") if self.model.head == "probe" else ("text", "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One projected gradient per row."""
        return (GRADIENT,)

    def open(self, inputs: Inputs) -> Projected:
        """The classifier and its projections."""
        return load_projected(
            self.model, inputs, self.layer_projection, self.projection_dim, self.seed
        )

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Gradients of one shard, one forward and one backward pass per row."""
        measurement, projector = inputs.opened
        text, labels = labelled_rows(
            inputs.table("text"), inputs.table("label"), measurement.n_outputs
        )
        tokens = measurement.tokenise(text)

        def measured(
            logits: Float[Tensor, "batch classes"], rows: Int[np.ndarray, " batch"]
        ) -> Float[Tensor, " batch"]:
            return loss(logits, torch.from_numpy(labels[rows]).to(logits.device))

        for rows, features in project_rows(
            measurement, projector, tokens, self.token_budget, measured
        ):
            yield GRADIENT.name, vector_rows(text, rows, features)

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass per row."""
        return projected_cost(
            self.model, work, self.layer_projection, self.projection_dim, self.token_budget
        )


STAGE = Gradient
