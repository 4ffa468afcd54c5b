"""Semivalues of examples for single queries: which examples made a prediction what it is.

The games and the sampling are those of `freeshap`, but the utility of a coalition is one number per
query; the mean over queries of an example's values is its value in the game of `freeshap`. A query
without a label is valued for the class that all examples together predict. Each task takes a block
of queries, a shard of them, and draws the same coalitions as every other task.

Source: arXiv:2406.04606, test explanation.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64

from stages.game.coalitions import Design
from stages.game.efficiency import of_queries
from stages.game.from_tables import GameTables, labelled_queries, read_game_tables
from stages.game.sampling import Valuation
from stages.game.sums import MarginalSums
from stages.ranking.top_k import streamed
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Size, Split, Stage, Work
from storage.schema import TableSpec

SHAPLEY_QUERY = TableSpec(
    name="shapley_query",
    schema=pa.schema(
        [
            ("semivalue", pa.string()),
            ("utility", pa.string()),
            ("query_id", pa.int64()),
            ("example_id", pa.int64()),
            ("value", pa.float64()),
            ("stderr", pa.float64()),
        ]
    ),
    key=("semivalue", "utility", "query_id", "example_id"),
)
"""An example's value for a query, with its standard error; null where there is one unit only."""

NUMBERS = 2**25
"""Most values (semivalues x utilities x examples x queries) that are summed at a time, and that are
all kept."""
KEPT = 1000
"""Values of each sign that are kept of a query where not all are."""


class QueryGames(NamedTuple):
    """What the games of all queries share: the tables, and how coalitions are drawn."""

    tables: GameTables
    design: Design | None
    """How coalitions are drawn, the same for all blocks of queries; None for permutations."""


