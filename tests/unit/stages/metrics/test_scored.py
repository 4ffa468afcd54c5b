"""Scores as arrays, whatever table they stand in and however it is cut."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from memory_inputs import MemoryInputs

from stages.metrics.scored import Scores, scores_of
from stages.stage import DataError


class Cut(MemoryInputs):
    """One table that is cut into shards of one role."""

    def __init__(self, role: str, shards: list[pa.Table]) -> None:
        super().__init__({"method": pa.concat_tables(shards) if shards else pa.table({})})
        self.role, self.shards = role, shards

    def by_shard(self, name: str, role: str, most: int | None = None) -> Iterator[pa.Table]:
        yield from self.shards if role == self.role else []


def only(inputs: MemoryInputs) -> Scores:
    (found,) = scores_of(inputs, "method", "method")
    return found


def test_blocks_of_queries_are_added_up_whichever_examples_they_have() -> None:
    shards = [
        pa.table({"example_id": [1, 4], "total": [2.0, 6.0], "n_queries": [2, 2]}),
        pa.table({"example_id": [4, 2], "total": [3.0, 9.0], "n_queries": [1, 3]}),
    ]
    found = only(Cut("query", shards))
    assert found.example_ids.tolist() == [1, 2, 4]
    assert found.score.tolist() == [1.0, 3.0, 3.0]
    assert found.named() == {"method": "method", "semivalue": "shapley", "utility": "knn"}
    assert found.sees_queries
    score = found.of_examples(np.array([7]), np.array([0, 1, 4]))
    assert np.isnan(score[0])
    assert score[1:].tolist() == [1.0, 3.0]


def rounds(utility: str, total: list[float], units: int) -> pa.Table:
    n = len(total)
    named = {"semivalue": ["shapley"] * n, "utility": [utility] * n, "example_id": range(n)}
    return pa.table({**named, "total": total, "n_units": [units] * n})


def test_rounds_are_means_over_units_for_each_utility() -> None:
    shards = [
        pa.concat_tables([rounds("margin", [1.0, 2], 1), rounds("accuracy", [0.0, 8], 1)]),
        pa.concat_tables([rounds("margin", [5.0, 4], 2), rounds("accuracy", [3.0, 1], 2)]),
    ]
    accuracy, margin = scores_of(Cut("example", shards), "method", "method")
    assert (accuracy.utility, accuracy.score.tolist()) == ("accuracy", [1.0, 3.0])
    assert (margin.utility, margin.score.tolist()) == ("margin", [2.0, 2.0])


def test_values_of_queries_are_pairs_and_their_mean_counts_missing_ones_0() -> None:
    columns = {"semivalue": ["shapley"] * 3, "utility": ["margin"] * 3}
    pairs = {"query_id": [5, 5, 9], "example_id": [1, 2, 2], "value": [1.0, 3, 5]}
    found = only(Cut("query", [pa.table({**columns, **pairs})]))
    assert found.query_ids is not None
    assert found.query_ids.tolist() == [5, 5, 9]
    assert found.of_examples(np.array([5, 9]), np.array([1, 2, 3])).tolist() == [0.5, 4.0, 0.0]
    assert found.of_examples(np.array([9]), np.array([1, 2])).tolist() == [0.0, 5.0]


def test_label_scores_see_no_query() -> None:
    shards = [pa.table({"example_id": [i], "label_score": [float(i)]}) for i in (3, 1)]
    found = only(Cut("example", shards))
    assert (found.example_ids.tolist(), found.score.tolist()) == ([1, 3], [1.0, 3.0])
    assert not found.sees_queries


@pytest.mark.parametrize("shards", [[], [pa.table({"id": [1], "logits": [[0.0]]})]])
def test_other_tables_are_refused(shards: list[pa.Table]) -> None:
    with pytest.raises(DataError, match="expected scores of pairs, values of examples"):
        scores_of(Cut("example", shards), "method", "method")
