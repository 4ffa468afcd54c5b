"""Five measurements of explanations: support spectra against other methods and against chance.

Three corpora with a tenth of the labels flipped, 200 queries each, explained is a probe on frozen
features: SST-2 (2,000 rows; the topic is the class), TREC (2,000 rows; its six classes are merged
into three, which the model learns, and are the topics themselves), both on MiniLM's embeddings, and
scikit-learn's digits (the rest of 1,797) on the last hidden layer of a 64-32-10 network that is
trained here on the flipped labels. DIR holds the folders sst2 and trec with train.parquet and
validation.parquet (columns id, text, label).

All methods explain the class that the probe predicts: queries are labelled with it once it is
known, but for support_size, which looks at correctness. Of methods that cannot work on vectors,
influence and bm25, digits has no row; a method that lists no helpful example, as example_loss, has
a row without numbers. One process; features stay in the work folder.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.environment import MODEL, environment
from benchmarks.finished import Clock, accuracy, run_config

METHODS = (
    "support",
    "influence",
    "head_influence",
    "representer",
    "kernel_representer",
    "tracin",
    "similarity",
    "bm25",
    "example_loss",
    "random_score",
)
NEED_TEXT = ("influence", "bm25")
PREDICTED = "support_predicted"
"""Beside `support`: of its examples those predicted as labelled, which leaves out wrong labels."""
TREC = ("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM")
MERGED = {"about": ("DESC", "ABBR"), "what": ("ENTY", "HUM"), "where_or_number": ("LOC", "NUM")}
SKLEARN = ["scikit-learn==1.9.1"]
DIGITS = """
import sys
import numpy as np
from sklearn.datasets import load_digits
np.savez(sys.argv[1], **{k: v for k, v in load_digits().items() if k in ("data", "target")})
"""


class Case(NamedTuple):
    """A corpus and its queries, on disk."""

    corpus: dict[str, Any]
    queries: dict[str, Any]
    vectors: str
    """The feature table that the probe is fitted on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with the folders sst2 and trec")
    parser.add_argument("--datasets", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rows", type=int, default=2000, help="of SST-2 and TREC")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument(
        "--retrained", type=int, default=20, help="queries that a head is trained for"
    )
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of rows, queries and flips")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every metric on every corpus."""
    result: dict[str, Any] = {
        name: getattr(arguments, name) for name in ("rows", "queries", "retrained", "top", "seed")
    }
    for name in arguments.datasets:
        work = Path(arguments.work).resolve() / "explanations" / f"{name}-{arguments.seed}"
        work.mkdir(parents=True, exist_ok=True)
        case = CASES[name](arguments, work)
        result[name] = measured(arguments, case, work)
        print(markdown(name, result[name]), file=sys.stderr, flush=True)
    return result


def measured(arguments: argparse.Namespace, case: Case, work: Path) -> dict[str, Any]:
    """What all metrics say of one corpus."""
    methods = [m for m in arguments.methods if case.vectors == "embedding" or m not in NEED_TEXT]
    if "support" in methods:
        methods.insert(methods.index("support") + 1, PREDICTED)
    fields = stage_fields(case.vectors)
    supports = {name: fields[name] for name in methods if name.startswith("support")}
    probe = {name: fields[name] for name in ("probe", "prediction")}
    raw = {
        "store": str(work / "store"),
        "corpus": case.corpus,
        "shard_size": 500,
        "ray": {"engine": "in_process"},
        **({"model": {"path": MODEL}} if case.vectors == "embedding" else {}),
    }
    first = run_config(
        {
            **raw,
            "run": str(work / "first"),
            "queries": case.queries,
            "stages": {**probe, **supports},
        }
    )
    stages = {**probe, **{name: fields[name] for name in methods}}
    if "kernel_representer" in methods:
        stages["kernel_regression"] = {"kernel": [case.vectors]}
    clock = Clock()
    queries = {**case.queries, "path": labelled_as_predicted(first, case, work)}
    finished = run_config(
        {**raw, "run": str(work / "explained"), "queries": queries, "stages": stages}, clock
    )
    found: dict[str, Any] = {
        "accuracy": round(accuracy(first, "prediction"), 4),
        "left_out": [m for m in arguments.methods if m not in methods],
        "cpu_s_now": {name: round(cpu_s, 1) for name, cpu_s in clock.cpu_s.items()},
    }

    def ask(label: str, metric: str, among: list[str], *more: str, run: Any = finished) -> None:
        found[label] = asked(run, metric, [f"methods={json.dumps(among)}", *more])

    top, kernel = f"top={arguments.top}", f"kernel=[{case.vectors}]"
    ask("specificity", "specificity", methods, top)
    ask("contamination", "contamination", methods, top)
    scored = [method for method in methods if method not in supports]
    if scored:
        ask("harmful", "contamination", scored, top, "side=harmful")
    ask("removal", "removal", methods, top, kernel)
    listing = [row["method"] for row in found["specificity"]["rows"] if row["queries"]]
    ask("removal_of_equal_length", "removal", listing, top, kernel, "equal_length=true")
    retrain = ("by=retrain", f"embedding={case.vectors}", f"queries={arguments.retrained}")
    ask("retraining_of_equal_length", "removal", listing, top, "equal_length=true", *retrain)
    ask("agreement", "agreement", methods, top, "topic=topic")
    if supports:
        ask("support_size", "support_size", list(supports), run=first)
    return found


