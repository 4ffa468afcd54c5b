"""Part `coverage` of the case `shapley`: intervals and biases, by enumeration of ten examples."""

import math
from typing import Any

import numpy as np
import torch
from benchmarks.shapley_game import STRATEGIES, UTILITIES


def coverage(n_intervals: int = 400, n_units: int = 24, n: int = 10) -> dict[str, float]:
    """Share of 95 % intervals that hold the exact value: ten examples, three utilities."""
    from stages.game import Game
    from stages.kernel import one_hot
    from stages.prefix_cholesky import PrefixCholesky
    from stages.stopping import student_t_quantile
    from stages.tally import Tally
    from stages.utility import Judge, fitted
    from stages.valuation import Valuation

    drawn = torch.Generator().manual_seed(0)
    rows = torch.randn(n, 6, dtype=torch.float64, generator=drawn)
    queries = torch.randn(40, 6, dtype=torch.float64, generator=drawn)
    judge = Judge((queries[:, 0] > 0).long(), 2)
    goal = fitted(one_hot((rows[:, 0] > 0).long(), 2) - 0.5)
    kernel = rows @ rows.T
    game = Game(
        n, lambda: PrefixCholesky(kernel, rows @ queries.T * judge.signs(), goal, 0.5), judge
    )
    exact = enumerated(game)
    far, found = student_t_quantile(0.975, n_units - 1), {}
    for name, fields in STRATEGIES.items():
        if name == "paper":
            continue
        more = {"survival": 6.0} if name == "random_truncation" else {}
        wanted = Valuation(utilities=UTILITIES, **fields, **more)
        held = []
        for index in range(n_intervals):
            tally = Tally(UTILITIES, wanted.weights(game))
            wanted.sample(game, tally, n_units, index, game.ends(UTILITIES))
            mean = tally.total[0].numpy() / n_units
            variance = (tally.total_sq[0].numpy() - n_units * mean**2) / (n_units - 1) / n_units
            held.append(np.abs(mean - exact) <= far * np.sqrt(np.maximum(variance, 0)) + 1e-12)
        found[name] = float(np.mean(held))
    return found


def enumerated(game: Any) -> np.ndarray:
    """Shapley values by all subsets."""
    n, worth = game.n, {}
    for mask in range(2**n):
        regression = game.regression()
        some = torch.tensor([i for i in range(n) if mask >> i & 1], dtype=torch.int64)
        if len(some):
            regression.take(some)
        worth[mask] = np.array([float(game.measure(u)(regression.outputs)) for u in UTILITIES])
    values = np.zeros((len(UTILITIES), n))
    for mask, value in worth.items():
        size = mask.bit_count()
        for i in range(n):
            if not mask >> i & 1:
                weight = 1 / n / math.comb(n - 1, size)
                values[:, i] += weight * (worth[mask | 1 << i] - value)
    return values
