"""KNN-Shapley: speed against peers, and which K finds planted wrong labels.

Speed: embeddings of SST-2 by MiniLM, which are not timed, as unit vectors of 384 numbers; beyond
the real rows vectors drawn from a normal distribution of their mean and covariance, with labels
drawn in their shares. 872 validation rows are the queries. Every contestant has a process of its
own and one thread, within limits of CPU-seconds and memory; who passes them is not asked again with
more examples:

    assay     the stage `knn_shapley`
    halves    the same in two processes, each with half of the queries
    plain     the same values in float64, by an argsort and a few lines of numpy per query
    pydvl     `KNNShapleyValuation`: another game, the same for K = 1 up to a constant, hence K = 1
    cleanlab  `data_shapley_knn`: another game, in which every example is a query of all others

Wrong labels: see `knn_labels.py`. DIR holds sst2, trec and subj, each with train.parquet and
validation.parquet.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.environment import MODEL, ROOT, environment
from benchmarks.finished import run_config
from benchmarks.flags import PEERS as CLEANLAB
from benchmarks.knn_labels import wrong_labels

PYDVL = ("pydvl==0.10.0", "numpy==1.26.4", "scikit-learn==1.9.1")
"""It works with numpy 1 alone."""
CONTESTANTS = ("assay", "halves", "plain", "pydvl", "cleanlab")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with a folder per data set")
    parser.add_argument("--sizes", nargs="*", type=int, default=[5_000, 50_000, 200_000])
    parser.add_argument("--contestants", nargs="+", default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument("--neighbours", type=int, default=10, help="K of the speeds")
    parser.add_argument("--cpu-limit", type=int, default=600, help="CPU-seconds of a contestant")
    parser.add_argument("--memory-limit", type=float, default=12, help="GiB of a contestant")
    parser.add_argument("--datasets", nargs="*", default=["trec", "subj", "sst2"])
    parser.add_argument("--seeds", type=int, default=5, help="draws of wrong labels")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure of the case."""
    source, work = Path(arguments.data).resolve(), Path(arguments.work).resolve() / "knn"
    work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"neighbours": arguments.neighbours}
    if arguments.sizes:
        result["speed"] = Speed(arguments, source / "sst2", work).measure()
        print(markdown(result["speed"]), file=sys.stderr, flush=True)
    for name in arguments.datasets:
        result[name] = wrong_labels(source / name, work / name, arguments.seeds)
        print(json.dumps({name: result[name]}, indent=1), file=sys.stderr, flush=True)
    return result


