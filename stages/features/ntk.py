"""Features of the empirical neural tangent kernel: projected gradients of class logits.

The kernel k(x, x') is the inner product of two feature vectors, in expectation that of the full
gradients with respect to the trained weights (`stages.model.layers`,
`stages.gradients.projection`). Labels are never read. Which output is differentiated:

- `logit: 0` (the default): one class logit, one kernel for all classes, as in the paper.
- `logit: all`: every class, one after the other in the vector. Its inner product is the sum of the
  classes' kernels; `kernel_regression: {kernel: [ntk], per_class: true}` gives each its
  own.
- `output: margin`: the class's logit less the log-sum-exp of the others, its log-odds, instead of
  the logit alone. With two classes the kernel of a margin is that of the logits' difference.

Several checkpoints are several instances, whose kernels a regression averages:
`kernel: [ntk_early, ntk_late]`.

Source: Wang et al. 2024, arXiv:2406.04606, section 3 (one scalar kernel from one class logit);
the margin is the output function of Park et al. 2023, arXiv:2303.14186, for a fixed class.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.gradients.passes import Passes, make_features, open_passes, pass_cost
from stages.gradients.projection import Projection
from stages.gradients.rows import DType, feature_rows
from stages.model.precision import Precision
from stages.model.spec import ModelSpec, RunsModel
from stages.reading.chosen_rows import text_of
from stages.stage import ConfigError, Cost, Inputs, Rows, Split, Stage, Work
from stages.tables import DIAGNOSTICS
from storage.schema import TableSpec

NTK = TableSpec(
    name="ntk",
    schema=pa.schema(
        [("id", pa.int64()), ("role", pa.string()), ("vector", pa.list_(pa.float32()))]
    ),
    key=("id",),
)


def chosen_outputs(
    logits: Float[Tensor, "rows classes"],
    logit: int | Literal["all"],
    output: Literal["logit", "margin"],
) -> Float[Tensor, "rows chosen"]:
    """The logit of one class or of all, or their log-odds against all other classes together."""
    if output == "margin":
        # log(p / (1 - p)) with p the softmax.
        others = torch.stack(
            [
                torch.cat([logits[:, :c], logits[:, c + 1 :]], dim=1).logsumexp(1)
                for c in range(logits.shape[1])
            ],
            dim=1,
        )
        logits = logits - others
    return logits if logit == "all" else logits[:, logit : logit + 1]


@dataclass(frozen=True)
class Ntk(RunsModel, Stage):
    """One feature vector per row, whose inner products are the kernel."""

    model: ModelSpec
    """The classifier or regressor whose output is differentiated."""
    logit: int | Literal["all"] = 0
    """Class whose logit is differentiated, or all of them, each at the cost of a backward pass;
    with two classes of a probe both give one kernel."""
    output: Literal["logit", "margin"] = "logit"
    """The logit itself, or the log-odds of its class."""
    projection: Projection = field(default_factory=Projection)
    """How gradients are projected."""
    dtype: DType = "float16"
    """Type of the stored numbers; float16 halves the bytes and changes a kernel entry by less than
    a thousandth, far less than the projection does."""
    precision: Precision = "float32"
    """`bfloat16` runs the model in mixed precision, where the device has it."""
    token_budget: int = 1024
    """Padded tokens per batch; changes the last bits of a vector, hence part of the key."""
    checkpointing: bool = False
    """Gradient checkpointing: keeps the hidden states between the model's blocks alone, and runs
    each block once more for the backward pass. Memory of one block in place of all, about half as
    much time again; changes no bit, hence no key."""
    rows: str | None = None
    """Instance of `row_selection` with the examples that are computed; by default all are. Others
    have no features, and what reads these leaves them out."""

    version: ClassVar[int] = 3
    split: ClassVar[Split] = "shard"
    outside_key: ClassVar[frozenset[str]] = frozenset({"rows", "checkpointing"})
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")

    def __post_init__(self) -> None:
        """Refuses a model without a logit per class, as of a completion: its output is its loss."""
        kind = self.model.kind
        if not kind.has_class_outputs:
            advice = "Use the stage gradient." if kind.tasks else "Leave out what reads ntk."
            raise ConfigError(
                f"ntk: found head: {self.model.head}, expected a head with class logits. {advice}"
            )

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
        """The text, the probe where it is the head, and which rows are chosen."""
        return ("text", *self.model.kind.reads, *((self.rows,) if self.rows is not None else ()))

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One feature vector per row of text, and how each came out."""
        return (NTK, DIAGNOSTICS)

    def open(self, inputs: Inputs) -> Passes:
        """The model and its projections.

        Raises:
            ConfigError: the classifier has no such logit, or a margin is asked of one output.
        """
        passes = open_passes(
            self.model, inputs, self.projection, self.precision, self.checkpointing
        )
        n_outputs = passes.measurement.n_outputs
        if self.logit != "all" and not 0 <= self.logit < n_outputs:
            raise ConfigError(
                f"ntk: found logit: {self.logit}, expected 0 to {n_outputs - 1}. Name a class."
            )
        if self.output == "margin" and n_outputs < 2:
            raise ConfigError(
                "ntk: found output: margin for a model with one output, expected at least two. "
                "Set output: logit."
            )
        return passes

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The blocks of one logit's gradient, and the number of such gradients in a vector."""
        passes: Passes = inputs.opened
        n_parts = passes.measurement.n_outputs if self.logit == "all" else 1
        return {"n_parts": n_parts, **passes.details()}

    def compute(self, inputs: Inputs) -> Rows:
        """Features of one shard, one forward pass per row and one backward pass per logit."""
        passes: Passes = inputs.opened
        text = text_of(inputs, self.rows)
        tokens = passes.measurement.tokenise(text)

        def measured(
            logits: Float[Tensor, "batch classes"], rows: Int[Any, " batch"]
        ) -> Float[Tensor, "batch chosen"]:
            return chosen_outputs(logits, self.logit, self.output)

        for made in make_features(passes, tokens, self.token_budget, measured, inputs.tell):
            lengths = tokens.lengths[made.rows]
            yield from feature_rows(NTK.name, text, lengths, made, self.dtype, inputs.tell)

    def cost(self, work: Work) -> Cost:
        """One forward pass per row, one backward pass per logit."""
        n_backward = work.n_classes if self.logit == "all" else 1
        return pass_cost(
            self.model,
            work,
            self.projection,
            self.token_budget,
            self.dtype,
            n_backward,
            self.checkpointing,
        )


STAGE = Ntk
