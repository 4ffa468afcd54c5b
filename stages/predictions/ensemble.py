"""Ensemble: out-of-sample predictions of several instances as one.

The outputs F_m of instance m, one per class, are told apart from what a row has of all classes, and
brought to one spread, since a regression's lie between 0 and 1 and a network's logits anywhere:

    F[i, c] = mean over m of (F_m[i, c] - mean_c F_m[i, c]) / s_m,

with s_m the standard deviation of the differences over all rows and classes. Predictions that tell
nothing of the labels, so that `label_issues` would hold none for wrong by them, have no part in it,
unless all do; labels have no other say.
What it is worth to `label_issues`: `scripts/benchmarks/tuned_flags.md`. Ours, not a paper's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64

from stages.reading.logits import read_logits
from stages.reading.supervision import count_classes, read_labels
from stages.reading.vectors import evenly
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Split, Stage, Work
from stages.surrogate.noise_fit import FIT_ROWS, tells
from stages.tables import PREDICTION
from storage.schema import TableSpec


class Member(NamedTuple):
    """What an instance predicts."""

    ids: Int64[np.ndarray, " rows"]
    outputs: Float[np.ndarray, "rows classes"]


class Opened(NamedTuple):
    """The mean, and what it is of."""

    ids: Int64[np.ndarray, " rows"]
    outputs: Float[np.ndarray, "rows classes"]
    taken: tuple[str, ...]


@dataclass(frozen=True)
class Ensemble(Stage):
    """Outputs of the examples that every instance has predicted.

    One task, O(instances * rows * classes^2); it holds the outputs of all instances.
    """

    predictions: tuple[str, ...] = ("kernel_regression", "cross_fitting")
    """Instances whose predictions of examples are out of sample."""

    version: ClassVar[int] = 2
    split: ClassVar[Split] = "whole"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def __post_init__(self) -> None:
        """Refuses what is no ensemble.

        Raises:
            ConfigError: fewer than two instances are named, or one is twice.
        """
        if len(set(self.predictions)) < max(2, len(self.predictions)):
            raise ConfigError(
                f"ensemble: found predictions: {list(self.predictions)}, expected two or more "
                "different instances. Say for example predictions: [kernel_regression, "
                "cross_fitting]."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The predictions, and the labels that they may tell of."""
        return (*self.predictions, "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Outputs with `source` "ensemble"."""
        return (PREDICTION,)

    def open(self, inputs: Inputs) -> Opened:
        """Ids, ascending, the outputs, and which instances they are the mean of.

        Raises:
            DataError: an instance has another number of outputs than there are classes, or outputs
                that do not differ; no example is predicted by all.
        """
        n_classes = count_classes(inputs)
        labelled = read_labels(inputs, "example", n_classes)
        read = {name: _read(inputs, name, n_classes) for name in self.predictions}
        telling = [name for name in self.predictions if _tells(read[name], *labelled)]
        taken = tuple(telling or self.predictions)
        ids, total = read[taken[0]]
        for name in taken[1:]:
            own, outputs = read[name]
            ids, before, now = np.intersect1d(ids, own, assume_unique=True, return_indices=True)
            total = total[before] + outputs[now]
        if not len(ids):
            raise DataError(
                f"ensemble: found no example that {' and '.join(taken)} all predict, "
                "expected some. Name instances that predict examples out of sample."
            )
        return Opened(ids, total / len(taken), taken)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """How many examples are predicted, and by the mean of which instances."""
        opened: Opened = inputs.opened
        facts: dict[str, Any] = {"n_examples": len(opened.ids), "mean_of": list(opened.taken)}
        if left_out := [name for name in self.predictions if name not in opened.taken]:
            facts["notices"] = [
                f"the predictions of {name} tell no more of the labels than how frequent each "
                "class is, and have no part in the ensemble"
                for name in left_out
            ]
        return facts

    def compute(self, inputs: Inputs) -> Rows:
        """The outputs of all examples."""
        ids, outputs, _ = inputs.opened
        flat = pa.array(outputs.astype(np.float32).reshape(-1))
        columns = [
            pa.array(ids),
            pa.array(["example"] * len(ids), pa.string()),
            pa.array(["ensemble"] * len(ids), pa.string()),
            pa.FixedSizeListArray.from_arrays(flat, outputs.shape[1]),
        ]
        yield PREDICTION.name, pa.RecordBatch.from_arrays(columns, PREDICTION.schema.names)

    def cost(self, work: Work) -> Cost:
        """A few operations for every number."""
        numbers, members = work.n_examples * work.n_classes, len(self.predictions)
        return Cost(
            flops=100.0 * members * numbers * work.n_classes,
            written_bytes=16 * work.n_examples + 4 * numbers,
            memory_bytes=24 * work.n_examples + 8 * (members + 2) * numbers,
        )


def _tells(
    member: Member, labelled: Int64[np.ndarray, " labelled"], labels: Int64[np.ndarray, " labelled"]
) -> bool:
    """Whether some label would be held for wrong by the outputs of an instance."""
    _, at, of = np.intersect1d(member.ids, labelled, assume_unique=True, return_indices=True)
    chosen = evenly(len(at), FIT_ROWS)
    outputs, given = member.outputs[at[chosen]], labels[of[chosen]]
    return tells(torch.from_numpy(outputs), torch.from_numpy(given))


def _read(inputs: Inputs, name: str, n_classes: int) -> Member:
    """Ids, ascending, and scaled outputs of the examples of an instance.

    Raises:
        DataError: it has none, or another number of them than there are classes, or all are equal.
    """
    ids, outputs = read_logits(inputs, name, "example")
    if not len(ids):
        raise DataError(
            f"{name}: found no prediction of an example, expected one for each. Name an instance "
            "that predicts examples out of sample, such as kernel_regression or cross_fitting."
        )
    if outputs.shape[1] != n_classes:
        raise DataError(
            f"ensemble: found {outputs.shape[1]} outputs in {name}, expected {n_classes}, one per "
            "class. Name predictions of classes."
        )
    outputs = outputs - outputs.mean(1, keepdims=True)
    spread = float(outputs.std())
    if not 0 < spread < np.inf:
        raise DataError(
            f"{name}: found outputs of which none differs from another, or one that is not finite, "
            "expected finite ones that vary. Look at the view `predictions`."
        )
    return Member(ids, outputs / spread)


STAGE = Ensemble
