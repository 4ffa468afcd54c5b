"""Support sets by half-spaces, spectra by a sweep of the bound, and shards by the whole."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from memory_inputs import MemoryInputs

from stages.pairs.support import SUPPORT, SUPPORT_SIZE, Support
from stages.ranking.spectrum import frontier, global_scores, is_between, runner_up
from stages.stage import ConfigError, DataError, Part
from stages.tables import GENERAL

CLASSES = ["red", "green", "blue"]


def swept(ids: np.ndarray, g: np.ndarray, local: np.ndarray) -> list[int]:
    """z_delta for every delta that can matter: between any two local scores, and below all."""
    found = []
    for delta in [-np.inf, *np.unique(local)[:-1]]:
        inside = np.flatnonzero(local > delta)
        best = sorted(inside, key=lambda at: (-g[at], -local[at], ids[at]))[0]
        if best not in found:
            found.append(int(best))
    return found


def test_a_frontier_is_a_sweep_of_the_bound() -> None:
    """1,000 cases, most with ties in both scores."""
    drawn = np.random.default_rng(0)
    for case in range(1000):
        n, levels = int(drawn.integers(1, 16)), [3, 6, 10**6][case % 3]
        g, local = (drawn.integers(0, levels, n).astype(float) for _ in range(2))
        ids = drawn.permutation(n)
        assert frontier(ids, g, local).at.tolist() == swept(ids, g, local)


@pytest.mark.parametrize("n", [0, 1])
def test_frontiers_of_nothing_and_of_one(n: int) -> None:
    assert len(frontier(np.zeros(n, int), np.zeros(n), np.zeros(n)).at) == n


def head(seed: int, n: int, d: int = 5, c: int = 3) -> tuple[np.ndarray, ...]:
    drawn = np.random.default_rng(seed)
    features, weight = drawn.standard_normal((n, d)), drawn.standard_normal((c, d))
    bias = drawn.standard_normal(c)
    return features, features @ weight.T + bias, weight


@pytest.mark.parametrize("seed", range(5))
def test_margins_are_half_spaces(seed: int) -> None:
    """w_k . (f_t - f_i) > 0 with w_k = W_c - W_k; the general set by W_c, or by every k."""
    features, logits, weight = head(seed, 40)
    own, query, c = features[1:], features[0], int(logits[0].argmax())
    others = [k for k in range(3) if k != c]
    between = {k: (query - own) @ (weight[c] - weight[k]) > 0 for k in others}
    for k in others:
        assert (is_between(logits[1:], logits[0], c, k, "logit") == between[k]).all()
    by_logit = is_between(logits[1:], logits[0], c, GENERAL, "logit")
    assert (by_logit == ((query - own) @ weight[c] > 0)).all()
    every = is_between(logits[1:], logits[0], c, GENERAL, "every_class")
    assert (every == np.logical_and(*between.values())).all()


def test_global_scores() -> None:
    logits = head(3, 20)[1]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(global_scores(logits, 1, GENERAL, "residual"), 1 - p[:, 1])
    pair = np.exp(logits[:, 2]) / (np.exp(logits[:, 1]) + np.exp(logits[:, 2]))
    assert np.allclose(global_scores(logits, 1, 2, "residual"), pair)
    assert (global_scores(logits, 1, 2, "negative_logit") == logits[:, 2] - logits[:, 1]).all()
    assert (global_scores(logits, 1, GENERAL, "negative_logit") == -logits[:, 1]).all()
    expected = [sorted(range(3), key=lambda k: row[k])[1] for row in logits]
    assert runner_up(logits).tolist() == expected


class Tables(MemoryInputs):
    """A shard of examples and all queries, which come first in every array."""

    def __init__(self, features: np.ndarray, logits: np.ndarray, labels: np.ndarray, first: int):
        self.features, self.logits, self.first = features, logits, first
        self.labels: Any = pa.array(labels)
        self.at, self.source = np.arange(first, len(features)), "probe"
        super().__init__(
            {
                "embedding": lambda: self.both(self.vector_rows),
                "prediction": lambda: self.both(self.logit_rows),
                "label": lambda: pa.table({"id": self.at, "label": self.labels.take(self.at)}),
            },
            {"label": {"classes": CLASSES, "task": "classification"}},
            part=Part("example", 0),
        )

    def both(self, rows: Callable[[np.ndarray, str], pa.Table]) -> pa.Table:
        return pa.concat_tables([rows(np.arange(self.first), "query"), rows(self.at, "example")])

    def own(self, at: np.ndarray, role: str) -> dict[str, pa.Array]:
        return {"id": pa.array(at, pa.int64()), "role": pa.array([role] * len(at), pa.string())}

    def vector_rows(self, at: np.ndarray, role: str) -> pa.Table:
        return pa.table({**self.own(at, role), "vector": lists(self.features[at])})

    def logit_rows(self, at: np.ndarray, role: str) -> pa.Table:
        sources = pa.array([self.source] * len(at), pa.string())
        return pa.table({**self.own(at, role), "source": sources, "logits": lists(self.logits[at])})


def lists(rows: np.ndarray) -> pa.FixedSizeListArray:
    flat = pa.array(rows.astype(np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])


def computed(stage: Support, inputs: Tables, at: np.ndarray | None = None) -> dict[str, pa.Table]:
    inputs.opened = stage.open(inputs)
    inputs.at = at if at is not None else inputs.at
    parts = dict(stage.compute(inputs))
    return {name: pa.Table.from_batches([batch]) for name, batch in parts.items()}


def tables(seed: int = 0) -> tuple[Tables, np.ndarray]:
    features, logits, _ = head(seed, 96)
    labels = np.random.default_rng(seed).integers(0, 3, 96)
    logits = logits.astype(np.float32).astype(np.float64)
    return Tables(features, logits, labels, 6), labels


@pytest.mark.parametrize("general", ["logit", "every_class", "runner_up", None])
@pytest.mark.parametrize("contrasts", ["all", "runner_up", ("green", 2)])
@pytest.mark.parametrize("membership", ["label", "label_and_prediction"])
def test_rows_say_what_the_definitions_say(general: Any, contrasts: Any, membership: Any) -> None:
    inputs, labels = tables()
    stage = Support(general=general, contrasts=contrasts, membership=membership)
    found = computed(stage, inputs)
    features, logits = (
        part.astype(np.float32).astype(float) for part in (inputs.features, inputs.logits)
    )
    sizes = {(q, k): n for q, k, n in zip(*found["support_size"].to_pydict().values(), strict=True)}
    rows = found["support"].to_pylist()
    for query in range(6):
        c, second = int(logits[query].argmax()), int(runner_up(logits[[query]])[0])
        wanted = {"all": {0, 1, 2}, "runner_up": {second}}.get(contrasts, {1, 2}) - {c}
        expected = wanted | ({GENERAL} if general else set())
        assert {k for q, k in sizes if q == query} == expected
        for k in expected:
            towards = second if k == GENERAL and general == "runner_up" else k
            inside = [
                i
                for i in range(6, 96)
                if labels[i] == c
                and (membership == "label" or logits[i].argmax() == c)
                and is_between(logits[[i]], logits[query], c, towards, general or "logit")[0]
            ]
            assert sizes[query, k] == len(inside)
            mine = [row for row in rows if (row["query_id"], row["contrast"]) == (query, k)]
            assert [row["rank"] for row in mine] == list(range(1, len(mine) + 1))
            if not inside:
                assert mine == []
                continue
            at = np.array(inside)
            g = global_scores(logits[at], c, towards, "negative_logit")
            expected_rows = at[swept(at, g, features[at] @ features[query])]
            assert [row["example_id"] for row in mine] == expected_rows.tolist()


@pytest.mark.parametrize("similarity", ["inner_product", "cosine"])
def test_shards_merge_to_the_whole(similarity: Any) -> None:
    inputs, _ = tables(1)
    stage = Support(similarity=similarity)
    whole = computed(stage, inputs)
    shards = [computed(stage, inputs, at) for at in np.split(np.arange(6, 96), [7, 40])]
    merged = shards[0]
    for shard in shards[1:]:
        parts = {name: [merged[name], shard[name]] for name in whole}
        merged = {n: pa.Table.from_batches([b]) for n, b in stage.merge(parts)}
    for name in (SUPPORT.name, SUPPORT_SIZE.name):
        left, right = (t[name].to_pydict() for t in (merged, whole))
        assert left.keys() == right.keys()
        for column in left:
            np.testing.assert_allclose(left[column], right[column], rtol=1e-12)


def test_no_example_between_is_a_result() -> None:
    """A query less sure of its class than any example of it has sets of size 0 and no spectrum."""
    inputs, labels = tables(2)
    c = int(inputs.logits[0].argmax())
    inputs.logits[0] = 0
    inputs.logits[0][c] = 1e-9
    at = np.flatnonzero(labels == c)
    inputs.logits[at[at >= 6]] += 50 * np.eye(3)[c]
    found = computed(Support(), inputs)
    mine = found["support_size"].filter(pa.compute.equal(found["support_size"]["query_id"], 0))
    assert mine["n_support"].to_pylist() == [0, 0, 0]
    assert 0 not in found["support"]["query_id"].to_pylist()


@pytest.mark.parametrize("at", [np.arange(0), np.arange(6, 20)])
def test_nothing_to_look_at_gives_no_row_and_sizes_of_zero(at: np.ndarray) -> None:
    """A shard whose examples all lack a label, and queries that are all of the one class named."""
    inputs, _ = tables(3)
    inputs.labels = pa.array([None if i not in at else 0 for i in range(96)], pa.int64())
    inputs.logits[:6] = 3 * np.eye(3)[0]
    found = computed(Support(contrasts=("red",), general=None), inputs, at)
    assert (found["support"].num_rows, found["support_size"].num_rows) == (0, 0)
    found = computed(Support(), inputs, at[:0])
    assert found["support"].num_rows == 0
    assert found["support_size"]["n_support"].to_pylist() == [0] * 18
    merged = dict(Support().merge({name: [table] * 2 for name, table in found.items()}))
    assert merged["support_size"].num_rows == 18


def test_the_outputs_of_a_kernel_are_no_logits() -> None:
    inputs, _ = tables(0)
    inputs.source = "kernel"
    with pytest.raises(DataError, match="expected the logits of one model or probe"):
        Support().open(inputs)


def test_what_is_refused() -> None:
    inputs, _ = tables()
    with pytest.raises(ConfigError, match="found none"):
        Support(contrasts=(), general=None)
    with pytest.raises(ConfigError, match="found 'pink', expected classes of red"):
        Support(contrasts=("pink",)).open(inputs)
    with pytest.raises(ConfigError, match="contrasts: found -1, expected classes of"):
        Support(contrasts=(-1,)).open(inputs)
    inputs.first = 0
    with pytest.raises(DataError, match="no query"):
        Support().open(inputs)
