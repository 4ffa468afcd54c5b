"""The loss of an example, with a minus: a baseline that is blind to the query.

An example that is predicted badly counts as a harm, the same for every query: that is how wrong
labels would be sought without any attribution. The loss is the cross-entropy of the example's own
label, or the squared error of a regression, as in the view `predictions`.

Global: the loss; local: -1, or 0 where the loss is 0.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from stages.model.measurement import cross_entropy
from stages.pairs.scores import ATTRIBUTION, NUMBERS, KeptPairs, kept, pair_rows
from stages.reading.logits import read_logits
from stages.reading.supervision import count_classes, read_labels, read_targets, task_of
from stages.stage import AnswersQueries, Cost, DataError, Inputs, Rows, Split, Work


@dataclass(frozen=True)
class ExampleLoss(KeptPairs, AnswersQueries):
    """Scores of the pairs of all queries and labelled examples that have a prediction.

    One task; its memory grows as 16 bytes per example and class.
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
        predicted, logits = read_logits(inputs, self.predictions, "example")
        is_regression = task_of(inputs) == "regression"
        if is_regression:
            ids, answers = read_targets(inputs, "example")
        else:
            ids, answers = read_labels(inputs, "example", count_classes(inputs))
        ids, of_answer, of_logits = np.intersect1d(ids, predicted, True, return_indices=True)
        logits, answers = logits[of_logits], answers[of_answer]
        if len(ids) == 0 or len(queries) == 0:
            raise DataError(
                f"example_loss: found {len(queries)} queries and {len(ids)} labelled examples in "
                f"{self.predictions}, expected at least one of each. Check labels and `queries:`."
            )
        if is_regression:
            losses = (logits[:, 0] - answers) ** 2
        else:
            entropies = cross_entropy(torch.from_numpy(logits), torch.from_numpy(answers))
            losses = entropies.clamp(min=0).numpy()
        pairs = kept(torch.from_numpy(-losses)[None], self.top_k)
        count = max(1, len(pairs.scores))
        at_once = max(1, NUMBERS // count)
        for start in range(0, len(queries), at_once):
            block = queries[start : start + at_once]
            rows = np.repeat(np.arange(len(block)), len(pairs.scores))
            examples, scores = (np.tile(part, len(block)) for part in pairs[1:])
            repeated = pairs._replace(queries=rows, examples=examples, scores=scores)
            yield ATTRIBUTION.name, pair_rows(block, ids, repeated, losses)

    def of_queries(self, inputs: Inputs) -> Rows:
        """The rows of `compute`, which takes no longer for few queries."""
        return self.compute(inputs)

    def cost(self, work: Work) -> Cost:
        """The logits, once; the rows of what is kept."""
        n_kept = work.n_examples if self.top_k is None else min(self.top_k, work.n_examples)
        return Cost(
            written_bytes=32 * work.n_queries * n_kept,
            memory_bytes=16 * work.n_examples * max(1, work.n_classes) + 60 * NUMBERS,
        )


STAGE = ExampleLoss
