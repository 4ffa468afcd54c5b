"""What a corpus of real chats costs `assay run`, stage by stage, as it grows.

The rows are those of the sets of ALL that `answers` takes, each once, without bad ones: word
problems, role play, tool calls, questions about texts, and two sets of labelled texts as
instructions. The model is a Llama of random weights with SmolLM2's tokenizer, so small that what
is not the model shows: its answers mean nothing, and nothing is said of them.

    plain       answers judged and chosen, no gradient: losses, relevance, planted answers, flags,
                near duplicates, lengths
    gradients   LoRA gradients of all layers

Every run is from nothing, one process and one thread. Told are seconds and CPU-seconds of each
stage, the most memory until its end, and the exponent b of the least squares fit
log(CPU-seconds) = a + b log(rows): 1 is linear, less where much is done once.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from benchmarks.answers import TASKS, read
from benchmarks.environment import language_model
from benchmarks.watched import assay

PLAIN = {
    "answer_loss": {},
    "position_weighted": {},
    "query_relevance": {},
    "planted_answers": {},
    "answer_issues": {},
    "near_duplicates": {},
    "text_length": {},
}
ARMS: dict[str, dict[str, Any]] = {"plain": PLAIN, "gradients": {"gradient": {}}}
QUERIES = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this case may be told."""
    parser.add_argument("--data", required=True, help="ALL")
    parser.add_argument("--rows", nargs="+", type=int, default=[2000, 6000, 20000])
    parser.add_argument("--gradients", nargs="+", type=int, default=[2000, 4000, 8000])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--length", type=int, default=256, help="max_length")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of rows")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every arm at every size, and the exponents."""
    work = Path(arguments.work).resolve() / "chat_scale"
    work.mkdir(parents=True, exist_ok=True)
    model = small_model(work, arguments.layers, arguments.hidden)
    data = Path(arguments.data).resolve()
    queries = written(work / "queries.jsonl", drawn(data, "validation", QUERIES, arguments.seed))
    names = ("layers", "hidden", "length", "seed")
    result: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    for arm in arguments.arms:
        cells: dict[int, dict[str, Any]] = {}
        for n_rows in arguments.rows if arm == "plain" else arguments.gradients:
            rows = drawn(data, "train", n_rows, arguments.seed)
            corpus = written(work / f"chats-{n_rows}.jsonl", rows)
            folder = work / f"{arm}-{n_rows}"
            raw = configured(folder, model, corpus, queries, ARMS[arm], arguments.length)
            cells[n_rows] = measured(folder, raw)
            print(json.dumps({arm: {n_rows: cells[n_rows]}}), file=sys.stderr, flush=True)
        result[arm] = {"cells": cells}
        if len(cells) > 1:
            result[arm]["exponents"] = exponents(cells)
    return result


def small_model(work: Path, n_layers: int, hidden: int) -> Path:
    """A folder with a Llama of random weights and SmolLM2's tokenizer."""
    import torch
    import transformers

    folder, source = work / f"llama-{n_layers}-{hidden}", language_model()
    if not folder.exists():
        torch.manual_seed(0)
        config = transformers.AutoConfig.from_pretrained(source)
        config.update(
            {
                "num_hidden_layers": n_layers,
                "hidden_size": hidden,
                "intermediate_size": 3 * hidden,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": hidden // 4,
            }
        )
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def drawn(data: Path, split: str, n_rows: int, seed: int) -> list[tuple[str, str]]:
    """Rows of all sets together, each once, in the order of a seeded shuffle."""
    every = [row for task in TASKS for row in read(data / task / f"{split}.parquet", task)]
    if n_rows > len(every):
        raise SystemExit(f"found {len(every)} rows in these sets, expected {n_rows}: ask for fewer")
    order = np.random.default_rng(seed).permutation(len(every))[:n_rows]
    return [every[at] for at in order.tolist()]


def written(path: Path, rows: list[tuple[str, str]]) -> Path:
    """A file of conversations."""
    with path.open("w", encoding="utf-8") as file:
        for at, (prompt, answer) in enumerate(rows):
            turns = [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"id": at, "messages": turns}) + "\n")
    return path


def configured(
    folder: Path,
    model: Path,
    corpus: Path,
    queries: Path,
    stages: dict[str, Any],
    length: int,
) -> dict[str, Any]:
    """The run of one arm."""
    return {
        "run": str(folder),
        "model": {
            "path": str(model),
            "head": "completion",
            "max_length": length,
            "train": {"lora": {"rank": 16}},
        },
        "corpus": {"path": str(corpus), "task": "completion", "id": "id"},
        "queries": {"path": str(queries), "id": "id"},
        "stages": stages,
        "ray": {"engine": "in_process"},
    }


def measured(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """One run from nothing: its cost and its size."""
    from pipeline import open_run

    shutil.rmtree(folder, ignore_errors=True)
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    found = assay(config)
    # One process: there are no workers to tell of.
    found = {name: value for name, value in found.items() if not name.startswith("worker")}
    found["bytes"] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    ((shards, found["examples"]),) = (
        open_run(folder).sql("SELECT count(DISTINCT shard), count(*) FROM examples").fetchall()
    )
    return {**found, "shards": shards}


def exponents(cells: dict[int, dict[str, Any]]) -> dict[str, float]:
    """Of each stage, and of the whole, the slope of log(CPU-seconds) over log(rows)."""
    rows = np.log(list(cells))
    found = {}
    for stage in next(iter(cells.values()))["by_stage"]:
        spent = [cell["by_stage"][stage]["cpu_s"] for cell in cells.values()]
        if min(spent) > 0:
            found[stage] = round(float(np.polyfit(rows, np.log(spent), 1)[0]), 2)
    whole = [cell["cpu_s"] for cell in cells.values()]
    return {**found, "all": round(float(np.polyfit(rows, np.log(whole), 1)[0]), 2)}
