"""BM25: how many words a query and an example share, the rare ones counting most. A baseline.

With f(w, i) how often the word w is in example i, |i| its number of words, N examples, n(w) of
which have w,

    score(t, i) = sum_{w in t} idf(w) f(w, i) / (f(w, i) + k1 (1 - b + b |i| / mean |i|))
    idf(w) = ln(1 + (N - n(w) + 1/2) / (n(w) + 1/2)),

a word that the query repeats counting as often. It is at least 0 and knows of no label: nothing
harms, and examples without a word in common have no row. Words are those of Unicode that have a
letter or digit, in lower case (`stages.reading.words`); none is left out as too frequent, and none
is stemmed. What a score is depends on all examples (N, n, the mean), so that the whole is one
index, made once per worker.

It does not come apart into a global and a local part.

Source: Robertson and Zaragoza 2009, doi:10.1561/1500000019; the variant that Lucene computes
(Kamphuis et al. 2020, doi:10.1007/978-3-030-45442-5_4, table 1). By bm25s, arXiv:2407.03618, which
keeps each word's summand of every example that has it; the road not taken is rank_bm25, which looks
into all examples for every word of a query, and has seen no release since 2022.
"""

import logging
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import bm25s
import numpy as np
import torch
from jaxtyping import Float32, Int64

from stages.model.templates import plain_texts
from stages.pairs.scores import ATTRIBUTION, NUMBERS, KeptPairs, kept, pair_rows
from stages.reading.words import terms_of
from stages.stage import ConfigError, Cost, Inputs, Role, Rows, Split, Work

WORD_BYTES = 100
"""Memory per word of the corpus while the index is made, as seen on 7,000 and 100,000 sentences."""


class Index(NamedTuple):
    """The BM25 index of all examples' words."""

    ids: Int64[np.ndarray, " examples"]
    """Ascending."""
    searcher: Any
    """A `bm25s.BM25`; None where no example has a word."""


@dataclass(frozen=True)
class Bm25(KeptPairs):
    """Scores of the pairs of queries and examples that share a word, a task per block of queries.

    Memory of a task: 100 bytes per word of the corpus, and 4 million scores.
    """

    k1: float = 1.5
    """How slowly the repetitions of a word are worth less and less; 0 asks only if it is there."""
    b: float = 0.75
    """How much a word in a long example counts less: from 0, not at all, to 1."""

    version: ClassVar[int] = 2
    split: ClassVar[Split] = "query"
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
        """The texts."""
        return ("text",)

    def open(self, inputs: Inputs) -> Index:
        """The index of all examples."""
        logging.getLogger("bm25s").setLevel(logging.WARNING)
        ids, texts = _texts(inputs, "example")
        vocabulary: dict[str, int] = {}
        words = [[vocabulary.setdefault(w, len(vocabulary)) for w in terms_of(t)] for t in texts]
        if not vocabulary:
            return Index(ids, None)
        searcher = bm25s.BM25(k1=self.k1, b=self.b, method="lucene", dtype="float32")
        searcher.index((words, vocabulary), create_empty_token=False, show_progress=False)
        return Index(ids, searcher)

    def compute(self, inputs: Inputs) -> Rows:
        """The top-k scores of each query of one block."""
        index: Index = inputs.opened
        ids, texts = _texts(inputs, "query")
        words = [terms_of(text) for text in texts]
        at_once = max(1, NUMBERS // max(1, len(index.ids)))
        for start in range(0, len(ids), at_once):
            scores = np.stack([_scores(index, query) for query in words[start : start + at_once]])
            pairs = kept(torch.from_numpy(scores), self.top_k)
            yield ATTRIBUTION.name, pair_rows(ids[start : start + at_once], index.ids, pairs)

    def cost(self, work: Work) -> Cost:
        """A look at the examples that have a word, for every word of the queries."""
        n_kept = work.n_examples if self.top_k is None else min(self.top_k, work.n_examples)
        per_row = work.n_tokens / max(1, work.n_examples + work.n_queries)
        return Cost(
            flops=2.0 * work.n_queries * work.n_examples * per_row,
            written_bytes=24 * work.n_queries * n_kept,
            memory_bytes=round(WORD_BYTES * per_row * work.n_examples) + 16 * NUMBERS,
        )


def _scores(index: Index, words: list[str]) -> Float32[np.ndarray, " examples"]:
    """The score of every example for a query of these words."""
    known = index.searcher.get_tokens_ids(words) if index.searcher is not None else []
    if not known:
        return np.zeros(len(index.ids), np.float32)
    scores: np.ndarray = index.searcher.get_scores_from_ids(known)
    return scores


def _texts(inputs: Inputs, role: Role) -> tuple[Int64[np.ndarray, " rows"], list[str]]:
    """Ids, ascending, and whole texts of the rows of one role: both texts, or all messages."""
    table = inputs.table("text", role).sort_by("id")
    form = str(inputs.details("text").get("format", "text"))
    texts, pairs = (table[name].to_pylist() for name in ("text", "text_b"))
    texts, pairs = plain_texts(texts, pairs, form)
    both = [a if b is None else f"{a} {b}" for a, b in zip(texts, pairs, strict=True)]
    return table["id"].to_numpy(), both


STAGE = Bm25
