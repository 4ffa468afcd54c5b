"""Speed and memory of per-row gradients, against peers, a plain training step and a floor.

all-MiniLM-L6-v2 without its pooler, mean over tokens, a linear head of 2 classes, float32, eval
mode; gradients with respect to the weights of all 37 linear layers. Every contestant runs in a
process of its own, one after another, round after round, so that a change of the machine's speed
meets all alike; ratios are taken within a round.

    forward         assay's forward passes alone; the floor is twice their time
    plain           forward and backward of the summed loss, 32 rows a batch, in corpus order
    plain_sorted    the same, rows sorted by length
    bergson         `StreamingGradientCollector`, 16 numbers a side of a layer, 32 rows a batch
    bergson_sorted  the same, rows sorted by length
    assay           the stage `gradient`, 16 numbers a side and 2,048 in all
    assay_default   the same with its default projection
    assay_bfloat16  the default projection, the model in mixed precision; not where the processor
                    would emulate it
    trak, dattri    their projectors for CPUs, on a few rows, once

Before anything is timed, each contestant's gradients without projection are compared with
autograd's on a few rows.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from benchmarks.environment import MODEL, ROOT, environment

PEERS = ("bergson==2.5.1", "traker==0.3.2", "dattri==0.3.0")
OURS = ("assay", "assay_default", "assay_bfloat16")
FAST = ("forward", "plain", "plain_sorted", "bergson", "bergson_sorted", *OURS)
SLOW = ("trak", "dattri")
IN_PEERS = ("bergson", "bergson_sorted", *SLOW)
RIVALS = ("plain", "plain_sorted", "bergson", "bergson_sorted", "floor")
ROWS_OF = ("sst2", "fixed")
FIXED_LENGTH = 64

Measured = dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with train.parquet")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--layouts", nargs="+", default=["1x1", "1x2", "2x1"], help="processes x threads of each"
    )
    parser.add_argument(
        "--rows-of", nargs="+", default=["sst2", "fixed"], choices=["sst2", "fixed"]
    )
    parser.add_argument("--contestants", nargs="+", default=[*FAST, *SLOW], choices=[*FAST, *SLOW])
    parser.add_argument("--slow-rows", type=int, default=16, help="rows of TRAK and dattri")
    parser.add_argument("--compare-rows", type=int, default=8, help="compared with autograd's")
    parser.add_argument("--token-budget", type=int, default=1024)
    parser.add_argument("--shard-size", type=int, default=1000)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure of the case."""
    arguments.contestants = computable(arguments.contestants)
    bench = Bench(arguments)
    result: dict[str, Any] = {
        name: getattr(arguments, name) for name in ("rounds", "token_budget", "shard_size")
    }
    for name in arguments.rows_of:
        result[name] = bench.measure(name)
        print(markdown(name, result[name]), file=sys.stderr)
    return {**result, "versions": bench.versions}


def computable(contestants: Sequence[str]) -> list[str]:
    """The contestants without that in bfloat16 where the processor does not compute in it."""
    from stages.model.precision import has_bfloat16

    kept = [one for one in contestants if one != "assay_bfloat16" or has_bfloat16("cpu")]
    if len(kept) < len(contestants):
        print("features: without assay_bfloat16, which this processor emulates", file=sys.stderr)
    return kept


