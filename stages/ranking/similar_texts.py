"""The training texts that LAFA smooths over for a query: similar ones, or those of high score.

    embedding   the nearest examples by Euclidean distance in a table of embeddings, at most
                `limit` and within a distance that is a quantile of all distances between examples
    spectrum    the examples of the query's general support spectrum
    freeshap    the examples with the largest positive Shapley values for the query

The last two are ours: token scores are then smoothed over the training texts that support the
prediction, and not over texts that look alike.

Source: Zhang et al. 2022, arXiv:2204.10893, section 3. The paper does not say how tokens are pooled
to one vector of a text: here by their mean, as `stages.features.embedding` does. Its quantile is
taken over 2,000 drawn pairs of examples.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stages.reading.vectors import matrix_of
from stages.stage import Inputs
from stages.tables import GENERAL

Kind = Literal["embedding", "spectrum", "freeshap"]
TABLES = {"embedding": "embedding", "spectrum": "support", "freeshap": "shapley_by_query"}
"""The table that each kind reads."""
PAIRS = 2000
"""Pairs of examples drawn for the quantile of distances."""
BLOCK, DISTANCES = 65_536, 2**24
"""Most examples, and most distances, that are computed at a time."""


def cut_off(vectors: np.ndarray, quantile: float, seed: int) -> float:
    """The quantile of distances between drawn pairs of different examples; inf without pairs."""
    rng = np.random.default_rng([seed, 0, 7])
    n = len(vectors)
    if n < 2:
        return float("inf")
    first = rng.integers(n, size=PAIRS)
    second = (first + rng.integers(1, n, size=PAIRS)) % n
    distances = np.linalg.norm(
        vectors[first].astype(np.float64) - vectors[second].astype(np.float64), axis=1
    )
    return float(np.quantile(distances, quantile))


def nearest(
    inputs: Inputs,
    source: str,
    query_ids: Sequence[int],
    limit: int,
    radius: float,
    is_left_out: Callable[[int, np.ndarray], np.ndarray],
) -> dict[int, list[int]]:
    """Ids of the `limit` nearest examples of each query within `radius`, nearest first.

    Distances are those of the vectors in the table `source`; equal ones stand by id.
    `is_left_out(query_id, example_ids)` marks examples that must not be listed. Cost 2 queries
    examples dim. Memory: a block of examples, 48 bytes a distance.
    """
    query_rows = inputs.table(source, "query")
    query_rows = query_rows.filter(pc.is_in(query_rows["id"], pa.array(query_ids)))
    queries = torch.from_numpy(np.array(matrix_of(query_rows["vector"]), dtype=np.float32))
    examples = inputs.vectors(source, "example")
    best = torch.full((len(queries), 0), torch.inf, dtype=torch.float64)
    ids = torch.zeros(len(queries), 0, dtype=torch.int64)
    width = min(BLOCK, max(1, DISTANCES // max(1, len(queries))))
    for start in range(0, len(examples.ids), width):
        part = slice(start, start + width)
        rows = torch.from_numpy(np.array(examples.matrix[part], dtype=np.float32))
        # A product of matrices would have equal examples at several distances, and none at 0.
        exact = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(queries, rows, compute_mode=exact).double()
        part_ids = np.array(examples.ids[part])
        for row, query in enumerate(query_rows["id"].to_pylist()):
            distances[row, torch.from_numpy(is_left_out(query, part_ids))] = torch.inf
        best = torch.cat([best, distances], 1)
        ids = torch.cat([ids, torch.from_numpy(part_ids).expand(len(queries), -1)], 1)
        ids, order = ids.sort(dim=1)
        best, order = best.gather(1, order).sort(dim=1, stable=True)
        best, ids = best[:, :limit], ids.gather(1, order)[:, :limit]
    return {
        int(query): [int(i) for i, d in zip(row, far, strict=True) if d <= radius and d < torch.inf]
        for query, row, far in zip(query_rows["id"].to_pylist(), ids, best, strict=True)
    }


def of_spectrum(support: pa.Table, query_id: int, limit: int) -> list[int]:
    """Ids of at most `limit` examples of a query's general spectrum, evenly spaced in rank.

    Both ends of the spectrum are among them.
    """
    own = support.filter(
        pc.and_(pc.equal(support["query_id"], query_id), pc.equal(support["contrast"], GENERAL))
    ).sort_by("rank")
    ids: list[int] = own["example_id"].to_pylist()
    if len(ids) <= limit:
        return ids
    return [ids[round(rank)] for rank in np.linspace(0, len(ids) - 1, limit)]


def of_values(values: pa.Table, query_id: int, limit: int) -> list[int]:
    """Ids of the `limit` examples with the largest positive values for a query, largest first.

    `values` are rows of `shapley_query`: of several semivalues the Shapley value counts, of several
    utilities the cross-entropy.
    """
    for name, preferred in (("semivalue", "shapley"), ("utility", "cross_entropy")):
        present = sorted(set(values[name].to_pylist()))
        kept = preferred if preferred in present else (present or [""])[0]
        values = values.filter(pc.equal(values[name], kept))
    own = values.filter(
        pc.and_(pc.equal(values["query_id"], query_id), pc.greater(values["value"], 0.0))
    ).sort_by([("value", "descending"), ("example_id", "ascending")])
    ids: list[int] = own["example_id"].to_pylist()
    return ids[:limit]
