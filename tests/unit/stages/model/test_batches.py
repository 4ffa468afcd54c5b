import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.model.batches import Tokens, batches, pad, tokenise
from stages.reading.vectors import matrix_of, vector_rows
from stages.stage import ConfigError, DataError


class WordTokenizer:
    """One number per word, its length; 9 between a text and its pair."""

    model_input_names = ("input_ids", "token_type_ids", "attention_mask")

    def __call__(self, texts, pairs, *, max_length, **_):
        ids, kinds = [], []
        for at, text in enumerate(texts):
            first = [len(word) for word in text.split()]
            second = [9] + [len(word) for word in pairs[at].split()] if pairs else []
            ids.append((first + second)[:max_length])
            kinds.append(([0] * len(first) + [1] * len(second))[:max_length])
        return {"input_ids": ids, "token_type_ids": kinds}


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_batches_hold_each_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    found = list(batches(array, budget))
    assert sorted(np.concatenate([[], *found]).tolist()) == list(range(len(lengths)))
    for rows in found:
        assert len(rows) == 1 or len(rows) * array[rows].max() <= budget
    longest = [int(array[rows].max()) for rows in found]
    assert longest == sorted(longest, reverse=True)


def test_batches_of_equal_lengths_keep_the_order() -> None:
    found = [rows.tolist() for rows in batches(np.array([3, 3, 5, 3]), 6)]
    assert found == [[2], [0, 1], [3]]


def test_a_budget_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="token_budget: found 0"):
        next(batches(np.array([1]), 0))


def test_pairs_and_single_texts_mix() -> None:
    tokens = tokenise(WordTokenizer(), ["a bb", "ccc", "a"], [None, "dd", None], 10)
    assert tokens.columns == {
        "input_ids": [[1, 2], [3, 9, 2], [1]],
        "token_type_ids": [[0, 0], [0, 1, 1], [0]],
    }
    assert tokens.lengths.tolist() == [2, 3, 1]


def test_a_row_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match=r"no token in row 1 of the shard \(' '\)"):
        tokenise(WordTokenizer(), ["a", " "], [None, None], 10)


def test_padding_is_on_the_right_and_masked() -> None:
    tokens = Tokens(
        {"input_ids": [[5, 6], [7], [1, 2, 3]], "token_type_ids": [[0, 1], [1], [1] * 3]}
    )
    batch = pad(tokens, np.array([1, 0]), 8, "cpu")
    assert batch["input_ids"].tolist() == [[7, 8], [5, 6]]
    assert batch["token_type_ids"].tolist() == [[1, 0], [0, 1]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_vectors_survive_a_table() -> None:
    text = pa.table({"id": [7, 8, 9], "role": ["query"] * 3, "text": ["a", "b", "c"]})
    vectors = np.arange(4.0).reshape(2, 2)
    batch = vector_rows(text, np.array([2, 0]), vectors)
    assert batch["id"].to_pylist() == [9, 7]
    assert batch["role"].to_pylist() == ["query", "query"]
    table = pa.Table.from_batches([batch, batch])
    np.testing.assert_array_equal(matrix_of(table["vector"]), np.vstack([vectors, vectors]))
    np.testing.assert_array_equal(matrix_of(table["vector"].slice(1, 2)), vectors[[1, 0]])