def stage_fields(vectors: str) -> dict[str, dict[str, Any]]:
    """The fields of every stage on a feature table of that name."""
    support = {"stage": "support", "features": vectors}
    return {
        "probe": {"embedding": vectors},
        "prediction": {"embedding": vectors},
        "support": support,
        PREDICTED: {**support, "membership": "label_and_prediction"},
        "influence": {},
        "head_influence": {"embedding": vectors},
        "representer": {"embedding": vectors},
        "kernel_representer": {"kernel": [vectors]},
        "tracin": {"layer": "last", "embedding": vectors},
        "similarity": {"features": vectors},
        "bm25": {},
        "example_loss": {},
        "random_score": {},
    }


def labelled_as_predicted(first: Any, case: Case, work: Path) -> str:
    """A file of the queries whose labels are the classes that the probe predicts."""
    rows = first.sql(
        "SELECT id, predicted FROM predictions WHERE role = 'query' AND method = 'prediction'"
    ).fetchall()
    predicted = dict(rows)
    table = pq.read_table(case.queries["path"])
    labels = pa.array([predicted[i] for i in table["id"].to_pylist()], pa.int64())
    at = table.column_names.index("label")
    path = work / "queries_as_predicted.parquet"
    pq.write_table(table.set_column(at, "label", labels), path)
    return str(path)


def asked(run: Any, metric: str, fields: list[str]) -> dict[str, Any]:
    """Rows and facts of a metric, rounded."""
    from pipeline.evaluate import evaluate

    found = evaluate(run.folder.path, metric, fields)
    rows = [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        for row in found["rows"]
    ]
    return {"rows": rows, "facts": found["facts"]}


def sst2(arguments: argparse.Namespace, work: Path) -> Case:
    """Sentences of film reviews; the topic is the class."""
    return sentences(
        arguments, work, "sst2", ("negative", "positive"), lambda label: (label, label)
    )


def trec(arguments: argparse.Namespace, work: Path) -> Case:
    """Questions, of three classes made of six; the topic is one of the six."""
    names = list(MERGED)
    merged = {old: at for at, name in enumerate(names) for old in MERGED[name]}
    return sentences(
        *(arguments, work, "trec", tuple(names)), lambda label: (merged[TREC[label]], TREC[label])
    )


def sentences(
    arguments: argparse.Namespace, work: Path, name: str, classes: tuple[str, ...], of: Any
) -> Case:
    """Drawn rows of a data set, with the class and the topic that `of` makes of a label."""
    for split, count in (("train", arguments.rows), ("validation", arguments.queries)):
        table = pq.read_table(Path(arguments.data).resolve() / name / f"{split}.parquet")
        order = np.random.default_rng(arguments.seed).permutation(table.num_rows)
        table = table.take(order[:count])
        made = [of(label) for label in table["label"].to_pylist()]
        columns = {
            "id": table["id"],
            "text": table["text"],
            "label": pa.array([label for label, _ in made]),
            "topic": pa.array([str(topic) for _, topic in made]),
        }
        pq.write_table(pa.table(columns), work / f"{split}.parquet")
    flips = {"fraction": 0.1, "seed": arguments.seed}
    corpus = {"path": str(work / "train.parquet"), "id": "id", "classes": list(classes)}
    queries = {"path": str(work / "validation.parquet"), "id": "id"}
    return Case({**corpus, "flip_labels": flips}, queries, "embedding")


