"""Cross-fitting against plain loops: AdamW by hand, margins by hand, folds that are left out.

In float64, with the tolerance of `tests/oracle/values/test_retrain.py`: Adam divides by the square
root of a mean of squared gradients, so that a gradient as small as its own rounding moves a weight.
"""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_inputs import MemoryInputs, label_table
from torch import Tensor

from stages.model.fine_tuning import POOL, FineTuning, shuffled
from stages.model.learners import load_start
from stages.model.spec import ModelSpec
from stages.predictions import cross_fitting
from stages.predictions.cross_fitting import CrossFitting, Dynamics, folds_of
from stages.stage import ConfigError, DataError, Part

HOW = FineTuning(epochs=3, batch_size=2, learning_rate=1e-3, head_learning_rate=0.3)
LABELS = {30: 0, 10: 1, 60: 2, 20: 1, 70: None, 50: 2, 40: 0}
"""By id; the rows of the fixture `text` are in another order."""
IDS = [10, 20, 30, 40, 50, 60]
GIVEN = [1, 1, 0, 0, 2, 2]


@pytest.fixture
def tables(text: pa.Table, monkeypatch: pytest.MonkeyPatch) -> MemoryInputs:
    """Six labelled rows in no order of ids and one without a label; the model is in float64."""

    def load(*arguments: Any) -> Any:
        measurement, fresh = load_start(*arguments)
        measurement.network.double()
        return measurement, fresh

    monkeypatch.setattr(cross_fitting, "load_start", load)
    text = text.set_column(0, "id", pa.array(list(LABELS)))
    label = label_table({"example": LABELS})
    return MemoryInputs({"text": text, "label": label}, {"label": {"classes": ["a", "b", "c"]}})


def fold_parts(inputs: MemoryInputs, stage: CrossFitting, *order: int) -> dict[int, Any]:
    """The tables of each fold, in this order by one worker."""
    inputs.open(stage)
    return {fold: inputs.compute(stage, Part("", fold)) for fold in order}


def logits_of(tables: Any) -> dict[int, list[float]]:
    rows = tables["prediction"]
    return dict(zip(rows["id"].to_pylist(), rows["logits"].to_pylist(), strict=True))


def plain_fine_tuning(
    network: Any, batch_of: Any, labels: list[int], trained: list[int], name: str, head: set[int]
) -> list[dict[int, Tensor]]:
    """The outputs seen of each trained row, by epoch; the network is trained in place.

    Loshchilov and Hutter 2019, algorithm 2, after gradients are cut to a length of 1.
    """
    weights = list(network.parameters())
    m, v = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    lengths = np.array([int(batch_of([row])["attention_mask"].sum()) for row in trained])
    n_steps, t, by_epoch = HOW.epochs * math.ceil(len(trained) / HOW.batch_size), 0, []
    for epoch in range(HOW.epochs):
        seen: dict[int, Tensor] = {}
        for places in shuffled(lengths, HOW.batch_size, f"{name}/{epoch}"):
            rows = [trained[place] for place in places]
            logits = network(**batch_of(rows))
            seen |= dict(zip(rows, logits.detach(), strict=True))
            chosen = torch.stack([z[labels[r]] for z, r in zip(logits, rows, strict=True)])
            loss = (logits.exp().sum(1).log() - chosen).mean()
            found = torch.autograd.grad(loss, weights, materialize_grads=True)
            length = math.sqrt(sum(float(g.square().sum()) for g in found))
            # One step of six is warm-up; then the rate falls to 0.
            share = 1.0 if t == 0 else (n_steps - t) / (n_steps - 1)
            t += 1
            with torch.no_grad():
                for at, (w, g) in enumerate(zip(weights, found, strict=True)):
                    g = g * min(1.0, 1 / (length + 1e-6))
                    rate = share * (0.3 if id(w) in head else 1e-3)
                    m[at] = 0.9 * m[at] + 0.1 * g
                    v[at] = 0.999 * v[at] + 0.001 * g * g
                    m_hat, v_hat = m[at] / (1 - 0.9**t), v[at] / (1 - 0.999**t)
                    w -= rate * 0.01 * w
                    w -= rate * m_hat / (v_hat.sqrt() + 1e-8)
        by_epoch.append(seen)
    return by_epoch


