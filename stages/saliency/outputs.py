"""The outputs of a model that are explained by a query's tokens, and tables of token scores.

An explained output is chosen once, at the unchanged query:

| corpus and head | outputs of a query | number |
|---|---|---|
| classification | the logit of the predicted class | its class |
| regression | the predicted number | 0 |
| question answering, `head: span` | the largest start logit, the largest end logit | 0 and 1 |
| `head: completion` | the logit of each token that `continuation` chose | position of the token |

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
from stages.stage import Inputs, Tell
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
`char_start` and `char_end` count in the column of the query that `text_column` names."""

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
"""An output that is explained: its value at the query; and for methods that follow a path its value
at the baseline, the convergence delta (the sum of the scores less the difference of the two
values), and the mean distance of the path's points to the nearest word, where `word_distance` is
set."""


class ExplainedOutputs(NamedTuple):
    """The model's outputs that are explained, each with the row of tokens that it is an output of.

    A query with several explained outputs has a row for each.
    """

    query_ids: Int[np.ndarray, " outputs"]
    outputs: Int[np.ndarray, " outputs"]
    """Numbers that tell the outputs of one query apart, as in the table above."""
    names: list[str | None]
    """Names of the outputs; None for classes."""
    tokens: Tokens
    offsets: list[TokenOffsets]
    targets: Targets
    """Where each output is among those of the network."""
    values: Float[np.ndarray, " outputs"]
    """The outputs' logits, or predicted numbers, for the unchanged rows."""

    @property
    def n(self) -> int:
        """The number of explained outputs."""
        return len(self.query_ids)


class ScoredOutput(NamedTuple):
    """The token scores of one explained output, and its numbers for the table `explained`."""

    scores: Float[np.ndarray, " tokens"]
    """Of every token of the row; special and template tokens are not stored."""
    n_gradients: int = 0
    baseline_value: float | None = None
    delta: float | None = None
    word_distance: float | None = None


def tables_read(model: ModelSpec, continuation: str) -> tuple[str, ...]:
    """Tables that `read_outputs` reads: the text, and of a completion model `continuation`."""
    return ("text", continuation) if model.kind.explains == "next_tokens" else ("text",)


def load_embedded(model: ModelSpec, inputs: Inputs) -> FromEmbeddings:
    """The model, ready to be called with word embeddings."""
    return FromEmbeddings(load_measurement(model, inputs))


def with_probe(model: ModelSpec, reads: tuple[str, ...]) -> tuple[str, ...]:
    """The tables `reads` and those that the model's kind reads: `probe` for a fitted head."""
    return (*reads, *model.kind.reads)


def read_outputs(
    embedded: FromEmbeddings,
    inputs: Inputs,
    token_budget: int,
    continuation: str = "continuation",
    only: Collection[int] | None = None,
) -> ExplainedOutputs:
    """The explained outputs of the queries of the task's block, or of those in `only`, by id.

    A query without a token of its own, such as U+200B alone, has none, and is counted; to a model
    of answers the text counts, and not the question.
    """
    text = inputs.table("text", "query").sort_by("id")
    if only is not None:
        text = text.filter(pc.is_in(text["id"], pa.array(sorted(only), pa.int64())))
    if embedded.measurement.head.explains == "next_tokens":
        return _next_tokens(embedded, text, inputs.table(continuation), token_budget, inputs.tell)
    tokens = embedded.measurement.tokenise(text, with_offsets=True)
    offsets = token_offsets(embedded.measurement, text, tokens)
    has_tokens = [bool(own.is_text.any()) for own in offsets]
    if embedded.explains_positions:
        has_tokens = [any(row) for row in tokens.columns["is_context"]]
    kept = np.flatnonzero(has_tokens)
    if len(kept) < len(offsets):
        inputs.tell(n_without_tokens=len(offsets) - len(kept))
    tokens, offsets = tokens.take(kept), [offsets[row] for row in kept]
    ids = text["id"].to_numpy()[kept]
    if embedded.explains_positions:
        return _answer_outputs(embedded, ids, tokens, offsets, token_budget)
    predicted = [
        int(logits.argmax())
        for logits in embedded.all_choices(tokens, np.zeros(len(ids), np.int64), token_budget)
    ]
    targets = Targets(np.zeros(len(ids), np.int64), np.array(predicted, np.int64))
    # The view adds the names of classes: reading them here would make scores depend on labels.
    names: list[str | None] = [None] * len(ids)
    return explained_outputs(
        embedded, ids, targets.choice, names, tokens, offsets, targets, token_budget
    )


def explained_outputs(
    embedded: FromEmbeddings,
    ids: Int[np.ndarray, " outputs"],
    outputs: Int[np.ndarray, " outputs"],
    names: list[str | None],
    tokens: Tokens,
    offsets: list[TokenOffsets],
    targets: Targets,
    token_budget: int,
) -> ExplainedOutputs:
    """The outputs that `targets` names, one for each row of `tokens`, with their values.

    Cost: a forward pass for each row.
    """
    logits = embedded.all_choices(tokens, targets.distribution, token_budget)
    values = [
        float(row_logits[choice])
        for row_logits, choice in zip(logits, targets.choice.tolist(), strict=True)
    ]
    return ExplainedOutputs(ids, outputs, names, tokens, offsets, targets, np.array(values))


