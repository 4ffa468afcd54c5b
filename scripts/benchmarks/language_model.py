"""A real causal language model: SmolLM2-135M-Instruct, its prompts and its completions.

Prompts: SST-2 as "<text> It was" with the label words terrible and great. The kernel of the model's
own gradients, of its last four blocks and of fresh LoRA adapters, against the model's answers as
they are. Completions: answers to questions about paragraphs, one gradient per answer, and whether
rows with similar gradients belong together: to the same article, where rows of the same paragraph,
whose prompts are nearly the same text, are left out. Steps: gradients of chats of six kinds against
plain forward and backward passes (`plain_step.py`).

DIR holds the folders sst2 (train.parquet and validation.parquet: id, text, label) and
squad_xquad_en (train.parquet: id, text, text_b, answer_text, article), for steps also the others of
`answers`. One process, one thread.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.answers import pool
from benchmarks.environment import language_model
from benchmarks.finished import Clock, accuracy, run_config
from benchmarks.memory import MemoryInputs
from benchmarks.plain_step import against_plain

TRAINED = {"last_blocks": {"last_blocks": 4}, "lora": {"lora": {"rank": 16}}}
PARTS = ("prompts", "completions", "steps")
TOKEN_BUDGET = 1024
"""The default of the stages, which the passes without them share."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="folder with a folder per data set")
    parser.add_argument("--rows", type=int, default=1000, help="training rows of SST-2")
    parser.add_argument("--queries", type=int, default=400, help="first validation rows of SST-2")
    parser.add_argument("--completions", type=int, default=300)
    parser.add_argument("--steps", type=int, default=60, help="chats of the steps")
    parser.add_argument("--rounds", type=int, default=3, help="of the steps")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--seed", type=int, default=0, help="of the draws of training rows")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure of the case."""
    import torch

    torch.set_num_threads(1)
    model = {"path": str(language_model())}
    data, work = Path(arguments.data).resolve(), Path(arguments.work).resolve()
    # A folder of its own, so that every stage is computed and timed.
    work = work / "language_model" / str(time.time_ns())
    work.mkdir(parents=True)
    result: dict[str, Any] = {"seed": arguments.seed, "token_budget": TOKEN_BUDGET}
    measures = dict(zip(PARTS, (prompts, completions, steps), strict=True))
    for name, measure in ((part, measures[part]) for part in arguments.parts):
        result[name] = measure(data, work, model, arguments)
        print(json.dumps({name: result[name]}, indent=1), file=sys.stderr, flush=True)
    return result