def margin(logits: Tensor, label: int) -> float:
    return float(logits[label] - max(z for k, z in enumerate(logits) if k != label))


@pytest.mark.parametrize("head", ["probe", "random"])
def test_folds_equal_plain_loops_that_left_them_out(
    tables: MemoryInputs, encoder_folder: Path, head: str
) -> None:
    model = ModelSpec(str(encoder_folder), head=head, num_labels=3 if head == "random" else None)
    stage = CrossFitting(model, training=HOW, seed=4)
    found = fold_parts(tables, stage, 1, 0)
    fold = folds_of(torch.tensor(GIVEN), 2, 4)
    measurement, fresh = cross_fitting.load_start(tables, model, 3)
    start = copy.deepcopy(measurement.network.state_dict())
    text = tables.tables["text"]
    at = {i: row for row, i in enumerate(text["id"].to_pylist())}
    moved = 0.0
    for index, parts in found.items():
        measurement.network.load_state_dict(start)
        measurement.network.requires_grad_(True)
        trained = [row for row in range(6) if fold[row] != index]

        def batch_of(rows: list[int]) -> Any:
            tokens = measurement.tokenise(text.take([at[IDS[row]] for row in rows]))
            return measurement.batch(tokens, np.arange(len(rows)))

        by_epoch = plain_fine_tuning(
            *(measurement.network, batch_of, GIVEN, trained),
            *(f"cross_fitting/4/{index}", {id(w) for w in fresh}),
        )
        logits = logits_of(parts)
        assert sorted(logits) == [IDS[row] for row in range(6) if fold[row] == index]
        for row in (row for row in range(6) if fold[row] == index):
            expected = measurement.network(**batch_of([row]))[0].detach()
            np.testing.assert_allclose(logits[IDS[row]], expected, rtol=1e-5, atol=1e-5)
            moved = max(moved, float(expected.abs().max()))
        dynamics = {row["example_id"]: row for row in parts["training_dynamics"].to_pylist()}
        assert sorted(dynamics) == [IDS[row] for row in trained]
        for row in trained:
            margins = [margin(seen[row], GIVEN[row]) for seen in by_epoch]
            second = by_epoch[1][row]
            told = dynamics[IDS[row]]
            assert told["fold"] == index
            assert told["area_under_margin"] == pytest.approx(sum(margins) / 3, abs=1e-6)
            early = float(second.exp().sum().log() - second[GIVEN[row]])
            assert told["early_loss"] == pytest.approx(early, abs=1e-6)
    assert moved > 0.1


def test_what_is_forgotten_is_counted_from_right_to_wrong() -> None:
    labels = torch.tensor([0, 2, 1])
    by_epoch = torch.randn(9, 3, 3, generator=torch.Generator().manual_seed(0))
    dynamics = Dynamics(labels)
    for logits in by_epoch:
        dynamics.add(logits)
    rows = dynamics.rows(0, np.array([5, 6, 7])).to_pylist()
    for row, told in enumerate(rows):
        right = [int(logits[row].argmax()) == int(labels[row]) for logits in by_epoch]
        assert told["forgotten"] == sum(a and not b for a, b in itertools.pairwise(right))
        mean = sum(margin(logits[row], int(labels[row])) for logits in by_epoch) / 9
        assert told["area_under_margin"] == pytest.approx(mean, abs=1e-6)
    assert sum(told["forgotten"] for told in rows) > 2


