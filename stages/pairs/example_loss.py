"""The loss of an example, with a minus: a baseline that is blind to the query.

An example that is predicted badly counts as a harm, the same for every query: that is how wrong
labels would be sought without any attribution. The loss is the cross-entropy of the example's own
label, or the squared error of a regression, as in the view `predictions`.

Global: the loss; local: -1, or 0 where the loss is 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float64, Int64

from stages.capabilities import AnswersQueries
from stages.model.measurement import cross_entropy
from stages.pairs.scores import ATTRIBUTION, NUMBERS, KeptPairs, kept, pair_rows
from stages.reading.logits import logits_in, read_logits
from stages.reading.supervision import (
    answered_rows_of,
    count_classes,
    read_labels,
    read_targets,
    task_of,
)
from stages.stage import Cost, DataError, Inputs, Rows, Split, Work


@dataclass(frozen=True)
class ExampleLoss(KeptPairs, AnswersQueries):
    """Scores of the pairs of all queries and labelled examples that have a prediction.

    One task, which reads the predictions shard by shard. Memory: 40 bytes per example for its
    label, and the rows that are kept.
    """

    predictions: str = "prediction"
    """Whose predictions count: an instance of `prediction`, or of `kernel_regression`, whose
    predictions of examples are leave-one-out. The default is whatever alone writes such a table."""

    split: ClassVar[Split] = "whole"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")

    @property
    def reads(self) -> tuple[str, ...]:
        """Predictions and labels."""
        return (self.predictions, "label")

    def compute(self, inputs: Inputs) -> Rows:
        """The largest losses, once for every query."""
        queries, _ = read_logits(inputs, self.predictions, "query")
        ids, losses = self._largest(inputs)
        if len(ids) == 0 or len(queries) == 0:
            raise DataError(
                f"example_loss: found {len(queries)} queries and {len(ids)} labelled examples in "
                f"{self.predictions}, expected at least one of each. Check labels and `queries:`."
            )
        pairs = kept(torch.from_numpy(-losses)[None], self.top_k)
        count = max(1, len(pairs.scores))
        at_once = max(1, NUMBERS // count)
        for start in range(0, len(queries), at_once):
            block = queries[start : start + at_once]
            rows = np.repeat(np.arange(len(block)), len(pairs.scores))
            examples, scores = (np.tile(part, len(block)) for part in pairs[1:])
            repeated = pairs._replace(queries=rows, examples=examples, scores=scores)
            yield ATTRIBUTION.name, pair_rows(block, ids, repeated, losses)

    def _largest(
        self, inputs: Inputs
    ) -> tuple[Int64[np.ndarray, " kept"], Float64[np.ndarray, " kept"]]:
        """Ids, ascending, and losses of the `top_k` labelled examples with the largest, or of all.

        Of equal losses those of the smallest ids.
        """
        is_regression = task_of(inputs) == "regression"
        if is_regression:
            answered, answers = read_targets(inputs, "example")
        else:
            answered, answers = read_labels(inputs, "example", count_classes(inputs))
        ids, losses = np.zeros(0, np.int64), np.zeros(0)
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for shard in inputs.by_shard(self.predictions, "example"):
            predicted, logits = logits_in(shard)
            rows, of_answer = answered_rows_of(predicted, answered)
            found = _losses(logits[rows], answers[of_answer], is_regression)
            parts.append((predicted[rows], found))
            if self.top_k is not None:
                ids, losses = _best([(ids, losses), *parts], self.top_k)
                parts = []
        return _best([(ids, losses), *parts], self.top_k)

    def of_queries(self, inputs: Inputs) -> Rows:
        """The rows of `compute`, which takes no longer for few queries."""
        return self.compute(inputs)

    def cost(self, work: Work) -> Cost:
        """The logits, once; the rows of what is kept."""
        n_kept = work.n_examples if self.top_k is None else min(self.top_k, work.n_examples)
        return Cost(
            written_bytes=32 * work.n_queries * n_kept,
            memory_bytes=40 * work.n_examples
            + 16 * work.n_examples // max(1, work.n_shards) * max(1, work.n_classes)
            + 100 * min(work.n_queries * n_kept, NUMBERS)
            + 40 * work.n_queries * n_kept,
        )


def _losses(
    logits: Float64[np.ndarray, "rows outputs"], answers: np.ndarray, is_regression: bool
) -> Float64[np.ndarray, " rows"]:
    """The cross-entropy of each row's label, or the squared error of its target."""
    if len(answers) == 0:
        return np.zeros(0)
    if is_regression:
        return np.asarray((logits[:, 0] - answers) ** 2)
    entropies = cross_entropy(torch.from_numpy(logits), torch.from_numpy(answers))
    return np.asarray(entropies.clamp(min=0).numpy())


def _best(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], top_k: int | None
) -> tuple[Int64[np.ndarray, " kept"], Float64[np.ndarray, " kept"]]:
    """Ids, ascending, and losses of the `top_k` rows with the largest losses of all parts."""
    ids, losses = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((ids, -losses))[:top_k]
    order = order[np.argsort(ids[order])]
    return ids[order], losses[order]


STAGE = ExampleLoss
