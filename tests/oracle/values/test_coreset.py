"""The greedy order against regressions that are fitted anew for every row that might be taken."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.surrogate import greedy
from stages.surrogate.greedy import Wanted, take_greedily


def loss(
    x: Tensor, y: Tensor, rows: list[int], at: Tensor, wanted: Tensor, damping: float
) -> float:
    """The mean squared error at `at` of the ridge regression on these rows."""
    if not rows:
        return float(wanted.square().sum(1).mean())
    taken = x[rows]
    gram = taken.T @ taken + damping * torch.eye(x.shape[1], dtype=x.dtype)
    outputs = at @ torch.linalg.solve(gram, taken.T @ y[rows])
    return float((wanted - outputs).square().sum(1).mean())


@pytest.fixture(autouse=True)
def one_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    """The damping does not grow with the share that is taken."""
    monkeypatch.setattr(greedy, "FULL_SHARE", 1.0)


def drawn(n: int, dim: int, n_classes: int, seed: int) -> tuple[Tensor, Tensor, np.ndarray, Tensor]:
    """Vectors, targets, classes and wanted outputs."""
    generator = np.random.default_rng(seed)
    x = torch.from_numpy(generator.normal(size=(n, dim)))
    classes = generator.integers(0, n_classes, n)
    classes[:n_classes] = np.arange(n_classes)
    y = torch.nn.functional.one_hot(torch.from_numpy(classes), n_classes).double() - 1 / n_classes
    return x, y, classes, torch.from_numpy(generator.normal(size=(n, n_classes)))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_each_row_is_the_best_of_its_class_and_its_gain_exact(n_classes: int) -> None:
    x, y, classes, outputs = drawn(24, 5, n_classes, 1)
    order = take_greedily(
        lambda at: x[at], y, classes, Wanted.of(lambda at: x[at], outputs), 0.3, 0.5,
        np.ones(24, bool), np.random.default_rng(0),
    )  # fmt: skip
    assert order.n_taken == 12
    assert sorted(order.rows) == list(range(24))
    taken: list[int] = []
    for row, gain in zip(order.rows[:12], order.gains[:12], strict=True):
        before = loss(x, y, taken, x, outputs, 0.3)
        of_class = [i for i in range(24) if classes[i] == classes[row] and i not in taken]
        falls = {i: before - loss(x, y, [*taken, i], x, outputs, 0.3) for i in of_class}
        assert gain == pytest.approx(falls[row], abs=1e-10)
        assert gain == pytest.approx(max(falls.values()), abs=1e-10)
        taken.append(int(row))
    before = loss(x, y, taken, x, outputs, 0.3)
    for row, gain in zip(order.rows[12:], order.gains[12:], strict=True):
        assert gain == pytest.approx(before - loss(x, y, [*taken, row], x, outputs, 0.3), abs=1e-10)
    assert np.all(np.diff(order.gains[12:]) <= 0)


def test_any_first_part_has_the_same_share_of_each_class() -> None:
    x, y, classes, outputs = drawn(90, 4, 3, 2)
    order = take_greedily(
        lambda at: x[at], y, classes, Wanted.of(lambda at: x[at], outputs), 1.0, 1.0,
        np.ones(90, bool), np.random.default_rng(0),
    )  # fmt: skip
    share = np.bincount(classes) / 90
    for count in range(1, 91):
        first = np.bincount(classes[order.rows[:count]], minlength=3)
        assert np.all(np.abs(first - count * share) < 1.5)


def test_rows_that_are_no_candidates_come_last() -> None:
    x, y, classes, outputs = drawn(40, 4, 2, 3)
    candidates = np.arange(40) % 4 != 0
    order = take_greedily(
        lambda at: x[at], y, classes, Wanted.of(lambda at: x[at], outputs), 1.0, 1.0,
        candidates, np.random.default_rng(0),
    )  # fmt: skip
    assert order.n_taken == 30
    assert candidates[order.rows[:30]].all()
    assert not candidates[order.rows[30:]].any()


def test_a_copy_is_worth_less_than_the_row_was() -> None:
    x = torch.ones(2, 3, dtype=torch.float64)
    y = torch.tensor([[0.5, -0.5]] * 2, dtype=torch.float64)
    order = take_greedily(
        lambda at: x[at], y, np.zeros(2, np.int64), Wanted.of(lambda at: x[at], y), 0.5, 1.0,
        np.ones(2, bool), np.random.default_rng(0),
    )  # fmt: skip
    # One row leaves (0.5 / 3.5)^2 of the squared error, which is 0.5; two leave (0.5 / 6.5)^2.
    left = 0.5 * np.array([1, (0.5 / 3.5) ** 2, (0.5 / 6.5) ** 2])
    np.testing.assert_allclose(order.gains, -np.diff(left), atol=1e-12)


def test_batches_take_the_asked_share_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "ALONE", 100)
    monkeypatch.setattr(greedy, "BATCH", 64)
    x, y, classes, outputs = drawn(700, 5, 3, 5)
    wanted = Wanted.of(lambda at: x[at], outputs)

    def taken(seed: int) -> np.ndarray:
        order = take_greedily(
            lambda at: x[at], y, classes, wanted, 1.0, 0.5, np.ones(700, bool),
            np.random.default_rng(seed),
        )  # fmt: skip
        assert order.n_taken == 350
        assert sorted(order.rows) == list(range(700))
        return order.rows

    rows = taken(0)
    assert rows.tolist() == taken(0).tolist()
    share = np.bincount(classes) / 700
    for count in (50, 100, 200, 350):
        first = np.bincount(classes[rows[:count]], minlength=3)
        assert np.all(np.abs(first - count * share) < 4)
    losses = [loss(x, y, r.tolist(), x, outputs, 1.0) for r in (rows[:50], np.arange(50))]
    assert losses[0] < losses[1]
