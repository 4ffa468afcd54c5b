"""Outliers against the mean squared distance of all pairs, and against quartiles by hand."""

import statistics

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import ShardedInputs, vector_table

from stages.predictions.outliers import Outliers
from stages.stage import ConfigError, DataError


def inputs_of(vectors: np.ndarray, n_shards: int = 3) -> ShardedInputs:
    """Examples with these vectors and ids from 0, and some queries far away."""
    queries = torch.full((4, vectors.shape[1]), -9.0)
    table = vector_table(torch.from_numpy(vectors), queries)
    return ShardedInputs({"embedding": table}, n_shards=n_shards)


def found(vectors: np.ndarray, n_shards: int = 3, **fields: float) -> pa.Table:
    return super(ShardedInputs, inputs_of(vectors, n_shards)).run(Outliers(**fields))


def cloud(n: int = 60, dim: int = 7, seed: int = 0) -> np.ndarray:
    """Rows about one direction, at all lengths; the last three point elsewhere."""
    g = np.random.default_rng(seed)
    rows = np.ones(dim) + 0.4 * g.normal(size=(n, dim))
    rows[-3:] = -np.ones(dim) + 0.4 * g.normal(size=(3, dim))
    return (rows * g.uniform(0.1, 10, size=(n, 1))).astype(np.float32)


def test_the_distance_is_the_mean_squared_distance_from_all_rows() -> None:
    """Up to a constant and a factor; in float64, from vectors in float32."""
    vectors = cloud()
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    mean_squares = np.square(unit[:, None] - unit[None]).sum(2).mean(1)
    length = np.linalg.norm(unit.mean(0))
    rows = found(vectors)
    np.testing.assert_allclose(
        rows["distance"].to_numpy(), 1 - (1 - mean_squares / 2) / length, rtol=0, atol=1e-13
    )
    assert rows["example_id"].to_pylist() == list(range(60))


@pytest.mark.parametrize("fence", [0.0, 1.0, 2.5])
def test_the_fence_by_hand(fence: float) -> None:
    rows = found(cloud(), fence=fence)
    distances = rows["distance"].to_pylist()
    low, median, high = statistics.quantiles(distances, n=4, method="inclusive")
    limit = high + max(fence * (high - low), 1e-6)
    assert rows["is_outlier"].to_pylist() == [distance > limit for distance in distances]
    expected = [2 ** (-max(0, d - median) / (limit - median)) for d in distances]
    np.testing.assert_allclose(rows["outlier_score"].to_numpy(), expected, rtol=1e-12)
    assert [d < 0.5 for d in rows["outlier_score"].to_pylist()] == rows["is_outlier"].to_pylist()


def test_rows_of_another_kind_are_flagged_also_where_they_are_near_each_other() -> None:
    is_outlier = found(cloud())["is_outlier"].to_pylist()
    assert is_outlier[-3:] == [True] * 3
    assert sum(is_outlier) <= 6


def test_shards_change_rounding_alone() -> None:
    one, many = found(cloud(), 1), found(cloud(), 7)
    np.testing.assert_allclose(one["distance"], many["distance"], rtol=0, atol=1e-14)
    assert one["is_outlier"].equals(many["is_outlier"])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_rows_have_no_outlier(value: float) -> None:
    """Nor have zero vectors, whose cosine with all is 0."""
    rows = found(np.full((9, 3), value, np.float32))
    assert rows["is_outlier"].to_pylist() == [False] * 9
    np.testing.assert_allclose(rows["outlier_score"].to_numpy(), 1.0)


@pytest.mark.parametrize("n_shards", [1, 2, 3, 7])
def test_equal_rows_beside_others_are_no_outliers_however_they_are_cut(n_shards: int) -> None:
    """Nine in ten rows are one text: quartiles are equal, and rounding decides about nothing."""
    g = np.random.default_rng(0)
    vectors = (np.ones((100, 32)) + 0.05 * g.normal(size=(100, 32))).astype(np.float32)
    vectors[:90] = vectors[0]
    rows = found(vectors, n_shards)
    assert rows["is_outlier"].to_pylist() == [False] * 90 + [True] * 10
    np.testing.assert_allclose(rows["outlier_score"].to_numpy()[:90], 1.0, atol=1e-6)
    assert max(rows["outlier_score"].to_pylist()[90:]) < 0.5


def test_what_cannot_be_used() -> None:
    with pytest.raises(ConfigError, match="expected interquartile ranges"):
        Outliers(fence=-1.0)
    inputs = inputs_of(np.zeros((3, 2), np.float32))
    inputs.tables["embedding"] = inputs.tables["embedding"].slice(0, 0)
    with pytest.raises(DataError, match="no example with features"):
        super(ShardedInputs, inputs).run(Outliers())
