"""Continuations that a causal language model generates for queries, and the tokens to be explained.

A generated text is a sequence of predictions of a class, the next token. The tokens to be explained
are chosen by TF-IDF: tokens that are frequent in the query's text and rare among the texts of the
corpus, but in one of them at least; or they are the words that the user names.

Source: arXiv:2408.05976 explains text generation so, after public reviews; what counts as a
document, a text of the corpus, is ours.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from stages.model.batches import Tokens, batches
from stages.model.measurement import Measurement, forward, load_measurement
from stages.model.networks import IGNORED, TokenNetwork, widened
from stages.model.size import network_size
from stages.model.spec import ModelSpec, RunsModel
from stages.model.writing import ends_of
from stages.stage import ConfigError, Cost, Inputs, Rows, Split, Stage, Work
from storage.schema import TableSpec

CONTINUATION = TableSpec(
    name="continuation",
    schema=pa.schema(
        [
            ("query_id", pa.int64()),
            ("token_index", pa.int64()),
            ("token_id", pa.int64()),
            ("token", pa.string()),
            ("probability", pa.float64()),
            ("logit", pa.float64()),
            ("tf_idf", pa.float64()),
            ("context", pa.string()),
            ("prefix", pa.list_(pa.int64())),
            ("vector", pa.list_(pa.float32())),
        ]
    ),
    key=("query_id", "token_index"),
)
"""A token to be explained: its position in the query's tokens, the model's probability and logit
for it, the text and the token ids before it, and the hidden state that the output layer read."""

DOCUMENTS = 20_000
"""Texts of the corpus, drawn once, that document frequencies are counted in."""


class ContinuationState(NamedTuple):
    """The language model, and document frequencies of the corpus."""

    measurement: Measurement
    network: TokenNetwork
    frequencies: Counter[int]
    """Number of documents that each token id occurs in."""
    n_documents: int


@dataclass(frozen=True)
class Continuation(RunsModel, Stage):
    """Greedy continuations of the queries, and the tokens of them to be explained.

    Each new token takes a forward pass over all before it.
    """

    model: ModelSpec
    """The language model, head: completion."""
    new_tokens: int = 16
    """Tokens that are written; 0 explains tokens of the query's own text."""
    positions: int = 3
    """Tokens to be explained per query, those of the largest TF-IDF."""
    words: tuple[str, ...] | None = None
    """Explains the tokens that read so, spaces aside, instead of those of the largest TF-IDF."""
    token_budget: int = 2048
    """Padded tokens per batch."""
    seed: int = 0
    """Of the draw of documents, where the corpus has more than 20,000."""

    version: ClassVar[int] = 3
    split: ClassVar[Split] = "query"
    tasks: ClassVar[tuple[str, ...]] = ("completion",)

    def __post_init__(self) -> None:
        """Refuses numbers out of range.

        Raises:
            ConfigError: a number is out of range.
        """
        if self.new_tokens < 0 or self.positions < 1 or self.words == ():
            raise ConfigError(
                f"continuation: found new_tokens: {self.new_tokens}, positions: {self.positions}, "
                f"words: {self.words}, expected at least 0, at least 1, and words or null. Correct "
                "them."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The text of queries, and of examples for their document frequencies."""
        return ("text",)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """The tokens to be explained."""
        return (CONTINUATION,)

    def open(self, inputs: Inputs) -> ContinuationState:
        """The model, and the corpus's document frequencies."""
        measurement = load_measurement(self.model, inputs)
        texts = drawn_documents(inputs, self.seed)
        frequencies: Counter[int] = Counter()
        for row in measurement.tokenise(texts).columns["input_ids"]:
            frequencies.update(set(row))
        return ContinuationState(
            measurement, TokenNetwork(widened(measurement.network)), frequencies, texts.num_rows
        )

    def compute(self, inputs: Inputs) -> Rows:
        """The tokens to be explained of one block of queries."""
        opened: ContinuationState = inputs.opened
        text = inputs.table("text", "query").sort_by("id")
        rows: list[dict[str, Any]] = []
        vectors: list[Tensor] = []
        for query_id, (ids, candidates) in zip(
            text["id"].to_pylist(), self._written(opened, text), strict=True
        ):
            chosen = self._chosen(opened, ids, candidates)
            if chosen:
                columns_of, states = described(opened, ids, [at for at, _ in chosen])
                for token_columns, (_, tf_idf) in zip(columns_of, chosen, strict=True):
                    rows.append({"query_id": query_id, "tf_idf": tf_idf, **token_columns})
                vectors.append(states)
        if rows:
            matrix = torch.cat(vectors).cpu().numpy().astype(np.float32)
            names = [name for name in CONTINUATION.schema.names if name != "vector"]
            columns = [
                pa.array([row[name] for row in rows], CONTINUATION.schema.field(name).type)
                for name in names
            ]
            flat = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
            yield (
                CONTINUATION.name,
                pa.RecordBatch.from_arrays([*columns, flat], CONTINUATION.schema.names),
            )

    def cost(self, work: Work) -> Cost:
        """A forward pass for every new token, and one over each finished text."""
        size = network_size(self.model, None)
        share = work.n_queries / max(1, work.n_queries + work.n_examples)
        passes = self.new_tokens + 1
        return Cost(
            forward_rows=work.n_queries * passes,
            flops=size.forward_flops(round(work.n_tokens * share) * passes),
            written_bytes=work.n_queries * self.positions * 4 * size.dim,
            memory_bytes=size.forward_bytes(self.token_budget),
        )

    def _written(
        self, opened: ContinuationState, text: pa.Table
    ) -> list[tuple[list[int], list[int]]]:
        """Each query's token ids with its continuation, and the positions that may be explained."""
        measurement = opened.measurement
        tokens = measurement.tokenise(text)
        queries, targets = tokens.columns["input_ids"], tokens.columns["targets"]
        predicted = [[at + 1 for at, t in enumerate(row) if t != IGNORED] for row in targets]
        end, ends = measurement.tokenizer.eos_token_id, ends_of(measurement)
        if self.new_tokens == 0:
            return [
                (ids, [at for at in places if ids[at] != end])
                for ids, places in zip(queries, predicted, strict=True)
            ]
        # A text goes on from its end; a prompt from where its completion would begin.
        grown = []
        for ids, places in zip(queries, predicted, strict=True):
            # Of a conversation with several answers from the last one.
            starts = [at for n, at in enumerate(places) if n == 0 or places[n - 1] != at - 1]
            stop = starts[-1] if starts else len(ids)
            if measurement.form == "text":
                stop = len(ids) - (ids[-1] == end)
            grown.append(ids[:stop])
        begins = [len(ids) for ids in grown]
        going = [at for at, ids in enumerate(grown) if 0 < len(ids) < self.model.max_length]
        for _ in range(self.new_tokens):
            words = next_words(opened, [grown[at] for at in going], self.token_budget)
            for at, word in zip(going, words, strict=True):
                grown[at].append(word)
            going = [
                at
                for at in going
                if grown[at][-1] not in ends and len(grown[at]) < self.model.max_length
            ]
            if not going:
                break
        return [
            (ids, [at for at in range(first, len(ids)) if ids[at] not in ends])
            for ids, first in zip(grown, begins, strict=True)
        ]

    def _chosen(
        self, opened: ContinuationState, ids: list[int], candidates: list[int]
    ) -> list[tuple[int, float]]:
        """The positions to be explained, ascending, and their TF-IDF; each token once, the first.

        `ids` are the query's tokens, `candidates` the positions to choose from.
        """
        decode = opened.measurement.tokenizer.decode
        counts, scored = Counter(ids), []
        for at in candidates:
            token, frequency = ids[at], opened.frequencies[ids[at]]
            idf = float(np.log(opened.n_documents / frequency)) if frequency else 0.0
            tf_idf = counts[token] * idf
            word = decode([token]).strip()
            is_wanted = frequency > 0 and any(letter.isalpha() for letter in word)
            if word in self.words if self.words is not None else is_wanted:
                scored.append((at, token, tf_idf))
        first = {token: at for at, token, _ in reversed(scored)}
        scored = [row for row in scored if first[row[1]] == row[0]]
        if self.words is None:
            scored = sorted(scored, key=lambda row: (-row[2], row[0]))[: self.positions]
        return sorted((at, tf_idf) for at, _, tf_idf in scored)


def drawn_documents(inputs: Inputs, seed: int) -> pa.Table:
    """The text of the examples, or of `DOCUMENTS` of them, drawn with `seed`.

    Read shard by shard, once to count and once to take.
    """
    n = sum(shard.num_rows for shard in inputs.by_shard("text", "example"))
    drawn = np.arange(n)
    if n > DOCUMENTS:
        drawn = np.sort(np.random.default_rng(seed).permutation(n)[:DOCUMENTS])
    parts, first = [], 0
    for shard in inputs.by_shard("text", "example"):
        own = slice(*np.searchsorted(drawn, [first, first + shard.num_rows]))
        parts.append(shard.take(pa.array(drawn[own] - first)))
        first += shard.num_rows
    return pa.concat_tables(parts)


def next_words(
    opened: ContinuationState, prefixes: list[list[int]], token_budget: int
) -> list[int]:
    """The token id that the model finds most likely after each prefix of token ids."""
    tokens = Tokens({"input_ids": prefixes})
    next_ids = [0] * len(prefixes)
    network = opened.network
    for rows in batches(tokens.lengths, token_budget):
        with torch.no_grad():
            hidden = forward(network, opened.measurement.batch(tokens, rows))
            last = hidden[torch.arange(len(rows)), torch.from_numpy(tokens.lengths[rows] - 1)]
            words = network.head(last).argmax(1).tolist()
        for row, word in zip(rows.tolist(), words, strict=True):
            next_ids[row] = word
    return next_ids


def described(
    opened: ContinuationState, ids: list[int], places: list[int]
) -> tuple[list[dict[str, Any]], Float[Tensor, "places dim"]]:
    """Columns of `CONTINUATION` for the tokens of `ids` at `places`, and the states before them."""
    measurement, tokens = opened.measurement, Tokens({"input_ids": [ids]})
    with torch.no_grad():
        hidden = forward(opened.network, measurement.batch(tokens, np.zeros(1, np.int64)))
        states = hidden[0, [at - 1 for at in places]]
        logits = opened.network.head(states).double()
    columns_of = []
    for row, at in enumerate(places):
        word = ids[at]
        columns_of.append(
            {
                "token_index": at,
                "token_id": word,
                "token": measurement.tokenizer.decode([word]),
                "probability": float(torch.softmax(logits[row], 0)[word]),
                "logit": float(logits[row, word]),
                "context": measurement.tokenizer.decode(ids[:at]),
                "prefix": ids[:at],
            }
        )
    return columns_of, states


STAGE = Continuation
