"""BM25 against its formula, word by word, and the counts of words that it takes."""

import json
import math
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from memory_inputs import ShardedInputs

from stages.pairs.bm25 import Bm25
from stages.pairs.word_frequency import WordFrequency
from stages.ranking import terms
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


def inputs_of(
    examples: list[Any], queries: list[Any], form: str = "text", n_shards: int = 2
) -> ShardedInputs:
    parts = []
    for role, first, rows in (("example", 0, examples), ("query", 50, queries)):
        texts, pairs = zip(*rows, strict=True)
        ids = pa.array(np.arange(len(rows))[::-1] + first)
        columns = {"id": ids, "role": [role] * len(rows), "text": texts[::-1]}
        parts.append(pa.table({**columns, "text_b": pa.array(pairs[::-1], pa.string())}))
    return ShardedInputs({"text": pa.concat_tables(parts)}, {"text": {"format": form}}, n_shards)


def found(
    stage: Bm25, examples: list[Any], queries: list[Any], form: str = "text", n_shards: int = 2
) -> pa.Table:
    """Rows of all queries, merged from shards of examples."""
    inputs = inputs_of(examples, queries, form, n_shards)
    inputs.tables["word_frequency"] = inputs.run(WordFrequency())
    return inputs.run(stage)


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


@pytest.mark.parametrize("n_shards", [1, 4])
@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (0.0, 0.0), (2.0, 1.0)])
def test_the_formula(k1: float, b: float, n_shards: int) -> None:
    """In float64, with a few roundings a word."""
    rows = found(Bm25(k1=k1, b=b, top_k=None), EXAMPLES, QUERIES, n_shards=n_shards)
    expected = by_formula(k1, b)
    assert rows.num_rows == expected.size
    assert rows["global_score"].null_count == rows["local_score"].null_count == expected.size
    for row in rows.to_pylist():
        cell = expected[row["query_id"] - 50, row["example_id"]]
        assert row["score"] == pytest.approx(cell, rel=1e-14)


def test_how_many_examples_have_a_word() -> None:
    """Merged from shards, one of them without an example; words of no query are counted, too."""
    rows = inputs_of(EXAMPLES, QUERIES, n_shards=7).run(WordFrequency()).to_pylist()
    documents = [words(row) for row in EXAMPLES]
    expected = [
        (50 + t, word, sum(word in document for document in documents))
        for t, query in enumerate(QUERIES)
        for word in sorted({*words(query)})
    ]
    assert [(row["query_id"], row["word"], row["n_with_word"]) for row in rows] == expected
    n_words = sum(map(len, documents))
    assert {(row["n_examples"], row["n_words"]) for row in rows} == {(len(EXAMPLES), n_words)}


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = found(Bm25(top_k=None), EXAMPLES, QUERIES, n_shards=1)
    monkeypatch.setattr(terms, "NUMBERS", 16)
    monkeypatch.setattr("stages.pairs.bm25.NUMBERS", len(EXAMPLES))
    assert found(Bm25(top_k=None), EXAMPLES, QUERIES, n_shards=1).equals(expected)


def test_the_best_share_a_word() -> None:
    """Also where fewer than `top_k` do, or none, or a query has no word."""
    rows = found(Bm25(top_k=3), EXAMPLES, QUERIES)
    expected = by_formula(1.5, 0.75)
    kept = {
        (50 + t, int(i))
        for t, row in enumerate(expected)
        for i in np.argsort(-row, kind="stable")[:3]
        if row[i] > 0
    }
    assert set(zip(*(rows[n].to_pylist() for n in ("query_id", "example_id")), strict=True)) == kept
    assert {query for query, _ in kept} == {50, 51}


def test_conversations_are_searched_by_what_is_said() -> None:
    def talk(*turns: str) -> tuple[str, None]:
        return json.dumps([{"role": "assistant", "content": turn} for turn in turns]), None

    said = [talk("good film", "bad plot"), talk("so so")]
    rows = found(Bm25(), said, [talk("assistant", "plot")], "messages")
    assert rows["example_id"].to_pylist() == [0]
    function = {"name": "look_up", "arguments": '{"city": "Rome"}'}
    calls = [{"id": "plot", "type": "function", "function": function}]
    turn = {"role": "assistant", "content": "", "tool_calls": calls}
    rows = found(Bm25(), [*said, (json.dumps([turn]), None)], [talk("rome")], "messages")
    assert rows["example_id"].to_pylist() == [2]


@pytest.mark.parametrize(
    ("query", "example"),
    [
        ("की", "की"),  # its vowel sign tells it from "का"
        ("फिल्म थी", "फिल्म अच्छी थी"),
        ("நல்ல", "தமிழ் நல்ல"),
        ("cafe\u0301", "Café"),  # decomposed and composed: canonically equal
        ("CAFE\u0301", "cafe\u0301"),
        ("isn't", "it isn't"),
        ("東", "東京"),
        ("3.5", "3.5 of 5"),
    ],
)
def test_words_of_all_scripts(query: str, example: str) -> None:
    others = ["का", "फल", "नहीं", "தமிழ", "cafe", "isn", "t", "西", "3", "😀"]
    rows = found(Bm25(), [(text, None) for text in [*others, example]], [(query, None)])
    assert rows["example_id"].to_pylist() == [len(others)]


def test_a_corpus_without_words_has_no_row() -> None:
    assert found(Bm25(), [("?", None)], QUERIES).num_rows == 0


@pytest.mark.parametrize("fields", [{"k1": -1.0}, {"b": 1.5}, {"k1": float("nan")}, {"top_k": 0}])
def test_fields_that_cannot_be_used(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="found"):
        Bm25(**fields)
