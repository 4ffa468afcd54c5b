"""Values from whole utilities against their definition, member by member, and their expectation.

The expectation is exact: the mean over all that a unit of few examples can draw, with its
probability, is the enumerated semivalue.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.game import sample_reuse
from stages.game.sample_reuse import (
    FOLDS,
    RIDGE,
    Drawn,
    Reuse,
    best_law,
    check_coalitions,
    draw_orders,
    draw_sizes,
    values_of,
)
from stages.game.semivalue import size_weights
from stages.stage import ConfigError

Worth = Callable[[frozenset[int]], np.ndarray]
KINDS: tuple[Reuse, ...] = ("regression_msr", "adalina")
SEMIVALUES = ("shapley", "beta(4,1)")


def random_worth(n: int, seed: int = 0) -> Worth:
    """Two utilities with no structure but growth with the size."""
    drawn = np.random.default_rng(seed).normal(size=(2**n, 2))

    def worth(members: frozenset[int]) -> np.ndarray:
        found: np.ndarray = drawn[sum(2**i for i in members)] + len(members) ** 0.5
        return found

    return worth


def weights_of(n: int, semivalues: tuple[str, ...] = SEMIVALUES) -> np.ndarray:
    return np.stack([size_weights(name, n) for name in semivalues])


def enumerated(n: int, worth: Worth, weights: np.ndarray) -> np.ndarray:
    """(1/n) sum over S without i of w_|S| / C(n - 1, |S|) (U(S and i) - U(S))."""
    total = np.zeros((len(weights), n, 2))
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            for some in itertools.combinations(others, size):
                gain = worth(frozenset((*some, i))) - worth(frozenset(some))
                total[:, i] += weights[:, size, None] / n / math.comb(n - 1, size) * gain
    return total


def ends_of(n: int, worth: Worth) -> torch.Tensor:
    return torch.from_numpy(np.stack([worth(frozenset()), worth(frozenset(range(n)))]))


def drawn_of(orders: Any, sizes: Any, worth: Worth) -> Drawn:
    """The coalitions of these permutations cut at these sizes, with what they are worth."""
    orders, sizes = (torch.as_tensor(each) for each in (orders, sizes))
    found = [
        [worth(frozenset(order[:size].tolist())) for size in cuts]
        for order, cuts in zip(orders, sizes.tolist(), strict=True)
    ]
    return Drawn(orders, sizes, torch.from_numpy(np.array(found)))


def by_definition(
    drawn: Drawn, ends: np.ndarray, weights: np.ndarray, law: np.ndarray, kind: Reuse
) -> np.ndarray:
    """The docstring of the module, with a dense row of members for each coalition."""
    n = weights.shape[1]
    rows, worth, group = [], [], []
    for at, (order, cuts) in enumerate(
        zip(drawn.orders.tolist(), drawn.sizes.tolist(), strict=True)
    ):
        for cut, size in enumerate(cuts):
            rows.append([float(i in order[:size]) for i in range(n)])
            worth.append(drawn.worth[at, cut].numpy())
            group.append(at if kind == "adalina" else at // 2 % FOLDS)
    member, u, folds = np.array(rows), np.array(worth), np.array(group)
    size = member.sum(1).astype(int)
    c = np.zeros((len(weights), *member.shape))
    for k, w in enumerate(weights):
        inside, outside = (w[size - 1] / size)[:, None], (w[size] / (n - size))[:, None]
        c[k] = np.where(member > 0, inside, -outside) / law[size - 1][:, None]
    importance = np.square(c).sum((0, 2))
    total = np.zeros((len(weights), n, u.shape[1]))
    for fold in sorted(set(group)):
        own, other = folds == fold, folds != fold
        columns = np.ones((len(u), 1))
        penalty = np.zeros(1)
        if kind == "regression_msr":  # 1, s, and members less their mean share
            columns = np.hstack([columns, size[:, None] / n, member - size[:, None] / n])
            mean = (importance[other, None] * columns[other, 2:] ** 2).sum(0).mean()
            penalty = np.array([0, 0, *[RIDGE * n / other.sum() * mean] * n])
        left = columns[other].T @ (importance[other, None] * columns[other]) + np.diag(penalty)
        right = columns[other].T @ (importance[other, None] * u[other])
        fit = np.linalg.lstsq(left, right, rcond=None)[0]

        def game(members: frozenset[int], fit: np.ndarray = fit) -> np.ndarray:
            share = len(members) / n
            known = [(i in members) - share for i in range(n)]
            found: np.ndarray = np.array([1.0, share, *known])[: len(fit)] @ fit
            return found

        residual = u - columns @ fit
        each = enumerated(n, game, weights)
        for end, sign, k in ((n, 1, n - 1), (0, -1, 0)):
            left_over = ends[int(end == n)] - game(frozenset(range(end)))
            each += sign * weights[:, k, None, None] / n * left_over
        each += np.einsum("kri,ru->kiu", c[:, own], residual[own]) / own.sum()
        total += own.mean() * each
    return total


def some_drawn(n: int, count: int, kind: Reuse, cut: str, worth: Worth) -> tuple[Drawn, np.ndarray]:
    g = np.random.default_rng(3)
    orders, law = draw_orders(n, count, kind, g), best_law(weights_of(n))
    sizes = draw_sizes(law, count, kind, g)
    if cut == "prefixes":
        sizes, law = torch.arange(1, n).expand(count, -1), np.full(n - 1, 1 / (n - 1))
    return drawn_of(orders, sizes, worth), law


@pytest.mark.parametrize("cut", ["sizes", "prefixes"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 5])
def test_values_are_those_of_the_definition(kind: Reuse, cut: str, n: int) -> None:
    worth = random_worth(n)
    drawn, law = some_drawn(n, 20, kind, cut, worth)
    ends, weights = ends_of(n, worth), weights_of(n)
    found = values_of(drawn, ends, weights, law, kind).numpy()
    expected = by_definition(drawn, ends.numpy(), weights, law, kind)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def every_unit(
    n: int, kind: Reuse, cut: str, law: np.ndarray
) -> Iterator[tuple[float, list[list[int]], list[list[int]]]]:
    """All that two independent draws can be: probability, permutations, sizes."""
    draws = []
    for order in itertools.permutations(range(n)):
        pair = [list(order), list(order[::-1])]
        chance = 1 / math.factorial(n)
        if cut == "prefixes":
            cuts = list(range(1, n))
            draws.append((chance, pair, [cuts, cuts]))
        else:
            draws += [(chance * law[s - 1], pair, [[s], [n - s]]) for s in range(1, n)]
    take = 2 if kind == "regression_msr" else 1
    for (p, orders, sizes), (q, more, cuts) in itertools.product(draws, repeat=2):
        yield p * q, orders[:take] + more[:take], sizes[:take] + cuts[:take]


@pytest.mark.parametrize("cut", ["sizes", "prefixes"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_expectation_is_the_enumerated_semivalue(kind: Reuse, cut: str) -> None:
    n = 3
    worth, weights = random_worth(n), weights_of(n)
    law = best_law(weights) if cut == "sizes" else np.full(n - 1, 1 / (n - 1))
    total, spread = np.zeros((2, n, 2)), 0.0
    exact = enumerated(n, worth, weights)
    for chance, orders, sizes in every_unit(n, kind, cut, law):
        drawn = drawn_of(orders, sizes, worth)
        found = values_of(drawn, ends_of(n, worth), weights, law, kind).numpy()
        total += chance * found
        spread = max(spread, np.abs(found - exact).max())
    np.testing.assert_allclose(total, exact, rtol=0, atol=1e-6)
    assert spread > 0.1


def test_adalina_is_the_covariance_of_the_paper_without_its_shrinking() -> None:
    """mean(c U) - mean(c) mean(U), and m / (m - 1) times it for m coalitions."""
    n, worth, weights = 5, random_worth(5), weights_of(5, ("shapley",))
    law, g = best_law(weights), np.random.default_rng(0)
    np.testing.assert_allclose(
        law, (w := [1 / (s * (5 - s)) ** 0.5 for s in range(1, 5)]) / np.sum(w)
    )
    orders, sizes = draw_orders(n, 30, "adalina", g), draw_sizes(law, 30, "adalina", g)
    drawn, ends = drawn_of(orders, sizes, worth), ends_of(n, worth)
    member = (drawn.orders.argsort(1) < drawn.sizes).numpy()
    s = drawn.sizes.numpy()
    c = np.where(member, 1 / s, -1 / (n - s)) / law[s - 1]
    u = drawn.worth[:, 0].numpy()
    expected = 30 / 29 * (c.T @ u / 30 - np.outer(c.mean(0), u.mean(0)))
    expected += (ends[1] - ends[0]).numpy() / n
    found = values_of(drawn, ends, weights, law, "adalina")[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def pairs_worth(n: int, seed: int) -> Worth:
    """A game of single examples and of pairs."""
    g = np.random.default_rng(seed)
    single, pair = g.normal(size=(n, 2)), g.normal(size=(n, n, 2))

    def worth(members: frozenset[int]) -> np.ndarray:
        found = np.zeros(2) + sum(single[i] for i in members)
        found += sum(pair[i, j] for i, j in itertools.combinations(sorted(members), 2))
        return np.asarray(found)

    return worth


@pytest.mark.parametrize("cut", ["sizes", "prefixes"])
def test_games_of_pairs_are_exact_but_for_the_ridge(
    cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pairs of examples add cancels between a coalition and its complement."""
    n, weights = 5, weights_of(5, ("shapley",))
    worth = pairs_worth(n, 1)
    drawn, law = some_drawn(n, 40, "regression_msr", cut, worth)
    exact = enumerated(n, worth, weights)
    errors = []
    for ridge in (RIDGE, 1e-9):
        monkeypatch.setattr(sample_reuse, "RIDGE", ridge)
        found = values_of(drawn, ends_of(n, worth), weights, law, "regression_msr").numpy()
        errors.append(float(np.abs(found - exact).max()))
    assert errors[1] < 1e-5 < errors[0] < 0.3 * np.std(exact)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 6),
    kind=st.sampled_from(KINDS),
)
def test_axioms(seed: int, n: int, kind: Reuse) -> None:
    """Efficiency of every unit; names do not matter; values are linear in utilities."""
    worth, weights = random_worth(n, seed % 100), weights_of(n, ("shapley",))
    g = np.random.default_rng(seed)
    law, orders = best_law(weights), draw_orders(n, 8, kind, g)
    if n == 1:
        sizes = torch.zeros(8, 0, dtype=torch.int64)
        drawn = Drawn(orders, sizes, torch.zeros(8, 0, 2, dtype=torch.float64))
    else:
        drawn = drawn_of(orders, draw_sizes(law, 8, kind, g), worth)
    ends = ends_of(n, worth)
    found = values_of(drawn, ends, weights, law, kind)[0]
    torch.testing.assert_close(found.sum(0), ends[1] - ends[0], rtol=0, atol=1e-8)
    names = torch.from_numpy(g.permutation(n))
    renamed = drawn._replace(orders=names[orders])
    torch.testing.assert_close(
        values_of(renamed, ends, weights, law, kind)[0][names], found, rtol=0, atol=1e-8
    )
    mixed = drawn._replace(worth=drawn.worth @ torch.tensor([[2.0], [-3.0]]).double())
    joined = values_of(mixed, ends @ torch.tensor([[2.0], [-3.0]]).double(), weights, law, kind)[0]
    expected = found @ torch.tensor([[2.0], [-3.0]]).double()
    torch.testing.assert_close(joined, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("kind", "count"), [("regression_msr", 2), ("regression_msr", 7)])
