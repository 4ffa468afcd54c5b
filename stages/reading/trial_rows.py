"""The losses that a short training leaves, as rows of tables."""

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from stages.stage import Rows
from stages.tables import TRIAL_MARGIN
from storage.schema import TableSpec

SELECTION_TRIAL = TableSpec(
    name="selection_trial",
    schema=pa.schema(
        [
            ("trained_on", pa.string()),
            ("draw", pa.int64()),
            ("query_id", pa.int64()),
            ("loss", pa.float64()),
            ("n_rows", pa.int64()),
            ("n_tokens", pa.int64()),
        ]
    ),
    key=("trained_on", "draw", "query_id"),
)
"""The loss of a query in nats a token, after a training; `draw` counts parts or random sets; of the
set its rows, and their tokens."""


def trial_rows(
    trained_on: str,
    draw: int,
    query_ids: Int64[np.ndarray, " queries"],
    losses: Float64[np.ndarray, " queries"],
    margins: Float64[np.ndarray, " queries"] | None,
    n_rows: int,
    n_tokens: int,
) -> Rows:
    """Rows of `selection_trial` of one training, and where there are margins of `trial_margin`."""
    n = len(query_ids)
    of_query = [
        pa.array([trained_on] * n, pa.string()),
        pa.array(np.full(n, draw, np.int64)),
        pa.array(query_ids),
    ]
    counts = [pa.array(np.full(n, count, np.int64)) for count in (n_rows, n_tokens)]
    names = SELECTION_TRIAL.schema.names
    columns = [*of_query, pa.array(losses), *counts]
    yield SELECTION_TRIAL.name, pa.RecordBatch.from_arrays(columns, names)
    if margins is not None:
        columns = [*of_query, pa.array(margins)]
        yield TRIAL_MARGIN.name, pa.RecordBatch.from_arrays(columns, TRIAL_MARGIN.schema.names)
