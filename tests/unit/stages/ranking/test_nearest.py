import numpy as np
import pytest

from stages.ranking import nearest
from stages.ranking.nearest import LONGEST, blocks_of_distances, orders, place_points
from stages.stage import DataError


def order_of(
    examples: np.ndarray,
    queries: np.ndarray,
    normalize: bool,
    rows: np.ndarray | None = None,
) -> list[list[int]]:
    """Places of the examples, nearest first, for each query."""
    points = place_points(examples, np.arange(len(examples)) if rows is None else rows, normalize)
    blocks = blocks_of_distances(points, queries)
    return [order.tolist() for block in blocks for order in orders(block)]


def test_orders_are_those_of_a_stable_sort() -> None:
    g = np.random.default_rng(0)
    numbers = g.normal(size=(3, 500)).astype(np.float32)
    numbers[1] = np.round(numbers[1])
    numbers[2, ::2] *= 1e-40
    numbers[2, :3] = [np.float32(1e38), np.float32(-1e38), 0]
    numbers[1] += 0.0  # rounding leaves -0.0, which no difference of two numbers is
    for order, row in zip(orders(numbers), numbers, strict=True):
        np.testing.assert_array_equal(order, np.argsort(row, kind="stable"))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("normalize", [True, False])
def test_nearest_is_nearest(normalize: bool, dtype: type) -> None:
    g = np.random.default_rng(1)
    examples, queries = g.normal(size=(60, 5)).astype(dtype), g.normal(size=(9, 5)).astype(dtype)
    rows = g.permutation(60)[:50]
    exact = examples[rows].astype(np.float64)
    for order, query in zip(order_of(examples, queries, normalize, rows), queries, strict=True):
        q = query.astype(np.float64)
        cosines = exact @ q / np.linalg.norm(exact, axis=1)
        distances = -cosines if normalize else np.linalg.norm(exact - q, axis=1)
        assert order == np.argsort(distances).tolist()


def test_euclidean_distances_far_from_zero() -> None:
    """Squares of 1e8 leave no digit in float32 for distances of 1."""
    examples = np.array([[1e4 + x, 1e4] for x in (0, 3, 1, -2, 7)], np.float32)
    assert order_of(examples, examples[1:2] + np.float32(0.25), False) == [[1, 2, 0, 4, 3]]


def test_a_zero_vector_has_cosine_zero() -> None:
    examples = np.array([[-1, 0], [0, 0], [1, 1], [0, 1e-38], [0, 3], [2, 0]], np.float32)
    assert order_of(examples, np.array([[1, 0]], np.float32), True) == [[5, 2, 1, 3, 4, 0]]
    assert order_of(examples, np.zeros((1, 2), np.float32), True) == [[0, 1, 2, 3, 4, 5]]


def test_lengths_of_any_size_have_a_direction() -> None:
    direction = np.random.default_rng(2).normal(size=(30, 8)).astype(np.float32)
    scales = np.float32(10.0) ** np.arange(-15, 15, dtype=np.float32)
    expected = order_of(direction, direction[:5], True)
    found = order_of(direction * scales[:, None], direction[:5] * scales[:5, None], True)
    assert found == expected


@pytest.mark.parametrize("normalize", [True, False])
def test_too_long_vectors_are_refused(normalize: bool) -> None:
    rows = np.ones((3, 2), np.float32)
    long = np.full((1, 2), LONGEST, np.float32)
    for examples, queries in ((np.concatenate([rows, long]), rows), (rows, long)):
        with pytest.raises(DataError, match=r"found a vector of length 1.41e\+18, expected at"):
            order_of(examples, queries, normalize)
    with pytest.raises(DataError, match="Scale the features down"):
        order_of(long, long, normalize)


@pytest.mark.parametrize("dim", [3, 384, 1001])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_distance_of_a_pair_does_not_depend_on_its_place(dim: int, normalize: bool) -> None:
    g = np.random.default_rng(3)
    examples = g.normal(size=(2100, dim)).astype(np.float32)
    queries = g.normal(size=(150, dim)).astype(np.float32)
    # The first lies at the origin of Euclidean distances.
    examples[1::3], queries[::2] = examples[1], queries[0]
    points = place_points(examples, np.arange(len(examples)), normalize)
    found = np.concatenate([block.copy() for block in blocks_of_distances(points, queries)])
    assert len(np.unique(found[::2, 1::3])) == 1
    alone = place_points(examples, np.array([0, 1]), normalize)
    (few,) = blocks_of_distances(alone, queries[:1])
    np.testing.assert_array_equal(few[0], found[0, :2])


@pytest.mark.parametrize("n", [1, 1000, 2**21, 2**21 + 1, 10**7, 10**8, 10**9])
def test_distances_of_many_examples_are_held_for_fewer_queries(n: int) -> None:
    at_once = nearest.queries_at_once(n)
    assert at_once == 128 or at_once * n <= nearest.NUMBERS or at_once == 1
    assert at_once == 128 or 2 * at_once * n > nearest.NUMBERS


def test_fewer_queries_at_a_time_find_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    g = np.random.default_rng(4)
    examples, queries = (g.normal(size=(n, 5)).astype(np.float32) for n in (50, 9))
    expected = order_of(examples, queries, True)
    monkeypatch.setattr(nearest, "NUMBERS", 100)
    blocks = list(blocks_of_distances(place_points(examples, np.arange(50), True), queries))
    assert [len(block) for block in blocks] == [2, 2, 2, 2, 1]
    assert order_of(examples, queries, True) == expected


def test_the_nearest_few_are_the_first_of_the_order() -> None:
    g = np.random.default_rng(5)
    block = g.integers(-3, 4, size=(20, 50)).astype(np.float32) / 2
    block[:, 7] = np.inf
    for distances, order in zip(block, nearest.orders(block), strict=True):
        assert nearest.nearest(distances, 9).tolist() == order[:9].tolist()
