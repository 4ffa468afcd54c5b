"""Scores of pairs of a query and an example: the contract and code of the stages that score pairs.

A score is a product of inner products of factors of the query and of the example,

    score(t, i) = <a_t, b_i>   or   <a_t, b_i> <c_t, d_i>,

the second being the inner product of gradients of a last layer, which are outer products. Queries'
factors are made once per worker, those of examples shard by shard, so that scores are computed at
the speed of products of matrices; per query only the `top_k` largest of each sign are kept, unless
`top_k` is null, and merged as a tree of tasks.

A score factors into a global part, at least 0, which depends on the example alone, and a local
part, the signed remainder: their product is the score. [generalised representers, Tsai et al. 2023;
arXiv:2408.05976, whose text could not be read, says that existing methods come apart so]

Sign: positive helps. A positive score raises the query's measured output, see each method.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.capabilities import Merges
from stages.ranking.top_k import Pairs, best, streamed
from stages.reading.supervision import task_of
from stages.reading.vectors import BLOCK
from stages.stage import ConfigError, Cost, Inputs, Role, Rows, Split, Stage, Work
from storage.schema import TableSpec

ATTRIBUTION = TableSpec(
    name="attribution",
    schema=pa.schema(
        [
            ("query_id", pa.int64()),
            ("example_id", pa.int64()),
            ("score", pa.float64()),
            ("global_score", pa.float64()),
            ("local_score", pa.float64()),
        ]
    ),
    key=("query_id", "example_id"),
)
"""The score of an example for a query, with its parts `global_score` >= 0 and `local_score`, whose
product it is; these are null for methods whose scores do not factor so."""

TOP_K = 100
NUMBERS = 2**24
"""Most scores that are held at a time."""
Factors = tuple[Tensor, ...]
"""One or two matrices (rows, dim) of the same rows, whose inner products make up scores."""


class FactorRows(NamedTuple):
    """Ids of queries or of examples, and the factors whose inner products are scores."""

    ids: Int64[np.ndarray, " rows"]
    """Ascending."""
    factors: Factors
    magnitude: Float[Tensor, " rows"] | None = None
    """The global parts of the examples' scores, for methods that have them."""
    shared: Any = None
    """Of queries: what factors of every shard of examples need as well, such as a fitted head."""


def check_gradients(name: str, writer: Any) -> None:
    """Refuses gradients per token, of which a row has several.

    Raises:
        ConfigError: the instance `name`, the stage `writer`, writes these.
    """
    if getattr(writer, "per", "row") != "row":
        raise ConfigError(
            f"{name}: found per: {writer.per}, expected one gradient per row, as pairs of rows are "
            "scored. Set per: row there, or name another instance."
        )


def score(
    queries: Factors, examples: Factors, rooms: Factors | None = None
) -> Float[Tensor, "queries examples"]:
    """The score of every pair of a query and an example.

    `rooms` are flat buffers, one for each factor and large enough for its products; the scores lie
    in the first.
    """
    products = []
    for index, (left, right) in enumerate(zip(queries, examples, strict=True)):
        shape = len(left), len(right)
        room = None if rooms is None else rooms[index][: shape[0] * shape[1]].view(shape)
        products.append(torch.mm(left, right.T, out=room))
    for other in products[1:]:
        products[0] *= other
    return products[0]


