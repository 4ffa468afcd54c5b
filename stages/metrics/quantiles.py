"""The quantile test: is the loss of queries lower, the higher the tenth that is trained on?

The examples are ranked by a method's scores and cut into tenths, the most helpful first. A model is
fitted anew on each tenth alone (`stages.metrics.refitted`) and judged by the queries' loss and
accuracy. `spearman` is the rank correlation over the tenths of their number and their loss: 1 where
every tenth is worse than the one before. Intervals are over queries. What they leave out is which
rows fell into a tenth: random rankings stand beside, with the middle 95 % of `draws` of them, and a
correlation that lies among theirs says nothing.

Tenths of one class are worthless whatever their scores; so each has its share of every class,
unless `per_class: false`. A ranking by pairs is that of other queries than judge it; values of
examples alone are judged by queries that had a say in them, and `held_out` says so.

Source: Nayak et al. 2026, arXiv:2602.14696, the test of quantiles of distance, there by fine-tuning
language models and by the queries that the rows were ranked for. Equal shares of classes and other
queries are ours.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from stages.metrics.bootstrap import Estimate, draws, estimated
from stages.metrics.metric import Result
from stages.metrics.ranks import spearman
from stages.metrics.refitted import Ordered, Refittable, Refitted, best_rows
from stages.stage import ConfigError, DataError, Inputs, Steps


@dataclass(frozen=True)
class Quantiles(Refitted):
    """Loss and accuracy of the queries by tenth of a ranking, and how well they are in order.

    Costs a fit for each set of scores, tenth and part, and for each tenth of each random ranking.
    """

    quantiles: int = 10
    """Parts of equally many examples that a ranking is cut into."""
    draws: int = 20
    """Random rankings that stand beside."""

    def check(self) -> None:
        """Refuses fields that nothing can be fitted or judged with.

        Raises:
            ConfigError: there are fewer than 3 quantiles, or see `Refitted.check`.
        """
        super().check()
        if self.quantiles < 3:
            raise ConfigError(
                f"quantiles: found {self.quantiles}, expected at least 3, so that there is an "
                "order. Raise it."
            )

    def compute(self, inputs: Inputs, stepped: Steps) -> Result:
        """A row for each set of scores and quantile, and one for their order; no details.

        Columns: method, semivalue, utility, quantile (1 is the most helpful; None for the order),
        n_rows, held_out, loss (mean cross-entropy of the queries), accuracy, and spearman, each
        with its interval.

        Raises:
            DataError: there are fewer examples than quantiles, or see `Refitted.refit` and
                `Refitted.ranked`.
        """
        made = self.refit(inputs)
        if len(made.example_ids) < self.quantiles:
            raise DataError(
                f"quantiles: found {self.quantiles} of {len(made.example_ids)} examples, expected "
                "at least one example in each. Lower quantiles."
            )
        stepped(0, len(self.methods) + 1)
        rows: list[dict[str, Any]] = []
        for nth, method in enumerate(self.methods):
            for scores, ranked in self.ranked(inputs, method, made):
                said, counts = self._by_quantile(made, ranked)
                held_out = scores.query_ids is not None or not scores.sees_queries
                rows += self._rows(scores.named(), held_out, counts, said)
            stepped(nth + 1, len(self.methods) + 1)
        rows += self._random(made)
        stepped(len(self.methods) + 1, len(self.methods) + 1)
        facts = {
            "n_examples": len(made.example_ids),
            "n_queries": len(made.query_ids),
            **made.facts,
        }
        return Result(rows, facts, [])

    def quantile_of(
        self, score: Float[np.ndarray, " examples"], labels: Int64[np.ndarray, " examples"]
    ) -> Int64[np.ndarray, " examples"]:
        """The quantile of each example, 0 the one of the largest scores."""
        n = len(score)
        order = best_rows(score, labels, n, self.per_class)
        found = np.empty(n, np.int64)
        found[order] = np.arange(n) * self.quantiles // n
        return found

    def _by_quantile(
        self, made: Refittable, ranked: list[Ordered]
    ) -> tuple[Float[np.ndarray, "quantiles numbers queries"], list[int]]:
        """What a fit on each quantile says of every query, and the rows of each."""
        said = np.empty((self.quantiles, 2, len(made.query_ids)))
        for order in ranked:
            of = self.quantile_of(order.score, made.labels)
            for at in range(self.quantiles):
                found = made.judged(np.flatnonzero(of == at))
                said[at][:, order.judges] = found[:, order.judges]
        return said, np.bincount(of, minlength=self.quantiles).tolist()

    def _rows(
        self,
        named: dict[str, Any],
        held_out: bool,
        counts: list[int],
        said: Float[np.ndarray, "quantiles numbers queries"],
    ) -> list[dict[str, Any]]:
        """The rows of one ranking."""
        n = said.shape[2]
        sampled = list(draws(n, self.resamples, self.seed))

        def mean(values: Float[np.ndarray, " queries"]) -> Estimate:
            drawn = (float(values[at].mean()) for at in sampled)
            return estimated(float(values.mean()), drawn)

        def order(at: Int64[np.ndarray, " queries"]) -> float:
            return spearman(np.arange(self.quantiles, dtype=np.float64), -said[:, 1, at].mean(1))

        rows = [
            {
                **named,
                **{"quantile": number + 1, "n_rows": counts[number], "held_out": held_out},
                **mean(-said[number, 1]).named("loss"),
                **mean(said[number, 0]).named("accuracy"),
                **Estimate(None).named("spearman"),
            }
            for number in range(self.quantiles)
        ]
        whole = {
            **named,
            **{"quantile": None, "n_rows": sum(counts), "held_out": held_out},
            **mean(-said[:, 1].mean(0)).named("loss"),
            **mean(said[:, 0].mean(0)).named("accuracy"),
            **estimated(order(np.arange(n)), (order(at) for at in sampled)).named("spearman"),
        }
        return [*rows, whole]

    def _random(self, made: Refittable) -> list[dict[str, Any]]:
        """The same of random rankings: the mean of each number over the draws, and its spread."""
        generator, everyone = self._generator(2), np.ones(len(made.query_ids), bool)
        orders = [
            Ordered(generator.random(len(made.example_ids)), everyone) for _ in range(self.draws)
        ]
        said, counts = zip(*(self._by_quantile(made, [order]) for order in orders), strict=True)
        means = np.stack(said).mean(3)
        number = np.arange(self.quantiles, dtype=np.float64)
        ordered = np.array([spearman(number, -each[:, 1]) for each in means])
        nothing = Estimate(None)

        def spread(values: Float[np.ndarray, " draws"]) -> Estimate:
            return estimated(float(values.mean()), values.tolist())

        named = {"method": "random", "semivalue": None, "utility": None}
        columns = [*range(self.quantiles), slice(None)]
        rows = []
        for at in columns:
            part = means[:, [at]] if isinstance(at, int) else means
            is_whole = not isinstance(at, int)
            rows.append(
                {
                    **named,
                    "quantile": None if isinstance(at, slice) else at + 1,
                    "n_rows": sum(counts[0]) if isinstance(at, slice) else counts[0][at],
                    "held_out": True,
                    **spread(-part[:, :, 1].mean(1)).named("loss"),
                    **spread(part[:, :, 0].mean(1)).named("accuracy"),
                    **(spread(ordered) if is_whole else nothing).named("spearman"),
                }
            )
        return rows


METRIC = Quantiles
