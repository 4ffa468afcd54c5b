"""Accuracy and cross-entropy after training on what scores keep or remove, against random rows.

For each share, a model is fitted anew (`stages.metrics.refitted`) and judged on labelled queries:

- keep: on the rows of the largest scores; a good ranking is above random rows.
- remove_harmful: on all but the rows of the smallest scores; a good ranking is above, too.
- remove_helpful: on all but the rows of the largest scores; a good ranking is below.

Beside each stands the same on as many random rows, `draws` of them. `gain` is the
difference; in the row without a share it is the area between the two curves, the mean over the
shares by the trapezoid rule. Intervals are over queries and random draws, both drawn
again. Cross-entropy is the utility: the mean log-probability of the label, so that more is better.

A query that had a say in a ranking judges it too kindly. A ranking by pairs is therefore that of
other queries than judge it; values of examples alone, such as those of `freeshap`, cannot be taken
apart, and `held_out` says so: for them `selection` values anew. The removal curves are those of
Ghorbani and Zou 2019, arXiv:1904.02868, section 4, there of accuracy alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from stages.metrics.bootstrap import draws, estimated
from stages.metrics.metric import Result
from stages.metrics.refitted import Ordered, Refittable, Refitted, best_rows, weights_of
from stages.metrics.scored import Scores
from stages.stage import ConfigError, Inputs, Steps

UTILITIES = ("accuracy", "cross_entropy")
ACTIONS = ("keep", "remove_harmful", "remove_helpful")


@dataclass(frozen=True)
class Curves(Refitted):
    """Curves of accuracy and cross-entropy by share, and the area between them and random rows.

    Costs a fit for each set of scores, action, share and part, and for each random draw and size.
    """

    keep: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    """Shares of the examples that are kept, ascending; empty leaves that curve out."""
    remove: tuple[float, ...] = (0.1, 0.2, 0.4)
    """Shares of the examples that are removed, ascending; empty leaves these curves out."""

    def check(self) -> None:
        """Refuses fields that nothing can be fitted or judged with.

        Raises:
            ConfigError: shares are none, or do not ascend between 0 and 1, or see `Refitted.check`.
        """
        super().check()
        for name, shares in (("keep", self.keep), ("remove", self.remove)):
            if list(shares) != sorted(set(shares)) or not all(0 < s < 1 for s in shares):
                raise ConfigError(
                    f"{name}: found {list(shares)}, expected ascending shares between 0 and 1. Say "
                    f"for example {name}=[0.1,0.2]."
                )
        if not self.keep and not self.remove:
            raise ConfigError("keep: found no share, nor in remove, expected some. Name shares.")

    def compute(self, inputs: Inputs, stepped: Steps) -> Result:
        """A row for each set of scores, action and share, and one for the area; no details.

        Columns: method, semivalue, utility, action, share (None: the area), n_rows, held_out, and
        of each utility its mean over the queries, that of random rows with its standard deviation
        over draws, and the gain with its interval.

        Raises:
            DataError: see `Refitted.refit` and `Refitted.ranked`.
        """
        made = self.refit(inputs)
        actions = {"keep": self.keep} if self.keep else {}
        if self.remove:
            actions |= dict.fromkeys(ACTIONS[1:], self.remove)
        stepped(0, len(self.methods) + 1)
        random = self._random(made, sorted({s for a in actions for s in self._kept(a)}))
        stepped(1, len(self.methods) + 1)
        rows: list[dict[str, Any]] = []
        for nth, method in enumerate(self.methods):
            for scores, ranked in self.ranked(inputs, method, made):
                for action in actions:
                    rows += self._curve(made, scores, ranked, action, random)
            stepped(nth + 2, len(self.methods) + 1)
        whole = made.judged(np.arange(len(made.example_ids))).mean(1)
        facts = {
            "n_examples": len(made.example_ids),
            "n_queries": len(made.query_ids),
            **made.facts,
            **{f"{name}_of_all": float(x) for name, x in zip(UTILITIES, whole, strict=True)},
        }
        return Result(rows, facts, [])

    def _kept(self, action: str) -> tuple[float, ...]:
        """The share that is trained on, for each share of an action."""
        return self.keep if action == "keep" else tuple(1 - share for share in self.remove)

    def _count(self, kept: float, made: Refittable) -> int:
        return max(1, round(kept * len(made.example_ids)))

    def _random(
        self, made: Refittable, kept: list[float]
    ) -> dict[float, Float[np.ndarray, "draws utilities queries"]]:
        """What fits on random rows say of every query, for each share that is kept."""
        generator = self._generator(2)
        found = {}
        for share in kept:
            count, each = self._count(share, made), []
            for _ in range(self.draws):
                order = generator.random(len(made.example_ids))
                each.append(made.judged(best_rows(order, made.labels, count, self.per_class)))
            found[share] = np.stack(each)
        return found

    def _curve(
        self,
        made: Refittable,
        scores: Scores,
        ranked: list[Ordered],
        action: str,
        random: dict[float, np.ndarray],
    ) -> list[dict[str, Any]]:
        """The rows of one curve."""
        kept = self._kept(action)
        own = np.empty((len(kept), len(UTILITIES), len(made.query_ids)))
        for at, share in enumerate(kept):
            for order in ranked:
                score = -order.score if action == "remove_helpful" else order.score
                count = self._count(share, made)
                said = made.judged(best_rows(score, made.labels, count, self.per_class))
                own[at][:, order.judges] = said[:, order.judges]
        others = np.stack([random[share] for share in kept])
        named = {**scores.named(), "action": action}
        held_out = scores.query_ids is not None or not scores.sees_queries
        shares: list[float | None] = [*(self.keep if action == "keep" else self.remove), None]
        weights = [*np.eye(len(kept)), weights_of(kept if action == "keep" else self.remove)]
        counts: list[int | None] = [*(self._count(part, made) for part in kept), None]
        rows = []
        for share_or_area, n_rows, weight in zip(shares, counts, weights, strict=True):
            row: dict[str, Any] = {**named, "share": share_or_area, "n_rows": n_rows}
            row["held_out"] = held_out
            for column, utility in enumerate(UTILITIES):
                curve, beside = own[:, column], others[:, :, column]
                of_draws = np.tensordot(weight, beside, 1).mean(1)
                row[utility] = float((weight @ curve).mean())
                row[f"random_{utility}"] = float(of_draws.mean())
                row[f"random_{utility}_sd"] = float(of_draws.std(ddof=1))
                row |= self._gain(weight, curve, beside).named(f"gain_{utility}")
            rows.append(row)
        return rows

    def _gain(
        self,
        weight: Float[np.ndarray, " shares"],
        curve: Float[np.ndarray, "shares queries"],
        beside: Float[np.ndarray, "shares draws queries"],
    ) -> Any:
        """How far a curve is above that of random rows, in the mean over shares by weight."""
        own, others = weight @ curve, np.tensordot(weight, beside, 1)
        n_draws, n_queries = others.shape

        def gain(
            of_draws: Int64[np.ndarray, " draws"], of_queries: Int64[np.ndarray, " queries"]
        ) -> float:
            random = others[of_draws].mean(0)
            return float((own - random)[of_queries].mean())

        both = zip(
            draws(n_draws, self.resamples, self.seed, stream=4),
            draws(n_queries, self.resamples, self.seed),
            strict=True,
        )
        whole = gain(np.arange(n_draws), np.arange(n_queries))
        return estimated(whole, (gain(*drawn) for drawn in both))


METRIC = Curves
