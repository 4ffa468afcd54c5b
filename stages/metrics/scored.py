"""The scores of a method as arrays: of pairs of a query and an example, or of examples alone.

Read from the tables of pairwise methods, of values, of values by query, and of label issues. A
method has a set of scores for each semivalue and utility. Positive helps; a low `label_score` is
suspicious, which is the same direction.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int64

from stages.stage import DataError, Inputs, Role

PAIRS = ("attribution", "shapley_query")
"""Tables of scores of pairs."""
VALUES = ("shapley_round", "exact_value", "knn_block", "label_issues")
"""Tables of scores of examples alone."""


class Scores(NamedTuple):
    """One set of scores of a method."""

    method: str
    semivalue: str | None
    """`shapley`, `loo` and so on, with `utility`; both None for scores that have none."""
    utility: str | None
    example_ids: Int64[np.ndarray, " scores"]
    """Ascending where the scores are those of examples alone."""
    score: Float[np.ndarray, " scores"]
    query_ids: Int64[np.ndarray, " scores"] | None = None
    """None where an example has one score for all queries."""
    sees_queries: bool = True
    """Whether queries had a say in scores of examples alone."""

    def named(self) -> dict[str, Any]:
        """The columns of a result row that name the scores."""
        return {"method": self.method, "semivalue": self.semivalue, "utility": self.utility}

    def of_examples(
        self, query_ids: Int64[np.ndarray, " queries"], ids: Int64[np.ndarray, " examples"]
    ) -> Float[np.ndarray, " examples"]:
        """The score of each of `ids`, which ascend: of pairs the mean over these queries.

        A pair without a row counts 0; of scores of examples alone, an example without one is NaN.
        """
        known, at = _places(ids, self.example_ids)
        if self.query_ids is None:
            found = np.full(len(ids), np.nan)
            found[at] = self.score[known]
            return found
        known &= np.isin(self.query_ids, query_ids)
        at = np.searchsorted(ids, self.example_ids[known])
        summed: np.ndarray = np.bincount(at, self.score[known], len(ids))
        return summed / max(1, len(query_ids))


def scores_of(inputs: Inputs, read: str, method: str) -> list[Scores]:
    """All sets of scores in the table that is read as `read`, of the instance `method`.

    Cost and memory: linear in the table's rows; of sums of rounds those of one round.

    Raises:
        DataError: the table holds no scores.
    """
    first = next(_shards(inputs, read), None)
    columns = set() if first is None else set(first.column_names)
    if {"query_id", "example_id", "score"} <= columns:
        table = inputs.table(read)
        arrays = (table[name].to_numpy() for name in ("example_id", "score", "query_id"))
        return [Scores(method, None, None, *arrays)]
    if {"utility", "query_id", "example_id", "value"} <= columns:
        return [
            Scores(
                *(method, semivalue, utility),
                *(part[name].to_numpy() for name in ("example_id", "value", "query_id")),
            )
            for (semivalue, utility), part in _by_utility(inputs.table(read))
        ]
    if {"example_id", "label_score"} <= columns:
        return [_joined(_shards(inputs, read), method, "label_score")]
    if {"example_id", "total", "n_queries"} <= columns:
        return [_summed(inputs, read, method, "n_queries", ("shapley", "knn"))]
    if {"semivalue", "utility", "example_id", "total", "n_units"} <= columns:
        assert first is not None
        named = [key for key, _ in _by_utility(first)]
        return [_summed(inputs, read, method, "n_units", key) for key in named]
    if {"semivalue", "utility", "example_id", "value"} <= columns:
        return [
            _joined([part], method, "value")._replace(
                semivalue=semivalue, utility=utility, sees_queries=True
            )
            for (semivalue, utility), part in _by_utility(inputs.table(read))
        ]
    raise DataError(
        f"{method}: found a table with the columns {', '.join(sorted(columns)) or 'none'}, "
        "expected scores of pairs, values of examples, or label issues. Name another instance in "
        "methods."
    )


def _shards(inputs: Inputs, read: str) -> Iterator[pa.Table]:
    """The table's rows, shard by shard, whatever its parts are: blocks of queries or others."""
    parts: tuple[Role, ...] = ("example", "query")
    for role in parts:
        is_there = False
        for table in inputs.by_shard(read, role):
            is_there = True
            yield table
        if is_there:
            return


def _by_utility(table: pa.Table) -> list[tuple[tuple[str, str], pa.Table]]:
    """The rows of each semivalue and utility, by name."""
    keys = table.select(["semivalue", "utility"]).group_by(["semivalue", "utility"]).aggregate([])
    pairs = sorted(zip(keys["semivalue"].to_pylist(), keys["utility"].to_pylist(), strict=True))
    return [(key, _only(table, key)) for key in pairs]


def _only(table: pa.Table, key: tuple[str, str]) -> pa.Table:
    """The rows of one semivalue and utility; all where the table names none."""
    if "semivalue" not in table.column_names:
        return table
    semivalue, utility = key
    is_own = pc.and_(pc.equal(table["semivalue"], semivalue), pc.equal(table["utility"], utility))
    return table.filter(is_own)


def _joined(tables: Iterable[pa.Table], method: str, column: str) -> Scores:
    """The column of all rows, by ascending id."""
    parts = [(t["example_id"].to_numpy(), t[column].to_numpy()) for t in tables]
    ids, score = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(ids, kind="stable")
    return Scores(method, None, None, ids[order], score[order], sees_queries=False)


def _summed(inputs: Inputs, read: str, method: str, count: str, key: tuple[str, str]) -> Scores:
    """Sums of rounds or blocks over their counts, of one semivalue and utility."""
    ids, total, n = np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    for table in _shards(inputs, read):
        part = _only(table, key)
        own, row = np.unique(part["example_id"].to_numpy(), return_inverse=True)
        sums = [np.bincount(row, part[name].to_numpy(), len(own)) for name in ("total", count)]
        if len(own) != len(ids) or (own != ids).any():
            everyone = np.union1d(ids, own)
            total, n = (_moved(ids, old, everyone) for old in (total, n))
            sums = [_moved(own, new, everyone) for new in sums]
            ids = everyone
        total, n = total + sums[0], n + sums[1]
    return Scores(method, *key, ids, total / n)


def _moved(ids: np.ndarray, values: np.ndarray, everyone: np.ndarray) -> np.ndarray:
    """Values of `ids` at their places among `everyone`, both ascending; 0 elsewhere."""
    found = np.zeros(len(everyone))
    found[np.searchsorted(everyone, ids)] = values
    return found


def _places(
    ids: Int64[np.ndarray, " wanted"], among: Int64[np.ndarray, " rows"]
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of `among` are in `ids`, which ascend, and the places there of those that are."""
    at = np.searchsorted(ids, among).clip(max=max(0, len(ids) - 1))
    is_known = ids[at] == among if len(ids) else np.zeros(len(among), bool)
    return is_known, at[is_known]
