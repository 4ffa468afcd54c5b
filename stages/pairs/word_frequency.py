"""In how many examples the words of the queries are: what `bm25` must know of all examples.

Words of no query are counted in the lengths of examples alone, so that the table is as large as
the queries, whatever the corpus.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from stages.capabilities import Merges
from stages.ranking.terms import words_of_rows
from stages.stage import Cost, Inputs, Role, Rows, Split, Work
from storage.schema import TableSpec

WORD_FREQUENCY = TableSpec(
    name="word_frequency",
    schema=pa.schema(
        [
            ("query_id", pa.int64()),
            ("word", pa.string()),
            ("n_with_word", pa.int64()),
            ("n_examples", pa.int64()),
            ("n_words", pa.int64()),
        ]
    ),
    key=("query_id", "word"),
)
"""A word of a query, and how many examples have it, of `n_examples` with `n_words` words in all."""

WORD_BYTES = 60
"""Memory per word of a shard while it is counted, as seen on sentences."""


class QueryWords(NamedTuple):
    """The different words of each query, and where each word is listed."""

    query_ids: list[int]
    words: list[str]
    """Sorted by query and word; `query_ids` has the query of each."""
    vocabulary: frozenset[str]


@dataclass(frozen=True)
class WordFrequency(Merges):
    """Counts of the examples that have a word, added up over shards.

    A task holds the words of one shard, and those of the queries.
    """

    version: ClassVar[int] = 2
    split: ClassVar[Split] = "shard"
    opens: ClassVar[tuple[Role, ...]] = ("query",)

    @property
    def reads(self) -> tuple[str, ...]:
        """The texts."""
        return ("text",)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Counts for each word of each query."""
        return (WORD_FREQUENCY,)

    def open(self, inputs: Inputs) -> QueryWords:
        """The words of all queries."""
        ids, words = words_of_rows(inputs, "query")
        pairs = [(i, w) for i, own in zip(ids.tolist(), words, strict=True) for w in sorted({*own})]
        listed = [word for _, word in pairs]
        return QueryWords([query for query, _ in pairs], listed, frozenset(listed))

    def compute(self, inputs: Inputs) -> Rows:
        """Counts over the examples of one shard."""
        queries: QueryWords = inputs.opened
        _, words = words_of_rows(inputs, "example")
        n_with_word: Counter[str] = Counter()
        for own in words:
            n_with_word.update(queries.vocabulary.intersection(own))
        n = len(queries.words)
        columns = [
            pa.array(queries.query_ids, pa.int64()),
            pa.array(queries.words, pa.string()),
            pa.array([n_with_word[word] for word in queries.words], pa.int64()),
            pa.array(np.full(n, len(words))),
            pa.array(np.full(n, sum(map(len, words)))),
        ]
        yield (
            WORD_FREQUENCY.name,
            pa.RecordBatch.from_arrays(columns, schema=WORD_FREQUENCY.schema),
        )

    def merge(self, parts: Mapping[str, Sequence[pa.Table]]) -> Rows:
        """The sums of several parts' counts."""
        keys, names = list(WORD_FREQUENCY.key), WORD_FREQUENCY.schema.names
        grouped = pa.concat_tables(parts[WORD_FREQUENCY.name]).group_by(keys)
        summed = grouped.aggregate([(name, "sum") for name in names if name not in keys])
        summed = summed.rename_columns(names).sort_by([(key, "ascending") for key in keys])
        for batch in summed.combine_chunks().to_batches():
            yield WORD_FREQUENCY.name, batch

    def cost(self, work: Work) -> Cost:
        """A look at every word."""
        per_row = work.n_tokens / max(1, work.n_examples + work.n_queries)
        listed = work.n_queries * per_row
        of_shard = per_row * work.n_examples / max(1, work.n_shards)
        return Cost(
            flops=2000.0 * work.n_tokens,
            written_bytes=round(20 * listed * work.n_shards),
            memory_bytes=round(WORD_BYTES * of_shard + 8 * 60 * listed),
        )


STAGE = WordFrequency
