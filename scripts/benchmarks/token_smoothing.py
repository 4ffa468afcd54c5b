"""Does it help to smooth token scores over similar texts? LAFA against the scores it smooths.

The three cases of its paper, each with a model that `scripts/finetune.py` trains, in MODELS:

- words: SST-2's validation sentences; per sentence the Pearson correlation of the words' scores
  with the absolute valence of the VADER lexicon (human ratings of 7,500 words, 0 for others), which
  stands in for the treebank's ratings of words;
- person, location: WNUT17's validation texts that mention one and are found to; per text the area
  under the ROC curve of the scores of tokens, gold is whether a token is part of such a name;
- ratings: the film reviews whose mean human rating the model predicts best; how far the prediction
  moves, relative to itself, when the top p % of the tokens are masked.

LAFA's neighbours are the nearest by a hidden layer, or those with the largest Shapley values for
the query (NTK), or its support spectrum, at most 10 in 2,000 training texts. ALL holds the data
sets. Scores with a sign count by their absolute value. Means over texts with 95 % intervals; a star
where the difference to the score that is smoothed, of the same texts, is none that chance would
make.
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
from benchmarks.environment import environment
from benchmarks.finished import run_config

VADER = ["vaderSentiment==3.3.2"]
LEXICON = """
import json, sys
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
json.dump(SentimentIntensityAnalyzer().lexicon, open(sys.argv[1], "w"))
"""
ENTITIES = {"person": (9, 10), "location": (7, 8)}
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
CASES = ("words", "person", "location", "ratings")
SAMPLES = 10
"""Noisy copies of SmoothGrad: the least of those that the paper chooses from."""

DEAR = {"smooth": ("indicator", "normal_x10", "spectrum_x10"), "integrated": ("normal_x10",)}
"""Ways that are tried with bases of several gradients each."""


class Case(NamedTuple):
    """Training texts, queries, a model, and what is known of the queries' tokens."""

    train: pa.Table
    queries: pa.Table
    source: dict[str, Any]
    """What corpus and queries have in common."""
    model: str
    layer: int
    """Hidden layer that neighbours are near in: the paper's for its case."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with a folder for each data set")
    parser.add_argument("--models", required=True, help="folder of scripts/finetune.py's models")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rows", type=int, default=2000, help="training texts")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every method on every case."""
    result: dict[str, Any] = {key: getattr(arguments, key) for key in ("queries", "rows", "seed")}
    for name in arguments.cases:
        work = Path(arguments.work).resolve() / "token_smoothing" / f"{name}-{arguments.seed}"
        work.mkdir(parents=True, exist_ok=True)
        result[name] = measured(arguments, name, work)
        print(markdown(name, result[name]), file=sys.stderr, flush=True)
    return result


def methods(is_regression: bool, layer: int) -> dict[str, dict[str, Any]]:
    """Stages by name; a smoothed one is called after its base."""
    bases = {
        "simple": {"base": "simple"},
        "smooth": {"base": "smooth", "samples": SAMPLES},
        "integrated": {"base": "integrated", "samples": SAMPLES},
    }
    near = {"same_class": not is_regression}
    ways: dict[str, dict[str, Any]] = {
        "indicator": near,
        "indicator_x10": {**near, "weight": 10.0},
        "cosine": {**near, "kernel": "cosine"},
        "cubic": {**near, "kernel": "cubic"},
        "wide": {**near, "quantile": 0.39},
        "normal": {**near, "normalize": True},
        "normal_x10": {**near, "normalize": True, "weight": 10.0},
    }
    if not is_regression:
        for kind in ("spectrum", "freeshap"):
            ways[kind] = {"neighbours": kind}
            ways[f"{kind}_x10"] = {"neighbours": kind, "normalize": True, "weight": 10.0}
    found: dict[str, dict[str, Any]] = {
        "simple": {"stage": "simple_grad"},
        "smooth": {"stage": "smooth_grad", "samples": SAMPLES},
        # Smoothing over nothing leaves the base.
        "integrated": {"stage": "lafa", "scores": bases["integrated"], "weight": 0.0, "limit": 1},
    }
    for base, scores in bases.items():
        for way, fields in ways.items():
            if base == "simple" or way in DEAR[base]:
                weight = 0.44 if base == "smooth" else 1.0
                found[f"{base}-{way}"] = {
                    **{"stage": "lafa", "scores": scores, "weight": weight, "source": None},
                    **fields,
                }
    for fields in found.values():
        if fields["stage"] == "lafa" and fields.get("neighbours", "embedding") == "embedding":
            fields["source"] = "hidden"
    found |= {name: {} for name in ("grad_input", "occlusion", "attention", "random_token")}
    found["ig"] = {"steps": SAMPLES}
    found["hidden"] = {"stage": "embedding", "layer": layer}
    if not is_regression:
        found |= {"prediction": {}, "embedding": {}, "support": {}}
        found["shapley_by_query"] = {"utilities": ["cross_entropy"]}
    return found


