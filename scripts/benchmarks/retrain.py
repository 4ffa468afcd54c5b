"""How near the values of cheap methods come to Shapley values from real trainings.

Two ways to train MiniLM on rows of SST-2: all of it, and a head alone. The truth is `retrain` on
every s-th prefix of random permutations; beside it stand FreeShap on the NTK (all linear layers, at
the fitted probe) and on the embeddings, closed-form leave-one-out, and G-Shapley, all of them with
permutations of their own: shared ones would share their noise. A correlation with a noisy truth is
too low: it is divided by the root of both reliabilities, which come from split halves of the
permutations (Spearman-Brown). DIR holds train.parquet and validation.parquet. Every round is on
disk once it is done: the same command goes on with an interrupted run. One process, one thread.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from benchmarks.environment import MODEL
from benchmarks.finished import Clock, accuracy, run_config

UTILITIES = ("accuracy", "cross_entropy", "margin")
SPLITS, RESAMPLES = 200, 1000


class Case(NamedTuple):
    """One way to train, and how much of it."""

    n: int
    queries: int
    every: int
    rounds: int
    """Permutations of the truth."""
    rounds_once: int
    """Permutations of G-Shapley."""
    last_blocks: int | str
    training: dict[str, Any]
    max_length: int = 64


CASES = {
    "full": Case(50, 200, 5, 34, 12, "all", {"epochs": 5}, max_length=32),
    "head": Case(500, 400, 25, 600, 400, 0, {}),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with train and validation.parquet")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--share", type=float, default=1.0, help="of the permutations, for a try")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of rows")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Reliabilities and correlations of each case."""
    result: dict[str, Any] = {"seed": arguments.seed, "freeshap_units": 60}
    for name in arguments.cases:
        case = CASES[name]
        wanted = [max(4, round(r * arguments.share)) for r in (case.rounds, case.rounds_once)]
        case = case._replace(rounds=wanted[0], rounds_once=wanted[1])
        work = Path(arguments.work).resolve() / "retrain" / f"{name}-{arguments.seed}"
        result[name] = one_case(case, Path(arguments.data).resolve(), work, arguments.seed)
        print(markdown(name, result[name]), file=sys.stderr, flush=True)
    return result


def one_case(case: Case, source: Path, work: Path, seed: int) -> dict[str, Any]:
    """Everything about one way to train, on one draw of rows."""
    work.mkdir(parents=True, exist_ok=True)
    for name, split, n_rows in (
        ("train", "train", case.n),
        ("queries", "validation", case.queries),
    ):
        table = pq.read_table(source / f"{split}.parquet")
        order = np.random.default_rng(seed).permutation(table.num_rows)
        pq.write_table(table.take(order[:n_rows]), work / f"{name}.parquet")
    once = {"kind": "one_pass"}
    common = {"stage": "retrain", "last_blocks": case.last_blocks, "every": case.every}
    common["utilities"] = list(UTILITIES)
    several = {"utilities": list(UTILITIES), "rounds": 30, "seed": 2}
    clock = Clock()
    finished = run_config(
        {
            "run": str(work / "run"),
            "model": {"path": MODEL, "max_length": case.max_length},
            "corpus": {"path": str(work / "train.parquet"), "id": "id"},
            "queries": {"path": str(work / "queries.parquet"), "id": "id"},
            "ray": {"engine": "in_process"},
            "stages": {
                "kernel_regression": {},
                "freeshap": several,
                "freeshap_embedding": {"stage": "freeshap", "kernel": ["embedding"], **several},
                "leave_one_out": {"utilities": list(UTILITIES)},
                "g_shapley": {**common, "training": once, "rounds": case.rounds_once, "seed": 1},
                "truth": {**common, "training": case.training, "rounds": case.rounds},
            },
        },
        clock,
    )
    correct, loss = finished.sql(
        "SELECT avg(is_correct::INT), avg(loss) FROM outcomes "
        f"WHERE method = 'truth' AND size = {case.n}"
    ).fetchall()[0]
    return {
        **case._asdict(),
        "cpu_s_now": {name: round(cpu_s, 1) for name, cpu_s in clock.cpu_s.items()},
        "trained_on_all": {"accuracy": round(correct, 4), "loss": round(loss, 4)},
        "kernel_accuracy": round(accuracy(finished, "kernel_regression"), 4),
        "utilities": {utility: compared(finished, utility) for utility in UTILITIES},
    }


