"""Tables of a regression in primal form: sums over the examples, and the fit that they give."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from torch import Tensor

from stages.reading.outer_products import KEY, SCHEMA, Sums
from stages.reading.vectors import matrix_of
from stages.stage import DataError, Inputs
from stages.surrogate.primal import PrimalFit, add_products
from storage.schema import TableSpec

FEATURE_SUMS = TableSpec(name="feature_sums", schema=SCHEMA, key=KEY)
"""Rows as in `stages.reading.outer_products`; a block is a part of the vectors, named by its
number."""

TARGET_SUMS = TableSpec(
    name="target_sums",
    schema=pa.schema(
        [
            ("part", pa.int64()),
            ("row", pa.int64()),
            ("n_examples", pa.int64()),
            ("total", pa.float64()),
            ("products", pa.large_list(pa.float64())),
        ]
    ),
    key=("part", "row"),
)
"""Of number `row` of a part of the feature vectors, over `n_examples` answered examples: `total` is
its sum, `products` are the sums of it times the one-hot label or the target. The last row of a part
is that of a number that is always 1."""

UNANSWERED_SUMS = TableSpec(
    name="unanswered_sums", schema=FEATURE_SUMS.schema, key=FEATURE_SUMS.key
)
"""Rows as those of `feature_sums`, over the examples with features and without an answer."""

KERNEL_FIT = TableSpec(
    name="kernel_fit",
    schema=pa.schema(
        [
            ("part", pa.int64()),
            ("direction", pa.int64()),
            ("eigenvalue", pa.float64()),
            ("vector", pa.list_(pa.float64())),
            ("targets", pa.list_(pa.float64())),
        ]
    ),
    key=("part", "direction"),
)
"""Directions of a part's sums in the order of their eigenvalues, which ascend: unit vectors, and
the sums of the examples' targets times their features along them."""

RIDGE_ERROR = TableSpec(
    name="ridge_error",
    schema=pa.schema(
        [
            ("shard", pa.int64()),
            ("ridge", pa.float64()),
            ("n_examples", pa.int64()),
            ("squared_error", pa.float64()),
        ]
    ),
    key=("shard", "ridge"),
)
"""The leave-one-out squared error of each ridge that `auto` chooses from, summed over the examples
of a shard and their outputs."""


class FittedPart(NamedTuple):
    """The regression of one part of the outputs on its part of the vectors."""

    fit: PrimalFit
    damping: float
    scales: list[float]
    """Root mean square length of each table's vectors; 1 where they have unit length."""


class PrimalRegression(NamedTuple):
    """A kernel regression in primal form."""

    parts: list[FittedPart]
    offset: float
    """Mean of all targets, which is added back to what is predicted."""
    ridge: float


def add_rows(total: dict[str, Sums], name: str, rows: Float[Tensor, "rows dim"]) -> None:
    """Adds the outer products of `rows` to the sums of the part `name`, which begin at zero.

    Raises:
        DataError: vectors are of another length than before.
    """
    if not len(rows):
        return
    dim = rows.shape[1]
    if name not in total:
        zeros = torch.zeros(dim, dim, dtype=torch.float64)
        total[name] = Sums(0, torch.zeros(dim, dtype=torch.float64), zeros)
    sums = total[name]
    if len(sums.total) != dim:
        raise DataError(
            f"features: found vectors of {dim} and of {len(sums.total)} numbers, expected one "
            "length. Run the stage that writes them again."
        )
    add_products(sums.products, rows)
    total[name] = Sums(sums.n_examples + len(rows), sums.total + rows.sum(0), sums.products)


def read_target_sums(table: pa.Table) -> dict[int, tuple[int, Float[Tensor, "rows columns"]]]:
    """By part: how many examples, and in rows `total` and `products` of `TARGET_SUMS`."""
    table = table.sort_by([("part", "ascending"), ("row", "ascending")]).combine_chunks()
    parts, counts = (table[name].to_numpy() for name in ("part", "n_examples"))
    sums = {}
    for part in np.unique(parts).tolist():
        rows = table.filter(pa.array(parts == part)).combine_chunks()
        products = rows["products"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
        both = np.concatenate([rows["total"].to_numpy()[:, None], products], 1)
        sums[part] = int(counts[parts == part][0]), torch.from_numpy(both)
    return sums


def target_rows(answered: Mapping[int, tuple[int, Tensor]]) -> pa.RecordBatch:
    """Rows of `TARGET_SUMS`, in key order."""
    tables = []
    for part, (n, sums) in sorted(answered.items()):
        n_rows, width = len(sums), sums.shape[1] - 1
        flat = pa.array(np.ascontiguousarray(sums[:, 1:].numpy()).reshape(-1))
        columns = [
            pa.array(np.full(n_rows, part)),
            pa.array(np.arange(n_rows)),
            pa.array(np.full(n_rows, n)),
            pa.array(np.ascontiguousarray(sums[:, 0].numpy())),
            pa.LargeListArray.from_arrays(pa.array(np.arange(n_rows + 1) * width), flat),
        ]
        tables.append(pa.RecordBatch.from_arrays(columns, schema=TARGET_SUMS.schema))
    return pa.Table.from_batches(tables).combine_chunks().to_batches()[0]


def fit_rows(fits: Sequence[PrimalFit]) -> pa.Table:
    """Rows of `KERNEL_FIT`, in key order."""
    batches = []
    for part, fit in enumerate(fits):
        n = len(fit.eigenvalues)
        columns = [
            pa.array(np.full(n, part)),
            pa.array(np.arange(n)),
            pa.array(fit.eigenvalues.numpy()),
            _lists(fit.basis.T),
            _lists(fit.targets),
        ]
        batches.append(pa.RecordBatch.from_arrays(columns, KERNEL_FIT.schema.names))
    return pa.Table.from_batches(batches)


def read_fit(inputs: Inputs, name: str) -> PrimalRegression:
    """The regression that the instance `name` of `kernel_fit` wrote."""
    facts, table = inputs.details(name), inputs.table(name)
    parts = []
    for part, (damping, scales) in enumerate(zip(facts["damping"], facts["scales"], strict=True)):
        rows = table.filter(pc.equal(table["part"], part)).sort_by("direction")
        basis = torch.from_numpy(np.ascontiguousarray(matrix_of(rows["vector"]).T))
        eigenvalues = torch.from_numpy(np.array(rows["eigenvalue"].to_numpy()))
        targets = torch.from_numpy(np.array(matrix_of(rows["targets"])))
        parts.append(FittedPart(PrimalFit(basis, eigenvalues, targets), damping, scales))
    return PrimalRegression(parts, float(facts["offset"]), float(facts["ridge"]))


def _lists(matrix: Float[Tensor, "rows columns"]) -> pa.Array:
    """The rows of a matrix as lists of one length."""
    flat = pa.array(np.ascontiguousarray(matrix.numpy()).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])