def test_units_without_pairs_to_compare_are_refused(kind: Reuse, count: int) -> None:
    with pytest.raises(ConfigError, match="coalitions: found"):
        check_coalitions(kind, count)
    with pytest.raises(ConfigError, match="expected at least 2"):
        check_coalitions("adalina", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_of_few_units_hold_the_value(kind: Reuse) -> None:
    """95 % intervals of 5 units of 32 coalitions, 8 examples; within three standard errors.

    Draws are independent, so the mean coverage over them has a standard error.
    """
    n, units, draws = 8, 5, 40
    worth, weights = random_worth(n), weights_of(n, ("shapley",))
    table = np.array([worth(frozenset(np.flatnonzero(bits).tolist())) for bits in every_set(n)])
    exact, ends, law = enumerated(n, worth, weights)[0], ends_of(n, worth), best_law(weights)
    g, held = np.random.default_rng(0), []
    for _ in range(draws):
        found = []
        for _ in range(units):
            orders, sizes = draw_orders(n, 32, kind, g), draw_sizes(law, 32, kind, g)
            member = orders.argsort(1) < sizes
            u = torch.from_numpy(table)[(member * 2 ** torch.arange(n)).sum(1)][:, None]
            found.append(values_of(Drawn(orders, sizes, u), ends, weights, law, kind)[0].numpy())
        error = np.std(found, axis=0, ddof=1) / units**0.5
        held.append((np.abs(np.mean(found, axis=0) - exact) <= 2.7764 * error).mean())
    assert abs(np.mean(held) - 0.95) <= 3 * np.std(held, ddof=1) / draws**0.5


def every_set(n: int) -> np.ndarray:
    """Membership of example i in set s, where s has bit i."""
    return (np.arange(2**n)[:, None] >> np.arange(n)) & 1
