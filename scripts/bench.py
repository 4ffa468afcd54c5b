"""Runs one named benchmark and appends its result to `scripts/benchmarks/results.jsonl`.

    .venv/bin/python scripts/bench.py flags --data DIR       wrong labels found, against a peer
    .venv/bin/python scripts/bench.py noise --data ALL      the same under every kind of noise
    .venv/bin/python scripts/bench.py reviews --data ALL    flags while a person reviews them
    .venv/bin/python scripts/bench.py answers --data ALL    bad answers found in a pool of chats
    .venv/bin/python scripts/bench.py chat_scale --data ALL  what chats cost as they grow
    .venv/bin/python scripts/bench.py preferences --data ALL
                                                             wrong orders of pairs of answers
    .venv/bin/python scripts/bench.py chat_selection --data ALL
                                                             what chosen chats train
    .venv/bin/python scripts/bench.py selection --data ALL  what training on selected rows gives
    .venv/bin/python scripts/bench.py tuned_flags --data ALL
                                                             flags by a fine-tuned model
    .venv/bin/python scripts/bench.py demo                   time and memory of the quickstart
    .venv/bin/python scripts/bench.py overhead               what all but the methods costs
    .venv/bin/python scripts/bench.py features --data DIR    speed of gradients, against peers
    .venv/bin/python scripts/bench.py projection --data DIR  what projecting costs in exactness
    .venv/bin/python scripts/bench.py variants --data ALL    which NTK predicts best
    .venv/bin/python scripts/bench.py language_model --data ALL
                                                             a real causal language model
    .venv/bin/python scripts/bench.py shapley --data DIR     Shapley values: speed, error, size
    .venv/bin/python scripts/bench.py shapley_reuse --data DIR
                                                             whole utilities against marginals
    .venv/bin/python scripts/bench.py coverage               how often intervals hold the value
    .venv/bin/python scripts/bench.py generation --data ALL  what stands behind generated words
    .venv/bin/python scripts/bench.py million                Shapley values of a million rows
    .venv/bin/python scripts/bench.py knn --data ALL         speed of KNN-Shapley, against peers
    .venv/bin/python scripts/bench.py pairs                  the best of many pairs, against peers
    .venv/bin/python scripts/bench.py robustness --data ALL  how often values change their sign
    .venv/bin/python scripts/bench.py retrain --data DIR     values against real trainings
    .venv/bin/python scripts/bench.py lds --data ALL         scores against real trainings
    .venv/bin/python scripts/bench.py scale --data ALL --corpus emoji
                                                             the main job at any size
    .venv/bin/python scripts/bench.py short_features --data ALL
                                                             how short features may be
    .venv/bin/python scripts/bench.py unlabelled --data ALL  values of a corpus without classes
    .venv/bin/python scripts/bench.py token_speed --data DIR  UDIG against the passes it needs
    .venv/bin/python scripts/bench.py token_quality --data ALL --models DIR
                                                             token methods against each other
    .venv/bin/python scripts/bench.py token_smoothing --data ALL --models DIR
                                                             LAFA against what it smooths
    .venv/bin/python scripts/bench.py explanations --data ALL
                                                             spectra against other explanations
    .venv/bin/python scripts/bench.py storage                vectors on disk, many shards, sums
    .venv/bin/python scripts/bench.py duplicates --data ALL  near duplicates and outliers
    .venv/bin/python scripts/bench.py viewer                 a run that people look at

DIR holds train.parquet and validation.parquet with columns id, text, label (0 and 1), ALL a folder
per data set, which the case's help names. Peers live in environments of their own, which the script
makes under `.bench`; none is a dependency. A case is one file of `benchmarks/`; `scripts/bench.py
CASE --help` says what it may be told. Beside it, `CASE.md` says what was measured.
"""

import argparse
import importlib
import json
import os
import platform
import resource
import subprocess
import sys
import time

import pyarrow as pa
from benchmarks.environment import ROOT, WORK

CASES = (
    "flags",
    "noise",
    "reviews",
    "answers",
    "chat_scale",
    "chat_selection",
    "preferences",
    "selection",
    "tuned_flags",
    "demo",
    "overhead",
    "features",
    "projection",
    "variants",
    "language_model",
    "shapley",
    "shapley_reuse",
    "coverage",
    "generation",
    "million",
    "knn",
    "pairs",
    "robustness",
    "scale",
    "short_features",
    "retrain",
    "lds",
    "unlabelled",
    "explanations",
    "token_speed",
    "token_quality",
    "token_smoothing",
    "storage",
    "duplicates",
    "viewer",
)


def _commit() -> str:
    """The commit of the tree, with "-dirty" behind it where other files than results differ."""

    def git(*asked: str) -> str:
        ran = subprocess.run(["git", *asked], cwd=ROOT, capture_output=True, text=True)
        return ran.stdout.strip()

    is_dirty = git("status", "--porcelain", "-uno", "--", ".", ":!scripts/benchmarks/results.jsonl")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if is_dirty else "")


def main() -> None:
    """Runs the case that the command line names."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if len(sys.argv) < 2 or sys.argv[1] not in CASES:
        print(__doc__)
        raise SystemExit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    name = sys.argv[1]
    case = importlib.import_module(f"benchmarks.{name}")
    parser = argparse.ArgumentParser(prog=f"bench.py {name}", description=case.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    case.add_arguments(parser)
    parser.add_argument("--work", default=str(WORK), help="folder for files in between")
    arguments = parser.parse_args(sys.argv[2:])
    start = time.time()
    commit = _commit()  # as it is at the start
    result = case.run(arguments)
    line = {
        "case": name,
        "commit": commit,
        "device": f"{os.cpu_count()} x {platform.processor() or platform.machine()}",
        "total_seconds": round(time.time() - start, 1),
        "driver_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **result,
        "versions": {
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
            **result.get("versions", {}),
        },
    }
    with (ROOT / "scripts" / "benchmarks" / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=1))


if __name__ == "__main__":
    main()
