import numpy as np
import pytest
import torch

from stages.reading.supervision import one_hot
from stages.reading.vectors import aligned
from stages.stage import DataError, Vectors
from stages.surrogate.kernel import RIDGE_GRID, auto_ridge, factor, gram, mean_diagonal


@pytest.fixture
def tables() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(5, dim, generator=generator), torch.randn(3, dim, generator=generator))
        for dim in (4, 7)
    ]


def test_aligned_rows_follow_the_ids_whatever_their_order() -> None:
    vectors = Vectors(np.array([7, 3, 9]), np.arange(6, dtype=np.float32).reshape(3, 2))
    rows = aligned(vectors, np.array([3, 9, 7, 3]))
    assert rows.tolist() == [[2, 3], [4, 5], [0, 1], [2, 3]]


@pytest.mark.parametrize("ids", [np.array([], dtype=np.int64), np.array([1, 5])])
def test_aligned_names_the_missing_id(ids: np.ndarray) -> None:
    vectors = Vectors(ids, np.zeros((len(ids), 2), dtype=np.float32))
    with pytest.raises(DataError, match="the first is 8"):
        aligned(vectors, np.array([8]))


def test_normalized_kernel_is_the_mean_of_cosines(
    tables: list[tuple[torch.Tensor, torch.Tensor]],
) -> None:
    among, to = gram(tables, normalize=True)
    unit = [[rows.double() / rows.double().norm(dim=1)[:, None] for rows in t] for t in tables]
    expected = sum(examples @ examples.T for examples, _ in unit) / 2
    expected_to = sum(queries @ examples.T for examples, queries in unit) / 2
    torch.testing.assert_close(among, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(to, expected_to, rtol=0, atol=1e-14)


@pytest.mark.parametrize("normalize", [True, False])
def test_features_of_half_precision_are_multiplied_in_double(normalize: bool) -> None:
    generator = np.random.default_rng(1)
    # Their squares leave the range of float16, at 65504.
    stored = [(300 * generator.normal(size=(n, 50))).astype(np.float16) for n in (6, 4)]
    halves = [aligned(Vectors(np.arange(len(m)), m), np.arange(len(m))) for m in stored]
    assert all(rows.dtype == torch.float16 for rows in halves)
    doubles = [rows.double() for rows in halves]
    found = gram([(halves[0], halves[1])], normalize)
    expected = gram([(doubles[0], doubles[1])], normalize)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float64
        assert torch.equal(one, other)


def test_one_raw_kernel_stays_raw(tables: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    examples, queries = (rows.double() for rows in tables[0])
    among, to = gram(tables[:1], normalize=False)
    torch.testing.assert_close(among, examples @ examples.T, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(to, queries @ examples.T, rtol=1e-14, atol=1e-14)


def test_units_of_a_table_do_not_matter(tables: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    scaled = [tables[0], (tables[1][0] * 1024, tables[1][1] * 1024)]
    for one, other in zip(gram(tables, False), gram(scaled, False), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    assert mean_diagonal(gram(tables, False)[0]) == pytest.approx(1)


def test_a_zero_row_stays_zero(tables: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    tables[0][0][2] = 0
    among, to = gram(tables[:1], normalize=True)
    assert not among[2].any()
    assert not to[:, 2].any()
    tables[0][0][:] = 0
    with pytest.raises(DataError, match="only zero vectors"):
        gram(tables[:1], normalize=True)


def test_factor_refuses_an_indefinite_kernel() -> None:
    with pytest.raises(DataError, match="not positive definite at row 2"):
        factor(torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64), 0.1)


def test_one_hot() -> None:
    assert one_hot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_the_smaller_ridge_wins_a_tie() -> None:
    # Of equal, orthogonal rows no one predicts another, whatever the ridge.
    ridge, errors = auto_ridge(
        torch.eye(3, dtype=torch.float64), torch.full((3, 2), 0.5, dtype=torch.float64)
    )
    assert ridge == RIDGE_GRID[int(np.argmin(errors))]
    assert errors == pytest.approx([0.5] * len(RIDGE_GRID))
    assert RIDGE_GRID[0] == pytest.approx(1e-4)
    assert RIDGE_GRID[-1] == pytest.approx(1e3)
