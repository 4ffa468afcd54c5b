"""The main job from nothing at any size: ingest, features, flags, values and questions about them.

One of these at a time, each by `assay run` in a process of its own, in a folder that is emptied
before:

    --corpus emoji       45,000 tweets of 20 classes, a tenth of the labels moved to any class and
                         then a fifth to the most similar one
    --rows N             N texts drawn with replacement from the training rows of sst2, mr, subj,
                         cola and tweeteval_hate, two words of each dropped at random; the label is
                         that of the text in its set, 5 % are flipped
    --vectors N          N vectors by a noisy linear teacher (--dim), 5 % flipped, through flags
    --ingest N           the texts of --rows, ingested alone
    --kernel N           kernel regression alone (--dim), from memory and from Parquet, beside the
                         bare products of matrices of its sizes
    --rows N --raylets   the same on Ray clusters of one, two and four raylets on this machine,
                         beside one process; then one raylet is killed in the middle
    --rows N --s3        with source and store in an S3 of this machine (moto)

ALL holds a folder per data set with train.parquet and validation.parquet (columns id, text, label).
Told: seconds and CPU-seconds, also per stage, with all workers; memory of the driver, of the
largest worker and of everything together, without pages of mapped files; bytes on disk; the area
under the ROC curve of planted labels by the order of `label_score`; seconds of two questions.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from benchmarks import scale_clusters, scale_kernel
from benchmarks.environment import MODEL
from benchmarks.planted import FLIPS
from benchmarks.scale_corpora import QUERIES, real, sampled, vectors
from benchmarks.watched import assay

STAGES = "{label_issues: {}, freeshap: {}}"
FLAGS = "{kernel_regression: {kernel: [features]}, label_issues: {}}"
ONLY = "{random_score: {}}"
"""A run whose stages are never begun."""
SURE = 0.9
FLIPPED = {"flip_labels": {"fraction": 0.05, "seed": 0}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", help="ALL, for texts")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--corpus", help="a set of ALL, such as emoji for tweeteval_emoji")
    what.add_argument("--rows", type=int)
    what.add_argument("--vectors", type=int)
    what.add_argument("--ingest", type=int)
    what.add_argument("--kernel", type=int)
    parser.add_argument("--most", type=int, help="rows of --corpus; all by default")
    parser.add_argument("--flips", nargs="+", default=list(FLIPS), choices=list(FLIPS))
    parser.add_argument("--labels", default="binary", choices=("binary", "source"))
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, help="MiniLM's first layers; all by default")
    parser.add_argument("--queries", type=int, default=QUERIES, help="of --corpus")
    parser.add_argument("--stages", help=f"YAML; by default {STAGES}, of --vectors {FLAGS}")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the run, KEY=VALUE")
    parser.add_argument("--raylets", type=int, nargs="*", help="by default 1 2 4")
    parser.add_argument("--s3", nargs="*", choices=("source", "store"), help="by default both")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line asks for."""
    work = Path(arguments.work).resolve() / "scale"
    work.mkdir(parents=True, exist_ok=True)
    if arguments.kernel:
        return scale_kernel.measured(work, arguments.kernel, arguments.dim, arguments.seed)
    if arguments.corpus:
        return {"corpus": arguments.corpus, **_on_real(work, arguments)}
    kind = "vectors" if arguments.vectors else "ingest" if arguments.ingest else "rows"
    n = arguments.vectors or arguments.ingest or arguments.rows
    corpus = _written(work, kind, n, arguments)
    result = {"kind": kind, "rows": n, "corpus_bytes": bytes_below(corpus)}
    if arguments.raylets is not None:
        raw = configured(corpus, work / "run", arguments)
        return result | scale_clusters.on_raylets(
            raw, work, arguments.raylets or [1, 2, 4], arguments.set
        )
    if arguments.s3 is not None:
        raw = configured(corpus, work / "run", arguments)
        return result | scale_clusters.in_s3(raw, work, arguments.s3 or ["source", "store"])
    return result | measured(configured(corpus, work / f"run-{kind}-{n}", arguments), arguments)


