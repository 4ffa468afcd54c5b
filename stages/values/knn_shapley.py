"""Soft-label KNN-Shapley: exact Shapley values of examples in a vote of nearest neighbours.

For one query a set of examples is worth the share of its K nearest members (of all, where it has
fewer) that carry the query's label; the empty set is worth 1/C, for C classes. The utility is the
mean over the labelled queries, and so is a value. Source: Wang and Jia 2023, arXiv:2304.04258.

Let the N labelled examples stand in the order of their distance to the query, m_i be 1 where the
i-th has its label and 0 elsewhere, K at most N (a larger one makes the game of K = N), and
H = 1 + 1/2 + ... + 1/K. Then

    s_N = (m_N - 1/C) / N + (m_N - mean(m_1, ..., m_{N-1})) (H - 1) / N
    s_i = s_{i+1} + (m_i - m_{i+1}) ((H - 1) / (N - 1) + min(i, K) / (i K)).

Examples at one distance stand in the order of their ids; distances are rounded to float32. An
example far down the ranks has a value too, so every query takes a whole sort
(`stages.ranking.nearest`), which is a quarter of the time; the matrix product is another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Float64, Int64

from stages.game.efficiency import rounding
from stages.ranking.nearest import (
    EXAMPLES,
    QUERIES,
    Points,
    blocks_of_distances,
    orders,
    place_points,
    queries_at_once,
)
from stages.reading.supervision import count_classes, read_labels
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Split, Stage, Work
from storage.schema import TableSpec

KNN_BLOCK = TableSpec(
    name="knn_block",
    schema=pa.schema(
        [("example_id", pa.int64()), ("total", pa.float64()), ("n_queries", pa.int64())]
    ),
    key=("example_id",),
)
"""Sums of an example's values over the labelled queries of a block, and how many those are."""


class KnnQueries(NamedTuple):
    """The queries of a block that have a label and features, by ascending id."""

    labels: Int64[np.ndarray, " queries"]
    vectors: Float[np.ndarray, "queries dim"]
    n_without_label: int
    n_without_features: int
    """Labelled queries that the feature table lacks."""


class KnnExamples(NamedTuple):
    """The examples that have a label and features, by ascending id."""

    ids: Int64[np.ndarray, " examples"]
    labels: Int64[np.ndarray, " examples"]
    points: Points
    """Their vectors, from which distances are computed."""
    n_classes: int
    n_without_features: int
    """Labelled examples that the feature table lacks."""


def step_weights(n: int, neighbours: int) -> Float64[np.ndarray, " steps"]:
    """The factor of m_i - m_{i+1} in s_i - s_{i+1}, for i = 1 to n - 1."""
    k, i = min(neighbours, n), np.arange(1, n)
    weights: np.ndarray = (_harmonic(k) - 1) / max(n - 1, 1) + np.minimum(i, k) / (i * k)
    return weights


def values_by_rank(
    matches: Bool[np.ndarray, " examples"],
    weights: Float64[np.ndarray, " steps"],
    neighbours: int,
    n_classes: int,
) -> Float64[np.ndarray, " examples"]:
    """Shapley values of the examples for one query, nearest first. Positive helps.

    `matches` says which of them, nearest first, carry the query's label, `weights` are their
    `step_weights`. The values sum to the utility of all examples less 1/C. Cost n.
    """
    n, last = len(matches), float(matches[-1])
    others = (np.count_nonzero(matches) - last) / max(n - 1, 1)
    farthest = (last - 1 / n_classes) / n
    farthest += (last - others) * (_harmonic(min(neighbours, n)) - 1) / n
    values = np.empty(n)
    np.multiply(np.diff(matches.view(np.int8)), weights, out=values[1:])
    values[0] = farthest - values[1:].sum()
    torch.from_numpy(values).cumsum_(0)
    return values


def _harmonic(k: int) -> float:
    """1 + 1/2 + ... + 1/k."""
    return float((1 / np.arange(1, k + 1)).sum())


