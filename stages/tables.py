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

KERNEL_DUAL = TableSpec(
    name="kernel_dual",
    schema=pa.schema([("id", pa.int64()), ("role", pa.string()), ("dual", pa.list_(pa.float64()))]),
    key=("id",),
)
"""The weight of every labelled example in each output of a kernel regression: an output less the
offset is the sum over examples of this number times their kernel."""

DIAGNOSTICS = TableSpec(
    name="diagnostics",
    schema=pa.schema(
        [
            ("id", pa.int64()),
            ("role", pa.string()),
            ("n_tokens", pa.int64()),
            ("measured", pa.float64()),
            ("norm", pa.float64()),
            ("status", pa.string()),
        ]
    ),
    key=("id",),
)
"""How the features of a row came out; a feature stage writes it as its second table.

`measured` is the number that was differentiated, a loss or a logit, and `norm` the length of the
row's feature vector; both are null where they are not finite, and `n_tokens` where no token was
looked at, as with `gradient: {ntk: ...}`. `status` is "ok", "not finite",
"overflow" (finite in float32, not in float16), or "no target" (`max_length` cut the completion
away). Only rows that are "ok" are in the feature table.

Where the feature table has a row per token, `measured` and `norm` are those of the row of text, the
sum or mean of its tokens' losses and gradients, and `status` is the worst of its tokens': those
that came out are in the feature table.
"""

TOKEN_GRADIENT = TableSpec(
    name="token_gradient",
    schema=pa.schema(
        [
            ("id", pa.int64()),
            ("role", pa.string()),
            ("token_index", pa.int64()),
            ("vector", pa.list_(pa.float32())),
        ]
    ),
    key=("id", "token_index"),
)
"""The gradient of the loss of one predicted token, which is token `token_index` of the row."""

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

SHAPLEY_ROUND = TableSpec(
    name="shapley_round",
    schema=pa.schema(
        [
            ("round", pa.int64()),
            ("semivalue", pa.string()),
            ("utility", pa.string()),
            ("example_id", pa.int64()),
            ("total", pa.float64()),
            ("total_sq", pa.float64()),
            ("n_units", pa.int64()),
            ("n_observed", pa.int64()),
        ]
    ),
    key=("semivalue", "utility", "example_id"),
)
"""Sums over a round's units, independent estimates of one value: of the estimates, of their
squares, how many units there were, and how many of them saw the example at all."""


GENERAL = -1
"""Stands for the class k of the general set."""
