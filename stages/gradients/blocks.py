"""Blocks of gradients and their curvature, the mean outer product of each block over a corpus.

A block is the part of a feature vector that belongs to one layer. Blocks differ in size, where the
vectors of a feature table share one length: hence a table of its own kind.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from stages.reading.outer_products import KEY, SCHEMA, read_sums
from stages.stage import DataError
from storage.schema import TableSpec

CURVATURE = TableSpec(name="curvature", schema=SCHEMA, key=KEY)
"""Rows as in `stages.reading.outer_products`, of blocks of loss gradients."""


class Block(NamedTuple):
    """The part of a feature vector that belongs to one layer."""

    name: str
    start: int
    size: int

    @property
    def part(self) -> slice:
        """The block's columns in a matrix of vectors."""
        return slice(self.start, self.start + self.size)


def blocks_of(details: Mapping[str, Any], dim: int) -> tuple[Block, ...]:
    """The blocks that a feature table's writer recorded; one named "all" where it did not.

    Raises:
        DataError: the blocks leave gaps in a vector of length `dim`, overlap, or share a name.
    """
    recorded = details.get("blocks") or [{"name": "all", "start": 0, "size": dim}]
    blocks = tuple(Block(str(b["name"]), int(b["start"]), int(b["size"])) for b in recorded)
    ordered = sorted(blocks, key=lambda b: b.start)
    ends = [0, *(block.start + block.size for block in ordered)]
    is_tiled = [*(block.start for block in ordered), dim] == ends
    has_names = len({block.name for block in blocks}) == len(blocks)
    if not (is_tiled and has_names and all(block.size > 0 for block in blocks)):
        raise DataError(
            f"curvature: found {len(blocks)} blocks of {sum(b.size for b in blocks)} numbers in "
            f"all ({', '.join(f'{b.name} {b.start}+{b.size}' for b in blocks[:4])}), expected "
            f"blocks of different names that make up a vector of length {dim}. Name another "
            "feature table, or run the stage that wrote it again."
        )
    return blocks


def read_curvature(table: pa.Table) -> dict[str, Float[Tensor, "size size"]]:
    """The mean outer product of each block, symmetric, in float64: the sums divided by examples.

    For `kind: fisher` of the stage that is the empirical Fisher matrix, for `kind: gauss_newton`
    the generalised Gauss-Newton matrix. Memory 8 bytes per number, over all blocks.

    Raises:
        DataError: the table has no rows, for no example had a vector.
    """
    if table.num_rows == 0:
        raise DataError(
            "curvature: found no rows, expected those of at least one example. Look into the view "
            "diagnostics for what happened to the gradients."
        )
    return {name: s.products / s.n_examples for name, s in read_sums(table).items()}