def prompts(
    data: Path, work: Path, model: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Accuracy and speed on SST-2."""
    train = draw(pq.read_table(data / "sst2/train.parquet"), arguments.rows, arguments.seed)
    queries = pq.read_table(data / "sst2/validation.parquet").slice(0, arguments.queries)
    pq.write_table(train, work / "train.parquet")
    pq.write_table(queries, work / "queries.parquet")
    model = {
        **model,
        "head": "label_words",
        "prompt": {"template": "{text} It was", "label_words": ["terrible", "great"]},
        "max_length": 64,
    }
    result: dict[str, Any] = {"train_rows": train.num_rows, "queries": queries.num_rows}
    result["majority"] = float(np.bincount(queries["label"].to_numpy()).max() / queries.num_rows)
    result |= passes(model, text_table(train["text"], None), "text")
    for name, trained in TRAINED.items():
        clock = Clock()
        extra: dict[str, Any] = {}
        if name == "last_blocks":
            on_embedding = {"stage": "kernel_regression", "kernel": ["embedding"]}
            extra = {"prediction": {}, "embedding": {}, "embedding_fit": on_embedding}
        finished = run_config(
            {
                "run": str(work / f"prompts-{name}"),
                "model": {**model, "train": trained},
                "corpus": {
                    "path": str(work / "train.parquet"),
                    "id": "id",
                    "classes": ["negative", "positive"],
                },
                "queries": {"path": str(work / "queries.parquet"), "id": "id"},
                "shard_size": 250,
                "stages": {"ntk": {}, "kernel_regression": {}, **extra},
                "ray": {"engine": "in_process"},
            },
            clock,
        )
        result[name] = {
            "accuracy": accuracy(finished, "kernel_regression"),
            **cost(finished, clock, "ntk"),
        }
        if name == "last_blocks":
            result["zero_shot"] = zero_shot(finished)
            result["zero_shot_rows_per_cpu_s"] = clock.rows_per_cpu_s("prediction")
            result["embedding_kernel_accuracy"] = accuracy(finished, "embedding_fit")
    return result


def completions(
    data: Path, work: Path, model: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Speed, losses and neighbours of gradients of answers."""
    rows = pq.read_table(data / "squad_xquad_en/train.parquet")
    rows = draw(rows, arguments.completions, arguments.seed)
    pairs = list(zip(rows["text"].to_pylist(), rows["text_b"].to_pylist(), strict=True))
    columns = {
        "id": rows["id"],
        "prompt": [f"{context}\nQuestion: {question}\nAnswer:" for context, question in pairs],
        "completion": [f" {answer}" for answer in rows["answer_text"].to_pylist()],
        "article": rows["article"],
        "paragraph": rows["text"],
    }
    table = pa.table(columns)
    pq.write_table(table, work / "completions.parquet")
    model = {
        **model,
        "head": "completion",
        "max_length": 256,
        "train": TRAINED["last_blocks"],
    }
    result: dict[str, Any] = {"rows": table.num_rows}
    text = text_table(table["prompt"], table["completion"])
    result |= passes(model, text, "prompt_completion")
    clock = Clock()
    finished = run_config(
        {
            "run": str(work / "completions"),
            "model": model,
            "corpus": {
                "path": str(work / "completions.parquet"),
                "task": "completion",
                "id": "id",
            },
            "shard_size": 50,
            "stages": {"gradient": {}, "embedding": {}},
            "ray": {"engine": "in_process"},
        },
        clock,
    )
    result |= cost(finished, clock, "gradient")
    for name, view in (("gradient", "gradients"), ("embedding", "embeddings")):
        result[f"neighbours_by_{name}"] = neighbours(finished, view)
    return result


def steps(
    data: Path, work: Path, model: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Gradients against plain steps on chats."""
    rows = [(r["prompt"], r["answer"]) for r in pool(data, arguments.steps, 0.0, arguments.seed)]
    return against_plain(Path(model["path"]), rows, arguments.rounds)


def draw(table: pa.Table, n_rows: int, seed: int) -> pa.Table:
    """Some rows, in the order of a seeded shuffle."""
    return table.take(np.random.default_rng(seed).permutation(table.num_rows)[:n_rows])


def text_table(texts: pa.ChunkedArray, pairs: pa.ChunkedArray | None) -> pa.Table:
    """Texts as the table `text` holds them."""
    second = pa.nulls(len(texts), pa.string()) if pairs is None else pairs
    return pa.table({"text": texts, "text_b": second})


class FormInputs(MemoryInputs):
    """Inputs of a stage that say what the text columns hold."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def details(self, name: str) -> dict[str, Any]:
        """The form of the text."""
        return {"format": self.form}


def passes(model: dict[str, Any], text: pa.Table, form: str, n_rows: int = 100) -> dict[str, float]:
    """Rows per CPU-second of forward passes alone, and their tokens.

    The trunk, the trunk with what the head reads, and the trunk with logits at every position,
    which is what a language model does by itself.
    """
    import torch

    from pipeline.config import parse_stage
    from stages.model.batches import batches
    from stages.model.measurement import load_measurement

    spec = parse_stage("prediction", {"model": model}, None, "bench").model
    measurement = load_measurement(spec, FormInputs(form))
    tokens = measurement.tokenise(text.slice(0, n_rows))
    network = measurement.network
    table = network.trunk.get_input_embeddings().weight

    def trunk(batch: dict[str, Any]) -> Any:
        own = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return network.trunk(**own, use_cache=False).last_hidden_state

    kinds: dict[str, Callable[[dict[str, Any]], Any]] = {
        "trunk": trunk,
        "trunk_and_head": measurement.outputs,
        # The output layer shares its weight with the embedding table.
        "trunk_and_all_logits": lambda batch: trunk(batch) @ table.T,
    }
    found = {"tokens_per_row": float(tokens.lengths.mean())}
    with torch.no_grad():
        for name, compute in kinds.items():
            start = time.process_time()
            for rows in batches(tokens.lengths, TOKEN_BUDGET):
                compute(measurement.batch(tokens, rows))
            seconds = time.process_time() - start
            found[f"{name}_rows_per_cpu_s"] = len(tokens.lengths) / seconds
    return found


def zero_shot(run: Any) -> dict[str, float]:
    """Accuracy of the model's own answers, and of answers about as often one as the other.

    The second threshold is the median over the training rows, whose labels it does not use.
    """
    rows = run.sql(
        "SELECT p.role, p.logits[2] - p.logits[1], q.label FROM predictions AS p "
        "LEFT JOIN queries AS q ON q.query_id = p.id AND p.role = 'query' "
        "WHERE p.method = 'prediction'"
    ).fetchall()
    of_examples = np.array([margin for role, margin, _ in rows if role == "example"])
    of_queries = np.array([margin for role, margin, _ in rows if role == "query"])
    labels = np.array([label for role, _, label in rows if role == "query"])

    def right(threshold: float) -> float:
        return float(((of_queries > threshold) == (labels == 1)).mean())

    return {
        "accuracy": right(0.0),
        "accuracy_at_median": right(float(np.median(of_examples))),
        "share_positive": float((of_queries > 0).mean()),
    }


def cost(run: Any, clock: Clock, instance: str) -> dict[str, Any]:
    """What a stage of gradients cost, and how its rows came out."""
    table_bytes, length = run.sql(
        f"SELECT bytes, vector_length FROM runs WHERE instance = '{instance}' "
        "AND vector_length IS NOT NULL"
    ).fetchall()[0]
    statuses = run.sql(
        f"SELECT status, count(*) FROM diagnostics WHERE method = '{instance}' GROUP BY status"
    ).fetchall()
    facts = run.sql(
        "SELECT count(*) FILTER (is_outlier), avg(n_tokens), max(n_tokens), avg(measured), "
        "stddev_samp(measured), median(norm), min(norm), max(norm) FROM diagnostics "
        f"WHERE method = '{instance}' AND status = 'ok'"
    ).fetchall()[0]
    names = ("outliers", "mean_tokens", "max_tokens", "mean_measured", "sd_measured")
    return {
        "rows_per_cpu_s": clock.rows_per_cpu_s(instance),
        "cpu_s": clock.cpu_s[instance],
        "bytes": table_bytes,
        "vector_length": length,
        "statuses": dict(statuses),
        **dict(zip((*names, "median_norm", "min_norm", "max_norm"), facts, strict=True)),
    }


def neighbours(run: Any, view: str) -> dict[str, float]:
    """How often a row's nearest row, by cosine, is of its article, against a row by chance.

    Once among all other rows, and once among those of other paragraphs; rows whose article has none
    of these are left out, and so are rows without a gradient.
    """
    rows = run.sql(
        f"SELECT v.vector, e.article, e.paragraph FROM {view} AS v "
        "JOIN examples AS e ON e.example_id = v.id "
        "WHERE v.id IN (SELECT id FROM gradients) ORDER BY v.id"
    ).fetchall()
    vectors = np.array([row[0] for row in rows], np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    articles, paragraphs = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    same = articles[:, None] == articles
    allowed = {
        "any_paragraph": ~np.eye(len(rows), dtype=bool),
        "other_paragraph": paragraphs[:, None] != paragraphs,
    }
    found: dict[str, float] = {"rows": len(rows)}
    for name, others in allowed.items():
        nearest = np.where(others, cosines, -np.inf).argmax(1)
        counted = (same & others).any(1)
        found[f"{name}_rows"] = int(counted.sum())
        found[name] = float(same[np.arange(len(rows)), nearest][counted].mean())
        found[f"{name}_chance"] = float(((same & others).sum(1) / others.sum(1))[counted].mean())
    return found
