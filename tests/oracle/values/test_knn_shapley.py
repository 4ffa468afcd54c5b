"""Soft-label KNN-Shapley against its definition: enumeration, counting of coalitions, axioms.

Values are sums of fractions in float64, hence 1e-12. Distances are float32: features are small
integers where equal ones must tie, and far apart where they must not.
"""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.ranking import nearest as neighbours
from stages.stage import Part, Vectors
from stages.values.knn_shapley import KnnShapley, step_weights, values_by_rank

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=25, deadline=None, database=None, derandomize=True)


class Given:
    """Examples and queries in memory, cut into blocks of `size` queries."""

    def __init__(
        self,
        examples: np.ndarray,
        labels: np.ndarray,
        queries: np.ndarray,
        query_labels: np.ndarray,
        n_classes: int,
        size: int = 1000,
    ) -> None:
        self.part, self.opened, self.n_classes, self.size = Part("query", 0), None, n_classes, size
        # Ids are in another order than rows.
        ids = {role: np.arange(len(x))[::-1] for role, x in self.both(examples, queries)}
        self.rows = {
            role: Vectors(ids[role], np.ascontiguousarray(x[::-1], np.float32))
            for role, x in self.both(examples, queries)
        }
        self.labels = pa.concat_tables(
            pa.table({"id": np.arange(len(y)), "role": [role] * len(y), "label": y})
            for role, y in self.both(labels, query_labels)
        )

    @staticmethod
    def both(of_examples: Any, of_queries: Any) -> list[tuple[str, Any]]:
        return [("example", of_examples), ("query", of_queries)]

    def table(self, name: str, role: str | None = None) -> pa.Table:
        if role is None:
            return self.labels
        table = self.labels.filter(pc.equal(self.labels["role"], role))
        return table if role == "example" else table.slice(self.part.index * self.size, self.size)

    def vectors(self, name: str, role: str) -> Vectors:
        return self.rows[role]

    def details(self, name: str) -> dict[str, Any]:
        return {"classes": ["class"] * self.n_classes}

    def values(self, stage: KnnShapley) -> np.ndarray:
        """Values by example id, as the view makes them from the sums of blocks."""
        self.opened = stage.open(self)
        n_queries = len(self.rows["query"].ids)
        total, count = 0.0, 0
        for index in range(-(-n_queries // self.size)):
            self.part = Part("query", index)
            batches = [batch for _, batch in stage.compute(self)]
            table = stage.writes[0].check(pa.Table.from_batches(batches))
            assert table["example_id"].to_pylist() == list(range(len(table)))
            total = total + table["total"].to_numpy()
            count += table["n_queries"][0].as_py()
        assert count == n_queries
        return total / count


def worth(order: list[int], matches: list[bool], members: set[int], k: int, c: int) -> Fraction:
    """The share of a query's label among the k nearest members, 1/c where there is none."""
    nearest = [i for i in order if i in members][:k]
    return Fraction(sum(matches[i] for i in nearest), len(nearest)) if nearest else Fraction(1, c)


def enumerated(order: list[int], matches: list[bool], k: int, c: int) -> list[Fraction]:
    """Shapley values of one query's game, over all coalitions."""
    n = len(order)
    game = {
        frozenset(members): worth(order, matches, set(members), k, c)
        for size in range(n + 1)
        for members in itertools.combinations(range(n), size)
    }
    values = [Fraction(0)] * n
    for members, value in game.items():
        for i in set(range(n)) - members:
            # The share of the orders in which exactly these come before i.
            share = Fraction(1, n * math.comb(n - 1, len(members)))
            values[i] += share * (game[members | {i}] - value)
    return values


def counted(matches: list[bool], k: int, c: int) -> list[Fraction]:
    """The same for k < n, nearest first, by counting coalitions whose k-th nearest is j.

    With fewer than k others an example joins the mean of them all; otherwise it takes the place of
    the k-th nearest, where that is farther.
    """
    n, values = len(matches), []
    for i in range(1, n + 1):
        mine = int(matches[i - 1])
        mean = Fraction(sum(matches) - mine, n - 1)
        value = mine - Fraction(1, c) + sum((mine - mean) / (size + 1) for size in range(1, k))
        for size in range(k, n):
            for j in range(i + 1, n + 1):
                ways = math.comb(j - 2, k - 1) * math.comb(n - j, size - k)
                gain = Fraction(mine - int(matches[j - 1]), k)
                value += Fraction(ways, math.comb(n - 1, size)) * gain
        values.append(value / n)
    return values


def order_of(examples: np.ndarray, query: np.ndarray, normalize: bool) -> list[int]:
    """Nearest first in float64, then by id; numbers that should be equal are made so."""
    if normalize:
        unit = [np.linalg.norm(x) or 1.0 for x in examples]
        distances = [-(x @ query) / length for x, length in zip(examples, unit, strict=True)]
    else:
        distances = [((x - query) ** 2).sum() for x in examples]
    return sorted(range(len(examples)), key=lambda i: (round(distances[i], 9), i))


def draw(seed: int, n: int, m: int, c: int) -> tuple[np.ndarray, ...]:
    """Examples with duplicates and with one vector of zeros, in integers; queries; labels."""
    g = np.random.default_rng(seed)
    examples = g.integers(-3, 4, (n, 4)).astype(float)
    examples[n // 2] = 0
    examples[-1] = examples[0]
    queries = g.integers(-5, 6, (m, 4)).astype(float)
    return examples, g.integers(0, c, n), queries, g.integers(0, c, m)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("n", "c"), [(1, 2), (2, 2), (3, 3), (7, 2), (8, 4)])
@pytest.mark.parametrize("k", [1, 3, 5, 12])
def test_values_are_those_of_all_coalitions(n: int, c: int, k: int, normalize: bool) -> None:
    examples, labels, queries, query_labels = draw(n, n, 5, c)
    expected = np.mean(
        [
            [
                float(value)
                for value in enumerated(
                    order_of(examples, query, normalize), (labels == label).tolist(), k, c
                )
            ]
            for query, label in zip(queries, query_labels, strict=True)
        ],
        axis=0,
    )
    stage = KnnShapley(neighbours=k, normalize=normalize)
    found = Given(examples, labels, queries, query_labels, c).values(stage)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_ten_examples(k: int) -> None:
    examples, labels, queries, query_labels = draw(1, 10, 1, 2)
    order = order_of(examples, queries[0], True)
    expected = enumerated(order, (labels == query_labels[0]).tolist(), k, 2)
    found = Given(examples, labels, queries, query_labels, 2).values(KnnShapley(neighbours=k))
    np.testing.assert_allclose(found, np.array(expected, float), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", range(1, 7))
def test_every_pattern_of_labels(n: int) -> None:
    for matches in itertools.product([False, True], repeat=n):
        for k in range(1, n + 3):
            expected = enumerated(list(range(n)), list(matches), k, 3)
            found = values_by_rank(np.array(matches), step_weights(n, k), k, 3)
            np.testing.assert_allclose(found, np.array(expected, float), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 10, 28, 29])
def test_thirty_examples_by_counting(k: int) -> None:
    matches = np.random.default_rng(k).random(30) < 0.4
    expected = counted(matches.tolist(), k, 2)
    found = values_by_rank(matches, step_weights(30, k), k, 2)
    np.testing.assert_allclose(found, np.array(expected, float), rtol=0, atol=1e-12)
    few = matches[:6].tolist()
    if k < 6:
        assert counted(few, k, 2) == enumerated(list(range(6)), few, k, 2)


@FEW
@given(SEEDS, st.integers(1, 60), st.integers(1, 70), st.integers(2, 4), st.booleans())
def test_efficiency(seed: int, n: int, k: int, c: int, normalize: bool) -> None:
    examples, labels, queries, query_labels = draw(seed, n, 7, c)
    everyone = set(range(n))
    of_all = [
        worth(order_of(examples, q, normalize), (labels == y).tolist(), everyone, k, c)
        for q, y in zip(queries, query_labels, strict=True)
    ]
    stage = KnnShapley(neighbours=k, normalize=normalize)
    found = Given(examples, labels, queries, query_labels, c).values(stage)
    assert math.isclose(found.sum(), np.mean(np.array(of_all, float)) - 1 / c, abs_tol=1e-12)


@FEW
@given(SEEDS, st.integers(1, 20), st.booleans())
def test_symmetry_of_duplicates(seed: int, k: int, normalize: bool) -> None:
    """Equal vectors and labels have equal values, wherever they lie in a tile."""
    g = np.random.default_rng(seed)
    examples, queries = g.normal(size=(2500, 30)), g.normal(size=(3, 30))
    labels = g.integers(0, 2, 2500)
    twins = g.choice(2500, 40, replace=False)
    examples[twins], labels[twins] = examples[twins[0]], labels[twins[0]]
    stage = KnnShapley(neighbours=k, normalize=normalize)
    found = Given(examples, labels, queries, g.integers(0, 2, 3), 2).values(stage)
    np.testing.assert_allclose(found[twins], found[twins[0]], rtol=0, atol=1e-15)


@FEW
@given(SEEDS, st.integers(1, 50), st.integers(1, 60), st.integers(2, 4))
def test_where_all_labels_are_one_nobody_is_special(seed: int, n: int, k: int, c: int) -> None:
    examples, labels, queries, query_labels = draw(seed, n, 3, c)
    for own, gain in ((query_labels[0], 1 - 1 / c), ((query_labels[0] + 1) % c, -1 / c)):
        given = Given(examples, np.full_like(labels, own), queries[:1], query_labels[:1], c)
        found = given.values(KnnShapley(neighbours=k))
        np.testing.assert_allclose(found, gain / n, rtol=0, atol=1e-13)


@FEW
@given(SEEDS, st.integers(1, 10))
def test_the_nearer_of_two_neighbours_in_rank_is_worth_more_if_it_agrees(seed: int, k: int) -> None:
    matches = np.random.default_rng(seed).random(40) < 0.5
    values = values_by_rank(matches, step_weights(40, k), k, 2)
    steps = np.diff(matches.astype(int))
    assert (np.sign(np.diff(values))[steps != 0] == steps[steps != 0]).all()
    np.testing.assert_allclose(np.diff(values)[steps == 0], 0, rtol=0, atol=1e-15)


@FEW
@given(SEEDS, st.integers(2, 3), st.booleans())
def test_linearity_over_queries(seed: int, c: int, normalize: bool) -> None:
    examples, labels, queries, query_labels = draw(seed, 40, 6, c)
    stage = KnnShapley(neighbours=4, normalize=normalize)
    whole = Given(examples, labels, queries, query_labels, c).values(stage)
    alone = [
        Given(examples, labels, queries[q : q + 1], query_labels[q : q + 1], c).values(stage)
        for q in range(6)
    ]
    np.testing.assert_allclose(whole, np.mean(alone, axis=0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("normalize", [True, False])
def test_ties_go_by_id(normalize: bool) -> None:
    """Of equal vectors the one with the smaller id is nearer, hence here the one that agrees."""
    same = np.ones((4, 3))
    for labels, first in (([1, 0, 0, 0], 0), ([0, 0, 1, 0], 2)):
        given = Given(same, np.array(labels), same[:1], np.array([1]), 2)
        found = given.values(KnnShapley(neighbours=1, normalize=normalize))
        matches = [label == 1 for label in labels]
        expected = np.array(enumerated([0, 1, 2, 3], matches, 1, 2), float)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
        assert found.argmax() == first


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size", [1, 7, 128, 300])
def test_blocks_of_queries_change_nothing(size: int, normalize: bool) -> None:
    """Sums of blocks are added up in another order, and that is all: the last bits."""
    g = np.random.default_rng(0)
    rows = g.normal(size=(1500, 20)), g.integers(0, 3, 1500)
    asked = g.normal(size=(300, 20)), g.integers(0, 3, 300)
    stage = KnnShapley(normalize=normalize)
    found = Given(*rows, *asked, 3, size=size).values(stage)
    whole = Given(*rows, *asked, 3).values(stage)
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-15)


@pytest.mark.parametrize("tiles", [(1, 1), (3, 7), (64, 16)])
@pytest.mark.parametrize("normalize", [True, False])
def test_tiles_change_nothing(
    tiles: tuple[int, int], normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Integers have exact products, hence the same ties; unit vectors must be apart to compare."""
    rows = draw(5, 150, 20, 3)
    if normalize:
        g = np.random.default_rng(6)
        rows = g.normal(size=(150, 4)), rows[1], g.normal(size=(20, 4)), rows[3]
    stage = KnnShapley(neighbours=4, normalize=normalize)
    expected = Given(*rows, 3).values(stage)
    monkeypatch.setattr(neighbours, "QUERIES", tiles[0])
    monkeypatch.setattr(neighbours, "EXAMPLES", tiles[1])
    np.testing.assert_allclose(Given(*rows, 3).values(stage), expected, rtol=0, atol=1e-15)
