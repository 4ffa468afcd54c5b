"""Tables that more than one stage writes; what a single stage writes is declared in its file."""

import pyarrow as pa

from storage.schema import TableSpec

PREDICTION = TableSpec(
    name="prediction",
    schema=pa.schema(
        [
            ("id", pa.int64()),
            ("role", pa.string()),
            ("source", pa.string()),
            ("logits", pa.list_(pa.float32())),
        ]
    ),
    key=("source", "role", "id"),
)
"""One output per class for a row; `source` says who predicts: 'model', 'probe' or 'kernel'."""

EXACT_VALUE = TableSpec(
    name="exact_value",
    schema=pa.schema(
        [
            ("semivalue", pa.string()),
            ("utility", pa.string()),
            ("example_id", pa.int64()),
            ("value", pa.float64()),
        ]
    ),
    key=("semivalue", "utility", "example_id"),
)
"""Values of examples that are known without sampling, so that they carry no standard error."""
