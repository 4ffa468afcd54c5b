"""The configuration of gradient projections, and the vector lengths that follow from it.

`stages.gradients.sketch` draws the matrices, `stages.gradients.projector` applies them inside the
backward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stages.model.layers import Shape
from stages.stage import ConfigError

BY_LAYER = {"inputs": 16, "outputs": 16, "dim": None}
"""Fields of a projection that leaves layers side by side, for stages that need their blocks."""


@dataclass(frozen=True)
class Projection:
    """How gradients are projected; all null keeps every number, for oracles and small models."""

    inputs: int | None = 48
    """Numbers that the inputs of a layer are projected to; null keeps all."""
    outputs: int | None = 24
    """Numbers that its output gradients are projected to; null keeps all."""
    principal: int = 4
    """Directions of each side that are kept exactly; at most half of the side's numbers are, so
    that enough of them are left for the rest."""
    dim: int | None = 8192
    """Length of a feature vector; null joins the layers' blocks, inputs x outputs numbers each."""
    final: Literal["sparse", "dense"] = "sparse"
    """How the joined blocks are brought to `dim`: hashed with random signs at no cost, or by a
    Gaussian matrix that must be held and multiplied, with the same error."""
    seed: int = 0
    """Seed of all projections; with one seed, features of `gradient` and `ntk` share a space."""

    def __post_init__(self) -> None:
        """Refuses lengths that are not positive."""
        for name in ("inputs", "outputs", "dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"projection: found {name}: {value}, expected a positive number, or null for "
                    "no projection. Raise it."
                )
        if self.principal < 0:
            raise ConfigError(
                f"projection: found principal: {self.principal}, expected 0 or more. Raise it."
            )

    def block(self, shape: Shape) -> tuple[int, int]:
        """Lengths that the output gradients and the inputs of a layer are projected to."""
        return (
            min(shape.outputs, self.outputs or shape.outputs),
            min(shape.inputs, self.inputs or shape.inputs),
        )

    def length(self, shapes: Sequence[Shape]) -> int:
        """Length of a feature vector for layers of these shapes."""
        joined = sum(left * right for left, right in map(self.block, shapes))
        return min(joined, self.dim or joined)
