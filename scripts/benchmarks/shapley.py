"""Shapley values: speed against references, error against time, coverage, engines, size.

Features are `ntk` of SST-2 rows with a tenth of the labels flipped, at the default probe and
projection, 872 validation queries, one thread; the kernel, the ridge (chosen once, on 2,000 rows)
and the permutations are the same for all contestants.

    permutations  CPU-seconds of one whole permutation, accuracy and cross-entropy: ours; a block
                  inverse as published, a new matrix every step; the same at its best, updated in
                  place by BLAS; and the bare Cholesky factor of LAPACK. References take direct
                  solves below 500 examples and refresh the inverse every 500, as published. Their
                  steps are timed at every size up to 1,000 and beyond at every --every-th. And
                  pyDVL's truncated Monte-Carlo Shapley without truncation, accuracy alone, one
                  Cholesky solve a step (`shapley_pydvl.py`): a whole permutation up to 2,000
                  examples, beyond the sum over one prefix in the middle of every --every.
    error         root mean square error and rank correlation to a long run at equal CPU time: the
                  paper's rule, permutations untruncated, paired, rotated, cut at random lengths,
                  and the default.
    coverage      how often 95 % intervals of a fixed number of units hold the exact value, for ten
                  examples, by enumeration; and the bias of the paper's rule beside that of lengths
                  drawn at random, which have none.
    engines       how far the two engines are apart on the same permutations and coalitions.
    scale         seconds and memory of a permutation beside all queries, and of the pilot and a
                  unit of the default beside their mean, on synthetic features of 512 dimensions, up
                  to 10^6 examples; float32 against float64.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.shapley_engines import engines
from benchmarks.shapley_game import STRATEGIES, UTILITIES, features, game_of
from benchmarks.shapley_permutations import permutation_seconds
from benchmarks.shapley_small import coverage

PARTS = ("permutations", "error", "coverage", "engines", "scale")
REFERENCES = ("published", "in_place", "pydvl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the case."""
    parser.add_argument("--data", required=True, help="folder of SST-2")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[500, 1000, 2000, 5000])
    parser.add_argument("--references", nargs="*", default=list(REFERENCES), choices=REFERENCES)
    parser.add_argument("--every", type=int, default=50, help="steps of a reference that are timed")
    parser.add_argument("--error-rows", type=int, default=2000)
    parser.add_argument("--budgets", nargs="+", type=float, default=[4, 16, 64], help="CPU-seconds")
    parser.add_argument("--truth-s", type=float, default=400, help="CPU-seconds of the long run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engine-rows", type=int, default=2000)
    parser.add_argument("--scale-rows", nargs="+", type=int, default=[10**4, 10**5, 10**6])


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of each part."""
    torch.set_num_threads(1)
    rows = features(Path(arguments.data).resolve(), Path(arguments.work).resolve())
    found: dict[str, Any] = {}
    if "permutations" in arguments.parts:
        found["permutations"] = {
            n: permutation_seconds(rows, n, arguments) for n in arguments.sizes
        }
    if "error" in arguments.parts:
        found["error"] = error_against_time(rows, arguments)
    if "coverage" in arguments.parts:
        found["coverage"] = coverage(rows)
    if "engines" in arguments.parts:
        found["engines"] = engines(rows, arguments.engine_rows)
    if "scale" in arguments.parts:
        found["scale"] = {n: scale(n) for n in arguments.scale_rows}
    return found


def sampled(game: Any, fields: dict[str, Any], budget: float, seed: int) -> tuple[Any, float]:
    """The tally after so many CPU-seconds, and how many it took."""
    from stages.game.sampling import Valuation
    from stages.game.sums import MarginalSums

    wanted = Valuation(utilities=UTILITIES, seed=seed, **fields)
    start, index = time.process_time(), 0
    design, ends = wanted.design(game), game.ends(UTILITIES)
    tally = MarginalSums(UTILITIES, wanted.weights(game, design))
    batch = 16 if wanted.truncation == "random" else 1
    while time.process_time() - start < budget:
        wanted.sample(game, design, tally, batch, index, ends)
        index += 1
    return tally, time.process_time() - start


def error_against_time(
    rows: dict[str, torch.Tensor], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Error of each strategy at each budget, against a long run of the default one."""
    game, *_ = game_of(rows, arguments.error_rows)
    long, seconds = sampled(game, {}, arguments.truth_s, 1000)
    truth = (long.total[0] / long.n_units).numpy()
    spread = long.total_sq[0] / long.n_units - (long.total[0] / long.n_units).square()
    own = (spread.clamp(min=0) / (long.n_units - 1)).mean(1).sqrt().tolist()
    check, _ = sampled(game, STRATEGIES["untruncated"], arguments.truth_s / 4, 1001)
    other = (check.total[0] / check.n_units).numpy()
    found: dict[str, Any] = {
        "n": game.n,
        "truth": {
            "cpu_s": seconds,
            "units": long.n_units,
            "stderr": dict(zip(UTILITIES, own, strict=True)),
            "value_sd": dict(zip(UTILITIES, truth.std(1).tolist(), strict=True)),
            "untruncated_differs_by": dict(
                zip(UTILITIES, np.sqrt(((other - truth) ** 2).mean(1)).tolist(), strict=True)
            ),
        },
    }
    for budget in arguments.budgets:
        for name, fields in STRATEGIES.items():
            runs = []
            for seed in range(arguments.repeats):
                tally, spent = sampled(game, fields, budget, seed)
                values = (tally.total[0] / tally.n_units).numpy()
                runs.append(
                    {
                        "cpu_s": spent,
                        "units": tally.n_units,
                        "rmse": np.sqrt(((values - truth) ** 2).mean(1)),
                        "spearman": [spearman(v, t) for v, t in zip(values, truth, strict=True)],
                    }
                )
            line = {
                "cpu_s": float(np.mean([r["cpu_s"] for r in runs])),
                "units": float(np.mean([r["units"] for r in runs])),
            }
            for at, utility in enumerate(UTILITIES):
                errors = [float(r["rmse"][at]) for r in runs]
                line[f"rmse_{utility}"] = float(np.sqrt(np.mean(np.square(errors))))
                line[f"rmse_{utility}_sd"] = float(np.std(errors))
                line[f"spearman_{utility}"] = float(np.mean([r["spearman"][at] for r in runs]))
            found[f"{name}_{budget:g}"] = line
            print(json.dumps({"budget": budget, "strategy": name, **line}), file=sys.stderr)
    return found


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Correlation of ranks."""
    first, second = (np.argsort(np.argsort(values)) for values in (left, right))
    return float(np.corrcoef(first, second)[0, 1])


def scale(n: int, dim: int = 512, n_queries: int = 872) -> dict[str, float]:
    """A permutation and a default unit on synthetic rows, margin; float32 against float64."""
    from stages.game.game import Game
    from stages.game.least_squares import RecursiveLeastSquares
    from stages.game.permutations import walk
    from stages.game.sampling import Valuation
    from stages.game.sums import MarginalSums
    from stages.game.utility import Judge, LinearJudge
    from stages.model.seeded import permutations

    drawn = torch.Generator().manual_seed(0)
    decay = torch.arange(1, dim + 1) ** -0.5
    rows = torch.randn(n, dim, generator=drawn) * decay
    rows /= rows.norm(dim=1, keepdim=True)
    queries = torch.randn(n_queries, dim, generator=drawn) * decay
    queries /= queries.norm(dim=1, keepdim=True)
    judge = Judge((queries[:, 0] > 0).long(), 2)
    sign = torch.where(rows[:, 0] + 0.3 * torch.randn(n, generator=drawn) > 0, 0.5, -0.5)
    found: dict[str, float] = {}
    outputs = {}
    for dtype in (torch.float32, torch.float64):
        turned = (queries * judge.signs(torch.float32)[:, None]).to(dtype)
        goal = sign[:, None].to(dtype)

        def read(ids: torch.Tensor, dtype: torch.dtype = dtype) -> torch.Tensor:
            return rows[ids].to(dtype)

        def begin(read: Any = read, turned: Any = turned, goal: Any = goal) -> Any:
            return RecursiveLeastSquares(read, turned, goal, 1.0)

        game = Game(n, begin, judge, dim)
        tally = MarginalSums(("margin",), {"margin": np.ones((1, n))})
        start, wall = time.process_time(), time.monotonic()
        order = next(permutations(n, 1, 0, 0))
        for _ in walk(game, [order], [n], ("margin",), tally, torch.zeros(1, 2)):
            tally.close_unit()
        name = str(dtype).removeprefix("torch.")
        found[f"permutation_{name}_cpu_s"] = time.process_time() - start
        found[f"permutation_{name}_wall_s"] = time.monotonic() - wall
        outputs[dtype] = tally.total[0, 0]
        if dtype == torch.float32:
            # As `freeshap` plays it: of two classes one mean query stands for all.
            mean = turned.mean(0, keepdim=True)

            def begin_mean(read: Any = read, mean: Any = mean, goal: Any = goal) -> Any:
                return RecursiveLeastSquares(read, mean, goal, 1.0)

            short = Game(n, begin_mean, LinearJudge(1, 2.0), dim)
            wanted = Valuation(utilities=("margin",))
            start = time.process_time()
            design = wanted.design(short)
            found["pilot_cpu_s"] = time.process_time() - start
            unit = MarginalSums(("margin",), wanted.weights(short, design))
            start = time.process_time()
            wanted.sample(short, design, unit, 1, 0, torch.zeros(1, 2))
            found["unit_cpu_s"] = time.process_time() - start
    difference = outputs[torch.float32] - outputs[torch.float64]
    found["float32_relative_error"] = float(difference.norm() / outputs[torch.float64].norm())
    last = order[-min(n, 10_000) :]
    found["float32_relative_error_at_the_end"] = float(
        difference[last].norm() / outputs[torch.float64][last].norm()
    )
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    print(json.dumps({"n": n, **found}), file=sys.stderr)
    return found
