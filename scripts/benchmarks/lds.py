"""Do scores predict what really retrained models say? The linear datamodeling score of methods.

`sst2`: MiniLM with a fresh classifier, all weights fine-tuned by Adam, on random halves of a pool
of SST-2 rows, each half twice in two orders; the outcome is the log-odds of a query's label.
Methods of gradients read a checkpoint that was fine-tuned by the same steps on the whole pool;
those of features read its embeddings, or those of MiniLM before any label (`plain`). `digits`: a
linear head on the last hidden layer of a 64-32-10 network (`scripts/digits.py`), trained on random
halves of its 1,297 images. ALL holds the folder sst2 with train.parquet and validation.parquet
(columns id, text, label) and digits as `scripts/digits.py ALL/digits` makes it. Every subset is on
disk once it is done: the same command goes on with an interrupted run. One process, one thread.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from benchmarks.environment import MODEL
from benchmarks.finished import Clock, accuracy, run_config

WHOLE = {"top_k": None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with the folders sst2 and digits")
    parser.add_argument("--datasets", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--pool", type=int, default=300, help="rows of SST-2")
    parser.add_argument("--queries", type=int, default=60, help="of SST-2")
    parser.add_argument("--share", type=float, default=0.5, help="of the pool, in a subset")
    parser.add_argument("--subsets", type=int, default=30, help="of SST-2")
    parser.add_argument("--digit-subsets", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=2, help="trainings on each subset")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1e-4, help="of Adam, for all weights")
    parser.add_argument("--max-length", type=int, default=32, help="tokens of a text")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of rows, head and subsets")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The scores of all methods on each data set."""
    result: dict[str, Any] = {
        name: getattr(arguments, name) for name in ("share", "repeats", "resamples", "seed")
    }
    for name in arguments.datasets:
        sizes = f"{arguments.pool}-{arguments.epochs}-{arguments.rate:g}"
        label = name if name == "digits" else f"{name}-{sizes}"
        work = Path(arguments.work).resolve() / "lds" / f"{label}-{arguments.seed}"
        work.mkdir(parents=True, exist_ok=True)
        result[name] = CASES[name](arguments, work)
        print(markdown(name, result[name]), file=sys.stderr, flush=True)
    return result


