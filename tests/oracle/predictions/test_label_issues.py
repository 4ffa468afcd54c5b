"""The noise model against data that were drawn from it."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs, ShardedInputs, label_table

from stages.predictions.label_issues import LabelIssues
from stages.predictions.label_noise import LabelNoise, lowest
from stages.reading.vectors import evenly
from stages.stage import Part
from stages.surrogate.noise_fit import fit_noise_model, is_unknown
from stages.surrogate.noise_model import NoiseModel, judged_by_shard, margins


def even(n_classes, noise):
    """Rates of noise that falls on all other classes alike."""
    rates = torch.full((n_classes, n_classes), noise / (n_classes - 1), dtype=torch.float64)
    return rates.fill_diagonal_(1 - noise)


def rate_of(model):
    """The noise rate of a model with even noise."""
    replaced = 1 - model.rates.diagonal()
    torch.testing.assert_close(model.rates, even(len(replaced), float(replaced[0])))
    return float(replaced[0])


def drawn(n, n_classes, temperature, noise, seed=0):
    """Outputs, given labels, which of them are wrong, and the model they were drawn from."""
    rng = np.random.default_rng(seed)
    outputs = torch.from_numpy(rng.normal(size=(n, n_classes)) * 0.4)
    model = NoiseModel(
        temperature, torch.zeros(n_classes, dtype=torch.float64), even(n_classes, noise)
    )
    clean = model.clean(outputs).numpy()
    labels = np.array([rng.choice(n_classes, p=row) for row in clean])
    wrong = rng.random(n) < noise
    shift = rng.integers(1, n_classes, size=n)
    given = np.where(wrong, (labels + shift) % n_classes, labels)
    return outputs, torch.from_numpy(given), torch.from_numpy(wrong), model


def left_out(rows, given, n_classes, ridge=0.3):
    """Outputs of a ridge regression on rows, each left out of the fit for its own."""
    kernel = rows @ rows.T
    hat = kernel @ torch.linalg.inv(kernel + ridge * len(rows) * torch.eye(len(rows)))
    targets = torch.nn.functional.one_hot(given, n_classes).double() - 1 / n_classes
    own = hat.diagonal()[:, None]
    return (hat @ targets - own * targets) / (1 - own)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 30, 120])
def test_no_label_is_wrong_where_predictions_tell_nothing(n, n_classes):
    """Those of balanced rows that are left out contradict every label."""
    given = torch.arange(n) % n_classes
    known = 0
    for seed in range(11):
        rows = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 8)))
        if seed == 0:
            rows = torch.ones(n, 1, dtype=torch.float64)
        outputs = left_out(rows, given, n_classes)
        model = fit_noise_model(outputs, given)
        if seed and not is_unknown(model):
            known += 1
            continue
        assert float(model.wrong(outputs, given).max()) < 1e-3
        # Scores have the order of margins.
        score, own = model.scores(outputs, given), outputs[torch.arange(n), given]
        if n_classes == 2 and seed:
            margin = own - outputs[torch.arange(n), 1 - given]
            assert torch.equal(score.argsort(), margin.argsort())
    # By chance; never of so few rows.
    assert known <= (0 if n < 10 else 3)


def test_one_wrong_label_among_few_that_are_told_apart_is_found():
    clean = torch.arange(20) % 2
    rows = torch.nn.functional.one_hot(clean, 2).double() * 2 - 1
    rows += torch.from_numpy(np.random.default_rng(0).normal(size=(20, 2))) * 0.1
    given = clean.clone()
    given[3] = 1 - given[3]
    outputs = left_out(rows, given, 2)
    model = fit_noise_model(outputs, given)
    assert not is_unknown(model)
    wrong = model.wrong(outputs, given)
    assert int(wrong.argmax()) == 3
    assert float(wrong.sum()) == pytest.approx(1, abs=0.3)


def test_decisions_alone_tell_the_noise_where_predictions_tell_nothing():
    rng = np.random.default_rng(0)
    outputs = torch.ones(400, 2, dtype=torch.float64)
    right = torch.from_numpy(rng.integers(0, 2, 400))
    given = torch.where(torch.from_numpy(rng.random(400) < 0.2), 1 - right, right)
    decided = torch.where(torch.arange(400) < 200, right, -1)
    model = fit_noise_model(outputs, given, decided)
    assert is_unknown(model)
    share = float((given != right)[:200].double().mean())
    assert rate_of(model) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    ("n_classes", "noise"),
    [
        (2, 0.15),
        pytest.param(3, 0.1, marks=pytest.mark.slow),
        pytest.param(6, 0.3, marks=pytest.mark.slow),
    ],
)
def test_the_model_that_drew_the_labels_is_found_again(n_classes, noise):
    outputs, given, _, _ = drawn(40_000, n_classes, 8.0, noise)
    fitted = fit_noise_model(outputs, given)
    # Standard errors at 40,000 rows are near 0.005 and 0.15.
    assert rate_of(fitted) == pytest.approx(noise, abs=0.02)
    assert fitted.temperature == pytest.approx(8.0, abs=0.8)
    assert float(fitted.offsets.std()) < 0.1


def test_the_end_of_the_search_beats_its_neighbours():
    outputs, given, _, _ = drawn(2000, 3, 6.0, 0.1)
    fitted = fit_noise_model(outputs, given)

    def loss(model):
        own = model.clean(outputs)[torch.arange(len(given)), given]
        seen = (1 - rate_of(model)) * own + rate_of(model) * (1 - own) / 2
        return float(-seen.log().mean() + 1e-4 * model.offsets.square().sum())

    best = loss(fitted)
    for step in (-0.01, 0.01):
        assert best <= loss(fitted._replace(rates=even(3, rate_of(fitted) + step))) + 1e-9
        assert best <= loss(fitted._replace(temperature=fitted.temperature * (1 + step))) + 1e-9
        assert best <= loss(fitted._replace(offsets=fitted.offsets + step * torch.eye(3)[0])) + 1e-9


@pytest.mark.parametrize("n_decided", [0, 60])
def test_the_rate_of_even_noise_is_its_posterior_mean_by_summation(n_decided: int) -> None:
    outputs, given, wrong, _ = drawn(800, 2, 5.0, 0.25)
    given_rows = torch.arange(len(given)), given
    # A person decides about the rows whose label is doubted most.
    own = outputs[given_rows] - outputs.flip(1)[given_rows]
    is_decided = torch.zeros(800, dtype=torch.bool)
    is_decided[own.argsort()[:n_decided]] = True
    decided = torch.where(is_decided, torch.where(wrong, 1 - given, given), -1)
    logs, rates = [], torch.linspace(0.005, 0.495, 50, dtype=torch.float64)
    # Offsets (d/2, -d/2); their common part changes nothing. The prior is flat in log t and d.
    for log_t in torch.linspace(0.0, 3.4, 30, dtype=torch.float64):
        for d in torch.linspace(-1.2, 1.2, 17, dtype=torch.float64):
            offsets = torch.stack([d / 2, -d / 2])
            own = torch.softmax(log_t.exp() * outputs + offsets, 1)[given_rows][:, None]
            is_right, is_wrong = (1 - rates) * own, rates * (1 - own)
            known = torch.where(wrong[:, None], is_wrong, is_right)
            seen = torch.where(is_decided[:, None], known, is_right + is_wrong).log().sum(0)
            logs.append(seen - 1e-4 * len(given) * d**2 / 2)
    at_rates = torch.logsumexp(torch.stack(logs), 0)
    weights = torch.softmax(at_rates, 0)
    mean = float((weights * rates).sum())
    spread = float((weights * (rates - mean) ** 2).sum().sqrt())
    assert spread > (0.01 if n_decided else 0.05)
    # Laplace's approximation, and a sum over ten rates for an integral.
    found = rate_of(fit_noise_model(outputs, given, decided))
    assert found == pytest.approx(mean, abs=0.2 * spread)


def test_what_a_person_decided_pins_down_how_many_others_are_wrong() -> None:
    """Fixing the most doubtful labels must not make the other wrong ones look right."""
    for seed in range(3):
        outputs, given, wrong, _ = drawn(500, 2, 5.0, 0.2, seed)
        right = torch.where(wrong, 1 - given, given)
        doubt = outputs[torch.arange(500), 1 - given] - outputs[torch.arange(500), given]
        is_decided = torch.zeros(500, dtype=torch.bool)
        is_decided[doubt.argsort(descending=True)[:40]] = True
        n_left = int(wrong[~is_decided].sum())
        model = fit_noise_model(outputs, given, torch.where(is_decided, right, -1))
        told = float(model.wrong(outputs, given)[~is_decided].sum())
        assert n_left / 1.5 < told < 1.5 * n_left


def test_where_few_predictions_are_sure_the_number_of_wrong_labels_is_still_about_right() -> None:
    for seed in range(2):
        outputs, given, wrong, _ = drawn(1500, 2, 4.0, 0.4, seed)
        expected = fit_noise_model(outputs, given).wrong(outputs, given).sum()
        assert 2 / 3 < float(expected) / int(wrong.sum()) < 1.5


@pytest.mark.slow
def test_p_wrong_is_calibrated():
    outputs, given, wrong, _ = drawn(60_000, 4, 8.0, 0.2, seed=1)
    p_wrong = fit_noise_model(outputs, given).wrong(outputs, given)
    for low, high in ((0.0, 0.05), (0.05, 0.3), (0.3, 0.7), (0.7, 1.0)):
        inside = (p_wrong >= low) & (p_wrong < high)
        seen, said = wrong[inside].double().mean(), p_wrong[inside].mean()
        # Three binomial standard errors, and the error of the fitted noise rate.
        bound = 3 * float((said * (1 - said) / inside.sum()).sqrt()) + 0.02
        assert float(seen) == pytest.approx(float(said), abs=bound)


def test_clean_labels_are_left_alone():
    outputs, given, _, _ = drawn(4000, 2, 6.0, 0.0)
    model = fit_noise_model(outputs, given)
    wrong = model.wrong(outputs, given)
    score = model.clean(outputs)[torch.arange(len(given)), given]
    contradicted = model.clean(outputs).argmax(1) != given
    assert int(contradicted.sum()) > 400
    last, _ = lowest(score.numpy(), np.arange(len(given)), round(float(wrong.sum())))
    assert int(((score <= last) & contradicted).sum()) <= 0.03 * len(given)


def test_wrong_follows_bayes_rule_by_enumeration():
    rates = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.9, 0.1], [0.3, 0.0, 0.7]]).double()
    model = NoiseModel(2.0, torch.tensor([0.1, 0.0, -0.1], dtype=torch.float64), rates)
    outputs = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64)
    q = model.clean(outputs)[0]
    for given in range(3):
        joint = [q[k] * rates[k, given] for k in range(3)]
        expected = 1 - joint[given] / sum(joint)
        found = model.wrong(outputs, torch.tensor([given]))
        assert float(found) == pytest.approx(float(expected), abs=1e-12)


def one_way(n, rate, seed=0):
    """Outputs, labels of three classes of which a part of class 0 was given class 1, and which."""
    outputs, labels, _, model = drawn(n, 3, 8.0, 0.0, seed)
    wrong = (labels == 0) & (torch.rand(n, generator=torch.Generator().manual_seed(seed)) < rate)
    return outputs, torch.where(wrong, 1, labels), wrong, model


def test_the_rate_of_one_pair_of_classes_is_found_and_the_others_are_none() -> None:
    outputs, given, wrong, _ = one_way(40_000, 0.25)
    model = fit_noise_model(outputs, given)
    expected = torch.tensor([[0.75, 0.25, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(model.rates, expected, atol=0.02, rtol=0)
    said = model.wrong(outputs, given)
    assert float(said.sum()) == pytest.approx(int(wrong.sum()), rel=0.05)


def test_few_rows_with_one_way_noise_have_as_many_flags_as_wrong_labels() -> None:
    for seed in range(3):
        outputs, given, wrong, _ = one_way(2000, 0.2, seed)
        p_wrong = fit_noise_model(outputs, given).wrong(outputs, given)
        assert 0.6 < float(p_wrong.sum()) / int(wrong.sum()) < 1.5


def test_uneven_noise_that_leaves_few_labels_right_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outputs, given, wrong, _ = one_way(2000, 0.2)
    share = float(wrong.double().mean())
    for most, is_even in ((share * 2, False), (share / 2, True)):
        monkeypatch.setattr("stages.surrogate.noise_fit.MOST_UNEVEN", most)
        rates = fit_noise_model(outputs, given).rates
        replaced = rates[~torch.eye(3, dtype=torch.bool)]
        assert bool(replaced.max() <= 1.01 * replaced.min()) == is_even


def test_a_score_orders_labels_as_the_probability_that_they_are_right() -> None:
    outputs, given, _, _ = one_way(2000, 0.2)
    model = fit_noise_model(outputs, given)
    scores, wrong = model.scores(outputs, given), model.wrong(outputs, given)
    assert bool((wrong[scores.argsort()].diff() <= 1e-12).all())
    torch.testing.assert_close(
        model.posterior(outputs, given).sum(1), torch.ones(len(given), dtype=torch.float64)
    )


def test_with_even_noise_the_score_is_the_opinion_before_the_label_is_seen() -> None:
    outputs, given, _, model = drawn(100, 4, 8.0, 0.2)
    for noise in (0.0, 1e-9, 0.2, 0.75):
        opinions = model._replace(rates=even(4, noise)).opinions(outputs, given)
        torch.testing.assert_close(opinions, model.clean(outputs))


def flags(inputs: MemoryInputs) -> pa.Table:
    """The rows of `label_issues` behind its noise model."""
    inputs.tables["label_noise"] = inputs.run(LabelNoise())
    inputs.facts_of["label_noise"] = LabelNoise().details(inputs)
    return inputs.run(LabelIssues(), Part("example", 0))


def predicted(outputs: torch.Tensor, given: torch.Tensor, n_classes: int) -> MemoryInputs:
    """Labels and predictions of examples 0, 1, ..., in another order."""
    ids = np.random.default_rng(5).permutation(len(given))
    lists = pa.array(outputs.float().tolist(), pa.list_(pa.float32(), n_classes))
    table = pa.table({"id": np.arange(len(given)), "role": ["example"] * len(given)})
    table = table.append_column("logits", lists).take(ids)
    labels = label_table({"example": dict(enumerate(given.tolist()))})
    told = {"label": {"classes": [str(c) for c in range(n_classes)]}}
    return MemoryInputs({"label": labels, "kernel_regression": table}, told)


def test_as_many_as_are_expected_to_be_wrong_are_flagged_the_lowest_scores_first() -> None:
    outputs, given, _, _ = drawn(3000, 3, 8.0, 0.2)
    inputs = predicted(outputs, given, 3)
    rows = flags(inputs).sort_by([("label_score", "ascending"), ("example_id", "ascending")])
    told = inputs.facts_of["label_noise"]
    assert told["expected_wrong"] == pytest.approx(sum(rows["p_wrong"].to_pylist()), rel=1e-12)
    count = round(told["expected_wrong"])
    contradicted = rows["given_label"].to_numpy() != rows["suggested_label"].to_numpy()
    flagged = rows["is_label_issue"].to_numpy()
    assert 300 < count < 900
    np.testing.assert_array_equal(flagged, contradicted & (np.arange(len(rows)) < count))


def test_a_label_that_a_person_decided_on_is_held_for_right() -> None:
    outputs, given, wrong, _ = drawn(900, 3, 8.0, 0.2)
    inputs = predicted(outputs, given, 3)
    worst = flags(inputs).sort_by("label_score")["example_id"].to_numpy()[:60]
    # All are accepted: what was flagged most surely is right, so next to nothing else is wrong.
    before = np.full(900, -1)
    before[worst] = given.numpy()[worst]
    label = inputs.tables["label"]
    at = label.column_names.index("label_before_review")
    known = pa.array(before, mask=before < 0)
    inputs.tables["label"] = label.set_column(at, "label_before_review", known)
    rows = flags(inputs)
    decided = np.isin(rows["example_id"].to_numpy(), worst)
    assert set(rows.filter(pa.array(decided))["label_score"].to_pylist()) == {1.0}
    assert set(rows.filter(pa.array(decided))["p_wrong"].to_pylist()) == {0.0}
    assert not rows.filter(pa.array(decided))["is_label_issue"].to_numpy().any()
    told = inputs.facts_of["label_noise"]["expected_wrong"]
    assert told == pytest.approx(sum(rows["p_wrong"].to_pylist()))
    assert told < 30 < int(wrong.sum())


def test_rows_in_any_number_of_shards_are_judged_alike() -> None:
    outputs, given, _, _ = drawn(900, 4, 8.0, 0.3)
    whole = predicted(outputs, given, 4)
    expected = flags(whole).sort_by("example_id")
    cut = ShardedInputs(whole.tables, whole.facts_of, 3)
    cut.tables.pop("label_noise")
    cut.open(LabelNoise())
    cut.tables["label_noise"] = cut.compute(LabelNoise(), Part("", 0))["noise_rate"]
    cut.open(LabelIssues())
    parts = [cut.compute(LabelIssues(), Part("example", i))["label_issues"] for i in range(3)]
    found = pa.concat_tables(parts).sort_by("example_id")
    for name in ("is_label_issue", "suggested_label", "example_id"):
        assert found[name].equals(expected[name])
    # The model is fitted to the same rows in another order.
    np.testing.assert_allclose(found["label_score"], expected["label_score"], atol=1e-6)


class InFolds(ShardedInputs):
    """Labels in shards, predictions in two parts whose ids lie among each other."""

    def by_shard(self, name, role, most=None):
        if name == "kernel_regression":
            rows = self.tables[name]
            parts = rows["id"].to_numpy() * 7 % 5 < 2
            yield from (rows.filter(pa.array(parts)), rows.filter(pa.array(~parts)))
        else:
            yield from super().by_shard(name, role, most)


@pytest.mark.parametrize(("n_shards", "most"), [(1, None), (3, None), (4, 2)])
def test_rows_in_folds_are_judged_each_once(n_shards: int, most: int | None) -> None:
    outputs, given, _, _ = drawn(90, 4, 8.0, 0.3)
    whole = predicted(outputs, given, 4)
    cut = InFolds(whole.tables, whole.facts_of, n_shards)
    parts = list(judged_by_shard(cut, "kernel_regression", most))
    assert len(parts) == 2
    ids = np.concatenate([part.ids for part in parts])
    shards = evenly(n_shards, most or n_shards)
    assert sorted(ids) == [i for i in range(90) if i % n_shards in shards]
    assert torch.cat([part.labels for part in parts]).equal(given[torch.from_numpy(ids)])
    found = torch.cat([part.outputs for part in parts])
    assert found.equal(outputs.float().double()[torch.from_numpy(ids)])


@pytest.mark.parametrize(
    ("count", "expected"), [(0, (-1.0, -1)), (1, (0.1, 7)), (2, (0.2, 3)), (3, (0.2, 9))]
)
def test_the_last_of_the_lowest_scores_is_known_by_its_id(
    count: int, expected: tuple[float, int]
) -> None:
    assert lowest(np.array([0.2, 0.9, 0.1, 0.2]), np.array([9, 1, 7, 3]), count) == expected


def test_margin_is_given_less_best_other():
    outputs = torch.tensor([[0.7, 0.1, 0.2], [0.3, 0.3, 0.4]], dtype=torch.float64)
    assert margins(outputs, torch.tensor([0, 1])).tolist() == pytest.approx([0.5, -0.1])
