"""How relevant every example is to the queries, in an order that serves all of them.

The queries take turns: each takes the example of the largest cosine that nobody has taken. So no
query, and no group of them, is left out for another whose examples are more alike. What is not
taken follows by its largest cosine. With `position_weighted` this is RDS+, arXiv:2503.01807; the
turns are its round robin, here by query and not by task.

Relevance is not quality: a bad row may be as relevant as a good one (`answer_issues`).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from stages.reading.vectors import matrix_of, unit_rows
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Split, Stage, Work
from storage.schema import TableSpec

QUERY_RELEVANCE = TableSpec(
    name="query_relevance",
    schema=pa.schema(
        [
            ("example_id", pa.int64()),
            ("rank", pa.int64()),
            ("similarity", pa.float64()),
            ("query_id", pa.int64()),
            ("is_taken", pa.bool_()),
        ]
    ),
    key=("example_id",),
)
"""Places in the order, from 1; the largest cosine and its query; of rows that a query took in its
turn (`is_taken`) that query."""

FIRST = 1000
"""Most similar examples that a query has to choose from, at least."""
SPARE = 8
"""Times as many as fall to a query's share."""


class Choices:
    """The examples that each query may choose, the most similar of all that were added."""

    def __init__(self, n_queries: int, share: float) -> None:
        self._share = share
        self._n = 0
        self._places = np.zeros((n_queries, 0), np.int64)
        self._cosines = np.zeros((n_queries, 0), np.float32)

    def add(self, cosines: Float32[np.ndarray, "rows queries"]) -> None:
        """Offers more examples. Cost: a partition of each query's."""
        places = np.arange(self._n, self._n + len(cosines))
        self._n += len(cosines)
        every = np.concatenate([self._cosines, cosines.T], axis=1)
        of = np.concatenate([self._places, np.tile(places, (len(every), 1))], axis=1)
        most = max(FIRST, -(-round(SPARE * self._share * self._n) // len(every)))
        if every.shape[1] > most:
            # Of equal cosines at the border any: the order of those kept is settled by place.
            kept = np.argpartition(-every, most - 1, axis=1)[:, :most]
            every, of = np.take_along_axis(every, kept, 1), np.take_along_axis(of, kept, 1)
        self._cosines, self._places = every, of

    def turns(self, count: int) -> tuple[Int64[np.ndarray, " taken"], Int64[np.ndarray, " taken"]]:
        """The first `count` examples, by place, that queries take in turns, and who took them.

        Fewer where every query has run out of choices.
        """
        order = np.lexsort((self._places, -self._cosines), axis=1)
        lists = np.take_along_axis(self._places, order, 1).tolist()
        is_free = np.ones(self._n, bool)
        reached = [0] * len(lists)
        taken: list[int] = []
        by: list[int] = []
        going = list(range(len(lists)))
        while going and len(taken) < count:
            left = []
            for query in going:
                row, at = lists[query], reached[query]
                while at < len(row) and not is_free[row[at]]:
                    at += 1
                reached[query] = at + 1
                if at < len(row) and len(taken) < count:
                    is_free[row[at]] = False
                    taken.append(row[at])
                    by.append(query)
                    left.append(query)
            going = left
        return np.array(taken, np.int64), np.array(by, np.int64)


@dataclass(frozen=True)
class QueryRelevance(Stage):
    """An order of the examples by relevance to the queries. One task.

    It holds 100 bytes an example, a shard of vectors and the queries' vectors.
    """

    features: str = "position_weighted"
    """The feature table whose vectors are compared."""
    share: float = 0.5
    """Share of the examples that the queries take in turns."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "whole"

    def __post_init__(self) -> None:
        """Refuses a share out of range.

        Raises:
            ConfigError: it is not above 0 and at most 1.
        """
        if not 0 < self.share <= 1:
            raise ConfigError(
                f"query_relevance: found share: {self.share}, expected a share of the rows above "
                "0 and at most 1. Set share: 0.5 for a half."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature table."""
        return (self.features,)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per example with features."""
        return (QUERY_RELEVANCE,)

    def compute(self, inputs: Inputs) -> Rows:
        """The order of all examples.

        Raises:
            DataError: there is no query with features.
        """
        query_ids, queries = inputs.vectors(self.features, "query")
        if not len(query_ids):
            raise DataError(
                f"{self.features}: found no query, expected some to be relevant to. Name queries: "
                "in the YAML, or choose without them."
            )
        by_id = np.argsort(query_ids)
        queries = unit_rows(queries[by_id]).astype(np.float32)
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        choices = Choices(len(queries), self.share)
        for table in inputs.by_shard(self.features, "example"):
            if table.num_rows:
                cosines = unit_rows(matrix_of(table["vector"])).astype(np.float32) @ queries.T
                parts.append((table["id"].to_numpy(), cosines.max(1), cosines.argmax(1)))
                choices.add(cosines)
        if not parts:
            return
        ids, best, of = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        taken, by = choices.turns(round(self.share * len(ids)))
        of[taken] = by
        is_taken = np.zeros(len(ids), bool)
        is_taken[taken] = True
        rest = np.flatnonzero(~is_taken)
        rest = rest[np.lexsort((ids[rest], -best[rest]))]
        rank = np.empty(len(ids), np.int64)
        rank[np.concatenate([taken, rest])] = np.arange(1, len(ids) + 1)
        of_query = np.asarray(query_ids)[by_id][of]
        columns = [ids, rank, best.astype(np.float64), of_query, is_taken]
        order = np.argsort(ids)
        rows = pa.RecordBatch.from_arrays(
            [pa.array(column[order]) for column in columns], schema=QUERY_RELEVANCE.schema
        )
        yield QUERY_RELEVANCE.name, rows

    def cost(self, work: Work) -> Cost:
        """An inner product for each example and query."""
        n, m = work.n_examples, max(1, work.n_queries)
        per_shard = n // max(1, work.n_shards)
        return Cost(
            flops=2.0 * n * m * work.dim,
            written_bytes=33 * n,
            memory_bytes=100 * n + 8 * (per_shard + m) * work.dim + 8 * per_shard * m,
        )


STAGE = QueryRelevance
