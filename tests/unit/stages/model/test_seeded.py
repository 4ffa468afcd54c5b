import pytest

from stages.model.seeded import gaussian


def test_gaussians_follow_seed_and_name() -> None:
    drawn = gaussian(0, "a", 400, 100)
    assert drawn.equal(gaussian(0, "a", 400, 100))
    assert not drawn.equal(gaussian(1, "a", 400, 100))
    assert not drawn.equal(gaussian(0, "b", 400, 100))
    # 40,000 entries: the mean of squares is within 4 * sqrt(2 / 40,000) of its expectation.
    assert (drawn.square().mean() * 100).item() == pytest.approx(1.0, abs=0.03)
