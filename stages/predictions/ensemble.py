"""Ensemble: out-of-sample predictions of several instances as one.

The outputs F_m of instance m, one per class, are told apart from what a row has of all classes, and
brought to one spread, since a regression's lie between 0 and 1 and a network's logits anywhere:

    F[i, c] = mean over m of (F_m[i, c] - mean_c F_m[i, c]) / s_m,

with s_m the standard deviation of the differences over all rows and classes. No label has a say.
What it is worth to `label_issues`: `scripts/benchmarks/tuned_flags.md`. Ours, not a paper's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int64

from stages.reading.logits import read_logits
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Split, Stage, Work
from stages.tables import PREDICTION
from storage.schema import TableSpec


@dataclass(frozen=True)
class Ensemble(Stage):
    """Outputs of the examples that every instance has predicted.

    One task, O(instances * rows * classes); it holds the outputs of two instances.
    """

    predictions: tuple[str, ...] = ("kernel_regression", "cross_fitting")
    """Instances whose predictions of examples are out of sample."""

    version: ClassVar[int] = 1
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
        """The predictions."""
        return self.predictions

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Outputs with `source` "ensemble"."""
        return (PREDICTION,)

    def open(
        self, inputs: Inputs
    ) -> tuple[Int64[np.ndarray, " rows"], Float[np.ndarray, "rows classes"]]:
        """Ids, ascending, and the outputs.

        Raises:
            DataError: instances have other numbers of classes, no example in common, or outputs
                that do not differ.
        """
        ids: np.ndarray | None = None
        total = np.zeros((0, 0))
        for name in self.predictions:
            own, outputs = _read(inputs, name)
            if ids is None:
                ids, total = own, outputs
                continue
            if outputs.shape[1] != total.shape[1]:
                raise DataError(
                    f"ensemble: found {outputs.shape[1]} outputs in {name}, expected "
                    f"{total.shape[1]} as in {self.predictions[0]}. Name predictions of classes."
                )
            ids, before, now = np.intersect1d(ids, own, assume_unique=True, return_indices=True)
            total = total[before] + outputs[now]
        if ids is None or not len(ids):
            raise DataError(
                f"ensemble: found no example that {' and '.join(self.predictions)} all predict, "
                "expected some. Name instances that predict examples out of sample."
            )
        return ids, total / len(self.predictions)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """How many examples are predicted."""
        return {"n_examples": len(inputs.opened[0])}

    def compute(self, inputs: Inputs) -> Rows:
        """The outputs of all examples."""
        ids, outputs = inputs.opened
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
        numbers = work.n_examples * work.n_classes
        return Cost(
            flops=10.0 * len(self.predictions) * numbers,
            written_bytes=16 * work.n_examples + 4 * numbers,
            memory_bytes=24 * work.n_examples + 32 * numbers,
        )


def _read(
    inputs: Inputs, name: str
) -> tuple[Int64[np.ndarray, " rows"], Float[np.ndarray, "rows classes"]]:
    """Ids, ascending, and scaled outputs of the examples of an instance.

    Raises:
        DataError: it has none, or all outputs are equal.
    """
    ids, outputs = read_logits(inputs, name, "example")
    if not len(ids):
        raise DataError(
            f"{name}: found no prediction of an example, expected one for each. Name an instance "
            "that predicts examples out of sample, such as kernel_regression or cross_fitting."
        )
    outputs = outputs - outputs.mean(1, keepdims=True)
    spread = float(outputs.std())
    if not 0 < spread < np.inf:
        raise DataError(
            f"{name}: found outputs of which none differs from another, or one that is not finite, "
            "expected finite ones that vary. Look at the view `predictions`."
        )
    return ids, outputs / spread


STAGE = Ensemble
