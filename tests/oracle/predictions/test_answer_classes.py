"""Answers as classes, against regressions without each row and labels whose noise is known."""

import numpy as np
import pytest
import torch

from stages.reading.vectors import unit_rows
from stages.surrogate.answer_classes import RIDGES, fit_answer_classes
from stages.surrogate.noise_model import NoiseModel

WORDS = ("Yes.", "no", "a place", "a person")
DIM = 12


def drawn(n: int, flipped: float, seed: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Prompts of two tasks with two answers each, the answers given, and which are flipped."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 4, n)
    means = 2.5 * np.eye(DIM)[:4] + 4 * np.eye(DIM)[4 + np.array([0, 0, 1, 1])]
    prompts = means[label] + generator.standard_normal((n, DIM))
    is_flipped = generator.random(n) < flipped
    given = np.where(is_flipped, label ^ 1, label)
    return prompts.astype(np.float32), [WORDS[at] for at in given], is_flipped


def test_each_row_is_predicted_without_itself() -> None:
    prompts, answers, _ = drawn(120, 0.1, 0)
    found = fit_answer_classes(np.arange(120), answers, prompts)
    assert found is not None
    assert list(found.words) == ["a person", "a place", "no", "yes"]
    labels = found.classes(answers)
    x = unit_rows((prompts - prompts.mean(0)).astype(np.float64))
    level = np.eye(4)[labels].mean(0)
    y = np.eye(4)[labels] - level
    errors = []
    for ridge in RIDGES:
        gram = x.T @ x + ridge * 120 * np.eye(DIM)
        outputs = np.empty_like(y)
        for row in range(120):
            # The sums without the row; its share of the mean is 1 in 120.
            left = gram - np.outer(x[row], x[row])
            weights = np.linalg.solve(left, x.T @ y - np.outer(x[row], y[row]))
            outputs[row] = level + x[row] @ weights
        errors.append((((np.eye(4)[labels] - outputs) ** 2).mean(), outputs))
    wanted = min(errors, key=lambda error: error[0])[1]
    np.testing.assert_allclose(found.outputs.numpy(), wanted, atol=0.03)


@pytest.mark.parametrize("flipped", [0.0, 0.15])
def test_flipped_answers_are_found_and_right_ones_left(flipped: float) -> None:
    prompts, answers, is_flipped = drawn(400, flipped, 1)
    ids = np.arange(400) * 3
    found = fit_answer_classes(ids, answers, prompts)
    assert found is not None
    flagged = found.wrong(ids, answers, prompts) > 0.5
    assert flagged[~is_flipped].mean() < 0.05
    if flipped:
        assert flagged[is_flipped].mean() > 0.7
        # Rows that were not fitted to, too.
        new, others, are_flipped = drawn(300, flipped, 2)
        p = found.wrong(np.arange(300) * 3 + 1, others, new)
        assert (p > 0.5)[are_flipped].mean() > 0.7
        assert (p > 0.5)[~are_flipped].mean() < 0.05


def test_rare_and_long_answers_are_no_classes() -> None:
    prompts, answers, _ = drawn(100, 0.0, 3)
    answers[:10] = [f"something else, {at}" for at in range(10)]
    found = fit_answer_classes(np.arange(100), answers, prompts)
    assert found is not None
    assert set(found.classes(answers[:10])) == {-1}
    assert np.isnan(found.wrong(np.arange(10), answers[:10], prompts[:10])).all()
    assert fit_answer_classes(np.arange(30), answers[:30], prompts[:30]) is None
    assert fit_answer_classes(np.arange(100), ["yes"] * 100, prompts) is None
    assert fit_answer_classes(np.arange(100), answers, np.zeros_like(prompts)) is None


def test_the_probability_is_that_of_the_noise_model() -> None:
    prompts, answers, _ = drawn(200, 0.1, 4)
    found = fit_answer_classes(np.arange(200), answers, prompts)
    assert found is not None
    own = found._replace(noise=NoiseModel(1.0, torch.zeros(4), torch.full((4, 4), 0.25).double()))
    labels = found.classes(answers)
    clean = torch.softmax(found.outputs, 1).numpy()
    wanted = 1 - clean[np.arange(200), labels]
    np.testing.assert_allclose(own.wrong(np.arange(200), answers, prompts), wanted, atol=1e-12)
