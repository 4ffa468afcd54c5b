"""Part `coverage` of the case `shapley`: intervals and biases, by enumeration of ten examples.

And the bias of the paper's rule on 500 rows, as the mean difference that it makes to permutations.
"""

import json
import math
import sys
from typing import Any

import numpy as np
import torch
from benchmarks.shapley_game import STRATEGIES, UTILITIES, game_of


def coverage(
    rows: dict[str, torch.Tensor], n_intervals: int = 400, n_units: int = 24, n: int = 10
) -> dict[str, Any]:
    """Share of 95 % intervals that hold the exact value, and what is left after all of them.

    The latter for the paper's rule beside lengths drawn at random, one utility at a time, on drawn
    rows and on rows of SST-2.
    """
    game = synthetic(n)
    found: dict[str, Any] = covered(game, n_intervals, n_units)
    for name, played in (("synthetic", game), ("sst2", game_of(rows, n)[0])):
        found[f"bias_{name}"] = biases(played, 40_000)
    found["bias_500"] = paired_bias(game_of(rows, 500)[0])
    print(json.dumps(found), file=sys.stderr)
    return found


def synthetic(n: int) -> Any:
    """A game of rows drawn at random, two classes, 40 queries."""
    from stages.game.game import Game
    from stages.game.prefix_cholesky import PrefixCholesky
    from stages.game.utility import Judge, fitted
    from stages.reading.supervision import one_hot

    drawn = torch.Generator().manual_seed(0)
    rows = torch.randn(n, 6, dtype=torch.float64, generator=drawn)
    queries = torch.randn(40, 6, dtype=torch.float64, generator=drawn)
    judge = Judge((queries[:, 0] > 0).long(), 2)
    goal = fitted(one_hot((rows[:, 0] > 0).long(), 2) - 0.5)
    kernel = rows @ rows.T
    return Game(
        n, lambda: PrefixCholesky(kernel, rows @ queries.T * judge.signs(), goal, 0.5), judge
    )


def covered(game: Any, n_intervals: int, n_units: int) -> dict[str, float]:
    """Share of the intervals of unbiased strategies that hold the exact value."""
    from stages.game.sampling import Valuation
    from stages.game.sums import MarginalSums
    from stages.game.uncertainty import student_t_quantile

    exact = shapley(worths(game))
    far, found = student_t_quantile(0.975, n_units - 1), {}
    for name, fields in STRATEGIES.items():
        if name == "paper":
            continue
        more = {"survival": 6.0} if name == "random_truncation" else {}
        wanted = Valuation(utilities=UTILITIES, **fields, **more)
        design = wanted.design(game)
        held = []
        for index in range(n_intervals):
            tally = MarginalSums(UTILITIES, wanted.weights(game, design))
            wanted.sample(game, design, tally, n_units, index, game.ends(UTILITIES))
            estimates = tally.estimates(wanted.n_prior(game.n))
            mean, error = (numbers[0].numpy() for numbers in estimates)
            held.append(np.abs(mean - exact) <= far * error + 1e-12)
        found[name] = float(np.mean(held))
    return found


def biases(game: Any, n_permutations: int) -> dict[str, dict[str, dict[str, float]]]:
    """How far permutations that are cut short end from the exact values, by utility and rule.

    bias, stderr: of the mean of all permutations, root mean square over the examples, over the
        standard deviation of the exact values.
    z: root mean square over the examples of the bias in standard errors; about 1 if there is none.
    expected_bias: of the paper's rule, by enumeration instead of sampling.
    """
    from stages.game.sampling import Valuation
    from stages.game.sums import MarginalSums

    worth = worths(game)
    exact, by_rule = shapley(worth), expected_by_rule(worth, 0.05)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for at, utility in enumerate(UTILITIES):
        spread, found[utility] = exact[at].std(), {}
        for name, more in (("paper", {}), ("random_truncation", {"survival": 3.0})):
            wanted = Valuation(utilities=(utility,), **STRATEGIES[name], **more)
            design = wanted.design(game)
            tally = MarginalSums((utility,), wanted.weights(game, design))
            wanted.sample(game, design, tally, n_permutations, 0, game.ends((utility,)))
            mean, error = (numbers[0, 0].numpy() for numbers in tally.estimates())
            found[utility][name] = {
                "bias": rms(mean - exact[at]) / spread,
                "stderr": rms(error) / spread,
                "z": rms((mean - exact[at]) / error),
            }
        found[utility]["paper"]["expected_bias"] = rms(by_rule[at] - exact[at]) / spread
        found[utility]["paper"]["largest"] = float((np.abs(by_rule[at] - exact[at]) / spread).max())
    return found


