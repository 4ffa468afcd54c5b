"""Vectors of feature tables as matrices, and matrices as rows of feature tables."""

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from stages.stage import DataError, Inputs, Vectors

BLOCK = 2**16
"""Examples that are scored at a time, mostly a shard: the top-k of many are found the faster."""


def matrix_of(column: pa.ChunkedArray) -> Float[np.ndarray, "rows dim"]:
    """A column of fixed-size lists as a matrix, a row per list."""
    combined = column.combine_chunks()
    values = combined.flatten().to_numpy(zero_copy_only=False)
    matrix: np.ndarray = values.reshape(len(combined), combined.type.list_size)
    return matrix


def evenly(n: int, most: int) -> Int64[np.ndarray, " places"]:
    """At most `most` of the places 0 to n - 1, evenly spread, ascending."""
    return np.arange(n) if n <= most else np.arange(most) * n // most


def vector_rows(
    text: pa.Table,
    rows: Int[np.ndarray, " rows"],
    vectors: Float[np.ndarray, "rows dim"],
    column: str = "vector",
) -> pa.RecordBatch:
    """Rows of a feature table: id and role of the given `rows` of `text`, and their vectors.

    Lists are of float16 where the vectors are, and of float32 otherwise.
    """
    picked = text.select(["id", "role"]).take(pa.array(rows)).combine_chunks()
    stored = np.float16 if vectors.dtype == np.float16 else np.float32
    flat = pa.array(np.ascontiguousarray(vectors, dtype=stored).reshape(-1))
    lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table({"id": picked["id"], "role": picked["role"], column: lists}).to_batches()[0]


def vectors_of(
    inputs: Inputs, name: str, ids: Int64[np.ndarray, " wanted"] | None = None
) -> tuple[Int64[np.ndarray, " rows"], Float[Tensor, "rows dim"]]:
    """Ids, ascending, and vectors in float32 of the examples of the part's own shard.

    With `ids`, only those of these examples. `name` is that of the feature table.
    """
    table = inputs.table(name)
    table = table.filter(pa.compute.equal(table["role"], "example"))
    shard_ids = table["id"].to_numpy()
    keep = np.arange(len(shard_ids)) if ids is None else np.flatnonzero(np.isin(shard_ids, ids))
    order = keep[np.argsort(shard_ids[keep], kind="stable")]
    if len(order) == 0:
        return np.zeros(0, np.int64), torch.zeros(0, 0)
    matrix = matrix_of(table["vector"])
    if len(order) < len(matrix) or (np.diff(order) < 0).any():
        # Rows of a shard mostly lie in order, and all are wanted: one copy is enough.
        matrix = matrix[order]
    return shard_ids[order], torch.from_numpy(np.array(matrix, dtype=np.float32))


def query_vectors(
    inputs: Inputs, name: str
) -> tuple[Int64[np.ndarray, " rows"], Float[Tensor, "rows dim"]]:
    """Ids, ascending, and vectors in float32 of all queries in the feature table `name`.

    Raises:
        DataError: there is none.
    """
    ids, matrix = inputs.vectors(name, "query")
    if len(ids) == 0:
        raise DataError(
            f"{name}: found no query, expected at least one, as pairs are scored. Add `queries:`."
        )
    order = np.argsort(ids, kind="stable")
    return np.array(ids)[order], torch.from_numpy(np.array(matrix[order], dtype=np.float32))


def aligned(vectors: Vectors, ids: np.ndarray) -> Float[Tensor, "rows dim"]:
    """The rows of `vectors` for `ids`, in that order; only those rows are read from the map.

    Raises:
        DataError: an id has no row.
    """
    order = np.argsort(vectors.ids, kind="stable")
    places = np.searchsorted(vectors.ids, ids, sorter=order)
    rows = order[np.minimum(places, max(len(order) - 1, 0))] if len(order) else places
    has_row = vectors.ids[rows] == ids if len(order) else np.zeros(len(ids), dtype=bool)
    if not has_row.all():
        missing = ids[~has_row]
        raise DataError(
            f"features: found no vector for {len(missing)} ids (the first is {missing[0]}), "
            "expected one for each. Rerun the stage that writes the features."
        )
    return torch.from_numpy(np.asarray(vectors.matrix[rows]))


def unit_rows(rows: Float[np.ndarray, "rows dim"]) -> Float64[np.ndarray, "rows dim"]:
    """The rows at length 1, in float64; zeros stay."""
    exact = rows.astype(np.float64)
    length = np.linalg.norm(exact, axis=1, keepdims=True)
    unit: np.ndarray = exact / np.where(length > 0, length, 1.0)
    return unit
