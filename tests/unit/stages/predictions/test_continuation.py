"""The documents that frequencies are counted in."""

import numpy as np
import pyarrow as pa
import pytest
from memory_inputs import MemoryInputs, ShardedInputs

from stages.predictions.continuation import drawn_documents

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
