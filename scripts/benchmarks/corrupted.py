"""Questions about paragraphs with their answers, and the same rows corrupted.

The data are XQuAD's English questions and, as rows of another kind, film reviews.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CONTEXT = 800
"""Characters of the longest paragraph that is taken."""


class Corpus(NamedTuple):
    """The same rows clean and corrupted, clean queries, and what was not drawn."""

    versions: dict[str, pa.Table]
    queries: pa.Table
    rest: pa.Table


def read_corpus(data: Path, n_rows: int, n_queries: int, n_blocks: int, seed: int) -> Corpus:
    """Rows in a drawn order.

    Swapped rows have the answer of the next row of their block, the last one that of the first;
    off-topic rows are the first half of a review's words with the second as completion.
    """
    rng = np.random.default_rng(seed)
    shuffled = []
    for split in ("train", "validation"):
        table = pq.read_table(data / f"squad_xquad_en/{split}.parquet")
        short = np.array([len(text) < CONTEXT for text in table["text"].to_pylist()])
        shuffled.append(table.take(rng.permutation(np.flatnonzero(short))))
    rows, queries = shuffled
    reviews = pq.read_table(data / "mr/train.parquet")["text"].to_pylist()
    long_enough = [review.split() for review in reviews if len(review.split()) >= 8]
    picked = [long_enough[i] for i in rng.permutation(len(long_enough))[:n_rows]]
    prompts, answers = _questions(rows.slice(0, n_rows))
    of_next = np.roll(np.arange(n_rows).reshape(n_blocks, -1), -1, axis=1).ravel()
    first = [" ".join(words[: len(words) // 2]) for words in picked]
    second = [" " + " ".join(words[len(words) // 2 :]) for words in picked]
    versions = {
        "clean": _numbered(prompts, answers),
        "swapped": _numbered(prompts, [answers[i] for i in of_next]),
        "off_topic": _numbered(first, second),
    }
    rest = _numbered(*_questions(rows.slice(n_rows)))
    return Corpus(versions, _numbered(*_questions(queries.slice(0, n_queries))), rest)


def _questions(rows: pa.Table) -> tuple[list[str], list[str]]:
    pairs = zip(rows["text"].to_pylist(), rows["text_b"].to_pylist(), strict=True)
    prompts = [f"{context}\nQuestion: {question}\nAnswer:" for context, question in pairs]
    return prompts, [f" {answer}" for answer in rows["answer_text"].to_pylist()]


def _numbered(prompts: list[str], answers: list[str]) -> pa.Table:
    return pa.table({"id": range(len(prompts)), "prompt": prompts, "completion": answers})
