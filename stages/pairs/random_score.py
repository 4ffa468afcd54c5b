"""A random number for every pair: the baseline that knows nothing.

Uniform between -1 and 1, and never 0. A pair's number is a hash of the seed and the two ids: it
does not depend on how examples are cut into shards, nor on which others there are.

It does not come apart into a global and a local part.

Source: the generator SplitMix64, Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195: every
query has a stream of its own, in which an example's id is the place of its number.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float64, Int64

from stages.pairs.scores import ATTRIBUTION, NUMBERS, FactorRows, PairScores, kept, pair_rows
from stages.reading.drawn import STEP, mixed
from stages.stage import Inputs, Role, Rows, Work


def uniform(
    seed: int, queries: Int64[np.ndarray, " queries"], examples: Int64[np.ndarray, " examples"]
) -> Float64[np.ndarray, "queries examples"]:
    """The number of every pair: an odd multiple of 2^-52 between -1 and 1."""
    # Sums and products of unsigned integers are modulo 2^64.
    start = mixed(mixed(np.array([seed]).astype(np.uint64) + STEP) + queries.astype(np.uint64))
    hashed = mixed(start[:, None] + examples.astype(np.uint64) * STEP)
    numbers: np.ndarray = ((hashed >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-51 - 1
    return numbers


@dataclass(frozen=True)
class RandomScore(PairScores):
    """Scores of the pairs of all queries and examples.

    A task holds one shard's ids, and 4 million scores.
    """

    seed: int = 0
    """Another seed gives other numbers."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The table that has every id."""
        return ("label",)

    def queries(self, inputs: Inputs) -> FactorRows:
        """Ids of all queries."""
        return FactorRows(_ids(inputs, "query"), ())

    def examples(self, inputs: Inputs) -> FactorRows:
        """Ids of the examples of one shard."""
        return FactorRows(_ids(inputs, "example"), ())

    def width(self, work: Work) -> int:
        """Some twenty operations per pair."""
        return 10

    def compute(self, inputs: Inputs) -> Rows:
        """The top-k scores of each query among the examples of one shard."""
        queries, examples = inputs.opened.ids, self.examples(inputs).ids
        at_once = max(1, NUMBERS // 4 // max(1, len(examples)))
        for start in range(0, len(queries), at_once):
            block = queries[start : start + at_once]
            scores = torch.from_numpy(uniform(self.seed, block, examples))
            yield ATTRIBUTION.name, pair_rows(block, examples, kept(scores, self.top_k))


def _ids(inputs: Inputs, role: Role) -> np.ndarray:
    """Ids, ascending, of the rows of one role; of examples those of the part's own shard."""
    table = inputs.table("label", role)
    table = table.filter(pa.compute.equal(table["role"], role))
    return np.sort(table["id"].to_numpy())


STAGE = RandomScore
