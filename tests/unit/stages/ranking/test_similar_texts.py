"""The examples that LAFA smooths over."""

import numpy as np
import pytest
import torch
from memory_inputs import MemoryInputs, vector_table

from stages.ranking import similar_texts


@pytest.mark.parametrize("block", [100, 13, 1])
def test_equal_examples_stand_by_id_however_they_are_cut(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similar_texts, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    different = torch.randn(25, 384, generator=generator)
    examples = torch.cat([different] * 4)
    inputs = MemoryInputs({"embedding": vector_table(examples, different)})
    queries = [1000 + at for at in range(25)]

    def lists(radius: float) -> dict[int, list[int]]:
        def none(query: int, ids: np.ndarray) -> np.ndarray:
            return np.zeros(len(ids), bool)

        return similar_texts.nearest(inputs, "embedding", queries, 6, radius, none)

    equal = {1000 + at: [at, at + 25, at + 50, at + 75] for at in range(25)}
    assert {query: ids[:4] for query, ids in lists(float("inf")).items()} == equal
    assert lists(0.0) == equal
