"""The words of rows of text, and BM25: how much each word of an example is worth to a query.

With f how often the word is in an example of |i| words, N examples with mean |i| words, n(w) of
which have the word w,

    worth(w, i) = idf(w) f / (f + k1 (1 - b + b |i| / mean |i|))
    idf(w) = ln(1 + (N - n(w) + 1/2) / (n(w) + 1/2)),

and a score is the sum over the words of a query, one that the query repeats counting as often. The
sums N, n(w) and |i| are those of all examples; with them the rest is the work of each alone.

Source: Robertson and Zaragoza 2009, doi:10.1561/1500000019; the variant that Lucene computes
(Kamphuis et al. 2020, doi:10.1007/978-3-030-45442-5_4, table 1).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from stages.model.templates import plain_texts
from stages.reading.words import terms_of
from stages.stage import Inputs, Role

NUMBERS = 2**22
"""Most worths of words that are held at a time."""


class WordCounts(NamedTuple):
    """How often which words are in each of several rows, for words of a vocabulary."""

    ids: Int64[np.ndarray, " rows"]
    """Ascending."""
    lengths: Int64[np.ndarray, " rows"]
    """Words of each row, those outside of the vocabulary, too."""
    rows: Int64[np.ndarray, " counts"]
    """The position of the row of each count, ascending."""
    words: Int64[np.ndarray, " counts"]
    """The number of the word in the vocabulary; ascending within a row."""
    counts: Int64[np.ndarray, " counts"]


class CorpusWords(NamedTuple):
    """What BM25 takes from all examples together."""

    n_examples: int
    mean_length: float
    """Words of an example."""
    n_with_word: Int64[np.ndarray, " words"]
    """In how many examples each word of the vocabulary is."""


def words_of_rows(inputs: Inputs, role: Role) -> tuple[Int64[np.ndarray, " rows"], list[list[str]]]:
    """Ids, ascending, and the words of the rows of text of one role: both texts, or all messages.

    In a stage's `compute` those of the part's own shard.
    """
    table = inputs.table("text", role)
    table = table.filter(pa.compute.equal(table["role"], role)).sort_by("id")
    form = str(inputs.details("text").get("format", "text"))
    texts, pairs = (table[name].to_pylist() for name in ("text", "text_b"))
    texts, pairs = plain_texts(texts, pairs, form, with_calls=True)
    both = (a if b is None else f"{a} {b}" for a, b in zip(texts, pairs, strict=True))
    return table["id"].to_numpy(), [terms_of(text) for text in both]


def count_words(
    ids: Int64[np.ndarray, " rows"], words: Sequence[Sequence[str]], vocabulary: Mapping[str, int]
) -> WordCounts:
    """How often each word of the vocabulary is in each row; `ids` ascend."""
    rows, numbers, counts = [], [], []
    for row, of_row in enumerate(words):
        known = Counter(vocabulary[word] for word in of_row if word in vocabulary)
        for number in sorted(known):
            rows.append(row)
            numbers.append(number)
            counts.append(known[number])
    lengths = [len(of_row) for of_row in words]
    return WordCounts(ids, *(np.array(c, np.int64) for c in (lengths, rows, numbers, counts)))


def worths(
    examples: WordCounts, corpus: CorpusWords, k1: float, b: float
) -> Float64[np.ndarray, " counts"]:
    """What the word of each count is worth to a query that has it."""
    absent = corpus.n_examples - corpus.n_with_word
    idf = np.log1p((absent + 0.5) / (corpus.n_with_word + 0.5))
    relative = examples.lengths / corpus.mean_length if corpus.mean_length else examples.lengths
    slowness = k1 * (1 - b + b * relative)
    found: np.ndarray = idf[examples.words] * (
        examples.counts / (examples.counts + slowness[examples.rows])
    )
    return found


def bm25_scores(
    queries: WordCounts, examples: WordCounts, worth: Float64[np.ndarray, " counts"]
) -> Iterator[tuple[slice, Float64[Tensor, "queries block"]]]:
    """Blocks of examples, in order, and the score of every pair of a query and one of them.

    `worth` is that of each count of `examples`. Cost: a multiplication for each word of a query
    and example, of the words that any example has.
    """
    present, columns = np.unique(examples.words, return_inverse=True)
    at = np.searchsorted(present, queries.words).clip(max=max(0, len(present) - 1))
    is_present = present[at] == queries.words if len(present) else np.zeros(len(at), bool)
    starts = np.searchsorted(queries.rows[is_present], np.arange(len(queries.ids)))
    bags = torch.from_numpy(at[is_present]), torch.from_numpy(starts)
    times = torch.from_numpy(queries.counts[is_present].astype(np.float64))
    n_examples, width = len(examples.ids), max(1, NUMBERS // max(1, len(present)))
    for first in range(0, n_examples, width):
        block = slice(first, min(first + width, n_examples))
        own = slice(*np.searchsorted(examples.rows, [block.start, block.stop]))
        table = torch.zeros(max(1, len(present)), block.stop - first, dtype=torch.float64)
        table[torch.from_numpy(columns[own]), torch.from_numpy(examples.rows[own] - first)] = (
            torch.from_numpy(worth[own])
        )
        yield (
            block,
            torch.nn.functional.embedding_bag(
                bags[0], table, bags[1], mode="sum", per_sample_weights=times
            ),
        )
