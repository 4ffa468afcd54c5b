"""Fisher and Gauss-Newton matrices of the training loss, one for each layer's block of a gradient.

With g_i the projected loss gradient of example i, g_ic that of its class logit c, and p_ic the
probability that the model gives the class,

    fisher         (1/n) sum_i g_i g_i'
    gauss_newton   (1/n) sum_i sum_c p_ic (g_ic - gbar_i) (g_ic - gbar_i)'
                   with gbar_i = sum_c p_ic g_ic.

The second is the generalised Gauss-Newton matrix of the cross-entropy, J'(diag(p) - pp')J, which is
the Fisher matrix with labels drawn from the model: it sees no label. The first, with the labels as
given, is the *empirical* Fisher matrix: where the model fits its labels, its gradients and with
them the matrix vanish. Both are the second-order part of influence in place of the Hessian.

Blocks of layers need gradients whose layers lie side by side, such as those of a stage
`gradient: {projection: {inputs: 16, outputs: 16, dim: null}}`, with a matrix of 256 x 256 numbers a
layer; where the run names none, that one is added. The default projection mixes all layers into one
block of 8,192 numbers, whose sums would take 270 MB a shard: it is refused.

Source: Martens 2020, arXiv:1412.1193 (Gauss-Newton and Fisher matrices), Kunstner et al. 2019,
arXiv:1905.12558 (what the empirical one is not); blocks of layers as in Grosse et al. 2023,
arXiv:2308.03296, here of projected gradients and without Kronecker factors.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.capabilities import Merges
from stages.gradients.blocks import CURVATURE, Block, blocks_of
from stages.gradients.of_logits import check_parts, check_writers
from stages.gradients.projection import BY_LAYER, Projection
from stages.reading.logits import matched
from stages.reading.outer_products import Sums, add, to_rows
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Split, Work
from storage.schema import TableSpec

LONGEST_BLOCK = 4096
"""Most numbers of a block: its sums then take 67 MB a shard, and a merge of eight 0.7 GB."""
BATCH_NUMBERS = 2**23
"""Most numbers of a block that are held in float64 at a time: 64 MiB."""


def fisher_sums(gradients: Float[Tensor, "rows dim"], blocks: Sequence[Block]) -> dict[str, Sums]:
    """The sums of g and g g' over the rows, by block name, in float64.

    Cost rows * size^2 for a block; memory 8 size^2 bytes, beside it a bounded batch.
    """
    sums = {}
    for block in blocks:
        total = torch.zeros(block.size, dtype=torch.float64)
        products = torch.zeros(block.size, block.size, dtype=torch.float64)
        for rows in _batches(len(gradients), block.size):
            g = gradients[rows, block.part].double()
            total += g.sum(0)
            products.addmm_(g.T, g)
        sums[block.name] = Sums(len(gradients), total, products)
    return sums


def gauss_newton_sums(
    gradients: Float[Tensor, "rows classes dim"],
    logits: Float[Tensor, "rows classes"],
    blocks: Sequence[Block],
) -> dict[str, Sums]:
    """The sums of sum_c p_c (g_c - gbar)(g_c - gbar)' over the rows, by block name, in float64.

    `gradients` are those of the logits, p is the softmax of `logits`. The sum of g, the model's own
    expectation of the loss gradient, is zero by its definition. Cost rows * classes * size^2.
    """
    n_rows, n_classes = logits.shape
    p = torch.softmax(logits.double(), 1)
    sums = {}
    for block in blocks:
        products = torch.zeros(block.size, block.size, dtype=torch.float64)
        for rows in _batches(n_rows, n_classes * block.size):
            g = gradients[rows, :, block.part].double()
            g = (g - p[rows, None, :] @ g) * p[rows, :, None].sqrt()
            g = g.reshape(-1, block.size)
            products.addmm_(g.T, g)
        sums[block.name] = Sums(n_rows, torch.zeros(block.size, dtype=torch.float64), products)
    return sums


@dataclass(frozen=True)
class Curvature(Merges):
    """Sums of outer products over all examples, which `gradients.blocks.read_curvature` averages.

    A task holds one shard of vectors and one matrix per block; a merge eight sets of these.
    """

    kind: Literal["fisher", "gauss_newton"] = "fisher"
    """`fisher` takes the loss gradients at the given labels, `gauss_newton` the gradients of all
    logits at the probabilities that the model predicts."""
    gradient: str = "gradient"
    """Instance whose loss gradients `fisher` reads."""
    ntk: str = "ntk"
    """Instance that `gauss_newton` reads, with the gradients of all logits (`logit: all`)."""
    predictions: str = "prediction"
    """Instance with the model's logits, for `gauss_newton`."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"

    @property
    def reads(self) -> tuple[str, ...]:
        """Loss gradients, or gradients of the logits and the logits themselves."""
        return (self.gradient,) if self.kind == "fisher" else (self.ntk, self.predictions)

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """Gradients whose layers are not mixed; of all logits for `gauss_newton`."""
        if self.kind == "fisher":
            return {self.gradient: {"projection": BY_LAYER}}
        return {self.ntk: {"projection": BY_LAYER, "logit": "all"}}

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """The rows of each block's matrix."""
        return (CURVATURE,)

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses gradients whose blocks can be too long, or that are not those of the logits.

        Raises:
            ConfigError: a block can be longer than `LONGEST_BLOCK`, or the gradients are others.
        """
        read = self._vectors
        if self.kind == "gauss_newton":
            check_writers(read, writers[read], self.predictions, writers[self.predictions])
        projection = getattr(writers[read], "projection", None)
        longest = longest_block(projection) if projection is not None else None
        if longest is not None and longest > LONGEST_BLOCK:
            raise ConfigError(
                f"{read}: found that a block of its vectors can have {longest} numbers, expected "
                f"at most {LONGEST_BLOCK}, as a matrix has their square. Set there projection: "
                "{inputs: 16, outputs: 16, dim: null}, which mixes no layers, or a smaller dim."
            )

    def compute(self, inputs: Inputs) -> Rows:
        """Sums over the examples of one shard; no rows where none has a vector."""
        if self.kind == "fisher":
            rows = _examples(inputs.table(self.gradient))
            if rows.num_rows:
                gradients = torch.from_numpy(np.array(matrix_of(rows["vector"])))
                blocks = short_enough(blocks_of(inputs.details(self.gradient), gradients.shape[1]))
                yield CURVATURE.name, to_rows(fisher_sums(gradients, blocks))
            return
        vectors, predictions, in_vectors, in_predictions = self._joined(inputs)
        if len(in_vectors):
            logits = torch.from_numpy(matrix_of(predictions["logits"])[in_predictions])
            flat = torch.from_numpy(matrix_of(vectors["vector"])[in_vectors])
            details, n_classes = inputs.details(self.ntk), logits.shape[1]
            check_parts(details, flat.shape[1], n_classes, self.ntk)
            blocks = short_enough(blocks_of(details, flat.shape[1] // n_classes))
            gradients = flat.reshape(len(flat), n_classes, -1)
            yield CURVATURE.name, to_rows(gauss_newton_sums(gradients, logits, blocks))

    def merge(self, parts: Mapping[str, Sequence[pa.Table]]) -> Rows:
        """Sums over the examples of all parts."""
        together = add(parts[CURVATURE.name])
        if together is not None:
            yield CURVATURE.name, together

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The kind, the blocks of a vector, and how many rows are in one of the tables alone."""
        facts = {"kind": self.kind, "blocks": inputs.details(self._vectors).get("blocks")}
        if self.kind == "gauss_newton":
            vectors, predictions, both, _ = self._joined(inputs)
            facts["n_left_out"] = len(vectors) + len(predictions) - 2 * len(both)
        return facts

    def cost(self, work: Work) -> Cost:
        """One product of the vectors with themselves, as if of one block: an upper bound."""
        classes = work.n_classes if self.kind == "gauss_newton" else 1
        triangle_bytes = 4 * work.dim**2
        return Cost(
            flops=2.0 * work.n_examples * classes * work.dim**2,
            written_bytes=round(triangle_bytes * work.n_shards * 8 / 7),
            memory_bytes=10 * triangle_bytes
            + 12 * work.n_examples // work.n_shards * classes * work.dim
            + 24 * BATCH_NUMBERS,
        )

    @property
    def _vectors(self) -> str:
        """The instance whose vectors are summed up."""
        return self.gradient if self.kind == "fisher" else self.ntk

    def _joined(
        self, inputs: Inputs
    ) -> tuple[pa.Table, pa.Table, Int64[np.ndarray, " both"], Int64[np.ndarray, " both"]]:
        """Gradients and predictions of examples, and in each the rows of examples in both."""
        vectors, predictions = (
            _examples(inputs.table(name)) for name in (self.ntk, self.predictions)
        )
        return vectors, predictions, *matched(vectors, predictions, self.predictions)


def longest_block(projection: Projection) -> int | None:
    """Most numbers that a layer's block can have; None where the network decides."""
    if projection.dim is not None:
        return projection.dim
    if projection.inputs is None or projection.outputs is None:
        return None
    return projection.inputs * projection.outputs


def short_enough(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The blocks, none of which is longer than `LONGEST_BLOCK`.

    Raises:
        DataError: one is.
    """
    longest = max(blocks, key=lambda block: block.size)
    if longest.size > LONGEST_BLOCK:
        raise DataError(
            f"curvature: found the block {longest.name} of {longest.size} numbers, expected at "
            f"most {LONGEST_BLOCK}, as a matrix has their square. Set for the gradients "
            "projection: {inputs: 16, outputs: 16, dim: null}."
        )
    return blocks


def _examples(table: pa.Table) -> pa.Table:
    """The table's rows of examples."""
    return table.filter(pc.equal(table["role"], "example"))


def _batches(n_rows: int, numbers_per_row: int) -> Iterator[slice]:
    """Slices of rows; they depend on these two numbers alone, as the last bits of a sum do."""
    size = max(1, BATCH_NUMBERS // numbers_per_row)
    for start in range(0, n_rows, size):
        yield slice(start, start + size)


STAGE = Curvature
