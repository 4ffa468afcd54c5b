"""FreeShap: Shapley values of examples in the game "utility of kernel regression on a subset".

Source: arXiv:2406.04606 (methods.md 1.4 to 1.6). The players are the labelled examples, the
utility is a mean over the labelled queries, and every marginal contribution is exact: no
truncation, no block-diagonal or incremental inverse. All prefixes of a permutation come from one
Cholesky factor instead of the paper's rank-one updates. [derived, methods.md 1.6]

Round r draws its permutations by `numpy.random.default_rng([seed, r]).permutation(n)`, called
`permutations_per_round` times, over the examples in ascending id: it depends on nothing else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.drawing import permutations
from stages.kernel import factor
from stages.labelled_kernel import LabelledKernel, Ridge, check_fields, read_labelled_kernel
from stages.stage import ConfigError, Cost, Inputs, Split, Work
from stages.tables import SHAPLEY_ROUND
from stages.utility import Utility, mean_utilities
from stages.utility import check_fields as check_utilities
from storage.schema import TableSpec

BLOCK_NUMBERS = 2**19
"""Outputs (prefixes x classes x queries) held at a time; a few megabytes stay in the cache."""


class Game(NamedTuple):
    """What a worker keeps: the regression on labelled queries, and facts for the manifest."""

    regression: LabelledKernel
    facts: dict[str, Any]


def prefix_outputs(
    regression: LabelledKernel, order: Int64[Tensor, " examples"]
) -> Iterator[Float[Tensor, "prefixes classes queries"]]:
    """Outputs, less 1/C, for the first p examples of `order`: p = 0 to n, in blocks.

    A block starts with the last prefix of the one before. With L the Cholesky factor of
    K[order,order] + damping I, V = L^-1 K[order,queries] and Z = L^-1 targets[order], they are
    sum_{q<p} V[q,t] Z[q,c]. Cost n^3/3 + n^2 (queries + classes) + 2 n queries classes; memory
    16 n^2 bytes beside the kernel. [derived, methods.md 1.6]
    """
    lower = factor(regression.kernel[order[:, None], order[None, :]], regression.damping)
    right = torch.cat([regression.query_kernel, regression.targets.T])[:, order].T
    solved = torch.linalg.solve_triangular(lower, right, upper=False)
    n_queries, n_classes = len(regression.query_kernel), regression.targets.shape[1]
    steps, weights = solved[:, :n_queries], solved[:, n_queries:]
    last = torch.zeros(1, n_classes, n_queries, dtype=steps.dtype)
    size = max(1, BLOCK_NUMBERS // last.numel())
    for start in range(0, len(order), size):
        block = slice(start, start + size)
        increments = steps[block, None, :] * weights[block, :, None]
        outputs = torch.cat([last, increments]).cumsum(0)
        last = outputs[-1:].clone()
        yield outputs


def marginals(
    regression: LabelledKernel,
    order: Int64[Tensor, " examples"],
    utilities: tuple[Utility, ...],
    temperature: float = 1.0,
) -> Float[Tensor, "utilities examples"]:
    """What each example adds to each utility when it joins those before it in `order`.

    Columns follow the regression's examples, not the order. A row sums to U(all) - U(empty).
    An example whose features are zero gets exactly zero. Cost as `prefix_outputs`.
    """
    differences = []
    for outputs in prefix_outputs(regression, order):
        values = mean_utilities(outputs, regression.query_labels, utilities, temperature)
        moved = (outputs[1:] != outputs[:-1]).flatten(1).any(1)
        # Equal outputs at two places of a vector may differ in the last bit of their logarithm.
        differences.append(values.diff(dim=1) * moved)
    scattered = torch.empty(len(utilities), len(order), dtype=torch.float64)
    scattered[:, order] = torch.cat(differences, dim=1)
    return scattered


def end_points(
    regression: LabelledKernel, utilities: tuple[Utility, ...], temperature: float
) -> Float[Tensor, "utilities 2"]:
    """U(empty) and U(all) of each utility. Cost n^3/3 + n queries classes."""
    lower = factor(regression.kernel, regression.damping)
    dual = torch.cholesky_solve(regression.targets, lower)
    full = (regression.query_kernel @ dual).T
    outputs = torch.stack([torch.zeros_like(full), full])
    return mean_utilities(outputs, regression.query_labels, utilities, temperature)


@dataclass(frozen=True)
class FreeShap:
    """Exact marginal contributions along random permutations, summed per round.

    Memory of a task: the kernel, 8 (n + m) n bytes, and 24 n^2 + 16 n m bytes while it computes.
    """

    kernel: tuple[str, ...] = ("ntk",)
    """Feature tables; with several, their kernels' mean."""
    normalize: bool = True
    """Scale every feature vector to unit length. The paper does not."""
    ridge: Ridge = "auto"
    """Relative to the kernel's mean diagonal, the same for every subset; `auto` takes the least
    leave-one-out error on the training labels. The paper has 1e-6, absolute."""
    utilities: tuple[Utility, ...] = ("accuracy", "cross_entropy")
    """What a set of examples is worth; values of all are computed from the same permutations."""
    temperature: float = 1.0
    """Divides the outputs before the softmax of `cross_entropy`. The paper feeds them raw: 1."""
    permutations_per_round: int = 10
    """Permutations in a round, the unit of the standard error being one permutation."""
    rounds: int = 20
    """Rounds wanted; more can be added later. The paper draws 200 permutations."""
    seed: int = 0
    """Seed of the permutations, together with the round's number."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "round"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    outside_key: ClassVar[frozenset[str]] = frozenset({"rounds"})

    def __post_init__(self) -> None:
        """Refuse what cannot be computed.

        Raises:
            ConfigError: a field is empty, negative or not a number.
        """
        check_fields(self.kernel, self.ridge)
        check_utilities(self.utilities, self.temperature)
        if self.permutations_per_round < 1 or self.rounds < 1 or self.seed < 0:
            raise ConfigError(
                f"freeshap: found permutations_per_round: {self.permutations_per_round}, rounds: "
                f"{self.rounds}, seed: {self.seed}, expected at least 1, 1 and 0. Raise them."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The feature tables and the labels."""
        return (*self.kernel, "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Sums over the permutations of a round."""
        return (SHAPLEY_ROUND,)

    def open(self, inputs: Inputs) -> Game:
        """The kernel, once per worker, with the ridge and the utilities' end points."""
        regression = read_labelled_kernel(inputs, self.kernel, self.normalize, self.ridge)
        labelled = regression.with_labelled_queries()
        ends = end_points(labelled, self.utilities, self.temperature)
        facts = {
            "ridge": labelled.ridge,
            "damping": labelled.damping,
            "n_examples": len(labelled.example_ids),
            "n_queries": len(labelled.query_ids),
            "n_unlabelled_queries": len(regression.query_ids) - len(labelled.query_ids),
            **regression.left_out.details(),
            "utility_of_none": dict(zip(self.utilities, ends[:, 0].tolist(), strict=True)),
            "utility_of_all": dict(zip(self.utilities, ends[:, 1].tolist(), strict=True)),
        }
        return Game(labelled, facts)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Ridge, counts, and the utilities of no and of all examples."""
        game: Game = inputs.opened
        return game.facts

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """The sums of one round."""
        regression, index = inputs.opened.regression, inputs.part.index
        n, n_units = len(regression.example_ids), self.permutations_per_round
        total = torch.zeros(len(self.utilities), n, dtype=torch.float64)
        total_sq = torch.zeros_like(total)
        for order in permutations(n, n_units, self.seed, index):
            unit = marginals(regression, order, self.utilities, self.temperature)
            total += unit
            total_sq += unit.square()
        for row, name in enumerate(self.utilities):
            columns = [
                pa.array(np.full(n, index, dtype=np.int64)),
                pa.array([name] * n, pa.string()),
                pa.array(regression.example_ids),
                pa.array(total[row].numpy()),
                pa.array(total_sq[row].numpy()),
                pa.array(np.full(n, n_units, dtype=np.int64)),
                pa.array(np.full(n, n_units, dtype=np.int64)),
            ]
            yield (
                SHAPLEY_ROUND.name,
                pa.RecordBatch.from_arrays(columns, schema=SHAPLEY_ROUND.schema),
            )

    def cost(self, work: Work) -> Cost:
        """One Cholesky factor and one triangular solve per permutation."""
        n, m, n_classes = work.n_examples, work.n_queries, work.n_classes
        per_permutation = n**3 / 3 + n**2 * (m + n_classes) + 30.0 * n * m * n_classes
        return Cost(
            flops=self.rounds * self.permutations_per_round * per_permutation,
            written_bytes=self.rounds * n * len(self.utilities) * 32,
            memory_bytes=32 * n**2 + 24 * n * m,
        )


STAGE = FreeShap
