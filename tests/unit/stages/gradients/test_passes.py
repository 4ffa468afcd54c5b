"""What one row does must not touch another: batches that do not fit, numbers that are none."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.shard_facts import ShardFacts
from stages.gradients.passes import halving
from stages.gradients.rows import BatchVectors
from stages.stage import StageError


def fitting(most: int) -> Any:
    """A computation with room for `most` rows at a time."""

    def compute(rows: np.ndarray) -> BatchVectors:
        if len(rows) > most:
            raise torch.OutOfMemoryError("no room")
        numbers = rows[:, None].astype(float)
        return BatchVectors(rows, numbers, numbers)

    return compute


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(most: int) -> None:
    told = ShardFacts()
    made = list(halving(fitting(most), np.arange(7), told.tell))
    assert np.concatenate([m.rows for m in made]).tolist() == list(range(7))
    assert max(len(m.rows) for m in made) <= most
    assert told.is_exact_bytes == (most == 7)
    facts = told.details()
    assert (facts.get("is_exact_bytes") is False) == (most < 7)
    assert bool(facts.get("notices")) == (most < 7)


def test_the_allocator_of_cpus_is_understood() -> None:
    def compute(rows: np.ndarray) -> BatchVectors:
        if len(rows) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return fitting(1)(rows)

    assert len(list(halving(compute, np.arange(2), ShardFacts().tell))) == 2


def test_a_row_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(StageError, match=r"row 4 of the shard does not fit alone.*max_length"):
        list(halving(fitting(0), np.array([4]), ShardFacts().tell))


def test_other_failures_pass_through() -> None:
    def compute(rows: np.ndarray) -> BatchVectors:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(halving(compute, np.arange(4), ShardFacts().tell))
