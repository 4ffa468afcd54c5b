"""Projected steps that Adam would take on each example, and the projected gradients of queries.

A query's vector is the gradient of its loss, as in `gradient`; an example's is Gamma of its own
gradient (`stages.gradients.adam`), with the moments that a warm-up training left in its checkpoint.
Their inner product is, to first order and per learning rate, by how much a step of Adam on the
example alone lowers the loss of the query. The projection comes after Gamma, which works number by
number: hence no `ntk` and no gradients that are stored already can take the place of passes.

The two sides differ, so that inner products are scores of pairs and no kernel. `less` joins the
steps of several checkpoints, `tracin` adds up their inner products.

Source: LESS, Xia et al. 2024, arXiv:2402.04333, section 3.1; adapters (LoRA) are trained there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from stages.gradients.adam import moments_file, read_moments
from stages.gradients.of_rows import check_task, labelled_rows, loss_rows
from stages.gradients.passes import Passes, open_passes, pass_cost
from stages.gradients.projection import Projection
from stages.gradients.rows import DType
from stages.model.averaged import vector_table
from stages.model.precision import Precision
from stages.model.spec import ModelSpec, RunsModel
from stages.reading.chosen_rows import text_of
from stages.reading.supervision import task_of
from stages.stage import ConfigError, Cost, Inputs, Rows, Split, Stage, Work
from stages.tables import DIAGNOSTICS
from storage.schema import TableSpec

ADAM_STEP = vector_table("adam_step")


@dataclass(frozen=True)
class AdamStep(RunsModel, Stage):
    """One projected step per labelled example, and one projected gradient per query."""

    model: ModelSpec
    """A checkpoint with the file `optimizer.pt`, as a Trainer saves it: `adapter` names its folder
    where adapters were trained, else `path`. Losses are means over tokens (`reduction: mean`), as
    in training: Adam's step does not scale with its gradient."""
    projection: Projection = field(default_factory=Projection)
    """How steps and gradients are projected."""
    dtype: DType = "float32"
    """Type of the stored numbers."""
    precision: Precision = "float32"
    """`bfloat16` runs the model in mixed precision, where the device has it."""
    token_budget: int = 1024
    """Padded tokens per batch; changes the last bits of a vector, hence part of the key."""
    checkpointing: bool = False
    """Gradient checkpointing, as in `gradient`; changes no bit, hence no key."""
    rows: str | None = None
    """Instance of `row_selection` with the examples that are computed; by default all are."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    outside_key: ClassVar[frozenset[str]] = frozenset({"rows", "checkpointing"})
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "completion")
    speaks_for: ClassVar[str] = "label"
    is_one_map: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuses adapters that no training has moved.

        Raises:
            ConfigError: they are fresh.
        """
        if self.model.train.lora is not None:
            raise ConfigError(
                "adam_step: found model.train.lora, adapters that are fresh, expected a checkpoint "
                "of a training. Name its folder in model.adapter and remove train.lora."
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
    def key_files(self) -> tuple[Path, ...]:
        """The moments of Adam."""
        return (moments_file(self.model),)

    @property
    def reads(self) -> tuple[str, ...]:
        """Labels and the text, and what the head is made of."""
        chosen = (self.rows,) if self.rows is not None else ()
        return ("text", "label", *self.model.kind.reads, *chosen)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One vector per row, and how each came out."""
        return (ADAM_STEP, DIAGNOSTICS)

    def open(self, inputs: Inputs) -> Passes:
        """The model, its projections, and the moments of its trained layers.

        Raises:
            ModelError: its head does not measure what the corpus asks for, or the moments are of
                other weights.
        """
        passes = open_passes(
            self.model, inputs, self.projection, self.precision, self.checkpointing
        )
        measurement = passes.measurement
        check_task(self.model, measurement.n_outputs, task_of(inputs))
        moments = read_moments(
            moments_file(self.model),
            measurement.network,
            passes.projector.modules,
            measurement.device,
        )
        return replace(passes, moments=moments)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The blocks of a vector: name, start and size of each layer's part."""
        passes: Passes = inputs.opened
        return passes.details()

    def compute(self, inputs: Inputs) -> Rows:
        """Steps of a shard of examples, or gradients of a shard of queries."""
        passes: Passes = inputs.opened
        if inputs.part.role == "query":
            passes = replace(passes, moments=None)
        text, answers = labelled_rows(
            text_of(inputs, self.rows),
            inputs.table("label"),
            passes.measurement.n_outputs,
            task_of(inputs),
        )
        yield from loss_rows(
            passes, inputs, text, answers, ADAM_STEP, self.token_budget, self.dtype
        )

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass per row, and whole gradients of every example."""
        return pass_cost(
            self.model,
            work,
            self.projection,
            self.token_budget,
            self.dtype,
            is_checkpointed=self.checkpointing,
            has_moments=True,
        )


STAGE = AdamStep
