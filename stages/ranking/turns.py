"""An order of examples by relevance to queries that take turns to choose the most similar one.

Source: the round robin of RDS+, arXiv:2503.01807, section 3. There tasks take turns; here groups of
queries do, and in the turns of a group its queries.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Float64, Int64

from stages.ranking.top_k import Pairs, best
from stages.reading.vectors import matrix_of, unit_rows

FIRST = 1000
"""Most similar examples that a query has to choose from, at least."""
SPARE = 8
"""Times as many as fall to a query's share."""
DECIMALS = 6
"""Of cosines: how equal vectors are multiplied in blocks of rows shows behind these."""


class Choices:
    """The examples that each query may choose, the most similar of all that were added.

    Of equally similar ones those of the smallest ids, however the examples are cut.
    """

    def __init__(
        self,
        n_queries: int,
        share: float,
        n_examples: int,
        groups: Int64[np.ndarray, " queries"] | None = None,
    ) -> None:
        """Empty. At most `n_examples` are added, a `share` of which is chosen.

        `groups` has the number of each query's group, from 0; without, all are one.
        """
        numbers = np.zeros(n_queries, np.int64) if groups is None else groups
        self._groups = [np.flatnonzero(numbers == at) for at in range(numbers.max(initial=-1) + 1)]
        wanted = round(SPARE * share * n_examples / max(1, len(self._groups)))
        self._most = [max(FIRST, -(-wanted // len(queries))) for queries in self._groups]
        self._ids = np.zeros(0, np.int64)
        self._places = [np.zeros((len(queries), 0), np.int64) for queries in self._groups]
        self._cosines = [np.zeros((len(queries), 0), np.float32) for queries in self._groups]

    def add(
        self, ids: Int64[np.ndarray, " rows"], cosines: Float32[np.ndarray, "rows queries"]
    ) -> None:
        """Offers more examples. Cost: a few passes over the cosines."""
        places = len(self._ids) + np.arange(len(ids))
        self._ids = np.concatenate([self._ids, ids])
        for at, (queries, most) in enumerate(zip(self._groups, self._most, strict=True)):
            every = np.concatenate([self._cosines[at], cosines[:, queries].T], axis=1)
            of = np.concatenate([self._places[at], np.tile(places, (len(queries), 1))], axis=1)
            n_queries, width = every.shape
            if width > most:
                asking = np.repeat(np.arange(n_queries), width)
                kept = best(Pairs(asking, self._ids[of.ravel()], every.ravel()), most)
                every = every.ravel()[kept].reshape(n_queries, -1)
                of = of.ravel()[kept].reshape(n_queries, -1)
            self._cosines[at], self._places[at] = every, of

    def turns(self, count: int) -> tuple[Int64[np.ndarray, " taken"], Int64[np.ndarray, " taken"]]:
        """The first `count` examples, by place, that queries take in turns, and who took them.

        Groups take turns, and in the turns of each its queries. Fewer examples where every query
        has run out of choices.
        """
        left = {query: iter(row) for query, row in self._lists()}
        is_free = np.ones(len(self._ids), bool)
        taken: list[int] = []
        by: list[int] = []
        going = [deque(queries.tolist()) for queries in self._groups]
        while going and len(taken) < count:
            for queries in going:
                while queries and len(taken) < count:
                    query = queries.popleft()
                    row = next((row for row in left[query] if is_free[row]), None)
                    if row is not None:
                        is_free[row] = False
                        taken.append(row)
                        by.append(query)
                        queries.append(query)
                        break
            going = [queries for queries in going if queries]
        return np.array(taken, np.int64), np.array(by, np.int64)

    def _lists(self) -> Iterator[tuple[int, list[int]]]:
        """Each query, and its choices from the most similar on, by place."""
        for queries, places, cosines in zip(self._groups, self._places, self._cosines, strict=True):
            order = np.lexsort((self._ids[places], -cosines), axis=1)
            yield from zip(
                queries.tolist(), np.take_along_axis(places, order, 1).tolist(), strict=True
            )


class Relevance(NamedTuple):
    """How relevant each example is, in the order in which examples were read."""

    ids: Int64[np.ndarray, " examples"]
    rank: Int64[np.ndarray, " examples"]
    """Places in the order, from 1."""
    similarity: Float64[np.ndarray, " examples"]
    """The largest cosine with a query, to six decimals."""
    query: Int64[np.ndarray, " examples"]
    """The position of the query of that cosine, or of the one that took the example in its turn."""
    is_taken: Bool[np.ndarray, " examples"]


def relevance(
    queries: Float32[np.ndarray, "queries dim"],
    shards: Iterable[pa.Table],
    share: float,
    n_examples: int,
    groups: Int64[np.ndarray, " queries"] | None = None,
) -> Relevance | None:
    """The order: a `share` of the examples by turns, and then the rest by their largest cosine.

    Equal ones stand by id. `shards` are tables with the columns id and vector, of `n_examples` rows
    together at most; without a row there is no order. `groups` as in `Choices`. Cost: an inner
    product for each example and query.
    """
    unit = unit_rows(queries).astype(np.float32)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    choices = Choices(len(unit), share, n_examples, groups)
    for table in shards:
        if table.num_rows:
            cosines = unit_rows(matrix_of(table["vector"])).astype(np.float32) @ unit.T
            cosines, own = cosines.round(DECIMALS), table["id"].to_numpy()
            parts.append((own, cosines.max(1), cosines.argmax(1)))
            choices.add(own, cosines)
    if not parts:
        return None
    ids, nearest, of = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    taken, by = choices.turns(round(share * len(ids)))
    of[taken] = by
    is_taken = np.zeros(len(ids), bool)
    is_taken[taken] = True
    rest = np.flatnonzero(~is_taken)
    rest = rest[np.lexsort((ids[rest], -nearest[rest]))]
    rank = np.empty(len(ids), np.int64)
    rank[np.concatenate([taken, rest])] = np.arange(1, len(ids) + 1)
    return Relevance(ids, rank, nearest.astype(np.float64), of, is_taken)
