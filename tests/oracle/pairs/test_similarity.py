"""Similarity against a loop over pairs."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.pairs.similarity import Similarity
from stages.stage import ConfigError, DataError, Vectors


def inputs_of(memory: Any, examples: np.ndarray, queries: np.ndarray) -> Any:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(examples.reshape(-1)), examples.shape[1])
    ids = pa.array(np.arange(len(examples))[::-1] * 3)
    roles = ["example"] * len(examples)
    table = pa.table({"id": ids, "role": roles, "vector": lists})
    asked = Vectors(np.arange(len(queries)) + 50, queries)
    return memory({"features": table}, vectors={("features", "query"): asked})


def drawn() -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(0)
    examples, queries = (g.normal(size=(n, 5)).astype(np.float32) for n in (9, 4))
    examples[4] = queries[1] = 0
    return examples, queries


@pytest.mark.parametrize("length", [1.0, 1e-25, 1e20])
def test_cosines(memory: Any, length: float) -> None:
    """Of a zero vector with anything 0, of any length that float32 can hold; no two parts."""
    examples, queries = (rows * np.float32(length) for rows in drawn())
    found = inputs_of(memory, examples, queries).run(
        stage := Similarity(features="features", top_k=None)
    )
    assert stage.reads == ("features",)
    assert found.num_rows == 36
    assert found["global_score"].null_count == found["local_score"].null_count == 36
    for row in found.to_pylist():
        e = examples[::-1][row["example_id"] // 3].astype(np.float64)
        q = queries[row["query_id"] - 50].astype(np.float64)
        lengths = float(np.sqrt(sum(x * x for x in e)) * np.sqrt(sum(x * x for x in q)))
        cosine = sum(x * y for x, y in zip(e, q, strict=True)) / lengths if lengths else 0.0
        assert row["score"] == pytest.approx(cosine, abs=1e-6)


def test_inner_products_come_apart(memory: Any) -> None:
    examples, queries = drawn()
    found = inputs_of(memory, examples, queries).run(
        Similarity(features="features", normalize=False, top_k=None)
    )
    assert found.num_rows == 36
    for row in found.to_pylist():
        e = examples[::-1][row["example_id"] // 3].astype(np.float64)
        q = queries[row["query_id"] - 50].astype(np.float64)
        assert row["score"] == pytest.approx(float(e @ q), abs=1e-5)
        assert row["global_score"] == pytest.approx(float(np.sqrt(e @ e)), rel=1e-6)
        assert row["global_score"] * row["local_score"] == pytest.approx(row["score"], rel=1e-14)
        if not e.any():
            assert row["global_score"] == row["local_score"] == 0


def test_the_best_of_each_sign(memory: Any) -> None:
    examples, queries = drawn()
    found = inputs_of(memory, examples, queries).run(Similarity(features="features", top_k=1))
    cosines = queries @ examples.T
    with np.errstate(invalid="ignore"):
        cosines /= np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(examples, axis=1)
    kept = {
        (50 + q, 3 * (8 - int(pick)))
        for q in (0, 2, 3)
        for pick in (np.nanargmax(cosines[q]), np.nanargmin(cosines[q]))
    }
    assert (
        set(zip(*(found[n].to_pylist() for n in ("query_id", "example_id")), strict=True)) == kept
    )


def test_what_cannot_be_done(memory: Any) -> None:
    with pytest.raises(ConfigError, match="top_k: found 0"):
        Similarity(top_k=0)
    with pytest.raises(DataError, match="found no query"):
        inputs_of(memory, drawn()[0], np.zeros((0, 5), np.float32)).run(
            Similarity(features="features")
        )
