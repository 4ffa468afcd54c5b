"""A pilot: the root mean square marginal by coalition size, and the law of sizes that follows.

Where the marginals to coalitions of a examples have the root mean square s(a), and computing those
of all examples costs c(a), the error in a given time is least for q(a) proportional to w(a) s(a) /
sqrt(c(a)), with w the weight of the size in the semivalue; several semivalues and utilities are
given equal parts. [Neyman 1934; importance sampling] The pilot's own coalitions are drawn apart and
enter no value, so that the law is fixed before the first draw that counts, and values are unbiased
whatever the law is.

Marginals fall as 1 / a from some size on, which differs from corpus to corpus: no fixed law does
for a thousand examples and for a million.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64

from stages.game.coalitions import Design, outside
from stages.game.game import Game
from stages.game.sums import MarginalSums
from stages.game.utility import Utility

POINTS = 12
"""Coalition sizes that are tried, besides 0."""
REPEATS = 2
"""Coalitions of each size."""
EXAMPLES = 512
"""Most examples whose marginals to a coalition are computed."""
LEAST_SLOPE = -1.25
"""Steepest power of the size that marginals are taken to fall with: none of the few examples may
happen to change a query's class."""
EVERYWHERE = 0.1
"""Share of the draws that goes to sizes in proportion to 1 / (a + 1), whatever the pilot says."""


def pilot_sizes(n: int) -> Int64[np.ndarray, " points"]:
    """The coalition sizes that are tried, ascending; each leaves examples outside to measure."""
    last = max(0, n - max(1, min(EXAMPLES, n // 4)))
    sizes = np.unique(np.geomspace(1, max(1, last), POINTS).round().astype(np.int64))
    return np.concatenate([[0], sizes[sizes <= last]])


def pilot(
    game: Game, design: Design, utilities: tuple[Utility, ...], generator: np.random.Generator
) -> dict[str, Float[np.ndarray, " points"]]:
    """The root mean square of the marginals of each utility at each of `pilot_sizes`.

    Cost: REPEATS coalitions of each size, with the marginals of EXAMPLES examples. Rounded to a
    thousandth of a power of two, so that the last bits of a sum do not decide which sizes are drawn
    later.
    """
    ones: dict[str, np.ndarray] = {name: np.ones((1, game.n)) for name in utilities}
    mean_squares: dict[str, list[float]] = {name: [] for name in utilities}
    for size in pilot_sizes(game.n):
        tally = MarginalSums(utilities, ones)
        n_marginals = 0
        for _ in range(REPEATS):
            order = torch.from_numpy(generator.permutation(game.n)[: size + EXAMPLES])
            regression = game.regression()
            if size:
                regression.take(order[:size])
            for utility, ids, first, gain in outside(
                game, design, regression, order[size:], int(size), utilities
            ):
                tally.add(utility, ids, first, gain)
            n_marginals += len(order) - int(size)
            tally.close_unit()
        for row, name in enumerate(utilities):
            mean_squares[name].append(float(tally.total_sq[0, row].sum()) / n_marginals)
    return {name: _rounded(np.sqrt(squares)) for name, squares in mean_squares.items()}


def size_law(
    n: int,
    spread: Sequence[Float[np.ndarray, " points"]],
    weights: Float[np.ndarray, "semivalues sizes"],
    cost: Float[np.ndarray, " sizes_and_one"],
) -> Float[np.ndarray, " sizes_and_one"]:
    """q(a), the probability of drawing a coalition of a = 0 to n examples.

    `spread` holds the root mean square marginals of each utility at `pilot_sizes`, `weights` w_k of
    each semivalue, and `cost` the operations of one coalition of each size.
    """
    sizes = np.arange(n + 1.0)
    squares = np.zeros(n + 1)
    for root_mean_squares in spread:
        if not root_mean_squares.any():
            continue
        s = np.exp(np.interp(np.log(sizes + 1), *_logarithms(n, root_mean_squares)))
        for weight in weights:
            # A coalition of all shows examples by their leaving, at the size below.
            score = s * np.append(np.abs(weight), np.abs(weight[-1]))
            squares += (score / score.sum()) ** 2
    everywhere = 1 / (sizes + 1)
    everywhere /= everywhere.sum()
    if not squares.any():
        return everywhere
    law = np.sqrt(squares / cost)
    return np.asarray((1 - EVERYWHERE) * law / law.sum() + EVERYWHERE * everywhere)


def _logarithms(
    n: int, spread: Float[np.ndarray, " points"]
) -> tuple[Float[np.ndarray, " points_and_end"], Float[np.ndarray, " points_and_end"]]:
    """Logarithms of size + 1, and of the spread there, which falls no faster than LEAST_SLOPE.

    `spread` holds root mean square marginals at `pilot_sizes`; beyond the last of these sizes it
    falls as 1 / size.
    """
    log_sizes = np.log(pilot_sizes(n) + 1.0)
    logs = np.log(np.maximum(spread, 1e-300))
    for point in range(1, len(log_sizes)):
        step = log_sizes[point] - log_sizes[point - 1]
        logs[point] = max(logs[point], logs[point - 1] + LEAST_SLOPE * step)
    rest = np.log(n + 1.0) - log_sizes[-1]
    return np.append(log_sizes, log_sizes[-1] + rest), np.append(logs, logs[-1] - rest)


def _rounded(values: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Values rounded to a thousandth of a power of two."""
    positive = values > 0
    logs = np.log2(np.where(positive, values, 1.0)).round(3)
    return np.where(positive, 2.0**logs, 0.0)
