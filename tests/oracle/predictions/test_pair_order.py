"""Orders of pairs: the fit and its calibration on pairs whose right order is known."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.predictions.preference_issues import PreferenceIssues
from stages.stage import DataError, Part
from stages.surrogate.answer_mixture import signals_of
from stages.surrogate.pair_order import (
    PARTS,
    Differences,
    calibrated,
    differences,
    fit_order,
    logistic,
    p_wrong,
)
from stages.tables import ANSWER_COLUMNS

DIM = 6


def drawn(n: int, share: float, seed: int, scale: float = 2.0) -> tuple[Differences, np.ndarray]:
    """Pairs whose order follows a Bradley-Terry model, a share of them turned around."""
    generator = np.random.default_rng(seed)
    signals, states = generator.standard_normal((n, 7)), generator.standard_normal((n, DIM))
    weights = np.random.default_rng(1).standard_normal(7 + DIM)
    utility = scale * np.column_stack([signals, states]) @ weights / np.linalg.norm(weights)
    is_better = generator.random(n) < 1 / (1 + np.exp(-utility))
    # As they should be: the better answer first.
    sign = np.where(is_better, 1.0, -1.0)
    is_wrong = generator.random(n) < share
    sign[is_wrong] *= -1
    return Differences(sign[:, None] * signals, sign[:, None] * states), is_wrong


def area(score: np.ndarray, is_wrong: np.ndarray) -> float:
    """The chance that a wrong pair has the higher score."""
    above = score[is_wrong][:, None] - score[~is_wrong]
    return float((above > 0).mean() + (above == 0).mean() / 2)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_wrong_orders_are_found_and_their_share_is_estimated(share: float) -> None:
    """With scale 8 the better answer is nearly always known: what is left are wrong orders."""
    pairs, is_wrong = drawn(800, share, 0, scale=8.0)
    part = np.arange(800) % PARTS
    order = fit_order(pairs, part)
    judged = order.judge(pairs, part)
    assert order.share == pytest.approx(share, abs=0.04)
    flagged = judged.p_wrong > 0.5
    if share:
        assert area(judged.p_wrong, is_wrong) > 0.93
        assert is_wrong[flagged].mean() > 0.7
        assert flagged[is_wrong].mean() > 0.5
        # It says as much: probabilities are about the shares that are wrong, over five draws 0.83
        # of flagged ones, of which 0.86 are wrong.
        assert judged.p_wrong.mean() == pytest.approx(is_wrong.mean(), abs=0.04)
    else:
        assert flagged.mean() < 0.01


def test_a_pair_that_is_turned_around_has_the_other_score() -> None:
    pairs, _ = drawn(200, 0.1, 2)
    part = np.arange(200) % PARTS
    order = fit_order(pairs, part)
    turned = order.judge(Differences(-pairs.signals, -pairs.states), part)
    np.testing.assert_allclose(turned.score, -order.judge(pairs, part).score, atol=1e-12)


def test_no_pair_is_judged_by_a_fit_that_has_seen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another pair of its own part changes, what is said of it changes by the scale alone."""
    monkeypatch.setattr("stages.surrogate.pair_order.SCALES", (0.1,))
    pairs, _ = drawn(150, 0.1, 3)
    part = np.arange(150) % PARTS
    own = np.flatnonzero(part == 2)
    changed = Differences(pairs.signals.copy(), pairs.states.copy())
    changed.signals[own[5:]] *= -1
    changed.states[own[5:]] *= -1
    before, after = fit_order(pairs, part), fit_order(changed, part)
    np.testing.assert_allclose(after.weights[2], before.weights[2], atol=1e-9)
    assert np.abs((after.weights[1] - before.weights[1]).numpy()).max() > 1e-3


@pytest.mark.parametrize("seed", [0, 1])
def test_what_says_nothing_flags_nothing(seed: int) -> None:
    generator = np.random.default_rng(seed)
    signals, states = generator.standard_normal((300, 7)), generator.standard_normal((300, DIM))
    part = np.arange(300) % PARTS
    order = fit_order(Differences(signals, states), part)
    assert (order.judge(Differences(signals, states), part).p_wrong > 0.5).mean() < 0.01


