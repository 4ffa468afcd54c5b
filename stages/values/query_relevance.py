"""How relevant every example is to the queries, in an order that serves all of them.

The queries take turns: each takes the example of the largest cosine that nobody has taken. So no
query, and no group of them, is left out for another whose examples are more alike. With `per` the
groups that a column of the queries names take turns, and in the turns of each its queries: every
group gets as many examples, however many queries it has. What is not taken follows by its largest
cosine. With `position_weighted` this is RDS+, arXiv:2503.01807; the turns are its round robin.

Relevance is not quality: a bad row may be as relevant as a good one (`answer_issues`).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from stages.ranking.turns import relevance
from stages.reading.query_groups import query_groups
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


@dataclass(frozen=True)
class QueryRelevance(Stage):
    """An order of the examples by relevance to the queries. One task.

    It holds 100 bytes an example, a shard of vectors and the queries' vectors.
    """

    features: str = "position_weighted"
    """The feature table whose vectors are compared."""
    share: float = 0.5
    """Share of the examples that the queries take in turns."""
    per: str | None = None
    """A column of the queries, such as the task of each: its values take turns, an empty cell being
    one of them; null lets all queries take turns alike."""

    version: ClassVar[int] = 2
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
        """The feature table, and the column of the queries."""
        return (self.features, "extra") if self.per else (self.features,)

    @property
    def outside_key(self) -> frozenset[str]:
        """The column where there is none: orders of before had no such field."""
        return frozenset() if self.per else frozenset({"per"})

    @property
    def least_queries(self) -> int:
        """One, to be relevant to."""
        return 1

    @property
    def query_column(self) -> str | None:
        """The one that names groups."""
        return self.per

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
        shards = inputs.by_shard(self.features, "example")
        n = len(inputs.vectors(self.features, "example").ids)
        asking = np.asarray(query_ids)[by_id]
        groups = query_groups(inputs, self.per, asking)
        found = relevance(queries[by_id], shards, self.share, n, groups)
        if found is None:
            return
        of_query = asking[found.query]
        columns = [found.ids, found.rank, found.similarity, of_query, found.is_taken]
        order = np.argsort(found.ids)
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