def token_rows(
    explained: ExplainedOutputs, scored_outputs: Sequence[ScoredOutput]
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Rows of the tables `token` and `explained`: what a stage of token attribution yields."""
    rows: dict[str, list[Any]] = {name: [] for name in TOKEN.schema.names}
    for row, scored in enumerate(scored_outputs):
        offsets = explained.offsets[row]
        kept = np.flatnonzero(offsets.is_text)
        scores = [float(scored.scores[token]) for token in kept]
        # A token without a word is a word of its own.
        words = [
            offsets.word[token] if offsets.word[token] is not None else -1 - token for token in kept
        ]
        sums: dict[Any, float] = {}
        for word, score in zip(words, scores, strict=True):
            sums[word] = sums.get(word, 0.0) + score
        rows["query_id"] += [int(explained.query_ids[row])] * len(kept)
        rows["output"] += [int(explained.outputs[row])] * len(kept)
        rows["token_index"] += kept.tolist()
        rows["score"] += scores
        rows["word_score"] += [sums[word] for word in words]
        for name, column in (
            ("token", offsets.token),
            ("text_column", offsets.column),
            ("char_start", offsets.start),
            ("char_end", offsets.end),
            ("word_index", offsets.word),
        ):
            rows[name] += [column[token] for token in kept]
    yield TOKEN.name, pa.RecordBatch.from_pydict(rows, schema=TOKEN.schema)
    facts = {
        "query_id": explained.query_ids.tolist(),
        "output": explained.outputs.tolist(),
        "output_name": explained.names,
        "choice": explained.targets.choice.tolist(),
        "value": explained.values.tolist(),
        "baseline_value": [scored.baseline_value for scored in scored_outputs],
        "delta": [scored.delta for scored in scored_outputs],
        "word_distance": [scored.word_distance for scored in scored_outputs],
        "n_tokens": explained.tokens.lengths.tolist(),
        "n_gradients": [scored.n_gradients for scored in scored_outputs],
    }
    yield EXPLAINED.name, pa.RecordBatch.from_pydict(facts, schema=EXPLAINED.schema)


def _answer_outputs(
    embedded: FromEmbeddings,
    ids: Int[np.ndarray, " rows"],
    tokens: Tokens,
    offsets: list[TokenOffsets],
    token_budget: int,
) -> ExplainedOutputs:
    """Two outputs of each row: the largest start logit and the largest end logit of its answer."""
    twice = np.repeat(np.arange(len(ids)), 2)
    distribution = np.tile(np.arange(2), len(ids))
    both = tokens.take(twice)
    positions = [
        int(logits.argmax()) for logits in embedded.all_choices(both, distribution, token_budget)
    ]
    targets = Targets(distribution, np.array(positions, np.int64))
    names: list[str | None] = ["start", "end"] * len(ids)
    own_offsets = [offsets[row] for row in twice]
    return explained_outputs(
        embedded, ids[twice], distribution, names, both, own_offsets, targets, token_budget
    )


def _next_tokens(
    embedded: FromEmbeddings, text: pa.Table, chosen: pa.Table, token_budget: int, tell: Tell
) -> ExplainedOutputs:
    """One output for each explained token of a continuation; its row is all before that token.

    `chosen` is the table that the stage `continuation` wrote. A token that nothing but special
    tokens stands before has none.
    """
    measurement = embedded.measurement
    tokens = measurement.tokenise(text, with_offsets=True)
    offsets = token_offsets(measurement, text, tokens)
    row_of = {query: row for row, query in enumerate(text["id"].to_pylist())}
    chosen = chosen.sort_by([("query_id", "ascending"), ("token_index", "ascending")])
    tokens_of_block = [token for token in chosen.to_pylist() if token["query_id"] in row_of]
    known = [
        extended(measurement.tokenizer, token["prefix"], offsets[row_of[token["query_id"]]])
        for token in tokens_of_block
    ]
    kept = [row for row, own in enumerate(known) if own.is_text.any()]
    if len(kept) < len(known):
        tell(n_without_tokens=len(known) - len(kept))
    tokens_of_block = [tokens_of_block[row] for row in kept]
    prefixes = [token["prefix"] for token in tokens_of_block]
    distribution = np.zeros(len(prefixes), np.int64)
    return explained_outputs(
        embedded,
        np.array([token["query_id"] for token in tokens_of_block], np.int64),
        np.array([token["token_index"] for token in tokens_of_block], np.int64),
        [token["token"] for token in tokens_of_block],
        Tokens({"input_ids": prefixes}),
        [known[row] for row in kept],
        Targets(distribution, np.array([token["token_id"] for token in tokens_of_block], np.int64)),
        token_budget,
    )