def digits(arguments: argparse.Namespace, work: Path) -> Case:
    """Images of digits as the last hidden layer of a small network sees them."""
    from stages.corpus.flips import flips
    from stages.corpus.source import FlipLabels

    images = work / "digits.npz"
    if not images.exists():
        python = environment("digits", SKLEARN)
        subprocess.run([python, "-c", DIGITS, images], check=True)
    with np.load(images) as loaded:
        pixels, labels = loaded["data"] / 16.0, loaded["target"].astype(np.int64)
    ids = np.arange(len(labels))
    order = np.random.default_rng(arguments.seed).permutation(ids)
    of = {"queries": order[: arguments.queries], "train": order[arguments.queries :]}
    flip, train = FlipLabels(0.1, arguments.seed), of["train"]
    noisy = flips(train, np.ones(len(train), bool), flip).of(labels[train], train, 10)
    hidden = trained_layer(pixels[train], noisy, pixels, arguments.seed)
    sources = {}
    for name, rows in of.items():
        columns = {"id": rows, "label": labels[rows], "topic": labels[rows].astype(str)}
        pq.write_table(pa.table(columns), work / f"{name}.parquet")
        np.save(work / f"{name}.npy", hidden[rows])
        sources[name] = {
            "path": str(work / f"{name}.parquet"),
            "id": "id",
            "text": None,
            "features": str(work / f"{name}.npy"),
        }
    made = {"fraction": flip.fraction, "seed": flip.seed}
    corpus = {**sources["train"], "flip_labels": made, "classes": [str(c) for c in range(10)]}
    return Case(corpus, sources["queries"], "features")


def trained_layer(
    pixels: np.ndarray, labels: np.ndarray, everything: np.ndarray, seed: int
) -> np.ndarray:
    """The 32 hidden activations of a 64-32-10 network for all images: (images, 32), float32."""
    import torch

    torch.manual_seed(seed)
    hidden = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU())
    network = torch.nn.Sequential(hidden, torch.nn.Linear(32, 10))
    step = torch.optim.Adam(network.parameters(), lr=3e-3, weight_decay=1e-4)
    x, y = torch.from_numpy(pixels).float(), torch.from_numpy(labels)
    for _ in range(40):
        for batch in torch.randperm(len(x)).split(64):
            step.zero_grad()
            torch.nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            step.step()
    with torch.no_grad():
        return hidden(torch.from_numpy(everything).float()).numpy()


CASES = {"sst2": sst2, "trec": trec, "digits": digits}
COLUMNS = {
    "overlap": ("specificity", "overlap"),
    "same class": ("specificity", "same_class"),
    "wrong labels": ("contamination", "wrong"),
    "outliers": ("contamination", "outliers"),
    "wrong labels, harmful": ("harmful", "wrong"),
    "margin": ("removal", "change"),
    "margin, equal length": ("removal_of_equal_length", "change"),
    "margin, retrained": ("retraining_of_equal_length", "change"),
    "topic": ("agreement", "agreement"),
    "topic, local end": ("agreement", "local_end"),
}


def markdown(name: str, found: dict[str, Any]) -> str:
    """A line per method with all measurements, and the sizes of support sets below."""
    bases = found["contamination"]["facts"]
    chance = next(row["chance"] for row in found["agreement"]["rows"] if row["queries"])
    lines = [
        f"{name}: accuracy {found['accuracy']}, wrong labels {bases['wrong_base']:.3f}, outliers "
        f"{bases['outliers_base']:.3f}, topic by chance {chance:.3f}; without "
        f"{', '.join(found['left_out']) or 'none'}",
        f"| method | length | {' | '.join(COLUMNS)} |",
        f"|---|{'--:|' * (1 + len(COLUMNS))}",
    ]
    tables = {
        label: {row["method"]: row for row in found[label]["rows"]}
        for label, _ in COLUMNS.values()
        if label in found
    }
    for method, row in tables["specificity"].items():
        cells = [
            interval(tables.get(label, {}).get(method, {}), column)
            for label, column in COLUMNS.values()
        ]
        length = "" if row["length"] is None else f"{row['length']:.1f}"
        lines.append(f"| {method} | {length} | {' | '.join(cells)} |")
    lines += ["", "| sets | contrast | size | mean | Spearman | AUC | gain |"]
    lines.append("|---|---|---|--:|--:|--:|--:|")
    for row in found.get("support_size", {"rows": []})["rows"]:
        named = [str(row[key] or "") for key in ("method", "contrast", "size")]
        cells = [
            *named,
            f"{row['mean']:.3g}",
            *(interval(row, key) for key in ("spearman", "auc", "gain")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(row: dict[str, Any], column: str) -> str:
    """A number with its interval; empty where there is none."""
    if row.get(column) is None:
        return ""
    low, high = (row[f"{column}_{end}"] for end in ("low", "high"))
    return f"{row[column]:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")
