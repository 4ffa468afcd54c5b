"""The best scores of a stream: per query the k largest above zero and the k smallest below.

Scores come in blocks of examples, the larger the better. Reading them once for each sign must cost
little beside the product of matrices that made them, so a block is cut into groups of neighbours,
and only their maxima are looked at: the k-th largest of them, or the k-th best score of the blocks
before, is a bar that k scores reach, and nearly all groups stay below it. From the others what
reaches the bar is gathered, and cut down to the best k now and then. Equal scores are ranked by
example, so that the result does not depend on how the examples were cut.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

GATHERED = 4
"""Times k candidates per query, on average, that are held before they are cut down."""
GROUP = 32
"""Neighbours whose maximum is taken."""


class Pairs(NamedTuple):
    """Scores of some pairs, one after the other."""

    queries: Int64[np.ndarray, " pairs"]
    """Rows of queries."""
    examples: Int64[np.ndarray, " pairs"]
    """Ids, or whatever orders the examples."""
    scores: np.ndarray


def best(pairs: Pairs, k: int) -> Int64[np.ndarray, " kept"]:
    """Places, ascending, of the k largest scores of each query; of equal ones the first examples.

    Cost: a few passes over the pairs; nothing is sorted but what is equal to a k-th score. Memory:
    as many scores as if every query had as many as the one with most.
    """
    queries, examples, scores = pairs
    counts = np.bincount(queries)
    if len(queries) == 0 or counts.max() <= k:
        return np.arange(len(queries))
    # Small integers are sorted by their digits.
    small = queries.astype(np.uint16) if len(counts) <= 2**16 else queries
    order = np.argsort(small, kind="stable")
    by_query = np.full((len(counts), counts.max()), -np.inf, scores.dtype)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    by_query[queries[order], place] = scores[order]
    by_query.partition(by_query.shape[1] - k, axis=1)
    last = by_query[:, -k][queries]
    above, equal = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
    equal = equal[np.lexsort((examples[equal], queries[equal]))]
    room = k - np.bincount(queries[above], minlength=len(counts))
    n_equal = np.bincount(queries[equal], minlength=len(counts))
    rank = np.arange(len(equal)) - np.repeat(np.cumsum(n_equal) - n_equal, n_equal)
    kept: np.ndarray = np.sort(np.concatenate([above, equal[rank < room[queries[equal]]]]))
    return kept


class TopScores:
    """Candidates for the k largest scores above zero of each query, or the k smallest below."""

    def __init__(self, n_queries: int, k: int, dtype: torch.dtype, sign: int):
        """None yet; `sign` is 1 or -1, and what is kept is multiplied by it."""
        self._n, self._k, self._sign = n_queries, k, sign
        zero = torch.zeros(n_queries, dtype=dtype).numpy()
        # What is not above zero does not reach it.
        self._bar = np.nextafter(zero, np.ones_like(zero))
        self._found: list[Pairs] = []
        self._n_found = 0

    def add(self, scores: Float[Tensor, "queries block"], first: int) -> None:
        """Scores of the examples `first`, `first` + 1, ..., which come in their order."""
        width = scores.shape[1]
        n_groups, rest = divmod(width, GROUP)
        groups = scores[:, : width - rest].view(self._n, n_groups, GROUP)
        # torch is fast at this, and numpy at what is done to the few.
        maxima = (groups.amax(2) if self._sign > 0 else groups.amin(2).neg()).numpy()
        if n_groups >= self._k:
            self._raise_bar(maxima)
        elif width >= self._k:
            self._raise_bar((scores * self._sign).numpy())
        rows, at = np.divmod(np.flatnonzero(maxima >= self._bar[:, None]), max(1, n_groups))
        self._gather(groups.numpy()[rows, at], rows, first + at * GROUP)
        behind = np.full(self._n, first + width - rest)
        self._gather(scores[:, width - rest :].numpy(), np.arange(self._n), behind)
        if self._n_found > GATHERED * self._k * self._n:
            self._cut()

    def pairs(self) -> Pairs:
        """The best of all that came."""
        self._cut()
        none = np.zeros(0, np.int64)
        return self._found[0] if self._found else Pairs(none, none, np.zeros(0))

    def _raise_bar(self, some: Float[np.ndarray, "queries some"]) -> None:
        """To the k-th largest of `some`, which are scores of different examples."""
        at = some.shape[1] - self._k
        self._bar = np.maximum(self._bar, np.partition(some, at, axis=1)[:, at])

    def _gather(
        self,
        scores: Float[np.ndarray, "runs width"],
        rows: Int64[np.ndarray, " runs"],
        first: Int64[np.ndarray, " runs"],
    ) -> None:
        """What reaches the bar of runs of scores, each of a query and of examples from `first`."""
        values = scores if self._sign > 0 else -scores
        found = np.flatnonzero(values >= self._bar[rows, None])
        if len(found):
            runs, at = np.divmod(found, values.shape[1])
            self._found.append(Pairs(rows[runs], first[runs] + at, values[runs, at]))
            self._n_found += len(found)

    def _cut(self) -> None:
        if not self._found:
            return
        together = Pairs(*(np.concatenate(part) for part in zip(*self._found, strict=True)))
        kept = best(together, self._k)
        queries, examples, scores = (part[kept] for part in together)
        self._found, self._n_found = [Pairs(queries, examples, scores)], len(kept)
        lowest = np.full(self._n, np.inf, scores.dtype)
        np.minimum.at(lowest, queries, scores)
        lowest[np.bincount(queries, minlength=self._n) < self._k] = 0
        self._bar = np.maximum(self._bar, lowest)


def streamed(
    blocks: Iterator[tuple[int, Float[Tensor, "queries block"]]],
    n_queries: int,
    k: int,
    dtype: torch.dtype,
) -> Pairs:
    """The k largest above zero and the k smallest below, by query and then by example."""
    above, below = (TopScores(n_queries, k, dtype, sign) for sign in (1, -1))
    for first, scores in blocks:
        above.add(scores, first)
        below.add(scores, first)
    largest, smallest = above.pairs(), below.pairs()
    smallest = smallest._replace(scores=-smallest.scores)
    both = Pairs(*(np.concatenate(parts) for parts in zip(largest, smallest, strict=True)))
    order = np.argsort(both.queries * (1 + both.examples.max(initial=0)) + both.examples)
    return Pairs(*(part[order] for part in both))
