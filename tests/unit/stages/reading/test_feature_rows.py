from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import rows_of

from stages.reading import feature_rows
from stages.reading.feature_rows import FeatureRows, shard_features, sketched, sketched_lengths
from stages.stage import Vectors


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> int:
    """Most numbers of a vector, less than in a run."""
    monkeypatch.setattr(feature_rows, "LONGEST", 16)
    return 16


@pytest.mark.parametrize("length", [1e-25, 1.0, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_of_any_length_are_scaled_to_one(dtype: torch.dtype, length: float) -> None:
    """Of lengths whose squares float32 cannot hold, too; a zero vector stays one."""
    directions = np.array([[0.6, 0.8], [0.0, -1.0], [0.0, 0.0]])
    table = Vectors(np.array([5, 7, 9]), (directions * length).astype(np.float32))
    rows = FeatureRows([table], np.array([9, 5, 7]), True, dtype)
    found = rows(torch.arange(3))
    assert found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), directions[[2, 0, 1]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("lengths", [(16,), (17,), (50,), (7, 50), (33, 50, 21), (40, 40)])
def test_each_number_is_added_to_one_and_to_each_as_many(
    longest: int, lengths: tuple[int, ...]
) -> None:
    parts = sketched(torch.eye(sum(lengths)), lengths).split(sketched_lengths(lengths), 1)
    assert sum(part.shape[1] for part in parts) <= longest
    for part, of_table, length in zip(
        parts, torch.eye(sum(lengths)).split(list(lengths), 1), lengths, strict=True
    ):
        own = part[of_table.any(1)]
        assert part.abs().sum() == own.abs().sum() == length
        assert (own.abs().sum(1) == 1).all()
        added = own.abs().sum(0)
        assert added.max() - added.min() <= 1
        assert own.shape[1] < length or own.equal(torch.eye(length))


def errors(pairs: torch.Tensor, padding: Sequence[int], n_tables: int) -> np.ndarray:
    """Errors of the inner product of two vectors, by the number of zeros that follow them.

    The draws depend on the length, so that every number of zeros is another draw. `pairs` are the
    vectors of the tables, which are alike.
    """
    found = []
    for more in padding:
        length = pairs.shape[1] + more
        table = torch.nn.functional.pad(pairs, (0, more))
        first, second = sketched(torch.cat([table] * n_tables, 1), [length] * n_tables)
        found.append(float(first @ second) - n_tables * float(pairs[0] @ pairs[1]))
    return np.array(found)


@pytest.mark.parametrize("n_tables", [1, 2])
def test_inner_products_of_sketches_are_right_on_average(longest: int, n_tables: int) -> None:
    """In 4,000 draws, to four standard errors, and with the variance that is promised.

    Two numbers share a place with a probability P of nearly 1 / places, which gives
    P (|x|^2 |y|^2 + (x.y)^2 - 2 sum x_i^2 y_i^2), of k tables that share a draw k^2 times as much.
    """
    x, y = np.random.default_rng(0).normal(size=(2, 40))
    y += 3 * x
    places = longest // n_tables
    found = errors(torch.from_numpy(np.stack([x, y])), range(200, 4200), n_tables)
    assert abs(found.mean()) < 4 * found.std() / len(found) ** 0.5
    pairs = (x @ x) * (y @ y) + (x @ y) ** 2 - 2 * (x**2 @ y**2)
    of_square = (found**2).std() / len(found) ** 0.5
    variance = n_tables**2 * pairs / places
    assert (found**2).mean() == pytest.approx(variance, abs=0.02 * variance + 4 * of_square)
    lengths = n_tables * np.linalg.norm(x) * np.linalg.norm(y)
    assert found.std() < 1.05 * (2 / places) ** 0.5 * lengths
    # Tables that share a draw are moved by more than one table of their length together would be.
    assert n_tables == 1 or found.std() > 1.2 * (2 / longest) ** 0.5 * lengths


@pytest.mark.parametrize("n_parts", [1, 2])
def test_examples_and_queries_have_one_sketch(longest: int, n_parts: int) -> None:
    """A row has the same sketch among whichever rows, in whichever shard."""
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=(6, length)).astype(np.float32) for length in (60, 44)]

    def of(chosen: list[int], part: int) -> tuple[np.ndarray, torch.Tensor]:
        tables: list[pa.Table] = [rows_of(Vectors(np.array(chosen), m[chosen])) for m in matrices]
        return shard_features(tables, True, part, n_parts)

    for part in range(n_parts):
        ids, found = of(list(range(6)), part)
        assert found.shape == (6, longest)
        for chosen in ([0, 3, 4], [5], [2, 1]):
            some, alone = of(chosen, part)
            assert alone.equal(found[np.searchsorted(ids, some)])
