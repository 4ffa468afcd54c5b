"""Part `engines` of the case `shapley`: how far the two engines are apart on real features.

`prefix_cholesky` in float64 against `least_squares` in float64 and in float32, on the same
permutations and coalitions. Feature vectors of n examples span n dimensions at most: both engines
are given them in an orthonormal basis of that span, where they have n numbers instead of 8,192, and
the same products with each other and with the queries.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from benchmarks.shapley_game import drawn, ridge_of

ENGINE_UTILITIES = ("accuracy", "cross_entropy", "margin")


def engines(
    rows: dict[str, torch.Tensor], n: int, ridges: tuple[float | None, ...] = (None, 0.01)
) -> dict[str, Any]:
    """Differences of marginals along two permutations, and of values of a default round.

    At the automatic ridge, and at the least at which float32 is trusted.
    """
    chosen = drawn(rows)[:n]
    basis, triangle = torch.linalg.qr(rows["example"][chosen].T)
    examples, queries = triangle.T.contiguous(), rows["query"] @ basis
    kernel = examples @ examples.T
    direct = rows["example"][chosen] @ rows["example"][chosen].T
    found: dict[str, Any] = {
        "n": n,
        "dim": examples.shape[1],
        "kernel_error": float((kernel - direct).abs().max()),
    }
    for ridge in ridges:
        used = ridge_of(rows) if ridge is None else ridge
        found[f"ridge_{used:.3g}"] = one_ridge(rows, chosen, examples, queries, kernel, used)
    return found


def one_ridge(
    rows: dict[str, torch.Tensor],
    chosen: np.ndarray,
    examples: torch.Tensor,
    queries: torch.Tensor,
    kernel: torch.Tensor,
    ridge: float,
) -> dict[str, Any]:
    """Both engines at one ridge."""
    from stages.game.game import Game
    from stages.game.least_squares import RecursiveLeastSquares
    from stages.game.prefix_cholesky import PrefixCholesky
    from stages.game.utility import Judge, fitted
    from stages.reading.supervision import one_hot
    from stages.surrogate.kernel import mean_diagonal

    judge = Judge(rows["query_label"], 2)
    turned = queries * judge.signs()[:, None]
    to_queries = examples @ turned.T
    goal = fitted(one_hot(rows["example_label"][chosen], 2) - 0.5)
    damping = ridge * mean_diagonal(kernel)

    def by_features(dtype: torch.dtype) -> Any:
        some, asked, wanted = examples.to(dtype), turned.to(dtype), goal.to(dtype)
        return lambda: RecursiveLeastSquares(lambda ids: some[ids], asked, wanted, damping)

    # No `dim`, so that both engines have the law of the sizes, and hence the coalitions, of one.
    begin = {
        "prefix_cholesky": lambda: PrefixCholesky(kernel, to_queries, goal, damping),
        "float64": by_features(torch.float64),
        "float32": by_features(torch.float32),
    }
    numbers, seconds = {}, {}
    for name, regression in begin.items():
        start = time.process_time()
        numbers[name] = measured(Game(len(chosen), regression, judge))
        seconds[name] = time.process_time() - start
    found: dict[str, Any] = {"cpu_s": seconds}
    for name in ("float64", "float32"):
        found[name] = {
            kind: {
                utility: apart(numbers[name][kind][at], numbers["prefix_cholesky"][kind][at])
                for at, utility in enumerate(ENGINE_UTILITIES)
            }
            for kind in ("marginals", "values")
        }
    print(json.dumps({"ridge": ridge, **found}), file=sys.stderr)
    return found


def measured(game: Any) -> dict[str, np.ndarray]:
    """Marginals (utilities, two permutations of all examples) and values (utilities, examples)."""
    from stages.game.permutations import walk
    from stages.game.sampling import Valuation
    from stages.game.sums import MarginalSums
    from stages.model.seeded import permutations

    ones = {name: np.ones((1, game.n)) for name in ENGINE_UTILITIES}
    none, marginals = torch.zeros(len(ENGINE_UTILITIES), 2), []
    for order in permutations(game.n, 2, 0, 0):
        tally = MarginalSums(ENGINE_UTILITIES, ones)
        for _ in walk(game, [order], [game.n], ENGINE_UTILITIES, tally, none):
            tally.close_unit()
        marginals.append(tally.total[0].numpy())
    wanted = Valuation(utilities=ENGINE_UTILITIES)
    design = wanted.design(game)
    tally = MarginalSums(ENGINE_UTILITIES, wanted.weights(game, design))
    wanted.sample(game, design, tally, 2, 0, none)
    return {"marginals": np.concatenate(marginals, 1), "values": tally.total[0].numpy() / 2}


def apart(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """How far numbers are from those expected.

    relative: the largest difference, each over the larger of its two numbers; 0 where both are 0.
    of_mean: the largest difference in mean sizes of a number.
    different: the share of numbers that differ by more than a millionth of that mean size.
    """
    off, size = np.abs(found - expected), np.abs(expected).mean()
    larger = np.maximum(np.abs(found), np.abs(expected))
    return {
        "relative": float(np.divide(off, larger, out=np.zeros_like(off), where=larger > 0).max()),
        "of_mean": float(off.max() / size),
        "different": float((off > 1e-6 * size).mean()),
    }
