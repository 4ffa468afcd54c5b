"""Votes of the nearest neighbours against their definition, by brute force.

Features are small integers, so that float32 distances are exact and rows at one distance tie.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs, ShardedInputs, label_table, vector_table

from stages.predictions.neighbour_vote import (
    NeighbourVote,
    likeliest_rates,
    wrong_of_each,
)
from stages.reading.drawn import is_drawn
from stages.stage import ConfigError, DataError, Part

CLASSES = 3


def corpus(n: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points on a small grid, and labels that follow one of their numbers, a fifth at random."""
    g = np.random.default_rng(seed)
    x = g.integers(-4, 5, size=(n, 3)).astype(np.float32)
    clean = np.digitize(x[:, 0], (-1, 2))
    return x, np.where(g.random(n) < 0.2, g.integers(CLASSES, size=n), clean)


def tables(x: np.ndarray, labels: list[int | None]) -> dict[str, pa.Table]:
    features = vector_table(torch.from_numpy(x), torch.zeros(1, x.shape[1]))
    return {
        "label": label_table({"example": dict(enumerate(labels)), "query": {1000: 0}}),
        "embedding": features,
    }


def run(stage: NeighbourVote, x: np.ndarray, labels: list[int | None]) -> MemoryInputs:
    """Inputs whose `written` and `opened` are of the stage."""
    inputs = MemoryInputs(tables(x, labels), {"label": {"classes": ["class"] * CLASSES}})
    inputs.run(stage, Part("example", 0))
    return inputs


def neighbours_of(x: np.ndarray, row: int, voters: list[int], k: int, normalize: bool) -> list[int]:
    """The k nearest voters but the row itself, nearest first; ties by id."""

    def distance(other: int) -> float:
        a, b = x[row].astype(float), x[other].astype(float)
        if not normalize:
            return float(((a - b) ** 2).sum())
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return -round(float(a @ b / lengths), 6) if lengths else 0.0

    others = [voter for voter in voters if voter != row]
    return sorted(others, key=lambda other: (distance(other), other))[:k]


@pytest.mark.parametrize("drawn", [None, 40])
def test_votes_are_those_of_the_nearest_others(drawn: int | None) -> None:
    x, labels = corpus()
    stage = NeighbourVote(neighbours=7, normalize=False, **({"rows": drawn} if drawn else {}))
    found = run(stage, x, labels.tolist()).written["neighbour_vote"].to_pylist()
    voters = np.flatnonzero(is_drawn(np.arange(len(x)), drawn or len(x))).tolist()
    assert len(voters) == (drawn or len(x))
    outvoted = 0
    for row, line in enumerate(found):
        near = neighbours_of(x, row, voters, 7, normalize=False)
        counts = [sum(labels[i] == c for i in near) for c in range(CLASSES)]
        given = int(labels[row])
        assert (line["example_id"], line["given_label"]) == (row, given)
        assert line["share"] == counts[given] / 7
        length = sum(count**2 for count in counts) ** 0.5
        assert line["label_score"] == pytest.approx(counts[given] / length, abs=1e-15)
        most = [c for c in range(CLASSES) if counts[c] == max(counts)]
        assert line["voted_label"] == (given if given in most else most[0])
        assert line["is_outvoted"] == (max(counts) > counts[given])
        outvoted += line["is_outvoted"]
    assert 5 < outvoted < 45


def test_nearest_is_the_largest_cosine() -> None:
    g = np.random.default_rng(1)
    x, labels = g.normal(size=(60, 4)).astype(np.float32), g.integers(CLASSES, size=60)
    x *= g.uniform(0.1, 10, size=(60, 1)).astype(np.float32)
    found = run(NeighbourVote(neighbours=5), x, labels.tolist()).written["neighbour_vote"]
    for row, share in enumerate(found["share"].to_pylist()):
        near = neighbours_of(x, row, list(range(60)), 5, normalize=True)
        assert share == np.mean(labels[near] == labels[row])


def test_of_each_label_as_many_are_low_ranked_as_are_expected_to_be_wrong() -> None:
    x, labels = corpus(120, seed=2)
    inputs = run(NeighbourVote(neighbours=6, normalize=False), x, labels.tolist())
    found, wrong = inputs.written["neighbour_vote"], inputs.opened.wrong
    score, is_low = found["label_score"].to_numpy(), found["is_low_ranked"].to_numpy(False)
    n_low = 0
    for label in range(CLASSES):
        members = np.flatnonzero(labels == label)
        count = int(wrong[label] * len(members))
        n_low += count
        lowest = sorted(members.tolist(), key=lambda row: (score[row], row))[:count]
        assert set(lowest) == set(members[is_low[members]].tolist())
    assert 10 < n_low < 60


