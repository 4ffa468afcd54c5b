"""Logits of a model or probe as arrays, and the feature vectors of the same rows."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int64

from stages.reading.supervision import count_classes
from stages.reading.vectors import matrix_of
from stages.stage import DataError, Inputs, Role


class Predicted(NamedTuple):
    """Logits and feature vectors of the rows of one role that have both."""

    ids: Int64[np.ndarray, " rows"]
    """Ascending."""
    logits: Float[np.ndarray, "rows classes"]
    """float64."""
    features: Float[np.ndarray, "rows dim"]
    """As they are stored."""


def read_logits(
    inputs: Inputs, predictions: str, role: Role
) -> tuple[Int64[np.ndarray, " rows"], Float[np.ndarray, "rows outputs"]]:
    """Ids, ascending, and outputs in float64 of the rows of one role that have a prediction."""
    return logits_in(_of_role(inputs, predictions, role))


def logits_in(
    table: pa.Table,
) -> tuple[Int64[np.ndarray, " rows"], Float[np.ndarray, "rows outputs"]]:
    """Ids, ascending, and outputs in float64 of rows of a table of predictions."""
    table = table.sort_by("id")
    if table.num_rows == 0:
        return np.zeros(0, np.int64), np.zeros((0, 0))
    return table["id"].to_numpy(), matrix_of(table["logits"]).astype(np.float64)


def read_predicted(inputs: Inputs, features: str, predictions: str, role: Role) -> Predicted:
    """Logits and features of the rows of one role that are in both tables.

    In a stage's `compute` those of the part's own shard.

    Raises:
        DataError: the predictions are of no one model, or have another number of classes.
    """
    vectors = _of_role(inputs, features, role)
    predicted = _of_role(inputs, predictions, role)
    in_vectors, in_predicted = matched(vectors, predicted, predictions)
    n_classes = count_classes(inputs)
    if len(in_predicted) == 0:
        return Predicted(np.zeros(0, np.int64), np.zeros((0, n_classes)), np.zeros((0, 0)))
    logits = matrix_of(predicted["logits"])[in_predicted].astype(np.float64)
    if logits.shape[1] != n_classes:
        raise DataError(
            f"{predictions}: found {logits.shape[1]} logits a row, expected {n_classes}, one per "
            "class. Name predictions of this corpus."
        )
    ids = vectors["id"].to_numpy()[in_vectors]
    return Predicted(ids, logits, matrix_of(vectors["vector"])[in_vectors])


def _of_role(inputs: Inputs, name: str, role: Role) -> pa.Table:
    """Rows of the table `name` of one role, whether it comes as a shard or whole."""
    table = inputs.table(name, role)
    return table.filter(pc.equal(table["role"], role))


def matched(
    vectors: pa.Table, predictions: pa.Table, read: str
) -> tuple[Int64[np.ndarray, " both"], Int64[np.ndarray, " both"]]:
    """Row numbers, in each of the two tables, of the ids that are in both, by ascending id.

    Raises:
        DataError: the predictions, read from the instance `read`, are those of a kernel, whose
            outputs are no logits, or of `cross_fitting`, which are of several models.
    """
    sources = set(predictions["source"].to_pylist())
    if not sources <= {"model", "probe"} or len(sources) > 1:
        raise DataError(
            f"{read}: found predictions of {', '.join(sorted(sources))}, expected the logits of "
            "one model or probe. Name an instance of the stage prediction."
        )
    _, in_vectors, in_predictions = np.intersect1d(
        vectors["id"].to_numpy(),
        predictions["id"].to_numpy(),
        assume_unique=True,
        return_indices=True,
    )
    return in_vectors, in_predictions
