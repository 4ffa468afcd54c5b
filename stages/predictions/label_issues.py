"""Label issues: which labels are probably wrong, and the classes they should probably be.

Every example has an out-of-sample prediction (leave-one-out, from `kernel_regression`). A noise
model (`label_noise`) turns it into an opinion about the clean label, and into the probability that
the given label is wrong. The sum of these is how many labels are wrong: that many are flagged, the
lowest scores first, where the opinion contradicts the label. On clean labels next to nothing is
flagged, and nothing that a person has accepted or fixed. Source:
`stages/surrogate/noise_model.py` and `noise_fit.py`; ours, not a paper's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import torch

from stages.stage import Cost, Inputs, Role, Rows, Split, Stage, Work, check_alike
from stages.surrogate.noise_model import NoiseModel, judged_in, margins, read_noise_model
from storage.schema import TableSpec

LABEL_ISSUES = TableSpec(
    name="label_issues",
    schema=pa.schema(
        [
            ("example_id", pa.int64()),
            ("given_label", pa.int64()),
            ("suggested_label", pa.int64()),
            ("label_score", pa.float64()),
            ("is_label_issue", pa.bool_()),
            ("p_wrong", pa.float64()),
            ("margin", pa.float64()),
            ("confidence", pa.float64()),
        ]
    ),
    key=("example_id",),
)


@dataclass(frozen=True)
class LabelIssues(Stage):
    """A score in [0, 1] for every label (low = suspicious), a suggestion and a decision.

    `label_score` is the opinion about the given label (`NoiseModel.opinions`), `confidence` that
    about the suggested one, `p_wrong` the probability that the given label is wrong, `margin` the
    raw out-of-sample margin. A label that a person accepted or fixed has score 1 and `p_wrong` 0.
    A task holds one shard.
    """

    predictions: str = "kernel_regression"
    """Instance with the out-of-sample predictions that labels are compared with."""
    noise: str = "label_noise"
    """Instance of `label_noise` over the same predictions."""

    version: ClassVar[int] = 4
    judges_rows: ClassVar[bool] = True
    split: ClassVar[Split] = "shard"
    roles: ClassVar[tuple[Role, ...]] = ("example",)
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    instead: ClassVar[Mapping[str, str]] = {
        "completion": "answer_issues",
        "preference": "preference_issues",
    }

    @property
    def reads(self) -> tuple[str, ...]:
        """Out-of-sample predictions, the labels that are compared with them, and the noise."""
        return (self.predictions, "label", self.noise)

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """A noise model of these predictions."""
        return {self.noise: {"predictions": self.predictions}}

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses a noise model of other predictions.

        Raises:
            ConfigError: it has others.
        """
        check_alike(self.noise, writers[self.noise], {"predictions": self.predictions})

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per labelled example that has a prediction."""
        return (LABEL_ISSUES,)

    def open(self, inputs: Inputs) -> tuple[NoiseModel, float, int]:
        """The noise model, and the last score and id that are flagged."""
        return read_noise_model(inputs.table(self.noise))

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The noise model, the expected number of wrong labels, and examples without prediction."""
        facts = dict(inputs.details(self.noise))
        facts.pop("notices", None)
        return facts

    def compute(self, inputs: Inputs) -> Rows:
        """One row per labelled example of a shard that has a prediction."""
        model, last_score, last_id = inputs.opened
        judged = judged_in(
            inputs.table("label", "example"), inputs.table(self.predictions, "example")
        )
        ids, labels = judged.ids, judged.labels
        if not len(ids):
            return
        opinions = judged.opinions(model)
        score, suggested = opinions[torch.arange(len(labels)), labels], opinions.argmax(dim=1)
        is_low = (score < last_score) | ((score == last_score) & torch.from_numpy(ids <= last_id))
        columns = [
            labels,
            suggested,
            score,
            is_low & (suggested != labels),
            judged.wrong(model),
            margins(judged.outputs, labels),
            opinions.amax(dim=1),
        ]
        arrays = [pa.array(ids), *(pa.array(column.numpy()) for column in columns)]
        yield LABEL_ISSUES.name, pa.RecordBatch.from_arrays(arrays, schema=LABEL_ISSUES.schema)

    def cost(self, work: Work) -> Cost:
        """One pass over the predictions."""
        n = work.n_examples
        return Cost(
            flops=60.0 * n * work.n_classes,
            written_bytes=50 * n,
            memory_bytes=64 * n // work.n_shards * work.n_classes,
        )


STAGE = LabelIssues
