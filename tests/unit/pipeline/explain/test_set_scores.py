"""Mean scores of a set of queries, and cosines, against NumPy on all scores."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from pipeline.explain.set_scores import WORST_OF_A_QUERY, Scores, SetScores, set_scores
from pipeline.open_run import OpenedRun
from storage import catalog

N_QUERIES, N_EXAMPLES, TOP, WORST = 12, 90, 3, 7
PAIRS = "SELECT query_id, example_id, score FROM attributions"
CLASSES = np.arange(N_EXAMPLES) % 4


def made_run(scores: np.ndarray, top_k: int | None, dropped: Sequence[int] = ()) -> Any:
    """A run whose views hold each query's `top_k` scores of each sign, or all.

    A review `dropped` examples after that.
    """
    rows = []
    for query, of_query in enumerate(scores):
        for sign in (1, -1):
            order = np.argsort(-sign * of_query, kind="stable")[:top_k]
            rows += [(query, i, of_query[i]) for i in order.tolist() if sign * of_query[i] > 0]
    made = OpenedRun.__new__(OpenedRun)
    made.connection, made._catalog = duckdb.connect(), catalog
    made._files = SimpleNamespace(tables_read=lambda _: [], check=lambda _: None)
    names = ("query_id", "example_id", "score")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    ids = np.setdiff1d(np.arange(N_EXAMPLES), dropped)
    labels = pa.table({"id": ids, "label": CLASSES[ids]})
    made.connection.execute("CREATE SCHEMA tables")
    for name, kept in (("attributions", table), ("labels", labels)):
        made.connection.register("kept", kept)
        made.connection.execute(f"CREATE TABLE {name} AS FROM kept")
    made.connection.execute("CREATE VIEW tables.label AS SELECT *, 'example' AS role FROM labels")
    return made


@pytest.fixture
def scores() -> np.ndarray:
    """Those of queries 0 to 5 and 6 to 11 have two directions; query 11 has none of them."""
    g = np.random.default_rng(3)
    directions = np.repeat(g.normal(size=(2, N_EXAMPLES)), 6, axis=0)
    made = directions * g.uniform(1, 9, size=(N_QUERIES, 1)) + g.normal(size=(12, N_EXAMPLES))
    made[11] = -9 * directions[11]
    return made


def asked(
    scores: np.ndarray,
    top_k: int | None,
    queries: list[int],
    dropped: Sequence[int] = (),
    **more: Any,
) -> SetScores:
    given: dict[str, Any] = {
        "sign_of": dict.fromkeys(queries, 1.0),
        "label_of": {i: "ab"[i // 6] for i in queries},
        "half_of": {i: i % 2 for i in queries},
        **more,
    }
    stored = Scores(PAIRS, top_k, has_sign=True)
    run = made_run(scores, top_k, dropped)
    found = set_scores(run, stored, top=TOP, n_worst=WORST, **given)
    assert found is not None
    return found


def test_means_are_those_of_all_scores(scores: np.ndarray) -> None:
    queries = [0, 2, 3, 5, 7, 8]
    found = asked(scores, None, queries)
    means = scores[queries].mean(0)
    assert found.n_queries == 6
    order = np.argsort(means)
    assert found.worst["all"] == order[:WORST].tolist()
    for half in (0, 1):
        own = scores[[i for i in queries if i % 2 == half]].mean(0)
        assert found.worst[str(half)] == np.argsort(own)[:WORST].tolist()
    places = np.argsort(np.argsort(scores, axis=1), axis=1)[queries]
    for rows, sign in ((found.harmful, -1), (found.helpful, 1)):
        ids = [row["example_id"] for row in rows]
        # The farthest of all, and of those that are among the three of their class the first.
        first = np.argsort(-sign * means)[:TOP].tolist()
        in_class = {
            i: int((sign * means[CLASSES == CLASSES[i]] > sign * means[i]).sum()) for i in range(90)
        }
        more = [i for i in range(N_EXAMPLES) if i not in first and in_class[i] < TOP]
        more.sort(key=lambda i: (in_class[i], -sign * means[i]))
        assert ids == sorted([*first, *more[:TOP]], key=lambda i: -sign * means[i])
        for row in rows:
            at = row["example_id"]
            assert row["score"] == pytest.approx(means[at], rel=1e-12)
            assert row["unseen"] == 0
            side = places[:, at] if sign < 0 else N_EXAMPLES - 1 - places[:, at]
            is_signed = sign * scores[queries, at] > 0
            assert row["in_top"] == ((side < WORST_OF_A_QUERY) & is_signed).sum()
    assert [(part["label"], part["n_queries"]) for part in found.of_labels] == [("a", 4), ("b", 2)]
    of_a = scores[[0, 2, 3, 5]].mean(0)
    listed = [row["example_id"] for row in found.of_labels[0]["harmful"]]
    assert listed == np.argsort(of_a)[:TOP].tolist()
    of_b = scores[[7, 8]].mean(0)
    each = [*np.argsort(of_a)[:4], *np.argsort(of_b)[:4]]
    assert found.worst_of_labels["all"] == [int(i) for i in each]


def test_signs_turn_the_scores_of_a_query(scores: np.ndarray) -> None:
    queries = [0, 2, 3, 5, 7, 8]
    signs = {i: -1.0 if i in (2, 8) else 1.0 for i in queries}
    turned = scores * np.array([signs.get(i, 1.0) for i in range(N_QUERIES)])[:, None]
    found, expected = asked(scores, 20, queries, sign_of=signs), asked(turned, 20, queries)
    for name, value in expected._asdict().items():
        assert getattr(found, name) == value, name


@pytest.mark.parametrize("top_k", [5, 20, 60])
def test_what_is_not_stored_is_bounded(scores: np.ndarray, top_k: int) -> None:
    queries = list(range(N_QUERIES))
    found = asked(scores, top_k, queries)
    means = scores.mean(0)
    for row in [*found.harmful, *found.helpful]:
        assert abs(row["score"] - means[row["example_id"]]) <= row["unseen"] + 1e-12
    # With 60 of about 45 of each sign everything is stored, and is known to be.
    assert (sum(row["unseen"] for row in found.harmful) == 0) == (top_k == 60)


@pytest.mark.parametrize("top_k", [5, 20, None])
def test_what_a_review_dropped_counts_nowhere(scores: np.ndarray, top_k: int | None) -> None:
    """But a list that it stands in was full all the same, and bounds what is not stored."""
    queries, dropped = list(range(N_QUERIES)), np.argsort(scores[0])[[0, 1, 2, -2, -1]]
    found = asked(scores, top_k, queries, dropped.tolist())
    left = np.delete(scores, dropped, axis=1)
    ids = np.delete(np.arange(N_EXAMPLES), dropped)
    means = dict(zip(ids.tolist(), left.mean(0), strict=True))
    for row in [*found.harmful, *found.helpful]:
        assert abs(row["score"] - means[row["example_id"]]) <= row["unseen"] + 1e-12
    lists = [*found.worst.values(), *found.worst_of_labels.values()]
    assert {row for listed in lists for row in listed} <= set(means)
    if top_k is None:
        fewer = asked(left, None, queries)
        assert [row["cosine"] for row in found.cosines] == pytest.approx(
            [row["cosine"] for row in fewer.cosines], abs=1e-9
        )
        assert found.worst["all"] == ids[fewer.worst["all"]].tolist()


def test_cosines_are_to_the_others_and_name_who_does_not_belong(scores: np.ndarray) -> None:
    queries = [*range(12)]
    found = asked(scores, None, queries)
    units = scores / np.linalg.norm(scores, axis=1, keepdims=True)
    for row in found.cosines:
        i = row["query_id"]
        for name, group in (
            ("cosine", queries),
            ("cosine_in_label", range(i // 6 * 6, i // 6 * 6 + 6)),
        ):
            others = units[[j for j in group if j != i]].mean(0)
            expected = units[i] @ others / np.linalg.norm(others)
            assert row[name] == pytest.approx(expected, abs=1e-9)
    assert [row["query_id"] for row in found.cosines if row["is_outlier"]] == [11]


def test_a_single_query_has_nothing_to_be_like(scores: np.ndarray) -> None:
    found = asked(scores, None, [4])
    assert found.cosines == [
        {"query_id": 4, "cosine": None, "cosine_in_label": None, "is_outlier": False}
    ]
    assert found.of_labels == []
    assert found.worst["all"] == np.argsort(scores[4])[:WORST].tolist()


def test_a_query_whose_scores_are_all_0_has_no_direction(scores: np.ndarray) -> None:
    expected = {row["query_id"]: row for row in asked(scores, None, [0, 1, 2, 3]).cosines}
    more = np.vstack([scores, np.zeros(N_EXAMPLES)])
    run = made_run(more, None)
    run.connection.execute("INSERT INTO attributions SELECT 12, i, 0.0 FROM range(90) AS t(i)")
    ids = [0, 1, 2, 3, 12]
    given = dict.fromkeys(ids, 1.0), dict.fromkeys(ids, "a"), {}
    found = set_scores(run, Scores(PAIRS, None, True), *given, TOP, WORST)
    assert found is not None
    for row in found.cosines[:4]:
        assert row["cosine"] == pytest.approx(expected[row["query_id"]]["cosine"], abs=1e-12)
    assert found.cosines[4]["cosine"] is None


def test_queries_without_scores_give_nothing(scores: np.ndarray) -> None:
    run = made_run(scores, None)
    stored = Scores(PAIRS, None, has_sign=True)
    assert set_scores(run, stored, {77: 1.0}, {77: "a"}, {}, TOP, WORST) is None
