"""Which places of a corpus stand behind the words that a language model writes.

SmolLM2 goes on with some prompts; the words of the largest TF-IDF are explained by the support
spectra of the places with the same next word in the texts of SUBJ, MR and CoLA. Told: what it
wrote, how likely each word was, how many places have it and how many support it, both ends of the
spectrum, and CPU-seconds.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.environment import language_model
from benchmarks.finished import Clock, run_config

SETS = ("subj", "mr", "cola")
PROMPTS = (
    "According to researchers from the University of",
    "The story of a young man who falls in love with",
    "The film takes place in New York, where a police",
    "The best performance in this movie is that of the",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the case."""
    parser.add_argument("--data", required=True, help="folder with subj, mr and cola")
    parser.add_argument("--rows", type=int, default=10_000, help="texts, evenly of the three")
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--positions", type=int, default=2)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the model wrote, and the spectra."""
    work = Path(arguments.work).resolve() / f"generation-{arguments.rows}"
    work.mkdir(parents=True, exist_ok=True)
    texts: list[str] = []
    for name in SETS:
        table = pq.read_table(Path(arguments.data) / name / "train.parquet", columns=["text"])
        texts += table["text"].to_pylist()[: arguments.rows // len(SETS)]
    pq.write_table(pa.table({"text": texts}), work / "texts.parquet")
    (work / "prompts.jsonl").write_text(
        "".join(json.dumps({"text": prompt}) + "\n" for prompt in PROMPTS), encoding="utf-8"
    )
    model = {"path": str(language_model()), "head": "completion", "max_length": 96}
    clock = Clock()
    done = run_config(
        {
            "run": str(work / "run"),
            "model": model,
            "corpus": {"path": str(work / "texts.parquet"), "text": "text", "task": "completion"},
            "queries": {"path": str(work / "prompts.jsonl"), "text": "text"},
            "ray": {"engine": "in_process"},
            "stages": {
                "continuation": {
                    "new_tokens": arguments.new_tokens,
                    "positions": arguments.positions,
                },
                "token_support": {},
            },
        },
        clock,
    )
    rows = done.sql(
        "SELECT c.query_id, c.token_index, c.context, c.token, c.probability, c.tf_idf, "
        "s.n_places, s.n_support, "
        "list({context: s.context, g: s.global_score, l: s.local_score} ORDER BY s.rank) "
        "AS spectrum "
        "FROM continuations AS c JOIN token_support AS s USING (query_id, token_index) "
        "GROUP BY ALL ORDER BY c.query_id, c.token_index"
    )
    found = [dict(zip(rows.columns, row, strict=True)) for row in rows.fetchall()]
    return {"rows": len(texts), "cpu_s": clock.cpu_s, "explained": found}