class Bench:
    """The contestants' settings, and the files that they share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        # Not at the top: scripts/bench.py imports this module for its help alone.
        from benchmarks.by_assay import save_head

        from stages.model.hub import resolve
        from stages.model.spec import ModelSpec

        self.arguments = arguments
        self.folder = Path(arguments.work).resolve() / "features"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = str(resolve(ModelSpec(MODEL, head="random", num_labels=2)))
        self.versions: dict[str, str] = {}
        names = ("token_budget", "shard_size")
        self.settings = {
            "model": self.model,
            "head": str(self.folder / "head.npz"),
            "seed": 0,
            "compare": 0,
            "projection_dim": 2048,
            **{name: getattr(arguments, name) for name in names},
        }
        save_head(self.settings)
        self.python = {"assay": Path(sys.executable)}
        if set(arguments.contestants) & set(IN_PEERS):
            # torchvision and torchaudio may have been built for another torch than the pinned one,
            # and transformers then fails to load; nothing here sees or hears.
            self.python["peers"] = environment(
                "peers-features",
                PEERS,
                first=("torch", "transformers"),
                without=("torchvision", "torchaudio"),
            )

    def measure(self, name: str) -> dict[str, Any]:
        """All contestants on one set of rows."""
        arguments = self.arguments
        path = self.folder / f"{name}.npz"
        lengths = save_rows(path, Path(arguments.data), self.model, name, arguments.rows)
        fast = [one for one in FAST if one in arguments.contestants]
        slow = [one for one in SLOW if one in arguments.contestants]
        errors = {one: self.error(one, path) for one in (*fast, *slow)}
        layouts: dict[str, dict[str, list[Measured]]] = {
            layout: {one: [] for one in fast} for layout in arguments.layouts
        }
        for number in range(arguments.rounds):
            for layout, per_contestant in layouts.items():
                for one in fast:
                    measured = self.time(one, path, layout, len(lengths))
                    per_contestant[one].append(measured)
                    log(f"{name}, round {number + 1}, {layout}, {one}", measured)
        result: dict[str, Any] = {
            "rows": len(lengths),
            "tokens": int(lengths.sum()),
            "gradient_error": {one: error for one, error in errors.items() if error is not None},
        }
        for layout, per_contestant in layouts.items():
            result[layout] = summary(per_contestant)
        if fast and len(layouts) > 1:
            result["best_layout"] = {
                one: min(layouts, key=lambda layout: result[layout][one]["wall_s"]["median"])
                for one in fast
            }
        for one in slow:
            measured = self.time(one, path, arguments.layouts[0], arguments.slow_rows)
            log(f"{name}, {arguments.layouts[0]}, {one}", measured)
            result[one] = {
                **measured,
                "cpu_s_per_row": measured["cpu_s"] / measured["rows"],
                "wall_s_per_row": measured["wall_s"] / measured["rows"],
                "cpu_s_extrapolated": measured["cpu_s"] / measured["rows"] * len(lengths),
            }
        return result

    def error(self, one: str, path: Path) -> float | None:
        """How far a contestant's gradients are from autograd's."""
        settings = {**self.settings, "threads": 1, "compare": self.arguments.compare_rows}
        found = self.finish(self.start(one, path, settings))
        self.versions |= found["versions"]
        return found["error"]

    def time(self, one: str, path: Path, layout: str, n_rows: int) -> Measured:
        """One contestant on the first rows, cut into as many runs of rows as it has processes."""
        n_processes, threads = map(int, layout.split("x"))
        edges = [n_rows * part // n_processes for part in range(n_processes + 1)]
        processes = [
            self.start(one, path, {**self.settings, "threads": threads, "start": a, "stop": b})
            for a, b in itertools.pairwise(edges)
        ]
        for process in processes:
            # A library may greet on standard output first.
            if process.stdout is None or "ready\n" not in process.stdout:
                raise SystemExit(f"features: {one} ended before it was ready; see above.")
        for process in processes:
            if process.stdin is not None:
                process.stdin.write("go\n")
                process.stdin.flush()
        found = [self.finish(process) for process in processes]
        return {
            "rows": sum(part["rows"] for part in found),
            "cpu_s": sum(part["cpu_s"] for part in found),
            "wall_s": max(part["wall_s"] for part in found),
            "loaded_bytes": max(part["loaded_bytes"] for part in found),
            "peak_bytes": max(part["peak_bytes"] for part in found),
            "row_bytes": found[0]["row_bytes"],
        }

    def start(self, one: str, path: Path, settings: dict[str, Any]) -> "subprocess.Popen[str]":
        """A process of one contestant, with the thread settings of all."""
        threads = str(settings["threads"])
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        ignored = {"PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false"}
        return subprocess.Popen(
            [
                self.python["peers" if one in IN_PEERS else "assay"],
                Path(__file__).with_name("contestant.py"),
                one,
                path,
                json.dumps(settings),
            ],
            env={**os.environ, **ignored, **dict.fromkeys(names, threads)},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def finish(process: "subprocess.Popen[str]") -> dict[str, Any]:
        """What a process prints last."""
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit("features: a contestant failed; see above.")
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        return found


def save_rows(path: Path, data: Path, model: str, name: str, n_rows: int) -> np.ndarray:
    """Token ids and labels of the first rows, as they are or cut into 64 tokens; their lengths."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
    table = pq.read_table(data / "train.parquet")
    texts, labels = table["text"].to_pylist(), table["label"].to_numpy()
    if name == "fixed":
        ids = np.concatenate(tokenizer(texts, add_special_tokens=False)["input_ids"])
        pieces = [ids[start : start + FIXED_LENGTH] for start in range(0, len(ids), FIXED_LENGTH)]
        rows = [piece for piece in pieces if len(piece) == FIXED_LENGTH]
    else:
        rows = tokenizer(texts[:n_rows], truncation=True, max_length=128)["input_ids"]
    if len(rows) < n_rows:
        raise SystemExit(
            f"features: found {len(rows)} rows in {data}, expected {n_rows}. Lower --rows."
        )
    lengths = np.array([len(row) for row in rows[:n_rows]])
    np.savez(path, ids=np.concatenate(rows[:n_rows]), lengths=lengths, labels=labels[:n_rows])
    return lengths


