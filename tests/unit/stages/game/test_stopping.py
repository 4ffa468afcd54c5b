import mpmath
import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.game.stopping import StopRule, Watch
from stages.game.sums import MarginalSums
from stages.game.uncertainty import moderated, student_t_quantile
from stages.tables import SHAPLEY_ROUND


def rounds(units: np.ndarray, utility: str = "margin", n_prior: int = 0) -> pa.Table:
    """One round; `units` has a row per unit and a column per example."""
    n_units, n = units.shape
    return pa.table(
        {
            "round": np.zeros(n, np.int64),
            "semivalue": ["shapley"] * n,
            "utility": [utility] * n,
            "example_id": np.arange(n),
            "total": units.sum(0),
            "total_sq": (units**2).sum(0),
            "n_units": np.full(n, n_units),
            "n_observed": np.full(n, n_units),
            "n_prior": np.full(n, n_prior),
        },
        schema=SHAPLEY_ROUND.schema,
    )


@pytest.mark.parametrize("df", [1, 2, 5, 23, 200])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.99])
def test_quantiles_are_those_of_student(df: int, probability: float) -> None:
    t = student_t_quantile(probability, df)
    tail = mpmath.betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True) / 2
    assert float(1 - tail) == pytest.approx(probability, abs=1e-5)


def test_the_standard_error_of_all_rounds_decides() -> None:
    generator = np.random.default_rng(0)
    drawn = [generator.normal(0, 1, (3, 40)) for _ in range(6)]
    errors = [
        float(np.sqrt(np.mean(np.concatenate(drawn[:k]).var(0, ddof=1) / (3 * k))))
        for k in range(1, 7)
    ]
    limit = (errors[3] + errors[4]) / 2
    watch = Watch(StopRule(stderr=limit))
    reasons = []
    for units in drawn:
        watch.add(rounds(units))
        reasons.append(watch.reason(1e9))
    assert [reason is not None for reason in reasons] == [error <= limit for error in errors]
    assert f"of {limit:g} allowed" in str(reasons[-1])


@pytest.mark.parametrize("n_prior", [4, 16])
def test_variances_are_mixed_with_their_mean(n_prior: int) -> None:
    """Of 6 units the own variance counts 5; an example without spread has some, one alone its."""
    units = np.random.default_rng(2).normal(0, [[0.0, 1.0, 3.0]], (6, 3))
    own = units.var(0, ddof=1)
    expected = [(5 * v + n_prior * own.mean()) / (5 + n_prior) for v in own]
    np.testing.assert_allclose(moderated(own, 6, n_prior), expected)
    np.testing.assert_allclose(moderated(own, 6, 0), own)
    np.testing.assert_allclose(moderated(own[2:], 6, n_prior), own[2:])
    error = float(np.sqrt(np.mean(expected) / 6))
    for limit, is_met in ((error * 1.001, True), (error * 0.999, False)):
        watch = Watch(StopRule(stderr=limit))
        watch.add(rounds(units, n_prior=n_prior))
        assert (watch.reason(0.0) is not None) == is_met


def test_every_utility_must_be_sure_of_half_of_its_signs() -> None:
    generator = np.random.default_rng(1)
    clear = generator.normal(1, 0.1, (4, 10))
    signs = np.array([[1], [-1], [1], [-1]])
    half = np.concatenate([clear[:, :5], generator.normal(0, 1, (4, 5)) * signs], 1)
    watch = Watch(StopRule(sign_confidence=0.9))
    watch.add(pa.concat_tables([rounds(half), rounds(clear, "accuracy")]))
    assert "% of the signs are 0.9 sure" in str(watch.reason(0.0))
    doubtful = half * np.where(np.arange(10) < 2, signs, 1)
    watch = Watch(StopRule(sign_confidence=0.9))
    watch.add(pa.concat_tables([rounds(doubtful), rounds(clear, "accuracy")]))
    assert watch.reason(0.0) is None


def test_minutes_are_counted_in_all_and_one_unit_has_no_error() -> None:
    watch = Watch(StopRule(minutes=2.0, stderr=1e9))
    watch.add(rounds(np.ones((1, 3))))
    assert watch.reason(1.9) is None
    assert watch.reason(2.0) == "2.0 minutes have passed, of 2"


@pytest.mark.parametrize("n_prior", [0, 16])
def test_one_unit_has_a_value_and_no_error(n_prior: int) -> None:
    tally = MarginalSums(("margin",), {"margin": np.ones((1, 3))})
    tally.add("margin", torch.tensor([[2, 0, 1]]), 0, torch.tensor([[1.0, 2.0, 4.0]]))
    tally.close_unit()
    mean, error = tally.estimates(n_prior)
    assert mean.tolist() == [[[2.0, 4.0, 1.0]]]
    assert error.isnan().all()