def on_sst2(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """A whole encoder, fine-tuned on each subset."""
    corpus = drawn(arguments, work)
    start = fresh_classifier(work / "start", arguments.seed)
    model = {"path": str(start), "head": "checkpoint", "max_length": arguments.max_length}
    training = {
        "epochs": arguments.epochs,
        "learning_rate": arguments.rate,
        "head_learning_rate": arguments.rate,
    }
    tuned = {**model, "path": str(tuned_on_all(model, training, corpus, work / "tuned"))}
    plain = {"path": MODEL, "max_length": arguments.max_length}
    truth = {
        **{"stage": "retrain", "model": model, "last_blocks": "all", "training": training},
        **{"subsets": "random", "share": arguments.share, "repeats": arguments.repeats},
        **{"rounds": arguments.subsets, "seed": arguments.seed},
    }
    raw = {
        "run": str(work / "run"),
        "store": str(work / "store"),
        "model": tuned,
        **corpus,
        "ray": {"engine": "in_process"},
    }
    clock = Clock()
    run_config({**raw, "run": str(work / "truth"), "stages": {"truth": truth}}, clock)
    finished = run_config({**raw, "stages": {"truth": truth, **sst2_methods(plain)}}, clock)
    found = {
        "pool": arguments.pool,
        "queries": arguments.queries,
        "subsets": arguments.subsets,
        "epochs": arguments.epochs,
        "rate": arguments.rate,
        "max_length": arguments.max_length,
        "accuracy_tuned": round(accuracy(finished, "prediction"), 4),
        "accuracy_of_subsets": accuracy_of_outcomes(finished),
        "cpu_s_now": {name: round(cpu_s, 1) for name, cpu_s in clock.cpu_s.items()},
    }
    return {**found, **judged(finished, arguments, ["embedding"])}


def sst2_methods(plain: dict[str, Any]) -> dict[str, Any]:
    """All pairwise methods and values of queries, on the tuned model or on plain embeddings."""
    return {
        "prediction": {},
        "gradient": {},
        "tracin": WHOLE,
        "cosine": {"stage": "similarity", "features": "gradient", **WHOLE},
        "block_gradient": {
            "stage": "gradient",
            "projection": {"inputs": 16, "outputs": 16, "dim": None},
        },
        "curvature": {"gradient": "block_gradient"},
        "influence": {"gradient": "block_gradient", **WHOLE},
        "embedding": {},
        "probe": {},
        "head_influence": WHOLE,
        "representer": WHOLE,
        "kernel_regression": {"kernel": ["embedding"]},
        "kernel_representer": {"kernel": ["embedding"], **WHOLE},
        "shapley_by_query": {"kernel": ["embedding"], "utilities": ["cross_entropy"]},
        "similarity": WHOLE,
        "ntk": {},
        "ntk_regression": {"stage": "kernel_regression", "kernel": ["ntk"]},
        "ntk_representer": {
            **{"stage": "kernel_representer", "kernel": ["ntk"], "regression": "ntk_regression"},
            **WHOLE,
        },
        "ntk_shapley": {
            **{"stage": "shapley_by_query", "kernel": ["ntk"], "utilities": ["cross_entropy"]},
        },
        "plain_embedding": {"stage": "embedding", "model": plain},
        "plain_similarity": {"stage": "similarity", "features": "plain_embedding", **WHOLE},
        "plain_regression": {"stage": "kernel_regression", "kernel": ["plain_embedding"]},
        "plain_representer": {
            **{"stage": "kernel_representer", "kernel": ["plain_embedding"]},
            **{"regression": "plain_regression", **WHOLE},
        },
        "plain_shapley": {
            **{"stage": "shapley_by_query", "kernel": ["plain_embedding"]},
            **{"utilities": ["cross_entropy"]},
        },
        "bm25": WHOLE,
        "example_loss": {"predictions": "prediction", **WHOLE},
        "random_score": WHOLE,
    }


def on_digits(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """A linear head on vectors, trained on each subset."""
    parts = {}
    for role, part in (("corpus", "train"), ("queries", "test")):
        path = Path(arguments.data).resolve() / "digits" / part
        named = {"path": f"{path}.parquet", "text": None, "label": "digit", "id": "id"}
        parts[role] = {**named, "features": f"{path}.npy"}
    on_features = {"embedding": "features", **WHOLE}
    clock = Clock()
    finished = run_config(
        {
            "run": str(work / "run"),
            **parts,
            "ray": {"engine": "in_process"},
            "stages": {
                "truth": {
                    **{"stage": "retrain", "embedding": "features", "subsets": "random"},
                    **{"share": arguments.share, "repeats": arguments.repeats},
                    **{"rounds": arguments.digit_subsets, "seed": arguments.seed},
                },
                "probe": {"embedding": "features"},
                "prediction": {"embedding": "features"},
                "tracin": {"layer": "last", **on_features},
                "head_influence": on_features,
                "representer": on_features,
                "kernel_regression": {"kernel": ["features"]},
                "kernel_representer": {"kernel": ["features"], **WHOLE},
                "shapley_by_query": {"kernel": ["features"], "utilities": ["cross_entropy"]},
                "similarity": {"features": "features", **WHOLE},
                "example_loss": {"predictions": "prediction", **WHOLE},
                "random_score": WHOLE,
            },
        },
        clock,
    )
    found = {
        "subsets": arguments.digit_subsets,
        "accuracy_probe": round(accuracy(finished, "prediction"), 4),
        "accuracy_of_subsets": accuracy_of_outcomes(finished),
        "cpu_s_now": {name: round(cpu_s, 1) for name, cpu_s in clock.cpu_s.items()},
    }
    return {**found, **judged(finished, arguments, ["features"])}


CASES = {"sst2": on_sst2, "digits": on_digits}


def drawn(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The pool and the queries as files, and the part of a configuration that names them."""
    named = {}
    for role, part, n_rows in (
        ("corpus", "train", arguments.pool),
        ("queries", "validation", arguments.queries),
    ):
        table = pq.read_table(Path(arguments.data) / "sst2" / f"{part}.parquet")
        order = np.random.default_rng(arguments.seed).permutation(table.num_rows)
        path = work / f"{role}.parquet"
        pq.write_table(table.take(order[:n_rows]), path)
        named[role] = {"path": str(path), "id": "id"}
    return named


def fresh_classifier(folder: Path, seed: int) -> Path:
    """The folder of MiniLM with a classifier of two outputs that nothing was taught yet."""
    import torch
    import transformers

    from stages.model.hub import resolve
    from stages.model.spec import ModelSpec

    if folder.exists():
        return folder
    torch.manual_seed(seed)
    source = resolve(ModelSpec(MODEL))
    loader: Any = transformers.AutoModelForSequenceClassification
    loader.from_pretrained(source, dtype=torch.float32, num_labels=2).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def tuned_on_all(
    model: dict[str, Any], training: dict[str, Any], corpus: dict[str, Any], folder: Path
) -> Path:
    """The folder of the model after the training of `retrain` on the whole pool."""
    import torch
    from benchmarks.language_model import TOKEN_BUDGET, FormInputs, text_table

    from pipeline.config import parse_stage
    from stages.model.learners import text_learner
    from stages.model.measurement import load_measurement
    from stages.model.training import train

    if folder.exists():
        return folder
    stage = parse_stage("retrain", {"model": model, "training": training}, None, "bench")
    measurement = load_measurement(stage.model, FormInputs("text"))
    rows = pq.read_table(corpus["corpus"]["path"])
    tokens = measurement.tokenise(text_table(rows["text"], None))
    learner = text_learner(measurement, tokens, "all", [], TOKEN_BUDGET)
    labels = torch.from_numpy(rows["label"].to_numpy().copy())
    train(learner, labels, np.random.default_rng(0).permutation(rows.num_rows), stage.training)
    shutil.copytree(model["path"], folder)
    network: Any = measurement.network
    network.classifier.save_pretrained(folder)
    return folder


def accuracy_of_outcomes(run: Any) -> float:
    """The mean accuracy of the retrained models on the queries."""
    statement = "SELECT avg(is_correct::INT) FROM outcomes WHERE method = 'truth'"
    return round(float(run.sql(statement).fetchall()[0][0]), 4)


def judged(run: Any, arguments: argparse.Namespace, kernel: list[str]) -> dict[str, Any]:
    """Rows and facts of the metric; kernel representers by the class that their kernel predicts."""
    from pipeline.evaluate import evaluate

    fields = ["truth=truth", f"resamples={arguments.resamples}"]
    # Of gradients of losses, which know the labels.
    fields.append('explained={"cosine": "label"}')
    found = evaluate(run.folder.path, "lds", [*fields, f"kernel={json.dumps(kernel)}"])
    own = {"kernel_representer": "kernel_regression", "ntk_representer": "ntk_regression"}
    own["plain_representer"] = "plain_regression"
    rows = [row for row in found["rows"] if row["method"] not in own]
    for method, regression in own.items():
        if any(row["method"] == method for row in found["rows"]):
            more = [f"methods=[{method}]", f"predictions={regression}"]
            rows += evaluate(run.folder.path, "lds", [*fields, *more])["rows"]
    rows.sort(key=lambda row: -row["lds"])
    rounded = [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows
    ]
    return {"facts": found["facts"], "rows": rounded}


def markdown(name: str, found: dict[str, Any]) -> str:
    """Methods by their scores, with intervals."""
    facts = found["facts"]
    lines = [
        f"{name}: {facts['n_subsets']} subsets of {facts['subset_size']} of {facts['n_examples']} "
        f"rows, {facts['n_queries']} queries; ceiling {facts['ceiling']}",
        "| method | class | score | 95 % interval |",
        "|---|---|--:|---|",
    ]
    for row in found["rows"]:
        method = f"{row['method']}, signed" if row["signed"] else row["method"]
        ends = f"{row['lds_low']:.2f} to {row['lds_high']:.2f}"
        lines.append(f"| {method} | {row['class']} | {row['lds']:.2f} | {ends} |")
    return "\n".join(lines)
