"""Cross-fitting: out-of-sample predictions of the fine-tuned model itself, and how it learned.

The labelled examples are cut into `folds`. For each the model, encoder and head, is fine-tuned on
all others, and then predicts the fold: its loss there is what Chong, Hong and Manning 2022,
arXiv:2205.12702, find wrong labels by, and `label_issues: {predictions: cross_fitting}` flags by
these predictions. No model predicts a row that it was trained on.

What is seen in training is kept for the rows that are trained on: the area under the margin (AUM),

    AUM(x, y) = 1/T sum_t [z_t(x)_y - max_{k != y} z_t(x)_k],

the mean over the T epochs of the margin of the given label, as the row was visited (Pleiss et al.
2020, arXiv:2001.10528, eq. 1 and 2; without their threshold samples); the loss of the given label
after one epoch, before a wrong one can be learned by heart; and how often a row is forgotten, from
right to wrong between two visits (Toneva et al. 2019, arXiv:1812.05159, definition 1). A large
margin and a small loss speak for the label.

Wrong labels that follow a rule, such as a part of one class that was given another, are learned
from the other folds like any rule: then frozen features find them far better, and `label_issues` on
these predictions may flag none (`scripts/benchmarks/tuned_flags.md`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.model.fine_tuning import FineTuning, fine_tune
from stages.model.learners import load_start
from stages.model.measurement import cross_entropy
from stages.model.seeded import generator_of
from stages.model.size import network_size
from stages.model.spec import ModelSpec, RunsModel
from stages.model.training import Learner, learner, outputs
from stages.reading.supervision import answered_rows_of, count_classes, read_labels
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Split, Stage, Work
from stages.surrogate.noise_model import margins
from stages.tables import PREDICTION
from storage.schema import TableSpec

TRAINING_DYNAMICS = TableSpec(
    name="training_dynamics",
    schema=pa.schema(
        [
            ("fold", pa.int64()),
            ("example_id", pa.int64()),
            ("area_under_margin", pa.float64()),
            ("early_loss", pa.float64()),
            ("forgotten", pa.int64()),
        ]
    ),
    key=("example_id",),
)
"""An example in the training that leaves out `fold`, which it is not in. `early_loss` is null where
there is one epoch."""


class Opened(NamedTuple):
    """The labelled examples, ascending by id, and the model before any training."""

    ids: Int64[np.ndarray, " examples"]
    labels: Int64[Tensor, " examples"]
    fold: Int64[np.ndarray, " examples"]
    learner: Learner


@dataclass(frozen=True)
class CrossFitting(RunsModel, Stage):
    """Logits of every labelled example by a model that never saw it, a task for each fold.

    Memory of a task: the model with two numbers of AdamW and a gradient for every weight, the
    activations of a batch, and all texts. Other labels or other rows train every fold again. The
    table is not cut by shards: a task of `label_issues` reads all of it.
    """

    model: ModelSpec
    """The model that is fine-tuned, all of it; its `train` concerns gradients alone. A fresh head
    begins at zero for `head: probe`, and where `seed` of the model says for `random`."""
    folds: int = 2
    """Parts of the examples, each predicted by a training on the others; more of them train on more
    rows, and cost as many trainings."""
    training: FineTuning = field(default_factory=FineTuning)
    """How the model is fine-tuned."""
    seed: int = 0
    """Seed of the folds and of the order of rows in training."""
    token_budget: int = 2048
    """Padded tokens per batch, where rows are predicted."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "round"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    outside_key: ClassVar[frozenset[str]] = frozenset({"model.train"})

    def __post_init__(self) -> None:
        """Refuses fields that no row could be left out with.

        Raises:
            ConfigError: a field is out of its range.
        """
        if self.folds < 2 or self.seed < 0 or self.token_budget < 1:
            raise ConfigError(
                f"cross_fitting: found folds: {self.folds}, seed: {self.seed}, token_budget: "
                f"{self.token_budget}, expected at least 2, 0 and 1. Raise them."
            )

    @property
    def n_rounds(self) -> int:
        """A training for each fold."""
        return self.folds

    @property
    def reads(self) -> tuple[str, ...]:
        """The text and the labels."""
        return ("text", "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Logits with `source` "cross_fitting", and what was seen in training."""
        return (PREDICTION, TRAINING_DYNAMICS)

    def open(self, inputs: Inputs) -> Opened:
        """Texts, labels and folds of the labelled examples, and the untrained model.

        Raises:
            DataError: there are fewer labelled examples than folds.
            ModelError: the head has another number of outputs than there are classes.
        """
        n_classes = count_classes(inputs)
        ids, labels = read_labels(inputs, "example", n_classes)
        if len(ids) < self.folds:
            raise DataError(
                f"cross_fitting: found {len(ids)} labelled examples, expected at least one for "
                f"each of {self.folds} folds. Label more, or lower folds."
            )
        fold = folds_of(torch.from_numpy(labels), self.folds, self.seed)
        measurement, fresh = load_start(inputs, self.model, n_classes)
        texts, pairs = [""] * len(ids), [None] * len(ids)
        lengths = np.zeros(len(ids), dtype=np.int64)
        for shard in inputs.by_shard("text", "example"):
            rows, places = answered_rows_of(shard["id"].to_numpy(), ids)
            if len(rows):
                read = shard.take(rows)
                lengths[places] = measurement.tokenise(read).lengths
                of_rows = (read["text"].to_pylist(), read["text_b"].to_pylist())
                for place, text, pair in zip(places, *of_rows, strict=True):
                    texts[place], pairs[place] = text, pair

        def batch(rows: Int64[np.ndarray, " rows"]) -> dict[str, Tensor]:
            # Tokens of all rows as numbers of Python would take many times the memory of the texts.
            columns = {"text": [texts[row] for row in rows], "text_b": [pairs[row] for row in rows]}
            tokens = measurement.tokenise(pa.table(columns))
            return measurement.batch(tokens, np.arange(len(rows)))

        network = measurement.network
        untrained = learner(network, batch, lengths, list(network.parameters()), fresh)
        return Opened(ids, torch.from_numpy(labels), fold, untrained)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Counts of examples and of trained weights."""
        opened: Opened = inputs.opened
        return {
            "n_examples": len(opened.ids),
            "n_trained": sum(weights.numel() for weights in opened.learner.start),
        }

    def compute(self, inputs: Inputs) -> Rows:
        """Logits of the rows of one fold, and what was seen of the others in training."""
        opened: Opened = inputs.opened
        index = inputs.part.index
        trained = np.flatnonzero(opened.fold != index)
        held_out = np.flatnonzero(opened.fold == index)
        name = f"cross_fitting/{self.seed}/{index}"
        labels = opened.labels[torch.from_numpy(trained)]
        seen = fine_tune(opened.learner, opened.labels, trained, self.training, name)
        dynamics = Dynamics(labels)
        for logits in seen:
            dynamics.add(logits)
        logits = outputs(opened.learner, held_out, self.token_budget)
        yield PREDICTION.name, _predictions(opened.ids[held_out], logits)
        yield TRAINING_DYNAMICS.name, dynamics.rows(index, opened.ids[trained])

    def cost(self, work: Work) -> Cost:
        """Every epoch of every training forward and backward, and each example once more."""
        n = work.n_examples
        seen = self.training.epochs * (self.folds - 1) * n
        size = network_size(self.model, work.n_classes)
        n_tokens = work.n_tokens / max(1, n + work.n_queries)
        # As `stages.gradients.passes.pass_cost`: attention and norms keep as much again.
        activations = 8 * self.training.batch_size * self.model.max_length
        activations *= sum(n_in + n_out for n_in, n_out in size.linear)
        return Cost(
            forward_rows=seen + n,
            backward_rows=seen,
            flops=size.forward_flops(round(n_tokens)) * (3 * seen + n),
            written_bytes=n * (4 * work.n_classes + 24) + 40 * (self.folds - 1) * n,
            memory_bytes=max(size.forward_bytes(self.token_budget), activations)
            + 16 * size.n_parameters
            + round(5 * n_tokens + 200 + 32 * work.n_classes) * n,
            note=f"{self.folds} trainings of {self.training.epochs} epochs",
        )


class Dynamics:
    """What the epochs of a training show of the rows that it is trained on."""

    def __init__(self, labels: Int64[Tensor, " rows"]) -> None:
        """Of no epoch yet."""
        self._labels = labels
        self._n_epochs = 0
        self._margins = torch.zeros(len(labels), dtype=torch.float64)
        self._early_loss: Tensor | None = None
        self._was_right = torch.zeros(len(labels), dtype=torch.bool)
        self._forgotten = torch.zeros(len(labels), dtype=torch.int64)

    def add(self, logits: Float[Tensor, "rows classes"]) -> None:
        """Takes in the outputs of one epoch, each as its row was visited."""
        margin = margins(logits.double(), self._labels)
        is_right = margin > 0
        self._forgotten += self._was_right & ~is_right
        self._was_right = is_right
        self._margins += margin
        self._n_epochs += 1
        if self._n_epochs == 2:
            self._early_loss = cross_entropy(logits, self._labels)

    def rows(self, fold: int, ids: Int64[np.ndarray, " rows"]) -> pa.RecordBatch:
        """Rows of `TRAINING_DYNAMICS`."""
        early = self._early_loss
        columns = [
            pa.array(np.full(len(ids), fold, dtype=np.int64)),
            pa.array(ids),
            pa.array((self._margins / self._n_epochs).numpy()),
            pa.nulls(len(ids), pa.float64()) if early is None else pa.array(early.numpy()),
            pa.array(self._forgotten.numpy()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=TRAINING_DYNAMICS.schema)


def folds_of(
    labels: Int64[Tensor, " examples"], n_folds: int, seed: int
) -> Int64[np.ndarray, " examples"]:
    """The fold of every example, drawn; of each class and of all there are as many in each.

    Up to one.
    """
    drawn = torch.randperm(len(labels), generator=generator_of(f"cross_fitting/{seed}/folds"))
    by_class = drawn[torch.argsort(labels[drawn], stable=True)].numpy()
    fold = np.empty(len(labels), dtype=np.int64)
    fold[by_class] = np.arange(len(labels)) % n_folds
    return fold


def _predictions(
    ids: Int64[np.ndarray, " rows"], logits: Float[Tensor, "classes rows"]
) -> pa.RecordBatch:
    """Rows of `PREDICTION`."""
    flat = pa.array(logits.T.numpy().astype(np.float32).reshape(-1))
    columns = [
        pa.array(ids),
        pa.array(["example"] * len(ids), pa.string()),
        pa.array(["cross_fitting"] * len(ids), pa.string()),
        pa.FixedSizeListArray.from_arrays(flat, len(logits)),
    ]
    return pa.RecordBatch.from_arrays(columns, PREDICTION.schema.names)


STAGE = CrossFitting
