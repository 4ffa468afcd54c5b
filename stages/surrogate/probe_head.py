"""The fitted probe in the coordinates of its objective, and the slopes of losses at its outputs.

With x = (e - mean) / scale of an embedding e the outputs are f = W x + b, and the objective is that
of `stages/surrogate/linear.py`. The gradient of a row's loss by (W, b) is the outer product of the
loss's slope r in the outputs and of (x, 1), where

    r = p - e_y    for the cross-entropy of label y, with p the softmax of f,
    r = f - y      for half the squared error of target y.

A probe that was kept while labels were corrected, or rows appended, is taken as it is.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.model.heads.probe import read_probe
from stages.reading.supervision import answered_rows_of, one_hot, read_labels, task_of
from stages.reading.vectors import BLOCK, query_vectors, vectors_of
from stages.stage import ConfigError, DataError, Inputs

LABEL_BYTES = 40
"""Memory per example while labels of all are read and matched with embeddings."""


class Head(NamedTuple):
    """The probe's weights in the coordinates x, and what maps embeddings there; float64."""

    weight: Float[Tensor, "outputs dim"]
    """W, for x and not for raw embeddings."""
    bias: Float[Tensor, " outputs"]
    mean: Float[Tensor, " dim"]
    """Of the embeddings that the probe was fitted on."""
    scale: float
    """Root mean square length of these embeddings less their mean."""
    regularization: float
    is_regression: bool

    def coordinates(self, vectors: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        """The coordinates x of embeddings, in float64.

        Raises:
            DataError: they are of another length.
        """
        if vectors.shape[1] != len(self.mean):
            raise DataError(
                f"probe: found embeddings of length {vectors.shape[1]}, expected {len(self.mean)}, "
                "which the probe was fitted on. Fit the probe again."
            )
        return (vectors.double() - self.mean) / self.scale

    def outputs(self, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows outputs"]:
        """Logits of rows given by x, or a regression's predicted targets."""
        return x @ self.weight.T + self.bias


class ProbeExamples(NamedTuple):
    """Examples with an embedding and an answer, in the probe's coordinates."""

    ids: Int64[np.ndarray, " rows"]
    """Ascending."""
    x: Float[Tensor, "rows dim"]
    slopes: Float[Tensor, "rows outputs"]
    """Derivatives r of each example's loss by the outputs, at its label or target."""


class ProbeQueries(NamedTuple):
    """Queries with an embedding, in the probe's coordinates, and what the probe predicts."""

    ids: Int64[np.ndarray, " queries"]
    """Ascending."""
    x: Float[Tensor, "queries dim"]
    outputs: Float[Tensor, "queries outputs"]
    chosen: Float[Tensor, "queries outputs"]
    """1 at the predicted class, the first among equals, else 0; 1 at a regression's one output."""


def slopes(
    outputs: Float[Tensor, "rows outputs"], answers: Tensor
) -> Float[Tensor, "rows outputs"]:
    """Derivatives r of each row's loss by its outputs.

    `answers` are labels, as integers, with the cross-entropy, or targets with half the squared
    error.
    """
    if answers.is_floating_point():
        return outputs - answers[:, None]
    return torch.softmax(outputs, 1) - one_hot(answers, outputs.shape[1])


def check_fitted_on(inputs: Inputs, embedding: str) -> None:
    """Refuses a probe that was fitted on another table than `embedding`.

    Raises:
        ConfigError: it was.
    """
    fitted_on = inputs.details("probe").get("embedding", embedding)
    if fitted_on != embedding:
        raise ConfigError(
            f"embedding: found {embedding} with a probe fitted on {fitted_on}, expected the same "
            "table for both. Name it in both stages."
        )


def read_head(inputs: Inputs, embedding: str) -> Head:
    """The probe of the table `probe`, in the units that it was fitted in.

    Raises:
        ConfigError: it was fitted on another table.
        DataError: its units were not recorded.
    """
    check_fitted_on(inputs, embedding)
    details = inputs.details("probe")
    if not {"mean", "scale", "regularization"} <= set(details):
        raise DataError(
            "probe: found one without its mean, scale and regularization, expected them in its "
            "details. Set artefacts.probe=refit to fit it anew."
        )
    weight, bias = (tensor.double() for tensor in read_probe(inputs.table("probe")))
    mean, scale = torch.tensor(details["mean"], dtype=torch.float64), float(details["scale"])
    is_regression = task_of(inputs) == "regression"
    penalty = float(details["regularization"])
    return Head(weight * scale, bias + weight @ mean, mean, scale, penalty, is_regression)


def queries_of(head: Head, inputs: Inputs, embedding: str) -> ProbeQueries:
    """All queries that have an embedding, with the outputs of `head`.

    Raises:
        DataError: there is none.
    """
    ids, vectors = query_vectors(inputs, embedding)
    x = head.coordinates(vectors)
    outputs = head.outputs(x)
    return ProbeQueries(ids, x, outputs, one_hot(outputs.argmax(1), outputs.shape[1]))


def examples_of(head: Head, inputs: Inputs, embedding: str) -> ProbeExamples:
    """The examples of the part's own shard that have an embedding and an answer."""
    answered, answers = _answers(head, inputs)
    ids, vectors = vectors_of(inputs, embedding, answered)
    if len(ids) == 0:
        return ProbeExamples(ids, torch.zeros(0, len(head.mean)), torch.zeros(0, len(head.bias)))
    in_answers = torch.from_numpy(np.searchsorted(answered, ids))
    return _rows(head, ids, vectors, answers[in_answers])


def all_examples(head: Head, inputs: Inputs, embedding: str) -> Iterator[ProbeExamples]:
    """The examples of all shards that have an embedding and an answer, `BLOCK` at a time.

    A stage calls it in its `open`.

    Raises:
        DataError: there is none.
    """
    answered, answers = _answers(head, inputs)
    vectors = inputs.vectors(embedding, "example")
    in_vectors, in_answers = answered_rows_of(vectors.ids, answered)
    # Ascending by id, whatever the order of the corpus; mostly they are so already.
    if (np.diff(in_answers) < 0).any():
        order = np.argsort(in_answers)
        in_vectors, in_answers = in_vectors[order], in_answers[order]
    ids = answered[in_answers]
    if len(ids) == 0:
        raise DataError(
            f"{embedding}: found embeddings of none of the {len(answered)} examples with an "
            "answer, expected at least 1. Check the labels, and the view diagnostics."
        )
    for start in range(0, len(ids), BLOCK):
        part = slice(start, start + BLOCK)
        block = torch.from_numpy(np.array(vectors.matrix[in_vectors[part]]))
        yield _rows(head, ids[part], block, answers[torch.from_numpy(in_answers[part])])


def _rows(head: Head, ids: np.ndarray, vectors: Tensor, answers: Tensor) -> ProbeExamples:
    x = head.coordinates(vectors)
    return ProbeExamples(ids, x, slopes(head.outputs(x), answers))


def _answers(head: Head, inputs: Inputs) -> tuple[Int64[np.ndarray, " rows"], Tensor]:
    """Ids, ascending, and labels or targets of the examples that have one."""
    if not head.is_regression:
        ids, labels = read_labels(inputs, "example", len(head.bias))
        return ids, torch.from_numpy(labels)
    table = inputs.table("label", "example").select(["id", "target"]).drop_null().sort_by("id")
    # A copy: torch warns about memory it may not write to.
    ids, targets = (np.array(table[name].to_numpy()) for name in ("id", "target"))
    return ids, torch.from_numpy(targets.astype(np.float64))
