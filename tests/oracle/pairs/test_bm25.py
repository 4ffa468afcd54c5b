"""BM25 against its formula, word by word."""

import json
import math
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.pairs.bm25 import Bm25
from stages.stage import ConfigError

EXAMPLES = [
    ("The film was good, the plot was not.", None),
    ("good GOOD good film", "and a slow plot"),
    ("Ein schöner Film über 7 Samurai", None),
    ("!?", None),
    ("the the the the the the the", None),
    ("a plot", None),
]
QUERIES = [("the good film", None), ("plot plot 7", "über"), ("nothing here", None), ("...", None)]


class Texts:
    """`Inputs` of all examples and one block of queries."""

    def __init__(self, memory: Any, examples: list[Any], queries: list[Any], form: str = "text"):
        self.memory, self.form = memory, form
        self.tables = {"example": (0, examples), "query": (50, queries)}

    def run(self, stage: Bm25) -> pa.Table:
        inputs = self.memory({}, details={"text": {"format": self.form}})
        inputs.table = self.table
        return inputs.run(stage)

    def table(self, name: str, role: str) -> pa.Table:
        first, rows = self.tables[role]
        texts, pairs = zip(*rows, strict=True)
        ids = pa.array(np.arange(len(rows))[::-1] + first)
        columns = {"id": ids, "role": [role] * len(rows), "text": texts[::-1]}
        return pa.table({**columns, "text_b": pa.array(pairs[::-1], pa.string())})


def words(row: tuple[str, str | None]) -> list[str]:
    return re.findall(r"[^\W]+", " ".join(part for part in row if part).lower())


def by_formula(k1: float, b: float) -> np.ndarray:
    documents = [words(row) for row in EXAMPLES]
    mean = sum(map(len, documents)) / len(documents)
    scores = np.zeros((len(QUERIES), len(documents)))
    for t, query in enumerate(QUERIES):
        for i, document in enumerate(documents):
            for word in words(query):
                having = sum(word in other for other in documents)
                idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
                count = document.count(word)
                length = k1 * (1 - b + b * len(document) / mean)
                scores[t, i] += idf * count / (count + length) if count else 0.0
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (0.0, 0.0), (2.0, 1.0)])
def test_the_formula(memory: Any, k1: float, b: float) -> None:
    found = Texts(memory, EXAMPLES, QUERIES).run(Bm25(k1=k1, b=b, top_k=None))
    expected = by_formula(k1, b)
    assert found.num_rows == expected.size
    assert found["global_score"].null_count == found["local_score"].null_count == expected.size
    for row in found.to_pylist():
        assert row["score"] == pytest.approx(expected[row["query_id"] - 50, row["example_id"]])


def test_the_best_share_a_word(memory: Any) -> None:
    """Also where fewer than `top_k` do, or none, or a query has no word."""
    found = Texts(memory, EXAMPLES, QUERIES).run(Bm25(top_k=3))
    expected = by_formula(1.5, 0.75)
    kept = {
        (50 + t, int(i))
        for t, row in enumerate(expected)
        for i in np.argsort(-row, kind="stable")[:3]
        if row[i] > 0
    }
    assert (
        set(zip(*(found[n].to_pylist() for n in ("query_id", "example_id")), strict=True)) == kept
    )
    assert {query for query, _ in kept} == {50, 51}


def test_conversations_are_searched_by_what_is_said(memory: Any) -> None:
    def talk(*turns: str) -> tuple[str, None]:
        return json.dumps([{"role": "assistant", "content": turn} for turn in turns]), None

    found = Texts(
        memory,
        [talk("good film", "bad plot"), talk("so so")],
        [talk("assistant", "plot")],
        "messages",
    ).run(Bm25())
    assert found["example_id"].to_pylist() == [0]


def test_a_corpus_without_words_has_no_row(memory: Any) -> None:
    assert Texts(memory, [("?", None)], QUERIES).run(Bm25()).num_rows == 0


@pytest.mark.parametrize("fields", [{"k1": -1.0}, {"b": 1.5}, {"k1": float("nan")}, {"top_k": 0}])
def test_fields_that_cannot_be_used(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="found"):
        Bm25(**fields)