class Speed:
    """The contestants on ever more examples."""

    def __init__(self, arguments: argparse.Namespace, source: Path, work: Path) -> None:
        self.arguments, self.work = arguments, work
        self.failed: set[str] = set()
        self.data = embedded(source, work)
        self.python = {
            "pydvl": environment("peers-pydvl", PYDVL, is_constrained=False),
            "cleanlab": environment("peers", CLEANLAB),
        }

    def measure(self) -> dict[str, Any]:
        """What each contestant takes and, where the game is the same, how far its values are."""
        found: dict[str, Any] = {"queries": len(self.data["queries"])}
        for n in self.arguments.sizes:
            np.savez(self.work / "data.npz", **grown(self.data, n))
            found[str(n)] = self.one_size()
        return found

    def one_size(self) -> dict[str, Any]:
        """All contestants, one after another."""
        everyone, found = self.arguments.contestants, {}
        k = self.arguments.neighbours
        for name in everyone:
            if name in self.failed:
                found[name] = {"failed": "failed with fewer examples"}
                continue
            # Ours take seconds at most: the median of three.
            rounds = 3 if name in ("assay", "halves") else 1
            timed = [self.time(name, 1 if name == "pydvl" else k) for _ in range(rounds)]
            found[name] = sorted(timed, key=lambda one: one.get("cpu_s", 0))[rounds // 2]
            if "failed" in found[name]:
                self.failed.add(name)
            told = {key: value for key, value in found[name].items() if key != "versions"}
            print(name, json.dumps(told), file=sys.stderr, flush=True)
        if "assay" in everyone and "failed" not in found.get("plain", {"failed": ""}):
            found["assay"]["error"] = distance(self.values("assay", k), self.values("plain", k))
        if "failed" not in found.get("pydvl", {"failed": ""}):
            # Where nobody votes its game is worth 0 and ours 1/2, which all share.
            self.time("assay", 1)
            ours = self.values("assay", 1)
            found["pydvl"]["difference"] = distance(ours + 0.5 / len(ours), self.values("pydvl", 1))
        return found

    def values(self, name: str, k: int) -> np.ndarray:
        """Values that a contestant has left."""
        found: np.ndarray = np.load(self.path(name, k))
        return found

    def path(self, name: str, k: int) -> Path:
        """Where a contestant leaves its values."""
        return self.work / f"values-{name}-{k}.npy"

    def time(self, name: str, k: int) -> dict[str, Any]:
        """CPU-seconds, wall-seconds and memory of one contestant, or why there are none."""
        m = len(self.data["queries"])
        cuts = [(0, m // 2), (m // 2, m)] if name == "halves" else [(0, m)]
        processes = [self.start(name, k, cut) for cut in cuts]
        for process in processes:
            if process.stdout is None or "ready\n" not in process.stdout:
                raise SystemExit(f"knn: {name} ended before it was ready; see above.")
        for process in processes:
            if process.stdin is not None:
                process.stdin.write("go\n")
                process.stdin.flush()
        parts = []
        for process in processes:
            output, _ = process.communicate()
            if process.returncode == -signal.SIGXCPU:
                return {"failed": f"more than {self.arguments.cpu_limit} CPU-seconds"}
            if process.returncode:
                raise SystemExit(f"knn: {name} failed; see above.")
            parts.append(json.loads(output.splitlines()[-1]))
        return {
            "neighbours": k,
            "cpu_s": round(sum(part["cpu_s"] for part in parts), 3),
            "wall_s": round(max(part["wall_s"] for part in parts), 3),
            "loaded_bytes": max(part["loaded_bytes"] for part in parts),
            "peak_bytes": max(part["peak_bytes"] for part in parts),
            "versions": parts[0]["versions"],
            **({"failed": parts[0]["failed"]} if "failed" in parts[0] else {}),
        }

    def start(self, name: str, k: int, cut: tuple[int, int]) -> "subprocess.Popen[str]":
        """A process of one contestant with one thread."""
        settings = {
            "queries": cut,
            "neighbours": k,
            "cpu_s": self.arguments.cpu_limit,
            "memory_bytes": int(self.arguments.memory_limit * 2**30),
            "values": str(self.path(name, k)),
        }
        threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        return subprocess.Popen(
            [
                self.python.get(name, Path(sys.executable)),
                Path(__file__).with_name("knn_contestant.py"),
                "assay" if name == "halves" else name,
                self.work / "data.npz",
                json.dumps(settings),
            ],
            env={**os.environ, **dict.fromkeys(threads, "1"), "PYTHONWARNINGS": "ignore"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def distance(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """The largest and the mean difference of two sets of values, in mean sizes of a value."""
    size = np.abs(expected).mean()
    off = np.abs(found - expected) / size
    return {"max": float(off.max()), "mean": float(off.mean())}


def embedded(source: Path, work: Path) -> dict[str, np.ndarray]:
    """Embeddings and labels of the training and validation rows, as unit vectors."""
    config = {
        "run": str(work / "embedded"),
        "model": {"path": MODEL},
        "corpus": {"path": str(source / "train.parquet"), "id": "id"},
        "queries": {"path": str(source / "validation.parquet"), "id": "id"},
        "stages": {"embedding": {}},
        "ray": {"engine": "in_process"},
    }
    run = run_config(config)
    found = {}
    for role, view, names in (
        ("example", "examples", ("examples", "labels")),
        ("query", "queries", ("queries", "query_labels")),
    ):
        rows = run.sql(
            f"SELECT v.vector, r.label FROM embeddings AS v JOIN {view} AS r "
            f"ON r.{role}_id = v.id WHERE v.role = '{role}' ORDER BY v.id"
        ).fetchall()
        found[names[0]] = unit(np.array([row[0] for row in rows], np.float32))
        found[names[1]] = np.array([row[1] for row in rows])
    return found


def grown(data: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """The same with n examples: the first real ones, then as many drawn ones as are wanting."""
    real, labels = data["examples"][:n], data["labels"][:n]
    g = np.random.default_rng(0)
    missing = n - len(real)
    factor = np.linalg.cholesky(np.cov(real.T) + 1e-8 * np.eye(real.shape[1]))
    noise = g.standard_normal((missing, real.shape[1]), dtype=np.float32)
    drawn = unit((real.mean(0) + noise @ factor.T.astype(np.float32)).astype(np.float32))
    return {
        **data,
        "examples": np.concatenate([real, drawn]),
        "labels": np.concatenate([labels, g.choice(labels, missing)]),
        "n_real": np.array(len(real)),
    }


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def markdown(speed: dict[str, Any]) -> str:
    """The speeds as a table."""
    sizes: Sequence[str] = [size for size in speed if size.isdigit()]
    lines = ["| | " + " | ".join(f"{int(n):,} examples" for n in sizes) + " |"]
    lines.append("|---|" + "--:|" * len(sizes))
    for name in speed[sizes[0]]:
        cells = []
        for size in sizes:
            cell = speed[size][name]
            cells.append(
                cell.get("failed")
                or f"{cell['cpu_s']:.2f} CPU-s, {cell['wall_s']:.2f} s, "
                f"{cell['peak_bytes'] / 2**20:,.0f} MiB"
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
