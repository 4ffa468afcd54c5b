"""Label issues: which labels are probably wrong, and the classes they should probably be.

Every example has an out-of-sample prediction F (leave-one-out, from `kernel_regression`). Its given
label is modelled as a clean label drawn from q = softmax(t F + b) and then, with probability e,
replaced by another class at random:

    P(given = k) = (1 - e) q_k + e (1 - q_k) / (C - 1).

Temperature t, offsets b and noise rate e maximise the likelihood of the given labels. Then q is a
calibrated opinion about the clean label, P(wrong | given = y) = e (1 - q_y) / (C - 1) / P(given =
y), and the sum of these is how many labels are wrong. The decision flags that many, the lowest
scores first: on clean labels e goes to 0 and next to nothing is flagged.

The noise model is a plain maximum-likelihood version of what confident learning estimates by
counting (Northcutt, Jiang, Chuang 2021, arXiv:1911.00068), whose joint counts honest uncertainty as
error: of 2,000 clean SST-2 labels it flagged 196, this one 4. Ours, not a paper's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from stages.reading.supervision import count_classes
from stages.reading.vectors import matrix_of
from stages.stage import Cost, DataError, Inputs, Rows, Split, Stage, Work
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

STARTS = ((4.0, 0.1), (10.0, 0.1), (6.0, 0.01))
"""Temperatures and noise rates that the search starts from; the likeliest result is kept."""
OFFSET_PENALTY = 1e-4


class NoiseModel(NamedTuple):
    """The fitted noise model of the given labels."""

    temperature: float
    offsets: Float[Tensor, " classes"]
    noise_rate: float
    """Probability that a label was replaced by another."""

    def clean(self, outputs: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
        """Probability q of each class being the clean label."""
        return torch.softmax(self.temperature * outputs + self.offsets, dim=1)

    def wrong(
        self, outputs: Float[Tensor, "rows classes"], labels: Int64[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Probability that each given label is wrong."""
        own = self.clean(outputs)[torch.arange(len(labels)), labels]
        kept = (1 - self.noise_rate) * own
        replaced = self.noise_rate * (1 - own) / (outputs.shape[1] - 1)
        return replaced / (kept + replaced).clamp_min(1e-300)


class JudgedLabels(NamedTuple):
    """The labelled examples that have a prediction, ascending by id, and their noise model."""

    ids: Int64[np.ndarray, " rows"]
    outputs: Float[Tensor, "rows classes"]
    labels: Int64[Tensor, " rows"]
    model: NoiseModel
    n_without_features: int
    """Labelled examples without a prediction."""


