"""The best scores of a stream, against sorting all of them."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.pairs.scores import ATTRIBUTION, FactorRows, merged, scored
from stages.ranking.top_k import Pairs, best, streamed


def sorted_out(scores: np.ndarray, k: int) -> set[tuple[int, int, float]]:
    """By sorting: of each query the k largest above zero and the k smallest below."""
    found = set()
    for query, row in enumerate(scores):
        for sign in (1, -1):
            order = np.argsort(-sign * row, kind="stable")[:k]
            found |= {(query, int(i), float(row[i])) for i in order if sign * row[i] > 0}
    return found


@pytest.mark.slow
@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 400),
    k=st.integers(1, 9),
    cut=st.integers(1, 300),
    levels=st.sampled_from([2, 5, 1000]),
)
def test_a_stream_keeps_what_sorting_keeps(
    seed: int, n: int, k: int, cut: int, levels: int
) -> None:
    """Also with many equal scores, of which the first examples are kept."""
    drawn = np.random.default_rng(seed)
    scores = drawn.integers(-levels, levels + 1, (4, n)).astype(np.float64)
    blocks = ((at, torch.from_numpy(scores[:, at : at + cut])) for at in range(0, n, cut))
    pairs = streamed(blocks, 4, k, torch.float64)
    assert set(zip(*(part.tolist() for part in pairs), strict=True)) == sorted_out(scores, k)
    assert (np.lexsort((pairs.examples, pairs.queries)) == np.arange(len(pairs.scores))).all()


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(0, 200),
    k=st.integers(1, 9),
    levels=st.sampled_from([1, 3, 1000]),
)
def test_the_best_of_pairs_in_any_order(seed: int, n: int, k: int, levels: int) -> None:
    drawn = np.random.default_rng(seed)
    places = drawn.choice(1000, n, replace=False)
    pairs = Pairs(places // 200, places % 200, drawn.integers(0, levels, n).astype(np.float64))
    order = np.lexsort((pairs.examples, -pairs.scores, pairs.queries))
    expected = [
        int(at)
        for query in range(5)
        for at in [at for at in order if pairs.queries[at] == query][:k]
    ]
    assert best(pairs, k).tolist() == sorted(expected)


@pytest.mark.parametrize("top_k", [1, 3, 50, None])
@pytest.mark.parametrize("cuts", [[30], [7, 1, 22], [10, 10, 10]])
def test_shards_merge_to_the_whole(top_k: int | None, cuts: list[int]) -> None:
    drawn = torch.Generator().manual_seed(0)
    factors = [torch.randn(n, 5, generator=drawn, dtype=torch.float64) for n in (6, 6, 30, 30)]
    factors[2][3] = factors[3][3] = 0
    factors[2][[4, 9]], factors[3][[4, 9]] = factors[2][12].clone(), factors[3][12].clone()
    queries = FactorRows(np.arange(6) + 100, (factors[0], factors[1]))
    size = factors[2].norm(dim=1)
    parts = []
    for start, stop in zip(np.cumsum([0, *cuts[:-1]]), np.cumsum(cuts), strict=True):
        some = (factors[2][start:stop], factors[3][start:stop])
        own = FactorRows(np.arange(start, stop), some, size[start:stop])
        parts.append(pa.Table.from_batches([scored(queries, own, top_k)]))
    left, right = parts[:2] if len(parts) > 1 else (parts[0], ATTRIBUTION.schema.empty_table())
    first = pa.Table.from_batches([b for _, b in merged({"attribution": [left, right]}, top_k)])
    rest = {"attribution": [first, *parts[2:]]}
    together = pa.Table.from_batches([batch for _, batch in merged(rest, top_k)])
    scores = ((factors[0] @ factors[2].T) * (factors[1] @ factors[3].T)).numpy()
    rows = together.to_pydict()
    at = (np.array(rows["query_id"]) - 100, np.array(rows["example_id"]))
    np.testing.assert_allclose(rows["score"], scores[at], rtol=1e-12, atol=1e-12)
    product = np.array(rows["global_score"]) * np.array(rows["local_score"])
    np.testing.assert_allclose(product, rows["score"], rtol=1e-14, atol=0)
    assert (np.array(rows["global_score"]) == size.numpy()[at[1]]).all()
    if top_k is None:
        assert together.num_rows == scores.size
    else:
        rounded = scores.round(12)
        kept = {(q, i) for q, i, _ in sorted_out(rounded, top_k)}
        assert set(zip(*(part.tolist() for part in at), strict=True)) == kept


def test_no_example_gives_no_row() -> None:
    assert list(merged({"attribution": [ATTRIBUTION.schema.empty_table()]}, 3)) == []
