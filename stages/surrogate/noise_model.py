"""The model of how given labels came to be, fitted to out-of-sample predictions.

Every example has an out-of-sample prediction F. Its given label is modelled as a clean label drawn
from q = softmax(t F + b) and then replaced by chance, by a rate for each ordered pair of classes:

    P(given = k) = sum_j q_j R[j, k],    R[j, k] = exp a_jk / sum_l exp a_jl,    a_jj = 0.

Even noise has one number a for all pairs: a label is replaced with probability e, by any other
class alike. Uneven noise has a_jk = a + d_jk.

`stages/surrogate/noise_fit.py` finds temperature t, offsets b and rates. Then q is a calibrated
opinion about the clean label, P(clean = j | given = y) = q_j R[j, y] / P(given = y), and the sum of
P(clean != y | given = y) is how many labels are wrong. On clean labels next to none are.

It is a likelihood version of what confident learning estimates by counting (Northcutt, Jiang,
Chuang 2021, arXiv:1911.00068), whose joint counts honest uncertainty as error. Ours, not a paper's.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from stages.reading.supervision import one_hot
from stages.reading.vectors import matrix_of
from stages.stage import DataError, Inputs
from storage.schema import TableSpec

LABEL_NOISE = TableSpec(
    name="noise_rate",
    schema=pa.schema(
        [
            ("label", pa.int64()),
            ("offset", pa.float64()),
            ("temperature", pa.float64()),
            ("rates", pa.list_(pa.float64())),
            ("expected", pa.list_(pa.float64())),
            ("last_score", pa.float64()),
            ("last_id", pa.int64()),
        ]
    ),
    key=("label",),
)
"""The noise model, a row per class: `rates` are the probabilities that a row of this class was
given each class, `expected` how many rows were, by the probabilities of all rows. Labels up to the
score `last_score`, and of those that have just this score up to the id `last_id`, are as many as
are expected to be wrong."""


class NoiseModel(NamedTuple):
    """The fitted noise model of the given labels."""

    temperature: float
    offsets: Float[Tensor, " classes"]
    rates: Float[Tensor, "classes classes"]
    """R[j, k], the probability that a row of class j was given class k; rows sum to 1."""

    def clean(self, outputs: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
        """Probability q of each class being the clean label, before the given one is seen."""
        return torch.softmax(self.temperature * outputs + self.offsets, dim=1)

    def opinions(
        self, outputs: Float[Tensor, "rows classes"], labels: Int64[Tensor, " rows"]
    ) -> Float[Tensor, "rows classes"]:
        """Of each class how likely it is the clean label, as if half of the labels were wrong.

        That is q where noise is even; else q times the rate of the given label among rows of this
        class, in the mean rate of all pairs. Within (0, 1) also where next to no label is wrong,
        and for the given label in the same order as the probability that it is right.
        """
        n_classes = outputs.shape[1]
        is_kept = torch.eye(n_classes, dtype=torch.bool)
        kept, replaced = self.rates[is_kept], self.rates[~is_kept]
        if not bool(replaced.any()):
            return self.clean(outputs)
        relative = self.rates / replaced.mean()
        relative[is_kept] = kept / kept.mean()
        weighed = self.clean(outputs) * relative.T[labels]
        return weighed / weighed.sum(1, keepdim=True).clamp_min(1e-300)

    def scores(
        self, outputs: Float[Tensor, "rows classes"], labels: Int64[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """The opinion about each given label."""
        return self.opinions(outputs, labels)[torch.arange(len(labels)), labels]

    def posterior(
        self, outputs: Float[Tensor, "rows classes"], labels: Int64[Tensor, " rows"]
    ) -> Float[Tensor, "rows classes"]:
        """Probability of each class being the clean label, given the label that was seen."""
        joint = self.clean(outputs) * self.rates.T[labels]
        return joint / joint.sum(1, keepdim=True).clamp_min(1e-300)

    def wrong(
        self, outputs: Float[Tensor, "rows classes"], labels: Int64[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Probability that each given label is wrong."""
        others = self.posterior(outputs, labels)
        others[torch.arange(len(labels)), labels] = 0
        return others.sum(1)


