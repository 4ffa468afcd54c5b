"""The bootstrap interval of a number that is computed from a sample, mostly of queries.

The interval holds the middle 95 % of what the number is when as many are drawn again from those
there are, with replacement (Efron 1979, percentile method). Over queries it says what other queries
would have given, not what other training rows would.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

Statistic = Callable[[Int64[np.ndarray, " drawn"]], float]
"""A number from the rows of these numbers, with repetitions; NaN where it is undefined."""


class Estimate(NamedTuple):
    """A number with its 95 % interval; all None where the number does not exist."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def named(self, name: str) -> dict[str, float | None]:
        """The three columns of a table that hold the estimate: `name`, its low and its high end."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def bootstrap(statistic: Statistic, n: int, resamples: int, seed: int) -> Estimate:
    """The statistic of `n` rows; draws for which it is NaN are left out of the interval."""
    whole = statistic(np.arange(n)) if n else float("nan")
    return estimated(whole, (statistic(rows) for rows in draws(n, resamples, seed)))


def estimated(value: float, drawn: Iterable[float]) -> Estimate:
    """A number with the middle 95 % of what it is in the draws; NaN among these are left out."""
    if np.isnan(value):
        return Estimate(None)
    known = [of_draw for of_draw in drawn if not np.isnan(of_draw)]
    if not known:
        return Estimate(float(value))
    low, high = np.quantile(known, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))


def mean_of(
    values: Sequence[float] | Float[np.ndarray, " n"], resamples: int, seed: int
) -> Estimate:
    """The mean of one number per query, with its interval."""
    array = np.asarray(values, np.float64)
    return bootstrap(lambda rows: float(array[rows].mean()), len(array), resamples, seed)


def draws(n: int, resamples: int, seed: int, stream: int = 3) -> Iterator[Int64[np.ndarray, " n"]]:
    """Numbers of `n` rows, drawn from n with replacement, `resamples` times.

    What is drawn beside it, such as subsets beside queries, takes another `stream`.
    """
    generator = np.random.default_rng([seed, 0, stream])
    for _ in range(resamples):
        yield generator.integers(0, n, n)