def summary(per_contestant: dict[str, list[Measured]]) -> dict[str, Any]:
    """Each contestant's figures, and our rates in units of each rival's, round by round."""
    result: dict[str, Any] = {}
    for one, rounds in per_contestant.items():
        result[one] = {
            "cpu_s": spread([r["cpu_s"] for r in rounds]),
            "wall_s": spread([r["wall_s"] for r in rounds]),
            "rows_per_cpu_s": statistics.median(r["rows"] / r["cpu_s"] for r in rounds),
            "rows_per_wall_s": statistics.median(r["rows"] / r["wall_s"] for r in rounds),
            "loaded_bytes": max(r["loaded_bytes"] for r in rounds),
            "peak_bytes": max(r["peak_bytes"] for r in rounds),
            "row_bytes": rounds[0]["row_bytes"],
        }
    for one in OURS:
        ours: dict[str, Any] = {}
        for rival in RIVALS:
            other, factor = ("forward", 2.0) if rival == "floor" else (rival, 1.0)
            if one in per_contestant and other in per_contestant:
                pairs = list(zip(per_contestant[one], per_contestant[other], strict=True))
                ours[rival] = {
                    unit: spread([factor * b[unit] / a[unit] for a, b in pairs])
                    for unit in ("cpu_s", "wall_s")
                }
        result[f"rate_of_{one}"] = ours
    return result


def spread(values: Sequence[float]) -> Measured:
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def log(what: str, measured: Measured) -> None:
    """One line of progress."""
    print(
        f"{what}: {measured['cpu_s']:.2f} CPU-s, {measured['wall_s']:.2f} s, "
        f"{measured['peak_bytes'] / 2**20:.0f} MiB",
        file=sys.stderr,
        flush=True,
    )


def markdown(name: str, result: dict[str, Any]) -> str:
    """The figures of one set of rows as tables, one for each layout."""

    def ranged(figures: Measured, form: Callable[[float], str] = "{:.2f}".format) -> str:
        return f"{form(figures['median'])} ({form(figures['min'])} to {form(figures['max'])})"

    lines = [f"{name}: {result['rows']} rows, {result['tokens']} tokens"]
    for layout, figures in result.items():
        if not isinstance(figures, dict) or "x" not in layout or not layout[0].isdigit():
            continue
        lines += [
            "",
            f"{layout} (processes x threads)",
            "",
            "| | CPU-s | wall s | rows per CPU-s | rows per s | peak MiB | bytes a row |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        for one, found in figures.items():
            if one.startswith("rate_of_"):
                continue
            lines.append(
                f"| {one} | {ranged(found['cpu_s'])} | {ranged(found['wall_s'])} "
                f"| {found['rows_per_cpu_s']:.1f} | {found['rows_per_wall_s']:.1f} "
                f"| {found['peak_bytes'] / 2**20:.0f} | {found['row_bytes']:.0f} |"
            )
        for one in OURS:
            for rival, ratios in figures.get(f"rate_of_{one}", {}).items():
                cpu, wall = ranged(ratios["cpu_s"]), ranged(ratios["wall_s"])
                lines.append(f"\nrate of {one} / {rival}: CPU {cpu}, wall {wall}")
    for one in SLOW:
        if one in result:
            lines.append(
                f"\n{one}: {result[one]['cpu_s_per_row']:.2f} CPU-s a row in one batch of "
                f"{result[one]['rows']:.0f}, {result[one]['peak_bytes'] / 2**20:.0f} MiB"
            )
    return "\n".join(lines)
