"""95 % intervals hold the exact value as often as they say, of sparse games, with few units.

Examples are one-hot vectors in groups of 12, so that a value is a sum over the sizes of coalitions
of its own group. That is what intervals find hard: most of what an example is worth, it is worth
where it comes early.
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.game.game import Game
from stages.game.prefix_cholesky import PrefixCholesky
from stages.game.sampling import Valuation
from stages.game.sums import MarginalSums
from stages.game.uncertainty import student_t_quantile
from stages.game.utility import Judge

GROUPS, SIZE, M, RIDGE = 5, 12, 20, 1.0
N = GROUPS * SIZE
UTILITIES = ("accuracy", "cross_entropy")
DRAWS, UNITS = 40, 8


def worth(own: int, other: int) -> np.ndarray:
    """Accuracy and cross-entropy of a query whose group has so many members of each class."""
    output = (own - other) / 2 / (own + other + RIDGE)
    accuracy = (own > other) + (own == other) / 2
    return np.array([accuracy, -math.log1p(math.exp(-2 * output))])


def value(own: int, other: int) -> np.ndarray:
    """Of a further example of the query's class, beside so many of its group in each class."""
    total = np.zeros(2)
    for a, b in itertools.product(range(own + 1), range(other + 1)):
        share = math.comb(own, a) * math.comb(other, b) / math.comb(own + other, a + b)
        total += share / (own + other + 1) * (worth(a + 1, b) - worth(a, b))
    return total


def harm(own: int, other: int) -> np.ndarray:
    """Of a further example of the other class."""
    total = np.zeros(2)
    for a, b in itertools.product(range(own + 1), range(other + 1)):
        share = math.comb(own, a) * math.comb(other, b) / math.comb(own + other, a + b)
        total += share / (own + other + 1) * (worth(a, b + 1) - worth(a, b))
    return total


def sparse_game() -> tuple[Game, np.ndarray]:
    """The game, and the exact values (utilities, examples)."""
    g = torch.Generator().manual_seed(0)
    group, query_group = torch.arange(N) % GROUPS, torch.arange(M) % GROUPS
    label, query_label = (torch.randint(2, (rows,), generator=g) for rows in (N, M))
    exact = np.zeros((2, N))
    for t, i in itertools.product(range(M), range(N)):
        if group[i] == query_group[t]:
            mates = (group == group[i]) & (torch.arange(N) != i)
            own = int((label[mates] == query_label[t]).sum())
            one = value if label[i] == query_label[t] else harm
            exact[:, i] += one(own, SIZE - 1 - own) / M
    kernel = (group[:, None] == group).double()
    judge = Judge(query_label, 2)
    to_queries: Tensor = (group[:, None] == query_group).double() * judge.signs()
    goal = label[:, None] - 0.5
    return Game(N, lambda: PrefixCholesky(kernel, to_queries, goal.double(), RIDGE), judge), exact


@pytest.mark.parametrize(
    ("fields", "orders"),
    [
        ({"sampling": "uniform"}, 1),
        ({"sampling": "uniform", "truncation": "random", "survival": 12.0}, 1),
        ({"sampling": "paired"}, 2),
    ],
    ids=["permutations", "truncated", "pairs"],
)
def test_intervals_of_few_units_hold_the_value(fields: dict[str, Any], orders: int) -> None:
    """40 draws of 8 units. Draws are independent, so the mean over them has a standard error.

    Coverage is to be 0.95 less 1 %, and less three of these errors; it may be more, as those of
    permutations are wide on purpose. Without the variance of the other examples single permutations
    are beyond that.
    """
    game, exact = sparse_game()
    stage = Valuation(utilities=UTILITIES, ridge=RIDGE, **fields)
    n_prior, far = stage.n_prior(N), student_t_quantile(0.975, UNITS - 1)
    assert n_prior == 16 // orders
    design, ends = stage.design(game), game.ends(UTILITIES)
    weights = stage.weights(game, design)
    with_prior, alone = [], []
    for draw in range(DRAWS):
        tally = MarginalSums(UTILITIES, weights)
        stage.sample(game, design, tally, UNITS, draw, ends)
        for found, prior in ((with_prior, n_prior), (alone, 0)):
            mean, error = (numbers[0].numpy() for numbers in tally.estimates(prior))
            found.append((np.abs(mean - exact) <= far * error + 1e-12).mean())
    doubt = np.std(with_prior, ddof=1) / DRAWS**0.5
    assert np.mean(with_prior) >= 0.94 - 3 * doubt
    if orders == 1:
        assert np.mean(alone) < 0.94 - 3 * np.std(alone, ddof=1) / DRAWS**0.5