class Judged(NamedTuple):
    """Examples of a shard that have a label and a prediction, ascending by id."""

    ids: Int64[np.ndarray, " rows"]
    outputs: Float[Tensor, "rows classes"]
    labels: Int64[Tensor, " rows"]
    given: Int64[Tensor, " rows"]
    """The labels before a person decided about them."""
    is_decided: Bool[Tensor, " rows"]
    """Whether a person did, whose label is held for right."""

    def posterior(self, model: NoiseModel) -> Float[Tensor, "rows classes"]:
        """Probability of each class being the clean label."""
        return self._decided(model.posterior(self.outputs, self.labels))

    def opinions(self, model: NoiseModel) -> Float[Tensor, "rows classes"]:
        """The opinions of `NoiseModel.opinions`."""
        return self._decided(model.opinions(self.outputs, self.labels))

    def scores(self, model: NoiseModel) -> Float[Tensor, " rows"]:
        """The opinion about each label."""
        return model.scores(self.outputs, self.labels).masked_fill(self.is_decided, 1.0)

    def wrong(self, model: NoiseModel) -> Float[Tensor, " rows"]:
        """Probability that each label is wrong."""
        return model.wrong(self.outputs, self.labels).masked_fill(self.is_decided, 0.0)

    def _decided(self, found: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
        """The same, 1 for a class that a person decided on and 0 for others."""
        known = one_hot(self.labels, found.shape[1])
        return torch.where(self.is_decided[:, None], known, found)


def margins(
    outputs: Float[Tensor, "rows classes"], labels: Int64[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Output of the given class less the largest of the others; negative contradicts the label."""
    rows = torch.arange(len(labels))
    others = outputs.clone()
    others[rows, labels] = -torch.inf
    return outputs[rows, labels] - others.amax(dim=1)


def judged_in(label: pa.Table, predictions: pa.Table) -> Judged:
    """The examples in both tables that have a label.

    Raises:
        DataError: an example has several predictions.
    """
    label = label.select(["id", "label", "label_before_review"])
    label = label.filter(pc.is_valid(label["label"])).sort_by("id")
    rows = predictions.filter(pc.equal(predictions["role"], "example")).sort_by("id")
    given = label["id"].to_numpy()
    label = label.filter(pa.array(np.isin(given, rows["id"].to_numpy())))
    rows = rows.filter(pa.array(np.isin(rows["id"].to_numpy(), given)))
    if rows.num_rows != label.num_rows:
        raise DataError(
            f"label_issues: found {rows.num_rows} predictions for {label.num_rows} labelled "
            "examples, expected one for each. Name one instance that predicts examples out of "
            "sample, such as kernel_regression."
        )
    if not rows.num_rows:
        no_outputs = torch.zeros(0, 0, dtype=torch.float64)
        none = torch.zeros(0, dtype=torch.int64)
        return Judged(given[:0], no_outputs, none, none, none.bool())
    outputs = torch.from_numpy(matrix_of(rows["logits"]).astype(np.float64))
    before = label["label_before_review"]
    labels, seen = (
        torch.from_numpy(np.array(column.to_numpy()))
        for column in (label["label"], pc.coalesce(before, label["label"]))
    )
    is_decided = torch.from_numpy(pc.is_valid(before).to_numpy())
    return Judged(label["id"].to_numpy(), outputs, labels, seen, is_decided)


def judged_by_shard(inputs: Inputs, predictions: str, most: int | None = None) -> Iterator[Judged]:
    """Examples with a label and a prediction, shard by shard; `most` as in `Inputs.by_shard`.

    The table of predictions may be cut into shards as the labels are, come as one, or come in parts
    whose ids lie among each other, such as folds: for each of these the labels are read again.
    """
    labels, n_read = inputs.by_shard("label", "example", most), 0
    for rows in inputs.by_shard(predictions, "example", most):
        ids = rows["id"].to_numpy()
        read: list[pa.Table] = []
        n_missing, n_before = len(ids), n_read
        while n_missing and (more := next(labels, None)) is not None:
            read.append(more)
            n_read += 1
            n_missing -= int(np.isin(more["id"].to_numpy(), ids).sum())
        if n_missing and n_before:
            labels, n_read = inputs.by_shard("label", "example", most), n_before
            read += itertools.islice(labels, n_before)
        if read:
            yield judged_in(pa.concat_tables(read), rows)


def read_noise_model(table: pa.Table) -> tuple[NoiseModel, float, int]:
    """The model in rows of `LABEL_NOISE`, and its `last_score` and `last_id`."""
    table = table.sort_by("label")
    offsets = torch.from_numpy(np.array(table["offset"].to_numpy()))
    temperature, last_score, last_id = (
        table[name][0].as_py() for name in ("temperature", "last_score", "last_id")
    )
    rates = torch.from_numpy(np.array(matrix_of(table["rates"])))
    return NoiseModel(temperature, offsets, rates), last_score, last_id
