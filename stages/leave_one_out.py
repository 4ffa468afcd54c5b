"""Leave-one-out values of examples, U(all) - U(all but i), in closed form.

Source: arXiv:2406.04606 (g_LOO, methods.md 1.5), in the same game as `freeshap`. With
M = (K + damping I)^-1 and A = M (Y - 1/C), the outputs without example i are
f(t) - (K[t,:] M)_i A_i / M_ii. [derived, methods.md 1.6]
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from stages.kernel import solve
from stages.labelled_kernel import LabelledKernel, Ridge, check_fields, read_labelled_kernel
from stages.stage import Cost, Inputs, Split, Work
from stages.tables import EXACT_VALUE
from stages.utility import Utility, mean_utilities
from stages.utility import check_fields as check_utilities
from storage.schema import TableSpec

BLOCK_NUMBERS = 2**19
"""Outputs (left-out examples x classes x queries) held at a time."""


def leave_one_out(
    regression: LabelledKernel, utilities: tuple[Utility, ...], temperature: float = 1.0
) -> Float[Tensor, "utilities examples"]:
    """How much each utility falls when each example alone is taken away. Positive helps.

    The damping stays that of the full set. Cost n^3 + n^2 queries; memory 24 n^2 + 8 n queries
    bytes beside the kernel.
    """
    inverse, dual = solve(regression.kernel, regression.targets, regression.damping)
    full = (regression.query_kernel @ dual).T
    share = (regression.query_kernel @ inverse / inverse.diagonal()).T
    size = max(1, BLOCK_NUMBERS // full.numel())
    values = []
    for start in range(0, len(dual), size):
        block = slice(start, start + size)
        without = full - dual[block, :, None] * share[block, None, :]
        outputs = torch.cat([full[None], without])
        utility = mean_utilities(outputs, regression.query_labels, utilities, temperature)
        values.append(utility[:, :1] - utility[:, 1:])
    return torch.cat(values, dim=1)


@dataclass(frozen=True)
class LeaveOneOut:
    """The value of each example as the last to join, exact and without sampling.

    One task; its memory grows as 8 n (4 n + 2 m) bytes for n labelled examples and m queries.
    """

    kernel: tuple[str, ...] = ("ntk",)
    """Feature tables; with several, their kernels' mean."""
    normalize: bool = True
    """Scale every feature vector to unit length."""
    ridge: Ridge = "auto"
    """Relative to the kernel's mean diagonal; `auto` takes the least leave-one-out error."""
    utilities: tuple[Utility, ...] = ("accuracy", "cross_entropy")
    """What a set of examples is worth."""
    temperature: float = 1.0
    """Divides the outputs before the softmax of `cross_entropy`."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "whole"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    def __post_init__(self) -> None:
        """Refuse what cannot be computed.

        Raises:
            ConfigError: a field is empty, negative or not a number.
        """
        check_fields(self.kernel, self.ridge)
        check_utilities(self.utilities, self.temperature)

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature tables and the labels."""
        return (*self.kernel, "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Values with `semivalue` "loo"."""
        return (EXACT_VALUE,)

    def open(self, inputs: Inputs) -> LabelledKernel:
        """The regression on the labelled queries."""
        regression = read_labelled_kernel(inputs, self.kernel, self.normalize, self.ridge)
        return regression.with_labelled_queries()

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Ridge, damping, and the number of queries the utilities are means over."""
        regression: LabelledKernel = inputs.opened
        return {
            "ridge": regression.ridge,
            "damping": regression.damping,
            "n_queries": len(regression.query_ids),
            **regression.left_out.details(),
        }

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """One row for each utility and example."""
        regression: LabelledKernel = inputs.opened
        values = leave_one_out(regression, self.utilities, self.temperature)
        n = len(regression.example_ids)
        for name, row in zip(self.utilities, values, strict=True):
            columns = [
                pa.array(["loo"] * n, pa.string()),
                pa.array([name] * n, pa.string()),
                pa.array(regression.example_ids),
                pa.array(np.ascontiguousarray(row.numpy())),
            ]
            yield EXACT_VALUE.name, pa.RecordBatch.from_arrays(columns, schema=EXACT_VALUE.schema)

    def cost(self, work: Work) -> Cost:
        """One inverse, one product with the queries, and for `auto` one eigendecomposition."""
        n, m, n_classes = work.n_examples, work.n_queries, work.n_classes
        solves = (11.0 if self.ridge == "auto" else 1.0) * n**3
        return Cost(
            flops=solves + 2.0 * n * (n + m) * work.dim + 2.0 * n**2 * m,
            written_bytes=n * len(self.utilities) * 24,
            memory_bytes=32 * n**2 + 16 * n * m + 8 * (n + m) * work.dim + 8 * n * n_classes,
        )


STAGE = LeaveOneOut
