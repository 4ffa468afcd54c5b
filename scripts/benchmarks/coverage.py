"""How often 95 % intervals of Shapley values hold the exact value, with few units.

Sparse games, in which a query sees the examples of its own group alone: one-hot vectors, groups of
20, two queries each, two classes. The exact values are sums over the sizes of coalitions of a
group. Every unit is drawn once, and draws of 8, 24 and 100 units are cut from all of them, so
that draws of one size are independent of each other. Examples of a draw are not.

Without data: `bench.py coverage --sizes 60 300 --units 960`. A unit of 300 examples takes a tenth
of a second to a second.
"""

import argparse
import itertools
import math
from typing import Any

import numpy as np
import torch
from benchmarks.shapley_game import STRATEGIES

UTILITIES = ("accuracy", "cross_entropy", "margin")
GROUP, RIDGE, SURVIVAL = 20, 1.0, 20.0
DRAWS_OF = (8, 24, 100)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sizes of the games, and how many units are drawn."""
    parser.add_argument("--sizes", type=int, nargs="+", default=[60, 300])
    parser.add_argument("--units", type=int, default=960, help="units of permutations")
    parser.add_argument("--default_units", type=int, default=240, help="units of the default")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Coverage by size, sampling, utility and number of units, without and with the prior."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for n in arguments.sizes:
        game, exact = sparse_game(n)
        for name, fields in STRATEGIES.items():
            if name != "paper":
                n_units = arguments.default_units if name == "stratified" else arguments.units
                units, n_prior = drawn(game, fields, n_units)
                found[f"{n} {name}"] = table(units, exact, n_prior)
                print(n, name, found[f"{n} {name}"], flush=True)
    return {"units": arguments.units, "default_units": arguments.default_units, "coverage": found}


def worth(own: int, other: int) -> np.ndarray:
    """The utilities of a query whose group has so many members of each class."""
    output = (own - other) / 2 / (own + other + RIDGE)
    accuracy = (own > other) + (own == other) / 2
    return np.array([accuracy, -math.log1p(math.exp(-2 * output)), 2 * output])


def value(own: int, other: int, is_own: bool) -> np.ndarray:
    """Of an example of the query's class, or not, beside so many of its group in each class."""
    total = np.zeros(len(UTILITIES))
    for a, b in itertools.product(range(own + 1), range(other + 1)):
        share = math.comb(own, a) * math.comb(other, b) / math.comb(own + other, a + b)
        joined = worth(a + is_own, b + (not is_own))
        total += share / (own + other + 1) * (joined - worth(a, b))
    return total


def sparse_game(n: int) -> tuple[Any, np.ndarray]:
    """The game, and its exact values (utilities, examples)."""
    from stages.game.game import Game
    from stages.game.prefix_cholesky import PrefixCholesky
    from stages.game.utility import Judge

    n_groups, g = n // GROUP, torch.Generator().manual_seed(0)
    group, query_group = torch.arange(n) % n_groups, torch.arange(2 * n_groups) % n_groups
    rates = torch.rand(n_groups, generator=g)
    label = (torch.rand(n, generator=g) < rates[group]).long()
    query_label = (torch.rand(len(query_group), generator=g) < rates[query_group]).long()
    exact = np.zeros((len(UTILITIES), n))
    for t, i in itertools.product(range(len(query_group)), range(n)):
        if group[i] == query_group[t]:
            mates = (group == group[i]) & (torch.arange(n) != i)
            own = int((label[mates] == query_label[t]).sum())
            is_own = bool(label[i] == query_label[t])
            exact[:, i] += value(own, GROUP - 1 - own, is_own) / len(query_group)
    kernel, judge = (group[:, None] == group).double(), Judge(query_label, 2)
    to_queries = (group[:, None] == query_group).double() * judge.signs()
    goal = (label[:, None] - 0.5).double()
    return Game(n, lambda: PrefixCholesky(kernel, to_queries, goal, RIDGE), judge), exact


def drawn(game: Any, fields: dict[str, Any], n_units: int) -> tuple[np.ndarray, int]:
    """The estimates of single units (units, utilities, examples), and their `n_prior`."""
    from stages.game.sampling import Valuation
    from stages.game.sums import MarginalSums

    stage = Valuation(utilities=UTILITIES, survival=SURVIVAL, **fields)
    design, ends = stage.design(game), game.ends(UTILITIES)
    weights, units = stage.weights(game, design), []
    for index in range(n_units):
        tally = MarginalSums(UTILITIES, weights)
        stage.sample(game, design, tally, 1, index, ends)
        units.append(tally.total[0].numpy())
    return np.stack(units), stage.n_prior(game.n)


def table(units: np.ndarray, exact: np.ndarray, n_prior: int) -> dict[str, Any]:
    """Coverage of each utility without and with the prior, by the number of units in a draw."""
    from stages.game.uncertainty import moderated, student_t_quantile

    rows: dict[str, Any] = {}
    for size in DRAWS_OF:
        n_draws = len(units) // size
        draws = units[: n_draws * size].reshape(n_draws, size, *units.shape[1:])
        if n_draws < 2:
            continue
        mean, variance = draws.mean(1), draws.var(1, ddof=1)
        far = student_t_quantile(0.975, size - 1)
        rows[str(size)] = {"draws": n_draws}
        for name, prior in (("alone", 0), ("stored", n_prior)):
            error = np.sqrt(moderated(variance, size, prior) / size)
            held = (np.abs(mean - exact) <= far * error + 1e-12).mean((0, 2))
            rows[str(size)][name] = dict(zip(UTILITIES, held.round(3).tolist(), strict=True))
    return rows