def test_rates_are_those_that_labels_were_drawn_by() -> None:
    g = np.random.default_rng(3)
    shares, rates = np.array([0.5, 0.2, 0.3]), np.array([[8, 1, 1], [3, 6, 1], [0, 2, 8]]) / 10
    clean = g.choice(3, size=40_000, p=shares)
    triples = (g.random((40_000, 3, 1)) > rates.cumsum(1)[clean][:, None, :2]).sum(2)
    found, told = likeliest_rates(triples, 3)
    # Standard errors at 40,000 rows are near 0.005.
    np.testing.assert_allclose(found, shares, atol=0.03)
    np.testing.assert_allclose(told, rates, atol=0.03)
    given = triples[:, 0]
    of_each = [np.mean(clean[given == label] != label) for label in range(3)]
    np.testing.assert_allclose(wrong_of_each(found, told), of_each, atol=0.04)


def test_no_step_from_the_likeliest_rates_is_likelier() -> None:
    g = np.random.default_rng(4)
    clean = g.integers(2, size=3000)
    triples = np.where(g.random((3000, 3)) < 0.2, 1 - clean[:, None], clean[:, None])
    shares, rates = likeliest_rates(triples, 2)

    def loglikelihood(p: float, keep: np.ndarray) -> float:
        t = np.array([[keep[0], 1 - keep[0]], [1 - keep[1], keep[1]]])
        told = sum(
            q * t[c][triples[:, 0]] * t[c][triples[:, 1]] * t[c][triples[:, 2]]
            for c, q in enumerate((p, 1 - p))
        )
        return float(np.log(told).sum())

    best, kept = float(shares[0]), rates.diagonal().copy()
    for step in (-0.01, 0.01):
        assert loglikelihood(best, kept) > loglikelihood(best + step, kept)
        for label in range(2):
            assert loglikelihood(best, kept) > loglikelihood(best, kept + step * np.eye(2)[label])


def test_labels_that_all_neighbours_share_are_left_alone() -> None:
    x = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    inputs = run(NeighbourVote(neighbours=5), x, np.repeat([0, 1, 2], 10).tolist())
    found = inputs.written["neighbour_vote"]
    assert found["label_score"].to_pylist() == [1.0] * 30
    assert not any(found["is_outvoted"].to_pylist() + found["is_low_ranked"].to_pylist())


def test_rows_in_any_number_of_shards_have_the_same_votes() -> None:
    x, labels = corpus()
    given: list[Any] = labels.tolist()
    given[5] = None
    stage = NeighbourVote(neighbours=4, normalize=False, rows=50)
    whole = run(stage, x, given)
    sharded = ShardedInputs(tables(x, given), whole.facts_of, n_shards=4)
    sharded.open(stage)
    shards = [sharded.compute(stage, Part("example", i))["neighbour_vote"] for i in range(4)]
    assert pa.concat_tables(shards).sort_by("example_id").equals(whole.written["neighbour_vote"])
    assert 5 not in whole.written["neighbour_vote"]["example_id"].to_pylist()


def test_labelled_rows_without_features_are_counted() -> None:
    x, labels = corpus(20)
    given = tables(x, labels.tolist())
    given["embedding"] = given["embedding"].filter(
        pa.compute.not_equal(given["embedding"]["id"], 3)
    )
    inputs = MemoryInputs(given, {"label": {"classes": ["class"] * CLASSES}})
    stage = NeighbourVote(neighbours=3)
    found = inputs.run(stage, Part("example", 0))
    assert found["example_id"].to_pylist() == [i for i in range(20) if i != 3]
    assert inputs.said_by(stage)["n_left_out"] == 1


def test_what_cannot_vote_is_refused() -> None:
    with pytest.raises(ConfigError, match="found neighbours: 1, expected at least 2"):
        NeighbourVote(neighbours=1)
    with pytest.raises(ConfigError, match="found rows: 10, expected more than neighbours: 10"):
        NeighbourVote(rows=10)
    x, labels = corpus(6)
    with pytest.raises(DataError, match="found 6 examples .* expected more than neighbours: 6"):
        run(NeighbourVote(neighbours=6), x, labels.tolist())