def scored(queries: FactorRows, examples: FactorRows, top_k: int | None) -> pa.RecordBatch:
    """Rows of `ATTRIBUTION`: each query's `top_k` largest scores of each sign, or all of them.

    Cost 2 queries * examples * dim; memory NUMBERS scores and what is kept.
    """
    n_queries, n_examples = len(queries.ids), len(examples.ids)
    width = n_examples if top_k is None else min(BLOCK, n_examples)
    per_block = max(1, min(n_queries, NUMBERS // max(1, width)))
    # Memory that is used again is there already: asking the system for it takes a third of the
    # time that the product does.
    rooms = tuple(factor.new_empty(per_block * width) for factor in queries.factors)
    parts = []
    for start in range(0, n_queries, per_block):
        block = tuple(factor[start : start + per_block] for factor in queries.factors)
        if top_k is None:
            pairs = kept(score(block, examples.factors), None)
        else:
            score_blocks = _score_blocks(block, examples.factors, rooms)
            pairs = streamed(score_blocks, len(block[0]), top_k, block[0].dtype)
        parts.append(pairs._replace(queries=pairs.queries + start))
    if not parts:
        return pa.RecordBatch.from_pylist([], schema=ATTRIBUTION.schema)
    pairs = Pairs(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    size = None if examples.magnitude is None else examples.magnitude.double().numpy()
    return pair_rows(queries.ids, examples.ids, pairs, size)


def kept(scores: Float[Tensor, "queries examples"], top_k: int | None) -> Pairs:
    """Each query's `top_k` largest scores of each sign, or all, from a matrix of scores."""
    if top_k is None:
        rows, columns = np.divmod(np.arange(scores.numel()), max(1, scores.shape[1]))
        return Pairs(rows, columns, scores.numpy().reshape(-1))
    starts = range(0, scores.shape[1], BLOCK)
    blocks = ((first, scores[:, first : first + BLOCK]) for first in starts)
    return streamed(blocks, len(scores), top_k, scores.dtype)


def pair_rows(
    query_ids: Int64[np.ndarray, " queries"],
    example_ids: Int64[np.ndarray, " examples"],
    pairs: Pairs,
    magnitude: Float[np.ndarray, " examples"] | None = None,
) -> pa.RecordBatch:
    """Rows of `ATTRIBUTION` for `pairs`, which name queries and examples by position.

    `magnitude` are the global parts of the examples; without them both parts are null.
    """
    rows, columns, values = pairs.queries, pairs.examples, pairs.scores.astype(np.float64)
    globally = locally = pa.nulls(len(values), pa.float64())
    if magnitude is not None:
        size = magnitude[columns]
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = np.where(size > 0, values / size, 0.0)
        globally, locally = pa.array(size), pa.array(rest)
    ids = [pa.array(query_ids[rows]), pa.array(example_ids[columns])]
    return pa.RecordBatch.from_arrays(
        [*ids, pa.array(values), globally, locally], schema=ATTRIBUTION.schema
    )


def _score_blocks(
    queries: Factors, examples: Factors, rooms: Factors
) -> Iterator[tuple[int, Float[Tensor, "queries block"]]]:
    """The number of the first example, and the scores, of each block of examples."""
    for first in range(0, len(examples[0]), BLOCK):
        block = tuple(factor[first : first + BLOCK] for factor in examples)
        yield first, score(queries, block, rooms)


def merged(parts: Mapping[str, Sequence[pa.Table]], top_k: int | None) -> Rows:
    """Rows of `ATTRIBUTION` merged: each query's `top_k` of each sign among those of all parts."""
    together = pa.concat_tables(parts[ATTRIBUTION.name])
    if together.num_rows == 0:
        return
    queries, examples = (together[name].to_numpy() for name in ATTRIBUTION.key)
    values = together["score"].to_numpy()
    kept = np.arange(len(values))
    if top_k is not None:
        rows = np.searchsorted(np.unique(queries), queries)
        sides = []
        for sign in (1, -1):
            at = np.flatnonzero(sign * values > 0)
            sides.append(at[best(Pairs(rows[at], examples[at], sign * values[at]), top_k)])
        kept = np.concatenate(sides)
    order = kept[np.lexsort((examples[kept], queries[kept]))]
    for batch in together.take(pa.array(order)).combine_chunks().to_batches():
        yield ATTRIBUTION.name, batch


def left_out(inputs: Inputs, names: Sequence[str]) -> int:
    """How many examples of the part's shard have a label or target and lack a row in a table."""
    label = inputs.table("label")
    answer = "target" if task_of(inputs) == "regression" else "label"
    label = label.filter(pa.compute.equal(label["role"], "example")).select(["id", answer])
    ids = label.drop_null()["id"].to_numpy()
    has_all = np.ones(len(ids), dtype=bool)
    for name in names:
        has_all &= np.isin(ids, inputs.table(name)["id"].to_numpy())
    return int((~has_all).sum())


def whitened(
    rows: Float[Tensor, "rows dim"], lower: Float[Tensor, "dim dim"]
) -> Float[Tensor, "rows dim"]:
    """L^-1 g of every row g, whose inner products are g' (L L')^-1 g; float64.

    `lower` is L. Cost rows * dim^2.
    """
    solved: Tensor = torch.linalg.solve_triangular(lower, rows.double().T, upper=False)
    return solved.T


def pairs_cost(work: Work, dim: int, top_k: int | None) -> Cost:
    """The cost of scoring all pairs by one product of matrices, and of the rows that are kept."""
    per_shard = work.n_examples / max(1, work.n_shards)
    kept = work.n_examples if top_k is None else min(2 * top_k * work.n_shards, work.n_examples)
    held = per_shard if top_k is None else min(per_shard, 2 * top_k)
    scored_at_once = min(NUMBERS, work.n_queries * min(per_shard, BLOCK))
    return Cost(
        flops=2.0 * work.n_examples * work.n_queries * dim,
        written_bytes=round(24 * work.n_queries * kept),
        memory_bytes=round(
            8 * dim * work.n_queries
            + 16 * dim * per_shard
            + 16 * scored_at_once
            + 8 * 40 * work.n_queries * held
        ),
    )


@dataclass(frozen=True)
class KeptPairs(Stage, contract=True):
    """A stage that scores pairs of queries and examples, and keeps the top-k of each query."""

    top_k: int | None = field(default=TOP_K, kw_only=True)
    """Scores of each sign that are kept per query, the largest in size; null keeps all pairs."""

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Refuses a number of kept scores below 1.

        Raises:
            ConfigError: it is.
        """
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(
                f"top_k: found {self.top_k}, expected at least 1, or null for all pairs. Correct "
                "it."
            )

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Scores, with their global and local parts where the method has them."""
        return (ATTRIBUTION,)


@dataclass(frozen=True)
class PairScores(KeptPairs, Merges, contract=True):
    """A stage whose scores are products of factors, which its `queries` and `examples` return.

    A task holds the factors of one shard of examples and of all queries, and 16 million scores.
    """

    split: ClassVar[Split] = "shard"
    opens: ClassVar[tuple[Role, ...]] = ("query",)

    @abstractmethod
    def queries(self, inputs: Inputs) -> FactorRows:
        """Factors of all queries, once per worker; `examples` finds them in `inputs.opened`.

        Raises:
            DataError: there is no query.
        """

    @abstractmethod
    def examples(self, inputs: Inputs) -> FactorRows:
        """Factors of the examples of the part's own shard."""

    def width(self, work: Work) -> int:
        """Numbers of a row's factors together, for `cost`."""
        return work.dim

    def open(self, inputs: Inputs) -> FactorRows:
        """Factors of all queries."""
        return self.queries(inputs)

    def compute(self, inputs: Inputs) -> Rows:
        """The top-k scores of each query among the examples of one shard."""
        examples = self.examples(inputs)
        if len(examples.ids):
            yield ATTRIBUTION.name, scored(inputs.opened, examples, self.top_k)

    def merge(self, parts: Mapping[str, Sequence[pa.Table]]) -> Rows:
        """The top-k scores of each query among those of several parts."""
        return merged(parts, self.top_k)

    def cost(self, work: Work) -> Cost:
        """One product of the factors of queries and examples."""
        return pairs_cost(work, self.width(work), self.top_k)