def _on_real(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A real set from nothing for each kind of planted labels."""
    source = Path(arguments.data).resolve() / arguments.corpus
    if not source.exists():
        source = source.with_name(f"tweeteval_{arguments.corpus}")
    found: dict[str, Any] = {}
    for flips in arguments.flips:
        corpus = work / f"{arguments.corpus}-{flips}"
        real(source, corpus, arguments.most, arguments.queries, flips, arguments.seed)
        found[flips] = measured(configured(corpus, corpus / "run", arguments), arguments)
    return found


def _written(work: Path, kind: str, n: int, arguments: argparse.Namespace) -> Path:
    """The folder of a corpus of `n` rows, written unless it is there."""
    seed = arguments.seed
    if kind == "vectors":
        folder = work / f"vectors-{n}-{arguments.dim}-{seed}"
        vectors(folder, n, arguments.dim, seed)
    else:
        folder = work / f"texts-{n}-{arguments.labels}-{seed}"
        sampled(Path(arguments.data).resolve(), folder, n, arguments.labels, seed)
    return folder


def configured(corpus: Path, run: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The run over a corpus; its labels are flipped on purpose where the corpus has right ones."""
    columns: dict[str, Any] = {"id": "id", "label": "label"}
    columns |= {"text": None, "features": "vector"} if arguments.vectors else {"text": "text"}
    by_default = FLAGS if arguments.vectors else ONLY if arguments.ingest else STAGES
    raw: dict[str, Any] = {
        "run": str(run),
        "corpus": {"path": str(corpus / "corpus"), **columns},
        "queries": {"path": str(corpus / "query.parquet"), **columns},
        "stages": yaml.safe_load(arguments.stages or by_default),
    }
    if not arguments.corpus:
        raw["corpus"] |= FLIPPED
    if not arguments.vectors:
        raw["model"] = {"path": lower(run.parent, arguments.layers) if arguments.layers else MODEL}
    return raw


def lower(work: Path, n_layers: int) -> str:
    """A folder with the first layers of MiniLM."""
    import transformers

    from stages.model.hub import resolve
    from stages.model.spec import ModelSpec

    folder = work / f"minilm-{n_layers}"
    if not folder.exists():
        whole = resolve(ModelSpec(MODEL))
        model = transformers.AutoModel.from_pretrained(whole, num_hidden_layers=n_layers)
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(whole).save_pretrained(folder)
    return str(folder)


def measured(raw: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """One run from nothing, and what it found."""
    folder = Path(raw["run"])
    shutil.rmtree(folder, ignore_errors=True)
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    settings = [word for setting in arguments.set for word in ("--set", setting)]
    found = assay(config, *settings, is_ingest_only=bool(arguments.ingest))
    found["bytes"] = bytes_below(folder)
    return found if arguments.ingest else found | looked_at(folder, raw)


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def looked_at(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """Areas under the ROC curve, flags, values and how long questions take."""
    from pipeline import open_run

    start = time.time()
    finished = open_run(folder)
    found: dict[str, Any] = {"open_s": round(time.time() - start, 2)}
    found["tables"] = (
        finished.sql(
            'SELECT instance, "table", rows, bytes, seconds, shards FROM runs ORDER BY created'
        )
        .df()
        .to_dict("records")
    )
    wrong = (
        "label_name <> truth::VARCHAR"
        if "flip_labels" not in raw["corpus"]
        else "label <> true_label"
    )
    views = {row[0] for row in finished.sql("SELECT view_name FROM duckdb_views()").fetchall()}
    if "label_issues" in views:
        found["flags"] = _flags(finished, wrong)
        found["worst_100_s"] = seconds(
            finished,
            "SELECT text, given_label, suggested_label, label_score FROM label_issues "
            "JOIN examples USING (example_id) ORDER BY label_score LIMIT 100",
        )
    if "shapley" in views:
        found["values"] = _values(finished, wrong)
    by = "label_name" if "set" not in _columns(finished) else '"set"'
    found["by_source_s"] = seconds(
        finished, f"SELECT {by}, count(*), avg(({wrong})::INT) FROM examples GROUP BY ALL"
    )
    return found


def _flags(finished: Any, wrong: str) -> dict[str, Any]:
    """How well each instance of `label_issues` finds planted labels."""
    from stages.metrics.ranks import auc

    found = {}
    for (method,) in finished.sql("SELECT DISTINCT method FROM label_issues ORDER BY 1").fetchall():
        rows = finished.sql(
            f"SELECT label_score, is_label_issue, {wrong} AS is_wrong FROM label_issues "
            f"JOIN examples USING (example_id) WHERE method = '{method}'"
        ).fetchnumpy()
        flagged = np.asarray(rows["is_label_issue"], bool)
        is_wrong = np.asarray(rows["is_wrong"], bool)
        found[method] = {
            "planted": int(is_wrong.sum()),
            "auc": auc(-rows["label_score"], is_wrong),
            "flagged": int(flagged.sum()),
            "right": int((flagged & is_wrong).sum()),
        }
    return found


def _values(finished: Any, wrong: str) -> dict[str, Any]:
    """Of each method and utility how sure signs are, and rank correlations with other methods."""
    from stages.metrics.ranks import auc, spearman

    found: dict[str, Any] = {}
    seen: dict[str, dict[str, np.ndarray]] = {}
    pairs = finished.sql("SELECT DISTINCT method, utility FROM shapley ORDER BY ALL").fetchall()
    for method, utility in pairs:
        rows = finished.sql(
            f"SELECT value, p_helpful, n_samples, {wrong} AS is_wrong FROM shapley JOIN examples "
            f"USING (example_id) WHERE method = '{method}' AND utility = '{utility}' "
            "ORDER BY example_id"
        ).fetchnumpy()
        sure = np.maximum(rows["p_helpful"], 1 - rows["p_helpful"])
        of_others = seen.setdefault(utility, {})
        found[f"{method} {utility}"] = {
            "units": int(rows["n_samples"][0]),
            "auc": auc(-rows["value"], np.asarray(rows["is_wrong"], bool)),
            "sure": float((sure >= SURE).mean()),
            "spearman": {name: spearman(rows["value"], other) for name, other in of_others.items()},
        }
        of_others[method] = rows["value"]
    return found


def seconds(finished: Any, statement: str) -> float:
    """How long a question takes, asked for the first time."""
    start = time.time()
    finished.sql(statement).fetchall()
    return round(time.time() - start, 3)


def _columns(finished: Any) -> set[str]:
    return {row[0] for row in finished.sql("DESCRIBE examples").fetchall()}
