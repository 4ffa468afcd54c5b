"""Projected gradients of each row's training loss.

The loss is that of `stages.model.measurement`: cross-entropy of the label, squared error of the
target, the negative log-likelihood of a completion, or of two answers the loss of DPO
(`stages.gradients.of_pairs`). A query without a label, and with `queries:
predicted` every query, is given the class that the model predicts for it; a regression's query
without a target has no gradient. Rows of the text that have no row in `label` (dropped ones) have
none either. `stages.model.layers` says with respect to which weights, `stages.gradients.projection`
how they are made short.

With `ntk` no model is run: the gradient of a loss is put together from those of the logits
(`stages.gradients.of_logits`), so that a corrected label costs a few products. That holds for every
head with classes, whether fitted, loaded or made of label words, and for regressions; a completion
has no such logits. It is what the model pass gives up to rounding: 1e-6 of a row's norm on MiniLM
where the logits' gradients are stored in float32, and 2e-4 in float16. The latter grows where they
are much longer than their weighed sum, at most to 5e-4 of the sum of their lengths.

Sign: of the loss. The inner product of two rows is positive where a small gradient step on one
lowers the loss of the other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.gradients.of_logits import BATCH_NUMBERS, check_parts, check_writers, rebuilt
from stages.gradients.of_pairs import Of, PairLoss
from stages.gradients.of_tokens import token_rows
from stages.gradients.passes import Passes, make_features, open_passes, pass_cost, vector_length
from stages.gradients.projection import Precision, Projection
from stages.gradients.rows import DType, diagnostic_rows, feature_rows
from stages.model.batches import Tokens
from stages.model.measurement import UNLABELLED, row_loss
from stages.model.spec import ModelSpec, RunsModel, Trained
from stages.reading.chosen_rows import text_of
from stages.reading.logits import matched
from stages.reading.supervision import task_of
from stages.reading.vectors import matrix_of
from stages.stage import (
    ConfigError,
    Cost,
    DataError,
    Inputs,
    ModelError,
    Size,
    Split,
    Stage,
    Work,
    check_alike,
)
from stages.tables import ANSWER_MARGIN, DIAGNOSTICS, TOKEN_GRADIENT
from storage.schema import TableSpec

GRADIENT = TableSpec(
    name="gradient",
    schema=pa.schema(
        [("id", pa.int64()), ("role", pa.string()), ("vector", pa.list_(pa.float32()))]
    ),
    key=("id",),
)


def labelled_rows(
    text: pa.Table,
    label: pa.Table,
    n_outputs: int,
    task: str = "classification",
    queries: Literal["label", "predicted"] = "label",
) -> tuple[pa.Table, Tensor | None]:
    """Rows of the text that have a row in `label`, and their labels or targets.

    Labels are integers, -1 for a query without one, or for all queries where the predicted class
    stands for the label; targets of a regression are floats; a completion has neither (None).

    Raises:
        DataError: an example's label is null, or a label is not a class of the model.
    """
    text = text.filter(pc.is_in(text["id"], value_set=label["id"].combine_chunks()))
    label = label.take(pc.index_in(text["id"], value_set=label["id"].combine_chunks()))
    if task in ("completion", "preference"):
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
    if queries == "predicted":
        labels = np.where(is_example, labels, UNLABELLED)
    return text, torch.from_numpy(labels.astype(np.int64))


@dataclass(frozen=True)
class Gradient(RunsModel, Stage):
    """One projected loss gradient per labelled row, and per query."""

    model: ModelSpec
    """The model whose loss is differentiated."""
    per: Literal["row", "token"] = "row"
    """`token` takes, for completions, the gradient of each predicted token's loss by itself; they
    add up to the row's where `reduction: sum`, and else their mean is the row's, which is what
    `diagnostics` tells of. Costs as many passes as a row has such tokens."""
    queries: Literal["label", "predicted"] = "label"
    """A query's loss is that of its label, if it has one, or of the class that is predicted."""
    projection: Projection = field(default_factory=Projection)
    """How gradients are projected."""
    dtype: DType = "float32"
    """Type of the stored numbers; a confident row's gradient can be too small for float16."""
    precision: Precision = "float32"
    """`bfloat16` runs the model in mixed precision, where the device has it."""
    token_budget: int = 1024
    """Padded tokens per batch; changes the last bits of a vector, hence part of the key."""
    checkpointing: bool = False
    """Gradient checkpointing: keeps the hidden states between the model's blocks alone, and runs
    each block once more for the backward pass. Memory of one block in place of all, about half as
    much time again; changes no bit, hence no key."""
    margins: str | None = None
    """Of preferences, the instance of `answer_margin` whose reference and beta the loss has; it is
    `answer_margin` where nothing is said. Other corpora have none."""
    of: Of = "pair"
    """Of preferences: the gradient of the whole loss, or its part through the `chosen` answer, or
    through the `rejected` one; the parts add up."""
    rows: str | None = None
    """Instance of `row_selection` with the examples that are computed; by default all are. Others
    have no features, and what reads these leaves them out."""

    ntk: str | None = None
    """Instance with the gradients of all logits (`logit: all`) of the same model, projected in the
    same way: loss gradients are then put together from these, without a pass of the model."""
    predictions: str = "prediction"
    """Instance with the model's logits, for `ntk`."""

    version: ClassVar[int] = 4
    split: ClassVar[Split] = "shard"

    def __post_init__(self) -> None:
        """Refuses tokens of a model that predicts none, and rows chosen twice."""
        if self.ntk is not None and self.rows is not None:
            raise ConfigError(
                f"rows: found {self.rows} with ntk: {self.ntk}, whose rows are taken, expected one "
                "of the two. Set rows there."
            )
        if self.per == "token" and (self.margins is not None or self.of != "pair"):
            raise ConfigError(
                f"per: found token with margins: {self.margins}, of: {self.of}, expected rows: a "
                "token has no loss of a pair. Set per: row."
            )
        if self.per == "token" and self.model.kind.explains != "next_tokens":
            raise ConfigError(
                f"per: found token with head: {self.model.head}, expected head: completion. "
                "Set per: row."
            )
        if self.ntk is not None and not self.model.kind.has_class_outputs:
            raise ConfigError(
                f"ntk: found {self.ntk} with head: {self.model.head}, expected a head with class "
                "logits. Set ntk: null."
            )
        if self.ntk is None and self.predictions != "prediction":
            raise ConfigError(
                f"predictions: found {self.predictions} with ntk: null, expected an instance of "
                "ntk, whose gradients they weigh. Set ntk, or remove predictions."
            )

    @property
    def outside_key(self) -> frozenset[str]:
        """Rows and memory change no vector; what is about pairs came later."""
        young = {"margins", "of"} if self.margins is None else set()
        return frozenset({"rows", "checkpointing"} | young)

    def sized(self, size: Size) -> "Gradient":
        """With the margins of pairs, where the corpus has pairs."""
        if size.task != "preference" or self.margins is not None or self.per == "token":
            return self
        return replace(self, margins=ANSWER_MARGIN.name)

    @property
    def speaks_for(self) -> str:
        """The class that a small step on another row makes likelier, where both agree."""
        return "label" if self.queries == "label" else "prediction"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those with classes, where they are predicted."""
        if self.queries == "predicted":
            return ("classification",)
        if self.margins is not None or self.of != "pair":
            return ("preference",)
        if self.per == "token" or self.ntk is not None:
            return ("classification", "regression", "completion")
        return ("classification", "regression", "completion", "preference")

    @property
    def seed(self) -> int:
        """The seed of the projection."""
        return self.projection.seed

    @property
    def feature_dim(self) -> int | None:
        """Length of a vector, where the projection mixes layers to one length."""
        return self.projection.dim

    @property
    def reads(self) -> tuple[str, ...]:
        """Labels and the text, with the probe where it is the head; or gradients of logits."""
        if self.ntk is not None:
            return (self.ntk, self.predictions, "label")
        chosen = (self.rows,) if self.rows is not None else ()
        margins = (self.margins,) if self.margins is not None else ()
        return ("text", "label", *self.model.kind.reads, *margins, *chosen)

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """For `ntk`, gradients of all logits with this stage's model, projection and precision.

        For pairs, margins by this stage's model.
        """
        if self.margins is not None:
            return {self.margins: {"model": asdict(self.model)}}
        if self.ntk is None:
            return {}
        own = {"model": asdict(self.model), "projection": asdict(self.projection)}
        rest = {name: getattr(self, name) for name in ("dtype", "precision", "token_budget")}
        return {self.ntk: {**own, **rest, "logit": "all"}}

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses gradients of logits, or margins, that are not those of this stage's loss.

        Raises:
            ConfigError: they are of other outputs, another model or projection.
        """
        if self.margins is not None:
            own = replace(self.model, train=Trained(), reduction="sum")
            other = replace(writers[self.margins].model, train=Trained(), reduction="sum")
            check_alike(self.margins, replace(writers[self.margins], model=other), {"model": own})
        if self.ntk is None:
            return
        gradients = writers[self.ntk]
        check_writers(self.ntk, gradients, self.predictions, writers[self.predictions])
        for name in ("model", "projection", "precision", "token_budget"):
            own, other = getattr(self, name), getattr(gradients, name, None)
            if other is not None and own != other:
                raise ConfigError(
                    f"{self.ntk}: found another {name} than this stage's, expected the same, as "
                    f"its gradients are those of {self.ntk}. Set {name} alike in both, or "
                    "ntk: null to take the gradients by the model."
                )

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One projected gradient per row, or token, and how each came out."""
        return (TOKEN_GRADIENT if self.per == "token" else GRADIENT, DIAGNOSTICS)

    def open(self, inputs: Inputs) -> Passes | None:
        """The model and its projections; with `ntk` none is needed.

        Raises:
            ModelError: its head does not measure what the corpus asks for.
        """
        if self.ntk is not None:
            return None
        # The loss of pairs is of whole answers.
        is_of_pairs = self.margins is not None
        model = replace(self.model, reduction="sum") if is_of_pairs else self.model
        passes = open_passes(model, inputs, self.projection, self.precision, self.checkpointing)
        self._check_task(passes.measurement.n_outputs, task_of(inputs))
        return passes

    def _check_task(self, n_outputs: int, task: str) -> None:
        """Raises unless the head measures what a corpus with this task asks for."""
        kind = self.model.kind
        is_regression = kind.has_class_outputs and n_outputs == 1
        if task not in kind.tasks or is_regression != (task == "regression"):
            raise ModelError(
                f"{self.model.path}: found head: {self.model.head} with {n_outputs} outputs for a "
                f"corpus with task: {task}, expected head: completion for completions, one output "
                "for a regression, and one per class otherwise. Correct model.head or corpus.task."
            )

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The blocks of a vector: name, start and size of each layer's part."""
        if self.ntk is not None:
            return {"blocks": inputs.details(self.ntk).get("blocks")}
        passes: Passes = inputs.opened
        return passes.details()

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Gradients of one shard, one forward and one backward pass per row, or none."""
        if self.ntk is not None:
            yield from self._from_logits(inputs, self.ntk)
            return
        passes: Passes = inputs.opened
        text, answers = labelled_rows(
            text_of(inputs, self.rows),
            inputs.table("label"),
            passes.measurement.n_outputs,
            task_of(inputs),
            self.queries,
        )
        if self.margins is not None:
            pairs = PairLoss(passes, self.margins, self.of, self.token_budget)
            yield from pairs.rows(inputs, text, GRADIENT.name, self.dtype)
            return
        tokens = passes.measurement.tokenise(text)
        has_target = np.array(passes.measurement.has_target(tokens), dtype=bool)
        yield from _without_target(text, tokens, has_target)
        kept = np.flatnonzero(has_target)
        text, tokens = text.take(pa.array(kept)), tokens.take(kept)
        if self.per == "token":
            yield from token_rows(passes, text, tokens, self.token_budget, self.dtype, inputs.tell)
            return
        if answers is not None:
            answers = answers[torch.from_numpy(kept)].to(passes.measurement.device)

        def measured(
            outputs: Float[Tensor, "batch outputs"], rows: Int[np.ndarray, " batch"]
        ) -> Float[Tensor, " batch"]:
            at = None if answers is None else answers[torch.from_numpy(rows).to(answers.device)]
            return row_loss(outputs, at)

        for made in make_features(passes, tokens, self.token_budget, measured, inputs.tell):
            lengths = tokens.lengths[made.rows]
            yield from feature_rows(GRADIENT.name, text, lengths, made, self.dtype, inputs.tell)

    def _from_logits(self, inputs: Inputs, read: str) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Rows of one shard from the gradients of logits in the instance `read`."""
        vectors, predictions = inputs.table(read), inputs.table(self.predictions)
        label, task = inputs.table("label"), task_of(inputs)
        in_vectors, in_predictions = matched(vectors, predictions, self.predictions)
        n_answers = label.num_rows - (label["target"].null_count if task == "regression" else 0)
        if len(in_vectors) == 0:
            inputs.tell(n_left_out=n_answers)
            return
        logits = matrix_of(predictions["logits"])[in_predictions]
        n_outputs = logits.shape[1]
        self._check_task(n_outputs, task)
        both = vectors.take(pa.array(in_vectors))
        length = matrix_of(both["vector"]).shape[1]
        check_parts(inputs.details(read), length, n_outputs, read)
        rows, answers = labelled_rows(both, label, n_outputs, task, self.queries)
        inputs.tell(n_left_out=n_answers - rows.num_rows)
        logits = logits[pc.index_in(rows["id"], value_set=both["id"].combine_chunks()).to_numpy()]
        # Only completions have no answers, and they have no such gradients.
        for made in rebuilt(rows, logits, cast(Tensor, answers)):
            yield from feature_rows(GRADIENT.name, rows, None, made, self.dtype, inputs.tell)

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass per row, or a product for each of its logits."""
        if self.ntk is not None:
            n_rows = work.n_examples + work.n_queries
            dim = vector_length(self.model, self.projection, work.n_classes)
            width = 2 if self.dtype == "float16" else 4
            shard = n_rows // max(1, work.n_shards)
            return Cost(
                flops=2.0 * n_rows * work.n_classes * dim,
                written_bytes=n_rows * (width * dim + 64),
                memory_bytes=shard * dim * (8 * work.n_classes + width) + 16 * BATCH_NUMBERS,
            )
        return pass_cost(
            self.model,
            work,
            self.projection,
            self.token_budget,
            self.dtype,
            is_checkpointed=self.checkpointing,
            n_sides=1 if self.margins is None else 2,
        )


def _without_target(
    text: pa.Table, tokens: Tokens, has_target: np.ndarray
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Rows of `diagnostics` for texts whose completion `max_length` cut away."""
    rows = np.flatnonzero(~has_target)
    if len(rows):
        none = np.full(len(rows), np.nan)
        status = np.array(["no target"] * len(rows))
        yield (
            DIAGNOSTICS.name,
            diagnostic_rows(text, rows, tokens.lengths[rows], none, none, status),
        )


STAGE = Gradient