def paired_bias(game: Any, n_permutations: int = 300) -> dict[str, dict[str, float]]:
    """What the paper's rule changes on average, along the same permutations with and without it.

    bias, stderr: as in `biases`, over the standard deviation of values by 65 default units.
    slope: by how much of a value the rule changes it, by least squares.
    reach: examples of a permutation that are still reached, on average.
    """
    from stages.game.permutations import walk
    from stages.game.sampling import Valuation
    from stages.game.sums import MarginalSums
    from stages.model.seeded import permutations

    wanted = Valuation(utilities=UTILITIES)
    design = wanted.design(game)
    default = MarginalSums(UTILITIES, wanted.weights(game, design))
    wanted.sample(game, design, default, 65, 0, game.ends(UTILITIES))
    values, found = default.estimates()[0][0].numpy(), {}
    for name, value in zip(UTILITIES, values, strict=True):
        ends, changes, reach = game.ends((name,)), [], []
        for order in permutations(game.n, n_permutations, 1, 0):
            along = []
            for tolerance in (None, 0.05):
                tally = MarginalSums((name,), {name: np.ones((1, game.n))})
                for _ in walk(game, [order], [game.n], (name,), tally, ends, tolerance):
                    tally.close_unit()
                along.append(tally.total[0, 0].numpy())
            changes.append(along[1] - along[0])
            reach.append(int(tally.n_observed.sum()))
        mean = np.mean(changes, 0)
        error = np.std(changes, 0, ddof=1) / np.sqrt(n_permutations)
        found[name] = {
            "bias": rms(mean) / value.std(),
            "stderr": rms(error) / value.std(),
            "slope": float(np.polyfit(value, mean, 1)[0]),
            "reach": float(np.mean(reach)),
        }
    return found


def rms(numbers: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(numbers))))


def worths(game: Any) -> np.ndarray:
    """What every set is worth, (sets, utilities); example i is in set s where s has bit i."""
    found = []
    for mask in range(2**game.n):
        regression = game.regression()
        some = torch.tensor([i for i in range(game.n) if mask >> i & 1], dtype=torch.int64)
        if len(some):
            regression.take(some)
        found.append([float(game.measure(u)(regression.outputs)) for u in UTILITIES])
    return np.array(found)


def shapley(worth: np.ndarray) -> np.ndarray:
    """Shapley values, (utilities, examples), by all sets."""
    n = len(worth).bit_length() - 1
    values = np.zeros((worth.shape[1], n))
    for mask in range(len(worth)):
        for i in range(n):
            if not mask >> i & 1:
                weight = 1 / n / math.comb(n - 1, mask.bit_count())
                values[:, i] += weight * (worth[mask | 1 << i] - worth[mask])
    return values


def expected_by_rule(worth: np.ndarray, tolerance: float) -> np.ndarray:
    """What the paper's rule gives on average over all permutations, each utility alone.

    A permutation goes on from a set to another unless both are worth what all are but for
    `tolerance` of the way there, and the first is not empty: so it is enough to know how often one
    passes through each set.
    """
    n = len(worth).bit_length() - 1
    near = np.abs(worth - worth[-1]) <= tolerance * np.abs(worth[-1] - worth[0])
    near[0] = False
    passing = np.zeros_like(worth)
    passing[0] = 1
    values = np.zeros((worth.shape[1], n))
    for mask in range(len(worth)):  # a set comes after those within it
        for i in range(n):
            if not mask >> i & 1:
                more = mask | 1 << i
                each = passing[mask] / (n - mask.bit_count())
                values[:, i] += each * (worth[more] - worth[mask])
                passing[more] += each * ~(near[mask] & near[more])
    return values
