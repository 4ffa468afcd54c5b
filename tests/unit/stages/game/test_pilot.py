"""The law of coalition sizes, from spreads that are known."""

import numpy as np
import pytest
import torch

from stages.game.coalitions import Design
from stages.game.game import Game
from stages.game.pilot import EVERYWHERE, LEAST_SLOPE, pilot, pilot_sizes, size_law
from stages.game.prefix_cholesky import PrefixCholesky
from stages.game.utility import LinearJudge

ONE = np.ones((1, 1000))
FLAT = np.ones(1001)


@pytest.mark.parametrize("n", [1, 2, 3, 20, 1000, 10**6])
def test_sizes_that_are_tried_leave_somebody_out(n: int) -> None:
    sizes = pilot_sizes(n)
    assert sizes[0] == 0
    assert sizes[-1] < n
    assert (np.diff(sizes) > 0).all()


def test_marginals_that_fall_as_one_over_the_size_give_every_decade_its_share() -> None:
    law = size_law(1000, [1 / (pilot_sizes(1000) + 1.0)], ONE, FLAT)
    expected = 1 / (np.arange(1001) + 1.0)
    np.testing.assert_allclose(law, expected / expected.sum(), rtol=1e-12)


def test_what_costs_more_is_drawn_less() -> None:
    spread = [np.ones(len(pilot_sizes(1000)))]
    cost = np.where(np.arange(1001) < 500, 1.0, 4.0)
    law = size_law(1000, spread, ONE, cost)
    everywhere = 1 / (np.arange(1001) + 1.0)
    law -= EVERYWHERE * everywhere / everywhere.sum()
    assert law[100] == pytest.approx(2 * law[700])
    assert law.sum() == pytest.approx(1 - EVERYWHERE)


def test_a_utility_that_happened_not_to_move_is_still_looked_at() -> None:
    sizes = pilot_sizes(1000)
    spread = np.where(sizes < 100, 1.0, 0.0)
    law = size_law(1000, [spread], ONE, FLAT)
    assert law.min() > 0
    at = int(sizes[sizes >= 100][3])
    last = float(sizes[sizes < 100][-1])
    fallen = ((at + 1) / (last + 1)) ** LEAST_SLOPE
    everywhere = EVERYWHERE / (np.arange(1001) + 1.0) / (1 / (np.arange(1001) + 1.0)).sum()
    assert (law - everywhere)[at] == pytest.approx(fallen * (law - everywhere)[0])


def test_nothing_to_go_by() -> None:
    law = size_law(1000, [np.zeros(len(pilot_sizes(1000)))], ONE, FLAT)
    assert law.sum() == pytest.approx(1)
    assert law.min() > 0


def test_semivalues_weigh_in_alike() -> None:
    """Two that look at halves apart get half of the draws each."""
    halves = np.stack([np.arange(1000) < 500, np.arange(1000) >= 500]).astype(float) * 2
    law = size_law(1000, [np.ones(len(pilot_sizes(1000)))], halves, FLAT)
    law -= EVERYWHERE / (np.arange(1001) + 1.0) / (1 / (np.arange(1001) + 1.0)).sum()
    assert law[:500].sum() == pytest.approx(law[500:].sum(), rel=0.01)


def test_a_pilot_is_the_spread_of_marginals() -> None:
    """Identical features: a marginal at size a is known, y k / ((a k + d)(a k + k + d)) d."""
    n, damping = 40, 0.5
    kernel, to_queries = (torch.ones(n, m, dtype=torch.float64) for m in (n, 1))
    targets = torch.ones(n, 1, dtype=torch.float64)
    game = Game(n, lambda: PrefixCholesky(kernel, to_queries, targets, damping), LinearJudge(1))
    design = Design(n, np.full(n + 1, 1 / (n + 1)), 8, 1, 1)
    found = pilot(game, design, ("loss",), np.random.default_rng(0))["loss"]
    a = pilot_sizes(n)
    expected = damping / ((a + damping) * (a + 1 + damping))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
