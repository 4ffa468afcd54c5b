"""What is explained of a query by its words: an output of the model, fixed at the query itself.

| corpus and head | outputs of a query | number |
|---|---|---|
| classification | the logit of the predicted class | its class |
| regression | the predicted number | 0 |
| question answering, `head: span` | the largest start logit, the largest end logit | 0 and 1 |
| `head: completion` | the logit of each token that `continuation` chose | place of the token |

Scores are signed so that positive raises that output, unless a method says that its scores have no
sign.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

from stages.model.batches import Tokens
from stages.model.measurement import load_measurement
from stages.model.offsets import TokenOffsets, extended, token_offsets
from stages.model.spec import ModelSpec
from stages.saliency.from_embeddings import FromEmbeddings, Targets
from stages.stage import Inputs
from storage.schema import TableSpec

TOKEN = TableSpec(
    name="token",
    schema=pa.schema(
        [
            ("query_id", pa.int64()),
            ("token_index", pa.int64()),
            ("token", pa.string()),
            ("char_start", pa.int64()),
            ("char_end", pa.int64()),
            ("score", pa.float64()),
            ("output", pa.int64()),
            ("text_column", pa.string()),
            ("word_index", pa.int64()),
            ("word_score", pa.float64()),
        ]
    ),
    key=("query_id", "output", "token_index"),
)
"""A token of a query's text and its score; `word_score` is the sum over the tokens of its word.
Characters count in the column of the query that `text_column` names."""

EXPLAINED = TableSpec(
    name="explained",
    schema=pa.schema(
        [
            ("query_id", pa.int64()),
            ("output", pa.int64()),
            ("output_name", pa.string()),
            ("choice", pa.int64()),
            ("value", pa.float64()),
            ("baseline_value", pa.float64()),
            ("delta", pa.float64()),
            ("word_distance", pa.float64()),
            ("n_tokens", pa.int64()),
            ("n_gradients", pa.int64()),
        ]
    ),
    key=("query_id", "output"),
)
"""An output that is explained: its value at the query, and for methods that follow a path its value
at the path's beginning, `delta`, by which the scores miss the difference of the two, and the mean
distance of the path's points to the nearest word, where it was asked for."""


class ExplainedOutputs(NamedTuple):
    """Outputs of rows that are explained, one row of tokens for each."""

    query_ids: Int[np.ndarray, " units"]
    outputs: Int[np.ndarray, " units"]
    names: list[str | None]
    """NULL for classes."""
    tokens: Tokens
    offsets: list[TokenOffsets]
    targets: Targets
    values: Float[np.ndarray, " units"]
    """Of the outputs, at the rows as they are."""

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.query_ids)


class Scored(NamedTuple):
    """What a method says of one unit."""

    scores: Float[np.ndarray, " tokens"]
    n_gradients: int = 0
    baseline_value: float | None = None
    delta: float | None = None
    word_distance: float | None = None


def tables_read(model: ModelSpec, continuation: str) -> tuple[str, ...]:
    """The text, and for a completion model the tokens that are explained."""
    return ("text", continuation) if model.kind.explains == "next_tokens" else ("text",)


def load_embedded(model: ModelSpec, inputs: Inputs) -> FromEmbeddings:
    """The model as a function of its word embeddings."""
    return FromEmbeddings(load_measurement(model, inputs))


def with_probe(model: ModelSpec, reads: tuple[str, ...]) -> tuple[str, ...]:
    """The tables, and the fitted head, where the model has one."""
    return (*reads, *model.kind.reads)


def queries(
    embedded: FromEmbeddings,
    inputs: Inputs,
    token_budget: int,
    continuation: str = "continuation",
    only: Collection[int] | None = None,
) -> ExplainedOutputs:
    """What is explained of the queries of the part's own block, or of those of some ids."""
    text = inputs.table("text", "query").sort_by("id")
    if only is not None:
        text = text.filter(pc.is_in(text["id"], pa.array(sorted(only), pa.int64())))
    if embedded.measurement.head.explains == "next_tokens":
        return _next_tokens(embedded, text, inputs.table(continuation), token_budget)
    tokens = embedded.measurement.tokenise(text, with_offsets=True)
    offsets = token_offsets(embedded.measurement, text, tokens)
    ids = text["id"].to_numpy()
    if embedded.answers_by_place:
        return _answers(embedded, ids, tokens, offsets, token_budget)
    chosen = [
        int(logits.argmax())
        for logits in embedded.all_choices(tokens, np.zeros(len(ids), np.int64), token_budget)
    ]
    targets = Targets(np.zeros(len(ids), np.int64), np.array(chosen, np.int64))
    # Names of classes come with the view: whoever read them here would depend on the labels.
    names: list[str | None] = [None] * len(ids)
    return units_of(embedded, ids, targets.choice, names, tokens, offsets, targets, token_budget)


