"""The documents that frequencies are counted in, and where a continuation begins.

What it is stands in tests/oracle/pairs/test_token_support.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from memory_inputs import MemoryInputs, ShardedInputs
from tiny_models import CHAT

from stages.model.measurement import load_measurement
from stages.model.spec import ModelSpec
from stages.predictions.continuation import Continuation, drawn_documents

IDS = np.arange(20)
TEXT = pa.table({"id": IDS, "role": ["example"] * 20, "text": [f"text {i}" for i in IDS]})


@pytest.mark.parametrize("n", [20, 7])
def test_documents_are_those_drawn_from_the_whole_table(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.predictions.continuation.DOCUMENTS", n)
    whole = drawn_documents(MemoryInputs({"text": TEXT}), seed=3)
    drawn = np.sort(np.random.default_rng(3).permutation(20)[:n]) if n < 20 else IDS
    assert whole.equals(TEXT.take(pa.array(drawn)))
    # Three shards, by turns: of the same places another order of the corpus.
    corpus = np.concatenate([IDS[IDS % 3 == shard] for shard in range(3)])
    cut = drawn_documents(ShardedInputs({"text": TEXT}), seed=3)
    assert cut["id"].to_pylist() == corpus[drawn].tolist()


ASKED = [{"role": "user", "content": "good film"}]
MORE = [
    {"role": "assistant", "content": "bad"},
    {"role": "user", "content": "the plot is"},
]
ANSWER = {"role": "assistant", "content": "dull"}


@pytest.mark.parametrize("before", [ASKED, ASKED + MORE], ids=["one answer", "two answers"])
def test_a_conversation_goes_on_with_its_last_answer(
    saved: Any, before: list[dict[str, str]]
) -> None:
    folder: Path = saved("llama", "CausalLM")
    rows = [json.dumps([*before, ANSWER]), json.dumps([*ASKED, ANSWER])]
    text = pa.table(
        {
            "id": [0, 1],
            "role": ["query", "example"],
            "text": rows,
            "text_b": pa.nulls(2, pa.string()),
        }
    )
    inputs = MemoryInputs({"text": text}, {"text": {"format": "messages"}})
    spec = ModelSpec(str(folder), head="completion", max_length=80)
    tokenizer = load_measurement(spec, inputs).tokenizer
    every = {tokenizer.decode([token]).strip() for token in range(len(tokenizer))}
    found = inputs.run(Continuation(spec, new_tokens=4, words=tuple(every)))
    assert tokenizer.chat_template == CHAT
    begin = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
    assert found["context"][0].as_py() == begin
