"""Whole utilities or marginals? Estimators of Shapley values at equal time, on two kinds of game.

    trained  every utility costs a training: the head of `retrain` on embeddings of SST-2 rows, a
             tenth of whose labels are flipped. Equal trainings are equal time but for what the
             estimate itself takes, which is given. Truth: a long run of `regression_msr` with
             coalitions of its own, whose own error is taken off the errors of all.
    kernel   the game of `freeshap` by its prefix engine, on a kernel of the same embeddings, at
             equal CPU time; truth is a long run of the default sampling.

Beside ours stand KernelSHAP (Lundberg and Lee 2017: the weighted regression alone, with the sum of
the values fixed) and regression MSR with gradient-boosted trees for f (`shapley_trees.py`), both
from the coalitions of `regression_msr`. One thread.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from benchmarks.environment import MODEL
from benchmarks.finished import run_config
from benchmarks.shapley import sampled, spearman
from benchmarks.shapley_trees import tree_values

UTILITIES = ("accuracy", "cross_entropy")
N_QUERIES = 200
STRATEGIES: dict[str, dict[str, Any]] = {
    "permutations": {"sampling": "uniform"},
    "paired permutations": {"sampling": "paired"},
    "regression_msr": {"sampling": "regression_msr"},
    "adalina": {"sampling": "adalina"},
    "stratified, the default": {},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the case."""
    parser.add_argument("--data", required=True, help="folder of SST-2")
    parser.add_argument("--parts", nargs="+", default=["trained", "kernel"])
    parser.add_argument("--trained-sizes", nargs="+", type=int, default=[50, 100])
    parser.add_argument("--kernel-sizes", nargs="+", type=int, default=[200, 1000])
    parser.add_argument("--per-example", nargs="+", type=int, default=[8, 32], help="trainings")
    parser.add_argument("--truth-per-example", type=int, default=320, help="trainings of the truth")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5, 2], help="CPU-seconds")
    parser.add_argument("--truth-s", type=float, default=20, help="CPU-seconds of the long run")
    parser.add_argument("--repeats", type=int, default=5)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of each part."""
    torch.set_num_threads(1)
    n = max([*arguments.trained_sizes, *arguments.kernel_sizes])
    rows = embeddings(Path(arguments.data).resolve(), Path(arguments.work).resolve(), n)
    found: dict[str, Any] = {}
    if "trained" in arguments.parts:
        found["trained"] = {n: trained(rows, n, arguments) for n in arguments.trained_sizes}
    if "kernel" in arguments.parts:
        found["kernel"] = {n: kernel(rows, n, arguments) for n in arguments.kernel_sizes}
    return found


def embeddings(source: Path, work: Path, n: int) -> dict[str, torch.Tensor]:
    """Embeddings and labels of `n` training rows drawn once, and of the validation rows."""
    work = work / f"shapley_reuse-{n}"
    work.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", n), ("validation", N_QUERIES)):
        table = pq.read_table(source / f"{name}.parquet")
        chosen = np.random.default_rng(0).permutation(table.num_rows)[:count]
        pq.write_table(table.take(chosen), work / f"{name}.parquet")
    done = run_config(
        {
            "run": str(work / "run"),
            "model": {"path": MODEL},
            "corpus": {
                "path": str(work / "train.parquet"),
                "id": "id",
                "classes": ["negative", "positive"],
                "flip_labels": {"fraction": 0.1, "seed": 0},
            },
            "queries": {"path": str(work / "validation.parquet"), "id": "id"},
            "ray": {"engine": "in_process"},
            "stages": {"embedding": {}},
        }
    )
    rows: dict[str, torch.Tensor] = {}
    for role, view in (("example", "examples"), ("query", "queries")):
        table = done.sql(
            f"SELECT n.vector, r.label FROM tables.embedding AS n JOIN {view} AS r "
            f"ON r.{role}_id = n.id WHERE n.role = '{role}' ORDER BY n.id"
        ).to_arrow_table()
        flat = table["vector"].combine_chunks().flatten().to_numpy().astype(np.float32)
        rows[role] = torch.from_numpy(flat.reshape(table.num_rows, -1))
        rows[f"{role}_label"] = torch.from_numpy(table["label"].to_numpy().astype(np.int64))
    return rows


def trained(rows: dict[str, torch.Tensor], n: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Errors of each estimator after as many trainings, on `n` examples."""
    from stages.game.trainings import coalition_unit, marginals, reused
    from stages.model.learners import vector_learner
    from stages.model.training import Training, prefix_outputs

    vectors = torch.cat([rows["example"][:n], rows["query"]])
    labels = torch.cat([rows["example_label"][:n], rows["query_label"]])
    learner, queries = vector_learner(vectors, 2), n + np.arange(N_QUERIES)

    def outputs(unit: Any) -> torch.Tensor:
        each = [
            prefix_outputs(learner, labels, *(order, visits, sizes, queries), Training(), 2048)
            for order, sizes, visits in unit
        ]
        return torch.stack([logits for walk in each for logits in walk])

    def values(unit: Any, said: torch.Tensor, kind: Any = "regression_msr") -> np.ndarray:
        return reused(unit, said, labels[n:], UTILITIES, kind).numpy()

    def along(order: np.ndarray, visits: np.ndarray) -> np.ndarray:
        sizes = tuple(range(1, n + 1))
        said = torch.stack(
            list(prefix_outputs(learner, labels, order, visits, sizes, queries, Training(), 2048))
        )
        return marginals(said, labels[n:], order, sizes, UTILITIES).numpy()

    def of_units(units: Any, kind: Any) -> np.ndarray:
        return mean([values(unit, said, kind) for unit, said in units])

    def some(kind: Any, g: np.random.Generator) -> tuple[Any, torch.Tensor]:
        unit = coalition_unit(n, 4 * n, kind, g)
        return unit, outputs(unit)

    g, start = np.random.default_rng(10_000), time.process_time()
    units = [values(*some("regression_msr", g)) for _ in range(arguments.truth_per_example // 4)]
    truth = np.mean(units, 0)
    noise = np.var(units, 0, ddof=1).mean(1) / len(units)
    found: dict[str, Any] = {
        "truth": {
            "trainings": len(units) * (4 * n + 1),
            "cpu_s": time.process_time() - start,
            "stderr": dict(zip(UTILITIES, np.sqrt(noise).tolist(), strict=True)),
            "value_sd": dict(zip(UTILITIES, truth.std(1).tolist(), strict=True)),
            "coverage": dict(zip(UTILITIES, covered(np.array(units)).tolist(), strict=True)),
        }
    }
    errors: dict[str, list[tuple[np.ndarray, float]]] = {}

    def judge(name: str, estimate: Callable[..., np.ndarray], *given: Any) -> None:
        start = time.process_time()
        value = estimate(*given)
        spent = time.process_time() - start
        errors.setdefault(name, []).append((value, spent))

    most = max(arguments.per_example)
    for seed in range(arguments.repeats):
        g = np.random.default_rng(seed)
        single = [along(g.permutation(n), g.permutation(n)) for _ in range(most)]
        pairs = []
        for _ in range(most // 2):
            order, visits = g.permutation(n), g.permutation(n)
            pairs += [along(order, visits), along(order[::-1].copy(), visits)]
        reuse = {
            kind: [some(kind, g) for _ in range(most // 4)]
            for kind in ("regression_msr", "adalina")
        }
        for count in arguments.per_example:
            judge(f"permutations_{count}", mean, single[:count])
            judge(f"paired permutations_{count}", mean, pairs[:count])
            for kind, drawn in reuse.items():
                own = drawn[: count // 4]
                judge(f"{kind}_{count}", of_units, own, kind)
            own = reuse["regression_msr"][: count // 4]
            joined = [walk for unit, _ in own for walk in unit[:-1]] + [own[0][0][-1]]
            said = torch.cat([*(said[:-1] for _, said in own), own[0][1][-1:]])
            judge(f"regression_msr, one unit_{count}", values, joined, said)
            of_all = rows_of(joined, said, labels[n:])
            judge(f"KernelSHAP_{count}", kernel_shap, *of_all)
            judge(f"regression_msr, trees_{count}", tree_values, *of_all)
    for name, runs in errors.items():
        squares = np.array([((value - truth) ** 2).mean(1) for value, _ in runs])
        line: dict[str, Any] = {"estimate_cpu_s": float(np.mean([spent for _, spent in runs]))}
        for at, utility in enumerate(UTILITIES):
            each = np.sqrt(np.maximum(squares[:, at] - noise[at], 0))
            line[f"rmse_{utility}"] = float(np.sqrt(max(squares[:, at].mean() - noise[at], 0)))
            line[f"rmse_{utility}_sd"] = float(each.std(ddof=1)) if len(each) > 1 else None
            ranks = [spearman(value[at], truth[at]) for value, _ in runs]
            line[f"spearman_{utility}"] = float(np.mean(ranks))
        found[name] = line
        print(json.dumps({"n": n, "estimator": name, **line}), file=sys.stderr, flush=True)
    return found


def covered(units: np.ndarray, count: int = 5) -> np.ndarray:
    """How often 95 % intervals of `count` units hold the mean of the other units, by utility.

    The error of that mean, from the spread of all units, widens the intervals.
    """
    from stages.game.uncertainty import student_t_quantile

    held, own = [], units.var(0, ddof=1)
    for start in range(0, len(units) - count + 1, count):
        some = units[start : start + count]
        others = np.delete(units, range(start, start + count), 0)
        error = np.sqrt(some.var(0, ddof=1) / count + own / len(others))
        far = student_t_quantile(0.975, count - 1)
        held.append(np.abs(some.mean(0) - others.mean(0)) <= far * error)
    found: np.ndarray = np.mean(held, (0, 2))
    return found


def mean(values: list[np.ndarray]) -> np.ndarray:
    """The mean of several estimates."""
    found: np.ndarray = np.mean(values, 0)
    return found


def rows_of(
    unit: Any, outputs: torch.Tensor, labels: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Members of each training, and utilities, of none first and of all last."""
    from stages.game.utility import mean_utilities

    n = len(unit[0].order)
    member = np.zeros((len(unit) + 1, n))
    for row, (order, (size,), _) in enumerate(unit):
        member[row + 1, order[:size]] = 1
    worth = mean_utilities(torch.cat([torch.zeros_like(outputs[:1]), outputs]), labels, UTILITIES)
    return member, worth.T.numpy()


def kernel_shap(member: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """Shapley values by the weighted regression through none and all, (utilities, examples).

    The weights make the coalitions' own law, 1 / sqrt(s (n - s)), that of KernelSHAP.
    """
    inner, size = member[1:-1], member[1:-1].sum(1)
    n = member.shape[1]
    weight = 1 / np.sqrt(size * (n - size))
    total = worth[-1] - worth[0]
    centred = inner - (size / n)[:, None]
    goal = worth[1:-1] - worth[0] - (size / n)[:, None] * total
    left = centred.T @ (weight[:, None] * centred)
    fit = np.linalg.lstsq(left, centred.T @ (weight[:, None] * goal), rcond=1e-10)[0]
    found: np.ndarray = (fit - fit.mean(0) + total / n).T
    return found


def kernel(rows: dict[str, torch.Tensor], n: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Errors of each way to sample the game of `freeshap` at equal CPU time."""
    game = kernel_game(rows, n)
    long, seconds = sampled(game, {}, arguments.truth_s, 1000)
    truth = (long.total[0] / long.n_units).numpy()
    noise = (long.estimates()[1][0] ** 2).mean(1).numpy()
    found: dict[str, Any] = {
        "truth": {
            "units": long.n_units,
            "cpu_s": seconds,
            "stderr": dict(zip(UTILITIES, np.sqrt(noise).tolist(), strict=True)),
            "value_sd": dict(zip(UTILITIES, truth.std(1).tolist(), strict=True)),
        }
    }
    for budget in arguments.budgets:
        for name, fields in STRATEGIES.items():
            squares, units, spent = [], [], []
            for seed in range(arguments.repeats):
                tally, seconds = sampled(game, fields, budget, seed)
                value = (tally.total[0] / tally.n_units).numpy()
                squares.append(((value - truth) ** 2).mean(1))
                units.append(tally.n_units)
                spent.append(seconds)
            line = {"cpu_s": float(np.mean(spent)), "units": float(np.mean(units))}
            for at, utility in enumerate(UTILITIES):
                each = np.maximum(np.array(squares)[:, at] - noise[at], 0)
                line[f"rmse_{utility}"] = float(np.sqrt(each.mean()))
                line[f"rmse_{utility}_sd"] = float(np.sqrt(each).std(ddof=1))
            found[f"{name}_{budget:g}"] = line
            text = json.dumps({"n": n, "budget": budget, "sampling": name, **line})
            print(text, file=sys.stderr, flush=True)
    return found


def kernel_game(rows: dict[str, torch.Tensor], n: int) -> Any:
    """The game of `n` rows by a kernel of their embeddings, at its automatic ridge."""
    from stages.game.game import Game
    from stages.game.prefix_cholesky import PrefixCholesky
    from stages.game.utility import Judge, fitted
    from stages.reading.supervision import one_hot
    from stages.surrogate.kernel import auto_ridge, mean_diagonal

    examples, queries = (
        torch.nn.functional.normalize(rows[r].double()) for r in ("example", "query")
    )
    examples = examples[:n]
    gram, judge = examples @ examples.T, Judge(rows["query_label"], 2)
    centred = one_hot(rows["example_label"][:n], 2) - 0.5
    damping = auto_ridge(gram, centred)[0] * mean_diagonal(gram)
    to_queries, goal = examples @ queries.T * judge.signs(), fitted(centred)
    return Game(n, lambda: PrefixCholesky(gram, to_queries, goal, damping), judge)
