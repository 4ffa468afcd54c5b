"""Features of the empirical neural tangent kernel: the projected gradient of one class logit.

The kernel k(x, x') is the inner product of two feature vectors, in expectation that of the full
gradients with respect to the linear weights (`stages.projection` says which and how). One kernel
serves all classes. Labels are never read.

Source: Wang et al. 2024, arXiv:2406.04606, section 3 (one scalar kernel from one class logit).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from stages.batching import vector_rows
from stages.measurement import ModelSpec
from stages.projection import (
    Projected,
    load_projected,
    project_rows,
    projected_cost,
)
from stages.stage import ConfigError, Cost, Inputs, Split, Work
from storage.schema import TableSpec

NTK = TableSpec(
    name="ntk",
    schema=pa.schema(
        [("id", pa.int64()), ("role", pa.string()), ("vector", pa.list_(pa.float32()))]
    ),
    key=("id",),
)


@dataclass(frozen=True)
class Ntk:
    """One feature vector per row, whose inner products are the kernel."""

    model: ModelSpec
    """The classifier whose logit is differentiated."""
    logit: int = 0
    """Class whose logit is differentiated; with two classes of a probe both give one kernel."""
    layer_projection: int | None = 16
    """Length k that each side of a layer's gradient is projected to; null keeps all."""
    projection_dim: int | None = 2048
    """Length of a feature vector; null joins the layers' blocks, k x k numbers each."""
    seed: int = 0
    """Seed of the projections."""
    token_budget: int = 2048
    """Padded tokens per batch; changes the last bits of a vector, hence part of the key."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"

    @property
    def reads(self) -> tuple[str, ...]:
        """The text, and the probe where it is the head."""
        return ("text", "probe") if self.model.head == "probe" else ("text",)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One feature vector per row of text."""
        return (NTK,)

    def open(self, inputs: Inputs) -> Projected:
        """The classifier and its projections.

        Raises:
            ConfigError: the classifier has no such logit.
        """
        projected = load_projected(
            self.model, inputs, self.layer_projection, self.projection_dim, self.seed
        )
        n_classes = projected.measurement.n_outputs
        if not 0 <= self.logit < n_classes:
            raise ConfigError(
                f"ntk: found logit: {self.logit}, expected 0 to {n_classes - 1}. Name a class."
            )
        return projected

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Features of one shard, one forward and one backward pass per row."""
        measurement, projector = inputs.opened
        text = inputs.table("text")
        tokens = measurement.tokenise(text)
        for rows, features in project_rows(
            measurement,
            projector,
            tokens,
            self.token_budget,
            lambda logits, _: logits[:, self.logit],
        ):
            yield NTK.name, vector_rows(text, rows, features)

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass per row."""
        return projected_cost(
            self.model, work, self.layer_projection, self.projection_dim, self.token_budget
        )


STAGE = Ntk
