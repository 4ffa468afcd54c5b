"""Efficiency: Shapley values add up to U(all) - U(none), and by how much estimates of them do not.

The sum of the values is estimated by each unit as the values are, so that the gap, the sum less
U(all) - U(none), has a standard error of its own: that of its mean over the units. A gap beyond it
means that the values are biased, by a rule that cuts permutations short or by rounding, whatever
their own standard errors say.

A stage tells `GapSums` of each part, by utility. They are added up over the parts of a table
(`pipeline.shard_facts`), and `with_gap` makes of them the detail `efficiency` of its manifest:

    n               units; where values are of single queries, or exact, queries
    gap             the mean gap
    stderr          its standard error over the units; none where values are not of units
    allowed         the largest gap that chance (at 99.9 %) and rounding explain
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from stages.game.uncertainty import student_t_quantile

GapSums = Mapping[str, int | float]
"""n, total (of the gaps), total_allowed and, where values are means over units, total_sq."""

SURE = 0.9995
"""The quantile of Student's t that makes a gap beyond it, on either side, one in 1,000."""


def of_units(
    sums: Float[np.ndarray, " units"], ends: tuple[float, float], precision: str = "float64"
) -> GapSums:
    """The gaps of independent units, from the `sums` of their estimates over all examples.

    `ends` are U(none) and U(all).
    """
    gaps = sums - (ends[1] - ends[0])
    return {
        "n": len(gaps),
        "total": float(gaps.sum()),
        "total_sq": float(np.square(gaps).sum()),
        "total_allowed": len(gaps) * rounding(ends, precision),
    }


def of_queries(
    sums: Float[np.ndarray, "units queries"],
    ends: Float[np.ndarray, "ends queries"],
    precision: str = "float64",
) -> GapSums:
    """The gaps of single queries' values, each the mean over units that all queries share.

    As queries share them, what chance allows is the mean over queries of what it allows to each.
    Takes two units.
    """
    n_units, n_queries = sums.shape
    gaps = sums.mean(0) - (ends[1] - ends[0])
    errors = sums.std(0, ddof=1) / n_units**0.5
    chance = student_t_quantile(SURE, n_units - 1) * float(errors.sum())
    rounded = sum(rounding((none, all_), precision) for none, all_ in ends.T.tolist())
    return {"n": n_queries, "total": float(gaps.sum()), "total_allowed": chance + rounded}


def rounding(ends: tuple[float, float], precision: str = "float64") -> float:
    """The gap that rounding explains: half of the digits of the utilities `ends`."""
    return float(np.finfo(precision).eps ** 0.5 * sum(map(abs, ends)))


def with_gap(sums: GapSums) -> dict[str, Any]:
    """The sums with `gap`, `allowed` and, where there are units, `stderr`."""
    n = sums["n"]
    facts: dict[str, Any] = {**sums, "gap": sums["total"] / n, "allowed": sums["total_allowed"] / n}
    if "total_sq" in sums:
        facts["stderr"] = None
        if n > 1:
            spread = max(0.0, sums["total_sq"] - sums["total"] ** 2 / n)
            facts["stderr"] = (spread / (n - 1) / n) ** 0.5
            facts["allowed"] += student_t_quantile(SURE, int(n) - 1) * facts["stderr"]
    return facts


def sentence(utility: str, facts: Mapping[str, Any]) -> str | None:
    """A sentence for the user where the gap is larger than is allowed, else None."""
    is_known = "total_sq" not in facts or facts["n"] > 1
    if not is_known or abs(facts["gap"]) <= facts["allowed"]:
        return None
    side = "more" if facts["gap"] > 0 else "less"
    return (
        f"values of {utility} add up to {abs(facts['gap']):.3g} {side} than "
        f"U(all) - U(none), where chance and rounding explain {facts['allowed']:.2g}: "
        "they are biased, which their standard errors do not show"
    )
