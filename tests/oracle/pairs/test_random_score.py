"""Random scores: a hash of seed, query and example, and uniform."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.pairs.random_score import RandomScore, uniform
from stages.stage import ConfigError

MASK = 2**64 - 1


def mixed(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def by_loop(seed: int, query: int, example: int) -> float:
    """In whole numbers of any length."""
    gamma = 0x9E3779B97F4A7C15
    start = mixed((mixed((seed + gamma) & MASK) + query) & MASK)
    number = mixed((start + example * gamma) & MASK)
    return (2 * (number >> 12) + 1 - 2**52) / 2**52


class Ids:
    """`Inputs` of some examples and all queries."""

    def __init__(self, memory: Any, examples: np.ndarray, queries: np.ndarray):
        self.memory, self.ids = memory, {"example": examples, "query": queries}

    def run(self, stage: RandomScore) -> pa.Table:
        inputs = self.memory({})
        inputs.table = lambda name, role: pa.table(
            {"id": self.ids[role], "role": [role] * len(self.ids[role])}
        )
        return inputs.run(stage)


def test_the_mixer_is_the_published_one() -> None:
    # The first numbers of SplitMix64 from 1234567, as many libraries test theirs.
    gamma = 0x9E3779B97F4A7C15
    found = [mixed((1234567 + i * gamma) & MASK) for i in (1, 2, 3)]
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", [0, 7, -3])
def test_a_pair_has_its_own_number(memory: Any, seed: int) -> None:
    examples, queries = np.array([5, 2**62 + 3, 0, 17, -4]), np.array([2**61, 3])
    found = Ids(memory, examples, queries).run(RandomScore(seed=seed, top_k=None))
    assert found.num_rows == 10
    assert found["global_score"].null_count == found["local_score"].null_count == 10
    for row in found.to_pylist():
        assert row["score"] == by_loop(seed, row["query_id"], row["example_id"])


@pytest.mark.parametrize("top_k", [2, None])
def test_shards_do_not_matter(memory: Any, top_k: int | None) -> None:
    stage, queries = RandomScore(top_k=top_k), np.arange(6) * 11
    whole = Ids(memory, np.arange(40), queries).run(stage)
    parts = [Ids(memory, some, queries).run(stage) for some in (np.arange(33), np.arange(33, 40))]
    ((_, together),) = stage.merge({"attribution": parts})
    assert pa.Table.from_batches([together]).equals(whole)


def test_numbers_are_uniform_and_apart() -> None:
    """Moments and correlations of neighbouring ids, queries and seeds, within 5 standard errors."""
    numbers = uniform(0, np.arange(300), np.arange(1000))
    n = numbers.size
    assert (np.abs(numbers) < 1).all()
    assert (numbers != 0).all()
    assert abs(numbers.mean()) < 5 * (1 / 3 / n) ** 0.5
    assert abs((numbers**2).mean() - 1 / 3) < 5 * (4 / 45 / n) ** 0.5
    others = (
        (numbers[1:], numbers[:-1]),
        (numbers[:, 1:], numbers[:, :-1]),
        (numbers, uniform(1, np.arange(300), np.arange(1000))),
    )
    for one, other in others:
        assert abs((one * other).mean()) < 5 / 3 / one.size**0.5
    counts, _ = np.histogram(numbers, 50, (-1, 1))
    chi_square = ((counts - n / 50) ** 2 / (n / 50)).sum()
    assert chi_square < 49 + 5 * (2 * 49) ** 0.5


def test_top_k_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="top_k: found 0"):
        RandomScore(top_k=0)
