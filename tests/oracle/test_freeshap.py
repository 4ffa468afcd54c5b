"""FreeShap and leave-one-out against their definitions: enumeration, direct solves, axioms.

Tolerance 1e-9: with ridge >= 0.05 the condition of K + damping I is below about 1e3, so solves are
good to 1e-12. Accuracy is a step function: no two outputs here are closer than 1e-9 without being
equal, and classes without an example are equal.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.freeshap import end_points, marginals, permutations, prefix_outputs
from stages.kernel import mean_diagonal, one_hot
from stages.labelled_kernel import LabelledKernel
from stages.leave_one_out import leave_one_out

UTILITIES = ("accuracy", "cross_entropy", "margin")
SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=15, deadline=None, database=None, derandomize=True)


def regression(features: Tensor, queries: Tensor, labels: Tensor, query_labels: Tensor, c: int):
    kernel = features @ features.T
    return LabelledKernel(
        example_ids=np.arange(len(features)),
        query_ids=np.arange(len(queries)),
        query_labels=query_labels,
        targets=one_hot(labels, c) - 1 / c,
        kernel=kernel,
        query_kernel=queries @ features.T,
        ridge=0.05,
        damping=0.05 * mean_diagonal(kernel),
        ridge_errors=(),
    )


def rows(seed: int, n: int, m: int, c: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 6, dtype=torch.float64, generator=g),
        torch.randn(m, 6, dtype=torch.float64, generator=g),
        torch.randint(c, (n,), generator=g),
        torch.randint(c, (m,), generator=g),
        c,
    )


def retrained_utilities(game: LabelledKernel, subset: list[int]) -> np.ndarray:
    """Each utility of a fit on `subset`, query by query, as the paper has it: targets in {0, 1}."""
    c = game.targets.shape[1]
    if not subset:
        return np.array([1 / c, -math.log(c), 0.0])
    unit = torch.eye(len(subset), dtype=torch.float64)
    damped = game.kernel[subset][:, subset] + game.damping * unit
    dual = torch.linalg.solve(damped, game.targets[subset] + 1 / c)
    total = np.zeros(3)
    for similarity, label in zip(game.query_kernel[:, subset], game.query_labels, strict=True):
        outputs = (similarity @ dual).tolist()
        y = int(label)
        others = [output for at, output in enumerate(outputs) if at != y]
        best = max(outputs) - 1e-9
        total += [
            (outputs[y] >= best) / sum(output >= best for output in outputs),
            outputs[y] - math.log(sum(math.exp(output) for output in outputs)),
            outputs[y] - max(others),
        ]
    return total / len(game.query_labels)


def enumerated_shapley(n: int, worth: Callable[[list[int]], np.ndarray]) -> np.ndarray:
    """sum over S without i of |S|! (n - |S| - 1)! / n! (U(S and i) - U(S)); (utilities, n)."""
    value = {
        frozenset(subset): worth(list(subset))
        for size in range(n + 1)
        for subset in itertools.combinations(range(n), size)
    }
    columns = []
    for i in range(n):
        column = np.zeros(3)
        for subset, worth_of_subset in value.items():
            if i not in subset:
                weight = math.factorial(len(subset)) * math.factorial(n - len(subset) - 1)
                gain = value[subset | {i}] - worth_of_subset
                column += weight / math.factorial(n) * gain
        columns.append(column)
    return np.array(columns).T


def mean_marginals(game: LabelledKernel, temperature: float = 1.0) -> np.ndarray:
    n = len(game.example_ids)
    total = torch.zeros(3, n, dtype=torch.float64)
    for order in itertools.permutations(range(n)):
        total += marginals(game, torch.tensor(order), UTILITIES, temperature)
    return (total / math.factorial(n)).numpy()


@pytest.mark.parametrize(("n", "c", "seed"), [(6, 2, 0), (6, 3, 1), (5, 4, 2)])
def test_all_permutations_give_the_enumerated_shapley_value(n: int, c: int, seed: int) -> None:
    game = regression(*rows(seed, n, 9, c))
    expected = enumerated_shapley(n, lambda subset: retrained_utilities(game, subset))
    np.testing.assert_allclose(mean_marginals(game), expected, rtol=0, atol=1e-9)


def test_sampled_permutations_estimate_the_enumerated_shapley_value() -> None:
    n, count = 8, 600
    game = regression(*rows(3, n, 9, 2))
    expected = enumerated_shapley(n, lambda subset: retrained_utilities(game, subset))
    units = np.array(
        [marginals(game, order, UTILITIES).numpy() for order in permutations(n, count, 0, 0)]
    )
    error = np.abs(units.mean(0) - expected)
    assert (error <= 4.5 * units.std(0, ddof=1) / math.sqrt(count)).all()


@pytest.mark.parametrize("c", [2, 3])
@pytest.mark.parametrize("block_numbers", [1, 100, 2**19])
def test_prefixes_equal_direct_solves(
    c: int, block_numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.freeshap.BLOCK_NUMBERS", block_numbers)
    game = regression(*rows(4, 30, 5, c))
    order = next(permutations(30, 1, 0, 0))
    blocks = list(prefix_outputs(game, order))
    for before, after in itertools.pairwise(blocks):
        assert torch.equal(before[-1], after[0])
    found = torch.cat([blocks[0][:1], *(block[1:] for block in blocks)])
    assert found.shape == (31, c, 5)
    for p in range(31):
        some = order[:p]
        damped = game.kernel[some][:, some] + game.damping * torch.eye(p, dtype=torch.float64)
        expected = game.query_kernel[:, some] @ torch.linalg.solve(damped, game.targets[some])
        torch.testing.assert_close(found[p].T, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("c", "temperature"), [(2, 1.0), (3, 1.0), (3, 0.2)])
def test_leave_one_out_equals_retraining(c: int, temperature: float) -> None:
    n = 12
    game = regression(*rows(5, n, 7, c))
    scaled = game._replace(targets=game.targets / temperature)
    everyone = list(range(n))
    found = leave_one_out(game, UTILITIES, temperature).numpy()
    if temperature == 1.0:
        full = retrained_utilities(game, everyone)
        for i in everyone:
            rest = retrained_utilities(game, [j for j in everyone if j != i])
            np.testing.assert_allclose(found[:, i], full - rest, rtol=0, atol=1e-9)
    # Dividing outputs by a temperature is dividing targets by it.
    by_targets = leave_one_out(scaled, UTILITIES, 1.0).numpy()
    np.testing.assert_allclose(found[:2], by_targets[:2], rtol=0, atol=1e-9)


def test_leave_one_out_is_the_last_marginal() -> None:
    game = regression(*rows(6, 10, 7, 3))
    values = leave_one_out(game, UTILITIES)
    for i in range(10):
        order = torch.tensor([j for j in range(10) if j != i] + [i])
        last = marginals(game, order, UTILITIES)[:, i]
        torch.testing.assert_close(values[:, i], last, rtol=0, atol=1e-9)


@FEW
@given(SEEDS, st.integers(2, 4))
def test_efficiency(seed: int, c: int) -> None:
    game = regression(*rows(seed, 20, 6, c))
    ends = end_points(game, UTILITIES, 1.0)
    for order in permutations(20, 3, seed, 0):
        total = marginals(game, order, UTILITIES).sum(1)
        torch.testing.assert_close(total[1:], (ends[1:, 1] - ends[1:, 0]), rtol=0, atol=1e-9)
        assert math.isclose(total[0], ends[0, 1] - ends[0, 0], abs_tol=1e-9)


@FEW
@given(SEEDS, st.integers(2, 3))
def test_symmetry_of_duplicates(seed: int, c: int) -> None:
    features, queries, labels, query_labels, _ = rows(seed, 5, 4, c)
    features[3], labels[3] = features[1], labels[1]
    found = mean_marginals(regression(features, queries, labels, query_labels, c))
    np.testing.assert_allclose(found[:, 3], found[:, 1], rtol=0, atol=1e-9)


@FEW
@given(SEEDS, st.integers(2, 3))
def test_an_example_without_features_is_a_null_player(seed: int, c: int) -> None:
    """Also as the first to join: its outputs all tie, which is worth as much as U(empty)."""
    features, queries, labels, query_labels, _ = rows(seed, 40, 11, c)
    features[4] = 0
    game = regression(features, queries, labels, query_labels, c)
    for order in permutations(40, 3, seed, 0):
        assert (marginals(game, order, UTILITIES)[:, 4] == 0).all()
    first = torch.tensor([4, *(i for i in range(40) if i != 4)])
    assert (marginals(game, first, UTILITIES)[:, 4] == 0).all()
    assert leave_one_out(game, UTILITIES)[:, 4].abs().max() < 1e-12


@FEW
@given(SEEDS, st.integers(2, 3))
def test_linearity_over_queries(seed: int, c: int) -> None:
    """The utility is a mean over queries, hence so is the value."""
    features, queries, labels, query_labels, _ = rows(seed, 15, 6, c)
    order = next(permutations(15, 1, seed, 0))
    whole = marginals(regression(features, queries, labels, query_labels, c), order, UTILITIES)
    parts = [
        marginals(
            regression(features, queries[q : q + 1], labels, query_labels[q : q + 1], c),
            order,
            UTILITIES,
        )
        for q in range(6)
    ]
    torch.testing.assert_close(whole, torch.stack(parts).mean(0), rtol=0, atol=1e-9)
