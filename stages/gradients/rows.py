"""Feature vectors of a batch as rows of a feature table, and of `diagnostics` beside them.

A row whose numbers cannot be stored is left out of the feature table and counted; it never touches
another row.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int, Shaped

from stages.reading.vectors import vector_rows
from stages.stage import Rows, Tell
from stages.tables import DIAGNOSTICS

DType = Literal["float32", "float16"]
STATUSES = ("ok", "overflow", "not finite")
"""How a vector came out when it was stored, from good to bad."""


class BatchVectors(NamedTuple):
    """The feature vectors of one batch, and the numbers whose gradients they are."""

    rows: Int[np.ndarray, " batch"]
    """Row numbers in the text of the shard."""
    vectors: Float[np.ndarray, "batch dim"]
    """The gradients of a row's numbers, one after the other."""
    numbers: Float[np.ndarray, "batch measured"]
    """The measured numbers: losses or logits."""


def feature_rows(
    table: str,
    text: pa.Table,
    n_tokens: Int[np.ndarray, " batch"] | None,
    made: BatchVectors,
    dtype: DType,
    tell: Tell,
) -> Rows:
    """Rows of the feature table `table` for one batch, and of `diagnostics` beside them.

    Rows that are not finite, or too large for float16, are in `diagnostics` alone; `tell` is given
    their number. `n_tokens` is None where no row was tokenised.
    """
    stored, status = as_stored(made, dtype)
    tell(n_not_finite=int((status != "ok").sum()))
    yield from usable_rows(table, text, made.rows, stored, status)
    norms = np.linalg.norm(made.vectors.astype(np.float64), axis=1)
    numbers = made.numbers[:, 0]
    yield DIAGNOSTICS.name, diagnostic_rows(text, made.rows, n_tokens, numbers, norms, status)


def as_stored(
    made: BatchVectors, dtype: DType
) -> tuple[Float[np.ndarray, "batch dim"], Shaped[np.ndarray, " batch"]]:
    """The vectors in the type `dtype`, and one of `STATUSES` for each."""
    finite = np.isfinite(made.vectors).all(1) & np.isfinite(made.numbers).all(1)
    with np.errstate(over="ignore"):
        stored = made.vectors.astype(dtype)
    fits = np.isfinite(stored).all(1)
    return stored, np.where(~finite, "not finite", np.where(fits, "ok", "overflow"))


def usable_rows(
    table: str,
    text: pa.Table,
    rows: Int[np.ndarray, " batch"],
    stored: Float[np.ndarray, "batch dim"],
    status: Shaped[np.ndarray, " batch"],
    more: Mapping[str, np.ndarray] | None = None,
) -> Rows:
    """Rows of the feature table `table` for the vectors whose status is "ok".

    `more` adds columns, one value per row of `text`, between the role and the vector.
    """
    good = np.flatnonzero(status == "ok")
    if len(good):
        batch = vector_rows(text, rows[good], stored[good])
        for at, (name, values) in enumerate((more or {}).items()):
            batch = batch.add_column(2 + at, name, pa.array(values[rows[good]]))
        yield table, batch


def diagnostic_rows(
    text: pa.Table,
    rows: Int[np.ndarray, " batch"],
    n_tokens: Int[np.ndarray, " batch"] | None,
    numbers: Float[np.ndarray, " batch"],
    norms: Float[np.ndarray, " batch"],
    status: Shaped[np.ndarray, " batch"],
) -> pa.RecordBatch:
    """Rows of `diagnostics` for these `rows` of `text`; numbers that are not finite become null."""
    picked = text.select(["id", "role"]).take(pa.array(rows)).combine_chunks()
    return pa.table(
        {
            "id": picked["id"],
            "role": picked["role"],
            "n_tokens": pa.nulls(len(rows), pa.int64())
            if n_tokens is None
            else pa.array(n_tokens, pa.int64()),
            "measured": pa.array(numbers, pa.float64(), mask=~np.isfinite(numbers)),
            "norm": pa.array(norms, pa.float64(), mask=~np.isfinite(norms)),
            "status": pa.array(status.tolist(), pa.string()),
        }
    ).to_batches()[0]
