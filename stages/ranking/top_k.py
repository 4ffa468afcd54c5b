"""Top-k of a stream of scores: per query the k largest above zero and the k smallest below.

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
"""Candidates per query, in multiples of k, that are held before they are cut down to k."""
GROUP = 32
"""Neighbouring scores whose maximum is compared with the bar."""


class Pairs(NamedTuple):
    """Scores of pairs of a query and an example, one after the other."""

    queries: Int64[np.ndarray, " pairs"]
    """Positions of the queries, from 0."""
    examples: Int64[np.ndarray, " pairs"]
    """Ids or positions of the examples; of equal scores the smaller number ranks first."""
    scores: np.ndarray


def best(pairs: Pairs, k: int) -> Int64[np.ndarray, " kept"]:
    """Positions, ascending, of the pairs with the k largest scores of each query.

    Of equal scores those of the smallest examples. Cost: a few passes over the pairs; nothing is
    sorted but what is equal to a k-th score. Memory: as many scores as if every query had as many
    as the one with most.
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
    """The k largest scores above zero of each query, or the k smallest below, of a stream."""

    def __init__(self, n_queries: int, k: int, dtype: torch.dtype, sign: int):
        """Empty. `sign` 1 keeps the largest above zero, -1 the smallest below.

        Scores that are kept are multiplied by `sign`.
        """
        self._n, self._k, self._sign = n_queries, k, sign
        zero = torch.zeros(n_queries, dtype=dtype).numpy()
        # What is not above zero does not reach it.
        self._bar = np.nextafter(zero, np.ones_like(zero))
        self._candidates: list[Pairs] = []
        self._n_candidates = 0

    def add(self, scores: Float[Tensor, "queries block"], first: int) -> None:
        """Adds the scores of the examples `first`, `first` + 1, ...; blocks come in their order."""
        width = scores.shape[1]
        n_groups, rest = divmod(width, GROUP)
        groups = scores[:, : width - rest].view(self._n, n_groups, GROUP)
        # torch is fast at this, and numpy at what is done to the few candidates.
        maxima = (groups.amax(2) if self._sign > 0 else groups.amin(2).neg()).numpy()
        if n_groups >= self._k:
            self._raise_bar(maxima)
        elif width >= self._k:
            self._raise_bar((scores * self._sign).numpy())
        rows, at = np.divmod(np.flatnonzero(maxima >= self._bar[:, None]), max(1, n_groups))
        self._gather(groups.numpy()[rows, at], rows, first + at * GROUP)
        behind = np.full(self._n, first + width - rest)
        self._gather(scores[:, width - rest :].numpy(), np.arange(self._n), behind)
        if self._n_candidates > GATHERED * self._k * self._n:
            self._cut()

    def pairs(self) -> Pairs:
        """The k best pairs of each query among all scores added, multiplied by `sign`."""
        self._cut()
        none = np.zeros(0, np.int64)
        return self._candidates[0] if self._candidates else Pairs(none, none, np.zeros(0))

    def _raise_bar(self, scores: Float[np.ndarray, "queries examples"]) -> None:
        """Raises each query's bar to the k-th largest of its `scores`, of different examples."""
        at = scores.shape[1] - self._k
        self._bar = np.maximum(self._bar, np.partition(scores, at, axis=1)[:, at])

    def _gather(
        self,
        scores: Float[np.ndarray, "runs width"],
        rows: Int64[np.ndarray, " runs"],
        first: Int64[np.ndarray, " runs"],
    ) -> None:
        """Makes candidates of the scores that reach the bar.

        Row i of `scores` is of query `rows[i]` and of the examples `first[i]`, `first[i]` + 1, ...
        """
        values = scores if self._sign > 0 else -scores
        at_bar = np.flatnonzero(values >= self._bar[rows, None])
        if len(at_bar):
            runs, at = np.divmod(at_bar, values.shape[1])
            self._candidates.append(Pairs(rows[runs], first[runs] + at, values[runs, at]))
            self._n_candidates += len(at_bar)

    def _cut(self) -> None:
        """Keeps the k best candidates of each query, and raises the bars to the k-th."""
        if not self._candidates:
            return
        together = Pairs(*(np.concatenate(part) for part in zip(*self._candidates, strict=True)))
        kept = best(together, self._k)
        queries, examples, scores = (part[kept] for part in together)
        self._candidates, self._n_candidates = [Pairs(queries, examples, scores)], len(kept)
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
    """The k largest scores above zero and the k smallest below of each query.

    `blocks` are pairs of the number of the first example and the scores of a block of examples. The
    result is sorted by query and then by example.
    """
    above, below = (TopScores(n_queries, k, dtype, sign) for sign in (1, -1))
    for first, scores in blocks:
        above.add(scores, first)
        below.add(scores, first)
    largest, smallest = above.pairs(), below.pairs()
    smallest = smallest._replace(scores=-smallest.scores)
    both = Pairs(*(np.concatenate(parts) for parts in zip(largest, smallest, strict=True)))
    order = np.argsort(both.queries * (1 + both.examples.max(initial=0)) + both.examples)
    return Pairs(*(part[order] for part in both))