def compared(run: Any, utility: str) -> dict[str, Any]:
    """Each method against the truth for one utility."""
    truth = units(run, "truth", utility)
    sure = reliability(truth)
    signal = truth.mean(0)
    found: dict[str, Any] = {"reliability": sure}
    for method in ("freeshap", "freeshap_embedding", "g_shapley"):
        sampled = units(run, method, utility)
        found[method] = against(signal, sampled.mean(0), sure, reliability(sampled))
    rows = run.sql(
        "SELECT value FROM shapley WHERE method = 'leave_one_out' "
        f"AND utility = '{utility}' ORDER BY example_id"
    ).fetchall()
    values = np.array([row[0] for row in rows])
    found["leave_one_out"] = against(signal, values, sure, {"pearson": 1.0, "spearman": 1.0})
    return found


def units(run: Any, method: str, utility: str) -> np.ndarray:
    """Values from each round alone: (rounds, examples)."""
    rows = run.sql(
        "SELECT total / n_units FROM tables.shapley_round "
        f"WHERE method = '{method}' AND utility = '{utility}' ORDER BY round, example_id"
    ).fetchall()
    n = run.sql("SELECT count(*) FROM examples").fetchall()[0][0]
    return np.array([row[0] for row in rows]).reshape(-1, n)


def reliability(sampled: np.ndarray) -> dict[str, float]:
    """Of the mean over all rounds, from the correlation of halves: 2 r / (1 + r).

    The halves' mean correlation over random splits; Spearman and Brown, 1910.
    """
    generator = np.random.default_rng(0)
    half = len(sampled) // 2
    found = {}
    for name, correlation in CORRELATIONS.items():
        drawn = []
        for _ in range(SPLITS):
            order = generator.permutation(len(sampled))
            first, second = sampled[order[:half]], sampled[order[half : 2 * half]]
            drawn.append(correlation(first.mean(0), second.mean(0)))
        between = float(np.mean(drawn))
        found[name] = round(2 * between / (1 + between), 4)
    return found


def against(
    truth: np.ndarray, values: np.ndarray, sure: dict[str, float], own: dict[str, float]
) -> dict[str, Any]:
    """Correlations as they are and corrected for noise; an interval over resampled examples.

    No correction where a reliability is not positive.
    """
    generator = np.random.default_rng(0)
    picked = [generator.integers(len(truth), size=len(truth)) for _ in range(RESAMPLES)]
    found: dict[str, Any] = {"reliability": own}
    for name, correlation in CORRELATIONS.items():
        plain = correlation(truth, values)
        resampled = [correlation(truth[rows], values[rows]) for rows in picked]
        noise = sure[name] * own[name]
        is_known = sure[name] > 0 and own[name] > 0
        found[name] = {
            "plain": round(plain, 4),
            "interval": [round(float(q), 4) for q in np.quantile(resampled, (0.025, 0.975))],
            "corrected": round(plain / noise**0.5, 4) if is_known else None,
        }
    return found


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation; 0 where one side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of ranks, those of equal values being their mean."""
    from stages.metrics.ranks import ranks

    return pearson(ranks(a), ranks(b))


CORRELATIONS = {"pearson": pearson, "spearman": spearman}


def markdown(name: str, found: dict[str, Any]) -> str:
    """Pearson and Spearman, plain and corrected, per utility and method."""
    trained = found["trained_on_all"]
    lines = [
        f"{name}: n {found['n']}, {found['queries']} queries, {found['rounds']} permutations, "
        f"every {found['every']}; accuracy {trained['accuracy']}, loss {trained['loss']}",
        "| utility | reliability | method | Pearson | corrected | Spearman | corrected |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    for utility, each in found["utilities"].items():
        for method in ("freeshap", "freeshap_embedding", "g_shapley", "leave_one_out"):
            cells = []
            for kind in CORRELATIONS:
                one = each[method][kind]
                cells += [f"{one['plain']:.2f} {one['interval']}", f"{one['corrected']}"]
            sure = each["reliability"]["pearson"]
            lines.append(f"| {utility} | {sure} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)