def measured(arguments: argparse.Namespace, name: str, work: Path) -> dict[str, Any]:
    """What is said of one case."""
    case, gold = prepared(arguments, name, work)
    for split in ("train", "queries"):
        pq.write_table(getattr(case, split), work / f"{split}.parquet")
    stages = methods(name == "ratings", case.layer)
    finished = run_config(
        {
            "store": str(work / "store"),
            "run": str(work / "run"),
            "model": {"path": case.model, "head": "checkpoint"},
            "corpus": {**case.source, "path": str(work / "train.parquet")},
            "queries": {**case.source, "path": str(work / "queries.parquet")},
            "shard_size": 50,
            "stages": stages,
        }
    )
    scored = [row[0] for row in finished.sql("SELECT DISTINCT method FROM tokens").fetchall()]
    names = [stage for stage in stages if stage in scored]
    if name == "ratings":
        values = moved(finished, names)
    else:
        values = {m: judged(finished, m, gold, is_words=name == "words") for m in names}
    return {"texts": case.queries.num_rows, "rows": rows_of(values)}


def rows_of(values: dict[str, dict[int, float]]) -> list[dict[str, Any]]:
    """Means with intervals, and gains over the base that a method smooths."""
    from stages.metrics.bootstrap import mean_of

    rows = []
    for method, own in values.items():
        mean = mean_of(list(own.values()), 1000, 0)
        row: dict[str, Any] = {"method": method, "texts": len(own)}
        row["mean"] = [round(v or 0.0, 4) for v in mean]
        base = method.split("-")[0]
        if base != method:
            both = own.keys() & values[base].keys()
            gain = mean_of([own[q] - values[base][q] for q in sorted(both)], 1000, 0)
            row["gain"] = [round(v or 0.0, 4) for v in gain]
        rows.append(row)
    return rows


def judged(finished: Any, method: str, gold: dict[str, Any], is_words: bool) -> dict[int, float]:
    """Pearson correlations or ROC areas by query, where these exist."""
    unit = "word_index" if is_words else "token_index"
    score = "any_value(word_score)" if is_words else "any_value(score)"
    rows = finished.sql(
        "SELECT query_id, any_value(source_id), any_value(text), min(char_start), max(char_end), "
        f"abs({score}) FROM tokens JOIN queries USING (query_id) WHERE method = '{method}' "
        f"AND word_index IS NOT NULL GROUP BY query_id, {unit} ORDER BY ALL"
    ).fetchall()
    texts: dict[int, list[tuple[float, float]]] = {}
    for query, source_id, text, start, end, value in rows:
        if is_words:
            known = abs(gold.get(text[start:end].lower(), 0.0))
        else:
            known = float(any(start < last and end > first for first, last in gold[source_id]))
        texts.setdefault(query, []).append((value, known))
    found = {}
    for query, pairs in texts.items():
        values, known = np.array(pairs).T
        if np.ptp(known) == 0 or np.ptp(values) == 0:
            continue
        if is_words:
            found[query] = float(np.corrcoef(values, known)[0, 1])
        else:
            inside, outside = values[known > 0, None], values[known == 0]
            found[query] = float(((inside > outside) + 0.5 * (inside == outside)).mean())
    return found


def moved(finished: Any, names: list[str]) -> dict[str, dict[int, float]]:
    """How far predictions move, the mean over the shares of masked tokens."""
    from pipeline.evaluate import evaluate

    fields = [f"methods={json.dumps(names)}", "removal=replace", "by=absolute"]
    fields.append(f"curve={json.dumps(SHARES)}")
    details = evaluate(finished.folder.path, "faithfulness", fields)["details"]
    found: dict[str, dict[int, float]] = {}
    for one in details:
        found.setdefault(one["method"], {})[one["query_id"]] = one["aopc"]
    return found


