"""BM25: how many words a query and an example share, the rare ones counting most. A baseline.

The score is that of `stages/ranking/terms.py`. It is at least 0 and knows of no label: nothing
harms, and examples without a word in common have no row. Words are those of Unicode that have a
letter or digit, in lower case (`stages.reading.words`); none is left out as too frequent, and none
is stemmed. What a score takes from all examples, in how many a word is and how long they are,
`word_frequency` has counted; each shard of examples is then scored by itself.

It does not come apart into a global and a local part.

Source: Robertson and Zaragoza 2009, doi:10.1561/1500000019. The roads not taken: bm25s,
arXiv:2407.03618, holds an index of all examples in memory, 100 bytes a word; rank_bm25 looks into
all examples for every word of a query.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from stages.capabilities import Merges
from stages.pairs.scores import ATTRIBUTION, NUMBERS, KeptPairs, kept, merged, pair_rows, pairs_cost
from stages.ranking.terms import (
    CorpusWords,
    WordCounts,
    bm25_scores,
    count_words,
    words_of_rows,
    worths,
)
from stages.stage import ConfigError, Cost, Inputs, Role, Rows, Split, Work

WORD_BYTES = 200
"""Memory per word of a shard while it is scored, as seen on sentences."""


class SearchedWords(NamedTuple):
    """The words of the queries, and what all examples together say of them."""

    queries: WordCounts
    vocabulary: Mapping[str, int]
    corpus: CorpusWords


@dataclass(frozen=True)
class Bm25(KeptPairs, Merges):
    """Scores of the pairs of queries and examples that share a word.

    A task holds the words of one shard of examples and of all queries, and 16 million scores.
    """

    k1: float = 1.5
    """How slowly the repetitions of a word are worth less and less; 0 asks only if it is there."""
    b: float = 0.75
    """How much a word in a long example counts less: from 0, not at all, to 1."""

    version: ClassVar[int] = 4
    split: ClassVar[Split] = "shard"
    opens: ClassVar[tuple[Role, ...]] = ("query",)
    speaks_for: ClassVar[str] = "likeness"

    def __post_init__(self) -> None:
        """Refuses parameters out of their range.

        Raises:
            ConfigError: a parameter is out of its range.
        """
        super().__post_init__()
        if not (self.k1 >= 0 and 0 <= self.b <= 1):
            raise ConfigError(
                f"bm25: found k1: {self.k1}, b: {self.b}, expected k1 of at least 0 and b from 0 "
                "to 1. Correct them."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The texts, and in how many examples the words of the queries are."""
        return ("text", "word_frequency")

    def open(self, inputs: Inputs) -> SearchedWords:
        """The words of all queries, with their frequencies."""
        ids, words = words_of_rows(inputs, "query")
        vocabulary = {w: at for at, w in enumerate(sorted({w for own in words for w in own}))}
        table = inputs.table("word_frequency")
        listed = [vocabulary[word] for word in table["word"].to_pylist()]
        n_with_word = np.zeros(len(vocabulary), np.int64)
        n_with_word[listed] = table["n_with_word"].to_numpy()
        n_examples, n_words = (
            table[name][0].as_py() if table.num_rows else 0 for name in ("n_examples", "n_words")
        )
        corpus = CorpusWords(n_examples, n_words / max(1, n_examples), n_with_word)
        return SearchedWords(count_words(ids, words, vocabulary), vocabulary, corpus)

    def compute(self, inputs: Inputs) -> Rows:
        """The top-k scores of each query among the examples of one shard."""
        searched: SearchedWords = inputs.opened
        ids, words = words_of_rows(inputs, "example")
        if not len(ids):
            return
        examples = count_words(ids, words, searched.vocabulary)
        worth = worths(examples, searched.corpus, self.k1, self.b)
        per_block = max(1, NUMBERS // len(ids))
        for start in range(0, len(searched.queries.ids), per_block):
            queries = _rows_of(searched.queries, slice(start, start + per_block))
            scores = torch.empty(len(queries.ids), len(ids), dtype=torch.float64)
            for block, found in bm25_scores(queries, examples, worth):
                scores[:, block] = found
            pairs = kept(scores, self.top_k)
            yield ATTRIBUTION.name, pair_rows(queries.ids, ids, pairs)

    def merge(self, parts: Mapping[str, Sequence[pa.Table]]) -> Rows:
        """The top-k scores of each query among those of several parts."""
        return merged(parts, self.top_k)

    def cost(self, work: Work) -> Cost:
        """A look at every word, and a multiplication for each word of every pair."""
        per_row = work.n_tokens / max(1, work.n_examples + work.n_queries)
        of_shard = per_row * work.n_examples / max(1, work.n_shards)
        pairs = pairs_cost(work, 0, self.top_k)
        return Cost(
            flops=2000.0 * work.n_tokens + 2.0 * work.n_queries * work.n_examples * per_row,
            written_bytes=pairs.written_bytes,
            memory_bytes=pairs.memory_bytes + round(WORD_BYTES * of_shard),
        )


def _rows_of(counts: WordCounts, part: slice) -> WordCounts:
    """Some of the rows, in a row."""
    start = part.start
    own = slice(*np.searchsorted(counts.rows, [start, part.stop]))
    return WordCounts(
        counts.ids[part],
        counts.lengths[part],
        counts.rows[own] - start,
        counts.words[own],
        counts.counts[own],
    )


STAGE = Bm25
