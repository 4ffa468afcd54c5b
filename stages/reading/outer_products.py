"""Sums of outer products of vectors, block by block, as rows of a table and as matrices.

One row for each row of each block's matrix. Only the lower triangle is kept: half the bytes, and
symmetric by construction. float64, as these are sums over a corpus whose small eigenvalues decide
what an inverse does: in float32 they drown at 1e-7 of the largest. The road not taken: matrices as
binary cells would be as small, and closed to SQL.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from stages.stage import DataError

SCHEMA = pa.schema(
    [
        ("block", pa.string()),
        ("row", pa.int64()),
        ("n_examples", pa.int64()),
        ("total", pa.float64()),
        ("products", pa.large_list(pa.float64())),
    ]
)
"""`products` holds the sums over `n_examples` examples of g[row] g[0], ..., g[row] g[row], hence
row + 1 numbers, and `total` the sum of g[row], with g the block of an example's vector."""
KEY = ("block", "row")


class Sums(NamedTuple):
    """Sums over examples for one block; those of disjoint sets of examples add up."""

    n_examples: int
    total: Float[Tensor, " size"]
    """Sum of the examples' vectors g."""
    products: Float[Tensor, "size size"]
    """Sum of their outer products g g'."""


def to_rows(sums: Mapping[str, Sums]) -> pa.RecordBatch:
    """The sums of all blocks as rows of `SCHEMA`, in key order."""
    names = sorted(sums)
    sizes = [len(sums[name].total) for name in names]
    flat = [sums[n].products.numpy()[_triangle(s)] for n, s in zip(names, sizes, strict=True)]
    rows = np.concatenate([np.arange(size) for size in sizes])
    offsets = np.concatenate([[0], np.cumsum(rows + 1)])
    columns = [
        pa.array([n for n, size in zip(names, sizes, strict=True) for _ in range(size)]),
        pa.array(rows),
        pa.array(np.repeat([sums[name].n_examples for name in names], sizes).astype(np.int64)),
        pa.array(np.concatenate([sums[name].total.numpy() for name in names])),
        pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(flat))),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def read_sums(table: pa.Table) -> dict[str, Sums]:
    """The sums of every block in a table of rows of `SCHEMA`, in any order."""
    table = table.sort_by([("block", "ascending"), ("row", "ascending")]).combine_chunks()
    blocks = np.array(table["block"].to_pylist(), dtype=object)
    flat = _products(table)
    sums, at, used = {}, 0, 0
    while at < len(blocks):
        size = int((blocks == blocks[at]).sum())
        lower = flat[used : used + size * (size + 1) // 2]
        products = torch.zeros(size, size, dtype=torch.float64)
        matrix, triangle = products.numpy(), _triangle(size)
        matrix[triangle] = lower
        matrix.T[triangle] = lower
        total = np.array(table["total"].slice(at, size).to_numpy())
        count = int(table["n_examples"][at].as_py())
        sums[str(blocks[at])] = Sums(count, torch.from_numpy(total), products)
        at, used = at + size, used + len(lower)
    return sums


def add(tables: Sequence[pa.Table]) -> pa.RecordBatch | None:
    """The sums of several tables of rows of `SCHEMA`, added up; None if all are empty.

    Raises:
        DataError: they are not sums over the same blocks.
    """
    tables = [table.combine_chunks() for table in tables if table.num_rows]
    if not tables:
        return None
    first = tables[0]
    counts = np.array(first["n_examples"].to_numpy())
    totals, products = np.array(first["total"].to_numpy()), np.array(_products(first))
    for table in tables[1:]:
        if not all(table[name].equals(first[name]) for name in KEY):
            raise DataError(
                f"sums: found parts of {table.num_rows} and {first.num_rows} rows over other "
                "blocks, expected the same blocks in every shard. Run the stage that writes the "
                "feature table again."
            )
        counts += table["n_examples"].to_numpy()
        totals += table["total"].to_numpy()
        products += _products(table)
    offsets = np.concatenate([[0], np.cumsum(first["row"].to_numpy() + 1)])
    columns = [
        first["block"].combine_chunks(),
        first["row"].combine_chunks(),
        pa.array(counts),
        pa.array(totals),
        pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(products)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _products(table: pa.Table) -> Float[np.ndarray, " numbers"]:
    """The column `products` flattened, in the order of the rows."""
    flat: np.ndarray = table["products"].combine_chunks().flatten().to_numpy()
    return flat


def _triangle(size: int) -> np.ndarray:
    """A mask of the entries on or below the diagonal of a square matrix of this size."""
    return np.tri(size, dtype=bool)
