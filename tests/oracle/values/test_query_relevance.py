"""Turns between queries against a loop over all pairs, and the stage's rows."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.ranking.turns import Choices, relevance
from stages.stage import DataError
from stages.values.query_relevance import QueryRelevance


def by_loop(cosines: np.ndarray, count: int) -> list[int]:
    """Query after query takes its most similar example that is free."""
    free, taken = set(range(len(cosines))), []
    while len(taken) < count:
        for query in range(cosines.shape[1]):
            if len(taken) < count:
                best = max(free, key=lambda row, q=query: (cosines[row, q], -row))
                free.remove(best)
                taken.append(best)
    return taken


@pytest.mark.parametrize("n_queries", [1, 3, 7])
def test_queries_take_turns(n_queries: int) -> None:
    generator = np.random.default_rng(n_queries)
    cosines = generator.random((60, n_queries)).astype(np.float32)
    cosines[10:20] = cosines[0]  # Equals go by place.
    choices = Choices(n_queries, 0.5, 60)
    for first in range(0, 60, 25):
        choices.add(np.arange(first, min(60, first + 25)), cosines[first : first + 25])
    taken, by = choices.turns(30)
    assert taken.tolist() == by_loop(cosines, 30)
    assert by.tolist() == [turn % n_queries for turn in range(30)]


def vectors(role: str, rows: np.ndarray, first: int) -> pa.Table:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float32).ravel()), 3)
    ids = pa.array(np.arange(first, first + len(rows))[::-1].copy())
    return pa.table({"id": ids, "role": [role] * len(rows), "vector": lists})


def test_rows_are_ranked_by_turns_and_then_by_similarity(memory: Any) -> None:
    generator = np.random.default_rng(0)
    rows, queries = generator.standard_normal((20, 3)), generator.standard_normal((2, 3))
    table = pa.concat_tables([vectors("example", rows, 5), vectors("query", queries, 90)])
    found = memory({"position_weighted": table}).run(QueryRelevance(share=0.4)).sort_by("rank")
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (rows, queries)]
    # Queries in the order of their ids, which is the reverse of their rows here.
    cosines = unit[0] @ unit[1][::-1].T
    ids = table["id"].to_numpy()[:20]
    first = by_loop(cosines.astype(np.float32), 8)
    rest = sorted(set(range(20)) - set(first), key=lambda row: -cosines[row].max())
    assert found["example_id"].to_pylist() == ids[first + rest].tolist()
    assert found["is_taken"].to_pylist() == [True] * 8 + [False] * 12
    np.testing.assert_allclose(found["similarity"], cosines[first + rest].max(1), atol=1e-6)
    assert found["query_id"].to_pylist()[:8] == [90, 91] * 4
    of_rest = (90 + cosines[rest].argmax(1)).tolist()
    assert found["query_id"].to_pylist()[8:] == of_rest


@pytest.mark.parametrize("is_tied", [True, False])
def test_shards_do_not_change_the_order(is_tied: bool) -> None:
    """Also where far more are equal than a query has room for, and ids are in no order."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((6000, 8)).astype(np.float32)
    if is_tied:
        rows[100:] = rows[50]
    ids = generator.permutation(10**6)[: len(rows)]
    queries = generator.standard_normal((3, 8)).astype(np.float32)
    found = []
    for size in (6000, 1000, 77):
        shards = [
            pa.table(
                {
                    "id": ids[part],
                    "vector": pa.FixedSizeListArray.from_arrays(pa.array(rows[part].ravel()), 8),
                }
            )
            for first in range(0, len(rows), size)
            # Each shard by ascending id, as stages write them.
            for part in [
                np.arange(first, min(len(rows), first + size))[
                    np.argsort(ids[first : first + size])
                ]
            ]
        ]
        order = relevance(queries, shards, 0.02, len(rows))
        assert order is not None
        found.append(order.ids[np.argsort(order.rank)].tolist())
    assert found[0] == found[1] == found[2]


def test_without_queries_there_is_nothing_to_be_relevant_to(memory: Any) -> None:
    table = vectors("example", np.ones((4, 3)), 0)
    with pytest.raises(DataError, match="found no query, expected some to be relevant to"):
        memory({"position_weighted": table}).run(QueryRelevance())
