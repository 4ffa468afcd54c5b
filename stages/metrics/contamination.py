"""The share of an explanation's examples that have a wrong label, or are outliers.

For each method, the share of a query's listed examples whose label is wrong, where the corpus knows
true labels (`flip_labels`), and the share that are outliers; means over the queries with a list,
beside the shares among all labelled examples. Lower is better: the explanation rests on usual rows.
For lists of the harmful side higher is better: wrong labels belong there.

An outlier is an example of high loss: the `outliers` share of all labelled examples with the
largest cross-entropy of their label under the predictions. Influence is said to favour such
examples (Barshan, Brunet and Dziugaite 2020, arXiv:2003.11630). The model has seen these labels,
unless the predictions are those of `kernel_regression`, which are leave-one-out. A wrong label
mostly has a high loss, so the two shares are not of different examples.

Source: ours, for the supports of arXiv:2408.05976, the threshold of 5 % with it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from stages.metrics.bootstrap import Estimate
from stages.metrics.explanations import Explanations, mean_length, read_logits
from stages.metrics.metric import Result
from stages.metrics.true_labels import known_labels
from stages.reading.supervision import count_classes, read_labels
from stages.stage import ConfigError, DataError, Inputs, Steps


def is_outlier(
    logits: Float[np.ndarray, "rows classes"], labels: Int64[np.ndarray, " rows"], share: float
) -> Bool[np.ndarray, " rows"]:
    """Whether a row is among the `share` with the largest losses; of equal rows the first."""
    losses = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels), reduction="none"
    ).numpy()
    is_large = np.zeros(len(labels), dtype=bool)
    is_large[np.argsort(-losses, kind="stable")[: round(share * len(labels))]] = True
    return is_large


@dataclass(frozen=True)
class Contamination(Explanations):
    """Shares of wrong labels and of outliers among the listed examples, for each method."""

    predictions: str = "prediction"
    """Instance of predictions from whose logits the losses are computed."""
    outliers: float = 0.05
    """Share of the labelled examples that counts as outliers."""

    def check(self) -> None:
        """Refuses fields out of range.

        Raises:
            ConfigError: `outliers` is no share, or see `Explanations.check`.
        """
        super().check()
        if not 0 < self.outliers < 1:
            raise ConfigError(
                f"outliers: found {self.outliers}, expected a share between 0 and 1. Set 0.05."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The methods' tables, predictions and labels."""
        return (*self.methods, self.predictions, "label")

    def compute(self, inputs: Inputs, stepped: Steps) -> Result:
        """One row for each method; details are counts for single queries.

        Raises:
            DataError: no labelled example has a prediction.
        """
        known = known_labels(inputs)
        wrong, n_known, n_labelled = known.ids[known.is_wrong], len(known.ids), known.n_labelled
        outliers, n_predicted = self._outliers(inputs)
        stepped(0, len(self.methods))
        rows, details = [], []
        for nth, (method, lists) in enumerate(self.lists(inputs).items()):
            counted: list[dict[str, Any]] = [
                {
                    "method": method,
                    "query_id": query,
                    "length": len(listed.ids),
                    "wrong": int(np.isin(listed.ids, wrong).sum()) if n_known else None,
                    "outliers": int(np.isin(listed.ids, outliers).sum()),
                }
                for query, listed in lists.items()
            ]
            wrong_share = Estimate(None)
            if n_known:
                wrong_share = self.mean([one["wrong"] / one["length"] for one in counted])
            outlier_share = self.mean([one["outliers"] / one["length"] for one in counted])
            rows.append(
                {
                    "method": method,
                    "queries": len(lists),
                    "length": mean_length(lists),
                    **wrong_share.named("wrong"),
                    **outlier_share.named("outliers"),
                }
            )
            details += counted
            stepped(nth + 1, len(self.methods))
        facts = {
            "n_labelled": n_labelled,
            "wrong_base": len(wrong) / n_labelled if n_known else None,
            "outliers_base": len(outliers) / n_predicted,
        }
        return Result(rows, facts, details)

    def _outliers(self, inputs: Inputs) -> tuple[Int64[np.ndarray, " outliers"], int]:
        """Ids of the outliers, and the number of labelled and predicted examples they are among."""
        ids, labels = read_labels(inputs, "example", count_classes(inputs))
        predicted, logits = read_logits(inputs, self.predictions, "example")
        ids, of_labels, of_logits = np.intersect1d(ids, predicted, True, return_indices=True)
        if len(ids) == 0:
            raise DataError(
                f"{self.predictions}: found predictions of no labelled example, expected some. "
                "Name an instance that predicts examples."
            )
        return ids[is_outlier(logits[of_logits], labels[of_labels], self.outliers)], len(ids)


METRIC = Contamination
