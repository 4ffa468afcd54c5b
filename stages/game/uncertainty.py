"""The standard error of a mean over few units, and the quantile that makes it an interval."""

import functools

import numpy as np
from jaxtyping import Float


def moderated(
    variance: Float[np.ndarray, "*sums examples"], n_units: int, n_prior: int
) -> Float[np.ndarray, "*sums examples"]:
    """Each example's variance between units, mixed with the mean of all examples' variances.

    The mean counts as `n_prior` degrees of freedom beside the n_units - 1 of the example's own.
    Along a permutation most of a value comes from the few units in which the example is early: an
    example that was not yet early has too low a mean and too low a variance, at once, and intervals
    of its own variance miss the value in up to a third of cases (scripts/benchmarks/coverage.md).
    Others were early instead, so that their mean variance knows what it lacks. [the moderated t of
    Smyth 2004, doi:10.2202/1544-6115.1027, with a prior weight of our own]
    """
    own = n_units - 1
    mean = variance.mean(-1, keepdims=True)
    mixed: np.ndarray = (own * variance + n_prior * mean) / (own + n_prior)
    return mixed


@functools.lru_cache(maxsize=64)
def student_t_quantile(probability: float, df: int) -> float:
    """Where Student's t distribution has `probability` (above 0.5) to its left; to about 1e-6.

    With t = sqrt(df) tan(angle), the density of the angle is proportional to cos(angle)^(df - 1).
    """
    angles = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angles) ** (df - 1)
    share = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = np.interp(2 * probability - 1, share / share[-1], angles)
    return float(np.sqrt(df) * np.tan(angle))