def test_a_fold_does_not_see_its_own_rows(tables: MemoryInputs, encoder_folder: Path) -> None:
    stage = CrossFitting(ModelSpec(str(encoder_folder)), training=HOW)
    before = fold_parts(tables, stage, 0, 1)
    own = next(fold for fold, parts in before.items() if 20 in logits_of(parts))
    text = tables.tables["text"]
    assert (text["id"][3].as_py(), text["text"][3].as_py()) == (20, "not bad")
    texts = [*text["text"].to_pylist()[:3], "very slow", *text["text"].to_pylist()[4:]]
    tables.tables["text"] = text.set_column(2, "text", pa.array(texts))
    after = fold_parts(tables, stage, 0, 1)
    assert after[own]["training_dynamics"].equals(before[own]["training_dynamics"])
    for fold in (0, 1):
        first, second = logits_of(before[fold]), logits_of(after[fold])
        changed = {i for i in first if first[i] != second[i]}
        assert changed == ({20} if fold == own else set(first))


def test_a_fold_is_the_same_whichever_came_before(
    tables: MemoryInputs, encoder_folder: Path
) -> None:
    stage = CrossFitting(ModelSpec(str(encoder_folder)), folds=3, training=HOW)
    whole = fold_parts(tables, stage, 2, 0, 1)
    alone = fold_parts(tables, stage, 1)
    assert all(alone[1][name].equals(whole[1][name]) for name in whole[1])
    dynamics = pa.concat_tables(parts["training_dynamics"] for parts in whole.values())
    # With 3 folds a row is trained on twice.
    assert sorted(dynamics["example_id"].to_pylist()) == sorted(2 * IDS)
    other = fold_parts(tables, CrossFitting(stage.model, folds=3, training=HOW, seed=1), 1)
    assert not other[1]["training_dynamics"].equals(whole[1]["training_dynamics"])


def test_one_epoch_has_no_early_loss(tables: MemoryInputs, encoder_folder: Path) -> None:
    how = FineTuning(epochs=1, batch_size=4)
    found = fold_parts(tables, CrossFitting(ModelSpec(str(encoder_folder)), training=how), 0)
    assert found[0]["training_dynamics"]["early_loss"].null_count == 3


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.integers(2, 6), st.integers(0, 9))
def test_folds_share_out_all_rows_and_each_class(labels: list[int], n: int, seed: int) -> None:
    fold = folds_of(torch.tensor(labels), n, seed)
    assert np.ptp(np.bincount(fold, minlength=n)) <= 1
    for label in set(labels):
        of_class = fold[np.array(labels) == label]
        assert np.ptp(np.bincount(of_class, minlength=n)) <= 1
    assert set(fold) <= set(range(n))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200), st.integers(1, 5), st.integers(0, 9))
def test_every_epoch_visits_each_row_once(n: int, size: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 30, n)
    batches = list(shuffled(lengths, size, str(seed)))
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert sorted(map(len, batches))[1:] == [size] * (len(batches) - 1)
    assert len(batches[0]) <= size
    spread = sum(int(np.ptp(lengths[batch])) for batch in batches)
    drawn = np.random.default_rng(seed).permutation(n)
    plain = sum(int(np.ptp(lengths[drawn[at : at + size]])) for at in range(0, n, size))
    if n > POOL * size // 2 and size > 2:
        assert spread < plain


def test_what_it_cannot_work_with_is_refused(tables: MemoryInputs, encoder_folder: Path) -> None:
    model = ModelSpec(str(encoder_folder))
    with pytest.raises(DataError, match="found 6 labelled examples, expected at least one"):
        tables.open(CrossFitting(model, folds=7))
    for fields in ({"folds": 1}, {"seed": -1}, {"token_budget": 0}):
        with pytest.raises(ConfigError, match="cross_fitting: found folds"):
            CrossFitting(model, **fields)
    for fields in ({"epochs": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}, {"weight_decay": -1.0}):
        with pytest.raises(ConfigError, match="fine_tuning: found epochs"):
            FineTuning(**fields)