def units_of(
    embedded: FromEmbeddings,
    ids: Int[np.ndarray, " units"],
    outputs: Int[np.ndarray, " units"],
    names: list[str | None],
    tokens: Tokens,
    offsets: list[TokenOffsets],
    targets: Targets,
    token_budget: int,
) -> ExplainedOutputs:
    """Rows with their targets, and the value of each."""
    logits = embedded.all_choices(tokens, targets.which, token_budget)
    values = [float(own[at]) for own, at in zip(logits, targets.choice.tolist(), strict=True)]
    return ExplainedOutputs(ids, outputs, names, tokens, offsets, targets, np.array(values))


def token_rows(
    units: ExplainedOutputs, found: Sequence[Scored]
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Rows of both tables: what a stage of token attribution yields."""
    rows: dict[str, list[Any]] = {name: [] for name in TOKEN.schema.names}
    for unit, scored in enumerate(found):
        offsets = units.offsets[unit]
        kept = np.flatnonzero(offsets.is_text)
        own = [float(scored.scores[at]) for at in kept]
        # A token without a word is a word of its own.
        words = [offsets.word[at] if offsets.word[at] is not None else -1 - at for at in kept]
        sums: dict[Any, float] = {}
        for word, score in zip(words, own, strict=True):
            sums[word] = sums.get(word, 0.0) + score
        rows["query_id"] += [int(units.query_ids[unit])] * len(kept)
        rows["output"] += [int(units.outputs[unit])] * len(kept)
        rows["token_index"] += kept.tolist()
        rows["score"] += own
        rows["word_score"] += [sums[word] for word in words]
        for name, column in (
            ("token", offsets.token),
            ("text_column", offsets.column),
            ("char_start", offsets.start),
            ("char_end", offsets.end),
            ("word_index", offsets.word),
        ):
            rows[name] += [column[at] for at in kept]
    yield TOKEN.name, pa.RecordBatch.from_pydict(rows, schema=TOKEN.schema)
    facts = {
        "query_id": units.query_ids.tolist(),
        "output": units.outputs.tolist(),
        "output_name": units.names,
        "choice": units.targets.choice.tolist(),
        "value": units.values.tolist(),
        "baseline_value": [one.baseline_value for one in found],
        "delta": [one.delta for one in found],
        "word_distance": [one.word_distance for one in found],
        "n_tokens": units.tokens.lengths.tolist(),
        "n_gradients": [one.n_gradients for one in found],
    }
    yield EXPLAINED.name, pa.RecordBatch.from_pydict(facts, schema=EXPLAINED.schema)


def _answers(
    embedded: FromEmbeddings,
    ids: Int[np.ndarray, " rows"],
    tokens: Tokens,
    offsets: list[TokenOffsets],
    token_budget: int,
) -> ExplainedOutputs:
    """Start and end of each answer, each as the largest logit of its own."""
    twice = np.repeat(np.arange(len(ids)), 2)
    which = np.tile(np.arange(2), len(ids))
    both = tokens.take(twice)
    chosen = [int(own.argmax()) for own in embedded.all_choices(both, which, token_budget)]
    targets = Targets(which, np.array(chosen, np.int64))
    names: list[str | None] = ["start", "end"] * len(ids)
    own_offsets = [offsets[row] for row in twice]
    return units_of(embedded, ids[twice], which, names, both, own_offsets, targets, token_budget)


def _next_tokens(
    embedded: FromEmbeddings, text: pa.Table, chosen: pa.Table, token_budget: int
) -> ExplainedOutputs:
    """The tokens of continuations that are explained, each with all that stands before it."""
    measurement = embedded.measurement
    tokens = measurement.tokenise(text, with_offsets=True)
    offsets = token_offsets(measurement, text, tokens)
    row_of = {query: row for row, query in enumerate(text["id"].to_pylist())}
    chosen = chosen.sort_by([("query_id", "ascending"), ("token_index", "ascending")])
    rows = [one for one in chosen.to_pylist() if one["query_id"] in row_of]
    known = [offsets[row_of[one["query_id"]]] for one in rows]
    prefixes = [one["prefix"] for one in rows]
    n = np.zeros(len(rows), np.int64)
    return units_of(
        embedded,
        np.array([one["query_id"] for one in rows], np.int64),
        np.array([one["token_index"] for one in rows], np.int64),
        [one["token"] for one in rows],
        Tokens({"input_ids": prefixes}),
        [
            extended(measurement.tokenizer, ids, own)
            for ids, own in zip(prefixes, known, strict=True)
        ],
        Targets(n, np.array([one["token_id"] for one in rows], np.int64)),
        token_budget,
    )
