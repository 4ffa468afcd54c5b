"""How noisy the labels are: the noise model behind `label_issues`, and how many labels it doubts.

The model of `stages/surrogate/noise_model.py`, fitted to the out-of-sample predictions of examples,
and the score below which as many labels lie as are expected to be wrong. What a person accepted or
fixed is held for right, and tells how noisy the other labels are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from stages.reading.supervision import count_classes
from stages.reading.vectors import evenly
from stages.stage import Cost, DataError, Inputs, Rows, Split, Stage, Work
from stages.surrogate.noise_fit import FIT_ROWS, fit_noise_model, is_unknown
from stages.surrogate.noise_model import LABEL_NOISE, NoiseModel, judged_by_shard
from storage.schema import TableSpec

FIT_SHARDS = 64
"""Most shards of examples that the model is fitted to."""


class FittedNoise(NamedTuple):
    """The noise model, and what it says of all labels."""

    model: NoiseModel
    expected: Float[Tensor, "classes classes"]
    """How many rows of each class (first axis) were given each class."""
    last_score: float
    last_id: int
    n_judged: int
    n_agreeing: int
    """Examples whose given label has the largest output."""
    n_without_features: int
    """Labelled examples without a prediction."""

    @property
    def expected_wrong(self) -> float:
        """How many labels are expected to be wrong."""
        return float(self.expected.sum() - self.expected.diagonal().sum())


@dataclass(frozen=True)
class LabelNoise(Stage):
    """A noise model, fitted to 65,536 examples at most, evenly spread.

    One task, O(rows * classes^2); it holds one shard of predictions, and 16 bytes a row.
    """

    predictions: str = "kernel_regression"
    """Instance with the out-of-sample predictions that labels are compared with."""

    version: ClassVar[int] = 7
    split: ClassVar[Split] = "whole"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    @property
    def reads(self) -> tuple[str, ...]:
        """Out-of-sample predictions, and the labels that are compared with them."""
        return (self.predictions, "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per class."""
        return (LABEL_NOISE,)

    def open(self, inputs: Inputs) -> FittedNoise:
        """The fitted model.

        Raises:
            DataError: no labelled example has a prediction, or the corpus has no classes.
        """
        count_classes(inputs)
        sample = [j for j in judged_by_shard(inputs, self.predictions, FIT_SHARDS) if len(j.ids)]
        if not sample:
            raise DataError(
                f"label_issues: found no prediction in {self.predictions} for a labelled example, "
                "expected one for each that has features. Name one instance that predicts examples "
                "out of sample, such as kernel_regression."
            )
        chosen = torch.from_numpy(evenly(sum(len(j.ids) for j in sample), FIT_ROWS))
        decided = [torch.where(j.is_decided, j.labels, -1) for j in sample]
        model = fit_noise_model(
            torch.cat([j.outputs for j in sample])[chosen],
            torch.cat([j.given for j in sample])[chosen],
            torch.cat(decided)[chosen],
        )
        del sample
        ids, scores, n_agreeing = [], [], 0
        expected = torch.zeros_like(model.rates)
        for judged in judged_by_shard(inputs, self.predictions):
            if len(judged.ids):
                expected.T.index_add_(0, judged.labels, judged.posterior(model))
                n_agreeing += int((judged.outputs.argmax(1) == judged.labels).sum())
                scores.append(judged.scores(model).numpy())
                ids.append(judged.ids)
        n_wrong = round(float(expected.sum() - expected.diagonal().sum()))
        last_score, last_id = lowest(np.concatenate(scores), np.concatenate(ids), n_wrong)
        n_judged = sum(map(len, ids))
        n_labelled = sum(
            len(rows) - rows["label"].null_count for rows in inputs.by_shard("label", "example")
        )
        n_without = n_labelled - n_judged
        return FittedNoise(model, expected, last_score, last_id, n_judged, n_agreeing, n_without)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The noise model, the expected number of wrong labels, and examples without prediction."""
        fitted: FittedNoise = inputs.opened
        facts: dict[str, Any] = {
            "noise_rate": fitted.expected_wrong / fitted.n_judged,
            "rates": fitted.model.rates.tolist(),
            "temperature": fitted.model.temperature,
            "offsets": fitted.model.offsets.tolist(),
            "expected_wrong": fitted.expected_wrong,
            "n_judged": fitted.n_judged,
            "n_agreeing": fitted.n_agreeing,
            "n_without_features": fitted.n_without_features,
        }
        notices = []
        if fitted.n_without_features:
            notices.append(
                "labelled examples not judged, as they have no features and hence no prediction: "
                f"{fitted.n_without_features}"
            )
        if is_unknown(fitted.model):
            notices.append(
                f"the predictions of {self.predictions} tell no more of the labels than how "
                "frequent each class is, so that none is held for wrong by them"
            )
        return facts | ({"notices": notices} if notices else {})

    def compute(self, inputs: Inputs) -> Rows:
        """The model, a row per class."""
        fitted: FittedNoise = inputs.opened
        n = len(fitted.model.offsets)
        columns = [
            pa.array(np.arange(n)),
            pa.array(fitted.model.offsets.numpy()),
            pa.array(np.full(n, fitted.model.temperature)),
            *(
                pa.array(matrix.tolist(), pa.list_(pa.float64(), n))
                for matrix in (fitted.model.rates, fitted.expected)
            ),
            pa.array(np.full(n, fitted.last_score)),
            pa.array(np.full(n, fitted.last_id)),
        ]
        yield LABEL_NOISE.name, pa.RecordBatch.from_arrays(columns, LABEL_NOISE.schema.names)

    def cost(self, work: Work) -> Cost:
        """A few hundred passes over the predictions of some rows, and one over all."""
        n, n_classes = work.n_examples, work.n_classes
        sample = min(n, FIT_ROWS)
        return Cost(
            flops=1000.0 * 10 * sample * n_classes**2 + 40.0 * n * n_classes,
            written_bytes=48 * n_classes + 16 * n_classes**2,
            memory_bytes=300 * sample * n_classes
            + (n // work.n_shards) * (FIT_SHARDS + 4) * 16 * n_classes
            + 40 * n,
        )


def lowest(scores: np.ndarray, ids: np.ndarray, count: int) -> tuple[float, int]:
    """The score and id of the last of the `count` lowest scores; ties go by id.

    Where `count` is 0, a score below all.
    """
    count = min(count, len(scores))
    if count == 0:
        return -1.0, -1
    last = float(np.partition(scores, count - 1)[count - 1])
    n_below = int((scores < last).sum())
    tied = np.sort(ids[scores == last])
    return last, int(tied[count - n_below - 1])


STAGE = LabelNoise