def prepared(arguments: argparse.Namespace, name: str, work: Path) -> tuple[Case, Any]:
    """The texts of a case, and the lexicon or the places of names."""
    data, models = Path(arguments.data).resolve(), Path(arguments.models).resolve()
    folder = {"words": "sst2", "ratings": "mr_human_ratings"}.get(name, "wnut17")
    rng = np.random.default_rng(arguments.seed)
    train = pq.read_table(data / folder / "train.parquet")
    train = train.take(np.sort(rng.permutation(train.num_rows)[: arguments.rows]))
    held = pq.read_table(
        data / folder / ("test.parquet" if name == "ratings" else "validation.parquet")
    )
    if name == "words":
        lexicon = work / "lexicon.json"
        if not lexicon.exists():
            python = environment("vader", VADER, is_constrained=False)
            subprocess.run([python, "-c", LEXICON, lexicon], check=True)
        queries = held.take(rng.permutation(held.num_rows)[: arguments.queries])
        columns = ["id", "text", "label"]
        source = {"id": "id", "classes": ["negative", "positive"]}
        case = Case(train.select(columns), queries.select(columns), source, str(models / "sst2"), 2)
        return case, json.loads(lexicon.read_text())
    if name == "ratings":
        near = best_predicted(models / "ratings", held, arguments.queries)
        source = {"id": "id", "task": "regression", "label": "human_mean"}
        columns = ["id", "text", "human_mean"]
        case = Case(
            *(train.select(columns), held.take(near).select(columns)),
            *(source, str(models / "ratings"), 5),
        )
        return case, None
    tags = ENTITIES[name]
    texts = [with_label(table, tags) for table in (train, held)]
    found = predicted(models / name, texts[1])
    right = np.flatnonzero((np.array(texts[1]["label"]) == 1) & (found.argmax(1) == 1))
    kept = right[: arguments.queries]
    gold = {str(held["id"][int(at)].as_py()): spans(held.slice(int(at), 1), tags) for at in kept}
    source = {"id": "id", "classes": [f"no {name}", name]}
    return Case(texts[0], texts[1].take(kept), source, str(models / name), 2), gold


def with_label(table: pa.Table, tags: tuple[int, ...]) -> pa.Table:
    """Texts, and whether each mentions a name of this kind."""
    labels = [int(any(tag in tags for tag in row)) for row in table["label"].to_pylist()]
    return pa.table({"id": table["id"], "text": table["text"], "label": labels})


def spans(row: pa.Table, tags: tuple[int, ...]) -> list[tuple[int, int]]:
    """First and behind-last character of every word of such a name; words stand a space apart."""
    found, at = [], 0
    for word, tag in zip(row["tokens"][0].as_py(), row["label"][0].as_py(), strict=True):
        if tag in tags:
            found.append((at, at + len(word)))
        at += len(word) + 1
    return found


def predicted(model: Path, table: pa.Table) -> np.ndarray:
    """The outputs of a checkpoint for some texts."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    texts, parts = table["text"].to_pylist(), []
    for at in range(0, len(texts), 64):
        batch = tokenizer(
            texts[at : at + 64], padding=True, truncation=True, max_length=128, return_tensors="pt"
        )
        with torch.no_grad():
            parts.append(network(**batch).logits)
    return np.asarray(torch.cat(parts).numpy())


def best_predicted(model: Path, table: pa.Table, count: int) -> np.ndarray:
    """Places of the rows whose number is predicted with the least relative error."""
    known = np.array(table["human_mean"].to_pylist())
    error = np.abs(predicted(model, table)[:, 0] - known) / np.maximum(np.abs(known), 0.05)
    return np.argsort(error, kind="stable")[:count]


def markdown(name: str, found: dict[str, Any]) -> str:
    """A line per method."""
    lines = [f"{name}, {found['texts']} texts", "| method | texts | mean | gain |"]
    lines.append("|---|--:|--:|--:|")
    for row in found["rows"]:
        mean, low, high = row["mean"]
        gain = ""
        if "gain" in row:
            by, least, most = row["gain"]
            gain = f"{by:+.3f} ± {(most - least) / 2:.3f}{'*' if least > 0 or most < 0 else ''}"
        cells = [row["method"], row["texts"], f"{mean:.3f} ± {(high - low) / 2:.3f}", gain]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
