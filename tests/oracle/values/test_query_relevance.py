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


def by_groups(cosines: np.ndarray, groups: np.ndarray, count: int) -> list[int]:
    """Group after group lets its next query take its most similar example that is free."""
    free, taken = set(range(len(cosines))), []
    asked = dict.fromkeys(groups.tolist(), 0)
    while len(taken) < count:
        for group in sorted(asked):
            queries = np.flatnonzero(groups == group)
            query = queries[asked[group] % len(queries)]
            asked[group] += 1
            if len(taken) < count:
                best = max(free, key=lambda row, q=query: (cosines[row, q], -row))
                free.remove(best)
                taken.append(best)
    return taken


@pytest.mark.parametrize("most", [1000, 8])
def test_groups_take_turns_and_in_them_their_queries(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a query keeps few of its choices: one of a small group needs more of them."""
    monkeypatch.setattr("stages.ranking.turns.FIRST", most)
    groups = np.array([0, 1, 0, 0, 2, 0, 1, 0, 0])
    cosines = np.random.default_rng(3).random((90, 9)).astype(np.float32)
    choices = Choices(9, 0.4, 90, groups)
    for first in range(0, 90, 25):
        choices.add(np.arange(first, min(90, first + 25)), cosines[first : first + 25])
    taken, by = choices.turns(36)
    assert taken.tolist() == by_groups(cosines, groups, 36)
    assert np.bincount(groups[by]).tolist() == [12, 12, 12]
    assert np.bincount(by).tolist() == [2, 6, 2, 2, 12, 2, 6, 2, 2]


def test_a_query_without_choices_leaves_its_turn_to_its_group() -> None:
    """Of three examples each query sees all; the turns end when none is left."""
    choices = Choices(3, 1.0, 3, np.array([0, 1, 1]))
    choices.add(np.arange(3), np.array([[3, 3, 1], [2, 2, 2], [1, 1, 3]], np.float32))
    taken, by = choices.turns(5)
    assert (taken.tolist(), by.tolist()) == ([0, 1, 2], [0, 1, 0])


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


def test_the_values_of_a_column_take_turns(memory: Any) -> None:
    """Of the source's column `Text`, stored under another name; empty cells are one value."""
    generator = np.random.default_rng(0)
    rows, queries = generator.standard_normal((20, 3)), generator.standard_normal((5, 3))
    table = pa.concat_tables([vectors("example", rows, 5), vectors("query", queries, 90)])
    extra = pa.table(
        {
            "id": pa.array([90, 91, 92, 93, 94], pa.int64()),
            "role": ["query"] * 5,
            "source_Text": pa.array([7.0, float("nan"), 7.0, None, 7.0], from_pandas=False),
        }
    )
    columns = {"query": [{"name": "Text", "stored": "source_Text"}]}
    inputs = memory({"position_weighted": table, "extra": extra}, {"extra": {"columns": columns}})
    found = inputs.run(QueryRelevance(share=0.4, per="Text")).sort_by("rank")
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (rows, queries)]
    cosines = (unit[0] @ unit[1][::-1].T).astype(np.float32)
    first = by_groups(cosines, np.array([0, 1, 0, 1, 0]), 8)
    assert found["example_id"].to_pylist()[:8] == table["id"].to_numpy()[:20][first].tolist()
    assert found["query_id"].to_pylist()[:8] == [90, 91, 92, 93, 94, 91, 90, 93]


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