@dataclass(frozen=True)
class KnnShapley(Stage):
    """Shapley values of examples in a vote of a query's nearest neighbours.

    A task per block of queries. Memory of a task: 90 bytes per example, the distances of up to 128
    queries, at most 1 GB, and a tile of vectors; the other vectors stay in their memory map.
    """

    features: str = "embedding"
    """The feature table that distances are taken in."""
    neighbours: int = 10
    """K, how many neighbours vote. Of 1, 5, 10 and 50 it was 10 that found planted wrong labels
    best in TREC and Subj, and 50 in SST-2."""
    normalize: bool = True
    """Nearest is the largest cosine, and a zero vector has cosine 0 with all; without it, the least
    Euclidean distance."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "query"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def __post_init__(self) -> None:
        """Refuses a number of neighbours below 1.

        Raises:
            ConfigError: it is.
        """
        if self.neighbours < 1:
            raise ConfigError(
                f"knn_shapley: found neighbours: {self.neighbours}, expected at least 1. Raise it."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature table and the labels."""
        return (self.features, "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Sums of values over the queries of a block."""
        return (KNN_BLOCK,)

    def open(self, inputs: Inputs) -> KnnExamples:
        """The examples, once per worker.

        Raises:
            DataError: no example or no query has a label and features, or a vector is too long to
                be multiplied in float32.
        """
        n_classes = count_classes(inputs)
        labelled_ids, labels = read_labels(inputs, "example", n_classes)
        vectors = inputs.vectors(self.features, "example")
        ids, in_labels, in_vectors = _ids_in_both(labelled_ids, vectors.ids)
        # Of all blocks: `table("label", "query")` would give those of the worker's first one.
        labelled = inputs.table("label").select(["id", "role", "label"]).drop_null()
        query_ids = labelled.filter(pc.equal(labelled["role"], "query"))["id"].to_numpy()
        n_queries = int(np.isin(query_ids, inputs.vectors(self.features, "query").ids).sum())
        if not (len(ids) and n_queries):
            raise DataError(
                f"{self.features}: found {len(ids)} examples and {n_queries} queries with a label "
                "and features, expected at least 1 of each. Label some rows; the view diagnostics "
                "tells what became of features."
            )
        points = place_points(vectors.matrix, in_vectors, self.normalize)
        n_without_features = len(labelled_ids) - len(ids)
        return KnnExamples(ids, labels[in_labels], points, n_classes, n_without_features)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Counts of examples used and left out, and of the block's queries left out."""
        examples: KnnExamples = inputs.opened
        queries = self._queries(inputs)
        facts: dict[str, Any] = {
            "n_examples": len(examples.ids),
            "n_without_features": examples.n_without_features,
            "n_without_label": queries.n_without_label,
            "n_left_out": queries.n_without_features,
        }
        if examples.n_without_features:
            facts["notices"] = [
                f"left out for want of features: labelled examples {examples.n_without_features}"
            ]
        return facts

    def compute(self, inputs: Inputs) -> Rows:
        """The sums of one block of queries; no rows where none has a label and features."""
        examples: KnnExamples = inputs.opened
        queries, n = self._queries(inputs), len(examples.ids)
        if not len(queries.labels):
            return
        weights, total = step_weights(n, self.neighbours), torch.zeros(n, dtype=torch.float64)
        blocks = blocks_of_distances(examples.points, queries.vectors)
        gaps, allowed = 0.0, 0.0
        nearest_first = (order for block in blocks for order in orders(block))
        for order, label in zip(nearest_first, queries.labels, strict=True):
            matches = (examples.labels == label)[order]
            values = values_by_rank(matches, weights, self.neighbours, examples.n_classes)
            total.scatter_add_(0, torch.from_numpy(order), torch.from_numpy(values))
            ends = 1 / examples.n_classes, float(matches[: self.neighbours].mean())
            gaps += float(values.sum()) - (ends[1] - ends[0])
            allowed += rounding(ends)
        sums = {"n": len(queries.labels), "total": gaps, "total_allowed": allowed}
        inputs.tell(efficiency={"knn": sums})
        columns = [examples.ids, total.numpy(), np.full(n, len(queries.labels), dtype=np.int64)]
        batch = pa.RecordBatch.from_arrays(list(map(pa.array, columns)), schema=KNN_BLOCK.schema)
        yield KNN_BLOCK.name, batch

    def _queries(self, inputs: Inputs) -> KnnQueries:
        """The part's block of queries."""
        ids, labels = read_labels(inputs, "query", inputs.opened.n_classes)
        vectors = inputs.vectors(self.features, "query")
        usable, in_labels, in_vectors = _ids_in_both(ids, vectors.ids)
        n_without_label = inputs.table("label", "query").num_rows - len(ids)
        n_without_features = len(ids) - len(usable)
        return KnnQueries(
            labels[in_labels], vectors.matrix[in_vectors], n_without_label, n_without_features
        )

    def cost(self, work: Work) -> Cost:
        """An inner product per pair; of a sort and sums per query, 100 log2 n operations a pair."""
        n, m = work.n_examples, work.n_queries
        n_blocks = -(-m * work.n_shards // max(n, 1))
        return Cost(
            flops=m * n * (2.0 * work.dim + 100.0 * np.log2(n + 1)),
            written_bytes=24 * n * n_blocks,
            memory_bytes=(90 + 4 * queries_at_once(n)) * n + 4 * (EXAMPLES + QUERIES) * work.dim,
        )


def _ids_in_both(
    first: Int64[np.ndarray, " _"], second: Int64[np.ndarray, " _"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ids that are in both arrays, ascending, and their positions in each."""
    matches: tuple[np.ndarray, np.ndarray, np.ndarray] = np.intersect1d(
        first, second, assume_unique=True, return_indices=True
    )
    return matches


STAGE = KnnShapley