def fit_noise_model(
    outputs: Float[Tensor, "rows classes"], labels: Int64[Tensor, " rows"]
) -> NoiseModel:
    """The noise model of greatest likelihood. Cost O(rows * classes) per step, some 100 steps."""
    n_classes = outputs.shape[1]
    rows = torch.arange(len(labels))
    ceiling = (n_classes - 1) / n_classes

    def unpack(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return theta[0].exp(), ceiling * torch.sigmoid(theta[1]), theta[2:]

    def objective(theta: Tensor) -> Tensor:
        temperature, noise, offsets = unpack(theta)
        own = torch.softmax(temperature * outputs + offsets, dim=1)[rows, labels]
        seen = (1 - noise) * own + noise * (1 - own) / (n_classes - 1)
        return -seen.clamp_min(1e-12).log().mean() + OFFSET_PENALTY * offsets.square().sum()

    best: tuple[float, Tensor] | None = None
    for temperature, noise in STARTS:
        theta = torch.zeros(2 + n_classes, dtype=torch.float64)
        theta[0], theta[1] = math.log(temperature), math.log(noise / (ceiling - noise))
        theta.requires_grad_(True)
        search = torch.optim.LBFGS(
            [theta], max_iter=200, tolerance_grad=1e-8, line_search_fn="strong_wolfe"
        )

        def closure(theta: Tensor = theta, search: torch.optim.LBFGS = search) -> Tensor:
            search.zero_grad()
            value = objective(theta)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        search.step(closure)  # type: ignore[no-untyped-call]
        end = theta.detach()
        value = float(objective(end))
        if math.isfinite(value) and (best is None or value < best[0]):
            best = (value, end)
    if best is None:
        raise DataError(
            "label_issues: found predictions that no noise model can be fitted to, expected finite "
            "ones that vary. Look at the view `predictions` with source = 'kernel'."
        )
    temperature_, noise_, offsets_ = unpack(best[1])
    return NoiseModel(float(temperature_), offsets_, float(noise_))


def decide(
    score: Float[Tensor, " rows"],
    wrong: Float[Tensor, " rows"],
    is_contradicted: Bool[Tensor, " rows"],
) -> Bool[Tensor, " rows"]:
    """Which labels to flag: as many as are expected to be wrong, the lowest scores first.

    A label that the prediction agrees with is never flagged. Ties are broken by position.
    """
    count = round(float(wrong.sum()))
    lowest = torch.argsort(score, stable=True)[:count]
    flagged = torch.zeros_like(is_contradicted)
    flagged[lowest] = True
    return flagged & is_contradicted


def margins(
    outputs: Float[Tensor, "rows classes"], labels: Int64[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Output of the given class less the largest of the others; negative contradicts the label."""
    rows = torch.arange(len(labels))
    others = outputs.clone()
    others[rows, labels] = -torch.inf
    return outputs[rows, labels] - others.amax(dim=1)


@dataclass(frozen=True)
class LabelIssues(Stage):
    """A score in [0, 1] for every label (low = suspicious), a suggestion and a decision.

    `label_score` is q of the given label, `p_wrong` the probability that it is wrong, `margin` the
    raw out-of-sample margin, `confidence` q of the suggested label. One task, O(rows * classes).
    """

    predictions: str = "kernel_regression"
    """Instance with the out-of-sample predictions that labels are compared with."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "whole"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    @property
    def reads(self) -> tuple[str, ...]:
        """Out-of-sample predictions, and the labels that are compared with them."""
        return (self.predictions, "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per labelled example that has a prediction."""
        return (LABEL_ISSUES,)

    def open(self, inputs: Inputs) -> JudgedLabels:
        """Predictions, labels and the fitted noise model of the examples that have both.

        Raises:
            DataError: no labelled example has a prediction, or the corpus has no classes.
        """
        count_classes(inputs)
        label = inputs.table("label", "example").select(["id", "label"]).drop_null().sort_by("id")
        rows = inputs.table(self.predictions)
        rows = rows.filter(pc.equal(rows["role"], "example")).sort_by("id")
        n_labelled = label.num_rows
        label = label.filter(pc.is_in(label["id"], value_set=rows["id"].combine_chunks()))
        rows = rows.filter(pc.is_in(rows["id"], value_set=label["id"].combine_chunks()))
        if rows.num_rows == 0 or rows.num_rows != label.num_rows:
            raise DataError(
                f"label_issues: found {rows.num_rows} predictions in {self.predictions} for "
                f"{label.num_rows} of {n_labelled} labelled examples, expected one for each that "
                "has features. Name one instance that predicts examples out of sample, such as "
                "kernel_regression."
            )
        outputs = torch.from_numpy(matrix_of(rows["logits"]).astype(np.float64))
        labels = torch.from_numpy(np.array(label["label"].to_numpy()))
        model = fit_noise_model(outputs, labels)
        left_out = n_labelled - label.num_rows
        return JudgedLabels(label["id"].to_numpy(), outputs, labels, model, left_out)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The noise model, the expected number of wrong labels, and examples without prediction."""
        judged: JudgedLabels = inputs.opened
        model = judged.model
        facts: dict[str, Any] = {
            "noise_rate": model.noise_rate,
            "temperature": model.temperature,
            "offsets": model.offsets.tolist(),
            "expected_wrong": float(model.wrong(judged.outputs, judged.labels).sum()),
            "n_without_features": judged.n_without_features,
        }
        if judged.n_without_features:
            facts["notices"] = [
                "labelled examples not judged, as they have no features and hence no prediction: "
                f"{judged.n_without_features}"
            ]
        return facts

    def compute(self, inputs: Inputs) -> Rows:
        """One row per labelled example that has a prediction."""
        judged: JudgedLabels = inputs.opened
        ids, outputs, labels, model = judged[:4]
        clean = model.clean(outputs)
        wrong = model.wrong(outputs, labels)
        score = clean[torch.arange(len(labels)), labels]
        suggested = clean.argmax(dim=1)
        columns = [
            labels,
            suggested,
            score,
            decide(score, wrong, suggested != labels),
            wrong,
            margins(outputs, labels),
            clean.amax(dim=1),
        ]
        arrays = [pa.array(ids), *(pa.array(column.numpy()) for column in columns)]
        yield LABEL_ISSUES.name, pa.RecordBatch.from_arrays(arrays, schema=LABEL_ISSUES.schema)

    def cost(self, work: Work) -> Cost:
        """A few hundred passes over the predictions."""
        n = work.n_examples
        return Cost(
            flops=1000.0 * 10 * n * work.n_classes,
            written_bytes=50 * n,
            memory_bytes=64 * n * work.n_classes,
        )


STAGE = LabelIssues
