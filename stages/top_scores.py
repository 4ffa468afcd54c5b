"""The best scores of a stream: per query the k largest above zero and the k smallest below.

Scores come in blocks of examples. Per query a bar is kept, the k-th best score so far: nearly all
scores of a later block are below it and cost one comparison, which beside the product of matrices
that made them is little. What passes is gathered and sorted now and then. Equal scores are ranked
by example, so that the result does not depend on how the examples were cut.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

GATHERED = 4
"""Times k candidates per query, on average, that are held before they are sorted."""


class Pairs(NamedTuple):
    """Scores of some pairs, one after the other."""

    queries: Int64[np.ndarray, " pairs"]
    """Rows of queries."""
    examples: Int64[np.ndarray, " pairs"]
    """Ids, or whatever orders the examples."""
    scores: np.ndarray


def best(pairs: Pairs, k: int) -> Int64[np.ndarray, " kept"]:
    """Places of the k largest scores of each query, by query and rank; equal ones by example."""
    order = np.lexsort((pairs.examples, -pairs.scores, pairs.queries))
    queries = pairs.queries[order]
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    kept: np.ndarray = order[rank < k]
    return kept


class TopScores:
    """Candidates for the k largest scores above zero of each query."""

    def __init__(self, n_queries: int, k: int, dtype: torch.dtype):
        """None yet."""
        self._n, self._k = n_queries, k
        self._bar = torch.zeros(n_queries, dtype=dtype)
        self._empty = True
        self._found: list[Pairs] = []
        self._n_found = 0

    def add(self, scores: Float[Tensor, "queries block"], first: int) -> None:
        """Scores of the examples `first`, `first` + 1, ..., which come in their order."""
        if self._empty and scores.shape[1] > self._k:
            # The k-th of the first block: a bar that nearly all of the next stay below.
            self._bar = scores.topk(self._k, 1).values[:, -1].clamp(min=0)
        self._empty = False
        at = ((scores >= self._bar[:, None]) & (scores > 0)).nonzero()
        if len(at) == 0:
            return
        rows, columns = at[:, 0], at[:, 1]
        values = scores[rows, columns].numpy()
        self._found.append(Pairs(rows.numpy(), columns.numpy() + first, values))
        self._n_found += len(rows)
        if self._n_found > GATHERED * self._k * self._n:
            self._sort()

    def pairs(self) -> Pairs:
        """The best of all that came, by query and rank."""
        self._sort()
        none = np.zeros(0, np.int64)
        return self._found[0] if self._found else Pairs(none, none, np.zeros(0))

    def _sort(self) -> None:
        if not self._found:
            return
        together = Pairs(*(np.concatenate(part) for part in zip(*self._found, strict=True)))
        kept = best(together, self._k)
        self._found = [Pairs(*(part[kept] for part in together))]
        self._n_found = len(kept)
        queries, _, scores = self._found[0]
        counts = np.bincount(queries, minlength=self._n)
        full = np.flatnonzero(counts >= self._k)
        bars = scores[(np.cumsum(counts) - 1)[full]]
        self._bar[torch.from_numpy(full)] = torch.from_numpy(bars)


def streamed(
    blocks: Iterator[tuple[int, Float[Tensor, "queries block"]]],
    n_queries: int,
    k: int,
    dtype: torch.dtype,
) -> Pairs:
    """The k largest above zero and the k smallest below, by query and then by example."""
    above, below = (TopScores(n_queries, k, dtype) for _ in range(2))
    for first, scores in blocks:
        above.add(scores, first)
        below.add(scores.neg(), first)
    largest, smallest = above.pairs(), below.pairs()
    smallest = smallest._replace(scores=-smallest.scores)
    both = Pairs(*(np.concatenate(parts) for parts in zip(largest, smallest, strict=True)))
    order = np.lexsort((both.examples, both.queries))
    return Pairs(*(part[order] for part in both))
