"""The mixture of planted and real rows, against rows whose kinds are known."""

import numpy as np
import pytest

from stages.surrogate.answer_mixture import (
    NUMBERS,
    Measured,
    features_of,
    fit_mixture,
    likeliest_shares,
    reference_of,
    told_apart,
    with_shares,
)

KINDS = np.array([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]])


def drawn(n: int, shares: list[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows around 0, or around the mean of the kind that they are, and these kinds (0: none)."""
    generator = np.random.default_rng(seed)
    kind = generator.choice(len(shares) + 1, n, p=[1 - sum(shares), *shares])
    means = np.concatenate([np.zeros((1, 3)), KINDS])
    return means[kind] + generator.standard_normal((n, 3)), kind


def fitted(n: int, shares: list[float], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, kind = drawn(n, shares, seed)
    generator = np.random.default_rng(seed + 100)
    sources = np.repeat(np.arange(100), 3)
    names = ["a", "b", "c"] * 100
    planted = KINDS[np.tile(range(3), 100)] + generator.standard_normal((300, 3))
    mixture = fit_mixture(x, planted, names, sources)
    assert mixture.kinds == ("a", "b", "c")
    return mixture.posterior(x), kind, mixture.shares


@pytest.mark.parametrize("shares", [[0.0, 0.0, 0.0], [0.1, 0.05, 0.0], [0.2, 0.1, 0.05]])
def test_shares_and_flags_are_near_those_drawn(shares: list[float]) -> None:
    posterior, kind, found = fitted(2000, shares, 0)
    np.testing.assert_allclose(posterior.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(found[1:], shares, atol=0.05)
    flagged = posterior[:, 0] < 0.5
    assert np.count_nonzero(kind[flagged] == 0) <= max(20, flagged.sum() / 5)
    if sum(shares):
        assert np.mean(flagged[kind > 0]) > 0.6
        right = posterior[flagged][:, 1:].argmax(1) + 1 == kind[flagged]
        assert right.mean() > 0.8


def test_kinds_that_look_like_right_rows_are_not_flagged() -> None:
    generator = np.random.default_rng(0)
    x, planted = generator.standard_normal((1000, 4)), generator.standard_normal((200, 4))
    mixture = fit_mixture(x, planted, ["a", "b"] * 100, np.arange(200))
    assert (mixture.posterior(x)[:, 0] > 0.5).mean() > 0.98
    np.testing.assert_allclose(mixture.areas, 0.5, atol=0.1)


def test_how_well_kinds_are_told_is_the_share_of_pairs_in_the_right_order() -> None:
    ratios = np.array(
        [[1, 0.1, 2], [1, 0.4, 2], [1, 0.4, 9], [1, 0.2, 1], [1, 0.9, 2]], dtype=float
    )
    label = np.array([0, 0, 1, 1, 2])
    # Kind 1: 0.4 against 0.1 and 0.4, 0.2 against the same. Kind 2: 2 against 2 and 2.
    assert told_apart(ratios, label).tolist() == [(1 + 0.5 + 1 + 0) / 4, 0.5]


def test_shares_of_greatest_likelihood() -> None:
    """Against a search over all shares of two kinds, on exact ratios."""
    x, _ = drawn(400, [0.2, 0.1], 3)
    means = np.concatenate([np.zeros((1, 3)), KINDS[:2]])
    ratios = np.exp(x @ means.T - (means**2).sum(1) / 2)
    grid = np.linspace(0, 0.5, 101)
    best = max(
        ((a, b) for a in grid for b in grid),
        key=lambda s: np.log(ratios @ np.array([1 - sum(s), *s])).sum(),
    )
    found = likeliest_shares(ratios, np.ones(2, dtype=bool))
    np.testing.assert_allclose(found[1:], best, atol=0.005)
    assert with_shares(ratios, found).mean(0) == pytest.approx(found, abs=1e-4)


def test_a_row_is_compared_with_others_alone_and_what_is_not_known_changes_nothing() -> None:
    generator = np.random.default_rng(1)
    numbers = generator.uniform(1, 4, (40, len(NUMBERS)))
    states = generator.standard_normal((2, 40, 6))
    ids = np.arange(40)
    measured = Measured(numbers, states[0], states[1])
    reference = reference_of(ids, measured)
    found = features_of(ids[:, None], measured, reference)
    # The same without the row itself in the reference, whose means stay.
    for row in (0, 17):
        left = np.arange(40) != row
        without = reference._replace(
            ids=ids[left],
            signals=reference.signals[left],
            prompts=reference.prompts[left],
            answers=reference.answers[left],
        )
        one = Measured(*(part[[row]] for part in measured))
        alone = features_of(ids[[row], None], one, without)
        # The spread over all is that of one row fewer.
        np.testing.assert_allclose(alone[0], found[row], rtol=0.1, atol=0.1)
        np.testing.assert_allclose(alone[0, -3:-1], found[row, -3:-1], atol=1e-12)
    # A planted answer is not compared with the row that it was taken from, which it is equal to.
    taken = measured._replace(answers=np.roll(measured.answers, -1, axis=0))
    donors = np.roll(ids, -1)
    leaking = features_of(ids[:, None], taken, reference)[:, -2]
    assert (leaking > 0.999).any()
    assert (features_of(np.column_stack([ids, donors]), taken, reference)[:, -2] < 0.999).all()
    unknown = numbers.copy()
    unknown[:, 2:4] = np.nan
    of_unknown = features_of(ids[:, None], measured._replace(numbers=unknown), reference)
    assert np.isnan(of_unknown).any(0).sum() == 8
    known = ~np.isnan(of_unknown).any(0)
    np.testing.assert_array_equal(of_unknown[:, known], found[:, known])