@dataclass(frozen=True)
class ShapleyByQuery(Valuation, Stage):
    """Every example's value for every query of a block.

    Memory of a task: what `freeshap` needs, and 2.4 GB of sums; where a block needs more, its
    queries are done a few at a time, each time with the same coalitions. Rows take 60 bytes for
    each value that is kept.
    """

    queries: tuple[int, ...] | None = None
    """Ids of the queries that examples are valued for; by default all."""
    units: int = 24
    """Independent estimates, over which the standard error is taken."""
    top_k: int | None = None
    """Values of each sign that are kept per query, the largest in size; null keeps all, or 1,000
    where all would be more than 2^25: for two utilities, those of 16,000 examples for 1,000
    queries."""

    version: ClassVar[int] = 4
    split: ClassVar[Split] = "query"
    by_query: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses fields that no value can be computed from.

        Raises:
            ConfigError: a field is empty, negative or not a number.
        """
        self.check()
        if self.units < 1 or self.queries == ():
            raise ConfigError(
                f"shapley_by_query: found units: {self.units}, queries: {self.queries}, expected "
                "at least 1 of each. Raise units, or leave queries out for all of them."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(
                f"top_k: found {self.top_k}, expected at least 1, or null for all values. Correct "
                "it."
            )
        if self.truncation == "tolerance":
            raise ConfigError(
                "truncation: found tolerance, expected none or random: the rule is one for the "
                "mean over queries. Set truncation: none."
            )

    @property
    def outside_key(self) -> frozenset[str]:
        """`top_k` where all values are kept, as they were before there was the field."""
        return super().outside_key | frozenset({"top_k"} if self.top_k is None else ())

    def sized(self, size: Size) -> "ShapleyByQuery":
        """Directions as in all games, and `KEPT` for `top_k` where it is left open.

        And where all values are more than `NUMBERS`.
        """
        stage: ShapleyByQuery = super().sized(size)
        n_queries = size.n_queries if self.queries is None else len(self.queries)
        n_values = size.n_examples * n_queries * len(self.utilities) * len(self.semivalues)
        is_open = self.top_k is None and n_values > NUMBERS
        return replace(stage, top_k=KEPT) if is_open else stage

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """A value for each semivalue, utility, query and example, or the largest of them."""
        return (SHAPLEY_QUERY,)

    def open(self, inputs: Inputs) -> QueryGames:
        """Features, targets, the ridge and the pilot's law of sizes, once per worker."""
        tables = read_game_tables(inputs, self)
        all_queries = tables.game(tables.query_ids, np.full(len(tables.query_ids), -1))
        return QueryGames(tables, self.design(all_queries))

    def compute(self, inputs: Inputs) -> Rows:
        """The values for one block of queries."""
        tables, design = inputs.opened
        ids = np.sort(inputs.table("label", "query")["id"].to_numpy())
        ids = ids[np.isin(ids, tables.query_ids)]
        if self.queries is not None:
            if unknown := sorted(set(self.queries) - set(tables.query_ids.tolist())):
                example = tables.query_ids[0] if len(tables.query_ids) else "none"
                raise DataError(
                    f"queries: found no query with features and the id {unknown[0]}, expected ids "
                    f"as in the view queries, such as {example}. Look them up: SELECT query_id, "
                    "text FROM queries."
                )
            ids = ids[np.isin(ids, self.queries)]
        labelled, given_labels = labelled_queries(inputs, tables.n_classes)
        labels = np.full(len(ids), -1)
        kept = np.isin(labelled, ids)
        labels[np.searchsorted(ids, labelled[kept])] = given_labels[kept]
        per_query = len(tables.example_ids) * len(self.utilities) * len(self.semivalues)
        at_once = max(1, NUMBERS // per_query)
        for start in range(0, len(ids), at_once):
            part = slice(start, start + at_once)
            yield from self._values(inputs, design, ids[part], labels[part])

    def _values(
        self,
        inputs: Inputs,
        design: Design | None,
        query_ids: np.ndarray,
        labels: np.ndarray,
    ) -> Rows:
        """Rows of `SHAPLEY_QUERY` for these queries; -1 labels one without a label."""
        tables: GameTables = inputs.opened.tables
        game, example_ids = tables.game(query_ids, labels, by_query=True), tables.example_ids
        tally = MarginalSums(self.utilities, self.weights(game, design), len(query_ids))
        ends = game.ends(self.utilities)
        self.sample(game, design, tally, self.units, 0, ends)
        if "shapley" in self.semivalues and self.units > 1:
            sums = torch.stack(tally.unit_sums)[:, self.semivalues.index("shapley")].numpy()
            precision = str(tables.facts["precision"])
            inputs.tell(
                efficiency={
                    name: of_queries(sums[:, at], ends[at].numpy(), precision)
                    for at, name in enumerate(self.utilities)
                }
            )
        mean, stderr = (estimate.numpy() for estimate in tally.estimates(self.n_prior(game.n)))
        for row, semivalue in enumerate(self.semivalues):
            for column, utility in enumerate(self.utilities):
                names = semivalue, utility
                for at, query_id in enumerate(query_ids.tolist()):
                    values, errors = (part[row, column, :, at] for part in (mean, stderr))
                    kept = self._kept(values)
                    yield self._batch(
                        names, query_id, example_ids[kept], values[kept], errors[kept]
                    )

    def _kept(self, values: Float[np.ndarray, " examples"]) -> Int64[np.ndarray, " kept"]:
        """Places, ascending, of the `top_k` largest and smallest values, or of all."""
        if self.top_k is None:
            return np.arange(len(values))
        row = torch.from_numpy(np.ascontiguousarray(values))[None]
        return streamed(iter([(0, row)]), 1, self.top_k, row.dtype).examples

    def _batch(
        self,
        names: tuple[str, str],
        query_id: int,
        ids: np.ndarray,
        values: np.ndarray,
        errors: np.ndarray,
    ) -> tuple[str, pa.RecordBatch]:
        """Rows of `SHAPLEY_QUERY` for one query; `names` are semivalue and utility."""
        columns = [
            *(pa.array([name] * len(ids), pa.string()) for name in names),
            pa.array(np.full(len(ids), query_id)),
            pa.array(ids),
            pa.array(np.ascontiguousarray(values)),
            pa.array(errors, mask=np.full(len(ids), self.units < 2)),
        ]
        return SHAPLEY_QUERY.name, pa.RecordBatch.from_arrays(columns, schema=SHAPLEY_QUERY.schema)

    def cost(self, work: Work) -> Cost:
        """Units as in `freeshap`, again for every few queries that are done at a time."""
        n_queries = work.n_queries if self.queries is None else len(self.queries)
        per_query = work.n_examples * len(self.utilities) * len(self.semivalues)
        at_once = max(1, min(n_queries, NUMBERS // max(1, per_query)))
        unit = self.unit_cost(replace(work, n_queries=at_once))
        kept = work.n_examples if self.top_k is None else min(2 * self.top_k, work.n_examples)
        n_kept = n_queries * kept * len(self.utilities) * len(self.semivalues)
        note = unit.note if self.top_k is None else f"{unit.note}; top {self.top_k} of each sign"
        return Cost(
            flops=-(-n_queries // at_once) * self.units * unit.flops,
            written_bytes=20 * n_kept,
            memory_bytes=unit.memory_bytes + 72 * at_once * per_query + 60 * n_kept,
            note=note,
        )


STAGE = ShapleyByQuery
