"""The overlap of the lists of different queries: low where explanations are about their query.

The overlap of two lists is their Jaccard index, |A and B| / |A or B|; its mean over pairs of
queries is 1 for a method that lists the same examples for every query, and lower is more
specific. Queries of one predicted class share more with each other than with the rest, for spectra
by construction, so the mean over such pairs stands beside the one over all. Lists drawn at random
overlap by about r / (2n - r) for r of n examples.

Source: ours, for the supports of arXiv:2408.05976; that influence lists the same few outliers for
many queries is from Barshan, Brunet and Dziugaite 2020, arXiv:2003.11630.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from stages.metrics.bootstrap import Estimate, bootstrap
from stages.metrics.explanations import Explanations, Lists, mean_length, read_logits
from stages.metrics.metric import Result
from stages.stage import ConfigError, Inputs, Steps


def jaccard(lists: Lists) -> Float[np.ndarray, "queries queries"]:
    """The Jaccard index of every two lists. Cost queries^2 * examples in any list."""
    ids = np.unique(np.concatenate([listed.ids for listed in lists.values()]))
    holds = np.zeros((len(lists), len(ids)))
    for row, listed in enumerate(lists.values()):
        holds[row, np.searchsorted(ids, listed.ids)] = 1.0
    both = holds @ holds.T
    size = holds.sum(1)
    overlap: np.ndarray = both / (size[:, None] + size - both)
    return overlap


def mean_over_pairs(
    overlap: Float[np.ndarray, "queries queries"],
    counted: Bool[np.ndarray, "queries queries"],
    resamples: int,
    seed: int,
) -> Estimate:
    """The mean overlap of the pairs of different queries that are `counted`.

    The interval draws queries, not pairs, which depend on one another; a query that is drawn
    twice makes no pair with itself. Cost resamples * queries^2.
    """
    counted = counted & ~np.eye(len(counted), dtype=bool)
    weight = counted.astype(np.float64)
    weighted = weight * overlap

    def statistic(rows: np.ndarray) -> float:
        often = np.bincount(rows, minlength=len(weight)).astype(np.float64)
        pairs = often @ weight @ often
        return float(often @ weighted @ often / pairs) if pairs else float("nan")

    return bootstrap(statistic, len(weight), resamples, seed)


@dataclass(frozen=True)
class Specificity(Explanations):
    """The mean Jaccard overlap of the lists of pairs of queries, for each method.

    Lower is more specific. A query that a method lists nothing for is in none of its pairs.
    """

    predictions: str = "prediction"
    """Instance whose predicted classes say which queries are of one class."""
    queries: int = 1000
    """The largest number of queries that are compared; drawn with `seed` if there are more."""

    def check(self) -> None:
        """Refuses fields out of range.

        Raises:
            ConfigError: there would be no pair, or see `Explanations.check`.
        """
        super().check()
        if self.queries < 2:
            raise ConfigError(f"queries: found {self.queries}, expected at least 2. Raise it.")

    @property
    def reads(self) -> tuple[str, ...]:
        """The methods' tables, and predictions."""
        return (*self.methods, self.predictions, "label")

    def compute(self, inputs: Inputs, stepped: Steps) -> Result:
        """One row for each method; details are the listed example ids of each query."""
        ids, logits = read_logits(inputs, self.predictions, "query")
        chosen = np.random.default_rng([self.seed, 0, 4]).permutation(ids)[: self.queries]
        predicted = dict(zip(ids.tolist(), logits.argmax(1).tolist(), strict=True))
        compared = set(chosen.tolist())
        stepped(0, len(self.methods))
        rows, details = [], []
        for nth, (method, every) in enumerate(self.lists(inputs).items()):
            lists = {query: listed for query, listed in every.items() if query in compared}
            overall = alike = Estimate(None)
            if lists:
                overlap = jaccard(lists)
                classes = np.array([predicted[query] for query in lists])
                all_pairs = np.ones(overlap.shape, dtype=bool)
                overall = mean_over_pairs(overlap, all_pairs, self.resamples, self.seed)
                is_alike = classes[:, None] == classes
                alike = mean_over_pairs(overlap, is_alike, self.resamples, self.seed)
            rows.append(
                {
                    "method": method,
                    "queries": len(lists),
                    "length": mean_length(lists),
                    **overall.named("overlap"),
                    **alike.named("same_class"),
                }
            )
            details += [
                {
                    "method": method,
                    "query_id": query,
                    "predicted": predicted[query],
                    "example_ids": listed.ids.tolist(),
                }
                for query, listed in lists.items()
            ]
            stepped(nth + 1, len(self.methods))
        return Result(rows, {"n_queries": len(compared)}, details)


METRIC = Specificity