def test_scale_and_share_of_greatest_likelihood() -> None:
    """Scores that are twice too large, of orders of which three in twenty are turned around."""
    generator = np.random.default_rng(4)
    score = 6 * generator.standard_normal(20_000)
    right = np.where(generator.random(20_000) < logistic(score), score, -score)
    given = np.where(generator.random(20_000) < 0.15, -right, right)
    scale, share, likelihood = calibrated(2 * given)
    assert scale == pytest.approx(0.5, rel=0.15)
    assert share == pytest.approx(0.15, abs=0.02)
    found = np.log((1 - share) * logistic(scale * 2 * given) + share * logistic(-scale * 2 * given))
    assert likelihood == pytest.approx(found.mean(), rel=1e-12)
    by_bayes = share * logistic(-given) / ((1 - share) * logistic(given) + share * logistic(-given))
    np.testing.assert_allclose(p_wrong(given, share), by_bayes, atol=1e-10)


def test_differences_are_chosen_less_rejected_and_unknown_numbers_say_nothing() -> None:
    generator = np.random.default_rng(5)
    both = generator.uniform(1, 4, (2, 10, 5))
    states = generator.standard_normal((10, 2, DIM))
    both[0, 3, 2] = np.nan
    found = differences(*both, states)
    expected = signals_of(both[0]) - signals_of(both[1])
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(found.signals[known], expected[known])
    assert (~known).sum() == 3
    assert (found.signals[~known] == 0).all()
    np.testing.assert_array_equal(found.states, states[:, 0] - states[:, 1])


def sides(n: int, seed: int) -> tuple[pa.Table, np.ndarray]:
    """What is measured of pairs, of which the rejected answer fits better where it is wrong."""
    generator = np.random.default_rng(seed)
    is_wrong = generator.random(n) < 0.2
    columns: dict[str, Any] = {"id": [], "side": [], "role": []}
    numbers: dict[str, list[Any]] = {name: [] for name, _ in ANSWER_COLUMNS}
    for at in range(n):
        for side in ("chosen", "rejected"):
            is_good = (side == "chosen") != is_wrong[at]
            columns["id"].append(at)
            columns["side"].append(side)
            columns["role"].append("example")
            alone = generator.uniform(3, 4)
            numbers["n_tokens"].append(8)
            numbers["loss"].append(2.0)
            told = 2.0 if is_good else 0.2
            numbers["text_loss"].append(alone - told + generator.normal(0, 0.2))
            numbers["text_loss_alone"].append(alone)
            numbers["end_loss"].append(1.0)
            numbers["worst_loss"].append(5.0)
            numbers["vector"].append(generator.standard_normal(2 * DIM))
    vectors = pa.array(np.concatenate(numbers.pop("vector")).astype(np.float32))
    lists = pa.FixedSizeListArray.from_arrays(vectors, 2 * DIM)
    return pa.table({**columns, **numbers, "vector": lists}), is_wrong


def test_the_stage_judges_all_pairs_but_those_that_are_dropped_or_cut(sharded: Any) -> None:
    table, is_wrong = sides(200, 6)
    cut = table["n_tokens"].to_pylist()
    cut[2 * 17 + 1] = 0
    table = table.set_column(table.column_names.index("n_tokens"), "n_tokens", pa.array(cut))
    kept = [at for at in range(200) if at != 40]
    label = pa.table({"id": kept, "role": ["example"] * len(kept)})
    # Neighbours in the table must not matter.
    table = table.take(np.random.default_rng(0).permutation(400))
    tables = {"answer_margin.answer_side": table, "label": label}
    inputs = sharded(tables)
    inputs.part = Part("", 0)
    stage = PreferenceIssues()
    inputs.open(stage)
    rows: dict[int, Any] = {}
    for index in range(inputs.n_shards):
        written = inputs.compute(stage, Part("example", index))["preference_issue"]
        rows |= {row["example_id"]: row for row in written.to_pylist()}
    assert sorted(rows) == [at for at in kept if at != 17]
    flagged = {at for at, row in rows.items() if row["is_preference_issue"]}
    wrong = {at for at in rows if is_wrong[at]}
    assert len(flagged - wrong) <= 1
    assert len(flagged & wrong) > 0.7 * len(wrong)
    assert {rows[at]["reason"] for at in flagged} <= {
        "rejected fits the prompt better",
        "rejected is worded likelier",
    }
    assert inputs.said_by(stage)["share"] == pytest.approx(0.2, abs=0.05)
    few = pa.table({"id": kept[:20], "role": ["example"] * 20})
    with pytest.raises(DataError, match="found 19 pairs with both answers"):
        sharded({**tables, "label": few}).open(stage)
