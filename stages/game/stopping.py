"""The stopping rule of a Monte-Carlo method: after which round its values are precise enough."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.game.uncertainty import moderated, student_t_quantile
from stages.stage import ConfigError

SURE_SHARE = 0.5
"""Share of the examples whose values must have a sure sign."""


@dataclass(frozen=True)
class StopRule:
    """Rounds end when the first of these holds, over the rounds 0 to r that are finished."""

    minutes: float | None = None
    stderr: float | None = None
    """Largest root mean square of examples' standard errors, for every semivalue and utility."""
    sign_confidence: float | None = None
    """Confidence that half of the examples' signs must reach, for every semivalue and utility."""

    @property
    def is_open(self) -> bool:
        """Whether any limit is set."""
        return (self.minutes, self.stderr, self.sign_confidence) != (None, None, None)

    def check(self) -> None:
        """Refuses limits that can never hold.

        Raises:
            ConfigError: a limit is not positive, or a confidence not between 0.5 and 1.
        """
        for name in ("minutes", "stderr"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < float("inf"):
                raise ConfigError(
                    f"{name}: found {limit}, expected a positive number. Correct it, or leave it "
                    "out."
                )
        if self.sign_confidence is not None and not 0.5 < self.sign_confidence < 1:
            raise ConfigError(
                f"sign_confidence: found {self.sign_confidence}, expected more than 0.5 and less "
                "than 1. Set it to 0.95, say."
            )


class Watch:
    """Applies a stopping rule to finished rounds, one after the other."""

    def __init__(self, rule: StopRule):
        """Starts without a round."""
        self.rule = rule
        self._sums: dict[tuple[str, str], np.ndarray] = {}
        self._n_units = self._n_prior = 0

    def add(self, rounds: pa.Table) -> None:
        """Adds the next round: its rows of the table `shapley_round`."""
        keys = rounds.group_by(["semivalue", "utility"]).aggregate([("n_units", "max")])
        for semivalue, utility, _ in zip(*keys.columns, strict=True):
            is_own = pc.and_(
                pc.equal(rounds["semivalue"], semivalue), pc.equal(rounds["utility"], utility)
            )
            rows = rounds.filter(is_own)
            sums = np.stack([rows["total"].to_numpy(), rows["total_sq"].to_numpy()])
            key = (semivalue.as_py(), utility.as_py())
            self._sums[key] = self._sums.get(key, 0) + sums
        self._n_units += keys["n_units_max"][0].as_py()
        self._n_prior = rounds["n_prior"][0].as_py()

    def reason(self, minutes: float) -> str | None:
        """The limit that the rounds so far have met, in words; None if none is met.

        `minutes` is the time that these rounds took.
        """
        limit, confidence = self.rule.stderr, self.rule.sign_confidence
        if self.rule.minutes is not None and minutes >= self.rule.minutes:
            return f"{minutes:.1f} minutes have passed, of {self.rule.minutes:g}"
        if self._n_units < 2 or (limit is None and confidence is None):
            return None
        n = self._n_units
        values = [sums[0] / n for sums in self._sums.values()]
        errors = [
            np.sqrt(moderated(variance, n, self._n_prior) / n)
            for variance in (
                np.maximum(sums[1] - sums[0] ** 2 / n, 0) / (n - 1) for sums in self._sums.values()
            )
        ]
        if limit is not None:
            largest = max(float(np.sqrt(np.mean(error**2))) for error in errors)
            if largest <= limit:
                return f"the standard error is {largest:.3g}, of {limit:g} allowed"
        if confidence is not None:
            quantile = student_t_quantile(confidence, n - 1)
            least = min(
                float(np.mean(np.abs(value) > quantile * error))
                for value, error in zip(values, errors, strict=True)
            )
            if least >= SURE_SHARE:
                return f"{least:.0%} of the signs are {confidence:g} sure"
        return None
