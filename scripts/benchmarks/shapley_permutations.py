"""Part `permutations` of the case `shapley`: one whole permutation by ours and by references."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.environment import ROOT, environment
from benchmarks.knn import PYDVL
from benchmarks.shapley_game import UTILITIES, game_of

REFRESH = 500
WHOLE = 2000
"""Examples up to which pyDVL goes through a whole permutation."""


def permutation_seconds(
    rows: dict[str, torch.Tensor], n: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """CPU-seconds of one permutation of each contestant, and how far their utilities differ."""
    from stages.model.seeded import permutations

    game, kernel, to_queries, goal, damping = game_of(rows, n)
    order = next(permutations(n, 1, 0, 0))
    found: dict[str, Any] = {}

    def lapack() -> None:
        matrix = kernel.clone()
        matrix.diagonal().add_(damping)
        torch.linalg.cholesky(matrix)

    found["lapack_cholesky"] = best_of(lapack, 3)
    values: list[np.ndarray] = []
    found["assay"] = best_of(lambda: values.append(ours(game, order)), 3)
    for name in arguments.references:
        if name == "pydvl":
            found |= pydvl(game, kernel, to_queries, goal, damping, order, arguments)
            continue
        steps = {"published": published, "in_place": in_place}[name]
        seconds, error = stepped(
            steps(kernel, to_queries, goal, damping, order),
            game,
            values[0],
            order,
            arguments.every,
        )
        found[name], found[f"{name}_error"] = seconds, error
    for name in ("lapack_cholesky", *arguments.references):
        found[f"{name}_over_assay"] = found[name] / found["assay"]
    print(json.dumps({"n": n, **found}), file=sys.stderr)
    return found


def pydvl(
    game: Any,
    kernel: torch.Tensor,
    to_queries: torch.Tensor,
    goal: torch.Tensor,
    damping: float,
    order: torch.Tensor,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """The same of `shapley_pydvl.py`: whole where that is short, and from some prefixes.

    The errors are differences from ours: of marginals along pyDVL's own permutation, or of the
    utilities of the prefixes.
    """
    python = environment("peers-pydvl", PYDVL, is_constrained=False)
    work = Path(arguments.work).resolve()
    given, left = work / "shapley-game.npz", work / "shapley-pydvl.npz"
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

    def called(every: int) -> dict[str, Any]:
        np.savez(
            given,
            kernel=kernel.numpy(),
            to_queries=(to_queries * game.judge.signs()).numpy(),
            damping=damping,
            labels=(goal[:, 0] > 0).long().numpy(),
            query_labels=game.judge.labels.numpy(),
            order=order.numpy(),
            every=every,
        )
        subprocess.run(
            [python, Path(__file__).with_name("shapley_pydvl.py"), given, left],
            env={**os.environ, **dict.fromkeys(threads, "1"), "PYTHONWARNINGS": "ignore"},
            cwd=ROOT,
            check=True,
        )
        with np.load(left) as saved:
            return dict(saved)

    sampled, found = called(arguments.every), {}
    reached = game.ends(("accuracy",))[0, 0].item() + ours(game, order)[0][order].cumsum()
    off = reached[sampled["sizes"] - 1] - sampled["utilities"]
    found["pydvl_version"] = str(sampled["version"])
    found["pydvl_sampled"] = float(sampled["cpu_s"])
    found["pydvl_utility_error"] = float(np.abs(off).max())
    if game.n <= WHOLE:
        whole = called(1)
        found["pydvl_whole"] = float(whole["cpu_s"])
        mine = ours(game, torch.from_numpy(whole["order"]))[0]
        found["pydvl_marginal_error"] = float(np.abs(mine - whole["marginals"]).max())
    found["pydvl"] = found.get("pydvl_whole", found["pydvl_sampled"])
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
    from stages.game.permutations import walk
    from stages.game.sums import MarginalSums

    tally = MarginalSums(UTILITIES, {name: np.ones((1, game.n)) for name in UTILITIES})
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
