"""Projected gradients of each row's training loss.

The loss is that of `stages.measurement`: cross-entropy of the label, squared error of the target,
or the negative log-likelihood of a completion. A query without a label is given the class that the
model predicts for it; a regression's query without a target has no gradient. Rows of the text that
have no row in `label` (dropped ones) have none either. `stages.trained` says with respect to which
weights, `stages.projection` how they are made short.

Sign: of the loss. The inner product of two rows is positive where a small gradient step on one
lowers the loss of the other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.answer import task_of
from stages.batching import Tokens
from stages.feature_pass import (
    STATUSES,
    DType,
    Passes,
    as_stored,
    diagnostic_rows,
    feature_rows,
    make_features,
    open_passes,
    pass_cost,
    usable_rows,
)
from stages.measurement import UNLABELLED, ModelSpec, row_loss
from stages.projection import Precision, Projection
from stages.prompt import one_position_each
from stages.stage import ConfigError, Cost, DataError, Inputs, ModelError, Split, Work
from stages.tables import DIAGNOSTICS, TOKEN_GRADIENT
from storage.schema import TableSpec

GRADIENT = TableSpec(
    name="gradient",
    schema=pa.schema(
        [("id", pa.int64()), ("role", pa.string()), ("vector", pa.list_(pa.float32()))]
    ),
    key=("id",),
)


def labelled_rows(
    text: pa.Table, label: pa.Table, n_outputs: int, task: str = "classification"
) -> tuple[pa.Table, Tensor | None]:
    """Rows of the text that have a row in `label`, and what they should be answered with.

    Labels are integers, -1 for a query without one; targets of a regression are floats; a
    completion answers itself (None).

    Raises:
        DataError: an example's label is null, or a label is not a class of the model.
    """
    text = text.filter(pc.is_in(text["id"], value_set=label["id"].combine_chunks()))
    label = label.take(pc.index_in(text["id"], value_set=label["id"].combine_chunks()))
    if task == "completion":
        return text, None
    if task == "regression":
        has_target = pc.is_valid(label["target"])
        targets = label["target"].filter(has_target).to_numpy()
        return text.filter(has_target), torch.from_numpy(targets.astype(np.float64))
    unlabelled = pc.is_null(label["label"]).to_numpy(zero_copy_only=False)
    is_example = pc.equal(text["role"], "example").to_numpy(zero_copy_only=False)
    labels = pc.fill_null(label["label"], UNLABELLED).to_numpy(zero_copy_only=False)
    wrong = (unlabelled & is_example) | (~unlabelled & ((labels < 0) | (labels >= n_outputs)))
    if wrong.any():
        at_row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"gradient: found label {label['label'][at_row]} for {text['role'][at_row]} "
            f"{text['id'][at_row]}, expected 0 to {n_outputs - 1}, the model's classes. "
            "Correct the label, or use a head with that many classes."
        )
    return text, torch.from_numpy(labels.astype(np.int64))


@dataclass(frozen=True)
class Gradient:
    """One projected loss gradient per labelled row, and per query."""

    model: ModelSpec
    """The model whose loss is differentiated."""
    per: Literal["row", "token"] = "row"
    """`token` takes, for completions, the gradient of each predicted token's loss by itself; they
    add up to the row's where `reduction: sum`, and else their mean is the row's, which is what
    `diagnostics` tells of. Costs as many passes as a row has such tokens."""
    projection: Projection = field(default_factory=Projection)
    """How gradients are made short."""
    dtype: DType = "float32"
    """Type of the stored numbers; a confident row's gradient can be too small for float16."""
    precision: Precision = "float32"
    """`bfloat16` runs the model in mixed precision, where the device has it."""
    token_budget: int = 1024
    """Padded tokens per batch; changes the last bits of a vector, hence part of the key."""

    version: ClassVar[int] = 4
    split: ClassVar[Split] = "shard"

    def __post_init__(self) -> None:
        """Refuses tokens of a model that predicts none."""
        if self.per == "token" and self.model.head != "completion":
            raise ConfigError(
                f"per: found token with head: {self.model.head}, expected head: completion. "
                "Set per: row."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Text and labels, and the probe where it is the head."""
        return ("text", "label", "probe") if self.model.head == "probe" else ("text", "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One projected gradient per row, or token, and how each came out."""
        return (TOKEN_GRADIENT if self.per == "token" else GRADIENT, DIAGNOSTICS)

    def open(self, inputs: Inputs) -> Passes:
        """The model and its projections.

        Raises:
            ModelError: its head does not measure what the corpus asks for.
        """
        task = task_of(inputs)
        passes = open_passes(self.model, inputs, self.projection, self.precision)
        n_outputs, head = passes.measurement.n_outputs, self.model.head
        is_completion = head == "completion"
        if is_completion != (task == "completion") or (
            not is_completion and (n_outputs == 1) != (task == "regression")
        ):
            raise ModelError(
                f"{self.model.path}: found head: {head} with {n_outputs} outputs for a corpus with "
                f"task: {task}, expected head: completion for completions, one output for a "
                "regression, and one per class otherwise. Correct model.head or corpus.task."
            )
        return passes

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Which part of a vector belongs to which layer; what happened to the shard."""
        passes: Passes = inputs.opened
        return passes.details()

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Gradients of one shard, one forward and one backward pass per row."""
        passes: Passes = inputs.opened
        text, answers = labelled_rows(
            inputs.table("text"),
            inputs.table("label"),
            passes.measurement.n_outputs,
            task_of(inputs),
        )
        tokens = passes.measurement.tokenise(text)
        has_target = np.array(passes.measurement.has_target(tokens), dtype=bool)
        yield from _without_target(text, tokens, has_target)
        kept = np.flatnonzero(has_target)
        text, tokens = text.take(pa.array(kept)), tokens.take(kept)
        if self.per == "token":
            yield from self._per_token(passes, text, tokens)
            return
        if answers is not None:
            answers = answers[torch.from_numpy(kept)].to(passes.measurement.device)

        def measured(
            outputs: Float[Tensor, "batch outputs"], rows: Int[np.ndarray, " batch"]
        ) -> Float[Tensor, " batch"]:
            at = None if answers is None else answers[torch.from_numpy(rows).to(answers.device)]
            return row_loss(outputs, at)

        for made in make_features(passes, tokens, self.token_budget, measured):
            yield from feature_rows(GRADIENT.name, text, tokens, made, self.dtype, passes.told)

    def _per_token(
        self, passes: Passes, text: pa.Table, tokens: Tokens
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Rows of tokens, then of `diagnostics`; holds a vector for each row of text."""
        each, owners, indices = one_position_each(tokens)
        of_tokens, more = text.take(pa.array(owners)), {"token_index": indices}
        n_rows = text.num_rows
        totals = torch.zeros(n_rows, passes.projector.sketch.dim, dtype=torch.float64)
        losses, worst = np.zeros(n_rows), np.zeros(n_rows, dtype=np.int64)
        for made in make_features(
            passes, each, self.token_budget, lambda outputs, _: row_loss(outputs, None)
        ):
            stored, status = as_stored(made, self.dtype)
            yield from usable_rows(TOKEN_GRADIENT.name, of_tokens, made.rows, stored, status, more)
            rows = owners[made.rows]
            totals.index_add_(0, torch.from_numpy(rows), torch.from_numpy(made.vectors).double())
            np.add.at(losses, rows, made.numbers[:, 0])
            np.maximum.at(worst, rows, [STATUSES.index(s) for s in status])
        passes.told.n_not_finite = int((worst > 0).sum())
        if n_rows:
            is_mean = self.model.reduction == "mean"
            counts = np.bincount(owners) if is_mean else np.ones(n_rows)
            losses, norms = losses / counts, totals.norm(dim=1).numpy() / counts
            every, status = np.arange(n_rows), np.array(STATUSES)[worst]
            yield (
                DIAGNOSTICS.name,
                diagnostic_rows(text, every, tokens.lengths, losses, norms, status),
            )

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass per row."""
        return pass_cost(self.model, work, self.projection, self.token_budget, self.dtype)


def _without_target(
    text: pa.Table, tokens: Tokens, has_target: np.ndarray
) -> Iterator[tuple[str, pa.RecordBatch]]:
    rows = np.flatnonzero(~has_target)
    if len(rows):
        none = np.full(len(rows), np.nan)
        status = np.array(["no target"] * len(rows))
        yield (
            DIAGNOSTICS.name,
            diagnostic_rows(text, rows, tokens.lengths[rows], none, none, status),
        )


STAGE = Gradient
