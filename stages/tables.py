"""Schemas of tables that more than one stage writes or reads by constant.

A table that a single stage writes is declared in that stage's file.
"""

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
"""The outputs for a row, one per class or the predicted target, by `source`: 'model', 'probe',
'kernel', 'cross_fitting' or 'ensemble'."""

KERNEL_DUAL = TableSpec(
    name="kernel_dual",
    schema=pa.schema([("id", pa.int64()), ("role", pa.string()), ("dual", pa.list_(pa.float64()))]),
    key=("id",),
)
"""The dual weight of every labelled example in each output of a kernel regression: an output for a
row, less the offset, is the sum over examples of this weight times their kernel with the row."""

DIRECTION = TableSpec(
    name="direction",
    schema=pa.schema(
        [("direction", pa.int64()), ("share", pa.float64()), ("vector", pa.list_(pa.float64()))]
    ),
    key=("direction",),
)
"""Directions that feature vectors are longest along, the first the most: unit vectors, and the
share of the kernel's trace that lies along each."""

ROW_SELECTION = TableSpec(
    name="row_selection",
    schema=pa.schema([("id", pa.int64()), ("why", pa.string())]),
    key=("id",),
)
"""Examples that features are computed of, and why: "top" or "beside"."""

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
"""The status of each row's features; a feature stage writes it as its second table.

`measured` is the number that was differentiated, a loss or a logit, and `norm` the length of the
row's feature vector; both are null where they are not finite, and `n_tokens` where no text was
tokenised, as with `gradient: {ntk: ...}`. `status` is "ok", "not finite",
"overflow" (finite in float32, not in float16), or "no target" (`max_length` cut the completion
away). Only rows that are "ok" are in the feature table.

Where the feature table has a row per token, `measured` and `norm` are those of the row of text, the
sum or mean of its tokens' losses and gradients, and `status` is the worst of its tokens' statuses:
the tokens that are "ok" are in the feature table.
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
            ("n_prior", pa.int64()),
        ]
    ),
    key=("semivalue", "utility", "example_id"),
)
"""Sums over a round's units, which are independent estimates of an example's value: `total` of the
estimates, `total_sq` of their squares, `n_units` units, and `n_observed` of them with a marginal of
the example. `n_prior` is how many units' worth of the examples' mean variance its own is mixed with
(`stages.game.uncertainty.moderated`)."""

OUTCOME = TableSpec(
    name="outcome",
    schema=pa.schema(
        [
            ("round", pa.int64()),
            ("subset", pa.int64()),
            ("size", pa.int64()),
            ("query_id", pa.int64()),
            ("logits", pa.list_(pa.float32())),
        ]
    ),
    key=("subset", "query_id"),
)
"""The logits of a query after training on a subset, which `round` and `subset` name."""

SUBSET = TableSpec(
    name="subset",
    schema=pa.schema(
        [
            ("round", pa.int64()),
            ("subset", pa.int64()),
            ("size", pa.int64()),
            ("example_ids", pa.list_(pa.int64())),
        ]
    ),
    key=("subset",),
)
"""The examples of a subset, in the order in which they joined."""


GENERAL = -1
"""The value of `contrast` for a general support set, which has no class k."""

ANSWER_COLUMNS: tuple[tuple[str, pa.DataType], ...] = (
    ("n_tokens", pa.int64()),
    ("loss", pa.float64()),
    ("text_loss", pa.float64()),
    ("text_loss_alone", pa.float64()),
    ("end_loss", pa.float64()),
    ("worst_loss", pa.float64()),
    ("vector", pa.list_(pa.float32())),
)
"""What is measured of an answer of a corpus of completions: `stages.model.answers.Losses`, null
where not known, and the mean last hidden states of its prompt and of itself alone, side by side."""

ANSWER_MARGIN = TableSpec(
    name="answer_margin",
    schema=pa.schema(
        [
            ("id", pa.int64()),
            ("role", pa.string()),
            ("chosen_tokens", pa.int64()),
            ("rejected_tokens", pa.int64()),
            ("chosen_logp", pa.float64()),
            ("rejected_logp", pa.float64()),
            ("reference_chosen_logp", pa.float64()),
            ("reference_rejected_logp", pa.float64()),
            ("reward_margin", pa.float64()),
            ("loss", pa.float64()),
        ]
    ),
    key=("id",),
)
"""Log-likelihoods of both answers of a pair, in nats, by the policy and by the reference, and the
margin and loss of DPO; null where `max_length` leaves no token of one of them."""

TRIAL_MARGIN = TableSpec(
    name="trial_margin",
    schema=pa.schema(
        [
            ("trained_on", pa.string()),
            ("draw", pa.int64()),
            ("query_id", pa.int64()),
            ("margin", pa.float64()),
        ]
    ),
    key=("trained_on", "draw", "query_id"),
)
"""The margin of a query's rewards after a training on pairs; above 0 its order was learned."""
