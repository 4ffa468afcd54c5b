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

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from stages.gradients.of_logits import BATCH_NUMBERS, check_parts, check_writers, rebuilt
from stages.gradients.of_pairs import Of, PairLoss
from stages.gradients.of_rows import check_task, labelled_rows, loss_rows
from stages.gradients.passes import Passes, open_passes, pass_cost, vector_length
from stages.gradients.projection import Projection
from stages.gradients.rows import DType, feature_rows
from stages.model.precision import Precision
from stages.model.spec import ModelSpec, RunsModel, Trained
from stages.reading.chosen_rows import text_of
from stages.reading.logits import matched
from stages.reading.supervision import task_of
from stages.reading.vectors import matrix_of
from stages.stage import (
    ConfigError,
    Cost,
    Inputs,
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
            check_alike(
                self.margins,
                replace(writers[self.margins], model=other),
                {"model": own},
                ", or name another instance of answer_margin in margins",
            )
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
        check_task(self.model, passes.measurement.n_outputs, task_of(inputs))
        return passes

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
        yield from loss_rows(
            passes, inputs, text, answers, self.writes[0], self.token_budget, self.dtype
        )

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
        check_task(self.model, n_outputs, task)
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


STAGE = Gradient
