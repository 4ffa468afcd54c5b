"""Features that have seen no label: the means over a row's tokens of all hidden states.

Each is scaled to unit length and they are joined, so that an inner product of two rows is the mean
over layers of their cosines. A better kernel than any one layer, see
`scripts/benchmarks/short_features.md`; a probe is fitted on `embedding`. [derived]
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from stages.model.averaged import Averaged, vector_table
from storage.schema import TableSpec

HIDDEN_STATES = vector_table("hidden_states")


@dataclass(frozen=True)
class HiddenStates(Averaged):
    """One vector per row, as long as the width of the model times its layers and one more."""

    version: ClassVar[int] = 1

    @property
    def _layer(self) -> Literal["all"]:
        return "all"

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One vector per row of text."""
        return (HIDDEN_STATES,)


STAGE = HiddenStates
