"""The noise model against data that were drawn from it."""

import numpy as np
import pytest
import torch

from stages.predictions.label_issues import NoiseModel, decide, fit_noise_model, margins


def drawn(n, n_classes, temperature, noise, seed=0):
    """Outputs, given labels, which of them are wrong, and the model they were drawn from."""
    rng = np.random.default_rng(seed)
    outputs = torch.from_numpy(rng.normal(size=(n, n_classes)) * 0.4)
    model = NoiseModel(temperature, torch.zeros(n_classes, dtype=torch.float64), noise)
    clean = model.clean(outputs).numpy()
    labels = np.array([rng.choice(n_classes, p=row) for row in clean])
    wrong = rng.random(n) < noise
    shift = rng.integers(1, n_classes, size=n)
    given = np.where(wrong, (labels + shift) % n_classes, labels)
    return outputs, torch.from_numpy(given), torch.from_numpy(wrong), model


@pytest.mark.parametrize(("n_classes", "noise"), [(2, 0.15), (3, 0.1), (6, 0.3)])
def test_the_model_that_drew_the_labels_is_found_again(n_classes, noise):
    outputs, given, _, _ = drawn(40_000, n_classes, 8.0, noise)
    fitted = fit_noise_model(outputs, given)
    # Standard errors at 40,000 rows are near 0.005 and 0.15.
    assert fitted.noise_rate == pytest.approx(noise, abs=0.02)
    assert fitted.temperature == pytest.approx(8.0, abs=0.8)
    assert float(fitted.offsets.std()) < 0.1


def test_the_end_of_the_search_beats_its_neighbours():
    outputs, given, _, _ = drawn(2000, 3, 6.0, 0.1)
    fitted = fit_noise_model(outputs, given)

    def loss(model):
        own = model.clean(outputs)[torch.arange(len(given)), given]
        seen = (1 - model.noise_rate) * own + model.noise_rate * (1 - own) / 2
        return float(-seen.log().mean() + 1e-4 * model.offsets.square().sum())

    best = loss(fitted)
    for step in (-0.01, 0.01):
        assert best <= loss(fitted._replace(noise_rate=fitted.noise_rate + step)) + 1e-9
        assert best <= loss(fitted._replace(temperature=fitted.temperature * (1 + step))) + 1e-9
        assert best <= loss(fitted._replace(offsets=fitted.offsets + step * torch.eye(3)[0])) + 1e-9


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
    assert int(decide(score, wrong, contradicted).sum()) <= 0.03 * len(given)


def test_wrong_follows_bayes_rule_by_enumeration():
    model = NoiseModel(2.0, torch.tensor([0.1, 0.0, -0.1], dtype=torch.float64), 0.2)
    outputs = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64)
    q = model.clean(outputs)[0]
    for given in range(3):
        joint = [q[k] * (0.8 if k == given else 0.1) for k in range(3)]
        expected = 1 - joint[given] / sum(joint)
        found = model.wrong(outputs, torch.tensor([given]))
        assert float(found) == pytest.approx(float(expected), abs=1e-12)


def test_the_lowest_scores_are_flagged_and_only_where_contradicted():
    score = torch.tensor([0.9, 0.1, 0.2, 0.05])
    wrong = torch.tensor([0.2, 0.9, 0.4, 0.5])
    contradicted = torch.tensor([False, True, True, False])
    assert decide(score, wrong, contradicted).tolist() == [False, True, False, False]


def test_margin_is_given_less_best_other():
    outputs = torch.tensor([[0.7, 0.1, 0.2], [0.3, 0.3, 0.4]], dtype=torch.float64)
    assert margins(outputs, torch.tensor([0, 1])).tolist() == pytest.approx([0.5, -0.1])
