from typing import Any

import numpy as np
import pytest

from stages.metrics.robustness import Robustness, draw_sets, non_robust, surely_non_robust
from stages.stage import ConfigError


def test_sets_keep_the_points_and_draw_companions_from_the_rest() -> None:
    sets = draw_sets(40, 12, 5, 7, seed=3)
    assert sets.shape == (7, 12)
    assert (sets[:, :5] == sets[0, :5]).all()
    assert all(len(set(row)) == 12 for row in sets.tolist())
    assert not np.isin(sets[:, 5:], sets[0, :5]).any()
    assert len({tuple(sorted(row)) for row in sets.tolist()}) == 7
    assert (draw_sets(40, 12, 5, 7, seed=3) == sets).all()
    assert (draw_sets(40, 12, 5, 7, seed=4) != sets).any()
    # Another size keeps the points: tables over sizes are about the same ones.
    assert (draw_sets(40, 30, 5, 3, seed=3)[0, :5] == sets[0, :5]).all()


def test_every_row_of_the_rest_is_drawn_as_often() -> None:
    sets = draw_sets(20, 10, 4, 5000, seed=0)
    counts = np.bincount(sets[:, 4:].ravel(), minlength=20)
    assert sorted(np.flatnonzero(counts == 0)) == sorted(sets[0, :4])
    # 6 of 16 each time; the standard deviation of a count is 34.
    assert abs(counts[counts > 0] - 5000 * 6 / 16).max() < 5 * 34


def test_one_other_sign_is_enough_and_zero_counts_as_positive() -> None:
    value = np.array([[1, 1, 0, -1, 0, -0.0], [2, -1, 0, -2, -1, 1], [3, 1, 0, -3, -1, 2]], float)
    assert non_robust(value).tolist() == [False, True, False, False, True, False]
    exact = np.zeros_like(value)
    assert surely_non_robust(value, exact).tolist() == non_robust(value).tolist()


def test_a_sign_that_sampling_may_have_turned_is_not_sure() -> None:
    value = np.array([[5.0, 5.0, 1.0], [-1.0, -3.0, -5.0], [4.0, 4.0, -4.0]])
    assert non_robust(value).all()
    assert surely_non_robust(value, np.ones((3, 3))).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"methods": ()}, r"methods: found \[\], expected at least one, each once"),
        ({"methods": ("freeshap", "freeshap")}, "expected at least one, each once"),
        ({"methods": ("ntk",)}, "methods: found ntk, expected stages that value any set"),
        ({"methods": ("kernel",)}, "stages.kernel: found no stage of that name"),
        ({"methods": ("shapely",)}, "stages.shapely: found no stage of that name"),
        ({"points": 0}, "points: found 0 with examples: 500, expected at least 1"),
        ({"points": 50, "examples": 50}, "points: found 50 with examples: 50"),
        ({"draws": 4}, "draws: found 4, expected an odd number of at least 3"),
        ({"draws": 1}, "draws: found 1, expected an odd number of at least 3"),
        ({"rounds": 0}, "rounds: 0, expected at least 1"),
        ({"utilities": ("accuracy", "accuracy")}, "utilities: found .*each once"),
    ],
)
def test_fields_that_cannot_be_used(fields: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Robustness(**fields)


def test_methods_play_with_the_fields_of_the_metric() -> None:
    metric = Robustness(kernel=("embedding",), ridge=0.5, rounds=3, coalitions=2, seed=9)
    exact, sampled = metric.players().values()
    for method in (exact, sampled):
        assert (method.kernel, method.ridge) == (("embedding",), 0.5)  # type: ignore[attr-defined]
        assert method.utilities == metric.utilities
    assert (sampled.rounds, sampled.coalitions, sampled.seed) == (3, 2, 9)  # type: ignore[attr-defined]
