"""Lengths of texts against the tokenizer alone, and against what is left of a row that is cut."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from stages.model.heads.head import head_of
from stages.model.pretrained import load_tokenizer
from stages.model.spec import ModelSpec, Prompt
from stages.predictions.text_length import TextLength


def test_a_row_has_as_many_tokens_as_the_tokenizer_says(
    encoder_folder: Path, text: pa.Table, memory: Any
) -> None:
    rows = memory({"text": text}).run(TextLength(ModelSpec(str(encoder_folder), max_length=4)))
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    expected = [
        (row["id"], len(tokenizer(row["text"], row["text_b"])["input_ids"]), 4)
        for row in text.sort_by("id").to_pylist()
    ]
    columns = (rows[name].to_pylist() for name in ("id", "n_tokens", "max_length"))
    assert list(zip(*columns, strict=True)) == expected
    assert {n > 4 for _, n, _ in expected} == {False, True}


@pytest.mark.parametrize("form", ["text", "prompt_completion"])
@pytest.mark.parametrize("head", ["probe", "completion", "label_words"])
def test_a_row_is_cut_where_it_has_more_tokens(
    head: str, form: str, saved: Callable[..., Path], memory: Any
) -> None:
    """Of the others `max_length` tokens are left; one row just fits."""
    longest = 8
    prompt = Prompt("{text} it was", ("good", "bad")) if head == "label_words" else None
    model = ModelSpec(str(saved("gpt2", "CausalLM")), head=head, prompt=prompt, max_length=longest)
    texts = ["good film " * n + "bad" for n in range(6)]
    pairs = pa.array([" bad plot"] * 6 if form == "prompt_completion" else [None] * 6, pa.string())
    columns = {"id": range(6), "role": ["example"] * 6, "text": texts, "text_b": pairs}
    table = pa.table({**columns, "id": pa.array(range(6))})
    rows = memory({"text": table}, {"text": {"format": form}}).run(TextLength(model))
    n_tokens = rows["n_tokens"].to_numpy()
    left = head_of(model).encode(load_tokenizer(model), texts, pairs.to_pylist(), form).lengths
    np.testing.assert_array_equal(left, np.minimum(n_tokens, longest))
    assert n_tokens.min() < longest < n_tokens.max()
